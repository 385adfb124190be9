//! A loop by XLA's own builder, from what [`Loop`] says of itself and not from how the graph lowers it.

use xla::{ArrayShape, XlaComputation, XlaOp};

use super::builder::{Builder, Result};
use super::values::dims;
use crate::hlo::loops::Loop;
use crate::hlo::program::Program;

/// The outputs of a loop that are asked for. Its state is the number of trips done, what is carried, stacks, scanned arrays,
/// and what all trips share.
pub fn while_loop(builder: &Builder, body: &Loop, asked: &[usize], inputs: &[XlaOp]) -> Result<Vec<XlaOp>> {
    let carries = body.carries();
    let (carried, others) = inputs.split_at(carries);
    let stacked = asked.iter().copied().filter(|output| *output >= carries).collect::<Vec<_>>();
    let entries = entries(body, inputs)?;
    let stacks = stacked.iter().map(|output| zeros(builder, body.trips(), &entries[*output]));
    let stacks = stacks.collect::<xla::Result<Vec<_>>>()?;
    let start = [&[builder.integer(0)?], carried, &stacks, others].concat();
    let shape = xla::Shape::tuple(start.iter().map(XlaOp::shape).collect::<xla::Result<_>>()?);
    let start = builder.tuple(&start)?;
    let end = XlaOp::while_(condition(body, &shape)?, trip(body, &stacked, &shape)?, start)?;
    let place = |output: &usize| match stacked.iter().position(|stack| stack == output) {
        Some(stack) => 1 + carries + stack,
        None => 1 + output,
    };
    let outputs = asked.iter().map(|output| end.get_tuple_element(place(output) as i64));
    Ok(outputs.collect::<xla::Result<_>>()?)
}

/// The shapes of what a trip gives, and of what it takes of what is carried, as XLA infers them.
fn entries(body: &Loop, inputs: &[XlaOp]) -> Result<Vec<ArrayShape>> {
    let builder = Builder::new("step");
    let mut taken = vec![builder.parameter("index", &xla::Shape::array::<i32>(vec![]))?];
    for (i, input) in inputs.iter().enumerate() {
        let shape = input.array_shape()?;
        let entry = &shape.dims()[usize::from(body.scanned().contains(&i))..];
        taken.push(builder.parameter("part", &xla::Shape::array_with_type(shape.ty(), entry.to_vec()))?);
    }
    let given = builder.outputs(&body.step(), &taken)?;
    let entries = given.iter().chain(&taken[1..][..body.carries()]);
    Ok(entries.map(XlaOp::array_shape).collect::<xla::Result<_>>()?)
}

fn zeros(builder: &Builder, trips: usize, entry: &ArrayShape) -> xla::Result<XlaOp> {
    let zero = builder.xla.zero(entry.ty())?;
    zero.broadcast_in_dim(&[&[trips as i64], entry.dims()].concat(), &[])
}

/// Whether there are more trips.
fn condition(body: &Loop, state: &xla::Shape) -> Result<XlaComputation> {
    let builder = Builder::new("condition");
    let done = builder.parameter("state", state)?.get_tuple_element(0)?;
    Ok(done.lt(&builder.integer(body.trips())?)?.build()?)
}

/// What one trip makes of the state.
fn trip(body: &Loop, stacked: &[usize], shape: &xla::Shape) -> Result<XlaComputation> {
    let builder = Builder::new("body");
    let state = builder.parameter("state", shape)?;
    let parts = (0..shape.tuple_size().unwrap_or(0)).map(|part| state.get_tuple_element(part as i64));
    let parts = parts.collect::<xla::Result<Vec<_>>>()?;
    let (done, rest) = (&parts[0], &parts[1..]);
    let (carried, rest) = rest.split_at(body.carries());
    let (stacks, rest) = rest.split_at(stacked.len());
    let (scanned, invariant) = rest.split_at(body.scanned().len());
    let index = match body.reversed {
        true => builder.integer(body.trips() - 1)?.sub_(done)?,
        false => done.clone(),
    };
    let start = |rank: usize| -> xla::Result<Vec<XlaOp>> {
        let mut start = vec![builder.integer(0)?; rank];
        start[0] = index.clone();
        Ok(start)
    };
    let entry = |array: &XlaOp| {
        let sizes = dims(&array.dims()?);
        let entry = array.dynamic_slice(&start(sizes.len())?, &[&[1], &sizes[1..]].concat())?;
        entry.reshape(&sizes[1..])
    };
    let entries = scanned.iter().map(entry).collect::<xla::Result<Vec<_>>>()?;
    // Of what the step gives, what is asked for: it may come of a loop that stacks up what isn't.
    let step = body.step();
    let asked =
        (0..carried.len()).chain(stacked.iter().copied().filter(|output| *output < step.outputs.len()));
    let asked = asked.collect::<Vec<_>>();
    let outputs = asked.iter().map(|output| step.outputs[*output]).collect();
    let program = Program::new("asked", step.parameters.clone(), outputs);
    let given =
        builder.outputs(&program, &[std::slice::from_ref(&index), carried, &entries, invariant].concat())?;
    let stack = |(stack, output): (&XlaOp, &usize)| {
        let given = asked.iter().position(|asked| asked == output).map(|place| &given[place]);
        let sizes = dims(&stack.dims()?);
        let entry = given.unwrap_or_else(|| &carried[output - step.outputs.len()]);
        let entry = entry.reshape(&[&[1], &sizes[1..]].concat())?;
        stack.dynamic_update_slice(&entry, &start(sizes.len())?)
    };
    let stacks = stacks.iter().zip(stacked).map(stack).collect::<xla::Result<Vec<_>>>()?;
    let done = done.add_(&builder.integer(1)?)?;
    let left = [&[done], &given[..carried.len()], &stacks, scanned, invariant].concat();
    Ok(builder.tuple(&left)?.build()?)
}
