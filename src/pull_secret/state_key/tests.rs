//! Unit tests of `state_key`.

use std::{convert::Infallible, sync::Mutex};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::client::Body;

use super::*;
use crate::{
    cli::metrics::Metrics,
    process::{clock::settable::SettableClock, readiness::Readiness},
    telemetry::log::captured::Log,
};

/// A Secret behind an API server that refuses each write and quotes it, and what it quoted.
fn quoted() -> (KeySecret, Arc<Mutex<Vec<String>>>) {
    let quotes = Arc::new(Mutex::new(Vec::new()));
    let kept = quotes.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let kept = kept.clone();
        async move {
            let body = request.into_body().collect().await.expect("a body");
            let sent: Value = serde_json::from_slice(&body.to_bytes()).expect("JSON");
            let key = sent["data"]["current"].as_str().expect("a key").to_owned();
            let answer = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
                    "reason": "Invalid", "code": 422, "message": format!("no {key} here")});
            kept.lock().expect("a lock").push(key);
            let body = Full::<Bytes>::from(answer.to_string());
            Ok::<_, Infallible>(Response::builder().status(422).body(body).expect("one"))
        }
    });
    let secret = KeySecret::new(
        Client::new(service, "default"),
        Namespace::parse("here").expect("a namespace"),
        "x".to_owned(),
        StateKeys::default(),
        Arc::new(SettableClock::default()),
        Metrics::default().pull_secret,
    );
    (secret, quotes)
}

fn observe(secret: &KeySecret, content: Content) {
    secret.0.seen.send_modify(|seen| seen.content = content);
}

/// Returns the log of a minute's wait for the first key.
async fn log_of_waiting(secret: &KeySecret) -> Log {
    let log = Log::default();
    let _guard = log.start();
    let condition = Readiness::default().condition("state-key");
    let provide = secret.clone().provide(condition.clone());
    let minute = Duration::from_mins(1);
    assert!(tokio::time::timeout(minute, provide).await.is_err());
    assert!(!condition.holds());
    log
}

#[tokio::test(start_paused = true)]
async fn refusal_is_logged_once_and_without_the_key() {
    let (secret, quotes) = quoted();
    observe(&secret, Content::Absent);
    let log = log_of_waiting(&secret).await;
    let quotes = quotes.lock().expect("a lock");
    assert!(quotes.len() > 20, "{}", quotes.len());
    for quote in &*quotes {
        assert_eq!(BASE64_STANDARD.decode(quote).map(|key| key.len()), Ok(32));
        assert_eq!(log.count(quote), 0);
    }
    assert_eq!(log.count("writing the state key to Secret here/x"), 1);
    assert_eq!(log.count("no (key) here"), 1);
}

#[tokio::test(start_paused = true)]
async fn foreign_or_malformed_secret_is_logged_once() {
    for (content, what) in [
        (Content::Foreign, "Secret here/x lacks the label"),
        (Content::Malformed("why"), "holds no valid state key: why"),
    ] {
        let (secret, quotes) = quoted();
        observe(&secret, content);
        let log = log_of_waiting(&secret).await;
        assert!(quotes.lock().expect("a lock").is_empty(), "it was written");
        assert_eq!((log.count("WARN"), log.count(what)), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn leader_logs_a_foreign_secret_and_writes_nothing() {
    let (secret, quotes) = quoted();
    observe(&secret, Content::Foreign);
    let log = Log::default();
    let _guard = log.start();
    let term = Leadership::unlimited();
    let minute = Duration::from_mins(1);
    assert!(
        tokio::time::timeout(minute, secret.maintain(&term))
            .await
            .is_err()
    );
    assert_eq!(log.count("leaves it unchanged; delete it"), 1);
    assert!(quotes.lock().expect("a lock").is_empty());
    term.end();
    secret.maintain(&term).await;
}

#[test]
fn random_keys_differ() {
    let (one, other) = (random_key().expect("one"), random_key().expect("one"));
    assert_ne!(one, other);
}
