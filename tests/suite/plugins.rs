//! `bert-xla plugins` and `plugins install`, as a user runs them.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use crate::common::{cpu_plugin, empty_folder};
use bert_xla::pjrt::Backend;
use bert_xla::pjrt::install::installed_path;
use serde_json::Value as Json;
use zip::write::{SimpleFileOptions, ZipWriter};

const MEMBER: &str = "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so";
const FILE: &str = "plugins/cpu/0.0.1/xla_cpu_pjrt.so";

/// The program with an empty environment but for `PATH`, `HOME` and its cache.
fn bert_xla(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bert-xla"));
    command.args(arguments).env_clear().env("BERT_XLA_CACHE", cache);
    for variable in ["PATH", "HOME"] {
        command.envs(std::env::var_os(variable).map(|value| (variable, value)));
    }
    command
}

/// Lets pip see the wheels in `folder` and nothing else.
fn offline<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", folder).env("PIP_CONFIG_FILE", "/dev/null")
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

fn has_pip() -> bool {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no python3 with pip");
    }
    found
}

/// A wheel of the pinned name and version whose plugin is `content`.
fn fake_wheel(folder: &Path, content: &[u8]) -> PathBuf {
    let platform = format!("manylinux_2_27_{}", std::env::consts::ARCH);
    let path = folder.join(format!("xla_cpu_pjrt-0.0.1-py3-none-{platform}.whl"));
    wheel_of(&path, "xla_cpu_pjrt-0.0.1", &platform, &[(MEMBER, content)]);
    path
}

/// A wheel that pip takes for one of that name and version, with these files.
fn wheel_of(path: &Path, name_and_version: &str, platform: &str, files: &[(&str, &[u8])]) {
    let (name, version) = name_and_version.split_once('-').unwrap();
    let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
    let tags = format!("Wheel-Version: 1.0\nTag: py3-none-{platform}\n");
    let info = [("METADATA", metadata), ("WHEEL", tags), ("RECORD", String::new())];
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    let mut write = |name: &str, content: &[u8]| {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    };
    files.iter().for_each(|(name, content)| write(name, content));
    for (name, content) in info {
        write(&format!("{name_and_version}.dist-info/{name}"), content.as_bytes());
    }
    zip.finish().unwrap();
}

/// Every file below `folder` but lock files.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if path.file_name().unwrap() != ".lock" {
            found.push(path);
        }
    }
    found
}

/// How many folders of downloads there are, of the CPU's plugin.
fn downloads(cache: &Path) -> usize {
    let entries = fs::read_dir(cache.join("plugins/cpu")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("download")).count()
}

#[test]
fn a_wheel_with_the_wrong_hash_is_refused_and_leaves_nothing() {
    if !has_pip() {
        return;
    }
    let (cache, wheels) = (empty_folder("wrong_hash_cache"), empty_folder("wrong_hash_wheels"));
    fake_wheel(&wheels, b"not the plugin");
    let (code, stdout, stderr) = run(offline(&mut bert_xla(&cache, &["plugins", "install", "cpu"]), &wheels));
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.starts_with("error: xla_cpu_pjrt-0.0.1-py3-none-manylinux_2_27_"), "{stderr}");
    assert!(stderr.contains(": sha256 is ") && stderr.ends_with("; nothing was installed\n"), "{stderr}");
    assert_eq!(files_below(&cache), Vec::<PathBuf>::new());
    assert_eq!(downloads(&cache), 0);
}

/// For machines that reach no package index: no Python is run there.
#[test]
fn a_wheel_that_is_here_is_installed_without_a_download() {
    let (cache, wheels) = (empty_folder("own_wheel_cache"), empty_folder("own_wheels"));
    let install = |wheel: &Path| {
        let mut command = bert_xla(&cache, &["plugins", "install", "cpu", "--wheel"]);
        run(command.arg(wheel).env("PATH", ""))
    };
    let (code, _, stderr) = install(&fake_wheel(&wheels, b"not the plugin"));
    assert!(code == 1 && stderr.contains(": sha256 is "), "{stderr}");
    let (code, _, stderr) = install(&wheels.join("none.whl"));
    assert!(code != 0 && stderr.contains("none.whl"), "{code}: {stderr}");
    assert_eq!(files_below(&cache), Vec::<PathBuf>::new());

    let real = empty_folder("real_wheels");
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform"];
    let platform = format!("manylinux_2_27_{}", std::env::consts::ARCH);
    let mut pip = Command::new("python3");
    pip.args(download).args([&platform, "xla-cpu-pjrt==0.0.1", "--dest"]).arg(&real);
    if !pip.output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: pip can't download a wheel");
        return;
    }
    let wheel = files_below(&real).remove(0);
    let (code, stdout, stderr) = install(&wheel);
    assert_eq!((code, stdout), (0, format!("cpu: installed: {}\n", cache.join(FILE).display())), "{stderr}");
    assert_eq!(files_below(&cache), [cache.join(FILE)]);
    assert!(fs::read(cache.join(FILE)).unwrap() == fs::read(cpu_plugin()).unwrap());
    let (_, stdout, _) = install(&wheel);
    assert!(stdout.starts_with("cpu: already installed: "), "{stdout}");
}

/// Python would take modules from the folder that the user is in, such as one that was downloaded.
#[test]
fn a_pip_of_the_current_folder_is_not_run() {
    if !has_pip() {
        return;
    }
    let (cache, wheels) = (empty_folder("hostile_cache"), empty_folder("hostile_wheels"));
    fake_wheel(&wheels, b"not the plugin");
    let here = empty_folder("hostile_here");
    for module in ["pip.py", "sitecustomize.py", "runpy.py", "usercustomize.py"] {
        fs::write(here.join(module), "open(__file__ + '.ran', 'w')\n").unwrap();
    }
    for path in [None, Some(""), Some("."), Some(":"), Some("../hostile_here")] {
        let mut command = bert_xla(&cache, &["plugins", "install", "cpu"]);
        command.current_dir(&here).envs(path.map(|path| ("PYTHONPATH", path)));
        let (code, _, stderr) = run(offline(&mut command, &wheels));
        // The real pip has found the wheel.
        assert!(code == 1 && stderr.contains(": sha256 is "), "{path:?}: {stderr}");
        let ran =
            files_below(&here).into_iter().filter(|path| path.extension().is_some_and(|of| of == "ran"));
        assert_eq!(ran.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "PYTHONPATH {path:?}");
    }
}

/// A `python3` for a download: the first tells that it runs, and writes its wheel when the second does.
const TWO_PIPS: &str = r#"#!/bin/sh
# Nobody reads what it says once the install is gone.
exec 2> /dev/null
while [ "$1" != --dest ]; do shift; done
if mkdir "$PIPES/first"; then
  echo > "$PIPES/started"
  read line < "$PIPES/go"
  echo late > "$2/z.whl"
  echo > "$PIPES/done"
else
  echo > "$PIPES/go"
  read line < "$PIPES/done"
  echo own > "$2/a.whl"
fi
"#;

/// It goes on where the install alone was killed.
#[test]
fn the_pip_of_an_install_that_was_killed_does_not_write_into_the_next() {
    let (cache, folder) = (empty_folder("two_pips_cache"), empty_folder("two_pips"));
    let python = folder.join("python3");
    fs::write(&python, TWO_PIPS).unwrap();
    fs::set_permissions(&python, Permissions::from_mode(0o755)).unwrap();
    let pipes = ["started", "go", "done"].map(|name| folder.join(name));
    assert!(Command::new("mkfifo").args(&pipes).status().unwrap().success());
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths([folder.clone()].into_iter().chain(std::env::split_paths(&path)));
    let mut install = bert_xla(&cache, &["plugins", "install", "cpu"]);
    install.env("PATH", path.unwrap()).env("PIPES", &folder);

    let mut killed = install.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    fs::read(&pipes[0]).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(downloads(&cache), 1);
    let (code, _, stderr) = run(install.stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert!(code == 1 && stderr.starts_with("error: a.whl: sha256 is "), "{stderr}");
    assert_eq!(downloads(&cache), 0);
}

/// As of a user who installs pip for themselves, or of a virtual environment.
#[test]
fn a_pip_that_the_user_has_chosen_is_run() {
    if !has_pip() {
        return;
    }
    let (cache, site) = (empty_folder("chosen_cache"), empty_folder("chosen_site"));
    fs::create_dir(site.join("pip")).unwrap();
    fs::write(site.join("pip/__init__.py"), "").unwrap();
    fs::write(site.join("pip/__main__.py"), "import sys\nsys.exit('ERROR: the chosen pip')\n").unwrap();
    let mut command = bert_xla(&cache, &["plugins", "install", "cpu"]);
    let (code, _, stderr) = run(command.env("PYTHONPATH", &site));
    assert!(code == 1 && stderr.ends_with(": the chosen pip\n"), "{stderr}");

    let environment = empty_folder("chosen_venv");
    let made =
        Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&environment).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let lib = fs::read_dir(environment.join("lib")).unwrap().next().unwrap().unwrap().path();
    fs::rename(site.join("pip"), lib.join("site-packages/pip")).unwrap();
    let path = std::env::join_paths(
        std::iter::once(environment.join("bin"))
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let (code, _, stderr) = run(bert_xla(&cache, &["plugins", "install", "cpu"]).env("PATH", path.unwrap()));
    assert!(code == 1 && stderr.ends_with(": the chosen pip\n"), "{stderr}");
}

/// A relative cache folder is one of the folder that the user is in, wherever pip runs.
#[test]
fn a_relative_cache_folder_is_the_users() {
    if !has_pip() {
        return;
    }
    let (here, wheels) = (empty_folder("relative_here"), empty_folder("relative_wheels"));
    fake_wheel(&wheels, b"not the plugin");
    let mut command = bert_xla(Path::new("cache"), &["plugins", "install", "cpu"]);
    let (code, _, stderr) = run(offline(command.current_dir(&here), &wheels));
    assert!(code == 1 && stderr.contains(": sha256 is "), "{stderr}");
    assert_eq!(downloads(&here.join("cache")), 0);
}

#[test]
fn cudas_libraries_are_for_gpus_and_checked_by_hash() {
    let cache = empty_folder("cuda_cache");
    let (code, _, stderr) = run(&mut bert_xla(&cache, &["plugins", "install", "tpu", "--cuda"]));
    assert_eq!((code, stderr.as_str()), (2, "error: --cuda is for gpu, and this is tpu\n"));
    if !has_pip() {
        return;
    }
    // The plugin and its tools are there; what is in them doesn't matter here.
    let plugin = installed_path(Backend::Gpu).unwrap();
    let folder = cache.join("plugins/gpu").join(plugin.parent().unwrap().file_name().unwrap());
    for file in ["xla_cuda_plugin.so", "cuda/bin/ptxas", "cuda/nvvm/libdevice/libdevice.10.bc"] {
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(folder.join(file), "").unwrap();
    }
    let wheels = empty_folder("cuda_wheels");
    let platform = format!("manylinux2014_{}", std::env::consts::ARCH);
    let wheel = wheels.join(format!("nvidia_cuda_runtime-13.5.37-py3-none-{platform}.whl"));
    wheel_of(&wheel, "nvidia_cuda_runtime-13.5.37", &platform, &[("nvidia/cu13/lib/libcudart.so.13", b"no")]);
    let before = files_below(&cache);
    let (code, stdout, stderr) =
        run(offline(&mut bert_xla(&cache, &["plugins", "install", "gpu", "--cuda"]), &wheels));
    assert!(code == 1 && stdout.starts_with("gpu: already installed: "), "{stdout}{stderr}");
    let expected = "Installing nvidia-cuda-runtime 13.5.37 (1 of 8)\nerror: nvidia_cuda_runtime-13.5.37-";
    assert!(stderr.starts_with(expected) && stderr.contains(": sha256 is "), "{stderr}");
    assert_eq!(files_below(&cache), before);
}

#[test]
fn pips_own_message_is_passed_on() {
    if !has_pip() {
        return;
    }
    let (cache, wheels) = (empty_folder("no_wheel_cache"), empty_folder("no_wheel_wheels"));
    let (code, _, stderr) = run(offline(&mut bert_xla(&cache, &["plugins", "install", "cpu"]), &wheels));
    assert_eq!(code, 1);
    let expected = "error: pip could not download xla-cpu-pjrt==0.0.1: \
                    No matching distribution found for xla-cpu-pjrt==0.0.1\n";
    assert_eq!(stderr, expected);
}

#[test]
fn without_python_the_message_says_what_to_do() {
    let cache = empty_folder("no_python_cache");
    let (code, _, stderr) =
        run(bert_xla(&cache, &["plugins", "install", "cpu"]).env("PATH", empty_folder("no_python_path")));
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with("error: cannot run python3 -m pip to download xla-cpu-pjrt==0.0.1: ")
            && stderr.ends_with("; install Python 3, or set BERT_XLA_CPU_PLUGIN\n"),
        "{stderr}"
    );
}

/// The real plugin, from the package index or from where pip is told to look.
#[test]
fn two_installs_at_once_give_one_plugin_and_a_third_does_nothing() {
    let installed = cpu_plugin();
    if !has_pip() {
        return;
    }
    let cache = empty_folder("two_installs_cache");
    // What an install that was killed leaves behind.
    for folder in ["plugins/cpu/download", "plugins/cpu/downloadAb1"] {
        fs::create_dir_all(cache.join(folder)).unwrap();
        fs::write(cache.join(folder).join("half.whl"), "half").unwrap();
    }
    let install = || run(&mut bert_xla(&cache, &["plugins", "install", "cpu"]));
    let results = thread::scope(|scope| {
        let installs = [scope.spawn(install), scope.spawn(install)];
        installs.map(|install| install.join().unwrap())
    });
    let path = cache.join(FILE);
    let mut lines: Vec<String> = results
        .into_iter()
        .map(|(code, stdout, stderr)| {
            assert_eq!((code, stderr.as_str()), (0, ""));
            stdout
        })
        .collect();
    lines.sort();
    let already = format!("cpu: already installed: {}\n", path.display());
    assert_eq!(lines, [already.clone(), format!("cpu: installed: {}\n", path.display())]);
    assert_eq!(files_below(&cache), [path.as_path()]);

    let time = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(install(), (0, already, String::new()));
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
    if std::env::var_os("BERT_XLA_CPU_PLUGIN").is_none() {
        assert!(fs::read(&path).unwrap() == fs::read(installed).unwrap(), "differs from the first install");
    }
    fs::remove_dir_all(cache).unwrap();
}

#[cfg(not(feature = "xla-extension"))]
#[test]
fn lists_every_backend_with_the_places_looked_in() {
    let cache = empty_folder("list_cache");
    let (code, stdout, stderr) = run(&mut bert_xla(&cache, &["plugins"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let expected = format!(
        "tpu: not found, looked at $BERT_XLA_TPU_PLUGIN (not set), $TPU_LIBRARY_PATH (not set), {cache}/plugins/tpu/0.0.52/libtpu.so
  bert-xla plugins install tpu
gpu: not found, looked at $BERT_XLA_GPU_PLUGIN (not set), {cache}/plugins/gpu/0.12.0.1/xla_cuda_plugin.so
  bert-xla plugins install gpu
cpu: not found, looked at $BERT_XLA_CPU_PLUGIN (not set), {cache}/{FILE}
  bert-xla plugins install cpu
xla: not linked
  docs/xla-extension.md says how to build with it
",
        cache = cache.display()
    );
    assert_eq!(stdout, expected);
    let (_, stdout, _) = run(bert_xla(&cache, &["plugins"]).env("BERT_XLA_CPU_PLUGIN", "/none.so"));
    assert!(stdout.contains("cpu: not found, looked at /none.so (BERT_XLA_CPU_PLUGIN)\n"), "{stdout}");
}

#[test]
fn lists_the_cpu_plugin_quietly_and_never_loads_one_without_its_hardware() {
    let cache = empty_folder("ready_cache");
    let plugin = cpu_plugin();
    // A TPU plugin that is no library at all: it must not even be opened where there is no TPU.
    let text = cache.join("libtpu.so");
    fs::write(&text, "text").unwrap();
    let mut command = bert_xla(&cache, &["plugins", "--json"]);
    command.env("BERT_XLA_CPU_PLUGIN", &plugin).env("TPU_LIBRARY_PATH", &text);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stderr.as_str()), (0, ""), "the plugin's log is silenced");
    let report: Json = serde_json::from_str(&stdout).unwrap();
    let backend =
        |name: &str| report.as_array().unwrap().iter().find(|entry| entry["backend"] == name).unwrap();
    let cpu = backend("cpu");
    assert_eq!(cpu["state"], "ready");
    assert_eq!(cpu["devices"].as_array().unwrap().len(), 1);
    assert_eq!(cpu["devices"][0]["kind"], "cpu");
    assert_eq!(cpu["path"], plugin.to_str().unwrap());
    assert!(cpu["api_version"].as_str().unwrap().starts_with("0."));
    #[cfg(not(feature = "xla-extension"))]
    assert_eq!(report[3], serde_json::json!({ "runtime": "xla", "state": "not linked" }));
    let tpu = backend("tpu");
    if bert_xla::pjrt::Backend::Tpu.probe().is_err() {
        assert_eq!(tpu["state"], "not loaded");
        assert!(tpu["reason"].as_str().unwrap().starts_with("no TPU on this machine"), "{tpu}");
    }

    // A CPU plugin that is no plugin is reported in the list, and the list goes on.
    let (code, stdout, _) = run(bert_xla(&cache, &["plugins"]).env("BERT_XLA_CPU_PLUGIN", &text));
    assert_eq!(code, 0);
    assert!(stdout.contains("found, but fails: cannot load the cpu plugin "), "{stdout}");
}
