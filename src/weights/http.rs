//! Requests to the Hub: whom the credentials are for, where a redirect may lead, how long to wait and when to ask again.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body, Timeout};

use super::HubError;
use crate::storage::FileError;

const MAX_REDIRECTS: usize = 10;
/// In a row, with nothing gained.
const MAX_RETRIES: u32 = 5;
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The longest wish of a server's that is heeded: the Hub counts requests by 5 minutes.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// How long the network is waited for. A download as a whole may take as long as it takes.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes.
    pub read: Duration,
    /// Before what failed is tried again; the next time twice as long, and so on, or as long as the server asks for.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), read: seconds(30), retry: Duration::from_millis(500) }
    }
}

/// Why nothing came of a request. No message holds an address: its user may have a password, and its query may be
/// signed, which is as good as one.
pub(super) enum Failure {
    /// The Hub itself answered with this status.
    Refused(u16),
    /// What another try would not change.
    Lasting(String),
    Passing(Passing),
    File(FileError),
}

/// What may be over at the next try.
#[derive(Default)]
pub(super) struct Passing {
    pub message: String,
    /// The server's wish.
    pub retry_after: Option<Duration>,
    /// Whether there is now more than there was before.
    pub gained: bool,
}

impl From<Passing> for Failure {
    fn from(passing: Passing) -> Self {
        Self::Passing(passing)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    /// `Bearer` and the token, for the endpoint's own host alone.
    authorization: Option<HeaderValue>,
    timeouts: Timeouts,
    pub progress: bool,
}

impl Client {
    /// With `progress`, it says on stderr what takes time.
    pub fn new(
        endpoint: &str,
        token: Option<&str>,
        timeouts: Timeouts,
        progress: bool,
    ) -> Result<Self, HubError> {
        let setting = |variable, expected| HubError::Setting { variable, expected };
        let endpoint = endpoint
            .parse::<Uri>()
            .ok()
            .filter(|url| matches!(url.scheme_str(), Some("https" | "http")) && url.query().is_none())
            .ok_or_else(|| setting("HF_ENDPOINT", "the URL of a Hub, such as https://huggingface.co"))?;
        let authorization = token
            .map(|token| HeaderValue::from_str(&format!("Bearer {token}")))
            .transpose()
            .map_err(|_| setting("HF_TOKEN", "a token of letters, digits and `_`"))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // `send` follows them: it has to see what they say, and to choose what the next host gets.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.read))
            .timeout_per_read(Some(timeouts.read))
            .timeout_per_write(Some(timeouts.read));
        Ok(Self { agent: config.build().into(), endpoint, authorization, timeouts, progress })
    }

    /// The endpoint as it may be shown.
    pub fn endpoint(&self) -> String {
        let scheme = self.endpoint.scheme_str().unwrap_or_default();
        format!("{scheme}://{}{}", host(&self.endpoint), self.endpoint.path().trim_end_matches('/'))
    }

    /// Asks for what is at `path` of the endpoint, from the byte `start` on. An answer is a success, or a refusal of
    /// that range.
    pub fn get(&self, path: &str, start: u64) -> Result<Response<Body>, Failure> {
        self.send(Method::GET, path, start, |_| false)
    }

    /// Asks about what is at `path` of the endpoint. The answer is the first that has the header `wanted`, be it a
    /// redirect, or the last.
    pub fn head(&self, path: &str, wanted: &str) -> Result<Response<Body>, Failure> {
        self.send(Method::HEAD, path, 0, |response| response.headers().contains_key(wanted))
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        start: u64,
        is_enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let endpoint = self.endpoint.to_string();
        let url = format!("{}/{path}", endpoint.trim_end_matches('/'));
        let mut url = url.parse::<Uri>().map_err(|_| Failure::Lasting("its name makes no URL".to_owned()))?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(&method, &url, start)?;
            if !response.status().is_redirection() {
                return self.check(response, &url);
            }
            if is_enough(&response) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let target = redirect(&url, location.unwrap_or_default());
            url = target.map_err(|message| Failure::Lasting(format!("{}: {message}", host(&url))))?;
        }
        Err(Failure::Lasting(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn exchange(&self, method: &Method, url: &Uri, start: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        // Sizes and ranges are those of the file, not of a compressed form of it.
        let mut request = Request::builder().method(method).header(ACCEPT_ENCODING, "identity");
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        if same_origin(&url, &self.endpoint) {
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            // With the user and the password, if there are any.
            let mut parts = url.into_parts();
            parts.authority = self.endpoint.authority().cloned();
            url = Uri::from_parts(parts).map_err(|error| Failure::Lasting(error.to_string()))?;
        }
        let place = host(&url);
        let request = request.uri(url).body(()).map_err(|error| Failure::Lasting(error.to_string()))?;
        self.agent.run(request).map_err(|error| self.failure(error, &place))
    }

    fn check(&self, response: Response<Body>, url: &Uri) -> Result<Response<Body>, Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let may_pass = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        // The address of a store is good for some time only: the Hub will give another one.
        if !may_pass && same_origin(url, &self.endpoint) {
            return Err(Failure::Refused(status.as_u16()));
        }
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let message = format!("{}: answered {}", host(url), status.as_u16());
        Err(Passing { message, retry_after: seconds.map(Duration::from_secs), gained: false }.into())
    }

    /// What an error of the connection to `place` is, or of the body that came from there.
    pub fn failure(&self, error: impl Into<ureq::Error>, place: &str) -> Failure {
        use ureq::Error;
        let Timeouts { connect, read, .. } = self.timeouts;
        let message = match error.into() {
            Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                format!("no connection within {connect:?}")
            }
            Error::Timeout(_) => format!("nothing came for {read:?}"),
            Error::Io(error) => error.to_string(),
            // It holds the address.
            Error::BadUri(_) => return Failure::Lasting("a URL without a host".to_owned()),
            error @ (Error::Rustls(_) | Error::Tls(_) | Error::TlsRequired | Error::InvalidProxyUrl) => {
                return Failure::Lasting(format!("{place}: {error}"));
            }
            error => error.to_string(),
        };
        Passing { message: format!("{place}: {message}"), ..Passing::default() }.into()
    }

    /// Tries until it works, or fails in a way that lasts, or has failed too often.
    pub fn retry<T>(
        &self,
        subject: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut retries = 0;
        loop {
            let passing = match attempt() {
                Err(Failure::Passing(passing)) => passing,
                result => return result,
            };
            if passing.gained {
                retries = 0;
            }
            if retries == MAX_RETRIES {
                return Err(passing.into());
            }
            let backoff = self.timeouts.retry * 2u32.pow(retries);
            let wish = passing.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
            let wait = backoff.min(MAX_BACKOFF).max(wish);
            self.note(&format!("{subject}: {}; trying again in {wait:?}", passing.message));
            thread::sleep(wait);
            retries += 1;
        }
    }

    /// Says what takes time; it is no failure if nobody reads that.
    pub fn note(&self, text: &str) {
        if self.progress {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

/// The host of a URL and its port, as they may be shown.
pub(super) fn host(url: &Uri) -> String {
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host().unwrap_or_default())
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port =
        |url: &Uri| url.port_u16().or(if url.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |url: &Uri| url.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// Where an answer from `from` sends us: an address, or a path of the same host.
fn redirect(from: &Uri, location: &str) -> Result<Uri, &'static str> {
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let target = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => location.to_owned(),
    };
    let target = target.parse::<Uri>().map_err(|_| "redirects to what is no URL")?;
    match (scheme, target.scheme_str()) {
        (_, Some("https")) | ("http", Some("http")) => Ok(target),
        ("https", Some("http")) => Err("redirects from https to http, which anyone on the way could read"),
        _ => Err("redirects to what is not an http or https URL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_encrypted() {
        let target = |from: &'static str, location| redirect(&Uri::from_static(from), location);
        let from = "https://hub.example:8443/a/b?c";
        for (location, expected) in [
            ("/d?e=f", "https://hub.example:8443/d?e=f"),
            ("//store.example/d", "https://store.example/d"),
            ("https://store.example/d?sig=x", "https://store.example/d?sig=x"),
        ] {
            assert_eq!(target(from, location).unwrap(), expected);
        }
        assert_eq!(target("http://127.0.0.1/", "http://127.0.0.2/d").unwrap(), "http://127.0.0.2/d");
        assert_eq!(target("http://127.0.0.1/", "https://hub.example/").unwrap(), "https://hub.example/");
        for (location, part) in [
            ("http://hub.example:8443/d", "from https to http"),
            ("HTTP://hub.example:8443/d", "from https to http"),
            ("ftp://hub.example/d", "not an http or https URL"),
            ("file:///etc/passwd", "redirects to what"),
            ("", "redirects to what"),
        ] {
            let error = target(from, location).unwrap_err();
            assert!(error.contains(part), "{location}: {error}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a, b| same_origin(&Uri::from_static(a), &Uri::from_static(b));
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(same("http://user:password@hub.example", "http://hub.example:80/"));
        assert!(!same("https://hub.example", "http://hub.example"));
        assert!(!same("https://hub.example", "https://hub.example:8443"));
        assert!(!same("https://hub.example", "https://hub.example.evil.example"));
        assert!(!same("https://hub.example", "https://cdn.hub.example"));
    }
}
