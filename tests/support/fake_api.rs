//! An API server in memory, behind a `kube::Client` that needs no socket: namespaces, and Secrets with the preconditions of
//! server-side apply. For tests that are about what calls it; how the real one behaves is [`super::control_plane`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// The creation time of every Secret: the time of [`super::in_process::FixedClock`].
const CREATED_AT: &str = "2027-01-15T08:00:00Z";

/// Clones share what is stored.
#[derive(Clone)]
pub struct FakeApi(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    opted_in: BTreeSet<String>,
    secrets: BTreeMap<String, Value>,
    version: u64,
    calls: Vec<String>,
    hangs: bool,
}

impl FakeApi {
    /// A cluster in which every namespace exists and these have the opt-in label.
    pub fn opted_in(namespaces: &[&str]) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            opted_in: namespaces.iter().map(ToString::to_string).collect(),
            version: 100,
            ..Shared::default()
        })))
    }

    pub fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// From now on calls are taken and never answered.
    pub fn hang(&self) {
        self.shared().hangs = true;
    }

    /// The one Secret of a namespace.
    pub fn secret(&self, namespace: &str) -> Option<Value> {
        self.shared().secrets.get(namespace).cloned()
    }

    /// Somebody changes the one Secret of a namespace.
    pub fn change(&self, namespace: &str, change: impl FnOnce(&mut Value)) {
        let mut shared = self.shared();
        shared.version += 1;
        let version = json!(shared.version.to_string());
        let secret = shared.secrets.get_mut(namespace).unwrap();
        secret["metadata"]["resourceVersion"] = version;
        change(secret);
    }

    /// Method and path of every call so far.
    pub fn calls(&self) -> Vec<String> {
        self.shared().calls.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let hangs = {
            let mut shared = self.shared();
            shared
                .calls
                .push(format!("{} {}", head.method, head.uri.path()));
            shared.hangs
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let body = body.collect().await.unwrap().to_bytes();
        let path: Vec<&str> = head.uri.path().trim_start_matches('/').split('/').collect();
        let (status, object) = match (&head.method, &path[..]) {
            (&Method::GET, ["api", "v1", "namespaces", name]) => self.namespace(name),
            (&Method::GET, ["api", "v1", "namespaces", namespace, "secrets", _]) => {
                match self.secret(namespace) {
                    Some(secret) => (StatusCode::OK, secret),
                    None => status(StatusCode::NOT_FOUND, "NotFound"),
                }
            }
            (&Method::PATCH, ["api", "v1", "namespaces", namespace, "secrets", _]) => {
                self.apply(namespace, serde_json::from_slice(&body).unwrap())
            }
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        };
        let body = Full::from(object.to_string());
        Response::builder().status(status).body(body).unwrap()
    }

    fn namespace(&self, name: &str) -> (StatusCode, Value) {
        let labels = if self.shared().opted_in.contains(name) {
            json!({"ecr-injector.dev/inject": "enabled"})
        } else {
            json!({})
        };
        let metadata = json!({"name": name, "uid": format!("uid-of-{name}"), "labels": labels});
        let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        (StatusCode::OK, object)
    }

    fn apply(&self, namespace: &str, mut object: Value) -> (StatusCode, Value) {
        let mut shared = self.shared();
        let wanted = object["metadata"]["resourceVersion"].clone();
        let holds = match shared.secrets.get(namespace) {
            None => wanted == "1",
            Some(stored) => {
                wanted == stored["metadata"]["resourceVersion"]
                    && object["metadata"]["uid"] == stored["metadata"]["uid"]
            }
        };
        if !holds {
            return status(StatusCode::CONFLICT, "Conflict");
        }
        shared.version += 1;
        object["metadata"]["resourceVersion"] = json!(shared.version.to_string());
        object["metadata"]["uid"] = json!(format!("uid-of-{namespace}"));
        object["metadata"]["creationTimestamp"] = json!(CREATED_AT);
        shared.secrets.insert(namespace.to_owned(), object.clone());
        (StatusCode::OK, object)
    }
}

fn status(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let object = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": reason,
        "reason": reason, "code": code.as_u16()});
    (code, object)
}
