//! Our `MutatingWebhookConfiguration`: whom its entries trust, and the patch that makes them trust us.
//!
//! The patch is a JSON patch of `caBundle` alone. A server-side apply would make us a co-owner of the list's entries, and
//! an upgrade that drops one of them by apply would fail.

use std::sync::Arc;

use json_patch::{
    AddOperation, Patch, PatchOperation, TestOperation,
    jsonptr::{PointerBuf, Token},
};
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{Api, Client, api::PatchParams, core::Status};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    cluster::{
        lease::Leadership,
        watch::{News, watch_one},
        write::{WriteError, call},
    },
    tls::metrics::TlsMetrics,
};

/// What a policy's refusal says, which has the code of a test that fails.
const POLICY: &str = "ValidatingAdmissionPolicy";
/// What cert-manager's cainjector is told by: it fills in the bundle, and we leave that to it.
const INJECTED: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// Which one, and who is told.
pub struct Registration {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
    metrics: Arc<TlsMetrics>,
    seen: watch::Sender<Seen>,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub enum Seen {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// There is none: nobody calls us.
    Absent,
    /// There is one.
    There(Arc<Entries>),
}

/// Whom the registration's entries trust, at one version.
#[derive(Debug, PartialEq, Eq)]
pub struct Entries {
    version: String,
    /// Whether it is somebody else's part to fill in whom they trust.
    pub is_injected: bool,
    /// Each entry's name, and its bundle.
    bundles: Vec<(String, Vec<u8>)>,
}

impl Entries {
    /// Reads a registration.
    #[must_use]
    pub fn of(registration: &MutatingWebhookConfiguration) -> Self {
        let annotations = registration.metadata.annotations.as_ref();
        let webhooks = registration.webhooks.iter().flatten();
        Self {
            version: registration
                .metadata
                .resource_version
                .clone()
                .unwrap_or_default(),
            is_injected: annotations
                .is_some_and(|found| INJECTED.iter().any(|key| found.contains_key(*key))),
            bundles: webhooks
                .map(|webhook| {
                    let bundle = webhook.client_config.ca_bundle.as_ref();
                    let bundle = bundle.map(|ByteString(bytes)| bytes.clone());
                    (webhook.name.clone(), bundle.unwrap_or_default())
                })
                .collect(),
        }
    }

    /// Whether each entry trusts these certificates (PEM), and no other.
    #[must_use]
    pub fn hold(&self, bundle: &str) -> bool {
        let wanted = certificates(bundle.as_bytes());
        let holds = |(_, held): &(String, Vec<u8>)| certificates(held) == wanted;
        !self.bundles.is_empty() && self.bundles.iter().all(holds)
    }

    /// Whether each entry trusts these certificates (PEM), whatever else it trusts.
    #[must_use]
    pub fn trust(&self, bundle: &str) -> bool {
        let (Some(wanted), false) = (certificates(bundle.as_bytes()), self.bundles.is_empty())
        else {
            return false;
        };
        let trusts = |(_, held): &(String, Vec<u8>)| {
            certificates(held).is_some_and(|held| wanted.iter().all(|one| held.contains(one)))
        };
        self.bundles.iter().all(trusts)
    }

    /// What makes each entry trust these certificates, if nobody has changed anything meanwhile.
    #[must_use]
    pub fn patch(&self, bundle: &str) -> Patch {
        let path = |tokens: &[Token<'_>]| PointerBuf::from_tokens(tokens);
        let mut operations = vec![PatchOperation::Test(TestOperation {
            path: path(&["metadata".into(), "resourceVersion".into()]),
            value: json!(self.version),
        })];
        for (index, (name, held)) in self.bundles.iter().enumerate() {
            if certificates(held) == certificates(bundle.as_bytes()) {
                continue;
            }
            operations.push(PatchOperation::Test(TestOperation {
                path: path(&["webhooks".into(), index.into(), "name".into()]),
                value: json!(name),
            }));
            let config = [
                "webhooks".into(),
                index.into(),
                "clientConfig".into(),
                "caBundle".into(),
            ];
            operations.push(PatchOperation::Add(AddOperation {
                path: path(&config),
                value: json!(ByteString(bundle.as_bytes().to_vec())),
            }));
        }
        Patch(operations)
    }
}

/// The certificates of a bundle in a fixed order; `None` if it can't be read.
fn certificates(bundle: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_slice_iter(bundle).collect::<Result<Vec<_>, _>>();
    let mut read = read.ok()?;
    read.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    read.dedup();
    Some(read)
}

/// Who told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    TheWatch,
    OurWrite,
}

impl Registration {
    /// The registration of this name. Nothing is known of it yet.
    #[must_use]
    pub fn new(client: Client, name: String, metrics: Arc<TlsMetrics>) -> Self {
        Self {
            api: Api::all(client),
            name,
            metrics,
            seen: watch::Sender::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells of each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Follows it until the future is dropped.
    pub async fn follow(&self) {
        let api = self.api.clone();
        watch_one("our registration", api, &self.name, |news| match news {
            News::Is(registration) => self.learn(&registration, By::TheWatch),
            News::Gone(_) => {
                self.seen.send_replace(Seen::Absent);
            }
        })
        .await;
    }

    fn learn(&self, registration: &MutatingWebhookConfiguration, by: By) {
        let entries = Entries::of(registration);
        let number = |entries: &Entries| entries.version.parse::<u64>().unwrap_or_default();
        self.seen.send_if_modified(|seen| {
            let is_new = match seen {
                Seen::There(known) => number(known) < number(&entries),
                // What was written may be gone since, and then the watch has said so.
                Seen::Unknown | Seen::Absent => by == By::TheWatch,
            };
            if is_new {
                *seen = Seen::There(Arc::new(entries));
            }
            is_new
        });
    }

    /// Makes each entry trust these certificates, unless the registration has changed since it was seen.
    pub(super) async fn publish(
        &self,
        entries: &Entries,
        bundle: &str,
        term: &Leadership,
    ) -> Result<(), WriteError> {
        let patch = kube::api::Patch::Json::<()>(entries.patch(bundle));
        if !term.holds() {
            return Err(WriteError::NotLeading);
        }
        let params = PatchParams::default();
        // A test that fails is an invalid patch to the API server.
        let lost =
            |status: &Status| matches!(status.code, 409 | 422) && !status.message.contains(POLICY);
        let written = call(self.api.patch(&self.name, &params, &patch), lost).await;
        let outcome = written.as_ref().map_or_else(WriteError::as_str, |_| "ok");
        self.metrics
            .api_calls
            .count_call("patch", "mutatingwebhookconfigurations", outcome);
        self.learn(&written?, By::OurWrite);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{authority::Authority, rotation::Lifetimes};

    fn bundle() -> String {
        let now = jiff::Timestamp::constant(1_800_000_000, 0);
        let authority = Authority::new(now, Lifetimes::default()).expect("made");
        authority.bundle()
    }

    /// A registration with an entry for each bundle.
    fn registration(bundles: &[Option<&str>]) -> MutatingWebhookConfiguration {
        let webhooks: Vec<serde_json::Value> = bundles
            .iter()
            .enumerate()
            .map(|(index, bundle)| {
                let mut config = json!({"service": {"namespace": "a", "name": "b"}});
                if let Some(bundle) = bundle {
                    config["caBundle"] = json!(ByteString(bundle.as_bytes().to_vec()));
                }
                json!({
                    "name": format!("entry-{index}.example.com"),
                    "clientConfig": config,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                })
            })
            .collect();
        let value = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "x", "resourceVersion": "7"},
            "webhooks": webhooks,
        });
        serde_json::from_value(value).expect("a registration")
    }

    fn applied(registration: &MutatingWebhookConfiguration, patch: &Patch) -> Option<Entries> {
        let mut value = serde_json::to_value(registration).expect("JSON");
        json_patch::patch(&mut value, patch).ok()?;
        Some(Entries::of(&serde_json::from_value(value).expect("one")))
    }

    #[test]
    fn each_entry_comes_to_trust_exactly_the_bundle() {
        let (ours, stranger) = (bundle(), bundle());
        for bundles in [
            vec![None],
            vec![None, Some(stranger.as_str())],
            vec![Some(ours.as_str()), Some("not PEM"), None],
        ] {
            let before = registration(&bundles);
            let entries = Entries::of(&before);
            assert!(!entries.hold(&ours), "{bundles:?}");
            let after = applied(&before, &entries.patch(&ours)).expect("applies");
            assert!(after.hold(&ours) && after.trust(&ours), "{bundles:?}");
        }
    }

    #[test]
    fn a_registration_that_has_changed_meanwhile_is_left_alone() {
        let ours = bundle();
        let patch = Entries::of(&registration(&[None, None])).patch(&ours);
        let mut other_version = registration(&[None, None]);
        other_version.metadata.resource_version = Some("8".to_owned());
        assert_eq!(applied(&other_version, &patch), None);
        let mut renamed = registration(&[None, None]);
        renamed.webhooks.as_mut().expect("entries")[1].name = "other.example.com".to_owned();
        assert_eq!(applied(&renamed, &patch), None);
    }

    #[test]
    fn a_bundle_is_compared_by_its_certificates() {
        let (first, second) = (bundle(), bundle());
        let both = format!("# a comment\n{second}\n{first}{first}");
        let entries = Entries::of(&registration(&[Some(&both)]));
        assert!(entries.hold(&format!("{first}{second}")));
        assert!(!entries.hold(&first) && entries.trust(&first));
        assert!(!Entries::of(&registration(&[])).trust(&first), "no entries");
        assert!(!Entries::of(&registration(&[Some("")])).trust(&first));
    }

    #[test]
    fn what_cert_manager_fills_in_is_its_own() {
        let mut registration = registration(&[None]);
        assert!(!Entries::of(&registration).is_injected);
        let annotation = (
            "cert-manager.io/inject-ca-from".to_owned(),
            "a/b".to_owned(),
        );
        registration.metadata.annotations = Some([annotation].into());
        assert!(Entries::of(&registration).is_injected);
    }
}
