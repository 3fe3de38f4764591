//! The token that a run of the plugin needs: who mints it, and under which key it may be on disk.

use secrecy::ExposeSecret as _;

use crate::{
    aws::credentials::fingerprint::{Fingerprint, Subject},
    config::Config,
    identity::{
        Identity,
        machine::{NamedRole, named_role, service_account_role},
    },
    nodes::{
        file_cache::endpoints_of_environment,
        flags::{DEFAULT_ROLE, Flags, WithoutRole},
        kubelet::ServiceAccount,
    },
    registry::Registry,
    token::{TokenKey, once::MintRequest},
};

/// How often AWS is asked.
const TRIES: usize = 3;

/// A token to be minted, and the places where it may be already.
pub(super) struct Plan {
    pub(super) mint: MintRequest,
    /// The key of the token on disk; `None` if it isn't known whose token it would be.
    pub(super) key: Option<String>,
}

impl Plan {
    /// Plans a token for the node itself.
    pub(super) fn of_machine(config: &Config, registry: &Registry) -> Result<Self, String> {
        let choice = config.rules.identities.for_machine(registry);
        if !choice.skipped.is_empty() {
            let rules = &choice.skipped;
            tracing::debug!(?rules, "skipped identity rules that have namespaces");
        }
        let refused = |error| format!("no identity may mint: {error}");
        let identity = choice.identity.map_err(refused)?;
        let fingerprint = match identity.profile() {
            Some(profile) => Fingerprint::of_profile(profile),
            None => Fingerprint::ambient(),
        };
        let fingerprint = fingerprint
            .inspect_err(|error| tracing::debug!(%error, "no token on disk can be used"))
            .ok();
        let of = fingerprint.map(|fingerprint| {
            let hash = identity.hash().to_string();
            ["machine".to_owned(), hash, fingerprint.to_string()]
        });
        let key = of.map(|of| key(&of, config, registry));
        Ok(Self {
            mint: mint_request(identity, None, config, registry),
            key,
        })
    }

    /// Plans a token for a ServiceAccount, by the role that it names.
    pub(super) fn of_account(
        flags: &Flags,
        account: &ServiceAccount,
        config: &Config,
        registry: &Registry,
    ) -> Result<Self, String> {
        let default = flags.default_role.as_deref();
        let default = default.map(|text| NamedRole {
            from: DEFAULT_ROLE,
            text,
        });
        let named = named_role(&account.annotations, &flags.role_annotations, default);
        let Some(named) = named else {
            return match flags.without_role {
                WithoutRole::Ambient => Self::of_machine(config, registry),
                WithoutRole::Deny => Err(format!(
                    "the ServiceAccount names no role: annotate it with one of {}, or set {DEFAULT_ROLE}; \
                     --without-role ambient lets such Pods pull with the node's own identity",
                    flags.role_annotations.join(", ")
                )),
            };
        };
        let subject = Subject::of(account.token.expose_secret());
        let mut options = config.rules.identities.namespace_roles.options.clone();
        if let Some(seconds) = flags.session_duration {
            options.duration_seconds = seconds;
        }
        let sub = subject.as_ref().map(|subject| &*subject.sub);
        let role = service_account_role(named, &options, sub, registry);
        let role = role.map_err(|error| error.to_string())?;
        let identity = Identity::Role(role);
        let of = subject.as_ref().map(|subject| {
            let hash = identity.hash().to_string();
            [
                "account".to_owned(),
                hash,
                subject.iss.clone(),
                subject.sub.clone(),
            ]
        });
        let key = of.map(|of| key(&of, config, registry));
        Ok(Self {
            mint: mint_request(identity, Some(account), config, registry),
            key,
        })
    }
}

fn mint_request(
    identity: Identity,
    account: Option<&ServiceAccount>,
    config: &Config,
    registry: &Registry,
) -> MintRequest {
    MintRequest {
        key: TokenKey::new(identity, registry),
        web_identity: account.map(|account| account.token.clone()),
        session_cap: config.session_cap,
        endpoints: config.endpoints.clone(),
        tries: TRIES,
    }
}

/// Returns the key of a token on disk: whose it is, and of which endpoint. As a JSON list, so that
/// no two lists are one.
fn key<const N: usize>(of: &[String; N], config: &Config, registry: &Registry) -> String {
    let endpoint = registry.endpoint();
    let configured = config.endpoints.get(registry.region());
    let place = [
        registry.region().to_string(),
        format!("{endpoint:?} {configured:?} {:?}", config.session_cap),
        endpoints_of_environment(),
    ];
    serde_json::json!(["v1", of.as_slice(), place]).to_string()
}
