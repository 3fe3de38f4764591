//! Tests of the proof that one of our replicas wrote a pull secret: a forgery gets no token, and without an opt-in nothing
//! is written at all.

use super::*;

#[tokio::test]
async fn forged_secret_gets_no_token_without_opt_in() {
    let bed = bed().await;
    let region = "eu-west-3";
    let namespace = bed.plane.namespace("t-stranger", &[]).await;
    let config = r#"{"auths":{}}"#;
    let state = wish(&registry(ACCOUNT, region), config);
    let forged = bed
        .put_in_place(&namespace, &claiming(&state, config))
        .await;
    bed.leader_works().await;
    bed.is_untouched(&namespace, &forged, "a forged wish").await;
    assert!(bed.aws.ecr_calls(region).is_empty());
}

#[tokio::test]
async fn copied_secret_is_not_written_to_without_opt_in() {
    let bed = bed().await;
    let (_, good) = bed.served("t-original", "us-east-1").await;
    let namespace = bed.plane.namespace("t-copier", &[]).await;
    let copy = bed.put_in_place(&namespace, &copy_of(&good)).await;
    bed.leader_works().await;
    bed.is_untouched(&namespace, &copy, "a good secret's copy")
        .await;
}

#[tokio::test]
async fn opted_out_namespace_is_never_written_to() {
    let bed = bed().await;
    let region = "us-east-2";
    let host = registry(ACCOUNT, region);
    let (namespace, good) = bed.served("t-leaving", region).await;
    bed.opt(&namespace, false).await;
    bed.leader_works().await;
    bed.is_untouched(&namespace, &good, "the opt-out").await;

    let text = |state: &Value| json!({"metadata": {"annotations": {STATE: state.to_string()}}});
    let marked = opted_out_far_ahead(state_of(&good));
    let data = |config: &str| json!({"stringData": {".dockerconfigjson": config}});
    let empty = r#"{"auths":{}}"#;
    let mut forged = data(empty);
    json_patch::merge(&mut forged, &text(&wish(&host, empty)));
    for (what, change) in [
        ("far dates", text(&dated_later(state_of(&good)))),
        ("an opt-out far ahead", text(&marked)),
        ("other data", data(&worthless(&host))),
        (
            "no state",
            json!({"metadata": {"annotations": {STATE: null}}}),
        ),
        ("a forged wish", forged),
    ] {
        let changed = bed.change_secret(&namespace, &change).await;
        sleep(Duration::from_secs(1)).await;
        bed.is_untouched(&namespace, &changed, what).await;
    }
    let secrets = bed.secrets(&namespace).await;
    secrets
        .delete(PULL_SECRET, &DeleteParams::default())
        .await
        .unwrap();
    bed.leader_works().await;
    assert!(bed.pull_secret(&namespace).await.is_none());
    let config = worthless(&host);
    let state = fresh(&host, &identity_in(&good, &host), &config);
    let forged = claiming(&state, &config);
    let forged = bed.put_in_place(&namespace, &forged).await;
    bed.leader_works().await;
    bed.is_untouched(&namespace, &forged, "made again").await;

    bed.opt(&namespace, true).await;
    bed.until_minted(&namespace, &host, ":user/fake", SOON)
        .await;
}

/// The copier knows the hash of its own identity from another of its namespaces, and may put it into the copy.
#[tokio::test]
async fn copy_from_another_tenant_is_replaced_by_ones_own() {
    let bed = bed().await;
    let region = "ap-northeast-1";
    let (ours, theirs) = (registry(ACCOUNT, region), registry(OTHER_ACCOUNT, region));
    let original = bed.opted_in("team-a").await;
    let containers = json!({"containers": [
        {"name": "one", "image": format!("{ours}/x:1")},
        {"name": "two", "image": format!("{theirs}/x:1")},
    ]});
    let client = bed.plane.pod_creator().await;
    let object = crate::support::pods::pod_with("web", &containers);
    create(&client, &original, &object, false).await.unwrap();
    let copied = bed
        .until_minted(&original, &theirs, "role/team-a", SOON)
        .await;
    let elsewhere = "ap-northeast-3";
    let (_, own) = bed.served("team-b", elsewhere).await;
    let identity = identity_in(&own, &registry(ACCOUNT, elsewhere));
    let learned = with_identity(state_of(&copied), &identity);
    // In this order: a token of its own in memory would replace the copied one by chance.
    for state in [learned, state_of(&copied)] {
        let mut copy = copy_of(&copied);
        let annotations = copy.metadata.annotations.as_mut().unwrap();
        annotations.insert(STATE.to_owned(), state.to_string());
        let early = bed.opted_in_with("team-b", &copy).await;
        let late = bed.opted_in("team-b").await;
        bed.put_in_place(&late, &copy).await;
        for namespace in [early, late] {
            let now = bed
                .until_minted(&namespace, &ours, "role/team-b", SOON)
                .await;
            // No identity may mint for the other host there, and the copied credential is not one of ours.
            assert_eq!(auths(&now).into_keys().collect::<Vec<_>>(), [ours.as_str()]);
        }
    }
}

#[tokio::test]
async fn forged_dates_do_not_make_a_credential_fresh() {
    let bed = bed().await;
    let region = "ap-northeast-2";
    let host = registry(ACCOUNT, region);
    let config = worthless(&host);
    // Of a form that anybody can write, and of ours with what is sealed in it left as it was. Each in a namespace of its own:
    // whoever is edited again and again has to wait.
    for is_sealed in [false, true] {
        let (namespace, good) = bed.served("t-forged", region).await;
        let state = if is_sealed {
            dated_later(state_of(&good))
        } else {
            fresh(&host, &identity_in(&good, &host), &config)
        };
        let forged = claiming(&state, &config);
        let annotations = &forged.metadata.annotations;
        let change =
            json!({"metadata": {"annotations": annotations}, "stringData": forged.string_data});
        bed.change_secret(&namespace, &change).await;
        bed.until_minted(&namespace, &host, ":user/fake", SOON)
            .await;
        bed.put_in_place(&namespace, &forged).await;
        bed.until_minted(&namespace, &host, ":user/fake", SOON)
            .await;
        let early = bed.opted_in_with("t-early", &forged).await;
        bed.until_minted(&early, &host, ":user/fake", SOON).await;
    }
}
