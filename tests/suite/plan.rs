//! Programs compiled ahead of time by the real compilers, for TPUs and a GPU that aren't here.
//!
//! They run where the plugins are installed (`bert-xla plugins install tpu`, `gpu`), and are skipped elsewhere: each
//! is a download of some 150 MB. Each compilation is a process of its own.

use std::fs;
use std::process::Output;

use bert_xla::hlo::Graph;
use bert_xla::model::{ClassifierConfig, HeadConfig, Size};
use bert_xla::nn::Weight;
use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::is_installed;
use bert_xla::step::{StepConfig, train_step};
use serde_json::{Value as Json, json};

use crate::common::cli::{asset, command, fails, text, works};
use crate::common::empty_folder;

fn is_here(backend: Backend) -> bool {
    let here = is_installed(backend).unwrap();
    if !here {
        eprintln!("skipped: no {backend} plugin; `bert-xla plugins install {backend}` brings it");
    }
    here
}

fn plan(arguments: &[&str]) -> Json {
    let arguments = [&["plan", "--size", "tiny", "--json"], arguments].concat();
    serde_json::from_str(&works(&arguments)).unwrap()
}

/// The weights that the tiny model's train step updates.
fn trained_weights() -> Vec<Weight> {
    let (bert, max_length) = (Size::Tiny.config(), Size::Tiny.max_length());
    let model = ClassifierConfig {
        bert,
        head: HeadConfig::default(),
        max_length,
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    let graph = Graph::new();
    let weights = model.weights();
    let step = train_step(&graph, &StepConfig::new(model, 1, 1));
    step.signature.used(&weights).into_iter().cloned().collect()
}

fn bytes(weights: &[Weight]) -> f64 {
    weights.iter().map(|weight| 4.0 * weight.shape.num_elements() as f64).sum()
}

/// Weights, moments and the step count live on in place, and memory stays below `limit` MiB.
fn check_memory(step: &Json, limit: f64) {
    let weights = trained_weights();
    assert_eq!(step["aliases"], 3 * weights.len() + 1);
    let memory = |field: &str| step["memory"][field].as_f64().unwrap();
    let state = 3.0 * bytes(&weights) + 4.0;
    // Tiles pad a little.
    assert!((state..1.1 * state).contains(&memory("state")), "{} of {state}", memory("state"));
    assert!(memory("arguments") - memory("state") < 64.0 * 1024.0, "{}", step["memory"]);
    assert!(memory("outputs") < 64.0 * 1024.0, "{}", step["memory"]);
    assert!(memory("total") < limit * f64::from(1 << 20), "{}", step["memory"]);
    assert_eq!(step["memory"]["fits"], true);
}

fn check_slice(topology: &str, replicas: usize) {
    let recipe = ["--mirrored", "--precision", "f32"];
    let job = ["--topology", topology, "--batch-size", "64", "--step", "train"];
    let sharded = plan(&job);
    let plan = plan(&[&job[..], &recipe].concat());
    assert_eq!((&plan["devices"], &plan["replicas"]), (&replicas.into(), &replicas.into()), "{topology}");
    assert_eq!(plan["rows_per_replica"], 64 / replicas);
    let step = &plan["steps"][0];
    assert_eq!(step["replicas"], replicas, "{topology}");
    check_memory(step, 100.0);
    // Every gradient is summed over the replicas, and with them four numbers: examples, loss, right answers, and the
    // replicas that ask to meet.
    let collectives = step["collectives"].as_array().unwrap();
    let summed = collectives.iter().filter(|one| one["opcode"] == "all-reduce");
    let summed = summed.map(|one| one["bytes"].as_f64().unwrap()).sum::<f64>();
    assert_eq!(summed, bytes(&trained_weights()) + 16.0, "{topology}: {collectives:?}");
    // Element-wise operations are none of the matrix unit's.
    let (flops, products) = (step["flops"].as_f64().unwrap(), step["dot_flops"].as_f64().unwrap());
    let by_products = products / plan["peak_flops"].as_f64().unwrap();
    let by_memory = step["hbm_bytes"].as_f64().unwrap() / plan["chip"]["hbm_bandwidth"].as_f64().unwrap();
    assert!(products < flops, "{topology}: {products} of {flops}");
    assert_eq!(step["roofline_seconds"].as_f64().unwrap(), by_products.max(by_memory), "{topology}");
    let cycles = step["cycles"].as_f64().unwrap();
    assert!(cycles > 1e4, "{topology}: {cycles} cycles");
    let groups = step["groups"].as_array().unwrap();
    let in_groups = groups.iter().map(|group| group["cycles"].as_f64().unwrap()).sum::<f64>();
    assert_eq!(in_groups, cycles, "{topology}");
    assert_eq!(step["costliest"].as_array().unwrap().len(), 10);
    check_shares(&sharded["steps"][0], step, replicas);
}

/// What a slice does unless it is told otherwise, against the recipe's `mirrored` update: each replica has its share of the
/// state, all of which goes on in place, the rounded copies too; and less is moved, which goes by in less time.
fn check_shares(sharded: &Json, mirrored: &Json, replicas: usize) {
    let weights = trained_weights();
    let aliases = sharded["aliases"].as_u64().unwrap() as usize;
    let matrices = weights.iter().filter(|weight| weight.shape.rank() == 2).count();
    // All matrices but the table of tokens.
    assert_eq!(aliases, 3 * weights.len() + 1 + matrices - 1);
    let state = |step: &Json| step["memory"]["state"].as_f64().unwrap();
    // Vectors are on all of them, and so are matrices that have no tile of 8 rows for each, which are most of the tiny model's.
    let share = if replicas > 8 { 0.5 } else { 0.25 };
    assert!(state(sharded) < state(mirrored) * share, "{} bytes", state(sharded));
    let gathered =
        sharded["collectives"].as_array().unwrap().iter().find(|one| one["opcode"] == "all-gather");
    assert!(gathered.is_some(), "{}", sharded["collectives"]);
    let bytes = |step: &Json, what: &str| {
        let collectives = step["collectives"].as_array().unwrap().iter();
        collectives.map(|one| one[what].as_f64().unwrap()).sum::<f64>()
    };
    assert!(bytes(sharded, "bytes") < bytes(mirrored, "bytes") / 2.0);
    let seconds = |step: &Json| step["collective_seconds"].as_f64().unwrap();
    assert!(seconds(sharded) > 0.0 && seconds(sharded) < seconds(mirrored));
    if let Some(own) = sharded["estimated_seconds"].as_f64() {
        assert_eq!(sharded["step_seconds"].as_f64().unwrap(), own + seconds(sharded));
    }
}

#[test]
fn the_train_step_compiles_for_8_devices() {
    if is_here(Backend::Tpu) {
        check_slice("v3:2x2x1", 8);
        check_slice("v5e:2x4", 8);
    }
}

#[test]
fn the_train_step_compiles_for_slices_of_several_hosts() {
    if is_here(Backend::Tpu) {
        check_slice("v5e:4x4", 16);
        check_slice("v3:4x4x1", 32);
    }
}

#[test]
fn a_plan_names_all_steps_and_writes_what_is_asked_for() {
    if !is_here(Backend::Tpu) {
        return;
    }
    let folder = empty_folder("plan_files");
    let (chart, hlo) = (folder.join("plan.png"), folder.join("train.hlo"));
    let (chart_path, hlo_path) = (chart.to_str().unwrap(), hlo.to_str().unwrap());
    let topology = ["plan", "--topology", "v3:2x2x1", "--size", "tiny"];
    let files = ["--chart", chart_path, "--optimized-hlo", hlo_path];
    let text = works(&[&topology[..], &files[..]].concat());
    for expected in [
        "v3:2x2x1: 8 devices of TPU v3; 8 replicas, 2 rows each, a batch of 16",
        "A device: 16.0 GiB at 450 GB/s, 61.5 TFLOP/s in bf16",
        "Per device and step                train                eval             predict",
        "in time at 940 MHz",
        "step, in all",
        "train step: ",
        "eval step: ",
        "predict step: ",
        "Adam",
        "all-reduce",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    assert!(fs::read(chart).unwrap().starts_with(b"\x89PNG"));
    let hlo = fs::read_to_string(hlo).unwrap();
    assert!(hlo.starts_with("HloModule train_step"), "{}", &hlo[..80]);
    assert!(hlo.contains("\nENTRY ") && hlo.contains("all-reduce"));
}

#[test]
fn the_train_step_compiles_for_a_gpu() {
    if !is_here(Backend::Gpu) {
        return;
    }
    let job = ["--gpu", "h100", "--step", "train"];
    // All matrices but the table of tokens have a rounded copy, in place as well.
    let narrow = plan(&job);
    let matrices = trained_weights().iter().filter(|weight| weight.shape.rank() == 2).count() - 1;
    assert_eq!(narrow["steps"][0]["aliases"], 3 * trained_weights().len() + 1 + matrices);
    let plan = plan(&[&job[..], &["--precision", "f32"]].concat());
    assert_eq!((&plan["devices"], &plan["replicas"]), (&1.into(), &1.into()));
    let step = &plan["steps"][0];
    check_memory(step, 100.0);
    assert_eq!(step["collectives"], Json::Array(vec![]));
    assert_eq!((&step["cycles"], &step["estimated_seconds"]), (&Json::Null, &Json::Null));
    assert!(step["roofline_seconds"].as_f64().unwrap() > 0.0);
    assert!(!step["fusions"].as_array().unwrap().is_empty());
}

/// The gradient of the embedding is a sum into its rows: by atomic additions, in any order, unless that is forbidden. Then
/// XLA sorts what is to be added by its row first.
#[test]
fn a_deterministic_program_for_a_gpu_adds_in_order() {
    if !is_here(Backend::Gpu) {
        return;
    }
    let hlo = empty_folder("plan_deterministic").join("train.hlo");
    let plan = [
        "plan",
        "--gpu",
        "h100",
        "--size",
        "tiny",
        "--step",
        "train",
        "--optimized-hlo",
        hlo.to_str().unwrap(),
    ];
    let sorts = |arguments: &[&str]| {
        works(&[&plan, arguments].concat());
        fs::read_to_string(&hlo).unwrap().lines().filter(|line| line.contains(" sort(")).count()
    };
    assert_eq!((sorts(&[]), sorts(&["--deterministic"])), (0, 1));
}

/// The embedded model is what `--size tiny` means: its folder gives the same program.
#[test]
fn a_models_folder_is_planned_as_its_size_is() {
    if !is_here(Backend::Tpu) {
        return;
    }
    let slice = ["--topology", "v5e:1x1", "--step", "predict", "--json"];
    let folder = asset("tiny");
    let by_folder = ["plan", "--model", folder.to_str().unwrap(), "--max-length", "24"];
    let by_folder: Json = serde_json::from_str(&works(&[&by_folder[..], &slice].concat())).unwrap();
    let by_size = plan(&slice[..4]);
    for field in ["cycles", "flops", "memory"] {
        assert_eq!(by_folder["steps"][0][field], by_size["steps"][0][field], "{field}");
    }
}

/// Of a batch whose activations take terabytes, the compiler finds out soon; what fits is told all the same.
#[test]
fn a_step_that_does_not_fit_is_named_after_those_that_do() {
    if !is_here(Backend::Tpu) {
        return;
    }
    let arguments = ["plan", "--size", "tiny", "--topology", "v5e:1x1", "--batch-size", "65536", "--json"];
    let steps = ["--step", "train", "--step", "predict", "--max-length", "64"];
    let Output { status, stdout, stderr } = command(&[&arguments[..], &steps].concat()).output().unwrap();
    let stderr = text(stderr);
    assert_eq!(status.code(), Some(2), "{stderr}");
    let expected = "error: the train step does not fit v5e:1x1: PJRT_Compile: RESOURCE_EXHAUSTED: ";
    assert!(stderr.lines().any(|line| line.starts_with(expected)), "{stderr}");
    let plan: Json = serde_json::from_slice(&stdout).unwrap();
    let [step] = &plan["steps"].as_array().unwrap()[..] else { panic!("{plan}") };
    assert_eq!((&step["step"], &step["memory"]["fits"]), (&"predict".into(), &true.into()));
}

#[track_caller]
fn refused(arguments: &[&str], expected: &str) {
    let error = fails(&mut command(&[&["plan", "--size", "tiny"], arguments].concat()), 2);
    assert!(error.contains(expected), "{error}");
}

#[test]
fn what_cannot_be_planned_is_refused_in_one_line() {
    let known = "expected one such as v2:2x2x1 (v2-8), v3:2x2x1 (v3-8)";
    refused(&["--topology", "v3-9"], &format!("error: v3-9: not a TPU topology; {known}"));
    refused(&["--topology", "v9:2x2x1"], known);
    refused(
        &["--gpu", "v100"],
        "error: v100: not a GPU that is known here; expected one of a100, h100, h200",
    );
    if is_here(Backend::Tpu) {
        let slice = ["--topology", "v5e:2x2"];
        refused(&["--topology", "v5e:3x5"], "known to work: v2:2x2x1 (v2-8)");
        refused(
            &[&slice[..], &["--batch-size", "6"]].concat(),
            "a batch of 6 can't be split evenly over 4 replicas; choose a --batch-size that is a multiple of 4",
        );
        refused(&[&slice[..], &["--replicas", "5"]].concat(), "5 replicas: expected 1 to 4");
        refused(
            &[&slice[..], &["--max-length", "65"]].concat(),
            "--max-length 65: this encoder reads 1 to 64 tokens",
        );
    }
}

#[test]
fn an_odd_number_of_replicas_compiles() {
    if is_here(Backend::Tpu) {
        let job = ["--topology", "v3-8", "--replicas", "3", "--batch-size", "15", "--step", "train"];
        let step = &plan(&job)["steps"][0];
        let opcodes =
            step["collectives"].as_array().unwrap().iter().map(|one| one["opcode"].as_str().unwrap());
        assert!(opcodes.eq(["all-reduce"]), "{step}");
    }
}

#[test]
fn targets_are_compared_side_by_side() {
    let refused = |arguments: &[&str], expected: &str| {
        let error = fails(&mut command(&[&["plan", "--size", "tiny"], arguments].concat()), 2);
        assert!(error.contains(expected), "{error}");
    };
    refused(&["--compare", "v3-8,v9-8"], "v9-8");
    refused(&["--compare", "v3-8", "--rows", "9", "--price", "v2-8=4"], "--price v2-8");
    refused(&["--compare", "v3-8", "--rows", "9", "--price", "v3-8=-4"], "TARGET=PRICE");
    refused(&["--compare", "v3-8", "--price", "v3-8=4"], "required arguments");
    refused(&["--compare", "v3-8", "--topology", "v3-8"], "--topology");
    refused(&["--topology", "v3-8", "--rows", "9"], "--compare");
    refused(&["--compare", "v3-8,"], "--compare");
    refused(&["--compare", "v3-8,v3-8"], "twice");
    if !is_here(Backend::Tpu) || !is_here(Backend::Gpu) {
        return;
    }
    let folder = empty_folder("compared");
    let chart = folder.join("compared.png");
    let chart = chart.to_str().unwrap();
    let targets = ["--compare", "v3-8,v5e-8,h100", "--rows", "1000", "--price", "v3-8=8,h100=3.6"];
    let compared = plan(&[&targets[..], &["--chart", chart]].concat());
    let one = |at: usize, field: &str| compared["targets"][at][field].clone();
    assert_eq!([0, 1, 2].map(|at| one(at, "target")), ["v3:2x2x1", "v5e:2x4", "h100"]);
    assert_eq!([0, 1, 2].map(|at| one(at, "is_bound")), [false, false, true]);
    assert_eq!([0, 1, 2].map(|at| one(at, "is_clock_derived")), [false, true, false]);
    // 63 steps of 16.
    let seconds = [0, 1, 2].map(|at| one(at, "step_seconds").as_f64().unwrap());
    let epochs = [0, 1, 2].map(|at| one(at, "epoch_seconds").as_f64().unwrap());
    assert_eq!(epochs, seconds.map(|seconds| 63.0 * seconds));
    let cost = one(2, "epoch_cost").as_f64().unwrap();
    assert!((cost - epochs[2] / 1000.0).abs() < 1e-12 && one(1, "epoch_cost").is_null(), "{compared}");
    assert!(fs::read(chart).unwrap().starts_with(b"\x89PNG"));
    let alone = plan(&["--topology", "v3-8", "--step", "train"]);
    assert_eq!(alone["steps"][0]["step_seconds"].as_f64().unwrap(), seconds[0]);
    for found in [&compared, &alone] {
        assert_eq!((&found["model"], &found["max_length"]), (&json!("tiny"), &json!(24)), "{found}");
    }
    // A row of 24 in a tile of 128.
    assert_eq!(alone["tiles_in_use"], 0.1875);
    let text = works(&[&["plan", "--size", "tiny"], &targets[..]].concat());
    assert!(text.contains("~ ") && text.contains(">= ") && text.contains("h100"), "{text}");
}
