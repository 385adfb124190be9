//! What a command can fail with, the flag that helps, and the exit code.

use std::{fmt, io};

use crate::data::{DataError, Format};
use crate::exec::PlacementError;
use crate::model::ConfigError;
use crate::report::ReportError;
#[cfg(feature = "serve")]
use crate::serve;
use crate::storage::FileError;
use crate::weights::{HubError, WeightsError};
use crate::{exec, export, infer, pjrt, plan, run, tpu_vm, train};

pub type Result<T> = std::result::Result<T, Error>;

/// An error of any layer, each by the layer that it comes from. Its message is one line, and ends with what to do where a
/// flag helps: below this floor, nobody knows what flags there are.
#[derive(Debug)]
pub enum Error {
    /// The arguments don't go together.
    Usage(String),
    Exec(exec::Error),
    Plan(plan::Error),
    Run(run::Error),
    Infer(infer::Error),
    Train(train::Error),
    Data(DataError),
    Hub(HubError),
    Weights(WeightsError),
    Config(ConfigError),
    Report(ReportError),
    Pjrt(pjrt::Error),
    File(FileError),
    Signals(io::Error),
    TpuVm(tpu_vm::Error),
    #[cfg(feature = "serve")]
    Serve(serve::Error),
}

impl Error {
    /// True where the user's input or arguments are at fault (exit code 2), false for a failure (exit code 1).
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Signals(_) => false,
            #[cfg(feature = "serve")]
            Self::Serve(_) => false,
            Self::TpuVm(error) => error.is_input_error(),
            Self::File(error) => error.is_input_error(),
            Self::Exec(error) => error.is_input_error(),
            Self::Plan(error) => error.is_input_error(),
            Self::Run(error) => error.is_input_error(),
            Self::Infer(error) => error.is_input_error(),
            Self::Train(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Hub(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
            Self::Config(error) => error.is_input_error(),
            Self::Report(error) => error.is_input_error(),
            Self::Pjrt(error) => error.is_input_error(),
        }
    }

    /// The flag that helps.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Exec(exec::Error::Backend { .. }) => "--backend auto takes what is here",
            Self::Exec(exec::Error::Unusable { .. }) => "--backend cpu goes on without it",
            Self::Exec(exec::Error::PluginWithoutBackend) => "--plugin needs --backend cpu, gpu or tpu",
            Self::Exec(exec::Error::Placement(PlacementError::Replicas { .. })) => "change --replicas",
            Self::Exec(exec::Error::Placement(PlacementError::Batch { replicas, .. })) => {
                return Some(format!(
                    "choose a --batch-size that is a multiple of {replicas}, or other --replicas"
                ));
            }
            Self::Exec(exec::Error::Timeout { .. }) => "--slice-timeout says how long to wait",
            Self::Run(run::Error::NoRun { .. }) => "give the --output of a training run",
            Self::Run(run::Error::Labels { .. }) => "only runs with the same labels can be averaged",
            Self::Run(run::Error::HoldsEnsemble { .. } | run::Error::HoldsRun { .. }) => {
                "choose another --output"
            }
            Self::Run(run::Error::Holds { .. } | run::Error::OtherMembers { .. }) => {
                "choose another --output, or pass --overwrite"
            }
            Self::Run(run::Error::Unfinished { .. }) => {
                "train goes on with it by the command that it was started with"
            }
            Self::Run(run::Error::InUse { .. }) => "choose another --output",
            Self::Train(train::Error::Diverged { .. }) => {
                "try a lower --learning-rate: that is another run, so with another --output, or with --overwrite"
            }
            Self::Train(train::Error::Differs { different, .. }) => {
                let epochs = match different.iter().any(|difference| difference.name == "epochs") {
                    true => "its learning rate depends on the number of epochs; ",
                    false => "",
                };
                return Some(format!(
                    "{epochs}give what it was started with, choose another --output, or pass --overwrite"
                ));
            }
            Self::Train(train::Error::Elsewhere { .. }) => {
                "start that host as the first one, copy its folder to this one, or give --output a gs:// path"
            }
            Self::Train(train::Error::NothingToResume { .. }) => {
                "leave --resume out to start one, or give the --output of one"
            }
            Self::Plan(plan::Error::TooLarge { .. }) => {
                "choose a smaller --batch-size or --max-length, or more devices"
            }
            Self::Weights(WeightsError::MaxLength { .. }) => "lower --max-length",
            Self::Data(DataError::Split { .. }) => "choose another --dev-size, or a table of more rows",
            Self::Data(DataError::Stratify { .. }) => "choose another --dev-size, or leave --stratify out",
            Self::Data(DataError::BadRows { has_unknown_label: true, .. }) => {
                "correct them, or pass --skip-bad-rows to leave them out; --labels of train says which labels there are, \
                 or takes those of the table: --labels auto"
            }
            Self::Data(DataError::BadRows { .. }) => {
                "correct them, or pass --skip-bad-rows to leave them out"
            }
            Self::Data(DataError::Labels { .. }) => "is --label-column right?",
            Self::Data(DataError::HeaderIsData { row, .. }) if row.len() == 1 => {
                "pass --no-header if it is data, --header if not; is --separator right?"
            }
            Self::Data(DataError::HeaderIsData { .. }) => {
                "pass --no-header if it is data; if not, name a column (--text-column NAME), or pass --header"
            }
            Self::Data(DataError::NoColumn { width: 1, format: Format::Csv, .. }) => "is --separator right?",
            Self::Data(DataError::NoColumn { role, column: None, .. }) => {
                return Some(format!("pass --{role}-column"));
            }
            Self::TpuVm(tpu_vm::Error::Unknown { .. }) => {
                "`run` does all of it, or `create`, `setup` and `train` from here"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Exec(error) => error.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Run(error) => error.fmt(f),
            Self::Infer(error) => error.fmt(f),
            Self::Train(error) => error.fmt(f),
            Self::Data(error) => error.fmt(f),
            Self::Hub(error) => error.fmt(f),
            Self::Weights(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
            Self::Report(error) => error.fmt(f),
            Self::Pjrt(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
            Self::TpuVm(error) => error.fmt(f),
            #[cfg(feature = "serve")]
            Self::Serve(error) => error.fmt(f),
            Self::Signals(error) => write!(f, "can't tell when a signal comes: {error}"),
        }?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($layer:ty => $variant:ident),*) => {$(
        impl From<$layer> for Error {
            fn from(error: $layer) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}

from! {
    DataError => Data, HubError => Hub, WeightsError => Weights, ConfigError => Config, ReportError => Report,
    pjrt::Error => Pjrt, FileError => File
}

impl From<exec::Error> for Error {
    fn from(error: exec::Error) -> Self {
        match error {
            exec::Error::Pjrt(error) => error.into(),
            own => Self::Exec(own),
        }
    }
}

impl From<tpu_vm::Error> for Error {
    fn from(error: tpu_vm::Error) -> Self {
        match error {
            tpu_vm::Error::File(error) => error.into(),
            own => Self::TpuVm(own),
        }
    }
}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Self {
        match error {
            plan::Error::Placement(error) => Self::Exec(error.into()),
            plan::Error::Pjrt(error) => error.into(),
            own => Self::Plan(own),
        }
    }
}

impl From<run::Error> for Error {
    fn from(error: run::Error) -> Self {
        match error {
            run::Error::File(error) => error.into(),
            run::Error::Config(error) => error.into(),
            run::Error::Data(error) => error.into(),
            run::Error::Hub(error) => error.into(),
            run::Error::Weights(error) => error.into(),
            run::Error::Report(error) => error.into(),
            own => Self::Run(own),
        }
    }
}

impl From<infer::Error> for Error {
    fn from(error: infer::Error) -> Self {
        match error {
            infer::Error::Exec(error) => error.into(),
            infer::Error::Run(error) => error.into(),
            infer::Error::Data(error) => error.into(),
            infer::Error::Weights(error) => error.into(),
            own => Self::Infer(own),
        }
    }
}

#[cfg(feature = "serve")]
impl From<serve::Error> for Error {
    fn from(error: serve::Error) -> Self {
        match error {
            serve::Error::Load(error) => error.into(),
            own => Self::Serve(own),
        }
    }
}

impl From<export::Error> for Error {
    fn from(error: export::Error) -> Self {
        match error {
            export::Error::File(error) => error.into(),
            export::Error::Run(error) => error.into(),
            export::Error::Data(error) => error.into(),
            export::Error::Weights(error) => error.into(),
        }
    }
}

impl From<train::Error> for Error {
    fn from(error: train::Error) -> Self {
        match error {
            train::Error::Exec(error) => error.into(),
            train::Error::Infer(error) => error.into(),
            train::Error::Run(error) => error.into(),
            train::Error::Data(error) => error.into(),
            train::Error::Weights(error) => error.into(),
            train::Error::Observer(error) => error.into(),
            own => Self::Train(own),
        }
    }
}
