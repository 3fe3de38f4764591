//! Mistakes in clocks, keys and tokens, by AWS's error codes: permissions have nothing to do with
//! them, so the advice is another.

use super::origin::Origin;

/// A mistake of clock, keys or tokens that a reply of AWS shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The time in the signature is not AWS's.
    Clock,
    /// The signature doesn't fit the access key.
    Signature,
    /// AWS doesn't know the access key, or not with this session token.
    UnknownKey,
    /// The session of the keys has ended.
    Expired,
    /// STS rejects a web identity token.
    IdentityToken,
    /// STS can't reach the issuer of a web identity token.
    IdentityProvider,
    /// A web identity token has expired.
    IdentityExpired,
}

/// The error codes of throttling.
const THROTTLES: [&str; 5] = [
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
];

/// Returns whether AWS throttles the caller, by the code of its error.
#[must_use]
pub fn is_throttle(code: &str) -> bool {
    THROTTLES.contains(&code)
}

impl Fault {
    /// Returns the mistake that a signed call was refused for, by code and message. Both ECR and
    /// STS report a wrong clock also by the code of a wrong signature.
    #[must_use]
    pub fn of(code: &str, message: &str) -> Option<Self> {
        let is_about_time = [
            "Signature expired",
            "not yet current",
            "Request has expired",
        ]
        .iter()
        .any(|text| message.contains(text));
        match code {
            "RequestTimeTooSkewed"
            | "RequestTimeTooSkewedException"
            | "RequestExpired"
            | "RequestExpiredException"
            | "RequestInTheFuture" => Some(Self::Clock),
            "InvalidSignatureException"
            | "InvalidSignature"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException" => Some(if is_about_time {
                Self::Clock
            } else {
                Self::Signature
            }),
            "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidAccessKeyId"
            | "InvalidToken"
            | "AuthFailure" => Some(Self::UnknownKey),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                Some(Self::Expired)
            }
            _ => None,
        }
    }

    /// Returns the mistake that an exchange of a web identity token was refused for.
    #[must_use]
    pub fn of_web_identity(code: &str) -> Option<Self> {
        match code {
            "InvalidIdentityToken" | "InvalidIdentityTokenException" | "IDPRejectedClaim" => {
                Some(Self::IdentityToken)
            }
            "IDPCommunicationError" => Some(Self::IdentityProvider),
            "ExpiredToken" | "ExpiredTokenException" => Some(Self::IdentityExpired),
            _ => None,
        }
    }

    /// Returns the part of AWS's message that may be shown. About signatures AWS quotes what it got:
    /// headers with a session's token, or a secret where the access key should be.
    #[must_use]
    pub fn shown<'a>(code: &str, message: &'a str) -> &'a str {
        match Self::of(code, message) {
            Some(Self::Signature) if code.starts_with("Incomplete") => "",
            Some(Self::Signature | Self::UnknownKey) => {
                let end = message.find(['.', '\n', ':']).unwrap_or(message.len());
                &message[..end]
            }
            _ => message,
        }
    }

    /// Returns what is wrong and what to do, for credentials of this origin.
    #[must_use]
    pub fn advice(self, origin: &Origin) -> &'static str {
        let is_environment = *origin == Origin::Environment;
        let is_profile = matches!(origin, Origin::Profile(_));
        match self {
            Self::Clock => {
                "the clock of this machine is wrong, or a request was held up on its way: compare `date -u` on the node \
                 with a time server"
            }
            Self::Signature if is_environment => {
                "the secret access key is not that of the access key, or one of them is only half copied: set \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY again"
            }
            Self::Signature if is_profile => {
                "the secret access key is not that of the access key, or one of them is only half copied: write \
                 aws_access_key_id and aws_secret_access_key into the file again"
            }
            Self::Signature => {
                "something on the way changes requests (a proxy), or the source gives keys that don't belong together"
            }
            Self::UnknownKey if is_environment => {
                "the access key was deleted or deactivated, is of another partition than the registry, is of an account \
                 that has the region not enabled, or is a temporary one whose AWS_SESSION_TOKEN is missing or of \
                 another session: set all of them again, or enable the region"
            }
            Self::UnknownKey if is_profile => {
                "the access key was deleted or deactivated, is of another partition than the registry, is of an account \
                 that has the region not enabled, or is a temporary one whose aws_session_token is missing or of \
                 another session: write all of them into the file again, or enable the region"
            }
            Self::UnknownKey => {
                "the session was revoked, is of another partition than the registry, or is of an account that has the region \
                 not enabled: check the source and the region"
            }
            Self::Expired if is_environment => {
                "the session of the keys is over, and variables are never renewed: set new keys with their \
                 AWS_SESSION_TOKEN and restart the Pod, or use a source that renews its keys; check the clock too"
            }
            Self::Expired if is_profile => {
                "the session of the keys is over: write new ones with their aws_session_token into the file, or log in \
                 again; check the clock too"
            }
            Self::Expired => {
                "the session was over before it was used: it is fetched again; if that repeats, check the clock"
            }
            Self::IdentityToken => {
                "check that IAM in the account of the role has the OIDC provider of this cluster, and that the token is \
                 for its audience (sts.amazonaws.com)"
            }
            Self::IdentityProvider => {
                "STS can't reach the OIDC issuer of the cluster: check that its address is public and answers; it is \
                 tried again"
            }
            Self::IdentityExpired => {
                "the token in AWS_WEB_IDENTITY_TOKEN_FILE has expired: the kubelet renews it, so check the clock of the \
                 node, and that the file is the projected one"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_a_permission_is_no_fault() {
        for code in [
            "AccessDenied",
            "AccessDeniedException",
            "ValidationError",
            "",
        ] {
            assert_eq!(Fault::of(code, "Signature expired: x"), None, "{code}");
            assert_eq!(Fault::of_web_identity(code), None, "{code}");
        }
    }

    #[test]
    fn fault_of_a_signed_call_is_known_by_code_and_message() {
        let late = "Signature expired: 20270115T080000Z is now earlier than 20270115T081000Z";
        let wrong = "The request signature we calculated does not match";
        for (code, message, fault) in [
            ("RequestTimeTooSkewed", "", Fault::Clock),
            ("RequestExpired", "", Fault::Clock),
            ("RequestInTheFuture", "", Fault::Clock),
            ("InvalidSignatureException", late, Fault::Clock),
            (
                "SignatureDoesNotMatch",
                "Signature not yet current: x",
                Fault::Clock,
            ),
            ("SignatureDoesNotMatch", "Request has expired", Fault::Clock),
            ("SignatureDoesNotMatch", wrong, Fault::Signature),
            ("IncompleteSignature", wrong, Fault::Signature),
            ("UnrecognizedClientException", late, Fault::UnknownKey),
            ("InvalidClientTokenId", "", Fault::UnknownKey),
            ("ExpiredTokenException", late, Fault::Expired),
        ] {
            assert_eq!(Fault::of(code, message), Some(fault), "{code}: {message}");
        }
        for (code, fault) in [
            ("InvalidIdentityToken", Fault::IdentityToken),
            ("IDPRejectedClaim", Fault::IdentityToken),
            ("IDPCommunicationError", Fault::IdentityProvider),
            ("ExpiredTokenException", Fault::IdentityExpired),
        ] {
            assert_eq!(Fault::of_web_identity(code), Some(fault), "{code}");
        }
    }

    #[test]
    fn message_is_shown_without_what_awss_quotes_of_the_request() {
        for (code, message, shown) in [
            (
                "IncompleteSignature",
                "Authorization header requires x. Authorization=y",
                "",
            ),
            (
                "SignatureDoesNotMatch",
                "Signatures differ. The string was x",
                "Signatures differ",
            ),
            ("InvalidClientTokenId", "Unknown key: x", "Unknown key"),
            (
                "UnrecognizedClientException",
                "Unknown key\nx",
                "Unknown key",
            ),
            (
                "SignatureDoesNotMatch",
                "Signature expired: x",
                "Signature expired: x",
            ),
            ("AccessDenied", "User: x is denied.", "User: x is denied."),
        ] {
            assert_eq!(Fault::shown(code, message), shown, "{code}: {message}");
        }
    }

    #[test]
    fn throttling_is_known_by_its_codes() {
        for code in THROTTLES {
            assert!(is_throttle(code), "{code}");
            assert_eq!(Fault::of(code, ""), None, "{code}");
        }
        assert!(!is_throttle("AccessDenied") && !is_throttle(""));
    }

    #[test]
    fn advice_names_where_the_keys_are_to_be_changed() {
        let environment = Origin::Environment;
        let profile = Origin::Profile("profile x".to_owned());
        let role = Origin::Role("arn:aws:iam::123456789012:role/x".to_owned());
        for fault in [Fault::Signature, Fault::UnknownKey, Fault::Expired] {
            assert!(fault.advice(&environment).contains("AWS_"), "{fault:?}");
            assert!(fault.advice(&profile).contains("aws_"), "{fault:?}");
            for origin in [&role, &Origin::Source("instance_metadata")] {
                let advice = fault.advice(origin).to_lowercase();
                assert!(!advice.contains("aws_"), "{fault:?}: {advice}");
            }
        }
    }
}
