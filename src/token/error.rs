//! Why there is no token: a text for the log, and one for tenants that names no account.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use thiserror::Error;

use super::MalformedReply;
use crate::{
    aws::{
        endpoints::shown,
        fault::Fault,
        origin::{KnownPartition, Origin},
    },
    identity::RoleArn,
    registry::{Partition, Region},
};

/// How long one flight may take, whether or not anybody waits for it.
pub(super) const FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most tokens of unproven regions that are in flight or failed a moment ago. At most a region
/// or two is newer than the table of regions; every other unproven region is misspelled or
/// invented.
pub(super) const MAX_UNPROVEN: usize = 16;
/// The longest AWS error code that is shown to tenants, in bytes; `InvalidSignatureException` has
/// 25.
const MAX_CODE: usize = 64;
/// The digits of an account id.
const ACCOUNT_DIGITS: usize = 12;

/// A call to AWS that minting needs, and the endpoint if it is not AWS's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    operation: Operation,
    endpoint: Option<Box<str>>,
}

/// An operation of ECR or STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// ECR's `GetAuthorizationToken`.
    GetAuthorizationToken,
    /// ECR Public's `GetAuthorizationToken`.
    GetPublicAuthorizationToken,
    /// STS's `AssumeRole`, for this role.
    AssumeRole(RoleArn),
    /// STS's `AssumeRoleWithWebIdentity`, for this role.
    AssumeRoleWithWebIdentity(RoleArn),
}

/// AWS's error code and message. Only the code is for tenants: the message names the principal, and
/// with it the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsReply {
    code: String,
    message: String,
}

/// Why AWS rejected the credentials of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The mistake.
    pub fault: Fault,
    /// Where the credentials come from.
    pub origin: Origin,
    /// A hint at what else may be wrong; empty if there is none.
    pub hint: String,
}

/// Why there is no token. Never holds any part of a reply but AWS's own code and message.
///
/// `Display` is for the log and for admins: its text has AWS's message and the role's ARN. Tenants (warnings, rejections, Events) get [`MintError::public_text`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MintError {
    /// There are no AWS credentials, or their source failed, maybe by a mistake that is known.
    #[error(
        "no AWS credentials: {1}; docs/reference/aws-credentials.md lists what each source needs"
    )]
    Credentials(Option<Fault>, String),
    /// The source of the AWS credentials couldn't be asked, or couldn't answer.
    #[error(
        "no AWS credentials: {0}; docs/reference/aws-credentials.md lists what each source needs"
    )]
    NoAnswer(String),
    /// No source of AWS credentials of any kind is there.
    #[error(
        "no AWS credentials: {message}; docs/reference/aws-credentials.md lists what each source needs"
    )]
    NoSource {
        /// The sources, and what the last of them lacks.
        message: String,
        /// Whether the last one, the instance metadata service, was asked and gave no answer: it
        /// may be there all the same.
        is_unanswered: bool,
    },
    /// The credentials are certainly of another partition than the registry.
    #[error(
        "the credentials of {0} are of partition {of} ({because}), and the registry is in {registry}: no role can be assumed \
         from one partition in another; let a rule of `identities` name a `profile` with keys of {registry}",
        of = .2.partition.as_str(), because = .2.because, registry = .1.as_str()
    )]
    OtherPartition(Origin, Partition, KnownPartition),
    /// AWS denied the call.
    #[error("{0} was refused: {1}; check {policy}{at}", policy = .0.policy(.1), at = .0.place())]
    Refused(Call, AwsReply),
    /// AWS rejected the clock, the keys or the session of the call.
    #[error("{0} was refused: {1}; {2}{at}", at = .0.place())]
    Rejected(Call, AwsReply, Box<Rejection>),
    /// AWS throttled the call.
    #[error("{0} is throttled ({1}){at}", at = .0.place())]
    Throttled(Call, AwsReply),
    /// AWS failed with a server error.
    #[error("{0} failed on AWS's side ({1}){at}", at = .0.place())]
    Server(Call, AwsReply),
    /// There is no connection to the endpoint.
    #[error("{0}: the endpoint can't be reached: {1}{at}", at = .0.place())]
    Unreachable(Call, String),
    /// The call was not answered in time.
    #[error("{0} timed out{at}", at = .0.place())]
    Timeout(Call),
    /// A session ends too soon to be used.
    #[error(
        "{0}: expired credentials: the session of {1} ends at {2}; check the clock, and the source of the session"
    )]
    SessionTooShort(Call, Origin, Timestamp),
    /// The response holds no usable token.
    #[error("{0}: invalid response: {1}{at}", at = .0.place())]
    Unusable(Call, MalformedReply),
    /// The response isn't one of AWS's.
    #[error("{0}: the response is not one of AWS's{at}", at = .0.place())]
    NotAws(Call),
    /// The request could not be made, for example for an invalid endpoint.
    #[error("{0}: the request could not be made: {1}{at}", at = .0.place())]
    Request(Call, String),
    /// The caller's own deadline came first.
    #[error("no token before the request's deadline")]
    Deadline,
    /// The flight took too long. A call that isn't answered ends earlier, as [`Self::Timeout`].
    #[error(
        "minting timed out after {} s, including the wait in the queue",
        FLIGHT_TIMEOUT.as_secs()
    )]
    GaveUp,
    /// The region is unknown and has given no token yet, and there are too many of such regions
    /// already.
    #[error(
        "the region is not one that AWS is known to have, and {MAX_UNPROVEN} tokens of such regions are in hand already: \
         check the region's spelling in the image; `allow.regions` in the configuration keeps invented ones out"
    )]
    TooManyRegions,
    /// Too many tokens are being minted or queued.
    #[error("too many tokens are being minted already; retrying. Check how AWS responds")]
    TooManyMints,
    /// The call panicked in the SDK.
    #[error(
        "{0} failed inside the AWS SDK, with credentials of {1}: check these, and the region and endpoint, for characters \
         that no request can hold; the log has the panic{at}",
        at = .0.place()
    )]
    Panicked(Call, Origin),
    /// The flight panicked.
    #[error("minting the token failed inside ecr-injector")]
    Crashed,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation())?;
        match &self.operation {
            Operation::AssumeRole(arn) | Operation::AssumeRoleWithWebIdentity(arn) => {
                write!(f, " of {arn}")
            }
            Operation::GetAuthorizationToken | Operation::GetPublicAuthorizationToken => Ok(()),
        }
    }
}

impl From<Operation> for Call {
    fn from(operation: Operation) -> Self {
        Self {
            operation,
            endpoint: None,
        }
    }
}

impl Call {
    /// Returns a call in a region, at an endpoint if it is not AWS's own.
    #[must_use]
    pub fn at(operation: Operation, region: &Region, endpoint: Option<&str>) -> Self {
        Self {
            operation,
            endpoint: endpoint.map(|url| format!(" (in {region} at {})", shown(url)).into()),
        }
    }

    /// Returns the region and the endpoint in parentheses, or nothing for one of AWS's own.
    pub(super) fn place(&self) -> &str {
        self.endpoint.as_deref().unwrap_or_default()
    }

    /// Returns the service and its operation, without a role.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self.operation {
            Operation::GetAuthorizationToken => "ECR's GetAuthorizationToken",
            Operation::GetPublicAuthorizationToken => "ECR Public's GetAuthorizationToken",
            Operation::AssumeRole(_) => "STS's AssumeRole",
            Operation::AssumeRoleWithWebIdentity(_) => "STS's AssumeRoleWithWebIdentity",
        }
    }

    /// Returns what to check if the call was denied with a reply.
    fn policy(&self, reply: &AwsReply) -> &'static str {
        if ["OptInRequired", "RegionDisabledException"].contains(&&*reply.code) {
            return "that the account has the region enabled, and that STS is active there";
        }
        match self.operation {
            Operation::GetAuthorizationToken | Operation::GetPublicAuthorizationToken => {
                "the principal's IAM policy"
            }
            Operation::AssumeRole(_) => {
                "the role's trust policy, its external id, and that the identity that assumes it may do so"
            }
            Operation::AssumeRoleWithWebIdentity(_) => match Fault::of_web_identity(&reply.code) {
                Some(Fault::IdentityExpired) => "the clock of the node: the token has expired",
                Some(_) => {
                    "that IAM in the account of the role has an OIDC provider for the token's issuer, and that the \
                     token's audience is one that this provider accepts (sts.amazonaws.com)"
                }
                None => {
                    "the role's trust policy: its OIDC provider, and `sub` and `aud` in its condition"
                }
            },
        }
    }
}

impl AwsReply {
    /// Returns a reply with this code and message.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }

    /// Returns AWS's code alone, such as `AccessDeniedException`; `None` if it doesn't have the
    /// form of a code. A proxy or a wrong endpoint may send anything, and tenants read this.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        let is_code = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let has_account = self
            .code
            .split(|c: char| !c.is_ascii_digit())
            .any(|digits| digits.len() >= ACCOUNT_DIGITS);
        let is_one = (1..=MAX_CODE).contains(&self.code.len())
            && self.code.bytes().all(is_code)
            && !has_account;
        is_one.then_some(&*self.code)
    }
}

impl From<&str> for AwsReply {
    /// Returns a reply with a code and no message.
    fn from(code: &str) -> Self {
        Self::new(code, "")
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            origin,
            hint,
        } = self;
        let advice = fault.advice(origin);
        write!(f, "the credentials are those of {origin}: {advice}{hint}")
    }
}

impl fmt::Display for AwsReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, " {}", self.message)
    }
}

impl MintError {
    /// Every value of [`Self::as_str`].
    pub const REASONS: [&'static str; 17] = [
        "clock_skew",
        "invalid_signature",
        "unknown_access_key",
        "session_expired",
        "credentials",
        "partition_mismatch",
        "access_denied",
        "throttled",
        "server_error",
        "unreachable",
        "timeout",
        "invalid_response",
        "request_error",
        "deadline",
        "too_many_regions",
        "too_many_mints",
        "internal_error",
    ];

    /// Returns the error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match (self, self.fault()) {
            (_, Some(Fault::Clock)) => "clock_skew",
            (_, Some(Fault::Signature)) => "invalid_signature",
            (_, Some(Fault::UnknownKey)) => "unknown_access_key",
            (_, Some(Fault::Expired)) | (Self::SessionTooShort(..), _) => "session_expired",
            (Self::Credentials(..) | Self::NoAnswer(_) | Self::NoSource { .. }, _) => "credentials",
            (Self::OtherPartition(..), _) => "partition_mismatch",
            // No other mistake is a rejection.
            (Self::Refused(..) | Self::Rejected(..), _) => "access_denied",
            (Self::Throttled(..), _) => "throttled",
            (Self::Server(..), _) => "server_error",
            (Self::Unreachable(..), _) => "unreachable",
            (Self::Timeout(_) | Self::GaveUp, _) => "timeout",
            (Self::Unusable(..) | Self::NotAws(_), _) => "invalid_response",
            (Self::Request(..), _) => "request_error",
            (Self::Deadline, _) => "deadline",
            (Self::TooManyRegions, _) => "too_many_regions",
            (Self::TooManyMints, _) => "too_many_mints",
            (Self::Panicked(..) | Self::Crashed, _) => "internal_error",
        }
    }

    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Credentials(fault, _) => *fault,
            Self::Rejected(.., rejection) => Some(rejection.fault),
            _ => None,
        }
    }

    /// Returns whether AWS or the source of the credentials couldn't be asked, or couldn't answer.
    /// It says nothing about what the identity may do.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        let is_unanswered = matches!(
            self,
            Self::NoSource {
                is_unanswered: true,
                ..
            }
        );
        is_unanswered || self.may_pass()
    }

    /// Returns whether another try may succeed a moment later. Where no source is known to be
    /// there, it may not.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer(_)
                | Self::Throttled(..)
                | Self::Server(..)
                | Self::Unreachable(..)
                | Self::Timeout(_)
                | Self::GaveUp
        )
    }

    /// Returns AWS's error code alone, such as `AccessDeniedException`, if AWS gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(_, reply)
            | Self::Throttled(_, reply)
            | Self::Server(_, reply)
            | Self::Rejected(_, reply, ..) => reply.code(),
            _ => None,
        }
    }

    /// Returns the call that failed, if a call did.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        match self {
            Self::Refused(call, _)
            | Self::Throttled(call, _)
            | Self::Server(call, _)
            | Self::Unreachable(call, _)
            | Self::Timeout(call)
            | Self::Rejected(call, ..)
            | Self::SessionTooShort(call, ..)
            | Self::Panicked(call, _)
            | Self::Unusable(call, _)
            | Self::NotAws(call)
            | Self::Request(call, _) => Some(call),
            Self::Credentials(..)
            | Self::NoAnswer(_)
            | Self::NoSource { .. }
            | Self::OtherPartition(..)
            | Self::Deadline
            | Self::GaveUp
            | Self::TooManyRegions
            | Self::TooManyMints
            | Self::Crashed => None,
        }
    }

    /// Returns the text for whoever creates Pods: the call and AWS's code, without AWS's message,
    /// any ARN or any account. The log has the whole text.
    #[must_use]
    pub fn public_text(&self) -> String {
        let what = match self {
            Self::Credentials(..) | Self::NoAnswer(_) | Self::NoSource { .. } => {
                "the webhook has no AWS credentials"
            }
            Self::OtherPartition(..) => {
                "the webhook's AWS credentials are of another partition than the registry"
            }
            Self::Rejected(.., rejection) => match rejection.fault {
                Fault::Clock => "was refused, as a clock is wrong",
                Fault::Expired => "has expired credentials",
                _ => "was refused, as the webhook's AWS keys are wrong",
            },
            Self::Panicked(..) => "failed inside the webhook",
            Self::Refused(..) => "was refused",
            Self::Throttled(..) => "is throttled",
            Self::Server(..) => "failed on AWS's side",
            Self::Unreachable(..) => "can't be reached",
            Self::SessionTooShort(..) => "has expired credentials",
            Self::Request(..) => "could not be called",
            // These texts hold nothing from outside.
            Self::Timeout(_) => "timed out",
            Self::NotAws(_) => "gave a response that is not one of AWS's",
            Self::Unusable(..) => "gave an invalid response",
            Self::Deadline
            | Self::GaveUp
            | Self::TooManyRegions
            | Self::TooManyMints
            | Self::Crashed => return self.to_string(),
        };
        let call = self.call().map(|call| format!("{} ", call.operation()));
        let code = self.code().map(|code| format!(" ({code})"));
        call.unwrap_or_default() + what + &code.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
