//! A TPU VM whose workers are folders of this machine, each with a real sshd of its own; the real `gcloud` reaches them
//! through a TPU API of this machine. Where either is missing, tests say that they skip.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::empty_folder;
use super::tpu_api::{Machines, TpuApi};

pub const PROGRAM_UNDER_TEST: &str = env!("CARGO_BIN_EXE_bert-xla");

/// Stands in for the program: writes a run of two checkpoints, prints its arguments, and ends with status 3 when a file
/// `go` appears. After TERM, it says what was saved, and ends with status 75. `train stubborn` ignores TERM, `train
/// slow` saves until `go` appears, `train early` doesn't listen yet, and `train ends COMMAND` runs that.
pub const PROGRAM: &str = r#"#!/bin/sh
stop=
case "$1" in
    --version) echo bert-xla 0 ;;
    plugins) echo "$@" >installed ;;
    train)
        case "$2" in
            stubborn) trap '' TERM ;;
            early) ;;
            *) trap stop=yes TERM ;;
        esac
        for step in 7 9; do
            mkdir -p run/checkpoints/step-$step
            for file in model.safetensors history.jsonl first_moments.safetensors; do
                echo "$file of $step" >run/checkpoints/step-$step/$file
            done
        done
        cat >run/run.json <<'END'
{
  "checkpoint": "checkpoints/step-7",
  "newest": "checkpoints/step-9",
  "files": [
    {
      "name": "history.jsonl"
    },
    {
      "name": "model.safetensors"
    }
  ]
}
END
        printf '[%s]\n' "$@"
        [ "$2" != ends ] || eval "$3"
        waited=0
        until [ -e go ] || [ $stop ] || [ $waited -gt 6000 ]; do sleep 0.05; waited=$((waited + 1)); done
        [ $stop ] || exit 3
        [ "$2" != slow ] || until [ -e go ]; do sleep 0.05; done
        echo 'Stopped (SIGTERM) after step 7, which is saved in run; the same command goes on from there'
        exit 75 ;;
esac
"#;

pub const KILLED: &str = ": killed, or the VM restarted";
/// What worker and program say of a run that was stopped.
pub const STOPPED: &str = ": stopped and saved, exit status 75: Stopped (SIGTERM) after step 7, which is saved in run; \
                           the same command goes on from there\n";

/// The workers: their homes and what answers on their ports.
struct Workers {
    folder: PathBuf,
    daemons: Vec<Child>,
    ports: Vec<u16>,
}

impl Workers {
    fn new(folder: &Path, count: usize) -> Self {
        // Taken all at once, so that no two are the same.
        let free = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
        let ports = free.iter().map(|port| port.local_addr().unwrap().port()).collect();
        Self { folder: folder.to_owned(), daemons: vec![], ports }
    }

    /// Who logs in is at home in the worker's folder, as its only user; `sudo` and the image's `gcloud` are the test's.
    fn start(&self, worker: usize) -> Child {
        let folder = &self.folder;
        let home = folder.join(worker.to_string());
        let shell = format!(
            "#!/bin/bash\nexport HOME='{0}' PATH=\"{1}:$PATH\" TPU_VM='{2}'\n[ ! -e '{2}/environment' ] || . '{2}/environment'\ncd \"$HOME\" && exec bash -c \"$SSH_ORIGINAL_COMMAND\"\n",
            home.display(),
            folder.join("worker-bin").display(),
            folder.display()
        );
        write_program(&folder.join(format!("shell{worker}")), &shell);
        let config = format!(
            "ListenAddress {4}\nPort {0}\nHostKey {2}/host_key\nAuthorizedKeysFile {2}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n\
             MaxStartups 100\nSubsystem sftp {3}\nForceCommand {2}/shell{1}\n",
            self.ports[worker],
            worker,
            folder.display(),
            SFTP_SERVER,
            internal(worker),
        );
        let path = folder.join(format!("sshd{worker}.config"));
        fs::write(&path, config).unwrap();
        let log = fs::File::create(folder.join(format!("sshd{worker}.log"))).unwrap();
        Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }
}

const SSHD: &str = "/usr/sbin/sshd";
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

impl Machines for Workers {
    fn boot(&mut self) {
        for worker in 0..self.ports.len() {
            let home = self.folder.join(worker.to_string());
            fs::create_dir_all(&home).unwrap();
            let daemon = self.start(worker);
            self.daemons.push(daemon);
            let address = (internal(worker), self.ports[worker]);
            let deadline = Instant::now() + Duration::from_secs(30);
            while std::net::TcpStream::connect(&address).is_err() {
                assert!(Instant::now() < deadline, "sshd of worker {worker} doesn't answer");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Without a warning, and with all processes and files.
    fn remove(&mut self) {
        for worker in 0..self.ports.len() {
            end_processes_in(&self.folder.join(worker.to_string()));
        }
        for mut daemon in self.daemons.drain(..) {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for worker in 0..self.ports.len() {
            let home = self.folder.join(worker.to_string());
            // What still writes there may add a file meanwhile.
            let deadline = Instant::now() + Duration::from_secs(30);
            while home.exists() && fs::remove_dir_all(&home).is_err() {
                end_processes_in(&home);
                assert!(Instant::now() < deadline, "{} can't be removed", home.display());
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn authorize(&mut self, keys: &str) {
        // Each is `USER:KEY`.
        let keys = keys.lines().filter_map(|line| line.split_once(':')).map(|(_, key)| format!("{key}\n"));
        fs::write(self.folder.join("authorized_keys"), keys.collect::<String>()).unwrap();
    }

    fn endpoints(&self) -> Vec<Json> {
        let endpoint = |worker| json!({ "ipAddress": internal(worker), "port": 8470, "accessConfig": { "externalIp": public(worker) } });
        (0..self.ports.len()).map(endpoint).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.remove();
    }
}

fn internal(worker: usize) -> String {
    format!("127.0.1.{}", worker + 1)
}

fn public(worker: usize) -> String {
    format!("203.0.113.{}", worker + 1)
}

/// Kills every process whose HOME is there, as a machine that is switched off does.
pub fn end_processes_in(home: &Path) {
    let variable = format!("HOME={}", home.display());
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(environment) = fs::read(process.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes()) {
            let pid = process.file_name().into_string().unwrap();
            let _ = Command::new("kill").args(["-s", "KILL", &pid]).stderr(Stdio::null()).status();
        }
    }
}

/// The command lines of a process's ancestors.
fn parents(process: &Path) -> Vec<String> {
    let mut lines = vec![];
    let mut process = process.to_owned();
    while let Ok(stat) = fs::read_to_string(process.join("stat")) {
        // After the name, which may hold anything: state, parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).unwrap_or("0");
        process = Path::new("/proc").join(parent);
        let Ok(line) = fs::read(process.join("cmdline")) else { break };
        lines.push(String::from_utf8_lossy(&line).replace('\0', " "));
    }
    lines
}

/// A TPU VM that can be made, and a machine from which it is reached.
pub struct TpuVm {
    pub folder: PathBuf,
    pub api: TpuApi,
    workers: usize,
}

impl TpuVm {
    /// A machine from which nothing has been made; `None`, after a word, where `gcloud` or `sshd` is missing.
    pub fn none_yet(test: &str, workers: usize) -> Option<Self> {
        static HAS_GCLOUD: LazyLock<bool> = LazyLock::new(|| {
            Command::new("gcloud").arg("version").output().is_ok_and(|output| output.status.success())
        });
        if !*HAS_GCLOUD || !Path::new(SSHD).exists() {
            eprintln!("skipped: {test}: needs gcloud and {SSHD}");
            return None;
        }
        let folder = empty_folder(&format!("tpu_vm_{test}"));
        for name in ["bin", "worker-bin", "laptop", "gcloud"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let key = folder.join("host_key");
        let generated =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(generated.unwrap().success());
        // sshd's own, if it runs as root.
        let _ = fs::create_dir_all("/run/sshd");
        let machines = Workers::new(&folder, workers);
        let hosts = machines.ports.iter().enumerate().map(|(worker, port)| {
            format!("Host {0} {1}\nHostName {0}\nPort {port}\n", internal(worker), public(worker))
        });
        fs::write(folder.join("ssh_config"), hosts.collect::<String>()).unwrap();
        // The only thing that is not as anywhere else: where addresses lead.
        for program in ["ssh", "scp"] {
            let own =
                format!("#!/bin/sh\nexec /usr/bin/{program} -F '{}/ssh_config' \"$@\"\n", folder.display());
            write_program(&folder.join("bin").join(program), &own);
        }
        // Nobody but root may change the machine's own settings.
        write_program(&folder.join("worker-bin/sudo"), "#!/bin/sh\necho \"$@\" >>\"$HOME/sudo\"\n");
        write_program(&folder.join("program"), PROGRAM);
        let api = TpuApi::start(Box::new(machines));
        Some(Self { folder, api, workers })
    }

    /// Two workers that are ready.
    pub fn new(test: &str) -> Option<Self> {
        let vm = Self::none_yet(test, 2)?;
        vm.works("create", &["--type", "v3-16"]);
        Some(vm)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What is set for the person at this machine.
    pub fn environment(&self) -> [(&'static str, String); 11] {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("PATH", format!("{}:{}", path("bin"), std::env::var("PATH").unwrap())),
            ("TPU_VM", self.folder.display().to_string()),
            ("HOME", path("laptop")),
            ("CLOUDSDK_CONFIG", path("gcloud")),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU", self.api.url.clone()),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", format!("{}compute/v1/", self.api.url)),
            ("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true".to_owned()),
            ("CLOUDSDK_CORE_PROJECT", "p".to_owned()),
            ("CLOUDSDK_CORE_DISABLE_PROMPTS", "1".to_owned()),
            ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true".to_owned()),
            ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1".to_owned()),
        ]
    }

    /// Anything, as the person at this machine runs it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment());
        for variable in ["CLOUDSDK_COMPUTE_ZONE", "XDG_STATE_HOME", "SSH_AUTH_SOCK"] {
            command.env_remove(variable);
        }
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Breaks every connection to a worker that is open now; what runs there goes on.
    pub fn cut_connections(&self) {
        // Of sshd, the process of each connection has the name of its user, not the configuration's.
        let user = format!("sshd: {}", std::env::var("USER").unwrap_or_else(|_| "root".to_owned()));
        let daemons = self.path("sshd").display().to_string();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
            if line.starts_with(&user) && parents(&process.path()).iter().any(|line| line.contains(&daemons))
            {
                let pid = process.file_name().into_string().unwrap();
                let _ = Command::new("kill").args(["-s", "KILL", &pid]).stderr(Stdio::null()).status();
            }
        }
    }

    /// `bert-xla tpu-vm VERB my-tpu --zone z ARGUMENTS`, not run yet.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(PROGRAM_UNDER_TEST);
        command.args(["tpu-vm", verb, "my-tpu", "--zone", "z"]).args(arguments);
        command
    }

    /// Exit status, stdout and stderr.
    pub fn run(&self, verb: &str, arguments: &[&str]) -> (i32, String, String) {
        output(&mut self.verb(verb, arguments))
    }

    /// `bert-xla tpu-vm VERB`.
    #[track_caller]
    pub fn works_without_name(&self, verb: &str) -> String {
        let (status, stdout, stderr) = output(self.command(PROGRAM_UNDER_TEST).args(["tpu-vm", verb]));
        assert_eq!(status, 0, "{stdout}{stderr}");
        stdout
    }

    #[track_caller]
    pub fn works(&self, verb: &str, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(verb, arguments);
        assert_eq!(status, 0, "{stdout}{stderr}");
        stdout
    }

    /// Sets up the stand-in for the program.
    #[track_caller]
    pub fn set_up(self) -> Self {
        self.works("setup", &["--binary", "program"]);
        self
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Lets the program end on all workers.
    pub fn go(&self) {
        for worker in 0..self.workers {
            fs::write(self.path(&format!("{worker}/bert-xla/go")), "").unwrap();
        }
    }

    /// What is in a folder, sorted.
    pub fn list(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What `status` has a worker say, without gcloud, which takes its time.
    fn report(&self, worker: usize) -> String {
        let gcloud = format!(
            "gcloud() {{ for word; do case $word in --command=*) \
             SSH_ORIGINAL_COMMAND=\"${{word#--command=}}\" '{}/shell{worker}' ;; esac; done; }}; {}",
            self.folder.display(),
            self.works("status", &["--dry-run"])
        );
        output(self.command("bash").args(["-c", &gcloud])).1
    }

    /// Waits for a report of all workers.
    #[track_caller]
    pub fn wait_for(&self, report: &str) {
        let all = |status: &str| status.lines().filter(|line| line.contains(report)).count() == self.workers;
        wait_until(|| (0..self.workers).map(|worker| self.report(worker)).collect(), all);
    }

    /// Waits until all workers' programs have printed this: they listen for signals then, and have written the run.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        for worker in 0..self.workers {
            let log = format!("{worker}/bert-xla/run.log");
            wait_until(|| self.read(&log), |log| log.contains(text));
        }
    }
}

/// Waits, for at most a minute, until what is `read` is as wanted.
#[track_caller]
pub fn wait_until(read: impl Fn() -> String, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = read();
        if wanted(&text) {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        thread::sleep(Duration::from_millis(50));
    }
}

pub fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("an exit status"), text(stdout), text(stderr))
}
