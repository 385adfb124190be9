//! Compiled programs kept on disk, so that a second start of the same job compiles nothing.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::client::{Client, Module};
use super::error::Result;
use super::execute::LoadedExecutable;
use super::options::CompileOptions;
use super::platform::{Backend, flags_file};
use crate::storage::CacheFolder;

/// Opens every entry; it changes with the layout of entries and of keys. A hash of the rest follows, and then the key,
/// so that no entry is taken for another, and the program.
const MAGIC: &[u8; 8] = b"BXLAEXE2";
const HASH_BYTES: usize = 32;

/// A folder of compiled programs. One is found by a hash of all that decides it: module, compile options, plugin,
/// platform and devices. An entry that is damaged, or that the plugin refuses, is compiled anew.
///
/// A compiled program is machine code that the process will run, and its hash shows damage, not who wrote it: so only what can
/// be nobody else's is used.
#[derive(Debug)]
pub struct ExecutableCache(CacheFolder);

impl ExecutableCache {
    /// About a hundred of the article's train steps for TPU.
    pub const DEFAULT_LIMIT: u64 = CacheFolder::DEFAULT_LIMIT;

    /// A cache in `folder`, which is made when it is first written to. When its files come to more than `limit`
    /// bytes, those that were used longest ago are removed.
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Self {
        Self(CacheFolder::new(folder, limit, ["executable", "compiling"]))
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
        if !self.0.is_usable() {
            return Ok((client.compile(program, options)?, false));
        }
        let key = key(client, program, options)?;
        if let Some(bytes) = self.read(&key) {
            // SAFETY: what is whole and of this key, in a file and a folder that only this user and root can write to,
            // is what this program has written there, which came from `serialize`.
            match unsafe { client.deserialize(&bytes, program, options) } {
                Ok(executable) => return Ok((executable, true)),
                Err(error) => {
                    let path = self.0.path(&key);
                    self.0.warn(&format!("can't load {}: {error}; compiling", path.display()));
                }
            }
        }
        let executable = client.compile(program, options)?;
        match executable.executable().serialize() {
            Ok(bytes) => self.write(&key, &bytes),
            Err(error) => self.0.warn(&format!("compiled programs are not kept: {error}")),
        }
        Ok((executable, false))
    }

    /// The program that an entry holds; `None` if there is none, or if it is not what was written for `key`.
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        let mut entry = Vec::new();
        if let Err(error) = self.0.open(key)?.read_to_end(&mut entry) {
            self.0.warn(&format!("can't read {}: {error}; compiling", self.0.path(key).display()));
            return None;
        }
        let header = MAGIC.len() + HASH_BYTES;
        let whole = entry.len() >= header
            && entry.starts_with(MAGIC)
            && Sha256::digest(&entry[header..])[..] == entry[MAGIC.len()..header]
            && entry[header..].starts_with(key.as_bytes());
        if !whole {
            self.0.warn_damaged(key);
            return None;
        }
        self.0.used(key);
        Some(entry.split_off(header + key.len()))
    }

    fn write(&self, key: &str, bytes: &[u8]) {
        let written = self.0.write(key, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&Sha256::new().chain_update(key).chain_update(bytes).finalize())?;
            file.write_all(key.as_bytes())?;
            file.write_all(bytes)
        });
        if let Err::<_, io::Error>(error) = written {
            self.0.warn_unwritable(&error);
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
