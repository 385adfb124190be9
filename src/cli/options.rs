//! Options that several commands share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{ArgAction, Args};

use super::{Console, Error, Result, plural};
use crate::data::{
    ColumnRef, DataError, Format, Header, Labels, TableOptions, TokenCache, parse_quote, parse_separator,
};
use crate::exec::{self, DeviceOptions, Replicas, RuntimeKind};
use crate::pjrt::install::cache_folder;
use crate::pjrt::{self, Backend, ExecutableCache, GpuOptions, leave, parse_fraction};
use crate::report::one_line;
use crate::run::Runs;

/// How the table is laid out.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Table")]
pub struct TableArgs {
    /// csv, jsonl (an object a line) or parquet [default: by the file's name: .jsonl, .ndjson, .json, .parquet, else csv]
    #[arg(long, value_parser = format, value_name = "FORMAT")]
    format: Option<Format>,
    /// Of csv: character between fields; \t for tabs [default: ,]
    #[arg(long, value_parser = separator, value_name = "CHAR")]
    separator: Option<u8>,
    /// Of csv: character around fields that hold a separator, or none [default: "]
    #[arg(long, value_parser = quote, value_name = "CHAR")]
    quote: Option<Quote>,
    /// Of csv: the first row is data, not column names
    #[arg(long)]
    no_header: bool,
    /// Of csv: the first row is column names, although it names none that is looked for
    #[arg(long, conflicts_with = "no_header")]
    header: bool,
    /// Column of the text, by name or by position from 0
    #[arg(long, value_name = "COLUMN")]
    text_column: Option<ColumnRef>,
    /// Column of the label, by name or by position from 0
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<ColumnRef>,
    /// Column of the id, by name or by position from 0
    #[arg(long, value_name = "COLUMN")]
    id_column: Option<ColumnRef>,
    /// Leave out and count rows that can't be used, instead of stopping
    #[arg(long)]
    skip_bad_rows: bool,
}

/// A quote character, or none; clap would read `Option<u8>` as an optional flag.
#[derive(Clone, Copy, Debug)]
struct Quote(Option<u8>);

fn format(text: &str) -> std::result::Result<Format, DataError> {
    text.parse()
}

fn separator(text: &str) -> std::result::Result<u8, DataError> {
    parse_separator(text)
}

fn quote(text: &str) -> std::result::Result<Quote, DataError> {
    parse_quote(text).map(Quote)
}

impl TableArgs {
    /// The format of the table at `path`.
    pub fn format_of(&self, path: &Path) -> Format {
        self.format.unwrap_or_else(|| Format::of(path))
    }

    /// The table at `path` with these options, and what its labels mean.
    ///
    /// # Errors
    /// Options of CSV with a table in another format.
    pub fn options(&self, path: &Path, labels: Labels) -> Result<TableOptions> {
        let format = self.format.unwrap_or_else(|| Format::of(path));
        let of_csv = [
            ("--separator", self.separator.is_some()),
            ("--quote", self.quote.is_some()),
            ("--no-header", self.no_header),
            ("--header", self.header),
        ];
        if format != Format::Csv
            && let Some((flag, _)) = of_csv.iter().find(|(_, is_given)| *is_given)
        {
            let path = path.display();
            return Err(Error::Usage(format!("{flag} is of CSV, but {path} is in {format}: leave it out")));
        }
        let default = TableOptions::default();
        Ok(TableOptions {
            format: Some(format),
            separator: self.separator.unwrap_or(default.separator),
            quote: self.quote.map_or(default.quote, |quote| quote.0),
            header: match self {
                Self { no_header: true, .. } => Header::Absent,
                Self { header: true, .. } => Header::Present,
                _ => Header::Expected,
            },
            text_column: self.text_column.clone(),
            label_column: self.label_column.clone(),
            id_column: self.id_column.clone(),
            labels,
            skip_bad_rows: self.skip_bad_rows,
        })
    }
}

/// Where the program runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// auto takes the first of tpu, gpu and cpu that is there [possible values: auto, tpu, gpu, cpu]
    #[arg(long, default_value = "auto", value_parser = backend, value_name = "BACKEND")]
    backend: BackendChoice,
    /// pjrt loads plugins, xla is the library that is linked to this program, if one is; auto takes pjrt on Linux, and
    /// elsewhere xla [possible values: auto, pjrt, xla]
    #[arg(long, default_value = "auto", value_parser = runtime, value_name = "RUNTIME")]
    runtime: RuntimeChoice,
    /// Data-parallel replicas, each with its share of every batch [default: every TPU core or GPU, of all hosts of a
    /// slice; 1 on the CPU]
    // A CPU client makes as many devices as it is told to, however long that takes.
    #[arg(long, value_parser = count().range(1..=1024), value_name = "N")]
    replicas: Option<usize>,
    /// The PJRT plugin's file, instead of the installed one
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Have a GPU give the same bits each time, more slowly; on CPU and TPU, nothing changes
    #[arg(long)]
    deterministic: bool,
    /// Share of each GPU's memory that is taken [default: JAX's XLA_CLIENT_MEM_FRACTION, else 0.75]
    #[arg(long, value_parser = fraction, value_name = "SHARE")]
    gpu_memory_fraction: Option<f32>,
    /// Take a GPU's memory as it is needed, not at the start; also JAX's XLA_PYTHON_CLIENT_PREALLOCATE=false
    #[arg(long)]
    no_gpu_preallocate: bool,
    /// Which of the GPUs that the driver shows, such as 0,1 [default: JAX's JAX_CUDA_VISIBLE_DEVICES, else all]
    #[arg(long, action = ArgAction::Set, value_delimiter = ',', value_name = "N,...")]
    gpu_devices: Option<Vec<u32>>,
    /// Compile and tokenize anew, and keep nothing: compiled programs and tokens are otherwise kept in the cache folder
    #[arg(long)]
    no_cache: bool,
    /// On a slice of several hosts, how long to wait for the others before giving up, at one time
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000), value_name = "SECONDS")]
    slice_timeout: u64,
}

#[derive(Clone, Copy, Debug)]
struct BackendChoice(Option<Backend>);

fn backend(text: &str) -> std::result::Result<BackendChoice, String> {
    match text {
        "auto" => Ok(BackendChoice(None)),
        _ => text
            .parse()
            .map(|backend| BackendChoice(Some(backend)))
            .map_err(|_| format!("`{text}` is none of auto, tpu, gpu and cpu")),
    }
}

#[derive(Clone, Copy, Debug)]
struct RuntimeChoice(Option<RuntimeKind>);

fn runtime(text: &str) -> std::result::Result<RuntimeChoice, String> {
    match text {
        "auto" => Ok(RuntimeChoice(None)),
        "pjrt" => Ok(RuntimeChoice(Some(RuntimeKind::Pjrt))),
        "xla" => RuntimeKind::xla().map(|xla| RuntimeChoice(Some(xla))).map_err(|error| error.to_string()),
        _ => Err(format!("`{text}` is none of auto, pjrt and xla")),
    }
}

fn fraction(text: &str) -> std::result::Result<f32, String> {
    parse_fraction(text).map_err(|expected| format!("expected {expected}"))
}

impl DeviceArgs {
    /// Where tables are kept tokenized.
    pub fn token_cache(&self) -> Option<TokenCache> {
        let folder = cache_folder().ok().filter(|_| !self.no_cache)?;
        Some(TokenCache::new(folder.join("tokens")))
    }

    /// Connects, and says on stderr what was taken and why the others were not. From here on, only the chief of a
    /// slice says anything.
    pub fn connect(&self, console: &Arc<Console>) -> Result<Replicas> {
        let cache = cache_folder().ok().filter(|_| !self.no_cache).map(|folder| {
            Arc::new(ExecutableCache::new(folder.join("executables"), ExecutableCache::DEFAULT_LIMIT))
        });
        let replicas = Replicas::connect(&DeviceOptions {
            runtime: self.runtime.0,
            backend: self.backend.0,
            replicas: self.replicas,
            plugin: self.plugin.clone(),
            gpu: GpuOptions {
                memory_fraction: self.gpu_memory_fraction,
                preallocate: self.no_gpu_preallocate.then_some(false),
                devices: self.gpu_devices.clone(),
            },
            deterministic: self.deterministic,
            cache,
            slice_timeout: Duration::from_secs(self.slice_timeout),
            on_timeout: Arc::new(give_up(console.clone())),
            on_wait: Arc::new(tell_of_wait(console.clone())),
            on_busy: Arc::new(tell_of_busy(console.clone())),
            ..DeviceOptions::default()
        })?;
        console.connected(&replicas);
        for (backend, reason) in &replicas.passed_over {
            console.note(&format!("{backend}: passed over: {reason}"));
        }
        let by = match replicas.runtime() {
            RuntimeKind::Pjrt => "",
            #[cfg(feature = "xla-extension")]
            RuntimeKind::Xla => ", by the xla runtime",
        };
        console.note(&format!("Running on {} ({}){by}", replicas.backend(), replicas.device_kind()));
        console.note(&format!("Number of replicas: {}", replicas.count()));
        if let Some(advice) = replicas.advice() {
            console.note(&format!("warning: {advice}"));
        }
        Ok(replicas)
    }
}

/// Says what is waited for.
fn tell_of_wait(console: Arc<Console>) -> impl Fn(&'static str, Duration) + Send + Sync {
    move |phase, waited| {
        console.note_of_each(&format!(
            "{phase} has taken {} s so far: on a slice, it waits for all hosts; is the same command running on each?",
            waited.as_secs()
        ));
    }
}

/// Says that a TPU is still in use.
fn tell_of_busy(console: Arc<Console>) -> impl Fn(&pjrt::Error, Duration) + Send + Sync {
    move |error, limit| {
        console.note_of_each(&one_line(&format!(
            "the TPU is still in use by another process, trying again for up to {} s: {error}",
            limit.as_secs()
        )));
    }
}

/// Ends the process, which can't be told to stop waiting.
fn give_up(console: Arc<Console>) -> impl Fn(exec::Error) + Send + Sync {
    move |error| {
        console.error(&Error::from(error));
        leave(1);
    }
}

/// Parses a number of rows, replicas or classes: at least 1, and not so large that memory for it could never
/// be had.
pub fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 16)
}

/// A weight in a mean.
fn weight(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(weight) if weight > 0.0 && weight.is_finite() => Ok(weight),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// Trained classifiers.
#[derive(Args, Clone, Debug)]
pub struct RunsArgs {
    /// The --output of a training run; also gs://bucket/path. Given more than once, or a folder with an ensemble.json,
    /// each label's probability is the mean over all runs, whose labels must be the same
    #[arg(long, required = true, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// How much each --run counts in the mean, such as 2,1 [default: all the same]
    #[arg(long, action = ArgAction::Set, value_delimiter = ',', value_parser = weight, value_name = "W,...")]
    weights: Option<Vec<f64>>,
}

/// Trained classifiers, and the table that they read.
#[derive(Args, Clone, Debug)]
pub struct TrainedArgs {
    #[command(flatten)]
    runs: RunsArgs,
    /// The table; also gs://bucket/path
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Texts per step, over all replicas [default: 16; for a table of 1024 rows or more 64]
    #[arg(long, value_parser = count(), value_name = "N")]
    batch_size: Option<usize>,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl RunsArgs {
    /// Their folders, as they are given.
    #[cfg(feature = "serve")]
    pub fn roots(&self) -> &[PathBuf] {
        &self.run
    }

    /// Opens the runs.
    ///
    /// # Errors
    /// A folder that is no run's, runs with other labels, or other numbers of runs and weights.
    pub fn open(&self) -> Result<Runs> {
        let (runs, weights) = (&self.run, self.weights.as_deref());
        if let Some(weights) = weights
            && weights.len() != runs.len()
        {
            let (weights, runs) = (plural(weights.len(), "weight"), plural(runs.len(), "run"));
            return Err(Error::Usage(format!("--weights: {weights} for {runs}; give one per --run")));
        }
        let weight = |at: usize| weights.map_or(1.0, |weights| weights[at]);
        let weighted = runs.iter().enumerate().map(|(at, run)| (run.clone(), weight(at)));
        Ok(Runs::open(&weighted.collect::<Vec<_>>())?)
    }
}

impl TrainedArgs {
    /// Opens the runs, see [`RunsArgs::open`].
    pub fn open_runs(&self) -> Result<Runs> {
        self.runs.open()
    }

    /// Texts per step, for a table of so many rows. A larger batch takes less time per text, but a last one that isn't full
    /// costs as much as one that is.
    pub fn batch_size(&self, rows: usize) -> usize {
        self.batch_size.unwrap_or(if rows < 1024 { 16 } else { 64 })
    }

    /// Connects to the devices, and says what there is to say of the runs.
    pub fn connect(&self, runs: &Runs, console: &Arc<Console>) -> Result<Arc<Replicas>> {
        let replicas = Arc::new(self.device.connect(console)?);
        runs.iter().for_each(|(run, _)| console.note_padding(&run.model.bert, &run.tokenizer));
        Ok(replicas)
    }
}
