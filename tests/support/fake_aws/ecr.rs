//! ECR and ECR Public: one operation each, and the tokens that it gives.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::reply::{self, ecr_answer, ecr_error};
use super::{ACCOUNT, Behaviour, Garbage, Knobs, Outcome, Request, SECRET_MARKER, Service};

pub(super) const OPERATION: &str = "GetAuthorizationToken";
pub(super) const PRIVATE_TARGET: &str = "AmazonEC2ContainerRegistry_V20150921";
pub(super) const PUBLIC_TARGET: &str = "SpencerFrontendService";

/// A real `payload` is longer than a real `datakey`; together they make a password of about 2.4 KB.
const PAYLOAD_BYTES: usize = 1_470;
const DATA_KEY_BYTES: usize = 250;
const DEFAULT_LIFETIME: Duration = Duration::from_hours(12);

pub(super) struct Ecr {
    pub(super) everywhere: Knobs,
    pub(super) in_region: HashMap<String, Knobs>,
    pub(super) public: Knobs,
    pub(super) issued: Vec<Issued>,
    random: u64,
}

pub(super) struct Issued {
    pub(super) password: String,
    pub(super) principal: String,
}

impl Default for Ecr {
    fn default() -> Self {
        Self {
            everywhere: Knobs::default(),
            in_region: HashMap::new(),
            public: Knobs::default(),
            issued: Vec::new(),
            random: 1,
        }
    }
}

impl Ecr {
    pub(super) fn behave(&mut self) {
        self.everywhere = Knobs::default();
        self.in_region.clear();
        self.public = Knobs::default();
    }

    pub(super) fn knobs(&self, region: &str) -> &Knobs {
        self.in_region.get(region).unwrap_or(&self.everywhere)
    }

    pub(super) fn reply(
        &mut self,
        request: &Request,
        principal: &str,
        knobs: &Knobs,
        outcome: Outcome,
    ) -> Response<Body> {
        let behaviour = match outcome {
            Outcome::Unauthenticated if request.signature.is_none() => {
                return ecr_error(
                    StatusCode::FORBIDDEN,
                    "MissingAuthenticationTokenException",
                    "Missing Authentication Token",
                );
            }
            Outcome::Unauthenticated => {
                return ecr_error(
                    StatusCode::FORBIDDEN,
                    "UnrecognizedClientException",
                    "The security token included in the request is invalid.",
                );
            }
            Outcome::UnknownOperation => {
                return ecr_error(StatusCode::BAD_REQUEST, "UnknownOperationException", "");
            }
            Outcome::Rejected(code) => return ecr_error(StatusCode::BAD_REQUEST, code, ""),
            Outcome::Answered => Behaviour::Answer,
            Outcome::Failed(behaviour) => behaviour,
        };
        match behaviour {
            Behaviour::Answer => {
                let data = self.authorization(request, principal, knobs);
                ecr_answer(&wrapped(request.service, &data))
            }
            Behaviour::Garbage(garbage) => self.garbage(garbage, request, principal, knobs),
            Behaviour::Expired => self.garbage(Garbage::Expired, request, principal, knobs),
            Behaviour::Throttle => ecr_error(
                StatusCode::BAD_REQUEST,
                "ThrottlingException",
                "Rate exceeded",
            ),
            Behaviour::Refuse => ecr_error(
                StatusCode::BAD_REQUEST,
                "AccessDeniedException",
                &reply::denied(
                    principal,
                    &format!("{}:{OPERATION}", request.service.name()),
                    "*",
                ),
            ),
            Behaviour::ExpiredToken => ecr_error(
                StatusCode::BAD_REQUEST,
                "ExpiredTokenException",
                "The security token included in the request is expired",
            ),
            Behaviour::Code(code, message) => ecr_error(StatusCode::BAD_REQUEST, code, message),
            Behaviour::ServerError | Behaviour::Hang => {
                ecr_error(StatusCode::INTERNAL_SERVER_ERROR, "ServerException", "")
            }
        }
    }

    fn authorization(&mut self, request: &Request, principal: &str, knobs: &Knobs) -> Value {
        let now = Timestamp::now().as_millisecond();
        let lifetime = knobs.lifetime.unwrap_or(DEFAULT_LIFETIME);
        let inner = knobs.inner_lifetime.unwrap_or(lifetime);
        let inner = now / 1_000 + i64::try_from(inner.as_secs()).unwrap();
        let password = self.password(inner, principal);
        let expires = now + i64::try_from(lifetime.as_millis()).unwrap();
        let mut data = json!({
            "authorizationToken": BASE64_STANDARD.encode(format!("AWS:{password}")),
            "expiresAt": seconds(expires),
        });
        if request.service == Service::Ecr {
            // The registry that was asked for, or else that of the caller's account.
            let own = principal.split(':').nth(4);
            let account = request.registry.as_deref().or(own).unwrap_or(ACCOUNT);
            let signature = request.signature.as_ref();
            let region = signature.map_or("", |signature| &signature.region);
            data["proxyEndpoint"] =
                json!(format!("https://{account}.dkr.ecr.{region}.amazonaws.com"));
        }
        data
    }

    /// Shaped like a real one: base64 of a JSON document, whose `expiration` the token's holder can read.
    fn password(&mut self, expiration: i64, principal: &str) -> String {
        let number = self.issued.len();
        let payload = format!("{SECRET_MARKER}-{number}-{}", self.noise(PAYLOAD_BYTES));
        let password = BASE64_STANDARD.encode(
            json!({
                "payload": payload,
                "datakey": self.noise(DATA_KEY_BYTES),
                "version": "2",
                "type": "DATA_KEY",
                "expiration": expiration,
            })
            .to_string(),
        );
        self.issued.push(Issued {
            password: password.clone(),
            principal: principal.to_owned(),
        });
        password
    }

    /// Base64 of nothing in particular, that long (splitmix64: no compressor makes it small).
    fn noise(&mut self, length: usize) -> String {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bytes.extend((mixed ^ (mixed >> 31)).to_be_bytes());
        }
        let mut noise = BASE64_STANDARD.encode(bytes);
        noise.truncate(length);
        noise
    }

    fn garbage(
        &mut self,
        garbage: Garbage,
        request: &Request,
        principal: &str,
        knobs: &Knobs,
    ) -> Response<Body> {
        let mut data = self.authorization(request, principal, knobs);
        match garbage {
            Garbage::BadBase64 => data["authorizationToken"] = json!("%%% no base64 %%%"),
            Garbage::NoColon => {
                let last = self.issued.last();
                let password = last.map_or("", |issued| &issued.password);
                data["authorizationToken"] = json!(BASE64_STANDARD.encode(password));
            }
            Garbage::EmptyPassword => {
                data["authorizationToken"] = json!(BASE64_STANDARD.encode("AWS:"));
            }
            Garbage::Expired => {
                let hour_ago = Timestamp::now().as_millisecond() - 3_600_000;
                data["expiresAt"] = seconds(hour_ago);
            }
            Garbage::MissingExpiry => {
                data.as_object_mut().unwrap().remove("expiresAt");
            }
            Garbage::NoAuthorizationData => {
                return ecr_answer(&match request.service {
                    Service::EcrPublic => json!({}),
                    _ => json!({"authorizationData": []}),
                });
            }
            Garbage::NoField => return ecr_answer(&json!({})),
            Garbage::TwoEntries => {
                let second = self.authorization(request, principal, knobs);
                return ecr_answer(&json!({"authorizationData": [data, second]}));
            }
            Garbage::OtherUser => {
                let last = self.issued.last();
                let password = last.map_or("", |issued| &issued.password);
                let pair = format!("root:{password}");
                data["authorizationToken"] = json!(BASE64_STANDARD.encode(pair));
            }
            Garbage::OpaquePassword => {
                let password = format!("{SECRET_MARKER}.{}", self.noise(PAYLOAD_BYTES));
                let pair = format!("AWS:{password}");
                data["authorizationToken"] = json!(BASE64_STANDARD.encode(pair));
                let issued = Issued {
                    password,
                    principal: principal.to_owned(),
                };
                self.issued.push(issued);
            }
            Garbage::NotJson => {
                return reply::with(
                    StatusCode::OK,
                    reply::JSON,
                    Body::from("<html>an error page of some proxy</html>"),
                );
            }
            Garbage::Truncated => {
                let text = wrapped(request.service, &data).to_string();
                let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
                let breaks = io::Error::from(io::ErrorKind::ConnectionReset);
                return reply::with(
                    StatusCode::OK,
                    reply::JSON,
                    Body::from_stream(stream::iter([Ok(half), Err(breaks)])),
                );
            }
        }
        ecr_answer(&wrapped(request.service, &data))
    }
}

/// ECR answers with a list, which has always one item; ECR Public with the item.
fn wrapped(service: Service, data: &Value) -> Value {
    match service {
        Service::EcrPublic => json!({"authorizationData": data}),
        _ => json!({"authorizationData": [data]}),
    }
}

/// As ECR writes times: seconds since 1970, with a fraction.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since 1970 fit a double's 53 bits"
)]
fn seconds(milliseconds: i64) -> Value {
    json!(milliseconds as f64 / 1e3)
}
