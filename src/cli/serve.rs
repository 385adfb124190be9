//! `bert-xla serve`: a page and an API for trained models.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::builder::{RangedU64ValueParser, ValueParser};
use clap::{ArgAction, Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_appender::non_blocking::WorkerGuard;

use super::options::{DeviceArgs, RunsArgs, count};
use super::{Console, Error, Exit, Result, plural, signals};
use crate::pjrt::Backend;
use crate::serve::{Control, KeyFile, Observer, Options, Served, States, serve};

/// Answer texts with a trained model: a page for people, and an API for programs.
///
/// The page is at http://127.0.0.1:8080 unless --host and --port say otherwise: type a comment, or drop a table. The API
/// takes {"inputs": ["..."]} at /predict and answers as Hugging Face's text classification does; /openapi.json describes
/// all of it. Texts that come at about the same time are computed together.
///
/// SIGTERM and Ctrl-C answer what was taken, and end it; SIGHUP loads the run anew.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    bert-xla serve --run run\n  \
    curl http://127.0.0.1:8080/predict -d '{\"inputs\": \"barcha behi\", \"probabilities\": true}'\n  \
    curl 'http://127.0.0.1:8080/predict.csv?probabilities=true' --data-binary @test.csv\n  \
    openssl rand -hex 32 > key && bert-xla serve --run run --host 0.0.0.0 --api-key-file key")]
pub struct ServeArgs {
    /// The address or name to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// The port to listen on; 0 takes one that is free
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Load newer checkpoints of the runs as they come, which are looked for so often [default: 5]
    #[arg(long, num_args = 0..=1, default_missing_value = "5", value_parser = seconds(), value_name = "SECONDS")]
    watch: Option<f64>,
    /// Numbers of texts that are computed together, each compiled for [default: on the CPU 1,2,4,8,16,32, else 1,8,32]
    #[arg(long, action = ArgAction::Set, value_delimiter = ',', value_parser = count(), value_name = "N,...")]
    batch_sizes: Option<Vec<usize>>,
    /// A line on stderr for every request: text, json, or none but of failures. It never has what was sent
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log: Log,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    limits: Limits,
    // Last, since their headings would go on over what follows.
    #[command(flatten)]
    runs: RunsArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Who may ask.
#[derive(Args, Debug)]
#[command(next_help_heading = "Access")]
struct Access {
    /// A file of keys, one a line: requests need one of them, but for /health. Programs send Authorization: Bearer KEY; browsers
    /// ask for a password
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen elsewhere than on this machine's own address without a key: everybody who can reach it may ask
    #[arg(long, conflicts_with = "api_key_file")]
    without_key: bool,
    /// A page of this origin, such as https://example.org, may ask too; may repeat; * is any
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    allow_origin: Vec<String>,
    /// A name by which the server is called, besides addresses, localhost and the machine's name; may repeat
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
}

/// How much is taken.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
struct Limits {
    /// Bytes of a request, but for tables; and of each text of a table (413)
    #[arg(long, default_value_t = 2_000_000, value_parser = bytes(), value_name = "BYTES")]
    max_body: u64,
    /// Texts of a request, but for tables, and no more than may wait (413)
    #[arg(long, default_value_t = 256, value_parser = count(), value_name = "N")]
    max_inputs: usize,
    /// Texts that wait for the devices (429)
    #[arg(long, default_value_t = 4096, value_parser = count(), value_name = "N")]
    max_queue: usize,
    /// Bytes of a table, which is kept in the folder for temporary files while it is labelled (413)
    #[arg(long, default_value_t = 1_000_000_000, value_parser = bytes(), value_name = "BYTES")]
    max_table: u64,
    /// Tables at a time (429)
    #[arg(long, default_value_t = 4, value_parser = count(), value_name = "N")]
    max_tables: usize,
    /// Connections at a time: more of them wait
    #[arg(long, default_value_t = 16_384, value_parser = count(), value_name = "N")]
    max_connections: usize,
    /// For an answer, once the request is read (503)
    #[arg(long, default_value = "30", value_parser = seconds(), value_name = "SECONDS")]
    time_out: f64,
    /// For a request to come (408 for its body), and for a connection to stay idle
    #[arg(long, default_value = "20", value_parser = seconds(), value_name = "SECONDS")]
    read_time_out: f64,
    /// At the end, for the answers of what was taken
    #[arg(long, default_value = "30", value_parser = seconds(), value_name = "SECONDS")]
    drain_time_out: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Log {
    Text,
    Json,
    None,
}

fn seconds() -> ValueParser {
    fn parse(text: &str) -> std::result::Result<f64, String> {
        match text.parse::<f64>() {
            Ok(seconds) if (0.01..=1e6).contains(&seconds) => Ok(seconds),
            _ => Err("expected a number of seconds from 0.01 to 1000000".to_owned()),
        }
    }
    ValueParser::new(parse)
}

/// Not more than a semaphore counts, nor so few that no request has room.
fn bytes() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1000..=1 << 40)
}

fn origin(text: &str) -> std::result::Result<String, String> {
    let is_origin = |text: &str| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', ' ', '?', '#']))
    };
    match text == "*" || is_origin(text) {
        // Browsers leave a scheme's own port out.
        true => Ok(match text.split_once("://") {
            Some(("https", rest)) => format!("https://{}", rest.strip_suffix(":443").unwrap_or(rest)),
            Some(("http", rest)) => format!("http://{}", rest.strip_suffix(":80").unwrap_or(rest)),
            _ => text.to_owned(),
        }),
        false => Err("expected one such as https://example.org, without a path, or *".to_owned()),
    }
}

pub fn run(args: &ServeArgs, console: &Arc<Console>) -> Result<Exit> {
    // Whatever comes after it is newer.
    let states = States::of(args.runs.roots());
    let runs = args.runs.open()?;
    let keys = args.access.api_key_file.clone().map(|path| KeyFile(path).read());
    let keys = keys.transpose().map_err(|error| Error::Usage(format!("--api-key-file: {error}")))?;
    let control = Control::default();
    let (stop, reload) = (control.clone(), control.clone());
    signals::serve(move |signal| stop.stop(signal), move || reload.reload())?;
    // Before a device is taken, and for as long as it takes to load: those who ask are told to come again.
    let listener = args.listen()?;
    let address = listener.local_addr().map_err(crate::serve::Error::System)?;
    let _flushed = args.start_log().map_err(crate::serve::Error::System)?;
    if let Log::Json = args.log {
        console.note_in(|text| tracing::info!("{text}"));
    }
    let teller = Teller {
        console: console.clone(),
        address: format!("http://{address}"),
        is_told: AtomicBool::new(false),
    };
    teller.tell(format!("Listening on {}", teller.address));
    let replicas = Arc::new(args.device.connect(console)?);
    if replicas.is_shared() {
        return Err(Error::Usage(
            "serve: a slice of several hosts can't be asked; serve on a single host".to_owned(),
        ));
    }
    runs.iter().for_each(|(run, _)| console.note_padding(&run.model.bert, &run.tokenizer));

    let options = args.options(replicas.backend());
    let again = args.runs.clone();
    let served = Served {
        open: Box::new(move || again.open().map_err(|error| error.to_string())),
        roots: args.runs.roots().to_vec(),
        states,
        replicas,
    };
    serve(listener, runs, served, options, keys, &control, Arc::new(teller))?;
    // At once, whatever else goes on.
    Ok(Exit::Status(0))
}

impl ServeArgs {
    /// Where requests come.
    fn listen(&self) -> Result<TcpListener> {
        let (host, port) = (&*self.host, self.port);
        let usage = |why: String| Error::Usage(format!("--host {host} --port {port}: {why}"));
        let addresses =
            (host, port).to_socket_addrs().map_err(|error| usage(format!("no such address: {error}")))?;
        let addresses = addresses.collect::<Vec<_>>();
        let is_safe = self.access.api_key_file.is_some() || self.access.without_key;
        if !is_safe && !addresses.iter().all(|address| is_own(address.ip())) {
            return Err(usage(
                "other machines can reach it: give --api-key-file, or insist by --without-key".to_owned(),
            ));
        }
        TcpListener::bind(&*addresses)
            .map_err(|error| usage(format!("can't listen there: {error}; choose another --port")))
    }

    fn options(&self, backend: Backend) -> Options {
        // Where a step takes as long as its tokens, none should be padding.
        let sizes: &[usize] = if backend == Backend::Cpu { &[1, 2, 4, 8, 16, 32] } else { &[1, 8, 32] };
        let Limits { time_out, read_time_out, drain_time_out, .. } = self.limits;
        let mut hosts = self.access.allow_host.clone();
        hosts.extend(rustix::system::uname().nodename().to_str().ok().map(str::to_owned));
        Options {
            sizes: self.batch_sizes.clone().unwrap_or_else(|| sizes.to_vec()),
            max_body: self.limits.max_body as usize,
            max_table: self.limits.max_table,
            max_tables: self.limits.max_tables,
            max_inputs: self.limits.max_inputs.min(self.limits.max_queue),
            max_queue: self.limits.max_queue,
            max_connections: self.limits.max_connections.min(descriptors()),
            time_out: Duration::from_secs_f64(time_out),
            read_time_out: Duration::from_secs_f64(read_time_out),
            drain_time_out: Duration::from_secs_f64(drain_time_out),
            allowed_origins: self.access.allow_origin.clone(),
            allowed_hosts: hosts,
            watch: self.watch.map(Duration::from_secs_f64),
        }
    }

    /// The log, which is whole once what is returned is dropped. Lines that nobody takes are left out: no request waits for
    /// them.
    fn start_log(&self) -> io::Result<WorkerGuard> {
        // Of its own: a plugin is opened with stderr turned away.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let (writer, guard) = tracing_appender::non_blocking(stderr);
        let log = tracing_subscriber::fmt().with_writer(writer).with_target(false);
        let requests = !matches!(self.log, Log::None);
        let log = log.with_max_level(if requests { tracing::Level::INFO } else { tracing::Level::WARN });
        match self.log {
            Log::Json => log.json().flatten_event(true).init(),
            Log::Text | Log::None => log.with_ansi(false).init(),
        }
        Ok(guard)
    }
}

/// Whether nobody else can reach it.
fn is_own(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// For so many connections there are file descriptors, once all that may be had are.
fn descriptors() -> usize {
    /// For files, and for those whom there is no room for.
    const OTHERS: u64 = 256;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it can't be raised, it stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(OTHERS).max(OTHERS) as usize
}

/// Tells people what happens.
struct Teller {
    console: Arc<Console>,
    address: String,
    /// Whether it was said what is compiled.
    is_told: AtomicBool,
}

impl Teller {
    /// Says it, without waiting long for somebody to take it.
    fn tell(&self, text: String) {
        const LONG: Duration = Duration::from_secs(1);
        let (told, is_told) = mpsc::channel();
        let console = self.console.clone();
        let teller = thread::Builder::new().spawn(move || {
            console.note(&text);
            // Who has stopped waiting needn't be told.
            let _ = told.send(());
        });
        if teller.is_ok() {
            let _ = is_told.recv_timeout(LONG);
        }
    }
}

impl Observer for Teller {
    fn compiled(&self, _: usize, all: usize) {
        if all > 0 && !self.is_told.swap(true, Ordering::Relaxed) {
            self.tell(format!("Compiling {}", plural(all, "program")));
        }
    }

    fn ready(&self, after: Duration) {
        self.tell(format!("Ready after {:.1} s: {}", after.as_secs_f64(), self.address));
    }

    fn stopping(&self, why: &str) {
        self.tell(format!("{why}: answering what was taken"));
    }
}
