//! The manifests for Kubernetes: they start the program as it is to be started, and go by its exit statuses.

use std::fs;
use std::path::Path;

use crate::common::cli::{asset, fails, works};
use crate::common::empty_folder;

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/gke").join(name);
    fs::read_to_string(path).unwrap()
}

/// The items of the list `args`, one a line.
fn arguments(manifest: &str) -> Vec<&str> {
    let lines = manifest.lines().map(str::trim_start).skip_while(|line| *line != "args:").skip(1);
    lines.map_while(|line| line.strip_prefix("- ")).collect()
}

#[test]
fn the_arguments_of_manifests_are_the_programs() {
    let output = empty_folder("manifests").join("run");
    for name in ["job.yaml", "jobset.yaml"] {
        let manifest = manifest(name);
        let given = arguments(&manifest);
        assert_eq!((given.len(), given[0]), (5, "train"), "{name}");
        // The same on this machine, with a model that is here.
        let local = |argument: &str| {
            let (flag, value) = argument.split_once('=').unwrap_or((argument, ""));
            match flag {
                "--train" => format!("--train={}", asset("sample.csv").display()),
                "--output" => format!("--output={}", output.display()),
                "--backend" => "--backend=cpu".to_owned(),
                _ => [flag, value].join(if value.is_empty() { "" } else { "=" }),
            }
        };
        let mut line = given.iter().map(|argument| local(argument)).collect::<Vec<_>>();
        let model = format!("--model={}", asset("tiny").display());
        line.extend([model, "--max-length=24".to_owned(), "--random-weights".to_owned()]);
        line.push("--dry-run".to_owned());
        works(&line);
        assert!(given.contains(&"--backend=tpu") && given.contains(&"--output=gs://BUCKET/run"), "{name}");
    }
}

/// 75 and 2 are told apart from all others; `--help` names both.
#[test]
fn manifests_go_by_the_programs_exit_statuses() {
    let help = works(&["--help"]);
    assert!(help.contains("75 a training that was stopped and saved"), "{help}");
    assert!(help.contains("2 an input or a usage that can't be worked with"), "{help}");
    let error =
        fails(&mut crate::common::cli::command(&["train", "--output", "run", "--train", "none.csv"]), 2);
    assert!(error.contains("none.csv"), "{error}");
    let of_codes = |name: &str| -> Vec<String> {
        let lines = manifest(name).lines().map(str::to_owned).collect::<Vec<_>>();
        lines.into_iter().filter_map(|line| Some(line.split_once("values: ")?.1.to_owned())).collect()
    };
    assert_eq!(of_codes("job.yaml"), ["[2]}", "[75]}"]);
    assert_eq!(of_codes("jobset.yaml"), ["[2, 75]}"]);
}
