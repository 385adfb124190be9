//! Libraries that are no plugin, or one of another version than this program knows: their tables of functions, made in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use bert_xla::pjrt::{Backend, Error, Plugin};

use crate::common::cli::asset;
use crate::common::empty_folder;

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_file_that_is_no_plugin_is_named() {
    let folder = empty_folder("not_a_plugin");
    let text = folder.join("notes.txt");
    std::fs::write(&text, "hello").unwrap();
    let error = Plugin::load(Backend::Cpu, &text).err().unwrap();
    assert!(error.is_input_error());
    let error = error.to_string();
    assert!(error.starts_with("cannot load the cpu plugin ") && error.contains("notes.txt"), "{error}");

    let missing = folder.join("none.so");
    let error = message(Plugin::find(Backend::Cpu, Some(&missing)));
    let expected = format!(
        "no cpu plugin found, looked at {}; name another file, or none for the one that is installed",
        missing.display()
    );
    assert_eq!(error, expected);
    assert_eq!(message("npu".parse::<Backend>()), "unknown backend \"npu\": expected cpu, gpu or tpu");

    let Some(library) = build_library(&folder, "plain", "int answer(void) { return 42; }") else { return };
    let error = message(Plugin::load(Backend::Cpu, &library));
    assert_eq!(error, format!("{} is not a PJRT plugin: it has no symbol GetPjrtApi", library.display()));
}

#[test]
fn a_plugin_of_another_version_is_refused() {
    let folder = empty_folder("other_version");
    for (major, minor) in [(0, 1), (0, 56), (1, 90)] {
        // The head of the C struct: size, extension, then the version struct with its own size and extension.
        let source = format!(
            "#include <stddef.h>\n\
             static struct {{ size_t size; void* next; size_t size2; void* next2; int major, minor; void* f[200]; }}\n\
             api = {{ 1640, 0, 24, 0, {major}, {minor}, {{0}} }};\n\
             const void* GetPjrtApi(void) {{ return &api; }}\n"
        );
        let Some(library) = build_library(&folder, &format!("v{major}_{minor}"), &source) else { return };
        let error = message(Plugin::load(Backend::Gpu, &library));
        let expected = format!(
            "{} has PJRT C API {major}.{minor}, expected 0.57 or a later 0.x: run `bert-xla plugins install gpu`",
            library.display()
        );
        assert_eq!(error, expected);
    }
}

/// `tests/fixtures/small_plugin.c` with a table of `size` bytes.
fn small_plugin(size: usize, flags: &[&str]) -> Option<PathBuf> {
    let folder = empty_folder(&format!("small_plugin_{size}{}", flags.concat()));
    let size = format!("-DSIZE={size}");
    compile(
        &asset("../tests/fixtures/small_plugin.c"),
        &folder.join("plugin.so"),
        &[&[&*size], flags].concat(),
    )
}

/// Whatever a plugin's table lacks, nothing is read of it: the memory that follows is none.
#[test]
fn nothing_is_read_beyond_a_short_table() {
    const HEAD: usize = 40;
    for size in [8, 16, HEAD - 8] {
        let Some(library) = small_plugin(size, &["-DMINOR=81"]) else { return };
        let result = Plugin::load(Backend::Cpu, &library);
        assert!(result.as_ref().is_err_and(Error::is_input_error));
        let expected = format!(
            "{} is not a PJRT plugin: the table that GetPjrtApi gives has {size} bytes, too few for a version",
            library.display()
        );
        assert_eq!(message(result), expected);
    }
    // Up to each of the functions that tell of errors, which come first, and to the last one before Plugin_Initialize.
    for functions in 0..4 {
        let Some(library) = small_plugin(HEAD + 8 * functions, &["-DMINOR=81"]) else { return };
        let error = message(Plugin::load(Backend::Cpu, &library));
        assert!(error.starts_with("the plugin has no function PJRT_Plugin_Initialize"), "{error}");
    }
    // One function short of a client.
    let Some(library) = small_plugin(HEAD + 8 * 10, &["-DMINOR=81"]) else { return };
    let plugin = Plugin::load(Backend::Cpu, &library).unwrap();
    assert_eq!(plugin.api_version(), (0, 81));
    let error = message(plugin.client(&[]));
    assert!(error.starts_with("the plugin has no function PJRT_Client_Create"), "{error}");
}

#[test]
fn a_plugin_that_wants_longer_structs_is_told_from_other_failures() {
    let Some(library) = small_plugin(40 + 8 * 11, &["-DMINOR=200"]) else { return };
    let result = Plugin::load(Backend::Cpu, &library).unwrap().client(&[]);
    assert!(result.as_ref().is_err_and(Error::is_input_error));
    assert_eq!(
        message(result),
        "PJRT_Client_Create: Unexpected PJRT_Client_Create_Args size: expected 96, got 88: the plugin has PJRT C API \
         0.200, this program knows it up to 0.114: update bert-xla, or install the plugin that it pins with `bert-xla \
         plugins install`"
    );
    let Some(library) = small_plugin(40 + 8 * 11, &["-DMINOR=200", "-DOTHER_REASON"]) else { return };
    let error = message(Plugin::load(Backend::Cpu, &library).unwrap().client(&[]));
    assert_eq!(error, "PJRT_Client_Create: UNAVAILABLE: Unexpected size: expected 1 device");
}

/// Compiles C source to a shared library; `None` when there is no C compiler.
fn build_library(folder: &Path, name: &str, source: &str) -> Option<PathBuf> {
    let (c, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    std::fs::write(&c, source).unwrap();
    compile(&c, &library, &[])
}

fn compile(source: &Path, library: &Path, flags: &[&str]) -> Option<PathBuf> {
    let mut command = Command::new("cc");
    match command.args(["-shared", "-fPIC"]).args(flags).arg("-o").arg(library).arg(source).status() {
        Ok(status) => assert!(status.success(), "cc failed on {}", source.display()),
        Err(error) => {
            eprintln!("skipped: no C compiler: {error}");
            return None;
        }
    }
    Some(library.to_owned())
}
