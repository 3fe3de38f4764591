//! The chart in a real cluster: installed, upgraded and uninstalled by Helm, with our binary run as it says.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::support;
use crate::support::control_plane::{self, programs};
use crate::support::creators::Creators;
use crate::support::helm::{self, chart, helm, helm_by, objects};
use crate::support::installation::{OPT_IN, PULL_SECRET, usable_port};
use crate::support::{
    Authority, Balancer, Caller, ControlPlane, FakeAws, Trust, Webhook, eventually, webhook,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const REGISTRATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const ECR: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1";
const SOON: Duration = Duration::from_secs(30);

/// Not the names of `deploy/`: a release of another name, in another namespace, has to work as well.
const RELEASE: &str = "pull";
const NAMESPACE: &str = "tools";
const FULLNAME: &str = "pull-ecr-injector";

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn release_installs_upgrades_and_uninstalls_with_pods_served() {
    let cluster = Cluster::start().await;
    let port = format!("service: {{port: {}}}", usable_port(&cluster.plane));
    cluster.helm(&["install", RELEASE], &port);
    let mut webhook = cluster.webhook().await;
    let team = cluster.plane.namespace("team", &[OPT_IN]).await;
    cluster.pod_is_mutated(&team, ECR).await;
    let bundles = cluster.bundles().await;
    assert_eq!(bundles.len(), 2);
    webhook.wait_until_ready().await;

    // An upgrade that changes the registration and the configuration. Nothing restarts, and the bundles stay.
    let template = cluster.deployment().await["spec"]["template"].clone();
    let upgraded = format!(
        "{port}\nwebhook: {{timeoutSeconds: 7}}\nconfig: {{optIn: {{excludeNamespaces: [monitoring]}}, \
         aliases: [{{host: images.example.com, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}}]}}"
    );
    cluster.helm(&["upgrade", RELEASE], &upgraded);
    assert_eq!(
        cluster.registration().await["webhooks"][0]["timeoutSeconds"],
        7
    );
    assert_eq!(cluster.bundles().await, bundles);
    assert_eq!(cluster.deployment().await["spec"]["template"], template);
    fs::write(webhook.config(), cluster.configuration().await).unwrap();
    cluster
        .pod_is_mutated(&team, "images.example.com/x:1")
        .await;

    // Once more, and by another tool: nothing to do, nothing in the way.
    cluster.helm(&["upgrade", RELEASE], &upgraded);
    assert_eq!(cluster.bundles().await, bundles);
    let rendered = rendered(&upgraded);
    let by_others = ["diff", "--server-side", "--field-manager=gitops", "-f", "-"];
    let diff = cluster
        .plane
        .kubectl_with_input(&by_others, &rendered)
        .await;
    assert!(diff.status.success(), "{diff:?}");

    // A chart that has one entry less, and then again the one that has both.
    let smaller = tempfile::tempdir().unwrap();
    without_the_second_entry(smaller.path());
    cluster.helm_with(smaller.path(), &["upgrade", RELEASE], &upgraded);
    let entries = |registration: &Value| registration["webhooks"].as_array().unwrap().len();
    assert_eq!(entries(&cluster.registration().await), 1);
    cluster.pod_is_mutated(&team, ECR).await;
    cluster.helm(&["upgrade", RELEASE], &upgraded);
    assert_eq!(entries(&cluster.registration().await), 2);
    eventually("both entries trust us again", SOON, async || {
        (cluster.bundles().await == bundles).then_some(())
    })
    .await;

    // What stays is what the webhook made: docs/how-to/uninstall.md.
    assert!(webhook.stop().await.success());
    let uninstall = [
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--kubeconfig",
    ];
    let kubeconfig = cluster.plane.kubeconfig_for_admin();
    let output = helm::run(&[&uninstall[..], &[kubeconfig.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let left = ["get", "-f", "-", "--ignore-not-found", "-o", "name"];
    let left = cluster.plane.kubectl_with_input(&left, &rendered).await;
    assert!(left.status.success() && left.stdout.is_empty(), "{left:?}");
    // Whoever fails closed wants the registration to go first: docs/how-to/uninstall.md.
    let removed = cluster.removals();
    let place = |resource: &str| removed.iter().position(|it| it == resource).unwrap();
    let registration_first = place("mutatingwebhookconfigurations") < place("deployments");
    assert_eq!(registration_first, helm::major() >= 4, "{removed:?}");
    let named = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    assert_eq!(
        named(&cluster.get(&secrets).await),
        [format!("{FULLNAME}-ca"), format!("{FULLNAME}-state-key")]
    );
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    assert_eq!(named(&cluster.get(&leases).await), [FULLNAME]);
    let secrets = format!("/api/v1/namespaces/{team}/secrets");
    assert_eq!(named(&cluster.get(&secrets).await), [PULL_SECRET]);
    let after = cluster
        .admin()
        .await
        .post(&pods(&team), &pod("after", ECR))
        .await
        .allowed();
    assert!(after["spec"]["imagePullSecrets"].is_null());
}

#[tokio::test]
async fn release_test_shows_that_it_works_or_why_it_does_not() {
    let cluster = Cluster::start_with_controllers().await;
    let values = format!(
        "service: {{port: {}}}\ntest: {{wait: 20s}}",
        usable_port(&cluster.plane)
    );
    cluster.helm(&["install", RELEASE], &values);
    let mut webhook = cluster.webhook().await;
    webhook.wait_until_ready().await;
    let (tested, said) = cluster.test_of_the_release().await;
    assert!(tested, "{said}");
    assert!(
        said.contains("admitted  a Pod with") && said.contains("minted    "),
        "{said}"
    );
    cluster.test_leaves(&[]).await;

    assert!(webhook.stop().await.success());
    let hurried = values.replace("20s", "2s");
    cluster.helm(&["upgrade", RELEASE], &hurried);
    let (tested, said) = cluster.test_of_the_release().await;
    assert!(
        !tested && said.contains("without ecr-pull-secret"),
        "{said}"
    );
    // For its log; what it could do is gone.
    let left = [format!(
        "/api/v1/namespaces/{NAMESPACE}/pods/{FULLNAME}-test"
    )];
    cluster.test_leaves(&left).await;
    cluster.admin().await.delete(&left[0]).await.allowed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade_under_load_leaves_no_pod_without_our_entry() {
    let cluster = Cluster::start().await;
    let port = format!("service: {{port: {}}}", usable_port(&cluster.plane));
    cluster.helm(&["install", RELEASE], &port);
    let service = cluster.service_address().await;
    let replicas = async |count: usize| -> Vec<Webhook> {
        let mut replicas = Vec::new();
        for _ in 0..count {
            replicas.push(Webhook::start(cluster.process().await).await);
        }
        replicas
    };
    let mut serving = replicas(2).await;
    let addresses =
        |webhooks: &[Webhook]| webhooks.iter().map(Webhook::address).collect::<Vec<_>>();
    let balancer = Balancer::start(service, &addresses(&serving));
    let mut namespaces = Vec::new();
    for _ in 0..4 {
        let namespace = cluster.plane.namespace("load", &[OPT_IN]).await;
        cluster.pod_is_mutated(&namespace, ECR).await;
        namespaces.push(namespace);
    }
    let template = cluster.deployment().await["spec"]["template"].clone();
    let creators =
        Creators::start(&cluster.plane, &namespaces, 8, Duration::from_millis(250)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    // All that an upgrade may change at once: the registration, its conditions, the guard, rights, arguments.
    let upgraded = format!(
        "{port}\nwebhook: {{timeoutSeconds: 7}}\nshutdownDelay: 3\nmatchConditions: {{enabled: false}}\n\
         commonLabels: {{team: platform}}\nconfig: {{optOutRemove: true, limits: {{registriesPerPod: 8}}}}"
    );
    cluster.helm(&["upgrade", RELEASE], &upgraded);
    assert_ne!(cluster.deployment().await["spec"]["template"], template);
    // The rollout: one comes and is ready before one goes, of which the Service hears late.
    for _ in 0..2 {
        let mut next = replicas(1).await;
        let mut leaving = serving.remove(0);
        serving.append(&mut next);
        leaving.signal("TERM");
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        balancer.set_backends(&addresses(&serving));
        assert!(leaving.ended().await.success());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let created = creators.stop().await;
    assert!(created.stored > 100, "{created:?}");
    assert_eq!(
        (created.without_our_entry, created.failed),
        (0, 0),
        "{created:?}"
    );
    assert_eq!(
        cluster.registration().await["webhooks"][0]["timeoutSeconds"],
        7
    );
    for webhook in &mut serving {
        assert!(webhook.stop().await.success());
    }
}

#[tokio::test]
async fn own_certificate_and_names_work_with_the_rendered_rights() {
    let cluster = Cluster::start().await;
    let authority = Authority::new("company");
    let host = format!("{FULLNAME}.{NAMESPACE}.svc");
    let files = authority.serving(&[&host], cluster.plane.folder(), "own");
    let read = |path: &Path| BASE64_STANDARD.encode(fs::read(path).unwrap());
    let data = json!({"tls.crt": read(&files.certificate), "tls.key": read(&files.key)});
    let secret = json!({"metadata": {"name": "own"}, "type": "kubernetes.io/tls", "data": data});
    let admin = cluster.admin().await;
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    admin.post(&secrets, &secret).await.allowed();

    let values = format!(
        "service: {{port: {}}}\ncertificates: {{mode: secret, secretName: own}}\n\
         config: {{secretName: registry-credentials, optIn: {{label: example.com/registry, value: '1'}}}}",
        usable_port(&cluster.plane)
    );
    cluster.helm(&["install", RELEASE], &values);
    let bundle = BASE64_STANDARD.encode(authority.pem());
    let trust = |entry: usize| {
        let path = format!("/webhooks/{entry}/clientConfig/caBundle");
        json!({"op": "add", "path": path, "value": bundle})
    };
    let path = format!("{REGISTRATIONS}/zz-{FULLNAME}");
    let trusted = json!([trust(0), trust(1)]);
    admin.json_patch(&path, &trusted).await.allowed();
    let mut webhook = cluster.webhook().await;
    webhook.wait_until_ready().await;
    let team = cluster
        .plane
        .namespace("team", &[("example.com/registry", "1")])
        .await;
    cluster.pod_gets("registry-credentials", &team, ECR).await;
    eventually("the guard is found to guard", SOON, async || {
        (webhook.metric("ecr_injector_guard_enforced").await > 0.5).then_some(())
    })
    .await;
    let other = cluster.plane.namespace("other", &[OPT_IN]).await;
    let stored = admin.post(&pods(&other), &pod("web", ECR)).await.allowed();
    assert!(stored["spec"]["imagePullSecrets"].is_null());
}

#[tokio::test]
async fn certificates_of_the_script_are_trusted_and_renewed() {
    let cluster = Cluster::start().await;
    let folder = cluster.plane.folder().join("certificates");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let generate = |more: &[&str]| {
        let names = ["--namespace", NAMESPACE, "--name", FULLNAME, "--apply"];
        let path = std::env::var("PATH").unwrap();
        let mut script = std::process::Command::new(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/generate.sh"),
        );
        script.args(names).args(more).arg(&folder).env_clear();
        script.env("PATH", format!("{}:{path}", programs().display()));
        script.env("KUBECONFIG", cluster.plane.kubeconfig_for_admin());
        script.env("HOME", cluster.plane.folder());
        script.output().unwrap()
    };
    let succeeds = |more: &[&str]| {
        let output = generate(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
    };
    // Too early: it says so, and what it made is there for the next time.
    let output = generate(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.contains("install the release pull-ecr-injector first"),
        "{error}"
    );
    let (authority, key) = (read("ca.crt"), read("ca.key"));

    let secret = format!("{FULLNAME}-tls");
    let port = usable_port(&cluster.plane);
    let values =
        format!("service: {{port: {port}}}\ncertificates: {{mode: secret, secretName: {secret}}}");
    cluster.helm(&["install", RELEASE], &values);
    succeeds(&["--days", "30"]);
    let bundle = BASE64_STANDARD.encode(&authority);
    assert_eq!(cluster.bundles().await, [bundle.clone(), bundle.clone()]);
    let mut webhook = cluster.webhook().await;
    webhook.wait_until_ready().await;
    let team = cluster.plane.namespace("team", &[OPT_IN]).await;
    cluster.pod_is_mutated(&team, ECR).await;

    let expiry = "ecr_injector_certificate_expiration_timestamp_seconds";
    let (first, ends) = (read("tls.crt"), webhook.metric(expiry).await);
    succeeds(&["--days", "60"]);
    assert_ne!(read("tls.crt"), first);
    assert_eq!((read("ca.crt"), read("ca.key")), (authority, key));
    let month = Duration::from_hours(24 * 29).as_secs_f64();
    eventually("the new one is served", SOON, async || {
        (webhook.metric(expiry).await > ends + month).then_some(())
    })
    .await;
    let stream = TcpStream::connect(webhook.address()).await.unwrap();
    let client = Trust::of_bundle(&read("ca.crt")).client(&[&TLS13], &["http/1.1"]);
    let host = ServerName::try_from(format!("{FULLNAME}.{NAMESPACE}.svc")).unwrap();
    let connection = TlsConnector::from(client).connect(host, stream).await;
    let connection = connection.unwrap();
    let served = &connection.get_ref().1.peer_certificates().unwrap()[0];
    let renewed = CertificateDer::from_pem_slice(read("tls.crt").as_bytes()).unwrap();
    assert_eq!(*served, renewed);
    // The API server has a connection open from before. The next replica has to be trusted by its first certificate.
    assert!(webhook.stop().await.success());
    let mut webhook = cluster.webhook().await;
    webhook.wait_until_ready().await;
    cluster.pod_is_mutated(&team, ECR).await;
    assert_eq!(cluster.bundles().await, [bundle.clone(), bundle]);

    for name in ["ca.key", "tls.key"] {
        let mode = fs::metadata(folder.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{secret}");
    let stored = cluster.get(&path).await;
    assert_eq!(stored["type"], "kubernetes.io/tls");
    assert_eq!(
        stored["metadata"]["annotations"],
        Value::Null,
        "no copy of the key"
    );
}

#[tokio::test]
async fn objects_that_kubectl_applied_are_taken_over_by_helm() {
    let plane = ControlPlane::start().await;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let applied = plane
        .kubectl(&["apply", "--validate=strict", "-k", deploy.to_str().unwrap()])
        .await;
    assert!(
        applied.status.success() && applied.stderr.is_empty(),
        "{applied:?}"
    );
    let (chart, kubeconfig) = (chart(), plane.kubeconfig_for_admin());
    let (chart, kubeconfig) = (chart.to_str().unwrap(), kubeconfig.to_str().unwrap());
    for more in [
        &["install", "ecr-injector", "--take-ownership"][..],
        &["upgrade", "ecr-injector"],
    ] {
        let here = [
            chart,
            "--namespace",
            "ecr-injector",
            "--kubeconfig",
            kubeconfig,
        ];
        let output = helm(&[more, &here].concat(), "");
        assert!(output.status.success(), "{more:?}: {output:?}");
    }
}

#[tokio::test]
async fn upgrades_by_client_side_apply_keep_the_bundles_too() {
    let cluster = Cluster::start().await;
    // Helm 3 has no such flag, and no other way.
    let by_client: &[&str] = match helm::major() {
        3 => &[],
        _ => &["--server-side=false"],
    };
    cluster.helm(&[&["install", RELEASE], by_client].concat(), "");
    let managers = cluster.registration().await["metadata"]["managedFields"].clone();
    let operations = managers.as_array().unwrap().iter();
    let operations: Vec<_> = operations.map(|entry| &entry["operation"]).collect();
    assert_eq!(operations, ["Update"], "{managers}");
    let bundle = BASE64_STANDARD.encode(Authority::new("any").pem());
    let fill = |entry: usize| {
        let path = format!("/webhooks/{entry}/clientConfig/caBundle");
        json!({"op": "add", "path": path, "value": bundle})
    };
    let path = format!("{REGISTRATIONS}/zz-{FULLNAME}");
    let filled = cluster.admin().await;
    filled
        .json_patch(&path, &json!([fill(0), fill(1)]))
        .await
        .allowed();
    cluster.helm(
        &[&["upgrade", RELEASE], by_client].concat(),
        "webhook: {timeoutSeconds: 9}",
    );
    assert_eq!(
        cluster.registration().await["webhooks"][1]["timeoutSeconds"],
        9
    );
    assert_eq!(cluster.bundles().await, [bundle.clone(), bundle.clone()]);

    // Then Helm 4, as it does it for such a release by itself, and on the server's side: docs/how-to/upgrade.md.
    for (more, timeout) in [(&[][..], 8), (&["--server-side=true"], 7)] {
        let arguments = [&["upgrade", RELEASE], more].concat();
        let values = format!("webhook: {{timeoutSeconds: {timeout}}}");
        cluster.helm_by(&helm::next(), &chart(), &arguments, &values);
        let registration = cluster.registration().await;
        assert_eq!(registration["webhooks"][1]["timeoutSeconds"], timeout);
        assert_eq!(cluster.bundles().await, [bundle.clone(), bundle.clone()]);
    }
}

/// A control plane of its own, where the release is.
struct Cluster {
    plane: ControlPlane,
    aws: FakeAws,
}

impl Cluster {
    async fn start() -> Self {
        Self::on(ControlPlane::start().await).await
    }

    /// With controllers: new namespaces get their account, and those that are removed go.
    async fn start_with_controllers() -> Self {
        let options = control_plane::Options {
            controllers: true,
            ..control_plane::Options::default()
        };
        Self::on(ControlPlane::start_with(options).await).await
    }

    async fn on(plane: ControlPlane) -> Self {
        let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": restricted},
        });
        plane.apply(&namespace.to_string()).await;
        let aws = FakeAws::start();
        Self { plane, aws }
    }

    fn helm(&self, arguments: &[&str], values: &str) {
        self.helm_with(&chart(), arguments, values);
    }

    fn helm_with(&self, chart: &Path, arguments: &[&str], values: &str) {
        self.helm_by(&helm::program(), chart, arguments, values);
    }

    fn helm_by(&self, program: &Path, chart: &Path, arguments: &[&str], values: &str) {
        let kubeconfig = self.plane.kubeconfig_for_admin();
        let here = [
            chart.to_str().unwrap(),
            "--namespace",
            NAMESPACE,
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ];
        let output = helm_by(program, &[arguments, &here].concat(), values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert!(
            !said.to_lowercase().contains("warning"),
            "{arguments:?}: {said}"
        );
    }

    /// The process that the Deployment asks for, in the place of the Service. Only where it listens and where it finds the file is of
    /// this machine.
    async fn webhook(&self) -> Webhook {
        let options = self.process().await;
        Webhook::spawn(webhook::Options {
            listen: self.service_address().await,
            admin_listen: (self.plane.private_address(), 8080).into(),
            ..options
        })
    }

    async fn service_address(&self) -> SocketAddr {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{FULLNAME}");
        let service = self.get(&path).await;
        let address = service["spec"]["clusterIP"].as_str().unwrap();
        let port = service["spec"]["ports"][0]["port"].as_u64().unwrap();
        format!("{address}:{port}").parse().unwrap()
    }

    /// With the Deployment's arguments, its account's rights, and its configuration.
    async fn process(&self) -> webhook::Options {
        let deployment = self.deployment().await;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
        let of_this_machine = ["--config=", "--listen=", "--admin-listen=", "--log-format="];
        let (replaced, kept): (Vec<_>, Vec<_>) = arguments
            .into_iter()
            .skip_while(|argument| argument == "serve")
            .partition(|argument| {
                of_this_machine
                    .iter()
                    .any(|flag| argument.starts_with(flag))
            });
        assert_eq!(replaced.len(), 4, "{replaced:?}");
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        let account = account.as_str().unwrap();
        let mut environment = self.aws.environment();
        // In a Pod it is in a file of the account's.
        for name in ["LEASE", "STATE_KEY"] {
            let variable = format!("ECR_INJECTOR_{name}_NAMESPACE");
            environment.push((variable, NAMESPACE.to_owned()));
        }
        let own = self.plane.private_address();
        webhook::Options {
            binary: None,
            config: self.configuration().await,
            listen: (own, 8443).into(),
            admin_listen: (own, 8080).into(),
            certificate: None,
            kubeconfig: self
                .plane
                .kubeconfig_for_service_account(NAMESPACE, account)
                .await,
            arguments: kept,
            environment,
        }
    }

    /// `helm test`, and the kubelet's part of it: the program that the test's Pod asks for, with its account's rights. Whether Helm
    /// says that it passed, and what Helm and the program say.
    async fn test_of_the_release(&self) -> (bool, String) {
        let kubeconfig = self.plane.kubeconfig_for_admin();
        let helm = tokio::task::spawn_blocking(move || {
            let kubeconfig = kubeconfig.to_str().unwrap();
            let here = ["--namespace", NAMESPACE, "--kubeconfig", kubeconfig];
            support::helm::run(&[&["test", RELEASE, "--timeout", "90s"][..], &here].concat())
        });
        let name = format!("{FULLNAME}-test");
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
        let admin = self.admin().await;
        let pod = eventually("Helm makes the Pod of the test", SOON, async || {
            let body = admin.get(&path).await.0.ok()?;
            let pod: Value = serde_json::from_str(&body).unwrap();
            // Not the one of the time before.
            pod["status"]["phase"]
                .as_str()
                .is_some_and(|it| it == "Pending")
                .then_some(pod)
        })
        .await;
        let container = &pod["spec"]["containers"][0];
        let config = tempfile::NamedTempFile::new().unwrap();
        fs::write(config.path(), self.configuration().await).unwrap();
        let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
        let arguments =
            arguments
                .into_iter()
                .map(|argument| match argument.strip_prefix("--config=") {
                    Some(_) => format!("--config={}", config.path().display()),
                    None => argument,
                });
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        let kubeconfig = self
            .plane
            .kubeconfig_for_service_account(NAMESPACE, account)
            .await;
        let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
            .args(arguments)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .env_clear()
            .output()
            .await
            .unwrap();
        let phase = if ran.status.success() {
            "Succeeded"
        } else {
            "Failed"
        };
        let status = json!({"status": {"phase": phase}});
        admin
            .merge(&format!("{path}/status"), &status)
            .await
            .allowed();
        let helm = helm.await.unwrap();
        let said = [ran.stdout, ran.stderr, helm.stdout, helm.stderr].concat();
        (
            helm.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Of what the test makes this is there, and nothing else.
    async fn test_leaves(&self, left: &[String]) {
        let name = format!("{FULLNAME}-test");
        let admin = self.admin().await;
        let objects = support::helm::of_the_test(RELEASE, NAMESPACE, "");
        let of_the_test = objects.iter().find(|object| object["kind"] == "Namespace");
        let of_the_test = &of_the_test.unwrap()["metadata"]["name"];
        for path in [
            format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"),
            format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}"),
            format!("/api/v1/namespaces/{}", of_the_test.as_str().unwrap()),
        ] {
            eventually(&format!("{path} is as it should be"), SOON, async || {
                (admin.get(&path).await.0.is_ok() == left.contains(&path)).then_some(())
            })
            .await;
        }
    }

    async fn pod_is_mutated(&self, namespace: &str, image: &str) {
        self.pod_gets(PULL_SECRET, namespace, image).await;
    }

    async fn pod_gets(&self, pull_secret: &str, namespace: &str, image: &str) {
        let admin = self.admin().await;
        let probe = json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "main", "image": image}]}});
        eventually("a Pod gets the pull secret", SOON, async || {
            let pod = admin.post(&pods(namespace), &probe).await.allowed();
            let ours = json!([{"name": pull_secret}]);
            (pod["spec"]["imagePullSecrets"] == ours).then_some(())
        })
        .await;
        let host = image.split('/').next().unwrap();
        let secret = self
            .get(&format!(
                "/api/v1/namespaces/{namespace}/secrets/{pull_secret}"
            ))
            .await;
        let state = secret["metadata"]["annotations"].to_string();
        assert!(state.contains(host), "{host} in {state}");
    }

    async fn configuration(&self) -> String {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{FULLNAME}");
        let configmap = self.get(&path).await;
        configmap["data"]["config.yaml"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn deployment(&self) -> Value {
        self.get(&format!(
            "/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{FULLNAME}"
        ))
        .await
    }

    async fn registration(&self) -> Value {
        self.get(&format!("{REGISTRATIONS}/zz-{FULLNAME}")).await
    }

    /// Returns the CA bundle of each entry of the registration.
    async fn bundles(&self) -> Vec<String> {
        let registration = self.registration().await;
        let entries = registration["webhooks"].as_array().unwrap().iter();
        entries
            .filter_map(|entry| {
                entry["clientConfig"]["caBundle"]
                    .as_str()
                    .map(str::to_owned)
            })
            .collect()
    }

    /// The kinds of what the admin removed, in that order.
    fn removals(&self) -> Vec<String> {
        let events = self.plane.audit_events_of("admin");
        let removals = events.iter().filter(|event| event["verb"] == "delete");
        let kinds = removals.map(|event| event["objectRef"]["resource"].as_str().unwrap());
        kinds.map(str::to_owned).collect()
    }

    async fn get(&self, path: &str) -> Value {
        self.admin().await.get(path).await.allowed()
    }

    async fn admin(&self) -> Caller {
        Caller(self.plane.admin().await)
    }
}

fn rendered(values: &str) -> String {
    let items = objects(RELEASE, NAMESPACE, values);
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// The chart as a later version could be.
fn without_the_second_entry(folder: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-R")
        .arg(chart().join("."))
        .arg(folder)
        .status()
        .unwrap();
    assert!(copied.success());
    let path = folder.join("templates/registration.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let (first, _) = text.split_once("  # A changed image").unwrap();
    fs::write(path, format!("{first}{{{{- end }}}}\n")).unwrap();
}

fn pod(name: &str, image: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}
