//! The `MutatingWebhookConfiguration`: which CAs its entries trust, and the patch of their
//! `caBundle`.
//!
//! The patch is a JSON patch of `caBundle` alone. A server-side apply would make ecr-injector a
//! co-owner of the list's entries, and an upgrade that drops one of them by apply would fail.

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
        call::ApiCall,
        lease::Leadership,
        watch::{ObjectState, watch_one},
        write::{WriteError, write},
    },
    tls::metrics::TlsMetrics,
};

/// The text of a policy's rejection, which has the same status code as a failed test operation.
const POLICY: &str = "ValidatingAdmissionPolicy";
/// The annotations of cert-manager's cainjector: with one of them the bundle is left to cainjector.
const INJECTED: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// Watches and patches the registration.
pub struct Registration {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
    metrics: Arc<TlsMetrics>,
    state: watch::Sender<RegistrationState>,
}

/// The known state of the registration.
#[derive(Debug, Clone, Default)]
pub enum RegistrationState {
    /// The watch has reported nothing yet.
    #[default]
    Unknown,
    /// There is no registration: the API server doesn't call the webhook.
    Absent,
    /// The registration has these entries.
    Present(Arc<Entries>),
}

/// The CAs that the registration's entries trust, at one version.
#[derive(Debug, PartialEq, Eq)]
pub struct Entries {
    version: String,
    /// Whether cert-manager fills in the bundle.
    pub is_injected: bool,
    /// The name and the bundle of each entry.
    bundles: Vec<(String, Vec<u8>)>,
}

impl Entries {
    /// Reads the entries of a registration.
    #[must_use]
    pub fn from_registration(registration: &MutatingWebhookConfiguration) -> Self {
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

    /// Returns whether each entry trusts these certificates (PEM), and no other.
    #[must_use]
    pub fn hold(&self, bundle: &str) -> bool {
        let wanted = certificates(bundle.as_bytes());
        let holds = |(_, held): &(String, Vec<u8>)| certificates(held) == wanted;
        !self.bundles.is_empty() && self.bundles.iter().all(holds)
    }

    /// Returns whether each entry trusts these certificates (PEM), whatever else the entry trusts.
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

    /// Returns the patch that makes each entry trust these certificates, if nobody has changed the
    /// registration meanwhile.
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

/// Returns the certificates of a bundle in a fixed order; `None` if the bundle can't be read.
fn certificates(bundle: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_slice_iter(bundle).collect::<Result<Vec<_>, _>>();
    let mut read = read.ok()?;
    read.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    read.dedup();
    Some(read)
}

/// Where a version of the registration came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Watch,
    OwnWrite,
}

impl Registration {
    /// Returns the registration of this name, of which nothing is known yet.
    #[must_use]
    pub fn new(client: Client, name: String, metrics: Arc<TlsMetrics>) -> Self {
        Self {
            api: Api::all(client),
            name,
            metrics,
            state: watch::Sender::default(),
        }
    }

    /// Returns the registration's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a receiver of each change of the state.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<RegistrationState> {
        self.state.subscribe()
    }

    /// Watches the registration until the future is dropped.
    pub async fn follow(&self) {
        let api = self.api.clone();
        watch_one("our registration", api, &self.name, |state| match state {
            ObjectState::Present(registration) => self.observe(&registration, Origin::Watch),
            ObjectState::Absent(_) => {
                self.state.send_replace(RegistrationState::Absent);
            }
        })
        .await;
    }

    /// Takes a version of the registration, unless a newer one is known.
    fn observe(&self, registration: &MutatingWebhookConfiguration, origin: Origin) {
        let entries = Entries::from_registration(registration);
        let number = |entries: &Entries| entries.version.parse::<u64>().unwrap_or_default();
        self.state.send_if_modified(|state| {
            let is_new = match state {
                RegistrationState::Present(known) => number(known) < number(&entries),
                // The watch may have reported a deletion since the write.
                RegistrationState::Unknown | RegistrationState::Absent => origin == Origin::Watch,
            };
            if is_new {
                *state = RegistrationState::Present(Arc::new(entries));
            }
            is_new
        });
    }

    /// Makes each entry trust these certificates, unless the registration has changed since
    /// these entries were read.
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
        let is_conflict =
            |status: &Status| matches!(status.code, 409 | 422) && !status.message.contains(POLICY);
        let calls = &self.metrics.api_calls;
        let call = ApiCall::new(calls, "patch", "mutatingwebhookconfigurations");
        let patch = self.api.patch(&self.name, &params, &patch);
        let written = write(call, patch, is_conflict).await?;
        self.observe(&written, Origin::OwnWrite);
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

    /// Returns a registration with an entry for each bundle.
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
        Some(Entries::from_registration(
            &serde_json::from_value(value).expect("one"),
        ))
    }

    #[test]
    fn patch_makes_each_entry_trust_exactly_the_bundle() {
        let (ours, stranger) = (bundle(), bundle());
        for bundles in [
            vec![None],
            vec![None, Some(stranger.as_str())],
            vec![Some(ours.as_str()), Some("not PEM"), None],
        ] {
            let before = registration(&bundles);
            let entries = Entries::from_registration(&before);
            assert!(!entries.hold(&ours), "{bundles:?}");
            let after = applied(&before, &entries.patch(&ours)).expect("applies");
            assert!(after.hold(&ours) && after.trust(&ours), "{bundles:?}");
        }
    }

    #[test]
    fn changed_registration_is_not_patched() {
        let ours = bundle();
        let patch = Entries::from_registration(&registration(&[None, None])).patch(&ours);
        let mut other_version = registration(&[None, None]);
        other_version.metadata.resource_version = Some("8".to_owned());
        assert_eq!(applied(&other_version, &patch), None);
        let mut renamed = registration(&[None, None]);
        renamed.webhooks.as_mut().expect("entries")[1].name = "other.example.com".to_owned();
        assert_eq!(applied(&renamed, &patch), None);
    }

    #[test]
    fn bundle_is_compared_by_its_certificates() {
        let (first, second) = (bundle(), bundle());
        let both = format!("# a comment\n{second}\n{first}{first}");
        let entries = Entries::from_registration(&registration(&[Some(&both)]));
        assert!(entries.hold(&format!("{first}{second}")));
        assert!(!entries.hold(&first) && entries.trust(&first));
        assert!(
            !Entries::from_registration(&registration(&[])).trust(&first),
            "no entries"
        );
        assert!(!Entries::from_registration(&registration(&[Some("")])).trust(&first));
    }

    #[test]
    fn bundle_of_cert_manager_is_detected() {
        let mut registration = registration(&[None]);
        assert!(!Entries::from_registration(&registration).is_injected);
        let annotation = (
            "cert-manager.io/inject-ca-from".to_owned(),
            "a/b".to_owned(),
        );
        registration.metadata.annotations = Some([annotation].into());
        assert!(Entries::from_registration(&registration).is_injected);
    }
}
