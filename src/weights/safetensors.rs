//! Reads and writes weights in the safetensors format.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use polars_utils::mmap::MMapSemaphore;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use super::names::normalize;
use super::{ModelFiles, WeightsError};
use crate::shape::{ElementType, Shape};
use crate::storage::{BoxError, write_atomic};

/// The tensors of a pretrained model, memory-mapped: bytes are read from disk when a tensor is.
///
/// Names are as in `transformers`' `BertModel`: a leading `bert.` is removed, and the older `gamma` and `beta` of a
/// `LayerNorm` become `weight` and `bias`.
#[derive(Debug)]
pub struct TensorFiles {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    /// The map that polars reads its own files through: its interface is safe.
    bytes: MMapSemaphore,
    /// Where the tensors begin.
    data: usize,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    info: TensorInfo,
}

impl TensorFiles {
    /// Maps the weight files and reads their headers.
    pub fn open(files: &ModelFiles) -> Result<Self, WeightsError> {
        Self::open_files(&files.weights)
    }

    /// As [`TensorFiles::open`], for weight files given by their paths.
    pub fn open_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self, WeightsError> {
        let mut files = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            files.add(path.as_ref())?;
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let error = |message: String| WeightsError::Read { path: path.to_owned(), message };
        let opened = File::open(path).map_err(|cause| error(cause.to_string()))?;
        // Mapping an empty file fails on some systems, and with a less helpful message.
        if opened.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(error("the file is empty".to_owned()));
        }
        let bytes = MMapSemaphore::new_from_file(&opened).map_err(|cause| error(cause.to_string()))?;
        if bytes.as_ref().starts_with(b"version https://git-lfs") {
            return Err(error("it only says which file to fetch; fetch that (git lfs pull)".to_owned()));
        }
        let (header, metadata) = SafeTensors::read_metadata(bytes.as_ref())
            .map_err(|cause| error(format!("not a complete safetensors file: {cause}")))?;
        let file = self.files.len();
        for (name, info) in metadata.tensors().into_iter().collect::<BTreeMap<_, _>>() {
            let Some(known) = normalize(&name) else { continue };
            let entry = Entry { file, info: info.clone() };
            if let Some(first) = self.tensors.insert(known, entry) {
                let first = self.files.get(first.file).map_or(path, |file| &file.path).to_owned();
                return Err(WeightsError::Duplicate { name, first, second: path.to_owned() });
            }
        }
        // The header's length takes 8 bytes before the header itself.
        self.files.push(MappedFile { path: path.to_owned(), bytes, data: header + 8 });
        Ok(())
    }

    /// A tensor in float32: borrowed from the file where it is stored so, converted where it is float16 or bfloat16.
    ///
    /// # Errors
    /// If there is no such tensor, or if its shape or type is another.
    pub fn tensor_f32(&self, name: &str, expected: &[usize]) -> Result<Cow<'_, [f32]>, WeightsError> {
        let entry = self.entry(name, expected)?;
        let file = &self.files[entry.file];
        // `read_metadata` has checked that the offsets lie within the file and match the shape.
        let (start, end) = entry.info.data_offsets;
        let bytes = &file.bytes.as_ref()[file.data + start..file.data + end];
        match entry.info.dtype {
            Dtype::F32 => Ok(match bytemuck::try_cast_slice(bytes) {
                Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
                _ => Cow::Owned(convert(bytes, f32::from_le_bytes)),
            }),
            Dtype::F16 => Ok(Cow::Owned(convert(bytes, |value| f16::from_le_bytes(value).to_f32()))),
            Dtype::BF16 => Ok(Cow::Owned(convert(bytes, |value| bf16::from_le_bytes(value).to_f32()))),
            _ => Err(self.wrong_type(name, entry)),
        }
    }

    /// Whether [`tensor_f32`](Self::tensor_f32) would give a tensor of that shape; nothing is read.
    pub fn check(&self, name: &str, expected: &[usize]) -> Result<(), WeightsError> {
        let entry = self.entry(name, expected)?;
        match entry.info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            _ => Err(self.wrong_type(name, entry)),
        }
    }

    fn wrong_type(&self, name: &str, entry: &Entry) -> WeightsError {
        let path = self.files[entry.file].path.clone();
        WeightsError::Type { path, name: name.to_owned(), dtype: entry.info.dtype }
    }

    fn entry(&self, name: &str, expected: &[usize]) -> Result<&Entry, WeightsError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        if entry.info.shape == expected {
            return Ok(entry);
        }
        Err(WeightsError::Shape {
            path: self.files[entry.file].path.clone(),
            name: name.to_owned(),
            found: entry.info.shape.clone(),
            expected: expected.to_vec(),
        })
    }

    /// The bytes of each file, in the order given.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|file| file.bytes.as_ref())
    }

    /// The normalized names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.info.shape.as_slice())
    }

    /// The names that are not among `used`, sorted.
    pub fn unused(&self, used: &HashSet<&str>) -> Vec<&str> {
        self.names().filter(|name| !used.contains(name)).collect()
    }

    fn missing(&self, name: &str) -> WeightsError {
        // A name much longer is not near, and would take long to be compared.
        let names = self.names().filter(|known| known.len() <= 2 * name.len());
        let close = names.min_by_key(|known| edit_distance(known, name));
        WeightsError::Missing {
            path: self.files.first().map(|file| file.path.clone()).unwrap_or_default(),
            name: name.to_owned(),
            close: close.map(str::to_owned),
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(|&bytes| value(bytes)).collect()
}

/// Levenshtein's: insertions, deletions and substitutions of bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Writes tensors in the safetensors format. They are asked for one at a time, in the order given: `tensor` writes the
/// row-major little-endian bytes of the `i`-th, so that no second copy of the weights builds up.
///
/// # Errors
/// If `tensor` fails or writes another number of bytes than the shape's, or if nothing can be written.
pub fn write_safetensors(
    writer: &mut dyn Write,
    tensors: &[(String, Shape)],
    metadata: &[(&str, &str)],
    mut tensor: impl FnMut(usize, &mut dyn Write) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let header = header(tensors, metadata)?;
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let mut counted = Counted { writer: &mut *writer, bytes: 0 };
        tensor(i, &mut counted)?;
        if counted.bytes != shape.size_in_bytes() {
            return Err(format!("tensor `{name}` of {shape} was given in {} bytes", counted.bytes).into());
        }
    }
    Ok(())
}

/// As [`write_safetensors`], into a file that is written whole or not at all.
pub fn save_safetensors(
    path: &Path,
    tensors: &[(String, Shape)],
    metadata: &[(&str, &str)],
    tensor: impl FnMut(usize, &mut dyn Write) -> Result<(), BoxError>,
) -> Result<(), WeightsError> {
    let written: Result<(), WriteError> =
        write_atomic(path, |writer| Ok(write_safetensors(writer, tensors, metadata, tensor)?));
    written.map_err(|WriteError(source)| WeightsError::Write { path: path.to_owned(), source })
}

struct Counted<'a> {
    writer: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Whatever kept a file from being written.
struct WriteError(BoxError);

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self(error.into())
    }
}

impl From<BoxError> for WriteError {
    fn from(error: BoxError) -> Self {
        Self(error)
    }
}

/// The JSON header, padded with spaces so that the tensors begin at a multiple of 8 bytes.
fn header(tensors: &[(String, Shape)], metadata: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut offset = 0;
    let infos = tensors.iter().map(|(name, shape)| {
        let start = offset;
        offset += shape.size_in_bytes();
        let data_offsets = (start, offset);
        (
            name.clone(),
            TensorInfo { dtype: dtype(shape.element_type), shape: shape.dims.clone(), data_offsets },
        )
    });
    let infos = infos.collect();
    let metadata: HashMap<_, _> =
        metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let metadata =
        Metadata::new((!metadata.is_empty()).then_some(metadata), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn dtype(element_type: ElementType) -> Dtype {
    match element_type {
        ElementType::Pred => Dtype::BOOL,
        ElementType::U8 => Dtype::U8,
        ElementType::S32 => Dtype::I32,
        ElementType::S64 => Dtype::I64,
        ElementType::U32 => Dtype::U32,
        ElementType::U64 => Dtype::U64,
        ElementType::F16 => Dtype::F16,
        ElementType::Bf16 => Dtype::BF16,
        ElementType::F32 => Dtype::F32,
        ElementType::F64 => Dtype::F64,
    }
}
