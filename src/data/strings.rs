//! Many short texts, close together.

use std::fmt;
use std::ops::Index;

/// Texts that are added at the end, and stay: they take little more memory than their bytes, where a `String` of each would take
/// some 40 bytes more.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    /// Of [`Chunk::ROWS`] each, but for the last one.
    chunks: Vec<Chunk>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Chunk {
    text: String,
    /// Where each of its texts ends.
    ends: Vec<usize>,
}

impl Chunk {
    const ROWS: usize = 1024;
}

impl Strings {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * Chunk::ROWS + last.ends.len())
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn push(&mut self, text: &str) {
        if self.chunks.last().is_none_or(|last| last.ends.len() == Chunk::ROWS) {
            if let Some(full) = self.chunks.last_mut() {
                full.text.shrink_to_fit();
            }
            self.chunks.push(Chunk { text: String::new(), ends: Vec::with_capacity(Chunk::ROWS.min(64)) });
        }
        let last = self.chunks.len() - 1;
        let Chunk { text: all, ends } = &mut self.chunks[last];
        all.push_str(text);
        ends.push(all.len());
    }

    pub fn get(&self, index: usize) -> Option<&str> {
        let Chunk { text, ends } = self.chunks.get(index / Chunk::ROWS)?;
        let within = index % Chunk::ROWS;
        let start = within.checked_sub(1).map_or(0, |before| ends[before]);
        Some(&text[start..*ends.get(within)?])
    }

    pub fn iter(&self) -> Iter<'_> {
        Iter { strings: self, next: 0 }
    }
}

/// The texts in their order.
#[derive(Clone)]
pub struct Iter<'s> {
    strings: &'s Strings,
    next: usize,
}

impl<'s> Iterator for Iter<'s> {
    type Item = &'s str;

    fn next(&mut self) -> Option<&'s str> {
        let text = self.strings.get(self.next)?;
        self.next += 1;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.strings.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'s> IntoIterator for &'s Strings {
    type Item = &'s str;
    type IntoIter = Iter<'s>;

    fn into_iter(self) -> Iter<'s> {
        self.iter()
    }
}

impl<S: AsRef<str>> Extend<S> for Strings {
    fn extend<I: IntoIterator<Item = S>>(&mut self, texts: I) {
        texts.into_iter().for_each(|text| self.push(text.as_ref()));
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        let mut strings = Self::default();
        strings.extend(texts);
        strings
    }
}

/// # Panics
/// If there is no such text.
impl Index<usize> for Strings {
    type Output = str;

    fn index(&self, index: usize) -> &str {
        self.get(index).unwrap_or_else(|| panic!("text {index} of {}", self.len()))
    }
}

impl<S: AsRef<str>> PartialEq<[S]> for Strings {
    fn eq(&self, other: &[S]) -> bool {
        self.iter().eq(other.iter().map(AsRef::as_ref))
    }
}

impl<S: AsRef<str>, const N: usize> PartialEq<[S; N]> for Strings {
    fn eq(&self, other: &[S; N]) -> bool {
        *self == other[..]
    }
}

impl<S: AsRef<str>> PartialEq<Vec<S>> for Strings {
    fn eq(&self, other: &Vec<S>) -> bool {
        *self == other[..]
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_again() {
        let texts = (0..2500).map(|i| "é".repeat(i % 7)).collect::<Vec<_>>();
        let strings = texts.iter().collect::<Strings>();
        assert_eq!((strings.len(), strings.iter().len()), (2500, 2500));
        assert_eq!(strings, texts);
        assert_eq!((&strings[1024], &strings[2047]), (&*texts[1024], &*texts[2047]));
        assert_eq!((strings.get(2500), strings.get(1 << 40)), (None, None));
        assert_ne!(strings, texts[1..]);
        assert!(Strings::default().is_empty() && Strings::default() == [""; 0]);
    }
}
