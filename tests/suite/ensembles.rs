//! Several runs that answer together, and what `predict` and `evaluate` write of their answers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use bert_xla::data::{Purpose, Strings, Table, TableOptions};
use bert_xla::infer::{Ensemble, Predictor};
use bert_xla::run::{Run, Runs, layout};
use serde_json::Value as Json;

use crate::common::cli::{asset, command, demo, text, works};
use crate::common::empty_folder;
use crate::common::ensembles::other_run;
use crate::common::slice::run_hosts;
use crate::common::training::connect;

fn sample() -> Table {
    Table::read(&asset("sample.csv"), &TableOptions::default(), Purpose::Evaluate).unwrap()
}

/// The probabilities that a run gives `-1`, `0` and `1`, by the predictor alone.
fn alone(run: &Path, texts: &Strings) -> Vec<f64> {
    let run = Run::open(run).unwrap();
    let predictor = Predictor::open(&run, connect(1), 8, [0; 32]).unwrap();
    let classes = ["-1", "0", "1"].map(|label| run.labels.class_of(label).unwrap() as usize);
    let probabilities = predictor.probabilities(texts).unwrap();
    let rows = probabilities.chunks(run.model.head.num_classes());
    rows.flat_map(|row| classes.map(|class| f64::from(row[class]))).collect()
}

/// Arguments that name runs.
fn runs<'a>(paths: &[&'a Path]) -> Vec<&'a str> {
    paths.iter().flat_map(|path| ["--run", path.to_str().unwrap()]).collect()
}

fn on(data: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = command(&[name, "--backend", "cpu", "--batch-size", "8"]);
    command.arg("--data").arg(data).args(arguments);
    command
}

fn on_sample(name: &str, arguments: &[&str]) -> Command {
    on(&asset("sample.csv"), name, arguments)
}

/// The fields of a CSV file, by column and row.
fn table(path: &Path) -> HashMap<String, Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let fields = |line: &str| {
        // A quote within a quoted field is doubled: its two halves stand side by side.
        let mut fields = vec![String::new()];
        for (at, part) in line.split('"').enumerate() {
            match at % 2 {
                0 if at > 0 && part.is_empty() => fields.last_mut().unwrap().push('"'),
                0 => {
                    let mut parts = part.split(',');
                    fields.last_mut().unwrap().push_str(parts.next().unwrap());
                    fields.extend(parts.map(str::to_owned));
                }
                _ => fields.last_mut().unwrap().push_str(part),
            }
        }
        // The end of a line closes a quote, too.
        fields.into_iter().map(|field| field.strip_suffix('"').map_or(field.clone(), str::to_owned)).collect()
    };
    let mut rows = text.lines().map(fields);
    let names: Vec<String> = rows.next().unwrap();
    let mut columns = names.iter().map(|name| (name.clone(), vec![])).collect::<HashMap<_, _>>();
    for row in rows {
        assert_eq!(row.len(), names.len(), "{row:?}");
        names.iter().zip(row).for_each(|(name, field)| columns.get_mut(name).unwrap().push(field));
    }
    columns
}

fn numbers(column: &[String]) -> Vec<f64> {
    column.iter().map(|number| number.parse().unwrap()).collect()
}

/// The probabilities of a `predict --probabilities`, a row each, and the labels beside them.
fn predicted(folder: &Path, arguments: &[&str]) -> (Vec<[f64; 3]>, Vec<String>) {
    let output = folder.join("labels.csv");
    let output = output.to_str().unwrap();
    let arguments = [arguments, &["--probabilities", "--output", output]].concat();
    let done = on_sample("predict", &arguments).output().unwrap();
    assert!(done.status.success(), "{}", text(done.stderr));
    let mut columns = table(Path::new(output));
    assert_eq!(columns.len(), 5);
    let [a, b, c] = ["p_-1", "p_0", "p_1"].map(|name| numbers(&columns[name]));
    let rows = a.into_iter().zip(b).zip(c).map(|((a, b), c)| [a, b, c]).collect();
    (rows, columns.remove("label").unwrap())
}

fn most_probable(row: &[f64; 3]) -> usize {
    let mut classes = [0, 1, 2];
    classes.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    classes[0]
}

#[test]
fn an_ensemble_answers_with_the_mean_of_its_members() {
    let texts = sample().texts;
    let (a, b) = (demo().join("run"), other_run().to_owned());
    let members = [alone(&a, &texts), alone(&b, &texts)];
    assert!(members[0].iter().zip(&members[1]).any(|(a, b)| (a - b).abs() > 0.2), "no two models");
    for weights in [[1.0, 1.0], [2.0, 1.0], [1e308, 1e308], [3e-308, 1e-308]] {
        let runs = Runs::open(&[(a.clone(), weights[0]), (b.clone(), weights[1])]).unwrap();
        let ensemble = Ensemble::open(&runs, connect(1), 8, [0; 32]).unwrap();
        let found = ensemble.probabilities(&texts).unwrap();
        let share = weights[0] / 2.0 / (weights[0] / 2.0 + weights[1] / 2.0);
        let mean = members[0].iter().zip(&members[1]).map(|(a, b)| share * a + (1.0 - share) * b);
        let off = mean.zip(&found).map(|(mean, found)| (mean - f64::from(*found)).abs()).fold(0.0, f64::max);
        assert_eq!(found.len(), texts.len() * 3);
        assert!(off <= 1e-7, "{weights:?}: off by {off}");
    }
    // One run is an ensemble of one, to the last bit.
    for (run, expected) in [(a, &members[0]), (b, &members[1])] {
        let runs = Runs::open(&[(run, 7.0)]).unwrap();
        let found = Ensemble::open(&runs, connect(1), 8, [0; 32]).unwrap().probabilities(&texts).unwrap();
        let expected = expected.iter().map(|p| *p as f32);
        // The demo's classes are in the order of its labels; the other's are 1, 0, -1.
        let order = if runs.labels().class_of("-1") == Some(1) { [0, 1, 2] } else { [2, 1, 0] };
        let found = found.chunks(3).flat_map(|row| order.map(|column| row[column]));
        assert!(found.eq(expected));
    }
}

#[test]
fn predict_and_evaluate_take_several_runs() {
    let folder = empty_folder("ensemble_commands");
    let (a, b) = (demo().join("run"), other_run());
    let ((of_a, labels), (of_b, _)) = (predicted(&folder, &runs(&[&a])), predicted(&folder, &runs(&[b])));
    for (row, label) in of_a.iter().zip(&labels) {
        // The rest is that of the class without a label.
        assert!((0.5..1.000001).contains(&row.iter().sum::<f64>()), "{row:?}");
        assert_eq!(*label, ["-1", "0", "1"][most_probable(row)]);
    }
    let (weighted, labels) = predicted(&folder, &[&runs(&[&a, b])[..], &["--weights", "2,1"]].concat());
    for (at, (row, label)) in weighted.iter().zip(&labels).enumerate() {
        for class in 0..3 {
            let mean = (2.0 * of_a[at][class] + of_b[at][class]) / 3.0;
            assert!((row[class] - mean).abs() < 1e-6, "row {at}: {row:?}, not {mean}");
        }
        assert_eq!(*label, ["-1", "0", "1"][most_probable(row)], "row {at}");
    }

    // Loss and accuracy of the mean, and the rows that are wrong.
    let mut data = sample();
    // The sample is learned to the last row: some labels are others here.
    data.classes.iter_mut().step_by(7).for_each(|class| *class = *class % 3 + 1);
    let quoted = |text: &str| text.replace('"', "\"\"");
    let label = |class: &u32| ["-1", "0", "1"][*class as usize - 1];
    let rows = data.ids.iter().zip(&data.texts).zip(&data.classes);
    let rows = rows.map(|((id, text), class)| format!("{id},\"{}\",{}\n", quoted(text), label(class)));
    let path = folder.join("data.csv");
    fs::write(&path, format!("id,text,label\n{}", rows.collect::<String>())).unwrap();
    let (errors, confusion) = (folder.join("errors.csv"), folder.join("confusion.png"));
    let files = ["--errors", errors.to_str().unwrap(), "--confusion", confusion.to_str().unwrap()];
    let evaluate = [&runs(&[&a, b])[..], &["--weights", "2,1", "--json"], &files].concat();
    let output = on(&path, "evaluate", &evaluate).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    let truth = data.classes.iter().map(|class| *class as usize - 1).collect::<Vec<_>>();
    let loss = weighted.iter().zip(&truth).map(|(row, class)| -row[*class].clamp(1e-7, 1.0 - 1e-7).ln());
    let loss = loss.sum::<f64>() / truth.len() as f64;
    assert!((report["loss"].as_f64().unwrap() - loss).abs() < 1e-6, "{report}, not {loss}");
    let is_wrong = |at: &usize| most_probable(&weighted[*at]) != truth[*at];
    let mut wrong = (0..truth.len()).filter(is_wrong).collect::<Vec<_>>();
    assert!(!wrong.is_empty() && wrong.len() < truth.len() / 2, "{} wrong rows", wrong.len());
    let accuracy = 1.0 - wrong.len() as f64 / truth.len() as f64;
    assert!((report["accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-12, "{report}");

    let surest = |at: &usize| weighted[*at].iter().copied().fold(0.0, f64::max);
    wrong.sort_by(|a, b| surest(b).total_cmp(&surest(a)));
    let found = table(&errors);
    let header = fs::read_to_string(&errors).unwrap();
    assert!(header.starts_with("id,text,label,predicted,p_predicted,p_label\n"), "{header}");
    let column = |of: &dyn Fn(usize) -> String| wrong.iter().map(|at| of(*at)).collect::<Vec<_>>();
    assert_eq!(found["id"], column(&|at| data.ids[at].to_owned()));
    assert_eq!(found["text"], column(&|at| data.texts[at].to_owned()));
    assert_eq!(found["label"], column(&|at| ["-1", "0", "1"][truth[at]].to_owned()));
    assert_eq!(found["predicted"], column(&|at| labels[at].clone()));
    for (at, row) in wrong.iter().enumerate() {
        let found = [&found["p_predicted"], &found["p_label"]].map(|column| numbers(column)[at]);
        assert_eq!(found, [surest(row), weighted[*row][truth[*row]]]);
    }
    let image = fs::File::open(&confusion).unwrap();
    let image = png::Decoder::new(std::io::BufReader::new(image)).read_info().unwrap();
    assert_eq!((image.info().width, image.info().height), (1200, 750));
}

#[test]
fn an_ensembles_folder_stands_for_its_members() {
    let folder = empty_folder("ensemble_folder");
    let (a, b, ensemble) = (demo().join("run"), other_run(), folder.join("ensemble"));
    for (name, run) in [("members/seed-0", &*a), ("members/seed-1", b)] {
        let member = ensemble.join(name);
        fs::create_dir_all(member.parent().unwrap()).unwrap();
        assert!(Command::new("cp").arg("-a").arg(run).arg(&member).status().unwrap().success());
    }
    let members = r#"{"members": ["members/seed-0", "members/seed-1"], "made_by": "hand"}"#;
    fs::write(ensemble.join(layout::ENSEMBLE), members).unwrap();
    assert_eq!(predicted(&folder, &runs(&[&ensemble])), predicted(&folder, &runs(&[&a, b])));
    // Its weight is shared among its members: 3/8, 3/8 and 1/4.
    let weights = |weights| ["--weights", weights];
    let shared = predicted(&folder, &[&runs(&[&ensemble, b])[..], &weights("3,1")].concat());
    let flat = predicted(&folder, &[&runs(&[&a, b, b])[..], &weights("1.5,1.5,1")].concat());
    assert_eq!(shared, flat);
    let report = |paths: &[&Path]| {
        let output = on_sample("evaluate", &runs(paths)).output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        text(output.stdout)
    };
    assert_eq!(report(&[&ensemble]), report(&[&a, b]));
}

#[test]
fn the_hosts_of_a_slice_answer_with_several_runs() {
    let folder = empty_folder("ensemble_slice");
    let (a, b) = (demo().join("run"), other_run());
    let job = |name: &str, paths: &[&Path]| {
        let output = folder.join(name);
        let output = ["--probabilities", "--output", output.to_str().unwrap()];
        on_sample("predict", &[&runs(paths)[..], &output].concat())
    };
    let hosts = [job("chief", &[&a, b]), job("other", &[&a, b])];
    let Some([chief, other]) = run_hosts(2, hosts) else { return };
    assert_eq!((chief.code, other.code), (Some(0), Some(0)), "{chief:?} {other:?}");
    assert!(!folder.join("other").exists());
    let alone = job("alone", &[&a, b]).args(["--replicas", "2"]).output().unwrap();
    assert!(alone.status.success());
    assert_eq!(fs::read(folder.join("chief")).unwrap(), fs::read(folder.join("alone")).unwrap());

    // Each run takes steps of its own: as many on each host, or none.
    let differ = run_hosts(2, [job("differ", &[&a, b]), job("differ", &[&a])]).unwrap();
    for host in differ {
        assert!(host.error().contains("process 1 in the options; give each"), "{host:?}");
        assert_eq!(host.code, Some(2));
    }
}

#[test]
fn without_wrong_rows_there_is_a_header() {
    let folder = empty_folder("ensemble_no_errors");
    let (data, errors) = (folder.join("data.csv"), folder.join("errors.csv"));
    fs::write(&data, "text,label\n\"I hate the movie, so bad\",-1\n").unwrap();
    let run = demo().join("run");
    let arguments = [Path::new("--run"), &run, "--data".as_ref(), &data, "--errors".as_ref(), &errors];
    works(&[&["evaluate", "--backend", "cpu"].map(Path::new)[..], &arguments].concat());
    assert_eq!(fs::read_to_string(&errors).unwrap(), "id,text,label,predicted,p_predicted,p_label\n");
}

/// A file that it goes to is written where it is, and the summary elsewhere.
#[test]
fn the_standard_output_is_a_file_like_others() {
    let folder = empty_folder("ensemble_stdout");
    let (run, path, file) = (demo().join("run"), folder.join("labels.csv"), folder.join("stdout"));
    let to = |output: &str| on_sample("predict", &["--run", run.to_str().unwrap(), "--output", output]);
    assert!(to(path.to_str().unwrap()).output().unwrap().status.success());
    fs::write(&file, "before\n").unwrap();
    let appended = fs::File::options().append(true).open(&file).unwrap();
    let output = to("/dev/stdout").stdout(appended).output().unwrap();
    let stderr = text(output.stderr);
    assert!(output.status.success() && stderr.contains("/dev/stdout: 402 rows\n"), "{stderr}");
    let expected = format!("before\n{}", fs::read_to_string(&path).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}
