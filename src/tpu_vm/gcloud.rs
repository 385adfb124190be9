//! One command of `gcloud`'s at a time: how it is called, how long it may take, and what its failure means.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Error, Result};

/// A TPU VM, and how `gcloud` is to reach it.
#[derive(Clone, Debug)]
pub struct Vm {
    pub name: String,
    pub zone: String,
    /// `None` for the one that gcloud is set to.
    pub project: Option<String>,
    /// Passed on to what the verb is about: to `create`, or to every ssh and scp.
    pub flags: Vec<String>,
    pub route: Route,
    pub limits: Limits,
}

/// How ssh finds the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// By their public addresses, or else by those of their network.
    #[default]
    Public,
    /// By the addresses of their network, from within it.
    Internal,
    /// Through Google's Identity-Aware Proxy, which only the alpha commands have.
    Tunnel,
}

/// How long to wait for a connection. gcloud sets none of its own, and an ssh whose VM is gone would hang.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Seconds until a worker has answered.
    pub connect: u32,
    /// Seconds after which a silent connection is asked for a sign of life; three in a row without one end it.
    pub keepalive: u32,
}

/// A command line, most often one of `gcloud`'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call(Vec<String>);

impl Call {
    /// A program and its arguments.
    pub fn new(words: &[&str]) -> Self {
        Self(words.iter().map(|word| word.to_string()).collect())
    }

    fn gcloud(words: &[&str]) -> Self {
        Self::new(&[&["gcloud"], words].concat())
    }

    pub fn with(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.0.extend(words.into_iter().map(Into::into));
        self
    }

    /// As a shell takes it.
    pub fn quoted(&self) -> String {
        quote_all(&self.0)
    }
}

/// A word as a shell takes it.
pub fn quote(word: &str) -> String {
    match is_plain(word) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Whether a shell takes it as it is.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./:=@%+,-".contains(&byte))
}

/// Words as a shell takes them.
pub fn quote_all<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

impl Vm {
    /// `gcloud compute tpus tpu-vm VERB NAME`, in its zone.
    pub fn node(&self, verb: &str) -> Call {
        self.placed(Call::gcloud(&["compute", "tpus", "tpu-vm", verb, &self.name]))
    }

    /// `gcloud compute tpus queued-resources VERB NAME`, in its zone.
    pub fn queued(&self, verb: &str) -> Call {
        self.placed(Call::gcloud(&["compute", "tpus", "queued-resources", verb, &self.name]))
    }

    /// All nodes, or all queued resources, in all zones.
    pub fn list(project: Option<&str>, group: &str) -> Call {
        let project = project.map(|project| format!("--project={project}"));
        Call::gcloud(&["compute", "tpus", group, "list", "--zone=-"]).with(project)
    }

    /// A line of shell on one worker, or on `all`.
    pub fn ssh(&self, worker: &str, line: &str) -> Call {
        let command = format!("--command={line}");
        self.connected("ssh", "--ssh-flag")
            .with([&self.name, &format!("--worker={worker}"), &command])
            .with(self.flags.iter().cloned())
    }

    /// Files and folders to `to`; of the workers' they have the VM's name before them, as in [`there`](Self::there).
    pub fn scp(&self, from: &[String], to: &str, worker: &str) -> Call {
        // Before OpenSSH 9, scp has a shell read the path there, unless it is told to speak SFTP.
        let mut there = from.iter().filter(|path| path.starts_with(&self.there("")));
        let sftp = there.any(|path| !is_plain(path)).then_some("--scp-flag=-s");
        self.connected("scp", "--scp-flag")
            .with(sftp)
            .with(["--recurse".to_owned()])
            .with(from.iter().cloned())
            .with([to.to_owned(), format!("--worker={worker}")])
            .with(self.flags.iter().cloned())
    }

    /// A path on a worker, for [`scp`](Self::scp).
    pub fn there(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }

    fn connected(&self, verb: &str, flag: &str) -> Call {
        let alpha: &[&str] = if self.route == Route::Tunnel { &["alpha"] } else { &[] };
        let route = match self.route {
            Route::Public => None,
            Route::Internal => Some("--internal-ip"),
            Route::Tunnel => Some("--tunnel-through-iap"),
        };
        let Limits { connect, keepalive } = self.limits;
        let options = [
            format!("ConnectTimeout={connect}"),
            format!("ServerAliveInterval={keepalive}"),
            "ServerAliveCountMax=3".to_owned(),
        ];
        self.placed(Call::gcloud(&[alpha, &["compute", "tpus", "tpu-vm", verb]].concat()))
            .with(route)
            .with(options.map(|option| format!("{flag}=-o {option}")))
    }

    fn placed(&self, call: Call) -> Call {
        let project = self.project.as_ref().map(|project| format!("--project={project}"));
        call.with([format!("--zone={}", self.zone)]).with(project)
    }
}

/// Stands for a name that no other call has, in a dry run: what is printed may be run more than once.
pub const CALL_NAME: &str = "\u{1}call\u{1}";

/// Runs what is called, or tells it.
pub struct Gcloud<'a> {
    /// Where a dry run's commands go, a line each.
    pub dry_run: Option<&'a dyn Fn(&str)>,
    /// What commands print is left out, but for what they fail with.
    pub is_quiet: bool,
    /// Open in every command that is run here, so that its lock is held until the last of them has ended.
    pub lock: Option<File>,
}

/// For commands that copy, make or delete: gcloud has limits of its own, of half an hour for the API's operations.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

impl Gcloud<'_> {
    /// Runs a command that talks to the user, unless it is to be quiet.
    ///
    /// # Errors
    /// [`Error::Failed`], which it has explained itself; of a quiet one, [`Error::Refused`].
    pub fn run(&self, call: &Call) -> Result<()> {
        if let Some(print) = self.dry_run {
            // Within quotes, which end before it.
            print(&call.quoted().replace(CALL_NAME, "'$(date +%s%N)'"));
            return Ok(());
        }
        if self.is_quiet {
            return match self.ask(call, LONGEST)? {
                Reply::Done(_) => Ok(()),
                Reply::Failed(failure) => Err(Error::Refused(failure)),
            };
        }
        let status = spawned(self.command(call)?.status())?;
        status.success().then_some(()).ok_or(Error::Failed { status: code(status) })
    }

    /// Starts a command whose standard output is read here, as it comes.
    pub fn start(&self, call: &Call) -> Result<Child> {
        spawned(self.command(call)?.stdout(Stdio::piped()).spawn())
    }

    /// Runs a command for what it prints; after `limit`, it is ended with all that it has started.
    pub fn ask(&self, call: &Call, limit: Duration) -> Result<Reply> {
        let mut command = self.command(call)?;
        let mut child =
            spawned(command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())?;
        let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
        let status = wait(&mut child, limit).map_err(Error::Io)?;
        let text = |reader: JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        Ok(match status {
            Some(status) if status.success() => Reply::Done(stdout),
            Some(status) => Reply::Failed(Failure::of(code(status), &stderr, stdout)),
            None => Reply::Failed(Failure {
                stdout,
                ..Failure::told(format!("gcloud took more than {} s", limit.as_secs()))
            }),
        })
    }

    fn command(&self, call: &Call) -> Result<Command> {
        let mut command = Command::new(&call.0[0]);
        command.args(&call.0[1..]);
        if let Some(lock) = &self.lock {
            command.stdin(lock.try_clone().map_err(Error::Io)?);
        }
        Ok(command)
    }
}

/// How a command ended whose output was read.
#[derive(Clone, Debug)]
pub enum Reply {
    Done(String),
    Failed(Failure),
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub status: u8,
    pub kind: Kind,
    /// One line.
    pub message: String,
    /// What came before it.
    pub stdout: String,
}

/// What a failure means, as far as the API has said it; of anything else, nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no such resource.
    NotFound,
    Exists,
    /// No capacity, or no quota.
    NoStock,
    /// The request itself.
    Invalid,
    /// A network, a server, credentials, rights: it says nothing of the resource.
    Unknown,
}

impl Failure {
    /// Of something that nothing is known of but this.
    pub fn told(message: String) -> Self {
        Self { status: 1, kind: Kind::Unknown, message, stdout: String::new() }
    }

    /// gcloud prints the API's status as `ERROR: (gcloud.COMMAND) STATUS: MESSAGE`, and a failed operation's as JSON with
    /// a `code` of `google.rpc.Code`.
    fn of(status: u8, stderr: &str, stdout: String) -> Self {
        let error = stderr.split_once("ERROR: (gcloud.").and_then(|(_, rest)| rest.split_once(") "));
        let text = error.map_or(stderr, |(_, text)| text).trim();
        let operation = serde_json::from_str::<serde_json::Value>(text).ok();
        let code = operation.as_ref().and_then(|error| error["code"].as_i64());
        let is = |name: &str, number: i64| text.starts_with(&format!("{name}:")) || code == Some(number);
        let kind = if is("NOT_FOUND", 5) && error.is_some() {
            Kind::NotFound
        } else if is("ALREADY_EXISTS", 6) {
            Kind::Exists
        } else if is("RESOURCE_EXHAUSTED", 8) {
            Kind::NoStock
        } else if is("INVALID_ARGUMENT", 3) || status == 2 {
            Kind::Invalid
        } else {
            Kind::Unknown
        };
        let of_worker = stderr.lines().chain(stdout.lines()).find_map(|line| line.strip_prefix("error: "));
        let of_operation = operation.as_ref().and_then(|error| error["message"].as_str());
        let of_gcloud = error.and_then(|_| text.lines().next());
        let last = stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
        let message = of_worker.or(of_operation).or(of_gcloud).or(last);
        let message = message.unwrap_or("gcloud failed without a word").to_owned();
        Self { status, kind, message, stdout }
    }
}

fn spawned<T>(started: io::Result<T>) -> Result<T> {
    started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoGcloud,
        _ => Error::Io(error),
    })
}

/// As a shell has it.
pub fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn read_all(from: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = vec![];
        if let Some(mut from) = from {
            // What came before it broke off is what there is.
            let _ = from.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for a process that leads its group; `None` where the group had to be killed.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            // It may have ended just now.
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests;
