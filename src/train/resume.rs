//! Where a run goes on: the newest checkpoint that any host of the slice has.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::begin::Beginning;
use super::terms::DATA;
use super::{Error, Result};
use crate::exec::Replicas;
use crate::report::History;
use crate::run::layout::STEPS;
use crate::run::{self, Checkpoint, Difference, Newest, Progress, differences, started};
use crate::storage::Folder;
use crate::weights::{TensorFiles, key};

const PHASE: &str = "looking for a checkpoint";

/// A checkpoint that training goes on from.
pub(super) struct Saved {
    pub progress: Progress,
    pub history: History,
    /// The process that has it; one of them.
    pub giver: usize,
    /// Whether the host that has it gives its tensors to the others; otherwise each has its own.
    is_given: bool,
    /// This host's.
    tensors: Option<TensorFiles>,
}

impl Saved {
    /// The checkpoint that the job of `beginning` goes on from: the newest of its run in the folder of any host, since the first
    /// process may be another machine than the one that wrote it. `None` to start anew. Newer ones that are damaged are told
    /// to `note`. Runs that aren't of its attempt, if it has one, don't count.
    ///
    /// # Errors
    /// In all processes: a checkpoint of another job, unless that may be replaced, or none where there must be one; one that
    /// can't be read.
    pub fn find(beginning: &Beginning<'_>, note: &mut dyn FnMut(&str)) -> Result<Option<Self>> {
        let &Beginning { replicas, root, job, terms, save, attempt, older_data, .. } = beginning;
        // What is in a bucket is the same for all, and is brought once.
        let looks = replicas.is_chief() || root.is_local();
        let newest = if looks { Newest::find(root) } else { Ok(Newest::default()) };
        let newest = replicas.meet(PHASE, newest.map_err(Error::from))?;
        let counts = |run: &str| attempt.is_none() || run::attempt(run) == attempt;
        let Newest { run, checkpoint, damaged } = match newest.run.as_deref().is_none_or(counts) {
            true => newest,
            false => Newest::default(),
        };
        damaged.iter().for_each(|error| note(&format!("Passed over: {error}")));
        let different = checkpoint.as_ref().map(|own| {
            let mut different = differences(&own.progress.terms.fixed, &terms.fixed);
            different.retain(|one| one.name != DATA || one.before != older_data());
            different
        });
        let claim = Claim::new(run.as_deref(), checkpoint.as_ref(), different.as_deref());
        let all = replicas.gather(PHASE, &claim.words())?;
        let claims = all.iter().map(|words| Claim::from_words(words)).collect::<Vec<_>>();
        let own = replicas.process_index() as usize;
        let path = || root.path().to_owned();
        let giver = match choose(&claims, save.replace) {
            Choice::From(giver) => giver,
            Choice::Anew if save.resume => return Err(Error::NothingToResume { path: path() }),
            Choice::Anew => return Ok(None),
            Choice::Differs(process) => {
                let differs = || Error::Differs { path: path(), different: different.unwrap_or_default() };
                replicas.meet(PHASE, if process == own { Err(differs()) } else { Ok(()) })?;
                return Ok(None);
            }
        };
        let is_everywhere = all.iter().all(|words| *words == all[giver]);
        let checkpoint = checkpoint.filter(|_| is_everywhere || own == giver);
        let open = |own: &Checkpoint| {
            let tensors = own.tensors()?;
            // Later, other hosts would wait for those that this one hasn't.
            job.state().iter().try_for_each(|(name, dims)| tensors.check(key(name), dims))?;
            Ok::<_, Error>((tensors, own.to_text()))
        };
        let (tensors, text) = replicas.meet(PHASE, checkpoint.as_ref().map(open).transpose())?.unzip();
        if is_everywhere && let Some(own) = checkpoint {
            let Checkpoint { progress, history, .. } = own;
            return Ok(Some(Self { progress, history, giver, is_given: false, tensors }));
        }
        let text = share(replicas, PHASE, text.as_ref().map(|text| text.as_bytes()))?;
        let parsed = Checkpoint::parse_text(&text).map_err(Error::from);
        let (progress, history) = replicas.meet(PHASE, parsed)?;
        Ok(Some(Self { progress, history, giver, is_given: true, tensors }))
    }

    /// Whether as many epochs are done, or the last so many, the `patience`, have brought none that was better.
    pub fn is_finished(&self, epochs: u32, patience: Option<u32>) -> bool {
        self.progress.epoch >= epochs
            || (self.progress.within.is_none() && self.progress.has_waited(patience))
    }

    /// Whether this host has it.
    pub fn is_own(&self) -> bool {
        self.tensors.is_some()
    }

    /// What the giver has told of its steps in the folder `root`, for all hosts of a slice, which must ask for it together.
    pub fn told(&self, replicas: &Replicas, root: &Folder) -> Result<Vec<u8>> {
        // Without it, the run goes on all the same.
        let own = || root.read(STEPS).ok().flatten().unwrap_or_default();
        let own = (replicas.process_index() as usize == self.giver).then(own);
        share(replicas, PHASE, own.as_deref())
    }

    /// The values of a weight, or of a moment. All hosts of a slice must ask for it together.
    pub fn tensor(&self, replicas: &Replicas, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let own = self.tensors.as_ref().map(|tensors| tensors.tensor_f32(key(name), dims)).transpose()?;
        match own {
            Some(own) if !self.is_given => Ok(own.into_owned()),
            own => {
                let own = own.as_ref().map(|own| bytemuck::cast_slice(own));
                Ok(bytemuck::pod_collect_to_vec(&share(replicas, "loading the weights", own)?))
            }
        }
    }
}

/// The bytes that one host has, for all.
pub(super) fn share(replicas: &Replicas, phase: &'static str, own: Option<&[u8]>) -> Result<Vec<u8>> {
    let Some(own) = own else {
        let mut bytes = vec![];
        replicas.receive(phase, |part| {
            bytes.extend_from_slice(part);
            Ok::<_, Error>(())
        })?;
        return Ok(bytes);
    };
    let mut rest = own;
    // A slice of bytes can't fail to be read.
    replicas.send(phase, |part| Ok::<_, Error>(rest.read(part).unwrap_or(0)))?;
    Ok(own.to_vec())
}

/// What a host's folder holds, as all hosts are told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    /// The run that it holds, if it holds one: when that was started, and a hash of its name. Of two, the greater one is the
    /// newer.
    run: Option<(u64, u64)>,
    checkpoint: Option<Newer>,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Newer {
    /// Whether it is of this job.
    is_of_job: bool,
    step: u64,
    /// Of what it holds.
    hash: [u32; 8],
}

impl Claim {
    fn new(run: Option<&str>, checkpoint: Option<&Checkpoint>, different: Option<&[Difference]>) -> Self {
        let hash = |run: &str| bytemuck::cast::<[u8; 32], [u64; 4]>(Sha256::digest(run).into())[0];
        let id = |run: &str| (started(run), hash(run));
        let checkpoint = checkpoint.map(|checkpoint| Newer {
            is_of_job: different.is_some_and(<[Difference]>::is_empty),
            step: checkpoint.progress.step,
            hash: bytemuck::cast(*checkpoint.hash()),
        });
        Self { run: run.map(id), checkpoint }
    }

    fn words(&self) -> Vec<u32> {
        let halves = |value: u64| [(value >> 32) as u32, value as u32];
        let (start, name) = self.run.unwrap_or_default();
        let none = Newer { is_of_job: false, step: 0, hash: [0; 8] };
        let Newer { is_of_job, step, hash } = self.checkpoint.as_ref().unwrap_or(&none);
        let flags = [self.run.is_some(), self.checkpoint.is_some(), *is_of_job].map(u32::from);
        [&flags[..], &halves(start), &halves(name), &halves(*step), hash].concat()
    }

    fn from_words(words: &[u32]) -> Self {
        let whole = |at: usize| u64::from(words[at]) << 32 | u64::from(words[at + 1]);
        let checkpoint = || Newer {
            is_of_job: words[2] == 1,
            step: whole(7),
            hash: std::array::from_fn(|i| words[9 + i]),
        };
        Self {
            run: (words[0] == 1).then(|| (whole(3), whole(5))),
            checkpoint: (words[1] == 1).then(checkpoint),
        }
    }
}

/// What is gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Anew,
    /// The checkpoint of this process, and of those that hold the same.
    From(usize),
    /// Nothing: this process has one of another job.
    Differs(usize),
}

/// Chooses by what the processes hold, in their order. The first one's folder is what the run is written to: unless it may
/// be replaced, the run that it holds is the one to go on with; otherwise a newer one may be, on another host.
fn choose(claims: &[Claim], replace: bool) -> Choice {
    let chief = &claims[0];
    let is_of_job = |claim: &Claim| claim.checkpoint.as_ref().map(|checkpoint| checkpoint.is_of_job);
    if !replace && is_of_job(chief) == Some(false) {
        return Choice::Differs(0);
    }
    let may_be = |claim: &Claim| {
        let fits =
            chief.run.is_none() || if replace { claim.run >= chief.run } else { claim.run == chief.run };
        is_of_job(claim) == Some(true) && fits
    };
    let order = |process: usize| {
        let claim = &claims[process];
        (claim.run, claim.checkpoint.as_ref().map(|checkpoint| (checkpoint.step, checkpoint.hash)))
    };
    // Of equal ones, the first.
    let newest = (0..claims.len())
        .rev()
        .filter(|process| may_be(&claims[*process]))
        .max_by_key(|process| order(*process));
    let other = claims.iter().position(|claim| is_of_job(claim) == Some(false));
    match (newest, other) {
        (Some(process), _) => Choice::From(process),
        (None, Some(process)) if !replace && chief.run.is_none() => Choice::Differs(process),
        (None, _) => Choice::Anew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a checkpoint of this step, of a run that was started then.
    fn holds(start: u64, step: u64, is_of_job: bool) -> Claim {
        let checkpoint = Newer { is_of_job, step, hash: [step as u32; 8] };
        Claim { run: Some((start, 7)), checkpoint: Some(checkpoint) }
    }

    /// A folder that a run was started in, without a checkpoint so far.
    fn begun(start: u64) -> Claim {
        Claim { run: Some((start, 7)), checkpoint: None }
    }

    const EMPTY: Claim = Claim { run: None, checkpoint: None };

    /// What is chosen without `--overwrite`, and with it.
    #[track_caller]
    fn check(claims: &[Claim], keep: Choice, replace: Choice) {
        let told = claims.iter().map(|claim| Claim::from_words(&claim.words())).collect::<Vec<_>>();
        assert_eq!(told, claims);
        assert_eq!([choose(claims, false), choose(claims, true)], [keep, replace]);
    }

    #[test]
    fn a_host_alone_goes_on_with_what_it_holds() {
        use Choice::*;
        check(&[EMPTY], Anew, Anew);
        check(&[begun(5)], Anew, Anew);
        check(&[holds(5, 9, true)], From(0), From(0));
        check(&[holds(5, 9, false)], Differs(0), Anew);
    }

    #[test]
    fn the_newest_checkpoint_of_a_run_counts_wherever_it_is() {
        use Choice::*;
        check(&[EMPTY, EMPTY, holds(5, 9, true)], From(2), From(2));
        check(&[holds(5, 9, true), holds(5, 12, true)], From(1), From(1));
        check(&[holds(5, 12, true), holds(5, 9, true)], From(0), From(0));
        check(&[holds(5, 9, true), holds(5, 9, true)], From(0), From(0));
        check(&[begun(5), holds(5, 9, true)], From(1), From(1));
    }

    #[test]
    fn the_run_in_the_first_folder_stays_unless_it_may_be_replaced() {
        use Choice::*;
        // Of another job, beside one of this.
        check(&[holds(5, 9, false), holds(4, 40, true)], Differs(0), Anew);
        check(&[holds(5, 9, false), holds(6, 4, true)], Differs(0), From(1));
        check(&[EMPTY, holds(5, 9, false)], Differs(1), Anew);
        check(&[begun(6), holds(5, 9, false)], Anew, Anew);
        check(&[holds(5, 9, true), holds(6, 4, false)], From(0), From(0));
    }

    #[test]
    fn what_a_newer_run_has_replaced_does_not_come_back() {
        use Choice::*;
        // The older run of the same job is on another host, with more steps.
        check(&[holds(6, 15, true), holds(5, 46, true)], From(0), From(0));
        check(&[begun(6), holds(5, 46, true)], Anew, Anew);
        check(&[EMPTY, holds(5, 46, true), holds(6, 15, true)], From(2), From(2));
        check(&[holds(5, 46, true), holds(6, 15, true)], From(0), From(1));
    }
}
