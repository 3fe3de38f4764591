//! HTTP/1.1 letter by letter, for tests in which the client is slow, wrong or hostile.

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A client's end of a connection.
pub struct Wire<S> {
    pub stream: S,
    received: Vec<u8>,
}

/// The server's answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    pub body: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// Sends bytes; the server may have closed the connection, which the next [`Self::answer`] then shows.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// The next answer, or nothing when the connection ends before there is a whole one.
    pub async fn answer(&mut self) -> Option<Answer> {
        let end_of_head = loop {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                break at + 4;
            }
            self.receive().await?;
        };
        let head = String::from_utf8_lossy(&self.received[..end_of_head]).to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        while self.received.len() < end_of_head + length {
            self.receive().await?;
        }
        let rest = self.received.split_off(end_of_head + length);
        let answer = std::mem::replace(&mut self.received, rest);
        Some(Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            body: String::from_utf8_lossy(&answer[end_of_head..]).into_owned(),
            head,
        })
    }

    /// Waits until the server closes the connection; it may not send anything more.
    pub async fn closed(&mut self) {
        assert!(
            self.receive().await.is_none(),
            "sent something more: {:?}",
            String::from_utf8_lossy(&self.received)
        );
    }

    async fn receive(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.received).await {
            Ok(1..) => Some(()),
            Ok(0) | Err(_) => None,
        }
    }
}

impl Answer {
    /// The review's `response`.
    pub fn response(&self) -> Value {
        let review: Value = serde_json::from_str(&self.body).unwrap();
        review["response"].clone()
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// A request as the API server sends it.
pub fn post(target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request = head(target, &format!("Content-Length: {}", body.len())).into_bytes();
    request.extend(body);
    request
}

/// A request's head with one more header.
pub fn head(target: &str, header: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\n{header}\r\n\r\n"
    )
}

/// A review of the creation of a Pod with one container of this image in the opted-in namespace.
pub fn review(uid: &str, image: &str) -> String {
    review_of(
        uid,
        &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": image}]}}),
    )
}

/// A review of the creation of this Pod in the opted-in namespace.
pub fn review_of(uid: &str, pod: &Value) -> String {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": uid, "operation": "CREATE", "namespace": super::in_process::NAMESPACE, "object": pod,
        "resource": {"group": "", "version": "v1", "resource": "pods"},
    }})
    .to_string()
}
