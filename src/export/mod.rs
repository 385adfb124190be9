//! A trained model for other programs: a folder that Python's transformers loads, or an HLO module with its weights.

mod hlo;
mod readme;
mod transformers;

use std::io;
use std::path::Path;

pub use hlo::{MODULE, SIGNATURE, export_hlo};
pub use transformers::{HEAD, HEAD_WEIGHTS, export_transformers};

use crate::data::DataError;
use crate::nn::Weight;
use crate::run::{self, Run};
use crate::storage::{FileError, write_file};
use crate::weights::{WeightsError, save_safetensors};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a model can't be written for others. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl Error {
    /// True where the run's files are at fault, false where writing failed.
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::File(error) => error.is_input_error(),
            Self::Run(error) => error.is_input_error(),
            Self::Data(error) => error.is_input_error(),
            Self::Weights(error) => error.is_input_error(),
        }
    }
}

/// Writes weights of a run in the safetensors format, each under the name that goes with it.
fn save_weights(path: &Path, run: &Run, named: &[(&str, &Weight)]) -> Result<()> {
    let tensors = named.iter().map(|(name, weight)| ((*name).to_owned(), weight.shape.clone()));
    // transformers looks for this to know which library's layout it is.
    let metadata = [("format", "pt")];
    save_safetensors(path, &tensors.collect::<Vec<_>>(), &metadata, |i, writer| {
        Ok(writer.write_all(bytemuck::cast_slice(&run.values().get(named[i].1)?))?)
    })?;
    Ok(())
}

fn write_json(path: &Path, json: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(json).map_err(io::Error::from);
    let text = text.map_err(FileError::new("can't write", path))?;
    Ok(write_file(path, format!("{text}\n").as_bytes())?)
}
