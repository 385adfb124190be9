//! Notices of a Google Cloud VM that it is about to go: its metadata server tells of preemption and maintenance.

use std::thread;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::Agent;

use super::Stop;
use crate::pjrt::Backend;

/// A value of the VM's.
#[derive(Clone, Copy)]
struct Notice {
    name: &'static str,
    /// The reason to stop that a value is, if it is one.
    reason: fn(&str) -> Option<String>,
    /// Whether it is one, too, if it was there from the start.
    at_start: bool,
}

const NOTICES: [Notice; 2] = [
    Notice {
        name: "preempted",
        reason: |value| (value == "TRUE").then(|| "the VM is preempted".to_owned()),
        at_start: true,
    },
    // It is told up to an hour before: a run that is started again in between is to go on.
    Notice {
        name: "maintenance-event",
        reason: |value| {
            (value != "NONE" && !value.is_empty()).then(|| format!("maintenance of the VM's host: {value}"))
        },
        at_start: false,
    },
];

/// How a metadata server is asked.
#[derive(Clone, Copy)]
struct Pace {
    /// How long the server holds its answer back, in seconds, while nothing changes.
    hold: u64,
    /// For a connection; and for an answer, beyond `hold`.
    patience: Duration,
    /// Before it is asked again; after each failure in a row, twice as long.
    pause: Duration,
    longest_pause: Duration,
}

const PACE: Pace = Pace {
    hold: 60,
    patience: Duration::from_secs(10),
    pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
};

/// The metadata server to watch: the one that `GCE_METADATA_HOST` names, as in Google's own libraries, or else the VM's
/// where it has TPUs.
pub fn host(backend: Backend) -> Option<String> {
    let named = std::env::var("GCE_METADATA_HOST").ok().filter(|host| !host.is_empty());
    named.or_else(|| (backend == Backend::Tpu).then(|| "metadata.google.internal".to_owned()))
}

/// Asks to stop when the metadata server at `host` (a name or address, with a port if need be) tells that the VM is
/// preempted, or that its host is about to go into maintenance, unless that was known before. A server that can't be reached, or doesn't know, is asked again, in
/// silence. This goes on in threads that end with the process.
pub fn watch(stop: &Stop, host: &str) {
    watch_at(stop, host, PACE);
}

fn watch_at(stop: &Stop, host: &str, pace: Pace) {
    for notice in NOTICES {
        let stop = stop.clone();
        let url = format!("http://{host}/computeMetadata/v1/instance/{}", notice.name);
        // Where there is no room for a thread, there is no notice, as where there is no server.
        let _ = thread::Builder::new().spawn(move || stop.ask(wait_for(&url, notice, pace)));
    }
}

/// Blocks until the value at `url` is a reason to stop.
fn wait_for(url: &str, notice: Notice, pace: Pace) -> String {
    let answer = Duration::from_secs(pace.hold) + pace.patience;
    let config = Agent::config_builder()
        // It is the VM's own.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .timeout_resolve(Some(pace.patience))
        .timeout_connect(Some(pace.patience))
        .timeout_recv_response(Some(answer))
        .timeout_recv_body(Some(pace.patience));
    let agent = config.build().into();
    // Of no value, so that the first is told at once.
    let mut etag = NO_ETAG.to_owned();
    let mut pause = pace.pause;
    let mut last = None;
    loop {
        if let Some((value, of)) = next(&agent, url, &etag, pace.hold) {
            let is_news = last.as_ref().map_or(notice.at_start, |last| *last != value);
            if let Some(reason) = (notice.reason)(&value).filter(|_| is_news) {
                return reason;
            }
            last = Some(value);
            (etag, pause) = (of, pace.pause);
        }
        // After an answer too: a server may not hold it back.
        thread::sleep(pause);
        pause = (2 * pause).min(pace.longest_pause);
    }
}

const NO_ETAG: &str = "0";

/// The value at `url` and its tag, once that is another than `etag`, or after `hold` seconds; `None` if it doesn't come.
fn next(agent: &Agent, url: &str, etag: &str, hold: u64) -> Option<(String, String)> {
    const FLAVOR: &str = "Metadata-Flavor";
    const GOOGLE: &str = "Google";
    /// Of a value; those that are known are words.
    const MOST_BYTES: u64 = 256;
    let etag = utf8_percent_encode(etag, NON_ALPHANUMERIC);
    let url = format!("{url}?wait_for_change=true&timeout_sec={hold}&last_etag={etag}");
    let mut response = agent.get(url).header(FLAVOR, GOOGLE).call().ok()?;
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    // Anyone may answer to a name; the server itself says so.
    if response.status() != 200 || header(FLAVOR) != Some(GOOGLE) {
        return None;
    }
    let etag = header("ETag").unwrap_or(NO_ETAG).to_owned();
    let value = response.body_mut().with_config().limit(MOST_BYTES).read_to_string().ok()?;
    let value = value.trim();
    value.bytes().all(|byte| byte.is_ascii_graphic()).then(|| (value.to_owned(), etag))
}

#[cfg(test)]
mod tests;
