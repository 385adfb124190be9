//! What can be asked.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{StatusCode, Uri};
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::json;

use super::body::Read;
use super::model::LOADS;
use super::refusal::Refusal;
use super::{Shared, guard, page, table};
use crate::data::LabelMap;
use crate::storage::file_name;

/// All paths, as they are logged and counted.
pub(super) const ALL: [&str; 14] = [
    "/",
    "/app.js",
    "/csv.js",
    "/model.js",
    "/style.css",
    "/icon.svg",
    "/predict",
    "/predict.csv",
    "/tokenize",
    "/info",
    "/health",
    "/metrics",
    "/openapi.json",
    "/model/{run}/{file}",
];

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let nowhere = || async {
        Refusal::new(StatusCode::NOT_FOUND, "there is nothing here; /openapi.json lists what there is")
    };
    let not_so = || async {
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method; /openapi.json says how")
    };
    let router = page::router()
        .route("/predict", post(predict))
        .route("/predict.csv", post(table::predict))
        .route("/tokenize", post(tokenize))
        .route("/info", get(info))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/model/{run}/{file}", get(page::file))
        .method_not_allowed_fallback(not_so)
        .fallback(nowhere);
    router.layer(axum::middleware::from_fn_with_state(shared.clone(), guard::watch)).with_state(shared)
}

/// A text, or several.
struct Inputs(Vec<String>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Inputs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Inputs, A::Error> {
                let mut inputs = vec![];
                while let Some(text) = texts.next_element()? {
                    inputs.push(text);
                }
                Ok(Inputs(inputs))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PredictRequest {
    inputs: Inputs,
    #[serde(default)]
    top_k: TopK,
    #[serde(default)]
    probabilities: bool,
    truncate: Option<bool>,
    /// As clients of Hugging Face's API send it.
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    top_k: TopK,
    truncate: Option<bool>,
    function_to_apply: Option<Function>,
}

/// So many labels; `null` is all of them, as in transformers.
#[derive(Clone, Copy, Default, PartialEq)]
enum TopK {
    #[default]
    Unsaid,
    All,
    Some(usize),
}

impl<'de> Deserialize<'de> for TopK {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Option::<NonZeroUsize>::deserialize(deserializer)?;
        Ok(given.map_or(Self::All, |count| Self::Some(count.get())))
    }
}

/// What makes probabilities of a model's last values: it has one of its own.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Function {
    Softmax,
}

#[derive(Serialize)]
struct Score<'m> {
    label: &'m str,
    score: f32,
}

async fn predict(State(shared): State<Arc<Shared>>, uri: Uri, body: Body) -> Result<Response, Refusal> {
    if uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(Refusal::unprocessable("options go into the body, beside `inputs`"));
    }
    let Read { bytes, share } = shared.read(body).await?;
    let model = shared.model()?;
    let PredictRequest { inputs: Inputs(inputs), top_k, probabilities, truncate, parameters } =
        parse(&bytes)?;
    drop(bytes);
    let Parameters { top_k: other_top_k, truncate: other_truncate, function_to_apply: _ } = parameters;
    shared.check_count(inputs.len())?;
    let truncate = truncate.or(other_truncate).unwrap_or(true);
    let top = match (if top_k == TopK::Unsaid { other_top_k } else { top_k }, probabilities) {
        (TopK::Some(top), _) => top,
        (TopK::All, _) | (TopK::Unsaid, true) => usize::MAX,
        (TopK::Unsaid, false) => 1,
    };
    let until = shared.until();
    let prompts = shared.prompts(&model, &inputs, until).await?;
    drop((share, inputs));
    let cut = (0..prompts.len()).filter(|at| prompts[*at].is_cut).collect::<Vec<_>>();
    if let (Some(first), false) = (cut.first(), truncate) {
        let message =
            format!("input {first}, from 0, has more tokens than the model reads; `truncate: true` cuts it");
        return Err(Refusal::unprocessable(message));
    }
    let rows = shared.ask(&model, prompts, until).await?;
    shared.metrics.truncated.inc_by(cut.len() as u64);
    let labels = model.prepared.labels();
    let scores = rows.iter().map(|row| scores(labels, row, top)).collect::<Vec<_>>();
    let mut response = Json(scores).into_response();
    response.headers_mut().insert(LOADS, model.loads().into());
    if !cut.is_empty() {
        response.headers_mut().insert(HeaderName::from_static("x-truncated-inputs"), numbers(&cut));
    }
    Ok(response)
}

/// As many as a header has room for.
fn numbers(cut: &[usize]) -> HeaderValue {
    const MOST: usize = 500;
    let mut numbers = cut.iter().take(MOST).map(usize::to_string).collect::<Vec<_>>().join(",");
    if cut.len() > MOST {
        numbers.push_str(",...");
    }
    // Digits, commas and dots.
    HeaderValue::from_str(&numbers).unwrap_or(HeaderValue::from_static(""))
}

/// The most probable labels, the first of equals first.
fn scores<'m>(labels: &'m LabelMap, row: &[f32], top: usize) -> Vec<Score<'m>> {
    let all = labels.labels_by_class().zip(row).map(|(label, score)| Score { label, score: *score });
    let mut all = all.collect::<Vec<_>>();
    all.sort_by(|a, b| b.score.total_cmp(&a.score));
    all.truncate(top);
    all
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizeRequest {
    inputs: Inputs,
    /// Which of the models, from 0.
    #[serde(default)]
    model: usize,
}

async fn tokenize(State(shared): State<Arc<Shared>>, body: Body) -> Result<Response, Refusal> {
    let Read { bytes, share: _share } = shared.read(body).await?;
    let model = shared.model()?;
    let TokenizeRequest { inputs: Inputs(inputs), model: number } = parse(&bytes)?;
    drop(bytes);
    shared.check_count(inputs.len())?;
    let mut tokenizers = model.prepared.tokenizers();
    let count = tokenizers.len();
    let tokenizer = tokenizers.nth(number);
    let tokenizer =
        tokenizer.ok_or_else(|| Refusal::unprocessable(format!("model: {number} of {count}, from 0")))?;
    let pieces = || inputs.iter().map(|text| Ok(tokenizer.pieces(text)?)).collect::<Result<Vec<_>, _>>();
    let pieces = shared.tokenized(&inputs, pieces, shared.until()).await?;
    Ok(Json(pieces).into_response())
}

async fn info(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    let model = shared.model()?;
    let (prepared, options) = (&model.prepared, &shared.options);
    let models = prepared.models().zip(&model.runs).enumerate().map(|(at, ((config, share), run))| {
        json!({
            "run": file_name(run),
            "checkpoint": model.checkpoints[at],
            "share": share,
            "layers": config.bert.num_hidden_layers,
            "hidden_size": config.bert.hidden_size,
            "parameters": config.num_parameters(),
            "max_length": config.max_length,
            "mask": config.mask,
            "lengths": prepared.lengths(at).iter().collect::<Vec<_>>(),
        })
    });
    let replicas = &shared.served.replicas;
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "labels": prepared.labels().labels_by_class().collect::<Vec<_>>(),
        "models": models.collect::<Vec<_>>(),
        "loads": model.loads(),
        "loaded": model.loaded.to_rfc3339(),
        "backend": replicas.backend().to_string(),
        "device": replicas.device_kind(),
        "replicas": replicas.count(),
        "batch_sizes": prepared.sizes().collect::<Vec<_>>(),
        "limits": {
            "body_bytes": options.max_body,
            "table_bytes": options.max_table,
            "inputs": options.max_inputs,
            "queue": options.max_queue,
            "seconds": options.time_out.as_secs_f64(),
        },
    });
    Ok(Json(info).into_response())
}

async fn health(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    if shared.control.is_stopped() {
        return Err(Refusal::unavailable("the server is about to end"));
    }
    let model = shared.model()?;
    if model.has_failed() {
        // They may work again, which nobody finds out whom this sends away.
        let until = shared.until();
        let prompts = shared.prompts(&model, &[String::new()], until).await?;
        let answer = shared.ask(&model, prompts, until).await;
        answer.map_err(|_| Refusal::unavailable("the devices have failed; the server's log says why"))?;
    }
    Ok(Json(json!({ "status": "ready" })).into_response())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, KIND)], shared.metrics.text(shared.queue.len()))
}

async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

/// A JSON object as it is expected.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Refusal::bad_request(format!("the body is not UTF-8 from byte {} on", error.valid_up_to()))
    })?;
    let other =
        |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok() && !text.trim_start().starts_with('{');
    serde_json::from_str(text).map_err(|error| match error.classify() {
        _ if other(text) => Refusal::unprocessable("expected an object with `inputs`"),
        Category::Data => Refusal::unprocessable(told(&error)),
        _ => Refusal::bad_request(format!("the body is no JSON: {error}")),
    })
}

/// In words that aren't Rust's.
fn told(error: &serde_json::Error) -> String {
    let names = [
        ("a nonzero usize", "a whole number of 1 or more"),
        ("usize", "a whole number"),
        ("struct Parameters", "an object"),
    ];
    names.into_iter().fold(error.to_string(), |told, (name, word)| told.replace(name, word))
}
