//! Clients that pull, and what they do where the helper has no credentials.

use std::path::Path;

use serde_json::{Value, json};

use super::bed::{Bed, R, built, installed};
use crate::support::Behaviour;

/// Runs a client once with the helper, and then without: without it the registry gives nothing.
async fn pulls(program: &Path, arguments: &[&str]) -> Value {
    let bed = Bed::start();
    let image = format!("{R}/shop/web:v1");
    let arguments: Vec<String> = arguments
        .iter()
        .map(|text| text.replace("IMAGE", &image))
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = bed.client(program, &arguments).await.succeeded();
    assert!(bed.registry.pulls() > 0, "{ran:#?}");
    assert_eq!(bed.aws.calls().len(), 1, "{ran:#?}");
    // The next pull asks nobody for a token.
    bed.client(program, &arguments).await.succeeded();
    assert_eq!(bed.aws.calls().len(), 1);

    let pulls = bed.registry.pulls();
    bed.configure(&json!({}));
    bed.client(program, &arguments).await.failed();
    assert_eq!(bed.registry.pulls(), pulls);
    serde_json::from_str(&ran.out).unwrap_or_default()
}

#[tokio::test]
async fn skopeo_inspects_with_the_helper() {
    let shown = pulls(&installed("skopeo"), &["inspect", "docker://IMAGE"]).await;
    assert_eq!(shown["RepoTags"], json!(["v1"]));
}

#[tokio::test]
async fn skopeo_copies_with_the_helper() {
    let skopeo = installed("skopeo");
    pulls(
        &skopeo,
        &["--insecure-policy", "copy", "docker://IMAGE", "dir:copied"],
    )
    .await;
}

const STORAGE: [&str; 6] = [
    "--root",
    "storage",
    "--runroot",
    "run/storage",
    "--storage-driver",
    "vfs",
];

#[tokio::test]
async fn buildah_pulls_with_the_helper() {
    let policy = ["pull", "--policy", "always", "--signature-policy", POLICY];
    let arguments = [&STORAGE[..], &policy, &["docker://IMAGE"]].concat();
    pulls(&installed("buildah"), &arguments).await;
}

#[tokio::test]
async fn podman_pulls_with_the_helper() {
    let pull = ["pull", "--signature-policy", POLICY, "docker://IMAGE"];
    let arguments = [&STORAGE[..], &pull].concat();
    pulls(&installed("podman"), &arguments).await;
}

/// Comes with the packages of the three.
const POLICY: &str = "/etc/containers/policy.json";

#[tokio::test]
async fn docker_inspects_a_manifest_with_the_helper() {
    let docker = installed("docker");
    let shown = pulls(&docker, &["manifest", "inspect", "IMAGE"]).await;
    assert_eq!(shown["schemaVersion"], 2);
}

#[tokio::test]
async fn crane_pulls_and_lists_with_the_helper() {
    let crane = built("crane", "crane");
    let shown = pulls(&crane, &["manifest", "IMAGE"]).await;
    assert_eq!(shown["schemaVersion"], 2);
    pulls(&crane, &["pull", "IMAGE", "image.tar"]).await;
}

#[tokio::test]
async fn store_of_all_credentials_serves_ecr_alone() {
    let bed = Bed::start();
    bed.configure(&json!({"credsStore": "ecr-injector"}));
    let image = format!("{R}/shop/web:v1");
    let crane = built("crane", "crane");
    bed.client(&crane, &["digest", &image]).await.succeeded();
    assert_eq!(bed.aws.calls().len(), 1);
    // Another registry is asked without credentials, which isn't the helper's failure.
    let ran = bed
        .client(&crane, &["digest", "ghcr.example/x/y:z"])
        .await
        .failed();
    assert!(!ran.err.contains("error getting credentials"), "{ran:#?}");
}

#[tokio::test]
async fn docker_login_is_told_what_to_do_and_passes_by_the_variable() {
    let bed = Bed::start();
    let docker = installed("docker");
    bed.helper(&bed.path("bin/docker-credential-ecr-injector"), "get", R)
        .await
        .succeeded();
    let password = bed.aws.passwords().pop().unwrap();
    let login = ["login", "--username", "AWS", "--password-stdin", R];
    let daemon = ("DOCKER_HOST", "tcp://127.0.0.1:1");
    let ran = bed
        .client_with(&docker, &login, &[daemon], &password)
        .await
        .failed();
    assert!(ran.err.contains("no docker login is needed"), "{ran:#?}");
    let ignore = ("AWS_ECR_IGNORE_CREDS_STORAGE", "true");
    let ran = bed
        .client_with(&docker, &login, &[daemon, ignore], &password)
        .await
        .succeeded();
    assert!(ran.out.contains("Login Succeeded"), "{ran:#?}");
    let ran = bed
        .client_with(&docker, &["logout", R], &[ignore], "")
        .await
        .succeeded();
    assert!(!ran.err.contains("could not erase"), "{ran:#?}");
    let own = std::fs::read_to_string(bed.path("home/.ecr/ecr-injector.json")).unwrap();
    assert!(!own.contains(R), "the token is kept after the logout");
}

#[tokio::test]
async fn docker_goes_on_without_credentials_and_shows_the_reason() {
    let bed = Bed::start();
    bed.aws
        .tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let image = format!("{R}/shop/web:v1");
    let ran = bed
        .client(&installed("docker"), &["manifest", "inspect", &image])
        .await
        .failed();
    assert!(
        ran.err.contains("docker-credential-ecr-injector: "),
        "{ran:#?}"
    );
    assert!(ran.err.contains("AccessDeniedException"), "{ran:#?}");
    let ran = bed
        .client(&built("crane", "crane"), &["digest", &image])
        .await
        .failed();
    assert!(ran.err.contains("AccessDeniedException"), "{ran:#?}");
}

#[tokio::test]
async fn python_resolves_the_credentials_of_a_registry() {
    let bed = Bed::start();
    let script = "import docker.auth, sys\n\
                  config = docker.auth.load_config()\n\
                  found = config.resolve_authconfig(sys.argv[1])\n\
                  print(found and found['Username'])\n\
                  print(config.resolve_authconfig('ghcr.io'))\n";
    let python = installed("python3");
    let ran = bed.client(&python, &["-c", script, R]).await.succeeded();
    assert_eq!(ran.out, "AWS\nNone\n", "{ran:#?}");
    assert_eq!(bed.aws.calls().len(), 1);
    // It asks a store for a list, and whether "not found" is understood.
    bed.configure(&json!({"credsStore": "ecr-injector"}));
    let ran = bed.client(&python, &["-c", script, R]).await.succeeded();
    assert_eq!(ran.out, "AWS\nNone\n", "{ran:#?}");
}
