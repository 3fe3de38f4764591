//! AWS regions and their partitions, by the SDK's own table.

use std::{fmt, sync::Arc};

/// The name of an AWS region, such as `eu-west-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(pub(super) Arc<str>);

/// A set of regions with separate endpoints and credentials.
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

/// The partitions by their names in ARNs.
pub(super) const PARTITIONS: [(&str, Partition); 8] = [
    ("aws", Partition::Aws),
    ("aws-cn", Partition::AwsCn),
    ("aws-us-gov", Partition::AwsUsGov),
    ("aws-eusc", Partition::AwsEusc),
    ("aws-iso", Partition::AwsIso),
    ("aws-iso-b", Partition::AwsIsoB),
    ("aws-iso-e", Partition::AwsIsoE),
    ("aws-iso-f", Partition::AwsIsoF),
];

/// The prefixes of regions outside the commercial partition, by the SDK's partition table.
pub(super) const PREFIXES: [(&str, Partition); 7] = [
    ("cn-", Partition::AwsCn),
    ("us-gov-", Partition::AwsUsGov),
    ("us-iso-", Partition::AwsIso),
    ("us-isob-", Partition::AwsIsoB),
    ("eu-isoe-", Partition::AwsIsoE),
    ("us-isof-", Partition::AwsIsoF),
    ("eusc-de-", Partition::AwsEusc),
];

/// The regions of every partition, sorted. Source: the partition table in `aws-sdk-ecr` 1.138.0
/// (`src/endpoint_lib.rs`, generated from botocore's `partitions.json` of 2026), without its
/// pseudo-regions such as `aws-global`. A region that is newer than this table still works: the
/// first token from its endpoint proves that the region exists.
pub(super) const REGIONS: [&str; 46] = [
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-isoe-west-1",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eusc-de-east-1",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-isob-west-1",
    "us-isof-east-1",
    "us-isof-south-1",
    "us-west-1",
    "us-west-2",
];

impl Partition {
    /// Returns all partitions.
    pub fn all() -> impl Iterator<Item = Self> {
        PARTITIONS.iter().map(|(_, partition)| *partition)
    }

    /// Returns the partition of a name as in ARNs.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        PARTITIONS
            .iter()
            .find_map(|(name, partition)| (*name == text).then_some(*partition))
    }

    /// Returns a region of the partition.
    #[must_use]
    pub fn example_region(self) -> &'static str {
        let mut regions = REGIONS.iter().copied();
        regions
            .find(|region| Self::of_region(region) == Some(self))
            .unwrap_or_default()
    }

    /// Returns the partition's name as in ARNs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        PARTITIONS
            .iter()
            .find_map(|(name, partition)| (*partition == self).then_some(*name))
            .unwrap_or_default()
    }

    /// Returns the partition of a region by the prefixes in the SDK's partition table, or `None` if
    /// the text does not have the form of a region's name. An unknown region of that form counts as
    /// a new commercial one.
    pub(super) fn of_region(region: &str) -> Option<Self> {
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
        let (area, number) = rest.split_once('-')?;
        let number_ok =
            (1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        (lower(area) && number_ok).then_some(partition)
    }
}

impl Region {
    /// Parses the name of a region in a known partition, or returns `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Partition::of_region(text).map(|_| Self(text.into()))
    }

    /// Returns the region's partition.
    #[must_use]
    pub fn partition(&self) -> Partition {
        // Every region has a partition.
        Partition::of_region(&self.0).unwrap_or(Partition::Aws)
    }

    /// Returns whether AWS has a region of this name, as far as this release knows. A name of the
    /// right form that is not in the table may belong to a newer region, or to none.
    #[must_use]
    pub fn is_known(&self) -> bool {
        REGIONS.binary_search(&&*self.0).is_ok()
    }
}

as_text!(Region);
