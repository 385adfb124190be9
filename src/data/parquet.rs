//! A Parquet file, read in batches. Of each column that is used, a page is in memory at a time.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::bad_rows::{BadRows, Place, excerpt};
use super::batch::{Batch, Cells, Reader, boolean, float};
use super::columns::{Columns, Role};
use super::contained::contained;
use super::pass::Pass;
use super::{DataError, Header, MAX_ROW, Purpose, TableOptions, read_error};

/// How many rows are read at a time, as parts of pages.
const ROWS: usize = 256;

/// From how many bytes on no more are: each row may have a page of its own in memory, and a dictionary gives one of 64 MiB
/// for nothing.
const BYTES: usize = 1 << 20;

pub(super) struct ParquetReader {
    path: PathBuf,
    file: SerializedFileReader<Shared>,
    columns: Columns,
    /// Of those that are used.
    leaves: Leaves<Leaf>,
    /// Of the row group that is being read, and how many of its rows are left.
    readers: Option<(Leaves<LeafReader>, usize)>,
    /// Row groups that were begun, and rows that were read.
    groups: usize,
    rows: usize,
    /// Bytes of their values.
    unpacked: u64,
}

/// A column that is used.
#[derive(Clone, Copy)]
struct Leaf {
    /// Its place among the leaves of the schema, from 0.
    at: usize,
    /// Whether its whole numbers have signs.
    is_signed: bool,
}

/// Something of each column that is used.
struct Leaves<T> {
    text: T,
    label: Option<T>,
    id: Option<T>,
}

impl<T> Leaves<T> {
    fn try_map<U, E>(&mut self, mut f: impl FnMut(&mut T) -> Result<U, E>) -> Result<Leaves<U>, E> {
        Ok(Leaves {
            text: f(&mut self.text)?,
            label: self.label.as_mut().map(&mut f).transpose()?,
            id: self.id.as_mut().map(&mut f).transpose()?,
        })
    }
}

impl ParquetReader {
    /// `path` is for messages.
    pub fn new(
        path: &Path,
        file: Arc<File>,
        options: &TableOptions,
        purpose: Purpose,
    ) -> Result<Self, DataError> {
        let file = reading(|| SerializedFileReader::new(Shared(file))).map_err(damage(path))?;
        let schema = file.metadata().file_metadata().schema_descr();
        let names = schema.root_schema().get_fields();
        let names = names.iter().map(|field| field.name().to_owned()).collect::<Vec<_>>();
        // Its columns have names.
        let options = TableOptions { header: Header::Present, ..options.clone() };
        let columns = Columns::find(path, &names, names.len(), &options, purpose)?;
        let leaf = |role: Role, column: usize| {
            leaf(schema, column).map_err(|found| DataError::Column {
                path: path.to_owned(),
                role,
                name: names[column].clone(),
                found,
            })
        };
        let leaves = Leaves {
            text: leaf(Role::Text, columns.text)?,
            label: columns.label.map(|column| leaf(Role::Label, column)).transpose()?,
            id: columns.id.map(|column| leaf(Role::Id, column)).transpose()?,
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            columns,
            leaves,
            readers: None,
            groups: 0,
            rows: 0,
            unpacked: 0,
        })
    }

    /// The next rows; none at the end of the file.
    fn rows(&mut self) -> Result<Vec<Leaves<Cell>>, ParquetError> {
        let (mut rows, mut bytes) = (vec![], 0);
        while bytes < BYTES && rows.len() < ROWS {
            let Some(row) = self.row()? else { break };
            let Leaves { text, label, id } = &row;
            let all = [Some(text), label.as_ref(), id.as_ref()].into_iter().flatten().flatten();
            bytes += all.map(Value::len).sum::<usize>();
            rows.push(row);
        }
        self.unpacked += bytes as u64;
        Ok(rows)
    }

    /// One at a time: a page that is read stays in memory as long as a value of it does.
    fn row(&mut self) -> Result<Option<Leaves<Cell>>, ParquetError> {
        loop {
            if let Some((readers, left)) = &mut self.readers
                && *left > 0
            {
                *left -= 1;
                return readers.try_map(LeafReader::read).map(Some);
            }
            if self.groups == self.file.num_row_groups() {
                return Ok(None);
            }
            let group = self.file.get_row_group(self.groups)?;
            let rows = usize::try_from(group.metadata().num_rows())?;
            let readers = self.leaves.try_map(|leaf| {
                Ok::<_, ParquetError>(LeafReader {
                    reader: group.get_column_reader(leaf.at)?,
                    is_signed: leaf.is_signed,
                })
            })?;
            self.groups += 1;
            self.readers = Some((readers, rows));
        }
    }
}

impl Reader for ParquetReader {
    fn read(&mut self, bad: &mut BadRows) -> Result<Option<Batch>, DataError> {
        let read = reading(|| self.rows()).map_err(damage(&self.path))?;
        if read.is_empty() {
            return Ok(None);
        }
        let mut rows = vec![];
        for Leaves { text, label, id } in read {
            self.rows += 1;
            let place = Place::Row(self.rows);
            let string = |role: Role, cell: Cell| {
                cell.map(Value::into_string).transpose().map_err(|reason| format!("the {role} is {reason}"))
            };
            let cells = || {
                Ok::<_, String>(Cells {
                    text: string(Role::Text, text)?,
                    label: label.map(|label| string(Role::Label, label)).transpose()?,
                    id: id.map(|id| string(Role::Id, id)).transpose()?,
                })
            };
            match cells() {
                Ok(cells) => rows.push((place, cells)),
                Err(reason) => bad.add(place, || reason),
            }
        }
        Ok(Some(Batch::of(rows)))
    }

    fn unpacked(&self) -> u64 {
        self.unpacked
    }

    fn columns(&self) -> Option<&Columns> {
        Some(&self.columns)
    }
}

/// What the crate reads: of some damaged files, it expects what isn't there, such as the dictionary that a page goes by.
fn reading<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let contradiction = || Err(ParquetError::General("its parts contradict each other".to_owned()));
    contained(read).unwrap_or_else(contradiction)
}

/// For `map_err`.
fn damage(path: &Path) -> impl FnOnce(ParquetError) -> DataError {
    move |error| {
        let message = error.to_string();
        match error {
            // Those of a decompressor are of this type, too.
            ParquetError::External(error) => match error.downcast::<io::Error>() {
                Ok(error) if error.raw_os_error().is_some() => read_error(path)(*error),
                _ => DataError::Damaged { path: path.to_owned(), message },
            },
            _ => DataError::Damaged { path: path.to_owned(), message },
        }
    }
}

/// `None` for null.
type Cell = Option<Value>;

enum Value {
    /// A part of a page, or of its dictionary, which holds it for all its rows.
    Bytes(ByteArray),
    /// Of a number or a boolean.
    Text(String),
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Text(text) => text.len(),
        }
    }

    /// # Errors
    /// What it is, if it can't be used.
    fn into_string(self) -> Result<String, String> {
        match self {
            Self::Bytes(bytes) => text(&bytes),
            Self::Text(text) => Ok(text),
        }
    }
}

/// Reads the values of a column in a row group.
struct LeafReader {
    reader: ColumnReader,
    is_signed: bool,
}

impl LeafReader {
    /// The next value.
    fn read(&mut self) -> Result<Cell, ParquetError> {
        let is_signed = self.is_signed;
        let number =
            |signed: String, unsigned: String| Value::Text(if is_signed { signed } else { unsigned });
        match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(read(reader)?.map(Value::Bytes)),
            ColumnReader::BoolColumnReader(reader) => {
                Ok(read(reader)?.map(|value| Value::Text(boolean(value).to_owned())))
            }
            ColumnReader::Int32ColumnReader(reader) => {
                let value = read(reader)?;
                Ok(value.map(|value| number(value.to_string(), value.cast_unsigned().to_string())))
            }
            ColumnReader::Int64ColumnReader(reader) => {
                let value = read(reader)?;
                Ok(value.map(|value| number(value.to_string(), value.cast_unsigned().to_string())))
            }
            ColumnReader::FloatColumnReader(reader) => Ok(read(reader)?.and_then(float).map(Value::Text)),
            ColumnReader::DoubleColumnReader(reader) => Ok(read(reader)?.and_then(float).map(Value::Text)),
            // None of those that `leaf` gives.
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
                Err(ParquetError::NYI("another type in a row group than in the schema".to_owned()))
            }
        }
    }
}

/// `None` for null.
fn read<T: DataType>(reader: &mut ColumnReaderImpl<T>) -> Result<Option<T::T>, ParquetError> {
    // 1 where there is a value, and none at all where every row must have one.
    let (mut levels, mut values) = (vec![], vec![]);
    let (found, _, _) = reader.read_records(1, Some(&mut levels), None, &mut values)?;
    if found != 1 {
        return Err(ParquetError::EOF("a column has fewer rows than others".to_owned()));
    }
    Ok(values.pop())
}

fn text(value: &ByteArray) -> Result<String, String> {
    let bytes = value.data();
    if bytes.len() > MAX_ROW {
        return Err(format!("of more than {MAX_ROW} bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let byte = bytes[error.valid_up_to()];
            Err(format!("not valid UTF-8 (byte 0x{byte:02x}) in `{}`", excerpt(bytes)))
        }
    }
}

/// The leaf that a column is; or else what it is, if that is no text, number or boolean.
fn leaf(schema: &SchemaDescriptor, column: usize) -> Result<Leaf, String> {
    let mut leaves = (0..schema.num_columns()).filter(|leaf| schema.get_column_root_idx(*leaf) == column);
    let (Some(at), None) = (leaves.next(), leaves.next()) else { return Err("an object".to_owned()) };
    let leaf = schema.column(at);
    if leaf.max_rep_level() > 0 {
        return Err("a list".to_owned());
    }
    if leaf.path().parts().len() > 1 {
        return Err("an object".to_owned());
    }
    // An older file has types of the other kind alone.
    use ConvertedType as Old;
    let is_value = match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(new), _) => matches!(
            new,
            LogicalType::String
                | LogicalType::Enum
                | LogicalType::Json
                | LogicalType::Integer(_)
                | LogicalType::Unknown
        ),
        (None, Old::NONE | Old::UTF8 | Old::ENUM | Old::JSON) => true,
        (None, Old::INT_8 | Old::INT_16 | Old::INT_32 | Old::INT_64) => true,
        (None, old) => is_unsigned(old),
    };
    let is_signed = match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => integer.is_signed,
        (_, old) => !is_unsigned(old),
    };
    match leaf.physical_type() {
        Type::INT96 | Type::FIXED_LEN_BYTE_ARRAY => Err(type_name(&leaf)),
        _ if !is_value => Err(type_name(&leaf)),
        _ => Ok(Leaf { at, is_signed }),
    }
}

fn is_unsigned(old: ConvertedType) -> bool {
    use ConvertedType::{UINT_8, UINT_16, UINT_32, UINT_64};
    matches!(old, UINT_8 | UINT_16 | UINT_32 | UINT_64)
}

fn type_name(leaf: &ColumnDescriptor) -> String {
    match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(new), _) => {
            // Without its parameters.
            let name = format!("{new:?}");
            format!("of type {}", name.split('(').next().unwrap_or(&name))
        }
        (None, ConvertedType::NONE) => format!("of type {}", leaf.physical_type()),
        (None, old) => format!("of type {old}"),
    }
}

/// A file that others read, too.
struct Shared(Arc<File>);

impl Length for Shared {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |file| file.len())
    }
}

impl ChunkReader for Shared {
    type T = BufReader<Pass>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Pass::new(self.0.clone(), start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let left = self.len().saturating_sub(start);
        if length as u64 > left {
            return Err(ParquetError::EOF(format!(
                "{length} bytes are to be at {start}, where {left} are left"
            )));
        }
        let mut bytes = vec![0; length];
        Pass::new(self.0.clone(), start).read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// pyarrow's, of 256 rows with the same text of 1 MiB: `pq.write_table(pa.table({"text": ["x" * (1 << 20)] * 256, "label":
    /// [1] * 256}), "repeated.parquet", compression="zstd")`.
    #[test]
    fn a_dictionary_is_not_copied_for_all_its_rows_at_once() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables/repeated.parquet");
        let file = Arc::new(File::open(&path).unwrap());
        let mut reader =
            ParquetReader::new(&path, file, &TableOptions::default(), Purpose::Evaluate).unwrap();
        let mut bad = BadRows::default();
        let mut rows = 0;
        while let Some(batch) = reader.read(&mut bad).unwrap() {
            assert_eq!(batch.places, [Place::Row(rows + 1)]);
            rows += 1;
        }
        assert_eq!((rows, bad.total), (256, 0));
    }

    #[test]
    fn no_more_pages_are_held_than_a_few_texts_need() {
        use parquet::basic::{Compression, Encoding, ZstdLevel};
        use parquet::data_type::ByteArrayType;
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        use parquet::schema::parser::parse_message_type;

        let schema = parse_message_type("message rows { required binary text (UTF8); }").unwrap();
        // A page for each row.
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::PLAIN)
            .set_data_page_row_count_limit(1)
            .set_write_batch_size(1)
            .build();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer =
            SerializedFileWriter::new(file.reopen().unwrap(), schema.into(), properties.into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        const LONG: usize = 5;
        let texts = (0..LONG + 3).map(|row| {
            let length = if row < LONG { 2 * BYTES } else { 1 };
            ByteArray::from(row.to_string().repeat(length).as_str())
        });
        let texts = texts.collect::<Vec<_>>();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let (path, options) = (file.path(), TableOptions::default());
        let mut reader =
            ParquetReader::new(path, Arc::new(File::open(path).unwrap()), &options, Purpose::Predict)
                .unwrap();
        let mut counts = vec![];
        loop {
            match reader.rows().unwrap().len() {
                0 => break,
                count => counts.push(count),
            }
        }
        assert_eq!(counts, [1, 1, 1, 1, 1, 3]);
    }
}
