//! Why there are no credentials: texts for the log, and the mistakes that have reasons of their own.

use std::{error::Error as StdError, fmt, io};

use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::{
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    },
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::error::ErrorMetadata;

use crate::aws::{fault::Fault, origin::Origin};

/// The start of the SDK's errors about a credential process. The rest is the output of the process.
const PROCESS_ERROR: &str = "Error retrieving credentials";

/// The reply with which STS refused a call of a source.
pub(super) struct Refusal {
    code: String,
    message: String,
    /// Whether the call exchanged a web identity token, which no key signs.
    is_exchange: bool,
}

impl Refusal {
    /// Finds the reply in the chain of an error.
    pub(super) fn of(cause: &CredentialsError) -> Option<Self> {
        let reply = |error: &dyn ProvideErrorMetadata, is_exchange| {
            let code = error.code()?.to_owned();
            let message = error.message().unwrap_or_default().to_owned();
            Some(Self {
                code,
                message,
                is_exchange,
            })
        };
        let first: &(dyn StdError + 'static) = cause;
        std::iter::successors(Some(first), |&error| error.source()).find_map(|error| {
            if let Some(error) = error.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError>>() {
                return reply(error, true);
            }
            reply(error.downcast_ref::<SdkError<AssumeRoleError>>()?, false)
        })
    }

    /// Returns the mistake of clock, keys or tokens, if it is one.
    pub(super) fn fault(&self) -> Option<Fault> {
        if self.is_exchange {
            Fault::of_web_identity(&self.code)
        } else {
            Fault::of(&self.code, &self.message)
        }
    }

    /// Returns what to do, if the code says that.
    pub(super) fn advice(&self, origin: &Origin) -> Option<&'static str> {
        match self.fault() {
            Some(fault) => Some(fault.advice(origin)),
            None if self.code.starts_with("AccessDenied") => Some(if self.is_exchange {
                "check the trust policy of the role: its OIDC provider, the audience, and the ServiceAccount in its \
                 condition"
            } else {
                "check the trust policy of the role, and that the profile's source may assume it"
            }),
            None => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = Fault::shown(&self.code, &self.message);
        write!(f, "STS refused to give a session: {} {message}", self.code)
    }
}

/// Returns the message of a profile's failure. The errors of a credential process hold its output,
/// so only texts are shown that certainly come from elsewhere: from reading the files, from a
/// timeout, from a response of AWS or the way to it.
pub(super) fn profile_message(cause: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = cause;
    let chain = || std::iter::successors(Some(first), |&error| error.source());
    let is_of_no_process = matches!(
        cause,
        CredentialsError::CredentialsNotLoaded(_)
            | CredentialsError::InvalidConfiguration(_)
            | CredentialsError::ProviderTimedOut(_)
    );
    if is_of_no_process || chain().any(is_of_aws_or_the_system) {
        return innermost(cause);
    }
    let last = chain().last().map(ToString::to_string).unwrap_or_default();
    if last.starts_with(PROCESS_ERROR) {
        let status = exit_status(&last).unwrap_or("no credentials that can be read".to_owned());
        return format!("its credential process failed ({status}); run it by hand");
    }
    "the cause is not shown, as it may be what a credential process printed; log in again if the profile is of SSO (aws sso login), or try \
     it by hand (aws sts get-caller-identity)"
        .to_owned()
}

fn is_of_aws_or_the_system(error: &(dyn StdError + 'static)) -> bool {
    error.is::<SdkError<AssumeRoleError>>()
        || error.is::<SdkError<AssumeRoleWithWebIdentityError>>()
        || error.is::<SdkError<CredentialsError>>()
        || error.is::<ImdsError>()
        || error.is::<ErrorMetadata>()
        || error.is::<ConnectorError>()
        || error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error().is_some())
}

/// Returns the exit status in the SDK's error about a credential process, and only its digits.
fn exit_status(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("exited with code ")?;
    ["exit status: ", "signal: "].into_iter().find_map(|kind| {
        let digits: String = rest
            .strip_prefix(kind)?
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some(format!("{kind}{digits}"))
    })
}

/// Returns the first and the last text of an error's chain.
pub(super) fn innermost(error: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = error;
    let chain = std::iter::successors(Some(first), |&error| error.source());
    let mut texts: Vec<String> = Vec::new();
    for text in chain.map(ToString::to_string) {
        if texts.last() != Some(&text) {
            texts.push(text);
        }
    }
    // The first names the kind of failure, the last its cause; between are the SDK's own layers.
    match texts.len() {
        0 | 1 => texts.concat(),
        length => format!("{}: {}", texts[0], texts[length - 1]),
    }
}
