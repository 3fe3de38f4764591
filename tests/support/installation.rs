//! `deploy/` in a control plane, as a cluster admin installs it, but for the Deployment: there are no nodes, so processes of
//! this machine listen on the Service's cluster IP instead of Pods.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::certificates::{Authority, ServingCertificate};
use super::control_plane::ControlPlane;
use super::fake_aws::{ACCOUNT, FakeAws};
use super::{eventually, pods, webhook};

/// The namespace, the `ServiceAccount` and the Service have this name.
pub const NAME: &str = "ecr-injector";
/// Opts a namespace in.
pub const OPT_IN: (&str, &str) = ("ecr-injector.dev/inject", "enabled");
/// The name of the registration.
pub const REGISTRATION: &str = "zz-ecr-injector";
pub const PULL_SECRET: &str = "ecr-pull-secret";
/// The user name of the webhook in the API server and in the audit log.
pub const USER: &str = "system:serviceaccount:ecr-injector:ecr-injector";

const CLUSTER_IP: u8 = 9;
const LIMIT: Duration = Duration::from_secs(30);
/// In this order: the others live in the namespace.
const MANIFESTS: &[&str] = &[
    "namespace.yaml",
    "rbac.yaml",
    "guard.yaml",
    "flowschema.yaml",
    "configmap.yaml",
    "poddisruptionbudget.yaml",
];

/// The address and the certificates that a webhook process needs to serve as the installed Service.
pub struct Installation {
    service: SocketAddr,
    authority: Authority,
    certificate: ServingCertificate,
}

impl Installation {
    /// Installs all but the Deployment and the registration, and waits until the guard guards.
    pub async fn apply(plane: &ControlPlane) -> Self {
        let service = usable_address(plane);
        let mut manifests: Vec<_> = MANIFESTS.iter().map(|name| manifest(name)).collect();
        manifests.push(service_manifest(service).to_string());
        plane.apply(&manifests.join("\n---\n")).await;
        let authority = Authority::new("test-webhook");
        let certificate = authority.serving(
            &[&format!("{NAME}.{NAME}.svc")],
            plane.folder(),
            "webhook-serving",
        );
        wait_until_guarded(plane).await;
        Self {
            service,
            authority,
            certificate,
        }
    }

    /// Where the API server calls the webhook: one process listens here, or a balancer in front of several.
    pub fn service_address(&self) -> SocketAddr {
        self.service
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn certificate(&self) -> &ServingCertificate {
        &self.certificate
    }

    /// A kubeconfig with exactly the rights that `deploy/` gives.
    pub async fn kubeconfig(&self, plane: &ControlPlane) -> PathBuf {
        plane.kubeconfig_for_service_account(NAME, NAME).await
    }

    /// A process that is the Service by itself, with the defaults for its configuration.
    pub async fn webhook(&self, plane: &ControlPlane, aws: &FakeAws) -> webhook::Options {
        webhook::Options {
            binary: None,
            config: String::new(),
            listen: self.service,
            admin_listen: (plane.private_address(), 9443).into(),
            certificate: Some(self.certificate.clone()),
            kubeconfig: self.kubeconfig(plane).await,
            arguments: Vec::new(),
            environment: aws.environment(),
        }
    }

    /// A process that a [`super::Balancer`] at the service's address hands connections to.
    pub async fn replica(&self, plane: &ControlPlane, aws: &FakeAws) -> webhook::Options {
        webhook::Options {
            listen: (plane.private_address(), 8443).into(),
            ..self.webhook(plane, aws).await
        }
    }

    /// Registers the webhook with our CA, and waits until a Pod comes out patched: it has to run by then.
    pub async fn register(&self, plane: &ControlPlane) {
        let count = self.apply_registration(plane).await;
        let ca_bundle = BASE64_STANDARD.encode(self.authority.pem());
        let patch: Vec<Value> = (0..count)
            .map(|index| {
                let path = format!("/webhooks/{index}/clientConfig/caBundle");
                json!({"op": "add", "path": path, "value": ca_bundle})
            })
            .collect();
        let patch = serde_json::from_value(Value::Array(patch)).unwrap();
        let registrations: Api<MutatingWebhookConfiguration> = Api::all(plane.admin().await);
        registrations
            .patch(
                REGISTRATION,
                &PatchParams::default(),
                &Patch::<()>::Json(patch),
            )
            .await
            .unwrap();
        wait_until_patched(plane).await;
    }

    /// Registers the webhook and leaves it to the webhook to make the API server trust it, and waits until it does.
    pub async fn register_self_managed(&self, plane: &ControlPlane) {
        self.apply_registration(plane).await;
        wait_until_patched(plane).await;
    }

    /// Applies the registration, which has no caBundle, and returns the number of its entries.
    pub async fn apply_registration(&self, plane: &ControlPlane) -> usize {
        let registration = self.registration();
        plane.apply(&registration.to_string()).await;
        registration["webhooks"].as_array().unwrap().len()
    }

    /// Returns the registration of `deploy/`.
    pub fn registration(&self) -> Value {
        let mut registration = documents("registration.yaml").remove(0);
        for webhook in registration["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"]["service"]["port"] = json!(self.service.port());
        }
        registration
    }
}

/// The Service's address, on the port that `deploy/` says if this user may listen there, else on 8443.
fn usable_address(plane: &ControlPlane) -> SocketAddr {
    let ip = plane.service_ip(CLUSTER_IP);
    SocketAddr::new(ip, usable_port(plane))
}

/// The port of a Service that this user may listen on.
pub fn usable_port(plane: &ControlPlane) -> u16 {
    let ip = plane.service_ip(CLUSTER_IP);
    if TcpListener::bind((ip, 443)).is_ok() {
        443
    } else {
        8443
    }
}

fn service_manifest(address: SocketAddr) -> Value {
    let mut service = documents("service.yaml").remove(0);
    service["spec"]["clusterIP"] = json!(address.ip());
    service["spec"]["ports"][0]["port"] = json!(address.port());
    service
}

/// Asks, as the webhook's account and as a dry run, for what the guard must refuse.
async fn wait_until_guarded(plane: &ControlPlane) {
    let client = plane.as_service_account(NAME, NAME).await;
    let secrets: Api<Secret> = Api::namespaced(client, "default");
    let forbidden = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": PULL_SECRET},
        "type": "Opaque",
    });
    let params = PatchParams::apply("test").dry_run();
    let is_guarded = |code: Option<u16>| (code == Some(422)).then_some(());
    eventually("the guard refuses", LIMIT, async || {
        let answer = secrets
            .patch(PULL_SECRET, &params, &Patch::Apply(&forbidden))
            .await;
        is_guarded(refusal(answer))
    })
    .await;
    // The last policy of the file but one; the last is about what isn't there yet.
    let events: Api<Event> = Api::namespaced(secrets.into_client(), "default");
    let forged = json!({
        "metadata": {"generateName": "forged-"},
        "regarding": {"kind": "Secret", "namespace": "default", "name": PULL_SECRET},
        "type": "Normal",
        "reason": "X",
        "action": "X",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "kubelet",
        "reportingInstance": "x",
    });
    let forged: Event = serde_json::from_value(forged).unwrap();
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    eventually("the guard refuses Events of others", LIMIT, async || {
        is_guarded(refusal(events.create(&dry_run, &forged).await))
    })
    .await;
}

fn refusal<T>(answer: kube::Result<T>) -> Option<u16> {
    match answer {
        Err(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

async fn wait_until_patched(plane: &ControlPlane) {
    let namespace = plane.namespace("registration-probe", &[OPT_IN]).await;
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, &namespace);
    let image = format!("{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/probe:1");
    let probe = pods::pod("probe", &image);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    eventually("a Pod comes out patched", LIMIT, async || {
        let admitted = pods.create(&dry_run, &probe).await.unwrap();
        pods::pull_secrets(&admitted)
            .contains(&PULL_SECRET)
            .then_some(())
    })
    .await;
}

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&manifest(name)).unwrap()
}
