//! Reads of a survey: each with a deadline, a limit of its size, and the right that it needs.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header::ACCEPT, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Limited};
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    cli::doctor::finding::{Reading, Right},
    cluster::unreachable::explained,
    telemetry::{error_chain::error_chain, printable::cut},
};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The objects in a page of a list.
const PAGE: u32 = 500;
/// The largest response that is read. A page of Pods may be larger, and is then asked for again in
/// smaller pages.
const MAX_BYTES: usize = 32 << 20;
/// The most objects of a list.
const MAX_OBJECTS: usize = 50_000;
/// The most characters of a message of the API server.
const MAX_MESSAGE: usize = 300;
const ONE_METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
pub(crate) const JSON: &str = "application/json";

/// Reads from an API server.
#[derive(Clone)]
pub(crate) struct Reader(Client);

/// A list to read.
pub(crate) struct List<'a> {
    /// The path.
    pub(crate) path: &'a str,
    /// The parameters, such as a selector.
    pub(crate) query: &'a str,
    /// Whether the metadata are enough.
    pub(crate) metadata: bool,
    /// The right that the list needs.
    pub(crate) right: Right,
}

/// The reason why a call has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The API server returned this status and message.
    Status(StatusCode, String),
    /// The response is too large.
    TooLarge,
    /// No response came, or none that can be read.
    Failed(String),
}

impl CallError {
    fn reading<T>(self, right: Right) -> Reading<T> {
        match self {
            Self::Status(StatusCode::FORBIDDEN, _) => Reading::Forbidden(right),
            other => Reading::Failed(format!("{right}: {}", other.text())),
        }
    }

    /// Returns the error for people.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Status(status, message) => format!("{}: {message}", status.as_u16()),
            Self::TooLarge => format!("the response has more than {} MiB", MAX_BYTES >> 20),
            Self::Failed(error) => error,
        }
    }
}

impl Reader {
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Returns an object, or `None` if it doesn't exist.
    pub(crate) async fn get(&self, path: &str, right: Right) -> Reading<Option<Value>> {
        self.get_as(path, JSON, right).await
    }

    /// Returns the metadata of an object, or `None` if it doesn't exist.
    pub(crate) async fn get_metadata(&self, path: &str, right: Right) -> Reading<Option<Value>> {
        self.get_as(path, ONE_METADATA, right).await
    }

    async fn get_as(&self, path: &str, accept: &str, right: Right) -> Reading<Option<Value>> {
        let called = self.call(Method::GET, path, accept, None).await;
        match called.and_then(|(_, body)| parse(&body)) {
            Ok(value) => Reading::Read(Some(value)),
            Err(CallError::Status(StatusCode::NOT_FOUND, _)) => Reading::Read(None),
            Err(error) => error.reading(right),
        }
    }

    /// Returns a text.
    pub(crate) async fn text(&self, path: &str, right: Right) -> Reading<String> {
        match self.call(Method::GET, path, "*/*", None).await {
            Ok((_, body)) => Reading::Read(String::from_utf8_lossy(&body).into_owned()),
            Err(error) => error.reading(right),
        }
    }

    /// Returns what `keep` returns of all objects of a list; `None` if there is no such kind.
    pub(crate) async fn list<T>(
        &self,
        list: List<'_>,
        mut keep: impl FnMut(&Value) -> Option<T>,
    ) -> Reading<Option<Vec<T>>> {
        let accept = if list.metadata { METADATA } else { JSON };
        let (mut kept, mut objects) = (Vec::new(), 0);
        let (mut limit, mut token) = (PAGE, String::new());
        loop {
            let mut path = format!("{}?limit={limit}", list.path);
            for parameter in [list.query, &token].into_iter().filter(|it| !it.is_empty()) {
                path = format!("{path}&{parameter}");
            }
            let page = self.call(Method::GET, &path, accept, None).await;
            let page = match page.and_then(|(_, body)| parse(&body)) {
                Ok(page) => page,
                Err(CallError::TooLarge) if limit > 1 => {
                    limit /= 4;
                    limit = limit.max(1);
                    continue;
                }
                Err(CallError::Status(StatusCode::NOT_FOUND, _)) => return Reading::Read(None),
                Err(error) => return error.reading(list.right),
            };
            let items = page["items"].as_array().map_or(&[][..], Vec::as_slice);
            objects += items.len();
            kept.extend(items.iter().filter_map(&mut keep));
            match page["metadata"]["continue"]
                .as_str()
                .filter(|it| !it.is_empty())
            {
                Some(_) if objects >= MAX_OBJECTS => {
                    let right = list.right;
                    return Reading::Failed(format!("{right}: more than {MAX_OBJECTS} objects"));
                }
                Some(next) => token = format!("continue={}", encoded(next)),
                None => return Reading::Read(Some(kept)),
            }
        }
    }

    /// Posts an object, and returns the response.
    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        let (_, body) = self.call(Method::POST, path, JSON, Some(object)).await?;
        parse(&body)
    }

    /// Makes one call, and returns the headers and the body of a success.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        object: Option<&Value>,
    ) -> Result<(HeaderMap, Bytes), CallError> {
        let body = object.map_or_else(Vec::new, |object| object.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, JSON)
            .body(Body::from(body))
            .map_err(|error| CallError::Failed(error.to_string()))?;
        let send = async {
            let response = self.0.send(request).await;
            let response = response.map_err(|error| CallError::Failed(explained(&error)))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BYTES).collect().await;
            let body = body.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    CallError::TooLarge
                } else {
                    CallError::Failed(error_chain(&*error))
                }
            })?;
            Ok((head, body.to_bytes()))
        };
        let Ok(response) = timeout(TIMEOUT, send).await else {
            let seconds = TIMEOUT.as_secs();
            return Err(CallError::Failed(format!("no response within {seconds} s")));
        };
        let (head, body) = response?;
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let status: Option<Value> = serde_json::from_slice(&body).ok();
        let message = status.and_then(|it| Some(it["message"].as_str()?.to_owned()));
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let message = cut(message.trim(), MAX_MESSAGE).into_owned();
        Err(CallError::Status(head.status, message))
    }
}

fn parse(body: &[u8]) -> Result<Value, CallError> {
    serde_json::from_slice(body)
        .map_err(|_| CallError::Failed("the response is not JSON".to_owned()))
}

/// Returns a text as a value of a query. Tokens to continue a list are base64.
fn encoded(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    escaped.collect()
}
