//! What training needs, read and checked before a device is taken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::model::MAX_LENGTH;
use super::train::TrainArgs;
use super::{Error, Result, guess_note, padding_note, plural};
use crate::data::{
    DataError, LabelMap, Labels, Purpose, Split, Table, k_fold, stratified_k_fold,
    stratified_train_test_split, train_test_split,
};
use crate::model::{BertConfig, ClassifierConfig};
use crate::nn::{Part, Weight};
use crate::run::{model_files, read_json, settings};
use crate::storage::check_is_there;
use crate::train::{HeldOut, Job, Member, Parts, Recipe, Source};
use crate::weights::{Hub, key, open_pretrained, open_tokenizer};

/// Reads and checks all that is needed: one job, or those of an ensemble's members, which have names.
pub fn prepare(args: &TrainArgs) -> Result<Vec<Member>> {
    args.recipe.check()?;
    // Before anything is downloaded.
    let tables = [Some(&args.train), args.evaluation.dev.as_ref(), args.evaluation.test.as_ref()];
    for path in tables.into_iter().flatten() {
        args.table.options(path, Labels::Auto)?;
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
    let layers = bert.num_hidden_layers;
    let before = settings(&files.config, &original, &bert)?;
    let labels = args.recipe.labels.clone();
    let labels = labels.or_else(|| before.as_ref().map(|(_, labels)| Labels::Given(labels.clone())));
    let labels = labels.unwrap_or_else(|| Labels::Given(LabelMap::default()));
    let known = if let Labels::Given(labels) = &labels { Some(labels.clone()) } else { None };
    if let Some(labels) = &known {
        args.recipe.recipe(&args.evaluation, layers, labels.clone())?;
    }
    let config =
        |needed| model_config(args, bert.clone(), &labels, needed, before.as_ref().map(|(model, _)| model));
    // The table's own labels are yet to come: until then, its head has one class.
    let model = config(known.map_or(1, |labels| labels.num_classes()))?;
    let tokenizer = open_tokenizer::<Error>(&files, &bert, model.max_length)?;
    let pretrained = weights.then(|| open_pretrained(&files, &model.weights())).transpose()?;
    let tables = Tables::read(args, &labels)?;
    let labels = tables.all.labels.clone();
    let mut model = config(labels.num_classes())?;
    model.bert.pad_token_id = tokenizer.pad_id();
    let keeps_head = before.is_some_and(|(before, its)| its == labels && fits(&before, &model));
    let recipe = args.recipe.recipe(&args.evaluation, layers, labels)?;
    let members = members(args, &recipe, &tables)?;
    let source = Source {
        original,
        model,
        pretrained,
        keeps_head,
        tokenizer,
        table: tables.all,
        files: tables.files,
        arguments: args.written.clone(),
    };
    let source = Arc::new(source);
    let job = |(name, recipe, parts)| Member { name, job: Job { source: source.clone(), parts, recipe } };
    let members = members.into_iter().map(job).collect::<Vec<_>>();
    members[0].job.initial_values().check(&source.model.weights())?;
    Ok(members)
}

/// Whether the head of `before` has the weights of the other's, for the same use: dropout and activation are none of it.
fn fits(before: &ClassifierConfig, model: &ClassifierConfig) -> bool {
    let of_head = |weight: &Weight| weight.part == Part::Head;
    let weights = |model: &ClassifierConfig| model.weights().into_iter().filter(of_head).collect::<Vec<_>>();
    before.head.name() == model.head.name() && weights(before) == weights(model)
}

/// All rows, those of one file after those of another.
struct Tables {
    all: Table,
    /// The first row of each file.
    files: Vec<usize>,
    own: usize,
    dev: Vec<usize>,
    test: Vec<usize>,
}

impl Tables {
    fn read(args: &TrainArgs, labels: &Labels) -> Result<Self> {
        let options = args.table.options(&args.train, labels.clone())?;
        let mut all = Table::read(&args.train, &options, Purpose::Train)?;
        let (own, mut files) = (all.texts.len(), vec![0]);
        // What the labels of the first one are as classes, they are in the others.
        let labels = Labels::Given(all.labels.clone());
        let mut add = |path: Option<&PathBuf>| -> Result<Vec<usize>> {
            let Some(path) = path else { return Ok(vec![]) };
            let first = all.texts.len();
            let options = args.table.options(path, labels.clone())?;
            let Table { texts, classes, ids, .. } = Table::read(path, &options, Purpose::Evaluate)?;
            all.texts.extend(texts);
            all.classes.extend(classes);
            all.ids.extend(ids);
            files.push(first);
            Ok((first..all.texts.len()).collect())
        };
        let dev = add(args.evaluation.dev.as_ref())?;
        let test = add(args.evaluation.test.as_ref())?;
        Ok(Self { all, files, own, dev, test })
    }
}

/// What each member trains with and on: one for each seed and each fold.
fn members(args: &TrainArgs, recipe: &Recipe, tables: &Tables) -> Result<Vec<(String, Recipe, Parts)>> {
    let Tables { all, own, dev, test, .. } = tables;
    let classes = &all.classes[..*own];
    let split = |train, dev| Parts { train, dev, test: test.clone() };
    let parts = match (args.recipe.folds, &recipe.held_out) {
        (Some(folds), HeldOut::Share { split_seed, stratify, .. }) => {
            let (split_seed, stratify) = (*split_seed, *stratify);
            let made = match stratify {
                true => stratified_k_fold(classes, folds, split_seed),
                false => k_fold(*own, folds, split_seed),
            }?;
            let fold = |fold: usize| {
                let Split { train, test } = made.split(fold);
                let fold = fold + 1;
                (HeldOut::Fold { fold, folds, split_seed, stratify }, split(train, test))
            };
            (0..folds).map(fold).collect()
        }
        (_, HeldOut::Share { dev_size, split_seed, stratify: true }) => {
            let Split { train, test } =
                stratified_train_test_split(classes, &all.labels, *dev_size, *split_seed)?;
            vec![(recipe.held_out.clone(), split(train, test))]
        }
        (_, HeldOut::Share { dev_size, split_seed, stratify: false }) => {
            let Split { train, test } = train_test_split(*own, *dev_size, *split_seed)?;
            vec![(recipe.held_out.clone(), split(train, test))]
        }
        _ => vec![(recipe.held_out.clone(), split((0..*own).collect(), dev.clone()))],
    };
    let seeds = (0..args.recipe.seeds.unwrap_or(1) as u32).map(|i| recipe.seed.wrapping_add(i));
    let member = |seed: u32, (held_out, parts): &(HeldOut, Parts)| {
        let of_seed = args.recipe.seeds.map(|_| format!("seed-{seed}"));
        let of_fold = match held_out {
            HeldOut::Fold { fold, .. } => Some(format!("fold-{fold}")),
            _ => None,
        };
        let name = of_seed.into_iter().chain(of_fold).collect::<Vec<_>>().join("-");
        (name, Recipe { seed, held_out: held_out.clone(), ..recipe.clone() }, parts.clone())
    };
    Ok(seeds
        .flat_map(|seed| parts.iter().map(move |parts| (seed, parts)))
        .map(|(seed, parts)| member(seed, parts))
        .collect())
}

/// The classifier that the flags ask for, on an encoder, which may be `before`'s, with a class for each of as many as `labels`
/// needs.
fn model_config(
    args: &TrainArgs,
    bert: BertConfig,
    labels: &Labels,
    needed: usize,
    before: Option<&ClassifierConfig>,
) -> Result<ClassifierConfig> {
    let args = &args.model.classifier;
    match args.num_classes {
        Some(given) if given < needed => {
            Err(Error::Usage(format!("--num-classes {given}: --labels {labels} needs {needed}")))
        }
        _ => args.config(bert, MAX_LENGTH, needed, before),
    }
}

/// What the tables hold.
pub fn describe(args: &TrainArgs, members: &[Member]) -> String {
    let Job { source, parts, .. } = &members[0].job;
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
    if members.len() > 1 {
        text.push_str(&format!("\n{} members are trained, one after another", members.len()));
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
