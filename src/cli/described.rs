//! What is told of a training before it starts: its tables, what may be wrong with them, and its weights.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::train_args::TrainArgs;
use super::{guess_note, padding_note, plural};
use crate::data::{LabelMap, Labels};
use crate::model::BertConfig;
use crate::nn::Part;
use crate::report::one_line;
use crate::train::{Job, Member};
use crate::weights::key;

/// What the tables hold.
pub fn describe(args: &TrainArgs, members: &[Member]) -> String {
    let Job { source, parts, .. } = &members[0].job;
    let table = &source.table;
    let own = source.files.get(1).copied().unwrap_or(table.texts.len());
    let contradicting = match table.contradicting {
        0 => String::new(),
        others => format!(", {others} of them with another label"),
    };
    let mut text = format!(
        "{}: {own} texts ({} duplicates dropped{contradicting}, {} bad rows skipped): {} to train on, {} held out",
        args.train.display(),
        table.duplicates,
        table.skipped,
        parts.train.len(),
        own - parts.train.len()
    );
    let tables = [(&args.evaluation.dev, &parts.dev), (&args.evaluation.test, &parts.test)];
    let known = match tables.iter().any(|(path, _)| path.is_some()) {
        true => table.texts.iter().take(own).collect(),
        false => HashSet::new(),
    };
    for (path, rows) in tables {
        if let Some(path) = path {
            text.push_str(&format!("\n{}: {}", path.display(), plural(rows.len(), "text")));
            let known = rows.iter().filter(|row| known.contains(&table.texts[**row])).count();
            if known > 0 {
                text.push_str(&format!(", {known} of them also in {}", args.train.display()));
            }
        }
    }
    if let Some(Labels::Auto) = args.recipe.labels {
        text.push_str(&format!("\nLabels: {}", counts(&table.labels, &table.classes[..own])));
    }
    if members.len() > 1 {
        text.push_str(&format!("\n{} members are trained, one after another", members.len()));
    }
    notes(members).iter().for_each(|note| text.push_str(&format!("\n{note}")));
    let said = source.original.get("pad_token_id").and_then(Value::as_u64);
    let said = said.unwrap_or(BertConfig::default().pad_token_id.into());
    let guess = guess_note(table.guess.as_ref());
    let lines = [guess, padding_note(said, &source.tokenizer)];
    lines.into_iter().flatten().for_each(|line| text.push_str(&format!("\n{line}")));
    text
}

/// How many rows have each label.
fn counts(labels: &LabelMap, classes: &[u32]) -> String {
    const SHOWN: usize = 20;
    let mut of_class = BTreeMap::<u32, usize>::new();
    classes.iter().for_each(|class| *of_class.entry(*class).or_default() += 1);
    let all = labels.iter().collect::<Vec<_>>();
    let count = |class: &u32| of_class.get(class).copied().unwrap_or_default();
    let shown = all.iter().take(SHOWN).map(|(label, class)| format!("{} {}", one_line(label), count(class)));
    let more = match all.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.collect::<Vec<_>>().join(", "))
}

/// What may not have been meant.
fn notes(members: &[Member]) -> Vec<String> {
    let Job { source, recipe, .. } = &members[0].job;
    let mut notes = vec![];
    let mut untrained = BTreeMap::<u32, Vec<&str>>::new();
    for Member { name, job } in members {
        let mut is_trained = vec![false; recipe.labels.num_classes()];
        job.parts.train.iter().for_each(|row| is_trained[source.table.classes[*row] as usize] = true);
        for class in recipe.labels.classes().filter(|class| !is_trained[*class as usize]) {
            untrained.entry(class).or_default().push(name);
        }
    }
    for (class, of) in untrained {
        let label = one_line(&recipe.labels.name_of(class));
        let of = match of[..] {
            [] | [""] => String::new(),
            [name] => format!(" of {name}"),
            [name, ..] => format!(" of {name} and {} more", of.len() - 1),
        };
        notes.push(format!("No row to train on{of} has the label {label}"));
    }
    let (batches, accumulate) = (members[0].job.batches_per_epoch(), recipe.training.accumulate);
    if accumulate > batches {
        let batches = if batches == 1 { "one batch".to_owned() } else { format!("{batches} batches") };
        notes.push(format!("--accumulate {accumulate}: an epoch has {batches}, fewer than a step goes over"));
    }
    let steps = members[0].job.total_steps();
    if recipe.warmup.steps(steps) >= steps {
        let warmup = recipe.warmup;
        notes.push(format!(
            "--warmup {warmup}: the rate never rises to --learning-rate in the run's {steps} steps"
        ));
    }
    notes
}

/// Which weights are the checkpoint's, which start anew, and what the checkpoint has besides.
pub fn describe_weights(args: &TrainArgs, job: &Job) -> String {
    let source = &job.source;
    if source.pretrained.is_none() && !args.model.random_weights {
        return "Weights: of the checkpoint, which a dry run doesn't download".to_owned();
    }
    let values = job.initial_values();
    let weights = source.model.weights();
    let (taken, anew): (Vec<_>, Vec<_>) = weights.iter().partition(|weight| values.is_taken(weight));
    let keys = taken.iter().map(|weight| key(&weight.name)).collect();
    let left_out = source.pretrained.as_ref().map_or(vec![], |tensors| tensors.unused(&keys));
    let mut parts = vec![];
    if !taken.is_empty() {
        let heads = taken.iter().filter(|weight| weight.part == Part::Head).count();
        let of = if heads > 0 { "encoder and head" } else { "encoder" };
        parts.push(format!("{} of the checkpoint's {of} taken over", plural(taken.len(), "tensor")));
    }
    if !anew.is_empty() {
        let stems = stems(anew.iter().map(|weight| &*weight.name));
        parts.push(format!("{} starting anew ({stems})", anew.len()));
    }
    if !left_out.is_empty() {
        let stems = stems(left_out.iter().copied());
        parts.push(format!("{} of the checkpoint left out ({stems})", left_out.len()));
    }
    format!("Weights: {}", parts.join(", "))
}

/// The distinct first parts of names with dots.
fn stems<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let stems = names.map(|name| name.split('.').next().unwrap_or(name)).collect::<BTreeSet<_>>();
    stems.into_iter().collect::<Vec<_>>().join(", ")
}
