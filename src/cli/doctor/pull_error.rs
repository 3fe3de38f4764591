//! The kubelet's message about a failed pull, by its cause. Pure.
//!
//! The texts differ by runtime (containerd 1.6 and 2, CRI-O) and by registry, so that only words
//! that all of them have are looked for. A message without any stays unexplained.

/// The cause of a failed pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullError {
    /// The registry could not be reached, or its certificate was not accepted.
    Network,
    /// The token that was sent has expired.
    ExpiredToken,
    /// The registry refused the principal of the token.
    Denied,
    /// No credential was sent, or none that the registry knows.
    Unauthenticated,
    /// The repository or the tag does not exist.
    NotFound,
    /// Another cause.
    Unknown,
}

/// The words of each cause, in lower case. The first cause with a word in the message counts: a
/// runtime says that the repository may not exist about any refusal.
const WORDS: [(PullError, &[&str]); 5] = [
    (
        PullError::Network,
        &[
            "x509",
            "i/o timeout",
            "no such host",
            "connection refused",
            "connection reset",
            "network is unreachable",
            "no route to host",
            "tls handshake timeout",
            "context deadline exceeded",
            "server misbehaving",
        ],
    ),
    (
        PullError::ExpiredToken,
        &["authorization token has expired", "token has expired"],
    ),
    (
        PullError::Denied,
        &[
            "403",
            "not authorized to perform",
            "not authorized",
            "insufficient_scope",
        ],
    ),
    (
        PullError::Unauthenticated,
        &[
            "no basic auth credentials",
            "401",
            "authentication required",
            "authorization failed",
        ],
    ),
    (
        PullError::NotFound,
        &[
            "404",
            "manifest unknown",
            "not found",
            "does not exist",
            "name unknown",
        ],
    ),
];

impl PullError {
    /// Returns the cause of a message.
    pub(super) fn of(message: &str) -> Self {
        let message = message.to_lowercase();
        // Account ids, digests and ports have the same digits as a status.
        let has = |word: &&str| match word.parse::<u16>() {
            Err(_) => message.contains(*word),
            Ok(_) => message
                .split(|c: char| !c.is_alphanumeric())
                .any(|part| part == *word),
        };
        let found = WORDS.into_iter().find(|(_, words)| words.iter().any(has));
        found.map_or_else(
            || {
                if message.contains("denied") {
                    Self::Denied
                } else {
                    Self::Unknown
                }
            },
            |(error, _)| error,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_runtimes_have_a_cause() {
        for (message, expected) in [
            (
                "failed to pull and unpack image \"1.dkr/a:1\": failed to resolve reference: pull access \
                 denied, repository does not exist or may require authorization: authorization failed: \
                 no basic auth credentials",
                PullError::Unauthenticated,
            ),
            (
                "rpc error: code = Unknown desc = unexpected status from HEAD request to https://h/v2/a: \
                 403 Forbidden",
                PullError::Denied,
            ),
            (
                "denied: User: arn:aws:sts::403403403403:assumed-role/x is not authorized to perform: \
                 ecr:BatchGetImage on resource",
                PullError::Denied,
            ),
            (
                "denied: Your authorization token has expired. Reauthenticate and try again.",
                PullError::ExpiredToken,
            ),
            (
                "failed to resolve reference \"123456789403.dkr.ecr.eu-west-1.amazonaws.com/a:1\": \
                 123456789403.dkr.ecr.eu-west-1.amazonaws.com/a:1: not found",
                PullError::NotFound,
            ),
            (
                "reading manifest v1 in h/a: manifest unknown",
                PullError::NotFound,
            ),
            (
                "dial tcp: lookup 123456789012.dkr.ecr.eu-west-1.amazonaws.com: no such host",
                PullError::Network,
            ),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                PullError::Network,
            ),
            (
                "requested access to the resource is denied",
                PullError::Denied,
            ),
            ("no space left on device", PullError::Unknown),
            ("", PullError::Unknown),
        ] {
            assert_eq!(PullError::of(message), expected, "{message}");
        }
    }
}
