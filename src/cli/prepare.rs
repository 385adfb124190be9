//! What training needs, read and checked before a device is taken.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::model::MAX_LENGTH;
use super::train::TrainArgs;
use super::{Error, Result, guess_note, padding_note, plural};
use crate::data::{DataError, LabelMap, Purpose, Table, train_test_split};
use crate::model::{BertConfig, ClassifierConfig};
use crate::nn::Part;
use crate::run::{model_files, read_json, settings};
use crate::storage::check_is_there;
use crate::train::{HeldOut, Job, Parts, Source};
use crate::weights::{Hub, key, open_pretrained, open_tokenizer};

/// Reads and checks all that the job needs.
pub fn prepare(args: &TrainArgs) -> Result<Job> {
    // Before anything is downloaded.
    for path in
        [Some(&args.train), args.evaluation.dev.as_ref(), args.evaluation.test.as_ref()].into_iter().flatten()
    {
        check_is_there(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
    }
    let model_args = &args.model;
    // A dry run downloads no weights; those that are here are looked at.
    let weights = !model_args.random_weights && (!args.dry_run || Path::new(&model_args.model).is_dir());
    let hub = Hub::from_env()?.with_progress();
    let files = model_files(&model_args.model, model_args.revision.as_deref(), weights, &hub)?;
    // All of the model before the table, which may take long: a run may go on beside this one, and replace its files.
    let original = read_json(&files.config)?;
    let bert = BertConfig::read(&files.config)?;
    let recipe = args.recipe.recipe(&args.evaluation, bert.num_hidden_layers)?;
    let before = settings(&files.config, &original, &bert)?;
    let mut model = model_config(args, bert, &recipe.labels, before.as_ref().map(|(model, _)| model))?;
    let tokenizer = open_tokenizer::<Error>(&files, &model.bert, model.max_length)?;
    model.bert.pad_token_id = tokenizer.pad_id();
    let pretrained = weights.then(|| open_pretrained(&files, &model.weights())).transpose()?;
    let keeps_head =
        before.is_some_and(|(before, labels)| before.head == model.head && labels == recipe.labels);
    let (table, files, parts) = tables(args, &recipe.held_out, &recipe.labels)?;
    let arguments = args.written.clone();
    let source = Source { original, model, pretrained, keeps_head, tokenizer, table, files, arguments };
    let job = Job { source: Arc::new(source), parts, recipe };
    job.initial_values().check(&job.source.model.weights())?;
    Ok(job)
}

/// All rows, the first one of each file, and what they are for.
fn tables(args: &TrainArgs, held_out: &HeldOut, labels: &LabelMap) -> Result<(Table, Vec<usize>, Parts)> {
    let options = args.table.options(labels);
    let mut table = Table::read(&args.train, &options, Purpose::Train)?;
    let own = table.texts.len();
    let mut files = vec![0];
    let mut add = |path: Option<&std::path::PathBuf>| -> Result<Vec<usize>> {
        let Some(path) = path else { return Ok(vec![]) };
        let first = table.texts.len();
        let Table { texts, classes, ids, .. } = Table::read(path, &options, Purpose::Evaluate)?;
        table.texts.extend(texts);
        table.classes.extend(classes);
        table.ids.extend(ids);
        files.push(first);
        Ok((first..table.texts.len()).collect())
    };
    let dev = add(args.evaluation.dev.as_ref())?;
    let test = add(args.evaluation.test.as_ref())?;
    let parts = match *held_out {
        HeldOut::Share { dev_size, split_seed, .. } => {
            let split = train_test_split(own, dev_size, split_seed)?;
            Parts { train: split.train, dev: split.test, test }
        }
        HeldOut::Fold { .. } | HeldOut::File => Parts { train: (0..own).collect(), dev, test },
    };
    Ok((table, files, parts))
}

/// The classifier that the flags ask for, on an encoder, which may be `before`'s.
fn model_config(
    args: &TrainArgs,
    bert: BertConfig,
    labels: &LabelMap,
    before: Option<&ClassifierConfig>,
) -> Result<ClassifierConfig> {
    let (args, needed) = (&args.model.classifier, labels.num_classes());
    match args.num_classes {
        Some(given) if given < needed => {
            Err(Error::Usage(format!("--num-classes {given}: --labels {labels} needs {needed}")))
        }
        _ => args.config(bert, MAX_LENGTH, needed, before),
    }
}

/// What the table holds.
pub fn describe(args: &TrainArgs, job: &Job) -> String {
    let Job { source, parts, .. } = job;
    let table = &source.table;
    let own = source.files.get(1).copied().unwrap_or(table.texts.len());
    let mut text = format!(
        "{}: {own} texts ({} duplicates dropped, {} bad rows skipped): {} to train on, {} held out",
        args.train.display(),
        table.duplicates,
        table.skipped,
        parts.train.len(),
        own - parts.train.len()
    );
    for (path, rows) in [(&args.evaluation.dev, &parts.dev), (&args.evaluation.test, &parts.test)] {
        if let Some(path) = path {
            text.push_str(&format!("\n{}: {} texts", path.display(), rows.len()));
        }
    }
    let said = source.original.get("pad_token_id").and_then(Value::as_u64);
    let said = said.unwrap_or(BertConfig::default().pad_token_id.into());
    let guess = guess_note(table.guess.as_ref());
    let lines = [guess, padding_note(said, &source.tokenizer)];
    lines.into_iter().flatten().for_each(|line| text.push_str(&format!("\n{line}")));
    text
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
