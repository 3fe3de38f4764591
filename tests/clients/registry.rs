//! A registry with one image, which answers only those who have a token of the fake AWS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::json;

use crate::support::own_runtime::OwnRuntime;
use crate::support::registry::{blob, digest, found, password, refusal, serve, unauthorized};
use crate::support::{Authority, FakeAws};

/// docker's own types: its client of Debian knows no others.
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    room: Arc<Room>,
    _runtime: OwnRuntime,
}

struct Room {
    aws: Arc<FakeAws>,
    manifest: String,
    blobs: BTreeMap<String, Vec<u8>>,
    pulls: Mutex<usize>,
}

impl Registry {
    pub(crate) fn start(authority: &Authority, host: &str, aws: Arc<FakeAws>) -> Self {
        // The end of an archive, and nothing in it.
        let layer = vec![0; 1024];
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": LAYER, "size": layer.len(), "digest": digest(&layer)}],
        });
        let room = Arc::new(Room {
            aws,
            manifest: manifest.to_string(),
            blobs: [config, layer].map(|blob| (digest(&blob), blob)).into(),
            pulls: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&room));
        let (address, runtime) = serve(authority, host, router);
        Self {
            address,
            room,
            _runtime: runtime,
        }
    }

    /// How often the manifest was given to somebody with a token.
    pub(crate) fn pulls(&self) -> usize {
        *self.room.pulls.lock().unwrap()
    }
}

async fn answer(
    State(room): State<Arc<Room>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let is_known =
        password(&headers).is_some_and(|password| room.aws.principal_of(&password).is_some());
    if !is_known {
        return unauthorized();
    }
    let path = uri.path();
    if let Some(refusal) = refusal(&method, path) {
        return refusal;
    }
    if path.contains("/manifests/") {
        *room.pulls.lock().unwrap() += 1;
        return found(&method, MANIFEST, room.manifest.clone().into_bytes());
    }
    if path.ends_with("/tags/list") {
        let tags = json!({"name": "shop/web", "tags": ["v1"]});
        return found(&method, "application/json", tags.to_string().into_bytes());
    }
    if path == "/v2/" {
        return found(&method, "application/json", b"{}".to_vec());
    }
    let name = path.rsplit('/').next();
    blob(&method, name.and_then(|name| room.blobs.get(name)).cloned())
}
