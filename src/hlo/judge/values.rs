//! Arrays of any element type on the host, and what is the same in the crate's terms.

use fastrand::Rng;
use half::{bf16, f16};
use xla::Literal;

use crate::hlo::Scalar;
use crate::shape::{ElementType, Shape};

pub const TYPES: [ElementType; 10] = [
    ElementType::F16,
    ElementType::Bf16,
    ElementType::F32,
    ElementType::F64,
    ElementType::U8,
    ElementType::S32,
    ElementType::S64,
    ElementType::U32,
    ElementType::U64,
    ElementType::Pred,
];

/// All but `pred`.
pub const NUMBERS: &[ElementType] = TYPES.split_at(9).0;

/// Those whose bits shift.
pub const INTEGERS: &[ElementType] = NUMBERS.split_at(4).1;

/// Zeros, bounds, infinities, what is no number, and others.
#[rustfmt::skip]
pub const SPECIAL: [f64; 16] = [
    0.0, -0.0, 1.0, -1.0, 0.5, -1.5, 1e-7, -1e-40, 100.0, -1e30, 0.1, f64::MAX, f64::MIN, f64::INFINITY,
    f64::NEG_INFINITY, f64::NAN,
];

pub fn element_type(element_type: ElementType) -> xla::ElementType {
    match element_type {
        ElementType::Pred => xla::ElementType::Pred,
        ElementType::U8 => xla::ElementType::U8,
        ElementType::S32 => xla::ElementType::S32,
        ElementType::S64 => xla::ElementType::S64,
        ElementType::U32 => xla::ElementType::U32,
        ElementType::U64 => xla::ElementType::U64,
        ElementType::F16 => xla::ElementType::F16,
        ElementType::Bf16 => xla::ElementType::Bf16,
        ElementType::F32 => xla::ElementType::F32,
        ElementType::F64 => xla::ElementType::F64,
    }
}

pub fn dims(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|d| *d as i64).collect()
}

pub fn xla_shape(shape: &Shape) -> xla::Shape {
    xla::Shape::array_with_type(element_type(shape.element_type), dims(&shape.dims))
}

pub fn constant(scalar: Scalar) -> Literal {
    Array::new(&Shape::scalar(scalar.element_type), |_| scalar).literal()
}

#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Shape,
    pub bytes: Vec<u8>,
}

impl Array {
    /// Each element by its index.
    pub fn new(shape: &Shape, mut element: impl FnMut(usize) -> Scalar) -> Self {
        Self::of_bits(shape, |i| element(i).bits())
    }

    /// The same by their bits.
    pub fn of_bits(shape: &Shape, mut bits: impl FnMut(usize) -> u64) -> Self {
        let size = shape.element_type.size();
        let bytes = (0..shape.num_elements()).flat_map(|i| bits(i).to_le_bytes()[..size].to_vec());
        Self { shape: shape.clone(), bytes: bytes.collect() }
    }

    pub fn of(shape: &Shape, values: &[f64]) -> Self {
        Self::new(shape, |i| Scalar::new(shape.element_type, values[i]))
    }

    /// Small numbers of both signs.
    pub fn mild(random: &mut Rng, shape: &Shape) -> Self {
        let one = |_| match shape.element_type.is_float() {
            true => random.f64() * 4.0 - 2.0,
            false => f64::from(random.i32(-3..6)),
        };
        let values = (0..shape.num_elements()).map(one).collect::<Vec<_>>();
        Self::of(shape, &values)
    }

    /// The same, and between them what is [`SPECIAL`].
    pub fn wild(random: &mut Rng, shape: &Shape) -> Self {
        let mild = Self::mild(random, shape);
        let size = shape.element_type.size();
        let mut wild =
            Self::new(shape, |_| Scalar::new(shape.element_type, *random.choice(&SPECIAL).unwrap()));
        for (to, from) in wild.bytes.chunks_mut(size).zip(mild.bytes.chunks(size)) {
            if random.bool() {
                to.copy_from_slice(from);
            }
        }
        wild
    }

    pub fn literal(&self) -> Literal {
        let of = element_type(self.shape.element_type);
        Literal::create_from_shape_and_untyped_data(of, &self.shape.dims, &self.bytes)
            .expect("as many bytes as the shape has")
    }

    /// What was read back, whatever its shape should be.
    pub fn read(literal: &Literal, shape: &Shape) -> Self {
        assert_eq!(literal.shape().unwrap(), xla_shape(shape), "the shape of what was run");
        let mut bytes = vec![0; literal.size_bytes()];
        literal.copy_untyped_to(&mut bytes).unwrap();
        Self { shape: shape.clone(), bytes }
    }

    pub fn bits(&self, index: usize) -> u64 {
        let size = self.shape.element_type.size();
        let mut word = [0; 8];
        word[..size].copy_from_slice(&self.bytes[index * size..][..size]);
        u64::from_le_bytes(word)
    }

    /// An element of floats, as a number.
    pub fn float(&self, index: usize) -> f64 {
        let bits = self.bits(index);
        match self.shape.element_type {
            ElementType::F16 => f16::from_bits(bits as u16).to_f64(),
            ElementType::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            ElementType::F32 => f64::from(f32::from_bits(bits as u32)),
            ElementType::F64 => f64::from_bits(bits),
            other => panic!("{other} is no type of floats"),
        }
    }

    /// The first element that differs by more than `bar`, relative to its size; what is no number equals itself. Without
    /// a bar, bits count.
    pub fn difference(&self, other: &Self, bar: Option<f64>) -> Option<String> {
        assert_eq!(self.shape, other.shape);
        let is_float = self.shape.element_type.is_float();
        let same = |i: usize| {
            let is_near = || {
                let (a, b) = (self.float(i), other.float(i));
                let near = bar.is_some_and(|bar| (a - b).abs() <= bar * (1.0 + a.abs().min(b.abs())));
                near || a == b && bar.is_some() || a.is_nan() && b.is_nan()
            };
            self.bits(i) == other.bits(i) || is_float && is_near()
        };
        let i = (0..self.shape.num_elements()).find(|i| !same(*i))?;
        Some(match is_float {
            true => format!("{} at {i}: {:e} and {:e}", self.shape, self.float(i), other.float(i)),
            false => format!("{} at {i}: {:#x} and {:#x}", self.shape, self.bits(i), other.bits(i)),
        })
    }
}
