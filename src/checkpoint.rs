//! Reads and writes weights in the safetensors format.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use polars_utils::mmap::MMapSemaphore;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use crate::files::write_atomic;
use crate::hub::ModelFiles;
use crate::shape::{ElementType, Shape};

/// Why weights could not be read or written. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("can't read {}: {message}", path.display())]
    Read { path: PathBuf, message: String },
    #[error("tensor `{name}` is in both {} and {}", first.display(), second.display())]
    Duplicate { name: String, first: PathBuf, second: PathBuf },
    #[error("{}: there is no tensor `{name}`{}", path.display(), nearest(close))]
    Missing { path: PathBuf, name: String, close: Option<String> },
    #[error("{}: tensor `{name}` has the shape {found:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: tensor `{name}` has the type {dtype:?}, expected F32, F16 or BF16", path.display())]
    Type { path: PathBuf, name: String, dtype: Dtype },
    #[error("can't write {}: {source}", path.display())]
    Write { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

impl CheckpointError {
    /// True where a file is at fault, false where writing failed.
    pub fn is_input_error(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

fn nearest(close: &Option<String>) -> String {
    close.as_ref().map_or_else(String::new, |name| format!("; the nearest name is `{name}`"))
}

/// The tensors of a pretrained model, memory-mapped: bytes are read from disk when a tensor is.
///
/// Names are as in `transformers`' `BertModel`: a leading `bert.` is removed, and the older `gamma` and `beta` of a
/// `LayerNorm` become `weight` and `bias`.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
    ignored: Vec<String>,
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

impl Checkpoint {
    /// Maps the weight files and reads their headers.
    pub fn open(files: &ModelFiles) -> Result<Self, CheckpointError> {
        Self::open_files(&files.weights)
    }

    /// As [`Checkpoint::open`], for weight files given by their paths.
    pub fn open_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new(), ignored: Vec::new() };
        for path in paths {
            checkpoint.add(path.as_ref())?;
        }
        checkpoint.ignored.sort();
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let error = |message: String| CheckpointError::Read { path: path.to_owned(), message };
        let opened = File::open(path).map_err(|cause| error(cause.to_string()))?;
        // Mapping an empty file fails on some systems, and with a less helpful message.
        if opened.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(error("the file is empty".to_owned()));
        }
        let bytes = MMapSemaphore::new_from_file(&opened).map_err(|cause| error(cause.to_string()))?;
        let (header, metadata) = SafeTensors::read_metadata(bytes.as_ref())
            .map_err(|cause| error(format!("not a complete safetensors file: {cause}")))?;
        let file = self.files.len();
        for (name, info) in metadata.tensors() {
            let Some(known) = normalize(&name) else {
                self.ignored.push(name);
                continue;
            };
            let entry = Entry { file, info: info.clone() };
            if let Some(first) = self.tensors.insert(known, entry) {
                let first = self.files.get(first.file).map_or(path, |file| &file.path).to_owned();
                return Err(CheckpointError::Duplicate { name, first, second: path.to_owned() });
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
    pub fn tensor_f32(&self, name: &str, expected: &[usize]) -> Result<Cow<'_, [f32]>, CheckpointError> {
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
    pub fn check(&self, name: &str, expected: &[usize]) -> Result<(), CheckpointError> {
        let entry = self.entry(name, expected)?;
        match entry.info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            _ => Err(self.wrong_type(name, entry)),
        }
    }

    fn wrong_type(&self, name: &str, entry: &Entry) -> CheckpointError {
        let path = self.files[entry.file].path.clone();
        CheckpointError::Type { path, name: name.to_owned(), dtype: entry.info.dtype }
    }

    fn entry(&self, name: &str, expected: &[usize]) -> Result<&Entry, CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        if entry.info.shape == expected {
            return Ok(entry);
        }
        Err(CheckpointError::Shape {
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

    /// The tensors left out because no encoder has them: pretraining heads (`cls.*`) and the buffer of position
    /// numbers. Names as in the file, sorted.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The names that are not among `used`, sorted.
    pub fn unused(&self, used: &[&str]) -> Vec<&str> {
        self.names().filter(|name| !used.contains(name)).collect()
    }

    fn missing(&self, name: &str) -> CheckpointError {
        let close = self.names().min_by_key(|known| edit_distance(known, name));
        CheckpointError::Missing {
            path: self.files.first().map(|file| file.path.clone()).unwrap_or_default(),
            name: name.to_owned(),
            close: close.map(str::to_owned),
        }
    }
}

/// The name under which a tensor is known here; `None` for one that is ignored.
fn normalize(name: &str) -> Option<String> {
    let bare = name.strip_prefix("bert.").unwrap_or(name);
    if bare.starts_with("cls.") || bare == "embeddings.position_ids" {
        return None;
    }
    let renamed = [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")];
    for (old, new) in renamed {
        if let Some(stem) = bare.strip_suffix(old) {
            return Some(format!("{stem}{new}"));
        }
    }
    Some(bare.to_owned())
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

/// Writes a safetensors file, whole or not at all. Tensors are asked for one at a time, in the order given: `bytes`
/// gives the row-major little-endian bytes of the `i`-th, so that no second copy of the weights builds up.
///
/// # Errors
/// If `bytes` fails or gives another size than the shape's, or if the file can't be written.
pub fn save_safetensors<'a>(
    path: &Path,
    tensors: &[(String, Shape)],
    metadata: &[(&str, &str)],
    mut bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), CheckpointError> {
    let written: Result<(), WriteError> = write_atomic(path, |writer| {
        let header = header(tensors, metadata)?;
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for (i, (name, shape)) in tensors.iter().enumerate() {
            let bytes = bytes(i)?;
            if bytes.len() != shape.size_in_bytes() {
                let message = format!("tensor `{name}` of {shape} was given in {} bytes", bytes.len());
                return Err(WriteError(message.into()));
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    });
    written.map_err(|WriteError(source)| CheckpointError::Write { path: path.to_owned(), source })
}

/// Whatever kept a file from being written.
struct WriteError(Box<dyn std::error::Error + Send + Sync>);

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self(error.into())
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for WriteError {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
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
