//! ECR registries, parsed from their host names.
//!
//! A host is ECR only if the whole of it has one of AWS's own forms. The forms are those that the
//! kubelet's ECR credential provider (`cloud-provider-aws`) and `amazon-ecr-credential-helper`
//! accept, except for the mixes of dotted and dual-stack forms that AWS does not serve. Nothing
//! that leaves this process is ever built from a host that was not parsed here. A port is no part
//! of a form: the registry behind it is the same, only the docker config's key has it.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::{
    host::{Host, split_port},
    region::{Partition, Region},
};

/// A 12-digit AWS account id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

/// The service that a registry belongs to. Tokens of the one are not valid for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Service {
    /// Amazon ECR: the private registry of an account in a region.
    #[default]
    Private,
    /// Amazon ECR Public: one registry for all, whose images can also be pulled without a token.
    Public,
}

/// The ECR endpoint of a region that mints the tokens of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Endpoint {
    /// The service.
    pub service: Service,
    /// Whether the endpoint is FIPS 140 validated (`-fips` in the host).
    pub fips: bool,
    /// Whether the endpoint has IPv4 and IPv6 (`dkr-ecr` in the host).
    pub dual_stack: bool,
}

/// An ECR registry: a private one, or ECR Public.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registry {
    host: Host,
    account: Option<AccountId>,
    region: Region,
    partition: Partition,
    endpoint: Endpoint,
}

/// The error for a text that is not the host of a private ECR registry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a private ECR registry: expected ACCOUNT.dkr.ecr.REGION.amazonaws.com or another of AWS's forms, in lower case, without scheme or path"
)]
pub struct RegistryError(String);

/// The hosts of ECR Public.
pub const PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];
/// The one region that serves the API of ECR Public.
const PUBLIC_REGION: &str = "us-east-1";

/// The suffixes after the region: text, whether for dual-stack endpoints, and partitions.
pub(super) const SUFFIXES: [(&str, bool, &[Partition]); 9] = [
    (
        "amazonaws.com",
        false,
        &[Partition::Aws, Partition::AwsUsGov],
    ),
    ("amazonaws.com.cn", false, &[Partition::AwsCn]),
    ("amazonaws.eu", false, &[Partition::AwsEusc]),
    ("on.aws", true, &[Partition::Aws, Partition::AwsUsGov]),
    ("on.amazonwebservices.com.cn", true, &[Partition::AwsCn]),
    ("c2s.ic.gov", false, &[Partition::AwsIso]),
    ("sc2s.sgov.gov", false, &[Partition::AwsIsoB]),
    ("cloud.adc-e.uk", false, &[Partition::AwsIsoE]),
    ("csp.hci.ic.gov", false, &[Partition::AwsIsoF]),
];

/// The forms of a host after its account, and their endpoints.
pub(super) const FORMS: [(&str, Endpoint); 4] = [
    ("dkr.ecr.", Endpoint::private(false, false)),
    ("dkr.ecr-fips.", Endpoint::private(true, false)),
    ("dkr-ecr.", Endpoint::private(false, true)),
    ("dkr-ecr-fips.", Endpoint::private(true, true)),
];

/// A form of the hosts of private registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostForm {
    /// The text between the account and the region, with both dots.
    prefix: &'static str,
    /// The text after the region.
    suffix: &'static str,
    /// The partitions whose registries have such hosts.
    pub partitions: &'static [Partition],
}

impl HostForm {
    /// Returns all forms.
    pub fn all() -> impl Iterator<Item = Self> {
        SUFFIXES
            .iter()
            .flat_map(|(suffix, dual_stack, partitions)| {
                let forms = FORMS.iter();
                let forms = forms.filter(|(_, endpoint)| endpoint.dual_stack == *dual_stack);
                forms.map(|(prefix, _)| Self {
                    prefix,
                    suffix,
                    partitions,
                })
            })
    }

    /// Returns the hosts of the form with this text for the account and for the region.
    #[must_use]
    pub fn with(&self, account: &str, region: &str) -> String {
        let Self { prefix, suffix, .. } = self;
        format!("{account}.{prefix}{region}.{suffix}")
    }
}

impl Endpoint {
    const fn private(fips: bool, dual_stack: bool) -> Self {
        Self {
            service: Service::Private,
            fips,
            dual_stack,
        }
    }
}

impl Registry {
    /// Parses the host of a private registry, with or without a port; any text but the whole of one
    /// of AWS's forms is `None`.
    #[must_use]
    pub fn parse(host: &str) -> Option<Self> {
        let (account, rest) = split_port(host)?.split_once('.')?;
        let account = AccountId::parse(account)?;
        let (endpoint, rest) = FORMS
            .into_iter()
            .find_map(|(prefix, endpoint)| Some((endpoint, rest.strip_prefix(prefix)?)))?;
        let (region, suffix) = rest.split_once('.')?;
        let partition = Partition::of_region(region)?;
        let known = SUFFIXES.iter().any(|(text, dual_stack, partitions)| {
            *text == suffix && *dual_stack == endpoint.dual_stack && partitions.contains(&partition)
        });
        known.then(|| Self {
            host: Host(host.into()),
            account: Some(account),
            region: Region(region.into()),
            partition,
            endpoint,
        })
    }

    /// Returns ECR Public, if this is one of its hosts, with or without a port.
    #[must_use]
    pub fn parse_public(host: &str) -> Option<Self> {
        PUBLIC_HOSTS.contains(&split_port(host)?).then(|| Self {
            host: Host(host.into()),
            account: None,
            region: Region(PUBLIC_REGION.into()),
            partition: Partition::Aws,
            endpoint: Endpoint {
                service: Service::Public,
                ..Endpoint::default()
            },
        })
    }

    /// Returns the host in image references, with its port.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the account that owns the registry; ECR Public has none.
    #[must_use]
    pub fn account(&self) -> Option<&AccountId> {
        self.account.as_ref()
    }

    /// Returns the registry's region.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the partition of the registry's region.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the endpoint that mints the registry's tokens.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }
}

impl std::str::FromStr for Registry {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        Self::parse(text).ok_or_else(|| RegistryError(text.to_owned()))
    }
}

impl AccountId {
    /// Parses twelve ASCII digits, or returns `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())).then(|| Self(text.into()))
    }
}

as_text!(AccountId);
