//! Counted loops: a step that is taken once per entry of some arrays, as HLO's `while`.
//!
//! A loop carries arrays from trip to trip, reads an entry of others at each, and stacks up what it gives. That is JAX's
//! `scan` (`jax.lax.scan`), and it is closed under differentiation: the gradient of a loop is a loop the other way around,
//! over what the first one took at each trip.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use super::graph::{Graph, NodeId, Tensor};
use super::op::{Comparison, Op};
use super::program::Program;
use super::remat::Residuals;
use super::shape_rule::{require, same};
use crate::shape::{ElementType, Shape};

/// What a loop goes over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan<'a, 'g> {
    /// How often its step is taken, at least once.
    pub trips: usize,
    /// From the last entry to the first.
    pub reversed: bool,
    /// What the first trip takes; each leaves arrays of the same shapes to the next.
    pub carried: &'a [Tensor<'g>],
    /// Each `[trips, ...]`: a trip takes one entry.
    pub scanned: &'a [Tensor<'g>],
    /// The same for all trips.
    pub invariant: &'a [Tensor<'g>],
}

/// What one trip takes.
pub struct Trip<'b> {
    /// `s32[]`: which entry it takes.
    pub index: Tensor<'b>,
    pub carried: Vec<Tensor<'b>>,
    /// An entry of each scanned array, without the first dimension.
    pub scanned: Vec<Tensor<'b>>,
    pub invariant: Vec<Tensor<'b>>,
}

impl<'b> Trip<'b> {
    fn inputs(&self) -> Vec<Tensor<'b>> {
        [&[self.index], &self.carried[..], &self.scanned, &self.invariant].concat()
    }
}

/// What a trip leaves to the next, and what it gives to be stacked up.
pub type Step<'b> = (Vec<Tensor<'b>>, Vec<Tensor<'b>>);

impl Graph {
    /// Takes `step` once per trip, in a graph of its own: it sees what its [`Trip`] holds, and nothing else. Gives what the
    /// last trip leaves, and what each gave, `[trips, ...]`.
    ///
    /// ```
    /// use bert_xla::hlo::{Graph, Scan};
    /// use bert_xla::shape::{ElementType, Shape};
    ///
    /// let graph = Graph::new();
    /// let x = graph.parameter("x", Shape::new(ElementType::F32, [5, 3]));
    /// let zero = graph.full(Shape::new(ElementType::F32, [3]), 0.0);
    /// let over = Scan { trips: 5, carried: &[zero], scanned: &[x], ..Scan::default() };
    /// let (sum, running_sums) = graph.scan(over, |_, trip| {
    ///     let sum = trip.carried[0] + trip.scanned[0];
    ///     (vec![sum], vec![sum])
    /// });
    /// assert_eq!(sum[0].dims(), [3]);
    /// assert_eq!(running_sums[0].dims(), [5, 3]);
    /// ```
    ///
    /// # Panics
    /// Where shapes don't fit, or `step` uses a tensor of another graph.
    #[track_caller]
    pub fn scan<'g>(
        &'g self,
        over: Scan<'_, 'g>,
        step: impl for<'b> FnOnce(&'b Graph, Trip<'b>) -> Step<'b>,
    ) -> (Vec<Tensor<'g>>, Vec<Tensor<'g>>) {
        let Scan { trips, reversed, carried, scanned, invariant } = over;
        let entry = |array: &Tensor<'_>| {
            let Shape { element_type, dims } = array.shape();
            assert!(dims.first() == Some(&trips), "a loop of {trips} trips can't go over {array:?}");
            Shape::new(element_type, &dims[1..])
        };
        let whole = |tensors: &[Tensor<'_>]| tensors.iter().map(|tensor| tensor.shape()).collect::<Vec<_>>();
        let shapes = [whole(carried), scanned.iter().map(entry).collect(), whole(invariant)];
        let step = Function::build_at(self.path(), |graph| {
            let index = graph.parameter("index", Shape::scalar(ElementType::S32));
            let trip = Trip {
                index,
                carried: parameters(graph, "carried", &shapes[0]),
                scanned: parameters(graph, "scanned", &shapes[1]),
                invariant: parameters(graph, "invariant", &shapes[2]),
            };
            let inputs = trip.inputs();
            let (carried, stacked) = step(graph, trip);
            (inputs, [carried, stacked].concat())
        });
        let [carries, scans] = [carried.len(), scanned.len()];
        let stacks = step.outputs.len() - carries;
        let body = Rc::new(Loop { trips, reversed, carries, scans, step, path: self.path() });
        let inputs = [carried, scanned, invariant].concat();
        let output = |output| self.insert(Op::While { body: body.clone(), output }, &inputs);
        ((0..carries).map(output).collect(), (carries..carries + stacks).map(output).collect())
    }

    /// The outputs of `function` for `inputs`, as nodes of this graph.
    pub fn call<'g>(&'g self, function: &Function, inputs: &[Tensor<'g>]) -> Vec<Tensor<'g>> {
        let Function { graph, parameters, outputs } = function;
        let reaching = graph.reaching(outputs);
        let mut own = vec![None; reaching.len()];
        parameters.iter().zip(inputs).for_each(|(parameter, input)| own[*parameter] = Some(*input));
        for id in (0..reaching.len()).filter(|id| reaching[*id]) {
            if own[id].is_none() {
                let node = graph.node(id);
                // Nodes come after their inputs, and a function has no parameters but its own.
                let inputs = node.inputs.iter().filter_map(|input| own[*input]).collect::<Vec<_>>();
                own[id] = Some(self.with_path(node.scope, || self.insert(node.op, &inputs)));
            }
        }
        outputs.iter().filter_map(|output| own[*output]).collect()
    }
}

/// Parameters of these shapes, `name.0` and so on.
fn parameters<'b>(graph: &'b Graph, name: &str, shapes: &[Shape]) -> Vec<Tensor<'b>> {
    let parameter = |(i, shape): (usize, &Shape)| graph.parameter(format!("{name}.{i}"), shape.clone());
    shapes.iter().enumerate().map(parameter).collect()
}

/// Some outputs of a graph as a function of some of its parameters.
pub struct Function {
    graph: Graph,
    parameters: Vec<NodeId>,
    outputs: Vec<NodeId>,
}

impl Function {
    /// The function that `build` gives as parameters and outputs, of a graph of its own.
    ///
    /// # Panics
    /// As of [`Program::new`].
    pub fn build(build: impl for<'b> FnOnce(&'b Graph) -> (Vec<Tensor<'b>>, Vec<Tensor<'b>>)) -> Self {
        Self::build_at(Rc::from(""), build)
    }

    /// The same, with nodes in the layer `path`.
    fn build_at(
        path: Rc<str>,
        build: impl for<'b> FnOnce(&'b Graph) -> (Vec<Tensor<'b>>, Vec<Tensor<'b>>),
    ) -> Self {
        let graph = Graph::new();
        let ids = |tensors: Vec<Tensor<'_>>| tensors.iter().map(|tensor| graph.own(*tensor)).collect();
        let (parameters, outputs) = graph.with_path(path, || build(&graph));
        let (parameters, outputs) = (ids(parameters), ids(outputs));
        let function = Self { graph, parameters, outputs };
        // Which looks whether it takes all that it needs.
        function.program("step");
        function
    }

    /// As a program, to be written as one of a module's computations.
    pub(super) fn program(&self, name: &str) -> Program<'_> {
        let tensors = |ids: &[NodeId]| ids.iter().map(|id| Tensor { graph: &self.graph, id: *id }).collect();
        Program::new(name, tensors(&self.parameters), tensors(&self.outputs))
    }

    fn shapes(&self, ids: &[NodeId]) -> Vec<Shape> {
        ids.iter().map(|id| self.graph.node(*id).shape).collect()
    }
}

/// A loop, whatever it goes over. Its outputs are what its last trip leaves, what each gave, stacked up, and last what each
/// took of what is carried, stacked up as well: what only the gradient needs.
pub struct Loop {
    trips: usize,
    pub(super) reversed: bool,
    /// How many arrays are carried, and how many scanned.
    carries: usize,
    scans: usize,
    /// Of a [`Trip`] to a [`Step`].
    step: Function,
    /// The layer that it is in.
    path: Rc<str>,
}

/// The two functions of a `while`, of and to one state: the number of trips done, what is carried, stacks, scanned arrays,
/// what all trips share.
pub(super) struct While {
    pub condition: Function,
    pub body: Function,
    /// The stacks among the state, which start as zeros.
    pub stacks: Vec<Shape>,
}

impl Loop {
    pub fn trips(&self) -> usize {
        self.trips
    }

    /// What it computes at each trip, as a program.
    pub(super) fn step(&self) -> Program<'_> {
        self.step.program("step")
    }

    /// Inputs that are carried: the first.
    pub(super) fn carries(&self) -> usize {
        self.carries
    }

    /// Which inputs are scanned.
    pub(super) fn scanned(&self) -> Range<usize> {
        self.carries..self.carries + self.scans
    }

    pub(super) fn num_outputs(&self) -> usize {
        self.step.outputs.len() + self.carries
    }

    /// The shape of an output, for inputs of these shapes.
    pub(super) fn shape(&self, output: usize, inputs: &[&Shape]) -> Result<Shape, String> {
        let taken = self.step.shapes(&self.step.parameters[1..]);
        let given = self.step.shapes(&self.step.outputs);
        require(self.trips > 0, || "takes at least one trip".into())?;
        require(inputs.len() == taken.len(), || {
            format!("takes {} inputs, given {}", taken.len(), inputs.len())
        })?;
        for (i, (input, taken)) in inputs.iter().zip(&taken).enumerate() {
            same(input, &if self.scanned().contains(&i) { self.stack(taken) } else { taken.clone() })?;
        }
        require(given.len() >= self.carries, || {
            format!("carries {}, and leaves {}", self.carries, given.len())
        })?;
        given.iter().zip(&taken[..self.carries]).try_for_each(|(left, taken)| same(left, taken))?;
        let stacks =
            given[self.carries..].iter().chain(&taken[..self.carries]).map(|shape| self.stack(shape));
        let mut outputs = given[..self.carries].iter().cloned().chain(stacks);
        outputs.nth(output).ok_or_else(|| format!("has no output {output}"))
    }

    fn stack(&self, entry: &Shape) -> Shape {
        Shape::new(entry.element_type, [&[self.trips], &entry.dims[..]].concat())
    }

    /// As a `while` that stacks up what `outputs` asks for; and where in its state each of them is.
    pub(super) fn lower(&self, outputs: &[usize]) -> (While, Vec<usize>) {
        let given = self.step.outputs.len();
        let stacked = outputs.iter().copied().filter(|output| *output >= self.carries).collect::<Vec<_>>();
        let place = |output: &usize| match stacked.iter().position(|stack| stack == output) {
            Some(stack) => 1 + self.carries + stack,
            None => 1 + output,
        };
        let taken = self.step.shapes(&self.step.parameters[1..]);
        // What it gives, or else what it takes.
        let entry = |output: &usize| match output.checked_sub(given) {
            Some(carried) => taken[carried].clone(),
            None => self.step.shapes(&self.step.outputs[*output..=*output]).remove(0),
        };
        let stacks = stacked.iter().map(|output| self.stack(&entry(output))).collect::<Vec<_>>();
        let (carried, others) = taken.split_at(self.carries);
        let scanned = others[..self.scans].iter().map(|shape| self.stack(shape));
        let state = [Shape::scalar(ElementType::S32)].into_iter().chain(carried.iter().cloned());
        let state = state.chain(stacks.clone()).chain(scanned).chain(others[self.scans..].iter().cloned());
        let state = state.collect::<Vec<_>>();
        let condition = Function::build_at(self.path.clone(), |graph| {
            let state = parameters(graph, "state", &state);
            let more = state[0].compare(Comparison::Lt, state[0].like(self.trips as f64));
            (state, vec![more])
        });
        let body = Function::build_at(self.path.clone(), |graph| {
            let state = parameters(graph, "state", &state);
            let left = self.trip(graph, &state, &stacked);
            (state, left)
        });
        (While { condition, body, stacks }, outputs.iter().map(place).collect())
    }

    /// What one trip makes of the state, which has the stacks of the outputs `stacked`.
    fn trip<'b>(&self, graph: &'b Graph, state: &[Tensor<'b>], stacked: &[usize]) -> Vec<Tensor<'b>> {
        let done = state[0];
        let (carried, rest) = state[1..].split_at(self.carries);
        let (stacks, rest) = rest.split_at(stacked.len());
        let (scanned, invariant) = rest.split_at(self.scans);
        let index = if self.reversed { done.like(self.trips as f64 - 1.0) - done } else { done };
        let entries = scanned.iter().map(|array| array.entry(index)).collect::<Vec<_>>();
        let given = graph.call(&self.step, &[&[index], carried, &entries, invariant].concat());
        let stack = |(stack, output): (&Tensor<'b>, &usize)| {
            let entry = given.get(*output).copied().unwrap_or_else(|| carried[output - given.len()]);
            stack.with_entry(index, entry)
        };
        let stacks = stacks.iter().zip(stacked).map(stack).collect::<Vec<_>>();
        [&[done + 1.0], &given[..self.carries], &stacks, scanned, invariant].concat()
    }

    /// The gradients of `inputs`, for those of the outputs; of an input that is not `needed`, or of no floats, none. What each
    /// trip took of what is carried is `taken`; the trip itself is done once more, to be differentiated.
    pub(super) fn gradients<'g>(
        &self,
        inputs: &[Tensor<'g>],
        taken: &[Tensor<'g>],
        outputs: &[Option<Tensor<'g>>],
        needed: &[bool],
    ) -> Vec<Option<Tensor<'g>>> {
        let graph = inputs[0].graph;
        let (carried, rest) = inputs.split_at(self.carries);
        let (scanned, invariant) = rest.split_at(self.scans);
        let (left, stacked) = outputs.split_at(self.carries);
        let is_float = |tensor: &Tensor<'g>| tensor.shape().element_type.is_float();
        let floats = |tensors: &[Tensor<'g>], needed: &dyn Fn(usize) -> bool| {
            (0..tensors.len()).filter(|i| is_float(&tensors[*i]) && needed(*i)).collect::<Vec<_>>()
        };
        // What is carried may matter to what is needed, whether or not its start does.
        let of_carried = floats(carried, &|_| true);
        let of_scanned = floats(scanned, &|i| needed[self.carries + i]);
        let of_invariant = floats(invariant, &|i| needed[self.carries + self.scans + i]);
        let given = (0..stacked.len()).filter(|i| stacked[*i].is_some()).collect::<Vec<_>>();

        let zeros = |tensor: &Tensor<'g>| graph.full(tensor.shape(), 0.0);
        let start = of_carried.iter().map(|i| left[*i].unwrap_or_else(|| zeros(&carried[*i])));
        let start = start.chain(of_invariant.iter().map(|i| zeros(&invariant[*i]))).collect::<Vec<_>>();
        let over = [taken, scanned, &given.iter().filter_map(|i| stacked[*i]).collect::<Vec<_>>()].concat();
        let scan =
            Scan { trips: self.trips, reversed: !self.reversed, carried: &start, scanned: &over, invariant };
        let (sums, entries) = graph.scan(scan, |graph, trip| {
            let (taken, rest) = trip.scanned.split_at(self.carries);
            let (scanned, gradients) = rest.split_at(self.scans);
            let outputs = graph.call(&self.step, &[&[trip.index], taken, scanned, &trip.invariant].concat());
            let outputs = [&outputs[..], taken].concat();
            let (of_left, sums) = trip.carried.split_at(of_carried.len());
            let left = of_carried.iter().map(|i| outputs[*i]).zip(of_left.iter().copied());
            let stacks = given.iter().map(|i| outputs[self.carries + i]).zip(gradients.iter().copied());
            let wrt = of_carried.iter().map(|i| taken[*i]).chain(of_scanned.iter().map(|i| scanned[*i]));
            let wrt = wrt.chain(of_invariant.iter().map(|i| trip.invariant[*i])).collect::<Vec<_>>();
            let found = graph.pull_back(Residuals::All, &left.chain(stacks).collect::<Vec<_>>(), &wrt);
            let found = found
                .into_iter()
                .zip(&wrt)
                .map(|(found, of)| found.unwrap_or_else(|| graph.full(of.shape(), 0.0)));
            let found = found.collect::<Vec<_>>();
            let (of_taken, rest) = found.split_at(of_carried.len());
            let (entries, terms) = rest.split_at(of_scanned.len());
            let sums = sums.iter().zip(terms).map(|(sum, term)| *sum + *term);
            (of_taken.iter().copied().chain(sums).collect(), entries.to_vec())
        });
        let mut all = vec![None; inputs.len()];
        let (of_start, sums) = sums.split_at(of_carried.len());
        of_carried.iter().zip(of_start).for_each(|(i, gradient)| all[*i] = Some(*gradient));
        of_scanned.iter().zip(entries).for_each(|(i, gradient)| all[self.carries + i] = Some(gradient));
        let first = self.carries + self.scans;
        of_invariant.iter().zip(sums).for_each(|(i, gradient)| all[first + i] = Some(*gradient));
        all
    }
}

/// The same loop, not another one that does the same.
impl PartialEq for Loop {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Loop {}

impl std::hash::Hash for Loop {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

impl fmt::Debug for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a loop of {} trips", self.trips)
    }
}
