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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn parts(host: &str) -> (String, String, Partition, Endpoint) {
        let registry = Registry::parse(host).unwrap_or_else(|| panic!("{host} is ECR"));
        assert_eq!(registry.host().as_str(), host);
        (
            registry.account().expect("an account").to_string(),
            registry.region().to_string(),
            registry.partition(),
            registry.endpoint(),
        )
    }

    #[test]
    fn every_known_region_is_found_and_no_other() {
        assert!(regions::REGIONS.is_sorted());
        for name in regions::REGIONS {
            let region = Region::parse(name).unwrap_or_else(|| panic!("{name} has no partition"));
            assert!(region.is_known(), "{name}");
        }
        for partition in Partition::all() {
            let mut regions = regions::REGIONS
                .iter()
                .filter_map(|name| Region::parse(name));
            let has_one = regions.any(|region| region.partition() == partition);
            assert!(has_one, "{partition:?} has no region");
        }
        for name in ["aa-bcde-1", "eu-west-9", "us-gov-south-1", "cn-south-1"] {
            assert!(!Region::parse(name).expect("a form").is_known(), "{name}");
        }
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn knows_every_form_that_aws_serves() {
        let plain = Endpoint::default();
        let fips = Endpoint {
            service: Service::Private,
            fips: true,
            dual_stack: false,
        };
        let dual = Endpoint {
            service: Service::Private,
            fips: false,
            dual_stack: true,
        };
        let both = Endpoint {
            service: Service::Private,
            fips: true,
            dual_stack: true,
        };
        for (host, region, partition, endpoint) in [
            (
                "dkr.ecr.eu-west-1.amazonaws.com",
                "eu-west-1",
                Partition::Aws,
                plain,
            ),
            (
                "dkr.ecr-fips.us-east-1.amazonaws.com",
                "us-east-1",
                Partition::Aws,
                fips,
            ),
            (
                "dkr-ecr.us-west-2.on.aws",
                "us-west-2",
                Partition::Aws,
                dual,
            ),
            (
                "dkr-ecr-fips.us-west-2.on.aws",
                "us-west-2",
                Partition::Aws,
                both,
            ),
            (
                "dkr.ecr.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                Partition::AwsUsGov,
                plain,
            ),
            (
                "dkr.ecr-fips.us-gov-east-1.amazonaws.com",
                "us-gov-east-1",
                Partition::AwsUsGov,
                fips,
            ),
            (
                "dkr-ecr-fips.us-gov-east-1.on.aws",
                "us-gov-east-1",
                Partition::AwsUsGov,
                both,
            ),
            (
                "dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                Partition::AwsCn,
                plain,
            ),
            (
                "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
                "cn-northwest-1",
                Partition::AwsCn,
                dual,
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                Partition::AwsEusc,
                plain,
            ),
            (
                "dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                Partition::AwsIso,
                plain,
            ),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                Partition::AwsIsoB,
                plain,
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                Partition::AwsIsoE,
                plain,
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                Partition::AwsIsoF,
                plain,
            ),
            (
                "dkr.ecr.ap-southeast-7.amazonaws.com",
                "ap-southeast-7",
                Partition::Aws,
                plain,
            ),
        ] {
            let host = format!("123456789012.{host}");
            assert_eq!(
                parts(&host),
                ("123456789012".into(), region.into(), partition, endpoint),
                "{host}"
            );
        }
    }

    #[test]
    fn a_host_that_only_contains_a_registry_is_not_ecr() {
        for host in [
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
            "evil.123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "x123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com.",
            "123456789012.dkr.ecr.us-east-1.evil.amazonaws.com",
            "123456789012.dkr.ecr.us-east-1.xamazonaws.com",
            "123456789012.dkr.ecr.amazonaws.com",
            "123456789012.ecr.us-east-1.amazonaws.com",
            "dkr.ecr.us-east-1.amazonaws.com",
            "api.ecr.us-east-1.amazonaws.com",
            "public.ecr.aws",
            "ecr-public.aws.com",
            "",
        ] {
            assert_eq!(Registry::parse(host), None, "{host}");
        }
    }

    #[test]
    fn an_account_of_11_or_13_digits_is_not_ecr() {
        assert_eq!(
            Registry::parse("12345678901.dkr.ecr.us-east-1.amazonaws.com"),
            None
        );
        assert_eq!(
            Registry::parse("1234567890123.dkr.ecr.us-east-1.amazonaws.com"),
            None
        );
        assert_eq!(
            Registry::parse("１23456789012.dkr.ecr.us-east-1.amazonaws.com"),
            None
        );
    }

    #[test]
    fn a_port_is_not_ecr_because_the_kubelet_matches_ports_exactly() {
        assert_eq!(
            Registry::parse("123456789012.dkr.ecr.us-east-1.amazonaws.com:443"),
            None
        );
    }

    #[test]
    fn upper_case_is_not_ecr_because_the_kubelet_matches_case_exactly() {
        assert_eq!(
            Registry::parse("123456789012.DKR.ECR.us-east-1.amazonaws.com"),
            None
        );
        assert_eq!(
            Registry::parse("123456789012.dkr.ecr.US-EAST-1.amazonaws.com"),
            None
        );
    }

    #[test]
    fn userinfo_and_schemes_are_not_ecr() {
        assert_eq!(
            Registry::parse("AWS@123456789012.dkr.ecr.us-east-1.amazonaws.com"),
            None
        );
        assert_eq!(
            Registry::parse("https://123456789012.dkr.ecr.us-east-1.amazonaws.com"),
            None
        );
    }

    #[test]
    fn mixes_of_region_form_and_suffix_that_aws_does_not_serve_are_not_ecr() {
        for host in [
            "dkr-ecr.us-east-1.amazonaws.com",
            "dkr.ecr.us-east-1.on.aws",
            "dkr.ecr.cn-north-1.amazonaws.com",
            "dkr.ecr.us-east-1.amazonaws.com.cn",
            "dkr.ecr.us-iso-east-1.amazonaws.com",
            "dkr.ecr.eu-west-1.amazonaws.eu",
            "dkr.ecr.localhost.amazonaws.com",
            "dkr.ecr.us-east-1a.amazonaws.com",
            "dkr.ecr.us-east-.amazonaws.com",
            "dkr.ecr.-.amazonaws.com",
        ] {
            let host = format!("123456789012.{host}");
            assert_eq!(Registry::parse(&host), None, "{host}");
        }
    }

    #[test]
    fn an_alias_keeps_its_own_host_and_takes_the_token_of_its_registry() {
        let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
            .parse()
            .expect("valid");
        let aliases =
            Aliases::new([("images.example.com".to_owned(), registry.clone())]).expect("valid");
        let (host, resolved) = aliases.resolve("images.example.com").expect("known");
        assert_eq!((host.as_str(), resolved), ("images.example.com", registry));
        assert_eq!(aliases.resolve("other.example.com"), None);
    }

    #[test]
    fn the_public_gallery_is_served_only_when_asked_for() {
        for host in PUBLIC_HOSTS {
            assert_eq!(Aliases::default().resolve(host), None, "{host}");
            let (resolved, registry) = Aliases::default()
                .with_public()
                .resolve(host)
                .expect("served");
            assert_eq!(resolved.as_str(), host);
            assert_eq!(registry.account(), None);
            assert_eq!(registry.region().as_str(), "us-east-1");
            assert_eq!(registry.endpoint().service, Service::Public);
        }
        for host in [
            "public.ecr.aws.evil.example",
            "x.public.ecr.aws",
            "PUBLIC.ECR.AWS",
        ] {
            assert_eq!(Registry::parse_public(host), None, "{host}");
        }
    }

    #[test]
    fn a_partition_has_one_name_and_a_region_one_partition() {
        for (name, partition) in PARTITIONS {
            assert_eq!(Partition::parse(name), Some(partition));
            assert_eq!(partition.as_str(), name);
        }
        let region = Region::parse("us-gov-west-1").expect("a region");
        assert_eq!(region.partition(), Partition::AwsUsGov);
        assert_eq!(Partition::parse("aws-moon"), None);
    }

    #[test]
    fn aliases_that_can_not_be_are_refused() {
        let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
            .parse()
            .expect("valid");
        let alias = |host: &str| Aliases::new([(host.to_owned(), registry.clone())]);
        for host in [
            "Images.example.com",
            "images.example.com:443",
            "https://a.example",
            "a/b.c",
            "localhost",
            "",
        ] {
            assert!(matches!(alias(host), Err(AliasError::Host(_))), "{host}");
        }
        assert!(matches!(
            alias("210987654321.dkr.ecr.eu-west-1.amazonaws.com"),
            Err(AliasError::IsRegistry(_))
        ));
        let twice = [
            ("a.example".to_owned(), registry.clone()),
            ("a.example".to_owned(), registry),
        ];
        assert_eq!(
            Aliases::new(twice),
            Err(AliasError::Twice("a.example".into()))
        );
    }

    /// The second, naive parser: splits at the dots and compares the list of labels with each form.
    fn naive(host: &str) -> bool {
        let labels: Vec<&str> = host.split('.').collect();
        let digits = |text: &str, length: usize| {
            text.chars().count() == length && text.chars().all(|c| c.is_ascii_digit())
        };
        let forms: &[(&[&str], &str, &[&str])] = &[
            (&["dkr", "ecr"], "amazonaws com", &["aws", "gov"]),
            (&["dkr", "ecr-fips"], "amazonaws com", &["aws", "gov"]),
            (&["dkr-ecr"], "on aws", &["aws", "gov"]),
            (&["dkr-ecr-fips"], "on aws", &["aws", "gov"]),
            (&["dkr", "ecr"], "amazonaws com cn", &["cn"]),
            (&["dkr", "ecr-fips"], "amazonaws com cn", &["cn"]),
            (&["dkr-ecr"], "on amazonwebservices com cn", &["cn"]),
            (&["dkr-ecr-fips"], "on amazonwebservices com cn", &["cn"]),
            (&["dkr", "ecr"], "amazonaws eu", &["eusc"]),
            (&["dkr", "ecr-fips"], "amazonaws eu", &["eusc"]),
            (&["dkr", "ecr"], "c2s ic gov", &["iso"]),
            (&["dkr", "ecr-fips"], "c2s ic gov", &["iso"]),
            (&["dkr", "ecr"], "sc2s sgov gov", &["isob"]),
            (&["dkr", "ecr-fips"], "sc2s sgov gov", &["isob"]),
            (&["dkr", "ecr"], "cloud adc-e uk", &["isoe"]),
            (&["dkr", "ecr-fips"], "cloud adc-e uk", &["isoe"]),
            (&["dkr", "ecr"], "csp hci ic gov", &["isof"]),
            (&["dkr", "ecr-fips"], "csp hci ic gov", &["isof"]),
        ];
        let partition = |region: &str| -> Option<&'static str> {
            let words: Vec<&str> = region.split('-').collect();
            let word =
                |w: &str| (1..=16).contains(&w.len()) && w.chars().all(|c| c.is_ascii_lowercase());
            let number = |w: &str| digits(w, 1) || digits(w, 2);
            match words[..] {
                [a, b, c, n] if word(c) && number(n) => match (a, b) {
                    ("us", "gov") => Some("gov"),
                    ("us", "iso") => Some("iso"),
                    ("us", "isob") => Some("isob"),
                    ("eu", "isoe") => Some("isoe"),
                    ("us", "isof") => Some("isof"),
                    ("eusc", "de") => Some("eusc"),
                    _ => None,
                },
                ["cn", b, n] if word(b) && number(n) => Some("cn"),
                [a, b, n] if a.len() == 2 && word(a) && word(b) && number(n) => Some("aws"),
                _ => None,
            }
        };
        forms.iter().any(|(middle, suffix, partitions)| {
            let suffix: Vec<&str> = suffix.split(' ').collect();
            labels.len() == 1 + middle.len() + 1 + suffix.len()
                && digits(labels[0], 12)
                && &labels[1..=middle.len()] == *middle
                && labels[middle.len() + 2..] == suffix[..]
                && partition(labels[middle.len() + 1])
                    .is_some_and(|found| partitions.contains(&found))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn agrees_with_a_naive_parser(
            account in "[0-9]{11,13}",
            middle in "(dkr\\.ecr|dkr-ecr|dkr\\.ecr-fips|dkr-ecr-fips|dkr|ecr)",
            region in "((us|eu|cn|ap|eusc|usx)-(gov-|iso-|isob-|isoe-|isof-|de-)?(east|west|north|)-[0-9]{1,3})",
            suffix in "(amazonaws\\.com|amazonaws\\.com\\.cn|amazonaws\\.eu|on\\.aws|on\\.amazonwebservices\\.com\\.cn|sc2s\\.sgov\\.gov|c2s\\.ic\\.gov|cloud\\.adc-e\\.uk|csp\\.hci\\.ic\\.gov|evil\\.example)(\\.x)?",
        ) {
            let host = format!("{account}.{middle}.{region}.{suffix}");
            prop_assert_eq!(Registry::parse(&host).is_some(), naive(&host), "{}", host);
        }

        #[test]
        fn nothing_but_ecr_is_ecr(text in "\\PC{0,60}") {
            prop_assert_eq!(Registry::parse(&text).is_some(), naive(&text), "{}", text);
        }
    }
}
