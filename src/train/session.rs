//! A training job from start to end: epochs, evaluation, and checkpoints.

use std::fmt::Debug;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::begin::{Beginning, Begun};
use super::epochs::Epochs;
use super::job::{Ending, Job, Observer, SaveOptions, Source};
use super::keep::KeptEpoch;
use super::keeper::Keeper;
use super::origin::Origin;
use super::resume::Saved;
use super::saver::Saver;
use super::shared::Shared;
use super::stop::Stop;
use super::terms::{Fed, older_data, terms};
use super::trainer::Trainer;
use super::{Error, Result};
use crate::data::Tokens;
use crate::exec::{Fingerprint, Replicas};
use crate::hlo::Graph;
use crate::infer::Predictor;
use crate::report::History;
use crate::run::layout::{STEPS, TEST};
use crate::run::{Description, Ensemble, Progress, StepLog, Writer, check_outcomes, differences};
use crate::step::train_step;
use crate::storage::Folder;

/// A job, looked at beside what its folder holds.
pub enum Started {
    Ready(Box<Session>),
    /// All its epochs are done already.
    Finished {
        epochs: u32,
        /// The process that has it, where the chief hasn't.
        elsewhere: Option<usize>,
    },
}

/// A job on its devices.
pub struct Session {
    job: Job,
    tokens: Rc<Tokens>,
    trainer: Trainer,
    history: History,
    progress: Progress,
    save: SaveOptions,
    /// The step of the checkpoint that it goes on from, unless that was another host's.
    kept: Option<u64>,
    /// What another host has told of its steps, if the run was there.
    told: Option<Vec<u8>>,
    /// The chief's.
    output: Option<Output>,
    /// How long compiling and loading took.
    ready: Duration,
}

/// What a run is written with.
struct Output {
    writer: Writer,
    description: Description,
    root: Folder,
}

impl Session {
    /// Compiles the job's steps and loads its weights, or the newest checkpoint of this job that the folder `output_path`
    /// holds, on any host of a slice. What the session leaves behind goes there.
    ///
    /// # Errors
    /// A folder that holds another run, unless it is to be replaced; processes of a slice that differ; a failure of the
    /// devices. In all processes, if one of them fails.
    pub fn start(
        job: Job,
        shared: &Shared,
        output_path: &Path,
        save: SaveOptions,
        observer: &mut dyn Observer,
    ) -> Result<Started> {
        let replicas = shared.replicas();
        let root = Folder::new(output_path);
        // Before the long compilation, to fail early.
        let prepare = || {
            // Before a folder is made for what can't be trained.
            replicas.rows(job.recipe.batch_size)?;
            let Source { original, tokenizer, model, .. } = &*job.source;
            let tokens = shared.tokens(&job.source)?;
            if replicas.is_chief() {
                shared.open()?;
                if shared.folder().is_none() && !save.replace && !job.parts.test.is_empty() {
                    check_outcomes(&root, [TEST])?;
                }
            }
            let output = match replicas.is_chief() {
                true => Some(Output {
                    root: root.clone(),
                    writer: Writer::open(output_path)?,
                    description: Description::new(
                        original,
                        tokenizer,
                        model,
                        &job.recipe.labels,
                        save.provenance.clone(),
                    )?,
                }),
                false => None,
            };
            Ok::<_, Error>((tokens, output))
        };
        let (tokens, mut output) = replicas.meet("preparing the output", prepare())?;
        let fed = Fed::new(&job, &tokens);
        let buckets = job.buckets(&tokens);
        agree(
            &job,
            &fed,
            replicas,
            &(save.agreed(), root.is_local(), shared.folder().map(|folder| &folder.members)),
        )?;
        let terms = terms(&job, fed, &buckets, replicas, &save);
        let attempt = shared.attempt(save.resume)?;
        let is_alone = shared.folder().is_none();
        // Any member of an ensemble may be yet to come.
        let save = SaveOptions { resume: save.resume && is_alone, ..save };
        let beginning = Beginning {
            replicas,
            root: &root,
            job: &job,
            terms: &terms,
            save: &save,
            // Of an ensemble, what was finished earlier goes by the attempt that it is of.
            replaces_finished: save.replace && is_alone,
            attempt,
            claim: &|| shared.with_ensemble(Ensemble::claim),
            older_data: &|| older_data(&job, &tokens),
        };
        let writer = output.as_mut().map(|output| &mut output.writer);
        let (saved, run) = match beginning.begin(writer, &mut |text| observer.note(text))? {
            Begun::Run { run, saved } => (saved.map(|saved| *saved), run),
            Begun::Finished { epochs, elsewhere } => return Ok(Started::Finished { epochs, elsewhere }),
        };
        let mut progress = Progress {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run,
            arguments: job.source.arguments.clone(),
            terms,
            step: 0,
            epoch: 0,
            within: None,
            best: None,
            keeps_best: job.recipe.keep.epoch == KeptEpoch::Best,
        };
        let history = saved.as_ref().map_or_else(History::default, |saved| saved.history.clone());
        if let Some(saved) = &saved {
            observer.note(&describe(saved, &progress));
            let Progress { step, epoch, within, best, .. } = saved.progress.clone();
            progress = Progress { step, epoch, within, best, ..progress };
        }
        let kept = saved.as_ref().filter(|saved| saved.is_own()).map(|saved| saved.progress.step);
        let started = Instant::now();
        let told = match &saved {
            // The first process writes, and has told nothing of the run, or less.
            Some(saved) if saved.giver != 0 => Some(saved.told(replicas, &root)?),
            _ => None,
        };
        let [train, _] = &job.datasets(&tokens);
        if let Some(saved) = job.padding(train).saved() {
            observer.note(&format!("Batches of {buckets} tokens, a program each: in an epoch, {saved}"));
        }
        let trainer = trainer(&job, shared, saved)?;
        let ready = started.elapsed();
        Ok(Started::Ready(Box::new(Self {
            job,
            tokens,
            trainer,
            history,
            progress,
            save,
            kept,
            told,
            output,
            ready,
        })))
    }

    /// Runs all epochs that are left. After each, the run folder holds it, and whatever happens next, a whole one. If `stop`
    /// is asked for, what is queued is finished and saved.
    ///
    /// # Errors
    /// A run that diverges, a failure of the devices, an observer's error, a folder that can't be written. Those that one
    /// process meets between steps end all of them; one in the middle of a step leaves the others to their time limit.
    pub fn run(&mut self, stop: &Stop, observer: &mut dyn Observer) -> Result<Ending> {
        let Self { job, tokens, trainer, history, progress, save, kept, told, output, ready } = self;
        observer.ready(*ready);
        let replicas = trainer.replicas();
        let datasets = job.datasets(tokens);
        let [train, dev] = &datasets.map(|data| data.fed_to(replicas.local(), replicas.count()));
        let steps = output.as_ref().and_then(|output| {
            let opened = StepLog::open(&output.root, progress.step, told.as_deref());
            opened.map_err(|error| observer.note(&format!("{error}; training goes on without {STEPS}"))).ok()
        });
        std::thread::scope(|scope| {
            let saver =
                output.as_mut().map(|output| Saver::start(scope, &mut output.writer, &output.description));
            let keeper = Keeper::new(trainer.replicas().clone(), job, save.cadence, saver, stop, *kept);
            let mut epochs =
                Epochs { job, trainer, history, progress, keeper, steps, patience: save.patience };
            let end = epochs.run(train, dev, observer);
            epochs.keeper.end(end, &mut |text| observer.note(text))
        })
    }

    /// Whether no step of it is done.
    pub fn is_new(&self) -> bool {
        self.progress.step == 0
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.progress.step
    }

    /// How the last epoch went, and the best one, and which of them the run has.
    pub fn outcome(&self) -> String {
        let Progress { epoch, best, keeps_best, .. } = &self.progress;
        let told = |which: &str, epoch: u32| {
            let record = self.history.epoch(epoch)?;
            let metric =
                |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.4}"));
            let (loss, accuracy, f1) = (record.val_loss, record.val_accuracy, record.val_f1);
            Some(format!(
                "{which} epoch: {epoch} (val_loss {}, val_accuracy {}, f1 {})",
                metric(loss),
                metric(accuracy),
                metric(f1)
            ))
        };
        let by = self.job.recipe.keep.metric.name();
        let best = best.as_ref().and_then(|best| told(&format!("Best (by {by})"), best.epoch));
        let kept = format!("the run has the {} one's weights", if *keeps_best { "best" } else { "last" });
        let early = self.progress.epoch < self.job.recipe.epochs;
        let early = early.then(|| {
            let patience = self.save.patience.unwrap_or_default();
            format!("Stopped early: {patience} epochs have brought no better {by}")
        });
        [early, told("Last", *epoch), best, Some(kept)].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// The epochs so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What answers with the weights as they are now, on the same devices.
    ///
    /// # Errors
    /// Weights that were lost in a step that failed.
    pub fn into_predictor(self) -> Result<Predictor> {
        let replicas = self.trainer.replicas().clone();
        let (config, weights) = self.trainer.into_trained()?;
        let (labels, tokenizer) = (self.job.recipe.labels, self.job.source.tokenizer.clone());
        Ok(Predictor::new(replicas, config, labels, tokenizer, weights))
    }
}

/// Makes sure that all processes of a slice train the same.
fn agree(job: &Job, fed: &Fed, replicas: &Replicas, save: &impl Debug) -> Result<()> {
    replicas.agree(|| {
        Ok::<_, Error>(vec![
            Fingerprint::program(&train_step(&Graph::new(), &job.step_config()).program),
            Fingerprint::options(replicas.count(), &(&job.recipe, save)),
            Fingerprint::data(fed.data.clone()),
            Fingerprint::weights(fed.weights.clone()),
        ])
    })
}

/// Where training goes on, and what is different from then on.
fn describe(saved: &Saved, now: &Progress) -> String {
    let Progress { step, epoch, within, terms, .. } = &saved.progress;
    let within = within.as_ref().map_or(0, |within| within.steps);
    let mut text = format!("Going on after step {step} ({epoch} epochs and {within} steps)");
    for change in differences(&terms.free, &now.terms.free) {
        text.push_str(&format!("; {change}"));
    }
    text
}

/// The trainer of a job, as it was saved or from its first step on.
fn trainer(job: &Job, shared: &Shared, saved: Option<Saved>) -> Result<Trainer> {
    let programs = shared.programs(job)?;
    let values = job.initial_values();
    let tensor;
    let origin = match &saved {
        Some(saved) => {
            tensor = |name: &str, dims: &[usize]| saved.tensor(shared.replicas(), name, dims);
            Origin::Saved { steps: saved.progress.step, tensor: &tensor }
        }
        None => Origin::Weights(&values),
    };
    Trainer::start(programs, job.options(), origin)
}
