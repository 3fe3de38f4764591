//! Classifies a failed call to AWS as a [`MintError`]. The SDK's own debug text is not used: it may
//! hold a whole reply.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use super::cache::{AwsReply, Call, MintError};
use crate::aws::credentials::explain;

/// The error codes of throttling.
const THROTTLES: [&str; 5] = [
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
];
/// The error codes of expired credentials.
const EXPIRED: [&str; 3] = ["ExpiredTokenException", "ExpiredToken", "RequestExpired"];

/// Returns why a call failed.
pub(super) fn reason<E: ProvideErrorMetadata + StdError + 'static, R>(
    call: Call,
    error: &SdkError<E, R>,
) -> MintError {
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default().to_owned();
            let message = service.err().message().unwrap_or_default();
            let reply = AwsReply::new(&code, short(message));
            if code.is_empty() {
                MintError::NotAws(call)
            } else if THROTTLES.contains(&code.as_str()) {
                MintError::Throttled(call, reply)
            } else if EXPIRED.contains(&code.as_str()) {
                MintError::SessionExpired(call, reply)
            } else if code == "ServerException"
                || code.starts_with("Internal")
                || code.starts_with("ServiceUnavailable")
            {
                MintError::Server(call, reply)
            } else {
                MintError::Refused(call, reply)
            }
        }
        SdkError::TimeoutError(_) => MintError::Timeout(call),
        SdkError::DispatchFailure(failure) => {
            let source: &(dyn StdError + 'static) = failure
                .as_connector_error()
                .map_or(error_as_dyn(), |error| error);
            if let Some(credentials) = find::<CredentialsError>(source) {
                MintError::Credentials(short(&explain(credentials)))
            } else if failure.is_timeout() {
                MintError::Timeout(call)
            } else {
                MintError::Unreachable(call, root(source))
            }
        }
        SdkError::ConstructionFailure(failure) => {
            MintError::Request(call, short(&format!("{failure:?}")))
        }
        // Among them is a response that can't be read at all.
        _ => MintError::NotAws(call),
    }
}

/// Returns a placeholder where the SDK gives no source.
fn error_as_dyn() -> &'static (dyn StdError + 'static) {
    &std::fmt::Error
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}

/// Returns the text of the last error of a chain, which is the system's.
fn root(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&error| error.source()).last();
    short(&last.unwrap_or(error).to_string())
}

/// Returns at most 300 characters of a text, on one line.
fn short(text: &str) -> String {
    text.chars()
        .take(300)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
