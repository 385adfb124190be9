//! A stand-in for a slice of several hosts on this machine: each host is a process, its devices are shares of one CPU
//! plugin's, which a server holds. `tests/fixtures/slice_plugin.c` tells how it behaves.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cli::{asset, text};
use super::{cpu_plugin, empty_folder};

/// Hosts that take longer are killed, and the test fails: a slice hangs when its hosts don't agree.
pub const TIME_LIMIT: Duration = Duration::from_secs(240);

struct Built {
    server: PathBuf,
    plugin: PathBuf,
}

/// The server and the plugin; `None`, after saying so, if there is no C compiler.
fn built() -> Option<&'static Built> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    let build = || {
        let folder = empty_folder("slice");
        let built = Built { server: folder.join("slice_server"), plugin: folder.join("slice_plugin.so") };
        let compile = |flags: &[&str], source: &str, output: &Path| {
            let mut compile = Command::new("cc");
            compile.args(["-O1", "-pthread"]).args(flags).arg("-o").arg(output);
            let compiled = compile.arg(asset("../tests/fixtures").join(source)).arg("-ldl").output()?;
            assert!(compiled.status.success(), "{}", text(compiled.stderr));
            Ok::<_, std::io::Error>(())
        };
        let server = compile(&[], "slice_server.c", &built.server);
        match server.and_then(|()| compile(&["-shared", "-fPIC"], "slice_plugin.c", &built.plugin)) {
            Ok(()) => Some(built),
            Err(error) => {
                eprintln!("skipped: cc: {error}");
                None
            }
        }
    };
    BUILT.get_or_init(build).as_ref()
}

/// A slice whose hosts are still to come. It serves one set of hosts, and ends when they have; or when it is dropped, or
/// the thread that started it ends.
pub struct Slice {
    server: Child,
    folder: PathBuf,
    plugin: &'static Path,
}

impl Slice {
    /// A slice of `hosts`; `None`, after saying so, if there is no C compiler: the test is skipped.
    pub fn start(hosts: usize) -> Option<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let built = built()?;
        // Not in the build's folder, whose name may be too long for a socket's.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("bert-xla-slice-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(&built.server);
        command.arg(folder.join("socket")).arg(cpu_plugin()).arg(hosts.to_string());
        let server = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut slice = Self { server, folder, plugin: &built.plugin };
        let mut said = String::new();
        BufReader::new(slice.server.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the slice's server does not start");
        Some(slice)
    }

    /// Runs a command line of `bert-xla`, which names the CPU backend, as host `process`; it asks for so many replicas
    /// over all hosts.
    pub fn spawn(&self, process: usize, mut command: Command, replicas: usize) -> Host {
        command.arg("--plugin").arg(self.plugin).args(["--replicas", &replicas.to_string()]);
        self.spawn_other(process, command)
    }

    /// Runs another program as host `process`. It finds the plugin in `SLICE_PLUGIN`.
    pub fn spawn_other(&self, process: usize, mut command: Command) -> Host {
        let output = |stream: &str| self.folder.join(format!("{process}.{stream}"));
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        command.env("SLICE_SOCKET", self.folder.join("socket")).env("SLICE_PROCESS", process.to_string());
        command.env("SLICE_PLUGIN", self.plugin).stdin(Stdio::null());
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        Host { process, child: command.spawn().unwrap(), stdout, stderr }
    }

    /// Whether the server is there.
    pub fn is_serving(&mut self) -> bool {
        self.server.try_wait().unwrap().is_none()
    }

    /// Waits for the server to end, which it does when the last host is gone.
    #[track_caller]
    pub fn wait(mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.is_serving() {
            assert!(Instant::now() < deadline, "the slice's server outlives its hosts");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(self.server.wait().unwrap().success());
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        end(&mut self.server);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Starts a slice with a host for each command, and gives what they end with.
#[track_caller]
pub fn run_hosts<const HOSTS: usize>(replicas: usize, commands: [Command; HOSTS]) -> Option<[End; HOSTS]> {
    let slice = Slice::start(HOSTS)?;
    let mut process = 0;
    let hosts = commands.map(|command| {
        process += 1;
        slice.spawn(process - 1, command, replicas)
    });
    let ends = wait(hosts);
    slice.wait();
    Some(ends)
}

/// Waits for all hosts to end.
#[track_caller]
pub fn wait<const HOSTS: usize>(mut hosts: [Host; HOSTS]) -> [End; HOSTS] {
    let deadline = Instant::now() + TIME_LIMIT;
    while hosts.iter_mut().any(Host::is_running) {
        if Instant::now() > deadline {
            let said = hosts.iter().map(|host| format!("process {}:\n{}", host.process, host.stderr()));
            panic!("hosts that don't end:\n{}", said.collect::<String>());
        }
        thread::sleep(Duration::from_millis(5));
    }
    hosts.map(|mut host| End {
        code: host.child.wait().unwrap().code(),
        stdout: text(fs::read(&host.stdout).unwrap()),
        stderr: host.stderr(),
    })
}

/// A process that is a host of a slice. It is killed when it is dropped. What it says is in files of the slice's, which
/// is to outlive it.
pub struct Host {
    process: usize,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Host {
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        text(fs::read(&self.stderr).unwrap())
    }

    /// Waits until it has said this on stderr.
    #[track_caller]
    pub fn wait_for(&mut self, said: &str) {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            // Asked first: it may say this and end.
            let is_running = self.is_running();
            if self.stderr().contains(said) {
                return;
            }
            assert!(is_running && Instant::now() < deadline, "{}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Kills it if it still runs after this time.
    pub fn kill_after(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while self.is_running() {
            if Instant::now() > deadline {
                return self.child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for it alone.
    #[track_caller]
    pub fn wait(self) -> End {
        let [end] = wait([self]);
        end
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// What a host has ended with.
#[derive(Debug, PartialEq)]
pub struct End {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl End {
    /// The one line that says why a host failed.
    #[track_caller]
    pub fn error(&self) -> &str {
        let mut errors = self.stderr.lines().filter(|line| line.starts_with("error: "));
        let (Some(error), None) = (errors.next(), errors.next()) else { panic!("not one error: {self:?}") };
        error
    }
}
