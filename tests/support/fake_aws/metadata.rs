//! Where a machine or a Pod finds its credentials on the network: the instance metadata service, and the container endpoint that
//! ECS and the EKS Pod Identity agent have in common. The keys that they give are good for the fake that they were started
//! for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::super::own_runtime::OwnRuntime;
use super::{ACCOUNT, Answer, FakeAws, Keys, SECRET_MARKER, Shared, reply, serve};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const TOKEN_PATH: &str = "/latest/api/token";
const ROLES_PATH: &str = "/latest/meta-data/iam/security-credentials/";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const CONTAINER_PATH: &str = "/v1/credentials";
const DEFAULT_LIFETIME: Duration = Duration::from_hours(6);

/// The behaviour of a credential endpoint to its callers. Changes count from the next request on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manners {
    #[default]
    Answer,
    /// Takes the connection and never answers, as IMDS does to a Pod when the hop limit is 1.
    Hang,
    /// This status, whatever is asked.
    Fail(u16),
    /// IMDS: the instance has no role (404 where roles are listed).
    NoRole,
    /// Gives a session that was over an hour ago.
    Expired,
}

/// A request as the endpoint saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    pub method: String,
    pub path: String,
    /// The `Authorization` header of a container endpoint's caller.
    pub authorization: Option<String>,
}

/// The instance metadata service; version 2 only.
pub struct InstanceMetadata(Endpoint);

/// The credential endpoint of ECS and of the EKS Pod Identity agent.
pub struct ContainerCredentials(Endpoint);

/// A port that refuses connections, and that nobody else gets meanwhile.
pub struct ClosedPort {
    address: SocketAddr,
    _socket: TcpSocket,
}

struct Endpoint {
    address: SocketAddr,
    room: Arc<Mutex<Room>>,
    _runtime: OwnRuntime,
}

struct Room {
    aws: Arc<Mutex<Shared>>,
    role: String,
    manners: Manners,
    lifetime: Duration,
    /// Container endpoint: the authorizations that it takes. Absent: any, or none.
    accepted: Option<BTreeSet<String>>,
    visits: Vec<Visit>,
}

impl InstanceMetadata {
    /// Gives sessions of the role of this name in the fake's own account.
    pub fn start(aws: &FakeAws, role: &str) -> Self {
        Self(Endpoint::start(aws, role, instance))
    }

    /// The variables that turn a process to it.
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(),
            format!("http://{}", self.0.address),
        )]
    }

    /// The ARN of its role.
    pub fn principal(&self) -> String {
        self.0.lock().principal()
    }

    pub fn behave(&self, manners: Manners) {
        self.0.lock().manners = manners;
    }

    /// How long its sessions last.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.0.lock().lifetime = lifetime;
    }

    pub fn visits(&self) -> Vec<Visit> {
        self.0.lock().visits.clone()
    }
}

impl ContainerCredentials {
    /// Gives sessions of the role of this name in the fake's own account.
    pub fn start(aws: &FakeAws, role: &str) -> Self {
        Self(Endpoint::start(aws, role, container))
    }

    /// Returns the value for `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub fn uri(&self) -> String {
        format!("http://{}{CONTAINER_PATH}", self.0.address)
    }

    /// The ARN of its role.
    pub fn principal(&self) -> String {
        self.0.lock().principal()
    }

    pub fn behave(&self, manners: Manners) {
        self.0.lock().manners = manners;
    }

    /// How long its sessions last.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.0.lock().lifetime = lifetime;
    }

    /// From now on it takes no authorization but these (401).
    pub fn accept(&self, authorizations: &[&str]) {
        let accepted = authorizations.iter().map(ToString::to_string).collect();
        self.0.lock().accepted = Some(accepted);
    }

    /// The authorizations that it saw, in order: a token file that was rotated shows.
    pub fn authorizations(&self) -> Vec<String> {
        let room = self.0.lock();
        let visits = room.visits.iter();
        visits.filter_map(|v| v.authorization.clone()).collect()
    }

    pub fn visits(&self) -> Vec<Visit> {
        self.0.lock().visits.clone()
    }
}

impl ClosedPort {
    pub fn reserve() -> Self {
        // Bound, but not listening.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            _socket: socket,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the value of `AWS_CONTAINER_CREDENTIALS_FULL_URI` while the agent is down.
    pub fn container_uri(&self) -> String {
        format!("http://{}{CONTAINER_PATH}", self.address)
    }
}

impl Endpoint {
    fn start(
        aws: &FakeAws,
        role: &str,
        answer: fn(&mut Room, &Method, &str, &HeaderMap) -> Response<Body>,
    ) -> Self {
        let room = Arc::new(Mutex::new(Room {
            aws: Arc::clone(&aws.shared),
            role: role.to_owned(),
            manners: Manners::default(),
            lifetime: DEFAULT_LIFETIME,
            accepted: None,
            visits: Vec::new(),
        }));
        let runtime = OwnRuntime::start("fake-credentials");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let handler = async move |State(room): State<Arc<Mutex<Room>>>,
                                  method: Method,
                                  uri: Uri,
                                  headers: HeaderMap|
                    -> Answer {
            let manners = room.lock().unwrap().note(&method, &uri, &headers);
            Ok(match manners {
                Manners::Hang => std::future::pending().await,
                Manners::Fail(status) => plain(status, "the fake says so"),
                Manners::Answer | Manners::NoRole | Manners::Expired => {
                    answer(&mut room.lock().unwrap(), &method, uri.path(), &headers)
                }
            })
        };
        let router = Router::new()
            .fallback(handler)
            .with_state(Arc::clone(&room));
        runtime.spawn(serve(listener, router, None));
        Self {
            address,
            room,
            _runtime: runtime,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap()
    }
}

impl Room {
    fn note(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Manners {
        self.visits.push(Visit {
            method: method.to_string(),
            path: uri.path().to_owned(),
            authorization: text(headers, header::AUTHORIZATION.as_str()).map(ToOwned::to_owned),
        });
        self.manners
    }

    fn principal(&self) -> String {
        format!("arn:aws:iam::{ACCOUNT}:role/{}", self.role)
    }

    fn session(&self) -> Keys {
        let until = match self.manners {
            Manners::Expired => Timestamp::now() - Duration::from_hours(1),
            _ => Timestamp::now() + self.lifetime,
        };
        let mut aws = self.aws.lock().unwrap();
        aws.iam.issue(&self.principal(), Some(until))
    }
}

fn instance(room: &mut Room, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
    if path == TOKEN_PATH {
        let Some(ttl) = text(headers, TTL_HEADER).filter(|_| method == Method::PUT) else {
            return plain(400, "a PUT with a time to live gets a token");
        };
        let mut response = plain(200, &metadata_token());
        let ttl = ttl.parse().unwrap();
        response.headers_mut().insert(TTL_HEADER, ttl);
        return response;
    }
    if text(headers, TOKEN_HEADER) != Some(&metadata_token()) {
        return plain(401, "version 1 is off");
    }
    match path.strip_prefix(ROLES_PATH) {
        Some(_) if room.manners == Manners::NoRole => plain(404, "no role"),
        Some("") => plain(200, &room.role),
        Some(role) if role == room.role => json_with(200, &credentials(&room.session())),
        _ => plain(404, "nothing here"),
    }
}

fn container(room: &mut Room, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
    let authorization = text(headers, header::AUTHORIZATION.as_str()).unwrap_or_default();
    let accepted = room.accepted.as_ref();
    if method != Method::GET || path != CONTAINER_PATH {
        plain(404, "nothing here")
    } else if accepted.is_some_and(|accepted| !accepted.contains(authorization)) {
        plain(401, "who is that?")
    } else {
        json_with(200, &credentials(&room.session()))
    }
}

fn metadata_token() -> String {
    format!("metadata-{SECRET_MARKER}")
}

fn credentials(keys: &Keys) -> Value {
    json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": keys.access_key,
        "SecretAccessKey": keys.secret_access_key,
        "Token": keys.session_token,
        "Expiration": keys.expires_at.map(|at| format!("{at:.0}")),
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn plain(status: u16, body: &str) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap();
    reply::with(status, TEXT, Body::from(body.to_owned()))
}

fn json_with(status: u16, body: &Value) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap();
    reply::with(status, JSON, Body::from(body.to_string()))
}
