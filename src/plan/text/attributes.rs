//! What follows an instruction's operands.

use super::{Names, join, name};
use crate::proto::{
    ConvolutionDimensionNumbers, DotDimensionNumbers, GatherDimensionNumbers, HloInstructionProto,
    PaddingConfig, ScatterDimensionNumbers, SliceDimensions, Window, WindowDimension,
};

/// Attributes by the names and in the order of XLA's own text.
pub(super) fn attributes(
    instruction: &HloInstructionProto,
    computations: &Names<'_>,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let dimensions = &instruction.dimensions;
    match &*instruction.opcode {
        "iota" => found.push(("iota_dimension", join(dimensions, ","))),
        "get-tuple-element" => found.push(("index", instruction.tuple_index.to_string())),
        "rng-bit-generator" => found.push(("algorithm", algorithm(instruction.rng_algorithm).into())),
        // Of a scalar, also those that are empty.
        "broadcast" => found.push(("dimensions", list(dimensions))),
        _ if !dimensions.is_empty() => found.push(("dimensions", list(dimensions))),
        _ => {}
    }
    found.extend(instruction.window.iter().filter_map(|window| Some(("window", self::window(window)?))));
    found.extend(instruction.convolution_dimension_numbers.iter().map(|dims| ("dim_labels", labels(dims))));
    if !instruction.slice_dimensions.is_empty() {
        let ranges = join(instruction.slice_dimensions.iter().map(range), ", ");
        found.push(("slice", format!("{{{ranges}}}")));
    }
    if !instruction.dynamic_slice_sizes.is_empty() {
        found.push(("dynamic_slice_sizes", list(&instruction.dynamic_slice_sizes)));
    }
    found.extend(instruction.padding_config.iter().map(|config| ("padding", padding(config))));
    if !instruction.comparison_direction.is_empty() {
        found.push(("direction", instruction.comparison_direction.clone()));
    }
    instruction.dot_dimension_numbers.iter().for_each(|dims| found.extend(dot(dims)));
    if let Some(dims) = &instruction.gather_dimension_numbers {
        found.extend(gather(dims));
        found.push(("slice_sizes", list(&instruction.gather_slice_sizes)));
    }
    instruction.scatter_dimension_numbers.iter().for_each(|dims| found.extend(scatter(dims)));
    if !instruction.fusion_kind.is_empty() {
        found.push(("kind", instruction.fusion_kind.clone()));
    }
    if !instruction.custom_call_target.is_empty() {
        found.push(("custom_call_target", format!("{:?}", instruction.custom_call_target)));
    }
    found.extend(called(instruction, computations));
    found
}

/// The computations that an instruction calls, under the name that says what for.
fn called(instruction: &HloInstructionProto, computations: &Names<'_>) -> Vec<(&'static str, String)> {
    let names = instruction.called_computation_ids.iter().map(|id| name(*id, computations));
    let mut names = names.collect::<Vec<_>>();
    match (&*instruction.opcode, names.len()) {
        (_, 0) => vec![],
        ("fusion" | "async-start" | "async-update" | "async-done", 1) => vec![("calls", names.remove(0))],
        ("while", 2) => vec![("condition", names.remove(1)), ("body", names.remove(0))],
        ("conditional", _) => vec![("branch_computations", format!("{{{}}}", join(names, ", ")))],
        (_, 1) => vec![("to_apply", names.remove(0))],
        _ => vec![("called_computations", format!("{{{}}}", join(names, ", ")))],
    }
}

fn list(dims: &[i64]) -> String {
    format!("{{{}}}", join(dims, ","))
}

/// `xla.RandomAlgorithm`
fn algorithm(number: i32) -> &'static str {
    match number {
        1 => "rng_three_fry",
        2 => "rng_philox",
        _ => "rng_default",
    }
}

/// `[0:8]`, with a stride `[0:8:2]`
fn range(dim: &SliceDimensions) -> String {
    match dim.stride {
        1 => format!("[{}:{}]", dim.start, dim.limit),
        stride => format!("[{}:{}:{stride}]", dim.start, dim.limit),
    }
}

/// `low_high` a dimension, or `low_high_interior`
fn padding(config: &PaddingConfig) -> String {
    let has_interior = config.dimensions.iter().any(|dim| dim.interior_padding != 0);
    let dims = config.dimensions.iter().map(|dim| {
        let (low, high, interior) = (dim.edge_padding_low, dim.edge_padding_high, dim.interior_padding);
        if has_interior { format!("{low}_{high}_{interior}") } else { format!("{low}_{high}") }
    });
    join(dims, "x")
}

fn dot(dims: &DotDimensionNumbers) -> impl Iterator<Item = (&'static str, String)> {
    [
        ("lhs_batch_dims", &dims.lhs_batch_dimensions),
        ("lhs_contracting_dims", &dims.lhs_contracting_dimensions),
        ("rhs_batch_dims", &dims.rhs_batch_dimensions),
        ("rhs_contracting_dims", &dims.rhs_contracting_dimensions),
    ]
    .into_iter()
    .filter(|(_, dims)| !dims.is_empty())
    .map(|(key, dims)| (key, list(dims)))
}

fn gather(dims: &GatherDimensionNumbers) -> [(&'static str, String); 4] {
    [
        ("offset_dims", list(&dims.offset_dims)),
        ("collapsed_slice_dims", list(&dims.collapsed_slice_dims)),
        ("start_index_map", list(&dims.start_index_map)),
        ("index_vector_dim", dims.index_vector_dim.to_string()),
    ]
}

fn scatter(dims: &ScatterDimensionNumbers) -> [(&'static str, String); 4] {
    [
        ("update_window_dims", list(&dims.update_window_dims)),
        ("inserted_window_dims", list(&dims.inserted_window_dims)),
        ("scatter_dims_to_operand_dims", list(&dims.scatter_dims_to_operand_dims)),
        ("index_vector_dim", dims.index_vector_dim.to_string()),
    ]
}

/// A convolution's dimensions as in `bf_oi->bf`: batch and feature of the input, output and input feature of the kernel,
/// batch and feature of the output; a digit is a dimension that the window slides along.
fn labels(dims: &ConvolutionDimensionNumbers) -> String {
    let order = |first: (char, i64), second: (char, i64), spatial: &[i64]| {
        let digits = ('0'..='9').zip(spatial.iter().copied());
        let mut labels = digits.chain([first, second]).collect::<Vec<_>>();
        labels.sort_by_key(|(_, dim)| *dim);
        labels.into_iter().map(|(label, _)| label).collect::<String>()
    };
    let input = order(
        ('b', dims.input_batch_dimension),
        ('f', dims.input_feature_dimension),
        &dims.input_spatial_dimensions,
    );
    let kernel = order(
        ('i', dims.kernel_input_feature_dimension),
        ('o', dims.kernel_output_feature_dimension),
        &dims.kernel_spatial_dimensions,
    );
    let output = order(
        ('b', dims.output_batch_dimension),
        ('f', dims.output_feature_dimension),
        &dims.output_spatial_dimensions,
    );
    format!("{input}_{kernel}->{output}")
}

/// `{size=2x12 stride=1x11 lhs_dilate=2x12}`: the parts that differ from the usual in a dimension.
fn window(window: &Window) -> Option<String> {
    let dims = &window.dimensions;
    let part = |key: &str, usual: &str, value: &dyn Fn(&WindowDimension) -> String| {
        let values = dims.iter().map(value).collect::<Vec<_>>();
        let differs = values.iter().any(|value| value != usual);
        differs.then(|| format!("{key}={}", join(values, "x")))
    };
    let parts = [
        part("size", "", &|dim| dim.size.to_string()),
        part("stride", "1", &|dim| dim.stride.to_string()),
        part("pad", "0_0", &|dim| format!("{}_{}", dim.padding_low, dim.padding_high)),
        part("lhs_dilate", "1", &|dim| dim.base_dilation.to_string()),
        part("rhs_dilate", "1", &|dim| dim.window_dilation.to_string()),
        part("rhs_reversal", "0", &|dim| u8::from(dim.window_reversal).to_string()),
    ];
    (!dims.is_empty()).then(|| format!("{{{}}}", join(parts.into_iter().flatten(), " ")))
}
