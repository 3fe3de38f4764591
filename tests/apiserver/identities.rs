//! Tests of the identities that mint, seen from the API server: tenants get their own role's tokens
//! and never another's, at a cost that follows the roles and regions and not the namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::bed::{create, registry};
use crate::support::fake_aws::{ACCESS_KEY, FakeAws, password_of};
use crate::support::installation::PULL_SECRET;
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Bed, Behaviour, Shared, eventually};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

const ACCOUNT: u64 = 123_456_789_012;
const ROLE_ANNOTATION: &str = "ecr-injector.dev/role-arn";

const CONFIG: &str = r#"
clusterName: test
identities:
  - namespaces: ["tenant-a-*"]
    assumeRole: {roleArn: "arn:aws:iam::123456789012:role/tenant-a", pullOnly: true}
  - namespaces: ["tenant-b-*"]
    assumeRole: {roleArn: "arn:aws:iam::123456789012:role/tenant-b", externalId: "b-only"}
namespaceRoles:
  allow: ["arn:aws:iam::123456789012:role/ecr-pull-*"]
"#;

async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || Bed::start(CONFIG, "info").await)
        .await
}

fn role(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{name}")
}

fn image(region: &str) -> String {
    format!("{}/app:v1", registry(ACCOUNT, region))
}

impl Bed {
    /// Whose tokens a namespace's pull secret holds, by host.
    async fn principals(&self, namespace: &str) -> BTreeMap<String, String> {
        let Some(secret) = self.pull_secret(namespace).await else {
            return BTreeMap::new();
        };
        let config = &secret.data.as_ref().unwrap()[".dockerconfigjson"].0;
        let config: Value = serde_json::from_slice(config).unwrap();
        let auths = config["auths"].as_object().unwrap();
        let whose = auths.iter().map(|(host, auth)| {
            let password = password_of(auth["auth"].as_str().unwrap()).unwrap();
            let principal = self.aws.principal_of(&password).unwrap();
            (host.clone(), principal)
        });
        whose.collect()
    }

    async fn annotate(&self, namespace: &str, arn: &str) {
        let namespaces: Api<Namespace> = Api::all(self.plane.admin().await);
        let patch = json!({"metadata": {"annotations": {ROLE_ANNOTATION: arn}}});
        namespaces
            .patch(namespace, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// An opted-in namespace that has named its role for long enough that every watch has seen it.
    async fn with_role(&self, prefix: &str, arn: &str) -> String {
        let namespace = self.plane.namespace(prefix, &[]).await;
        self.annotate(&namespace, arn).await;
        let namespaces: Api<Namespace> = Api::all(self.plane.admin().await);
        let label = json!({"metadata": {"labels": {"ecr-injector.dev/inject": "enabled"}}});
        namespaces
            .patch(&namespace, &PatchParams::default(), &Patch::Merge(label))
            .await
            .unwrap();
        namespace
    }
}

/// 100 admissions of two tenants, one after the other's in the same moment, while STS and ECR throttle, fail and are slow.
#[tokio::test]
async fn two_tenants_never_get_each_others_token_whatever_aws_does() {
    // Its faults are for all roles and regions.
    let bed = Bed::start(CONFIG, "info").await;
    let client = bed.plane.pod_creator().await;
    let regions = ["eu-west-1", "eu-west-2", "eu-west-3"];
    let behaviours = [
        Behaviour::Answer,
        Behaviour::Throttle,
        Behaviour::Answer,
        Behaviour::ServerError,
        Behaviour::Refuse,
    ];
    let mut namespaces = Vec::new();
    for n in 0..10 {
        let tenant = if n % 2 == 0 { "a" } else { "b" };
        let namespace = bed.opted_in(&format!("tenant-{tenant}-{n}")).await;
        namespaces.push((namespace, role(&format!("tenant-{tenant}"))));
    }
    bed.aws.require_external_id(&role("tenant-b"), "b-only");
    let mut admissions = Vec::new();
    for n in 0..100_usize {
        let (namespace, _) = namespaces[n % namespaces.len()].clone();
        let region = regions[n % regions.len()];
        // The faults change while admissions are under way.
        let behaviour = behaviours[n % behaviours.len()];
        bed.aws
            .tune_ecr_in(region, |knobs| knobs.behaviour = behaviour);
        bed.aws.tune_sts(|knobs| {
            knobs.behaviour = behaviours[(n + 2) % behaviours.len()];
            knobs.latency = Duration::from_millis(20);
        });
        let client = client.clone();
        admissions.push(tokio::spawn(async move {
            let object = pod(&format!("web-{n}"), &image(region));
            let admitted = create(&client, &namespace, &object, false).await.unwrap();
            assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
        }));
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    for admission in admissions {
        admission.await.unwrap();
    }
    bed.aws.behave();
    // The pause after a failure is 2 s at the most.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let mut seen = 0;
    for (namespace, expected) in &namespaces {
        // What failed is completed by one more Pod.
        for region in regions {
            let object = pod(&format!("again-{region}"), &image(region));
            create(&client, namespace, &object, false).await.unwrap();
        }
        let principals = bed.principals(namespace).await;
        assert_eq!(
            principals.len(),
            regions.len(),
            "{namespace}: {principals:?}"
        );
        for (host, principal) in principals {
            assert!(
                principal.contains(expected),
                "{namespace} has {principal}'s token for {host}"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 30);
    for call in bed.aws.calls_to("sts") {
        let arn = &call.parameters["RoleArn"];
        let is_b = *arn == role("tenant-b");
        assert_eq!(call.parameters.contains_key("ExternalId"), is_b, "{arn}");
        assert_eq!(
            call.parameters.contains_key("Policy"),
            *arn == role("tenant-a"),
            "{arn}"
        );
        assert_eq!(call.parameters["RoleSessionName"], "ecr-injector-test");
    }
    assert!(bed.aws.leak_in(&bed.webhook.log()).is_none());
}

#[tokio::test]
async fn mints_follow_roles_and_regions_and_not_namespaces() {
    let bed = Bed::start(CONFIG, "info").await;
    let client = bed.plane.pod_creator().await;
    let regions = ["us-east-1", "us-east-2", "us-west-2"];
    let mut namespaces = Vec::new();
    for n in 0..100 {
        let arn = role(&format!("ecr-pull-{}", n % 20));
        namespaces.push((bed.with_role("many", &arn).await, arn));
    }
    bed.aws.clear();
    let admissions = namespaces.iter().map(|(namespace, _)| {
        let client = client.clone();
        async move {
            for region in regions {
                let object = pod(&format!("web-{region}"), &image(region));
                let admitted = create(&client, namespace, &object, false).await.unwrap();
                assert_eq!(admitted.warnings, [] as [&str; 0], "{namespace}");
            }
        }
    });
    // Several of each role at once, and no more than a busy machine admits in time.
    let admissions = futures::stream::iter(admissions).buffer_unordered(40);
    admissions.collect::<()>().await;
    let mints: BTreeSet<_> = bed
        .aws
        .calls_to("ecr")
        .into_iter()
        .map(|call| (call.principal, call.region))
        .collect();
    assert_eq!(bed.aws.calls_to("ecr").len(), 60, "{mints:?}");
    assert_eq!(bed.aws.calls_to("sts").len(), 60);
    for (namespace, arn) in &namespaces {
        let principals = bed.principals(namespace).await;
        assert_eq!(principals.len(), 3);
        assert!(
            principals.values().all(|principal| principal.contains(arn)),
            "{namespace} of {arn}: {principals:?}"
        );
    }
}

#[tokio::test]
async fn role_that_is_denied_holds_back_nobody_else() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let (denied, hanging) = (role("ecr-pull-denied"), role("ecr-pull-hanging"));
    bed.aws
        .tune_sts_for(&denied, |knobs| knobs.behaviour = Behaviour::Refuse);
    bed.aws
        .tune_sts_for(&hanging, |knobs| knobs.behaviour = Behaviour::Hang);
    let poor = bed.with_role("denied", &denied).await;
    let slow = bed.with_role("hanging", &hanging).await;
    let rich = bed.with_role("rich", &role("ecr-pull-rich")).await;
    let plain = bed.opted_in("plain").await;
    let object = pod("web", &image("ap-south-1"));
    let admit = async |namespace: &str| {
        let started = Instant::now();
        let admitted = create(&client, namespace, &object, false).await.unwrap();
        (admitted.warnings, started.elapsed())
    };
    let (poor_got, slow_got, rich_got, plain_got) =
        tokio::join!(admit(&poor), admit(&slow), admit(&rich), admit(&plain));
    let late = |label: &str| {
        format!(
            "ecr-injector: no credential yet for 1 ECR registry ({label}); image pulls may fail \
         until then"
        )
    };
    assert_eq!(poor_got.0, [late("access_denied")]);
    assert_eq!(slow_got.0, [late("deadline")]);
    for (warnings, took) in [rich_got, plain_got] {
        assert_eq!(warnings, [] as [&str; 0]);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    // Neither of the two that failed has any token, least of all the ambient one.
    assert_eq!(bed.principals(&poor).await, BTreeMap::new());
    assert_eq!(bed.principals(&slow).await, BTreeMap::new());
    let refused = format!("STS's AssumeRole of {denied} was refused: AccessDenied");
    bed.webhook.log_with(&refused).await;
}

#[tokio::test]
async fn annotation_outside_the_patterns_gets_a_warning_and_no_token() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    for (arn, warning) in [
        (
            role("admin"),
            "the role in annotation ecr-injector.dev/role-arn is not in namespaceRoles.allow",
        ),
        (
            "nonsense".to_owned(),
            "annotation ecr-injector.dev/role-arn is not the ARN of a role",
        ),
    ] {
        let namespace = bed.with_role("refused", &arn).await;
        let object = pod("web", &image("ap-east-1"));
        let admitted = create(&client, &namespace, &object, false).await.unwrap();
        assert_eq!(admitted.warnings, [format!("ecr-injector: {warning}")]);
        assert_eq!(pull_secrets(&admitted.pod), [] as [&str; 0]);
        assert!(bed.pull_secret(&namespace).await.is_none());
        let events: Api<Event> = Api::namespaced(bed.plane.admin().await, &namespace);
        let note = eventually("an Event", Duration::from_secs(10), async || {
            let told = events.list(&ListParams::default()).await.unwrap();
            let refused = |event: &Event| event.reason.as_deref() == Some("RoleRefused");
            told.into_iter().find(refused)?.note
        })
        .await;
        assert!(note.contains(&arn) && note.contains(warning), "{note}");
    }
    assert!(bed.aws.ecr_calls("ap-east-1").is_empty());
    let refused = bed
        .webhook
        .metric("ecr_injector_rejected_identities_total")
        .await;
    assert!(refused > 1.5, "{refused}");
}

#[tokio::test]
async fn changed_annotation_counts_for_what_is_there_too() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let namespace = bed.with_role("changing", &role("ecr-pull-old")).await;
    let object = pod("one", &image("ca-central-1"));
    create(&client, &namespace, &object, false).await.unwrap();
    bed.annotate(&namespace, &role("ecr-pull-new")).await;
    // An admission leaves what is still good: the change is the leader's.
    eventually(
        "the leader mints anew",
        Duration::from_secs(10),
        async || {
            let principals = bed.principals(&namespace).await;
            principals[&registry(ACCOUNT, "ca-central-1")]
                .contains("ecr-pull-new")
                .then_some(())
        },
    )
    .await;
}

/// Swaps a mounted Secret with a credentials file of one profile, as a kubelet does.
fn swap_profile(volume: &Path, aws: &FakeAws, user: &str) {
    let keys = aws.keys_of(&format!("arn:aws:iam::{ACCOUNT}:user/{user}"));
    let file = format!(
        "[vendor]\r\naws_access_key_id = {}\r\naws_secret_access_key = {}\r\n",
        keys.access_key, keys.secret_access_key
    );
    fs::create_dir(volume.join(user)).unwrap();
    fs::write(volume.join(user).join("credentials"), file).unwrap();
    symlink(user, volume.join("..new")).unwrap();
    fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn keys_of_a_secret_and_a_rotated_profile_serve_pods() {
    let volume = tempfile::tempdir().unwrap();
    let config = "identities:\n  - namespaces: [\"vendor-*\"]\n    profile: vendor\n";
    let path = volume.path().to_owned();
    let bed = Bed::start_with(config, "info", |aws| {
        swap_profile(&path, aws, "before");
        symlink("..data/credentials", path.join("credentials")).unwrap();
        let file = path.join("credentials").to_str().unwrap().to_owned();
        vec![
            ("AWS_ACCESS_KEY_ID", format!("{ACCESS_KEY}\n")),
            ("AWS_SHARED_CREDENTIALS_FILE", file),
        ]
    })
    .await;
    let client = bed.plane.pod_creator().await;
    let of_vendor = bed.opted_in("vendor-a").await;
    let of_others = bed.opted_in("team-a").await;
    let user = |name: &str| format!("arn:aws:iam::{ACCOUNT}:user/{name}");
    for (namespace, region, principal) in [
        (&of_vendor, "eu-west-1", "before"),
        (&of_others, "eu-west-1", "fake"),
        (&of_vendor, "eu-west-2", "after"),
    ] {
        if principal == "after" {
            swap_profile(volume.path(), &bed.aws, "after");
        }
        let admitted = create(&client, namespace, &pod(region, &image(region)), false).await;
        assert_eq!(admitted.unwrap().warnings, [] as [&str; 0]);
        let principals = bed.principals(namespace).await;
        assert_eq!(principals[&registry(ACCOUNT, region)], user(principal));
    }
    let log = bed.webhook.log_with("around the value").await;
    assert!(log.contains("AWS_ACCESS_KEY_ID"), "{log}");
    assert_eq!(bed.aws.leak_in(&log), None);
}
