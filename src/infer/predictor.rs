//! A trained classifier, ready to be asked.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::lengths::Lengths;
use super::programs::{EvalProgram, Evaluation, PredictProgram};
use super::upload::upload_weights;
use super::{Error, Result, check};
use crate::data::{Dataset, LabelMap, Order, Padding, Tokenizer, Tokens};
use crate::exec::{Fingerprint, Replicas, State, hash_files};
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::run::Run;
use crate::step::{StepConfig, predict_step};

/// Texts in, probabilities out. What it needs is compiled when it is first asked for: also programs for shorter texts, once they
/// are worth it, if the model doesn't read padding.
pub struct Predictor {
    replicas: Arc<Replicas>,
    config: StepConfig,
    labels: LabelMap,
    tokenizer: Tokenizer,
    weights: State,
    lengths: RefCell<Lengths>,
    eval: RefCell<EvalProgram>,
    predict: RefCell<PredictProgram>,
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
        let lengths = RefCell::new(Lengths::new(&config.model, replicas.backend()));
        let eval = RefCell::new(EvalProgram::new(config.clone()));
        let predict = RefCell::new(PredictProgram::new(config.clone()));
        Self { replicas, config, labels, tokenizer, weights, lengths, eval, predict }
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
    pub fn probabilities<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T>,
    ) -> Result<Vec<f32>> {
        self.probabilities_of(&self.tokenizer.encode(texts)?)
    }

    /// As [`probabilities`](Self::probabilities), of texts that the [`tokenizer`](Self::tokenizer) has made `tokens` of.
    pub fn probabilities_of(&self, tokens: &Tokens) -> Result<Vec<f32>> {
        let data = self.dataset(tokens, &[]);
        let lengths = self.lengths_of(&data);
        let mut program = self.predict.borrow_mut();
        if program.lacks(&lengths) {
            self.replicas.meet("compiling", program.add(&self.replicas, &lengths))?;
        }
        let probabilities = program.predict(&self.replicas, &self.weights, &data)?;
        check(&probabilities)?;
        Ok(probabilities)
    }

    /// Loss, accuracy and probabilities of `texts`, whose labels are `classes`.
    pub fn evaluate<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T>,
        classes: &[u32],
    ) -> Result<Evaluation> {
        let tokens = self.tokenizer.encode(texts)?;
        let data = self.dataset(&tokens, classes);
        let lengths = self.lengths_of(&data);
        let mut program = self.eval.borrow_mut();
        if program.lacks(&lengths) {
            self.replicas.meet("compiling", program.add(&self.replicas, &lengths))?;
        }
        let evaluation = program.evaluate(&self.replicas, &self.weights, &data, &|| false)?;
        let evaluation = evaluation.expect("no host asks the others to meet");
        check(&evaluation.probabilities)?;
        Ok(evaluation)
    }

    /// What was saved so far by shorter batches.
    pub fn padding(&self) -> Padding {
        self.lengths.borrow().padding
    }

    fn dataset<'a>(&self, tokens: &'a Tokens, classes: &'a [u32]) -> Dataset<'a> {
        let data = Dataset::new(tokens, classes, (0..tokens.len()).collect());
        let buckets = self.lengths.borrow_mut().choose(data.lengths());
        data.in_buckets(buckets)
    }

    /// Those of its batches, which are counted.
    fn lengths_of(&self, data: &Dataset<'_>) -> Vec<usize> {
        let batch_size = self.batch_size();
        let batches = data.batches(batch_size, Order::Sequential);
        let mut lengths = batches.lengths().collect::<Vec<_>>();
        let tokens = data.lengths().sum::<usize>();
        let padding = Padding::of(tokens, &lengths, [batch_size, self.config.model.max_length]);
        let so_far = &mut self.lengths.borrow_mut().padding;
        *so_far = *so_far + padding;
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }
}
