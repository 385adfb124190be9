//! The model that a run has kept, on the devices again.

use std::path::Path;
use std::sync::Arc;

use super::Result;
use super::job::Job;
use super::resume::share;
use super::{Error, shared::Shared};
use crate::exec::State;
use crate::hlo::Graph;
use crate::infer::Predictor;
use crate::run::Run;
use crate::step::{Layout, LeafId, StepConfig, predict_step};

/// What answers with the weights that the run of `job` in `root` gives its readers; on a slice, the first process reads them
/// for all. The programs are those of `before`, where that is another run's of the same model.
///
/// # Errors
/// In all processes: a run that can't be read.
pub(super) fn kept(job: &Job, root: &Path, shared: &Shared, before: Option<Predictor>) -> Result<Predictor> {
    const PHASE: &str = "loading the weights";
    let replicas = shared.replicas();
    let own = if replicas.is_chief() { Run::open(root).map(Some) } else { Ok(None) };
    let own = replicas.meet(PHASE, own.map_err(Error::from))?;
    let model = &job.source.model;
    let weights = model.weights();
    let rows = replicas.rows(job.recipe.batch_size)?;
    let signature = predict_step(&Graph::new(), &StepConfig::new(model.clone(), 1, 1)).signature;
    let state = State::start(&signature, |leaf, _| {
        let is_it = |weight: &&crate::nn::Weight| *leaf == LeafId::Weight(weight.name.clone());
        // A step that predicts takes weights of the model, and nothing else of a state.
        let weight = weights.iter().find(is_it).ok_or(crate::exec::Error::StateLost)?;
        let values = own.as_ref().map(|run| run.values().get(weight).map(|values| values.into_owned()));
        let values = replicas.meet(PHASE, values.transpose().map_err(Error::from))?;
        let values = match replicas.is_shared() {
            true => {
                let bytes = values.as_ref().map(|values| bytemuck::cast_slice(values));
                bytemuck::pod_collect_to_vec(&share(replicas, PHASE, bytes)?)
            }
            false => values.unwrap_or_default(),
        };
        Ok::<_, Error>(replicas.upload(&values, &weight.shape.dims, Layout::Mirrored)?)
    })?;
    if let Some(before) = before {
        return Ok(before.with_weights(state));
    }
    let config = StepConfig::new(model.clone(), rows, replicas.count());
    let (labels, tokenizer) = (job.recipe.labels.clone(), job.source.tokenizer.clone());
    Ok(Predictor::new(Arc::clone(replicas), config, labels, tokenizer, state))
}
