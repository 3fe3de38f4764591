//! The texts of docs/how-to/troubleshooting.md that the API server, kubectl and Helm write: each is produced here, by the
//! mistake that the page names as its cause.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::Output;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::support::control_plane::Options;
use crate::support::helm;
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, REGISTRATION};
use crate::support::own_runtime::OwnRuntime;
use crate::support::troubleshooting::is_of;
use crate::support::{Authority, Bed, ControlPlane, eventually, shows};

const SOON: Duration = Duration::from_secs(30);
const CALLING: &str = "`failed calling webhook \"create.ecr-injector.dev\"`";

/// Returns the text that a person sees of a command that failed.
#[track_caller]
fn error_of(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A Pod with an image of ECR.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/web:v1"}]},
    })
}

/// Returns the registration of `deploy/`.
fn registration() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/registration.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A cluster in which the API server has to call a webhook, and can't.
struct Broken {
    plane: ControlPlane,
    namespace: String,
    authority: Authority,
    service: SocketAddr,
}

impl Broken {
    async fn start(options: Options) -> Self {
        crate::support::crypto();
        let plane = ControlPlane::start_with(options).await;
        plane
            .apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}})
                    .to_string(),
            )
            .await;
        let namespace = plane.namespace("team", &[OPT_IN]).await;
        let service = SocketAddr::new(plane.service_ip(9), 8443);
        let broken = Self {
            plane,
            namespace,
            authority: Authority::new("the webhook's"),
            service,
        };
        broken.register().await;
        broken
    }

    /// Registers the webhook as deploy/ does, with `failurePolicy: Fail` and a timeout of a second.
    async fn register(&self) {
        self.register_with(&self.authority.pem()).await;
    }

    /// Registers it with this text as its `caBundle`.
    async fn register_with(&self, ca_bundle: &str) {
        let mut registration = registration();
        for webhook in registration["webhooks"].as_array_mut().unwrap() {
            webhook["failurePolicy"] = json!("Fail");
            webhook["timeoutSeconds"] = json!(1);
            webhook["clientConfig"]["service"]["port"] = json!(self.service.port());
            webhook["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode(ca_bundle));
        }
        self.plane.apply(&registration.to_string()).await;
    }

    async fn create_service(&self) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAME},
            "spec": {
                "clusterIP": self.service.ip(), "selector": {"app.kubernetes.io/name": NAME},
                "ports": [{"port": self.service.port(), "targetPort": 8443}],
            },
        });
        self.plane.apply(&service.to_string()).await;
    }

    /// Creates a Pod until the API server fails as this entry says, and returns what kubectl prints.
    async fn fails(&self, heading: &str) -> String {
        let pod = pod("web").to_string();
        let create = [
            "-n",
            &self.namespace,
            "create",
            "--dry-run=server",
            "-f",
            "-",
        ];
        let what = format!("the API server says {heading}");
        let error = eventually(&what, SOON, async || {
            let output = self.plane.kubectl_with_input(&create, &pod).await;
            let error = String::from_utf8(output.stderr).unwrap();
            is_of(heading, &error).then_some(error)
        })
        .await;
        shows(heading, &error);
        shows(CALLING, &error);
        error
    }
}

/// A server at the Service's address with this certificate, which answers nothing of use.
async fn serve(address: SocketAddr, authority: &Authority, name: &str) -> OwnRuntime {
    // The server before it may not have ended yet.
    eventually("the address is free", SOON, async || {
        TcpListener::bind(address).ok()
    })
    .await;
    let runtime = OwnRuntime::start("webhook");
    let (listener, _) = runtime.listen(address);
    let acceptor = TlsAcceptor::from(authority.server_config(&[name]));
    runtime.spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let _ = acceptor.accept(connection).await;
            });
        }
    });
    runtime
}

#[tokio::test]
async fn calls_of_the_webhook_fail_as_the_page_says() {
    let broken = Broken::start(Options::default()).await;
    broken.fails("`service \"ecr-injector\" not found`").await;
    broken.create_service().await;
    broken.fails("`connect: connection refused`").await;

    let listener = TcpListener::bind(broken.service).unwrap();
    broken.fails("`context deadline exceeded`").await;
    drop(listener);

    let server = serve(
        broken.service,
        &Authority::new("another"),
        "ecr-injector.ecr-injector.svc",
    )
    .await;
    broken
        .fails("`x509: certificate signed by unknown authority`")
        .await;
    drop(server);

    let server = serve(broken.service, &broken.authority, "puller.ecr-injector.svc").await;
    broken
        .fails("`x509: certificate is valid for NAME.NAMESPACE.svc, not NAME.NAMESPACE.svc`")
        .await;
    drop(server);

    // The name of a file in place of its content.
    broken.register_with("ca.crt").await;
    let server = serve(
        broken.service,
        &broken.authority,
        "ecr-injector.ecr-injector.svc",
    )
    .await;
    broken
        .fails("`unable to load root certificates: unable to parse bytes as PEM block`")
        .await;
    drop(server);

    // The fix of them all that takes a moment: without the registration Pods are created.
    let delete = ["delete", "mutatingwebhookconfiguration", REGISTRATION];
    assert!(broken.plane.kubectl(&delete).await.status.success());
    let create = ["-n", &broken.namespace, "create", "-f", "-"];
    eventually("Pods are created again", SOON, async || {
        let output = broken
            .plane
            .kubectl_with_input(&create, &pod("again").to_string())
            .await;
        output.status.success().then_some(())
    })
    .await;
}

#[tokio::test]
async fn service_without_a_ready_replica_has_no_endpoints() {
    let options = Options {
        endpoints: true,
        ..Options::default()
    };
    let broken = Broken::start(options).await;
    broken.create_service().await;
    broken
        .fails("`no endpoints available for service \"ecr-injector\"`")
        .await;
}

#[tokio::test]
async fn full_quota_is_named_in_the_event() {
    let bed = Bed::start("", "info").await;
    let namespace = bed.opted_in("quota").await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": namespace},
        "spec": {"hard": {"count/secrets": "0"}},
    });
    bed.plane.apply(&quota.to_string()).await;
    // In the place of the quota controller, which this control plane doesn't have.
    let status =
        json!({"status": {"hard": {"count/secrets": "0"}, "used": {"count/secrets": "0"}}});
    let status = status.to_string();
    let patch = [
        "-n",
        &namespace,
        "patch",
        "resourcequota",
        "few",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    assert!(bed.plane.kubectl(&patch).await.status.success());
    let secret = [
        "-n",
        &namespace,
        "create",
        "secret",
        "generic",
        "mine",
        "--dry-run=server",
    ];
    let refused = eventually("the quota holds", SOON, async || {
        let output = bed.plane.kubectl(&secret).await;
        (!output.status.success()).then_some(output)
    })
    .await;
    shows("`exceeded quota`", &error_of(&refused));

    let create = ["-n", &namespace, "create", "-f", "-"];
    let output = bed
        .plane
        .kubectl_with_input(&create, &pod("web").to_string())
        .await;
    assert!(output.status.success(), "{output:?}");
    let warnings = String::from_utf8(output.stderr).unwrap();
    shows(
        "`the API server rejected Secret ecr-pull-secret`",
        &warnings,
    );
    let note = bed.note(&namespace, &["QuotaExceeded"], SOON).await;
    shows("`exceeded quota`", &note);
}

#[tokio::test]
async fn pods_of_others_are_not_changed_in_place() {
    let plane = ControlPlane::start().await;
    let namespace = plane.namespace("team", &[]).await;
    let mut stored = pod("web");
    stored["spec"]["imagePullSecrets"] = json!([{"name": PULL_SECRET}]);
    let create = ["-n", &namespace, "create", "-f", "-"];
    let output = plane.kubectl_with_input(&create, &stored.to_string()).await;
    assert!(output.status.success(), "{output:?}");
    let replace = ["-n", &namespace, "replace", "-f", "-"];
    let output = plane
        .kubectl_with_input(&replace, &pod("web").to_string())
        .await;
    shows(
        "`pod updates may not change fields other than`",
        &error_of(&output),
    );
}

#[tokio::test]
async fn ca_bundle_that_is_not_in_base64_is_refused() {
    let plane = ControlPlane::start().await;
    let mut registration = registration();
    registration["webhooks"][0]["clientConfig"]["caBundle"] =
        json!(Authority::new("the webhook's").pem());
    for apply in [
        &["apply", "--server-side", "-f", "-"][..],
        &["create", "-f", "-"],
    ] {
        let output = plane
            .kubectl_with_input(apply, &registration.to_string())
            .await;
        shows("`illegal base64 data at input byte`", &error_of(&output));
    }
}

#[tokio::test]
async fn what_a_cluster_does_not_serve_is_not_found() {
    let plane = ControlPlane::start().await;
    let output = plane
        .kubectl(&[
            "get",
            "--raw",
            "/apis/admissionregistration.k8s.io/v1/nothing",
        ])
        .await;
    shows(
        "`the server could not find the requested resource`",
        &error_of(&output),
    );

    // As the chart renders it for a cluster without Prometheus' operator.
    let values = "metrics: {serviceMonitor: {enabled: true}}";
    let monitor = helm::objects(helm::RELEASE, helm::RELEASE, values)
        .into_iter()
        .find(|object| object["kind"] == "ServiceMonitor")
        .expect("a ServiceMonitor");
    let apply = ["apply", "--server-side", "-f", "-"];
    let output = plane.kubectl_with_input(&apply, &monitor.to_string()).await;
    shows(
        "`no matches for kind \"ServiceMonitor\" in version \"monitoring.coreos.com/v1\"`",
        &error_of(&output),
    );
}

#[tokio::test]
async fn fields_of_other_managers_conflict() {
    let plane = ControlPlane::start().await;
    let registration = registration();
    plane.apply(&registration.to_string()).await;
    let mut other = registration.clone();
    other["webhooks"][0]["timeoutSeconds"] = json!(29);
    let apply = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let output = plane.kubectl_with_input(&apply, &other.to_string()).await;
    shows(
        "`Apply failed with 1 conflict: conflict with \"NAME\"`",
        &error_of(&output),
    );
}

#[tokio::test]
async fn helm_says_that_an_upgrade_failed() {
    let plane = ControlPlane::start().await;
    let kubeconfig = plane.kubeconfig_for_admin();
    let chart = helm::chart();
    let run = |verb: &str, values: &str| {
        let arguments = [
            verb,
            helm::RELEASE,
            chart.to_str().unwrap(),
            "--namespace",
            helm::RELEASE,
            "--create-namespace",
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ];
        helm::helm(&arguments, values)
    };
    let installed = run("install", "");
    assert!(installed.status.success(), "{installed:?}");
    // The Deployment keeps its name and gets another selector.
    let failed = run("upgrade", "nameOverride: injector");
    let error = error_of(&failed);
    shows("`UPGRADE FAILED`", &error);
    shows("`field is immutable`", &error);
}

#[tokio::test]
async fn accounts_without_rights_are_forbidden() {
    let plane = ControlPlane::start().await;
    let namespace = plane.namespace("team", &[]).await;
    let user = format!("system:serviceaccount:{NAME}:{NAME}");
    let get = [
        "-n",
        &namespace,
        "get",
        "secret",
        PULL_SECRET,
        "--as",
        &user,
    ];
    let output = plane.kubectl(&get).await;
    shows(
        "`is forbidden: User \"system:serviceaccount:ecr-injector:ecr-injector\" cannot`",
        &error_of(&output),
    );
}

/// A text that no entry has is not found in one.
#[test]
fn texts_of_other_causes_are_not_those_of_an_entry() {
    let texts = BTreeMap::from([
        (
            "`exceeded quota`",
            "secrets is forbidden: User \"x\" cannot create",
        ),
        (
            "`x509: certificate is valid for NAME.NAMESPACE.svc, not NAME.NAMESPACE.svc`",
            "x509: certificate signed by x",
        ),
        (
            "`Apply failed with 1 conflict: conflict with \"NAME\"`",
            "Apply failed: the object was modified",
        ),
    ]);
    for (heading, text) in texts {
        assert!(!is_of(heading, text), "{heading}: {text}");
    }
    assert!(is_of(
        "`got 1 of 20 … by HOST`",
        "x got 3 of 4 things by example.com"
    ));
}
