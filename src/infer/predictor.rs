//! A trained classifier, ready to be asked.

use std::cell::OnceCell;
use std::fmt::Debug;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::programs::{EvalProgram, Evaluation, PredictProgram};
use super::upload::upload_weights;
use super::{Error, Result};
use crate::data::{Dataset, LabelMap, Tokenizer, Tokens};
use crate::exec::{self, Fingerprint, Replicas, State, hash_files};
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::run::Run;
use crate::step::{StepConfig, predict_step};

/// Texts in, probabilities out. What it needs is compiled when it is first asked for.
pub struct Predictor {
    replicas: Arc<Replicas>,
    config: StepConfig,
    labels: LabelMap,
    tokenizer: Tokenizer,
    weights: State,
    eval: OnceCell<EvalProgram>,
    predict: OnceCell<PredictProgram>,
}

impl Predictor {
    /// Puts a run's weights on the replicas; `batch_size` texts are taken per step, over all of them.
    ///
    /// On a slice, the processes first make sure that all have this run, and are about to read the same: `data` is a hash
    /// of it.
    ///
    /// # Errors
    /// A batch that can't be split evenly, processes that differ, files that can't be read, a failure of the devices.
    pub fn open(run: &Run, replicas: Arc<Replicas>, batch_size: usize, data: [u8; 32]) -> Result<Self> {
        Self::open_with(run, replicas, batch_size, data, &batch_size)
    }

    /// As [`open`](Self::open); `options` are all that must be alike in the processes besides.
    pub(super) fn open_with(
        run: &Run,
        replicas: Arc<Replicas>,
        batch_size: usize,
        data: [u8; 32],
        options: &impl Debug,
    ) -> Result<Self> {
        let one_row = StepConfig::new(run.model.clone(), 1, 1);
        let graph = Graph::new();
        let step = predict_step(&graph, &one_row);
        replicas.agree(|| {
            Ok::<_, Error>(vec![
                Fingerprint::program(&step.program),
                Fingerprint::options(replicas.count(), options),
                Fingerprint::data(Sha256::new_with_prefix(data).chain_update(run.tokenizer.to_json()?)),
                Fingerprint::weights(hash_files(run.weights().files())),
            ])
        })?;
        let config = StepConfig { rows: replicas.rows(batch_size)?, replicas: replicas.count(), ..one_row };
        let weights = upload_weights(&replicas, &step.signature, &run.model.weights(), &run.values());
        let weights = replicas.meet("loading the weights", weights)?;
        Ok(Self::new(replicas, config, run.labels.clone(), run.tokenizer.clone(), weights))
    }

    /// A predictor with weights that are on the replicas already.
    pub fn new(
        replicas: Arc<Replicas>,
        config: StepConfig,
        labels: LabelMap,
        tokenizer: Tokenizer,
        weights: State,
    ) -> Self {
        let (eval, predict) = (OnceCell::new(), OnceCell::new());
        Self { replicas, config, labels, tokenizer, weights, eval, predict }
    }

    /// The same with other weights, of the same model.
    pub fn with_weights(self, weights: State) -> Self {
        Self { weights, ..self }
    }

    pub fn model(&self) -> &ClassifierConfig {
        &self.config.model
    }

    pub fn labels(&self) -> &LabelMap {
        &self.labels
    }

    /// Texts that are taken per step, over all replicas.
    pub fn batch_size(&self) -> usize {
        self.config.rows * self.config.replicas
    }

    /// The one that the model was trained with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// `[texts, classes]`, row-major; [`LabelMap::answers`] decides between them.
    pub fn probabilities(&self, texts: &[String]) -> Result<Vec<f32>> {
        self.probabilities_of(&self.tokenizer.encode(texts)?)
    }

    /// As [`probabilities`](Self::probabilities), of texts that the [`tokenizer`](Self::tokenizer) has made `tokens` of.
    pub fn probabilities_of(&self, tokens: &Tokens) -> Result<Vec<f32>> {
        let program = compiled(&self.predict, &self.replicas, || {
            PredictProgram::compile(&self.replicas, &self.config)
        })?;
        let data = Dataset::new(tokens, &[], (0..tokens.len()).collect());
        let mut probabilities = Vec::with_capacity(tokens.len() * self.config.model.head.num_classes());
        program.predict(&self.replicas, &self.weights, &data, |rows| {
            probabilities.extend(rows);
            Ok::<_, Error>(())
        })?;
        check(&probabilities)?;
        Ok(probabilities)
    }

    /// Loss, accuracy and probabilities of `texts`, whose labels are `classes`.
    pub fn evaluate(&self, texts: &[String], classes: &[u32]) -> Result<Evaluation> {
        let program =
            compiled(&self.eval, &self.replicas, || EvalProgram::compile(&self.replicas, &self.config))?;
        let tokens = self.tokenizer.encode(texts)?;
        let data = Dataset::new(&tokens, classes, (0..tokens.len()).collect());
        let evaluation = program.evaluate(&self.replicas, &self.weights, &data, &|| false)?;
        let evaluation = evaluation.expect("no host asks the others to meet");
        check(&evaluation.probabilities)?;
        Ok(evaluation)
    }
}

fn check(probabilities: &[f32]) -> Result<()> {
    if probabilities.iter().all(|p| p.is_finite()) { Ok(()) } else { Err(Error::NotNumbers) }
}

/// The program in `cell`, compiled if it is wanted for the first time: by all processes of a slice, or by none.
fn compiled<'c, P>(
    cell: &'c OnceCell<P>,
    replicas: &Replicas,
    compile: impl FnOnce() -> exec::Result<P>,
) -> exec::Result<&'c P> {
    match cell.get() {
        Some(program) => Ok(program),
        None => {
            let program = replicas.meet("compiling", compile())?;
            Ok(cell.get_or_init(|| program))
        }
    }
}
