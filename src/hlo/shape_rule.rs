//! The shape rule of each operation.

use super::op::{Binary, DotDimensions, Op, ShapeError};
use crate::shape::{ElementType, Shape};

impl Op {
    /// The output's shape for inputs of these shapes.
    ///
    /// # Errors
    /// Inputs that the operation can't take; the message names the operation and every input's shape.
    pub fn shape(&self, inputs: &[&Shape]) -> Result<Shape, ShapeError> {
        self.output_shape(inputs).map_err(|problem| ShapeError {
            op: self.name(),
            problem,
            inputs: inputs.iter().map(|shape| shape.to_string()).collect::<Vec<_>>().join(" and "),
        })
    }

    fn output_shape(&self, inputs: &[&Shape]) -> Result<Shape, String> {
        match self {
            Op::Parameter { shape, .. } => arity::<0>(inputs).map(|_| shape.clone()),
            Op::Iota { shape, dim } => {
                arity::<0>(inputs)?;
                require(*dim < shape.rank(), || format!("no dimension {dim} in {shape}"))?;
                numeric(shape)?;
                Ok(shape.clone())
            }
            Op::Constant(scalar) => arity::<0>(inputs).map(|_| Shape::scalar(scalar.element_type)),
            Op::ReplicaId => arity::<0>(inputs).map(|_| Shape::scalar(ElementType::U32)),
            Op::Unary(op) => {
                let [a] = arity(inputs)?;
                require(op.takes(a.element_type), || format!("not defined on {}", a.element_type))?;
                Ok((*a).clone())
            }
            Op::Binary(op) => binary(*op, inputs),
            Op::Compare(_) => {
                let [a, b] = arity(inputs)?;
                same(a, b)?;
                Ok(Shape::new(ElementType::Pred, a.dims.clone()))
            }
            Op::Select => select(inputs),
            Op::Convert(element_type) => {
                let [a] = arity(inputs)?;
                Ok(Shape::new(*element_type, a.dims.clone()))
            }
            Op::BitcastConvert(to) => bitcast(*to, inputs),
            Op::Broadcast { dims, mapping } => broadcast(dims, mapping, inputs),
            Op::Reshape { dims } => {
                let [a] = arity(inputs)?;
                let output = Shape::new(a.element_type, dims.clone());
                require(output.num_elements() == a.num_elements(), || {
                    format!("{output} has another number of elements")
                })?;
                Ok(output)
            }
            Op::Transpose { permutation } => transpose(permutation, inputs),
            Op::Slice { start, limit, stride } => slice(start, limit, stride, inputs),
            Op::DynamicSlice { sizes } => dynamic_slice(sizes, inputs),
            Op::DynamicUpdateSlice => dynamic_update_slice(inputs),
            Op::Concatenate { dim } => concatenate(*dim, inputs),
            Op::Pad { low, high, interior } => pad(low, high, interior, inputs),
            Op::DotGeneral { dimensions, sums } => dot(dimensions, *sums, inputs),
            Op::Reduce { dims, .. } => {
                let [a, start] = arity(inputs)?;
                numeric(a)?;
                same(start, &Shape::scalar(a.element_type))?;
                require(distinct(dims) && dims.iter().all(|d| *d < a.rank()), || {
                    format!("no dimensions {dims:?}")
                })?;
                let kept = (0..a.rank()).filter(|d| !dims.contains(d)).map(|d| a.dims[d]);
                Ok(Shape::new(a.element_type, kept.collect::<Vec<_>>()))
            }
            Op::Gather => {
                let [table, indices] = arity(inputs)?;
                let output = rows(table, indices)?;
                require(table.dims[0] > 0, || "the table has no rows".into())?;
                Ok(output)
            }
            Op::ScatterAdd => {
                let [table, indices, updates] = arity(inputs)?;
                numeric(table)?;
                same(&rows(table, indices)?, updates)?;
                Ok((*table).clone())
            }
            Op::RngBitGenerator { shape } => {
                let [state] = arity(inputs)?;
                require(**state == Shape::new(ElementType::U64, [2]), || "the state must be u64[2]".into())?;
                require(shape.element_type == ElementType::U32, || {
                    format!("the bits must be u32, not {shape}")
                })?;
                Ok(shape.clone())
            }
            Op::AllReduce => {
                let [a] = arity(inputs)?;
                numeric(a)?;
                Ok((*a).clone())
            }
            Op::AllGather { replicas } => all_gather(*replicas, inputs),
            Op::ReduceScatter { replicas } => reduce_scatter(*replicas, inputs),
            Op::AllToAll { replicas } => all_to_all(*replicas, inputs),
            Op::While { body, output } => body.shape(*output, inputs),
            Op::StopGradient | Op::Barrier => arity(inputs).map(|[a]| (*a).clone()),
            Op::After => arity(inputs).map(|[a, _]| (*a).clone()),
            Op::Derived(derived) => {
                let (value, arguments) = inputs.split_first().ok_or("takes a value, given nothing")?;
                require(arguments.len() == derived.arguments(), || {
                    format!("of {} arguments, given {}", derived.arguments(), arguments.len())
                })?;
                same(value, arguments[0])?;
                Ok((*value).clone())
            }
        }
    }
}

fn arity<'a, const N: usize>(inputs: &'a [&'a Shape]) -> Result<&'a [&'a Shape; N], String> {
    inputs.try_into().map_err(|_| format!("takes {N} inputs, given {}", inputs.len()))
}

pub(super) fn require(holds: bool, problem: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(problem()) }
}

pub(super) fn same(a: &Shape, b: &Shape) -> Result<(), String> {
    require(a == b, || format!("shapes {a} and {b} differ"))
}

/// Sums, maxima and counts are of numbers.
fn numeric(a: &Shape) -> Result<(), String> {
    require(a.element_type != ElementType::Pred, || "not defined on pred".into())
}

fn distinct(dims: &[usize]) -> bool {
    dims.iter().enumerate().all(|(i, d)| !dims[..i].contains(d))
}

fn binary(op: Binary, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a, b] = arity(inputs)?;
    same(a, b)?;
    let accepted = match op {
        Binary::And | Binary::Or | Binary::Xor => !a.element_type.is_float(),
        Binary::ShiftLeft | Binary::ShiftRightLogical => {
            !a.element_type.is_float() && a.element_type != ElementType::Pred
        }
        _ => a.element_type != ElementType::Pred,
    };
    require(accepted, || format!("not defined on {}", a.element_type))?;
    Ok((*a).clone())
}

fn select(inputs: &[&Shape]) -> Result<Shape, String> {
    let [condition, on_true, on_false] = arity(inputs)?;
    same(on_true, on_false)?;
    same(condition, &Shape::new(ElementType::Pred, on_true.dims.clone()))?;
    Ok((*on_true).clone())
}

fn bitcast(to: ElementType, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    let (from, wide) = (a.element_type.size(), to.size());
    let mut dims = a.dims.clone();
    if wide > from {
        require(dims.last() == Some(&(wide / from)), || {
            format!("{to} needs a last dimension of {}", wide / from)
        })?;
        dims.pop();
    } else if wide < from {
        dims.push(from / wide);
    }
    Ok(Shape::new(to, dims))
}

fn broadcast(dims: &[usize], mapping: &[usize], inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    let output = Shape::new(a.element_type, dims);
    let increasing = mapping.windows(2).all(|pair| pair[0] < pair[1]);
    let fits = mapping.len() == a.rank() && mapping.iter().zip(&a.dims).all(|(m, d)| dims.get(*m) == Some(d));
    require(increasing && fits, || format!("doesn't broadcast to {output} along {mapping:?}"))?;
    Ok(output)
}

fn transpose(permutation: &[usize], inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    require(sorted.into_iter().eq(0..a.rank()), || format!("{permutation:?} is no permutation"))?;
    Ok(Shape::new(a.element_type, permutation.iter().map(|d| a.dims[*d]).collect::<Vec<_>>()))
}

fn slice(start: &[usize], limit: &[usize], stride: &[usize], inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    let ranks = [start.len(), limit.len(), stride.len()] == [a.rank(); 3];
    let inside =
        ranks && (0..a.rank()).all(|d| start[d] <= limit[d] && limit[d] <= a.dims[d] && stride[d] > 0);
    require(inside, || format!("no slice {start:?}..{limit:?} by {stride:?}"))?;
    let dims = (0..a.rank()).map(|d| (limit[d] - start[d]).div_ceil(stride[d])).collect::<Vec<_>>();
    Ok(Shape::new(a.element_type, dims))
}

fn concatenate(dim: usize, inputs: &[&Shape]) -> Result<Shape, String> {
    let first = inputs.first().ok_or("takes at least one input")?;
    require(dim < first.rank(), || format!("no dimension {dim}"))?;
    let mut output = (*first).clone();
    output.dims[dim] = 0;
    for input in inputs {
        let mut expected = (*first).clone();
        if input.rank() == first.rank() {
            expected.dims[dim] = input.dims[dim];
        }
        require(**input == expected, || format!("{first} and {input} differ outside dimension {dim}"))?;
        output.dims[dim] += input.dims[dim];
    }
    Ok(output)
}

fn dynamic_slice(sizes: &[usize], inputs: &[&Shape]) -> Result<Shape, String> {
    let [a, start @ ..] = inputs else { return Err("takes an input and its start, given nothing".into()) };
    starts(a, start)?;
    fits(sizes, a)?;
    Ok(Shape::new(a.element_type, sizes))
}

fn dynamic_update_slice(inputs: &[&Shape]) -> Result<Shape, String> {
    let [a, update, start @ ..] = inputs else {
        return Err(format!("takes an input, an update and its start, given {}", inputs.len()));
    };
    starts(a, start)?;
    require(a.element_type == update.element_type, || "element types differ".into())?;
    fits(&update.dims, a)?;
    Ok((*a).clone())
}

/// A start has a scalar for each dimension.
fn starts(a: &Shape, start: &[&Shape]) -> Result<(), String> {
    require(start.len() == a.rank(), || format!("a start of rank {}", start.len()))?;
    start.iter().try_for_each(|one| same(one, &Shape::scalar(ElementType::S32)))
}

fn fits(sizes: &[usize], a: &Shape) -> Result<(), String> {
    let within = sizes.len() == a.rank() && sizes.iter().zip(&a.dims).all(|(size, dim)| size <= dim);
    require(within, || format!("{sizes:?} elements don't fit"))
}

fn pad(low: &[usize], high: &[usize], interior: &[usize], inputs: &[&Shape]) -> Result<Shape, String> {
    let [a, value] = arity(inputs)?;
    same(value, &Shape::scalar(a.element_type))?;
    require([low.len(), high.len(), interior.len()] == [a.rank(); 3], || {
        format!("padding of rank {}", low.len())
    })?;
    let padded = |d: usize| low[d] + a.dims[d] + a.dims[d].saturating_sub(1) * interior[d] + high[d];
    Ok(Shape::new(a.element_type, (0..a.rank()).map(padded).collect::<Vec<_>>()))
}

fn dot(dimensions: &DotDimensions, sums: ElementType, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a, b] = arity(inputs)?;
    require(a.element_type == b.element_type, || "element types differ".into())?;
    let is_narrow = matches!(a.element_type, ElementType::F16 | ElementType::Bf16);
    require(sums == a.element_type || (is_narrow && sums == ElementType::F32), || {
        format!("no sums in {sums}")
    })?;
    let sizes =
        |shape: &Shape, dims: &[usize]| dims.iter().map(|d| shape.dims.get(*d).copied()).collect::<Vec<_>>();
    let paired = |lhs: &[usize], rhs: &[usize]| {
        let (lhs, rhs) = (sizes(a, lhs), sizes(b, rhs));
        lhs == rhs && !lhs.contains(&None)
    };
    require(paired(&dimensions.lhs_batch, &dimensions.rhs_batch), || {
        format!("batch dimensions {:?} and {:?} don't pair", dimensions.lhs_batch, dimensions.rhs_batch)
    })?;
    require(paired(&dimensions.lhs_contracting, &dimensions.rhs_contracting), || {
        format!(
            "contracting dimensions {:?} and {:?} don't pair",
            dimensions.lhs_contracting, dimensions.rhs_contracting
        )
    })?;
    let lhs_dims = [&dimensions.lhs_batch[..], &dimensions.lhs_contracting].concat();
    let rhs_dims = [&dimensions.rhs_batch[..], &dimensions.rhs_contracting].concat();
    require(distinct(&lhs_dims) && distinct(&rhs_dims), || "a dimension is named twice".into())?;
    let batch = dimensions.lhs_batch.iter().map(|d| a.dims[*d]);
    let lhs = dimensions.lhs_free(a.rank()).into_iter().map(|d| a.dims[d]);
    let rhs = dimensions.rhs_free(b.rank()).into_iter().map(|d| b.dims[d]);
    Ok(Shape::new(sums, batch.chain(lhs).chain(rhs).collect::<Vec<_>>()))
}

/// The shape of the rows of `table` that `indices` pick.
fn rows(table: &Shape, indices: &Shape) -> Result<Shape, String> {
    require(table.rank() == 2, || "the table must have rank 2".into())?;
    require(indices.element_type == ElementType::S32, || "the indices must be s32".into())?;
    let mut dims = indices.dims.clone();
    dims.push(table.dims[1]);
    Ok(Shape::new(table.element_type, dims))
}

fn all_gather(replicas: usize, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    along_replicas(replicas, a)?;
    let mut output = (*a).clone();
    output.dims[0] *= replicas;
    Ok(output)
}

fn reduce_scatter(replicas: usize, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    numeric(a)?;
    along_replicas(replicas, a)?;
    require(a.dims[0] % replicas == 0, || format!("no {replicas} equal parts"))?;
    let mut output = (*a).clone();
    output.dims[0] /= replicas;
    Ok(output)
}

fn all_to_all(replicas: usize, inputs: &[&Shape]) -> Result<Shape, String> {
    let [a] = arity(inputs)?;
    along_replicas(replicas, a)?;
    require(a.dims[0] % replicas == 0, || format!("no {replicas} equal parts"))?;
    Ok((*a).clone())
}

/// Parts along the first dimension. HLO allows empty ones, but XLA's CPU runtime divides by their size.
fn along_replicas(replicas: usize, a: &Shape) -> Result<(), String> {
    require(replicas > 0, || "over no replicas".into())?;
    require(a.rank() > 0, || "a scalar has no first dimension".into())?;
    require(a.num_elements() > 0, || "not defined on an empty array".into())
}
