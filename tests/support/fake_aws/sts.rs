//! STS: who may assume which role, for how long, and with what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use jiff::Timestamp;

use super::iam::Iam;
use super::reply::{self, sts_answer, sts_error, sts_error_saying};
use super::{ACCOUNT, Behaviour, Knobs, Outcome, Request};

pub(super) const OPERATIONS: [&str; 3] = ["AssumeRole", WITH_WEB_IDENTITY, "GetCallerIdentity"];
pub(super) const WITH_WEB_IDENTITY: &str = "AssumeRoleWithWebIdentity";

/// Seconds that a session may last.
const SESSION: std::ops::RangeInclusive<u64> = 900..=43_200;
/// At most, for a role that a role assumes.
const CHAINED: u64 = 3_600;
const DEFAULT_SESSION: Duration = Duration::from_hours(1);

#[derive(Default)]
pub(super) struct Sts {
    pub(super) everyone: Knobs,
    pub(super) for_role: HashMap<String, Knobs>,
    /// By role.
    pub(super) external_ids: HashMap<String, String>,
    /// Absent: any token is good.
    pub(super) web_identities: Option<BTreeSet<String>>,
}

impl Sts {
    pub(super) fn knobs(&self, role: &str) -> &Knobs {
        self.for_role.get(role).unwrap_or(&self.everyone)
    }

    /// The code of what is wrong with a call of this principal.
    pub(super) fn rejects(&self, request: &Request, principal: &str) -> Option<&'static str> {
        if request.operation == "GetCallerIdentity" {
            return None;
        }
        let external_id = self.external_ids.get(request.parameter("RoleArn"));
        let is_chained = principal.contains(":role/");
        let longest = if is_chained { CHAINED } else { *SESSION.end() };
        if !is_session_name(request.parameter("RoleSessionName"))
            || wanted(request)
                .is_some_and(|seconds| !(*SESSION.start()..=longest).contains(&seconds))
        {
            Some("ValidationError")
        } else if request.operation != WITH_WEB_IDENTITY {
            external_id
                .filter(|id| *id != request.parameter("ExternalId"))
                .map(|_| "AccessDenied")
        } else if request.parameter("WebIdentityToken").is_empty() {
            Some("ValidationError")
        } else {
            let accepted = self.web_identities.as_ref();
            accepted
                .filter(|tokens| !tokens.contains(request.parameter("WebIdentityToken")))
                .map(|_| "InvalidIdentityToken")
        }
    }
}

/// The seconds that a call asks for, if it does; what is no number is 0.
fn wanted(request: &Request) -> Option<u64> {
    let text = request.parameters.get("DurationSeconds")?;
    Some(text.parse().unwrap_or_default())
}

/// `[\w+=,.@-]{2,64}`
fn is_session_name(name: &str) -> bool {
    (2..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte))
}

pub(super) fn reply(
    iam: &mut Iam,
    request: &Request,
    knobs: &Knobs,
    outcome: Outcome,
) -> Response<Body> {
    let behaviour = match outcome {
        Outcome::Unauthenticated if request.signature.is_none() => {
            return sts_error(StatusCode::FORBIDDEN, "MissingAuthenticationToken");
        }
        Outcome::Unauthenticated => {
            return sts_error(StatusCode::FORBIDDEN, "InvalidClientTokenId");
        }
        Outcome::UnknownOperation => return sts_error(StatusCode::BAD_REQUEST, "InvalidAction"),
        Outcome::Rejected("AccessDenied") => {
            return denied(iam, request);
        }
        Outcome::Rejected(code) => return sts_error(StatusCode::BAD_REQUEST, code),
        Outcome::Answered => Behaviour::Answer,
        Outcome::Failed(behaviour) => behaviour,
    };
    match behaviour {
        Behaviour::Answer if request.operation == "GetCallerIdentity" => {
            let signature = request.signature.as_ref();
            let access_key = signature.map_or("", |signature| &signature.access_key);
            let principal = iam.principal(access_key);
            sts_answer(
                &request.operation,
                &format!("<Arn>{principal}</Arn><UserId>FAKE</UserId><Account>{ACCOUNT}</Account>"),
            )
        }
        Behaviour::Answer => {
            let asked = wanted(request).map(Duration::from_secs);
            let lifetime = knobs.lifetime.or(asked).unwrap_or(DEFAULT_SESSION);
            assume(iam, request, Timestamp::now() + lifetime)
        }
        Behaviour::Expired => assume(iam, request, Timestamp::now() - DEFAULT_SESSION),
        Behaviour::Garbage(_) => {
            reply::with(StatusCode::OK, reply::XML, Body::from("{\"not\": \"XML\"}"))
        }
        Behaviour::Throttle => sts_error(StatusCode::BAD_REQUEST, "Throttling"),
        Behaviour::Refuse => denied(iam, request),
        // For a web identity it is the token in the call that has expired.
        Behaviour::ExpiredToken if request.operation == WITH_WEB_IDENTITY => {
            sts_error(StatusCode::BAD_REQUEST, "ExpiredTokenException")
        }
        Behaviour::ExpiredToken => sts_error(StatusCode::FORBIDDEN, "ExpiredToken"),
        Behaviour::Code(code, message) => sts_error_saying(StatusCode::FORBIDDEN, code, message),
        Behaviour::ServerError | Behaviour::Hang => {
            sts_error(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure")
        }
    }
}

fn denied(iam: &Iam, request: &Request) -> Response<Body> {
    let signature = request.signature.as_ref();
    let principal = iam.principal(signature.map_or("", |signature| &signature.access_key));
    let action = format!("sts:{}", request.operation);
    let message = reply::denied(&principal, &action, request.parameter("RoleArn"));
    sts_error_saying(StatusCode::FORBIDDEN, "AccessDenied", &message)
}

fn assume(iam: &mut Iam, request: &Request, until: Timestamp) -> Response<Body> {
    let role = request.parameter("RoleArn");
    let session = request.parameter("RoleSessionName");
    let keys = iam.issue(role, Some(until));
    sts_answer(
        &request.operation,
        &format!(
            "<AssumedRoleUser><Arn>{role}/{session}</Arn>\
             <AssumedRoleId>AROAFAKE:{session}</AssumedRoleId></AssumedRoleUser>\
             <Credentials><AccessKeyId>{}</AccessKeyId>\
             <SecretAccessKey>{}</SecretAccessKey>\
             <SessionToken>{}</SessionToken>\
             <Expiration>{until:.0}</Expiration></Credentials>",
            keys.access_key,
            keys.secret_access_key,
            keys.session_token.unwrap_or_default(),
        ),
    )
}

/// The pairs of an `application/x-www-form-urlencoded` body.
pub(super) fn form(body: &[u8]) -> BTreeMap<String, String> {
    String::from_utf8_lossy(body)
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decode(value)))
        .collect()
}

fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(Option::unwrap_or_default);
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
