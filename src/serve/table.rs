//! Tables in, labels out: what `predict` writes, while it is computed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode, Uri, Version};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::ask::SHORT;
use super::model::{LOADS, Model};
use super::queue::{Answer, Kind, NoRoom};
use super::refusal::Refusal;
use super::{Options, Shared, rounded};
use crate::data::{
    ColumnRef, DataError, Format, Header, Labels, Purpose, Record, Records, Summary, TableFile, TableOptions,
    parse_quote, parse_separator,
};
use crate::run::Submission;

/// How a table is laid out, and what is to be said of its rows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TableQuery {
    /// csv, jsonl or parquet, where neither `Content-Type` nor its beginning tells.
    format: Option<String>,
    separator: Option<String>,
    quote: Option<String>,
    /// `true` or `false`, where the first row doesn't tell.
    header: Option<bool>,
    text_column: Option<String>,
    id_column: Option<String>,
    skip_bad_rows: bool,
    /// A column for each label's probability.
    probabilities: bool,
    /// The text of each row, too.
    texts: bool,
}

/// Rows that are computed together at most, and so many times as many wait: then others' texts don't wait long.
const ROWS: usize = 32;
const PARTS: usize = 4;

pub(super) async fn predict(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let query = Query::<TableQuery>::try_from_uri(&uri);
    let Query(query) = query.map_err(|error| Refusal::unprocessable(error.body_text()))?;
    // There, an answer's end is the connection's: a part would be taken for the whole.
    if version < Version::HTTP_11 {
        let message = "tables take HTTP/1.1: in nginx, `proxy_http_version 1.1`";
        return Err(Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, message));
    }
    if content(&headers).starts_with("multipart/") {
        let message = "send the table itself as the body, as `curl --data-binary @table.csv` does";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let model = shared.model()?;
    let mut options = query.options(&model).map_err(|error| Refusal::unprocessable(error.to_string()))?;
    let (mut file, right) = shared.spool(body).await?;
    if query.format.is_none() {
        options.format = Some(format_of(content(&headers), &mut file));
    }
    let table = TableFile::of_file(Path::new("the table"), file, &options, Purpose::Predict);
    let gone = Gone::default();
    let (is_gone, limits) = (gone.0.clone(), shared.options.clone());
    // All of it, before a row is answered.
    let checked = spawn_blocking(move || {
        let checked = check(&table, &limits, &is_gone)?;
        // Until then, whoever waits for it, or doesn't.
        Ok::<_, Refusal>((table, checked, right))
    });
    let (table, checked, right) = checked.await.map_err(|_| Refusal::failed())??;
    let (sender, rows) = mpsc::channel(1);
    let loads = model.loads();
    let job = Job { shared, model, table, query, _right: right };
    let runtime = Handle::current();
    spawn_blocking(move || job.run(&Reader { sender, runtime }));
    let mut response = (kind(), Body::new(Rows(rows))).into_response();
    let told = response.headers_mut();
    told.insert(LOADS, loads.into());
    told.insert("x-rows", checked.rows.into());
    told.insert("x-skipped-rows", checked.skipped.into());
    told.insert("x-rows-without-text", checked.empty.into());
    if let Some(columns) = checked.guess.and_then(|guess| HeaderValue::from_str(&guess).ok()) {
        told.insert("x-columns", columns);
    }
    Ok(response)
}

fn kind() -> [(HeaderName, HeaderValue); 1] {
    [(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"))]
}

/// What the body is said to be.
fn content(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default()
}

/// By what it is said to be, or else by how it begins.
fn format_of(content: &str, file: &mut File) -> Format {
    let mut first = [0; 4];
    let begins = file.read(&mut first).is_ok_and(|count| count > 0) && file.rewind().is_ok();
    match content.split(';').next().map(str::trim) {
        Some(
            "application/jsonl" | "application/x-ndjson" | "application/x-jsonlines" | "application/json",
        ) => Format::JsonLines,
        Some("application/vnd.apache.parquet" | "application/parquet") => Format::Parquet,
        _ if begins && first == *b"PAR1" => Format::Parquet,
        _ if begins && first[0] == b'{' => Format::JsonLines,
        _ => Format::Csv,
    }
}

impl TableQuery {
    fn options(&self, model: &Model) -> Result<TableOptions, DataError> {
        let default = TableOptions::default();
        let column = |name: &Option<String>| {
            name.as_ref().map(|name| name.parse::<ColumnRef>().unwrap_or_else(|never| match never {}))
        };
        Ok(TableOptions {
            format: Some(self.format.as_deref().map_or(Ok(Format::Csv), str::parse)?),
            separator: self.separator.as_deref().map_or(Ok(default.separator), parse_separator)?,
            quote: self.quote.as_deref().map_or(Ok(default.quote), parse_quote)?,
            header: match self.header {
                None => Header::Expected,
                Some(true) => Header::Present,
                Some(false) => Header::Absent,
            },
            text_column: column(&self.text_column),
            label_column: None,
            id_column: column(&self.id_column),
            labels: Labels::Given(model.prepared.labels().clone()),
            skip_bad_rows: self.skip_bad_rows,
        })
    }
}

/// What is wrong with a table, and what to do.
fn refusal(error: &DataError) -> Refusal {
    let hint = match error {
        DataError::BadRows { .. } => "; correct them, or pass skip_bad_rows=true to leave them out",
        DataError::HeaderIsData { .. } => {
            "; is separator right? Pass header=false if it is data, header=true if it names columns"
        }
        DataError::NoColumn { .. } => "; pass text_column, id_column or separator",
        _ => "",
    };
    Refusal::unprocessable(format!("{error}{hint}"))
}

/// Set once nobody waits any more.
#[derive(Default)]
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What there is in a table that can be labelled. What is compressed may be far longer than it is as a file.
fn check(table: &TableFile, options: &Options, is_gone: &Arc<AtomicBool>) -> Result<Summary, Refusal> {
    let too_large = |of: &str, most: u64, flag: &str| {
        Refusal::too_large(format!("the table: {of} may have {most} bytes; {flag} allows more"))
    };
    let goes_on = {
        let (is_gone, most) = (is_gone.clone(), options.max_table);
        move |unpacked| unpacked <= most && !is_gone.load(Ordering::Relaxed)
    };
    let mut records = table.records().map_err(|error| refusal(&error))?.while_so(goes_on);
    let mut bytes = 0;
    for record in &mut records {
        let record = record.map_err(|error| match error {
            DataError::Stopped { .. } if is_gone.load(Ordering::Relaxed) => gone(),
            DataError::Stopped { .. } => too_large("all rows", options.max_table, "--max-table"),
            other => refusal(&other),
        });
        let Record { id, text, .. } = record?;
        let size = id.len() + text.len();
        bytes += size as u64;
        if size > options.max_body {
            return Err(too_large("a row", options.max_body as u64, "--max-body"));
        }
        if bytes > options.max_table {
            return Err(too_large("all rows", options.max_table, "--max-table"));
        }
    }
    Ok(records.summary())
}

fn gone() -> Refusal {
    Refusal::bad_request("nobody waits for it")
}

/// A table on its way.
struct Job {
    shared: Arc<Shared>,
    model: Arc<Model>,
    table: TableFile,
    query: TableQuery,
    _right: OwnedSemaphorePermit,
}

/// Rows that are being computed.
struct Part {
    ids: Vec<String>,
    texts: Vec<String>,
    /// So many of them are longer than the model reads.
    truncated: usize,
    answers: Vec<oneshot::Receiver<Answer>>,
}

/// What is sent.
enum Chunk {
    Part(Bytes),
    /// There is no more of it, since all was sent.
    End,
    /// There is no more of it because of a failure.
    Failure(io::Error),
}

/// Who has sent a table, and reads the answer.
struct Reader {
    sender: mpsc::Sender<Chunk>,
    runtime: Handle,
}

impl Reader {
    /// Whether it was taken in time.
    fn send(&self, chunk: Chunk, time: Duration) -> bool {
        self.runtime.block_on(self.sender.send_timeout(chunk, time)).is_ok()
    }
}

impl Job {
    /// Sends the labels of all rows in order, as long as somebody reads them.
    fn run(&self, reader: &Reader) {
        if let Err(error) = self.rows(reader) {
            tracing::warn!(error = error.to_string(), "a table wasn't labelled to its end");
            // Who has gone needn't be told.
            reader.send(Chunk::Failure(error), self.shared.options.time_out);
        }
    }

    fn rows(&self, reader: &Reader) -> io::Result<()> {
        let started = Instant::now();
        let mut records = self.table.records().map_err(io::Error::other)?;
        let mut parts = VecDeque::new();
        let (mut is_first, mut ended, mut truncated) = (true, false, 0);
        loop {
            while !ended && parts.len() < PARTS {
                match self.part(&mut records, reader)? {
                    Some(part) => parts.push_back(part),
                    None => ended = true,
                }
            }
            let Some(part) = parts.pop_front() else { break };
            truncated += part.truncated;
            let bytes = self.answered(part, std::mem::take(&mut is_first))?;
            if !reader.send(Chunk::Part(bytes), self.shared.options.time_out) {
                return Err(io::Error::other("it wasn't read in time, or to its end"));
            }
        }
        reader.send(Chunk::End, self.shared.options.time_out);
        let seconds = rounded(started.elapsed().as_secs_f64());
        tracing::info!(rows = records.summary().rows, truncated, seconds, "a table was labelled");
        Ok(())
    }

    /// The next rows, which wait for the devices from now on.
    fn part(&self, records: &mut Records, reader: &Reader) -> io::Result<Option<Part>> {
        /// Of texts at a time.
        const BYTES: usize = 1 << 20;
        let most = ROWS.min(self.shared.queue.room_for_tables());
        let (mut ids, mut texts, mut prompts, mut bytes) = (vec![], vec![], vec![], 0);
        while ids.len() < most && bytes < BYTES {
            let Some(Record { id, text, .. }) = records.next().transpose().map_err(io::Error::other)? else {
                break;
            };
            bytes += id.len() + text.len();
            let _turn = (text.len() > SHORT)
                .then(|| reader.runtime.block_on(self.shared.limits.long_texts.acquire()));
            prompts.push(self.model.prepared.prompt(&text).map_err(io::Error::other)?);
            ids.push(id);
            texts.extend(self.query.texts.then_some(text));
        }
        if ids.is_empty() {
            return Ok(None);
        }
        let truncated = prompts.iter().filter(|prompt| prompt.is_cut).count();
        loop {
            match self.shared.queue.push(&self.model, Kind::Table, prompts) {
                Ok(answers) => {
                    self.shared.metrics.truncated.inc_by(truncated as u64);
                    return Ok(Some(Part { ids, texts, truncated, answers }));
                }
                Err(NoRoom { is_closed: true, .. }) => return Err(io::Error::other("the server ends")),
                Err(NoRoom { prompts: back, .. }) => prompts = back,
            }
            if reader.sender.is_closed() {
                return Err(io::Error::other("nobody waits for it any more"));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Its answers, once they are there.
    fn answered(&self, part: Part, is_first: bool) -> io::Result<Bytes> {
        let mut probabilities = vec![];
        for answer in part.answers {
            let answer: Answer = answer.blocking_recv().unwrap_or_default();
            probabilities.extend(answer.ok_or_else(|| io::Error::other("the model couldn't be asked"))?);
        }
        let labels = self.model.prepared.labels();
        let answers = labels.most_probable(&probabilities);
        let mut bytes = vec![];
        let mut submission =
            if is_first { Submission::new(&mut bytes) } else { Submission::rest(&mut bytes) };
        let texts = self.query.texts.then_some(&*part.texts);
        let probabilities = self.query.probabilities.then_some(&*probabilities);
        submission.add(&part.ids, texts, labels, &answers, probabilities)?;
        Ok(bytes.into())
    }
}

/// How often is looked for room in the queue.
const PAUSE: Duration = Duration::from_millis(5);

/// The body of an answer that comes in parts. Without its end, the connection ends without that of the body: nobody takes a part
/// for the whole.
struct Rows(mpsc::Receiver<Chunk>);

impl hyper::body::Body for Rows {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|chunk| match chunk {
            Some(Chunk::Part(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Chunk::End) => None,
            Some(Chunk::Failure(error)) => Some(Err(error)),
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}
