//! `ensemble.json`: the members of an ensemble, of which each is a run, and what becomes of its folder.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::hold::Hold;
use super::layout::{ENSEMBLE, MEMBERS};
use super::names::random_number;
use super::strays::remove_run;
use super::vacancy::{check_holds_no_run, check_is_vacant, is_bare};
use super::{Error, Result};
use crate::storage::{Folder, Replaced, Version};

/// What the file holds. Folders are relative to the ensemble's, and inside it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub(super) struct EnsembleFile {
    /// The runs that answer.
    pub members: Vec<String>,
    /// Those that are being trained, to answer in place of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training: Vec<String>,
    /// Where these are to replace whatever runs were in their folders: what the names of those tell that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u64>,
    /// Those that neither answer nor are trained, until they are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replaced: Vec<String>,
    /// The command line that trained them; of an ensemble that was put together by hand, there is none.
    #[serde(default)]
    arguments: Vec<String>,
}

impl EnsembleFile {
    /// Of the ensemble in `root`; `None` where there is none.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let bytes = Folder::new(root).read(ENSEMBLE)?;
        bytes.map(|bytes| Self::parse(root, &bytes)).transpose()
    }

    fn parse(root: &Path, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|cause| Error::Input {
            path: root.join(ENSEMBLE),
            message: format!("it should list the members of an ensemble: {cause}"),
        })
    }

    /// What it says from when `members` are trained in place of others that are there.
    ///
    /// # Errors
    /// Others, unless they may be replaced, or have fewer seeds.
    fn training(&self, root: &Path, members: &[String], arguments: &[String], replace: bool) -> Result<Self> {
        let are_kept = |before: &[String]| before == members || have_more_seeds(before, members);
        let goes_on = are_kept(&self.training);
        if !(replace || goes_on || are_kept(&self.members)) {
            let before = if self.training.is_empty() { &self.members } else { &self.training };
            return Err(Error::OtherMembers { path: root.to_owned(), count: before.len() });
        }
        // One that was cut short goes on, also where it was to replace another.
        let attempt = match replace {
            false if goes_on => self.attempt,
            true if self.training == members && self.is_of(arguments) => self.attempt,
            false => None,
            true => Some(random_number()),
        };
        let claimed = Self {
            members: self.members.clone(),
            training: members.to_vec(),
            attempt,
            replaced: self.replaced.iter().chain(&self.training).cloned().collect(),
            arguments: arguments.to_vec(),
        };
        Ok(claimed.tidy())
    }

    /// What it says once those answer that were trained.
    fn concluded(self) -> Self {
        let Self { members, training, replaced, arguments, attempt: _ } = self;
        let replaced = replaced.into_iter().chain(members).collect();
        Self { members: training, training: vec![], attempt: None, replaced, arguments }.tidy()
    }

    /// Without those, among the replaced ones, that aren't, or that somebody else has put there.
    fn tidy(mut self) -> Self {
        let Self { members, training, replaced, .. } = &mut self;
        let mut seen = BTreeSet::new();
        replaced.retain(|name| {
            let is_member = members.contains(name) || training.contains(name);
            !is_member && is_trained_here(name) && seen.insert(name.clone())
        });
        self
    }

    /// Whether the same was asked for before, but for what says that it may be there.
    fn is_of(&self, arguments: &[String]) -> bool {
        let words = |all: &[String]| {
            all.iter()
                .filter(|word| !["--overwrite", "--resume"].contains(&&***word))
                .cloned()
                .collect::<Vec<_>>()
        };
        words(&self.arguments) == words(arguments)
    }

    /// Whether training was started, and has left nothing.
    fn is_bare(&self, root: &Folder) -> Result<bool> {
        if !self.members.is_empty() || self.training.is_empty() {
            return Ok(false);
        }
        for name in self.training.iter().chain(&self.replaced) {
            let folder = root.folder(name);
            if !is_inside(name) || !(folder.list()?.is_empty() || is_bare(&folder)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The one that trains an ensemble into a folder. A lock keeps others away as long as it lives; in a bucket, which has none,
/// it changes nothing once another one has written there.
pub struct Ensemble {
    root: Folder,
    /// As it was read or written last.
    file: EnsembleFile,
    /// Of that; `None` as long as there is no such file.
    version: Option<Version>,
    /// What is to be written before the first member is.
    claimed: EnsembleFile,
    _hold: Hold,
}

impl Ensemble {
    /// Makes the folder, and finds out whether these `members`, which a command line trains, can be written there. Nothing
    /// that it holds is touched.
    ///
    /// # Errors
    /// A folder that another process is writing to, one that holds a run, or an ensemble of others, unless that may be
    /// replaced, or has fewer seeds; a file in the place of a member's.
    pub fn open(root: &Path, members: &[String], arguments: &[String], replace: bool) -> Result<Self> {
        let folder = Folder::new(root);
        if root.is_file() {
            let message = "it is a file, where a folder for an ensemble is expected".to_owned();
            return Err(Error::Input { path: root.to_owned(), message });
        }
        folder.make()?;
        let hold = Hold::take(&folder)?;
        let found = folder.read_versioned(ENSEMBLE)?;
        let (read, version) =
            found.map(|(bytes, version)| (EnsembleFile::parse(root, &bytes), version)).unzip();
        let (file, is_damaged) = match read {
            Some(Err(Error::Input { .. })) if replace => (EnsembleFile::default(), true),
            read => (read.transpose()?.unwrap_or_default(), false),
        };
        let claimed = match version.is_some() && !is_damaged {
            true => file.training(root, members, arguments, replace)?,
            false => {
                let attempt = is_damaged.then(random_number);
                let (training, arguments) = (members.to_vec(), arguments.to_vec());
                EnsembleFile { training, attempt, arguments, ..EnsembleFile::default() }
            }
        };
        if version.is_none() {
            check_holds_no_run(&folder, replace)?;
        }
        for name in members {
            check_is_vacant(&folder.folder(name), replace || claimed.attempt.is_some())?;
        }
        Ok(Self { root: folder, file, version, claimed, _hold: hold })
    }

    /// What the names of its members' runs tell; others are replaced. `None` where none is.
    pub fn attempt(&self) -> Option<u64> {
        self.claimed.attempt
    }

    /// Says, before a member is written, that they are being trained. Those that are there answer until these do.
    ///
    /// # Errors
    /// Another process has taken over.
    pub fn claim(&mut self) -> Result<()> {
        if self.file != self.claimed {
            if self.version.is_none() {
                // What a run has left that has come to nothing.
                remove_run(&self.root)?;
            }
            return self.write(self.claimed.clone());
        }
        let is_ours = || Ok::<_, Error>(self.version()? == self.version);
        if self.root.is_local() || is_ours()? { Ok(()) } else { Err(self.taken_over()) }
    }

    /// Whether all its members are trained, and answer.
    pub fn is_concluded(&self) -> bool {
        let Self { file, claimed: EnsembleFile { training: members, .. }, .. } = self;
        file.members == *members && file.training != *members
    }

    /// Has the members answer, once they are trained, and removes the runs of those that they replace.
    ///
    /// # Errors
    /// Another process has taken over.
    pub fn conclude(&mut self) -> Result<()> {
        if !self.is_concluded() {
            self.write(self.claimed.clone().concluded())?;
        }
        self.remove_replaced()
    }

    /// Removes the runs of members that were replaced, if any are left.
    pub fn remove_replaced(&mut self) -> Result<()> {
        if self.file.replaced.is_empty() {
            return Ok(());
        }
        // A link leads to what is somebody's.
        let is_link = |folder: &Folder| folder.is_local() && folder.path().is_symlink();
        let members = self.root.folder(MEMBERS);
        for name in self.file.replaced.iter().filter(|name| is_trained_here(name)) {
            let folder = self.root.folder(name);
            if !is_link(&members) && !is_link(&folder) {
                if !self.root.is_local() && self.version()? != self.version {
                    return Err(self.taken_over());
                }
                remove_run(&folder)?;
                self.root.remove_if_empty(name)?;
            }
        }
        self.write(EnsembleFile { replaced: vec![], ..self.file.clone() })
    }

    fn version(&self) -> Result<Option<Version>> {
        Ok(self.root.read_versioned(ENSEMBLE)?.map(|(_, version)| version))
    }

    fn write(&mut self, file: EnsembleFile) -> Result<()> {
        let text = format!("{:#}\n", json!(file));
        match self.root.replace(ENSEMBLE, text.as_bytes(), self.version.as_ref())? {
            Replaced::Done(version) => self.version = Some(version),
            Replaced::Outdated => return Err(self.taken_over()),
        }
        self.file = file;
        Ok(())
    }

    fn taken_over(&self) -> Error {
        Error::TakenOver { path: self.root.path().to_owned() }
    }
}

/// Whether `members` are those `before`, and others that differ from them in the seed alone.
fn have_more_seeds(before: &[String], members: &[String]) -> bool {
    /// What its name says besides.
    fn beside_seed(name: &str) -> Option<&str> {
        Some(name.split_once("seed-")?.1.trim_start_matches(|c: char| c.is_ascii_digit()))
    }
    let kinds = |names: &[String]| {
        names.iter().map(|name| beside_seed(name).map(str::to_owned)).collect::<Option<BTreeSet<_>>>()
    };
    let are_kept = before.iter().all(|name| members.contains(name));
    are_kept && kinds(before).is_some_and(|kinds_before| Some(kinds_before) == kinds(members))
}

/// Whether there is an ensemble in `root`.
pub fn is_ensemble(root: &Path) -> Result<bool> {
    Ok(EnsembleFile::read(root)?.is_some())
}

/// The command line that trained the ensemble in `root`, if one did; `None` where there is none.
pub(super) fn ensemble_arguments(root: &Path) -> Result<Option<Vec<String>>> {
    Ok(EnsembleFile::read(root)?.map(|ensemble| ensemble.arguments))
}

/// A model that is to be a single one must not be an ensemble.
pub(super) fn check_is_single(root: &Path) -> Result<()> {
    let Some(file) = EnsembleFile::read(root)? else { return Ok(()) };
    let member = file
        .members
        .first()
        .map_or_else(String::new, |first| format!("; name a member, such as {}", root.join(first).display()));
    let message = format!("it is an ensemble, where a single run is expected{member}");
    Err(Error::Input { path: root.to_owned(), message })
}

/// A run may go to the folder of an ensemble that has come to nothing: whether `root` has another one.
pub(super) fn holds_ensemble(root: &Folder) -> Result<bool> {
    if !root.exists(ENSEMBLE)? {
        return Ok(false);
    }
    match EnsembleFile::read(root.path()) {
        Ok(Some(file)) => Ok(!file.is_bare(root)?),
        Ok(None) => Ok(false),
        Err(Error::Input { .. }) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Removes what an ensemble has left that has come to nothing.
pub(super) fn remove_bare_ensemble(root: &Folder) -> Result<()> {
    let Some(file) = EnsembleFile::read(root.path())? else { return Ok(()) };
    for name in file.training.iter().chain(&file.replaced).filter(|name| is_trained_here(name)) {
        remove_run(&root.folder(name))?;
        root.remove_if_empty(name)?;
    }
    root.remove_if_empty(MEMBERS)?;
    Ok(root.remove(ENSEMBLE)?)
}

/// Whether a folder's name leads to a folder below.
pub(super) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Whether it is where members are trained; others were put into the list by hand.
fn is_trained_here(name: &str) -> bool {
    is_inside(name) && Path::new(name).parent() == Some(Path::new(MEMBERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("{MEMBERS}/{name}")).collect()
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// The file that a training of these `members` leaves at its end, after this one.
    fn trained(before: &EnsembleFile, members: &[&str], line: &str) -> EnsembleFile {
        begun(before, members, line).unwrap().concluded()
    }

    fn begun(before: &EnsembleFile, members: &[&str], line: &str) -> Result<EnsembleFile> {
        let replace = line.contains("--overwrite");
        before.training(Path::new("root"), &names(members), &words(line), replace)
    }

    fn empty() -> EnsembleFile {
        EnsembleFile { training: names(&["seed-0", "seed-1"]), ..EnsembleFile::default() }
    }

    #[test]
    fn what_is_replaced_is_known_until_it_is_gone() {
        let first = trained(&empty(), &["seed-0", "seed-1"], "a");
        assert_eq!((&first.members, first.replaced.len()), (&names(&["seed-0", "seed-1"]), 0));
        let cut = begun(&first, &["fold-1", "seed-1"], "b --overwrite").unwrap();
        assert_eq!(cut.members, first.members);
        assert!(cut.replaced.is_empty());
        let second = cut.clone().concluded();
        assert_eq!((&second.members, &second.replaced), (&names(&["fold-1", "seed-1"]), &names(&["seed-0"])));
        // What was being trained goes where the earlier ones go on.
        let back = begun(&cut, &["seed-0", "seed-1"], "a").unwrap();
        assert_eq!((&back.replaced, back.attempt), (&names(&["fold-1"]), None));
        assert_eq!(back.concluded().replaced, names(&["fold-1"]));
        // And counts again where it is trained once more.
        let again = begun(&second, &["seed-0", "seed-1"], "a --overwrite").unwrap();
        assert_eq!(again.replaced, [""; 0]);
    }

    #[test]
    fn a_training_that_was_cut_short_goes_on() {
        let first = trained(&empty(), &["seed-0", "seed-1"], "a");
        assert_eq!(begun(&first, &["seed-0", "seed-1"], "a").unwrap().attempt, None);
        let cut = begun(&first, &["seed-0", "seed-1"], "b --overwrite").unwrap();
        assert!(cut.attempt.is_some());
        for line in ["b --overwrite", "b", "b --resume"] {
            assert_eq!(begun(&cut, &["seed-0", "seed-1"], line).unwrap().attempt, cut.attempt, "{line}");
        }
        let more = begun(&cut, &["seed-0", "seed-1", "seed-2"], "b").unwrap();
        assert_eq!(more.attempt, cut.attempt);
        let other = begun(&cut, &["seed-0", "seed-1"], "c --overwrite").unwrap();
        assert!(other.attempt.is_some() && other.attempt != cut.attempt);
        assert_eq!(cut.concluded().attempt, None);
    }

    #[test]
    fn others_are_refused() {
        let first = trained(&empty(), &["seed-0", "seed-1"], "a");
        let folds = begun(&first, &["fold-1", "fold-2", "fold-3"], "b --overwrite").unwrap();
        for (before, members) in [(&first, &["seed-0"][..]), (&first, &["fold-1"]), (&folds, &["fold-1"])] {
            assert!(matches!(begun(before, members, "a"), Err(Error::OtherMembers { .. })), "{members:?}");
        }
        assert!(begun(&folds, &["seed-0", "seed-1"], "a").is_ok());
        assert!(begun(&folds, &["seed-0", "seed-1", "seed-2"], "a").is_ok());
    }

    #[test]
    fn what_was_put_together_by_hand_is_not_removed() {
        let own = EnsembleFile {
            members: ["best-2024", "members/a/b", "../members/seed-9", "members/seed-7"]
                .map(Into::into)
                .into(),
            ..EnsembleFile::default()
        };
        assert_eq!(trained(&own, &["seed-0"], "a --overwrite").replaced, names(&["seed-7"]));
    }
}
