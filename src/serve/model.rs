//! The models that answer, and those that take their place.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::body::Bytes;
use chrono::{DateTime, Utc};
use hyper::header::HeaderName;

use super::{Observer, Shared, page, rounded};
use crate::infer::{self, Prepared};
use crate::run::layout::{ACCURACY_CHART, DEV_PREDICTIONS, HISTORY, LOSS_CHART};
use crate::run::{self, Runs};

/// Models as they were at one time.
pub(super) struct Model {
    pub prepared: Prepared,
    /// How often models were loaded before it.
    pub generation: u64,
    pub loaded: DateTime<Utc>,
    /// The folder of each.
    pub runs: Vec<PathBuf>,
    /// What each answers with: the name of its checkpoint, where it has any.
    pub checkpoints: Vec<Option<String>>,
    /// What they tell of their training, by the number of the run and the file's name.
    pub files: HashMap<(usize, &'static str), Bytes>,
    /// Whether the last batch couldn't be computed.
    has_failed: AtomicBool,
}

/// Which of the models that were loaded has answered.
pub(super) const LOADS: HeaderName = HeaderName::from_static("x-model-loads");

impl Model {
    /// How often models were loaded, itself included.
    pub fn loads(&self) -> u64 {
        self.generation + 1
    }

    pub fn set_failed(&self, has_failed: bool) {
        self.has_failed.store(has_failed, Ordering::Relaxed);
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }
}

/// The one that texts are given to; none before the first is loaded.
#[derive(Default)]
pub(super) struct Current(RwLock<Option<Arc<Model>>>);

impl Current {
    pub fn get(&self) -> Option<Arc<Model>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, model: Model) {
        let before = self.0.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::new(model));
        // Not under the lock: its weights go with it, if no text waits for it.
        drop(before);
    }
}

/// Loads the first models, and others whenever they are asked for or, where that is watched, a checkpoint is newer.
///
/// # Errors
/// The first ones can't be loaded.
pub(super) fn load_all(shared: &Shared, runs: Runs, observer: &dyn Observer) -> Result<(), infer::Error> {
    // It may have been asked to before.
    let mut reloads = 0;
    let mut states = shared.served.states.clone();
    load(shared, &runs, observer)?;
    drop(runs);
    observer.ready(shared.started.elapsed());
    loop {
        shared.control.wait(reloads, shared.options.watch);
        if shared.control.is_stopped() {
            return Ok(());
        }
        let is_asked = shared.control.reloads() != reloads;
        reloads = shared.control.reloads();
        let now = shared.options.watch.is_some().then(|| States::of(&shared.served.roots)).flatten();
        // One that couldn't be loaded is tried again.
        if is_asked || (now.is_some() && now != states) {
            let is_loaded = reload(shared, is_asked, observer);
            states = now.filter(|_| is_loaded);
        }
    }
}

/// What is served stays if it fails.
fn reload(shared: &Shared, is_asked: bool, observer: &dyn Observer) -> bool {
    if let Some(keys) = shared.keys.as_ref().filter(|_| is_asked)
        && let Err(error) = keys.reload()
    {
        tracing::error!(error, "the keys stay as they were");
    }
    let started = Instant::now();
    let runs = (shared.served.open)();
    let load = |runs| {
        let loaded = catch_unwind(AssertUnwindSafe(|| load(shared, &runs, observer)));
        loaded.map_err(|_| "a panic, which was printed".to_owned())?.map_err(|error| error.to_string())
    };
    let loaded = runs.and_then(load);
    shared.metrics.reloaded(loaded.is_ok());
    match (&loaded, shared.current.get()) {
        (Ok(()), Some(model)) => {
            let checkpoints = model.checkpoints.iter().map(|name| name.as_deref().unwrap_or("-"));
            let checkpoints = checkpoints.collect::<Vec<_>>().join(",");
            let seconds = rounded(started.elapsed().as_secs_f64());
            tracing::info!(checkpoints, seconds, "the model was loaded anew");
        }
        (Err(error), _) => tracing::error!(error, "the model stays as it was"),
        _ => {}
    }
    loaded.is_ok()
}

fn load(shared: &Shared, runs: &Runs, observer: &dyn Observer) -> Result<(), infer::Error> {
    let before = shared.current.get();
    // Before they can be others.
    let files = files(runs);
    let compiled = |done, all| observer.compiled(done, all);
    let prepared = Prepared::open(
        runs,
        &shared.served.replicas,
        &shared.options.sizes,
        before.as_ref().map(|model| &model.prepared),
        compiled,
    )?;
    {
        let _turn = shared.devices.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.warm_up()?;
    }
    shared.current.set(Model {
        prepared,
        generation: before.map_or(0, |before| before.generation + 1),
        loaded: Utc::now(),
        runs: runs.iter().map(|(run, _)| run.path.clone()).collect(),
        checkpoints: runs.iter().map(|(run, _)| run.checkpoint.clone()).collect(),
        files,
        has_failed: AtomicBool::new(false),
    });
    Ok(())
}

/// Which checkpoints the folders of runs point at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct States(Vec<Vec<(PathBuf, Option<Vec<u8>>)>>);

impl States {
    /// As it is now; `None` where that can't be told.
    pub fn of(roots: &[PathBuf]) -> Option<Self> {
        let of_root = |root: &PathBuf| {
            let found = run::state(root);
            if let Err(error) = &found {
                tracing::warn!(error = error.to_string(), "can't look for a newer checkpoint");
            }
            found.ok()
        };
        roots.iter().map(of_root).collect::<Option<_>>().map(Self)
    }
}

/// What runs tell of their training. What can't be read is left out.
fn files(runs: &Runs) -> HashMap<(usize, &'static str), Bytes> {
    const NAMES: [&str; 4] = [HISTORY, DEV_PREDICTIONS, LOSS_CHART, ACCURACY_CHART];
    /// Bytes: nobody looks at more.
    const MOST: usize = 64 << 20;
    let mut files = HashMap::new();
    for (at, (run, _)) in runs.iter().enumerate() {
        let told = run::read_told(&run.path, NAMES).unwrap_or_else(|error| {
            tracing::warn!(error = error.to_string(), "a run tells nothing of its training");
            NAMES.map(|_| None)
        });
        let card = run::read_card(&run.path).ok().flatten();
        let card = card.map(|card| page::card(&String::from_utf8_lossy(&card)).into_bytes());
        let all = NAMES.into_iter().zip(told).chain([(page::CARD, card)]);
        let small = all.filter_map(|(name, bytes)| Some((name, bytes.filter(|bytes| bytes.len() <= MOST)?)));
        files.extend(small.map(|(name, bytes)| ((at, name), Bytes::from(bytes))));
    }
    files
}
