//! Compiled programs kept on disk, so that a second start of the same job compiles nothing.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::client::{Client, Module};
use super::error::Result;
use super::execute::LoadedExecutable;
use super::options::CompileOptions;
use super::platform::{Backend, flags_file};
use crate::storage::write_atomic;

/// Opens every entry; it changes with the layout of entries and of keys. A hash of the rest follows, and then the key,
/// so that no entry is taken for another, and the program.
const MAGIC: &[u8; 8] = b"BXLAEXE2";
const HASH_BYTES: usize = 32;
/// Of a file's mode: the group's and everybody's right to write.
const OTHERS_WRITE: u32 = 0o022;

/// A folder of compiled programs. One is found by a hash of all that decides it: module, compile options, plugin,
/// platform and devices. An entry that is damaged, or that the plugin refuses, is compiled anew.
///
/// A compiled program is machine code that the process will run, and its hash shows damage, not who wrote it. So folder
/// and entry must be the user's own, or root's, and nobody else may write to them; others are not used.
///
/// Trouble with the cache itself is told on stderr, once, and never fails a run.
#[derive(Debug)]
pub struct ExecutableCache {
    folder: PathBuf,
    limit: u64,
    warned: AtomicBool,
}

impl ExecutableCache {
    /// 8 GiB: about a hundred of the article's train steps for TPU.
    pub const DEFAULT_LIMIT: u64 = 8 << 30;

    /// A cache in `folder`, which is made when it is first written to. When its files come to more than `limit`
    /// bytes, those that were used longest ago are removed.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Self {
        Self { folder: folder.into(), limit, warned: AtomicBool::new(false) }
    }

    /// `program` compiled for the client's devices, from the cache where it can be; and whether it was.
    ///
    /// # Errors
    /// Those of [`Client::compile`].
    pub fn compile(
        &self,
        client: &Client,
        program: &Module<'_>,
        options: &CompileOptions,
    ) -> Result<(LoadedExecutable, bool)> {
        if fs::metadata(&self.folder).is_ok_and(|folder| !self.is_trusted(&self.folder, &folder)) {
            return Ok((client.compile(program, options)?, false));
        }
        let key = key(client, program, options)?;
        let path = self.folder.join(&key);
        if let Some(bytes) = self.read(&path, &key) {
            // SAFETY: what is whole and of this key, in a file and a folder that only this user and root can write to,
            // is what this program has written there, which came from `serialize`.
            match unsafe { client.deserialize(&bytes, program, options) } {
                Ok(executable) => return Ok((executable, true)),
                Err(error) => self.warn(&format!("can't load {}: {error}; compiling", path.display())),
            }
        }
        let executable = client.compile(program, options)?;
        match executable.executable().serialize() {
            Ok(bytes) => self.write(&path, &key, &bytes),
            Err(error) => self.warn(&format!("compiled programs are not kept: {error}")),
        }
        Ok((executable, false))
    }

    /// The program that an entry holds; `None` if there is none, or if it is not what was written for `key`.
    fn read(&self, path: &Path, key: &str) -> Option<Vec<u8>> {
        // Of the open file: what the name stands for may change.
        let entry = File::open(path).and_then(|mut file| {
            if !self.is_trusted(path, &file.metadata()?) {
                return Ok(None);
            }
            let mut entry = Vec::new();
            file.read_to_end(&mut entry)?;
            Ok(Some(entry))
        });
        let mut entry = match entry {
            Ok(entry) => entry?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.warn(&format!("can't read {}: {error}; compiling", path.display()));
                return None;
            }
        };
        let header = MAGIC.len() + HASH_BYTES;
        let whole = entry.len() >= header
            && entry.starts_with(MAGIC)
            && Sha256::digest(&entry[header..])[..] == entry[MAGIC.len()..header]
            && entry[header..].starts_with(key.as_bytes());
        if !whole {
            self.warn(&format!("{} is damaged; compiling", path.display()));
            return None;
        }
        // So that what is used stays. A folder that can't be written to still serves.
        let _ =
            fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(entry.split_off(header + key.len()))
    }

    fn write(&self, path: &Path, key: &str, bytes: &[u8]) {
        // Whatever the umask says; what is there already stays as it is.
        let made = DirBuilder::new().recursive(true).mode(0o777 & !OTHERS_WRITE).create(&self.folder);
        let written = made.and_then(|()| {
            write_atomic(path, |file| {
                let mut permissions = file.get_ref().metadata()?.permissions();
                permissions.set_mode(permissions.mode() & !OTHERS_WRITE);
                file.get_ref().set_permissions(permissions)?;
                file.write_all(MAGIC)?;
                file.write_all(&Sha256::new().chain_update(key).chain_update(bytes).finalize())?;
                file.write_all(key.as_bytes())?;
                file.write_all(bytes)
            })
        });
        if let Err(error) = written.and_then(|()| self.shrink()) {
            let folder = self.folder.display();
            self.warn(&format!("compiled programs are not kept in {folder}: {error}"));
        }
    }

    /// Whether only this user and root could have written what is there; if not, says so.
    fn is_trusted(&self, path: &Path, found: &Metadata) -> bool {
        let path = path.display();
        if ![0, rustix::process::geteuid().as_raw()].contains(&found.uid()) {
            self.warn(&format!("{path} is another user's; compiling"));
            return false;
        }
        if found.mode() & OTHERS_WRITE != 0 {
            // Not to take the right away: what others wrote before would be trusted then.
            self.warn(&format!("others can write to {path}; compiling; remove it"));
            return false;
        }
        true
    }

    /// Removes the files that were used longest ago, until the rest is within the limit.
    fn shrink(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Another process may have removed it since.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        let mut total = files.iter().map(|(_, size, _)| size).sum::<u64>();
        files.sort();
        for (_, size, path) in files {
            if total <= self.limit {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => total -= size,
            }
        }
        Ok(())
    }

    /// One line is enough: what went wrong once is likely to again.
    fn warn(&self, message: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let _ = writeln!(io::stderr(), "executable cache: {message}");
        }
    }
}

/// A name for the result of a compilation: equal only if everything that decides it is equal.
fn key(client: &Client, program: &Module<'_>, options: &CompileOptions) -> Result<String> {
    let plugin = client.plugin();
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        // With its length, so that no two lists of parts run together to the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(MAGIC);
    add(client.platform_name()?.as_bytes());
    add(client.platform_version()?.as_bytes());
    add(format!("{:?} {:?}", plugin.api_version(), program.format).as_bytes());
    // Plugins of one version may still differ.
    if let Ok(metadata) = fs::metadata(plugin.path()) {
        add(format!("{} {:?}", metadata.len(), metadata.modified().ok()).as_bytes());
    }
    // Each process of a slice compiles for its own devices among all.
    add(&client.process_index().to_le_bytes());
    for device in client.devices() {
        add(format!("{} {} {}", device.id(), device.process_index(), device.kind()).as_bytes());
    }
    if plugin.backend() == Backend::Cpu {
        // Code for this processor need not run on the next one that shares the folder.
        add(processor().as_bytes());
    }
    if plugin.backend() == Backend::Gpu {
        add(&fs::read("/proc/driver/nvidia/version").unwrap_or_default());
    }
    // Flags that are not among the options.
    for variable in ["XLA_FLAGS", "LIBTPU_INIT_ARGS"] {
        add(std::env::var_os(variable).unwrap_or_default().as_encoded_bytes());
    }
    if let Some(file) = flags_file() {
        add(&fs::read(file).unwrap_or_default());
    }
    add(&options.to_bytes());
    add(program.code);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The model and the instruction sets of the first processor, as Linux tells them; empty elsewhere.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let decides =
        |line: &&str| ["model name", "flags", "Features", "CPU part"].iter().any(|key| line.starts_with(key));
    first.lines().filter(decides).collect::<Vec<_>>().join("\n")
}
