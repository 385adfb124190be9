//! Texts of others on a terminal, and inside Markdown and YAML: whatever they hold, they stay texts.

use std::fmt::Write;

/// A YAML string, as JSON has it in quotes, on one line.
pub fn yaml_string(text: &str) -> String {
    // A text has nothing that JSON can't hold.
    let json = serde_json::to_string(text).unwrap_or_default();
    let mut yaml = String::new();
    for c in json.chars() {
        match c {
            // Line breaks to YAML, though not to JSON; and what is not printable to it.
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(yaml, "\\u{:04x}", u32::from(c));
            }
            _ => yaml.push(c),
        }
    }
    yaml
}

/// A text on one line of a terminal, whatever it holds.
pub fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// A text on one line of Markdown, in a table too.
pub fn markdown_text(text: &str) -> String {
    let mut markdown = String::new();
    for c in one_line(text).chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '&' | '~' | '#' | '$' => {
                markdown.extend(['\\', c]);
            }
            _ => markdown.push(c),
        }
    }
    markdown
}

/// Lines of a language, such as `sh`, fenced in Markdown.
pub fn code_block(language: &str, code: &str) -> String {
    let runs = code.split(|c| c != '`').map(str::len);
    let fence = "`".repeat(runs.max().unwrap_or(0).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", code.trim_end_matches('\n'))
}

/// A table of Markdown; its cells are Markdown already.
pub fn markdown_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header = header.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let rule = format!("|{}\n", "---|".repeat(header.len()));
    let rows = rows.into_iter().map(|row| line(&row)).collect::<String>();
    line(&header) + &rule + &rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By PyYAML 6.0.3: `yaml.safe_load` of each of these gives the text back.
    #[test]
    fn any_text_is_a_yaml_string() {
        for (text, yaml) in [
            ("train.csv", r#""train.csv""#),
            ("a \"b\" \\ 'c': - # x", r#""a \"b\" \\ 'c': - # x""#),
            ("a\n---\nb\t\u{1}", r#""a\n---\nb\t\u0001""#),
            ("ça \u{1f600} 你", "\"ça \u{1f600} 你\""),
            ("\u{7f}\u{85}\u{2028}\u{feff}", r#""\u007f\u0085\u2028\ufeff""#),
        ] {
            assert_eq!(yaml_string(text), yaml);
        }
    }

    #[test]
    fn any_text_stays_in_its_cell() {
        assert_eq!(markdown_text("-1"), "-1");
        assert_eq!(markdown_text("a|b\n<b>`c`</b>"), r"a\|b\\n\<b\>\`c\`\</b\>");
        let table = markdown_table(&["a", "b"], [vec!["1".to_owned(), markdown_text("|")]]);
        assert_eq!(table, "| a | b |\n|---|---|\n| 1 | \\| |\n");
    }

    #[test]
    fn a_fence_is_longer_than_those_inside() {
        assert_eq!(code_block("sh", "ls"), "```sh\nls\n```\n");
        assert_eq!(code_block("sh", "echo '```\n'\n"), "````sh\necho '```\n'\n````\n");
    }
}
