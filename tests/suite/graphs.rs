//! The programs kept in `xla-graphs/` are the ones that the code builds now.

use std::path::Path;
use std::process::Command;

#[test]
fn xla_graphs_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("xla-graphs");
    for size in ["tiny", "mbert"] {
        for step in ["train", "eval", "predict"] {
            let arguments = ["graph", "--size", size, "--step", step];
            let output = Command::new(env!("CARGO_BIN_EXE_bert-xla")).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let file = format!("{size}.{step}.hlo");
            let kept = std::fs::read(folder.join(&file)).unwrap_or_default();
            assert!(
                kept == output.stdout,
                "xla-graphs/{file} is stale; refresh it with: \
                 cargo run --release -- {} --output xla-graphs/{file}",
                arguments.join(" ")
            );
        }
    }
}
