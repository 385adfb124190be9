//! `steps.jsonl`: a line per step. It isn't committed, since nothing that reads a run needs it; but it tells of the steps
//! that the run's checkpoints have come by, and of each once.

use std::io::{BufRead, BufReader};

use serde::Deserialize;

use super::Result;
use super::layout::STEPS;
use crate::report::StepRecord;
use crate::storage::{self, FileError, Folder, LogFile, Logged, open_once};

/// The steps of a run, while it is trained.
pub struct StepLog {
    file: LogFile,
}

impl StepLog {
    /// Of the run in `root`, which goes on after so many steps: what is told there of later ones has not come to be. What
    /// another run has left, which this one replaces, stays until its first checkpoint. `given` is what another host has told
    /// of this run, in place of what is there.
    pub fn open(root: &Folder, steps: u64, given: Option<&[u8]>) -> Result<Self> {
        let mut file = LogFile::create(root, STEPS)?;
        let is_there = root.exists(STEPS)?;
        let path = root.path().join(STEPS);
        let failed = |error| FileError::new("can't read", &path)(error);
        let before: Option<Box<dyn BufRead + '_>> = match given {
            Some(given) => Some(Box::new(given)),
            None if is_there && steps > 0 => {
                Some(Box::new(BufReader::new(open_once(&path).map_err(failed)?)))
            }
            None => None,
        };
        if let Some(mut before) = before {
            let mut line = vec![];
            while before.read_until(b'\n', &mut line).map_err(failed)? > 0 {
                if is_until(steps, &line) {
                    file.append(&line)?;
                }
                line.clear();
            }
        }
        if !is_there || steps > 0 {
            file.take_name()?;
        }
        Ok(Self { file })
    }

    pub fn add(&mut self, record: &StepRecord) -> storage::Result<()> {
        self.file.append(record.to_line().as_bytes())
    }

    /// What is told so far.
    pub fn logged(&mut self) -> storage::Result<Logged> {
        self.file.logged()
    }
}

/// Whether a line is that of a step up to `last`. One without an end was being written when its process was killed.
fn is_until(last: u64, line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    line.ends_with(b"\n") && serde_json::from_slice::<Line>(line).is_ok_and(|line| line.step <= last)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 1,
            loss: 1.5,
            accuracy: 0.25,
            learning_rate: 0.5,
            gradient_norm: (step == 3).then_some(2.0),
            examples_per_second: 100.0,
            step_ms: 20.0,
        }
    }

    const LINE: &str = r#""epoch":1,"loss":1.5,"accuracy":0.25,"learning_rate":0.5,"examples_per_second":100.0,"step_ms":20.0}"#;

    #[test]
    fn what_has_not_come_to_be_is_cut_away() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(STEPS);
        let folder = Folder::new(root.path());
        let read = || fs::read_to_string(&path).unwrap();
        let of = |steps: &[u64]| {
            steps.iter().map(|step| format!("{{\"step\":{step},{LINE}\n")).collect::<String>()
        };
        let mut log = StepLog::open(&folder, 0, None).unwrap();
        // To be followed from the start.
        assert_eq!(read(), "");
        [1, 2].iter().for_each(|step| log.add(&record(*step)).unwrap());
        log.logged().unwrap().publish();
        assert_eq!(read(), of(&[1, 2]));

        fs::write(&path, of(&[1, 2, 3, 4]) + "{\"step\":2,\"epo").unwrap();
        let mut log = StepLog::open(&folder, 2, None).unwrap();
        assert_eq!(read(), of(&[1, 2]));
        log.add(&record(3)).unwrap();
        drop(log);
        let third =
            format!("{{\"step\":3,{}\n", LINE.replace(r#""examples"#, r#""gradient_norm":2.0,"examples"#));
        assert_eq!(read(), of(&[1, 2]) + &third);

        // On another host, which has told of one step only.
        let given = of(&[1, 2]) + "{\"step\":4}\n";
        fs::write(&path, of(&[1])).unwrap();
        StepLog::open(&folder, 3, Some(given.as_bytes())).unwrap();
        assert_eq!(read(), of(&[1, 2]));

        // Another run, which may yet fail.
        let mut log = StepLog::open(&folder, 0, None).unwrap();
        log.add(&record(1)).unwrap();
        assert_eq!(read(), of(&[1, 2]));
        log.logged().unwrap().publish();
        assert_eq!(read(), of(&[1]));
    }
}
