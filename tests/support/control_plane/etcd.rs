//! The contents of etcd, over the JSON that etcd speaks beside gRPC: read once when a control plane
//! is ready, and restored when a test has ended, so that the next test finds what the first one
//! found.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// etcd takes at most 128 operations in a transaction.
const BATCH: usize = 100;
/// The API server itself writes these all the time.
const OF_THE_API_SERVER: [&str; 2] = ["/registry/leases/kube-system/", "/registry/masterleases/"];

/// An object as etcd has it, in base64.
struct Stored {
    value: Value,
    revision: Value,
}

/// All that the API server has stored, by its key in base64.
#[derive(Default)]
pub(super) struct Contents(HashMap<String, Stored>);

impl Contents {
    pub(super) async fn read(etcd: &str) -> Self {
        let answer = range(etcd, false).await;
        let stored = pairs(&answer).map(|pair| {
            let stored = Stored {
                value: pair["value"].clone(),
                revision: pair["mod_revision"].clone(),
            };
            (text(&pair["key"]), stored)
        });
        Self(stored.collect())
    }

    /// Deletes what is new and puts back what was changed or deleted. Returns how many keys that were.
    pub(super) async fn restore(&mut self, etcd: &str) -> usize {
        let answer = range(etcd, true).await;
        let mut now: HashMap<String, Value> = pairs(&answer)
            .map(|pair| (text(&pair["key"]), pair["mod_revision"].clone()))
            .collect();
        now.retain(|key, _| !is_of_the_api_server(key));
        let new = now.keys().filter(|key| !self.0.contains_key(*key));
        let mut operations: Vec<Value> = new
            .map(|key| json!({"requestDeleteRange": {"key": key}}))
            .collect();
        let mut put = Vec::new();
        for (key, stored) in &self.0 {
            if now.get(key) != Some(&stored.revision) && !is_of_the_api_server(key) {
                put.push(key.clone());
                operations.push(json!({"requestPut": {"key": key, "value": stored.value}}));
            }
        }
        for batch in operations.chunks(BATCH) {
            let answer = post(etcd, "txn", &json!({"success": batch})).await;
            assert_eq!(answer["succeeded"], true, "{answer}");
        }
        if !put.is_empty() {
            // They have new revisions now.
            let answer = range(etcd, true).await;
            for pair in pairs(&answer) {
                let stored = self.0.get_mut(&text(&pair["key"]));
                if let Some(stored) = stored {
                    stored.revision = pair["mod_revision"].clone();
                }
            }
        }
        operations.len()
    }
}

fn is_of_the_api_server(key: &str) -> bool {
    let key = BASE64_STANDARD.decode(key).unwrap();
    OF_THE_API_SERVER
        .iter()
        .any(|prefix| key.starts_with(prefix.as_bytes()))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn pairs(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["kvs"].as_array().into_iter().flatten()
}

async fn range(etcd: &str, keys_only: bool) -> Value {
    let [from, to] = ["/registry/", "/registry0"].map(|key| BASE64_STANDARD.encode(key));
    let range = json!({"key": from, "range_end": to, "keys_only": keys_only});
    post(etcd, "range", &range).await
}

async fn post(etcd: &str, call: &str, body: &Value) -> Value {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = http::Request::post(format!("{etcd}/v3/kv/{call}"))
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap_or_else(|error| {
        panic!(
            "{call} of etcd: {error}: {}",
            String::from_utf8_lossy(&body)
        )
    })
}
