//! All but `get`: logins, logouts, lists, versions, and wrong calls.

use std::fs;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::command::{BUILT, Machine, R};
use crate::support::FakeAws;
use crate::support::child::copy_program;

const IGNORE: &str = "AWS_ECR_IGNORE_CREDS_STORAGE";
const LOGIN: &str = r#"{"ServerURL":"https://HOST","Username":"me","Secret":"x"}"#;
const USAGE: &str = "Usage: docker-credential-ecr-injector <get|list|store|erase|version>\n";

/// D-10.
#[tokio::test]
async fn list_has_the_hosts_of_usable_tokens() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    machine.run(&["list"], "unused").await.is(0, "{}\n", "");
    assert!(!machine.cache().exists());

    let expired = R.replace("eu-west-1", "eu-north-1");
    machine.get(&expired).await.answered(&aws, &expired);
    machine.age(SignedDuration::from_hours(12));
    let other = R.replace("eu-west-1", "us-east-1");
    for host in [R, &other] {
        machine.get(host).await.answered(&aws, host);
    }
    aws.clear();
    let expected = format!("{{\"https://{R}\":\"AWS\",\"https://{other}\":\"AWS\"}}\n");
    machine.run(&["list"], "unused").await.is(0, &expected, "");

    let path = machine.cache().join("ecr-injector.json");
    fs::remove_file(machine.cache().join("cache.json")).unwrap();
    for content in ["garbage".to_owned(), " ".repeat(2 << 20)] {
        fs::write(&path, content).unwrap();
        machine.run(&["list"], "").await.is(0, "{}\n", "");
    }
    let machine = machine.set("AWS_ECR_CACHE_DIR", "/proc/self/mem");
    machine.run(&["list"], "").await.is(0, "{}\n", "");
    assert!(aws.calls().is_empty());
}

/// D-11.
#[tokio::test]
async fn login_passes_by_the_variable_alone() {
    let aws = FakeAws::start();
    let login = LOGIN.replace("HOST", R);
    for value in [None, Some("TRUE"), Some("1"), Some(""), Some("true")] {
        let mut machine = Machine::with_keys(&aws);
        if let Some(value) = value {
            machine = machine.set(IGNORE, value);
        }
        for (action, input) in [("store", &*login), ("erase", R)] {
            let run = machine.run(&[action], input).await;
            if value == Some("true") {
                assert_eq!((run.code, &*run.out), (Some(0), ""), "{run:#?}");
                assert_eq!(
                    run.err.contains("was not stored"),
                    action == "store",
                    "{run:#?}"
                );
                continue;
            }
            assert_eq!((run.code, &*run.err), (Some(1), ""), "{run:#?}");
            for word in [
                R,
                "no docker login is needed",
                "AWS_ECR_IGNORE_CREDS_STORAGE=true",
            ] {
                assert!(run.out.contains(word), "{run:#?}");
            }
        }
        let other = LOGIN.replace("HOST", "index.docker.io/v1/");
        let run = machine.run(&["store"], &other).await;
        if value == Some("true") {
            assert!(run.err.contains("pulled without credentials"), "{run:#?}");
        } else {
            assert!(
                run.out.contains("credHelpers instead of credsStore"),
                "{run:#?}"
            );
        }
        for (input, expected) in [
            (r#"{"Username":"me"}"#, "no credentials server URL\n"),
            (r#"{"ServerURL":"R"}"#, "no credentials username\n"),
            (
                "R",
                "the input is not a JSON object with the texts ServerURL, Username and Secret\n",
            ),
        ] {
            machine.run(&["store"], input).await.is(1, expected, "");
        }
        assert!(!machine.cache().exists());
    }
    assert!(aws.calls().is_empty());
}

/// D-12.
#[tokio::test]
async fn logout_removes_the_token_of_one_host() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set(IGNORE, "true");
    let other = R.replace("eu-west-1", "us-east-1");
    for host in [R, &other] {
        machine.get(host).await.answered(&aws, host);
    }
    machine
        .run(&["erase"], &format!("https://{R}"))
        .await
        .is(0, "", "");
    machine.run(&["erase"], "ghcr.io").await.is(0, "", "");
    aws.clear();
    machine.get(&other).await;
    assert!(aws.calls().is_empty());
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls().len(), 1);
}

/// A run that mints would write the token again, so a logout waits for its end, and removes nothing without the lock.
#[tokio::test]
async fn logout_waits_for_a_run_that_mints() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set(IGNORE, "true");
    machine.get(R).await.answered(&aws, R);
    aws.clear();
    let lock = fs::File::open(machine.cache().join("ecr-injector.lock")).unwrap();
    lock.lock().unwrap();
    let hurried = machine.set("ECR_INJECTOR_TIMEOUT", "100ms");
    let run = hurried.run(&["erase"], R).await;
    assert_eq!((run.code, &*run.out), (Some(0), ""), "{run:#?}");
    for word in [R, "the kept token stays", "another process has locked"] {
        assert!(run.err.contains(word), "{run:#?}");
    }
    hurried.get(R).await.answered(&aws, R);
    assert!(aws.calls().is_empty());

    let machine = hurried.unset("ECR_INJECTOR_TIMEOUT");
    let logout = machine.run(&["erase"], R);
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(lock);
    };
    let (run, ()) = tokio::join!(logout, release);
    run.is(0, "", "");
    assert_eq!(machine.own()["entries"].as_array().unwrap().len(), 0);
}

/// D-13.
#[tokio::test]
async fn version_help_and_wrong_calls_have_texts_of_their_own() {
    let aws = FakeAws::start();
    let machine = Machine::without_credentials(&aws);
    let version = format!(
        "docker-credential-ecr-injector (ecr-injector) v{}\n",
        env!("CARGO_PKG_VERSION")
    );
    for (arguments, code, out) in [
        (&["version"][..], 0, &*version),
        (&["--version"], 0, &version),
        (&["-v"], 0, &version),
        (&["help"], 0, USAGE),
        (&["--help"], 0, USAGE),
        (&["-h"], 0, USAGE),
        (&[], 1, USAGE),
        (&["get", "x"], 1, USAGE),
        (
            &["frob"],
            1,
            "docker-credential-ecr-injector: unknown action: frob\n",
        ),
    ] {
        machine.run(arguments, "").await.is(code, out, "");
    }
}

/// D-14.
#[tokio::test]
async fn kubelets_request_is_told_where_to_go() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    let request = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": format!("{R}/a"),
    });
    for arguments in [&[][..], &["get"], &["get-credentials"], &["a", "b"]] {
        let run = machine.run(arguments, &request.to_string()).await;
        assert_eq!((run.code, &*run.out), (Some(1), USAGE), "{run:#?}");
        assert!(
            run.err
                .contains("as the kubelet's plugin use ecr-credential-provider"),
            "{run:#?}"
        );
    }
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn subcommand_and_other_names_are_the_same_helper() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set("AWS_ECR_DISABLE_CACHE", "1");
    let folder = machine.folder.path();
    let login = folder.join("docker-credential-ecr-login");
    let plain = folder.join("tool");
    for name in [&login, &plain] {
        copy_program(BUILT, name);
    }
    let big = env!("CARGO_BIN_EXE_ecr-injector");
    for (program, arguments) in [
        (login.as_path(), &["get"][..]),
        (&plain, &["docker-credential", "get"]),
        (big.as_ref(), &["docker-credential", "get"]),
    ] {
        machine
            .run_as(program, arguments, R)
            .await
            .answered(&aws, R);
    }
    let run = machine
        .run_as(big.as_ref(), &["docker-credential"], "")
        .await;
    run.is(1, USAGE, "");
    let listed = machine
        .run_as(big.as_ref(), &["docker-credential", "list"], "")
        .await;
    assert_eq!(
        serde_json::from_str::<Value>(&listed.out).unwrap(),
        json!({})
    );
}
