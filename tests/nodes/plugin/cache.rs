//! Tokens on disk: who shares them, who doesn't, and what becomes of a folder or a file that isn't as it should be.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use jiff::Timestamp;
use serde_json::Value;

use super::command::{Node, REGISTRY, Run};
use crate::support::fake_aws::metadata::{ContainerCredentials, InstanceMetadata, Manners};
use crate::support::{Behaviour, FakeAws, eventually};

/// The files of this kind, such as `json`.
fn files(node: &Node<'_>, kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.tokens()).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(kind)
    });
    paths
}

fn token_file(node: &Node<'_>) -> PathBuf {
    let files = files(node, "json");
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// Writes a token's file again as if it had been minted so long ago, with a life of so long.
pub(crate) fn age(node: &Node<'_>, minted: Duration, life: Duration) {
    let path = token_file(node);
    let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let at = Timestamp::now() - minted;
    entry["mintedAt"] = at.to_string().into();
    entry["expiresAt"] = (at + life).to_string().into();
    fs::write(&path, entry.to_string()).unwrap();
}

const HOURS: fn(u64) -> Duration = Duration::from_hours;

/// P-40
#[tokio::test]
async fn second_run_asks_nobody() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let first = node.answer(&node.run()).await;
    let folder = fs::metadata(node.tokens()).unwrap();
    assert_eq!(folder.permissions().mode() & 0o7777, 0o700);
    for path in files(&node, "") {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{path:?}");
    }
    let second = node
        .answer(&node.run().image(&format!("{REGISTRY}/other")))
        .await;
    assert_eq!(first.password(), second.password());
    assert_eq!(aws.calls().len(), 1);

    age(&node, HOURS(4), HOURS(10));
    let later = node.answer(&node.run()).await;
    assert_eq!(aws.calls().len(), 1);
    assert!(later.keep().abs_diff(3 * 3600) <= 2, "{later:?}");
}

/// P-41
#[tokio::test]
async fn images_at_once_make_one_call() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.latency = Duration::from_millis(500));
    let runs: Vec<Run> = (0..20)
        .map(|image| node.run().image(&format!("{REGISTRY}/image-{image}")))
        .collect();
    let answers = join_all(runs.iter().map(|run| node.answer(run))).await;
    let password = answers[0].password();
    assert!(answers.iter().all(|ran| ran.password() == password));
    assert_eq!(aws.calls().len(), 1);
}

/// P-43
#[tokio::test]
async fn folder_that_others_could_write_is_not_used() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let [real, link, open, file, foreign] =
        ["real", "link", "open", "file", "foreign"].map(|name| node.path(name));
    for folder in [&real, &open, &foreign] {
        fs::create_dir(folder).unwrap();
    }
    symlink(&real, &link).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    fs::write(&file, "").unwrap();
    // Without the right to give a folder away, nobody but root owns this one.
    let foreign = match std::os::unix::fs::chown(&foreign, Some(12_345), None) {
        Ok(()) => foreign,
        Err(_) => PathBuf::from("/"),
    };
    let read_only = PathBuf::from("/proc/ecr-injector");
    for (calls, folder) in [&link, &open, &file, &foreign, &read_only]
        .into_iter()
        .enumerate()
    {
        let run = node
            .run()
            .arguments(&["--cache-dir", folder.to_str().unwrap(), "--log", "warn"]);
        let ran = node.answer(&run).await;
        assert_eq!(ran.credential().0, REGISTRY);
        assert!(
            ran.err.contains("the folder of tokens is not used"),
            "{ran:?}"
        );
        assert_eq!(aws.calls().len(), calls + 1, "{folder:?}");
    }
    for folder in [real, open] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
    let ran = node
        .answer(&node.run().arguments(&["--cache-dir=none"]))
        .await;
    assert_eq!((ran.credential().0.as_str(), &*ran.err), (REGISTRY, ""));
}

/// P-44
#[tokio::test]
async fn file_that_is_no_token_is_replaced() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    node.answer(&node.run()).await.password();
    let path = token_file(&node);
    let good = fs::read(&path).unwrap();
    let entry: Value = serde_json::from_slice(&good).unwrap();
    let with = |field: &str, value: Value| {
        let mut entry = entry.clone();
        entry[field] = value;
        entry.to_string().into_bytes()
    };
    let future = (Timestamp::now() + HOURS(1)).to_string();
    for content in [
        good[..good.len() / 2].to_vec(),
        Vec::new(),
        b"garbage".to_vec(),
        with("version", 2.into()),
        with("key", "of another".into()),
        with("auth", "QQ==".into()),
        with("mintedAt", future.into()),
        with(
            "expiresAt",
            (Timestamp::now() + HOURS(30)).to_string().into(),
        ),
    ] {
        aws.clear();
        fs::write(&path, &content).unwrap();
        node.answer(&node.run()).await.password();
        assert_eq!(
            aws.calls().len(),
            1,
            "{}",
            String::from_utf8_lossy(&content)
        );
        node.answer(&node.run()).await.password();
        assert_eq!(aws.calls().len(), 1);
    }
    aws.clear();
    File::create(&path).unwrap().set_len(1 << 30).unwrap();
    node.answer(&node.run()).await.password();
    assert_eq!(aws.calls().len(), 1);
    assert!(fs::metadata(&path).unwrap().len() < 16 << 10);
}

/// P-45
#[tokio::test]
async fn killed_run_blocks_no_other() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let mut child = node.run().spawn().await;
    eventually("a call", Duration::from_secs(20), async || {
        (!aws.calls().is_empty()).then_some(())
    })
    .await;
    child.kill().await.unwrap();
    let left = node.tokens().join(format!("{}.json.tmp-1", "a".repeat(32)));
    File::create(&left)
        .unwrap()
        .set_modified(SystemTime::now() - HOURS(2))
        .unwrap();
    let young = node.tokens().join(format!("{}.json.tmp-2", "a".repeat(32)));
    let foreign = node.tokens().join("of-somebody-else");
    for path in [&young, &foreign] {
        fs::write(path, "").unwrap();
    }

    aws.behave();
    let ran = node.answer(&node.run()).await;
    ran.password();
    assert!(ran.took < Duration::from_secs(5), "{ran:?}");
    assert!(!left.exists() && young.exists() && foreign.exists());
}

/// P-46
#[tokio::test]
async fn older_token_is_used_if_aws_cannot_be_asked_and_not_if_it_refuses() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let first = node.answer(&node.run()).await.password();
    age(&node, HOURS(6), HOURS(10));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    let ran = node.answer(&node.run()).await;
    assert_eq!(ran.password(), first);
    assert!(ran.keep().abs_diff(2 * 3600) <= 10, "{ran:?}");
    assert!(
        ran.err.contains("is throttled") && ran.err.contains("the cached token"),
        "{ran:?}"
    );

    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    node.answer(&node.run()).await.failed(1, &["AccessDenied"]);

    age(&node, HOURS(9) + Duration::from_mins(56), HOURS(10));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    node.answer(&node.run()).await.failed(1, &["is throttled"]);

    aws.behave();
    age(&node, HOURS(6), HOURS(10));
    assert_ne!(
        node.answer(&node.run()).await.password(),
        first,
        "half of its life is over"
    );
}

/// A source that is away says nothing about what the identity may do; one that answers otherwise does.
#[tokio::test]
async fn older_token_is_used_if_the_source_of_the_credentials_is_away() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let metadata = InstanceMetadata::start(&aws, "node");
    let agent = ContainerCredentials::start(&aws, "agent");
    let run = || node.bare().variables(aws.endpoints());
    let of_instance = run().variables(metadata.environment());
    let of_agent = run().variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.uri());
    let behave = |manners| {
        metadata.behave(manners);
        agent.behave(manners);
    };
    for run in [of_instance, of_agent] {
        behave(Manners::Answer);
        let first = node.answer(&run).await.password();
        age(&node, HOURS(6), HOURS(10));
        for manners in [Manners::Fail(503), Manners::Fail(429), Manners::Hang] {
            behave(manners);
            let ran = node.answer(&run).await;
            assert_eq!(ran.password(), first, "{manners:?}");
            assert!(ran.err.contains("the cached token"), "{ran:?}");
        }
        for manners in [Manners::Fail(403), Manners::Fail(404)] {
            behave(manners);
            let ran = node.answer(&run).await;
            ran.failed(1, &["no AWS credentials"]);
        }
        assert_eq!(aws.calls().len(), 1);
        aws.clear();
        fs::remove_dir_all(node.tokens()).unwrap();
    }
}

/// P-47
#[tokio::test]
async fn other_identity_gets_a_token_of_its_own() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let metadata = InstanceMetadata::start(&aws, "node");
    let other = aws
        .keys_of("arn:aws:iam::123456789012:user/other")
        .variables();
    let profile = |name: &str, key: &str| {
        let path = node.path(name);
        let secret = crate::support::fake_aws::secret_access_key();
        let text = format!("[p]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).unwrap();
        let run = node.bare().variables(aws.endpoints());
        run.variable("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap())
            .variable("AWS_PROFILE", "p")
    };
    let with_other = node
        .run()
        .without("AWS_ACCESS_KEY_ID")
        .variables(other.clone());
    let endpoint = node
        .run()
        .variable("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let runs = [
        node.run(),
        with_other,
        profile("one", crate::support::fake_aws::ACCESS_KEY),
        profile("two", &other[0].1),
        node.bare()
            .variables(aws.endpoints())
            .variables(metadata.environment()),
        endpoint,
    ];
    let mut passwords = Vec::new();
    for run in &runs {
        passwords.push(node.answer(run).await.password());
    }
    let mut distinct = passwords.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), runs.len());
    aws.clear();
    for (run, password) in runs.iter().zip(&passwords) {
        assert_eq!(node.answer(run).await.password(), *password);
    }
    assert!(aws.calls().is_empty());
}
