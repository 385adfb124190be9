//! The arguments of `bert-xla tpu-vm`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Launch on a Cloud TPU VM through gcloud, on every worker of it; docs/tpu-vm.md is the guide.
///
/// `run` does it all: it makes the VM, sets it up, trains, makes the VM anew when it is taken away, copies the result
/// here and deletes the VM. The other verbs are its parts. `--dry-run` prints the commands, quoted for a shell, instead of
/// running them.
///
/// On a worker all of it lies in ~/bert-xla: the program, the data, the run and its log. What this machine knows of the
/// job is in ~/.local/state/bert-xla/tpu-vm.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla tpu-vm run my-tpu --zone us-west4-a --type v5litepod-8 --spot --max-hours 3 \\\n      \
        --bucket gs://my-bucket/job -- --train gs://my-bucket/train.csv --checkpoint-every 10m\n  \
    bert-xla tpu-vm list\n\n  \
    bert-xla tpu-vm create my-tpu --zone us-west4-a --type v5litepod-8\n  \
    bert-xla tpu-vm setup  my-tpu --zone us-west4-a --data train.csv\n  \
    bert-xla tpu-vm train  my-tpu --zone us-west4-a -- --backend tpu --train train.csv --output run\n  \
    bert-xla tpu-vm logs   my-tpu --zone us-west4-a\n  \
    bert-xla tpu-vm fetch  my-tpu --zone us-west4-a results\n  \
    bert-xla tpu-vm delete my-tpu --zone us-west4-a\n\n\
    Exit status: 0 done, 1 a failure, 2 a usage that can't be worked with, 75 hours that are over, else that of the command \
    that failed, or of the run whose log ends.")]
pub struct TpuVmArgs {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// All of it, from nothing to a fetched run
    Run(Box<RunArgs>),
    /// Make the TPU VM
    Create(CreateArgs),
    /// Copy the program and data to all workers, and install the TPU plugin; again after a new build
    Setup(SetupArgs),
    /// Start `bert-xla train` on all workers; it goes on when this command ends
    ///
    /// A run that was stopped or killed goes on with the same arguments.
    Train(TrainArgs),
    /// Make the TPU VM anew whenever it is taken away, and go on with the run, until that is done
    Watch(WatchArgs),
    /// Is it running on each worker, or how did it end?
    Status(StatusArgs),
    /// Print the log until the run ends, then exit with the run's status
    Logs(LogsArgs),
    /// Ask the run to stop on all workers, and wait until it has saved and ended
    Stop(StopArgs),
    /// Copy the trained model and the log here
    Fetch(FetchArgs),
    /// Delete the TPU VM and all that is on it; asks first
    Delete(DeleteArgs),
    /// List the TPU VMs and queued resources of all zones, which is what costs money
    List(ListArgs),
}

/// Which TPU VM.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The TPU VM's name
    #[arg(value_parser = name)]
    pub name: String,
    /// Where it is; CLOUDSDK_COMPUTE_ZONE if not given
    #[arg(long)]
    pub zone: Option<String>,
    /// gcloud's own setting if not given
    #[arg(long)]
    pub project: Option<String>,
    /// Print the commands, quoted for a shell, instead of running them
    #[arg(long)]
    pub dry_run: bool,
}

/// How its workers are reached.
#[derive(Args, Clone, Debug)]
pub struct Reach {
    /// Reach the workers by the addresses of their network, from within it
    #[arg(long, conflicts_with = "tunnel_through_iap")]
    pub internal_ip: bool,
    /// Reach the workers through Google's Identity-Aware Proxy, by gcloud's alpha commands
    #[arg(long)]
    pub tunnel_through_iap: bool,
    /// Pass FLAG on to every ssh and scp; may repeat
    #[arg(long = "gcloud-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub flags: Vec<String>,
    /// Seconds until a worker must have answered
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub connect_timeout: u32,
    /// Seconds after which a silent connection is asked for a sign of life; three in a row without one end it
    #[arg(long, default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub keepalive: u32,
}

/// What is to be made.
#[derive(Args, Clone, Debug)]
pub struct Kind {
    /// v2-8, v3-8, v4-8, v5litepod-8, v5p-8, v6e-8...
    #[arg(long = "type", value_name = "TYPE")]
    pub accelerator_type: String,
    /// Runtime version; the type's usual one if not given
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Cheaper, and may be taken away at any time
    #[arg(long)]
    pub spot: bool,
    /// Ask for it as a queued resource, which waits until there is one
    #[arg(long)]
    pub queued: bool,
    /// How long the queued request may wait, such as 6h
    #[arg(long, value_name = "TIME", requires = "queued")]
    pub valid_until: Option<String>,
}

/// What its workers get.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// The program, for x86-64 Linux; this one if not given
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// The TPU plugin's wheel, for workers that can't download it
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// A file, a folder or gs://...; may repeat
    #[arg(long, value_name = "PATH")]
    pub data: Vec<String>,
}

/// How it is watched.
#[derive(Args, Clone, Debug)]
pub struct Care {
    /// How often the program is started again after it has failed
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub max_restarts: u32,
    /// For how many hours the TPU VM may be ready in all; then the run saves, and the TPU VM is deleted
    #[arg(long, value_name = "H", value_parser = hours)]
    pub max_hours: Option<f64>,
    /// Where the run, or its log if the run is in a bucket, is copied to; the TPU VM's name if not given
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Seconds between two looks
    #[arg(long, default_value_t = 60.0, value_name = "S", value_parser = seconds)]
    pub poll: f64,
    /// Seconds that the API and the workers have to answer
    #[arg(long, default_value_t = 120.0, value_name = "S", value_parser = seconds)]
    pub patience: f64,
    /// Hours after which a TPU VM is given up that is on its way, in repair, or whose workers don't answer
    #[arg(long, default_value_t = 2.0, value_name = "H", value_parser = hours)]
    pub longest_wait: f64,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub kind: Kind,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub reach: Reach,
    /// Pass FLAG on to the command that makes the TPU VM, such as --network=N; may repeat
    #[arg(long = "create-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub create_flags: Vec<String>,
    /// Keep the run in gs://BUCKET/run, or gs://BUCKET/PATH/run: train's --output
    #[arg(long, value_name = "gs://...")]
    pub bucket: Option<String>,
    #[command(flatten)]
    pub care: Care,
    /// The arguments of `bert-xla train`
    #[arg(last = true, required = true, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub kind: Kind,
    /// Pass FLAG on to gcloud, such as --internal-ips; may repeat
    #[arg(long = "gcloud-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub flags: Vec<String>,
}

#[derive(Args, Debug)]
pub struct SetupArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    /// The arguments of `bert-xla train`
    #[arg(last = true, required = true, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// `watch` may be ended and started again at any moment. Each line that it prints has the time.
#[derive(Args, Debug)]
pub struct WatchArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    #[command(flatten)]
    pub care: Care,
    /// Delete the TPU VM when the run has ended
    #[arg(long)]
    pub delete_when_done: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    /// US$ that the TPU VM costs per hour, to say what it has cost so far
    #[arg(long, value_name = "US$", value_parser = price)]
    pub price: Option<f64>,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    /// Which worker's; that of the one that writes the run if not given
    #[arg(long, value_name = "N")]
    pub worker: Option<u32>,
    /// Print what there is
    #[arg(long)]
    pub no_follow: bool,
}

#[derive(Args, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    /// How many seconds to wait; the run goes on saving after that
    #[arg(long, default_value_t = 300, value_name = "S", value_parser = clap::value_parser!(u32).range(..=999_999))]
    pub wait: u32,
    /// Do not wait: TERM, and KILL after 10 s, which loses the steps since the last checkpoint
    #[arg(long, conflicts_with = "wait")]
    pub now: bool,
}

#[derive(Args, Debug)]
pub struct FetchArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub reach: Reach,
    /// Where to; a folder named after the TPU VM if not given
    pub folder: Option<PathBuf>,
    /// What train's --output was; run if not given
    #[arg(long, value_name = "FOLDER")]
    pub run: Option<String>,
    /// Also what training goes on from: three times as much
    #[arg(long)]
    pub checkpoints: bool,
}

#[derive(Args, Debug)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub target: Target,
    /// Do not ask
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// gcloud's own setting if not given
    #[arg(long)]
    pub project: Option<String>,
    /// Print the commands, quoted for a shell, instead of running them
    #[arg(long)]
    pub dry_run: bool,
}

/// So that no name is an option, or another host to ssh.
fn name(text: &str) -> Result<String, &'static str> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(is_inner);
    is_name.then(|| text.to_owned()).ok_or("expected a TPU VM's name: lowercase letters, digits and -")
}

fn positive(text: &str, what: &'static str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or(what)
}

fn hours(text: &str) -> Result<f64, &'static str> {
    positive(text, "expected a number of hours above 0").and_then(below_a_year)
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    positive(text, "expected a number of seconds above 0").and_then(below_a_year)
}

fn below_a_year(value: f64) -> Result<f64, &'static str> {
    if value < 365.0 * 86_400.0 { Ok(value) } else { Err("expected less than a year") }
}

fn price(text: &str) -> Result<f64, &'static str> {
    positive(text, "expected US$ per hour")
}
