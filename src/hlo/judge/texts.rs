//! The programs kept in `xla-graphs/`, through XLA's own parser.

use std::path::Path;

use fastrand::Rng;
use xla::HloModuleProto;

use super::values::Array;
use super::{ours, run, same_module, same_results};
use crate::hlo::Graph;
use crate::model::{ClassifierConfig, HeadConfig, Size};
use crate::step::{StepConfig, StepKind};

/// As `bert-xla graph` builds them.
fn config(size: Size) -> StepConfig {
    let model = ClassifierConfig {
        bert: size.config(),
        head: HeadConfig::default(),
        max_length: size.max_length(),
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    StepConfig::new(model, 16, 1)
}

#[test]
fn kept_texts_are_the_modules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("xla-graphs");
    for size in [Size::Tiny, Size::MBert] {
        for step in StepKind::ALL {
            let graph = Graph::new();
            let program = step.build(&graph, &config(size)).program;
            let file = folder.join(format!("{size}.{step}.hlo"));
            let read = HloModuleProto::from_text_file(&file)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let written = ours(&program);
            same_module(&written, &read, &program);
            if size == Size::Tiny {
                let mut random = Rng::with_seed(1);
                let inputs = program
                    .parameter_shapes()
                    .iter()
                    .map(|shape| Array::mild(&mut random, shape))
                    .collect::<Vec<_>>();
                same_results(&run(&written, &program, &inputs), &run(&read, &program, &inputs), &program);
            }
        }
    }
}
