//! Where credentials come from, for errors, and to which partition they certainly belong.

use std::fmt;

use crate::registry::Partition;

/// The origin of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The environment variables for keys.
    Environment,
    /// Another source of the ambient credentials, by its name.
    Source(&'static str),
    /// A profile, by its name and files.
    Profile(String),
    /// The session of a role, by its ARN.
    Role(String),
    /// The caller gave them.
    Given,
}

/// The partition of credentials, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPartition {
    /// The partition.
    pub partition: Partition,
    /// How it is known, such as `AWS_ROLE_ARN names a role of it`.
    pub because: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("source environment"),
            Self::Source(source) => write!(f, "source {source}"),
            Self::Profile(profile) => f.write_str(profile),
            Self::Role(arn) => write!(f, "the session of {arn}"),
            Self::Given => f.write_str("the caller"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_named_so_that_it_can_be_found() {
        let arn = "arn:aws:iam::123456789012:role/pull";
        for (origin, expected) in [
            (Origin::Environment, "source environment"),
            (Origin::Source("pod_identity"), "source pod_identity"),
            (
                Origin::Profile("profile x in ~/.aws/config".to_owned()),
                "profile x in ~/.aws/config",
            ),
            (
                Origin::Role(arn.to_owned()),
                "the session of arn:aws:iam::123456789012:role/pull",
            ),
            (Origin::Given, "the caller"),
        ] {
            assert_eq!(origin.to_string(), expected);
        }
    }
}
