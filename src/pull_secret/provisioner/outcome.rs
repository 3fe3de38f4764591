//! The outcome of provisioning a pull secret.

use crate::pull_secret::error::PullSecretError;

/// The source of the tokens that an admission needed. Of several the worst counts, and the later is
/// the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenSource {
    /// None was needed: the pull secret has the credentials.
    None,
    /// All were in memory.
    Memory,
    /// At least one was minted by AWS.
    Minted,
    /// At least one could not be minted.
    Failed,
    /// The deadline came first; minting goes on.
    Pending,
}

/// How an admission came by its pull secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretSource {
    /// None was needed.
    None,
    /// The known state has all that is needed.
    Known,
    /// A dry run: the Secret was left unchanged.
    DryRun,
    /// Another writer was first.
    Unchanged,
    /// The Secret was written.
    Written,
    /// The Secret names all hosts, and one of them has no credential.
    Wanted,
    /// The Secret isn't ours.
    Foreign,
    /// The Secret could not be read or written.
    Failed,
    /// The deadline came first; the write goes on.
    Pending,
}

impl TokenSource {
    /// Every value.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Memory,
        Self::Minted,
        Self::Failed,
        Self::Pending,
    ];

    /// Returns the value as a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::Minted => "minted",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

impl SecretSource {
    /// Every value.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Known,
        Self::DryRun,
        Self::Unchanged,
        Self::Written,
        Self::Wanted,
        Self::Foreign,
        Self::Failed,
        Self::Pending,
    ];

    /// Returns the value as a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Known => "known",
            Self::DryRun => "dry_run",
            Self::Unchanged => "unchanged",
            Self::Written => "written",
            Self::Wanted => "requested",
            Self::Foreign => "foreign",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

/// The outcome of provisioning a pull secret.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// The source of its tokens.
    pub tokens: TokenSource,
    /// The source of the Secret.
    pub secret: SecretSource,
    /// Whether the Secret has a usable credential for each host.
    pub result: Result<(), PullSecretError>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sources_are_words_of_their_own() {
        let tokens = TokenSource::ALL.map(TokenSource::as_str);
        let secrets = SecretSource::ALL.map(SecretSource::as_str);
        for words in [&tokens[..], &secrets[..]] {
            assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        }
    }
}
