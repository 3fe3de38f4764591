//! `get`: which servers have credentials, and the answers for all others.

use std::time::Duration;

use super::command::{Machine, R, REGION, files};
use crate::support::{Behaviour, FakeAws};

/// D-01.
#[tokio::test]
async fn private_registry_gets_a_token() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    let run = machine.get(R).await;
    run.answered(&aws, R);
    assert_eq!(run.err, "");
    assert_eq!(aws.ecr_calls(REGION).len(), 1);
}

/// D-02.
#[tokio::test]
async fn server_has_any_form_that_clients_send() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for form in [
        "https://R",
        "R/",
        "R/shop/web",
        "https://R/v2/",
        "R:443",
        "https://R:443",
        "http://R",
        " R\r\n",
        "R\n",
    ] {
        let server = form.replace('R', R);
        machine.get(&server).await.answered(&aws, server.trim());
    }
    // All are one registry.
    assert_eq!(aws.calls().len(), 1);
}

/// D-03.
#[tokio::test]
async fn every_form_of_host_is_asked_for_in_its_region() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for (suffix, region) in [
        ("dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1"),
        ("dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1"),
        ("dkr-ecr.us-west-2.on.aws", "us-west-2"),
        ("dkr-ecr-fips.us-west-2.on.aws", "us-west-2"),
        ("dkr.ecr.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("dkr-ecr.us-gov-east-1.on.aws", "us-gov-east-1"),
        ("dkr-ecr-fips.us-gov-east-1.on.aws", "us-gov-east-1"),
        ("dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("dkr.ecr-fips.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (
            "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
            "cn-northwest-1",
        ),
        (
            "dkr-ecr-fips.cn-north-1.on.amazonwebservices.com.cn",
            "cn-north-1",
        ),
        ("dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("dkr.ecr-fips.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        ("dkr.ecr-fips.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        ("dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        (
            "dkr.ecr-fips.us-isob-east-1.sc2s.sgov.gov",
            "us-isob-east-1",
        ),
        ("dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
        (
            "dkr.ecr-fips.eu-isoe-west-1.cloud.adc-e.uk",
            "eu-isoe-west-1",
        ),
        ("dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
        (
            "dkr.ecr-fips.us-isof-south-1.csp.hci.ic.gov",
            "us-isof-south-1",
        ),
    ] {
        aws.clear();
        // Only one form of a region's host is asked for: the others are another helper's hit.
        let machine = machine_without_cache(&machine);
        let host = format!("210987654321.{suffix}");
        machine.get(&host).await.answered(&aws, &host);
        let calls = aws.calls();
        let regions: Vec<&str> = calls.iter().map(|call| call.region.as_str()).collect();
        assert_eq!(regions, [region], "{host}");
    }
    for host in ["public.ecr.aws", "ecr-public.aws.com"] {
        aws.clear();
        let machine = machine_without_cache(&machine);
        machine.get(host).await.answered(&aws, host);
        assert_eq!(aws.calls_to("ecr-public").len(), 1);
    }
}

fn machine_without_cache<'a>(machine: &Machine<'a>) -> Machine<'a> {
    Machine::with_keys(machine.aws).set("AWS_ECR_DISABLE_CACHE", "1")
}

/// D-04.
#[tokio::test]
async fn other_servers_are_not_found_and_nothing_is_touched() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for server in [
        "ghcr.io",
        "https://index.docker.io/v1/",
        "R.example",
        "x/R",
        "a@R",
        "R.",
        "R\nx",
        "R x",
        "RRR",
        "\u{fffd}",
        "localhost:5000",
        "210987654321.dkr.ecr.EU-WEST-1.amazonaws.com",
    ] {
        let server = server.replace('R', R);
        machine.get(&server).await.not_found();
    }
    assert!(aws.calls().is_empty());
    assert!(files(&machine.home()).is_empty());
}

/// D-05.
#[tokio::test]
async fn empty_server_is_the_protocols_error() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws);
    for input in ["", " ", "\n", " \r\n\t\n"] {
        let run = machine.get(input).await;
        run.is(1, "no credentials server URL\n", "");
        machine
            .run(&["erase"], input)
            .await
            .is(1, "no credentials server URL\n", "");
    }
    let long = "x".repeat(65 * 1024);
    let run = machine.get(&long).await;
    run.is(1, "standard input has more than 65536 bytes\n", "");
}

/// D-06.
#[tokio::test]
async fn failure_is_not_found_with_the_reason_on_one_line() {
    let aws = FakeAws::start();
    for (behaviour, words) in [
        (Behaviour::Refuse, "AccessDeniedException"),
        (Behaviour::Throttle, "is throttled"),
        (Behaviour::ServerError, "failed on AWS's side"),
        (Behaviour::Hang, "timed out"),
    ] {
        aws.tune_ecr(|knobs| knobs.behaviour = behaviour);
        let machine = Machine::with_keys(&aws).set("ECR_INJECTOR_TIMEOUT", "3s");
        let run = machine.get(R).await;
        run.failed_with(&["docker-credential-ecr-injector: ", R, words]);
        assert!(run.took < Duration::from_millis(3500) + SLACK, "{run:#?}");
        let run = machine.set("ECR_INJECTOR_LOG", "off").get(R).await;
        run.not_found();
    }
    aws.behave();
    let run = Machine::without_credentials(&aws).get(R).await;
    run.failed_with(&["no AWS credentials", "instance metadata"]);
}

/// The time that a busy machine may add.
const SLACK: Duration = Duration::from_secs(5);

/// D-06.
#[tokio::test]
async fn unanswered_call_ends_within_the_budget() {
    let aws = FakeAws::start();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let run = Machine::with_keys(&aws).get(R).await;
    run.failed_with(&["timed out"]);
    assert!(run.took < Duration::from_millis(15_500) + SLACK, "{run:#?}");
}

#[tokio::test]
async fn mistake_in_a_variable_costs_no_pull() {
    let aws = FakeAws::start();
    let machine = Machine::with_keys(&aws)
        .set("ECR_INJECTOR_TIMEOUT", "soon")
        .set("ECR_INJECTOR_LOG", "loud");
    let run = machine.get(R).await;
    run.answered(&aws, R);
    assert!(
        run.err.contains("\"soon\"") && run.err.contains("\"loud\""),
        "{run:#?}"
    );
}

#[tokio::test]
async fn throttled_call_is_tried_again() {
    let aws = FakeAws::start();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    let machine = Machine::with_keys(&aws);
    machine.get(R).await.failed_with(&["is throttled"]);
    assert_eq!(aws.calls().len(), 2);
    aws.clear();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    machine.get(R).await.failed_with(&["AccessDenied"]);
    assert_eq!(aws.calls().len(), 1);
}

/// D-07.
#[tokio::test]
async fn public_gallery_gets_a_token_if_it_can_and_else_silence() {
    let aws = FakeAws::start();
    let host = "public.ecr.aws";
    Machine::with_keys(&aws)
        .get(host)
        .await
        .answered(&aws, host);
    Machine::without_credentials(&aws)
        .get(host)
        .await
        .not_found();
    aws.tune_ecr_public(|knobs| knobs.behaviour = Behaviour::Refuse);
    let machine = Machine::with_keys(&aws);
    machine.get(host).await.not_found();
    let run = machine.set("ECR_INJECTOR_LOG", "info").get(host).await;
    run.failed_with(&["ECR Public", "AccessDeniedException"]);
}
