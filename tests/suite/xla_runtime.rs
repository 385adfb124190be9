//! The xla runtime beside PJRT plugins: the same losses, each one's checkpoints for the other, and what it refuses.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bert_xla::exec::{DeviceOptions, LinkedRuntime, Replicas, RuntimeKind};
use bert_xla::pjrt::Backend;
use bert_xla::run::layout;
use serde_json::Value as Json;

use crate::common::cli::{asset, command, demo, fails, json_lines, train, with_run, works};
use crate::common::runs::trains;
use crate::common::training::{assert_close, connect, run};
use crate::common::{cpu_plugin, empty_folder};
use crate::golden::{check_adam_steps, check_evaluation, check_hidden_states};
use crate::resume::weights;

const TOLERANCE: f32 = 1e-5;

fn options() -> DeviceOptions {
    DeviceOptions { runtime: Some(RuntimeKind::Xla), backend: Some(Backend::Cpu), ..Default::default() }
}

fn linked() -> Arc<Replicas> {
    Arc::new(Replicas::connect(&options()).unwrap())
}

/// With the library's CPU showing as many devices as there are replicas.
fn on(runtime: &str, replicas: usize, mut command: Command) -> Command {
    command.args(["--runtime", runtime, "--replicas", &replicas.to_string()]);
    command.env("XLA_FLAGS", format!("--xla_force_host_platform_device_count={replicas}"));
    command
}

/// Twenty steps an epoch, without dropout: another version of XLA may draw other masks.
fn train_without_dropout(output: &Path, runtime: &str, replicas: usize, epochs: &str) -> Command {
    let flags = ["--dropout", "0", "--encoder-dropout", "0", "--batch-size", "18", "--learning-rate", "1e-4"];
    on(runtime, replicas, train(output, &[&flags[..], &["--epochs", epochs]].concat()))
}

fn losses(root: &Path) -> Vec<f32> {
    let steps = json_lines(&fs::read_to_string(root.join(layout::STEPS)).unwrap());
    steps.iter().map(|step| step["loss"].as_f64().unwrap() as f32).collect()
}

fn assert_same_weights(found: &Path, expected: &Path) {
    let (found, expected) = (weights(found), weights(expected));
    assert!(found.keys().eq(expected.keys()));
    found.iter().for_each(|(name, values)| assert_close(name, values, &expected[name], TOLERANCE));
}

#[test]
fn twenty_steps_have_the_losses_of_a_plugins() {
    let folder = empty_folder("xla_losses");
    for replicas in [1, 2] {
        let roots = ["pjrt", "xla"].map(|runtime| {
            let root = folder.join(format!("{runtime}-{replicas}"));
            let said = trains(&mut train_without_dropout(&root, runtime, replicas, "1"));
            assert!(said.contains(&format!("Number of replicas: {replicas}\n")), "{said}");
            root
        });
        let [expected, found] = roots.each_ref().map(|root| losses(root));
        assert_eq!(found.len(), 20);
        assert!(found[19] < found[0], "{found:?}");
        assert_close("losses", &found, &expected, TOLERANCE);
        assert_same_weights(&roots[1], &roots[0]);
    }
}

#[test]
fn a_checkpoint_of_one_runtime_is_gone_on_with_by_the_other() {
    let folder = empty_folder("xla_resumed");
    let reference = folder.join("reference");
    trains(&mut train_without_dropout(&reference, "pjrt", 1, "2"));
    for [first, second] in [["pjrt", "xla"], ["xla", "pjrt"]] {
        let root = folder.join(first);
        trains(&mut train_without_dropout(&root, first, 1, "1"));
        let said = trains(&mut train_without_dropout(&root, second, 1, "2"));
        let change = match second {
            "xla" => "; runtime was not set, now xla",
            _ => "; runtime was xla, now not set",
        };
        assert!(said.contains("Going on after step 20") && said.contains(change), "{said}");
        assert_close("losses", &losses(&root), &losses(&reference), TOLERANCE);
        assert_same_weights(&root, &reference);
    }
}

#[test]
fn the_model_and_its_training_equal_the_references() {
    check_evaluation(&linked());
    check_adam_steps(linked());
    check_hidden_states(&linked());
}

#[test]
fn dropout_is_the_same_function_of_the_seed() {
    let first = run(linked(), 0.1, 7);
    assert_eq!(run(linked(), 0.1, 7), first);
    assert_ne!(run(linked(), 0.1, 8).weights, first.weights);
}

/// Through the crate, a plugin is what it is without it.
#[test]
fn a_plugin_trains_as_it_does_on_its_own() {
    for replicas in [1, 2] {
        let options = DeviceOptions { plugin: Some(cpu_plugin()), replicas: Some(replicas), ..options() };
        let through_the_crate = Replicas::connect(&options).unwrap();
        assert_eq!(through_the_crate.count(), replicas);
        assert_eq!(run(Arc::new(through_the_crate), 0.1, 7), run(connect(replicas), 0.1, 7));
    }
}

#[test]
fn answers_are_a_plugins() {
    let (run, folder) = (demo().join("run"), empty_folder("xla_answers"));
    for replicas in [1, 2] {
        let output = folder.join(format!("{replicas}.csv"));
        let mut predict = with_run("predict", &run, &demo().join("sample_test.csv"), &["--output"]);
        predict.arg(&output);
        let predict = on("xla", replicas, predict).output().unwrap();
        assert!(predict.status.success(), "{}", String::from_utf8_lossy(&predict.stderr));
        assert_eq!(fs::read(&output).unwrap(), fs::read(demo().join("submission.csv")).unwrap());
    }
}

#[test]
fn what_it_lacks_is_refused_by_name() {
    let plugin = empty_folder("xla_refused").join("plugin.so");
    let (no_plugin, text) = (plugin.to_str().unwrap(), asset("sample.csv"));
    let refusals: [(&[&str], &str); 6] = [
        (&["--backend", "tpu"], "tpu: "),
        (
            &["--backend", "cpu", "--replicas", "3"],
            "the xla runtime has CPU devices for 1 of 3 replicas: add --xla_force_host_platform_device_count=3 to XLA_FLAGS",
        ),
        (&["--backend", "gpu"], "gpu: "),
        (&["--backend", "cpu", "--plugin", no_plugin], "no cpu plugin found, looked at "),
        (&["--backend", "cpu", "--plugin", text.to_str().unwrap()], "cannot load the cpu plugin "),
        (&["--plugin", no_plugin], "a plugin's file is given, but not which backend it is for"),
    ];
    for (flags, reason) in refusals {
        let mut command = command(&["evaluate", "--runtime", "xla", "--run"]);
        command.arg(demo().join("run")).arg("--data").arg(asset("sample.csv")).args(flags);
        let message = fails(&mut command, 2);
        assert!(message.starts_with(&format!("error: {reason}")), "{message}");
    }
}

#[test]
fn plugins_tells_what_is_linked() {
    let listed: Json = serde_json::from_str(&works(&["plugins", "--json"])).unwrap();
    let linked = listed.as_array().unwrap().iter().find(|entry| entry["runtime"] == "xla").unwrap();
    assert_eq!((&linked["state"], &linked["devices"][0]["kind"]), (&"ready".into(), &"cpu".into()));
    assert_eq!(linked["lacks"].as_array().unwrap().len(), LinkedRuntime::LACKS.len());
    let text = works(&["plugins"]);
    assert!(
        text.contains("\nxla: linked\n  platform cpu, 1 device\n")
            && text.contains("\n  it lacks slices of several hosts; "),
        "{text}"
    );
}

/// The crate would open what it is given, whatever that is.
#[test]
fn a_plugin_is_looked_at_before_it_is_opened() {
    let folder = empty_folder("xla_plugins");
    let (run, data) = (demo().join("run"), asset("sample.csv"));
    let predict = |plugin: &str, backend: &str| {
        let flags = ["predict", "--runtime", "xla", "--backend", backend, "--plugin", plugin];
        let mut command = command(&flags);
        command
            .arg("--run")
            .arg(&run)
            .arg("--data")
            .arg(&data)
            .arg("--output")
            .arg(folder.join("labels.csv"));
        command.current_dir(&folder);
        command
    };
    fs::write(folder.join("text.so"), "no library").unwrap();
    let error = fails(&mut predict("text.so", "cpu"), 2);
    assert!(error.starts_with("error: cannot load the cpu plugin "), "{error}");
    // One that gives no table would end the process.
    fs::write(folder.join("null.c"), "void *GetPjrtApi(void) { return 0; }\n").unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", "null.so", "null.c"]).current_dir(&folder);
    let Ok(compiled) = compiler.status() else { return eprintln!("skipped: no C compiler") };
    assert!(compiled.success());
    let error = fails(&mut predict("./null.so", "cpu"), 2);
    assert!(error.contains("GetPjrtApi returned null"), "{error}");
    // A name without a folder is a file's here as well.
    std::os::unix::fs::symlink(cpu_plugin(), folder.join("cpu.so")).unwrap();
    let output = predict("cpu.so", "cpu").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("Running on cpu (cpu), by the xla runtime\n"),
        "{stderr}"
    );
    let error = fails(&mut predict("cpu.so", "gpu"), 2);
    assert!(error.starts_with("error: gpu: the plugin drives cpu devices, not gpus"), "{error}");
}

/// Variables of GPUs are nothing to a machine without one.
#[test]
fn a_gpus_variables_need_a_gpu() {
    let mut command = command(&["plugins"]);
    let output = command.env("JAX_CUDA_VISIBLE_DEVICES", "abc").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("xla: linked") && !stdout.contains("but fails"), "{stdout}");
}
