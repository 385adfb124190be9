//! Trained models that answer together: one run, several, or the members of an ensemble's folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::ensemble::{EnsembleFile, is_inside};
use super::layout::{CHECKPOINTS, ENSEMBLE, RUN, WRITTEN};
use super::reader::check_is_there;
use super::{Error, Result, Run};
use crate::data::LabelMap;
use crate::storage::Folder;

/// Runs with the same labels, each with its share in their answer; at least one.
pub struct Runs {
    members: Vec<(Run, f64)>,
    /// What they were opened by.
    roots: Vec<PathBuf>,
}

impl Runs {
    /// Opens runs, and the folders of ensembles, each of which stands for all of its members: they share its weight. The
    /// weights are positive and finite; what counts is their ratio.
    ///
    /// # Errors
    /// A folder that is neither, or runs whose labels are not the same.
    ///
    /// # Panics
    /// If there is none.
    pub fn open(weighted: &[(PathBuf, f64)]) -> Result<Self> {
        assert!(!weighted.is_empty(), "there is no run");
        let mut members = vec![];
        for (root, weight) in weighted {
            let paths = members_of(root)?;
            let share = weight / paths.len() as f64;
            for path in paths {
                members.push((Run::open(&path)?, share));
            }
        }
        // By the largest first, so that the sum is finite.
        let shares = || members.iter().map(|(_, share)| *share);
        let largest = shares().fold(f64::MIN_POSITIVE, f64::max);
        let sum = shares().map(|share| share / largest).sum::<f64>();
        members.iter_mut().for_each(|(_, share)| *share = *share / largest / sum);
        let roots = weighted.iter().map(|(root, _)| root.clone()).collect();
        let runs = Self { members, roots };
        runs.iter().try_for_each(|(run, _)| check_labels(runs.first(), run))?;
        Ok(runs)
    }

    /// The runs with their shares, which sum to 1.
    pub fn iter(&self) -> impl Iterator<Item = (&Run, f64)> {
        self.members.iter().map(|(run, share)| (run, *share))
    }

    /// The only one, if there is no other.
    pub fn single(&self) -> Option<&Run> {
        (self.members.len() == 1).then(|| self.first())
    }

    /// What they answer with: the first one's labels, under its classes.
    pub fn labels(&self) -> &LabelMap {
        &self.first().labels
    }

    /// The files that they are read from, and those that go with them.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let folders = self.roots.iter().chain(self.iter().map(|(run, _)| &run.path));
        folders.flat_map(|folder| WRITTEN.into_iter().map(|name| folder.join(name)))
    }

    /// The folders of their checkpoints, where they have any.
    pub fn checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        self.iter().map(|(run, _)| run.path.join(CHECKPOINTS))
    }

    fn first(&self) -> &Run {
        &self.members[0].0
    }
}

/// What tells the state of the runs that a folder stands for from those before and after it: their folders, each with the
/// bytes of what names its checkpoint.
///
/// # Errors
/// A folder that is no run's, or that can't be read.
pub fn state(root: &Path) -> Result<Vec<(PathBuf, Option<Vec<u8>>)>> {
    let of_member = |path: PathBuf| {
        let pointer = Folder::new(&path).read(RUN)?;
        Ok((path, pointer))
    };
    members_of(root)?.into_iter().map(of_member).collect()
}

/// The runs that a folder stands for: the members that its `ensemble.json` lists, or itself.
fn members_of(root: &Path) -> Result<Vec<PathBuf>> {
    check_is_there(root)?;
    let Some(EnsembleFile { members, training, .. }) = EnsembleFile::read(root)? else {
        return Ok(vec![root.to_owned()]);
    };
    let error = |message: String| Error::Input { path: root.join(ENSEMBLE), message };
    if members.is_empty() {
        return Err(match training.len() {
            0 => error("it lists no member".to_owned()),
            count => Error::Unfinished { path: root.to_owned(), count },
        });
    }
    let member = |name: String| {
        if !is_inside(&name) {
            return Err(error(format!("`{name}` is no folder inside the ensemble's")));
        }
        let path = root.join(&name);
        match Folder::new(&path).exists(ENSEMBLE)? {
            true => Err(error(format!("`{name}` is an ensemble itself; expected a run"))),
            false => Ok(path),
        }
    };
    members.into_iter().map(member).collect()
}

/// Answers are averaged label by label.
fn check_labels(first: &Run, other: &Run) -> Result<()> {
    let labels = |run: &Run| run.labels.labels().map(str::to_owned).collect::<BTreeSet<_>>();
    let (of_first, of_other) = (labels(first), labels(other));
    let lacks = |run: &Run, missing: Vec<&String>| {
        const SHOWN: usize = 5;
        let shown = missing.iter().take(SHOWN).map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let more = match missing.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let lacks = format!("{} has no {}{more}", run.path.display(), shown.join(", "));
        (!missing.is_empty()).then_some(lacks)
    };
    let other_lacks = lacks(other, of_first.difference(&of_other).collect());
    let first_lacks = lacks(first, of_other.difference(&of_first).collect());
    let differences = other_lacks.into_iter().chain(first_lacks).collect::<Vec<_>>();
    if differences.is_empty() {
        return Ok(());
    }
    let difference = differences.join(", ");
    Err(Error::Labels { first: first.path.clone(), other: other.path.clone(), difference })
}
