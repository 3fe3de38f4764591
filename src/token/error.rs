//! Why there is no token: a text for the log, and one for tenants that names no account.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use thiserror::Error;

use super::MalformedReply;
use crate::identity::RoleArn;

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

/// A call to AWS that minting needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// ECR's `GetAuthorizationToken`.
    GetAuthorizationToken,
    /// ECR Public's `GetAuthorizationToken`.
    GetPublicAuthorizationToken,
    /// STS's `AssumeRole`, for this role.
    AssumeRole(RoleArn),
}

/// AWS's error code and message. Only the code is for tenants: the message names the principal, and
/// with it the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsReply {
    code: String,
    message: String,
}

/// Why there is no token. Never holds any part of a reply but AWS's own code and message.
///
/// `Display` is for the log and for admins: its text has AWS's message and the role's ARN. Tenants (warnings, rejections, Events) get [`MintError::public_text`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MintError {
    /// The process's environment has no AWS credentials, or their source failed.
    #[error(
        "no AWS credentials: {0}; docs/reference/aws-credentials.md lists what each source needs"
    )]
    Credentials(String),
    /// AWS denied the call.
    #[error("{0} was refused: {1}; check {policy}", policy = .0.policy())]
    Refused(Call, AwsReply),
    /// AWS throttled the call.
    #[error("{0} is throttled ({1})")]
    Throttled(Call, AwsReply),
    /// AWS failed with a server error.
    #[error("{0} failed on AWS's side ({1})")]
    Server(Call, AwsReply),
    /// There is no connection to the endpoint.
    #[error("{0}: the endpoint can't be reached: {1}")]
    Unreachable(Call, String),
    /// The call was not answered in time.
    #[error("{0} timed out")]
    Timeout(Call),
    /// The credentials that signed the call have expired.
    #[error("{0}: expired credentials: {1}")]
    SessionExpired(Call, AwsReply),
    /// The session of the call ends too soon to be used.
    #[error("{0}: expired credentials: the session that it gave ends at {1}")]
    SessionTooShort(Call, Timestamp),
    /// The response holds no usable token.
    #[error("{0}: invalid response: {1}")]
    Unusable(Call, MalformedReply),
    /// The response isn't one of AWS's.
    #[error("{0}: the response is not one of AWS's")]
    NotAws(Call),
    /// The request could not be made, for example for an invalid endpoint.
    #[error("{0}: the request could not be made: {1}")]
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
    /// The flight panicked.
    #[error("minting the token failed inside ecr-injector")]
    Crashed,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation())?;
        match self {
            Self::AssumeRole(arn) => write!(f, " of {arn}"),
            Self::GetAuthorizationToken | Self::GetPublicAuthorizationToken => Ok(()),
        }
    }
}

impl Call {
    /// Returns the service and its operation, without a role.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::GetAuthorizationToken => "ECR's GetAuthorizationToken",
            Self::GetPublicAuthorizationToken => "ECR Public's GetAuthorizationToken",
            Self::AssumeRole(_) => "STS's AssumeRole",
        }
    }

    /// Returns the policy to check if the call was denied.
    fn policy(&self) -> &'static str {
        match self {
            Self::GetAuthorizationToken | Self::GetPublicAuthorizationToken => {
                "the principal's IAM policy"
            }
            Self::AssumeRole(_) => {
                "the role's trust policy, its external id, and that the ambient identity may assume it"
            }
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
    /// Returns the error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Refused(..) => "access_denied",
            Self::Throttled(..) => "throttled",
            Self::Server(..) => "server_error",
            Self::Unreachable(..) => "unreachable",
            Self::Timeout(_) | Self::GaveUp => "timeout",
            Self::SessionExpired(..) | Self::SessionTooShort(..) => "session_expired",
            Self::Unusable(..) | Self::NotAws(_) => "invalid_response",
            Self::Request(..) => "request_error",
            Self::Deadline => "deadline",
            Self::TooManyRegions => "too_many_regions",
            Self::TooManyMints => "too_many_mints",
            Self::Crashed => "internal_error",
        }
    }

    /// Returns AWS's error code alone, such as `AccessDeniedException`, if AWS gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(_, reply)
            | Self::Throttled(_, reply)
            | Self::Server(_, reply)
            | Self::SessionExpired(_, reply) => reply.code(),
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
            | Self::SessionExpired(call, _)
            | Self::SessionTooShort(call, _)
            | Self::Unusable(call, _)
            | Self::NotAws(call)
            | Self::Request(call, _) => Some(call),
            Self::Credentials(_)
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
            Self::Credentials(_) => "the webhook has no AWS credentials",
            Self::Refused(..) => "was refused",
            Self::Throttled(..) => "is throttled",
            Self::Server(..) => "failed on AWS's side",
            Self::Unreachable(..) => "can't be reached",
            Self::SessionExpired(..) | Self::SessionTooShort(..) => "has expired credentials",
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
mod tests {
    use super::*;

    const ACCOUNT: &str = "123456789012";
    const MESSAGE: &str = "User: arn:aws:sts::123456789012:assumed-role/ecr-injector/i-0abc is not authorized to \
                           perform: ecr:GetAuthorizationToken on resource: * because no identity-based policy allows it";

    fn role() -> RoleArn {
        RoleArn::parse(&format!("arn:aws:iam::{ACCOUNT}:role/ecr-pull")).expect("a role")
    }

    fn all(reply: &AwsReply, call: &Call) -> Vec<MintError> {
        let (call, reply) = (|| call.clone(), || reply.clone());
        let at = Timestamp::UNIX_EPOCH;
        vec![
            MintError::Credentials(MESSAGE.to_owned()),
            MintError::Refused(call(), reply()),
            MintError::Throttled(call(), reply()),
            MintError::Server(call(), reply()),
            MintError::Unreachable(call(), format!("{ACCOUNT}.example: {MESSAGE}")),
            MintError::Timeout(call()),
            MintError::SessionExpired(call(), reply()),
            MintError::SessionTooShort(call(), at),
            MintError::Unusable(call(), MalformedReply::Missing),
            MintError::NotAws(call()),
            MintError::Request(call(), MESSAGE.to_owned()),
            MintError::Deadline,
            MintError::GaveUp,
            MintError::TooManyRegions,
            MintError::TooManyMints,
            MintError::Crashed,
        ]
    }

    #[test]
    fn public_text_has_the_call_and_code_but_no_account() {
        let reply = AwsReply::new("AccessDeniedException", MESSAGE);
        for call in [Call::GetAuthorizationToken, Call::AssumeRole(role())] {
            for error in all(&reply, &call) {
                let text = error.public_text();
                for private in [
                    "arn:",
                    ACCOUNT,
                    "ecr-pull",
                    "User:",
                    "i-0abc",
                    "not authorized",
                ] {
                    assert!(!text.contains(private), "{error:?}: {text}");
                }
                let code = error.code().unwrap_or_default();
                let operation = error.call().map(Call::operation).unwrap_or_default();
                assert!(text.contains(code) && text.contains(operation), "{text}");
                assert!(
                    !text.contains(char::is_control) && text.len() < 300,
                    "{text}"
                );
            }
        }
        let refused = MintError::Refused(Call::AssumeRole(role()), reply);
        assert_eq!(
            refused.public_text(),
            "STS's AssumeRole was refused (AccessDeniedException)"
        );
    }

    #[test]
    fn log_text_keeps_the_code_message_and_role() {
        let reply = AwsReply::new("AccessDenied", MESSAGE);
        let text = MintError::Refused(Call::AssumeRole(role()), reply).to_string();
        assert!(
            text.contains("AccessDenied User: arn:aws:sts::") && text.contains(role().as_str()),
            "{text}"
        );
    }

    #[test]
    fn code_of_no_form_of_a_code_is_kept_from_tenants() {
        for code in [
            "",
            "two words",
            "arn:aws:iam::123456789012:role/x",
            "Denied123456789012",
            "line\nline",
            &"x".repeat(65),
        ] {
            let error = MintError::Refused(Call::GetAuthorizationToken, code.into());
            assert_eq!(error.code(), None, "{code:?}");
            assert_eq!(
                error.public_text(),
                "ECR's GetAuthorizationToken was refused"
            );
        }
        let error = MintError::Throttled(Call::GetAuthorizationToken, "Throttling".into());
        assert_eq!(error.code(), Some("Throttling"));
    }
}
