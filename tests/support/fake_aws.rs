//! ECR, ECR Public and STS on a loopback port, in their real wire protocols, so that the binary
//! under test talks to them through the real SDK and its own endpoint variables, or through a proxy
//! and under their real names. The fake notes each call, and can be made to misbehave while it
//! runs.
//!
//! | room | what it stands for |
//! |---|---|
//! | `ecr` | ECR and ECR Public, and the tokens that they give |
//! | `sts` | STS: who may assume which role |
//! | `iam` | whom an access key belongs to |
//! | [`metadata`] | where a machine or a Pod finds its credentials: IMDS, EKS Pod Identity, ECS |
//! | `leak` | what a secret looks like in a text that must not have it |
//! | `reply` | the three services' ways to answer |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, Uri, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::certificates::Authority;
use super::own_runtime::OwnRuntime;
use ecr::Ecr;
use iam::Iam;
use sts::Sts;

pub use iam::{Keys, secret_access_key, web_identity_token};

mod ecr;
mod iam;
mod leak;
pub mod metadata;
mod reply;
mod sts;

/// In every secret that the fake issues, and in the key that it is called with. Find it with [`FakeAws::leak_in`].
pub const SECRET_MARKER: &str = "THIS-IS-SECRET-NEVER-SHOW-IT-ANYWHERE";

/// The account whose keys [`FakeAws::environment`] holds, and that role-less calls act for.
pub const ACCOUNT: &str = "123456789012";

/// The access key of [`FakeAws::environment`], the only one that is good from the start.
pub const ACCESS_KEY: &str = "AKIAFAKEAWSFAKEAWS00";

/// Whom [`ACCESS_KEY`] belongs to.
pub const USER: &str = "arn:aws:iam::123456789012:user/fake";

/// Serves until it is dropped; tests on any runtime can use it.
pub struct FakeAws {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Mutex<Shared>>,
    _runtime: OwnRuntime,
}

/// How calls are answered. Changes count from the next call on.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    pub behaviour: Behaviour,
    /// Before each answer, errors included.
    pub latency: Duration,
    /// How long what is issued lasts, from the moment of the call. Absent: a token 12 h; a session what the call asked for
    /// (`DurationSeconds`), or 1 h.
    pub lifetime: Option<Duration>,
    /// The expiry inside the token; real ones were seen to be earlier than `expiresAt`. Absent: the same.
    pub inner_lifetime: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    #[default]
    Answer,
    /// 400 `ThrottlingException`.
    Throttle,
    /// Takes the call and never answers.
    Hang,
    /// 400 `AccessDeniedException` (STS: 403 `AccessDenied`).
    Refuse,
    /// 500.
    ServerError,
    /// Issues tokens and sessions that expired an hour ago.
    Expired,
    /// Says that the caller's session has expired: 400 `ExpiredTokenException` (STS: 403
    /// `ExpiredToken`).
    ExpiredToken,
    /// Fails with this code and message: 400 (STS: 403).
    Code(&'static str, &'static str),
    /// ECR answers 200 with something that is no token, or an odd one. STS answers 200 with something that is no XML.
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
    /// `authorizationData: []` (ECR Public: none at all).
    NoAuthorizationData,
    /// No `authorizationData` at all.
    NoField,
    /// A second token behind the first, which is the caller's.
    TwoEntries,
    /// A token of a user who isn't `AWS`.
    OtherUser,
    /// A token whose password is no base64 of JSON.
    OpaquePassword,
    NotJson,
    /// The connection breaks in the middle of the body.
    Truncated,
}

/// A call as the fake saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// `ecr`, `ecr-public` or `sts`.
    pub service: &'static str,
    pub operation: String,
    /// The `Host` header: the name that the caller believes it talks to.
    pub host: String,
    pub path: String,
    /// From the signature's scope; empty for calls that are not signed.
    pub region: String,
    /// The service in the signature's scope.
    pub signed_service: String,
    pub access_key: String,
    /// The ARN that the access key belongs to: the fake's user, or the role that was assumed.
    pub principal: String,
    /// Whether the keys came with a session's token.
    pub session_token: bool,
    /// STS only: `RoleArn`, `ExternalId`, `Policy`, `Tags.member.1.Key`, …
    pub parameters: BTreeMap<String, String>,
    pub at: SystemTime,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    /// As the knobs wanted; and [`Behaviour::ExpiredToken`] for the keys of a session that is over.
    Failed(Behaviour),
    /// No signature, one for another service, or an access key that nobody issued.
    Unauthenticated,
    UnknownOperation,
    /// STS's own rules, by their code.
    Rejected(&'static str),
}

struct Shared {
    iam: Iam,
    ecr: Ecr,
    sts: Sts,
    calls: Vec<Call>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    Ecr,
    EcrPublic,
    Sts,
}

/// The parts of a request that the fake reads.
struct Request {
    service: Service,
    operation: String,
    parameters: BTreeMap<String, String>,
    /// The first of ECR's `registryIds`, which are deprecated and still sent by others.
    registry: Option<String>,
    signature: Option<Signature>,
    session_token: bool,
    host: String,
    path: String,
}

/// Whom a request is signed by, and for where.
#[derive(Clone, Debug, Default)]
struct Signature {
    access_key: String,
    region: String,
    service: String,
}

impl Knobs {
    fn misbehave(&self) -> Option<Behaviour> {
        (self.behaviour != Behaviour::Answer).then_some(self.behaviour)
    }
}

impl FakeAws {
    /// Starts the fake without TLS.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts the fake without TLS on this address.
    pub fn start_at(ip: IpAddr) -> Self {
        Self::listening("http", ip, None)
    }

    /// Starts the fake with TLS and a certificate for these names.
    pub fn start_tls(authority: &Authority, names: &[&str]) -> Self {
        let acceptor = TlsAcceptor::from(authority.server_config(names));
        Self::listening("https", Ipv4Addr::LOCALHOST.into(), Some(acceptor))
    }

    fn listening(scheme: &'static str, ip: IpAddr, acceptor: Option<TlsAcceptor>) -> Self {
        let shared = Arc::new(Mutex::new(Shared {
            iam: Iam::default(),
            ecr: Ecr::default(),
            sts: Sts::default(),
            calls: Vec::new(),
        }));
        let runtime = OwnRuntime::start("fake-aws");
        let (listener, address) = runtime.listen((ip, 0));
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        runtime.spawn(serve(listener, router, acceptor));
        Self {
            address,
            scheme,
            shared,
            _runtime: runtime,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The variables that turn a process's AWS SDK to this fake.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = self.endpoints();
        variables.extend(self.static_keys());
        variables.extend(
            [
                ("AWS_REGION", "us-east-1"),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ]
            .map(owned),
        );
        variables
    }

    /// Of [`FakeAws::environment`], those that say where the services are.
    pub fn endpoints(&self) -> Vec<(String, String)> {
        [
            "AWS_ENDPOINT_URL_ECR",
            "AWS_ENDPOINT_URL_ECR_PUBLIC",
            "AWS_ENDPOINT_URL_STS",
        ]
        .map(|name| (name.to_owned(), self.endpoint()))
        .to_vec()
    }

    /// Of [`FakeAws::environment`], the user's keys.
    #[expect(
        clippy::unused_self,
        reason = "the keys are good for this fake, and a caller shouldn't have to know that all have the same"
    )]
    pub fn static_keys(&self) -> Vec<(String, String)> {
        vec![
            owned(("AWS_ACCESS_KEY_ID", ACCESS_KEY)),
            owned(("AWS_SECRET_ACCESS_KEY", &secret_access_key())),
        ]
    }

    /// Sets ECR's knobs in all regions, those that were set apart included.
    pub fn tune_ecr(&self, change: impl Fn(&mut Knobs)) {
        let ecr = &mut self.lock().ecr;
        change(&mut ecr.everywhere);
        ecr.in_region.values_mut().for_each(change);
    }

    /// Sets ECR's knobs in one region, which from then on differs from the others.
    pub fn tune_ecr_in(&self, region: &str, change: impl FnOnce(&mut Knobs)) {
        let ecr = &mut self.lock().ecr;
        let everywhere = ecr.everywhere.clone();
        change(ecr.in_region.entry(region.to_owned()).or_insert(everywhere));
    }

    /// Sets ECR Public's knobs.
    pub fn tune_ecr_public(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.lock().ecr.public);
    }

    /// Sets STS's knobs for all roles, those that were set apart included.
    pub fn tune_sts(&self, change: impl Fn(&mut Knobs)) {
        let sts = &mut self.lock().sts;
        change(&mut sts.everyone);
        sts.for_role.values_mut().for_each(change);
    }

    /// Sets STS's knobs for calls that name this role, which from then on differs from the others.
    pub fn tune_sts_for(&self, role_arn: &str, change: impl FnOnce(&mut Knobs)) {
        let sts = &mut self.lock().sts;
        let everyone = sts.everyone.clone();
        change(sts.for_role.entry(role_arn.to_owned()).or_insert(everyone));
    }

    /// From now on `AssumeRole` of this role is denied without this external id.
    pub fn require_external_id(&self, role_arn: &str, id: &str) {
        let ids = &mut self.lock().sts.external_ids;
        ids.insert(role_arn.to_owned(), id.to_owned());
    }

    /// From now on `AssumeRoleWithWebIdentity` takes no token but these. Unless this is called it takes any.
    pub fn accept_web_identity(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(ToString::to_string).collect();
        self.lock().sts.web_identities = Some(tokens);
    }

    /// Resets all knobs, and whom STS trusts.
    pub fn behave(&self) {
        let mut shared = self.lock();
        shared.ecr.behave();
        shared.sts = Sts::default();
    }

    /// Keys for a principal of the test's own, good for ever: an ARN of a user, say.
    pub fn keys_of(&self, principal: &str) -> Keys {
        self.lock().iam.issue(principal, None)
    }

    /// A session of a principal: keys with a token, good until then. The past gives a session that is over.
    pub fn session_of(&self, principal: &str, until: Timestamp) -> Keys {
        self.lock().iam.issue(principal, Some(until))
    }

    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The calls to one service: `ecr`, `ecr-public` or `sts`.
    pub fn calls_to(&self, service: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.service == service);
        calls
    }

    /// The calls for tokens of this region.
    pub fn ecr_calls(&self, region: &str) -> Vec<Call> {
        let mut calls = self.calls_to("ecr");
        calls.retain(|call| call.region == region);
        calls
    }

    /// Forgets the calls; what was issued stays known.
    pub fn clear(&self) {
        self.lock().calls.clear();
    }

    /// All passwords so far, in order.
    pub fn passwords(&self) -> Vec<String> {
        let shared = self.lock();
        let issued = shared.ecr.issued.iter();
        issued.map(|issued| issued.password.clone()).collect()
    }

    /// The ARN of the principal that a password was issued for. [`password_of`] takes one out of a docker config.
    pub fn principal_of(&self, password: &str) -> Option<String> {
        let shared = self.lock();
        let issued = shared.ecr.issued.iter();
        issued
            .filter(|issued| issued.password == password)
            .map(|issued| issued.principal.clone())
            .next()
    }

    /// The form in which a secret stands in `text`, if any does: as it is, in up to four layers of base64 (a Secret's data
    /// holds a password in three), or as a list of byte values.
    pub fn leak_in(&self, text: &str) -> Option<String> {
        leak::find(text, &self.passwords())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

/// The password in an `auth` of a docker config, which is base64 of `AWS:<password>`.
pub fn password_of(auth: &str) -> Option<String> {
    let pair = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    Some(pair.strip_prefix("AWS:")?.to_owned())
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// axum's own `serve` comes with a feature that the binary has no use for.
async fn serve(listener: TcpListener, router: Router, acceptor: Option<TlsAcceptor>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        // Else the end of an answer waits for the client to acknowledge its beginning: 40 ms.
        let _ = connection.set_nodelay(true);
        let router = router.clone();
        match acceptor.clone() {
            None => {
                tokio::spawn(speak(connection, router));
            }
            Some(acceptor) => {
                tokio::spawn(async move {
                    // A client that doesn't trust us goes away in the handshake.
                    if let Ok(connection) = acceptor.accept(connection).await {
                        speak(connection, router).await;
                    }
                });
            }
        }
    }
}

async fn speak(connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let service = TowerToHyperService::new(router);
    // An error is a client that went away.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service)
        .await;
}

type Answer = Result<Response<Body>, Infallible>;

async fn answer(
    State(shared): State<Arc<Mutex<Shared>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let request = Request::read(&uri, &headers, &body);
    let (knobs, outcome) = shared.lock().unwrap().admit(&request);
    tokio::time::sleep(knobs.latency).await;
    if outcome == Outcome::Failed(Behaviour::Hang) {
        std::future::pending::<()>().await;
    }
    Ok(shared.lock().unwrap().reply(&request, &knobs, outcome))
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Ecr => "ecr",
            Self::EcrPublic => "ecr-public",
            Self::Sts => "sts",
        }
    }
}

impl Request {
    fn read(uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let parameters;
        let (service, operation) = if let Some(target) = text("x-amz-target") {
            parameters = BTreeMap::new();
            match target.split_once('.') {
                Some((ecr::PUBLIC_TARGET, operation)) => (Service::EcrPublic, operation),
                Some((ecr::PRIVATE_TARGET, operation)) => (Service::Ecr, operation),
                _ => (Service::Ecr, ""),
            }
        } else {
            parameters = sts::form(body);
            let action = parameters.get("Action").map_or("", String::as_str);
            (Service::Sts, action)
        };
        let registry = serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|body| Some(body["registryIds"][0].as_str()?.to_owned()));
        Self {
            service,
            operation: operation.to_owned(),
            registry,
            signature: Signature::of(headers),
            session_token: text("x-amz-security-token").is_some(),
            host: text(header::HOST.as_str()).unwrap_or_default().to_owned(),
            path: uri.path().to_owned(),
            parameters,
        }
    }

    fn is_known(&self) -> bool {
        self.path == "/"
            && match self.service {
                Service::Ecr | Service::EcrPublic => self.operation == ecr::OPERATION,
                Service::Sts => sts::OPERATIONS.contains(&self.operation.as_str()),
            }
    }

    /// A web identity token stands in for a signature.
    fn needs_signature(&self) -> bool {
        self.operation != sts::WITH_WEB_IDENTITY
    }

    fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
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
        let access_key = scope.next()?.to_owned();
        let _date = scope.next()?;
        Some(Self {
            access_key,
            region: scope.next()?.to_owned(),
            service: scope.next()?.to_owned(),
        })
    }
}

impl Shared {
    /// Decides what comes of a call, and notes it: also of one that is never answered.
    fn admit(&mut self, request: &Request) -> (Knobs, Outcome) {
        let signature = request.signature.clone().unwrap_or_default();
        let knobs = match request.service {
            Service::Ecr => self.ecr.knobs(&signature.region),
            Service::EcrPublic => &self.ecr.public,
            Service::Sts => self.sts.knobs(request.parameter("RoleArn")),
        }
        .clone();
        let principal = self.iam.principal(&signature.access_key);
        let outcome = if !request.is_known() {
            Outcome::UnknownOperation
        } else if request.needs_signature() && !self.iam.authenticates(request, &signature) {
            Outcome::Unauthenticated
        } else if request.needs_signature() && self.iam.is_over(&signature.access_key) {
            Outcome::Failed(Behaviour::ExpiredToken)
        } else if let Some(behaviour) = knobs.misbehave() {
            Outcome::Failed(behaviour)
        } else if request.service == Service::Sts
            && let Some(code) = self.sts.rejects(request, &principal)
        {
            Outcome::Rejected(code)
        } else {
            Outcome::Answered
        };
        self.calls.push(Call {
            service: request.service.name(),
            operation: request.operation.clone(),
            host: request.host.clone(),
            path: request.path.clone(),
            region: signature.region,
            signed_service: signature.service,
            access_key: signature.access_key,
            principal,
            session_token: request.session_token,
            parameters: request.parameters.clone(),
            at: SystemTime::now(),
            outcome,
        });
        (knobs, outcome)
    }

    fn reply(&mut self, request: &Request, knobs: &Knobs, outcome: Outcome) -> Response<Body> {
        match request.service {
            Service::Ecr | Service::EcrPublic => {
                let signature = request.signature.clone().unwrap_or_default();
                let principal = self.iam.principal(&signature.access_key);
                self.ecr.reply(request, &principal, knobs, outcome)
            }
            Service::Sts => sts::reply(&mut self.iam, request, knobs, outcome),
        }
    }
}
