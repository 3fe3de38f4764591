//! Replies of STS, ECR and ECR Public, through the SDK: whether a token is what the reply says and
//! no longer valid than that, and whether an error shows anything of it.
//!
//! The input is a byte that selects the calls and the status, and the bodies of the replies, with
//! a line of `--` between them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::test_util::infallible_client_fn;
use aws_smithy_types::body::SdkBody;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::aws::AwsEnvironment;
use ecr_injector::aws::endpoints::Endpoints;
use ecr_injector::cluster::namespace::{Namespace, NamespaceSettings};
use ecr_injector::config::Config;
use ecr_injector::identity::Identity;
use ecr_injector::process::clock::Clock;
use ecr_injector::process::current::Current;
use ecr_injector::registry::Registry;
use ecr_injector::token::cache::{Mint as _, MintError};
use ecr_injector::token::ecr::Ecr;
use ecr_injector::token::{MAX_LIFE, MIN_LEFT, SessionCap, Token, TokenKey};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::json::Json;
use super::{HOST, NAMESPACE, NOW, assert_is_one_line};

/// The bits of the first byte: whether a role is assumed, whether the registry is the public one,
/// and which status the last reply has.
const ROLE: u8 = 1;
const PUBLIC: u8 = 2;
const STATUSES: [u16; 8] = [200, 200, 200, 400, 403, 429, 500, 503];

/// The least length of a text that counts as a secret: shorter ones may be anywhere.
const LONG: usize = 16;

const CONFIG: &str = r#"
apiVersion: ecr-injector.dev/v1alpha1
kind: Config
identities:
  - assumeRole: {roleArn: "arn:aws:iam::123456789012:role/ecr-pull"}
"#;

thread_local! {
    /// The replies to the calls of this thread, and how many calls there were without one.
    static REPLIES: RefCell<VecDeque<(u16, Vec<u8>)>> = const { RefCell::new(VecDeque::new()) };
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
}

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        NOW
    }
}

static ROLE_KEY: LazyLock<TokenKey> = LazyLock::new(|| {
    let rules = Config::parse(CONFIG, "config").unwrap().rules;
    let namespace = Namespace::parse(NAMESPACE).unwrap();
    let key = rules.key_for(HOST, &namespace, &NamespaceSettings::default());
    key.unwrap().1
});

fn key(selected: u8) -> TokenKey {
    if selected & PUBLIC != 0 {
        let registry = Registry::parse_public("public.ecr.aws").unwrap();
        let identity = match selected & ROLE {
            0 => Identity::Ambient,
            _ => ROLE_KEY.identity.clone(),
        };
        return TokenKey::new(identity, &registry);
    }
    match selected & ROLE {
        0 => TokenKey::new(Identity::Ambient, &HOST.parse().unwrap()),
        _ => ROLE_KEY.clone(),
    }
}

fn ecr() -> Ecr {
    let client = infallible_client_fn(|_| {
        let reply = REPLIES.with_borrow_mut(VecDeque::pop_front);
        let (status, body) = reply.unwrap_or((500, Vec::new()));
        let reply = http::Response::builder().status(status);
        reply.body(SdkBody::from(body)).unwrap()
    });
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
            "AKIDEXAMPLE",
            "secret-of-the-environment",
            None,
            None,
            "check",
        )))
        .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
            aws_smithy_async::rt::sleep::TokioSleep::new(),
        ))
        .http_client(client)
        .build();
    Ecr::new(
        AwsEnvironment::from_config(&config, None),
        Current::new(SessionCap::Auto),
        Current::new(Endpoints::default()),
        Arc::new(FixedClock),
        Arc::default(),
    )
}

static ECR: LazyLock<Ecr> = LazyLock::new(ecr);

pub fn check(input: &[u8]) {
    let Some((selected, rest)) = input.split_first() else {
        return;
    };
    let status = STATUSES[usize::from(selected >> 2 & 7)];
    let (first, last) = match split(rest) {
        Some((first, last)) if selected & ROLE != 0 => (Some(first), last),
        _ => (None, rest),
    };
    let replies = first.map(|body| (200, body.to_vec()));
    let replies = replies.into_iter().chain([(status, last.to_vec())]);
    REPLIES.set(replies.collect());
    let key = key(*selected);
    let minted = RUNTIME.with(|runtime| runtime.block_on(ECR.mint(&key)));
    match minted {
        Ok(token) => {
            assert_eq!(status, 200, "a token in spite of an error");
            assert_is_of_reply(&token, last, selected & PUBLIC != 0);
        }
        Err(error) => assert_shows_no_secret(&error, status, [first.unwrap_or_default(), last]),
    }
}

/// Splits at the first line of `--`.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let separator = b"\n--\n";
    let at = bytes
        .windows(separator.len())
        .position(|window| window == separator)?;
    Some((&bytes[..at], &bytes[at + separator.len()..]))
}

/// Compares a token with the reply, as it is read by hand.
fn assert_is_of_reply(token: &Token, reply: &[u8], is_public: bool) {
    let lifetime = token.lifetime();
    assert_eq!(lifetime.minted_at, NOW);
    let left = lifetime.expires_at.duration_since(NOW);
    assert!(left >= MIN_LEFT && left <= MAX_LIFE, "{lifetime:?}");
    assert!(!token.password().expose_secret().is_empty());
    // Of a key that is there twice, each reader takes its own.
    if Json::parse_unambiguous(reply).is_none() {
        return;
    }
    let reply: Value = serde_json::from_slice(reply).unwrap();
    let data = &reply["authorizationData"];
    let data = if is_public { data } else { &data[0] };
    let plain = format!("AWS:{}", token.password().expose_secret());
    let encoded = data["authorizationToken"].as_str().unwrap_or_default();
    assert_eq!(
        BASE64_STANDARD.decode(encoded).ok(),
        Some(plain.into_bytes())
    );
    if let Some(claimed) = data["expiresAt"].as_f64() {
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 are far from 2^52"
        )]
        let expires_at = lifetime.expires_at.as_second() as f64;
        assert!(expires_at <= claimed, "{expires_at} is after {claimed}");
    }
}

/// An error of a reply that isn't AWS's own error has nothing of it.
fn assert_shows_no_secret(error: &MintError, status: u16, replies: [&[u8]; 2]) {
    let text = error.to_string();
    assert_is_one_line(&text);
    if status != 200 {
        return;
    }
    for reply in replies {
        for secret in secrets(reply) {
            assert!(!text.contains(&secret), "{secret} in {text}");
        }
    }
}

/// The texts in a reply that may be tokens or keys.
fn secrets(reply: &[u8]) -> Vec<String> {
    let mut secrets = Vec::new();
    if let Ok(reply) = serde_json::from_slice::<Value>(reply) {
        let data = &reply["authorizationData"];
        let token = data[0]["authorizationToken"].as_str();
        let token = token.or_else(|| data["authorizationToken"].as_str());
        secrets.extend(token.map(str::to_owned));
        let plain = token.and_then(|token| BASE64_STANDARD.decode(token).ok());
        secrets.extend(plain.and_then(|plain| String::from_utf8(plain).ok()));
    }
    let text = String::from_utf8_lossy(reply);
    for name in ["SecretAccessKey", "SessionToken"] {
        let inner = text.split_once(&format!("<{name}>"));
        let inner = inner.and_then(|(_, rest)| rest.split_once('<'));
        secrets.extend(inner.map(|(secret, _)| secret.trim().to_owned()));
    }
    secrets.retain(|secret| secret.len() >= LONG);
    secrets
}
