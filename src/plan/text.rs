//! An optimized module as HLO text, for people.

mod attributes;
mod values;

use std::collections::HashMap;
use std::fmt::{Display, Write};

use self::attributes::attributes;
use self::values::{Layouts, literal, shape};
use super::module::{BackendConfig, ModuleError, decode};
use crate::proto::{
    HloComputationProto, HloInstructionProto, HloModuleProto, MUST_ALIAS, OpMetadata, ProgramShapeProto,
};

/// HLO text of `module`, a serialized `HloModuleProtoWithConfig` (format `hlo_with_config`).
///
/// For reading, not for parsing back. It is laid out as XLA's own dumps are, but leaves out what a reader seldom asks
/// for (layouts of the entry computation, replica groups, most of `backend_config`), and adds two attributes from
/// `backend_config`: TPU's `estimated_cycles`, and `backend_kind`, what makes a GPU's custom fusion. A part of an
/// asynchronous pair calls the computation that it runs, which XLA's dumps write in its place.
///
/// # Errors
/// `module` is something else.
pub fn to_text(module: &[u8]) -> Result<String, ModuleError> {
    let (hlo, replicas) = decode(module)?;
    let is_entry = |computation: &&HloComputationProto| computation.id == hlo.entry_computation_id;
    let entry = hlo.computations.iter().find(is_entry).ok_or(ModuleError::NoEntry)?;
    let names = hlo.computations.iter().map(|one| (one.id, &*one.name)).collect::<Names>();
    let mut text = header(&hlo, replicas);
    for computation in hlo.computations.iter().filter(|one| !is_entry(one)) {
        write_computation(&mut text, computation, &names);
        text.push('\n');
    }
    text.push_str("ENTRY ");
    write_computation(&mut text, entry, &names);
    Ok(text)
}

/// What computations, or the instructions of one, are called, by id.
type Names<'a> = HashMap<i64, &'a str>;

fn name(id: i64, names: &Names<'_>) -> String {
    format!("%{}", names.get(&id).unwrap_or(&"?"))
}

fn header(hlo: &HloModuleProto, replicas: u64) -> String {
    let mut text = format!("HloModule {}", hlo.name);
    if replicas != 1 {
        let _ = write!(text, ", replica_count={replicas}");
    }
    let aliases = hlo.input_output_alias.iter().flat_map(|aliases| &aliases.entries);
    let aliases = aliases.map(|alias| {
        let (output, input) = (join(&alias.output_shape_index, ","), join(&alias.parameter_shape_index, ","));
        let kind = if alias.kind == MUST_ALIAS { "must-alias" } else { "may-alias" };
        format!("{{{output}}}: ({}, {{{input}}}, {kind})", alias.parameter_number)
    });
    let aliases = join(aliases, ", ");
    if !aliases.is_empty() {
        let _ = write!(text, ", input_output_alias={{ {aliases} }}");
    }
    text.push_str("\n\n");
    text
}

fn write_computation(text: &mut String, computation: &HloComputationProto, computations: &Names<'_>) {
    let signature = computation.program_shape.as_ref().map_or_else(String::new, signature);
    let _ = writeln!(text, "%{}{signature} {{", computation.name);
    let names = computation.instructions.iter().map(|one| (one.id, &*one.name)).collect::<Names>();
    for instruction in &computation.instructions {
        text.push_str(if instruction.id == computation.root_id { "  ROOT " } else { "  " });
        write_instruction(text, instruction, &names, computations);
    }
    text.push_str("}\n");
}

/// ` (a: f32[2], b: f32[]) -> f32[2]`
fn signature(program: &ProgramShapeProto) -> String {
    let parameters = program.parameter_names.iter().zip(&program.parameters);
    let parameters = parameters.map(|(name, one)| format!("{name}: {}", shape(one, Layouts::Hidden)));
    let result = program.result.iter().map(|one| shape(one, Layouts::Hidden));
    format!(" ({}) -> {}", join(parameters, ", "), result.collect::<String>())
}

fn write_instruction(
    text: &mut String,
    instruction: &HloInstructionProto,
    names: &Names<'_>,
    computations: &Names<'_>,
) {
    let _ = write!(text, "%{} = ", instruction.name);
    if let Some(one) = &instruction.shape {
        let _ = write!(text, "{} ", shape(one, Layouts::Shown));
    }
    let _ = write!(text, "{}({})", instruction.opcode, operands(instruction, names));
    for (key, value) in attributes(instruction, computations) {
        let _ = write!(text, ", {key}={value}");
    }
    if let Some(OpMetadata { op_type, op_name }) = &instruction.metadata {
        let fields = [("op_type", op_type), ("op_name", op_name)];
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        let fields = join(fields.map(|(key, value)| format!("{key}={value:?}")), " ");
        if !fields.is_empty() {
            let _ = write!(text, ", metadata={{{fields}}}");
        }
    }
    let config = BackendConfig::of(instruction);
    if let Some(cycles) = config.cycles() {
        let _ = write!(text, ", estimated_cycles={cycles}");
    }
    if let Some(kind) = config.fusion_kind() {
        let _ = write!(text, ", backend_kind={kind:?}");
    }
    text.push('\n');
}

/// What stands between an instruction's parentheses.
fn operands(instruction: &HloInstructionProto, names: &Names<'_>) -> String {
    match &*instruction.opcode {
        "parameter" => instruction.parameter_number.to_string(),
        "constant" => instruction.literal.as_ref().map_or_else(String::new, literal),
        _ => numbered(instruction.operand_ids.iter().map(|id| name(*id, names))),
    }
}

fn join(items: impl IntoIterator<Item = impl Display>, separator: &str) -> String {
    let mut text = String::new();
    for (i, item) in items.into_iter().enumerate() {
        let _ = write!(text, "{}{item}", if i == 0 { "" } else { separator });
    }
    text
}

/// Joined by commas, with the index of every fifth.
fn numbered(items: impl Iterator<Item = String>) -> String {
    let item = |(i, item)| if i > 0 && i % 5 == 0 { format!("/*index={i}*/{item}") } else { item };
    join(items.enumerate().map(item), ", ")
}

#[cfg(test)]
mod tests;
