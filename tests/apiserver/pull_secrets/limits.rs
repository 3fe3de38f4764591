//! Tests of Pods at a limit: the pull secret's, and the API server's.

use crate::support::installation::USER;
use crate::support::pods::{pod_with, pull_secrets};
use tokio::time::Instant;

use super::*;

/// Of eight places, six are taken by the first Pod.
#[tokio::test]
async fn pod_at_the_limit_gets_as_many_registries_as_fit() {
    let bed = bed().await;
    let namespace = bed.opted_in("t-many").await;
    let client = bed.plane.pod_creator().await;
    let many = |name: &str, accounts: std::ops::Range<u64>| {
        let containers = accounts.map(|n| {
            let host = registry(300_000_000_000 + n, "eu-central-1");
            json!({"name": format!("c{n}"), "image": format!("{host}/x:1")})
        });
        pod_with(name, &json!({"containers": containers.collect::<Value>()}))
    };
    let first = create(&client, &namespace, &many("first", 0..6), false)
        .await
        .unwrap();
    assert_eq!(first.warnings, [""; 0]);
    let second = create(&client, &namespace, &many("second", 6..12), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&second.pod), [PULL_SECRET]);
    let count = eventually("the pull secret is full", SOON, async || {
        let count = auths(&bed.pull_secret(&namespace).await?).len();
        (count > 6).then_some(count)
    });
    assert_eq!(count.await, 8);
    let names_how_many = |warning: &String| {
        let mut words = warning.split(|c: char| !c.is_ascii_digit());
        words.any(|word| word == "4")
    };
    assert!(
        second.warnings.iter().any(names_how_many),
        "{:?}",
        second.warnings
    );
}

/// A foreign key fills the Secret to almost a mebibyte, and no retry makes room.
#[tokio::test]
async fn full_secret_costs_two_writes_and_is_named_at_once() {
    let _alone = alone().await;
    let bed = bed().await;
    let (namespace, _) = bed.served("t-full", "us-east-1").await;
    let junk = "x".repeat(1_048_576 - 4_000);
    bed.change_secret(&namespace, &json!({"stringData": {"junk": junk}}))
        .await;
    sleep(Duration::from_secs(2)).await;
    let writes = || {
        let mut events = bed.plane.audit_events_of(USER);
        events.retain(|event| {
            let object = &event["objectRef"];
            object["namespace"] == *namespace
                && object["resource"] == "secrets"
                && event["verb"] == "patch"
        });
        events.len()
    };
    let before = writes();
    let client = bed.plane.pod_creator().await;
    let object = pod("second", &image("us-west-1"));
    let began = Instant::now();
    let admitted = create(&client, &namespace, &object, false).await.unwrap();
    let took = began.elapsed();
    let count = writes() - before;
    assert!(
        count <= 2 && took < Duration::from_secs(1),
        "{count} writes in {took:?}: {:?}",
        admitted.warnings
    );
    assert_ne!(admitted.warnings, [""; 0]);
    let hopes = |warning: &String| warning.contains("until then");
    assert!(
        !admitted.warnings.iter().any(hopes),
        "{:?}",
        admitted.warnings
    );
}
