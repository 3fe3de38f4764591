//! Unit tests of `authority`.

use k8s_openapi::ByteString;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{ServerName, UnixTime},
};

use super::*;
use crate::tls::rotation::Renewal;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const SERVICE: &str = "ecr-injector.ecr-injector.svc";

fn authority() -> Authority {
    Authority::new(NOW, Lifetimes::default()).expect("made")
}

/// Returns the Secret as it is written.
fn secret(authority: &Authority) -> Secret {
    let data = authority.data().into_iter();
    let mut secret = Secret {
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(
            data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    };
    let annotations = authority.annotations().into_iter();
    secret.metadata.annotations = Some(
        annotations
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    );
    secret
}

fn read(secret: &Secret) -> Result<Authority, AuthorityError> {
    Authority::from_secret(secret, Lifetimes::default())
}

/// Returns whether a client that trusts this bundle accepts this leaf.
fn accepts(bundle: &str, leaf: &Leaf, name: &str, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.expect("PEM")).expect("a root");
    }
    let provider = std::sync::Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .expect("a verifier");
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        now.as_second().unsigned_abs(),
    ));
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    verifier
        .verify_server_cert(&leaf.cert.certified.cert[0], &[], &name, &[], at)
        .is_ok()
}

#[test]
fn signed_cert_is_accepted_by_who_trusts_the_bundle() {
    let (ours, other) = (authority(), authority());
    let leaf = ours.sign(SERVICE, NOW).expect("signed");
    let bundle = ours.bundle();
    assert!(accepts(&bundle, &leaf, SERVICE, NOW));
    assert!(!accepts(&bundle, &leaf, "other.ecr-injector.svc", NOW));
    assert!(!accepts(&other.bundle(), &leaf, SERVICE, NOW));
    let late = NOW + SignedDuration::from_hours(7 * 24 + 1);
    assert!(!accepts(&bundle, &leaf, SERVICE, late));
    assert_eq!(leaf.cert.names, [SERVICE]);
    assert!(ours.signed(&leaf) && !other.signed(&leaf));
}

#[test]
fn written_secret_is_read_back_at_each_stage() {
    let mut stage = authority();
    for step in [
        Step::Prepare(Renewal::Due),
        Step::Promote,
        Step::Prepare(Renewal::Requested),
        Step::Promote,
        Step::Retire,
    ] {
        stage = stage.after(step, NOW).expect("a step");
        let secret = secret(&stage);
        assert!(stage.is_stored_in(&secret));
        let same = read(&secret).expect("whole");
        assert!(same == stage, "{step:?}: {same:?} is not {stage:?}");
        let bundle = stage.bundle();
        let signed = stage.sign(SERVICE, NOW).expect("signed");
        assert!(accepts(&bundle, &signed, SERVICE, NOW), "{step:?}");
    }
    assert!(stage.stage().old.is_empty());
}

#[test]
fn rotation_publishes_the_next_before_and_the_old_after() {
    let first = authority();
    let prepared = first
        .after(Step::Prepare(Renewal::Due), NOW)
        .expect("prepared");
    assert_eq!(prepared.signer(), first.signer());
    let promoted = prepared.after(Step::Promote, NOW).expect("promoted");
    assert_ne!(promoted.signer(), first.signer());
    for authority in [&prepared, &promoted] {
        let bundle = authority.bundle();
        assert!(bundle.contains(first.signer()) && bundle.contains(promoted.signer()));
    }
    let retired = promoted.after(Step::Retire, NOW).expect("retired");
    assert_eq!(retired.bundle(), promoted.signer());
}

#[test]
fn requested_rotation_is_done_once() {
    let mut secret = secret(&authority());
    secret
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(ROTATE.to_owned(), "yes".to_owned());
    let requested = read(&secret).expect("whole");
    assert!(requested.stage().is_requested);
    let prepared = requested
        .after(Step::Prepare(Renewal::Requested), NOW)
        .expect("prepared");
    assert!(!prepared.stage().is_requested);
    assert!(prepared.annotations().values().any(|value| value == "yes"));
}

#[test]
fn malformed_secret_is_rejected_and_never_shown() {
    let (good, other) = (secret(&authority()), secret(&authority()));
    let leaf = rcgen::generate_simple_self_signed([SERVICE.to_owned()]).expect("a certificate");
    let of = |secret: &Secret, key: &str| secret.data.as_ref().expect("data")[key].clone();
    let with = |key: &str, value: Option<ByteString>| {
        let mut secret = good.clone();
        let data = secret.data.as_mut().expect("data");
        match value {
            Some(value) => data.insert(key.to_owned(), value),
            None => data.remove(key),
        };
        secret
    };
    let text = |text: String| Some(ByteString(text.into_bytes()));
    let key = of(&good, KEY);
    let half = ByteString(key.0[..key.0.len() / 2].to_vec());
    for (secret, expected) in [
        (with(KEY, None), "it has no tls.key"),
        (with(CERTIFICATE, None), "it has no tls.crt"),
        (with(KEY, Some(of(&other, KEY))), "don't belong together"),
        (with(KEY, Some(half)), "tls.key: not an ECDSA P-256 key"),
        (
            with(CERTIFICATE, text(leaf.cert.pem())),
            "tls.crt: not a certificate of an authority",
        ),
        (
            with(CERTIFICATE, text("x".to_owned())),
            "tls.crt: not a certificate",
        ),
        (
            with(
                BUNDLE,
                text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()),
            ),
            "ca.crt: not a certificate",
        ),
        (
            Secret {
                type_: Some("Opaque".to_owned()),
                ..good.clone()
            },
            "delete it",
        ),
    ] {
        let error = read(&secret).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("BEGIN"), "{error}");
    }
    let shown = format!("{:?}", read(&good).expect("whole"));
    assert!(!shown.contains("BEGIN"), "{shown}");
    // A Secret without a bundle is readable, and its bundle can be written again.
    let bare = with(BUNDLE, None);
    assert!(!read(&bare).expect("whole").is_stored_in(&bare));
}
