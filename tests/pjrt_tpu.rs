//! libtpu, in a process of its own: it is not to share one with the CPU plugin's threads.

use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use bert_xla::plan::{Compiler, Slice, TOPOLOGIES, Target};

/// libtpu takes every name that is said to be known, and sees as many devices in it as follow from the table of chips.
#[test]
fn the_known_topologies_are_known_to_libtpu() {
    if !is_installed(Backend::Tpu).unwrap() {
        eprintln!("skipped: no tpu plugin; `bert-xla plugins install tpu` brings it");
        return;
    }
    for (name, _) in TOPOLOGIES {
        let slice = Slice::parse(name).unwrap();
        let devices = slice.devices();
        let compiler = Compiler::new(Target::Tpu(slice)).unwrap();
        assert_eq!(compiler.devices(), devices, "{name}");
        assert!(compiler.version().unwrap().contains("TPU"), "{name}");
    }
}
