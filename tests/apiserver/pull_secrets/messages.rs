//! Tests that AWS's messages, which name accounts and principals, stay out of tenants' namespaces; its codes don't.

use crate::support::Behaviour;

use super::*;

#[tokio::test]
async fn event_and_warning_have_the_code_and_no_arn() {
    let bed = bed().await;
    let region = "ap-southeast-1";
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Refuse);
    // The tenant knows this account, because it is in the image's name.
    let object = pod("web", &format!("{}/x:1", registry(OTHER_ACCOUNT, region)));
    let namespace = bed.opted_in("t-refused").await;
    let client = bed.plane.pod_creator().await;
    let admitted = create(&client, &namespace, &object, false).await.unwrap();
    assert_ne!(admitted.warnings, [""; 0]);
    for warning in &admitted.warnings {
        names_nobody(warning);
    }
    let note = bed.note(&namespace, &["TokenRefused"], 2 * SOON).await;
    assert!(note.contains("AccessDenied"), "{note}");
    names_nobody(&note);
}

#[tokio::test]
async fn event_of_a_denied_role_has_the_code_and_no_arn() {
    let bed = bed().await;
    let namespace = bed.opted_in("team-denied").await;
    bed.aws.require_external_id(&role("team-denied"), "another");
    bed.first_pod(&namespace, "ap-southeast-2").await;
    let note = bed.note(&namespace, &["TokenRefused"], 2 * SOON).await;
    assert!(note.contains("AccessDenied"), "{note}");
    names_nobody(&note);
}

#[tokio::test]
async fn refusal_of_a_pod_has_the_code_and_no_arn() {
    let bed = Bed::start("onFailure: deny\n", "info").await;
    let region = "eu-west-1";
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Refuse);
    let object = pod("web", &format!("{}/x:1", registry(OTHER_ACCOUNT, region)));
    let namespace = bed.opted_in("refused").await;
    let client = bed.plane.pod_creator().await;
    let refused = create(&client, &namespace, &object, false).await;
    let message = refused.unwrap_err().message;
    assert!(message.contains("not ready"), "{message}");
    names_nobody(&message);
    // The log has the whole message, for the operator.
    let log = bed.webhook.log_with("AccessDeniedException").await;
    assert!(log.contains("arn:aws:iam"));
}

#[track_caller]
fn names_nobody(text: &str) {
    let names = text.contains("arn:") || text.contains(&ACCOUNT.to_string());
    assert!(!names, "{text}");
}
