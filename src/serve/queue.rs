//! Texts that wait for the devices, and the thread that asks them.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Shared;
use super::model::Model;
use crate::infer::Prompt;

/// The probability of each label, in the order of the model's classes; `None` if the model couldn't be asked.
pub(super) type Answer = Option<Vec<f32>>;

/// A text on its way.
pub(super) struct Text {
    prompt: Prompt,
    answer: oneshot::Sender<Answer>,
}

/// Whose texts they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Somebody waits for each.
    Single,
    /// One of many.
    Table,
}

/// Texts of one model and kind that are padded to one length are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    generation: u64,
    kind: Kind,
    length: usize,
}

/// While single texts wait, one step of so many is a table's.
const TURNS: u64 = 4;

/// Waiting texts, bounded in number.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// There are texts, or no more will come.
    some: Condvar,
    limit: usize,
}

#[derive(Default)]
struct Waiting {
    groups: BTreeMap<Group, Line>,
    /// Texts of all groups.
    count: usize,
    /// Texts that have come.
    number: u64,
    /// Steps that were taken.
    steps: u64,
    is_closed: bool,
}

/// Texts of a group in the order in which they came, each with its number.
struct Line {
    model: Arc<Model>,
    texts: VecDeque<(u64, Text)>,
}

/// Texts that are computed together.
pub(super) struct Batch {
    model: Arc<Model>,
    texts: Vec<Text>,
}

/// Why texts can't be added.
pub(super) struct NoRoom {
    /// Those texts.
    pub prompts: Vec<Prompt>,
    /// None is added any more.
    pub is_closed: bool,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self { waiting: Mutex::default(), some: Condvar::new(), limit }
    }

    /// Adds texts, all or, if there isn't room for all, none; the receivers are given their answers, and once one is
    /// dropped, its text is not computed.
    pub fn push(
        &self,
        model: &Arc<Model>,
        kind: Kind,
        prompts: Vec<Prompt>,
    ) -> Result<Vec<oneshot::Receiver<Answer>>, NoRoom> {
        let mut waiting = self.lock();
        let is_closed = waiting.is_closed;
        let is_full = waiting.count + prompts.len() > self.limit
            || kind == Kind::Table && waiting.count_of(kind) + prompts.len() > self.room_for_tables();
        if is_closed || is_full {
            return Err(NoRoom { prompts, is_closed });
        }
        let mut receivers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let length = model.prepared.length(&prompt);
            let group = Group { generation: model.generation, kind, length };
            let (answer, receiver) = oneshot::channel();
            waiting.number += 1;
            waiting.count += 1;
            let number = waiting.number;
            let new = || Line { model: model.clone(), texts: VecDeque::new() };
            waiting
                .groups
                .entry(group)
                .or_insert_with(new)
                .texts
                .push_back((number, Text { prompt, answer }));
            receivers.push(receiver);
        }
        self.some.notify_one();
        Ok(receivers)
    }

    /// So many texts of tables may wait: the others have room left.
    pub fn room_for_tables(&self) -> usize {
        (self.limit / 2).max(1)
    }

    /// Texts that wait.
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// From now on nothing is added, and what waits is not answered.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        waiting.groups.clear();
        waiting.count = 0;
        self.some.notify_all();
    }

    /// Waits for texts: those that have waited longest, and others that can be computed with them. `None` once it is closed
    /// and empty.
    pub fn take(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        loop {
            if let Some(batch) = waiting.take() {
                return Some(batch);
            }
            if waiting.is_closed {
                return None;
            }
            waiting = self.some.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Batch> {
        self.leave_dropped();
        let kind = self.turn();
        let first = |line: &Line| line.texts.front().map(|(number, _)| *number);
        let lines = self.groups.iter().filter(|(group, _)| group.kind == kind);
        let (oldest, line) = lines.min_by_key(|(_, line)| first(line))?;
        let (oldest, model) = (*oldest, line.model.clone());
        let is_alike = |group: &Group| group.generation == oldest.generation && group.kind == kind;
        let counts = self.groups.iter().filter(|(group, _)| is_alike(group));
        let counts = counts.map(|(group, line)| (group.length, line.texts.len())).collect::<Vec<_>>();
        let prepared = &model.prepared;
        let step = best(oldest.length, &counts, prepared.sizes(), |rows, length| prepared.time(rows, length));
        // The one that has waited longest; then those that are nearly as long as the step.
        let mut texts = vec![];
        let mut pull = |group: &Group, most: usize| {
            let Some(line) = self.groups.get_mut(group) else { return };
            while texts.len() < most
                && let Some((_, text)) = line.texts.pop_front()
            {
                texts.push(text);
            }
        };
        pull(&oldest, 1);
        for (length, _) in counts.iter().rev().filter(|(length, _)| *length <= step.length) {
            pull(&Group { length: *length, ..oldest }, step.rows);
        }
        self.count -= texts.len();
        self.groups.retain(|_, line| !line.texts.is_empty());
        Some(Batch { model, texts })
    }

    fn count_of(&self, kind: Kind) -> usize {
        let lines = self.groups.iter().filter(|(group, _)| group.kind == kind);
        lines.map(|(_, line)| line.texts.len()).sum()
    }

    /// Whose texts come next.
    fn turn(&mut self) -> Kind {
        self.steps += 1;
        let waits = |kind| self.groups.keys().any(|group| group.kind == kind);
        match (waits(Kind::Single), waits(Kind::Table)) {
            (true, true) if self.steps.is_multiple_of(TURNS) => Kind::Table,
            (false, true) => Kind::Table,
            _ => Kind::Single,
        }
    }

    /// Nobody waits for the answer any more.
    fn leave_dropped(&mut self) {
        for line in self.groups.values_mut() {
            line.texts.retain(|(_, text)| !text.answer.is_closed());
        }
        self.groups.retain(|_, line| !line.texts.is_empty());
        self.count = self.groups.values().map(|line| line.texts.len()).sum();
    }
}

/// A step's number of texts, and their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    length: usize,
}

/// The step that saves the most time against steps for each of its texts alone, among those that hold one of `oldest` tokens.
/// `counts` tells how many texts there are of each length, the shortest first; those nearest to the step's length are taken.
fn best(
    oldest: usize,
    counts: &[(usize, usize)],
    sizes: impl Iterator<Item = usize>,
    time: impl Fn(usize, usize) -> Duration,
) -> Shape {
    let sizes = sizes.collect::<Vec<_>>();
    let smallest = sizes.first().copied().unwrap_or(1);
    let lengths = counts.iter().filter(|(length, _)| *length >= oldest);
    let shapes =
        lengths.flat_map(|(length, _)| sizes.iter().map(|rows| Shape { rows: *rows, length: *length }));
    let gain = |shape: &Shape| {
        let (mut room, mut alone) = (shape.rows, 0.0);
        for (length, count) in counts.iter().rev().filter(|(length, _)| *length <= shape.length) {
            let taken = room.min(*count);
            alone += taken as f64 * time(smallest, *length).as_secs_f64();
            room -= taken;
        }
        alone / time(shape.rows, shape.length).as_secs_f64()
    };
    let none = Shape { rows: smallest, length: oldest };
    shapes.reduce(|best, shape| if gain(&shape) > gain(&best) { shape } else { best }).unwrap_or(none)
}

impl Shared {
    /// Answers texts until the queue is closed and empty.
    pub fn answer_all(&self) {
        while let Some(batch) = self.queue.take() {
            self.answer(batch);
        }
    }

    fn answer(&self, Batch { model, texts }: Batch) {
        let started = Instant::now();
        let prompts = texts.iter().map(|text| &text.prompt).collect::<Vec<_>>();
        // A defect that shows with these texts leaves the others their answers.
        let asked = {
            let _turn = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            catch_unwind(AssertUnwindSafe(|| model.prepared.answer(&prompts)))
        };
        let failure = match asked {
            Ok(Ok(probabilities)) => {
                self.metrics.computed(&prompts, started.elapsed());
                model.set_failed(false);
                let width = model.prepared.labels().classes().len();
                for (text, row) in texts.into_iter().zip(probabilities.chunks(width)) {
                    // Who doesn't wait for it has gone.
                    let _ = text.answer.send(Some(row.to_vec()));
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a panic, which was printed".to_owned(),
        };
        model.set_failed(true);
        tracing::error!(texts = texts.len(), error = failure, "the model couldn't be asked");
        texts.into_iter().for_each(|text| {
            let _ = text.answer.send(None);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that takes as long as so many tokens for a step, whatever it holds.
    fn steps(fixed: usize, oldest: usize, counts: &[(usize, usize)]) -> (usize, usize) {
        let time = |rows: usize, length: usize| Duration::from_micros((fixed + rows * length) as u64);
        let Shape { rows, length } = best(oldest, counts, [1, 8, 32].into_iter(), time);
        (rows, length)
    }

    #[test]
    fn the_step_that_saves_the_most_time_is_taken() {
        // Of a CPU, on which tokens are what takes time.
        assert_eq!(steps(32, 16, &[(16, 1)]), (1, 16));
        assert_eq!(steps(32, 16, &[(16, 2)]), (1, 16));
        assert_eq!(steps(32, 16, &[(16, 6)]), (8, 16));
        assert_eq!(steps(32, 16, &[(16, 100)]), (32, 16));
        // Longer ones are left for later, shorter ones fill the rows.
        assert_eq!(steps(32, 16, &[(16, 6), (64, 26)]), (8, 16));
        assert_eq!(steps(32, 16, &[(8, 5), (16, 3)]), (8, 16));
        // But not rows that are far longer, though the oldest is.
        assert_eq!(steps(32, 64, &[(8, 100), (64, 1)]), (1, 64));
        assert_eq!(steps(32, 64, &[(8, 100), (16, 40), (48, 6), (64, 3)]), (8, 64));
        // Of a TPU, on which steps are.
        assert_eq!(steps(100_000, 16, &[(16, 1)]), (1, 16));
        assert_eq!(steps(100_000, 16, &[(16, 2)]), (8, 16));
        assert_eq!(steps(100_000, 16, &[(16, 6), (64, 26)]), (32, 64));
        assert_eq!(steps(100_000, 64, &[(8, 100), (64, 1)]), (32, 64));
    }
}
