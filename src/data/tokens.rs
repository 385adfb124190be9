//! Token ids of many texts, as many as each has.

use std::fmt;
use std::io::{self, Write};

use polars_utils::mmap::MMapSemaphore;
use sha2::{Digest, Sha256};

/// The token ids of a table: of each row its own alone, without padding, in two bytes each or four.
///
/// In memory or in a mapped file, they are the same bytes, little-endian: the ids of all rows one after another; filled up to
/// a multiple of 8, where each row ends (`u64`, counted in ids); and a footer that tells how many, and their hash.
pub struct Tokens {
    bytes: Bytes,
    footer: Footer,
    pad_id: u32,
}

enum Bytes {
    Own(Vec<u8>),
    Mapped(MMapSemaphore),
}

/// Alike in all that they hold, be it in memory or in a file.
impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        self.pad_id == other.pad_id && self.footer == other.footer && self.body() == other.body()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footer { rows, max_length, .. } = self.footer;
        write!(f, "Tokens {{ rows: {rows}, max_length: {max_length}, .. }}")
    }
}

/// What stands at the end of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footer {
    /// SHA-256 of all before.
    digest: [u8; 32],
    rows: u64,
    /// The most ids that a row may have.
    max_length: u64,
    /// Bytes of an id.
    width: u64,
}

impl Footer {
    const BYTES: usize = 32 + 3 * 8 + MAGIC.len();

    fn to_bytes(&self) -> Vec<u8> {
        let numbers = [self.rows, self.max_length, self.width].map(u64::to_le_bytes);
        [&self.digest[..], &numbers.concat(), MAGIC].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.last_chunk::<{ Self::BYTES }>()?;
        let (digest, rest) = bytes.split_first_chunk::<32>()?;
        let number = |i: usize| rest[8 * i..].first_chunk().copied().map(u64::from_le_bytes);
        let footer = Self { digest: *digest, rows: number(0)?, max_length: number(1)?, width: number(2)? };
        (rest.ends_with(MAGIC) && [2, 4].contains(&footer.width)).then_some(footer)
    }
}

/// It changes with the layout.
const MAGIC: &[u8; 8] = b"BXLATOK1";

impl Tokens {
    /// Of rows of ids, each of `max_length` at most; `pad_id` is the token after a row's end.
    ///
    /// # Panics
    /// If a row has more.
    pub fn new<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>, max_length: usize, pad_id: u32) -> Self {
        let rows = rows.into_iter().collect::<Vec<_>>();
        let highest = rows.iter().flat_map(|row| row.as_ref()).max().copied();
        let mut writer = TokenWriter::new(vec![], max_length, highest.unwrap_or_default());
        // Memory takes all that it is given.
        rows.iter().for_each(|row| writer.push(row.as_ref()).expect("memory"));
        Self::of(writer.finish().expect("memory"), pad_id)
    }

    /// Of what a [`TokenWriter`] has written.
    pub(super) fn of(bytes: Vec<u8>, pad_id: u32) -> Self {
        let footer = Footer::parse(&bytes).expect("what a writer has written");
        Self { bytes: Bytes::Own(bytes), footer, pad_id }
    }

    /// Of a file that a [`TokenWriter`] has written, mapped into memory: bytes are read when a row is. `None` if it is another
    /// file, or damaged.
    pub(super) fn map(file: &std::fs::File, pad_id: u32) -> io::Result<Option<Self>> {
        let bytes = MMapSemaphore::new_from_file(file).map_err(io::Error::other)?;
        let Some(footer) = Footer::parse(bytes.as_ref()) else { return Ok(None) };
        let tokens = Self { bytes: Bytes::Mapped(bytes), footer, pad_id };
        Ok((tokens.is_consistent() && digest_of(file, tokens.body().len())? == tokens.footer.digest)
            .then_some(tokens))
    }

    /// Whether its parts are as long as its footer says.
    fn is_consistent(&self) -> bool {
        let Footer { rows, width, .. } = self.footer;
        let ends = rows.checked_mul(8).filter(|ends| *ends <= self.body().len() as u64);
        ends.is_some() && self.ends_at(self.len()) * width as usize <= self.ids().len()
    }

    /// SHA-256 of all ids and of where rows end.
    pub fn digest(&self) -> [u8; 32] {
        self.footer.digest
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.footer.rows as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most tokens that a row can have.
    pub fn max_length(&self) -> usize {
        self.footer.max_length as usize
    }

    /// The token after a row's end.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The ids of one row, `[CLS]` and `[SEP]` included.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> impl ExactSizeIterator<Item = u32> {
        let width = self.footer.width as usize;
        let ids = &self.ids()[self.ends_at(row) * width..self.ends_at(row + 1) * width];
        ids.chunks_exact(width).map(|id| match *id {
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("an id has two bytes or four"),
        })
    }

    /// Number of tokens of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn length(&self, row: usize) -> usize {
        self.ends_at(row + 1) - self.ends_at(row)
    }

    /// Where the first `rows` rows end, in ids.
    fn ends_at(&self, rows: usize) -> usize {
        let Some(last) = rows.checked_sub(1) else { return 0 };
        let ends = &self.body()[self.ids().len()..];
        ends[8 * last..].first_chunk().map_or(0, |end| u64::from_le_bytes(*end) as usize)
    }

    fn body(&self) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes.as_ref(),
        };
        &bytes[..bytes.len() - Footer::BYTES]
    }

    /// With what fills them up.
    fn ids(&self) -> &[u8] {
        let body = self.body();
        &body[..body.len() - 8 * self.len()]
    }
}

/// Of the first bytes of a file, which are not kept in memory.
fn digest_of(file: &std::fs::File, length: usize) -> io::Result<[u8; 32]> {
    use std::os::unix::fs::FileExt;
    let (mut buffer, mut hash, mut at) = (vec![0; 1 << 20], Sha256::new(), 0);
    while at < length {
        let part = (length - at).min(buffer.len());
        file.read_exact_at(&mut buffer[..part], at as u64)?;
        hash.update(&buffer[..part]);
        at += part;
    }
    Ok(hash.finalize().into())
}

/// Writes what [`Tokens`] reads, a row at a time: of what it writes, it keeps 8 bytes a row.
pub(super) struct TokenWriter<W> {
    writer: W,
    hash: Sha256,
    ends: Vec<u64>,
    max_length: usize,
    width: usize,
    buffer: Vec<u8>,
}

impl<W: Write> TokenWriter<W> {
    /// For ids up to `highest`.
    pub fn new(writer: W, max_length: usize, highest: u32) -> Self {
        let width = if highest <= u16::MAX.into() { 2 } else { 4 };
        Self { writer, hash: Sha256::new(), ends: vec![], max_length, width, buffer: vec![] }
    }

    /// # Panics
    /// If the row has more ids than are allowed.
    pub fn push(&mut self, ids: &[u32]) -> io::Result<()> {
        assert!(ids.len() <= self.max_length, "{} ids where {} are allowed", ids.len(), self.max_length);
        let Self { ends, width, buffer, .. } = self;
        buffer.clear();
        ids.iter().for_each(|id| buffer.extend_from_slice(&id.to_le_bytes()[..*width]));
        ends.push(ends.last().copied().unwrap_or_default() + ids.len() as u64);
        self.write_buffer()
    }

    /// Gives the writer back once all is written.
    pub fn finish(mut self) -> io::Result<W> {
        let rows = self.ends.len() as u64;
        let ids = self.ends.last().copied().unwrap_or_default() as usize * self.width;
        self.buffer = vec![0; ids.next_multiple_of(8) - ids];
        self.write_buffer()?;
        for ends in std::mem::take(&mut self.ends).chunks(1 << 12) {
            self.buffer = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
            self.write_buffer()?;
        }
        let Self { mut writer, hash, max_length, width, .. } = self;
        let digest = hash.finalize().into();
        let footer = Footer { digest, rows, max_length: max_length as u64, width: width as u64 };
        writer.write_all(&footer.to_bytes())?;
        Ok(writer)
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.hash.update(&self.buffer);
        self.writer.write_all(&self.buffer)
    }
}
