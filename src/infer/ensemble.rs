//! Trained classifiers that answer together.

use std::sync::Arc;

use super::{Error, Evaluation, Predictor, Result};
use crate::data::{LabelMap, Padding, Tokenizer, Tokens};
use crate::exec::Replicas;
use crate::model::head::CLIP;
use crate::run::Runs;

/// Texts in, a probability per label out: the mean over one trained model or several, each with its share. They may have
/// other encoders, tokenizers and lengths, heads, and classes in another order; their labels are the same.
///
/// Classes without a label are left out, and with them what they have of the probability: a row may sum to less than 1.
pub struct Ensemble {
    members: Vec<Member>,
    labels: LabelMap,
}

struct Member {
    predictor: Predictor,
    share: f64,
    /// Its class of each label, in the ensemble's order.
    classes: Vec<u32>,
}

/// What an ensemble says of labelled texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Mean over the texts, in nats: of one model its own, of several that of their mean probabilities, clipped as in
    /// training.
    pub loss: f64,
    /// `[texts, labels]`, as of [`Ensemble::probabilities`].
    pub probabilities: Vec<f32>,
}

impl Ensemble {
    /// Puts the weights of all runs on the replicas; `batch_size` texts are taken per step, over all of them.
    ///
    /// On a slice, the processes first make sure that all have these runs, and are about to read the same: `data` is a hash
    /// of it.
    ///
    /// # Errors
    /// A batch that can't be split evenly, processes that differ, files that can't be read, a failure of the devices.
    pub fn open(runs: &Runs, replicas: Arc<Replicas>, batch_size: usize, data: [u8; 32]) -> Result<Self> {
        let labels = runs.labels().clone();
        // Each member takes steps of its own, so that the processes must have as many.
        let options = (batch_size, runs.iter().map(|(_, share)| share).collect::<Vec<_>>());
        let member = |(run, share)| {
            let predictor = Predictor::open_with(run, replicas.clone(), batch_size, data, &options)?;
            let class = |class| predictor.labels().class_of(labels.label_of(class)?);
            // All of them: runs have the same labels.
            let classes = labels.classes().filter_map(class).collect();
            Ok::<_, Error>(Member { predictor, share, classes })
        };
        Ok(Self { members: runs.iter().map(member).collect::<Result<_>>()?, labels })
    }

    /// What all models together have saved so far by shorter batches.
    pub fn padding(&self) -> Padding {
        let paddings = self.members.iter().map(|member| member.predictor.padding());
        paddings.reduce(|sum, padding| sum + padding).unwrap_or_default()
    }

    /// What it answers with, under the classes of the first model.
    pub fn labels(&self) -> &LabelMap {
        &self.labels
    }

    /// `[texts, labels]`, row-major, in the order of [`LabelMap::classes`]; [`LabelMap::most_probable`] decides between
    /// them.
    pub fn probabilities<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T> + Copy,
    ) -> Result<Vec<f32>> {
        self.probabilities_of(&self.tokenizers().encode(texts)?)
    }

    /// What makes tokens of texts: it may do so on another thread, while the devices work.
    pub fn tokenizers(&self) -> Tokenizers<'_> {
        Tokenizers(self.members.iter().map(|member| member.predictor.tokenizer()).collect())
    }

    /// As [`probabilities`](Self::probabilities), of texts that [`tokenizers`](Self::tokenizers) have made `tokens` of.
    ///
    /// # Panics
    /// If they are not as many as there are models.
    pub fn probabilities_of(&self, tokens: &[Tokens]) -> Result<Vec<f32>> {
        assert_eq!(tokens.len(), self.members.len(), "each model has tokens of its own");
        weighted(self.members.iter().zip(tokens).map(|(member, tokens)| {
            Ok((member.share, member.labelled(&member.predictor.probabilities_of(tokens)?)))
        }))
    }

    /// Loss and probabilities of `texts`, whose labels are `classes` of [`labels`](Self::labels).
    pub fn evaluate<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T> + Copy,
        classes: &[u32],
    ) -> Result<Scores> {
        if let [only] = &self.members[..] {
            let Evaluation { loss, probabilities, .. } = only.predictor.evaluate(texts, classes)?;
            return Ok(Scores { loss, probabilities: only.labelled(&probabilities) });
        }
        let probabilities = self.probabilities(texts)?;
        let columns = self.labels.classes().collect::<Vec<_>>();
        let rows = probabilities.chunks(columns.len()).zip(classes);
        let losses = rows.map(|(row, class)| {
            let column = columns.binary_search(class).ok();
            let p = column.map_or(0.0, |column| f64::from(row[column]));
            -p.clamp(CLIP, 1.0 - CLIP).ln()
        });
        Ok(Scores { loss: losses.sum::<f64>() / classes.len() as f64, probabilities })
    }
}

/// The tokenizers of an ensemble's models.
pub struct Tokenizers<'a>(Vec<&'a Tokenizer>);

impl Tokenizers<'_> {
    /// The tokens that each model takes of `texts`.
    pub fn encode<'t, T: AsRef<str> + ?Sized + 't>(
        &self,
        texts: impl IntoIterator<Item = &'t T> + Copy,
    ) -> Result<Vec<Tokens>> {
        self.0.iter().map(|tokenizer| Ok(tokenizer.encode(texts)?)).collect()
    }
}

impl Member {
    /// Of its `probabilities` `[rows, num_classes]`, those of the ensemble's labels, in their order.
    fn labelled(&self, probabilities: &[f32]) -> Vec<f32> {
        labelled(probabilities, self.predictor.model().head.num_classes(), &self.classes)
    }
}

/// Of `probabilities` `[rows, num_classes]`, those of `classes`, in their order.
pub(super) fn labelled(probabilities: &[f32], num_classes: usize, classes: &[u32]) -> Vec<f32> {
    let rows = probabilities.chunks(num_classes);
    rows.flat_map(|row| classes.iter().map(|class| row[*class as usize])).collect()
}

/// The mean of what models answer, each with its share.
pub(super) fn weighted(answers: impl Iterator<Item = Result<(f64, Vec<f32>)>>) -> Result<Vec<f32>> {
    let mut mean: Vec<f64> = vec![];
    for answer in answers {
        let (share, probabilities) = answer?;
        mean.resize(probabilities.len(), 0.0);
        mean.iter_mut().zip(probabilities).for_each(|(mean, p)| *mean += share * f64::from(p));
    }
    Ok(mean.into_iter().map(|p| p as f32).collect())
}
