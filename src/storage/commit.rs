//! Many files that count together: from the moment on that their manifest is there.

use std::fs::{self, File};
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::atomic::sync_folder;
use super::{BoxError, FileError, Folder, NewFile, Result, is_bucket};

/// The file that is written last, and lists the others.
pub const MANIFEST: &str = "manifest.json";

/// What a committed folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub files: Vec<ManifestEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// The manifest of `folder`; `None` if nothing was committed there.
    ///
    /// # Errors
    /// A manifest that can't be read.
    pub fn read(folder: &Folder) -> Result<Option<Self>> {
        let Some(bytes) = folder.read(MANIFEST)? else { return Ok(None) };
        let damaged = FileError::new("can't use", folder.path().join(MANIFEST));
        serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.into()))
    }

    /// Whether `folder` has every file as it was written. In a bucket, only sizes are looked at: hashes are, where a file
    /// is [read](ManifestEntry::copy_to).
    ///
    /// # Errors
    /// One that is not, and what is wrong with it; see [`is_damage`].
    pub fn check(&self, folder: &Folder) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check(folder))
    }
}

impl ManifestEntry {
    /// Whether the file in `folder` is as it was written. Of a bucket's, the size alone is looked at: whoever copies it checks
    /// the rest.
    ///
    /// # Errors
    /// What is wrong with it; see [`is_damage`].
    pub fn check(&self, folder: &Folder) -> Result<()> {
        self.look_at(folder).map_err(FileError::new("can't use", folder.path().join(&self.name)))
    }

    fn look_at(&self, folder: &Folder) -> io::Result<()> {
        if !is_name(&self.name) {
            return Err(invalid("it is not in the checkpoint's own folder"));
        }
        let Some(path) = folder.local().map(|path| path.join(&self.name)) else {
            let size = folder.size(&self.name).map_err(|error| error.source)?;
            let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such file");
            return self.compare(size.ok_or_else(missing)?, None);
        };
        // Before it is opened: a pipe would have to be waited for.
        let found = fs::metadata(&path)?;
        if !found.is_file() {
            return Err(invalid("it is no file"));
        }
        self.compare(found.len(), None)?;
        let (size, sha256) = sha256(&mut File::open(path)?)?;
        self.compare(size, Some(&sha256))
    }

    /// Copies the file out of `folder` to `sink`, and checks what was copied.
    ///
    /// # Errors
    /// What is wrong with it, see [`is_damage`], or with `sink`.
    pub fn copy_to(&self, folder: &Folder, sink: &mut dyn Write) -> Result<()> {
        let mut hashing = Hashing { inner: sink, hash: Sha256::new(), size: 0 };
        folder.copy_to(&self.name, &mut hashing)?;
        let compared = self.compare(hashing.size, Some(&hex(hashing.hash)));
        compared.map_err(FileError::new("can't use", folder.path().join(&self.name)))
    }

    /// The file's bytes, which are as they were written.
    ///
    /// # Errors
    /// What is wrong with it; see [`is_damage`].
    pub fn read(&self, folder: &Folder) -> Result<Vec<u8>> {
        if folder.is_local() {
            self.check(folder)?;
        }
        let mut bytes = vec![];
        self.copy_to(folder, &mut bytes)?;
        Ok(bytes)
    }

    fn compare(&self, size: u64, sha256: Option<&str>) -> io::Result<()> {
        if size != self.size {
            return Err(invalid(&format!("it has {size} bytes where {} were committed", self.size)));
        }
        match sha256.is_none_or(|sha256| sha256 == self.sha256) {
            true => Ok(()),
            false => Err(invalid("it is not as it was committed")),
        }
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Whether a committed file is gone or is another now. Otherwise, it could not be looked at: for want of a right, a network,
/// or of room here.
pub fn is_damage(error: &FileError) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, OutOfMemory, PermissionDenied, StorageFull, UnexpectedEof};
    // Of files that are open in this process, and in all.
    const TOO_MANY: [i32; 2] = [24, 23];
    match error.source.kind() {
        InvalidData | NotFound | UnexpectedEof => true,
        PermissionDenied | OutOfMemory | StorageFull => false,
        // A disk can always be looked at, but for what it has lost.
        _ => {
            !is_bucket(&error.path)
                && !error.source.raw_os_error().is_some_and(|code| TOO_MANY.contains(&code))
        }
    }
}

/// Whether a file of this name lies in the folder itself.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != ".."
}

/// How many bytes there are to read, and their SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &mut impl Read) -> io::Result<(u64, String)> {
    let mut hashing = Hashing { inner: io::sink(), hash: Sha256::new(), size: 0 };
    io::copy(bytes, &mut hashing)?;
    Ok((hashing.size, hex(hashing.hash)))
}

/// A hash in hexadecimal digits.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder that is being filled, here or in a bucket, and that nobody looks into before it is whole.
pub struct Commit {
    folder: Folder,
    files: Vec<ManifestEntry>,
}

impl Commit {
    /// Makes `folder`, which must not be there.
    pub fn begin(folder: Folder) -> Result<Self> {
        let made = match folder.local() {
            Some(path) => fs::create_dir(path),
            None if folder.exists("")? => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(()),
        };
        made.map_err(FileError::new("can't make", folder.path()))?;
        Ok(Self { folder, files: vec![] })
    }

    /// Adds a file: `write` gives its bytes.
    ///
    /// # Errors
    /// Those of `write`, and of the disk.
    pub fn write(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> std::result::Result<(), BoxError>,
    ) -> Result<()> {
        let inner = NewFile::create(&self.folder, name)?;
        let mut hashing = Hashing { inner, hash: Sha256::new(), size: 0 };
        let failed = FileError::new("can't write", self.folder.path().join(name));
        write(&mut hashing).map_err(|error| failed(into_io(error)))?;
        let Hashing { inner, hash, size } = hashing;
        inner.finish()?;
        self.files.push(ManifestEntry { name: name.to_owned(), size, sha256: hex(hash) });
        Ok(())
    }

    /// Writes the manifest: from here on, the folder is whole and stays as it is.
    pub fn finish(self) -> Result<Manifest> {
        let manifest = Manifest { files: self.files };
        let failed = || FileError::new("can't write", self.folder.path().join(MANIFEST));
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| failed()(error.into()))?;
        let Some(path) = self.folder.local() else {
            return self.folder.write(MANIFEST, &text).map(|()| manifest);
        };
        // The names of the files before the one that vouches for them.
        sync_folder(path).map_err(failed())?;
        self.folder.write(MANIFEST, &text)?;
        if let Some(parent) = path.parent() {
            sync_folder(parent).map_err(failed())?;
        }
        Ok(manifest)
    }
}

/// The error as it is, if it is the disk's.
fn into_io(error: BoxError) -> io::Error {
    error.downcast::<io::Error>().map_or_else(io::Error::other, |error| *error)
}

/// Hashes and counts what is written.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
