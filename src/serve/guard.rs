//! Who may ask: by the name that the server is called by, the page that a request comes from, and its key.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN,
    VARY, WWW_AUTHENTICATE,
};
use hyper::{HeaderMap, Method, StatusCode};

use super::refusal::Refusal;
use super::rest::Rest;
use super::{Options, Shared, rounded};

/// Nothing but what comes from here itself is loaded or asked, and no other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(&str, &str); 5] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// Answers that a page elsewhere may read.
const EXPOSED: &str =
    "x-model-loads, x-truncated-inputs, x-rows, x-columns, x-skipped-rows, x-rows-without-text, retry-after";

/// The way of every request: looked at, answered, counted and logged, never with what was sent.
pub(super) async fn watch(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut told = Told {
        shared: shared.clone(),
        method: method(request.method()),
        route: route(&request),
        started: Instant::now(),
        status: None,
    };
    let origin = allowed_origin(&shared.options, request.headers());
    let mut response = match look(&shared, &request, origin.as_ref()) {
        Ok(None) => answered(request, next).await,
        Ok(Some(response)) => response,
        Err(refusal) => {
            Rest::of(request).1.read().await;
            refuse(refusal)
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !shared.options.allowed_origins.is_empty() {
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    if let Some(origin) = origin {
        headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    if shared.control.is_stopped() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    told.status = Some(response.status());
    response
}

/// By what it was sent to. What that hasn't read of a request that it refuses is read before it is told.
async fn answered(request: Request, next: Next) -> Response {
    let (request, rest) = Rest::of(request);
    let response = next.run(request).await;
    let is_late = response.status() == StatusCode::REQUEST_TIMEOUT;
    if (response.status().is_client_error() || response.status().is_server_error()) && !is_late {
        rest.read().await;
    }
    response
}

/// A request, counted and logged at its end, be it that its client has gone.
struct Told {
    shared: Arc<Shared>,
    method: &'static str,
    route: &'static str,
    started: Instant,
    status: Option<StatusCode>,
}

impl Drop for Told {
    fn drop(&mut self) {
        /// As nginx says of a client that has closed the connection.
        const GONE: u16 = 499;
        let status = self.status.map_or(GONE, |status| status.as_u16());
        let after = self.started.elapsed();
        self.shared.metrics.answered(self.route, status, after);
        let (method, milliseconds) = (self.method, rounded(after.as_secs_f64() * 1e3));
        tracing::info!(method, route = self.route, status, milliseconds, "request");
    }
}

/// One that there is: others are what was sent.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A path that there is: what else was asked for may be anything.
fn route(request: &Request) -> &'static str {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    super::routes::ALL.into_iter().find(|route| *route == path).unwrap_or("none")
}

/// `None` for a request that goes on.
fn look(
    shared: &Shared,
    request: &Request,
    origin: Option<&HeaderValue>,
) -> Result<Option<Response>, Refusal> {
    let (headers, options) = (request.headers(), &shared.options);
    let host = host(request).ok_or_else(|| Refusal::bad_request("there is no Host header"))?;
    if !is_known(options, name_of(host)) {
        let message = "this server isn't called so; --allow-host NAME says that it is";
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, message));
    }
    if headers.contains_key(ORIGIN) && origin.is_none() && !is_own(headers, host) {
        let message = "pages of this origin may not ask; --allow-origin ORIGIN says that they may";
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    if request.method() == Method::OPTIONS && origin.is_some() {
        return Ok(Some(preflight()));
    }
    match &shared.keys {
        Some(keys) if request.uri().path() != "/health" && !keys.admit(headers) => {
            let message = "a key is needed: Authorization: Bearer KEY, or Basic with the key as the password";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, message))
        }
        _ => Ok(None),
    }
}

fn refuse(refusal: Refusal) -> Response {
    let is_unauthorized = refusal.status == StatusCode::UNAUTHORIZED;
    let mut response = refusal.into_response();
    if is_unauthorized {
        // Browsers ask for it then.
        let basic =
            HeaderValue::from_static("Basic realm=\"bert-xla: the key is the password\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, basic);
    }
    response
}

/// What a browser asks before a page elsewhere may send.
fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The origin of a page elsewhere that may ask, as it is to be answered.
fn allowed_origin(options: &Options, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let is_allowed =
        |allowed: &String| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    options.allowed_origins.iter().any(is_allowed).then(|| origin.clone())
}

/// Whether a page comes from here: its origin has the name and port that the server was asked by.
fn is_own(headers: &HeaderMap, host: &str) -> bool {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let authority = origin.and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// What the server was asked by: one `Host` header, or an absolute address.
fn host(request: &Request) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    }
}

/// Without the port, and without the dot of a name that no other is searched for by.
fn name_of(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    // An address without brackets has more colons.
    let name = host.rsplit_once(':').filter(|(name, port)| is_port(port) && !name.contains(':'));
    let name = name.map_or(host, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

/// A page elsewhere can have its own name stand for this machine's address, but not an address, nor these names.
fn is_known(options: &Options, name: &str) -> bool {
    let is_address = name.parse::<IpAddr>().is_ok() || name.parse::<Ipv6Addr>().is_ok();
    is_address
        || name.eq_ignore_ascii_case("localhost")
        || options.allowed_hosts.iter().any(|allowed| name_of(allowed).eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_ports() {
        let names = ["localhost:8080", "[::1]:80", "a.example", "127.0.0.1:1", "[fe80::1]"].map(name_of);
        assert_eq!(names, ["localhost", "::1", "a.example", "127.0.0.1", "fe80::1"]);
        let names = ["a.example.:80", "a.example.", "a:", "::1", "a:b"].map(name_of);
        assert_eq!(names, ["a.example", "a.example", "a", "::1", "a:b"]);
    }
}
