//! A training job from start to end, and what comes of it: the observer's view, the run that is read back, the model that
//! answers on the same devices.

use std::path::Path;
use std::time::Duration;

use bert_xla::exec::{Error as ExecError, Executable, Replicas, State};
use bert_xla::hlo::Graph;
use bert_xla::infer::Predictor;
use bert_xla::report::{EpochRecord, History};
use bert_xla::run::{Run, layout, model_folder};
use bert_xla::step::{InputId, Layout, LeafId, Precision, StepConfig, train_step};
use bert_xla::storage::FileError;
use bert_xla::train::{
    Ending, EpochMetrics, Observer, SaveOptions, Session, Shared, Started, StepMetrics, Stop,
};

use crate::common::empty_folder;
use crate::common::training::{MAX_LENGTH, connect, job, model};

/// Writes down what it is told.
#[derive(Default)]
struct Log {
    said: Vec<String>,
    records: Vec<EpochRecord>,
    fails: bool,
}

impl Observer for Log {
    fn ready(&mut self, _: Duration) {
        self.said.push("ready".into());
    }

    fn epoch_starts(&mut self, epoch: u32, epochs: u32, steps: u64, done: u64) {
        assert_eq!(done, 0);
        self.said.push(format!("epoch {epoch}/{epochs} of {steps}"));
    }

    fn step(&mut self, step: &StepMetrics, epoch: &EpochMetrics) {
        for (loss, accuracy) in [(step.loss(), step.accuracy()), (epoch.loss, epoch.accuracy)] {
            assert!(loss.is_finite() && (0.0..=1.0).contains(&accuracy));
        }
        self.said.push("step".into());
    }

    fn epoch_ends(&mut self, record: &EpochRecord) -> Result<(), FileError> {
        self.records.push(record.clone());
        match self.fails {
            true => Err(FileError::new("can't write to", "nowhere")(std::io::Error::other("it is gone"))),
            false => Ok(()),
        }
    }
}

fn start(output: &Path, log: &mut Log) -> Session {
    match Session::start(job(), &Shared::new(connect(1)), output, SaveOptions::default(), log).unwrap() {
        Started::Ready(session) => *session,
        Started::Finished { .. } => panic!("there is nothing yet"),
    }
}

#[test]
fn a_session_tells_its_observer_and_answers_on_the_same_devices() {
    let output = empty_folder("session").join("run");
    let mut log = Log::default();
    let mut session = start(&output, &mut log);
    assert_eq!(session.run(&Stop::default(), &mut log).unwrap(), Ending::Finished);
    // 48 rows to train on.
    let epoch = |epoch: u32| [vec![format!("epoch {epoch}/2 of 6")], vec!["step".to_owned(); 6]].concat();
    assert_eq!(log.said, [vec!["ready".to_owned()], epoch(1), epoch(2)].concat());
    assert_eq!(session.history().epochs(), log.records);
    let folder = model_folder(&output).unwrap();
    let history = std::fs::read_to_string(folder.join(layout::HISTORY)).unwrap();
    assert_eq!(History::parse(&history).unwrap().epochs(), log.records);

    let job = job();
    let table = &job.source.table;
    let dev = job.parts.dev.iter().map(|row| (table.texts[*row].to_owned(), table.classes[*row]));
    let (texts, classes): (Vec<_>, Vec<_>) = dev.unzip();
    let here = session.into_predictor().unwrap();
    let read = Predictor::open(&Run::open(&output).unwrap(), connect(1), 8, [0; 32]).unwrap();
    for predictor in [here, read] {
        let evaluation = predictor.evaluate(&texts, &classes).unwrap();
        assert_eq!(Some(evaluation.loss), log.records[1].val_loss);
        assert_eq!(predictor.probabilities(&texts).unwrap(), evaluation.probabilities);
        assert!(predictor.probabilities(&[""; 0]).unwrap().is_empty());
    }
}

/// Rounded weights are a part of the state then, and shares of them.
#[test]
fn a_session_in_bf16_answers_on_the_same_devices() {
    for replicas in [1, 2] {
        let output = empty_folder(&format!("session_bf16_{replicas}")).join("run");
        let mut job = job();
        job.recipe.execution.precision = Some(Precision::Bf16);
        let (source, dev) = (job.source.clone(), job.parts.dev.clone());
        let (shared, mut log) = (Shared::new(connect(replicas)), Log::default());
        let mut session =
            match Session::start(job, &shared, &output, SaveOptions::default(), &mut log).unwrap() {
                Started::Ready(session) => session,
                Started::Finished { .. } => panic!("there is nothing yet"),
            };
        assert_eq!(session.run(&Stop::default(), &mut log).unwrap(), Ending::Finished);
        let predictor = session.into_predictor().unwrap();
        let texts = dev.iter().map(|row| &source.table.texts[*row]);
        let classes = dev.iter().map(|row| source.table.classes[*row]).collect::<Vec<_>>();
        let evaluation = predictor.evaluate(texts.clone(), &classes).unwrap();
        assert_eq!(Some(evaluation.loss), log.records[1].val_loss);
        assert_eq!(predictor.probabilities(texts).unwrap(), evaluation.probabilities);
    }
}

#[test]
fn an_observer_that_fails_ends_the_session_and_keeps_the_epoch() {
    let output = empty_folder("session_observer").join("run");
    let mut log = Log { fails: true, ..Log::default() };
    let error = start(&output, &mut log).run(&Stop::default(), &mut log).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.is_input_error()),
        ("can't write to nowhere: it is gone", false)
    );
    assert_eq!(model_folder(&output).unwrap(), output.join("checkpoints/step-6"));
}

/// A step that the runtime refuses takes the state with it, and every use says so.
#[test]
fn a_launch_that_fails_loses_the_state_and_says_so() {
    let replicas: &Replicas = &connect(1);
    let config = StepConfig::new(model(0.0), 2, 1);
    let step = Executable::compile(replicas, train_step(&Graph::new(), &config)).unwrap();
    let shapes = step.signature().inputs.iter().map(|port| (port.id.clone(), port.shape.clone()));
    let shapes = shapes.collect::<Vec<_>>();
    let shape_of = |id: &InputId| &shapes.iter().find(|(known, _)| known == id).unwrap().1;
    let start = || {
        State::start(step.signature(), |leaf, _| match leaf {
            LeafId::Step => replicas.upload(&[0u32], &[], Layout::Mirrored),
            _ => {
                let shape = shape_of(&InputId::Leaf(leaf.clone()));
                replicas.upload(vec![0.5f32; shape.num_elements()], &shape.dims, Layout::Mirrored)
            }
        })
        .unwrap()
    };
    let inputs = |rows: usize| {
        let tokens = vec![1i32; rows * MAX_LENGTH];
        let upload = |id, placed: Result<_, ExecError>| (id, placed.unwrap());
        vec![
            upload(InputId::LearningRate, replicas.upload(&[1e-3f32], &[], Layout::Mirrored)),
            upload(InputId::Seed, replicas.upload(&[0u32], &[], Layout::Mirrored)),
            upload(InputId::InputIds, replicas.upload(&tokens, &[rows, MAX_LENGTH], Layout::Sharded)),
            upload(InputId::Labels, replicas.upload(vec![1i32; rows], &[rows], Layout::Sharded)),
            upload(InputId::ExampleWeights, replicas.upload(vec![1f32; rows], &[rows], Layout::Sharded)),
            upload(InputId::Meet, replicas.upload(&[0f32], &[1], Layout::Sharded)),
        ]
    };
    let mut state = start();
    drop(step.update(replicas, &mut state, &[&inputs(2)]).unwrap().wait().unwrap());
    assert_eq!(state.to_host::<u32>(replicas, &LeafId::Step).unwrap(), [1]);
    // A batch of another size.
    let error = step.update(replicas, &mut state, &[&inputs(3)]).err().unwrap();
    assert!(matches!(error, ExecError::Pjrt(_)), "{error}");
    let lost = |error: ExecError| assert!(matches!(error, ExecError::StateLost), "{error}");
    lost(state.to_host::<u32>(replicas, &LeafId::Step).unwrap_err());
    lost(step.update(replicas, &mut state, &[&inputs(2)]).err().unwrap());
    lost(state.into_weights().err().unwrap());
}

/// The whole of an array, however it lies over the replicas.
#[test]
fn an_array_comes_back_whole_from_any_layout() {
    let replicas = connect(4);
    let values = (0..24).map(|value| value as f32).collect::<Vec<_>>();
    for layout in [Layout::Mirrored, Layout::Sharded] {
        let placed = replicas.upload(&values, &[8, 3], layout).unwrap();
        assert_eq!(replicas.to_host::<f32>(&placed).unwrap(), values);
        let second = replicas.to_host_from::<f32>(&placed, 1).unwrap();
        assert_eq!(second, if layout == Layout::Mirrored { &values } else { &values[6..12] });
    }
}
