//! libtpu, in a process of its own: it is not to share one with the CPU plugin's threads.

use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use bert_xla::plan::{Compiler, TOPOLOGIES, Target, Topology};

/// libtpu takes every name that is said to be known, and sees as many devices in it as follow from the table of chips.
#[test]
fn the_known_topologies_are_known_to_libtpu() {
    if !is_installed(Backend::Tpu).unwrap() {
        eprintln!("skipped: no tpu plugin; `bert-xla plugins install tpu` brings it");
        return;
    }
    for (name, _) in TOPOLOGIES {
        let topology = Topology::parse(name).unwrap();
        let devices = topology.devices();
        let compiler = Compiler::new(Target::Tpu(topology)).unwrap();
        assert_eq!(compiler.devices(), devices, "{name}");
        assert!(compiler.version().unwrap().contains("TPU"), "{name}");
    }
}
