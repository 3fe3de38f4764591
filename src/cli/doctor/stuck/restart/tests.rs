//! Restarts against an API server that answers from memory.

use std::convert::Infallible;

use http::{Request, Response};
use kube::{Client, client::Body};
use tower::service_fn;

use super::*;
use crate::{
    cli::doctor::{finding::Reading, stuck::group::tests::missed},
    config::Config,
};

/// The API server's time when the restarts begin.
const BEGUN: &str = "2027-01-15T10:00:00Z";

/// Answers as if each evicted Pod were replaced at once by one that is stuck again.
fn api_server() -> Client {
    let answer = |request: Request<Body>| async move {
        let mut copy = missed().pod;
        copy["metadata"]["creationTimestamp"] = BEGUN.into();
        let path = request.uri().path();
        let body = if path.ends_with("/eviction") {
            json!({"kind": "Status", "status": "Success"})
        } else if *request.method() == Method::POST {
            copy["spec"]["imagePullSecrets"] = json!([{"name": "ecr-pull-secret"}]);
            copy
        } else {
            let new = |number: usize| {
                let mut pod = copy.clone();
                pod["metadata"]["name"] = format!("new-{number}").into();
                pod
            };
            let mut pods: Vec<Value> = (0..MAX_STUCK_AGAIN).map(new).collect();
            // An older one, which nobody restarted.
            pods.push(missed().pod);
            json!({"kind": "PodList", "metadata": {}, "items": pods})
        };
        Ok::<_, Infallible>(Response::new(Body::from(body.to_string().into_bytes())))
    };
    Client::new(service_fn(answer), "default")
}

#[tokio::test(start_paused = true)]
async fn clock_of_this_machine_does_not_hide_new_pods() {
    let config = Config::default();
    let pods: Vec<StuckPod> = (0..40)
        .map(|number| {
            let mut case = missed();
            case.pod["metadata"]["uid"] = format!("uid-{number}").into();
            StuckPod::of(&case, &config.rules).expect("a stuck Pod")
        })
        .collect();
    for ahead in [-3600, 0, 3600] {
        let now: Timestamp = BEGUN.parse().expect("a time");
        let now = now + jiff::SignedDuration::from_secs(ahead);
        let config_facts = Reading::Unread("not needed".to_owned());
        let shared = Shared::at(api_server(), config_facts, now);
        let restarts = Restarts {
            shared: &shared,
            rules: &config.rules,
            scope: &Scope::All,
            restart: Restart {
                jobs: false,
                dry_run: false,
            },
        };
        let done = restarts.run(&pods).await;
        let again: Vec<&str> = done.stuck_again.iter().map(String::as_str).collect();
        assert_eq!(again, ["team/new-0", "team/new-1", "team/new-2"], "{ahead}");
        assert!(matches!(done.stop, Some(Stop::StuckAgain)), "{ahead}");
        let restarted = done.outcomes.len();
        assert!((5..40).contains(&restarted), "{ahead}: {restarted}");
    }
}
