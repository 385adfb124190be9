//! Files that are no plugins.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Case, TRAIN};

fn case(name: &str, make: impl FnOnce(&Path) + Send + 'static, message: &str) -> Case {
    let command = format!("{TRAIN} --plugin {{}}/plugin.so");
    Case::new(format!("plugin: {name}"), command, message).make(make)
}

/// A library of this C code.
fn library(name: &str, source: &'static str, message: &str) -> Option<Case> {
    // Without a compiler, there is no such case.
    Command::new("cc").arg("--version").output().ok()?;
    let make = move |folder: &Path| {
        fs::write(folder.join("plugin.c"), source).unwrap();
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-o"]).arg(folder.join("plugin.so")).arg(folder.join("plugin.c"));
        assert!(compile.status().unwrap().success());
    };
    Some(case(name, make, message))
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "missing",
            |_| (),
            "no cpu plugin found, looked at {}/plugin.so; name another file, or none for the one \
            that is installed",
        ),
        case(
            "empty",
            |folder| fs::write(folder.join("plugin.so"), "").unwrap(),
            "cannot load the cpu plugin {}/plugin.so: dlopen failed; expected a PJRT plugin, a \
            shared library",
        ),
        case(
            "text",
            |folder| fs::write(folder.join("plugin.so"), "text").unwrap(),
            "cannot load the cpu plugin {}/plugin.so: dlopen failed; expected a PJRT plugin, a \
            shared library",
        ),
        case(
            "a folder",
            |folder| fs::create_dir(folder.join("plugin.so")).unwrap(),
            "no cpu plugin found, looked at {}/plugin.so; name another file, or none for the one \
            that is installed",
        ),
        Case::new(
            "plugin: missing, by its variable",
            TRAIN,
            "no cpu plugin found, looked at {}/none.so (BERT_XLA_CPU_PLUGIN); name another file, \
            or none for the one that is installed",
        )
        .variable("BERT_XLA_CPU_PLUGIN", "{}/none.so"),
        Case::new(
            "plugin: text, by its variable",
            TRAIN,
            "cannot load the cpu plugin {}/data.csv: dlopen failed; expected a PJRT plugin, a \
            shared library",
        )
        .variable("BERT_XLA_CPU_PLUGIN", "{}/data.csv"),
    ];
    cases.extend(library(
        "another library",
        "int answer(void) { return 42; }",
        "{}/plugin.so is not a PJRT plugin: it has no symbol GetPjrtApi",
    ));
    cases.extend(library(
        "no table",
        "const void* GetPjrtApi(void) { return 0; }",
        "{}/plugin.so gives no function table: GetPjrtApi returned null",
    ));
    cases
}
