//! Trained models that answer together: one run, several, or the members of an ensemble's folder.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::layout::{ENSEMBLE, FILES, RUN};
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

/// `ensemble.json`.
#[derive(Deserialize, Serialize)]
struct Members {
    /// Folders of runs, relative to the ensemble's and inside it.
    members: Vec<String>,
    /// The command line that trained them.
    #[serde(default)]
    arguments: Vec<String>,
}

impl Members {
    /// Of the ensemble in `root`; `None` where there is none.
    fn read(root: &Path) -> Result<Option<Self>> {
        let Some(bytes) = Folder::new(root).read(ENSEMBLE)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes).map_err(|cause| Error::Input {
            path: root.join(ENSEMBLE),
            message: format!("it should list the members of an ensemble: {cause}"),
        });
        parsed.map(Some)
    }
}

/// The command line that trained the ensemble in `root`; `None` where there is none.
pub(super) fn ensemble_arguments(root: &Path) -> Result<Option<Vec<String>>> {
    Ok(Members::read(root)?.map(|ensemble| ensemble.arguments))
}

/// Makes `root` the folder of an ensemble of these `members`, which are trained by a command line.
///
/// # Errors
/// A folder that holds a run, or an ensemble of others, unless that may be replaced.
pub fn claim_ensemble(root: &Path, members: &[String], arguments: &[String], replace: bool) -> Result<()> {
    let folder = Folder::new(root);
    let before = match Members::read(root) {
        Err(Error::Input { .. }) if replace => None,
        read => read?,
    };
    match &before {
        Some(before) if before.members != members && !replace => {
            return Err(Error::OtherMembers { path: root.to_owned(), count: before.members.len() });
        }
        Some(_) => {}
        None => {
            for name in [RUN].into_iter().chain(FILES) {
                if folder.exists(name)? {
                    return Err(Error::HoldsRun { path: root.to_owned(), name });
                }
            }
            folder.make()?;
        }
    }
    let ensemble = Members { members: members.to_vec(), arguments: arguments.to_vec() };
    folder.write(ENSEMBLE, format!("{:#}\n", json!(ensemble)).as_bytes())?;
    let is_gone = |name: &&String| !members.contains(name) && is_inside(name);
    for name in before.iter().flat_map(|before| before.members.iter().filter(is_gone)) {
        folder.remove(name)?;
    }
    Ok(())
}

fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
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
        let names = || FILES.into_iter().chain([RUN]);
        let lists = self.roots.iter().map(|root| root.join(ENSEMBLE));
        lists.chain(self.iter().flat_map(move |(run, _)| names().map(|name| run.path.join(name))))
    }

    fn first(&self) -> &Run {
        &self.members[0].0
    }
}

/// The runs that a folder stands for: the members that its `ensemble.json` lists, or itself.
fn members_of(root: &Path) -> Result<Vec<PathBuf>> {
    check_is_there(root)?;
    let Some(Members { members, .. }) = Members::read(root)? else { return Ok(vec![root.to_owned()]) };
    let error = |message: String| Error::Input { path: root.join(ENSEMBLE), message };
    if members.is_empty() {
        return Err(error("it lists no member".to_owned()));
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
