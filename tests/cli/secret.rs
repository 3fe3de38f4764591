//! `ecr-injector secret`: what a person pipes into kubectl, and that it is shown nowhere else.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Behaviour, FakeAws, config_file};

const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const OTHER: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";

/// A run that has ended.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    /// Fails with this code and this in the message, and prints nothing.
    #[track_caller]
    fn fails(&self, code: i32, message: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(message), "{message}: {self:?}");
        assert_eq!(self.out, "");
    }

    #[track_caller]
    fn object(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_saphyr::from_str(&self.out).unwrap()
    }

    /// Returns the docker config of the Secret.
    #[track_caller]
    fn docker_config(&self) -> Value {
        let data = &self.object()["data"][".dockerconfigjson"];
        let data = BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap();
        serde_json::from_slice(&data).unwrap()
    }
}

async fn run_with(aws: &FakeAws, program: &str, arguments: &[&str]) -> Run {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(aws.environment())
        .env("HOME", home.path())
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    assert_eq!(aws.leak_in(&run.err), None, "a secret is shown: {run:?}");
    run
}

async fn secret(aws: &FakeAws, arguments: &[&str]) -> Run {
    let arguments = [&["secret"], arguments].concat();
    run_with(aws, env!("CARGO_BIN_EXE_ecr-injector"), &arguments).await
}

#[tokio::test]
async fn secret_is_a_manifest_without_marks_of_ours() {
    let aws = FakeAws::start();
    let run = secret(&aws, &["--registry", REGISTRY, "-n", "team-a"]).await;
    let object = run.object();
    assert_eq!(object["kind"], "Secret");
    assert_eq!(object["type"], "kubernetes.io/dockerconfigjson");
    let metadata = object["metadata"].as_object().unwrap();
    assert_eq!(metadata["name"], "ecr-pull-secret");
    assert_eq!(metadata["namespace"], "team-a");
    assert_eq!(metadata.get("labels"), None);
    let annotations = metadata["annotations"].as_object().unwrap();
    let keys: Vec<&String> = annotations.keys().collect();
    assert_eq!(keys, ["ecr-injector.dev/expires-at"]);
    let expires = annotations[keys[0]].as_str().unwrap();
    // A token of twelve hours, and the call to get it may have taken less than a second.
    let lines = ["11h 59m", "12h"].map(|left| {
        format!("expires {expires} ({left}): nothing renews it; ecr-injector serve would\n")
    });
    assert!(lines.contains(&run.err), "{}", run.err);
    let config = run.docker_config();
    let entry = &config["auths"][REGISTRY];
    let plain = format!("AWS:{}", entry["password"].as_str().unwrap());
    assert_eq!(entry["auth"], json!(BASE64_STANDARD.encode(plain)));
    assert_eq!(entry["username"], "AWS");
    // The same in the other formats.
    let run = secret(
        &aws,
        &["--registry", REGISTRY, "-o", "json", "--for", "flux"],
    )
    .await;
    assert_eq!(run.object()["metadata"].get("namespace"), None);
    let run = secret(&aws, &["--registry", REGISTRY, "-o", "dockerconfig"]).await;
    assert_eq!(run.object()["auths"][REGISTRY]["username"], "AWS");
}

#[tokio::test]
async fn registries_of_one_identity_share_one_token() {
    let aws = FakeAws::start();
    let both = ["--registry", REGISTRY, "--registry", OTHER];
    let config = secret(&aws, &both).await.docker_config();
    let auth = |host: &str| config["auths"][host]["auth"].clone();
    assert!(auth(REGISTRY).is_string());
    assert_eq!(auth(REGISTRY), auth(OTHER));
    assert_eq!(aws.calls().len(), 1);
}

#[tokio::test]
async fn scheme_and_slash_are_no_part_of_the_key() {
    let aws = FakeAws::start();
    for text in ["https://HOST/", "http://HOST", "HOST/"] {
        let text = text.replace("HOST", REGISTRY);
        let config = secret(&aws, &["--registry", &text]).await.docker_config();
        let hosts: Vec<&String> = config["auths"].as_object().unwrap().keys().collect();
        assert_eq!(hosts, [REGISTRY], "{text}");
    }
    let path = format!("{REGISTRY}/team/app");
    let run = secret(&aws, &["--registry", &path]).await;
    run.fails(1, "looks like ECR, but a host has no path");
    secret(&aws, &["--registry", "quay.io"])
        .await
        .fails(1, "nor an alias");
    let login = format!("AWS:hunter2@{REGISTRY}");
    let run = secret(&aws, &["--registry", &login]).await;
    run.fails(1, "--registry has an @");
    assert!(!run.err.contains("hunter2"));
}

#[tokio::test]
async fn nothing_is_printed_if_one_registry_fails() {
    let aws = FakeAws::start();
    let elsewhere = "123456789012.dkr.ecr.us-west-2.amazonaws.com";
    let both = ["--registry", REGISTRY, "--registry", elsewhere];
    assert_eq!(secret(&aws, &both).await.code, Some(0));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let run = secret(&aws, &both).await;
    run.fails(1, "no token for");
    assert!(run.err.contains("AccessDenied"), "{run:?}");
}

#[tokio::test]
async fn argocd_gets_the_credentials_of_one_repository() {
    let aws = FakeAws::start();
    let base = [
        "--for",
        "argocd",
        "-n",
        "argocd",
        "--name",
        "ecr-charts",
        "--registry",
    ];
    let run = secret(&aws, &[&base[..], &[REGISTRY]].concat()).await;
    let object = run.object();
    let labels = json!({"argocd.argoproj.io/secret-type": "repository"});
    assert_eq!(object["metadata"]["labels"], labels);
    let field = |name: &str| {
        let data = object["data"][name].as_str().unwrap();
        String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap()
    };
    assert_eq!([field("url"), field("enableOCI")], [REGISTRY, "true"]);
    assert_eq!([field("type"), field("username")], ["helm", "AWS"]);
    assert!(!field("password").is_empty());
    let two = [&base[..], &[REGISTRY, "--registry", OTHER]].concat();
    secret(&aws, &two).await.fails(2, "one --registry");
    let config = [&base[..], &[REGISTRY, "-o", "dockerconfig"]].concat();
    secret(&aws, &config).await.fails(2, "no docker config");
}

#[tokio::test]
async fn role_mints_alone_or_as_an_annotation_would() {
    let aws = FakeAws::start();
    let by_role = ["--registry", REGISTRY, "--role-arn", ROLE];
    secret(&aws, &by_role).await.object();
    let assumed = aws.calls_to("sts");
    assert_eq!(assumed.len(), 1);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let write = |yaml: &str| fs::write(&config, config_file(yaml)).unwrap();
    let with_config = [&by_role[..], &["--config", config.to_str().unwrap()]].concat();
    write("");
    let run = secret(&aws, &with_config).await;
    run.fails(1, "is not in namespaceRoles.allow");
    write("allow: {accounts: [\"444455556666\"]}");
    secret(&aws, &with_config).await.fails(1, "allow list");
    write("identities: [{namespaces: [team-*], ambient: true}]");
    secret(&aws, &with_config)
        .await
        .fails(1, "--namespace is missing");
    let named = [&with_config[..], &["-n", "team-a"]].concat();
    secret(&aws, &named).await.object();
    assert_eq!(
        aws.calls_to("sts").len(),
        1,
        "the rule comes before the annotation"
    );
}

#[tokio::test]
async fn names_that_kubernetes_rejects_are_wrong_usage() {
    let aws = FakeAws::start();
    let base = ["--registry", REGISTRY];
    for (flag, value) in [
        ("--name", "Nope"),
        ("--name", ""),
        ("-n", "a.b"),
        ("--role-arn", "x"),
    ] {
        secret(&aws, &[&base[..], &[flag, value]].concat())
            .await
            .fails(2, "invalid value");
    }
    secret(&aws, &[]).await.fails(2, "--registry");
    for (flags, message) in [
        (&["--managed"][..], "--namespace is missing"),
        (&["--managed", "-n", "a", "--name", "b"], "leave --name out"),
        (
            &["--managed", "-n", "a", "--for", "flux"],
            "leave --for out",
        ),
        (
            &["--managed", "-n", "a", "-o", "dockerconfig"],
            "leave -o dockerconfig out",
        ),
    ] {
        secret(&aws, &[&base[..], flags].concat())
            .await
            .fails(2, message);
    }
    let run = secret(
        &aws,
        &[&base[..], &["--managed", "-n", "kube-system"]].concat(),
    )
    .await;
    run.fails(1, "kube-system is excluded");
    assert_eq!(aws.calls().len(), 0, "nothing is minted for a mistake");
}

/// Each command of the page, up to the pipe.
#[tokio::test]
async fn commands_in_the_documents_print_secrets() {
    let aws = FakeAws::start();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how-to/secret-by-hand.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("\n```").skip(1).step_by(2);
    let mut run = 0;
    for script in blocks.map(|block| block.replace("\\\n", " ")) {
        let command = script
            .lines()
            .find(|line| line.starts_with("ecr-injector secret"));
        let command = command.unwrap_or_else(|| panic!("{script}"));
        let command = command.split(['|', '>']).next().unwrap();
        let arguments: Vec<&str> = command.split_whitespace().skip(2).collect();
        secret(&aws, &arguments).await.object();
        run += 1;
    }
    assert!(run > 5, "{run}");
}

/// `script` gives the command a terminal; what the command writes comes through `script`'s output.
#[tokio::test]
async fn password_is_not_written_to_a_terminal() {
    let aws = FakeAws::start();
    let binary = env!("CARGO_BIN_EXE_ecr-injector");
    let script = async |flags: &str| {
        let command = format!("{binary} secret --registry {REGISTRY} {flags}");
        run_with(&aws, "script", &["-qec", &command, "/dev/null"]).await
    };
    let run = script("").await;
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.out.contains("the output is a password"), "{run:?}");
    assert_eq!(aws.leak_in(&run.out), None);
    assert_eq!(aws.calls().len(), 0);
    let run = script("--show").await;
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.contains("dockerconfigjson"), "{run:?}");
}
