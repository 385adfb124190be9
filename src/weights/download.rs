//! Downloads into the Hub's cache, laid out as Python's `huggingface_hub` has it, so that each uses what the other brought:
//!
//! ```text
//!   models--OWNER--NAME/blobs/ETAG              the bytes of a file; ETAG.incomplete until they are whole
//!   models--OWNER--NAME/snapshots/COMMIT/FILE   a link to them
//!   models--OWNER--NAME/refs/REVISION           the commit that a branch or tag stood for
//!   .locks/models--OWNER--NAME/ETAG.lock        held by the process that writes the bytes
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, TRANSFER_ENCODING};
use ureq::http::{HeaderMap, StatusCode};
use ureq::{Body, ResponseExt, http::Response};

use super::HubError;
use super::http::{Client, Failure, Passing, host};
use crate::storage::{FileError, sha256, write_atomic};

/// Of a file that is kept in a store: the SHA-256 of its bytes. The answer that has it is a redirect there.
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
/// A list of files that is longer is not one.
const MAX_LIST_SIZE: u64 = 64 << 20;

/// A model of the Hub, at one commit.
pub(super) struct Remote<'a> {
    client: &'a Client,
    cache: &'a Cache,
    model: &'a str,
    pub commit: String,
    pub files: Vec<String>,
}

/// What is known of a file before it is there.
struct Metadata {
    /// Its bytes' name in the cache.
    blob: String,
    size: Option<u64>,
}

impl Metadata {
    /// Of a stored file, its name is its hash. Another one, such as git's hash of a small file, is a name alone.
    fn sha256(&self) -> Option<&str> {
        is_hash(&self.blob, 64).then_some(&self.blob)
    }
}

/// Whether a text is a hash of so many hexadecimal digits.
fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl<'a> Remote<'a> {
    /// Asks which commit a revision stands for now, and which files it has.
    pub fn open(
        client: &'a Client,
        cache: &'a Cache,
        model: &'a str,
        revision: &str,
    ) -> Result<Self, HubError> {
        #[derive(serde::Deserialize)]
        struct List {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let what = "the list of files";
        let path = format!("api/models/{model}/revision/{}", encode(revision));
        let list = client.retry(&format!("{what} of {model}"), || {
            let mut response = client.get(&path, 0)?;
            let body = response.body_mut().with_config().limit(MAX_LIST_SIZE).read_to_vec();
            let body = body.map_err(|error| client.failure(error, &host(response.get_uri())))?;
            let list: List = serde_json::from_slice(&body)
                .map_err(|error| Failure::Lasting(format!("the answer is not such a list: {error}")))?;
            match is_name(&list.sha) {
                true => Ok(list),
                false => Err(Failure::Lasting("the answer names no commit".to_owned())),
            }
        });
        let list = list.map_err(|failure| error(client, model, what, failure))?;
        let files = list.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Self { client, cache, model, commit: list.sha, files })
    }

    /// The path of a file in the cache, downloaded if it isn't there.
    pub fn file(&self, name: &str) -> Result<PathBuf, HubError> {
        let repo = Repo::new(self.model.to_owned(), RepoType::Model);
        let pointer = self.cache.repo(repo.clone()).pointer_path(&self.commit).join(name);
        if pointer.is_file() {
            return Ok(pointer);
        }
        let subject = format!("{name} of {}", self.model);
        let failed = |failure| error(self.client, self.model, name, failure);
        let metadata = self.client.retry(&subject, || self.metadata(name)).map_err(failed)?;
        let blob = self.cache.path().join(repo.folder_name()).join("blobs").join(&metadata.blob);
        let locks = self.cache.path().join(".locks").join(repo.folder_name());
        let waiting = || self.client.note(&format!("waiting for another process that downloads {subject}"));
        let _lock = lock(&locks.join(format!("{}.lock", metadata.blob)), waiting)?;
        let size = fs::metadata(&blob).map(|found| found.len());
        // One that another process has brought meanwhile, or that another commit has too.
        if !size.is_ok_and(|size| size == metadata.size.unwrap_or(size)) {
            self.fetch(name, &subject, &metadata, &blob).map_err(failed)?;
        }
        link(&blob, &pointer).map_err(FileError::new("can't make", &pointer))?;
        Ok(pointer)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/resolve/{}/{}", self.model, self.commit, encode(name))
    }

    fn metadata(&self, name: &str) -> Result<Metadata, Failure> {
        let response = self.client.head(&self.path(name), LINKED_ETAG)?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header(LINKED_ETAG).or_else(|| header(ETAG.as_str())).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_name(&etag) {
            return Err(Failure::Lasting("the answer has no ETag to name it by".to_owned()));
        }
        let length = header(CONTENT_LENGTH.as_str()).filter(|_| response.status().is_success());
        let size = header(LINKED_SIZE).or(length).and_then(|size| size.parse().ok());
        // The Hub's own are hashes of the bytes. A mirror's may be the same for two files.
        let blob = match is_hash(&etag, 40) || is_hash(&etag, 64) {
            true => etag,
            false => {
                let (_, hash) = sha256(&mut format!("{}/{name}/{etag}", self.commit).as_bytes())
                    .map_err(|error| Failure::Lasting(error.to_string()))?;
                format!("of-{hash}")
            }
        };
        Ok(Metadata { blob, size })
    }

    /// Brings the bytes of a file, by as many requests as it takes, and gives them their name if they are right.
    fn fetch(&self, name: &str, subject: &str, metadata: &Metadata, blob: &Path) -> Result<(), Failure> {
        if !io::stderr().is_terminal() {
            let size = metadata.size.map(|size| format!(" ({})", BinaryBytes(size))).unwrap_or_default();
            self.client.note(&format!("downloading {subject}{size}"));
        }
        let mut part = Part::open(blob)?;
        let mut most = part.length;
        let fetched = self.client.retry(subject, || {
            self.attempt(name, metadata, &mut part).map_err(|failure| match failure {
                Failure::Passing(passing) => {
                    let gained = part.length > most;
                    most = most.max(part.length);
                    Passing { gained, ..passing }.into()
                }
                failure => failure,
            })
        });
        match fetched {
            Ok(()) => Ok(part.persist(blob)?),
            Err(failure) => {
                part.remove_if_empty();
                Err(failure)
            }
        }
    }

    /// Brings what is missing of a file. A part of a wrong one is emptied.
    fn attempt(&self, name: &str, metadata: &Metadata, part: &mut Part) -> Result<(), Failure> {
        let size = metadata.size.unwrap_or(u64::MAX);
        // To go on with a part takes a hash that tells whether all belongs together.
        if metadata.sha256().is_none() || part.length > size {
            part.clear()?;
        }
        if part.length < size {
            let response = self.client.get(&self.path(name), part.length)?;
            let place = host(response.get_uri());
            match response.status() {
                StatusCode::PARTIAL_CONTENT if starts_at(response.headers(), part.length) => {}
                // With neither a size nor a hash, only the answer's own end tells that all has come.
                StatusCode::OK if metadata.sha256().is_none() && !says_its_length(response.headers()) => {
                    return Err(Failure::Lasting(format!("{place}: doesn't say how long the file is")));
                }
                StatusCode::OK => part.clear()?,
                status => {
                    let message = format!("{place}: answered {} to bytes={}-", status.as_u16(), part.length);
                    part.clear()?;
                    return Err(Passing { message, ..Passing::default() }.into());
                }
            }
            let bar = self.bar(name, metadata.size, part.length);
            let received = self.receive(response, &place, size, part, &bar);
            bar.finish_and_clear();
            received?;
        }
        let wrong = match (part.sha256()?, metadata.sha256()) {
            ((found, _), _) if metadata.size.is_some_and(|size| size != found) => {
                format!("it ended after {found} of {size} bytes")
            }
            ((_, found), Some(expected)) if !found.eq_ignore_ascii_case(expected) => {
                part.clear()?;
                format!("its SHA-256 is {found}, expected {expected}")
            }
            _ => return Ok(()),
        };
        Err(Passing { message: wrong, ..Passing::default() }.into())
    }

    /// Shows on a terminal how much of a file has come.
    fn bar(&self, name: &str, size: Option<u64>, start: u64) -> ProgressBar {
        if !self.client.progress {
            return ProgressBar::hidden();
        }
        let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let template =
            "{prefix} [{bar:25}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
        // The template is a constant.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar =
            bar.with_style(style.progress_chars("=> ")).with_prefix(name.to_owned()).with_position(start);
        bar.reset_eta();
        bar
    }

    /// Appends the body of an answer.
    fn receive(
        &self,
        response: Response<Body>,
        place: &str,
        size: u64,
        part: &mut Part,
        bar: &ProgressBar,
    ) -> Result<(), Failure> {
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.client.failure(error, place)),
            };
            if part.length + read as u64 > size {
                part.clear()?;
                let message = format!("{place}: sent more than the {size} bytes of the file");
                return Err(Passing { message, ..Passing::default() }.into());
            }
            part.append(&chunk[..read])?;
            bar.inc(read as u64);
        }
    }
}

/// The beginning of a file, kept for the next try if this one is cut short.
struct Part {
    path: PathBuf,
    file: File,
    /// In bytes.
    length: u64,
}

impl Part {
    fn open(blob: &Path) -> Result<Self, FileError> {
        let path = blob.with_added_extension("incomplete");
        make_parent(&path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let length = file.and_then(|mut file| Ok((file.seek(SeekFrom::End(0))?, file)));
        let (length, file) = length.map_err(FileError::new("can't write", &path))?;
        Ok(Self { path, file, length })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(FileError::new("can't write", &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), FileError> {
        if self.length == 0 {
            return Ok(());
        }
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.length = 0;
        cleared.map_err(FileError::new("can't write", &self.path))
    }

    /// The size and the hash of what has reached the file.
    fn sha256(&mut self) -> Result<(u64, String), FileError> {
        let hashed = self.file.rewind().and_then(|()| sha256(&mut self.file));
        hashed.map_err(FileError::new("can't read", &self.path))
    }

    fn persist(self, blob: &Path) -> Result<(), FileError> {
        let persisted = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        persisted.map_err(FileError::new("can't write", blob))
    }

    fn remove_if_empty(self) {
        if self.length == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits until no other process writes what the lock stands for, and keeps others out until it is dropped; a process
/// that dies loses it. Python's tools take the same lock.
fn lock(path: &Path, waiting: impl Fn()) -> Result<File, FileError> {
    let failed = || FileError::new("can't lock", path);
    make_parent(path)?;
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(path).map_err(failed())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(failed())?;
            }
            Err(TryLockError::Error(error)) => return Err(failed()(error)),
        }
        // Python's removes the file: a lock on one that is gone keeps nobody out.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let (locked, named) = (file.metadata().map(identity), fs::metadata(path).map(identity));
    locked.is_ok_and(|locked| named.is_ok_and(|named| named == locked))
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Makes a file of a snapshot: a link to its bytes, or a copy of them where there are no links.
fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    if let Some(folder) = pointer.parent() {
        fs::create_dir_all(folder)?;
    }
    // One that leads nowhere.
    if pointer.is_symlink() {
        fs::remove_file(pointer)?;
    }
    #[cfg(unix)]
    {
        let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
        if std::os::unix::fs::symlink(target, pointer).is_ok() {
            return Ok(());
        }
    }
    write_atomic(pointer, |file| io::copy(&mut File::open(blob)?, file).map(drop))
}

fn make_parent(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(FileError::new("can't make", folder))
}

/// Whether an answer that is cut short can be told from one that is whole.
fn says_its_length(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// Whether an answer is the part of the file that starts at this byte.
fn starts_at(headers: &HeaderMap, start: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// Whether a server's word can be the name of a file here.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// As one segment of a URL's path.
fn encode(text: &str) -> impl std::fmt::Display {
    const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, &RESERVED).to_string()
}

fn error(client: &Client, model: &str, what: &str, failure: Failure) -> HubError {
    let (model, endpoint) = (model.to_owned(), client.endpoint());
    let message = match failure {
        Failure::Refused(status) => return HubError::Refused { model, endpoint, status },
        Failure::File(error) => return HubError::Cache(error),
        Failure::Lasting(message) | Failure::Passing(Passing { message, .. }) => message,
    };
    HubError::Download { model, what: what.to_owned(), endpoint, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_word_stays_in_its_folder() {
        for name in ["0123456789abcdef", "of-the-store", "a.b_c"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "../a", "a/b", "a\\b", "-a", "a\0", "a b"] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(encode("refs/pr/1?a#b..").to_string(), "refs%2Fpr%2F1%3Fa%23b..");
    }
}
