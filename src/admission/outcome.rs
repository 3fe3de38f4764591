//! The outcome of an admission: the response, and the values of its log line and metrics.

use super::{
    decide::{Injection, SkipReason, skip_warnings, warning_for},
    patch::EncodedPatches,
    pod::ReferenceState,
    review::{Operation, Request, Response, warning},
};
use crate::{
    identity::Refusal,
    pull_secret::provisioner::{PullSecretError, SecretSource, TokenSource},
    registry::Host,
    token::rules::{OnFailure, Rules},
};

/// The HTTP status of a denial under `onFailure: deny`: the controller tries again later.
const STATUS_NOT_READY: u16 = 503;
/// The HTTP status of a denial because of overload: too many requests.
const STATUS_OVERLOADED: u16 = 429;

/// The outcome of an admission.
pub(super) struct Outcome {
    pub(super) response: Response,
    pub(super) verdict: Verdict,
    pub(super) reason: &'static str,
    pub(super) hosts: Vec<Host>,
    pub(super) tokens: TokenSource,
    pub(super) secret: SecretSource,
    /// The reason why registries of the Pod get no credential.
    pub(super) refusal: Option<Refusal>,
    pub(super) error: Option<PullSecretError>,
}

/// The verdict on a request, as a label and a log field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The Pod gets the reference, and the pull secret has every credential that the Pod needs.
    Inject,
    /// The Pod gets the reference, and the pull secret lacks a credential.
    InjectUnready,
    /// Nothing is changed.
    Skip,
    /// The Pod is denied.
    Deny,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Self; 4] = [Self::Inject, Self::InjectUnready, Self::Skip, Self::Deny];

    /// Returns the verdict as a metric's label and a log field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::InjectUnready => "inject_unready",
            Self::Skip => "skip",
            Self::Deny => "deny",
        }
    }
}

impl Outcome {
    /// Leaves the object unchanged.
    pub(super) fn skip(reason: SkipReason, rules: &Rules) -> Self {
        let response = Response {
            warnings: warning_for(reason, rules).into_iter().collect(),
            ..Response::default()
        };
        Self {
            response,
            verdict: Verdict::Skip,
            reason: reason.as_str(),
            hosts: vec![],
            tokens: TokenSource::None,
            secret: match reason {
                SkipReason::Foreign(_) => SecretSource::Foreign,
                _ => SecretSource::None,
            },
            refusal: match reason {
                SkipReason::NoIdentity(refusal) => Some(refusal),
                _ => None,
            },
            error: None,
        }
    }

    /// Leaves the object of a request unchanged that no registry needs a credential for.
    pub(super) fn skip_request(reason: SkipReason, request: &Request<'_>, rules: &Rules) -> Self {
        let mut outcome = Self::skip(reason, rules);
        outcome.response.warnings = skip_warnings(reason, request, rules);
        outcome
    }

    /// Adds the reference to the Pod.
    pub(super) fn inject(
        injection: Injection,
        reason: &'static str,
        patches: &EncodedPatches,
    ) -> Self {
        let Injection {
            reference,
            hosts,
            warnings,
            refusal,
            ..
        } = injection;
        let response = Response {
            patch: patches.get(reference),
            warnings,
            denial: None,
        };
        Self {
            response,
            verdict: Verdict::Inject,
            reason,
            hosts: hosts.into_iter().collect(),
            tokens: TokenSource::None,
            secret: SecretSource::None,
            refusal,
            error: None,
        }
    }

    /// Admits the Pod with a warning because the pull secret lacks credentials for `missing`
    /// registries, or denies the Pod under `onFailure: deny`.
    pub(super) fn not_ready(
        request: &Request<'_>,
        mut injection: Injection,
        missing: usize,
        error: PullSecretError,
        rules: &Rules,
        patches: &EncodedPatches,
    ) -> Self {
        let label = error.as_str();
        if denies(request, rules) {
            let message = format!(
                "ecr-injector: pull secret {} is not ready: {}",
                rules.secret_name,
                error.public_text()
            );
            return Self {
                response: Response {
                    denial: Some((status_of(&error), message)),
                    ..Response::default()
                },
                verdict: Verdict::Deny,
                reason: label,
                hosts: injection.hosts.into_iter().collect(),
                tokens: TokenSource::None,
                secret: SecretSource::None,
                refusal: None,
                error: Some(error),
            };
        }
        let registries = if missing == 1 {
            "registry"
        } else {
            "registries"
        };
        injection.warnings.push(match &error {
            // No retry makes room.
            PullSecretError::Full { hosts, limit } => warning(&format!(
                "no room in the pull secret for {} of this Pod's ECR registries \
                 (limits.registriesPerSecret: {limit})",
                hosts.len()
            )),
            PullSecretError::Namespace { .. } => warning(&format!(
                "this namespace could not be read ({label}); image pulls may fail until it can"
            )),
            PullSecretError::Refused { .. } => warning(&format!(
                "the API server rejected Secret {} ({label}); see the Events of this namespace",
                rules.secret_name
            )),
            _ => warning(&format!(
                "no credential yet for {missing} ECR {registries} ({label}); image pulls may \
                 fail until then"
            )),
        });
        // The list of a stored Pod can't change; the decision has `Present` for it.
        debug_assert!(
            request.operation == Operation::Create
                || injection.reference == ReferenceState::Present,
            "an UPDATE is never patched"
        );
        Self {
            error: Some(error),
            verdict: Verdict::InjectUnready,
            ..Self::inject(injection, label, patches)
        }
    }
}

/// Returns the HTTP status of a denial because of an error.
fn status_of(error: &PullSecretError) -> u16 {
    match error {
        PullSecretError::Overloaded => STATUS_OVERLOADED,
        _ => STATUS_NOT_READY,
    }
}

/// Returns whether a Pod is denied if its pull secret isn't ready. An UPDATE never is: that would
/// block a running Pod.
fn denies(request: &Request<'_>, rules: &Rules) -> bool {
    rules.on_failure == OnFailure::Deny && request.operation == Operation::Create
}
