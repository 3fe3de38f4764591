//! The cache of amazon-ecr-credential-helper, which both helpers read and write. Files of that
//! helper itself are in `make test-clients`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::command::{Machine, R};
use crate::support::fake_aws::ACCESS_KEY;
use crate::support::{Behaviour, FakeAws};

/// The MD5 of nothing.
const EMPTY_MD5: [u8; 16] = [
    0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e,
];

fn key() -> String {
    let id = BASE64_STANDARD.encode(Sha256::digest(ACCESS_KEY));
    format!("eu-west-1-{id}-210987654321")
}

fn old_key() -> String {
    let id = BASE64_STANDARD.encode([ACCESS_KEY.as_bytes(), &EMPTY_MD5].concat());
    format!("eu-west-1-{id}-210987654321")
}

/// An entry as that helper writes it.
fn entry(password: &str, requested: &str, expires: &str) -> Value {
    json!({
        "AuthorizationToken": BASE64_STANDARD.encode(format!("AWS:{password}")),
        "RequestedAt": requested,
        "ExpiresAt": expires,
        "ProxyEndpoint": format!("https://{R}"),
        "Service": "ecr",
    })
}

fn hours(hours: i64) -> String {
    let at = Timestamp::now() + SignedDuration::from_hours(hours);
    // Local time with an offset, as Go has it.
    let plain = (at + SignedDuration::from_hours(2)).to_string();
    plain.replace('Z', "+02:00")
}

/// Writes the file, and returns what is in it.
fn write(machine: &Machine<'_>, text: &str) {
    fs::create_dir_all(machine.cache()).unwrap();
    fs::set_permissions(machine.cache(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(machine.cache().join("cache.json"), text).unwrap();
}

fn read(machine: &Machine<'_>) -> String {
    fs::read_to_string(machine.cache().join("cache.json")).unwrap()
}

/// D-20, D-22.
#[tokio::test]
async fn token_of_the_other_helper_is_answered_without_a_call() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for key in [key(), old_key()] {
        let entry = entry("theirs", &hours(-1), &hours(11));
        let file = json!({"Registries": {key: entry}, "Version": "1.0"}).to_string();
        write(&machine, &file);
        machine.get(R).await.answered_with("theirs", R);
        assert_eq!(read(&machine), file);
        let list = machine.run(&["list"], "").await;
        assert_eq!(list.out, format!("{{\"https://{R}\":\"AWS\"}}\n"));
    }
    assert!(aws.calls().is_empty());
}

/// D-22.
#[tokio::test]
async fn file_of_another_form_is_a_miss_and_stays() {
    let aws = FakeAws::start();
    let good = entry("theirs", &hours(-1), &hours(11));
    let mut endless = good.clone();
    endless.as_object_mut().unwrap().remove("ExpiresAt");
    for (file, stays) in [
        (
            json!({"Registries": {key(): good}, "Version": "2.0"}).to_string(),
            true,
        ),
        ("garbage".to_owned(), true),
        (
            json!({"Registries": {key(): endless}, "Version": "1.0"}).to_string(),
            false,
        ),
    ] {
        let machine = Machine::with_keys(&aws);
        write(&machine, &file);
        machine.get(R).await.answered(&aws, R);
        assert_eq!(read(&machine) == file, stays, "{file}");
    }
    assert_eq!(aws.calls().len(), 3);
}

/// D-21.
#[tokio::test]
async fn minted_token_is_written_for_the_other_helper() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    let expired = entry("old", &hours(-24), &hours(-12));
    let file = json!({"Registries": {old_key(): expired, "x": {"Odd": 1}}, "Version": "1.0"});
    write(&machine, &file.to_string());
    machine.get(R).await.answered(&aws, R);

    let text = read(&machine);
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["Version"], "1.0");
    assert_eq!(written.as_object().unwrap().len(), 2);
    let registries = written["Registries"].as_object().unwrap();
    assert_eq!(registries.len(), 3, "{registries:#?}");
    assert_eq!(registries[&old_key()], expired);
    assert_eq!(registries["x"], json!({"Odd": 1}));
    let password = aws.passwords().pop().unwrap();
    let ours = &registries[&key()];
    let auth = BASE64_STANDARD.encode(format!("AWS:{password}"));
    assert_eq!(ours["AuthorizationToken"], auth);
    assert_eq!(ours["ProxyEndpoint"], format!("https://{R}"));
    assert_eq!(ours["Service"], "ecr");
    assert_eq!(ours.as_object().unwrap().len(), 5);
    // The access key's id is nowhere in clear but in the entry that was there.
    assert_eq!(
        text.matches(&BASE64_STANDARD.encode(ACCESS_KEY)[..20])
            .count(),
        1
    );

    // Without our own file, the entry is as good.
    fs::remove_file(machine.cache().join("ecr-injector.json")).unwrap();
    aws.clear();
    machine.get(R).await.answered(&aws, R);
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn unusable_file_of_the_other_helper_costs_its_tokens_alone() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for content in [" ".repeat(2 << 20), "{".to_owned()] {
        write(&machine, &content);
        let path = machine.cache().join("cache.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        machine.get(R).await.answered(&aws, R);
        machine.get(R).await.answered(&aws, R);
        assert_eq!(read(&machine), content);
    }
    assert_eq!(aws.calls().len(), 1);
}

#[tokio::test]
async fn logout_removes_what_was_written_for_the_other_helper() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set("AWS_ECR_IGNORE_CREDS_STORAGE", "true");
    let theirs = entry("theirs", &hours(-24), &hours(-12));
    let file = json!({"Registries": {"x": theirs}, "Version": "1.0"});
    write(&machine, &file.to_string());
    machine.get(R).await.answered(&aws, R);
    machine.run(&["erase"], R).await.is(0, "", "");
    let left: Value = serde_json::from_str(&read(&machine)).unwrap();
    assert_eq!(left, file);
}

/// D-28.
#[tokio::test]
async fn expired_token_of_the_other_helper_is_never_answered() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    for (requested, expires, is_answered) in [
        (-12, 0, false),
        (-11, 1, true),
        (-1, 200, false),
        (2, 12, false),
    ] {
        let entry = entry("theirs", &hours(requested), &hours(expires));
        let file = json!({"Registries": {key(): entry}, "Version": "1.0"});
        write(&machine, &file.to_string());
        let run = machine.get(R).await;
        if is_answered {
            run.answered_with("theirs", R);
        } else {
            run.failed_with(&["is throttled"]);
        }
    }
}
