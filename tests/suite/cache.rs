//! The cache of compiled programs: what is found again, what is compiled anew, what is thrown out.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use bert_xla::pjrt::{
    Argument, Client, CompileOptions, ExecutableCache, FlagValue, LoadedExecutable, Module, ModuleFormat,
};
use bert_xla::shape::{ElementType, Shape};
use sha2::{Digest, Sha256};

use crate::common::cli::{text, train};
use crate::common::{cpu_client, empty_folder};

const LIMIT: u64 = 1 << 30;
/// The id of a user that isn't the one who runs this.
const NOBODY: u32 = 65534;

/// `[x, y] -> factor * [x, y]`, in place.
fn scale(factor: f32) -> String {
    format!(
        "module @scale {{
          func.func public @main(%x: tensor<2xf32> {{tf.aliasing_output = 0 : i32}}) -> tensor<2xf32> {{
            %c = stablehlo.constant dense<{factor:?}> : tensor<2xf32>
            %y = stablehlo.multiply %x, %c : tensor<2xf32>
            return %y : tensor<2xf32>
          }}
        }}"
    )
}

fn compile_with(cache: &ExecutableCache, client: &Client, code: &str, options: &CompileOptions) -> bool {
    let parameters = [Shape::new(ElementType::F32, [2])];
    let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters: &parameters };
    let (executable, found) = cache.compile(client, &program, options).unwrap();
    assert_eq!(run(client, &executable), [3.0, -6.0]);
    found
}

/// Runs a [`scale`] by 3 on `[1, -2]`, which it takes over.
fn run(client: &Client, executable: &LoadedExecutable) -> Vec<f32> {
    let device = client.addressable_device(0).unwrap();
    let x = client.buffer_from_host(&[1f32, -2.0], &[2], device).unwrap();
    executable.execute(vec![vec![Argument::Donate(x)]]).unwrap()[0][0].to_host().unwrap()
}

/// Compiles the same program through a cache in `folder`: whether it was found there.
fn compile(folder: &Path, client: &Client) -> bool {
    let cache = ExecutableCache::new(folder, LIMIT);
    compile_with(&cache, client, &scale(3.0), &CompileOptions::replicas(1))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    paths.sort();
    paths
}

#[test]
fn a_program_is_found_again_by_another_client() {
    let folder = empty_folder("cache_found");
    assert!(!compile(&folder, &cpu_client(1)));
    assert_eq!(entries(&folder).len(), 1);
    assert!(compile(&folder, &cpu_client(1)));
    assert_eq!(entries(&folder).len(), 1);
}

#[test]
fn another_program_option_or_set_of_devices_is_another_entry() {
    let folder = empty_folder("cache_keys");
    let (cache, client) = (ExecutableCache::new(&folder, LIMIT), cpu_client(1));
    let same = CompileOptions::replicas(1);
    let unoptimized =
        CompileOptions::replicas(1).flag("xla_backend_optimization_level", FlagValue::IntField(0));
    let renamed = scale(3.0).replace("@scale", "@scale_again");
    assert!(!compile_with(&cache, &client, &scale(3.0), &same));
    assert!(!compile_with(&cache, &client, &renamed, &same), "another module");
    assert!(!compile_with(&cache, &client, &scale(3.0), &unoptimized), "other flags");
    assert!(!compile_with(&cache, &cpu_client(2), &scale(3.0), &same), "other devices");
    assert_eq!(entries(&folder).len(), 4);
    assert!(compile_with(&cache, &client, &scale(3.0), &same));
}

#[test]
fn a_damaged_entry_is_compiled_anew_and_replaced() {
    let (folder, client) = (empty_folder("cache_damaged"), cpu_client(1));
    compile(&folder, &client);
    let path = entries(&folder).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    // A whole entry as far as its hash goes, which the plugin can't read: as from another version of it.
    let mut rest = path.file_name().unwrap().as_encoded_bytes().to_vec();
    rest.extend_from_slice(b"not a program");
    let foreign = [&whole[..8], &Sha256::digest(&rest), &rest].concat();
    for bad in [&flipped[..], &whole[..whole.len() - 1], &whole[..20], &[], &foreign] {
        fs::write(&path, bad).unwrap();
        assert!(!compile(&folder, &client), "{} bytes were trusted", bad.len());
        assert!(compile(&folder, &client), "the entry was not replaced");
    }
}

/// As a copy or a renaming may leave it.
#[test]
fn an_entry_under_another_ones_name_is_compiled_anew_and_replaced() {
    let (folder, client) = (empty_folder("cache_swapped"), cpu_client(1));
    let cache = ExecutableCache::new(&folder, LIMIT);
    let compile = |factor| {
        let (code, parameters) = (scale(factor), [Shape::new(ElementType::F32, [2])]);
        let program = Module { format: ModuleFormat::Mlir, code: code.as_bytes(), parameters: &parameters };
        let (executable, found) = cache.compile(&client, &program, &CompileOptions::replicas(1)).unwrap();
        (run(&client, &executable), found)
    };
    assert_eq!([compile(3.0), compile(5.0)], [(vec![3.0, -6.0], false), (vec![5.0, -10.0], false)]);
    let [one, other] = &entries(&folder)[..] else { panic!("{:?}", entries(&folder)) };
    let aside = folder.join("aside");
    for (from, to) in [(one, &aside), (other, one), (&aside, other)] {
        fs::rename(from, to).unwrap();
    }
    assert_eq!([compile(3.0), compile(5.0)], [(vec![3.0, -6.0], false), (vec![5.0, -10.0], false)]);
    assert_eq!([compile(3.0), compile(5.0)], [(vec![3.0, -6.0], true), (vec![5.0, -10.0], true)]);
}

/// A hash shows damage alone: who can write an entry can hash it.
#[test]
fn an_entry_that_others_may_have_written_is_compiled_anew_and_replaced() {
    let (folder, client) = (empty_folder("cache_others"), cpu_client(1));
    compile(&folder, &client);
    let path = entries(&folder).remove(0);
    for mode in [0o664, 0o606] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert!(!compile(&folder, &client), "an entry of mode {mode:o} was trusted");
        assert!(compile(&folder, &client), "the entry was not replaced");
    }
    match chown(&path, Some(NOBODY), None) {
        Ok(()) => {
            assert!(!compile(&folder, &client), "another user's entry was trusted");
            assert!(compile(&folder, &client), "the entry was not replaced");
        }
        Err(error) => eprintln!("skipped: another user's entry: {error}"),
    }
}

#[test]
fn a_folder_that_others_can_write_to_is_not_used() {
    let (folder, client) = (empty_folder("cache_others_folder"), cpu_client(1));
    compile(&folder, &client);
    let before = entries(&folder);
    fs::set_permissions(&folder, Permissions::from_mode(0o775)).unwrap();
    assert!(!compile(&folder, &client), "the entry was used");
    fs::remove_file(&before[0]).unwrap();
    assert!(!compile(&folder, &client));
    assert!(entries(&folder).is_empty(), "an entry was written");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    assert!(!compile(&folder, &client));
    assert!(compile(&folder, &client));
    match chown(&folder, Some(NOBODY), None) {
        Ok(()) => assert!(!compile(&folder, &client), "another user's folder was used"),
        Err(error) => eprintln!("skipped: another user's folder: {error}"),
    }
}

/// Taking the right away would have what others wrote there trusted.
#[test]
fn a_folder_that_others_can_write_to_is_to_be_removed() {
    let folder = empty_folder("cache_others_advice");
    let executables = folder.join("cache/executables");
    fs::create_dir_all(&executables).unwrap();
    fs::set_permissions(&executables, Permissions::from_mode(0o775)).unwrap();
    let mut command = train(&folder.join("run"), &["--epochs", "1"]);
    let result = command.env("BERT_XLA_CACHE", folder.join("cache")).output().unwrap();
    let stderr = text(result.stderr);
    let advice =
        format!("executable cache: others can write to {}; compiling; remove it\n", executables.display());
    assert!(result.status.success() && stderr.contains(&advice), "{stderr}");
}

/// Many systems let a user's group write to what the user makes.
#[test]
fn the_cache_is_its_users_whatever_the_umask() {
    let folder = empty_folder("cache_umask");
    let cache = folder.join("cache");
    let run = || {
        let train = train(&folder.join("run"), &["--epochs", "1", "--overwrite"]);
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 0 && exec \"$@\"", "sh"]).arg(train.get_program()).args(train.get_args());
        shell.envs(train.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let result = shell.env("BERT_XLA_CACHE", &cache).output().unwrap();
        let stderr = text(result.stderr);
        assert!(result.status.success() && !stderr.contains("executable cache"), "{stderr}");
    };
    run();
    let written = || {
        let paths = entries(&cache.join("executables"));
        paths.iter().map(|path| fs::metadata(path).unwrap().ino()).collect::<Vec<_>>()
    };
    let first = written();
    assert_eq!(first.len(), 3, "the train step, its zeros, and the eval step");
    run();
    assert_eq!(written(), first, "the entries were written again");
}

#[test]
fn the_entry_that_was_used_longest_ago_goes_first() {
    let (folder, client) = (empty_folder("cache_limit"), cpu_client(1));
    let options = |level| {
        let level = FlagValue::IntField(level);
        CompileOptions::replicas(1).flag("xla_backend_optimization_level", level)
    };
    let compile = |limit, level| {
        compile_with(&ExecutableCache::new(&folder, limit), &client, &scale(3.0), &options(level))
    };
    compile(LIMIT, 0);
    let size = fs::metadata(&entries(&folder)[0]).unwrap().len();
    compile(LIMIT, 1);
    // An hour ago both; the first has been used since.
    for path in entries(&folder) {
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }
    assert!(compile(LIMIT, 0));
    // Room for two and a half.
    assert!(!compile(size * 5 / 2, 2));
    assert_eq!(entries(&folder).len(), 2);
    assert!(compile(LIMIT, 0), "used last");
    assert!(compile(LIMIT, 2), "written last");
    assert!(!compile(LIMIT, 1), "used longest ago");
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_run() {
    let file = empty_folder("cache_unwritable").join("file");
    fs::write(&file, "no folder").unwrap();
    assert!(!compile(&file.join("executables"), &cpu_client(1)));
}

#[test]
fn a_second_training_run_compiles_nothing_and_gives_the_same_weights() {
    let folder = empty_folder("cache_train");
    let cache = folder.join("cache");
    let run = |name: &str, flags: &[&str]| {
        let output = folder.join(name);
        let mut command = train(&output, &[&["--epochs", "1"], flags].concat());
        command.arg("--plugin").arg(crate::common::cpu_plugin()).env("BERT_XLA_CACHE", &cache);
        let result = command.output().unwrap();
        assert!(result.status.success(), "{}", text(result.stderr));
        fs::read(output.join("model.safetensors")).unwrap()
    };
    let uncached = run("uncached", &["--no-cache"]);
    assert!(!cache.join("executables").exists(), "--no-cache leaves nothing");
    let cold = run("cold", &[]);
    let kept = entries(&cache.join("executables"));
    assert_eq!(kept.len(), 3, "the train step, its zeros, and the eval step");
    let written = |paths: &[PathBuf]| paths.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
    let before = written(&kept);
    let warm = run("warm", &[]);
    assert_eq!(entries(&cache.join("executables")), kept);
    assert!(before == written(&kept), "the entries were written again");
    assert!(uncached == cold && cold == warm, "the weights differ");
}

/// XLA's own flags and the plugin's file decide what a program becomes, too.
#[test]
fn other_flags_and_another_plugin_are_other_entries() {
    let folder = empty_folder("cache_flags");
    let (cache, plugin) = (folder.join("cache"), folder.join("plugin.so"));
    fs::copy(crate::common::cpu_plugin(), &plugin).unwrap();
    let entries_after = |plugin: &Path, flags: &str| {
        let mut command = train(&folder.join("run"), &["--epochs", "1", "--overwrite"]);
        command.arg("--plugin").arg(plugin).env("BERT_XLA_CACHE", &cache).env("XLA_FLAGS", flags);
        let result = command.output().unwrap();
        assert!(result.status.success(), "{}", text(result.stderr));
        entries(&cache.join("executables")).len()
    };
    let installed = crate::common::cpu_plugin();
    assert_eq!(entries_after(&installed, ""), 3, "the train step, its zeros, and the eval step");
    assert_eq!(entries_after(&installed, ""), 3);
    assert_eq!(entries_after(&installed, "--xla_cpu_enable_fast_math=false"), 6);
    assert_eq!(entries_after(&plugin, ""), 9);
    // A file that holds the flags.
    let file = folder.join("flags");
    for (flags, entries) in [("=false", 12), ("=true", 15), ("=false", 15)] {
        fs::write(&file, format!("--xla_cpu_enable_fast_math{flags}\n")).unwrap();
        assert_eq!(entries_after(&installed, file.to_str().unwrap()), entries, "{flags}");
    }
}
