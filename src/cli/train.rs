//! `bert-xla train`: from a labelled table and a checkpoint to a run folder.

use std::ffi::OsString;
use std::sync::Arc;

use super::described::{describe, describe_weights};
use super::prepare::prepare;
use super::progress::Progress;
use super::train_args::TrainArgs;
use super::{Cli, Console, Error, Exit, Result, arguments, chief, signals};
use crate::exec::Replicas;
use crate::report::Classification;
use crate::run::last_arguments;
use crate::run::layout::TENSORBOARD;
use crate::storage::{Folder, check_is_there};
use crate::train::{self, Ending, Member, Members, Outcome, Session, Shared, Started, Stop, notices};

pub fn run(args: &TrainArgs, console: &Arc<Console>) -> Result<Exit> {
    match args.save.resume {
        true => train(&resumed(args)?, console),
        false => train(args, console),
    }
}

/// The arguments of the run that is to go on, with those that are given now in their place.
fn resumed(args: &TrainArgs) -> Result<TrainArgs> {
    let Some(before) = last_arguments(&args.output)? else {
        // On a slice, another host may hold the run: all of them look, once they have met.
        let is_given = !args.train.as_os_str().is_empty();
        return match is_given {
            true => Ok(args.clone()),
            false => Err(train::Error::NothingToResume { path: args.output.clone() }.into()),
        };
    };
    let words = arguments::again(before, &args.written);
    let line = ["bert-xla", "train"].map(str::to_owned).into_iter().chain(words);
    let path = args.output.display();
    let again = Cli::train_again(&line.map(OsString::from).collect::<Vec<_>>()).map_err(|error| {
        Error::Usage(format!("{path}: with the arguments that its run was started with: {error}"))
    })?;
    if args.train.as_os_str().is_empty() && check_is_there(&again.train).is_err() {
        let table = again.train.display();
        return Err(Error::Usage(format!(
            "{path}: its table {table} can't be read any more; --train says where it is now"
        )));
    }
    Ok(again)
}

fn train(args: &TrainArgs, console: &Arc<Console>) -> Result<Exit> {
    if let Some(Some(folder)) = &args.tensorboard
        && folder.is_file()
    {
        let folder = folder.display();
        return Err(Error::Usage(format!(
            "--tensorboard {folder}: it is a file, where a folder is expected"
        )));
    }
    let mut members = prepare(args)?;
    for member in &mut members {
        let training = &mut member.job.recipe.training;
        // Of gradients that are clipped, it is known anyway.
        training.gradient_norm = args.tensorboard.is_some() || training.clip_norm.is_some();
    }
    let first = &members[0].job;
    let description = describe(args, &members);
    let weights = describe_weights(args, first);
    if args.dry_run {
        console.note(&format!("{description}\n{weights}"));
        if args.recipe.buckets.is_some() {
            console.note(&first.describe_buckets()?);
        }
        console.print(&format!("{}\n", first.source.model.summary()))?;
        return Ok(Exit::Done);
    }
    let replicas = Arc::new(args.device.connect(console)?);
    chief::mark(&replicas, console);
    console.note(&description);
    let quiet = args.json || !replicas.is_chief();
    let mut progress = Progress::new(console, args.json, quiet);
    let source = first.source.clone();
    let members = Members::new(members, &args.output);
    check_tensorboard(args, &replicas)?;
    let shared = members.share(replicas, args.save.overwrite).with_token_cache(args.device.token_cache());
    let weights = Some(weights);
    let mut run = Training { args, shared: &shared, console, stop: None, weights, trained: false };
    for (i, member) in members.iter().enumerate() {
        progress.member = members.are_many().then(|| member.name.clone());
        if members.are_many() {
            console.note(&format!("Member {} of {}: {}", i + 1, members.iter().len(), member.name));
        }
        if run.member(&members, member, &mut progress)? == Exit::Stopped {
            return Ok(Exit::Stopped);
        }
    }
    if run.trained || members.lack_outcome(&shared)? {
        let outcome = members.conclude(&shared, &args.provenance(&source))?;
        tell(&outcome, console, args.json)?;
    } else {
        members.tidy(&shared)?;
    }
    if run.trained {
        console.note(&format!("Saved in {}", args.output.display()));
    }
    Ok(Exit::Done)
}

/// Makes the folder that was asked for, before anything long; the first process writes there.
fn check_tensorboard(args: &TrainArgs, replicas: &Replicas) -> Result<()> {
    let Some(Some(folder)) = &args.tensorboard else { return Ok(()) };
    let made = if replicas.is_chief() { Folder::new(folder).make() } else { Ok(()) };
    replicas.meet("preparing the output", made.map_err(Error::from))
}

/// A training under way, of one run or of several.
struct Training<'a> {
    args: &'a TrainArgs,
    shared: &'a Shared,
    console: &'a Console,
    /// Once there is something to save.
    stop: Option<Stop>,
    /// What the weights start with, until it is told.
    weights: Option<String>,
    /// Whether anything was done.
    trained: bool,
}

impl Training<'_> {
    fn member(&mut self, members: &Members, member: &Member, progress: &mut Progress<'_>) -> Result<Exit> {
        let (args, console, replicas) = (self.args, self.console, self.shared.replicas());
        let output = members.folder(member);
        let provenance = args.provenance(&member.job.source);
        let save = args.save.options(args.evaluation.early_stopping, provenance);
        let mut session = match Session::start(member.job.clone(), self.shared, &output, save, progress)? {
            Started::Ready(session) => session,
            Started::Finished { epochs, elsewhere } => {
                self.finished(members, member, epochs, elsewhere)?;
                return Ok(Exit::Done);
            }
        };
        if !std::mem::replace(&mut self.trained, true) {
            members.reopen(replicas);
        }
        if session.is_new()
            && let Some(weights) = self.weights.take()
        {
            console.note(&weights);
        }
        if self.stop.is_none() {
            // Before this, there is nothing to save.
            let stop = self.stop.insert(Stop::default());
            signals::install(stop)?;
            if let Some(host) = notices::host(replicas.backend()) {
                notices::watch(stop, &host);
            }
        }
        if let Some(folder) = &args.tensorboard
            && replicas.is_chief()
        {
            let folder = match folder {
                Some(folder) => folder.join(&member.name),
                None => output.join(TENSORBOARD),
            };
            progress.write_events(&Folder::new(folder), session.step());
        }
        match session.run(&self.stop.clone().unwrap_or_default(), progress)? {
            Ending::Finished => {
                console.note(&session.outcome());
                Ok(Exit::Done)
            }
            Ending::Stopped { reason, step } => {
                console.note(&format!(
                    "Stopped ({reason}) after step {step}, which is saved in {}; the same command goes on from there",
                    output.display()
                ));
                Ok(Exit::Stopped)
            }
        }
    }

    /// Says that a run needs nothing, after so many epochs; `elsewhere` has it, another process of the slice, if the first one
    /// hasn't.
    ///
    /// # Errors
    /// A run that can't be counted among the others.
    fn finished(
        &self,
        members: &Members,
        member: &Member,
        epochs: u32,
        elsewhere: Option<usize>,
    ) -> Result<()> {
        let (path, asked) = (members.folder(member), member.job.recipe.epochs);
        if members.are_many() && epochs > asked {
            return Err(Error::Usage(format!(
                "--epochs {asked}: {} was trained for {epochs}, and members would differ; give --epochs {epochs}, or \
                 --overwrite to start anew",
                path.display()
            )));
        }
        if let Some(process) = elsewhere
            && members.lack_outcome(self.shared)?
        {
            return Err(train::Error::Elsewhere { path, process }.into());
        }
        let of = elsewhere.map_or_else(String::new, |process| format!(" of process {process} of the slice"));
        let how = match epochs < asked {
            true => format!("which ended early, after epoch {epochs}; a larger --early-stopping goes on"),
            false => format!("with all of its epochs ({epochs}); --epochs N goes on to more"),
        };
        let path = path.display();
        self.console
            .note(&format!("Nothing to do: {path}{of} holds this run, {how}, --overwrite starts anew"));
        Ok(())
    }
}

/// Says what the runs have come to; as JSON, on a line of its own.
fn tell(outcome: &Outcome, console: &Console, json: bool) -> Result<()> {
    let Outcome { summary, out_of_fold, test } = outcome;
    if let Some(summary) = summary {
        for (metric, mean) in &summary.mean {
            let deviation = summary.standard_deviation.get(metric);
            let deviation = deviation.map_or_else(String::new, |value| format!(" +- {value:.4}"));
            console.note(&format!("{metric}: {mean:.4}{deviation} over {} members", summary.members.len()));
        }
    }
    for (name, report) in [("Out of fold", out_of_fold), ("Test", test)] {
        if let Some(Classification { rows, loss, accuracy, macro_average, .. }) = report {
            let f1 = macro_average.f1;
            console
                .note(&format!("{name}: loss {loss:.4}, accuracy {accuracy:.4}, f1 {f1:.4} of {rows} rows"));
        }
    }
    if json && (summary.is_some() || test.is_some()) {
        let json = serde_json::json!({ "summary": summary, "out_of_fold": out_of_fold, "test": test });
        console.print(&format!("{json}\n"))?;
    }
    Ok(())
}
