//! What the members of an ensemble have in common: made once.

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::Result;
use super::job::{Job, Source};
use super::programs::Programs;
use crate::data::Tokens;
use crate::exec::Replicas;
use crate::run::{self, claim_ensemble};

/// The folder of an ensemble that is to be trained.
#[derive(Clone, Debug)]
pub(super) struct EnsembleFolder {
    pub root: PathBuf,
    /// Of its members, relative to it.
    pub members: Vec<String>,
    pub arguments: Vec<String>,
    /// Whether another one that is there may be replaced.
    pub replace: bool,
}

impl EnsembleFolder {
    fn claim(&self) -> run::Result<u64> {
        claim_ensemble(&self.root, &self.members, &self.arguments, self.replace)
    }
}

/// The devices, and what sessions on the same source need of them and of their table.
pub struct Shared {
    replicas: Arc<Replicas>,
    /// Of an ensemble.
    ensemble: Option<EnsembleFolder>,
    /// Known to the first process, once it has made the folder: see [`claim_ensemble`].
    claimed: Cell<Option<u64>>,
    began: OnceCell<u64>,
    tokens: OnceCell<Rc<Tokens>>,
    programs: OnceCell<Rc<Programs>>,
}

impl Shared {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        let (claimed, began) = (Cell::new(None), OnceCell::new());
        let (tokens, programs) = (OnceCell::new(), OnceCell::new());
        Self { replicas, ensemble: None, claimed, began, tokens, programs }
    }

    /// Of the members of an ensemble: the first session makes its folder.
    pub(super) fn of_ensemble(self, folder: EnsembleFolder) -> Self {
        Self { ensemble: Some(folder), ..self }
    }

    pub(super) fn ensemble(&self) -> Option<&EnsembleFolder> {
        self.ensemble.as_ref()
    }

    /// In the first process: makes the ensemble's folder, if there is one to make.
    pub(super) fn claim(&self) -> Result<()> {
        match &self.ensemble {
            Some(folder) if self.claimed.get().is_none() => self.claimed.set(Some(folder.claim()?)),
            _ => {}
        }
        Ok(())
    }

    /// In seconds since 1970: a member's run that was started before is to be replaced. 0 where there is none to replace, or no
    /// ensemble. The first process tells all.
    pub(super) fn began(&self) -> Result<u64> {
        if self.ensemble.is_none() {
            return Ok(0);
        }
        if let Some(began) = self.began.get() {
            return Ok(*began);
        }
        let own = self.claimed.get().unwrap_or_default();
        let all = self.replicas.gather("preparing the output", &[(own >> 32) as u32, own as u32])?;
        let began = u64::from(all[0][0]) << 32 | u64::from(all[0][1]);
        Ok(*self.began.get_or_init(|| began))
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
