//! What a run measures, as TensorBoard reads it: two folders of event files, as of Keras' callback, so that the curves of
//! training and of validation lie over each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::report::{EpochRecord, StepRecord, events};
use crate::storage::{Folder, LogFile, Logged, Result};

const TRAIN: &str = "train";
const VALIDATION: &str = "validation";

/// Writes event files.
pub struct TensorBoard {
    train: LogFile,
    validation: LogFile,
}

impl TensorBoard {
    /// Starts files in `folder`, of a run that goes on after so many steps. What earlier files tell of later ones is shown no
    /// more; nothing is removed.
    pub fn create(folder: &Folder, steps: u64) -> Result<Self> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        let folders = [TRAIN, VALIDATION].map(|name| folder.folder(name));
        let mut earlier = vec![];
        for folder in &folders {
            earlier.extend(folder.list()?);
        }
        // Files are read in the order of their names, which must be that of their starts, whatever clocks say.
        let last = earlier.iter().filter_map(|name| started(name)).max().unwrap_or_default();
        let seconds = (now() as u64).max(last + 1);
        let (pid, number) = (std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
        let name = format!("{PREFIX}{seconds:010}.{}.{pid}.{number}", host());
        let create = |folder: &Folder| {
            let mut file = LogFile::create(folder, &name)?;
            file.append(&events::beginning(now(), steps + 1))?;
            file.take_name()?;
            Ok(file)
        };
        let [train, validation] = &folders;
        Ok(Self { train: create(train)?, validation: create(validation)? })
    }

    pub fn add_step(&mut self, record: &StepRecord) -> Result<()> {
        let StepRecord { step, loss, accuracy, learning_rate, gradient_norm, examples_per_second, .. } =
            *record;
        let mut values = vec![
            ("loss", loss),
            ("accuracy", accuracy),
            ("learning_rate", learning_rate),
            ("examples_per_second", examples_per_second),
        ];
        values.extend(gradient_norm.map(|norm| ("gradient_norm", norm)));
        self.train.append(&events::scalars(now(), step, &values))
    }

    pub fn add_epoch(&mut self, record: &EpochRecord) -> Result<()> {
        let EpochRecord { step, loss, accuracy, val_loss, val_accuracy, val_f1, .. } = *record;
        let train = [("epoch_loss", loss), ("epoch_accuracy", accuracy)];
        let validation = [("epoch_loss", val_loss), ("epoch_accuracy", val_accuracy), ("epoch_f1", val_f1)];
        let validation = validation.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.train.append(&events::scalars(now(), step, &train))?;
        self.validation.append(&events::scalars(now(), step, &validation.collect::<Vec<_>>()))
    }

    /// What is written so far.
    pub fn logged(&mut self) -> Result<Vec<Logged>> {
        Ok(vec![self.train.logged()?, self.validation.logged()?])
    }
}

/// Removes the event files in `folder`, and its own folders if nothing else is there.
pub(super) fn remove_events(folder: &Folder) -> Result<()> {
    let is_link = |folder: &Folder| folder.is_local() && folder.path().is_symlink();
    for name in [TRAIN, VALIDATION] {
        let files = folder.folder(name);
        if is_link(folder) || is_link(&files) {
            continue;
        }
        for file in files.list()?.into_iter().filter(|file| file.starts_with(PREFIX)) {
            files.remove(&file)?;
        }
        folder.remove_if_empty(name)?;
    }
    Ok(())
}

/// How the names of all event files begin; then come seconds since 1970, the host, the process, and a number of its own.
const PREFIX: &str = "events.out.tfevents.";

/// When a file of this name was started.
fn started(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// In seconds since 1970; a clock that is before that tells nothing.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn host() -> String {
    let system = rustix::system::uname();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    system.nodename().to_string_lossy().chars().map(plain).collect()
}
