//! The parts of IAM documents that people name: repositories, `ServiceAccount`s, providers,
//! clusters, organizations, session tags.

use std::fmt;

use crate::{
    cluster::namespace::Namespace,
    identity::RoleArn,
    registry::{AccountId, Host, Partition, Region},
};

/// The longest name of a repository.
const MAX_REPOSITORY: usize = 256;
/// The longest external id, and the shortest.
const EXTERNAL_ID: std::ops::RangeInclusive<usize> = 2..=1224;

/// The name of a repository, in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository(String);

/// The ARN of a role, in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RolePattern {
    text: String,
    partition: Partition,
}

/// A `ServiceAccount`; in both of its names `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// The OIDC provider of a cluster, as IAM names it: without scheme and trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcProvider {
    /// The provider's name, such as `oidc.eks.eu-west-1.amazonaws.com/id/0123`.
    pub name: String,
    /// The account, if the provider was named by its ARN.
    pub account: Option<AccountId>,
    /// The partition, if the provider's ARN or its host tells it.
    pub partition: Option<Partition>,
}

/// The ARN of an EKS cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterArn {
    text: String,
    /// The account of the cluster.
    pub account: AccountId,
    /// The partition of the cluster.
    pub partition: Partition,
}

/// The id of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization(String);

/// An external id of `AssumeRole`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExternalId(String);

/// A session tag that a trust policy requires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionTag {
    /// The tag's key.
    pub key: String,
    /// The value, in which `*` stands for any text; `None`: any value but the empty one.
    pub value: Option<String>,
}

impl Repository {
    /// Parses the name of a repository, or the pattern of names.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/*".contains(&b);
        let is_path = !text.starts_with('/') && !text.ends_with('/') && !text.contains("//");
        let length = 1..=MAX_REPOSITORY;
        if length.contains(&text.len()) && text.bytes().all(fits) && is_path {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "expected the name of a repository such as team-a/app, without registry and tag: \
                 lower-case letters, digits and any of ._-/, and * for any text",
            )
        }
    }

    /// Returns the pattern that every repository matches.
    #[must_use]
    pub fn any() -> Self {
        Self("*".to_owned())
    }
}

impl RolePattern {
    /// Parses the ARN of a role, or a pattern of ARNs whose partition is known.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let example = text.replace(":*:", ":123456789012:").replace('*', "x");
        match RoleArn::parse(&example) {
            Some(arn) => Ok(Self {
                text: text.to_owned(),
                partition: arn.partition(),
            }),
            None => Err("expected arn:aws:iam::ACCOUNT:role/NAME (or another partition's)"),
        }
    }

    /// Returns the partition of the roles.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.partition
    }
}

impl ServiceAccount {
    /// Parses `NAMESPACE/NAME`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let error = "expected NAMESPACE/NAME of a ServiceAccount";
        let (namespace, name) = text.split_once('/').ok_or(error)?;
        let is_namespace = Namespace::parse(&namespace.replace('*', "x")).is_some();
        // A name of one label is valid too, and a host has two.
        let is_name = Host::parse(&format!("x.{}", name.replace('*', "x"))).is_some();
        if is_namespace && is_name && !name.contains(':') {
            Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        } else {
            Err(error)
        }
    }

    /// Returns whether `*` is in one of the names.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.namespace.contains('*') || self.name.contains('*')
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl OidcProvider {
    /// Parses an issuer's URL, the name that IAM has for it, or its ARN in IAM.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let error = "expected the issuer of the cluster such as https://oidc.example/id/1, without \
                     port and query, or the ARN of its OIDC provider";
        let mut provider = Self {
            name: String::new(),
            account: None,
            partition: None,
        };
        let mut name = text;
        if text.starts_with("arn:") {
            let fields: Vec<&str> = text.splitn(6, ':').collect();
            let ["arn", partition, "iam", "", account, resource] = fields[..] else {
                return Err(error);
            };
            provider.partition = Some(Partition::parse(partition).ok_or(error)?);
            provider.account = Some(AccountId::parse(account).ok_or(error)?);
            name = resource.strip_prefix("oidc-provider/").ok_or(error)?;
        } else if let Some(rest) = text.strip_prefix("https://") {
            name = rest;
        } else if text.contains("://") {
            return Err("AWS trusts https:// issuers alone");
        }
        let name = name.trim_end_matches('/');
        let (host, path) = name.split_once('/').unwrap_or((name, ""));
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._~/-".contains(&b);
        if host.contains(':') || Host::parse(host).is_none() || !path.bytes().all(fits) {
            return Err(error);
        }
        let region = host.strip_prefix("oidc.eks.").and_then(|rest| {
            let (region, _) = rest.split_once('.')?;
            Region::parse(region)
        });
        let of_region = region.map(|region| region.partition());
        provider.partition = provider.partition.or(of_region);
        name.clone_into(&mut provider.name);
        Ok(provider)
    }
}

impl ClusterArn {
    /// Parses `arn:PARTITION:eks:REGION:ACCOUNT:cluster/NAME`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let error = "expected arn:aws:eks:REGION:ACCOUNT:cluster/NAME (or another partition's)";
        let fields: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "eks", region, account, resource] = fields[..] else {
            return Err(error);
        };
        let partition = Partition::parse(partition).ok_or(error)?;
        let region = Region::parse(region).ok_or(error)?;
        let account = AccountId::parse(account).ok_or(error)?;
        let name = resource.strip_prefix("cluster/").ok_or(error)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        let is_name = (1..=100).contains(&name.len()) && name.bytes().all(fits);
        if !is_name || region.partition() != partition {
            return Err(error);
        }
        Ok(Self {
            text: text.to_owned(),
            account,
            partition,
        })
    }
}

impl Organization {
    /// Parses the id of an organization.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let id = text.strip_prefix("o-").unwrap_or_default();
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if (10..=32).contains(&id.len()) && id.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected the id of an organization such as o-abc123def4")
        }
    }
}

impl ExternalId {
    /// Parses an external id as STS takes it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
        if EXTERNAL_ID.contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected 2 to 1,224 letters, digits and any of _+=,.@:/-")
        }
    }
}

impl SessionTag {
    /// Parses `KEY` or `KEY=VALUE`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (key, value) = match text.split_once('=') {
            None => (text, None),
            Some((key, value)) => (key, Some(value)),
        };
        let fits = |c: char| c.is_alphanumeric() || "_.:/+-@".contains(c);
        let is_key = (1..=128).contains(&key.chars().count()) && key.chars().all(fits);
        let is_value = value.is_none_or(|value| {
            let fits = |c| fits(c) || c == ' ' || c == '*' || c == '=';
            (1..=256).contains(&value.chars().count()) && value.chars().all(fits)
        });
        if is_key && is_value {
            Ok(Self {
                key: key.to_owned(),
                value: value.map(ToOwned::to_owned),
            })
        } else {
            Err("expected KEY or KEY=VALUE of a session tag: letters, digits and any of _.:/+-@")
        }
    }
}

/// Implements `Display` of types that wrap a text.
macro_rules! displayed {
    ($($name:ident: $field:tt),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.$field)
            }
        }
    )*};
}

displayed!(Repository: 0, RolePattern: text, ClusterArn: text, Organization: 0, ExternalId: 0);
