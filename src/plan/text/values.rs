//! Shapes and literals.

use std::fmt::{Debug, Write};

use super::{join, numbered};
use crate::proto::{LayoutProto, LiteralProto, ShapeProto, primitive_type as t};

/// Arrays with more elements are written `{...}`, as XLA does.
const MOST_ELEMENTS: usize = 10;

/// Names of `xla.PrimitiveType`, by number.
const ELEMENT_TYPES: [&str; 28] = [
    "invalid",
    "pred",
    "s8",
    "s16",
    "s32",
    "s64",
    "u8",
    "u16",
    "u32",
    "u64",
    "f16",
    "f32",
    "f64",
    "tuple",
    "opaque",
    "c64",
    "bf16",
    "token",
    "c128",
    "f8e5m2",
    "f8e4m3fn",
    "s4",
    "u4",
    "f8e4m3b11fnuz",
    "f8e5m2fnuz",
    "f8e4m3fnuz",
    "s2",
    "u2",
];

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layouts {
    Shown,
    Hidden,
}

/// `f32[636,64]{1,0:T(8,128)}`, `(f32[2]{0}, u32[])`, or the same without layouts.
pub(super) fn shape(one: &ShapeProto, layouts: Layouts) -> String {
    if one.element_type == t::TUPLE {
        return format!("({})", numbered(one.tuple_shapes.iter().map(|part| shape(part, layouts))));
    }
    let name = usize::try_from(one.element_type).ok().and_then(|number| ELEMENT_TYPES.get(number));
    let mut text = format!("{}[{}]", name.unwrap_or(&"?"), join(&one.dimensions, ","));
    if layouts == Layouts::Shown {
        text.extend(one.layout.as_ref().map(layout));
    }
    text
}

/// Dimensions from minor to major; after a colon the tiles `T`, the alignment `L` and the memory space `S`.
fn layout(layout: &LayoutProto) -> String {
    let mut memory = String::new();
    for (i, tile) in layout.tiles.iter().enumerate() {
        let _ = write!(memory, "{}({})", if i == 0 { "T" } else { "" }, join(&tile.dimensions, ","));
    }
    if layout.tail_padding_alignment_in_elements > 1 {
        let _ = write!(memory, "L({})", layout.tail_padding_alignment_in_elements);
    }
    if layout.memory_space != 0 {
        let _ = write!(memory, "S({})", layout.memory_space);
    }
    let order = join(&layout.minor_to_major, ",");
    match (&*order, &*memory) {
        ("", "") => String::new(),
        (_, "") => format!("{{{order}}}"),
        _ => format!("{{{order}:{memory}}}"),
    }
}

/// The values of a small constant of a usual type, otherwise `{...}`.
pub(super) fn literal(literal: &LiteralProto) -> String {
    let Some(shape) = &literal.shape else { return String::new() };
    let words = |bytes: &[u8]| {
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect::<Vec<_>>()
    };
    let dims = &shape.dimensions;
    match shape.element_type {
        t::PRED => array(dims, &literal.preds, bool::to_string),
        t::U8 => array(dims, &literal.u8s, u8::to_string),
        t::S32 => array(dims, &literal.s32s, i32::to_string),
        t::S64 => array(dims, &literal.s64s, i64::to_string),
        t::U32 => array(dims, &literal.u32s, u32::to_string),
        t::U64 => array(dims, &literal.u64s, u64::to_string),
        t::F32 => array(dims, &literal.f32s, number),
        t::F64 => array(dims, &literal.f64s, number),
        t::F16 => array(dims, &words(&literal.f16s), |bits| number(&half::f16::from_bits(*bits))),
        t::BF16 => array(dims, &words(&literal.bf16s), |bits| number(&half::bf16::from_bits(*bits))),
        _ => "{...}".into(),
    }
}

/// `7`, `{1, 2}` or `{ {1, 2}, {3, 4} }`, of row-major `values`.
fn array<T>(dims: &[i64], values: &[T], print: impl Fn(&T) -> String + Copy) -> String {
    match (dims, values) {
        ([], [value]) => print(value),
        ([], _) => "{...}".into(),
        _ if values.len() > MOST_ELEMENTS => "{...}".into(),
        (_, []) => "{}".into(),
        ([_], _) => format!("{{{}}}", join(values.iter().map(print), ", ")),
        ([rows, rest @ ..], _) => {
            let row = values.len() / usize::try_from(*rows).unwrap_or(1).max(1);
            let rows = values.chunks(row.max(1)).map(|row| array(rest, row, print));
            format!("{{ {} }}", join(rows, ", "))
        }
    }
}

/// The fewest digits that read back as the same number.
fn number(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}
