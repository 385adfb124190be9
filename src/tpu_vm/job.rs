//! What this machine knows of a job on a TPU VM: with which arguments it was created, set up and started, so that
//! [`watch`](super::watch) can do the same again, and what a watch has done so far.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, Result};
use crate::storage::{FileError, hex, is_bucket, write_atomic};

/// A TPU VM as it is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub accelerator_type: String,
    pub runtime_version: String,
    pub is_spot: bool,
    pub is_queued: bool,
    /// How long a queued request may wait, such as `6h`; `None` for ever.
    pub valid_until: Option<String>,
    /// Further flags of the command that makes it.
    pub flags: Vec<String>,
}

impl Machine {
    /// The options that it is made with.
    pub fn describe(&self) -> String {
        let mut options =
            vec![format!("--type {}", self.accelerator_type), format!("--version {}", self.runtime_version)];
        options.extend(self.is_spot.then(|| "--spot".to_owned()));
        options.extend(self.is_queued.then(|| "--queued".to_owned()));
        options.extend(self.valid_until.iter().map(|until| format!("--valid-until {until}")));
        options.extend(self.flags.iter().cloned());
        options.join(" ")
    }
}

/// What every worker is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUp {
    /// Another one after each change, of a file of the program's, too.
    pub id: String,
    pub binary: PathBuf,
    /// The wheel of the TPU plugin, where the workers can't download it.
    pub plugin: Option<PathBuf>,
    /// Files and folders, and `gs://` addresses.
    pub data: Vec<String>,
}

impl SetUp {
    /// # Errors
    /// A file that isn't there.
    pub fn new(binary: PathBuf, plugin: Option<PathBuf>, data: Vec<String>) -> Result<Self> {
        let mut files = vec![];
        for path in [Some(&binary), plugin.as_ref()].into_iter().flatten() {
            let found = fs::metadata(path).map_err(FileError::new("can't read", path))?;
            files.push(format!("{path:?} {} {:?}", found.len(), found.modified().ok()));
        }
        let id = short_hash(&format!("{files:?} {data:?}"));
        let set_up = Self { id, binary, plugin, data };
        set_up.bytes()?;
        Ok(set_up)
    }

    /// What the workers copy themselves.
    pub fn urls(&self) -> Vec<&str> {
        self.data.iter().map(String::as_str).filter(|item| is_bucket(item.as_ref())).collect()
    }

    /// What is copied to them beside the program.
    pub fn copied(&self) -> Vec<&Path> {
        let data = self.data.iter().map(Path::new).filter(|item| !is_bucket(item));
        data.chain(self.plugin.as_deref()).collect()
    }

    /// How much is copied to each of them.
    ///
    /// # Errors
    /// A file that isn't there, or can't be looked at.
    pub fn bytes(&self) -> Result<u64> {
        let all = self.copied().into_iter().chain([self.binary.as_path()]);
        Ok(all.map(bytes_in).sum::<std::result::Result<u64, FileError>>()?)
    }
}

fn bytes_in(path: &Path) -> std::result::Result<u64, FileError> {
    let failed = || FileError::new("can't read", path);
    let found = fs::metadata(path).map_err(failed())?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    let entries = fs::read_dir(path).map_err(failed())?;
    entries.map(|entry| bytes_in(&entry.map_err(failed())?.path())).sum()
}

/// What every worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub arguments: Vec<String>,
}

impl Start {
    /// Another one after each change.
    pub fn id(&self) -> String {
        short_hash(&format!("{:?}", self.arguments))
    }

    /// What train's `--output` is.
    pub fn output(&self) -> &str {
        self.value("--output").unwrap_or_default()
    }

    /// What an option of train's is, in either form; train refuses one that is given twice.
    pub fn value(&self, option: &str) -> Option<&str> {
        let followed =
            self.arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| &*pair[1]).next_back();
        let joined =
            self.arguments.iter().rev().find_map(|argument| argument.strip_prefix(option)?.strip_prefix('='));
        joined.or(followed)
    }
}

/// What a watch has seen, so that it can be started again at any moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// How often the program was started again after it had failed.
    pub restarts: u32,
    /// For how many seconds the VM was seen ready, over all VMs of this name.
    pub ready_seconds: f64,
    /// When it was last seen ready, in seconds since 1970; `None` if it was not when it was looked at last.
    #[serde(default)]
    pub ready_at: Option<f64>,
    /// How it has ended, once nothing is left to do but to delete the VM.
    #[serde(default)]
    pub ended: Option<Watched>,
}

/// How a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watched {
    Done,
    /// The program fails, or the VM doesn't come.
    Failed,
    /// Its hours are over; the run has saved, if it could.
    OutOfHours,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub project: Option<String>,
    pub machine: Option<Machine>,
    pub set_up: Option<SetUp>,
    pub start: Option<Start>,
    #[serde(default)]
    pub progress: Progress,
}

impl Job {
    /// Has it set this up, and start that. Of another program or run than before, nothing has been restarted, and none has
    /// ended.
    pub fn begin(&mut self, set_up: SetUp, start: Start) {
        let is_known = self.set_up.as_ref().is_some_and(|before| before.id == set_up.id);
        if !is_known || self.start.as_ref() != Some(&start) {
            self.begin_anew();
        }
        (self.set_up, self.start) = (Some(set_up), Some(start));
    }

    /// Whoever sets it up, or starts it, by hand has mended something.
    pub fn begin_anew(&mut self) {
        (self.progress.restarts, self.progress.ended) = (0, None);
    }
}

/// The folder in which the job of one VM's name is kept.
#[derive(Clone, Debug)]
pub struct Record(PathBuf);

impl Record {
    /// In `XDG_STATE_HOME`, else `~/.local/state`.
    pub fn of(zone: &str, name: &str) -> Result<Self> {
        let folder = |variable| std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
        let state = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
        Ok(Self(state.ok_or(Error::NoStateFolder)?.join("bert-xla/tpu-vm").join(zone).join(name)))
    }

    /// The job, if one was begun here.
    pub fn read(&self) -> Result<Job> {
        let path = self.0.join("job.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| FileError::new("can't read", path)(error.into()).into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Job::default()),
            Err(error) => Err(FileError::new("can't read", path)(error).into()),
        }
    }

    pub fn write(&self, job: &Job) -> Result<()> {
        let path = self.0.join("job.json");
        let write =
            |file: &mut io::BufWriter<&File>| Ok::<_, io::Error>(serde_json::to_writer_pretty(file, job)?);
        write_atomic(&path, write).map_err(|error| FileError::new("can't write", path)(error).into())
    }

    /// Changes the job.
    pub fn change(&self, change: impl FnOnce(&mut Job)) -> Result<()> {
        let mut job = self.read()?;
        change(&mut job);
        self.write(&job)
    }

    /// Forgets the job, whose VM is gone.
    pub fn remove(&self) -> Result<()> {
        let path = self.0.join("job.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("can't remove", path)(error).into())
            }
            _ => Ok(()),
        }
    }

    /// The lock of the watch over this job; `None` while another process has it.
    pub fn lock_watch(&self) -> Result<Option<File>> {
        self.try_lock("watch.lock")
    }

    /// The lock that every command of a watch holds, which may outlive a watch that is killed; `None` while one does.
    fn lock_commands(&self) -> Result<Option<File>> {
        self.try_lock("commands.lock")
    }

    /// That lock, once no command has it any more.
    pub fn wait_for_commands(&self, note: &dyn Fn(&str)) -> Result<File> {
        let mut told = false;
        loop {
            if let Some(lock) = self.lock_commands()? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut told, true) {
                note("waiting for a command of an earlier watch to end");
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Whether a job of this name was ever begun here.
    pub fn is_known(&self) -> bool {
        self.0.is_dir()
    }

    fn try_lock(&self, name: &str) -> Result<Option<File>> {
        let path = self.0.join(name);
        let failed = |path: &Path| FileError::new("can't lock", path.to_owned());
        fs::create_dir_all(&self.0).map_err(failed(&self.0))?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(failed(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(failed(&path)(error).into()),
        }
    }
}

fn short_hash(text: &str) -> String {
    let mut hash = hex(Sha256::new_with_prefix(text));
    hash.truncate(16);
    hash
}

/// A name that no other call has.
pub fn new_id() -> String {
    use std::time::{SystemTime, UNIX_EPOCH};
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", now.as_nanos(), std::process::id())
}
