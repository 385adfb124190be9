//! Many cases, judged as one program.

use fastrand::Rng;

use super::values::{Array, TYPES};
use super::{ours, parsed, run, same_module, same_results, theirs};
use crate::hlo::program::Program;
use crate::hlo::{Graph, Op, Tensor};
use crate::shape::{ElementType, Shape};

pub struct Bench<'g> {
    pub graph: &'g Graph,
    pub random: Rng,
    pub values: Vec<Array>,
    pub parameters: Vec<Tensor<'g>>,
    pub outputs: Vec<Tensor<'g>>,
}

impl<'g> Bench<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        Self { graph, random: Rng::with_seed(1), values: vec![], parameters: vec![], outputs: vec![] }
    }

    pub fn given(&mut self, value: Array) -> Tensor<'g> {
        let parameter = self.graph.parameter(format!("p{}", self.values.len()), value.shape.clone());
        self.parameters.push(parameter);
        self.values.push(value);
        parameter
    }

    pub fn input(&mut self, element_type: ElementType, dims: &[usize]) -> Tensor<'g> {
        let value = Array::wild(&mut self.random, &Shape::new(element_type, dims));
        self.given(value)
    }

    /// Of any type.
    pub fn any(&mut self, dims: &[usize]) -> Tensor<'g> {
        let element_type = self.element_type();
        self.input(element_type, dims)
    }

    /// Each in turn.
    pub fn element_type(&mut self) -> ElementType {
        TYPES[self.random.usize(0..TYPES.len())]
    }

    /// Places in small arrays, before and behind them.
    pub fn index(&mut self, dims: &[usize]) -> Tensor<'g> {
        let shape = Shape::new(ElementType::S32, dims);
        let far = [f64::from(i32::MIN), f64::from(i32::MAX), -1e6, 1e6];
        let place = |_| match self.random.u8(..) {
            byte @ 0..20 => far[usize::from(byte % 4)],
            _ => f64::from(self.random.i32(-2..6)),
        };
        let values = (0..shape.num_elements()).map(place).collect::<Vec<_>>();
        self.given(Array::of(&shape, &values))
    }

    pub fn case(&mut self, op: Op, inputs: &[Tensor<'g>]) {
        self.outputs.push(self.graph.insert(op, inputs));
    }

    pub fn program(&self) -> Program<'g> {
        Program::new("cases", self.parameters.clone(), self.outputs.clone())
    }

    /// By XLA's builder and by XLA's parser of our text it is the module that we write, with the same results.
    pub fn judge(&self) {
        let program = self.program();
        let (ours, theirs) = (ours(&program), theirs(&program).unwrap());
        same_module(&ours, &theirs, &program);
        self.judge_results();
    }

    /// The same, where the builder needs other operations.
    pub fn judge_results(&self) {
        let program = self.program();
        let (ours, theirs) = (ours(&program), theirs(&program).unwrap());
        same_module(&ours, &parsed(&program), &program);
        same_results(&run(&ours, &program, &self.values), &run(&theirs, &program, &self.values), &program);
    }
}
