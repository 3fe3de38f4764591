//! Registries: which hosts are Amazon ECR, and what their names say.
//!
//! A host is ECR only if the whole of it has one of AWS's own forms. The forms are those that the kubelet's ECR
//! credential provider (`cloud-provider-aws`) and `amazon-ecr-credential-helper` accept, less the mixes of dotted and
//! dual-stack forms that AWS does not serve. Nothing that leaves this process is ever built from a host that did not
//! pass here.

pub mod image;
mod regions;

use std::{collections::BTreeMap, fmt, sync::Arc};

use thiserror::Error;

/// A registry's host name as image references write it: lower case, no port, no scheme.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

/// A 12-digit AWS account id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

/// The name of an AWS region, such as `eu-west-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Arc<str>);

/// A set of regions with endpoints and credentials of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Partition {
    /// The commercial regions.
    Aws,
    /// The regions in China.
    AwsCn,
    /// The regions for the US government.
    AwsUsGov,
    /// The European sovereign cloud.
    AwsEusc,
    /// `us-iso-*`.
    AwsIso,
    /// `us-isob-*`.
    AwsIsoB,
    /// `eu-isoe-*`.
    AwsIsoE,
    /// `us-isof-*`.
    AwsIsoF,
}

/// Which of the two services named ECR a registry belongs to. Their tokens are not interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Service {
    /// Amazon ECR: an account's own registry in a region.
    #[default]
    Private,
    /// Amazon ECR Public: one gallery for all, whose images also pull with no token at all.
    Public,
}

/// Which of a region's ECR endpoints a host belongs to; a token is asked for there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Endpoint {
    /// The service that is asked.
    pub service: Service,
    /// FIPS 140 validated (`-fips` in the host).
    pub fips: bool,
    /// IPv4 and IPv6 (`dkr-ecr` in the host).
    pub dual_stack: bool,
}

/// An ECR registry: a private one, or the public gallery.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registry {
    host: Host,
    account: Option<AccountId>,
    region: Region,
    partition: Partition,
    endpoint: Endpoint,
}

/// Why a text is not a private ECR registry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a private ECR registry: expected ACCOUNT.dkr.ecr.REGION.amazonaws.com or another of AWS's forms, in lower case, without scheme, port or path"
)]
pub struct RegistryError(String);

/// Why an alias was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AliasError {
    /// The host can't be one.
    #[error(
        "{0:?} is not a host name: expected lower-case labels joined by dots, without scheme, port or path"
    )]
    Host(String),
    /// An ECR host speaks for itself.
    #[error("{0:?} is an ECR registry itself and can't be an alias")]
    IsRegistry(String),
    /// The same host twice.
    #[error("{0:?} is named twice")]
    Twice(String),
}

/// The hosts of the public gallery.
const PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];
/// The one region that serves the public gallery's API.
const PUBLIC_REGION: &str = "us-east-1";

/// The partitions by the names that ARNs have for them.
const PARTITIONS: [(&str, Partition); 8] = [
    ("aws", Partition::Aws),
    ("aws-cn", Partition::AwsCn),
    ("aws-us-gov", Partition::AwsUsGov),
    ("aws-eusc", Partition::AwsEusc),
    ("aws-iso", Partition::AwsIso),
    ("aws-iso-b", Partition::AwsIsoB),
    ("aws-iso-e", Partition::AwsIsoE),
    ("aws-iso-f", Partition::AwsIsoF),
];

/// Suffixes after the region: the text, whether it is a dual-stack one, and the partitions it serves.
const SUFFIXES: [(&str, bool, &[Partition]); 9] = [
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

impl Registry {
    /// Parses a private registry's host; anything but the whole of one of AWS's forms is `None`.
    #[must_use]
    pub fn parse(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        let account = AccountId::parse(account)?;
        let (endpoint, rest) = [
            (
                "dkr.ecr.",
                Endpoint {
                    service: Service::Private,
                    fips: false,
                    dual_stack: false,
                },
            ),
            (
                "dkr.ecr-fips.",
                Endpoint {
                    service: Service::Private,
                    fips: true,
                    dual_stack: false,
                },
            ),
            (
                "dkr-ecr.",
                Endpoint {
                    service: Service::Private,
                    fips: false,
                    dual_stack: true,
                },
            ),
            (
                "dkr-ecr-fips.",
                Endpoint {
                    service: Service::Private,
                    fips: true,
                    dual_stack: true,
                },
            ),
        ]
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

    /// The public gallery, if this is one of its hosts.
    #[must_use]
    pub fn parse_public(host: &str) -> Option<Self> {
        PUBLIC_HOSTS.contains(&host).then(|| Self {
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

    /// The host that image references name.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The account that owns the registry; the public gallery is nobody's.
    #[must_use]
    pub fn account(&self) -> Option<&AccountId> {
        self.account.as_ref()
    }

    /// The region that the registry is in.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The partition of its region.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// The endpoint that tokens for it come from.
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

impl Partition {
    /// All that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        PARTITIONS.iter().map(|(_, partition)| *partition)
    }

    /// The partition of this name, as ARNs write it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        PARTITIONS
            .iter()
            .find_map(|(name, partition)| (*name == text).then_some(*partition))
    }

    /// Its name, as ARNs write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        PARTITIONS
            .iter()
            .find_map(|(name, partition)| (*partition == self).then_some(*name))
            .unwrap_or_default()
    }

    /// The partition that a region's name belongs to, by the prefixes in the SDK's partition table; `None` if the text
    /// does not have the form of a region's name. An unknown region of that form is taken for a new commercial one.
    fn of_region(region: &str) -> Option<Self> {
        const PREFIXES: [(&str, Partition); 7] = [
            ("cn-", Partition::AwsCn),
            ("us-gov-", Partition::AwsUsGov),
            ("us-iso-", Partition::AwsIso),
            ("us-isob-", Partition::AwsIsoB),
            ("eu-isoe-", Partition::AwsIsoE),
            ("us-isof-", Partition::AwsIsoF),
            ("eusc-de-", Partition::AwsEusc),
        ];
        let lower = |text: &str| {
            !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_lowercase())
        };
        let (partition, rest) = PREFIXES
            .iter()
            .find_map(|(prefix, partition)| Some((*partition, region.strip_prefix(prefix)?)))
            .or_else(|| {
                let (area, rest) = region.split_once('-')?;
                (area.len() == 2 && lower(area)).then_some((Partition::Aws, rest))
            })?;
        let (place, number) = rest.split_once('-')?;
        let number_ok =
            (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        (lower(place) && number_ok).then_some(partition)
    }
}

impl AccountId {
    /// Twelve ASCII digits, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())).then(|| Self(text.into()))
    }
}

impl Region {
    /// A region's name of a known partition, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Partition::of_region(text).map(|_| Self(text.into()))
    }

    /// The partition that it is in.
    #[must_use]
    pub fn partition(&self) -> Partition {
        // Whatever is a region has a partition.
        Partition::of_region(&self.0).unwrap_or(Partition::Aws)
    }

    /// Whether AWS has a region of this name, as far as this release knows. A name of the right form that is not in the
    /// table may belong to a newer region, or to none.
    #[must_use]
    pub fn is_known(&self) -> bool {
        regions::REGIONS.binary_search(&&*self.0).is_ok()
    }
}

impl Host {
    /// A lower-case DNS name of at least two labels and at most 253 bytes, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (text.len() <= 253 && text.contains('.') && text.split('.').all(label))
            .then(|| Self(text.into()))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
as_text!(Host, AccountId, Region);

impl std::borrow::Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What the hosts that images name stand for: ECR's own, and other names that the cluster's admin gave to registries (a
/// CNAME, a mirror).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    registries: BTreeMap<Host, Registry>,
    public: bool,
}

impl Aliases {
    /// Checks and collects (host, registry) pairs.
    pub fn new(pairs: impl IntoIterator<Item = (String, Registry)>) -> Result<Self, AliasError> {
        let mut aliases = BTreeMap::new();
        for (text, registry) in pairs {
            if Registry::parse(&text).is_some() || Registry::parse_public(&text).is_some() {
                return Err(AliasError::IsRegistry(text));
            }
            let Some(host) = Host::parse(&text) else {
                return Err(AliasError::Host(text));
            };
            if aliases.insert(host, registry).is_some() {
                return Err(AliasError::Twice(text));
            }
        }
        Ok(Self {
            registries: aliases,
            public: false,
        })
    }

    /// The same, and the public gallery is served too.
    #[must_use]
    pub fn with_public(self) -> Self {
        Self {
            public: true,
            ..self
        }
    }

    /// How many other names there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.registries.len()
    }

    /// Whether the public gallery is served.
    #[must_use]
    pub fn serve_public(&self) -> bool {
        self.public
    }

    /// What a host that an image names stands for: the host to write in the pull secret, and the registry that a token
    /// is asked from. `None` if it is neither an alias nor an ECR registry.
    #[must_use]
    pub fn resolve(&self, host: &str) -> Option<(Host, Registry)> {
        if let Some((alias, registry)) = self.registries.get_key_value(host) {
            return Some((alias.clone(), registry.clone()));
        }
        let public = || Registry::parse_public(host).filter(|_| self.public);
        let registry = Registry::parse(host).or_else(public)?;
        Some((registry.host.clone(), registry))
    }
}

#[cfg(test)]
mod tests;
