//! Unit tests of `credentials`.

use std::{io, sync::Mutex};

use aws_credential_types::provider;
use aws_smithy_types::error::ErrorMetadata;

use super::*;

/// Gives what stands in its list, from the end.
#[derive(Debug)]
struct Script(Mutex<Vec<provider::Result>>);

impl ProvideCredentials for Script {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let next = self.0.lock().expect("lock").pop();
        match next {
            Some(result) => future::ProvideCredentials::ready(result),
            None => future::ProvideCredentials::new(std::future::pending()),
        }
    }
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "one of the results that a source can give"
)]
fn keys(name: &str) -> provider::Result {
    Ok(Credentials::new(name, "secret", None, None, "test"))
}

fn candidate(
    from: Source,
    configured: Option<&str>,
    script: Vec<provider::Result>,
) -> CredentialSource {
    CredentialSource {
        from,
        origin: Origin::Source(from.as_str()),
        configured: configured.map(str::to_owned),
        provider: Arc::new(Script(Mutex::new(script))),
    }
}

fn chain(sources: Vec<(Source, Vec<provider::Result>)>) -> PinnedChain {
    let sources = sources
        .into_iter()
        .map(|(from, script)| candidate(from, None, script));
    PinnedChain::from_sources(sources.collect(), None, Arc::default())
}

fn not_configured() -> provider::Result {
    Err(CredentialsError::not_loaded("not configured"))
}

fn broken() -> provider::Result {
    Err(CredentialsError::provider_error("it throttles"))
}

async fn next(chain: &PinnedChain) -> Result<String, String> {
    let result = chain.provide_credentials().await;
    result
        .map(|credentials| credentials.access_key_id().to_owned())
        .map_err(|error| {
            let source = error.source().expect("a source");
            source.to_string()
        })
}

#[tokio::test]
async fn the_first_source_that_is_configured_gives_the_credentials() {
    let chain = chain(vec![
        (Source::Environment, vec![not_configured()]),
        (Source::WebIdentity, vec![keys("web")]),
        (Source::InstanceMetadata, vec![keys("node")]),
    ]);
    assert_eq!(next(&chain).await.as_deref(), Ok("web"));
}

#[tokio::test]
async fn a_source_that_fails_is_an_error_and_never_the_next_principal() {
    let chain = chain(vec![
        (Source::WebIdentity, vec![keys("web"), broken()]),
        (Source::InstanceMetadata, vec![keys("node")]),
    ]);
    let error = next(&chain).await.expect_err("broken");
    assert!(
        error.starts_with("web_identity: ") && error.contains("it throttles"),
        "{error}"
    );
    assert_eq!(
        next(&chain).await.as_deref(),
        Ok("web"),
        "once it works again"
    );
}

#[tokio::test]
async fn a_source_that_gave_credentials_once_is_the_only_one_from_then_on() {
    let chain = chain(vec![
        (Source::Environment, vec![keys("late"), not_configured()]),
        (
            Source::WebIdentity,
            vec![keys("web-again"), not_configured(), keys("web")],
        ),
        (Source::InstanceMetadata, vec![keys("node")]),
    ]);
    assert_eq!(next(&chain).await.as_deref(), Ok("web"));
    let error = next(&chain).await.expect_err("its configuration is gone");
    assert!(error.starts_with("web_identity: "), "{error}");
    assert_eq!(next(&chain).await.as_deref(), Ok("web-again"));
}

#[tokio::test]
async fn unexpected_source_is_an_error_until_the_expected_one_is_there() {
    let sources = vec![
        candidate(
            Source::WebIdentity,
            None,
            vec![keys("web"), not_configured()],
        ),
        candidate(Source::InstanceMetadata, None, vec![keys("node")]),
    ];
    let chain = PinnedChain::from_sources(sources, Some(Source::WebIdentity), Arc::default());
    let error = next(&chain).await.expect_err("another principal");
    for word in ["web_identity", "instance_metadata", "role-arn", "not used"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(next(&chain).await.as_deref(), Ok("web"));
}

#[tokio::test]
async fn every_expectation_that_fails_says_what_to_check() {
    for expected in Source::ALL {
        assert_eq!(Source::parse(expected.as_str()), Some(expected));
        let other = Source::ALL.into_iter().find(|other| *other != expected);
        let found = candidate(other.expect("six"), None, vec![keys("other")]);
        let none = Err(CredentialsError::not_loaded_no_source());
        let none = candidate(expected, None, vec![none]);
        for sources in [vec![found], vec![none]] {
            let chain = PinnedChain::from_sources(sources, Some(expected), Arc::default());
            let error = chain.provide_credentials().await.expect_err("not it");
            let error = explain(&error).message;
            assert!(
                error.contains(expected.as_str()) && error.contains("check "),
                "{error}"
            );
            // What is longer is cut before it is logged.
            assert!(error.len() <= 300, "{error}");
        }
    }
    assert_eq!(Source::parse("any"), None);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_an_error_that_names_it() {
    let chain = chain(vec![
        (Source::PodIdentity, vec![]),
        (Source::InstanceMetadata, vec![keys("node")]),
    ]);
    let error = chain.provide_credentials().await.expect_err("no answer");
    let NoCredentials {
        message,
        is_unavailable,
        is_nowhere,
        ..
    } = explain(&error);
    assert!(message.starts_with("pod_identity: "), "{message}");
    assert!(is_unavailable && !is_nowhere);
}

#[tokio::test]
async fn without_any_source_the_error_says_what_was_tried() {
    let chain = chain(vec![(Source::InstanceMetadata, vec![not_configured()])]);
    let error = next(&chain).await.expect_err("nothing");
    assert!(
        error.contains("a web identity") && error.contains("not configured"),
        "{error}"
    );
}

#[tokio::test]
async fn a_source_that_is_configured_by_half_is_an_error_and_never_the_next_principal() {
    let sources = vec![
        candidate(
            Source::Environment,
            None,
            vec![not_configured(), not_configured()],
        ),
        candidate(
            Source::WebIdentity,
            Some("A is set and B is not"),
            vec![not_configured(), not_configured()],
        ),
        candidate(Source::InstanceMetadata, None, vec![keys("node")]),
    ];
    let chain = PinnedChain::from_sources(sources, None, Arc::default());
    for _ in 0..2 {
        let error = next(&chain).await.expect_err("half");
        assert!(
            error.starts_with("web_identity: ") && error.contains("B is not"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_profile_that_leads_nowhere_is_an_error_and_none_at_all_is_passed_over() {
    let none = Err(CredentialsError::not_loaded_no_source());
    let chain_of = |result| {
        chain(vec![
            (Source::Profile, vec![result]),
            (Source::InstanceMetadata, vec![keys("node")]),
        ])
    };
    assert_eq!(next(&chain_of(none)).await.as_deref(), Ok("node"));
    let nowhere = Err(CredentialsError::not_loaded("no source profile base"));
    let error = next(&chain_of(nowhere)).await.expect_err("nowhere");
    assert!(
        error.starts_with("profile: ") && error.contains("base"),
        "{error}"
    );
}

#[test]
fn what_is_begun_is_told_from_what_is_absent() {
    const KEY: &str = "AWS_ACCESS_KEY_ID";
    const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
    const FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
    const ROLE: &str = "AWS_ROLE_ARN";
    const URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    const CONFIG: &str = "AWS_CONFIG_FILE";
    for (from, set, expected) in [
        (Source::Environment, &[][..], None),
        (Source::Environment, &["AWS_SESSION_TOKEN"], None),
        (
            Source::Environment,
            &[KEY],
            Some("AWS_SECRET_ACCESS_KEY is not"),
        ),
        (
            Source::Environment,
            &[SECRET],
            Some("AWS_ACCESS_KEY_ID is not"),
        ),
        (Source::Profile, &["AWS_PROFILE", CONFIG], None),
        (Source::WebIdentity, &[], None),
        (Source::WebIdentity, &[ROLE], None),
        (Source::WebIdentity, &[FILE], Some("AWS_ROLE_ARN is not")),
        (Source::WebIdentity, &[FILE, ROLE], Some(FILE)),
        (Source::Container, &[], None),
        (Source::Container, &[URI], Some(URI)),
        (Source::Container, &[RELATIVE], Some(RELATIVE)),
        (
            Source::PodIdentity,
            &[POD_IDENTITY_VARIABLE],
            Some("FULL_URI is not"),
        ),
        (Source::InstanceMetadata, &[KEY, FILE, URI], None),
    ] {
        let with = |text: &'static str| {
            configured(from, |name: &str| {
                set.contains(&name).then(|| text.to_owned())
            })
        };
        let said = with("a value");
        match expected {
            Some(expected) => {
                let said = said.expect("configured");
                assert!(said.contains(expected), "{from} {set:?}: {said}");
            }
            None => assert_eq!(said, None, "{from} {set:?}"),
        }
        assert_eq!(with(" "), None, "blank is like none: {from} {set:?}");
    }
}

/// The error of a profile whose base credentials failed.
async fn profile_that_failed(cause: CredentialsError) -> String {
    let wrapped = Err(CredentialsError::provider_error(cause));
    let chain = chain(vec![(Source::Profile, vec![wrapped])]);
    let error = chain.provide_credentials().await.expect_err("failed");
    // Some logs have an error's debug text.
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    explain(&error).message
}

#[tokio::test]
async fn of_a_profile_nothing_is_shown_that_a_process_may_have_printed() {
    for (text, said) in [
        (
            "Error retrieving credentials: external process exited with code exit status: 3. Stderr: hunter2",
            "its credential process failed (exit status: 3); run it by hand",
        ),
        (
            "Error retrieving credentials: external process exited with code signal: 9 (SIGKILL). Stderr: hunter2",
            "its credential process failed (signal: 9); run it by hand",
        ),
        (
            "Error retrieving credentials from external process, could not parse response: hunter2",
            "its credential process failed (no credentials that can be read); run it by hand",
        ),
        ("the same in other words: hunter2", "the cause is not shown"),
    ] {
        let cause = CredentialsError::provider_error(text);
        let shown = profile_that_failed(cause).await;
        assert!(
            shown.starts_with("profile: ") && shown.contains(said),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        let shown = profile_that_failed(CredentialsError::unhandled(text)).await;
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let other = io::Error::other("hunter2");
    let shown = profile_that_failed(CredentialsError::provider_error(other)).await;
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn of_a_profile_what_aws_or_the_system_said_is_shown() {
    let answer = ErrorMetadata::builder().code("AccessDenied").build();
    let shown = profile_that_failed(CredentialsError::provider_error(answer)).await;
    assert!(shown.contains("AccessDenied"), "{shown}");
    let missing = io::Error::from_raw_os_error(2);
    let shown = profile_that_failed(CredentialsError::provider_error(missing)).await;
    assert!(shown.contains("No such file"), "{shown}");
}
