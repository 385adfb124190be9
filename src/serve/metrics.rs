//! What is counted and timed, as Prometheus reads it.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::infer::Prompt;

/// The figures of a server.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    latency: Family<Route, Histogram, fn() -> Histogram>,
    texts: Counter,
    tokens: Counter,
    pub truncated: Counter,
    batch_rows: Histogram,
    batch_seconds: Histogram,
    reloads: Family<Reload, Counter>,
    pub connections: Gauge,
    queue: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reload {
    outcome: &'static str,
}

/// From a millisecond to half a minute.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("bert_xla"),
            requests: Family::default(),
            latency: Family::new_with_constructor(seconds),
            texts: Counter::default(),
            tokens: Counter::default(),
            truncated: Counter::default(),
            batch_rows: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
            batch_seconds: seconds(),
            reloads: Family::default(),
            connections: Gauge::default(),
            queue: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        let latency = "From a request's head to its answer's";
        registry.register_with_unit("request", latency, Unit::Seconds, metrics.latency.clone());
        registry.register("texts", "Texts that were computed", metrics.texts.clone());
        registry.register("tokens", "Their tokens, without padding", metrics.tokens.clone());
        let truncated = "Texts that are longer than the model reads";
        registry.register("truncated_texts", truncated, metrics.truncated.clone());
        registry.register("batch_texts", "Texts that were computed together", metrics.batch_rows.clone());
        let batch = "Time of computing them";
        registry.register_with_unit("batch", batch, Unit::Seconds, metrics.batch_seconds.clone());
        registry.register("reloads", "Loads of models after the first", metrics.reloads.clone());
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register("queue_texts", "Texts that wait for the devices", metrics.queue.clone());
        metrics
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, route: &'static str, status: u16, after: Duration) {
        self.requests.get_or_create(&Outcome { route, status }).inc();
        self.latency.get_or_create(&Route { route }).observe(after.as_secs_f64());
    }

    /// Texts were computed together.
    pub fn computed(&self, prompts: &[&Prompt], after: Duration) {
        self.texts.inc_by(prompts.len() as u64);
        self.tokens.inc_by(prompts.iter().map(|prompt| prompt.tokens() as u64).sum());
        self.batch_rows.observe(prompts.len() as f64);
        self.batch_seconds.observe(after.as_secs_f64());
    }

    /// Models were loaded anew, or couldn't be.
    pub fn reloaded(&self, is_done: bool) {
        self.reloads.get_or_create(&Reload { outcome: if is_done { "done" } else { "failed" } }).inc();
    }

    /// All of them as text, with `queue` texts waiting now.
    pub fn text(&self, queue: usize) -> String {
        self.queue.set(queue as i64);
        let mut text = String::new();
        // Strings take all that is written to them.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
