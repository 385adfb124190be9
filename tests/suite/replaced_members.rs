//! Ensembles in place of others: what answers meanwhile, what is removed, and what is somebody's.

use std::fs;
use std::path::{Path, PathBuf};

use bert_xla::run::layout;
use serde_json::json;

use crate::common::cli::{asset, fails, train, with_run};
use crate::common::empty_folder;
use crate::common::runs::{Training, read_json, trains};
use crate::common::slice::run_hosts;

fn member(root: &Path, name: &str) -> PathBuf {
    root.join(layout::MEMBERS).join(name)
}

/// The epoch that each member is kept of.
fn epochs(root: &Path) -> Vec<u64> {
    let summary = read_json(&root.join(layout::SUMMARY));
    summary["members"].as_array().unwrap().iter().map(|member| member["epoch"].as_u64().unwrap()).collect()
}

#[test]
fn members_of_an_earlier_training_do_not_count() {
    let root = empty_folder("replaced_epochs").join("run");
    let flags = |epochs| ["--seeds", "2", "--checkpoint-every", "5", "--epochs", epochs];
    trains(&mut train(&root, &flags("2")));
    assert_eq!(epochs(&root), [2, 2]);
    // For fewer epochs, nothing is to do, but members would differ from others that are trained so.
    let message = fails(&mut train(&root, &flags("1")), 2);
    assert!(
        message.contains("seed-0 was trained for 2, and members would differ; give --epochs 2, or"),
        "{message}"
    );
    let anew = || {
        let mut command = train(&root, &flags("1"));
        command.arg("--overwrite");
        command
    };
    // Cut before its second member.
    Training::start(anew(), &member(&root, "seed-0"), 5).kill();
    trains(&mut anew());
    assert_eq!(epochs(&root), [1, 1]);
    // Once all are trained, the same command trains them again.
    let name = |seed| read_json(&member(&root, seed).join(layout::RUN))["run"].clone();
    let before = ["seed-0", "seed-1"].map(name);
    trains(&mut anew());
    assert!(before.iter().zip(["seed-0", "seed-1"].map(name)).all(|(before, now)| *before != now));
    // A list that can't be read is an ensemble's all the same.
    fs::write(root.join(layout::ENSEMBLE), "{").unwrap();
    let message = fails(&mut train(&root, &flags("1")), 2);
    assert!(message.contains("ensemble.json: it should list the members of an ensemble"), "{message}");
    trains(&mut anew());
    assert_eq!(epochs(&root), [1, 1]);
}

#[test]
fn what_is_replaced_answers_until_the_others_are_trained() {
    let folder = empty_folder("replaced_others");
    let (root, data) = (folder.join("run"), asset("sample.csv"));
    let evaluate = |root: &Path| with_run("evaluate", root, &data, &["--json"]);
    let report = |root: &Path| {
        let output = evaluate(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = ["--seeds", "2", "--epochs", "2", "--checkpoint-every", "5"];
    Training::start(train(&root, &first), &member(&root, "seed-1"), 5).kill();
    let message = fails(&mut evaluate(&root), 2);
    let expected = format!(
        "error: {}: none of the 2 members of this ensemble can answer until all are trained; train goes on with it by \
         the command that it was started with",
        root.display()
    );
    assert_eq!(message, expected);
    trains(&mut train(&root, &first));
    let before = report(&root);
    // What somebody has in the way stays, and so do all members where the others come to nothing.
    let list = read_json(&root.join(layout::ENSEMBLE));
    assert_eq!(list["members"], json!(["members/seed-0", "members/seed-1"]));
    assert!(list.get("training").is_none());
    let others = ["--seeds", "2", "--seed", "7", "--epochs", "1", "--checkpoint-every", "5", "--overwrite"];
    fails(&mut train(&root, &[&others[..], &["--learning-rate", "1e30"]].concat()), 1);
    assert_eq!(report(&root), before);
    Training::start(train(&root, &others), &member(&root, "seed-8"), 5).kill();
    assert_eq!(report(&root), before);
    // One that isn't a run of ours is not removed.
    let precious = root.join("precious");
    fs::create_dir(&precious).unwrap();
    let mut list = read_json(&root.join(layout::ENSEMBLE));
    list["members"].as_array_mut().unwrap().push("precious".into());
    fs::write(root.join(layout::ENSEMBLE), list.to_string()).unwrap();
    trains(&mut train(&root, &others));
    assert_ne!(report(&root), before);
    let mut left = fs::read_dir(root.join(layout::MEMBERS)).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.all(|name| ["seed-7", "seed-8"].map(Into::into).contains(&name)));
    assert!(precious.is_dir());
}

/// The first process sums up, from its own disk.
#[test]
fn members_on_another_hosts_disk_are_told() {
    let folder = empty_folder("replaced_slice");
    let outputs = ["first", "second"].map(|host| folder.join(host));
    let test = asset("sample.csv");
    let host = |output: &Path| {
        let mut command = train(output, &["--seeds", "2", "--epochs", "1", "--test"]);
        command.arg(&test);
        command
    };
    let [first, second] = &outputs;
    let Some(hosts) = run_hosts(2, [host(first), host(second)]) else { return };
    assert!(hosts.iter().all(|host| host.code == Some(0)), "{hosts:?}");
    let concluded = fs::read(first.join(layout::TEST)).unwrap();
    let hosts = run_hosts(2, [host(second), host(first)]).unwrap();
    for host in &hosts {
        let expected =
            "process 1 of the slice has this run, and the first one, which tests and sums up, hasn't; start";
        assert!(host.code == Some(2) && host.error().contains(expected), "{hosts:?}");
    }
    let hosts = run_hosts(2, [host(first), host(second)]).unwrap();
    assert!(hosts.iter().all(|host| host.code == Some(0)), "{hosts:?}");
    assert_eq!(fs::read(first.join(layout::TEST)).unwrap(), concluded);
}

#[test]
fn seeds_may_be_added_and_folds_may_not() {
    let folder = empty_folder("replaced_more");
    let (seeds, folds) = (folder.join("seeds"), folder.join("folds"));
    let train = |root: &Path, name: &str, count: &str| train(root, &[name, count, "--epochs", "1"]);
    trains(&mut train(&seeds, "--seeds", "2"));
    let first = fs::read(member(&seeds, "seed-0").join(layout::WEIGHTS)).unwrap();
    let stderr = trains(&mut train(&seeds, "--seeds", "3"));
    assert_eq!(stderr.matches("Nothing to do").count(), 2, "{stderr}");
    assert_eq!(epochs(&seeds), [1, 1, 1]);
    assert!(fs::read(member(&seeds, "seed-0").join(layout::WEIGHTS)).unwrap() == first);
    let list = read_json(&seeds.join(layout::ENSEMBLE));
    assert_eq!(list["members"], json!(["members/seed-0", "members/seed-1", "members/seed-2"]));
    trains(&mut train(&folds, "--folds", "2"));
    let before = fs::read(folds.join(layout::ENSEMBLE)).unwrap();
    let message = fails(&mut train(&folds, "--folds", "3"), 2);
    assert!(message.contains("already holds an ensemble of 2 other members"), "{message}");
    assert_eq!(fs::read(folds.join(layout::ENSEMBLE)).unwrap(), before);
}
