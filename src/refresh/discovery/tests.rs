//! Unit tests of `discovery`, over an API server in memory that serves given pages.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
};

use http::Response;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::{
    cli::metrics::Metrics,
    cluster::{changes::Changes, namespace::OptIn},
    config::Config,
    telemetry::log::captured::Log,
};

const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// A status and a body.
type Answer = (u16, String);

/// Answers by the query of each request, and records the query.
#[derive(Clone)]
struct Server {
    queries: Arc<Mutex<Vec<String>>>,
    answer: Arc<dyn Fn(&str) -> Answer + Send + Sync>,
}

impl Server {
    fn new(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            queries: Arc::default(),
            answer: Arc::new(answer),
        }
    }

    fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let (status, body) = (this.answer)(&query);
            this.queries().push(query);
            let mut response = Response::new(Body::from(body.into_bytes()));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            async move { Ok::<_, Infallible>(response) }
        });
        Client::new(service, "default")
    }

    fn queries(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> usize {
        self.queries().len()
    }
}

fn page(items: &Value, continue_token: &str) -> Answer {
    let page = json!({"metadata": {"continue": continue_token}, "items": items});
    (200, page.to_string())
}

fn refusal(code: u16, message: &str) -> Answer {
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
    (code, status.to_string())
}

fn pods_config(discover: &str) -> Config {
    Config::parse_fields(&format!("discover: {discover}"), "config.yaml").expect("valid")
}

fn discoverer(server: &Server, live: Live) -> Discoverer {
    counted_discoverer(server, live, &Metrics::default())
}

fn counted_discoverer(server: &Server, live: Live, metrics: &Metrics) -> Discoverer {
    let opt_in = OptIn {
        label: "l".into(),
        value: "v".into(),
    };
    let (client, counted) = (server.client(), metrics.cluster.clone());
    let namespaces = Namespaces::new(client.clone(), opt_in, Changes::default(), counted);
    let sink: Sink = Arc::new(|_, _| {});
    Discoverer::new(client, namespaces, live, metrics.refresh.clone(), sink)
}

async fn round(discoverer: &Discoverer, cursor: &mut Cursor) -> DiscoveryRun {
    discoverer.round(&Leadership::unlimited(), cursor).await
}

#[tokio::test]
async fn round_goes_on_where_the_last_one_ended() {
    let pod = json!({"metadata": {"namespace": "team"}, "spec": {}});
    let server = Server::new(move |query| {
        let next = match query.split_once("continue=") {
            None => "second",
            Some((_, "second")) => "third",
            Some((_, "third")) => "",
            Some((_, other)) => panic!("{other}"),
        };
        page(&json!([pod, 7, {"metadata": "x"}]), next)
    });
    let live = Live::new(pods_config("pods"), None);
    let discoverer = discoverer(&server, live).with_sizes(3, 6);
    let mut cursor = Cursor::default();
    assert_eq!(
        round(&discoverer, &mut cursor).await,
        DiscoveryRun::Truncated
    );
    assert_eq!(server.calls(), 2);
    assert_eq!(
        round(&discoverer, &mut cursor).await,
        DiscoveryRun::Complete
    );
    assert_eq!(server.calls(), 3);
    assert_eq!(cursor.0, None);
    let queries = server.queries().clone();
    assert!(
        queries.iter().all(
            |query| query.contains("fieldSelector=status.phase%3DPending")
                && query.contains("limit=3")
        ),
        "{queries:?}"
    );
}

#[tokio::test]
async fn page_that_is_too_large_is_asked_for_in_parts() {
    let server = Server::new(|query| {
        if query.contains("limit=2") || query.contains("limit=1&") {
            return page(&json!([]), "");
        }
        (200, " ".repeat(MAX_PAGE_BYTES + 1))
    });
    let live = Live::new(pods_config("pods"), None);
    let discoverer = discoverer(&server, live).with_sizes(8, 100);
    let outcome = round(&discoverer, &mut Cursor::default()).await;
    assert_eq!(outcome, DiscoveryRun::Complete);
    assert_eq!(server.calls(), 3, "{:?}", server.queries());
}

#[tokio::test]
async fn round_ends_with_what_went_wrong() {
    for (answer, expected) in [
        (refusal(403, "no"), DiscoveryRun::Refused),
        (refusal(401, "who?"), DiscoveryRun::Refused),
        (refusal(500, "oops"), DiscoveryRun::Failed),
        (refusal(410, "old"), DiscoveryRun::Failed),
        ((502, "<html>".to_owned()), DiscoveryRun::Failed),
        ((200, "5".to_owned()), DiscoveryRun::Failed),
        ((200, "{".to_owned()), DiscoveryRun::Failed),
        ((200, "{}".to_owned()), DiscoveryRun::Complete),
        (
            (200, r#"{"items": null}"#.to_owned()),
            DiscoveryRun::Complete,
        ),
    ] {
        let body = answer.1.clone();
        let server = Server::new(move |_| answer.clone());
        let live = Live::new(pods_config("pods"), None);
        let metrics = Metrics::default();
        let discoverer = counted_discoverer(&server, live, &metrics);
        let outcome = round(&discoverer, &mut Cursor::default()).await;
        assert_eq!(outcome, expected, "{body}");
        let text = metrics.registry.to_text();
        let series = format!(
            "ecr_injector_discovery_runs_total{{outcome=\"{}\"}} 1",
            expected.as_str()
        );
        assert!(text.contains(&series), "{series} not in:\n{text}");
    }
}

#[tokio::test]
async fn continue_token_that_is_too_old_begins_again() {
    let server = Server::new(|query| {
        if query.contains("continue=") {
            refusal(410, "too old")
        } else {
            page(&json!([]), "")
        }
    });
    let live = Live::new(pods_config("pods"), None);
    let discoverer = discoverer(&server, live);
    let mut cursor = Cursor(Some("old".to_owned()));
    let outcome = round(&discoverer, &mut cursor).await;
    assert_eq!((outcome, server.calls()), (DiscoveryRun::Complete, 2));
}

#[tokio::test(start_paused = true)]
async fn leader_lists_at_once_and_every_ten_seconds_while_asked_to() {
    let server = Server::new(|_| page(&json!([]), ""));
    let live = Live::new(pods_config("none"), None);
    let discoverer = discoverer(&server, live.clone());
    let term = Leadership::unlimited();
    let leading = tokio::spawn({
        let term = term.clone();
        async move { discoverer.lead(term).await }
    });
    sleep(PERIOD * 5).await;
    assert_eq!(server.calls(), 0, "not asked for");
    assert!(live.replace(pods_config("pods")).is_empty());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.calls(), 1, "at once");
    sleep(PERIOD * 10).await;
    let calls = server.calls();
    assert!((10..=12).contains(&calls), "{calls}");
    assert!(live.replace(pods_config("none")).is_empty());
    sleep(PERIOD * 3).await;
    assert_eq!(server.calls(), calls);
    assert!(live.replace(pods_config("pods")).is_empty());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.calls(), calls + 1);
    term.end();
    leading.await.expect("it ends with the term");
}

#[tokio::test(start_paused = true)]
async fn page_that_never_comes_ends_the_round() {
    let service = tower::service_fn(|_: http::Request<Body>| async {
        std::future::pending::<Result<Response<Body>, Infallible>>().await
    });
    let server = Server::new(|_| page(&json!([]), ""));
    let live = Live::new(pods_config("pods"), None);
    let discoverer = Discoverer {
        client: Client::new(service, "default"),
        ..discoverer(&server, live)
    };
    let begun = Instant::now();
    let outcome = round(&discoverer, &mut Cursor::default()).await;
    assert_eq!(outcome, DiscoveryRun::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), PAGE_TIMEOUT.as_secs());
}

#[test]
fn hosts_of_a_namespace_are_limited_to_its_secret() {
    let mut config = pods_config("pods");
    config.rules.registries_per_secret = 2;
    let opted_in = Namespace::parse("team").expect("valid");
    let mut hosts = BTreeSet::new();
    for account in 1..=5 {
        let host = IRELAND.replace("123456789012", &format!("{account:012}"));
        hosts.extend(Host::parse(&host));
    }
    let mut wanted = Wanted::default();
    wanted.insert(&opted_in, hosts.clone(), &config.rules);
    wanted.insert(&opted_in, hosts, &config.rules);
    assert_eq!(wanted.hosts[&opted_in].len(), 2);
    wanted.insert(&opted_in, BTreeSet::new(), &config.rules);
    assert_eq!(wanted.hosts.len(), 1);
}

#[test]
fn longer_rounds_have_longer_periods_within_limits() {
    for (took, period) in [(0, 10_000), (500, 10_000), (1_000, 20_000), (9_000, 60_000)] {
        let after = period_after(Duration::from_millis(took));
        assert_eq!(after, Duration::from_millis(period), "{took}");
    }
}

#[test]
fn period_is_jittered_by_a_tenth_at_most() {
    for (random, millis) in [(0, 54_000), (100, 60_000), (200, 66_000), (201, 54_000)] {
        let jittered = jittered(LONGEST_PERIOD, random);
        assert_eq!(jittered, Duration::from_millis(millis), "{random}");
    }
}

/// The JSON log writes none of an error's causes by itself.
#[tokio::test]
async fn failed_run_is_logged_with_its_cause_in_one_field() {
    let server = Server::new(|_| (500, String::new()));
    let discoverer = discoverer(&server, Live::new(pods_config("pods"), None));
    let log = Log::default();
    let _guard = log.start();
    let cause = serde_json::from_str::<Value>("{").expect_err("half an object");
    let expected = format!("error=\"the answer is not a list of Pods: {cause}\"");
    discoverer.report(&Err(RoundError::Malformed(cause)), &mut LogOnce::default());
    assert_eq!(log.count(&expected), 1, "{expected}");
}
