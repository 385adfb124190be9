//! What the members of an ensemble have in common: made once.

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::job::{Job, Source};
use super::programs::Programs;
use super::{Error, Result};
use crate::data::Tokens;
use crate::exec::Replicas;
use crate::run::layout::SUMMARY;
use crate::run::{self, claim_ensemble};
use crate::storage::Folder;

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
    fn claim(&self) -> run::Result<()> {
        claim_ensemble(&self.root, &self.members, &self.arguments, self.replace)
    }
}

/// The devices, and what sessions on the same source need of them and of their table.
pub struct Shared {
    replicas: Arc<Replicas>,
    /// Of an ensemble.
    ensemble: Option<EnsembleFolder>,
    is_claimed: Cell<bool>,
    /// Whether the ensemble was trained to its end before.
    is_concluded: OnceCell<bool>,
    tokens: OnceCell<Rc<Tokens>>,
    programs: OnceCell<Rc<Programs>>,
}

impl Shared {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        let (is_claimed, is_concluded) = (Cell::new(false), OnceCell::new());
        let (tokens, programs) = (OnceCell::new(), OnceCell::new());
        Self { replicas, ensemble: None, is_claimed, is_concluded, tokens, programs }
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
            Some(folder) if !self.is_claimed.replace(true) => Ok(folder.claim()?),
            _ => Ok(()),
        }
    }

    /// Whether a member's run that is finished is to be replaced where `replace` is asked for: not while others of its
    /// ensemble were not trained to their end. The first process's folder tells.
    pub(super) fn replaces_finished(&self, replace: bool) -> Result<bool> {
        let Some(ensemble) = self.ensemble.as_ref().filter(|_| replace) else { return Ok(replace) };
        if let Some(is_concluded) = self.is_concluded.get() {
            return Ok(*is_concluded);
        }
        const PHASE: &str = "looking for a checkpoint";
        let looks = self.replicas.is_chief();
        let own = if looks { Folder::new(&ensemble.root).exists(SUMMARY) } else { Ok(false) };
        let own = self.replicas.meet(PHASE, own.map_err(Error::from))?;
        let is_concluded = self.replicas.gather(PHASE, &[u32::from(own)])?[0][0] == 1;
        Ok(*self.is_concluded.get_or_init(|| is_concluded))
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
