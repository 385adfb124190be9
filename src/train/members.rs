//! The members of an ensemble: one folder, many runs, and what they come to together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::job::Job;
use super::keep::Metric;
use super::kept::kept;
use super::shared::{EnsembleFolder, Shared};
use super::{Error, Result};
use crate::exec::Replicas;
use crate::infer::Ensemble;
use crate::report::{Classification, EpochRecord};
use crate::run::layout::{MEMBERS, OUT_OF_FOLD, SUMMARY, TEST};
use crate::run::{kept_record, read_probabilities};
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

    /// What they have in common on these devices. If they are many, the first session makes the folder the ensemble's: from then
    /// on, it is known by its members.
    pub fn share(&self, replicas: Arc<Replicas>, replace: bool) -> Shared {
        let shared = Shared::new(replicas);
        if !self.are_many() {
            return shared;
        }
        shared.of_ensemble(EnsembleFolder {
            root: self.root.clone(),
            members: self.list.iter().map(|member| format!("{MEMBERS}/{}", member.name)).collect(),
            arguments: self.list[0].job.source.arguments.clone(),
            replace,
        })
    }

    /// Whether what they have come to was not written, where something is to be.
    pub fn lack_outcome(&self, replicas: &Replicas) -> Result<bool> {
        const PHASE: &str = "looking for a checkpoint";
        let is_tested = !self.list[0].job.parts.test.is_empty();
        let expected = [(TEST, is_tested), (SUMMARY, self.are_many())];
        let mut expected = expected.into_iter().filter(|(_, is_expected)| *is_expected).peekable();
        if expected.peek().is_none() {
            return Ok(false);
        }
        let root = Folder::new(&self.root);
        let mut is_missing =
            || expected.try_fold(false, |missing, (name, _)| Ok::<_, Error>(missing || !root.exists(name)?));
        let own = if replicas.is_chief() { is_missing() } else { Ok(false) };
        let own = replicas.meet(PHASE, own)?;
        // The first process writes it.
        Ok(replicas.gather(PHASE, &[u32::from(own)])?[0][0] == 1)
    }

    /// Forgets what runs have come to that are not at their end any more. What can't be removed is written anew at the end.
    pub fn reopen(&self, replicas: &Replicas) {
        let root = Folder::new(&self.root);
        for name in [TEST, SUMMARY, OUT_OF_FOLD].into_iter().filter(|_| replicas.is_chief()) {
            let _ = root.remove(name);
        }
    }

    /// Once all are trained: writes and gives what they have come to.
    ///
    /// # Errors
    /// A member's run that can't be read, a failure of the devices, or a folder that can't be written to; in all processes.
    pub fn conclude(&self, shared: &Shared) -> Result<Outcome> {
        let replicas = shared.replicas();
        if !self.are_many() && self.list[0].job.parts.test.is_empty() {
            return Ok(Outcome::default());
        }
        let test = self.test(shared)?;
        let write = || {
            let root = Folder::new(&self.root);
            if let Some(test) = &test {
                root.write(TEST, format!("{:#}\n", json!(test)).as_bytes())?;
            }
            let mut outcome = Outcome { test: test.clone(), ..Outcome::default() };
            if self.are_many() {
                let summary = self.summary()?;
                root.write(SUMMARY, format!("{:#}\n", json!(summary)).as_bytes())?;
                outcome.summary = Some(summary);
                outcome.out_of_fold = self.out_of_fold(&root)?;
            }
            Ok::<_, Error>(outcome)
        };
        let written = if replicas.is_chief() {
            write()
        } else {
            Ok(Outcome { test: test.clone(), ..Outcome::default() })
        };
        replicas.meet("saving", written)
    }

    fn test(&self, shared: &Shared) -> Result<Option<Classification>> {
        let job = &self.list[0].job;
        let rows = &job.parts.test;
        if rows.is_empty() {
            return Ok(None);
        }
        let predictors = self.list.iter().map(|member| kept(&member.job, &self.folder(member), shared));
        let ensemble = Ensemble::new(predictors.collect::<Result<_>>()?);
        let table = &job.source.table;
        let texts = rows.iter().map(|row| table.texts[*row].clone()).collect::<Vec<_>>();
        let classes = rows.iter().map(|row| table.classes[*row]).collect::<Vec<_>>();
        let scores = ensemble.evaluate(&texts, &classes)?;
        let labels = ensemble.labels();
        let name = |class| labels.name_of(class).into_owned();
        let answers = labels.most_probable(&scores.probabilities);
        Ok(Some(Classification::new(&classes, &answers, scores.loss, name)?))
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
