//! The kept tokens: when they are answered without a call, and when they must not be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::SignedDuration;
use tokio::io::AsyncWriteExt as _;

use super::command::{Machine, R, REGION, files};
use crate::support::fake_aws::metadata::{InstanceMetadata, Manners};
use crate::support::{Behaviour, FakeAws};

const HALF: SignedDuration = SignedDuration::from_hours(6);

/// D-24.
#[tokio::test]
async fn another_principal_or_region_is_a_miss() {
    let aws = FakeAws::start();
    let keys = aws.keys_of("arn:aws:iam::123456789012:user/other");
    let machine = Machine::with_keys(&aws);
    machine.get(R).await.answered(&aws, R);
    let other_region = R.replace("eu-west-1", "us-east-1");
    machine
        .get(&other_region)
        .await
        .answered(&aws, &other_region);
    let other_account = R.replace("2109", "9012");
    machine
        .get(&other_account)
        .await
        .answered(&aws, &other_account);
    let machine = machine.variables(keys.variables());
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls().len(), 4);
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls().len(), 4);
}

/// D-25.
#[tokio::test]
async fn thirty_at_once_mint_once() {
    let aws = FakeAws::start();
    aws.tune_ecr(|knobs| knobs.latency = Duration::from_millis(500));
    let machine = Machine::with_keys(&aws);
    let runs = join_all((0..30).map(|_| machine.get(R))).await;
    for run in runs {
        run.answered(&aws, R);
    }
    assert_eq!(aws.calls().len(), 1);
}

/// D-26.
#[tokio::test]
async fn held_lock_delays_an_answer_and_never_prevents_it() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set("ECR_INJECTOR_TIMEOUT", "7s");
    fs::create_dir(machine.cache()).unwrap();
    fs::set_permissions(machine.cache(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = machine.cache().join("ecr-injector.lock");
    let lock = fs::File::create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    lock.lock().unwrap();
    let run = machine.get(R).await;
    run.answered(&aws, R);
    assert!(
        run.took >= Duration::from_secs(2),
        "it didn't wait: {run:#?}"
    );
    assert!(run.took < Duration::from_secs(7), "{run:#?}");
}

/// D-27.
#[tokio::test]
async fn token_past_half_of_its_life_is_the_second_choice() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    machine.get(R).await.answered(&aws, R);
    let first = aws.passwords().pop().unwrap();
    machine.age(HALF);

    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    machine.get(R).await.failed_with(&["AccessDenied"]);
    for behaviour in [Behaviour::Throttle, Behaviour::ServerError] {
        aws.tune_ecr(|knobs| knobs.behaviour = behaviour);
        let run = machine.get(R).await;
        run.answered_with(&first, R);
        assert_eq!(run.err, "", "{run:#?}");
    }
    let machine = machine.set("ECR_INJECTOR_LOG", "info");
    let run = machine.get(R).await;
    assert!(run.err.contains("using the kept token"), "{run:#?}");

    aws.behave();
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.passwords().len(), 2);
    aws.clear();
    machine.get(R).await.answered(&aws, R);
    assert!(aws.calls().is_empty());
}

/// A source that is away says nothing about what the identity may do; one that answers otherwise does.
#[tokio::test]
async fn token_past_half_of_its_life_is_used_if_the_source_of_the_credentials_is_away() {
    let aws = FakeAws::start();
    let metadata = InstanceMetadata::start(&aws, "laptop");
    let machine = Machine::without_credentials(&aws)
        .unset("AWS_EC2_METADATA_DISABLED")
        .variables(metadata.environment());
    machine.get(R).await.answered(&aws, R);
    let first = aws.passwords().pop().unwrap();
    machine.age(HALF);
    for manners in [Manners::Fail(500), Manners::Hang] {
        metadata.behave(manners);
        machine.get(R).await.answered_with(&first, R);
    }
    metadata.behave(Manners::NoRole);
    machine.get(R).await.failed_with(&["no AWS credentials"]);
    assert_eq!(aws.calls().len(), 1);
}

/// D-28.
#[tokio::test]
async fn expired_token_is_never_answered() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    machine.get(R).await.answered(&aws, R);
    machine.age(SignedDuration::from_hours(12));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    machine.get(R).await.failed_with(&["is throttled"]);
}

/// D-29.
#[tokio::test]
async fn cache_is_off_by_any_value() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set("AWS_ECR_DISABLE_CACHE", "0");
    for _ in 0..2 {
        machine.get(R).await.answered(&aws, R);
    }
    assert_eq!(aws.calls().len(), 2);
    assert!(files(&machine.home()).is_empty());
    let machine = machine.set("AWS_ECR_DISABLE_CACHE", "");
    machine.get(R).await.answered(&aws, R);
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls().len(), 3);
}

/// D-30.
#[tokio::test]
async fn tilde_is_the_home_and_without_one_there_is_no_cache() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws).set("AWS_ECR_CACHE_DIR", "~/x/y");
    machine.get(R).await.answered(&aws, R);
    let path = machine.home().join("x/y/ecr-injector.json");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = fs::metadata(path.parent().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    machine.get(R).await.answered(&aws, R);
    assert_eq!(aws.calls().len(), 1);
    // The home of another user is never guessed, and never a folder of this name.
    let machine = machine.set("AWS_ECR_CACHE_DIR", "~other/x");
    machine.get(R).await.answered(&aws, R);
    assert!(!machine.folder.path().join("~other").exists());
    // The passwd entry's home is a person's own: nothing is kept there in a test.
    let machine = machine.unset("HOME").set("AWS_ECR_CACHE_DIR", "/proc/none");
    machine.get(R).await.answered(&aws, R);
}

/// D-31.
#[tokio::test]
async fn unsafe_folder_or_file_is_not_used() {
    let aws = FakeAws::start();
    let folder = |machine: &Machine<'_>, mode| {
        fs::create_dir(machine.cache()).unwrap();
        fs::set_permissions(machine.cache(), fs::Permissions::from_mode(mode)).unwrap();
    };
    let machine = || Machine::with_keys(&aws).set("ECR_INJECTOR_LOG", "info");

    let open = machine();
    folder(&open, 0o777);
    let run = open.get(R).await;
    run.answered(&aws, R);
    assert!(run.err.contains("can be written by others"), "{run:#?}");
    assert!(files(&open.cache()).is_empty());

    for name in ["ecr-injector.json", "ecr-injector.lock"] {
        let linked = machine();
        folder(&linked, 0o700);
        let target = linked.folder.path().join("target");
        fs::write(&target, "").unwrap();
        symlink(&target, linked.cache().join(name)).unwrap();
        let run = linked.get(R).await;
        run.answered(&aws, R);
        assert!(run.err.contains("is no regular file"), "{run:#?}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "");
    }

    let blocked = machine();
    fs::write(blocked.cache(), "").unwrap();
    blocked.get(R).await.answered(&aws, R);
    let read_only = machine().set("AWS_ECR_CACHE_DIR", "/proc/none");
    let run = read_only.get(R).await;
    run.answered(&aws, R);
    assert!(run.err.contains("no cache: /proc/none"), "{run:#?}");
    let quiet = read_only.unset("ECR_INJECTOR_LOG").get(R).await;
    assert_eq!(quiet.err, "", "{quiet:#?}");
}

/// D-32.
#[tokio::test]
async fn killed_process_leaves_a_whole_file() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    let started = Instant::now();
    machine.get(R).await.answered(&aws, R);
    let whole = started.elapsed();
    let mut kept = 0;
    for round in 0..200 {
        let host = R.replace("2109", &format!("{:04}", 1000 + round));
        let mut child = machine.spawn(&machine.program(), &["get"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(host.as_bytes()).await.unwrap();
        drop(stdin);
        // Later and later, so that some are killed in every part of a run.
        let ends = whole.mul_f64(0.5 + f64::from(round % 20) / 20.0);
        let _ = tokio::time::timeout(ends, child.wait()).await;
        let _ = child.kill().await;
        kept = kept.max(machine.own()["entries"].as_array().unwrap().len());
    }
    assert!(kept > 1, "no run came to its end");
    machine.get(R).await;
    let left = files(&machine.cache()).len();
    assert!(left < 200, "{left} files");
}

#[tokio::test]
async fn own_cache_of_another_form_is_replaced() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    machine.get(R).await.answered(&aws, R);
    fs::remove_file(machine.cache().join("cache.json")).unwrap();
    for content in ["", "garbage", r#"{"version":2,"entries":[]}"#] {
        aws.clear();
        fs::remove_file(machine.cache().join("cache.json")).ok();
        fs::write(machine.cache().join("ecr-injector.json"), content).unwrap();
        machine.get(R).await.answered(&aws, R);
        assert_eq!(aws.ecr_calls(REGION).len(), 1, "{content}");
        assert_eq!(machine.own()["entries"].as_array().unwrap().len(), 1);
    }
}
