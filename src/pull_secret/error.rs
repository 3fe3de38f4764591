//! The errors of provisioning a pull secret.

use thiserror::Error;

use super::Foreign;
use crate::{registry::Host, token::error::MintError};

/// Writes that an admission tries before it gives up; each conflict means that another replica won.
pub(super) const MAX_ATTEMPTS: u32 = 12;

/// Why a pull secret does not have what a Pod needs.
#[derive(Debug, Clone, Error)]
pub enum PullSecretError {
    /// There is no token. The Secret names the host all the same.
    #[error("{host}: {error}")]
    Mint {
        /// The host.
        host: Host,
        /// The cause.
        error: MintError,
    },
    /// The Secret isn't ours.
    #[error("the Secret was not created by ecr-injector: {0}")]
    Foreign(Foreign),
    /// The Secret has no room for these hosts; the others have their credentials.
    #[error("the pull secret has no room for {}; limits.registriesPerSecret allows {limit} hosts", listed(.hosts))]
    Full {
        /// The hosts without room.
        hosts: Vec<Host>,
        /// The most hosts that are allowed.
        limit: usize,
    },
    /// The API server refused: rights, quota, a policy, a namespace that is being deleted.
    #[error("the API server refused to {verb} the pull secret: {message}")]
    Refused {
        /// The verb of the call.
        verb: &'static str,
        /// The API server's message.
        message: String,
    },
    /// The API server failed, or couldn't be reached.
    #[error("failed to {verb} the pull secret: {message}")]
    Api {
        /// The verb of the call.
        verb: &'static str,
        /// The cause.
        message: String,
    },
    /// Every write conflicted with another.
    #[error("{MAX_ATTEMPTS} writes in a row conflicted with another client's")]
    Contended,
    /// This replica no longer leads, and its knowledge may be old.
    #[error("another replica leads now")]
    NotLeading,
    /// There is no key yet to seal the state with.
    #[error(
        "the state key is not known yet; the condition state-key on /readyz says what it waits for"
    )]
    NoKey,
    /// The namespace couldn't be read, so whether it is opted in is not known.
    #[error("reading the namespace failed: {message}")]
    Namespace {
        /// The cause.
        message: String,
    },
    /// Too many other admissions wait for their pull secrets.
    #[error("too many other admissions wait for their pull secrets")]
    Overloaded,
    /// The request's deadline came first; the work goes on.
    #[error("not done before the request's deadline")]
    Deadline,
    /// The task panicked.
    #[error("preparing the pull secret failed inside ecr-injector")]
    Crashed,
}

fn listed(hosts: &[Host]) -> String {
    match hosts {
        [] => "more registries".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

impl PullSecretError {
    /// Returns the error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mint { error, .. } => error.as_str(),
            Self::Foreign(_) => "foreign",
            Self::Full { .. } => "too_many_hosts",
            Self::Refused { .. } => "kube_api_rejected",
            Self::Api { .. } => "kube_api_error",
            Self::Contended => "conflict",
            Self::NotLeading => "not_leading",
            Self::NoKey => "no_state_key",
            Self::Namespace { .. } => "namespace_unknown",
            Self::Overloaded => "overloaded",
            Self::Deadline => "deadline",
            Self::Crashed => "internal_error",
        }
    }

    /// Returns the error as a text for tenants: of AWS's answer only the code.
    #[must_use]
    pub fn public_text(&self) -> String {
        match self {
            Self::Mint { host, error } => format!("{host}: {}", error.public_text()),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::error::{AwsReply, Operation};

    fn hosts(count: usize) -> Vec<Host> {
        let name = |number| format!("{number:012}.dkr.ecr.eu-west-1.amazonaws.com");
        let hosts = (1..=count).map(|number| Host::parse(&name(number)).expect("a host"));
        hosts.collect()
    }

    fn full(count: usize) -> PullSecretError {
        PullSecretError::Full {
            hosts: hosts(count),
            limit: 64,
        }
    }

    #[test]
    fn full_secret_names_one_of_the_hosts_without_room() {
        for (count, named) in [
            (1, "000000000001.dkr.ecr.eu-west-1.amazonaws.com"),
            (3, "000000000001.dkr.ecr.eu-west-1.amazonaws.com and 2 more"),
            (0, "more registries"),
        ] {
            let text = full(count).to_string();
            assert!(text.contains(&format!(" room for {named}; ")), "{text}");
        }
    }

    #[test]
    fn tenants_read_which_host_has_no_token_and_awss_code_alone() {
        let reply = AwsReply::new(
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/x",
        );
        let error = PullSecretError::Mint {
            host: hosts(1).remove(0),
            error: MintError::Refused(Operation::GetAuthorizationToken.into(), reply),
        };
        assert!(error.to_string().contains("arn:aws:iam"), "{error}");
        let expected = "000000000001.dkr.ecr.eu-west-1.amazonaws.com: ECR's GetAuthorizationToken \
                        was refused (AccessDeniedException)";
        assert_eq!(error.public_text(), expected);
        assert_eq!(full(1).public_text(), full(1).to_string());
    }

    #[test]
    fn errors_have_labels_of_their_own() {
        let (verb, message) = ("apply", String::new);
        let mint = |error| PullSecretError::Mint {
            host: hosts(1).remove(0),
            error,
        };
        for (error, label) in [
            (mint(MintError::Deadline), MintError::Deadline.as_str()),
            (mint(MintError::GaveUp), MintError::GaveUp.as_str()),
            (PullSecretError::Foreign(Foreign::Label), "foreign"),
            (full(1), "too_many_hosts"),
            (
                PullSecretError::Refused {
                    verb,
                    message: message(),
                },
                "kube_api_rejected",
            ),
            (
                PullSecretError::Api {
                    verb,
                    message: message(),
                },
                "kube_api_error",
            ),
            (PullSecretError::Contended, "conflict"),
            (PullSecretError::NotLeading, "not_leading"),
            (PullSecretError::NoKey, "no_state_key"),
            (
                PullSecretError::Namespace { message: message() },
                "namespace_unknown",
            ),
            (PullSecretError::Overloaded, "overloaded"),
            (PullSecretError::Deadline, "deadline"),
            (PullSecretError::Crashed, "internal_error"),
        ] {
            assert_eq!(error.as_str(), label, "{error}");
        }
    }
}
