//! The test bed itself, so that a test that fails says something about the webhook and not about what stands around it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams, PostParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support;
use crate::support::child::{GuardedChild, GuardedFolder};
use crate::support::{Balancer, ControlPlane, Shared, eventually, webhook};

mod aws;
/// The control plane that these tests share.
async fn plane() -> Arc<ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    PLANE.get_or_start(ControlPlane::start).await
}

#[tokio::test]
async fn account_without_rights_is_refused() {
    let plane = plane().await;
    let namespace = plane.namespace("rights", &[]).await;
    let nobody = plane.as_service_account(&namespace, "nobody").await;

    let answer = Api::<Secret>::namespaced(nobody, &namespace)
        .list(&ListParams::default())
        .await;

    assert!(matches!(answer, Err(kube::Error::Api(status)) if status.code == 403));
}

#[tokio::test]
async fn pod_creator_creates_pods_and_nothing_else() {
    let plane = plane().await;
    let namespace = plane.namespace("creator", &[("team", "blue")]).await;
    let creator = plane.pod_creator().await;
    let pods: Api<Pod> = Api::namespaced(creator.clone(), &namespace);

    let stored = pods
        .create(
            &PostParams::default(),
            &support::pods::pod("one", "example.com/app:1"),
        )
        .await
        .unwrap();

    assert_eq!(support::pods::pull_secrets(&stored), Vec::<&str>::new());
    let secrets = Api::<Secret>::namespaced(creator, &namespace);
    assert!(secrets.list(&ListParams::default()).await.is_err());
}

#[tokio::test]
async fn audit_log_shows_who_did_what() {
    let plane = plane().await;
    let namespace = plane.namespace("audit", &[]).await;
    let reader = plane.as_service_account(&namespace, "reader").await;
    let _refused = Api::<Secret>::namespaced(reader, &namespace)
        .get_opt("some-secret")
        .await;

    let events = plane.audit_events_of(&format!("system:serviceaccount:{namespace}:reader"));

    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["verb"], "get");
    assert_eq!(events[0]["objectRef"]["name"], "some-secret");
    assert_eq!(events[0]["responseStatus"]["code"], 403);
}

#[tokio::test]
async fn kubectl_applies_many_documents() {
    let plane = plane().await;
    let namespace = plane.namespace("kubectl", &[]).await;
    let document = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        )
    };

    plane
        .apply(&format!("{}---\n{}", document("one"), document("two")))
        .await;

    let listed = plane
        .kubectl(&["get", "configmaps", "-o", "name", "-n", &namespace])
        .await;
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout),
        "configmap/one\nconfigmap/two\n"
    );
}

#[tokio::test]
async fn control_planes_run_side_by_side_and_controllers_on_demand() {
    let first = plane().await;
    let second = ControlPlane::start_with(support::control_plane::Options {
        controllers: true,
        ..Default::default()
    })
    .await;
    assert_ne!(first.service_ip(9), second.service_ip(9));

    let namespace = second.namespace("apps", &[]).await;
    second
        .apply(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: app, namespace: {namespace}}}, spec: \
             {{selector: {{matchLabels: {{app: app}}}}, template: {{metadata: {{labels: {{app: app}}}}, spec: \
             {{containers: [{{name: main, image: example.com/app:1}}]}}}}}}}}"
        ))
        .await;

    let pods: Api<Pod> = Api::namespaced(second.admin().await, &namespace);
    let made = eventually(
        "the controllers make the Deployment's Pod",
        Duration::from_secs(20),
        async || pods.list(&ListParams::default()).await.unwrap().items.pop(),
    )
    .await;
    assert!(made.metadata.name.unwrap().starts_with("app-"));
}

#[tokio::test]
async fn child_dies_when_its_watcher_loses_us_and_its_folder_goes_too() {
    let folder = GuardedFolder::create();
    let path = folder.path().to_owned();
    let mut child = GuardedChild::spawn(Path::new("sleep"), ["600"], None, path.join("sleep.log"));
    assert!(child.exited().is_none());
    child.signal("CONT");

    child.lose();
    let status = child.ended(Duration::from_secs(5)).await;
    drop(folder);

    assert!(!status.success());
    eventually("the folder is gone", Duration::from_secs(5), async || {
        (!path.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn balancer_splits_connections_and_follows_its_backends() {
    let (first, second) = (greeter("first").await, greeter("second").await);
    let balancer = Balancer::start("127.0.0.1:0".parse().unwrap(), &[first, second]);

    for _ in 0..6 {
        greeting(balancer.address()).await;
    }
    assert_eq!(
        balancer.connections(),
        BTreeMap::from([(first, 3), (second, 3)])
    );

    balancer.set_backends(&[second]);
    assert_eq!(greeting(balancer.address()).await, "second");
    assert_eq!(greeting(balancer.address()).await, "second");
}

#[test]
fn metrics_are_summed_by_name_and_labels() {
    let exposition = "# TYPE calls counter\n\
        calls_total{region=\"eu-west-1\",outcome=\"ok\"} 2\n\
        calls_total{region=\"us-east-1\",outcome=\"ok\"} 3\n\
        calls_total_of_another{outcome=\"ok\"} 7\n\
        up 1\n# EOF\n";
    let close_to = |series: &str, expected: f64| {
        assert!((webhook::sum(exposition, series) - expected).abs() < f64::EPSILON);
    };
    close_to("up", 1.0);
    close_to("calls_total", 5.0);
    close_to("calls_total{outcome=\"ok\",region=\"us-east-1\"}", 3.0);
    close_to("calls_total{outcome=\"error\"}", 0.0);
}

async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.write_all(name.as_bytes()).await.unwrap();
        }
    });
    address
}

async fn greeting(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.read_to_string(&mut text).await.unwrap();
    text
}
