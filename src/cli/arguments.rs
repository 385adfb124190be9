//! The arguments of a run, as it keeps them to be gone on with: from another folder too.

use std::path::{Path, absolute};

use crate::storage::{file_name, is_bucket};
use crate::tpu_vm::quote;

/// Whose values are paths.
const PATHS: [&str; 5] = ["--train", "--dev", "--test", "--output", "--tensorboard"];
/// Whose value is one if there is such a folder.
const FOLDER: &str = "--model";
/// Not taken from a run: what is to be done with it; a plugin, which is a program, where a run may be anybody's; and the
/// runtime, which another build of this program may not have.
const OWN: [&str; 4] = ["--resume", "--overwrite", "--plugin", "--runtime"];

/// Whose value may look like another argument.
const ANY_VALUE: [&str; 2] = ["--labels", "--class-weights"];

/// An argument's name and its values.
type Argument = (String, Vec<String>);

fn parse(words: impl IntoIterator<Item = String>) -> Vec<Argument> {
    let mut arguments: Vec<Argument> = vec![];
    for word in words {
        match word.split_once('=') {
            _ if let Some((name, values)) = arguments.last_mut()
                && ANY_VALUE.contains(&&**name)
                && values.is_empty() =>
            {
                values.push(word);
            }
            // What comes after it isn't otherwise read.
            _ if word == "--" => {}
            Some((name, value)) if name.starts_with("--") => {
                arguments.push((name.to_owned(), vec![value.to_owned()]));
            }
            _ if word.starts_with("--") => arguments.push((word, vec![])),
            _ => match arguments.last_mut() {
                Some((_, values)) => values.push(word),
                None => arguments.push((word, vec![])),
            },
        }
    }
    arguments
}

/// `words`, with paths of this machine from its root, and of an argument that is given twice, the last alone.
pub fn kept(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let arguments = parse(words);
    let is_last = |at: usize| arguments[at + 1..].iter().all(|(name, _)| *name != arguments[at].0);
    let last = (0..arguments.len()).filter(|at| is_last(*at)).map(|at| &arguments[at]);
    last.flat_map(|(name, values)| {
        to_words((name.clone(), values.iter().map(|value| from_root(name, value)).collect()))
    })
    .collect()
}

/// An argument as words. A single value stays with its name: it may begin with a `-`.
fn to_words((name, values): Argument) -> Vec<String> {
    match &values[..] {
        [value] => vec![format!("{name}={value}")],
        _ => [name].into_iter().chain(values).collect(),
    }
}

/// The words that a run has kept, as far as they are taken from one, and then those that are given now.
pub fn again(kept: Vec<String>, now: &[String]) -> impl Iterator<Item = String> {
    let taken = parse(kept).into_iter().filter(|(name, _)| !OWN.contains(&&**name));
    taken.flat_map(to_words).chain(now.to_vec())
}

/// The command of these `kept` words as a person would write it, with the names of files alone, in a shell's quotes.
pub fn told(kept: Vec<String>) -> String {
    let taken = parse(kept).into_iter().filter(|(name, _)| !OWN.contains(&&**name));
    let told = |(name, values): Argument| {
        let is_path = |value: &str| {
            let is_one = PATHS.contains(&&*name);
            is_one || (name == FOLDER && (Path::new(value).is_absolute() || is_bucket(Path::new(value))))
        };
        let value = |value: &String| if is_path(value) { file_name(Path::new(value)) } else { value.clone() };
        let values = values.iter().map(value).collect::<Vec<_>>();
        let joins = values.first().is_some_and(|value| value.starts_with('-'));
        match &values[..] {
            [value] if joins => quote(&format!("{name}={value}")),
            _ => [name].iter().chain(&values).map(|word| quote(word)).collect::<Vec<_>>().join(" "),
        }
    };
    ["bert-xla train".to_owned()].into_iter().chain(taken.map(told)).collect::<Vec<_>>().join(" ")
}

fn from_root(name: &str, value: &str) -> String {
    let path = Path::new(value);
    let is_path = PATHS.contains(&name) || (name == FOLDER && path.is_dir());
    let whole = absolute(path).ok().filter(|_| is_path && !is_bucket(path));
    whole.and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_else(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let here = std::env::current_dir().unwrap();
        assert_eq!(kept(words(line)), words(&expected.replace("HERE", here.to_str().unwrap())));
    }

    #[test]
    fn paths_are_from_the_root() {
        check("--train a/b.csv --output=run", "--train=HERE/a/b.csv --output=HERE/run");
        check("--dev a.csv --test=gs://b/t.csv", "--dev=HERE/a.csv --test=gs://b/t.csv");
        check("--train /a.csv --output gs://b/run", "--train=/a.csv --output=gs://b/run");
        // This project's folder, and an id of the Hub.
        check("--model src --mask", "--model=HERE/src --mask");
        check("--model src/none", "--model=src/none");
    }

    #[test]
    fn what_to_do_with_a_run_and_programs_are_not_taken_from_it() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let kept = words("--plugin=a.so --seed 1 --overwrite --plugin b.so --mask");
        let now = words("--resume --plugin c.so");
        let line = again(kept, &now);
        assert_eq!(line.collect::<Vec<_>>(), words("--seed=1 --mask --resume --plugin c.so"));
    }

    #[test]
    fn a_command_is_told_without_the_folders_of_a_machine() {
        let words = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect();
        let line = words(&[
            "--train=/home/me/it's here.csv",
            "--output=gs://b/run",
            "--dev=data/dev.csv",
            "--model=/models/tiny",
            "--separator=;",
            "--labels=-1=0,0=1",
            "--overwrite",
            "--plugin=/a.so",
            "--mask",
        ]);
        let told = r"bert-xla train --train 'it'\''s here.csv' --output run --dev dev.csv --model tiny --separator ';' --labels=-1=0,0=1 --mask";
        assert_eq!(super::told(line), told);
        let hub = words(&["--model=owner/name", "--gpu-devices", "0,1", "2"]);
        assert_eq!(super::told(hub), "bert-xla train --model owner/name --gpu-devices 0,1 2");
    }

    #[test]
    fn the_last_of_equal_arguments_counts() {
        check("--seed 1 --mask --seed=2 --gpu-devices 0,1 --", "--mask --seed=2 --gpu-devices=0,1");
        check("--labels -1=0,0=1 --seed 1 --labels 0=1", "--seed=1 --labels=0=1");
        check("--class-weights --x=2,y=1 --mask", "--class-weights=--x=2,y=1 --mask");
        check("--text-column=-text --labels --x=0,y=1", "--text-column=-text --labels=--x=0,y=1");
    }
}
