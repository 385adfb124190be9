//! `run` and `watch`: jobs from their beginning, or from where they are, to their end.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::args::{Care, RunArgs, WatchArgs};
use super::session::Session;
use super::{Console, Exit, Result, check_arguments, load, machine, says_nothing, usage};
use crate::cli::signals;
use crate::storage::is_bucket;
use crate::tpu_vm::{self, Fetch, Lookup, SetUp, Start, Vm, WatchOptions, Watched};

pub fn watch(args: &WatchArgs, console: &Console) -> Result<Exit> {
    let session = Session::new(&args.target, Some(&args.reach), console)?;
    if session.dry_run {
        return dry_watch(&session, args);
    }
    watch_over(&session, &args.care, args.delete_when_done)
}

/// What a watch would do if nothing went wrong.
fn dry_watch(session: &Session<'_>, args: &WatchArgs) -> Result<Exit> {
    let job = session.record.read()?;
    let unknown = || tpu_vm::Error::Unknown {
        name: session.vm.name.clone(),
        zone: session.vm.zone.clone(),
        what: "created",
    };
    let is_queued = job.machine.ok_or_else(unknown)?.is_queued;
    dry_end(session, &args.care, job.start.as_ref(), args.delete_when_done.then_some(is_queued))
}

/// Not to be pasted with what comes before: the run has not ended then. `delete` says whether what is deleted was queued.
fn dry_end(session: &Session<'_>, care: &Care, start: Option<&Start>, delete: Option<bool>) -> Result<Exit> {
    session.console.print(
        "# looks again and again, and does what is above anew where the TPU VM is gone; when the run has ended:\n",
    )?;
    let folder = folder(session, care);
    session.verbs_after("# ", |verbs| {
        match start.map(Start::output).filter(|output| !is_bucket(output.as_ref())) {
            Some(output) => {
                let run = Some(output).filter(|output| !output.is_empty());
                verbs.fetch(&Fetch { folder: &folder, run, checkpoints: false })?;
            }
            None => verbs.fetch_log(&folder)?,
        }
        delete.map_or(Ok(()), |is_queued| verbs.delete(is_queued))
    })?;
    Ok(Exit::Done)
}

/// Where what comes of the run is copied to.
fn folder(session: &Session<'_>, care: &Care) -> PathBuf {
    care.folder.clone().unwrap_or_else(|| session.vm.name.clone().into())
}

fn watch_over(session: &Session<'_>, care: &Care, delete_when_done: bool) -> Result<Exit> {
    let options = WatchOptions {
        poll: Duration::from_secs_f64(care.poll),
        patience: Duration::from_secs_f64(care.patience),
        longest_wait: Duration::from_secs_f64(care.longest_wait * 3600.0),
        max_restarts: care.max_restarts,
        max_hours: care.max_hours,
        stop_wait: 300,
        folder: folder(session, care),
        delete_when_done,
    };
    let Vm { name, zone, .. } = &session.vm;
    signals::say_when_ended(format!(
        "{name}: if it is there, it goes on, and costs money: the same command watches it again, and `bert-xla tpu-vm delete \
         {name} --zone {zone}` ends it"
    ))?;
    let say = |line: &str| _ = session.console.print(&format!("{line}\n"));
    let watched = tpu_vm::watch(&session.vm, &session.record, &options, &say)?;
    Ok(match watched {
        Watched::Done => Exit::Done,
        Watched::Failed => Exit::Status(1),
        Watched::OutOfHours => Exit::Stopped,
    })
}

pub fn run(args: &RunArgs, console: &Console) -> Result<Exit> {
    let mut session = Session::new(&args.target, Some(&args.reach), console)?;
    let machine = machine(&args.kind, &args.create_flags)?;
    let (set_up, start) = (load(&args.load)?, Start { arguments: arguments(args)? });
    check_arguments(&set_up, &start)?;
    check_table(&set_up, &start)?;
    if session.dry_run {
        session.verbs(|verbs| {
            verbs.create(&machine)?;
            verbs.set_up(&set_up)?;
            verbs.start(&start)
        })?;
        return dry_end(&session, &args.care, Some(&start), Some(machine.is_queued));
    }
    let alone = session.alone()?;
    session.pin_project()?;
    match session.record.read()?.machine {
        None => refuse_if_there(&session)?,
        Some(before) if before != machine => {
            let Vm { name, zone, .. } = &session.vm;
            return Err(usage(&format!(
                "{name} in {zone} was begun with {}: give the same options, or delete it first",
                before.describe()
            )));
        }
        Some(_) => {}
    }
    session.keep(|job| {
        job.machine = Some(machine);
        job.begin(set_up, start);
    })?;
    drop(alone);
    watch_over(&session, &args.care, true)
}

/// It would be deleted in the end.
fn refuse_if_there(session: &Session<'_>) -> Result<()> {
    let Vm { name, zone, .. } = &session.vm;
    let (node, queued) = session.verbs(|verbs| Ok((verbs.node()?, verbs.queued()?)))?;
    match (node, queued) {
        (Lookup::Absent, Lookup::Absent) => Ok(()),
        (Lookup::Unknown(error), _) | (_, Lookup::Unknown(error)) => Err(says_nothing(&error).into()),
        _ => Err(usage(&format!(
            "there is a {name} in {zone} that was not made from this machine: `run` would delete it in the end; choose \
             another name, or delete it"
        ))),
    }
}

/// What `train` gets.
fn arguments(args: &RunArgs) -> Result<Vec<String>> {
    let start = Start { arguments: args.arguments.clone() };
    if start.arguments.iter().any(|argument| argument == "--dry-run") {
        return Err(usage("--dry-run after the -- would train nothing: before it, it prints the commands"));
    }
    match &args.bucket {
        None => Ok(start.arguments),
        Some(bucket) if !bucket.starts_with("gs://") => {
            Err(usage(&format!("--bucket {bucket}: expected gs://BUCKET/PATH")))
        }
        Some(_) if !start.output().is_empty() => {
            Err(usage("--bucket and train's --output say where the run is"))
        }
        Some(bucket) => {
            let output = format!("{}/run", bucket.trim_end_matches('/'));
            Ok([start.arguments, vec!["--output".to_owned(), output]].concat())
        }
    }
}

/// What the workers would be told to train on, and nothing brings.
fn check_table(set_up: &SetUp, start: &Start) -> Result<()> {
    let Some(table) = start.value("--train").filter(|table| !is_bucket(table.as_ref())) else {
        return Ok(());
    };
    let mut parts = Path::new(table).components().filter(|part| *part != Component::CurDir);
    let brought = set_up.copied().into_iter().chain(set_up.urls().into_iter().map(Path::new));
    let mut names = brought.filter_map(Path::file_name);
    match parts.next() {
        Some(Component::Normal(first)) if !names.any(|name| name == first) => Err(usage(&format!(
            "--train {table}: no --data brings it to the workers: --data {table}, or gs://BUCKET/..., does"
        ))),
        _ => Ok(()),
    }
}
