//! What training needs, read and checked before a device is taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::model::MAX_LENGTH;
use super::recipe::EvaluationArgs;
use super::train_args::TrainArgs;
use super::{Error, Result};
use crate::data::{
    BucketOptions, DataError, LabelMap, Labels, Purpose, Split, Table, k_fold, stratified_k_fold,
    stratified_train_test_split, train_test_split,
};
use crate::model::{BertConfig, ClassifierConfig, HeadConfig};
use crate::nn::{Part, Weight};
use crate::run::layout::{CHECKPOINTS, CONFIG, MEMBERS, WRITTEN};
use crate::run::{classifier_labels, model_files, read_json, settings};
use crate::storage::{check_is_there, is_bucket};
use crate::train::{HeldOut, Job, Member, Parts, Recipe, Source};
use crate::weights::{Hub, open_pretrained, open_tokenizer};

/// Reads and checks all that is needed: one job, or those of an ensemble's members, which have names.
pub fn prepare(args: &TrainArgs) -> Result<Vec<Member>> {
    args.recipe.check()?;
    // Before anything is downloaded.
    let tables = [Some(&args.train), args.evaluation.dev.as_ref(), args.evaluation.test.as_ref()];
    for path in tables.into_iter().flatten() {
        args.table.options(path, Labels::Auto)?;
        check_is_there(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
    }
    check_output(args)?;
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
    let classifier = classifier_labels(&original);
    let config = |own: Option<&LabelMap>| {
        model_config(args, bert.clone(), &labels, own, before.as_ref(), classifier.as_ref())
    };
    // The table's own labels are yet to come: until then, its head has one class.
    let mut model = config(known.as_ref())?;
    let goes_on_unzeroed = model.zero_padding && goes_on_unzeroed(args)?;
    model.zero_padding &= !goes_on_unzeroed;
    check_buckets(args, &model)?;
    let tokenizer = open_tokenizer::<Error>(&files, &bert, model.max_length)?;
    let pretrained = weights.then(|| open_pretrained(&files, &model.weights())).transpose()?;
    let tables = Tables::read(args, &labels)?;
    let mut model = config(Some(&tables.all.labels))?;
    model.zero_padding &= !goes_on_unzeroed;
    let labels = tables.all.labels.clone();
    model.bert.pad_token_id = tokenizer.pad_id();
    let keeps_head = match before {
        Some((before, its)) => its == labels && fits(&before, &model),
        None => is_cls(&model) && classifier.as_ref().is_some_and(|its| has_all(its, &labels)),
    };
    let recipe = args.recipe.recipe(&args.evaluation, layers, labels)?;
    let recipe = Recipe { execution: args.execution.options(), ..recipe };
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

/// Training must not replace what it is fed with: the same command is to find it again.
fn check_output(args: &TrainArgs) -> Result<()> {
    let output = &args.output;
    let canonical = |path: &Path| if is_bucket(path) { Ok(path.to_owned()) } else { path.canonicalize() };
    let Ok(root) = canonical(output) else { return Ok(()) };
    let model = &args.model.model;
    let runs = [root.join(MEMBERS), root.join(CHECKPOINTS)];
    let is_written = |model: &Path| model == root || runs.iter().any(|folder| model.starts_with(folder));
    if canonical(Path::new(model)).is_ok_and(|model| is_written(&model)) {
        return Err(Error::Usage(format!(
            "--model {model}: it is in --output, which training writes to; name another --output"
        )));
    }
    let EvaluationArgs { dev, test, .. } = &args.evaluation;
    let tables = [("--train", Some(&args.train)), ("--dev", dev.as_ref()), ("--test", test.as_ref())];
    for (flag, path) in tables {
        let Some(path) = path else { continue };
        let Ok(table) = canonical(path) else { continue };
        let path = path.display();
        if WRITTEN.iter().any(|name| root.join(name) == table) {
            return Err(Error::Usage(format!(
                "{flag} {path}: training writes this file; name another --output"
            )));
        }
        if runs.iter().any(|folder| table.starts_with(folder)) {
            return Err(Error::Usage(format!(
                "{flag} {path}: it is among the runs in --output, which training writes to; name another --output"
            )));
        }
    }
    Ok(())
}

/// Whether --output holds a masked run of the recipe's head from before there was `zero_padding`, which goes on as it is.
fn goes_on_unzeroed(args: &TrainArgs) -> Result<bool> {
    let config = args.output.join(CONFIG);
    if args.save.overwrite || !config.is_file() {
        return Ok(false);
    }
    let (json, bert) = (read_json(&config)?, BertConfig::read(&config)?);
    let is_it = |(model, _): (ClassifierConfig, LabelMap)| {
        model.mask && !model.zero_padding && model.head.reads_padding()
    };
    Ok(settings(&config, &json, &bert)?.is_some_and(is_it))
}

/// # Errors
/// Buckets for a model that reads padding, or longer than it reads.
fn check_buckets(args: &TrainArgs, model: &ClassifierConfig) -> Result<()> {
    let Some(buckets) = &args.recipe.buckets else { return Ok(()) };
    if !model.ignores_padding() {
        let why = match model.mask {
            true => {
                "the head goes on from one that reads padding; start anew with another --model or --output"
            }
            false => "without --mask, what is padded counts, and shorter batches would be other texts",
        };
        return Err(Error::Usage(format!("--buckets: {why}")));
    }
    let most = model.max_length;
    match buckets {
        BucketOptions::Given(lengths) if lengths.iter().any(|length| *length > most) => {
            let lengths = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            Err(Error::Usage(format!("--buckets {lengths}: expected lengths up to --max-length, {most}")))
        }
        _ => Ok(()),
    }
}

/// Whether the head of `before` has the weights of the other's, for the same use: dropout and activation are none of it.
fn fits(before: &ClassifierConfig, model: &ClassifierConfig) -> bool {
    let of_head = |weight: &Weight| weight.part == Part::Head;
    let weights = |model: &ClassifierConfig| model.weights().into_iter().filter(of_head).collect::<Vec<_>>();
    before.head.name() == model.head.name() && weights(before) == weights(model)
}

/// Whether the head is the classifier of transformers.
fn is_cls(model: &ClassifierConfig) -> bool {
    matches!(model.head, HeadConfig::Cls(_))
}

/// Whether `labels` are the same classes in a classifier's, which may have more.
fn has_all(its: &LabelMap, labels: &LabelMap) -> bool {
    labels.iter().all(|(label, class)| its.class_of(label) == Some(class))
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
            all.texts.extend(&texts);
            all.classes.extend(classes);
            all.ids.extend(&ids);
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

/// The classifier that the flags ask for, on an encoder, with a class for each label of `own`, once that is known. Where they
/// are the labels of `before`, the run that it is of, or, under the head of transformers, among those of the `classifier` that
/// it is of, it has as many classes as that.
fn model_config(
    args: &TrainArgs,
    bert: BertConfig,
    labels: &Labels,
    own: Option<&LabelMap>,
    before: Option<&(ClassifierConfig, LabelMap)>,
    classifier: Option<&LabelMap>,
) -> Result<ClassifierConfig> {
    let args = &args.model.classifier;
    let needed = own.map_or(1, LabelMap::num_classes);
    if let Some(given) = args.num_classes.filter(|given| *given < needed) {
        return Err(Error::Usage(format!("--num-classes {given}: --labels {labels} needs {needed}")));
    }
    let same = before.filter(|(_, its)| own == Some(its));
    let num_classes = same.map_or(needed, |(model, _)| model.head.num_classes());
    let config =
        |num_classes| args.config(bert.clone(), MAX_LENGTH, num_classes, before.map(|(model, _)| model));
    let config_of_own = config(num_classes)?;
    let has_own = |its: &&LabelMap| own.is_some_and(|own| has_all(its, own));
    match classifier.filter(has_own) {
        Some(its) if before.is_none() && is_cls(&config_of_own) => config(its.num_classes()),
        _ => Ok(config_of_own),
    }
}
