//! Another mutating webhook, as clusters have them: it moves images from one registry to another, or has its own idea of
//! `imagePullSecrets`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::certificates::Authority;
use super::control_plane::ControlPlane;
use super::own_runtime::OwnRuntime;

/// Serves until it is dropped.
pub struct Rewriter {
    _runtime: OwnRuntime,
}

/// A change of the names in `imagePullSecrets`.
pub type Change = fn(Vec<String>) -> Vec<String>;

#[derive(Clone)]
enum Rule {
    /// Images of one host get another.
    Move { from: String, to: String },
    /// The names of `imagePullSecrets` become others.
    PullSecrets(Change),
}

impl Rewriter {
    /// Registers under `name` for the Pods of all namespaces with the label `rewrite: NAME`: images whose host is `from` get
    /// the host `to`.
    pub async fn register(plane: &ControlPlane, name: &str, from: &str, to: &str) -> Self {
        let rule = Rule::Move {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        Self::register_rule(plane, name, rule).await
    }

    /// Registers under `name` for the Pods of all namespaces with the label `rewrite: NAME`: the names of
    /// `imagePullSecrets` become what `change` makes of them.
    pub async fn register_for_pull_secrets(
        plane: &ControlPlane,
        name: &str,
        change: Change,
    ) -> Self {
        Self::register_rule(plane, name, Rule::PullSecrets(change)).await
    }

    async fn register_rule(plane: &ControlPlane, name: &str, rule: Rule) -> Self {
        super::crypto();
        let authority = Authority::new(name);
        let certificate = authority.serving(&["127.0.0.1"], plane.folder(), name);
        let chain = CertificateDer::pem_file_iter(&certificate.certificate)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let router = Router::new().route("/", post(rewrite)).with_state(rule);
        let runtime = OwnRuntime::start(name);
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let service = TowerToHyperService::new(router);
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        plane
            .apply(&registration(name, address, &authority).to_string())
            .await;
        Self { _runtime: runtime }
    }
}

fn registration(name: &str, address: SocketAddr, authority: &Authority) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": format!("{name}.example.com"),
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"rewrite": name}},
            "clientConfig": {"url": format!("https://{address}/"), "caBundle": BASE64_STANDARD.encode(authority.pem())},
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "admissionReviewVersions": ["v1"],
        }],
    })
}

async fn rewrite(State(rule): State<Rule>, body: Bytes) -> Body {
    let review: Value = serde_json::from_slice(&body).unwrap();
    let spec = &review["request"]["object"]["spec"];
    let patch = match rule {
        Rule::Move { from, to } => move_images(spec, &from, &to),
        Rule::PullSecrets(change) => change_pull_secrets(spec, change),
    };
    let patch = BASE64_STANDARD.encode(Value::from(patch).to_string());
    let answer = json!({
        "apiVersion": review["apiVersion"],
        "kind": review["kind"],
        "response": {"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch},
    });
    Body::from(answer.to_string())
}

fn move_images(spec: &Value, from: &str, to: &str) -> Vec<Value> {
    let containers = spec["containers"].as_array().unwrap();
    containers
        .iter()
        .enumerate()
        .filter_map(|(at, container)| {
            let path = container["image"].as_str()?.strip_prefix(&format!("{from}/"))?;
            let image = format!("{to}/{path}");
            Some(json!({"op": "replace", "path": format!("/spec/containers/{at}/image"), "value": image}))
        })
        .collect()
}

fn change_pull_secrets(spec: &Value, change: Change) -> Vec<Value> {
    let list = spec["imagePullSecrets"].as_array();
    let names = list
        .into_iter()
        .flatten()
        .map(|entry| entry["name"].as_str().unwrap().to_owned());
    let list: Vec<Value> = change(names.collect())
        .into_iter()
        .map(|name| json!({"name": name}))
        .collect();
    vec![json!({"op": "add", "path": "/spec/imagePullSecrets", "value": list})]
}
