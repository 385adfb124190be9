//! `bert-xla tpu-vm`: launches on Cloud TPU VMs.

mod args;
mod session;
mod whole;

use std::ffi::OsString;
use std::io::{self, BufRead, ErrorKind, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

pub use args::TpuVmArgs;
use args::{
    CreateArgs, DeleteArgs, FetchArgs, Kind, ListArgs, Load, LogsArgs, SetupArgs, StatusArgs, StopArgs,
    TrainArgs, Verb,
};
use session::Session;

use super::{Cli, Console, Error, Exit, Result};
use crate::storage::is_bucket;
use crate::tpu_vm::{self, Fetch, Gcloud, Job, Lookup, Machine, Node, SetUp, Start, Vm};

/// Does what the verb says.
pub fn run(args: &TpuVmArgs, console: &Console) -> Result<Exit> {
    let done = match &args.verb {
        Verb::Run(args) => whole::run(args, console),
        Verb::Create(args) => create(args, console),
        Verb::Setup(args) => set_up(args, console),
        Verb::Train(args) => train(args, console),
        Verb::Watch(args) => whole::watch(args, console),
        Verb::Status(args) => status(args, console),
        Verb::Logs(args) => logs(args, console),
        Verb::Stop(args) => stop(args, console),
        Verb::Fetch(args) => fetch(args, console),
        Verb::Delete(args) => delete(args, console),
        Verb::List(args) => list(args, console),
    };
    match done {
        // Which is told apart for a watch.
        Err(Error::TpuVm(tpu_vm::Error::Failed { status: tpu_vm::NO_RUN })) => Ok(Exit::Status(1)),
        Err(Error::TpuVm(tpu_vm::Error::Failed { status })) => Ok(Exit::Status(status)),
        other => other,
    }
}

fn create(args: &CreateArgs, console: &Console) -> Result<Exit> {
    let mut session = Session::new(&args.target, None, console)?;
    let machine = machine(&args.kind, &args.flags)?;
    session.pin_project()?;
    let _alone = session.alone()?;
    session.verbs(|verbs| verbs.create(&machine))?;
    // What was known of one of this name that is gone says nothing of the new one.
    session
        .keep(|job| *job = Job { project: job.project.take(), machine: Some(machine), ..Job::default() })?;
    Ok(Exit::Done)
}

fn machine(kind: &Kind, flags: &[String]) -> Result<Machine> {
    let version = match &kind.version {
        Some(version) => version.clone(),
        None => usual_version(&kind.accelerator_type)?.to_owned(),
    };
    Ok(Machine {
        accelerator_type: kind.accelerator_type.clone(),
        runtime_version: version,
        is_spot: kind.spot,
        is_queued: kind.queued,
        valid_until: kind.valid_until.clone(),
        flags: flags.to_vec(),
    })
}

/// cloud.google.com/tpu/docs/runtimes
fn usual_version(accelerator_type: &str) -> Result<&'static str> {
    let generation = accelerator_type.split_once('-').map_or("", |(generation, _)| generation);
    match generation {
        "v2" | "v3" | "v4" => Ok("tpu-ubuntu2204-base"),
        "v5litepod" => Ok("v2-alpha-tpuv5-lite"),
        "v5p" => Ok("v2-alpha-tpuv5"),
        "v6e" => Ok("v2-alpha-tpuv6e"),
        _ => Err(usage(&format!(
            "--type {accelerator_type}: expected one such as v2-8, v3-8, v4-8, v5litepod-8, v5p-8 or v6e-8: its runtime \
             version is not known here: give --version"
        ))),
    }
}

fn set_up(args: &SetupArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    let _alone = session.alone()?;
    let set_up = load(&args.load)?;
    session.verbs(|verbs| verbs.set_up(&set_up))?;
    session.keep(|job| {
        // What came earlier is there still.
        let earlier = job.set_up.take().map(|earlier| earlier.data).unwrap_or_default();
        let mut data = earlier.into_iter().filter(|item| !set_up.data.contains(item)).collect::<Vec<_>>();
        data.extend(set_up.data.iter().cloned());
        job.set_up = Some(SetUp { data, ..set_up.clone() });
        job.begin_anew();
    })?;
    Ok(Exit::Done)
}

/// What a set-up copies: paths that hold wherever a watch is started.
fn load(load: &Load) -> Result<SetUp> {
    let absolute = |flag: &str, path: &Path, what: &str| {
        // Without a slash at its end.
        std::path::absolute(path)
            .ok()
            .map(|path| path.components().collect::<PathBuf>())
            .filter(|path| path.exists())
            .ok_or_else(|| usage(&format!("{flag} {}: no such {what}", path.display())))
    };
    let file = |flag: &str, path: &Path| match path.is_dir() {
        true => Err(usage(&format!("{flag} {}: expected a file", path.display()))),
        false => absolute(flag, path, "file"),
    };
    let binary = match &load.binary {
        Some(path) => file("--binary", path)?,
        None => std::env::current_exe().map_err(|error| usage(&format!("--binary is missing: {error}")))?,
    };
    let data = load.data.iter().map(|item| match is_bucket(item.as_ref()) {
        true if item.starts_with("gs://") => Ok(item.clone()),
        true => Err(usage(&format!("--data {item}: expected gs://BUCKET/PATH"))),
        false => {
            let path = absolute("--data", item.as_ref(), "file or folder")?;
            // What ends in .. has no name to be copied to.
            let path = if path.file_name().is_some() { Ok(path) } else { path.canonicalize() };
            let path = path.ok().filter(|path| path.file_name().is_some());
            Ok(path.ok_or_else(|| usage(&format!("--data {item}: it has no name")))?.display().to_string())
        }
    });
    let plugin = load.plugin.as_ref().map(|path| file("--plugin", path)).transpose()?;
    Ok(SetUp::new(binary, plugin, data.collect::<Result<_>>()?)?)
}

fn train(args: &TrainArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    let _alone = session.alone()?;
    let start = Start { arguments: args.arguments.clone() };
    if let Some(set_up) = session.record.read()?.set_up {
        check_arguments(&set_up, &start)?;
    }
    session.verbs(|verbs| verbs.start(&start))?;
    session.keep(|job| {
        job.start = Some(start);
        job.begin_anew();
    })?;
    Ok(Exit::Done)
}

/// Told before a VM is made, or asked, for it. Another program may know other arguments.
fn check_arguments(set_up: &SetUp, start: &Start) -> Result<()> {
    if std::env::current_exe().is_ok_and(|own| own == set_up.binary) {
        let line = ["bert-xla", "train"].into_iter().chain(start.arguments.iter().map(String::as_str));
        let line = line.map(OsString::from).collect::<Vec<_>>();
        Cli::parse_line(&line)
            .map_err(|error| usage(&format!("after the --: {}", first_paragraph(&error))))?;
    }
    Ok(())
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

fn status(args: &StatusArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    session.verbs(|verbs| {
        if session.dry_run {
            return verbs.report();
        }
        let queued = match verbs.node()? {
            Lookup::Found(node) => {
                let line = format!("{}: {}{}\n", session.vm.name, node.describe(), billed(&node, args.price));
                let _ = console.print(&line);
                return if node.is_ready() { verbs.report() } else { Ok(()) };
            }
            Lookup::Unknown(error) => return Err(says_nothing(&error)),
            Lookup::Absent => verbs.queued()?,
        };
        match queued {
            Lookup::Found(queued) => {
                let _ = console.print(&format!("{}: {}\n", session.vm.name, queued.describe()));
                Ok(())
            }
            Lookup::Absent => {
                Err(tpu_vm::Error::Told(format!("there is no {} in {}", session.vm.name, session.vm.zone)))
            }
            Lookup::Unknown(error) => Err(says_nothing(&error)),
        }
    })?;
    Ok(Exit::Done)
}

fn says_nothing(error: &str) -> tpu_vm::Error {
    tpu_vm::Error::Told(format!("the API says nothing: {error}"))
}

/// Since when a node may have been billed, and how much that is.
fn billed(node: &Node, price: Option<f64>) -> String {
    let Ok(made) = DateTime::parse_from_rfc3339(&node.create_time) else { return String::new() };
    let hours = (Utc::now() - made.to_utc()).as_seconds_f64().max(0.0) / 3600.0;
    let since = made.to_utc().format("%Y-%m-%d %H:%M UTC");
    let cost = price.map(|price| format!(", at most US$ {:.2} at {price} per hour", hours * price));
    format!("; made {since}, {hours:.1} h ago{}", cost.unwrap_or_default())
}

fn logs(args: &LogsArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    session.verbs(|verbs| match verbs.logs(args.worker, !args.no_follow, &mut io::stdout()) {
        // A reader that has had enough.
        Err(tpu_vm::Error::Io(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    })?;
    Ok(Exit::Done)
}

fn stop(args: &StopArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    // Another one may follow while it waits.
    drop(session.alone()?);
    session.verbs(|verbs| if args.now { verbs.stop_now() } else { verbs.stop(args.wait) })?;
    Ok(Exit::Done)
}

fn fetch(args: &FetchArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    let run = args.run.as_deref();
    if let Some(run) = run.filter(|run| is_bucket(run.as_ref())) {
        return Err(usage(&format!(
            "--run {run}: it is in a bucket: gcloud storage cp -r {run} FOLDER copies it, and --run {run} of evaluate and \
             predict reads it there"
        )));
    }
    let folder = args.folder.clone().unwrap_or_else(|| session.vm.name.clone().into());
    let fetch = Fetch { folder: &folder, run, checkpoints: args.checkpoints };
    session.verbs(|verbs| verbs.fetch(&fetch))?;
    if !session.dry_run {
        session.note(&format!("its run and log are in {}", folder.display()));
    }
    Ok(Exit::Done)
}

fn delete(args: &DeleteArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, None, console)?;
    let _alone = session.alone()?;
    let Vm { name, zone, .. } = &session.vm;
    let known = session.record.read()?.machine.map(|machine| machine.is_queued);
    let is_queued = match session.dry_run {
        true => known.unwrap_or(false),
        false => is_queued(&session, known)?,
    };
    if !args.quiet && !session.dry_run && !agreed(&format!("Delete {name} in {zone} and everything on it?"))?
    {
        return Err(tpu_vm::Error::Told(format!("{name} was not deleted, and still costs money")).into());
    }
    session.verbs(|verbs| {
        verbs.delete(is_queued)?;
        if session.dry_run { Ok(()) } else { session.record.remove() }
    })?;
    Ok(Exit::Done)
}

/// Whether what is to be deleted was queued. What is known of one that is gone already would stand in the way of the next of
/// its name.
fn is_queued(session: &Session<'_>, known: Option<bool>) -> Result<bool> {
    let (node, queued) = session.verbs(|verbs| Ok((verbs.node()?, verbs.queued()?)))?;
    match (node, queued) {
        (Lookup::Absent, Lookup::Absent) => {
            session.record.remove()?;
            let Vm { name, zone, .. } = &session.vm;
            Err(tpu_vm::Error::Told(format!("there is no {name} in {zone}")).into())
        }
        (_, Lookup::Found(_)) => Ok(true),
        (_, Lookup::Absent) => Ok(false),
        (_, Lookup::Unknown(error)) => known.ok_or_else(|| says_nothing(&error).into()),
    }
}

fn agreed(question: &str) -> Result<bool> {
    // Where nobody reads it, nobody answers.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(&*answer.trim().to_ascii_lowercase(), "y" | "yes"))
}

fn list(args: &ListArgs, console: &Console) -> Result<Exit> {
    let print = |line: &str| _ = console.print(&format!("{line}\n"));
    let gcloud = Gcloud { dry_run: args.dry_run.then_some(&print), is_quiet: false, lock: None };
    for group in ["tpu-vm", "queued-resources"] {
        gcloud.run(&Vm::list(args.project.as_deref(), group)).map_err(Error::from)?;
    }
    Ok(Exit::Done)
}

fn usage(message: &str) -> Error {
    Error::Usage(message.to_owned())
}
