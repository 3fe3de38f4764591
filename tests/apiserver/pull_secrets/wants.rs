//! Tests that no Pod's want is lost: neither to a leader that planned without it, nor to a refusal that passes.

use crate::support;
use crate::support::installation::NAME;
use crate::support::pods::pull_secrets;
use crate::support::{Balancer, Caller, ControlPlane, FakeAws, Installation, Webhook};
use futures::future::join_all;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::rbac::v1::ClusterRole;

use super::*;

/// Longer than an admission's own retries of ten seconds.
const LONG: Duration = Duration::from_secs(12);
const TOGETHER: u64 = 40;

/// Each namespace is opted in just before its first Pod, whose registry is not the one that `prewarm` names, and the leader
/// may not be the replica that admits the Pod.
#[tokio::test]
async fn first_pods_lose_no_registry_to_prewarm() {
    let _alone = alone().await;
    support::crypto();
    let pods: u64 = std::env::var("ECR_INJECTOR_LOST_PODS")
        .map_or(200, |text| text.parse().expect("a number of Pods"));
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let mut options = installation.replica(&plane, &aws).await;
        let warm = registry(ACCOUNT, "eu-central-1");
        options.config = format!("prewarm: [{warm}]\nrefresh: {{writesPerSecond: 200}}\n");
        replicas.push(Webhook::start(options).await);
    }
    let addresses: Vec<_> = replicas.iter().map(Webhook::address).collect();
    let _balancer = Balancer::start(installation.service_address(), &addresses);
    installation.register(&plane).await;
    let client = plane.pod_creator().await;
    let admin = plane.admin().await;
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    let host = registry(ACCOUNT, "eu-west-2");
    let opt_in = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    let object = pod("web", &image("eu-west-2"));
    let (mut lost, mut served) = (Vec::new(), 0);
    for round in 0..pods.div_ceil(TOGETHER) {
        let names = join_all((0..TOGETHER).map(|_| plane.namespace("race", &[]))).await;
        let (params, patch) = (PatchParams::default(), Patch::Merge(&opt_in));
        join_all(
            names
                .iter()
                .map(|name| namespaces.patch(name, &params, &patch)),
        )
        .await;
        // As fast as the leader writes, and within two seconds, by turns.
        let apart = if round % 2 == 0 { 5 } else { 50 };
        let admitted = names
            .iter()
            .zip(0..)
            .map(async |(namespace, at): (&String, u64)| {
                let turn = (at * 37 + round * 13) % TOGETHER;
                sleep(Duration::from_millis(20 + turn * apart)).await;
                let admitted = create(&client, namespace, &object, false).await;
                (namespace.clone(), admitted.unwrap())
            });
        let admitted = join_all(admitted).await;
        sleep(Duration::from_secs(2)).await;
        for (namespace, admitted) in admitted {
            assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
            let secrets: Api<Secret> = Api::namespaced(admin.clone(), &namespace);
            let secret = secrets.get(PULL_SECRET).await.unwrap();
            served += 1;
            if !auths(&secret).contains_key(&host) {
                lost.push((namespace, admitted.warnings));
            }
        }
    }
    assert!(lost.is_empty(), "{} of {served}: {lost:?}", lost.len());
}

#[tokio::test]
async fn raised_quota_brings_the_secret_without_a_pod() {
    let bed = bed().await;
    let namespace = bed.opted_in("t-quota").await;
    let quotas: Api<ResourceQuota> = Api::namespaced(bed.plane.admin().await, &namespace);
    let limit =
        |most: &str| json!({"metadata": {"name": "none"}, "spec": {"hard": {"secrets": most}}});
    let quota = serde_json::from_value(limit("0")).unwrap();
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    // In the place of the quota controller, which this control plane doesn't have.
    let count = async |most: &str| {
        let status = json!({"status": {"hard": {"secrets": most}, "used": {"secrets": "0"}}});
        quotas
            .patch_status("none", &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    };
    count("0").await;
    bed.until_answered(&namespace, 403).await;

    bed.first_pod(&namespace, "us-east-1").await;
    sleep(LONG).await;
    assert!(bed.pull_secret(&namespace).await.is_none());
    bed.note(&namespace, &["QuotaExceeded"], 2 * SOON).await;
    quotas
        .patch("none", &PatchParams::default(), &Patch::Merge(limit("5")))
        .await
        .unwrap();
    count("5").await;
    bed.until_answered(&namespace, 201).await;
    bed.comes_by_itself(&namespace).await;
}

#[tokio::test]
async fn lifted_policy_brings_the_secret_without_a_pod() {
    const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    const BINDINGS: &str =
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    let bed = bed().await;
    let namespace = bed
        .plane
        .namespace("t-policy", &[OPT_IN, ("secrets", "none")])
        .await;
    let admin = Caller(bed.plane.admin().await);
    let policy = json!({
        "metadata": {"name": "no-secrets"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"secrets": "none"}},
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"],
                    "operations": ["CREATE", "UPDATE"]}],
            },
            "validations": [{"expression": "false", "message": "no Secrets here"}],
        },
    });
    admin.post(POLICIES, &policy).await.allowed();
    let binding = json!({"metadata": {"name": "no-secrets"},
        "spec": {"policyName": "no-secrets", "validationActions": ["Deny"]}});
    admin.post(BINDINGS, &binding).await.allowed();
    bed.until_answered(&namespace, 422).await;

    bed.first_pod(&namespace, "us-east-1").await;
    sleep(LONG).await;
    assert!(bed.pull_secret(&namespace).await.is_none());
    bed.note(&namespace, &["WriteForbidden"], 2 * SOON).await;
    let binding = format!("{BINDINGS}/no-secrets");
    admin.delete(&binding).await.allowed();
    bed.until_answered(&namespace, 201).await;
    bed.comes_by_itself(&namespace).await;
}

#[tokio::test]
async fn granted_rights_bring_the_secret_without_a_pod() {
    let bed = Bed::start("", "info").await;
    let namespace = bed.opted_in("rights").await;
    let roles: Api<ClusterRole> = Api::all(bed.plane.admin().await);
    let installed = roles.get(NAME).await.unwrap().rules.unwrap();
    let mut narrowed = installed.clone();
    for rule in &mut narrowed {
        if rule
            .resources
            .as_ref()
            .is_some_and(|it| it.contains(&"secrets".to_owned()))
        {
            rule.verbs
                .retain(|verb| verb != "create" && verb != "patch");
        }
    }
    let grant = async |rules| {
        let change = json!({"rules": rules});
        let params = PatchParams::default();
        roles
            .patch(NAME, &params, &Patch::Merge(change))
            .await
            .unwrap();
    };
    grant(narrowed).await;
    let us = Caller(bed.plane.as_service_account(NAME, NAME).await);
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{PULL_SECRET}");
    let object = serde_json::to_value(claiming(&json!({}), r#"{"auths":{}}"#)).unwrap();
    let until_it_may = async |may: bool| {
        let what = format!("RBAC lets us write: {may}");
        eventually(&what, SOON, async || {
            let answer = us.apply_dry_run(&path, &object).await.0;
            (answer.is_ok() == may).then_some(())
        })
        .await;
    };
    until_it_may(false).await;

    bed.first_pod(&namespace, "us-east-1").await;
    sleep(LONG).await;
    assert!(bed.pull_secret(&namespace).await.is_none());
    bed.note(&namespace, &["WriteForbidden"], 2 * SOON).await;
    grant(installed).await;
    until_it_may(true).await;
    bed.comes_by_itself(&namespace).await;
}

impl Bed {
    /// Waits until the API server answers by this code to whoever wants to create a Secret in this namespace.
    async fn until_answered(&self, namespace: &str, code: u16) {
        let secrets = self.secrets(namespace).await;
        let config = r#"{"auths":{}}"#;
        let mut object = claiming(&json!({}), config);
        object.metadata.name = Some("any".to_owned());
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        eventually(&format!("the answer is {code}"), 2 * SOON, async || {
            let answer = match secrets.create(&params, &object).await {
                Ok(_) => 201,
                Err(kube::Error::Api(status)) => status.code,
                Err(error) => panic!("{error}"),
            };
            (answer == code).then_some(())
        })
        .await;
    }

    async fn comes_by_itself(&self, namespace: &str) {
        let host = registry(ACCOUNT, "us-east-1");
        self.until_minted(namespace, &host, ":user/fake", RETRIED)
            .await;
    }
}
