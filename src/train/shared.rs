//! What the members of an ensemble have in common: made once.

use std::cell::{OnceCell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::job::{Job, Source};
use super::programs::Programs;
use super::{Error, Result};
use crate::data::{TokenCache, Tokens};
use crate::exec::Replicas;
use crate::run::{self, Ensemble, check_outcomes, is_ensemble};
use crate::storage::Folder;

/// The folder of an ensemble that is to be trained.
#[derive(Clone, Debug)]
pub(super) struct EnsembleFolder {
    pub root: PathBuf,
    /// Of its members, relative to it.
    pub members: Vec<String>,
    /// The files of what they come to.
    pub outcomes: Vec<&'static str>,
    pub arguments: Vec<String>,
    /// Whether another one that is there may be replaced.
    pub replace: bool,
}

/// The devices, and what sessions on the same source need of them and of their table.
pub struct Shared {
    replicas: Arc<Replicas>,
    /// Of an ensemble.
    folder: Option<EnsembleFolder>,
    /// What writes there: the first process's.
    ensemble: RefCell<Option<Ensemble>>,
    attempt: OnceCell<Option<u64>>,
    token_cache: Option<TokenCache>,
    tokens: OnceCell<Rc<Tokens>>,
    programs: OnceCell<Rc<Programs>>,
}

impl Shared {
    pub fn new(replicas: Arc<Replicas>) -> Self {
        let (ensemble, attempt) = (RefCell::new(None), OnceCell::new());
        let (tokens, programs) = (OnceCell::new(), OnceCell::new());
        Self { replicas, folder: None, ensemble, attempt, token_cache: None, tokens, programs }
    }

    /// Keeps tokens there.
    pub fn with_token_cache(self, token_cache: Option<TokenCache>) -> Self {
        Self { token_cache, ..self }
    }

    /// Of the members of an ensemble: the first session that is trained makes the folder theirs.
    pub(super) fn of_ensemble(self, folder: EnsembleFolder) -> Self {
        Self { folder: Some(folder), ..self }
    }

    pub(super) fn folder(&self) -> Option<&EnsembleFolder> {
        self.folder.as_ref()
    }

    /// In the first process: finds out whether the ensemble can be written to its folder, if there is one, and keeps others
    /// from that.
    pub(super) fn open(&self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut ensemble = self.ensemble.borrow_mut();
        if ensemble.is_none() {
            let EnsembleFolder { root, members, outcomes, arguments, replace } = folder;
            let opened = Ensemble::open(root, members, arguments, *replace)?;
            if !*replace {
                check_outcomes(&Folder::new(root), outcomes.iter().copied())?;
            }
            *ensemble = Some(opened);
        }
        Ok(())
    }

    /// Does something with what writes to the ensemble's folder, in the first process, if there is one.
    pub(super) fn with_ensemble<T: Default>(
        &self,
        act: impl FnOnce(&mut Ensemble) -> run::Result<T>,
    ) -> Result<T> {
        Ok(self.ensemble.borrow_mut().as_mut().map(act).transpose()?.unwrap_or_default())
    }

    /// Which attempt to train the ensemble the runs of its members must be of: see [`Ensemble::attempt`]. The first process
    /// tells all.
    ///
    /// # Errors
    /// In all processes: none of them has the ensemble, if one must be there.
    pub(super) fn attempt(&self, must_be_there: bool) -> Result<Option<u64>> {
        const PHASE: &str = "preparing the output";
        let Some(folder) = &self.folder else { return Ok(None) };
        if let Some(attempt) = self.attempt.get() {
            return Ok(*attempt);
        }
        let looks = || self.replicas.meet(PHASE, is_ensemble(&folder.root).map_err(Error::from));
        let is_there = if must_be_there { looks()? } else { true };
        let own = self.with_ensemble(|ensemble| Ok(ensemble.attempt()))?;
        let value = own.unwrap_or_default();
        let words = [is_there.into(), own.is_some().into(), (value >> 32) as u32, value as u32];
        let all = self.replicas.gather(PHASE, &words)?;
        if must_be_there && all.iter().all(|words| words[0] == 0) {
            return Err(Error::NothingToResume { path: folder.root.clone() });
        }
        let attempt = u64::from(all[0][2]) << 32 | u64::from(all[0][3]);
        Ok(*self.attempt.get_or_init(|| (all[0][1] == 1).then_some(attempt)))
    }

    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// Of all rows of the table.
    pub(super) fn tokens(&self, source: &Source) -> Result<Rc<Tokens>> {
        if let Some(tokens) = self.tokens.get() {
            return Ok(tokens.clone());
        }
        let (tokenizer, texts) = (&source.tokenizer, &source.table.texts);
        let tokens = match &self.token_cache {
            Some(cache) => cache.tokens(tokenizer, texts)?,
            None => tokenizer.encode(texts)?,
        };
        Ok(self.tokens.get_or_init(|| Rc::new(tokens)).clone())
    }

    /// Those that train `job`. On a slice, all processes compile them together.
    pub(super) fn programs(&self, job: &Job) -> Result<Rc<Programs>> {
        let lengths = job.batch_lengths(&*self.tokens(&job.source)?);
        if let Some(programs) = self.programs.get().filter(|programs| programs.trains(job, &lengths)) {
            return Ok(programs.clone());
        }
        let (model, batch_size) = (&job.source.model, job.recipe.batch_size);
        let (training, execution) = (job.training(), job.execution(&self.replicas));
        let replicas = self.replicas.clone();
        let programs = Programs::compile(replicas, model, batch_size, &training, execution, &lengths)?;
        let programs = Rc::new(programs);
        let _ = self.programs.set(programs.clone());
        Ok(programs)
    }
}
