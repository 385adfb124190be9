//! The programs that a model is trained with: compiled once for all that are trained alike.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::Job;
use super::{Error, Result};
use crate::exec::{self, Executable, Replicas};
use crate::hlo::Graph;
use crate::infer::EvalProgram;
use crate::model::ClassifierConfig;
use crate::pjrt::MemoryStats;
use crate::step::{Execution, Signature, StepConfig, Training, train_step, zeros_step};

/// A train step, compiled for each length that batches have, and what goes with it.
pub struct Programs {
    pub(super) replicas: Arc<Replicas>,
    pub(super) config: StepConfig,
    /// By the length.
    steps: BTreeMap<usize, Executable>,
    pub(super) eval: EvalProgram,
    zeros: OnceCell<Executable>,
    compile_time: Duration,
}

impl Programs {
    /// For `batch_size` examples at a time, over all replicas, of each of these lengths. On a slice, all processes compile
    /// together.
    ///
    /// # Panics
    /// If there is no length.
    pub fn compile(
        replicas: Arc<Replicas>,
        model: &ClassifierConfig,
        batch_size: usize,
        training: &Training,
        execution: Execution,
        lengths: &[usize],
    ) -> Result<Self> {
        assert!(!lengths.is_empty(), "a step needs a length");
        let config = StepConfig::new(model.clone(), replicas.rows(batch_size)?, replicas.count());
        let config = StepConfig { training: training.clone(), execution, ..config };
        let compile = || {
            let started = Instant::now();
            let step = |length: &usize| {
                let config = StepConfig { length: *length, ..config.clone() };
                Ok((*length, Executable::compile(&replicas, train_step(&Graph::new(), &config))?))
            };
            let steps = lengths.iter().map(step).collect::<exec::Result<BTreeMap<_, _>>>()?;
            let compile_time = started.elapsed();
            let mut eval = EvalProgram::new(config.clone());
            eval.add(&replicas, lengths)?;
            Ok::<_, exec::Error>((steps, compile_time, eval))
        };
        let (steps, compile_time, eval) = replicas.meet("compiling", compile().map_err(Error::from))?;
        Ok(Self { replicas, config, steps, eval, zeros: OnceCell::new(), compile_time })
    }

    /// Whether they are those of `job`, whose batches have these lengths.
    pub(super) fn trains(&self, job: &Job, lengths: &[usize]) -> bool {
        let batch_size = self.config.rows * self.config.replicas;
        self.config.model == job.source.model
            && self.config.training == job.training()
            && self.config.execution == job.execution(&self.replicas)
            && batch_size == job.recipe.batch_size
            && self.steps.keys().eq(lengths)
    }

    /// Examples that one step takes.
    pub fn examples_per_step(&self) -> usize {
        self.config.rows * self.config.replicas * self.config.training.accumulate
    }

    /// The step for batches of this length.
    ///
    /// # Panics
    /// If none was compiled.
    pub(super) fn step(&self, length: usize) -> &Executable {
        self.steps.get(&length).unwrap_or_else(|| panic!("no step for texts of {length} tokens"))
    }

    /// That of the longest batches, whose state is that of all.
    pub(super) fn any_step(&self) -> &Executable {
        self.steps.values().next_back().expect("a step is compiled")
    }

    /// What the train step of the longest batches takes and returns.
    pub fn signature(&self) -> &Signature {
        self.any_step().signature()
    }

    /// How long the compiler took for the train steps.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Memory of the compiled train step of the longest batches, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        Ok(self.any_step().memory_stats()?)
    }

    /// What gives a step's state but the weights, where no step is done.
    pub(super) fn zeros(&self) -> exec::Result<&Executable> {
        if let Some(zeros) = self.zeros.get() {
            return Ok(zeros);
        }
        let graph = Graph::new();
        let zeros = Executable::compile_local(&self.replicas, zeros_step(&graph, self.signature()))?;
        Ok(self.zeros.get_or_init(|| zeros))
    }
}
