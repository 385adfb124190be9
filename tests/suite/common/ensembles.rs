//! Runs that differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value as Json;

use super::cli::{asset, command, text};
use super::empty_folder;

/// A run with another encoder, tokenizer, length, mask and number of classes than the demo's, and the same labels in
/// another order.
pub fn other_run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = empty_folder("ensemble_other");
        let model = folder.join("model");
        fs::create_dir(&model).unwrap();
        let mut config: Json =
            serde_json::from_slice(&fs::read(asset("tiny/config.json")).unwrap()).unwrap();
        for (name, value) in [("hidden_size", 32), ("num_hidden_layers", 1), ("num_attention_heads", 4)] {
            config[name] = value.into();
        }
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        fs::copy(asset("tiny/vocab.txt"), model.join("vocab.txt")).unwrap();
        fs::write(model.join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
        let recipe = "train --backend cpu --random-weights --max-length 12 --mask --batch-size 8 --epochs 1 --seed 5 \
                      --learning-rate 5e-4 --labels 1=0,-1=4,0=2 --num-classes 6";
        let mut train = command(&recipe.split_whitespace().collect::<Vec<_>>());
        train.arg("--train").arg(asset("sample.csv")).arg("--model").arg(&model);
        let output = train.arg("--output").arg(folder.join("run")).output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        folder.join("run")
    })
}
