//! Identities: which AWS principal mints the token for a registry and a namespace.
//!
//! A token carries all that its principal may do, so the identity is the border between tenants: it is part of every
//! token's key and is recorded, as a hash, beside every credential that we write. Which one it is follows from the
//! configuration and from one annotation of the namespace, in this order: the first rule that matches; the role that the
//! namespace names, within the patterns that the configuration allows; the ambient identity. Nothing falls through: a
//! namespace whose role is refused gets no token at all.

pub mod pattern;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use self::pattern::{NAMESPACE, Pattern};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings, ROLE_ANNOTATION},
    registry::{AccountId, Partition, Region, Registry},
};

/// The longest name that STS takes for a session, in characters.
const MAX_SESSION_NAME: usize = 64;
/// The longest role ARN that STS takes, in characters.
const MAX_ARN: usize = 2048;

/// An AWS principal that mints tokens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// Whatever the SDK's credential chain finds in this process's environment.
    Ambient,
    /// A role that the ambient identity assumes.
    Role(Arc<Role>),
}

/// A role and how it is assumed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// Which role.
    pub arn: RoleArn,
    /// How, with every name put in.
    pub manner: AssumeRoleOptions,
    hash: IdentityHash,
}

/// The ARN of an IAM role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn {
    text: Arc<str>,
    partition: Partition,
}

/// A short fingerprint of an [`Identity`], stable across versions: written as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityHash(u64);

/// Of the text `ambient`.
const AMBIENT_HASH: IdentityHash = IdentityHash(0x31d1_8c0d_efdc_3e0e);

/// What the configuration says about identities.
#[derive(Debug, Clone, Default)]
pub struct Identities {
    /// The first that matches wins.
    pub rules: Vec<Rule>,
    /// Which roles namespaces may name.
    pub namespace_roles: NamespaceRoles,
    /// Who mints where no rule and no annotation says.
    pub default: DefaultIdentity,
}

/// One rule: for which registries and namespaces who mints.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The registries' accounts; empty: all, ECR Public's too.
    pub accounts: BTreeSet<AccountId>,
    /// The registries' regions; empty: all.
    pub regions: BTreeSet<Region>,
    /// The namespaces that ask; empty: all.
    pub namespaces: Vec<Pattern>,
    /// Who mints: a role, or the ambient identity itself.
    pub mints: Option<RoleTemplate>,
}

/// The roles that namespaces may name by their annotation.
#[derive(Debug, Clone, Default)]
pub struct NamespaceRoles {
    /// Patterns of ARNs; empty: none.
    pub allow: Vec<Pattern>,
    /// How they are assumed.
    pub manner: AssumeRoleOptions,
}

/// A role whose ARN may have the asking namespace's name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleTemplate {
    arn: String,
    manner: AssumeRoleOptions,
    /// The role itself, if no namespace's name is in it.
    fixed: Option<Result<Arc<Role>, Refusal>>,
}

/// How a role is assumed. In the configuration the texts may have the asking namespace's name in them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssumeRoleOptions {
    /// What its trust policy may ask for.
    pub external_id: Option<String>,
    /// The session's name, as AWS's own logs show it; of a role, one that STS takes.
    pub session_name: String,
    /// Session tags: policies can refer to them.
    pub tags: BTreeMap<String, String>,
    /// Whether the session may do no more than pull, whatever the role may do.
    pub pull_only: bool,
    /// How long the session lasts, in seconds.
    pub duration_seconds: u32,
    /// The region whose STS is asked; by default that of the environment, or the registry's.
    pub sts_region: Option<Region>,
}

/// Who mints where no rule and no annotation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultIdentity {
    /// The ambient identity.
    #[default]
    Ambient,
    /// Nobody.
    None,
}

/// Which identity mints, and what decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The identity, or why there is none.
    pub identity: Result<Identity, Refusal>,
    /// What decided.
    pub because: ChoiceReason,
}

/// What decided which identity mints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceReason {
    /// This rule, counted from 0.
    Rule(usize),
    /// The namespace's annotation.
    Annotation,
    /// Nothing else did.
    Default,
}

/// Why no identity mints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The annotation is no role's ARN.
    #[error("annotation {ROLE_ANNOTATION} is not the ARN of a role")]
    NotAnArn,
    /// The annotation's role is outside the patterns.
    #[error("the role in annotation {ROLE_ANNOTATION} is not in namespaceRoles.allow")]
    NotAllowed,
    /// The role is in another partition than the registry, where nothing that it gets is good.
    #[error("the role is in partition {role}, the registry in {registry}")]
    OtherPartition {
        /// The role's.
        role: &'static str,
        /// The registry's.
        registry: &'static str,
    },
    /// No rule matches, and the configuration gives the ambient identity to nobody else.
    #[error("no identity rule matches this registry and namespace")]
    NoDefault,
}

impl Refusal {
    /// The refusal as a metric's label.
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
    /// Who mints for a registry in a namespace that says this about itself.
    #[must_use]
    pub fn choose(
        &self,
        registry: &Registry,
        namespace: &Namespace,
        said: &NamespaceSettings,
    ) -> Choice {
        let first = self
            .rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.covers(registry, namespace));
        // A role to assume, or why there is none; nothing at all is the ambient identity.
        let (assumed, because) = match (first, said.role.as_deref()) {
            (Some((at, rule)), _) => {
                let assumed = rule.mints.as_ref().map(|it| it.fill_in(namespace));
                (assumed, ChoiceReason::Rule(at))
            }
            (None, Some(text)) => (
                Some(self.namespace_roles.role(text, namespace)),
                ChoiceReason::Annotation,
            ),
            (None, None) if self.default == DefaultIdentity::None => {
                (Some(Err(Refusal::NoDefault)), ChoiceReason::Default)
            }
            (None, None) => (None, ChoiceReason::Default),
        };
        let identity = match assumed {
            None => Ok(Identity::Ambient),
            Some(assumed) => assumed.and_then(|role| {
                let (role_is, registry_is) = (role.arn.partition, registry.partition());
                if role_is == registry_is {
                    Ok(Identity::Role(role))
                } else {
                    Err(Refusal::OtherPartition {
                        role: role_is.as_str(),
                        registry: registry_is.as_str(),
                    })
                }
            }),
        };
        Choice { identity, because }
    }
}

impl Rule {
    fn covers(&self, registry: &Registry, namespace: &Namespace) -> bool {
        let account = || {
            registry
                .account()
                .is_some_and(|account| self.accounts.contains(account))
        };
        (self.accounts.is_empty() || account())
            && (self.regions.is_empty() || self.regions.contains(registry.region()))
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
            Ok(self.manner.role(arn, namespace.as_str()))
        } else {
            Err(Refusal::NotAllowed)
        }
    }
}

impl RoleTemplate {
    /// The role of this ARN, with [`NAMESPACE`] for the name, and how it is assumed.
    #[must_use]
    pub fn new(arn: String, manner: AssumeRoleOptions) -> Self {
        let mut template = Self {
            arn,
            manner,
            fixed: None,
        };
        // Most roles are the same for all, and then none is put together at an admission.
        if !template.arn.contains(NAMESPACE) && !template.manner.names_the_namespace() {
            template.fixed = Some(template.put_in(""));
        }
        template
    }

    /// The ARN as it was written.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    fn fill_in(&self, namespace: &Namespace) -> Result<Arc<Role>, Refusal> {
        let fixed = self.fixed.clone();
        fixed.unwrap_or_else(|| self.put_in(namespace.as_str()))
    }

    fn put_in(&self, namespace: &str) -> Result<Arc<Role>, Refusal> {
        // The configuration was checked with another namespace's name; a longer one may make too long an ARN.
        let arn =
            RoleArn::parse(&self.arn.replace(NAMESPACE, namespace)).ok_or(Refusal::NotAnArn)?;
        Ok(self.manner.role(arn, namespace))
    }
}

impl AssumeRoleOptions {
    fn names_the_namespace(&self) -> bool {
        let texts = self.tags.values().chain(&self.external_id);
        texts
            .chain([&self.session_name])
            .any(|text| text.contains(NAMESPACE))
    }

    /// The role of this ARN, assumed so for a namespace.
    pub(crate) fn role(&self, arn: RoleArn, namespace: &str) -> Arc<Role> {
        let fill_in = |text: &String| text.replace(NAMESPACE, namespace);
        let manner = Self {
            external_id: self.external_id.as_ref().map(fill_in),
            session_name: session_name(&fill_in(&self.session_name)),
            tags: self
                .tags
                .iter()
                .map(|(key, value)| (key.clone(), fill_in(value)))
                .collect(),
            ..self.clone()
        };
        let hash = hash_of_role(&arn, &manner);
        Arc::new(Role { arn, manner, hash })
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
        }
    }
}

/// The session's name where the configuration gives none.
pub const DEFAULT_SESSION_NAME: &str = "ecr-injector";
/// How long a session lasts where the configuration doesn't say: one hour, the most that AWS allows when the ambient
/// identity is a role itself (role chaining).
pub const DEFAULT_DURATION_SECONDS: u32 = 3600;

/// What STS takes for a session's name: letters, digits and `_+=,.@-`, 2 to 64 of them. Others become `-`; of a text that
/// is too long the end becomes a hash, so that two long names stay two.
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

impl RoleArn {
    /// `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "iam", "", account, resource] = fields[..] else {
            return None;
        };
        let partition = Partition::parse(partition)?;
        AccountId::parse(account)?;
        let path = resource.strip_prefix("role/")?;
        let fits = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
        };
        (text.len() <= MAX_ARN && path.split('/').all(fits)).then(|| Self {
            text: text.into(),
            partition,
        })
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Identity {
    /// Its fingerprint: of who it is and what it may do, not of how long its sessions last or where they are asked for.
    #[must_use]
    pub fn hash(&self) -> IdentityHash {
        match self {
            Self::Ambient => AMBIENT_HASH,
            Self::Role(role) => role.hash,
        }
    }
}

/// By the fingerprint, which is there: every lookup of a token would walk through all of a role's texts otherwise.
impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Self::hash(self).hash(state);
    }
}

fn hash_of_role(arn: &RoleArn, manner: &AssumeRoleOptions) -> IdentityHash {
    let mut text = format!("role\n{arn}\n{}\n", manner.session_name);
    // Debug's quotes keep two fields from reading like one. Writing to a String can't fail.
    let _ = write!(
        text,
        "{:?}\n{:?}\n{}",
        manner.external_id, manner.tags, manner.pull_only
    );
    hash_of(&text)
}

fn hash_of(canonical: &str) -> IdentityHash {
    let digest = Sha256::digest(canonical.as_bytes());
    let first = digest.iter().take(8);
    IdentityHash(first.fold(0, |hash, &byte| hash << 8 | u64::from(byte)))
}

/// The first bytes of a text's SHA-256, in hex.
fn hex_digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut hex = String::with_capacity(2 * bytes);
    for byte in digest.iter().take(bytes) {
        // Writing to a String can't fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

impl IdentityHash {
    /// Takes 16 lower-case hex digits; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let fits = text.len() == 16 && text.bytes().all(hex);
        let value = u64::from_str_radix(text, 16).ok();
        value.filter(|_| fits).map(Self)
    }
}

impl fmt::Display for IdentityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambient => f.write_str("ambient"),
            Self::Role(role) => write!(f, "{}", role.arn),
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
