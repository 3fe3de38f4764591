//! Tests at each start whether the guard is enforced, by a write that the guard has to reject.
//!
//! Nothing that works depends on the guard, so nobody misses one that was forgotten or that names
//! another account. The write is a dry run, so nothing is stored even where there is no guard.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::metrics::PullSecretMetrics;
use crate::cluster::{
    namespace::Namespace,
    ownership::{MANAGED_BY, MANAGED_BY_LABEL},
};

/// The suffix of the names of the guard's policies.
pub const POLICIES: &str = ".ecr-injector.dev";
/// How long the test is repeated until the guard rejects the write: right after an installation the
/// guard may not be in force yet.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_secs(3);
/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The namespace of the test outside of a cluster: one that every cluster has.
const DEFAULT_NAMESPACE: &str = "default";
/// The field manager of the test. Not that of our writes: under that name, an apply without data
/// would remove the data of a pull secret.
const TEST_FIELD_MANAGER: &str = "ecr-injector-guard-test";

/// The result of the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guard rejected the write.
    Guarded,
    /// The write would have been stored.
    Unguarded,
    /// Neither, for this reason.
    Untested(String),
}

/// Repeats a write that the guard has to reject, until the guard does or the time is over; then
/// logs the result and sets [`PullSecretMetrics::guard`]. The write is to our own namespace, if there is one.
pub async fn test_guard(
    client: Client,
    secret_name: &str,
    own_namespace: Option<&Namespace>,
    limit: Duration,
    metrics: &PullSecretMetrics,
) -> Verdict {
    let namespace = own_namespace.map_or(DEFAULT_NAMESPACE, Namespace::as_str);
    let secrets = Api::namespaced(client, namespace);
    let deadline = Instant::now() + limit;
    let verdict = loop {
        let verdict = try_once(&secrets, secret_name, metrics).await;
        if verdict == Verdict::Guarded || Instant::now() + PAUSE > deadline {
            break verdict;
        }
        sleep(PAUSE).await;
    };
    match &verdict {
        Verdict::Guarded => {
            metrics.guard.set(1);
            tracing::info!("guard is enforced: the API server rejected the test write");
        }
        Verdict::Unguarded => {
            metrics.guard.set(0);
            tracing::warn!(
                namespace,
                secret = secret_name,
                "guard is not enforced: the API server accepted a test write that the guard \
                 must reject. Everything works without the guard, but whoever steals this \
                 account's token can write Secrets of any type under that name in every \
                 namespace, and so act as other accounts. Apply deploy/guard.yaml (Kubernetes \
                 1.30 or newer); if it is applied, its bindings must deny, and its \
                 matchConditions must name the account that this process runs as"
            );
        }
        Verdict::Untested(reason) => tracing::warn!(
            namespace,
            secret = secret_name,
            reason,
            "testing whether the guard is enforced failed; testing again at the next start"
        ),
    }
    verdict
}

async fn try_once(secrets: &Api<Secret>, name: &str, metrics: &PullSecretMetrics) -> Verdict {
    let params = PatchParams::apply(TEST_FIELD_MANAGER).force().dry_run();
    let patch = Patch::Apply(forbidden(name));
    // Only metadata come back: the data of an existing pull secret need not be sent.
    let call = secrets.patch_metadata(name, &params, &patch);
    let (outcome, verdict) = match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(_)) => ("ok", Verdict::Unguarded),
        Ok(Err(kube::Error::Api(status))) if is_by_guard(&status.message) => {
            ("guard", Verdict::Guarded)
        }
        Ok(Err(error)) => {
            let reason = match error {
                kube::Error::Api(status) => format!("{} {}", status.code, status.message),
                other => other.to_string(),
            };
            let short = reason.chars().take(300).collect();
            ("error", Verdict::Untested(short))
        }
        Err(_) => (
            "timeout",
            Verdict::Untested(format!("no response within {} s", CALL_TIMEOUT.as_secs())),
        ),
    };
    metrics.api_calls.count_call("dry_run", "secrets", outcome);
    verdict
}

/// Returns a write that the guard rejects in every namespace, and nothing else does. Where there is
/// no such Secret yet, the write would create one without a type, which is `Opaque`; where there is
/// one, whoever owns it, the write would add an annotation and leave the type, because the API
/// server itself refuses to change a type.
fn forbidden(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": {"guard-test": "to be refused"},
        },
    })
}

/// Returns whether a policy of the guard rejected the call:
/// `ValidatingAdmissionPolicy 'NAME' with binding 'NAME' denied request: …`. Others reject calls
/// too, in other words or in another policy's name, which shows nothing about the guard.
pub(super) fn is_by_guard(message: &str) -> bool {
    let policy = message.split_once("ValidatingAdmissionPolicy '");
    policy
        .and_then(|(_, rest)| rest.split_once('\''))
        .is_some_and(|(name, rest)| name.ends_with(POLICIES) && rest.contains("denied request"))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http::{Method, Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Bytes;
    use kube::client::Body;

    use super::*;
    use crate::{cli::metrics::Metrics, telemetry::log::captured::Log};

    const DENIAL: &str = "Secret \"ecr-pull-secret\" is invalid: : ValidatingAdmissionPolicy 'secrets.ecr-injector.dev' \
        with binding 'secrets.ecr-injector.dev' denied request: ecr-injector writes pull Secrets of type \
        kubernetes.io/dockerconfigjson only";
    const PASSES: (u16, &str) = (200, "");
    const HANGS: (u16, &str) = (0, "");

    struct Tried {
        verdict: Verdict,
        gauge: i64,
        requests: Vec<(Request<()>, Value)>,
        took: Duration,
        log: Log,
    }

    /// Runs the test against these answers, the last of them again and again.
    async fn tried(own_namespace: &str, answers: &[(u16, &'static str)]) -> Tried {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
        let kept = requests.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (kept, answers) = (kept.clone(), answers.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                let body = serde_json::from_slice(&body).expect("JSON");
                let request = Request::from_parts(head, ());
                kept.lock().expect("a lock").push((request, body));
                let (code, message) = {
                    let mut answers = answers.lock().expect("a lock");
                    let next = answers.pop_front().expect("an answer");
                    if answers.is_empty() {
                        answers.push_back(next);
                    }
                    next
                };
                if (code, message) == HANGS {
                    std::future::pending::<()>().await;
                }
                let answer = if code == 200 {
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}})
                } else {
                    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message,
                        "reason": "Any", "code": code})
                };
                let body = Full::<Bytes>::from(answer.to_string());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).expect("one"))
            }
        });
        let (metrics, log, start) = (
            Metrics::default().pull_secret,
            Log::default(),
            Instant::now(),
        );
        let client = Client::new(service, "default");
        let own_namespace = Namespace::parse(own_namespace);
        let verdict = {
            let _guard = log.start();
            let own_namespace = own_namespace.as_ref();
            test_guard(
                client,
                "ecr-pull-secret",
                own_namespace,
                TEST_TIMEOUT,
                &metrics,
            )
            .await
        };
        let requests = std::mem::take(&mut *requests.lock().expect("a lock"));
        Tried {
            verdict,
            gauge: metrics.guard.get(),
            requests,
            took: start.elapsed(),
            log,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn test_write_is_a_dry_run_of_an_untyped_annotated_secret() {
        for (own, namespace) in [("here", "here"), ("", "default")] {
            let tried = tried(own, &[(422, DENIAL)]).await;
            let (request, body) = &tried.requests[0];
            assert_eq!(request.method(), Method::PATCH);
            let path = format!("/api/v1/namespaces/{namespace}/secrets/ecr-pull-secret");
            assert_eq!(request.uri().path(), path);
            let query = request.uri().query().expect("a query");
            for part in [
                "dryRun=All",
                "fieldManager=ecr-injector-guard-test",
                "force=true",
            ] {
                assert!(query.split('&').any(|other| other == part), "{query}");
            }
            assert_eq!(
                body["metadata"]["labels"],
                json!({"app.kubernetes.io/managed-by": "ecr-injector"})
            );
            assert_eq!(
                body["metadata"]["annotations"],
                json!({"guard-test": "to be refused"})
            );
            assert!(body.get("type").is_none() && body.get("data").is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rejection_by_the_guard_ends_the_test() {
        let tried = tried("here", &[(422, DENIAL)]).await;
        assert_eq!((tried.verdict, tried.gauge), (Verdict::Guarded, 1));
        assert_eq!((tried.requests.len(), tried.took), (1, Duration::ZERO));
        assert_eq!(tried.log.count("INFO"), 1);
        assert_eq!(tried.log.count("WARN"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn guard_may_take_half_a_minute_to_come_into_force() {
        let missing = (403, "User \"us\" cannot patch resource \"secrets\"");
        let tried = tried("here", &[missing, HANGS, PASSES, PASSES, (422, DENIAL)]).await;
        assert_eq!((tried.verdict, tried.gauge), (Verdict::Guarded, 1));
        assert_eq!(tried.requests.len(), 5);
        assert_eq!(tried.log.count("WARN"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn missing_guard_is_logged_once_with_what_to_do() {
        let tried = tried("here", &[PASSES]).await;
        assert_eq!((tried.verdict, tried.gauge), (Verdict::Unguarded, 0));
        assert_eq!((tried.requests.len(), tried.took), (11, TEST_TIMEOUT));
        assert_eq!(tried.log.count("WARN"), 1);
        assert_eq!(tried.log.count("deploy/guard.yaml"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn other_answers_show_nothing_about_the_guard() {
        for answer in [
            HANGS,
            (403, "User \"us\" cannot patch resource \"secrets\""),
            (404, "namespaces \"here\" not found"),
            (409, "conflict"),
            // The API server's own checks.
            (
                422,
                "Secret \"ecr-pull-secret\" is invalid: type: field is immutable",
            ),
            // Somebody else's policy, and somebody else's webhook.
            (
                422,
                "ValidatingAdmissionPolicy 'no-opaque.example.com' with binding 'x' denied request: no",
            ),
            (
                403,
                "admission webhook \"secrets.ecr-injector.dev\" denied the request: no",
            ),
            (400, "admission webhook \"x\" does not support dry run"),
            (500, "internal error"),
        ] {
            let tried = tried("here", &[answer]).await;
            let Verdict::Untested(reason) = tried.verdict else {
                panic!("{answer:?}: {:?}", tried.verdict);
            };
            assert!(reason.contains(answer.1), "{reason}");
            assert_eq!(tried.gauge, -1, "{answer:?}");
            assert!(tried.requests.len() > 3, "{answer:?}");
            assert_eq!(
                tried
                    .log
                    .count("testing whether the guard is enforced failed"),
                1,
                "{answer:?}"
            );
        }
    }
}
