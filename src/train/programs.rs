//! The programs that a model is trained with: compiled once for all that are trained alike.

use std::cell::OnceCell;
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

/// A compiled train step, and what goes with it.
pub struct Programs {
    pub(super) replicas: Arc<Replicas>,
    pub(super) config: StepConfig,
    pub(super) step: Executable,
    pub(super) eval: EvalProgram,
    zeros: OnceCell<Executable>,
    compile_time: Duration,
}

impl Programs {
    /// For `batch_size` examples at a time, over all replicas. On a slice, all processes compile together.
    pub fn compile(
        replicas: Arc<Replicas>,
        model: &ClassifierConfig,
        batch_size: usize,
        training: &Training,
        execution: Execution,
    ) -> Result<Self> {
        let rows = replicas.rows(batch_size)?;
        let training = training.clone();
        let config =
            StepConfig { model: model.clone(), rows, replicas: replicas.count(), training, execution };
        let compile = || {
            let started = Instant::now();
            let step = Executable::compile(&replicas, train_step(&Graph::new(), &config))?;
            let compile_time = started.elapsed();
            Ok::<_, exec::Error>((step, compile_time, EvalProgram::compile(&replicas, &config)?))
        };
        let (step, compile_time, eval) = replicas.meet("compiling", compile().map_err(Error::from))?;
        Ok(Self { replicas, config, step, eval, zeros: OnceCell::new(), compile_time })
    }

    /// Whether they are those of `job`.
    pub(super) fn trains(&self, job: &Job) -> bool {
        let batch_size = self.config.rows * self.config.replicas;
        self.config.model == job.source.model
            && self.config.training == job.training()
            && self.config.execution == job.execution(&self.replicas)
            && batch_size == job.recipe.batch_size
    }

    /// Examples that one step takes.
    pub fn examples_per_step(&self) -> usize {
        self.config.rows * self.config.replicas * self.config.training.accumulate
    }

    /// What the train step takes and returns.
    pub fn signature(&self) -> &Signature {
        self.step.signature()
    }

    /// How long the compiler took for the train step.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Memory of the compiled train step, per replica.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        Ok(self.step.memory_stats()?)
    }

    /// What gives a step's state but the weights, where no step is done.
    pub(super) fn zeros(&self) -> exec::Result<&Executable> {
        if let Some(zeros) = self.zeros.get() {
            return Ok(zeros);
        }
        let graph = Graph::new();
        let zeros = Executable::compile_local(&self.replicas, zeros_step(&graph, self.step.signature()))?;
        Ok(self.zeros.get_or_init(|| zeros))
    }
}
