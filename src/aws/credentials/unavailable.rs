//! Whether a source of credentials couldn't be asked or couldn't answer, as opposed to a mistake in
//! the configuration or a refusal. The former says nothing about what the identity may do, so a
//! token that was minted before may be used on.

use std::error::Error as StdError;

use aws_config::imds::client::error::{ImdsError, TokenError};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sso::operation::get_role_credentials::GetRoleCredentialsError;
use aws_sdk_sts::{
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    },
};
use aws_smithy_runtime_api::client::result::ConnectorError;

use crate::aws::fault::{Fault, is_throttle};

/// The start of the SDK's error when an endpoint for containers answers with a status of failure:
/// that is all that it keeps of the answer.
const CONTAINER_STATUS: &str = "Non-success status from HTTP credential provider: ";

/// Returns whether the source couldn't be asked or couldn't answer.
pub(super) fn is_unavailable(cause: &CredentialsError) -> bool {
    let first: &(dyn StdError + 'static) = cause;
    std::iter::successors(Some(first), |&error| error.source()).any(is_of_an_outage)
}

fn is_of_an_outage(error: &(dyn StdError + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<CredentialsError>() {
        return matches!(error, CredentialsError::ProviderTimedOut(_));
    }
    if let Some(error) = error.downcast_ref::<ConnectorError>() {
        return error.is_timeout() || error.is_io();
    }
    if let Some(ImdsError::ErrorResponse(answer)) = error.downcast_ref::<ImdsError>() {
        return is_failure(answer.response().status().as_u16());
    }
    let text = error.to_string();
    if let Some(status) = text.strip_prefix(CONTAINER_STATUS) {
        let digits: String = status.chars().filter(char::is_ascii_digit).collect();
        return digits.parse().is_ok_and(is_failure);
    }
    of_call(error, |error: &AssumeRoleError| error.code())
        .or_else(|| of_call(error, |error: &AssumeRoleWithWebIdentityError| error.code()))
        .or_else(|| of_call(error, |error: &GetRoleCredentialsError| error.code()))
        // The instance metadata and the endpoints for containers have no codes.
        .or_else(|| of_call(error, |_: &TokenError| None))
        .or_else(|| of_call(error, |_: &CredentialsError| None))
        .unwrap_or_default()
}

/// Returns whether a call wasn't answered, or was answered with a failure of the other side; `None`
/// if the error is none of this call.
fn of_call<E: StdError + 'static>(
    error: &(dyn StdError + 'static),
    code: impl Fn(&E) -> Option<&str>,
) -> Option<bool> {
    Some(match error.downcast_ref::<SdkError<E>>()? {
        SdkError::TimeoutError(_) => true,
        SdkError::ServiceError(answer) => {
            let may_pass = |code: &str| {
                let fault = Fault::of_web_identity(code);
                is_throttle(code) || fault == Some(Fault::IdentityProvider)
            };
            is_failure(answer.raw().status().as_u16()) || code(answer.err()).is_some_and(may_pass)
        }
        SdkError::ResponseError(answer) => is_failure(answer.raw().status().as_u16()),
        // The error of a connection is further down the chain.
        _ => false,
    })
}

/// Returns whether a status says that the other side failed, or has too much to do.
fn is_failure(status: u16) -> bool {
    status >= 500 || status == 429
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use aws_smithy_runtime_api::{client::orchestrator::HttpResponse, http::StatusCode};
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    fn error<E: StdError + Send + Sync + 'static>(
        status: u16,
        code: &str,
        of: impl Fn(ErrorMetadata) -> E,
    ) -> CredentialsError {
        let status = StatusCode::try_from(status).expect("a status");
        let metadata = ErrorMetadata::builder().code(code).build();
        let raw = HttpResponse::new(status, SdkBody::empty());
        CredentialsError::provider_error(SdkError::service_error(of(metadata), raw))
    }

    fn answered(status: u16, code: &str) -> CredentialsError {
        error(status, code, AssumeRoleWithWebIdentityError::generic)
    }

    /// Returns an answer of IAM Identity Center.
    fn portal(status: u16, code: &str) -> CredentialsError {
        error(status, code, GetRoleCredentialsError::generic)
    }

    #[test]
    fn outage_of_a_source_is_no_mistake_and_a_mistake_is_no_outage() {
        let container = |status| {
            let status = StatusCode::try_from(status).expect("a status");
            CredentialsError::provider_error(format!("{CONTAINER_STATUS}{status:?}"))
        };
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let unreachable = ConnectorError::io(refused.into());
        for (cause, expected) in [
            (
                CredentialsError::provider_timed_out(Duration::from_secs(5)),
                true,
            ),
            (CredentialsError::provider_error(unreachable), true),
            (answered(503, ""), true),
            (answered(400, "Throttling"), true),
            (answered(400, "IDPCommunicationError"), true),
            (container(500), true),
            (container(429), true),
            (
                CredentialsError::provider_error(answered(503, "InternalFailure")),
                true,
            ),
            (portal(500, ""), true),
            (portal(429, "TooManyRequestsException"), true),
            (portal(401, "UnauthorizedException"), false),
            (answered(403, "AccessDenied"), false),
            (answered(400, "ExpiredToken"), false),
            (container(404), false),
            (
                CredentialsError::not_loaded("received 404 from IMDS"),
                false,
            ),
            (CredentialsError::invalid_configuration("no region"), false),
            (
                CredentialsError::provider_error(io::Error::from(io::ErrorKind::NotFound)),
                false,
            ),
        ] {
            assert_eq!(is_unavailable(&cause), expected, "{cause:?}");
        }
    }
}
