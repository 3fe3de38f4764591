//! Identities: the AWS principals that mint tokens, chosen by registry and namespace.
//!
//! A token carries every permission of its principal, so the identity is the border between
//! tenants: the identity is part of every token's key, and its hash is recorded beside every
//! credential in a pull secret. The configuration and one annotation of the namespace choose the
//! identity, in this order: the first rule that matches; the role in the annotation, within the
//! patterns that the configuration allows; the ambient identity. Only a rule can name a profile. Nothing falls through: a namespace
//! whose role is refused gets no token at all.

mod hash;
pub mod iam;
pub mod machine;
mod name;
pub mod pattern;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub use self::{
    hash::IdentityHash,
    name::{Profile, RoleArn},
};
use self::{
    hash::{AMBIENT_HASH, hash_of},
    pattern::{NAMESPACE, Pattern},
};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings, ROLE_ANNOTATION},
    registry::{AccountId, Partition, Region, Registry},
};

/// The maximum length of a session's name in STS, in characters.
const MAX_SESSION_NAME: usize = 64;

/// An AWS principal that mints tokens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// The principal that the SDK's credential chain finds in the environment of the process.
    Ambient,
    /// The principal of a profile in the shared configuration and credentials files.
    Profile(Profile),
    /// A role that the ambient identity or a profile assumes.
    Role(Arc<Role>),
}

/// A role and the options of `AssumeRole`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// The role.
    pub arn: RoleArn,
    /// The options of `AssumeRole`, with every placeholder replaced.
    pub options: AssumeRoleOptions,
    hash: IdentityHash,
}

/// The identities of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Identities {
    /// The rules; the first that matches wins.
    pub rules: Vec<Rule>,
    /// The roles that namespaces may request.
    pub namespace_roles: NamespaceRoles,
    /// The identity where neither a rule nor an annotation matches.
    pub default: DefaultIdentity,
}

/// A rule that chooses the identity for some registries and namespaces.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The accounts of the registries; empty: all, and ECR Public.
    pub accounts: BTreeSet<AccountId>,
    /// The regions of the registries; empty: all.
    pub regions: BTreeSet<Region>,
    /// The namespaces; empty: all.
    pub namespaces: Vec<Pattern>,
    /// The role that mints; `None`: the profile or the ambient identity itself.
    pub assume_role: Option<RoleTemplate>,
    /// The profile that mints, or that assumes the role; `None`: the ambient identity.
    pub profile: Option<Profile>,
}

impl Rule {
    /// Returns whether the rule matches every registry and namespace that the other one matches. Errs
    /// towards no.
    #[must_use]
    pub fn matches_all_of(&self, other: &Self) -> bool {
        let namespaces = &self.namespaces;
        let has_all = namespaces.is_empty() || namespaces.iter().any(Pattern::matches_all);
        let has_each = || {
            let mut each = other.namespaces.iter();
            !other.namespaces.is_empty()
                && each.all(|other| namespaces.iter().any(|it| it.covers(other)))
        };
        has_those_of(&self.accounts, &other.accounts)
            && has_those_of(&self.regions, &other.regions)
            && (has_all || has_each())
    }
}

/// Returns whether a set has all that another one has; an empty one has all there are.
fn has_those_of<T: Ord>(set: &BTreeSet<T>, other: &BTreeSet<T>) -> bool {
    set.is_empty() || !other.is_empty() && other.is_subset(set)
}

/// The roles that namespaces may request by their annotation.
#[derive(Debug, Clone, Default)]
pub struct NamespaceRoles {
    /// Patterns of ARNs; empty: none.
    pub allow: Vec<Pattern>,
    /// The options of `AssumeRole`.
    pub options: AssumeRoleOptions,
}

/// A role whose ARN and options may contain [`NAMESPACE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleTemplate {
    arn: String,
    options: AssumeRoleOptions,
    /// The role itself, if the template has no placeholder.
    without_placeholder: Option<Result<Arc<Role>, Refusal>>,
}

/// The options of `AssumeRole`. In the configuration the texts may contain [`NAMESPACE`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssumeRoleOptions {
    /// The external id that the role's trust policy may require.
    pub external_id: Option<String>,
    /// The session's name, as in `CloudTrail`; in a [`Role`], one that STS accepts.
    pub session_name: String,
    /// The session tags, which policies can refer to.
    pub tags: BTreeMap<String, String>,
    /// Whether a session policy limits the session to pulling, whatever the role allows.
    pub pull_only: bool,
    /// The duration of a session, in seconds.
    pub duration_seconds: u32,
    /// The region of the STS endpoint; by default that of the environment, or of the registry.
    pub sts_region: Option<Region>,
    /// The profile whose credentials assume the role; `None`: the ambient identity.
    pub profile: Option<Profile>,
}

/// The identity where neither a rule nor an annotation matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultIdentity {
    /// The ambient identity.
    #[default]
    Ambient,
    /// No identity: nothing is minted.
    None,
}

/// The identity that mints, and the reason for the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The identity, or the reason why there is none.
    pub identity: Result<Identity, Refusal>,
    /// The reason for the choice.
    pub reason: ChoiceReason,
}

/// The reason for the choice of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceReason {
    /// The rule of this index, from 0, is the first that matches.
    Rule(usize),
    /// No rule matches, and the namespace has the annotation.
    Annotation,
    /// No rule matches, and the namespace has no annotation.
    Default,
}

/// The reason why no identity mints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The annotation is not the ARN of a role.
    #[error("annotation {ROLE_ANNOTATION} is not the ARN of a role")]
    NotAnArn,
    /// The annotation's role matches none of the patterns.
    #[error("the role in annotation {ROLE_ANNOTATION} is not in namespaceRoles.allow")]
    NotAllowed,
    /// The role is in another partition than the registry, where the role's tokens aren't valid.
    #[error("the role is in partition {role}, the registry in {registry}")]
    OtherPartition {
        /// The role's partition.
        role: &'static str,
        /// The registry's partition.
        registry: &'static str,
    },
    /// No rule matches, and `defaultIdentity` is `none`.
    #[error("no identity rule matches this registry and namespace")]
    NoDefault,
}

impl Refusal {
    /// Returns the refusal as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAnArn => "invalid_role_arn",
            Self::NotAllowed => "role_not_allowed",
            Self::OtherPartition { .. } => "partition_mismatch",
            Self::NoDefault => "no_identity",
        }
    }
}

impl Identities {
    /// Returns whether the identity of a registry, or its session, depends on the namespace.
    #[must_use]
    pub fn depends_on_namespace(&self) -> bool {
        let has_placeholder = |template: &RoleTemplate| template.without_placeholder.is_none();
        let of_rules = self.rules.iter().any(|rule| {
            !rule.namespaces.is_empty() || rule.assume_role.as_ref().is_some_and(has_placeholder)
        });
        let roles = &self.namespace_roles;
        let mut allowed = roles.allow.iter();
        of_rules
            || allowed.any(|pattern| pattern.to_string().contains(NAMESPACE))
            || roles.options.has_placeholder()
    }

    /// Chooses the identity that mints for a registry and a namespace with these settings.
    #[must_use]
    pub fn choose(
        &self,
        registry: &Registry,
        namespace: &Namespace,
        settings: &NamespaceSettings,
    ) -> Choice {
        let first = self
            .rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.covers(registry, namespace));
        let (identity, reason) = match (first, settings.role.as_deref()) {
            (Some((at, rule)), _) => (rule.identity(namespace), ChoiceReason::Rule(at)),
            (None, Some(text)) => {
                let role = self.namespace_roles.role(text, namespace);
                (role.map(Identity::Role), ChoiceReason::Annotation)
            }
            (None, None) if self.default == DefaultIdentity::None => {
                (Err(Refusal::NoDefault), ChoiceReason::Default)
            }
            (None, None) => (Ok(Identity::Ambient), ChoiceReason::Default),
        };
        let identity = identity.and_then(|identity| identity.of_partition(registry.partition()));
        Choice { identity, reason }
    }
}

impl Rule {
    fn identity(&self, namespace: &Namespace) -> Result<Identity, Refusal> {
        match (&self.assume_role, &self.profile) {
            (Some(template), _) => template.resolve(namespace).map(Identity::Role),
            (None, Some(profile)) => Ok(Identity::Profile(profile.clone())),
            (None, None) => Ok(Identity::Ambient),
        }
    }

    /// Returns whether the rule is for the registry, in some namespace.
    fn is_for(&self, registry: &Registry) -> bool {
        let account = || {
            registry
                .account()
                .is_some_and(|account| self.accounts.contains(account))
        };
        (self.accounts.is_empty() || account())
            && (self.regions.is_empty() || self.regions.contains(registry.region()))
    }

    fn covers(&self, registry: &Registry, namespace: &Namespace) -> bool {
        self.is_for(registry)
            && (self.namespaces.is_empty()
                || self
                    .namespaces
                    .iter()
                    .any(|pattern| pattern.matches(namespace.as_str(), namespace)))
    }
}

impl NamespaceRoles {
    fn role(&self, text: &str, namespace: &Namespace) -> Result<Arc<Role>, Refusal> {
        let arn = RoleArn::parse(text).ok_or(Refusal::NotAnArn)?;
        let is_allowed = self
            .allow
            .iter()
            .any(|pattern| pattern.matches(arn.as_str(), namespace));
        if is_allowed {
            Ok(self.options.role(arn, namespace.as_str()))
        } else {
            Err(Refusal::NotAllowed)
        }
    }
}

impl RoleTemplate {
    /// Makes a template of an ARN and of options that may contain [`NAMESPACE`].
    #[must_use]
    pub fn new(arn: String, options: AssumeRoleOptions) -> Self {
        let mut template = Self {
            arn,
            options,
            without_placeholder: None,
        };
        // Most roles are the same for all namespaces, and then no admission has to build the role.
        if !template.arn.contains(NAMESPACE) && !template.options.has_placeholder() {
            template.without_placeholder = Some(template.render(""));
        }
        template
    }

    /// Returns the ARN as it is in the configuration.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    fn resolve(&self, namespace: &Namespace) -> Result<Arc<Role>, Refusal> {
        let role = self.without_placeholder.clone();
        role.unwrap_or_else(|| self.render(namespace.as_str()))
    }

    fn render(&self, namespace: &str) -> Result<Arc<Role>, Refusal> {
        // The configuration was checked with another name; a longer one may make the ARN too long.
        let arn =
            RoleArn::parse(&self.arn.replace(NAMESPACE, namespace)).ok_or(Refusal::NotAnArn)?;
        Ok(self.options.role(arn, namespace))
    }
}

impl AssumeRoleOptions {
    fn has_placeholder(&self) -> bool {
        let texts = self.tags.values().chain(&self.external_id);
        texts
            .chain([&self.session_name])
            .any(|text| text.contains(NAMESPACE))
    }

    /// Returns the role of an ARN with these options, the placeholders replaced by a namespace.
    pub(crate) fn role(&self, arn: RoleArn, namespace: &str) -> Arc<Role> {
        let render = |text: &String| text.replace(NAMESPACE, namespace);
        let options = Self {
            external_id: self.external_id.as_ref().map(render),
            session_name: session_name(&render(&self.session_name)),
            tags: self
                .tags
                .iter()
                .map(|(key, value)| (key.clone(), render(value)))
                .collect(),
            ..self.clone()
        };
        let hash = hash_of_role(&arn, &options);
        Arc::new(Role { arn, options, hash })
    }
}

impl Default for AssumeRoleOptions {
    fn default() -> Self {
        Self {
            external_id: None,
            session_name: DEFAULT_SESSION_NAME.to_owned(),
            tags: BTreeMap::new(),
            pull_only: false,
            duration_seconds: DEFAULT_DURATION_SECONDS,
            sts_region: None,
            profile: None,
        }
    }
}

/// The name of a session where the configuration has none.
pub const DEFAULT_SESSION_NAME: &str = "ecr-injector";
/// The duration of a session where the configuration has none: one hour, the most that AWS allows
/// when the ambient identity is a role itself (role chaining).
pub const DEFAULT_DURATION_SECONDS: u32 = 3600;

/// Converts a text into a session's name that STS accepts: 2 to 64 letters, digits and `_+=,.@-`.
/// Other characters become `-`; the end of a text that is too long becomes a hash, so that two long
/// names stay distinct.
fn session_name(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let mut name: String = text
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .collect();
    if name.len() > MAX_SESSION_NAME {
        name.truncate(MAX_SESSION_NAME - 9);
        name.push('-');
        name += &hex_digest(text, 4);
    }
    while name.len() < 2 {
        name.push('-');
    }
    name
}

impl Identity {
    /// Returns the identity's hash: of the principal and its permissions, not of the duration or
    /// the STS region of its sessions.
    #[must_use]
    pub fn hash(&self) -> IdentityHash {
        match self {
            Self::Ambient => AMBIENT_HASH,
            Self::Profile(profile) => profile.hash(),
            Self::Role(role) => role.hash,
        }
    }

    /// Returns the profile whose credentials sign the first call; `None`: the ambient identity's.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        match self {
            Self::Ambient => None,
            Self::Profile(profile) => Some(profile),
            Self::Role(role) => role.options.profile.as_ref(),
        }
    }

    /// Rejects a role of another partition. The partition of other credentials is not known here.
    fn of_partition(self, registry: Partition) -> Result<Self, Refusal> {
        match &self {
            Self::Role(role) if role.arn.partition() != registry => Err(Refusal::OtherPartition {
                role: role.arn.partition().as_str(),
                registry: registry.as_str(),
            }),
            _ => Ok(self),
        }
    }
}

/// Hashes the stored hash: every lookup of a token would read all texts of a role otherwise.
impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Self::hash(self).hash(state);
    }
}

fn hash_of_role(arn: &RoleArn, options: &AssumeRoleOptions) -> IdentityHash {
    let mut text = format!("role\n{arn}\n{}\n", options.session_name);
    // The quotes of Debug keep fields apart. Writing to a String can't fail.
    let _ = write!(
        text,
        "{:?}\n{:?}\n{}",
        options.external_id, options.tags, options.pull_only
    );
    if let Some(profile) = &options.profile {
        let _ = write!(text, "\n{:?}", profile.name());
    }
    hash_of(&text)
}

/// Returns the first bytes of a text's SHA-256, in hex.
fn hex_digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut hex = String::with_capacity(2 * bytes);
    for byte in digest.iter().take(bytes) {
        // Writing to a String can't fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambient => f.write_str("ambient"),
            Self::Profile(profile) => write!(f, "profile {}", profile.name()),
            Self::Role(role) => match &role.options.profile {
                None => write!(f, "{}", role.arn),
                Some(profile) => write!(f, "{} by profile {}", role.arn, profile.name()),
            },
        }
    }
}

impl fmt::Display for ChoiceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(at) => write!(f, "identities[{at}] is the first rule that matches"),
            Self::Annotation => write!(
                f,
                "no rule matches, and the namespace has the annotation {ROLE_ANNOTATION}"
            ),
            Self::Default => f.write_str("no rule matches, and the namespace names no role"),
        }
    }
}

#[cfg(test)]
mod tests;
