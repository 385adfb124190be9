//! Trained classifiers that answer at once: what they need is compiled before they are asked.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::ensemble::{labelled, weighted};
use super::programs::PredictProgram;
use super::upload::upload_weights;
use super::{Error, Result, check};
use crate::data::{Buckets, Dataset, LabelMap, Tokenizer, Tokens};
use crate::exec::{Replicas, State};
use crate::hlo::Graph;
use crate::model::ClassifierConfig;
use crate::run::{Run, Runs};
use crate::step::{StepConfig, predict_step};

/// One trained model or several, compiled for some numbers of texts, and, if they don't read padding, for some lengths:
/// what an [`Ensemble`](super::Ensemble) of the same runs answers, without a pause for a compilation.
///
/// Threads may share it; one at a time should ask it, since the devices do one thing at a time.
pub struct Prepared {
    replicas: Arc<Replicas>,
    members: Vec<Member>,
    labels: LabelMap,
}

struct Member {
    tokenizer: Tokenizer,
    share: f64,
    /// Its class of each label, in the order of the first member's.
    classes: Vec<u32>,
    weights: State,
    programs: Arc<Programs>,
}

/// What is compiled for a model, whatever its weights.
struct Programs {
    model: ClassifierConfig,
    lengths: Buckets,
    /// From the smallest number of texts on, which are those of all replicas.
    sizes: Vec<(usize, PredictProgram)>,
    /// Once it was measured.
    pace: OnceLock<Pace>,
}

/// What a step takes: so much whatever the texts, and so much for each token, padding included.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pace {
    fixed: Duration,
    token: Duration,
}

/// What the models take of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens of each model.
    ids: Vec<Vec<u32>>,
    /// Whether one of them reads its beginning alone.
    pub is_cut: bool,
}

/// Lengths that batches are padded to. Between two of them, a third at most is padding.
const LENGTHS: [usize; 11] = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384];

impl Prepared {
    /// Puts the weights of `runs` on the replicas and compiles for `sizes` texts at a time, each rounded up to what all
    /// replicas have a share in; `each` is told of programs that are compiled, and how many there are. What `before` has
    /// compiled for models that are alike in all but their weights is shared.
    ///
    /// # Errors
    /// Files that can't be read, a failure of the devices.
    ///
    /// # Panics
    /// If there is no size.
    pub fn open(
        runs: &Runs,
        replicas: &Arc<Replicas>,
        sizes: &[usize],
        before: Option<&Self>,
        mut each: impl FnMut(usize, usize),
    ) -> Result<Self> {
        let sizes = sizes_of(sizes, replicas.count());
        let mut shared: Vec<Arc<Programs>> =
            before.iter().flat_map(|before| &before.members).map(|member| member.programs.clone()).collect();
        let mut new: Vec<&ClassifierConfig> = vec![];
        for model in runs.iter().map(|(run, _)| &run.model) {
            if shared.iter().all(|programs| programs.model != *model) && !new.contains(&model) {
                new.push(model);
            }
        }
        let all = new.iter().map(|model| lengths_of(model).iter().len() * sizes.len()).sum();
        let mut compiled = 0;
        each(compiled, all);
        for model in new {
            let programs = Programs::compile(model, replicas, &sizes, || {
                compiled += 1;
                each(compiled, all);
            })?;
            shared.push(Arc::new(programs));
        }
        let labels = runs.labels().clone();
        let member = |(run, share): (&Run, f64)| {
            let known = shared.iter().find(|programs| programs.model == run.model);
            let programs = known.expect("each model is known or was compiled").clone();
            let (graph, one_row) = (Graph::new(), StepConfig::new(run.model.clone(), 1, 1));
            let signature = predict_step(&graph, &one_row).signature;
            let weights = upload_weights(replicas, &signature, &run.model.weights(), &run.values())?;
            let classes = labels.labels_by_class().filter_map(|label| run.labels.class_of(label)).collect();
            Ok::<_, Error>(Member { tokenizer: run.tokenizer.clone(), share, classes, weights, programs })
        };
        let members = runs.iter().map(member).collect::<Result<_>>()?;
        Ok(Self { replicas: replicas.clone(), members, labels })
    }

    /// Has a text of each length answered, so that the first ones don't wait for what is made then, and measures what a step
    /// [`takes`](Self::time).
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn warm_up(&self) -> Result<()> {
        for member in &self.members {
            let lengths = &member.programs.lengths;
            let answer = |rows: usize, tokens: usize| {
                let ids = vec![member.tokenizer.pad_id(); tokens];
                let started = Instant::now();
                member.answer(&self.replicas, std::iter::repeat_n(&ids, rows)).map(|_| started.elapsed())
            };
            lengths.iter().try_for_each(|length| answer(1, length).map(drop))?;
            if member.programs.pace.get().is_none() {
                let shortest = lengths.iter().next().unwrap_or_default();
                let fastest = |rows: usize| {
                    let times = (0..3).map(|_| answer(rows, shortest)).collect::<Result<Vec<_>>>()?;
                    Ok::<_, Error>(times.into_iter().min().unwrap_or_default())
                };
                let [few, many] =
                    [self.sizes().next(), self.sizes().next_back()].map(Option::unwrap_or_default);
                let pace =
                    Pace::new([few, many].map(|rows| rows * shortest), [fastest(few)?, fastest(many)?]);
                // Another load of the same programs may have measured it meanwhile.
                let _ = member.programs.pace.set(pace);
            }
        }
        Ok(())
    }

    /// About what a step of `rows` texts takes that are padded to `length` tokens.
    pub fn time(&self, rows: usize, length: usize) -> Duration {
        let times = self.members.iter().map(|member| {
            let Programs { lengths, pace, .. } = &*member.programs;
            pace.get().copied().unwrap_or(Pace::UNKNOWN).time(rows * lengths.of(length))
        });
        times.sum()
    }

    /// What it answers with.
    pub fn labels(&self) -> &LabelMap {
        &self.labels
    }

    /// The tokenizer of each model.
    pub fn tokenizers(&self) -> impl ExactSizeIterator<Item = &Tokenizer> {
        self.members.iter().map(|member| &member.tokenizer)
    }

    /// The configuration of each model, and its share in the answer.
    pub fn models(&self) -> impl ExactSizeIterator<Item = (&ClassifierConfig, f64)> {
        self.members.iter().map(|member| (&member.programs.model, member.share))
    }

    /// The lengths that texts of a model are padded to.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn lengths(&self, model: usize) -> &Buckets {
        &self.members[model].programs.lengths
    }

    /// Numbers of texts that are taken at a time, from the smallest on.
    pub fn sizes(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        // All models have the same.
        self.members[0].programs.sizes.iter().map(|(size, _)| *size)
    }

    /// What the models take of a text. It needs no device.
    pub fn prompt(&self, text: &str) -> Result<Prompt> {
        let mut prompt = Prompt { ids: vec![], is_cut: false };
        for member in &self.members {
            let (ids, is_cut) = member.tokenizer.encode_one(text)?;
            prompt.ids.push(ids);
            prompt.is_cut |= is_cut;
        }
        Ok(prompt)
    }

    /// How long a text is with its padding: of the model that makes the most of it.
    pub fn length(&self, prompt: &Prompt) -> usize {
        let padded = |(member, ids): (&Member, &Vec<u32>)| member.programs.lengths.of(ids.len());
        self.members.iter().zip(&prompt.ids).map(padded).max().unwrap_or_default()
    }

    /// The probability of each label, `[texts, labels]`, row-major, in the order of [`LabelMap::classes`]; the first of the
    /// [`sizes`](Self::sizes) that holds all texts is computed.
    ///
    /// # Errors
    /// A failure of the devices, or weights that give no numbers.
    ///
    /// # Panics
    /// If there are more texts than the largest size, or prompts of other models.
    pub fn answer(&self, prompts: &[&Prompt]) -> Result<Vec<f32>> {
        weighted(self.members.iter().enumerate().map(|(at, member)| {
            let rows = prompts.iter().map(|prompt| &prompt.ids[at]);
            let all = member.answer(&self.replicas, rows)?;
            Ok((member.share, labelled(&all, member.programs.model.head.num_classes(), &member.classes)))
        }))
    }
}

impl Pace {
    /// Before it is measured: of tokens alone.
    const UNKNOWN: Self = Self { fixed: Duration::ZERO, token: Duration::from_micros(1) };

    /// Of steps of few and of many `tokens`, and what they take.
    fn new([few, many]: [usize; 2], [short, long]: [Duration; 2]) -> Self {
        let more = many.saturating_sub(few).max(1) as u32;
        let token = long.saturating_sub(short) / more;
        Self { fixed: short.saturating_sub(token * few as u32), token }
    }

    fn time(self, tokens: usize) -> Duration {
        // A step takes some time, however little is known.
        (self.fixed + self.token * tokens as u32).max(Duration::from_nanos(1))
    }
}

impl Prompt {
    /// Its tokens, of all models.
    pub fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

impl Member {
    /// `[rows, num_classes]`
    fn answer<'p>(
        &self,
        replicas: &Replicas,
        rows: impl ExactSizeIterator<Item = &'p Vec<u32>>,
    ) -> Result<Vec<f32>> {
        let count = rows.len();
        let Programs { sizes, lengths, .. } = &*self.programs;
        let program = sizes.iter().find(|(size, _)| *size >= count);
        let (_, program) = program.expect("no more texts than the largest size");
        let tokens = Tokens::new(rows, lengths.max_length(), self.tokenizer.pad_id());
        let data = Dataset::new(&tokens, &[], (0..count).collect()).in_buckets(lengths.clone());
        let probabilities = program.predict(replicas, &self.weights, &data)?;
        check(&probabilities)?;
        Ok(probabilities)
    }
}

impl Programs {
    fn compile(
        model: &ClassifierConfig,
        replicas: &Replicas,
        sizes: &[usize],
        mut each: impl FnMut(),
    ) -> Result<Self> {
        let lengths = lengths_of(model);
        let mut of_size = |size: &usize| {
            let rows = replicas.rows(*size)?;
            let config = StepConfig { replicas: replicas.count(), ..StepConfig::new(model.clone(), rows, 1) };
            let mut program = PredictProgram::new(config);
            for length in lengths.iter() {
                program.add(replicas, &[length])?;
                each();
            }
            Ok::<_, Error>((*size, program))
        };
        let sizes = sizes.iter().map(&mut of_size).collect::<Result<_>>()?;
        Ok(Self { model: model.clone(), lengths, sizes, pace: OnceLock::new() })
    }
}

fn lengths_of(model: &ClassifierConfig) -> Buckets {
    match model.ignores_padding() {
        true => Buckets::new(LENGTHS, model.max_length),
        false => Buckets::one(model.max_length),
    }
}

/// In order, each once, and a multiple of the replicas' number.
fn sizes_of(sizes: &[usize], replicas: usize) -> Vec<usize> {
    assert!(!sizes.is_empty(), "there is no size");
    let mut sizes = sizes.iter().map(|size| size.next_multiple_of(replicas)).collect::<Vec<_>>();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_a_line_through_two_steps() {
        let ms = Duration::from_millis;
        let pace = Pace::new([8, 256], [ms(3), ms(21)]);
        assert!(pace.time(8).abs_diff(ms(3)) < Duration::from_micros(1));
        assert!(pace.time(256).abs_diff(ms(21)) < Duration::from_micros(1));
        // A device on which many take no longer than few, and a single size.
        assert_eq!(Pace::new([8, 256], [ms(3), ms(2)]).time(4096), ms(3));
        assert_eq!(Pace::new([8, 8], [ms(3), ms(3)]).time(4096), ms(3));
    }

    #[test]
    fn sizes_are_shared_by_all_replicas() {
        assert_eq!(sizes_of(&[8, 1, 32], 1), [1, 8, 32]);
        assert_eq!(sizes_of(&[1, 4, 32], 8), [8, 32]);
        assert_eq!(sizes_of(&[1, 4, 32], 3), [3, 6, 33]);
    }
}
