//! The help against what the commands take.

use clap::CommandFactory;

use super::*;

/// The command lines of a help text: comments apart, continued lines joined.
fn examples(help: &str) -> Vec<Vec<String>> {
    let joined = help.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| line.starts_with("bert-xla "));
    let words = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default();
        line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
    };
    lines.map(words).collect()
}

#[test]
fn every_example_of_the_help_is_taken() {
    let mut found = 0;
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(|help| help.to_string()).unwrap_or_default();
        for example in examples(&help) {
            found += 1;
            if let Err(error) = Cli::try_parse_from(&example) {
                panic!("{}: {error}", example.join(" "));
            }
        }
    }
    assert!(found >= 12, "only {found} examples were found");
}

#[test]
fn the_long_help_says_what_the_short_one_leaves_out() {
    let mut cli = Cli::command();
    for (name, sentence) in [
        ("train", "The defaults are the published recipe"),
        ("predict", "A row gets the most probable of the classes"),
        ("plan", "Nothing runs, so times are"),
    ] {
        let command = cli.find_subcommand_mut(name).unwrap();
        assert!(command.render_long_help().to_string().contains(sentence), "{name}");
        assert!(!command.render_help().to_string().contains(sentence), "{name}");
    }
}

/// An option of the command itself doesn't stand under the heading of a group that it was declared after.
#[test]
fn headings_end_with_their_group() {
    for (name, option) in [
        ("plan", "batch-size"),
        ("plan", "json"),
        ("predict", "output"),
        ("encode", "output"),
        ("evaluate", "json"),
    ] {
        let cli = Cli::command();
        let command = cli.find_subcommand(name).unwrap();
        let argument = command.get_arguments().find(|argument| argument.get_long() == Some(option)).unwrap();
        assert_eq!(argument.get_help_heading(), None, "{name} --{option}");
    }
}
