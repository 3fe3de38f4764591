//! The recipes of the documents for people without a webhook, and for tools that read pull secrets before there is a Pod: as
//! they are written, by an account with the rights that the document says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::support::bed::{hosts, image, registry};
use crate::support::command::{self, Ran, end};
use crate::support::control_plane::{self, may};
use crate::support::fake_aws::password_of;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Bed, ControlPlane, FakeAws, eventually, shows};

const SOON: Duration = Duration::from_secs(30);

/// The code blocks of a language in a page, with another namespace in the place of `team-a`.
fn blocks(page: &str, language: &str, namespace: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/how-to")
        .join(page);
    let text = fs::read_to_string(path)
        .unwrap()
        .replace("team-a", namespace);
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// Runs a documented `kubectl … -p '…'` as somebody, or as the admin.
async fn kubectl(plane: &ControlPlane, line: &str, user: Option<&str>) -> bool {
    let line = line.trim().strip_prefix("kubectl ").unwrap();
    let (words, patch) = line.split_once(" -p '").unwrap();
    let mut arguments: Vec<&str> = words.split(' ').collect();
    arguments.extend(["-p", patch.strip_suffix('\'').unwrap()]);
    if let Some(user) = user {
        arguments.extend(["--as", user]);
    }
    plane.kubectl(&arguments).await.status.success()
}

async fn run_refresh(plane: &ControlPlane, aws: &FakeAws, namespace: &str, manifest: &str) -> Ran {
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap();
    let find = |kind: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind)
            .unwrap()
    };
    let config = plane.folder().join(format!("{namespace}.yaml"));
    let text = find("ConfigMap")["data"]["config.yaml"].as_str().unwrap();
    fs::write(&config, text).unwrap();
    let template = &find("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let account = template["serviceAccountName"].as_str().unwrap();
    let kubeconfig = plane
        .kubeconfig_for_service_account(namespace, account)
        .await;
    let arguments: Vec<String> =
        serde_json::from_value(template["containers"][0]["args"].clone()).unwrap();
    let config = format!("--config={}", config.display());
    let arguments = arguments.into_iter().map(|argument| {
        if argument.starts_with("--config=") {
            config.clone()
        } else {
            argument
        }
    });
    end(command::spawn(&kubeconfig, aws.environment(), arguments)).await
}

#[tokio::test]
async fn cron_job_of_one_namespace_asks_for_nothing_outside_it() {
    crate::support::crypto();
    let options = control_plane::Options {
        controllers: true,
        ..control_plane::Options::default()
    };
    let plane = ControlPlane::start_with(options).await;
    let aws = FakeAws::start();
    let team = plane.namespace("team", &[]).await;
    // Somebody with the rights of Kubernetes' own `admin` in this namespace, and none elsewhere.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "admins", "namespace": team},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}],
    });
    plane.apply(&binding.to_string()).await;
    let manifest = blocks("one-namespace.md", "yaml", &team).remove(0);
    let applied = eventually("jane may apply it", SOON, async || {
        let output = plane
            .kubectl_with_input(&["apply", "--as", "jane", "-f", "-"], &manifest)
            .await;
        output.status.success().then_some(output)
    });
    assert!(applied.await.stderr.is_empty());

    let ran = run_refresh(&plane, &aws, &team, &manifest).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let secrets: Api<Secret> = Api::namespaced(plane.admin().await, &team);
    let secret = secrets.get(PULL_SECRET).await.unwrap();
    let host = registry(123_456_789_012, "eu-west-1");
    assert_eq!(hosts(&secret), [host.as_str()]);
    let again = run_refresh(&plane, &aws, &team, &manifest).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);

    asked_nothing_outside(&plane, &team);
    let account = plane.as_service_account(&team, "ecr-refresh").await;
    assert!(!may(&account, "list", "namespaces").await);
    assert!(!may(&account, "list", "secrets").await);

    reference_by_the_account(&plane, &team).await;
}

/// Checks the audit log of the account that the `CronJob` has.
fn asked_nothing_outside(plane: &ControlPlane, team: &str) {
    // Everything that it asked is about this namespace, or about its own rights.
    let user = format!("system:serviceaccount:{team}:ecr-refresh");
    let events = plane.audit_events_of(&user);
    assert!(
        events
            .iter()
            .any(|event| event["objectRef"]["resource"] == "secrets")
    );
    for event in &events {
        let object = &event["objectRef"];
        let resource = object["resource"].as_str().unwrap_or_default();
        let of_rights = event["verb"] == "create" && resource.starts_with("selfsubject");
        let is_here = object["namespace"] == team;
        let is_namespace = resource == "namespaces" && object["name"] == team;
        assert!(of_rights || is_here || is_namespace, "{event}");
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        assert!(code < 400 || code == 404, "{event}");
    }
}

/// Adds the reference by the page's commands, as somebody who administers the namespace.
async fn reference_by_the_account(plane: &ControlPlane, team: &str) {
    // The reference, by the commands of the page: to an account without a list, then to one with it.
    let commands: Vec<_> = blocks("one-namespace.md", "sh", team);
    let of_list = |kind: &str| commands.iter().find(|it| it.contains(kind)).unwrap();
    assert!(kubectl(plane, of_list("--type=merge"), Some("jane")).await);
    let replaced = json!([{"name": PULL_SECRET}]);
    assert_eq!(list_of_default(plane, team).await, replaced);
    let other = json!({"imagePullSecrets": [{"name": "other"}]}).to_string();
    let arguments = [
        "-n",
        team,
        "patch",
        "serviceaccount",
        "default",
        "--type=merge",
        "-p",
        &other,
    ];
    assert!(plane.kubectl(&arguments).await.status.success());
    assert!(kubectl(plane, of_list("--type=json"), Some("jane")).await);
    let appended = json!([{"name": "other"}, {"name": PULL_SECRET}]);
    assert_eq!(list_of_default(plane, team).await, appended);
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, team);
    let stored = eventually("a new Pod has the list", SOON, async || {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let admitted = pods
            .create(&dry_run, &pod("web", &image("eu-west-1")))
            .await
            .unwrap();
        (pull_secrets(&admitted).len() == 2).then_some(admitted)
    });
    assert_eq!(pull_secrets(&stored.await), ["other", PULL_SECRET]);
}

async fn list_of_default(plane: &ControlPlane, namespace: &str) -> Value {
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin().await, namespace);
    let account = accounts.get("default").await.unwrap();
    serde_json::to_value(account.image_pull_secrets).unwrap()
}

#[tokio::test]
async fn named_registry_without_a_right_or_a_credential_is_an_error() {
    crate::support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let team = plane.namespace("team", &[OPT_IN]).await;
    let kubeconfig = plane.kubeconfig_for_admin();
    let namespace = format!("--namespace={team}");
    let key = format!("--state-key-namespace={team}");
    let refresh = async |registry: &str| {
        let arguments = [
            "refresh",
            "--once",
            &namespace,
            &key,
            "--registry",
            registry,
        ];
        end(command::spawn(&kubeconfig, aws.environment(), arguments)).await
    };
    let ran = refresh("docker.io").await;
    assert_eq!(ran.code, Some(1));
    shows(
        "`--registry \"HOST\" is neither the host of an ECR registry nor an alias of the configuration`",
        &ran.stderr,
    );
    let host = registry(123_456_789_012, "eu-central-1");
    aws.tune_ecr_in("eu-central-1", |knobs| {
        knobs.behaviour = crate::support::Behaviour::Refuse;
    });
    let ran = refresh(&host).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    aws.behave();
    let ran = refresh(&host).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // Without a namespace it would be for all of them.
    let arguments = ["refresh", "--once", "--registry", &host];
    let ran = end(command::spawn(&kubeconfig, aws.environment(), arguments)).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}

/// Reads as those do who look before there is a Pod: Tekton, Argo Workflows, Knative, verifying webhooks.
/// Returns the password for a host.
async fn read_by_account(plane: &ControlPlane, namespace: &str, host: &str) -> Option<String> {
    let secrets: Api<Secret> = Api::namespaced(plane.admin().await, namespace);
    for entry in list_of_default(plane, namespace).await.as_array()? {
        let secret = secrets.get_opt(entry["name"].as_str()?).await.unwrap()?;
        let config: Value = serde_json::from_slice(&secret.data?[".dockerconfigjson"].0).unwrap();
        if let Some(auth) = config["auths"][host]["auth"].as_str() {
            assert!(BASE64_STANDARD.decode(auth).is_ok());
            return password_of(auth);
        }
    }
    None
}

#[tokio::test]
async fn readers_before_the_pod_find_a_credential_by_the_account() {
    let host = registry(123_456_789_012, "eu-west-1");
    let bed = Bed::start(&format!("prewarm: [{host}]"), "warn").await;
    let team = bed.opted_in("readers").await;
    assert_eq!(
        read_by_account(&bed.plane, &team, &host).await,
        None,
        "without the list"
    );
    let commands = blocks("readers-before-the-pod.md", "sh", &team);
    assert!(kubectl(&bed.plane, &commands[0], None).await);
    // No Pod has ever asked.
    let password = eventually("prewarm has written the Secret", SOON, async || {
        read_by_account(&bed.plane, &team, &host).await
    });
    assert!(bed.aws.principal_of(&password.await).is_some());

    // A Pod that has the reference from the start is what its owner wanted: nothing to compare.
    let pods: Api<Pod> = Api::namespaced(bed.plane.admin().await, &team);
    let wanted = pod("owned", &image("eu-west-1"));
    let stored = eventually("the account's list is copied", SOON, async || {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let stored = pods.create(&dry_run, &wanted).await.unwrap();
        (!pull_secrets(&stored).is_empty()).then_some(stored)
    });
    assert_eq!(pull_secrets(&stored.await), [PULL_SECRET], "once");
    let mut own = serde_json::to_value(&wanted).unwrap();
    own["spec"]["imagePullSecrets"] = json!([{"name": PULL_SECRET}]);
    let own: Pod = serde_json::from_value(own).unwrap();
    let stored = pods.create(&PostParams::default(), &own).await.unwrap();
    assert_eq!(
        stored.spec.unwrap().image_pull_secrets,
        own.spec.unwrap().image_pull_secrets
    );

    // One that is opted out has what its owner wrote, and nothing more.
    let other = bed.opted_in("owners").await;
    let mut opted_out = serde_json::to_value(&wanted).unwrap();
    opted_out["metadata"]["annotations"] = json!({OPT_IN.0: "disabled"});
    let opted_out: Pod = serde_json::from_value(opted_out).unwrap();
    let pods: Api<Pod> = Api::namespaced(bed.plane.admin().await, &other);
    let stored = pods
        .create(&PostParams::default(), &opted_out)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&stored), [] as [&str; 0]);
}

#[test]
fn objects_of_other_tools_name_the_pull_secret_where_they_look() {
    let documents: Vec<Value> = blocks("readers-before-the-pod.md", "yaml", "team")
        .iter()
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect();
    let list = json!([{"name": PULL_SECRET}]);
    for (kind, pointer, expected) in [
        (
            "TaskRun",
            "/spec/podTemplate/imagePullSecrets",
            list.clone(),
        ),
        ("Workflow", "/spec/imagePullSecrets", list.clone()),
        ("Service", "/spec/template/spec/imagePullSecrets", list),
        (
            "ImageRepository",
            "/spec/secretRef/name",
            json!(PULL_SECRET),
        ),
    ] {
        let object = documents.iter().find(|it| it["kind"] == kind).unwrap();
        assert_eq!(object.pointer(pointer), Some(&expected), "{kind}");
    }
    let registries = documents
        .iter()
        .find_map(|it| it.get("registries"))
        .unwrap();
    assert_eq!(
        registries[0]["credentials"],
        format!("pullsecret:team/{PULL_SECRET}")
    );
    let (prefix, api) = (&registries[0]["prefix"], &registries[0]["api_url"]);
    assert_eq!(
        api.as_str().unwrap(),
        format!("https://{}", prefix.as_str().unwrap())
    );
}
