//! What a run's model card says of where the model comes from: names of files, and no folders of this machine.

use std::path::Path;

use super::arguments;
use super::train_args::TrainArgs;
use crate::data::Format;
use crate::run::Provenance;
use crate::storage::{file_name, is_bucket};
use crate::train::Source;

impl TrainArgs {
    /// Of a model that is trained from `source`.
    pub(super) fn provenance(&self, source: &Source) -> Provenance {
        let model = Path::new(&self.model.model);
        let is_folder = model.is_dir() || is_bucket(model);
        // A folder may say whose copy it is.
        let before = source.original.get("_name_or_path").and_then(|name| name.as_str());
        let id = if is_folder { before.filter(|name| is_hub_id(name)) } else { Some(&*self.model.model) };
        let is_pretrained = !self.model.random_weights;
        Provenance {
            model: id.map_or_else(|| file_name(model), str::to_owned),
            base_model: id.filter(|_| is_pretrained).map(str::to_owned),
            table: file_name(&self.train),
            dev_table: self.evaluation.dev.as_deref().map(file_name),
            test_table: self.evaluation.test.as_deref().map(file_name),
            format: self.format_of(self.evaluation.dev.as_ref().unwrap_or(&self.train)).to_owned(),
            test_format: self.evaluation.test.as_ref().map_or("", |test| self.format_of(test)).to_owned(),
            command: arguments::told(self.written.clone()),
        }
    }
}

impl TrainArgs {
    /// As the Hub's datasets library names it.
    fn format_of(&self, path: &Path) -> &'static str {
        match self.table.format_of(path) {
            Format::Csv => "csv",
            Format::JsonLines => "json",
            Format::Parquet => "parquet",
        }
    }
}

/// Whether a name may be a model's on the Hub: `name` or `owner/name`, of letters, digits and `-_.`.
fn is_hub_id(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(is_of_name)
    };
    name.split('/').count() <= 2 && name.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_no_ids() {
        for id in ["bert-base-multilingual-cased", "nreimers/MiniLM-L6-H384-uncased"] {
            assert!(is_hub_id(id), "{id}");
        }
        for path in ["", "/root/model", "./model", "a/b/c", "C:\\model", "old/", "~/model", "../model"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
