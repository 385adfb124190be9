//! Keys that requests must have.

use std::fs;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use base64::prelude::{BASE64_STANDARD, Engine};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// A file of keys: one a line, white space around it not counted, of which each is as good as the others.
#[derive(Clone, Debug)]
pub struct KeyFile(pub PathBuf);

/// The keys of a file, as they were when it was read last.
pub struct Keys {
    file: KeyFile,
    /// Hashes, so that comparing them tells nothing of a key's length.
    hashes: RwLock<Vec<[u8; 32]>>,
}

impl KeyFile {
    /// Reads it.
    ///
    /// # Errors
    /// A file that can't be read, or holds no key, or one that is easily guessed.
    pub fn read(&self) -> Result<Keys, String> {
        Ok(Keys { file: self.clone(), hashes: RwLock::new(self.hashes()?) })
    }

    fn hashes(&self) -> Result<Vec<[u8; 32]>, String> {
        /// Characters.
        const SHORTEST: usize = 16;
        let path = self.0.display();
        let text = fs::read_to_string(&self.0).map_err(|error| format!("can't read {path}: {error}"))?;
        let text = text.trim_start_matches('\u{feff}');
        let keys = text.lines().map(str::trim).filter(|key| !key.is_empty()).collect::<Vec<_>>();
        if let Some(at) = keys.iter().position(|key| key.len() < SHORTEST) {
            return Err(format!(
                "{path}: key {} has fewer than {SHORTEST} characters; `openssl rand -hex 32` makes one",
                at + 1
            ));
        }
        match keys.is_empty() {
            true => Err(format!(
                "{path}: there is no key; expected one a line, as `openssl rand -hex 32` makes them"
            )),
            false => Ok(keys.into_iter().map(hash).collect()),
        }
    }
}

impl Keys {
    /// Reads the file again; what was read before stays if it can't be.
    pub(super) fn reload(&self) -> Result<(), String> {
        let hashes = self.file.hashes()?;
        *self.hashes.write().unwrap_or_else(PoisonError::into_inner) = hashes;
        Ok(())
    }

    /// Whether a request has one of them, as `Bearer KEY`, or as the password of `Basic`, which browsers ask people for.
    /// It takes the same time whichever key is almost right.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(given) = headers.get(AUTHORIZATION).and_then(|value| key(value.as_bytes())) else {
            return false;
        };
        let given = hash(given);
        let hashes = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        hashes.iter().fold(Choice::from(0), |found, hash| found | hash.ct_eq(&given)).into()
    }
}

/// The key in what `Authorization` says.
fn key(authorization: &[u8]) -> Option<Vec<u8>> {
    let space = authorization.iter().position(|byte| *byte == b' ')?;
    let (scheme, given) = authorization.split_at(space);
    let given = given.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(given.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = BASE64_STANDARD.decode(given).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

fn hash(key: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "0123456789abcdef0";
    const SECOND: &str = "a second key: with a colon";

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(pair))
    }

    #[test]
    fn one_of_the_keys_admits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, format!("\u{feff}{FIRST} \r\n{SECOND}\n")).unwrap();
        let keys = KeyFile(path.clone()).read().unwrap();
        for key in [FIRST, SECOND] {
            assert!(keys.admit(&headers(&format!("Bearer {key}"))));
            assert!(keys.admit(&headers(&format!("bearer  {key} "))));
            assert!(keys.admit(&headers(&basic(&format!("anybody:{key}")))));
        }
        let wrong = [
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Basic",
            "Basic !",
            "Basic Og==",
            "Digest x",
            "",
            &basic(FIRST),
            &format!("Bearer {FIRST}0"),
            &format!("Bearer {FIRST}\t{SECOND}"),
            FIRST,
        ];
        for wrong in wrong {
            assert!(!keys.admit(&headers(wrong)), "{wrong}");
        }
        assert!(!keys.admit(&HeaderMap::new()));

        fs::write(&path, "").unwrap();
        assert!(keys.reload().unwrap_err().contains("there is no key"));
        assert!(keys.admit(&headers(&format!("Bearer {FIRST}"))));
        fs::write(&path, SECOND).unwrap();
        keys.reload().unwrap();
        assert!(!keys.admit(&headers(&format!("Bearer {FIRST}"))));
        fs::write(&path, format!("{SECOND}\nshort")).unwrap();
        assert!(keys.reload().unwrap_err().contains("key 2 has fewer than 16 characters"));
    }
}
