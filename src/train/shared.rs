//! What the members of an ensemble have in common: made once.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Result;
use super::job::{Job, Source};
use super::programs::Programs;
use crate::data::Tokens;
use crate::exec::Replicas;

/// The devices, and what sessions on the same source need of them and of their table.
pub struct Shared {
    replicas: Arc<Replicas>,
    tokens: OnceCell<Rc<Tokens>>,
    programs: OnceCell<Rc<Programs>>,
}

impl Shared {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        Self { replicas, tokens: OnceCell::new(), programs: OnceCell::new() }
    }

    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// Of all rows of the table.
    pub(super) fn tokens(&self, source: &Source) -> Result<Rc<Tokens>> {
        if let Some(tokens) = self.tokens.get() {
            return Ok(tokens.clone());
        }
        let tokens = Rc::new(source.tokenizer.encode(&source.table.texts)?);
        Ok(self.tokens.get_or_init(|| tokens).clone())
    }

    /// Those that train `job`. On a slice, all processes compile them together.
    pub(super) fn programs(&self, job: &Job) -> Result<Rc<Programs>> {
        if let Some(programs) = self.programs.get().filter(|programs| programs.trains(job)) {
            return Ok(programs.clone());
        }
        let (model, batch_size) = (&job.source.model, job.recipe.batch_size);
        let programs = Programs::compile(self.replicas.clone(), model, batch_size, &job.training());
        let programs = Rc::new(programs?);
        let _ = self.programs.set(programs.clone());
        Ok(programs)
    }
}
