//! The members of an ensemble: one folder, many runs, and what they come to together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::job::{Job, Source};
use super::keep::Metric;
use super::kept::kept;
use super::shared::{EnsembleFolder, Shared};
use super::{Error, Result};
use crate::data::LabelMap;
use crate::exec::Replicas;
use crate::infer::Evaluation;
use crate::report::{Classification, EpochRecord, markdown_table, markdown_text};
use crate::run::card::{self, Measured};
use crate::run::layout::{MEMBERS, OUT_OF_FOLD, OUTCOMES, SUMMARY, TEST};
use crate::run::{Ensemble, Provenance, has_outcome, kept_record, read_probabilities};
use crate::storage::Folder;

/// A job of several, or the only one, which has no name.
#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub job: Job,
}

/// Jobs that are trained into one folder.
pub struct Members {
    list: Vec<Member>,
    root: PathBuf,
}

/// What the runs have come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Of several: each one's kept epoch, and mean and standard deviation of the metrics.
    pub summary: Option<Summary>,
    /// Of all rows that were held out, by the members that have not seen them.
    pub out_of_fold: Option<Classification>,
    /// On the test table.
    pub test: Option<Classification>,
}

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub members: Vec<MemberSummary>,
    pub mean: BTreeMap<&'static str, f64>,
    /// Of the members as a sample: divided by their number less one. Of a single one, there is none.
    pub standard_deviation: BTreeMap<&'static str, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberSummary {
    pub name: String,
    /// The epoch whose weights it has.
    pub epoch: u32,
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, f64>,
}

impl Outcome {
    /// The card of an ensemble. Its metrics are of the test table, or else out of fold, or else the members' means.
    fn card(&self, provenance: &Provenance, labels: &LabelMap) -> Option<String> {
        let Self { summary, out_of_fold, test } = self;
        let Summary { members, mean, standard_deviation } = summary.as_ref()?;
        let names = [Metric::ValAccuracy, Metric::F1, Metric::ValLoss].map(Metric::name);
        let member = |member: &MemberSummary| {
            let metrics = names.map(|name| format!("{:.4}", member.metrics[name]));
            [vec![markdown_text(&member.name), member.epoch.to_string()], metrics.to_vec()].concat()
        };
        let means = names.map(|name| match standard_deviation.get(name) {
            Some(deviation) => format!("{:.4} ± {deviation:.4}", mean[name]),
            None => format!("{:.4}", mean[name]),
        });
        let means = [vec!["mean".to_owned(), String::new()], means.to_vec()].concat();
        let header = ["member", "epoch", "val_accuracy", "f1", "val_loss"];
        let mut results = markdown_table(&header, members.iter().map(member).chain([means]));
        let table = provenance.test_table.clone().unwrap_or_default();
        let Provenance { format, test_format, .. } = provenance;
        let folds = format!("{}, out of fold", provenance.table);
        let measured = [("test", table, test_format, test), ("train", folds, format, out_of_fold)];
        let mut shown = None;
        for (split, data, format, report) in measured {
            let Some(Classification { rows, accuracy, loss, macro_average, .. }) = report else { continue };
            let f1 = macro_average.f1;
            results.push_str(&format!(
                "\nThe ensemble on the {rows} rows of {}: accuracy {accuracy:.4}, f1 {f1:.4}, loss {loss:.4}.\n",
                markdown_text(&data)
            ));
            shown.get_or_insert((Measured { split, data, format }, [*accuracy, f1, *loss]));
        }
        let of_members = || {
            let data = "mean of the members".to_owned();
            (Measured { split: "validation", data, format }, names.map(|name| mean[name]))
        };
        let (measured, metrics) = shown.unwrap_or_else(of_members);
        Some(card::ensemble_card(provenance, labels, &measured, metrics.map(Some), &results))
    }
}

impl Members {
    /// `list` is not empty; if there are several, all have names.
    pub fn new(list: Vec<Member>, root: &Path) -> Self {
        Self { list, root: root.to_owned() }
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.list.iter()
    }

    /// Whether they are an ensemble's.
    pub fn are_many(&self) -> bool {
        self.list.iter().any(|member| !member.name.is_empty())
    }

    /// Where a member's run goes.
    pub fn folder(&self, member: &Member) -> PathBuf {
        if self.are_many() { self.root.join(MEMBERS).join(&member.name) } else { self.root.clone() }
    }

    /// What they have in common on these devices. If they are many, the first session that is trained makes the folder the
    /// ensemble's: from then on, it is known by its members.
    pub fn share(&self, replicas: Arc<Replicas>, replace: bool) -> Shared {
        let shared = Shared::new(replicas);
        if !self.are_many() {
            return shared;
        }
        shared.of_ensemble(EnsembleFolder {
            root: self.root.clone(),
            members: self.list.iter().map(|member| format!("{MEMBERS}/{}", member.name)).collect(),
            outcomes: self.outcomes(),
            arguments: self.list[0].job.source.arguments.clone(),
            replace,
        })
    }

    /// The files of what they come to.
    fn outcomes(&self) -> Vec<&'static str> {
        let Job { parts, recipe, .. } = &self.list[0].job;
        let is_tested = !parts.test.is_empty();
        let all = [(TEST, is_tested), (SUMMARY, self.are_many()), (OUT_OF_FOLD, recipe.held_out.is_fold())];
        all.into_iter().filter(|(_, is_expected)| *is_expected).map(|(name, _)| name).collect()
    }

    /// Whether what they have come to was not written, where something is to be.
    pub fn lack_outcome(&self, shared: &Shared) -> Result<bool> {
        const PHASE: &str = "looking for a checkpoint";
        let (replicas, root, outcomes) = (shared.replicas(), Folder::new(&self.root), self.outcomes());
        if outcomes.is_empty() {
            return Ok(false);
        }
        let is_missing = || {
            let is_open = self.are_many() && !shared.with_ensemble(|ensemble| Ok(ensemble.is_concluded()))?;
            outcomes
                .iter()
                .try_fold(is_open, |missing, name| Ok::<_, Error>(missing || !has_outcome(&root, name)?))
        };
        let own = if replicas.is_chief() { is_missing() } else { Ok(false) };
        let own = replicas.meet(PHASE, own)?;
        // The first process writes it.
        Ok(replicas.gather(PHASE, &[u32::from(own)])?[0][0] == 1)
    }

    /// Forgets what a run has come to that is not at its end any more: what can't be removed is written anew at the end. What
    /// an ensemble has come to stays until other members answer.
    pub fn reopen(&self, replicas: &Replicas) {
        if replicas.is_chief() && !self.are_many() {
            let _ = self.remove_outcomes(&[TEST]);
        }
    }

    /// Removes those that are ours.
    fn remove_outcomes(&self, names: &[&str]) -> Result<()> {
        let root = Folder::new(&self.root);
        for name in names {
            if has_outcome(&root, name)? {
                root.remove(name)?;
            }
        }
        Ok(())
    }

    /// Once nothing is left to train, and all of it has been told: does what a conclusion that was cut short has left to do.
    ///
    /// # Errors
    /// In all processes: a folder that can't be written to.
    pub fn tidy(&self, shared: &Shared) -> Result<()> {
        let tidied = shared.with_ensemble(Ensemble::remove_replaced);
        shared.replicas().meet("saving", tidied)
    }

    /// Once all are trained: writes and gives what they have come to. From then on, an ensemble's members answer.
    ///
    /// # Errors
    /// A member's run that can't be read, a failure of the devices, or a folder that can't be written to; in all processes.
    pub fn conclude(&self, shared: &Shared, provenance: &Provenance) -> Result<Outcome> {
        const PHASE: &str = "saving";
        let (replicas, root) = (shared.replicas(), Folder::new(&self.root));
        let is_chief = replicas.is_chief();
        let mut outcome = Outcome::default();
        // First what takes no device.
        let summed_up = if is_chief && self.are_many() { self.sum_up(&root, &mut outcome) } else { Ok(()) };
        replicas.meet(PHASE, summed_up)?;
        outcome.test = self.test(shared)?;
        let write = || {
            // The file comes last: what comes before is made up for where it isn't there.
            if let Some(test) = &outcome.test {
                if !self.are_many() {
                    let table = provenance.test_table.as_deref().unwrap_or_default();
                    card::add_test(&root, table, test)?;
                }
                root.write(TEST, format!("{:#}\n", json!(test)).as_bytes())?;
            }
            if let Some(card) = outcome.card(provenance, &self.list[0].job.recipe.labels) {
                card::write_card(&root, &card)?;
            }
            if self.are_many() {
                // Of other members.
                let written = self.outcomes();
                let left = OUTCOMES.into_iter().filter(|name| !written.contains(name)).collect::<Vec<_>>();
                self.remove_outcomes(&left)?;
            }
            shared.with_ensemble(Ensemble::conclude)
        };
        replicas.meet(PHASE, if is_chief { write() } else { Ok(()) })?;
        Ok(outcome)
    }

    /// Writes what the members have measured.
    fn sum_up(&self, root: &Folder, outcome: &mut Outcome) -> Result<()> {
        outcome.out_of_fold = self.out_of_fold(root)?;
        let summary = self.summary()?;
        root.write(SUMMARY, format!("{:#}\n", json!(summary)).as_bytes())?;
        outcome.summary = Some(summary);
        Ok(())
    }

    /// One member after another, so that no more than one is on the devices.
    fn test(&self, shared: &Shared) -> Result<Option<Classification>> {
        let job = &self.list[0].job;
        let Source { table, .. } = &*job.source;
        let rows = &job.parts.test;
        if rows.is_empty() {
            return Ok(None);
        }
        let texts = rows.iter().map(|row| &table.texts[*row]);
        let report = |probabilities| job.predictions(rows, probabilities).classification();
        if let [only] = &self.list[..] {
            let classes = rows.iter().map(|row| table.classes[*row]).collect::<Vec<_>>();
            let predictor = kept(&only.job, &self.folder(only), shared, None)?;
            let Evaluation { loss, probabilities, .. } = predictor.evaluate(texts, &classes)?;
            return Ok(Some(Classification { loss, ..report(probabilities)? }));
        }
        let tokens = job.source.tokenizer.encode(texts)?;
        let (mut sums, mut before) = (vec![], None);
        for member in &self.list {
            let predictor = kept(&member.job, &self.folder(member), shared, before.take())?;
            let probabilities = predictor.probabilities_of(&tokens)?;
            sums.resize(probabilities.len(), 0.0);
            sums.iter_mut().zip(probabilities).for_each(|(sum, p)| *sum += f64::from(p));
            before = Some(predictor);
        }
        let count = self.list.len() as f64;
        Ok(Some(report(sums.into_iter().map(|sum| (sum / count) as f32).collect())?))
    }

    fn summary(&self) -> Result<Summary> {
        let member = |member: &Member| {
            let record = kept_record(&self.folder(member))?;
            let metrics = Metric::ALL.map(|metric| (metric.name(), metric.of(&record)));
            let EpochRecord { epoch, .. } = record;
            Ok(MemberSummary { name: member.name.clone(), epoch, metrics: metrics.into_iter().collect() })
        };
        let members = self.list.iter().map(member).collect::<Result<Vec<_>>>()?;
        let values = |name: &str| members.iter().map(|member| member.metrics[name]).collect::<Vec<_>>();
        let (mut mean, mut standard_deviation) = (BTreeMap::new(), BTreeMap::new());
        for name in Metric::ALL.map(Metric::name) {
            let values = values(name);
            let count = values.len() as f64;
            let average = values.iter().sum::<f64>() / count;
            mean.insert(name, average);
            if values.len() > 1 {
                let squares = values.iter().map(|value| (value - average).powi(2)).sum::<f64>();
                standard_deviation.insert(name, (squares / (count - 1.0)).sqrt());
            }
        }
        Ok(Summary { members, mean, standard_deviation })
    }

    /// Writes, of each row that a fold has held out, the mean of what the members say of it that have not seen it.
    fn out_of_fold(&self, root: &Folder) -> Result<Option<Classification>> {
        let job = &self.list[0].job;
        if !job.recipe.held_out.is_fold() {
            return Ok(None);
        }
        let mut of_rows = BTreeMap::<usize, (Vec<f64>, f64)>::new();
        for member in &self.list {
            for (row, probabilities) in read_probabilities(&self.folder(member))? {
                let (sums, count) =
                    of_rows.entry(row).or_insert_with(|| (vec![0.0; probabilities.len()], 0.0));
                sums.iter_mut().zip(probabilities).for_each(|(sum, value)| *sum += value);
                *count += 1.0;
            }
        }
        let rows = of_rows.keys().copied().collect::<Vec<_>>();
        let means =
            of_rows.values().flat_map(|(sums, count)| sums.iter().map(move |sum| (sum / count) as f32));
        let predictions = job.predictions(&rows, means.collect());
        let mut bytes = vec![];
        predictions
            .write(&mut bytes)
            .map_err(crate::storage::FileError::new("can't write", root.path().join(OUT_OF_FOLD)))?;
        root.write(OUT_OF_FOLD, &bytes)?;
        Ok(Some(predictions.classification()?))
    }
}
