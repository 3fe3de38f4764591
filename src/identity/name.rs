//! The names of principals in the configuration and in annotations: ARNs of roles, profiles.

use std::{fmt, sync::Arc};

use super::hash::{IdentityHash, hash_of};
use crate::registry::{AccountId, Partition};

/// The maximum length of a role's ARN in STS, in characters.
const MAX_ARN: usize = 2048;
/// The maximum length of a profile's name, in bytes: an error names the profile.
const MAX_PROFILE: usize = 128;

/// The ARN of an IAM role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn {
    text: Arc<str>,
    partition: Partition,
}

/// A profile of the shared configuration and credentials files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile {
    name: Arc<str>,
    hash: IdentityHash,
}

impl RoleArn {
    /// Parses `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`, or returns `None`.
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

    /// Returns the ARN's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the partition of the role.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the account of the role.
    #[must_use]
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }

    /// Returns the name of the role, without its path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }
}

impl Profile {
    /// Parses the name of a profile by the SDK's rules, or returns `None`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_-/.%@:+".contains(&b);
        ((1..=MAX_PROFILE).contains(&name.len()) && name.bytes().all(fits)).then(|| Self {
            name: name.into(),
            hash: hash_of(&format!("profile\n{name}")),
        })
    }

    /// Returns the profile's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn hash(&self) -> IdentityHash {
        self.hash
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
