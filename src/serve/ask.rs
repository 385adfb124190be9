//! From texts to the model's answers.

use std::sync::Arc;

use tokio::task::block_in_place;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::model::Model;
use super::queue::{Answer, Kind};
use super::refusal::Refusal;
use crate::infer::{self, Prompt};

/// Bytes of texts of which tokens are made within microseconds.
pub(super) const SHORT: usize = 4096;

impl Shared {
    /// The model that answers now.
    pub fn model(&self) -> Result<Arc<Model>, Refusal> {
        self.current.get().ok_or_else(|| Refusal::unavailable("the model isn't loaded yet"))
    }

    pub fn check_count(&self, inputs: usize) -> Result<(), Refusal> {
        let most = self.options.max_inputs;
        match inputs > most {
            true => {
                let message =
                    format!("{inputs} inputs, where a request may have {most}; --max-inputs allows more");
                Err(Refusal::too_large(message))
            }
            false => Ok(()),
        }
    }

    /// What the model takes of texts.
    pub async fn prompts(
        &self,
        model: &Model,
        texts: &[String],
        until: Instant,
    ) -> Result<Vec<Prompt>, Refusal> {
        let all = || texts.iter().map(|text| model.prepared.prompt(text)).collect::<Result<Vec<_>, _>>();
        self.tokenized(texts, all, until).await
    }

    /// Makes tokens of texts: at once if they are short, without keeping others waiting if they are many, and in its turn if
    /// one is long.
    pub async fn tokenized<T>(
        &self,
        texts: &[String],
        tokenize: impl FnOnce() -> Result<T, infer::Error>,
        until: Instant,
    ) -> Result<T, Refusal> {
        let longest = texts.iter().map(String::len).max().unwrap_or_default();
        let done = if texts.iter().map(String::len).sum::<usize>() <= SHORT {
            tokenize()
        } else if longest <= SHORT {
            block_in_place(tokenize)
        } else {
            let _turn = timeout_at(until, self.limits.long_texts.acquire()).await.map_err(late)?;
            block_in_place(tokenize)
        };
        done.map_err(|error| failed(&error))
    }

    /// The probabilities of each label, for each text.
    pub async fn ask(
        &self,
        model: &Arc<Model>,
        prompts: Vec<Prompt>,
        until: Instant,
    ) -> Result<Vec<Vec<f32>>, Refusal> {
        let Ok(receivers) = self.queue.push(model, Kind::Single, prompts) else {
            return Err(Refusal::busy("as many texts wait as may; --max-queue allows more"));
        };
        let all = async {
            let mut rows = Vec::with_capacity(receivers.len());
            for receiver in receivers {
                let answer: Answer = receiver.await.unwrap_or_default();
                rows.push(answer.ok_or_else(Refusal::failed)?);
            }
            Ok(rows)
        };
        timeout_at(until, all).await.map_err(late)?
    }

    /// When an answer is to be there.
    pub fn until(&self) -> Instant {
        Instant::now() + self.options.time_out
    }
}

fn late(_: Elapsed) -> Refusal {
    Refusal::unavailable("not answered in time; try again, or with fewer texts")
}

/// Logs why a text can't be made tokens of, which a tokenizer says without the text.
fn failed(error: &dyn std::error::Error) -> Refusal {
    tracing::error!(error = error.to_string(), "the tokenizer failed");
    Refusal::failed()
}
