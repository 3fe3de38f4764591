//! A registry that has an image in every repository, for those who have a token of the fake AWS
//! that wasn't revoked. A token is longer than what an htpasswd file of bcrypt can tell apart, so
//! no registry of a package would do.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::json;

use crate::support::own_runtime::OwnRuntime;
use crate::support::registry::{
    blob, denied, digest, found, password, refusal, serve, unauthorized,
};
use crate::support::{Authority, FakeAws};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The repository that needs no token.
pub(crate) const OPEN: &str = "sandbox";

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    room: Arc<Room>,
    _runtime: OwnRuntime,
}

struct Room {
    aws: Arc<FakeAws>,
    layer: Vec<u8>,
    state: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    revoked: BTreeSet<String>,
    /// Repositories with a policy, and the principals that it lets in.
    policies: BTreeMap<String, String>,
    asked: Vec<Asked>,
}

/// Somebody asked for a manifest.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) repository: String,
    pub(crate) password: Option<String>,
    pub(crate) given: bool,
}

impl Registry {
    /// Starts a registry whose images run the program of pause.c.
    pub(crate) fn start(authority: &Authority, aws: Arc<FakeAws>, folder: &Path) -> Self {
        let room = Arc::new(Room {
            aws,
            layer: layer(folder),
            state: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&room));
        let (address, runtime) = serve(authority, "127.0.0.1", router);
        Self {
            address,
            room,
            _runtime: runtime,
        }
    }

    /// From now on no password that AWS has issued so far is good.
    pub(crate) fn revoke(&self) {
        self.revoke_these(self.room.aws.passwords());
    }

    /// From now on none of these is good.
    pub(crate) fn revoke_these(&self, passwords: impl IntoIterator<Item = String>) {
        self.room.state.lock().unwrap().revoked.extend(passwords);
    }

    /// From now on this repository opens to this principal alone.
    pub(crate) fn only_for(&self, repository: &str, principal: &str) {
        let policies = &mut self.room.state.lock().unwrap().policies;
        policies.insert(repository.to_owned(), principal.to_owned());
    }

    /// Returns all who asked for this repository's manifest, in order.
    pub(crate) fn asked(&self, repository: &str) -> Vec<Asked> {
        let mut asked = self.room.state.lock().unwrap().asked.clone();
        asked.retain(|asked| asked.repository == repository);
        asked
    }

    /// Returns the principals of AWS whose tokens opened this repository.
    pub(crate) fn principals(&self, repository: &str) -> BTreeSet<String> {
        let given = self
            .asked(repository)
            .into_iter()
            .filter(|asked| asked.given);
        let passwords = given.filter_map(|asked| asked.password);
        let principals = passwords.filter_map(|password| self.room.aws.principal_of(&password));
        principals.collect()
    }
}

/// Returns an archive with the program in it.
fn layer(folder: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubelet/pause.c");
    let run = |command: &mut Command| {
        let output = command.current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    run(Command::new(compiler)
        .args(["-static", "-o", "pause"])
        .arg(source));
    run(Command::new("tar").args(["--create", "--file=layer.tar", "pause"]));
    fs::read(folder.join("layer.tar")).unwrap()
}

impl Room {
    /// Images differ by the names of their repositories.
    fn config(&self, repository: &str) -> Vec<u8> {
        let architecture = match env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Entrypoint": ["/pause"], "Labels": {"repository": repository}},
            "rootfs": {"type": "layers", "diff_ids": [digest(&self.layer)]},
        });
        config.to_string().into_bytes()
    }

    fn manifest(&self, repository: &str) -> Vec<u8> {
        let (config, layer) = (self.config(repository), &self.layer);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": LAYER, "size": layer.len(), "digest": digest(layer)}],
        });
        manifest.to_string().into_bytes()
    }

    /// Returns whether it is a password that was issued and not revoked.
    fn knows(&self, repository: &str, password: Option<&str>) -> bool {
        let revoked = &self.state.lock().unwrap().revoked;
        repository == OPEN
            || password.is_some_and(|password| {
                self.aws.principal_of(password).is_some() && !revoked.contains(password)
            })
    }

    /// Returns whether the repository's policy, if it has one, lets the password's principal in.
    fn allows(&self, repository: &str, password: Option<&str>) -> bool {
        let policies = &self.state.lock().unwrap().policies;
        policies.get(repository).is_none_or(|principal| {
            password
                .and_then(|password| self.aws.principal_of(password))
                .as_ref()
                == Some(principal)
        })
    }
}

async fn answer(
    State(room): State<Arc<Room>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let password = password(&headers);
    let path = uri.path().strip_prefix("/v2/").unwrap_or_default();
    let parts = ["/manifests/", "/blobs/"].map(|kind| Some((kind, path.split_once(kind)?)));
    let Some((kind, (repository, wanted))) = parts.into_iter().flatten().next() else {
        return found(&method, "application/json", b"{}".to_vec());
    };
    let known = room.knows(repository, password.as_deref());
    let given = known && room.allows(repository, password.as_deref());
    if kind == "/manifests/" {
        let mut state = room.state.lock().unwrap();
        state.asked.push(Asked {
            repository: repository.to_owned(),
            password,
            given,
        });
    }
    if !known {
        return unauthorized();
    }
    if !given {
        return denied(&method, repository);
    }
    if let Some(refusal) = refusal(&method, uri.path()) {
        return refusal;
    }
    if kind == "/manifests/" {
        return found(&method, MANIFEST, room.manifest(repository));
    }
    let blobs = [room.config(repository), room.layer.clone()];
    blob(
        &method,
        blobs.into_iter().find(|blob| digest(blob) == wanted),
    )
}
