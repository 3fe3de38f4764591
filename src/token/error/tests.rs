//! Unit tests of `error`.

use super::*;

const ACCOUNT: &str = "123456789012";
const MESSAGE: &str = "User: arn:aws:sts::123456789012:assumed-role/ecr-injector/i-0abc is not authorized to \
                       perform: ecr:GetAuthorizationToken on resource: * because no identity-based policy allows it";

fn role() -> RoleArn {
    RoleArn::parse(&format!("arn:aws:iam::{ACCOUNT}:role/ecr-pull")).expect("a role")
}

fn origin() -> Origin {
    Origin::Role(role().to_string())
}

fn known() -> KnownPartition {
    KnownPartition {
        partition: Partition::Aws,
        because: format!("AWS_ROLE_ARN is {}", role()),
    }
}

fn rejection(fault: Fault) -> Rejection {
    Rejection {
        fault,
        origin: origin(),
        hint: MESSAGE.to_owned(),
    }
}

fn all(reply: &AwsReply, call: &Call) -> Vec<MintError> {
    let (call, reply) = (|| call.clone(), || reply.clone());
    let at = Timestamp::UNIX_EPOCH;
    vec![
        MintError::Credentials(None, MESSAGE.to_owned()),
        MintError::Credentials(Some(Fault::IdentityToken), MESSAGE.to_owned()),
        MintError::NoAnswer(MESSAGE.to_owned()),
        MintError::NoSource {
            message: MESSAGE.to_owned(),
            is_unanswered: true,
        },
        MintError::OtherPartition(origin(), Partition::AwsCn, known()),
        MintError::Refused(call(), reply()),
        MintError::Rejected(call(), reply(), Box::new(rejection(Fault::Clock))),
        MintError::Rejected(call(), reply(), Box::new(rejection(Fault::Expired))),
        MintError::Rejected(call(), reply(), Box::new(rejection(Fault::UnknownKey))),
        MintError::Panicked(call(), origin()),
        MintError::Throttled(call(), reply()),
        MintError::Server(call(), reply()),
        MintError::Unreachable(call(), format!("{ACCOUNT}.example: {MESSAGE}")),
        MintError::Timeout(call()),
        MintError::SessionTooShort(call(), origin(), at),
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
    let region = Region::parse("eu-west-1").expect("a region");
    let endpoint = Some("https://123456789012.example");
    for call in [
        Operation::GetAuthorizationToken.into(),
        Call::at(Operation::AssumeRole(role()), &region, endpoint),
    ] {
        for error in all(&reply, &call) {
            let text = error.public_text();
            for private in [
                "arn:",
                ACCOUNT,
                "ecr-pull",
                "User:",
                "i-0abc",
                "not authorized",
                "example",
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
    let refused = MintError::Refused(Operation::AssumeRole(role()).into(), reply);
    assert_eq!(
        refused.public_text(),
        "STS's AssumeRole was refused (AccessDeniedException)"
    );
}

#[test]
fn log_text_keeps_the_code_message_and_role() {
    let reply = AwsReply::new("AccessDenied", MESSAGE);
    let text = MintError::Refused(Operation::AssumeRole(role()).into(), reply).to_string();
    assert!(
        text.contains("AccessDenied User: arn:aws:sts::") && text.contains(role().as_str()),
        "{text}"
    );
}

#[test]
fn call_at_an_endpoint_of_the_admins_own_names_it() {
    let region = Region::parse("eu-west-1").expect("a region");
    let call = |endpoint| Call::at(Operation::GetAuthorizationToken, &region, endpoint);
    let error = MintError::Timeout(call(Some("https://user:secret@vpce-1.example")));
    assert_eq!(
        error.to_string(),
        "ECR's GetAuthorizationToken timed out (in eu-west-1 at https://vpce-1.example)"
    );
    let error = MintError::Timeout(call(None));
    assert_eq!(error.to_string(), "ECR's GetAuthorizationToken timed out");
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
        let error = MintError::Refused(Operation::GetAuthorizationToken.into(), code.into());
        assert_eq!(error.code(), None, "{code:?}");
        assert_eq!(
            error.public_text(),
            "ECR's GetAuthorizationToken was refused"
        );
    }
    let error = MintError::Throttled(Operation::GetAuthorizationToken.into(), "Throttling".into());
    assert_eq!(error.code(), Some("Throttling"));
}

#[test]
fn label_and_public_text_follow_the_fault() {
    let call = || Call::from(Operation::GetAuthorizationToken);
    let rejected = |fault| MintError::Rejected(call(), "Denied".into(), Box::new(rejection(fault)));
    let keys = "was refused, as the webhook's AWS keys are wrong (Denied)";
    for (error, label, text) in [
        (
            rejected(Fault::Clock),
            "clock_skew",
            "was refused, as a clock is wrong (Denied)",
        ),
        (
            rejected(Fault::Expired),
            "session_expired",
            "has expired credentials (Denied)",
        ),
        (rejected(Fault::Signature), "invalid_signature", keys),
        (rejected(Fault::UnknownKey), "unknown_access_key", keys),
    ] {
        assert_eq!(error.as_str(), label);
        let public = error.public_text();
        assert_eq!(public, format!("ECR's GetAuthorizationToken {text}"));
    }
    let of_source = |fault| MintError::Credentials(fault, MESSAGE.to_owned()).as_str();
    assert_eq!(of_source(None), "credentials");
    assert_eq!(of_source(Some(Fault::Expired)), "session_expired");
}

#[test]
fn every_label_is_listed() {
    let call = Operation::GetAuthorizationToken.into();
    for error in all(&"Denied".into(), &call) {
        let label = error.as_str();
        assert!(MintError::REASONS.contains(&label), "{label}");
    }
}

#[test]
fn only_what_may_pass_is_unavailable() {
    let call = Operation::GetAuthorizationToken.into();
    let labels = ["throttled", "server_error", "unreachable", "timeout"];
    for error in all(&"Denied".into(), &call) {
        let is_one = labels.contains(&error.as_str()) || matches!(error, MintError::NoAnswer(_));
        assert_eq!(error.may_pass(), is_one, "{error:?}");
        let is_unavailable = is_one || matches!(error, MintError::NoSource { .. });
        assert_eq!(error.is_unavailable(), is_unavailable, "{error:?}");
    }
    let absent = MintError::NoSource {
        message: MESSAGE.to_owned(),
        is_unanswered: false,
    };
    assert!(!absent.is_unavailable());
}

#[test]
fn rejection_names_the_origin_with_advice_and_hint() {
    let rejection = rejection(Fault::Clock);
    let text = rejection.to_string();
    let start = format!("the credentials are those of {}: ", rejection.origin);
    let advice = Fault::Clock.advice(&rejection.origin);
    assert_eq!(text, format!("{start}{advice}{MESSAGE}"));
}

#[test]
fn denied_call_says_which_policy_to_check() {
    let text =
        |operation, code: &str| MintError::Refused(Call::from(operation), code.into()).to_string();
    for (operation, code, policy) in [
        (
            Operation::GetAuthorizationToken,
            "AccessDeniedException",
            "the principal's IAM policy",
        ),
        (
            Operation::GetPublicAuthorizationToken,
            "AccessDeniedException",
            "the principal's IAM policy",
        ),
        (
            Operation::AssumeRole(role()),
            "AccessDenied",
            "the role's trust policy, its external id",
        ),
        (
            Operation::AssumeRole(role()),
            "RegionDisabledException",
            "that the account has the region enabled",
        ),
        (
            Operation::AssumeRoleWithWebIdentity(role()),
            "AccessDenied",
            "the role's trust policy: its OIDC provider",
        ),
        (
            Operation::AssumeRoleWithWebIdentity(role()),
            "ExpiredTokenException",
            "the clock of the node",
        ),
        (
            Operation::AssumeRoleWithWebIdentity(role()),
            "InvalidIdentityToken",
            "has an OIDC provider for the token's issuer",
        ),
    ] {
        let text = text(operation, code);
        assert!(text.contains(policy), "{text}");
    }
}
