//! What went wrong with a bucket, in one line that says what to do. Nothing that a server wrote is repeated, but for
//! what has the form of a name: it may have put a token into its answer.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::path::Path;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

const LOGIN: &str = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a \
                     service account's key";

/// Whether what wasn't found is the bucket.
pub fn lacks_bucket(error: &Error) -> bool {
    Answer::of(error).text.contains("NoSuchBucket")
}

/// Whether a server has answered.
pub fn is_answer(error: &Error) -> bool {
    Answer::of(error).status.is_some()
}

/// Whether another try may well be answered.
pub fn is_outage(error: &Error) -> bool {
    match Answer::of(error) {
        Answer { status: Some(status), .. } => matches!(status, 408 | 429 | 500..),
        Answer { transport, .. } => transport.is_some(),
    }
}

/// An error of the store of `bucket`.
pub fn told(error: &Error, bucket: &str) -> io::Error {
    let answer = Answer::of(error);
    let (kind, message) = match (answer.status, answer.transport) {
        (Some(404), _) if answer.text.contains("NoSuchBucket") => (
            ErrorKind::InvalidInput,
            format!(
                "there is no bucket `{bucket}` (404): check its name; `gcloud storage ls` lists those of your project"
            ),
        ),
        (Some(404), _) if matches!(error, Error::NotFound { .. }) => return no_file(),
        (Some(401), _) => (
            ErrorKind::PermissionDenied,
            format!("Cloud Storage doesn't take the token (401), which may have expired: {LOGIN}"),
        ),
        (Some(403), _) => (ErrorKind::PermissionDenied, answer.forbidden(bucket)),
        (Some(status @ (408 | 429 | 500..)), _) => (
            ErrorKind::Other,
            format!("Cloud Storage answered {status}, and did so again each time: try again later"),
        ),
        (Some(status), _) => {
            let code = answer.code().map_or_else(String::new, |code| format!(", {code}"));
            (ErrorKind::Other, format!("Cloud Storage answered {status}{code}"))
        }
        (None, _) if answer.text.contains("token request") => {
            let kind = if is_outage(error) { ErrorKind::NotConnected } else { ErrorKind::PermissionDenied };
            return no_credentials(Some(error), kind);
        }
        (None, Some(HttpErrorKind::Connect)) => {
            (ErrorKind::NotConnected, "can't connect to Cloud Storage: is there a network?".to_owned())
        }
        (None, Some(HttpErrorKind::Timeout)) => {
            (ErrorKind::TimedOut, "Cloud Storage didn't answer in time, and again each time".to_owned())
        }
        (None, Some(_)) => {
            (ErrorKind::Other, "the connection to Cloud Storage broke, and again each time".to_owned())
        }
        (None, None) if matches!(error, Error::InvalidPath { .. }) => (
            ErrorKind::InvalidInput,
            "a name there has an empty part, `.` or `..` between slashes, which can't be worked with"
                .to_owned(),
        ),
        (None, None) => (ErrorKind::Other, "Cloud Storage's answer was not understood".to_owned()),
    };
    io::Error::new(kind, message)
}

pub fn no_file() -> io::Error {
    io::Error::new(ErrorKind::NotFound, "there is no such file")
}

/// A file of credentials that can't be read, or doesn't hold any.
pub fn bad_credentials() -> io::Error {
    // In the order in which the store looks at them.
    let variables =
        ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"];
    let named = variables.iter().find_map(|name| Some((name, std::env::var_os(name)?)));
    let file = match &named {
        Some((name, path)) => format!("{}, which {name} names,", Path::new(path).display()),
        None => "what `gcloud auth application-default login` wrote".to_owned(),
    };
    let wrong = match named.is_some_and(|(_, path)| !Path::new(&path).exists()) {
        true => "isn't there",
        false => "can't be read, or is none of the kinds authorized_user and service_account",
    };
    io::Error::new(ErrorKind::InvalidInput, format!("Google's credentials can't be used: {file} {wrong}"))
}

/// No token: what was asked for one failed with `error`, or didn't answer in time.
pub fn no_credentials(error: Option<&Error>, kind: ErrorKind) -> io::Error {
    let answer = error.map(Answer::of);
    let message = match answer {
        Some(Answer { status: Some(status @ (400 | 401)), .. }) => {
            format!(
                "Google's credentials are refused ({status}), since they have expired or were revoked: {LOGIN}"
            )
        }
        Some(Answer { status: Some(404), .. }) => {
            format!(
                "this VM has no service account, which would be its credentials for Google Cloud: {LOGIN}"
            )
        }
        // Whether tries or their time run out first is chance: their pauses are random.
        Some(_) | None => {
            format!("there are no credentials for Google Cloud, or Google was not reached: {LOGIN}")
        }
    };
    io::Error::new(kind, message)
}

/// What can be known of an answer, or of there being none.
struct Answer {
    status: Option<u16>,
    transport: Option<HttpErrorKind>,
    /// All that object_store has to say: never to be shown.
    text: String,
}

impl Answer {
    fn of(error: &Error) -> Self {
        let mut text = error.to_string();
        let mut transport = None;
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}\n{error}");
            transport = transport.or_else(|| error.downcast_ref::<HttpError>().map(HttpError::kind));
            cause = error.source();
        }
        let status = text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)?.parse().ok());
        Self { status, transport, text }
    }

    /// Google's word for the error, such as `InvalidArgument`.
    fn code(&self) -> Option<&str> {
        let code = self.text.split_once("<Code>")?.1.split_once("</Code>")?.0;
        (code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_alphabetic())).then_some(code)
    }

    /// Who may not do what, and what to give them.
    fn forbidden(&self, bucket: &str) -> String {
        let (before, after) = self.text.split_once(" does not have ").unwrap_or_default();
        let is_address = |word: &&str| {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte);
            word.len() <= 120
                && word.bytes().filter(|byte| *byte == b'@').count() == 1
                && word.bytes().all(sound)
        };
        let is_permission = |word: &&str| {
            let sound = |byte: u8| byte.is_ascii_alphabetic() || byte == b'.';
            word.len() <= 60 && word.starts_with("storage.") && word.bytes().all(sound)
        };
        let who = before.rsplit([' ', '>', '\n']).next().filter(is_address);
        let permission = after.split(' ').next().filter(is_permission);
        let member = match who {
            Some(who) if who.ends_with("gserviceaccount.com") => format!("serviceAccount:{who}"),
            Some(who) => format!("user:{who}"),
            None => "serviceAccount:ACCOUNT".to_owned(),
        };
        format!(
            "{} may not do that{} (403): give the role by `gcloud storage buckets add-iam-policy-binding gs://{bucket} \
             --member={member} --role=roles/storage.objectUser`",
            who.unwrap_or("the account"),
            permission.map_or_else(String::new, |permission| format!(", {permission}")),
        )
    }
}
