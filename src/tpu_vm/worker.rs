//! What the workers run: lines of shell, each one command of an ssh.
//!
//! All of it lies in `~/bert-xla`: the program, the data, and of the run its log, pid, exit status, `--output`, lock and
//! names. A run holds the lock as long as it lives, so that "is one going on?" needs no cleaning up after a crash or a
//! restart.
//!
//! When a connection breaks, gcloud runs the same line again, up to nine times: a line that must not be done twice knows
//! itself by a name.

use super::gcloud::{quote, quote_all};

/// Prepares the folder, and the machine: TPUs of v5e and later want transparent huge pages, which nobody but root turns on.
/// What is there of `names` will be overwritten, which read-only files would prevent; the set-up before is none any more.
/// Fails where there is less room than so many bytes: gcloud would try to copy ten times.
pub fn prepare(names: &[String], bytes: u64) -> String {
    let names = names.iter().map(|name| format!(" {}", quote(&format!("./{name}")))).collect::<String>();
    format!(
        "mkdir -p bert-xla && cd bert-xla && rm -f setup.id || exit; \
         huge=/sys/kernel/mm/transparent_hugepage/enabled; if [ -e /dev/vfio ] && ! grep -q '\\[always\\]' $huge; \
         then sudo -n sh -c \"echo always >$huge\" || echo \"$(hostname): transparent huge pages stay off\" >&2; fi; \
         free=$(($(df --output=avail -k . | tail -n 1) * 1024)); for name in{names}; do [ ! -e \"$name\" ] || \
         {{ chmod -R u+w \"$name\"; free=$((free + $(du -sk \"$name\" | cut -f 1) * 1024)); }}; done; \
         [ $free -ge {bytes} ] || \
         {{ echo \"error: $(hostname): $free bytes are free in $PWD, and {bytes} are to come\" >&2; exit 1; }}"
    )
}

/// Puts the new program in place if it runs, which a newer glibc than the worker's prevents. There is none where that was
/// done before the connection broke.
pub const CHECK: &str = "cd bert-xla && { [ -e bert-xla.new ] || [ ! -x bert-xla ] || exit 0; } && \
    chmod +x bert-xla.new && if ./bert-xla.new --version; then mv -f bert-xla.new bert-xla; \
    else echo \"error: $(hostname): the program does not run on $(uname -m) with $(ldd --version | head -n 1): \
    build it for that, docs/tpu-vm.md says how\" >&2; exit 1; fi";

/// Installs the TPU plugin, from this wheel where one was copied into the folder, copies what comes from buckets, and writes
/// down that all of the set-up `id` is done: what was started before is another program's. Right after a VM was made, its
/// gcloud is a snap that isn't there yet.
pub fn complete(wheel: Option<&str>, urls: &[&str], id: &str) -> String {
    let from = wheel.map(|wheel| format!(" --wheel {}", quote(&format!("./{wheel}")))).unwrap_or_default();
    let used = wheel.map(|wheel| format!("rm -f {}; ", quote(&format!("./{wheel}")))).unwrap_or_default();
    let wait =
        "PATH=$PATH:/snap/bin; command -v gcloud >/dev/null || timeout 300 snap wait system seed.loaded; ";
    let wait = if urls.is_empty() { "" } else { wait };
    let copy = |url: &&str| format!("gcloud storage cp -r {} . || exit; ", quote(url));
    let copies = urls.iter().map(copy).collect::<String>();
    format!(
        "{ENTER}./bert-xla plugins install tpu{from} || exit; {used}{wait}{copies}rm -f run.job; echo {id} >setup.id"
    )
}

const ENTER: &str = "cd bert-xla 2>/dev/null && [ -x bert-xla ] || \
    { echo \"error: $(hostname): no program: run setup first\" >&2; exit 1; }; ";

/// Starts the run, unless that is done: `call` is this start's name, `job` that of what it is to do. `output` is what
/// train's `--output` is.
///
/// Descriptor 9 keeps the lock in the run's processes after the line's shell has gone. setsid and the redirections leave
/// the run nothing that ends with the connection; the trap lets its exit status be written when `stop` ends it. `$()` waits
/// until the run's shell redirects its output: only then, with the trap and the pid in place, can a `stop` follow. The log
/// goes on, as the run may. Where the disk is full, nothing is started, and the exit status has a line to be written to.
pub fn start(arguments: &[String], output: &str, job: &str, call: &str) -> String {
    let (output, arguments) = (quote(output), quote_all(arguments));
    format!(
        "{ENTER}same() {{ [ \"$(cat run.call 2>/dev/null)\" = {call} ]; }}; \
         exec 9>run.lock; flock --timeout 1 9 || \
         {{ same && echo \"$(hostname): started, pid $(cat run.pid)\" && exit; \
         echo \"error: $(hostname): a run is going on, pid $(cat run.pid): wait for it or stop it\" >&2; exit 1; }}; \
         if same; then echo \"$(hostname): started, and ended\"; exit; fi; \
         rm -f run.chief; echo >run.pid && echo >run.status && printf '%s\\n' {output} >run.output && \
         echo {job} >run.job && echo {call} >run.call && : >>run.log || exit; export BERT_XLA_CHIEF_FILE=\"$PWD/run.chief\"; \
         pid=$(setsid sh -c 'trap : TERM; echo $$ 1<>run.pid; echo $$; exec >>run.log 2>&1 </dev/null; \
         [ ! -s run.log ] || date \"+%n--- started again on %F at %T %Z\"; \"$@\"; echo $? 1<>run.status' \
         sh ./bert-xla train {arguments} &); echo \"$(hostname): started, pid $pid\""
    )
}

const RUNNING: &str = "! flock --shared --nonblock run.lock true";
const ENDED: &str = "[ -n \"$(cat run.status 2>/dev/null)\" ]";

/// A status above 128 is that of a signal. There is none if all of the run was killed, or went with the VM.
fn tell() -> String {
    format!(
        "me=\"$(hostname)$([ ! -e run.chief ] || echo ' (chief)')\"; \
         if {RUNNING}; then echo \"$me: running, pid $(cat run.pid)\"; elif {ENDED}; then \
         status=$(cat run.status); case $status in 0) echo \"$me: done\" ;; \
         75) echo \"$me: stopped and saved, exit status 75$(sed -n \"s/^Stopped (/: &/p\" run.log | tail -n 1)\" ;; \
         129 | 1[3-9]?) echo \"$me: killed by SIG$(kill -l $status)\" ;; \
         *) echo \"$me: failed, exit status $status\" ;; esac; \
         elif [ -e run.log ]; then echo \"$me: killed, or the VM restarted\"; \
         else echo \"$me: no run yet\"; fi; "
    )
}

/// Says how the run does, for people.
pub fn report() -> String {
    format!("{ENTER}{}", tell())
}

/// Says the same for [`Observed`].
pub fn observe() -> String {
    format!(
        "set -- $SSH_CONNECTION; address=$3; \
         cd bert-xla 2>/dev/null || {{ echo \"bert-xla state=none address=$address\"; exit; }}; \
         status=; if {RUNNING}; then state=running; elif [ ! -e run.job ]; then state=none; \
         elif {ENDED}; then state=ended; status=$(cat run.status); else state=killed; fi; \
         echo \"bert-xla state=$state status=$status setup=$(cat setup.id 2>/dev/null) \
         job=$(cat run.job 2>/dev/null) chief=$([ ! -e run.chief ] || echo yes) address=$address \
         error=$([ $state != ended ] || tac run.log | sed '/^--- started again on /q' | grep -m 1 '^error: ')\""
    )
}

/// What is on a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// By which ssh reached it, in the VM's own network.
    pub address: String,
    /// The set-up that it has had, and the job that it has had last.
    pub setup: String,
    pub job: String,
    /// Whether it is the one that writes the run.
    pub is_chief: bool,
    pub state: RunState,
    /// What it said last of why it failed; empty if nothing.
    pub error: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    #[default]
    None,
    Running,
    /// With this exit status.
    Ended(u8),
    /// Without a word.
    Killed,
}

impl Observed {
    /// Reads what [`observe`]'s line printed on all workers, among whatever else ssh did.
    pub fn parse_all(text: &str) -> Option<Vec<Self>> {
        text.lines().filter_map(|line| line.strip_prefix("bert-xla state=")).map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let (line, error) = line.split_once(" error=").unwrap_or((line, ""));
        let error = error.strip_prefix("error: ").unwrap_or_default().to_owned();
        let (state, rest) = line.split_once(' ').unwrap_or((line, ""));
        let value = |name: &str| {
            let word = rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.unwrap_or_default().to_owned()
        };
        let state = match state {
            "none" => RunState::None,
            "running" => RunState::Running,
            "ended" => RunState::Ended(value("status").parse().ok()?),
            "killed" => RunState::Killed,
            _ => return None,
        };
        let (setup, job, address) = (value("setup"), value("job"), value("address"));
        Some(Self { address, setup, job, is_chief: value("chief") == "yes", state, error })
    }
}

/// The status of a line that has met what it had done before, when the connection broke.
pub const REPEATED: u8 = 254;

/// Prints the log from byte `from` on; until the run ends, and then ends as it did, if it is to `follow`. `call` is this
/// one's name.
pub fn log(from: u64, follow: bool, call: &str) -> String {
    let first = from + 1;
    let once = format!(
        "[ -e run.log ] || {{ echo \"error: $(hostname): no run yet\" >&2; exit 1; }}; \
         ! grep -qsx {call} logs.calls || exit {REPEATED}; echo {call} >>logs.calls || exit 1; "
    );
    match follow {
        false => format!("{ENTER}{once}tail -c +{first} run.log"),
        true => format!(
            "{ENTER}{once}if {RUNNING}; then tail -c +{first} --pid=\"$(cat run.pid)\" -f run.log; \
             else tail -c +{first} run.log; fi; {{ {}}} >&2; \
             {ENDED} && exit \"$(cat run.status)\"; exit 1",
            tell()
        ),
    }
}

/// Each of `steps` is a signal and for how many seconds the run may then go on. A second TERM is there because the first
/// may come just before the program starts; the program takes no notice of it.
fn signal(steps: &str) -> String {
    format!(
        "steps='{steps}'; for step in $steps; do flock --shared --nonblock run.lock true && break; \
         kill -s \"${{step%:*}}\" -- \"-$(cat run.pid)\" 2>/dev/null || break; \
         flock --shared --timeout \"${{step#*:}}\" run.lock true; done; "
    )
}

/// KILL leaves the run as a crash would: what it has saved is whole.
fn stopped() -> String {
    format!(
        "if {RUNNING}; then echo \"error: $(hostname): the run did not stop: see there what it is with \
         fuser -v bert-xla/run.lock; if it can't be ended, sudo reboot\" >&2; exit 1; fi; "
    )
}

/// Ends the run at once. libtpu's lock file outlives a process that is killed.
pub fn stop_now() -> String {
    format!(
        "{ENTER}{}{}lock=/tmp/libtpu_lockfile; rm -f $lock 2>/dev/null || sudo -n rm -f $lock || \
         echo \"$(hostname): $lock can't be removed\" >&2; {}",
        signal("TERM:5 TERM:5 KILL:5"),
        stopped(),
        tell()
    )
}

/// Asks the run to stop, and waits for so many seconds until it has.
pub fn stop(wait: u32) -> String {
    let first = wait.min(5);
    format!(
        "{ENTER}wait={wait}; if {RUNNING}; then \
         echo \"$(hostname): asked to stop; waiting up to $wait s until it has saved and ended\" >&2; fi; {}\
         if {RUNNING} && kill -s 0 -- \"-$(cat run.pid)\" 2>/dev/null; then \
         echo \"error: $(hostname): after $wait s the run still saves: stop again to wait on; stop --now kills it, and \
         loses the steps since the last checkpoint\" >&2; exit 1; fi; {}{}",
        signal(&format!("TERM:{first} TERM:{}", wait - first)),
        stopped(),
        tell()
    )
}

/// Fails where the run that was started last is in a bucket.
const IN_BUCKET: &str = "case \"$(cat run.output 2>/dev/null)\" in gs://*) run=$(cat run.output); \
    echo \"error: the run is in a bucket: gcloud storage cp -r $run FOLDER copies it, and --run $run of evaluate and \
    predict reads it there\" >&2; exit 1 ;; esac; ";

/// The status of what looks for a run, where the folder holds none yet.
pub const NO_RUN: u8 = 253;

/// Puts together, in `stage`, what is to be copied of the folder `run`, in links, so that it stays while the run goes on:
/// the files that run.json lists, from the checkpoint that it names, and all checkpoints that it names if those are wanted,
/// too; then the weights come in one of them. None of this is removed before run.json names others: if it is still the
/// same, all is of one moment. Of an ensemble, each member is such a run. `is_guess` where nobody has named the folder.
pub fn stage(run: &str, stage: &str, checkpoints: bool, is_guess: bool) -> String {
    let known = if is_guess { IN_BUCKET } else { "" };
    let (run, stage, one_run) = (quote(run), quote(stage), one_run());
    format!(
        "({ENTER}) || exit {NO_RUN}; cd bert-xla; {known}run={run}; stage={stage}; checkpoints={checkpoints}; rm -rf \"$run/.fetch\"; {one_run}\
         if [ -e \"$run/ensemble.json\" ]; then mkdir -p \"$stage\" || exit 1; \
         for file in \"$run\"/*; do [ ! -f \"$file\" ] || put \"$file\" \"$stage/\"; done; \
         for member in $(tr -d '\\n\" ' <\"$run/ensemble.json\" | sed 's/.*members:\\[\\([^]]*\\)\\].*/\\1/; s/,/ /g'); \
         do one_run \"$run/$member\" \"$stage/$member\"; done; \
         else one_run \"$run\" \"$stage\"; fi"
    )
}

/// Of the folder `$1`, to `$2`.
fn one_run() -> String {
    format!(
        "put() {{ ln \"$1\" \"$2\" 2>/dev/null || cp \"$1\" \"$2\" || whole=no; }}; \
         one_run() {{ [ -e \"$1/run.json\" ] || \
         {{ echo \"error: $(hostname): no run in $1: --run says what train's --output was\" >&2; exit {NO_RUN}; }}; \
         for try in 1 2 3; do rm -rf \"$2\"; mkdir -p \"$2\" && cp \"$1/run.json\" \"$2/\" || exit 1; whole=yes; \
         current=$(sed -n 's|.*\"checkpoint\": *\"\\([^\"]*\\)\".*|\\1|p' \"$2/run.json\"); \
         named=$(sed -n 's|.*\"\\(checkpoints/[^\"]*\\)\".*|\\1|p' \"$2/run.json\" | sort -u); \
         [ -n \"$named\" ] || {{ echo \"error: $(hostname): $1: nothing is saved yet\" >&2; exit {NO_RUN}; }}; \
         [ -n \"$current\" ] || $checkpoints || {{ echo \"error: $(hostname): $1: no epoch is done yet; \
         fetch --checkpoints brings what is saved\" >&2; exit 1; }}; \
         [ -d \"$1/$current\" ] || {{ current=. named=; }}; \
         for file in $(sed -n 's|.*\"name\": *\"\\([^\"]*\\)\".*|\\1|p' \"$2/run.json\"); do \
         [ -n \"$named\" ] && $checkpoints && [ $file = model.safetensors ] || put \"$1/$current/$file\" \"$2/\"; \
         done; if $checkpoints; then for folder in $named; do mkdir -p \"$2/$folder\"; \
         for file in \"$1/$folder\"/*; do put \"$file\" \"$2/$folder/\"; done; done; fi; \
         [ $whole = yes ] && cmp -s \"$1/run.json\" \"$2/run.json\" && return; done; \
         echo \"error: $(hostname): $1 changed while it was looked at, $try times: fetch it again\" >&2; exit 1; }}; "
    )
}

/// Removes what was put together.
pub fn unstage(run: &str) -> String {
    format!("cd bert-xla && rm -rf {}", quote(&format!("{run}/.fetch")))
}

#[cfg(test)]
mod tests;
