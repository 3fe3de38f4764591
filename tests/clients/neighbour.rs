//! amazon-ecr-credential-helper beside ours, in one cache: Debian's old version, and one of today.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bed::{Bed, R, Ran, built, installed};
use crate::support::child::copy_program;

fn ours(bed: &Bed) -> PathBuf {
    bed.path("bin/docker-credential-ecr-injector")
}

fn secret(ran: &Ran) -> String {
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    answer["Secret"].as_str().unwrap().to_owned()
}

fn cache(bed: &Bed) -> Value {
    let text = fs::read_to_string(bed.path("home/.ecr/cache.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// D-20.
async fn tokens_of(theirs: &Path) {
    let bed = Bed::start();
    let first = bed.helper(theirs, "get", R).await.succeeded();
    let written = cache(&bed);
    assert_eq!(bed.aws.calls().len(), 1);
    let second = bed.helper(&ours(&bed), "get", R).await.succeeded();
    assert!(secret(&first) == secret(&second), "another token");
    assert_eq!(bed.aws.calls().len(), 1);
    assert_eq!(cache(&bed), written);
    let list = bed.helper(&ours(&bed), "list", "").await.succeeded();
    assert!(list.out.contains("AWS"), "{list:#?}");
}

/// D-20.
#[tokio::test]
async fn tokens_of_an_old_version_are_answered() {
    tokens_of(&installed("docker-credential-ecr-login")).await;
}

/// D-20.
#[tokio::test]
async fn tokens_of_todays_version_are_answered() {
    tokens_of(&built("ecr-login", "docker-credential-ecr-login")).await;
}

/// D-21.
#[tokio::test]
async fn todays_version_answers_our_tokens() {
    let bed = Bed::start();
    let theirs = built("ecr-login", "docker-credential-ecr-login");
    let first = bed.helper(&ours(&bed), "get", R).await.succeeded();
    let second = bed.helper(&theirs, "get", R).await.succeeded();
    assert_eq!(secret(&first), secret(&second));
    assert_eq!(bed.aws.calls().len(), 1);
}

/// D-21: it looks for keys that have the access key in clear, which we never write.
#[tokio::test]
async fn old_version_keeps_our_tokens_beside_its_own() {
    let bed = Bed::start();
    let theirs = installed("docker-credential-ecr-login");
    bed.helper(&ours(&bed), "get", R).await.succeeded();
    let before = cache(&bed);
    bed.helper(&theirs, "get", R).await.succeeded();
    assert_eq!(bed.aws.calls().len(), 2);
    let after = cache(&bed);
    let (before, after) = (&before["Registries"], &after["Registries"]);
    assert_eq!(after.as_object().unwrap().len(), 2);
    for (key, entry) in before.as_object().unwrap() {
        let kept = &after[key];
        for field in [
            "AuthorizationToken",
            "ProxyEndpoint",
            "Service",
            "ExpiresAt",
        ] {
            assert_eq!(kept[field], entry[field], "{field}");
        }
    }
    // And ours keeps theirs.
    let there = after.clone();
    fs::remove_file(bed.path("home/.ecr/ecr-injector.json")).unwrap();
    let other = R.replace("1234", "4321");
    bed.helper(&ours(&bed), "get", &other).await.succeeded();
    let now = cache(&bed);
    for (key, entry) in there.as_object().unwrap() {
        assert_eq!(&now["Registries"][key], entry);
    }
    assert_ne!(now["Registries"], json!({}));
}

#[tokio::test]
async fn other_helpers_file_name_works_with_its_configuration() {
    let bed = Bed::start();
    copy_program(ours(&bed), bed.path("bin/docker-credential-ecr-login"));
    bed.configure(&json!({"credHelpers": {R: "ecr-login"}}));
    let image = format!("{R}/shop/web:v1");
    let crane = built("crane", "crane");
    bed.client(&crane, &["digest", &image]).await.succeeded();
    assert!(bed.path("home/.ecr/ecr-injector.json").is_file());
}
