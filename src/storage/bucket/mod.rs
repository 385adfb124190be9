//! A folder in a bucket of Cloud Storage: the names that start with its prefix. Everything that is asynchronous stays in
//! here.

mod connection;
mod failure;
mod upload;

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Name;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutPayload, UpdateVersion,
};

use super::{MANIFEST, PART, Replaced, Version};
use connection::Connection;
pub use upload::Upload;

/// Large files come and go in parts of so many bytes.
const PART_SIZE: u64 = 8 << 20;
/// So many parts are on their way at once: with their size, what bounds memory.
const PARTS_AT_ONCE: usize = 4;

/// A folder in a bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    bucket: String,
    /// Without a slash at its ends; empty for the bucket itself.
    prefix: String,
    connection: Arc<Connection>,
}

impl Bucket {
    /// The folder `gs://bucket/prefix`. The first one of a bucket looks for credentials.
    ///
    /// # Errors
    /// An address that is none; no credentials.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (bucket, prefix) = parse(path)?;
        let connection = connection::to(&bucket)?;
        Ok(Self { bucket, prefix, connection })
    }

    /// What the bucket answers to a request of its store.
    fn ask<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        connection::wait(self.connection.ask(request))
    }

    /// A whole small file, and which version of it that is; `None` if there is no such file.
    pub fn read(&self, name: &str) -> io::Result<Option<(Vec<u8>, Version)>> {
        let read = || async {
            let found = self.connection.store.get(&self.name(name)?).await?;
            let version = Version(found.meta.version.clone());
            Ok((found.bytes().await?.to_vec(), version))
        };
        self.absent(self.ask(read))
    }

    /// Writes a file's bytes to `sink` as they come, all of the same version of it.
    pub fn download(&self, name: &str, sink: &mut dyn Write) -> io::Result<u64> {
        let Some(meta) = self.meta(name)? else { return Err(failure::no_file()) };
        let name = self.sound_name(name)?;
        let mut starts = (0..meta.size).step_by(PART_SIZE as usize);
        let mut parts = VecDeque::new();
        loop {
            parts.extend(starts.by_ref().take(PARTS_AT_ONCE - parts.len()).map(|start| {
                let (connection, name) = (self.connection.clone(), name.clone());
                let end = meta.size.min(start + PART_SIZE);
                let range = Some(GetRange::Bounded(start..end));
                let options = GetOptions { range, version: meta.version.clone(), ..GetOptions::default() };
                connection::start(async move {
                    let part =
                        || async { connection.store.get_opts(&name, options.clone()).await?.bytes().await };
                    Ok::<_, Error>((end - start, connection.ask(part).await?))
                })
            }));
            let Some(part) = parts.pop_front() else { return Ok(meta.size) };
            let (length, bytes) = part.wait()?.map_err(|error| match error {
                Error::NotFound { .. } => changed(),
                error => self.told(&error),
            })?;
            if bytes.len() as u64 != length {
                return Err(changed());
            }
            sink.write_all(&bytes)?;
        }
    }

    /// Writes a small file whole, in place of any of that name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let put =
            || async { self.connection.store.put(&self.name(name)?, PutPayload::from(bytes.to_vec())).await };
        self.ask(put).map(drop).map_err(|error| self.told(&error))
    }

    /// Writes a small file if what is there is still `version`; `None`: if nothing is there.
    pub fn replace(&self, name: &str, bytes: &[u8], version: Option<&Version>) -> io::Result<Replaced> {
        const TRIES: usize = 3;
        let mode = version.map_or(PutMode::Create, |Version(generation)| {
            PutMode::Update(UpdateVersion { e_tag: None, version: generation.clone() })
        });
        let mut failure = None;
        for _ in 0..TRIES {
            let put = || async {
                let payload = PutPayload::from(bytes.to_vec());
                self.connection.store.put_opts(&self.name(name)?, payload, mode.clone().into()).await
            };
            match self.ask(put) {
                Ok(put) => return Ok(Replaced::Done(Version(put.version))),
                Err(
                    error
                    @ (Error::Precondition { .. } | Error::AlreadyExists { .. } | Error::Generic { .. }),
                ) => {
                    failure = Some(error);
                }
                Err(error) => return Err(self.told(&error)),
            }
            // An answer may have been lost, so that the next try met what the one before wrote.
            match self.read(name)? {
                Some((found, now)) if found == bytes => return Ok(Replaced::Done(now)),
                found if found.as_ref().map(|(_, now)| now) != version => return Ok(Replaced::Outdated),
                _ => {}
            }
        }
        Err(failure.map_or_else(changed, |error| self.told(&error)))
    }

    /// Starts to write a file, of whatever size.
    pub fn upload(&self, name: &str) -> io::Result<Upload> {
        Ok(Upload::new(self.clone(), self.sound_name(name)?))
    }

    /// The names of the files and folders here, sorted.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut names = BTreeSet::new();
        let here = self.inside("");
        self.pages(&here, Some("/"), None, |objects, folders| {
            let objects = objects.into_iter().map(|object| object.location);
            // Consoles put an object there for the folder itself.
            let inside = objects.chain(folders).filter(|name| name.as_ref() != self.prefix);
            names.extend(inside.filter_map(|name| name.filename().map(str::to_owned)));
            true
        })?;
        Ok(names.into_iter().collect())
    }

    /// The size of a file in bytes; `None` if there is no such file.
    pub fn size(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.meta(name)?.map(|meta| meta.size))
    }

    fn meta(&self, name: &str) -> io::Result<Option<ObjectMeta>> {
        let head = self.head(&self.sound_name(name)?)?;
        if head.is_none() {
            // That answer doesn't tell a file that isn't there from a bucket that isn't.
            self.pages(&self.inside(""), None, Some(1), |_, _| false)?;
        }
        Ok(head)
    }

    fn head(&self, name: &Name) -> io::Result<Option<ObjectMeta>> {
        self.absent(self.ask(|| self.connection.store.head(name)))
    }

    /// Whether there is a file of this name, or a folder; without a name, this one.
    pub fn exists(&self, name: &str) -> io::Result<bool> {
        if !name.is_empty() && self.head(&self.sound_name(name)?)?.is_some() {
            return Ok(true);
        }
        let mut found = false;
        self.pages(&self.inside(name), None, Some(1), |objects, _| {
            found |= !objects.is_empty();
            false
        })?;
        Ok(found)
    }

    /// Removes a file, and what is in a folder of that name.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        // Has a name, lest all of a bucket be removed.
        let mut names = vec![self.sound_name(name)?];
        self.pages(&self.inside(name), None, None, |objects, _| {
            names.extend(objects.into_iter().map(|object| object.location));
            true
        })?;
        // What vouches for the others goes before them.
        names.sort_by_key(|name| name.filename() != Some(MANIFEST));
        for name in names {
            match self.ask(|| self.connection.store.delete(&name)) {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(self.told(&error)),
            }
        }
        Ok(())
    }

    /// Copies `name` from another folder of the same bucket, within the bucket; false if it is another's.
    pub fn copy(&self, from: &Self, name: &str) -> io::Result<bool> {
        if self.bucket != from.bucket {
            return Ok(false);
        }
        let copy = || async {
            let options = CopyOptions { mode: CopyMode::Overwrite, ..CopyOptions::default() };
            self.connection.store.copy_opts(&from.name(name)?, &self.name(name)?, options).await
        };
        self.ask(copy).map(|()| true).map_err(|error| self.told(&error))
    }

    /// Finds out whether files here can be listed, written and removed.
    pub fn probe(&self) -> io::Result<()> {
        let name = format!(".probe.{}{PART}", std::process::id());
        self.pages(&self.inside(""), None, Some(1), |_, _| false)?;
        self.write(&name, &[])?;
        self.remove(&name)
    }

    /// Goes through the pages of names that start with `prefix`, of so many names, until `page` says that it is enough.
    fn pages(
        &self,
        prefix: &str,
        delimiter: Option<&'static str>,
        max_keys: Option<usize>,
        mut page: impl FnMut(Vec<ObjectMeta>, Vec<Name>) -> bool,
    ) -> io::Result<()> {
        let mut token = None;
        loop {
            let list = || {
                let options = PaginatedListOptions {
                    delimiter: delimiter.map(Into::into),
                    max_keys,
                    page_token: token.clone(),
                    ..PaginatedListOptions::default()
                };
                let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
                self.connection.store.list_paginated(prefix, options)
            };
            let found = self.ask(list).map_err(|error| self.told(&error))?;
            token = found.page_token;
            if !page(found.result.objects, found.result.common_prefixes) || token.is_none() {
                return Ok(());
            }
        }
    }

    /// What the names of files in the folder `name` start with.
    fn inside(&self, name: &str) -> String {
        let mut start = String::new();
        for part in [self.prefix.as_str(), name].into_iter().filter(|part| !part.is_empty()) {
            let _ = write!(start, "{part}/");
        }
        start
    }

    fn name(&self, name: &str) -> object_store::Result<Name> {
        let path = self.inside(name).trim_end_matches('/').to_owned();
        match path.is_empty() {
            true => Err(object_store::path::Error::EmptySegment { path }.into()),
            false => Ok(Name::parse(path)?),
        }
    }

    fn sound_name(&self, name: &str) -> io::Result<Name> {
        self.name(name).map_err(|error| self.told(&error))
    }

    /// `None` for no such file; a bucket that isn't there is a failure.
    fn absent<T>(&self, result: object_store::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(error @ Error::NotFound { .. }) if !failure::lacks_bucket(&error) => Ok(None),
            Err(error) => Err(self.told(&error)),
        }
    }

    fn told(&self, error: &Error) -> io::Error {
        failure::told(error, &self.bucket)
    }
}

fn changed() -> io::Error {
    io::Error::other("it changed while it was read or written: is another process writing there?")
}

/// The bucket and the prefix of `gs://bucket/prefix`.
fn parse(path: &Path) -> io::Result<(String, String)> {
    let expected = |message| io::Error::new(ErrorKind::InvalidInput, message);
    let address = path.to_str().and_then(|text| text.strip_prefix("gs://"));
    let address = address.ok_or_else(|| expected("expected gs://bucket/path"))?;
    let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
    let is_sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if bucket.is_empty() || !bucket.chars().all(is_sound) {
        return Err(expected("expected gs://bucket/path, the bucket in a-z, 0-9, `-`, `_` and `.`"));
    }
    let prefix = prefix.trim_end_matches('/');
    match Name::parse(prefix) {
        Ok(name) if name.as_ref() == prefix => Ok((bucket.to_owned(), prefix.to_owned())),
        _ => Err(expected("expected gs://bucket/path, without empty names, `.` or `..` between the slashes")),
    }
}
