//! Classifies a failed call to AWS as a [`MintError`]. The SDK's own debug text is not used: it may
//! hold a whole reply.

use std::{error::Error as StdError, panic::AssertUnwindSafe};

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use futures::FutureExt as _;

use super::error::{AwsReply, Call, MintError, Rejection};
use crate::{
    aws::{
        credentials::NoCredentials,
        fault::{Fault, is_throttle},
        origin::Origin,
    },
    telemetry::printable::printable,
};

/// The most characters of a text of AWS or the system that are shown.
const MAX_TEXT: usize = 300;
/// The most characters of a text that also says what to do.
const MAX_EXPLANATION: usize = 1500;

/// The start of the standard library's error when a name can't be resolved.
const LOOKUP_ERROR: &str = "failed to lookup address information";
/// The error of hyper-util when a proxy answers `CONNECT` with an error.
const TUNNEL_ERROR: &str = "tunnel error: unsuccessful";

/// The credentials that signed a call, for its error.
pub(super) struct Signed<'a> {
    /// Where the credentials come from.
    pub(super) by: &'a Origin,
    /// A hint for keys that AWS doesn't know; empty if there is none.
    pub(super) hint: String,
}

/// Awaits a call in which the SDK may panic: it does so on keys that no header can hold.
pub(super) async fn caught<T>(
    call: Call,
    by: &Origin,
    step: impl Future<Output = T>,
) -> Result<T, MintError> {
    let ended = AssertUnwindSafe(step).catch_unwind().await;
    ended.map_err(|_| MintError::Panicked(call, by.clone()))
}

/// Returns why there are no credentials for a call.
pub(super) fn no_credentials(why: &NoCredentials) -> MintError {
    let message = short(&why.message, MAX_EXPLANATION);
    if why.is_nowhere {
        MintError::NoSource {
            message,
            is_unanswered: why.is_unavailable,
        }
    } else if why.is_unavailable {
        MintError::NoAnswer(message)
    } else {
        MintError::Credentials(why.fault, message)
    }
}

/// Returns why a call failed.
pub(super) fn reason<E: ProvideErrorMetadata + StdError + 'static, R>(
    call: Call,
    signed: &Signed<'_>,
    error: &SdkError<E, R>,
) -> MintError {
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default().to_owned();
            let message = service.err().message().unwrap_or_default();
            let shown = short(Fault::shown(&code, message), MAX_TEXT);
            let reply = AwsReply::new(short(&code, MAX_TEXT), shown);
            if code.is_empty() {
                MintError::NotAws(call)
            } else if is_throttle(&code) {
                MintError::Throttled(call, reply)
            } else if let Some(fault) = Fault::of(&code, message) {
                let hint = match fault {
                    Fault::UnknownKey => signed.hint.clone(),
                    _ => String::new(),
                };
                let rejection = Rejection {
                    fault,
                    origin: signed.by.clone(),
                    hint,
                };
                MintError::Rejected(call, reply, Box::new(rejection))
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
            if failure.is_timeout() {
                MintError::Timeout(call)
            } else {
                MintError::Unreachable(call, root(source))
            }
        }
        SdkError::ConstructionFailure(failure) => {
            MintError::Request(call, short(&format!("{failure:?}"), MAX_TEXT))
        }
        // Among them is a response that can't be read at all.
        _ => MintError::NotAws(call),
    }
}

/// Returns why STS gave no session for a web identity token. That STS can't reach the issuer is no
/// mistake of the token, and may be over a moment later.
pub(super) fn exchange_reason<E: ProvideErrorMetadata + StdError + 'static, R>(
    call: Call,
    origin: &Origin,
    error: &SdkError<E, R>,
) -> MintError {
    let signed = Signed {
        by: origin,
        hint: String::new(),
    };
    match reason(call, &signed, error) {
        MintError::Refused(call, reply) | MintError::Rejected(call, reply, _) => {
            match reply.code().and_then(Fault::of_web_identity) {
                Some(Fault::IdentityProvider) => MintError::Server(call, reply),
                _ => MintError::Refused(call, reply),
            }
        }
        other => other,
    }
}

/// Returns the call and the text of an error that may say that there is no such host. A proxy
/// resolves names itself, and only says that it has no connection.
pub(super) fn no_such_host(error: &MintError) -> Option<(&Call, &str)> {
    match error {
        MintError::Unreachable(call, why)
            if why.starts_with(LOOKUP_ERROR) || why == TUNNEL_ERROR =>
        {
            Some((call, why))
        }
        _ => None,
    }
}

/// Returns a placeholder where the SDK gives no source.
fn error_as_dyn() -> &'static (dyn StdError + 'static) {
    &std::fmt::Error
}

/// Returns the text of the last error of a chain, which is the system's.
fn root(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&error| error.source()).last();
    short(&last.unwrap_or(error).to_string(), MAX_TEXT)
}

/// Returns so many characters of a text, on one line.
fn short(text: &str, max: usize) -> String {
    let begin = text.chars().take(max);
    let line: String = begin
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    printable(&line).into_owned()
}
