//! ECR and STS on a loopback port, in their real wire protocols, so that the binary under test talks to them through the
//! real SDK and its own endpoint variables. It notes each call, and can be told to misbehave while it runs.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use futures::stream;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::own_runtime::OwnRuntime;

/// In every secret that the fake issues, and in the key that it is called with. Find it with [`FakeAws::leak_in`].
pub const SECRET_MARKER: &str = "THIS-IS-SECRET-NEVER-SHOW-IT-ANYWHERE";

/// The account whose keys [`FakeAws::environment`] holds, and that role-less calls act for.
pub const ACCOUNT: &str = "123456789012";

/// The access key of [`FakeAws::environment`], the only one that is good from the start.
pub const ACCESS_KEY: &str = "AKIAFAKEAWSFAKEAWS00";

const ECR_TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
/// A real `payload` is longer than a real `datakey`; together they make a password of about 2.4 KB.
const PAYLOAD_BYTES: usize = 1_470;
const DATA_KEY_BYTES: usize = 250;

/// Serves until it is dropped; tests on any runtime can use it.
pub struct FakeAws {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    _runtime: OwnRuntime,
}

/// How calls are answered. Changes count from the next call on.
#[derive(Clone, Debug)]
pub struct Knobs {
    pub behaviour: Behaviour,
    /// Before each answer, errors included.
    pub latency: Duration,
    /// `expiresAt`, from the moment of the call.
    pub lifetime: Duration,
    /// The expiry inside the token; real ones were seen to be earlier than `expiresAt`. Absent: the same.
    pub inner_lifetime: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Answer,
    /// 400 `ThrottlingException`.
    Throttle,
    /// Takes the call and never answers.
    Hang,
    /// 400 `AccessDeniedException` (STS: 403 `AccessDenied`).
    Refuse,
    /// 500.
    ServerError,
    /// ECR answers 200 with something that is no token. STS answers 200 with something that is no XML.
    Garbage(Garbage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    BadBase64,
    NoColon,
    EmptyPassword,
    /// `expiresAt` an hour ago.
    Expired,
    MissingExpiry,
    /// `authorizationData: []`.
    NoAuthorizationData,
    NotJson,
    /// The connection breaks in the middle of the body.
    Truncated,
}

/// A call as the fake saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// `ecr` or `sts`.
    pub service: &'static str,
    pub operation: String,
    /// From the signature's scope; empty for calls that are not signed.
    pub region: String,
    pub access_key: String,
    /// The ARN that the access key belongs to: the fake's user, or the role that was assumed.
    pub principal: String,
    /// STS only: `RoleArn`, `ExternalId`, `Policy`, …
    pub parameters: BTreeMap<String, String>,
    pub at: SystemTime,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    /// As the knobs wanted.
    Failed(Behaviour),
    /// No signature, or an access key that nobody issued.
    Unauthenticated,
    UnknownOperation,
}

struct Shared {
    ecr: Knobs,
    ecr_in: HashMap<String, Knobs>,
    sts: Knobs,
    calls: Vec<Call>,
    passwords: Vec<String>,
    /// Access key to principal.
    principals: HashMap<String, String>,
    random: u64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            behaviour: Behaviour::Answer,
            latency: Duration::ZERO,
            lifetime: Duration::from_hours(12),
            inner_lifetime: None,
        }
    }
}

impl FakeAws {
    pub fn start() -> Self {
        let shared = Arc::new(Mutex::new(Shared {
            ecr: Knobs::default(),
            ecr_in: HashMap::new(),
            sts: Knobs::default(),
            calls: Vec::new(),
            passwords: Vec::new(),
            principals: HashMap::from([(
                ACCESS_KEY.to_owned(),
                format!("arn:aws:iam::{ACCOUNT}:user/fake"),
            )]),
            random: 1,
        }));
        let runtime = OwnRuntime::start("fake-aws");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let router = Router::new()
            .route("/", post(answer))
            .with_state(Arc::clone(&shared));
        runtime.spawn(serve(listener, router));
        Self {
            address,
            shared,
            _runtime: runtime,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables that turn a process's AWS SDK to this fake.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL_ECR", self.endpoint()),
            ("AWS_ENDPOINT_URL_STS", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret_access_key()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Sets ECR's knobs in all regions, those that were set apart included.
    pub fn tune_ecr(&self, change: impl Fn(&mut Knobs)) {
        let mut shared = self.lock();
        change(&mut shared.ecr);
        shared.ecr_in.values_mut().for_each(change);
    }

    /// Sets ECR's knobs in one region, which from then on differs from the others.
    pub fn tune_ecr_in(&self, region: &str, change: impl FnOnce(&mut Knobs)) {
        let mut shared = self.lock();
        let everywhere = shared.ecr.clone();
        change(shared.ecr_in.entry(region.to_owned()).or_insert(everywhere));
    }

    /// Sets STS's knobs.
    pub fn tune_sts(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.lock().sts);
    }

    /// Resets all knobs.
    pub fn behave(&self) {
        let mut shared = self.lock();
        shared.ecr = Knobs::default();
        shared.ecr_in.clear();
        shared.sts = Knobs::default();
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The calls for tokens of this region.
    pub fn ecr_calls(&self, region: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.service == "ecr" && call.region == region);
        calls
    }

    /// Forgets the calls; what was issued stays known.
    pub fn clear(&self) {
        self.lock().calls.clear();
    }

    /// All passwords so far, in order.
    pub fn passwords(&self) -> Vec<String> {
        self.lock().passwords.clone()
    }

    /// The form in which a secret stands in `text`, if any does: as it is, in up to four layers of base64 (a Secret's data
    /// holds a password in three), or as a list of byte values.
    pub fn leak_in(&self, text: &str) -> Option<String> {
        let mut forms = vec![("the secret".to_owned(), SECRET_MARKER.to_owned())];
        let mut layer = vec![SECRET_MARKER.to_owned()];
        for depth in 1..=4 {
            layer = layer.iter().flat_map(|form| encoded_forms(form)).collect();
            let name = format!("{depth} × base64 of a secret");
            forms.extend(layer.iter().map(|form| (name.clone(), form.clone())));
            if depth == 1 {
                forms.extend(
                    layer
                        .iter()
                        .map(|form| ("the bytes of a secret".to_owned(), byte_list(form))),
                );
            }
        }
        let start_of = |password: &String| password[..32.min(password.len())].to_owned();
        forms.extend(
            self.passwords()
                .iter()
                .map(|password| ("the start of a password".to_owned(), start_of(password))),
        );
        forms
            .into_iter()
            .find_map(|(name, form)| text.contains(&form).then_some(name))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

/// What goes with every access key: the fake looks at no signature's value.
pub fn secret_access_key() -> String {
    format!("key-{SECRET_MARKER}")
}

/// axum's own `serve` comes with a feature that the binary has no use for.
async fn serve(listener: TcpListener, router: Router) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
    }
}

/// What `text` looks like within base64: one form for each place that it can have in a group of three bytes.
fn encoded_forms(text: &str) -> [String; 3] {
    [0, 1, 2].map(|before| {
        let encoded = BASE64_STANDARD_NO_PAD.encode([&vec![0; before], text.as_bytes()].concat());
        // Characters that mix in what stands before or after depend on it.
        let first = (before * 8).div_ceil(6);
        let last = (before + text.len()) * 8 / 6;
        encoded[first..last].to_owned()
    })
}

fn byte_list(text: &str) -> String {
    let bytes: Vec<_> = text.bytes().map(|byte| byte.to_string()).collect();
    bytes.join(", ")
}

/// Whom a request is signed by, and for where.
#[derive(Clone, Debug, Default)]
struct Signature {
    access_key: String,
    region: String,
}

impl Signature {
    /// Reads the scope; whether the signature is right is AWS's own business.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let fields = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            fields
                .split(',')
                .find_map(|field| field.trim().strip_prefix(name))
        };
        field("Signature=").filter(|signature| signature.len() == 64)?;
        let mut scope = field("Credential=")?.split('/');
        let (access_key, _date, region) = (scope.next()?, scope.next()?, scope.next()?);
        Some(Self {
            access_key: access_key.to_owned(),
            region: region.to_owned(),
        })
    }
}

type Answer = Result<Response<Body>, Infallible>;

async fn answer(
    State(shared): State<Arc<Mutex<Shared>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let signature = Signature::of(&headers);
    let service = match headers.get("x-amz-target") {
        Some(target) => Service::Ecr(target.to_str().unwrap_or_default().to_owned()),
        None => Service::Sts(form(&body)),
    };
    let (knobs, outcome) = shared.lock().unwrap().admit(&service, signature.as_ref());
    tokio::time::sleep(knobs.latency).await;
    if outcome == Outcome::Failed(Behaviour::Hang) {
        std::future::pending::<()>().await;
    }
    let signature = signature.unwrap_or_default();
    Ok(match &service {
        Service::Ecr(_) => shared
            .lock()
            .unwrap()
            .answer_ecr(&knobs, outcome, &signature.region),
        Service::Sts(parameters) => shared
            .lock()
            .unwrap()
            .answer_sts(parameters, &knobs, outcome, &signature),
    })
}

enum Service {
    /// Its `X-Amz-Target`.
    Ecr(String),
    /// Its parameters.
    Sts(BTreeMap<String, String>),
}

impl Service {
    fn name(&self) -> &'static str {
        match self {
            Self::Ecr(_) => "ecr",
            Self::Sts(_) => "sts",
        }
    }

    fn operation(&self) -> &str {
        match self {
            Self::Ecr(target) => target.rsplit('.').next().unwrap_or_default(),
            Self::Sts(parameters) => parameters.get("Action").map_or("", String::as_str),
        }
    }

    fn is_known(&self) -> bool {
        match self {
            Self::Ecr(target) => target == ECR_TARGET,
            Self::Sts(_) => matches!(
                self.operation(),
                "AssumeRole" | "AssumeRoleWithWebIdentity" | "GetCallerIdentity"
            ),
        }
    }

    /// A web identity token stands in for a signature.
    fn needs_signature(&self) -> bool {
        self.operation() != "AssumeRoleWithWebIdentity"
    }
}

impl Shared {
    /// Decides what comes of a call, and notes it: also of one that is never answered.
    fn admit(&mut self, service: &Service, signature: Option<&Signature>) -> (Knobs, Outcome) {
        let signature = signature.cloned().unwrap_or_default();
        let knobs = match service {
            Service::Ecr(_) => self.ecr_in.get(&signature.region).unwrap_or(&self.ecr),
            Service::Sts(_) => &self.sts,
        };
        let principal = self.principals.get(&signature.access_key);
        let outcome = if !service.is_known() {
            Outcome::UnknownOperation
        } else if service.needs_signature() && principal.is_none() {
            Outcome::Unauthenticated
        } else if knobs.behaviour != Behaviour::Answer {
            Outcome::Failed(knobs.behaviour)
        } else {
            Outcome::Answered
        };
        let call = Call {
            service: service.name(),
            operation: service.operation().to_owned(),
            region: signature.region,
            access_key: signature.access_key,
            principal: principal.cloned().unwrap_or_default(),
            parameters: match service {
                Service::Ecr(_) => BTreeMap::new(),
                Service::Sts(parameters) => parameters.clone(),
            },
            at: SystemTime::now(),
            outcome,
        };
        let knobs = knobs.clone();
        self.calls.push(call);
        (knobs, outcome)
    }

    fn answer_ecr(&mut self, knobs: &Knobs, outcome: Outcome, region: &str) -> Response<Body> {
        let behaviour = match outcome {
            Outcome::Unauthenticated if region.is_empty() => {
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
            Outcome::Answered => Behaviour::Answer,
            Outcome::Failed(behaviour) => behaviour,
        };
        match behaviour {
            Behaviour::Answer => ecr_reply(&self.authorization(knobs, region)),
            Behaviour::Garbage(garbage) => self.garbage(garbage, knobs, region),
            Behaviour::Throttle => ecr_error(
                StatusCode::BAD_REQUEST,
                "ThrottlingException",
                "Rate exceeded",
            ),
            Behaviour::Refuse => ecr_error(
                StatusCode::BAD_REQUEST,
                "AccessDeniedException",
                "not authorized to perform: ecr:GetAuthorizationToken on resource: *",
            ),
            Behaviour::ServerError | Behaviour::Hang => {
                ecr_error(StatusCode::INTERNAL_SERVER_ERROR, "ServerException", "")
            }
        }
    }

    fn authorization(&mut self, knobs: &Knobs, region: &str) -> Value {
        let now = Timestamp::now().as_millisecond();
        let inner = knobs.inner_lifetime.unwrap_or(knobs.lifetime);
        let password = self.password(now / 1_000 + i64::try_from(inner.as_secs()).unwrap());
        let expires = now + i64::try_from(knobs.lifetime.as_millis()).unwrap();
        json!({"authorizationData": [{
            "authorizationToken": BASE64_STANDARD.encode(format!("AWS:{password}")),
            "expiresAt": seconds(expires),
            "proxyEndpoint": format!("https://{ACCOUNT}.dkr.ecr.{region}.amazonaws.com"),
        }]})
    }

    /// Shaped like a real one: base64 of a JSON document, whose `expiration` the token's holder can read.
    fn password(&mut self, expiration: i64) -> String {
        let number = self.passwords.len();
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
        self.passwords.push(password.clone());
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

    fn garbage(&mut self, garbage: Garbage, knobs: &Knobs, region: &str) -> Response<Body> {
        let mut reply = self.authorization(knobs, region);
        let data = &mut reply["authorizationData"];
        match garbage {
            Garbage::BadBase64 => data[0]["authorizationToken"] = json!("%%% no base64 %%%"),
            Garbage::NoColon => {
                let password = self.passwords.last().cloned().unwrap_or_default();
                data[0]["authorizationToken"] = json!(BASE64_STANDARD.encode(password));
            }
            Garbage::EmptyPassword => {
                data[0]["authorizationToken"] = json!(BASE64_STANDARD.encode("AWS:"));
            }
            Garbage::Expired => {
                let hour_ago = Timestamp::now().as_millisecond() - 3_600_000;
                data[0]["expiresAt"] = seconds(hour_ago);
            }
            Garbage::MissingExpiry => {
                data[0].as_object_mut().unwrap().remove("expiresAt");
            }
            Garbage::NoAuthorizationData => *data = json!([]),
            Garbage::NotJson => {
                return reply_with(
                    StatusCode::OK,
                    "application/x-amz-json-1.1",
                    Body::from("<html>an error page of some proxy</html>"),
                );
            }
            Garbage::Truncated => {
                let text = reply.to_string();
                let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
                let breaks = io::Error::from(io::ErrorKind::ConnectionReset);
                return reply_with(
                    StatusCode::OK,
                    "application/x-amz-json-1.1",
                    Body::from_stream(stream::iter([Ok(half), Err(breaks)])),
                );
            }
        }
        ecr_reply(&reply)
    }

    fn answer_sts(
        &mut self,
        parameters: &BTreeMap<String, String>,
        knobs: &Knobs,
        outcome: Outcome,
        signature: &Signature,
    ) -> Response<Body> {
        let operation = parameters.get("Action").map_or("", String::as_str);
        let behaviour = match outcome {
            Outcome::Unauthenticated if signature.access_key.is_empty() => {
                return sts_error(StatusCode::FORBIDDEN, "MissingAuthenticationToken");
            }
            Outcome::Unauthenticated => {
                return sts_error(StatusCode::FORBIDDEN, "InvalidClientTokenId");
            }
            Outcome::UnknownOperation => {
                return sts_error(StatusCode::BAD_REQUEST, "InvalidAction");
            }
            Outcome::Answered => Behaviour::Answer,
            Outcome::Failed(behaviour) => behaviour,
        };
        match behaviour {
            Behaviour::Answer if operation == "GetCallerIdentity" => {
                let principal = &self.principals[&signature.access_key];
                sts_reply(
                    operation,
                    &format!(
                        "<Arn>{principal}</Arn><UserId>FAKE</UserId><Account>{ACCOUNT}</Account>"
                    ),
                )
            }
            Behaviour::Answer => {
                let role = parameters.get("RoleArn").map_or("", String::as_str);
                let session = parameters.get("RoleSessionName").map_or("", String::as_str);
                sts_reply(operation, &self.assume(role, session, knobs))
            }
            Behaviour::Garbage(_) => {
                reply_with(StatusCode::OK, "text/xml", Body::from("{\"not\": \"XML\"}"))
            }
            Behaviour::Throttle => sts_error(StatusCode::BAD_REQUEST, "Throttling"),
            Behaviour::Refuse => sts_error(StatusCode::FORBIDDEN, "AccessDenied"),
            Behaviour::ServerError | Behaviour::Hang => {
                sts_error(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure")
            }
        }
    }

    fn assume(&mut self, role: &str, session: &str, knobs: &Knobs) -> String {
        let access_key = format!("ASIAFAKE{:012}", self.principals.len());
        self.principals.insert(access_key.clone(), role.to_owned());
        let expiration = Timestamp::now() + knobs.lifetime;
        format!(
            "<AssumedRoleUser><Arn>{role}/{session}</Arn>\
             <AssumedRoleId>AROAFAKE:{session}</AssumedRoleId></AssumedRoleUser>\
             <Credentials><AccessKeyId>{access_key}</AccessKeyId>\
             <SecretAccessKey>{}</SecretAccessKey>\
             <SessionToken>session-{SECRET_MARKER}</SessionToken>\
             <Expiration>{expiration:.0}</Expiration></Credentials>",
            secret_access_key()
        )
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

fn ecr_reply(body: &Value) -> Response<Body> {
    reply_with(
        StatusCode::OK,
        "application/x-amz-json-1.1",
        Body::from(body.to_string()),
    )
}

fn ecr_error(status: StatusCode, code: &'static str, message: &str) -> Response<Body> {
    let body = json!({"__type": code, "message": message}).to_string();
    let mut response = reply_with(status, "application/x-amz-json-1.1", Body::from(body));
    response
        .headers_mut()
        .insert("x-amzn-errortype", header::HeaderValue::from_static(code));
    response
}

fn sts_reply(operation: &str, result: &str) -> Response<Body> {
    let body = format!(
        "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <{operation}Result>{result}</{operation}Result>\
         <ResponseMetadata><RequestId>fake</RequestId></ResponseMetadata></{operation}Response>"
    );
    reply_with(StatusCode::OK, "text/xml", Body::from(body))
}

fn sts_error(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>The fake says so.</Message></Error><RequestId>fake</RequestId></ErrorResponse>"
    );
    reply_with(status, "text/xml", Body::from(body))
}

fn reply_with(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header("x-amzn-requestid", "fake")
        .body(body)
        .unwrap()
}

/// The pairs of an `application/x-www-form-urlencoded` body.
fn form(body: &[u8]) -> BTreeMap<String, String> {
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
