//! What a run tells its user: progress while it trains, metrics per epoch, curves, a classification report. It makes
//! texts and images; where they go is the caller's business.

mod bars;
mod canvas;
mod confusion;
pub mod events;
mod history;
mod markup;
mod metrics;
mod plot;
mod progress;
mod steps;

pub use bars::bar_chart;
pub use confusion::confusion_chart;
pub use history::{EpochRecord, History, median};
pub use markup::{code_block, markdown_table, markdown_text, one_line, yaml_string};
pub use metrics::{Average, ClassScore, Classification};
pub use plot::{Curve, accuracy_chart, line_chart, loss_chart};
pub use progress::EpochProgress;
pub use steps::StepRecord;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("line {line}: not an epoch record ({source})")]
    Record { line: usize, source: serde_json::Error },
    #[error("{found} predictions for {expected} labels")]
    Length { expected: usize, found: usize },
    #[error("nothing to report: there are no labelled rows; give at least one")]
    Empty,
    #[error("cannot draw the chart \"{title}\": {reason}")]
    Plot { title: String, reason: String },
}

impl ReportError {
    /// True when the caller's input is at fault (exit code 2), false for a failure of the machine (1).
    pub fn is_input_error(&self) -> bool {
        match self {
            Self::Record { .. } | Self::Empty => true,
            Self::Length { .. } | Self::Plot { .. } => false,
        }
    }
}

type Result<T> = std::result::Result<T, ReportError>;
