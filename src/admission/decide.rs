//! The verdict on one admission request. Pure: what the cluster looks like and what time it is are arguments.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::review::{Operation, Request, warning};
use crate::{
    admission::pod::{Pod, ReferenceState},
    cluster::namespace::{Namespace, NamespaceSettings},
    identity::Refusal,
    pull_secret::{Foreign, SecretFacts, state::State},
    registry::{Host, Registry},
    rules::Rules,
    token::{Freshness, TokenKey},
};

/// What is known about the namespace of a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What it says about itself, if it has the opt-in label.
    pub opted_in: Option<&'a NamespaceSettings>,
    /// Its pull secret.
    pub secret: SecretFacts<'a>,
}

/// The verdict on one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is changed and nothing ensured.
    Skip(Reason),
    /// The Pod gets the reference; the pull secret has all that it needs.
    Inject(Injection),
    /// The Pod gets the reference once these tokens are in the pull secret, each under the host that is written there.
    InjectAfterEnsuring(Injection, BTreeMap<Host, TokenKey>),
}

/// What a Pod gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Where the reference reference; [`ReferenceState::Present`] for a Pod that can't be changed any more.
    pub reference: ReferenceState,
    /// The hosts that its images name.
    pub hosts: BTreeSet<Host>,
    /// For the user.
    pub warnings: Vec<String>,
    /// Whether the leader should refresh the pull secret soon.
    pub due: bool,
    /// The hosts whose last demand was noted so long ago that this one is to be noted.
    pub unnoted: BTreeMap<Host, TokenKey>,
    /// Why other registries of the Pod get no credential.
    pub refusal: Option<Refusal>,
}

/// Why a request is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Not a Pod, or not one that can be read.
    NotAPod,
    /// Neither CREATE nor UPDATE.
    OtherOperation,
    /// A static Pod's copy.
    Mirror,
    /// The Pod's own annotation says so.
    Disabled,
    /// The Pod is being deleted.
    Deleting,
    /// An UPDATE that names the same images as before.
    SameImages,
    /// No image is in an ECR registry.
    NoRegistry,
    /// The namespace has no opt-in label, or is excluded.
    NotOptedIn,
    /// `allow` lists none of the registries.
    NotAllowed,
    /// No identity may mint for any of the registries.
    NoIdentity(Refusal),
    /// The Secret of our name belongs to somebody else.
    Foreign(Foreign),
    /// Too many other Pods are in hand.
    Overloaded,
}

/// What a Pod asks for, before anything is known about its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    namespace: Namespace,
    reference: ReferenceState,
    /// A stored Pod's `imagePullSecrets` can't change any more.
    is_stored: bool,
    dry_run: bool,
    registries: BTreeMap<Host, Registry>,
    warnings: Vec<String>,
}

/// Reads the demand out of a request; the common case, a Pod that is none of our business, ends here.
pub fn demand(request: &Request<'_>, rules: &Rules) -> Result<Demand, Reason> {
    let pod = request
        .object
        .as_ref()
        .filter(|_| request.is_pod)
        .ok_or(Reason::NotAPod)?;
    let is_stored = match request.operation {
        Operation::Create => false,
        Operation::Update => true,
        Operation::Other => return Err(Reason::OtherOperation),
    };
    if pod.is_mirror() {
        return Err(Reason::Mirror);
    }
    if pod.is_disabled() {
        return Err(Reason::Disabled);
    }
    if is_stored {
        if pod.is_deleting() {
            return Err(Reason::Deleting);
        }
        if request
            .old_object
            .as_ref()
            .is_some_and(|old| same_images(pod, old))
        {
            return Err(Reason::SameImages);
        }
    }
    let namespace = Namespace::parse(&request.namespace.0)
        .filter(|namespace| !rules.excluded.contains(namespace))
        .ok_or(Reason::NotOptedIn)?;
    let (registries, warnings) = registries(pod, rules)?;
    let reference = pod.reference_state(&rules.secret_name);
    Ok(Demand {
        namespace,
        reference,
        is_stored,
        dry_run: request.dry_run,
        registries,
        warnings,
    })
}

impl Demand {
    /// The namespace whose facts the decision needs.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// The verdict on a demand, given the facts of its namespace.
#[must_use]
pub fn decide(demand: Demand, rules: &Rules, facts: &Facts<'_>, now: Timestamp) -> Decision {
    let Some(said) = facts.opted_in else {
        return Decision::Skip(Reason::NotOptedIn);
    };
    if let SecretFacts::Foreign(why) = facts.secret {
        return Decision::Skip(Reason::Foreign(why));
    }
    let Demand {
        namespace,
        reference,
        is_stored,
        dry_run,
        registries,
        mut warnings,
    } = demand;
    let mut keys = BTreeMap::new();
    let mut refusal = None;
    for (host, registry) in registries {
        match rules
            .identities
            .choose(&registry, &namespace, said)
            .identity
        {
            Ok(identity) => {
                keys.insert(host, TokenKey::new(identity, &registry));
            }
            Err(why) => refusal = Some(why),
        }
    }
    if let Some(why) = refusal {
        if keys.is_empty() {
            return Decision::Skip(Reason::NoIdentity(why));
        }
        warnings.push(warning(&why.to_string()));
    }
    if is_stored && reference != ReferenceState::Present {
        warnings.push(warning(&format!(
            "this Pod does not reference pull secret {}; recreate it",
            rules.secret_name
        )));
    }
    let freshness = |host: &Host| match facts.secret {
        SecretFacts::Ours(state) => state.freshness(host, now),
        _ => Freshness::Expired,
    };
    let injection = Injection {
        reference: if is_stored {
            ReferenceState::Present
        } else {
            reference
        },
        hosts: keys.keys().cloned().collect(),
        warnings,
        due: keys.keys().any(|host| freshness(host) == Freshness::Due),
        unnoted: match facts.secret {
            SecretFacts::Ours(state) => unnoted(&keys, state, now),
            _ => BTreeMap::new(),
        },
        refusal,
    };
    keys.retain(|host, _| freshness(host) == Freshness::Expired);
    // A dry run shows the patch and must have no side effect: nothing is minted, nothing written.
    if dry_run || keys.is_empty() {
        Decision::Inject(injection)
    } else {
        Decision::InjectAfterEnsuring(injection, keys)
    }
}

/// Returns the hosts whose last demand was noted long ago.
fn unnoted(
    keys: &BTreeMap<Host, TokenKey>,
    state: &State,
    now: Timestamp,
) -> BTreeMap<Host, TokenKey> {
    let is_unnoted = |host: &Host| {
        let entry = state.hosts.get(host);
        entry.is_some_and(|entry| !entry.demand.is_noted(now))
    };
    let unnoted = keys.iter().filter(|(host, _)| is_unnoted(host));
    unnoted
        .map(|(host, key)| (host.clone(), key.clone()))
        .collect()
}

/// The warning for a Pod that is left alone, where there is something its user can do about it.
#[must_use]
pub fn warning_for(reason: Reason, rules: &Rules) -> Option<String> {
    match reason {
        Reason::Foreign(why) => Some(warning(&format!(
            "Secret {} left unchanged: {why}",
            rules.secret_name
        ))),
        Reason::NotAllowed => Some(warning(
            "no pull secret added: the allow list has none of this Pod's ECR registries",
        )),
        Reason::NoIdentity(why) => Some(warning(&why.to_string())),
        Reason::Overloaded => Some(warning(
            "overloaded: this Pod was admitted without a pull secret; recreate it",
        )),
        _ => None,
    }
}

/// Returns the hosts for which an admission of this Pod would have wanted a credential: none unless the Pod has the
/// reference, as those have that were admitted with it.
#[must_use]
pub fn hosts_wanted_by(
    pod: &Pod<'_>,
    rules: &Rules,
    namespace: &Namespace,
    settings: &NamespaceSettings,
) -> BTreeSet<Host> {
    let is_served = pod.reference_state(&rules.secret_name) == ReferenceState::Present
        && !pod.is_mirror()
        && !pod.is_disabled()
        && !pod.is_deleting()
        && !rules.excluded.contains(namespace);
    if !is_served {
        return BTreeSet::new();
    }
    let (registries, _) = registries(pod, rules).unwrap_or_default();
    let hosts = registries.into_keys();
    hosts
        .filter(|host| rules.key_for(host.as_str(), namespace, settings).is_some())
        .collect()
}

fn same_images(new: &Pod<'_>, old: &Pod<'_>) -> bool {
    let set = |pod: &Pod<'_>| pod.images().map(str::to_owned).collect::<BTreeSet<_>>();
    new.images().eq(old.images()) || set(new) == set(old)
}

fn registries(
    pod: &Pod<'_>,
    rules: &Rules,
) -> Result<(BTreeMap<Host, Registry>, Vec<String>), Reason> {
    let mut allowed = BTreeMap::new();
    let mut refused = BTreeSet::new();
    let mut beyond = BTreeSet::new();
    for domain in pod.domains() {
        if allowed.contains_key(domain) {
            continue;
        }
        let Some((host, registry)) = rules.aliases.resolve(domain) else {
            continue;
        };
        if !rules.allow.permits(&registry) {
            refused.insert(host);
        } else if allowed.len() >= rules.registries_per_pod {
            beyond.insert(host);
        } else {
            allowed.insert(host, registry);
        }
    }
    if allowed.is_empty() {
        return Err(if refused.is_empty() {
            Reason::NoRegistry
        } else {
            Reason::NotAllowed
        });
    }
    let mut warnings = Vec::new();
    if let Some(host) = refused.first() {
        warnings.push(warning(&format!(
            "registry not in the allow list: {host}{}",
            and_more(refused.len())
        )));
    }
    if !beyond.is_empty() {
        warnings.push(warning(&format!(
            "credentials for only {} of {} ECR registries (limits.registriesPerPod)",
            allowed.len(),
            allowed.len() + beyond.len()
        )));
    }
    Ok((allowed, warnings))
}

fn and_more(count: usize) -> String {
    if count > 1 {
        format!(" and {} more", count - 1)
    } else {
        String::new()
    }
}

impl Reason {
    /// The reason as a metric's label and a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAPod => "not_a_pod",
            Self::OtherOperation => "other_operation",
            Self::Mirror => "mirror_pod",
            Self::Disabled => "disabled",
            Self::Deleting => "deleting",
            Self::SameImages => "images_unchanged",
            Self::NoRegistry => "no_ecr_image",
            Self::NotOptedIn => "not_opted_in",
            Self::NotAllowed => "registry_not_allowed",
            Self::NoIdentity(why) => why.as_str(),
            Self::Foreign(_) => "foreign",
            Self::Overloaded => "overloaded",
        }
    }
}

#[cfg(test)]
mod tests;
