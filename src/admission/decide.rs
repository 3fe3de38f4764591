//! Decides on one admission request. Pure: the state of the cluster and the time are arguments.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    pod::{INJECT_ANNOTATION, INJECT_DISABLED, OptOutNearMiss, Pod, ReferenceState},
    review::{Operation, Request, warning},
};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    identity::Refusal,
    pull_secret::{Foreign, SecretFacts, state::State},
    registry::{Host, Registry},
    token::{Freshness, TokenKey, rules::Rules},
};

/// The facts about the namespace of a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Whether the namespace is opted in.
    pub opt_in: OptInFacts<'a>,
    /// The namespace's pull secret.
    pub secret: SecretFacts<'a>,
    /// Whether the Pod's ServiceAccount makes the API server reject a Pod that references the pull
    /// secret.
    pub account_rejects_reference: bool,
}

/// The facts about a namespace's opt-in label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptInFacts<'a> {
    /// The namespace has the label, and these settings.
    OptedIn(&'a NamespaceSettings),
    /// The namespace lacks the label.
    NotOptedIn,
    /// The namespace couldn't be read.
    Unknown,
}

/// The decision on one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is changed and nothing ensured.
    Skip(SkipReason),
    /// The Pod gets the reference; the pull secret has every credential that the Pod needs.
    Inject(Injection),
    /// The Pod gets the reference once these tokens are in the pull secret, each under its host.
    InjectAfterEnsuring(Injection, BTreeMap<Host, TokenKey>),
    /// The Pod gets the reference, although nothing is known about the namespace: the API server
    /// asks only about Pods of opted-in namespaces, and a reference to a Secret that doesn't exist
    /// does no harm. Nothing is written until the namespace is known to be opted in.
    InjectUnprovisioned(Injection),
}

/// The change to a Pod, and to the pull secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The state of the reference in the Pod; [`ReferenceState::Present`] for a stored Pod, whose
    /// list can't change.
    pub reference: ReferenceState,
    /// The hosts of the Pod's images.
    pub hosts: BTreeSet<Host>,
    /// The warnings for the user.
    pub warnings: Vec<String>,
    /// Whether the leader should refresh the pull secret soon.
    pub due: bool,
    /// The hosts whose last recorded demand is so old that this one has to be recorded.
    pub unnoted: BTreeMap<Host, TokenKey>,
    /// The reason why other registries of the Pod get no credential.
    pub refusal: Option<Refusal>,
}

/// The reason why a request is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// The object is not a Pod.
    NotAPod,
    /// The object is a Pod that can't be read.
    UnreadablePod,
    /// The operation is neither CREATE nor UPDATE.
    OtherOperation,
    /// The Pod is the mirror of a static Pod.
    Mirror,
    /// The Pod's annotation opts out.
    Disabled,
    /// The Pod is being deleted.
    Deleting,
    /// The UPDATE leaves the images unchanged.
    SameImages,
    /// No image is in an ECR registry.
    NoRegistry,
    /// The namespace has no opt-in label, or is excluded.
    NotOptedIn,
    /// `allow` permits none of the registries.
    NotAllowed,
    /// No identity may mint for any of the registries.
    NoIdentity(Refusal),
    /// The Secret of the configured name isn't managed by ecr-injector.
    Foreign(Foreign),
    /// The API server would reject the Pod with the reference, because of its ServiceAccount.
    MountableSecrets,
}

/// The registries that a Pod needs, before anything is known about its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    namespace: Namespace,
    reference: ReferenceState,
    /// Whether the Pod is stored already, so that its `imagePullSecrets` can't change.
    is_stored: bool,
    dry_run: bool,
    registries: BTreeMap<Host, Registry>,
    warnings: Vec<String>,
}

/// Returns the demand of a request; the common case, a Pod without ECR images, ends here.
pub fn demand(request: &Request<'_>, rules: &Rules) -> Result<Demand, SkipReason> {
    if !request.is_pod {
        return Err(SkipReason::NotAPod);
    }
    if request.unreadable.is_some() {
        return Err(SkipReason::UnreadablePod);
    }
    let pod = request.object.as_ref().ok_or(SkipReason::NotAPod)?;
    let is_stored = match request.operation {
        Operation::Create => false,
        Operation::Update => true,
        Operation::Other => return Err(SkipReason::OtherOperation),
    };
    if pod.is_mirror() {
        return Err(SkipReason::Mirror);
    }
    if pod.is_disabled() {
        return Err(SkipReason::Disabled);
    }
    if is_stored {
        if pod.is_deleting() {
            return Err(SkipReason::Deleting);
        }
        if request
            .old_object
            .as_ref()
            .is_some_and(|old| same_images(pod, old))
        {
            return Err(SkipReason::SameImages);
        }
    }
    let namespace = Namespace::parse(&request.namespace.0)
        .filter(|namespace| !rules.excluded.contains(namespace))
        .ok_or(SkipReason::NotOptedIn)?;
    let (registries, mut warnings) = registries(pod, rules)?;
    warnings.extend(near_misses(pod, rules));
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
    /// Returns the namespace whose facts the decision needs.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the injection for a namespace about which nothing is known.
    fn injection(self) -> Injection {
        Injection {
            reference: if self.is_stored {
                ReferenceState::Present
            } else {
                self.reference
            },
            hosts: self.registries.into_keys().collect(),
            warnings: self.warnings,
            due: false,
            unnoted: BTreeMap::new(),
            refusal: None,
        }
    }
}

/// Decides on a demand by the facts about its namespace.
#[must_use]
pub fn decide(demand: Demand, rules: &Rules, facts: &Facts<'_>, now: Timestamp) -> Decision {
    if facts.opt_in == OptInFacts::NotOptedIn {
        return Decision::Skip(SkipReason::NotOptedIn);
    }
    if let SecretFacts::Foreign(why) = facts.secret {
        return Decision::Skip(SkipReason::Foreign(why));
    }
    let is_added = !demand.is_stored && demand.reference != ReferenceState::Present;
    if is_added && facts.account_rejects_reference {
        return Decision::Skip(SkipReason::MountableSecrets);
    }
    let OptInFacts::OptedIn(settings) = facts.opt_in else {
        return Decision::InjectUnprovisioned(demand.injection());
    };
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
            .choose(&registry, &namespace, settings)
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
            return Decision::Skip(SkipReason::NoIdentity(why));
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

/// Returns the hosts whose last recorded demand is old.
fn unnoted(
    keys: &BTreeMap<Host, TokenKey>,
    state: &State,
    now: Timestamp,
) -> BTreeMap<Host, TokenKey> {
    let is_unnoted = |host: &Host| {
        let entry = state.hosts.get(host);
        entry.is_some_and(|entry| !entry.demand.is_recent(now))
    };
    let unnoted = keys.iter().filter(|(host, _)| is_unnoted(host));
    unnoted
        .map(|(host, key)| (host.clone(), key.clone()))
        .collect()
}

/// Returns the warning for a Pod that is skipped, if there is something that its user can do about
/// it.
#[must_use]
pub fn warning_for(reason: SkipReason, rules: &Rules) -> Option<String> {
    match reason {
        SkipReason::Foreign(why) => Some(warning(&format!(
            "Secret {} left unchanged: {why}",
            rules.secret_name
        ))),
        SkipReason::NotAllowed => Some(warning(
            "no pull secret added: the allow list has none of this Pod's ECR registries",
        )),
        SkipReason::NoIdentity(why) => Some(warning(&why.to_string())),
        SkipReason::MountableSecrets => Some(warning(&format!(
            "ServiceAccount enforces mountable secrets: add {} to its imagePullSecrets",
            rules.secret_name
        ))),
        SkipReason::UnreadablePod => Some(warning(
            "this Pod could not be read; if it has ECR images, they may fail to pull",
        )),
        _ => None,
    }
}

/// Returns the warnings for a request that is skipped before anything is known about its namespace:
/// also about names in the Pod that nearly match.
#[must_use]
pub fn skip_warnings(reason: SkipReason, request: &Request<'_>, rules: &Rules) -> Vec<String> {
    let pod = match reason {
        SkipReason::NoRegistry | SkipReason::NotAllowed => request.object.as_ref(),
        _ => None,
    };
    let near_misses = pod.map(|pod| near_misses(pod, rules)).unwrap_or_default();
    let warning = warning_for(reason, rules);
    warning.into_iter().chain(near_misses).collect()
}

/// Returns the warnings about names in a Pod that nearly match, one of each kind.
fn near_misses(pod: &Pod<'_>, rules: &Rules) -> Vec<String> {
    let lookalike = pod
        .images()
        .find_map(|image| rules.aliases.lookalike(image));
    let lookalike = lookalike.map(|lookalike| warning(&format!("an image {lookalike}")));
    let opt_out = pod.opt_out_near_miss().map(|near_miss| match near_miss {
        OptOutNearMiss::Value(value) => warning(&format!(
            "annotation {INJECT_ANNOTATION}: {value} has no effect; only {INJECT_DISABLED} opts out"
        )),
        OptOutNearMiss::Label => warning(&format!(
            "label {INJECT_ANNOTATION} has no effect on a Pod; label the namespace, or annotate \
             the Pod"
        )),
        OptOutNearMiss::Key(key) => warning(&format!(
            "key {key} has no effect; {INJECT_ANNOTATION}: {INJECT_DISABLED} opts a Pod out"
        )),
    });
    lookalike.into_iter().chain(opt_out).collect()
}

/// Returns the hosts for which an admission of this Pod would have needed a credential: none unless
/// the Pod has the reference, which every injected Pod has.
#[must_use]
pub fn hosts_wanted_by(
    pod: &Pod<'_>,
    rules: &Rules,
    namespace: &Namespace,
    settings: &NamespaceSettings,
) -> BTreeSet<Host> {
    let is_injected = pod.reference_state(&rules.secret_name) == ReferenceState::Present
        && !pod.is_mirror()
        && !pod.is_disabled()
        && !pod.is_deleting()
        && !rules.excluded.contains(namespace);
    if !is_injected {
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
) -> Result<(BTreeMap<Host, Registry>, Vec<String>), SkipReason> {
    let mut allowed = BTreeMap::new();
    let mut refused = BTreeSet::new();
    let mut over_limit = BTreeSet::new();
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
            over_limit.insert(host);
        } else {
            allowed.insert(host, registry);
        }
    }
    if allowed.is_empty() {
        return Err(if refused.is_empty() {
            SkipReason::NoRegistry
        } else {
            SkipReason::NotAllowed
        });
    }
    let mut warnings = Vec::new();
    if let Some(host) = refused.first() {
        warnings.push(warning(&format!(
            "registry not in the allow list: {host}{}",
            and_more(refused.len())
        )));
    }
    if !over_limit.is_empty() {
        warnings.push(warning(&format!(
            "credentials for only {} of {} ECR registries (limits.registriesPerPod)",
            allowed.len(),
            allowed.len() + over_limit.len()
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

impl SkipReason {
    /// Returns the reason as a metric's label and a log field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAPod => "not_a_pod",
            Self::UnreadablePod => "unreadable_pod",
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
            Self::MountableSecrets => "mountable_secrets",
        }
    }
}

#[cfg(test)]
mod tests;
