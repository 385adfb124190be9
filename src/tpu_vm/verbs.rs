//! What is done to a TPU VM, one verb at a time.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::answers::{Node, Queued};
use super::decide::Lookup;
use super::gcloud::{CALL_NAME, Call, Failure, Gcloud, Kind, Reply, Route, Vm, code};
use super::job::{Machine, SetUp, Start, new_id};
use super::worker::{self, Observed};
use super::{Error, Result};

/// The verbs, on one TPU VM.
pub struct Verbs<'a> {
    pub vm: &'a Vm,
    pub gcloud: &'a Gcloud<'a>,
    /// Where remarks go.
    pub note: &'a dyn Fn(&str),
    /// For questions to the API and the workers, which gcloud asks again and again: half a minute where a server fails, a
    /// minute where a connection breaks.
    pub patience: Duration,
}

/// What of a run is fetched.
#[derive(Clone, Debug)]
pub struct Fetch<'a> {
    /// Where to.
    pub folder: &'a Path,
    /// What train's `--output` was; `None` for `run`, unless the run is in a bucket.
    pub run: Option<&'a str>,
    pub checkpoints: bool,
}

const ALL: &str = "all";

impl Verbs<'_> {
    /// Makes the VM, or asks for it.
    pub fn create(&self, machine: &Machine) -> Result<()> {
        let spot = machine.is_spot.then_some("--spot");
        let (accelerator, version) = (&machine.accelerator_type, &machine.runtime_version);
        let call = if machine.is_queued {
            let until = machine.valid_until.as_ref().map(|until| format!("--valid-until-duration={until}"));
            self.vm
                .queued("create")
                .with([format!("--node-id={}", self.vm.name), format!("--accelerator-type={accelerator}")])
                .with([format!("--runtime-version={version}")])
                .with(spot)
                .with(until)
        } else {
            let node = self.vm.node("create");
            node.with([format!("--accelerator-type={accelerator}"), format!("--version={version}")])
                .with(spot)
        };
        self.gcloud.run(&call.with(machine.flags.iter().cloned()))
    }

    /// Brings the program, the plugin and the data to all workers.
    pub fn set_up(&self, set_up: &SetUp) -> Result<()> {
        self.say_what_fails_without_an_address(set_up)?;
        let paths = set_up.copied();
        let names =
            paths.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        self.on(ALL, &worker::prepare(&names.collect::<Vec<_>>(), set_up.bytes()?))?;
        // Under another name: a running program can't be overwritten, and half a copy must not stay.
        self.copy_to_all(&[&set_up.binary], "bert-xla/bert-xla.new")?;
        self.on(ALL, worker::CHECK)?;
        if !paths.is_empty() {
            self.copy_to_all(&paths, "bert-xla/")?;
        }
        let wheel =
            set_up.plugin.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
        self.on(ALL, &worker::complete(wheel.as_deref(), &set_up.urls(), &set_up.id))
    }

    /// Starts the run on all workers; it goes on when this has ended.
    pub fn start(&self, start: &Start) -> Result<()> {
        self.on(ALL, &worker::start(&start.arguments, start.output(), &start.id(), &self.call_name()))
    }

    /// Says how the run does on each worker.
    pub fn report(&self) -> Result<()> {
        self.on(ALL, &worker::report())
    }

    /// Prints a worker's log, or the chief's, to `print`; until the run ends, and then as it did, if it is to `follow`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the run's status.
    pub fn logs(&self, worker: Option<u32>, follow: bool, print: &mut dyn Write) -> Result<()> {
        /// Connections that broke, in a row, with nothing new.
        const MOST_BREAKS: u32 = 5;
        let worker = self.worker_or_chief(worker)?;
        let mut printed = 0;
        let mut breaks = 0;
        loop {
            let call = self.vm.ssh(&worker, &worker::log(printed, follow, &self.call_name()));
            if self.gcloud.dry_run.is_some() {
                return self.gcloud.run(&call);
            }
            let mut child = self.gcloud.start(&call)?;
            let new = child.stdout.take().map_or(Ok(0), |mut log| copy(&mut log, print));
            let status = code(child.wait().map_err(Error::Io)?);
            let new = new.map_err(Error::Io)?;
            printed += new;
            breaks = if new > 0 { 0 } else { breaks + 1 };
            match status {
                0 => return Ok(()),
                worker::REPEATED if breaks < MOST_BREAKS => {
                    (self.note)("The connection broke; the log goes on where it ended");
                }
                status => return Err(Error::Failed { status }),
            }
        }
    }

    /// Asks the run to stop on all workers, and waits for so many seconds until it has saved and ended.
    pub fn stop(&self, wait: u32) -> Result<()> {
        self.on(ALL, &worker::stop(wait))
    }

    /// Ends the run on all workers within seconds.
    pub fn stop_now(&self) -> Result<()> {
        self.on(ALL, &worker::stop_now())
    }

    /// Copies a run and its log here.
    pub fn fetch(&self, fetch: &Fetch<'_>) -> Result<()> {
        let run = as_argument(fetch.run.unwrap_or("run").trim_end_matches('/'));
        // Where it is the folder itself, or the one around it, it has no name of its own.
        let name = run.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | "..")).unwrap_or("run");
        let staged = format!("{run}/.fetch/{name}");
        let worker = self.worker_or_chief(None)?;
        self.on(&worker, &worker::stage(&run, &staged, fetch.checkpoints, fetch.run.is_none()))?;
        let folder = as_local_path(fetch.folder);
        let copy = format!("{folder}/{name}");
        // An earlier copy's weights may be a link, through which a checkpoint's would be overwritten.
        self.gcloud.run(&Call::new(&["mkdir", "-p", &copy]))?;
        self.gcloud.run(&Call::new(&["sh", "-c", UNLINK_WEIGHTS, "sh", &copy]))?;
        let path = if staged.starts_with('/') { staged } else { format!("bert-xla/{staged}") };
        let from = [self.vm.there(&path), self.vm.there("bert-xla/run.log")];
        self.gcloud.run(&self.vm.scp(&from, &folder, &worker))?;
        self.on(&worker, &worker::unstage(&run))?;
        match fetch.checkpoints {
            true => self.gcloud.run(&Call::new(&["sh", "-c", LINK_WEIGHTS, "sh", &copy])),
            false => Ok(()),
        }
    }

    /// Copies the log alone here.
    pub fn fetch_log(&self, folder: &Path) -> Result<()> {
        let worker = self.worker_or_chief(None)?;
        let folder = as_local_path(folder);
        self.gcloud.run(&Call::new(&["mkdir", "-p", &folder]))?;
        self.gcloud.run(&self.vm.scp(&[self.vm.there("bert-xla/run.log")], &folder, &worker))
    }

    /// Deletes the VM, with the request that it came from.
    pub fn delete(&self, is_queued: bool) -> Result<()> {
        self.gcloud.run(&match is_queued {
            true => self.vm.queued("delete").with(["--force", "--quiet"]),
            false => self.vm.node("delete").with(["--quiet"]),
        })
    }

    /// The project that gcloud is set to, if it is to any.
    pub fn project(&self) -> Result<Option<String>> {
        let asked = Call::new(&["gcloud", "config", "get-value", "project"]);
        Ok(match self.gcloud.ask(&asked, self.patience)? {
            Reply::Done(project) => Some(project.trim().to_owned()).filter(|project| !project.is_empty()),
            Reply::Failed(_) => None,
        })
    }

    /// Asks the API for the node.
    pub fn node(&self) -> Result<Lookup<Node>> {
        self.describe(&self.vm.node("describe"), Node::parse)
    }

    /// Asks the API for the queued resource.
    pub fn queued(&self) -> Result<Lookup<Queued>> {
        self.describe(&self.vm.queued("describe"), Queued::parse)
    }

    fn describe<T>(&self, call: &Call, parse: impl Fn(&str) -> Option<T>) -> Result<Lookup<T>> {
        Ok(match self.gcloud.ask(&call.clone().with(["--format=json"]), self.patience)? {
            Reply::Done(json) => match parse(&json) {
                Some(found) => Lookup::Found(found),
                None => Lookup::Unknown("gcloud's answer can't be read".to_owned()),
            },
            Reply::Failed(failure) if failure.kind == Kind::NotFound => Lookup::Absent,
            Reply::Failed(failure) => Lookup::Unknown(failure.message),
        })
    }

    /// What is on each worker of a node that is ready, in their order.
    pub fn observe(&self, node: &Node) -> Result<Lookup<Vec<Observed>>> {
        // gcloud 528 can't write what each worker says to a file of its own (`--output-directory`), as its help has it: all
        // comes in one stream, in any order.
        let said = match self.gcloud.ask(&self.vm.ssh(ALL, &worker::observe()), self.patience)? {
            Reply::Done(said) => said,
            Reply::Failed(failure) => return Ok(Lookup::Unknown(failure.message)),
        };
        let Some(mut workers) = Observed::parse_all(&said) else {
            return Ok(Lookup::Unknown("what they say can't be read".to_owned()));
        };
        let (found, expected) = (workers.len(), node.addresses.len());
        if found != expected {
            return Ok(Lookup::Unknown(format!("{found} of {expected} said something")));
        }
        workers.sort_by_key(|worker| node.addresses.iter().position(|address| *address == worker.address));
        Ok(Lookup::Found(workers))
    }

    /// The worker that is asked for, or else the one that writes the run, which need not be the first; that one before
    /// any is known to.
    fn worker_or_chief(&self, worker: Option<u32>) -> Result<String> {
        if let Some(worker) = worker {
            return Ok(worker.to_string());
        }
        let unknown = |error| {
            Error::Refused(Failure::told(format!("the worker that writes the run is not known: {error}")))
        };
        let node = match self.gcloud.dry_run {
            Some(_) => Lookup::Absent,
            None => self.node()?,
        };
        let chief = match node {
            Lookup::Unknown(error) => return Err(unknown(error)),
            Lookup::Found(node) if node.addresses.len() > 1 => match self.observe(&node)? {
                Lookup::Unknown(error) => return Err(unknown(error)),
                Lookup::Found(workers) => workers.iter().position(|worker| worker.is_chief),
                Lookup::Absent => None,
            },
            _ => None,
        };
        Ok(chief.unwrap_or(0).to_string())
    }

    /// A name for one call, by which a worker knows a repetition of it; of a dry run, one that the shell makes.
    fn call_name(&self) -> String {
        if self.gcloud.dry_run.is_some() { CALL_NAME.to_owned() } else { new_id() }
    }

    fn on(&self, worker: &str, line: &str) -> Result<()> {
        self.gcloud.run(&self.vm.ssh(worker, line))
    }

    /// Copies what is at absolute paths, which are taken neither for options nor for paths on another host.
    fn copy_to_all(&self, from: &[&Path], to: &str) -> Result<()> {
        let from = from.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        self.gcloud.run(&self.vm.scp(&from, &self.vm.there(to), ALL))
    }

    fn say_what_fails_without_an_address(&self, set_up: &SetUp) -> Result<()> {
        if self.gcloud.dry_run.is_some() {
            return Ok(());
        }
        let Lookup::Found(node) = self.node()? else { return Ok(()) };
        if node.has_public_address || node.addresses.is_empty() {
            return Ok(());
        }
        if self.vm.route == Route::Public {
            (self.note)(
                "It has no public address: ssh reaches it from within its network alone, or through --tunnel-through-iap",
            );
        }
        if set_up.plugin.is_none() {
            (self.note)(
                "It has no public address: without Cloud NAT its workers reach neither the package index, from which the \
                 TPU plugin comes, nor the Hub: --plugin FILE and --data FOLDER bring them from here",
            );
        }
        Ok(())
    }
}

/// A path that starts with a - is no option.
fn as_argument(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_owned() }
}

/// A folder here; to gcloud, one that has a colon would be on a host.
fn as_local_path(folder: &Path) -> String {
    if folder.is_absolute() { folder.display().to_string() } else { format!("./{}", folder.display()) }
}

/// Here, of a run and of the members of an ensemble.
const UNLINK_WEIGHTS: &str = "rm -f \"$1\"/model.safetensors \"$1\"/members/*/model.safetensors";

/// Here, after checkpoints came, too: the weights of the one that counts are the run's.
const LINK_WEIGHTS: &str = "for run in \"$1\" \"$1\"/members/*; do [ ! -f \"$run/run.json\" ] || (cd \"$run\" && \
    file=$(sed -n 's|.*\"checkpoint\": *\"\\([^\"]*\\)\".*|\\1|p' run.json)/model.safetensors; \
    [ ! -f \"$file\" ] || ln -f \"$file\" . 2>/dev/null || cp \"$file\" .) || exit; done";

/// Copies what comes, as it comes; a reader that closes its end early ends it.
fn copy(from: &mut impl Read, to: &mut dyn Write) -> io::Result<u64> {
    let mut buffer = [0; 1 << 13];
    let mut copied = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(copied);
        }
        to.write_all(&buffer[..read]).and_then(|()| to.flush())?;
        copied += read as u64;
    }
}
