//! `ecr-injector doctor`, as a person runs it: the binary itself against a real API server, with the Deployment, its Pod and
//! its endpoints as controllers and a kubelet would write them, and with faults made by hand.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::command::{self, Ran, end};
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, REGISTRATION};
use crate::support::pods::pod;
use crate::support::webhook::Webhook;
use crate::support::{self, Caller, ControlPlane, FakeAws, Installation, eventually};

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const USER: &str = "system:serviceaccount:default:doctor";
pub(crate) const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:v1";

/// An installation in which nothing is wrong, and an account with the rights of the page.
pub(crate) struct Patient {
    pub(crate) plane: ControlPlane,
    pub(crate) webhook: Webhook,
    _aws: FakeAws,
    kubeconfig: PathBuf,
    pub(crate) team: String,
    admin_address: SocketAddr,
}

/// An address of this machine that the API server agrees to proxy to: no loopback.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the kernel only chooses the address.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// The role on the page.
fn documented_role() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/doctor.md");
    let page = std::fs::read_to_string(path).unwrap();
    let block = page.split("```yaml\n").nth(1).unwrap();
    block.split("```").next().unwrap().to_owned()
}

impl Patient {
    pub(crate) async fn start() -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let aws = FakeAws::start();
        let installation = Installation::apply(&plane).await;
        let free = TcpListener::bind((own_address(), 0)).unwrap();
        let admin_address = free.local_addr().unwrap();
        drop(free);
        let mut options = installation.webhook(&plane, &aws).await;
        options.admin_listen = admin_address;
        let webhook = Webhook::start(options).await;
        installation.register(&plane).await;
        let kubeconfig = plane
            .kubeconfig_for_service_account("default", "doctor")
            .await;
        let binding = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: doctor}, \
            roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ecr-injector-doctor}, \
            subjects: [{kind: ServiceAccount, namespace: default, name: doctor}]}";
        plane
            .apply(&format!("{}\n---\n{binding}", documented_role()))
            .await;
        let team = plane.namespace("team", &[OPT_IN]).await;
        let patient = Self {
            plane,
            webhook,
            _aws: aws,
            kubeconfig,
            team,
            admin_address,
        };
        patient.deploy().await;
        let created = patient.create_pod(&patient.team, "first", IMAGE).await;
        assert_eq!(created["spec"]["imagePullSecrets"][0]["name"], PULL_SECRET);
        patient.wait_for_leader().await;
        patient
    }

    pub(crate) async fn admin(&self) -> Caller {
        Caller(self.plane.admin().await)
    }

    /// Writes the Deployment, its Pod and its endpoints, as controllers and a kubelet would.
    async fn deploy(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/deployment.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let mut deployment: Value = serde_saphyr::from_str(&text).unwrap();
        deployment["spec"]["replicas"] = json!(1);
        self.plane.apply(&deployment.to_string()).await;
        let admin = self.admin().await;
        let deployments = format!("/apis/apps/v1/namespaces/{NAME}/deployments/{NAME}/status");
        let status = json!({"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1});
        admin
            .merge(&deployments, &json!({"status": status}))
            .await
            .allowed();
        let mut template = deployment["spec"]["template"].clone();
        template["apiVersion"] = json!("v1");
        template["kind"] = json!("Pod");
        template["metadata"]["name"] = json!("replica");
        template["spec"]["nodeName"] = json!("node-1");
        template["spec"]["containers"][0]["ports"] =
            json!([{"name": "admin", "containerPort": self.admin_address.port()}]);
        let pods = format!("/api/v1/namespaces/{NAME}/pods");
        admin.post(&pods, &template).await.allowed();
        let ip = self.admin_address.ip();
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]});
        let status = json!({"status": status});
        admin
            .merge(&format!("{pods}/replica/status"), &status)
            .await
            .allowed();
        self.set_endpoints().await;
    }

    async fn set_endpoints(&self) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "slice", "labels": {"kubernetes.io/service-name": NAME}},
            "endpoints": [{"addresses": [self.admin_address.ip()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": 8443}],
        });
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAME}/endpointslices");
        self.admin().await.post(&slices, &slice).await.allowed();
    }

    pub(crate) async fn create_pod(&self, namespace: &str, name: &str, image: &str) -> Value {
        let object = serde_json::to_value(pod(name, image)).unwrap();
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        self.admin().await.post(&path, &object).await.allowed()
    }

    async fn wait_for_leader(&self) {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAME}/leases/{NAME}");
        let admin = self.admin().await;
        eventually(
            "a replica leads and has tested the guard",
            SOON,
            async || {
                let leads = admin.get(&path).await.0.is_ok();
                let tested = self.webhook.metric("ecr_injector_guard_enforced").await > 0.5;
                (leads && tested).then_some(())
            },
        )
        .await;
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        end(self.spawn(arguments)).await
    }

    fn spawn(&self, arguments: &[&str]) -> tokio::process::Child {
        let arguments = [&["doctor"], arguments].concat();
        command::spawn(&self.kubeconfig, Vec::new(), arguments)
    }

    /// Runs it in all formats, which have one exit code, and returns the object with that code.
    pub(crate) async fn examine(&self, arguments: &[&str]) -> (i32, Value) {
        let mut codes = Vec::new();
        let mut object = Value::Null;
        for format in ["table", "short", "yaml", "json"] {
            let Ran {
                code,
                stdout,
                stderr,
            } = self.run(&[arguments, &["-o", format]].concat()).await;
            codes.push(code.unwrap());
            if format == "json" {
                object = serde_json::from_str(&stdout)
                    .unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
            }
        }
        codes.dedup();
        assert_eq!(codes.len(), 1, "{codes:?}");
        (codes[0], object)
    }

    /// Fails unless this check has this status, with this in its text.
    async fn finds(&self, code: &str, status: &str, part: &str) {
        let (exit, object) = self.examine(&[]).await;
        let check = check(&object, code);
        assert_eq!(check["status"], status, "{object:#}");
        let text = check["cause"].as_str().or(check["note"].as_str());
        assert!(text.unwrap().contains(part), "{check:#}");
        assert_eq!(exit, i32::from(object["counts"]["fail"] != 0), "{object:#}");
        assert_eq!(object["ok"], exit == 0);
    }
}

fn check<'a>(object: &'a Value, code: &str) -> &'a Value {
    let checks = object["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|it| it["code"] == code)
        .unwrap_or_else(|| panic!("no {code}: {object:#}"))
}

/// The codes of the checks with a status.
fn with_status<'a>(object: &'a Value, status: &str) -> Vec<&'a str> {
    let checks = object["checks"].as_array().unwrap().iter();
    let checks = checks.filter(|it| it["status"] == status);
    checks.filter_map(|it| it["code"].as_str()).collect()
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one installation, and what is broken in it one after the other"
)]
async fn doctor_finds_nothing_then_each_fault_made_by_hand() {
    let mut patient = Patient::start().await;
    let (code, object) = patient.examine(&[]).await;
    assert_eq!(code, 0, "{object:#}");
    assert_eq!(with_status(&object, "fail"), [] as [&str; 0], "{object:#}");
    assert_eq!(with_status(&object, "warn"), [] as [&str; 0], "{object:#}");
    // The certificate of this test is not self-managed.
    let skipped = ["registration-trusts-us", "cert-authority"];
    assert_eq!(with_status(&object, "skipped"), skipped, "{object:#}");

    // Two hundred namespaces take forty requests, and one a replica.
    for _ in 0..200 {
        patient.plane.namespace("many", &[OPT_IN]).await;
    }
    let before = patient.plane.audit_events_of(USER).len();
    let Ran { code, stdout, .. } = patient.run(&["-o", "json"]).await;
    assert_eq!(code, Some(0));
    let requests = patient.plane.audit_events_of(USER).len() - before;
    let object: Value = serde_json::from_str(&stdout).unwrap();
    println!("{requests} requests, {} ms", object["tookMs"]);
    assert!((10..=41).contains(&requests), "{requests}");

    let admin = patient.admin().await;
    // A label that nearly opts in, and warnings that fail on request.
    let typo = patient.plane.namespace("typo", &[(OPT_IN.0, "true")]).await;
    patient.finds("namespaces-label-typo", "warn", &typo).await;
    let (code, object) = patient.examine(&["--fail-on", "warn"]).await;
    assert_eq!((code, &object["ok"]), (1, &json!(false)));
    let skip = ["--fail-on", "warn", "--skip", "namespaces-label-typo"];
    assert_eq!(patient.examine(&skip).await.0, 0);

    // A Secret of others.
    let taken = patient.plane.namespace("taken", &[OPT_IN]).await;
    let secret = json!({"metadata": {"name": PULL_SECRET}, "type": "Opaque"});
    let secrets = format!("/api/v1/namespaces/{taken}/secrets");
    admin.post(&secrets, &secret).await.allowed();
    patient.finds("secret-foreign", "fail", &taken).await;
    admin
        .delete(&format!("{secrets}/{PULL_SECRET}"))
        .await
        .allowed();

    // No endpoint.
    let slice = format!("/apis/discovery.k8s.io/v1/namespaces/{NAME}/endpointslices/slice");
    admin.delete(&slice).await.allowed();
    patient
        .finds("registration-service", "fail", "no ready endpoint")
        .await;
    // It waits until there is one again.
    let before = patient.plane.audit_events_of(USER).len();
    let child = patient.spawn(&["--wait", "1m", "-o", "short"]);
    eventually("doctor has looked once", SOON, async || {
        let asked = patient.plane.audit_events_of(USER).split_off(before);
        let reviews = asked
            .iter()
            .filter(|it| it["objectRef"]["resource"] == "pods" && it["verb"] == "create");
        (reviews.count() > 0).then_some(())
    })
    .await;
    patient.set_endpoints().await;
    let Ran { code, stderr, .. } = end(child).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stderr.matches("not yet: registration-service: ").count(),
        1,
        "{stderr}"
    );

    // A configuration that is invalid.
    let map = format!("/api/v1/namespaces/{NAME}/configmaps/{NAME}");
    let valid = admin.get(&map).await.allowed()["data"]["config.yaml"].clone();
    let broken = json!({"data": {"config.yaml": "apiVersion: ecr-injector.dev/v1alpha1\nkind: Config\nsecretNam: x\n"}});
    admin.merge(&map, &broken).await.allowed();
    patient.finds("config-loads", "fail", "secretNam").await;
    admin
        .merge(&map, &json!({"data": {"config.yaml": valid}}))
        .await
        .allowed();

    // A caBundle that was taken away.
    let registration = format!(
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{REGISTRATION}"
    );
    let path = "/webhooks/0/clientConfig/caBundle";
    let bundle = admin
        .get(&registration)
        .await
        .allowed()
        .pointer(path)
        .unwrap()
        .clone();
    let change = |value: &Value| json!([{"op": "replace", "path": path, "value": value}]);
    admin
        .json_patch(&registration, &change(&json!("")))
        .await
        .allowed();
    patient
        .finds(
            "registration-trusts-us",
            "fail",
            "create.ecr-injector.dev is empty",
        )
        .await;
    admin
        .json_patch(&registration, &change(&bundle))
        .await
        .allowed();

    // No replica: what only it knows is not known.
    patient.webhook.kill();
    let expired = patient.plane.namespace("expired", &[OPT_IN]).await;
    let pull_secret = format!("/api/v1/namespaces/{}/secrets/{PULL_SECRET}", patient.team);
    let mut copy = admin.get(&pull_secret).await.allowed();
    let state = &mut copy["metadata"]["annotations"]["ecr-injector.dev/state"];
    let mut old: Value = serde_json::from_str(state.as_str().unwrap()).unwrap();
    for (_, host) in old["hosts"].as_object_mut().unwrap() {
        host["mintedAt"] = json!("2026-01-01T00:00:00Z");
        host["expiresAt"] = json!("2026-01-01T12:00:00Z");
    }
    *state = json!(old.to_string());
    let metadata = json!({"name": PULL_SECRET, "labels": copy["metadata"]["labels"],
        "annotations": copy["metadata"]["annotations"]});
    let copy = json!({"metadata": metadata, "type": copy["type"], "data": copy["data"]});
    admin
        .post(&format!("/api/v1/namespaces/{expired}/secrets"), &copy)
        .await
        .allowed();
    patient.finds("secret-expired", "fail", &expired).await;
    patient.finds("metrics-readable", "warn", "replica").await;
    patient
        .finds("registration-answers", "fail", "was admitted without")
        .await;
    patient
        .finds("cert-leaf", "skipped", "after metrics-readable")
        .await;
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{NAME}/leases/{NAME}");
    let stopped = json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
    admin.merge(&lease, &stopped).await.allowed();
    patient
        .finds("leader-there", "fail", "has not renewed")
        .await;
}

#[tokio::test]
async fn doctor_without_any_right_skips_everything_and_succeeds() {
    let patient = Patient::start().await;
    let nobody = patient
        .plane
        .kubeconfig_for_service_account("default", "nobody")
        .await;
    let patient = Patient {
        kubeconfig: nobody,
        ..patient
    };
    let (code, object) = patient.examine(&[]).await;
    assert_eq!(code, 0, "{object:#}");
    let fine = ["cluster-reachable", "cluster-version", "cluster-clock"];
    assert_eq!(with_status(&object, "ok"), fine, "{object:#}");
    assert_eq!(with_status(&object, "fail"), [] as [&str; 0], "{object:#}");
    assert_eq!(with_status(&object, "warn"), [] as [&str; 0], "{object:#}");
    let registered = check(&object, "registration-there");
    let right =
        "kubectl auth can-i list mutatingwebhookconfigurations.admissionregistration.k8s.io -A";
    assert!(
        registered["note"].as_str().unwrap().contains(right),
        "{registered:#}"
    );

    // Nor does it succeed where nobody answers.
    let unknown = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}]});
    let path = patient.plane.folder().join("nowhere.kubeconfig");
    std::fs::write(&path, unknown.to_string()).unwrap();
    let patient = Patient {
        kubeconfig: path,
        ..patient
    };
    let (code, object) = patient.examine(&[]).await;
    assert_eq!(code, 1, "{object:#}");
    assert_eq!(
        with_status(&object, "fail"),
        ["cluster-reachable"],
        "{object:#}"
    );
}

#[tokio::test]
async fn doctor_says_why_a_pod_has_no_pull_secret() {
    let mut patient = Patient::start().await;
    let team = patient.team.clone();
    let late = patient.plane.namespace("late", &[]).await;
    patient.create_pod(&late, "early", IMAGE).await;
    let plain = patient.plane.namespace("plain", &[]).await;
    patient.create_pod(&plain, "web", IMAGE).await;
    patient.create_pod(&team, "nginx", "nginx:1").await;
    // Dates have whole seconds.
    let path = format!("/api/v1/namespaces/{late}/pods/early");
    let admin = patient.admin().await;
    let created = admin.get(&path).await.allowed()["metadata"]["creationTimestamp"].clone();
    let created: jiff::Timestamp = created.as_str().unwrap().parse().unwrap();
    eventually("the next second", SOON, async || {
        (jiff::Timestamp::now().duration_since(created).as_millis() > 1_100).then_some(())
    })
    .await;
    let labels = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    admin
        .merge(&format!("/api/v1/namespaces/{late}"), &labels)
        .await
        .allowed();
    patient.webhook.kill();
    let missed = patient.create_pod(&team, "missed", IMAGE).await;
    assert!(missed["spec"]["imagePullSecrets"].is_null(), "{missed:#}");

    for (pod, code, exit) in [
        (format!("{team}/first"), "pod-fine", 0),
        (format!("{team}/nginx"), "pod-no-ecr", 0),
        (format!("{team}/missed"), "pod-missed", 1),
        (format!("{plain}/web"), "pod-not-opted-in", 1),
        (format!("{late}/early"), "pod-older-than-opt-in", 1),
    ] {
        let (got, object) = patient.examine(&["pod", &pod]).await;
        assert_eq!(object["pods"][0]["code"], code, "{object:#}");
        assert_eq!(got, exit, "{object:#}");
    }
    let before = patient.plane.audit_events_of(USER).len();
    let Ran { code, stdout, .. } = patient.run(&["pod", "first", "-n", &team]).await;
    assert_eq!(code, Some(0), "{stdout}");
    let requests = patient.plane.audit_events_of(USER).len() - before;
    assert!((1..=12).contains(&requests), "{requests}");

    let file = patient.plane.folder().join("deployment.json");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": team},
        "spec": {"template": {"spec": {"containers": [{"name": "app", "image": IMAGE}]}}}});
    std::fs::write(&file, deployment.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let (code, object) = patient.examine(&["pod", "-f", file]).await;
    assert_eq!(
        object["pods"][0]["code"], "pod-would-be-injected",
        "{object:#}"
    );
    assert_eq!(code, 0);

    let Ran { code, stderr, .. } = patient.run(&["pod", &format!("{team}/none")]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("there is no Pod"), "{stderr}");
    let Ran { code, .. } = patient.run(&["pod"]).await;
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn doctor_says_before_an_installation_what_is_in_its_way() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let run = async |kubeconfig: &Path, arguments: &[&str]| {
        let arguments = [&["doctor", "--pre", "-o", "json"], arguments].concat();
        let ran = end(command::spawn(kubeconfig, Vec::new(), arguments)).await;
        let object: Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ran.stdout, ran.stderr));
        (ran.code.unwrap(), object)
    };
    let admin = plane.kubeconfig_for_admin();
    let (code, object) = run(&admin, &[]).await;
    assert_eq!(code, 0, "{object:#}");
    assert_eq!(with_status(&object, "warn"), [] as [&str; 0], "{object:#}");
    for code in ["pre-rights", "pre-admission-api", "pre-others", "pre-vap"] {
        assert_eq!(check(&object, code)["status"], "ok", "{object:#}");
    }

    // Another solution, and a Secret of the name.
    let team = plane.namespace("team", &[]).await;
    let job = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "renew", "namespace": team},
        "spec": {"schedule": "0 */6 * * *", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "renew", "image": "amazon/aws-cli",
                "command": ["sh", "-c", "aws ecr get-login-password | kubectl create secret"]}]}}}}}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": PULL_SECRET, "namespace": team}});
    plane.apply(&format!("{job}\n---\n{secret}")).await;
    let (code, object) = run(&admin, &[]).await;
    assert_eq!(code, 0, "{object:#}");
    let others = check(&object, "pre-others");
    assert_eq!(others["status"], "warn", "{object:#}");
    let cause = others["cause"].as_str().unwrap();
    assert!(cause.contains(&format!("CronJob {team}/renew")), "{cause}");
    assert!(
        cause.contains(&format!("pull secret is in {team}")),
        "{cause}"
    );

    // Somebody who may install nothing.
    let nobody = plane
        .kubeconfig_for_service_account("default", "nobody")
        .await;
    let (code, object) = run(&nobody, &[]).await;
    assert_eq!(code, 1, "{object:#}");
    assert_eq!(with_status(&object, "fail"), ["pre-rights"], "{object:#}");
    let cause = &check(&object, "pre-rights")["cause"];
    assert!(cause.as_str().unwrap().contains("create serviceaccounts"));
}

#[tokio::test]
async fn doctor_finds_a_service_account_that_names_an_old_pull_secret() {
    let patient = Patient::start().await;
    let admin = patient.admin().await;
    let team = patient.team.clone();
    let account = format!("/api/v1/namespaces/{team}/serviceaccounts/default");
    let listed = json!({"imagePullSecrets": [{"name": PULL_SECRET}, {"name": "ecr-by-hand"}]});
    admin.merge(&account, &listed).await.allowed();
    // Whether there is one, and since when, needs one more right.
    let right = format!("secrets/ecr-by-hand -n {team}");
    patient
        .finds("secret-serviceaccounts", "skipped", &right)
        .await;
    let role = json!({"metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{team}");
    admin.post(&format!("{roles}/roles"), &role).await.allowed();
    let binding = json!({"metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "doctor"}]});
    let bindings = format!("{roles}/rolebindings");
    admin.post(&bindings, &binding).await.allowed();
    let secret = json!({"metadata": {"name": "ecr-by-hand"}, "data": {"x": "eA=="}});
    let secrets = format!("/api/v1/namespaces/{team}/secrets");
    admin.post(&secrets, &secret).await.allowed();
    eventually("it may read the Secret, which is new", SOON, async || {
        let (_, object) = patient.examine(&[]).await;
        (check(&object, "secret-serviceaccounts")["status"] == "ok").then_some(())
    })
    .await;
    let managers = json!({"metadata": {"managedFields": [{"manager": "script", "operation": "Update",
        "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:x": {}}}}]}});
    let path = format!("{secrets}/ecr-by-hand");
    admin.merge(&path, &managers).await.allowed();
    patient
        .finds("secret-serviceaccounts", "warn", "names ecr-by-hand")
        .await;
}
