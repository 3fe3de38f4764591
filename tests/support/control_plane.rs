//! A private Kubernetes control plane: etcd, kube-apiserver with RBAC and, when asked, kube-controller-manager.
//!
//! There are no nodes: Pods are admitted and stored, and stay pending. Each control plane owns a /24 of the loopback
//! network, so that several run side by side:
//!
//! | address | use |
//! |---|---|
//! | `127.x.y.0/25` | cluster IPs of Services; a process that listens on one IS that Service |
//! | `127.x.y.129`, `.130` | kube-apiserver, etcd |
//! | `127.x.y.131` and up | [`ControlPlane::private_address`] |
//! | `127.x.y.254` | a socket that says that the block is taken |
//!
//! Where there is a node the block is 10.77.0.0/24, which the loopback interface of the test's own
//! machine has.

mod etcd;
mod pool;

use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use self::etcd::Contents;
use super::certificates::{self, Authority, Leaf};
use super::child::{GuardedChild, GuardedFolder};
use super::{crypto, eventually};

/// The name in the certificate that the API server presents to webhooks.
pub const WEBHOOK_CLIENT: &str = "kube-apiserver-webhooks";
/// The name of the node. A kubelet takes it for the node's address too, and asks no DNS.
pub const NODE: &str = "10.77.0.128";
/// The part of the block where there is a node: Pods with a network of their own reach no loopback
/// address of the machine.
const NODE_BLOCK: [u8; 3] = [10, 77, 0];
/// The first of [`ControlPlane::private_address`]. After the last one the first is free again: its test has ended.
const PRIVATE: u8 = 131;
const START_LIMIT: Duration = Duration::from_mins(1);
const CONTROLLERS: &[&str] = &[
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "job-controller",
    "serviceaccount-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "validatingadmissionpolicy-status-controller",
];
/// Run besides, where there is a node.
const NODE_CONTROLLERS: &[&str] = &[
    "node-lifecycle-controller",
    "endpointslice-controller",
    "disruption-controller",
];

/// Belongs to a test until it is dropped, and runs at most until the test process ends.
pub struct ControlPlane {
    running: Option<Running>,
    /// How long the audit log was when the test began.
    audited: usize,
}

/// The processes and all that goes with them.
struct Running {
    options: Options,
    etcd: String,
    /// The contents of etcd before the first test.
    pristine: Contents,
    block: Block,
    authority_pem: String,
    namespaces: AtomicUsize,
    kubeconfigs: AtomicUsize,
    private_addresses: AtomicU8,
    /// The arguments of kube-apiserver.
    api_server: Vec<String>,
    // In the order in which they go: the folder last.
    processes: Vec<GuardedChild>,
    folder: GuardedFolder,
}

/// The parts of a control plane beyond etcd and kube-apiserver.
#[derive(Clone, Copy, Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a part that is there or not"
)]
pub struct Options {
    /// Runs kube-controller-manager too: Deployments make Pods, namespaces get their `default` account, deletions end.
    pub controllers: bool,
    pub audit: AuditLevel,
    /// Traces every request, so that webhooks learn to which trace a review belongs. Nobody
    /// collects the traces.
    pub traces: bool,
    /// Holds nodes to their rights, and has [`ControlPlane::kubeconfig_for_node`].
    pub node: bool,
    /// Sends calls of a Service to its endpoints, as managed control planes do, instead of its cluster IP.
    pub endpoints: bool,
}

/// How much of each request the audit log holds.
#[derive(Clone, Copy, Debug, Default)]
pub enum AuditLevel {
    /// The user, the verb, the object and the outcome of each request.
    #[default]
    Metadata,
    /// The bodies as well: it then holds Secret data.
    RequestResponse,
}

impl ControlPlane {
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts one, or takes one that another test has ended with: it then holds what it held before that test.
    pub async fn start_with(options: Options) -> Self {
        crypto();
        let idle = if pool::is_for_all(options) {
            pool::take().await
        } else {
            None
        };
        let running = match idle {
            Some(running) => running,
            None => Running::start(options, None).await,
        };
        let audited = running.audit_log().len();
        Self {
            running: Some(running),
            audited,
        }
    }

    /// Starts one that keeps its contents in this folder, or goes on with those that an earlier one
    /// has left there.
    pub async fn start_in(folder: &Path, options: Options) -> Self {
        crypto();
        Self {
            running: Some(Running::start(options, Some(folder)).await),
            audited: 0,
        }
    }

    /// A client of the group `system:masters`: RBAC, and priority and fairness, don't hold it back.
    pub async fn admin(&self) -> Client {
        self.running().admin().await
    }

    pub fn kubeconfig_for_admin(&self) -> PathBuf {
        self.running().kubeconfig_for_admin()
    }

    /// A client with a token of this account, which is created if it doesn't exist; its namespace must.
    pub async fn as_service_account(&self, namespace: &str, name: &str) -> Client {
        client(&self.kubeconfig_for_service_account(namespace, name).await).await
    }

    /// A kubeconfig of the only node, [`NODE`].
    pub fn kubeconfig_for_node(&self) -> PathBuf {
        self.running().folder.path().join("node.kubeconfig")
    }

    /// The certificate of the authority that signs clients, as a file.
    pub fn client_authority(&self) -> PathBuf {
        self.running().folder.path().join("ca.crt")
    }

    /// A kubeconfig with a token of this account, good for a day.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await, namespace);
        ensure(
            &accounts,
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
        )
        .await;
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(24 * 60 * 60),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let token = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .unwrap()
            .status
            .unwrap()
            .token;
        let number = self.running().kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self
            .running()
            .folder
            .path()
            .join(format!("{namespace}-{name}-{number}.kubeconfig"));
        self.running()
            .write_kubeconfig(&path, &json!({"token": token}));
        path
    }

    /// A client of a `ServiceAccount` that may do with Pods what it likes, in all namespaces, and nothing else: load comes
    /// from it, for `system:masters` is exempt from priority and fairness and would hide what users meet.
    pub async fn pod_creator(&self) -> Client {
        let admin = self.admin().await;
        ensure(
            &Api::<Namespace>::all(admin.clone()),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "pod-creator"}}),
        )
        .await;
        ensure(
            &Api::<ClusterRole>::all(admin.clone()),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "pod-creator"},
                "rules": [{"apiGroups": [""], "resources": ["pods", "pods/ephemeralcontainers"], "verbs": ["*"]}],
            }),
        )
        .await;
        ensure(
            &Api::<ClusterRoleBinding>::all(admin),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": "pod-creator"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pod-creator"},
                "subjects": [{"kind": "ServiceAccount", "namespace": "pod-creator", "name": "pod-creator"}],
            }),
        )
        .await;
        let creator = self.as_service_account("pod-creator", "pod-creator").await;
        eventually("RBAC knows the Pods' creator", START_LIMIT, async || {
            may(&creator, "create", "pods").await.then_some(())
        })
        .await;
        creator
    }

    /// A new namespace with these labels; the name starts with `prefix`. It has its `default` account, without which no
    /// Pod is admitted.
    pub async fn namespace(&self, prefix: &str, labels: &[(&str, &str)]) -> String {
        let admin = self.admin().await;
        let number = self.running().namespaces.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{number}");
        let labels: serde_json::Map<String, Value> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        ensure(
            &Api::<Namespace>::all(admin.clone()),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
        .await;
        if self.running().options.controllers {
            self.running().wait_for_default_account(&name).await;
        } else {
            ensure(
                &Api::<ServiceAccount>::namespaced(admin, &name),
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
            )
            .await;
        }
        name
    }

    /// Runs kubectl as the admin.
    pub async fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with_input(arguments, "").await
    }

    /// Server-side apply of YAML (any number of documents), as the admin.
    pub async fn apply(&self, manifest: &str) {
        let output = self
            .kubectl_with_input(&["apply", "--server-side", "-f", "-"], manifest)
            .await;
        assert!(
            output.status.success(),
            "kubectl apply: {}\n{manifest}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs kubectl as the admin, with `input` on its standard input.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(programs().join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig_for_admin())
            .arg("--cache-dir")
            .arg(self.running().folder.path().join("kubectl-cache"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = kubectl.stdin.take().unwrap();
        // An error says that it ended without reading all of it: its exit status tells why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        kubectl.wait_with_output().await.unwrap()
    }

    /// The address of a Service with this `clusterIP`, 1 to 126 (0 and 127 end the range, 1 and 10 are Kubernetes' own).
    pub fn service_ip(&self, last_octet: u8) -> IpAddr {
        assert!(
            (2..127).contains(&last_octet),
            "not a usable address of the service range: {last_octet}"
        );
        self.running().block.address(last_octet)
    }

    /// Where the API server listens.
    pub fn api_server(&self) -> SocketAddr {
        (self.running().block.address(129), 6443).into()
    }

    /// A loopback address that nobody else listens on, whatever the port.
    pub fn private_address(&self) -> IpAddr {
        let next = |octet: u8| Some(if octet < 253 { octet + 1 } else { PRIVATE });
        let last_octet = self
            .running()
            .private_addresses
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .unwrap();
        self.running().block.address(last_octet)
    }

    /// Kills the API server, starts it again, and waits until it is ready.
    pub async fn restart_api_server(&mut self) {
        let running = self.running.as_mut().unwrap();
        running.processes[1].kill();
        running.processes[1] = spawn_api_server(&running.api_server, running.folder.path());
        running.wait_until_ready().await;
    }

    /// A folder that goes with the control plane.
    pub fn folder(&self) -> &Path {
        self.running().folder.path()
    }

    /// All that the API server was asked since the test began, a `Event` of audit.k8s.io/v1 for each finished request.
    pub fn audit_events(&self) -> Vec<Value> {
        let log = self.running().audit_log();
        String::from_utf8_lossy(&log[self.audited..])
            .lines()
            // The last line may be half written.
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Which Kubernetes it is: 37 for 1.37.
    pub fn minor_version() -> u32 {
        minor_version(&programs())
    }

    /// The part that this user asked, such as `system:serviceaccount:ecr-injector:ecr-injector`.
    pub fn audit_events_of(&self, user: &str) -> Vec<Value> {
        let mut events = self.audit_events();
        events.retain(|event| event["user"]["username"] == user);
        events
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A test that fails may leave anything behind.
        if let Some(running) = self.running.take()
            && pool::is_for_all(running.options)
            && !std::thread::panicking()
        {
            pool::give_back(running);
        }
    }
}

fn spawn_api_server(arguments: &[String], folder: &Path) -> GuardedChild {
    let log = folder.join("kube-apiserver.log");
    GuardedChild::spawn(&programs().join("kube-apiserver"), arguments, None, log)
}

impl Running {
    async fn start(options: Options, kept: Option<&Path>) -> Self {
        let programs = programs();
        let folder = GuardedFolder::create();
        let block = match kept {
            _ if options.node => Block::of_node(),
            Some(kept) => Block::kept(kept),
            None => Block::claim(),
        };
        let authority = Authority::new("test-control-plane");
        let api_server = block.address(129);
        // Pods call it by its Service.
        let names = [api_server, block.address(1)];
        let files = Files::write(folder.path(), &authority, names, options.audit);

        let log = |program: &str| folder.path().join(format!("{program}.log"));
        let etcd_url = format!("http://{}:2379", block.address(130));
        let etcd = GuardedChild::spawn(
            &programs.join("etcd"),
            etcd_arguments(&etcd_url, block.address(130), kept.unwrap_or(folder.path())),
            None,
            log("etcd"),
        );
        let mut arguments =
            api_server_arguments(&files, &etcd_url, api_server, &block.service_range());
        if options.traces {
            arguments.push(tracing_argument(folder.path()));
        }
        if options.node {
            arguments.push("--authorization-mode=Node,RBAC".to_owned());
            arguments.push("--enable-admission-plugins=NodeRestriction".to_owned());
        } else {
            arguments.push("--authorization-mode=RBAC".to_owned());
        }
        if options.endpoints {
            arguments.push("--enable-aggregator-routing=true".to_owned());
        }
        if (31..35).contains(&minor_version(&programs)) {
            // From 1.35 on it is so by itself; before 1.31 there are no image volumes.
            arguments.push("--feature-gates=ImageVolume=true".to_owned());
        }
        let kube_apiserver = spawn_api_server(&arguments, folder.path());
        let mut plane = Self {
            options,
            etcd: etcd_url,
            pristine: Contents::default(),
            block,
            authority_pem: authority.pem(),
            namespaces: AtomicUsize::new(1),
            kubeconfigs: AtomicUsize::new(1),
            private_addresses: AtomicU8::new(PRIVATE),
            api_server: arguments,
            processes: vec![etcd, kube_apiserver],
            folder,
        };
        plane.write_client_kubeconfig("admin", &authority.client("admin", "system:masters"));
        if options.node {
            let node = authority.client(&format!("system:node:{NODE}"), "system:nodes");
            plane.write_client_kubeconfig("node", &node);
        }
        plane.wait_until_ready().await;
        if options.controllers {
            let manager = GuardedChild::spawn(
                &programs.join("kube-controller-manager"),
                controller_manager_arguments(&files, &plane.kubeconfig_for_admin(), options.node),
                None,
                plane.folder.path().join("kube-controller-manager.log"),
            );
            plane.processes.push(manager);
            plane.wait_for_default_account("default").await;
        }
        if pool::is_for_all(options) {
            plane.pristine = Contents::read(&plane.etcd).await;
        }
        plane
    }

    async fn admin(&self) -> Client {
        client(&self.kubeconfig_for_admin()).await
    }

    fn kubeconfig_for_admin(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    fn audit_log(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("audit.log")).unwrap()
    }

    fn write_client_kubeconfig(&self, name: &str, client: &Leaf) {
        let user = json!({
            "client-certificate-data": BASE64_STANDARD.encode(&client.certificate),
            "client-key-data": BASE64_STANDARD.encode(&client.key),
        });
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        self.write_kubeconfig(&path, &user);
    }

    fn write_kubeconfig(&self, path: &Path, user: &Value) {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}:6443", self.block.address(129)),
                "certificate-authority-data": BASE64_STANDARD.encode(&self.authority_pem),
            }}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        // JSON is YAML.
        certificates::write_private(path, &kubeconfig.to_string());
    }

    async fn wait_until_ready(&mut self) {
        let mut config = config(&self.kubeconfig_for_admin()).await;
        config.default_retry = false;
        let admin = Client::try_from(config).unwrap();
        let namespaces: Api<Namespace> = Api::all(admin.clone());
        let levels: Api<PriorityLevelConfiguration> = Api::all(admin.clone());
        let processes = &mut self.processes;
        let started = tokio::time::timeout(START_LIMIT, async {
            loop {
                let ready = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if admin.request_text(ready).await.is_ok()
                    && exists(&namespaces, "default").await
                    && exists(&namespaces, "kube-system").await
                    && exists(&levels, "workload-high").await
                {
                    return;
                }
                processes.iter_mut().for_each(GuardedChild::assert_running);
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        })
        .await;
        if started.is_err() {
            let mut message = format!("the control plane isn't ready after {START_LIMIT:?}");
            for process in processes {
                let _ = write!(message, "\n{}", process.log_tail());
            }
            panic!("{message}");
        }
    }

    async fn wait_for_default_account(&self, namespace: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await, namespace);
        eventually(
            "the namespace has its default account",
            START_LIMIT,
            async || exists(&accounts, "default").await.then_some(()),
        )
        .await;
    }
}

/// Whether RBAC lets this client do it, in all namespaces.
pub async fn may(client: &Client, verb: &str, resource: &str) -> bool {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                resource: Some(resource.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    Api::<SelfSubjectAccessReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .unwrap()
        .status
        .is_some_and(|status| status.allowed)
}

/// A client by a kubeconfig. Clients belong to the runtime that made them, and each test has its own. It does not try again
/// by itself: an answer is what a test is about.
pub async fn client(kubeconfig: &Path) -> Client {
    let mut config = config(kubeconfig).await;
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn config(kubeconfig: &Path) -> Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

async fn exists<K>(api: &Api<K>, name: &str) -> bool
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    matches!(api.get_opt(name).await, Ok(Some(_)))
}

/// Creates the object unless it exists.
async fn ensure<K>(api: &Api<K>, object: Value)
where
    K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("creating {object:?}: {error}"),
    }
}

/// Where tests/tools/build.sh puts what it builds.
pub fn target() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| manifest.join("target"), |target| manifest.join(target))
}

/// Where kube-apiserver and the others are.
pub fn programs() -> PathBuf {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS")
        .map_or_else(|| target().join("control-plane/bin"), PathBuf::from);
    for program in [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kubectl",
    ] {
        assert!(
            folder.join(program).is_file(),
            "{} has no {program}: run `make control-plane` first, or set KUBEBUILDER_ASSETS to a folder that has it",
            folder.display()
        );
    }
    folder
}

/// Which Kubernetes 1 this is.
fn minor_version(programs: &Path) -> u32 {
    static MINOR: OnceLock<u32> = OnceLock::new();
    *MINOR.get_or_init(|| {
        let output = std::process::Command::new(programs.join("kube-apiserver"))
            .arg("--version")
            .output()
            .unwrap();
        let version = String::from_utf8(output.stdout).unwrap();
        let minor = version.trim().strip_prefix("Kubernetes v1.");
        minor
            .and_then(|minor| minor.split('.').next()?.parse().ok())
            .unwrap_or_else(|| panic!("the version of a Kubernetes: {version}"))
    })
}

/// A /24 that this control plane alone uses.
struct Block {
    network: [u8; 3],
    _claim: TcpListener,
}

impl Block {
    fn claim() -> Self {
        // The standard library's hasher is seeded at random: test binaries that start together rarely meet.
        let [seed, third, ..] = RandomState::new().hash_one(()).to_ne_bytes();
        (0..=u8::MAX)
            .find_map(|offset| {
                // Not 127.0: everybody else is there.
                let second = 64 + seed % 128;
                let third = third.wrapping_add(offset);
                Self::of([127, second, third]).ok()
            })
            .expect("a loopback block that no other control plane uses")
    }

    /// The one that a kubelet's machine has for its only control plane.
    fn of_node() -> Self {
        Self::of(NODE_BLOCK).expect("tests/kubelet/namespace.sh gives the machine this block")
    }

    /// The one whose Services etcd has in this folder, or one for a folder that is new.
    fn kept(folder: &Path) -> Self {
        let file = folder.join("network.json");
        if let Ok(text) = fs::read_to_string(&file) {
            let network = serde_json::from_str(&text).unwrap();
            return Self::of(network).expect("the loopback block of the kept control plane");
        }
        let block = Self::claim();
        fs::create_dir_all(folder).unwrap();
        fs::write(&file, json!(block.network).to_string()).unwrap();
        block
    }

    fn of(network: [u8; 3]) -> std::io::Result<Self> {
        let [first, second, third] = network;
        let claim = TcpListener::bind((Ipv4Addr::new(first, second, third, 254), 6440))?;
        Ok(Self {
            network,
            _claim: claim,
        })
    }

    fn address(&self, last_octet: u8) -> IpAddr {
        let [first, second, third] = self.network;
        Ipv4Addr::new(first, second, third, last_octet).into()
    }

    fn service_range(&self) -> String {
        format!("{}/25", self.address(0))
    }
}

/// The files that the API server and the controllers read, and the one that is written.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    account_signing_key: PathBuf,
    account_key: PathBuf,
    audit_policy: PathBuf,
    audit_log: PathBuf,
    admission: PathBuf,
}

impl Files {
    fn write(folder: &Path, authority: &Authority, names: [IpAddr; 2], audit: AuditLevel) -> Self {
        let names = names.map(|name| name.to_string());
        let names = names.each_ref().map(String::as_str);
        let serving = authority.serving(&names, folder, "kube-apiserver");
        let files = Self {
            authority: folder.join("ca.crt"),
            certificate: serving.certificate,
            key: serving.key,
            account_signing_key: folder.join("service-accounts.key"),
            account_key: folder.join("service-accounts.pub"),
            audit_policy: folder.join("audit-policy.json"),
            audit_log: folder.join("audit.log"),
            admission: folder.join("admission.json"),
        };
        fs::write(&files.authority, authority.pem()).unwrap();
        let (private, public) = certificates::key_pair();
        certificates::write_private(&files.account_signing_key, &private);
        fs::write(&files.account_key, public).unwrap();
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{"level": format!("{audit:?}")}],
        });
        fs::write(&files.audit_policy, policy.to_string()).unwrap();
        fs::write(&files.audit_log, "").unwrap();
        files.present_a_certificate_to_webhooks(&authority.client(WEBHOOK_CLIENT, "api-servers"));
        files
    }
}

impl Files {
    /// Webhooks that ask for a client's certificate get this one; the others notice nothing.
    fn present_a_certificate_to_webhooks(&self, client: &Leaf) {
        let kubeconfig = self.admission.with_file_name("webhooks.kubeconfig");
        let user = json!({
            "client-certificate-data": BASE64_STANDARD.encode(&client.certificate),
            "client-key-data": BASE64_STANDARD.encode(&client.key),
        });
        let users = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "users": [{"name": "*", "user": user}],
        });
        certificates::write_private(&kubeconfig, &users.to_string());
        let webhooks = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": kubeconfig,
        });
        let admission = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "MutatingAdmissionWebhook", "configuration": webhooks}],
        });
        fs::write(&self.admission, admission.to_string()).unwrap();
    }
}

fn etcd_arguments(url: &str, address: IpAddr, folder: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls=http://{address}:2380"),
        format!("--initial-advertise-peer-urls=http://{address}:2380"),
        format!("--initial-cluster=default=http://{address}:2380"),
        // What it holds need not survive a crash.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server_arguments(
    files: &Files,
    etcd: &str,
    address: IpAddr,
    service_range: &str,
) -> Vec<String> {
    vec![
        format!("--etcd-servers={etcd}"),
        format!("--bind-address={address}"),
        // By default it looks for a network interface, which a sandbox may not have.
        format!("--advertise-address={address}"),
        "--secure-port=6443".to_owned(),
        // An Endpoints object may not name a loopback address; nothing reads the one of the API server.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--service-cluster-ip-range={service_range}"),
        format!("--tls-cert-file={}", files.certificate.display()),
        format!("--tls-private-key-file={}", files.key.display()),
        format!("--client-ca-file={}", files.authority.display()),
        format!(
            "--admission-control-config-file={}",
            files.admission.display()
        ),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", files.account_key.display()),
        format!(
            "--service-account-signing-key-file={}",
            files.account_signing_key.display()
        ),
        format!("--audit-policy-file={}", files.audit_policy.display()),
        format!("--audit-log-path={}", files.audit_log.display()),
        // In megabytes: a rotated file would be missed.
        "--audit-log-maxsize=10000".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn tracing_argument(folder: &Path) -> String {
    let path = folder.join("tracing.json");
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1beta1",
        "kind": "TracingConfiguration",
        "endpoint": "127.0.0.1:1",
        "samplingRatePerMillion": 1_000_000,
    });
    fs::write(&path, configuration.to_string()).unwrap();
    format!("--tracing-config-file={}", path.display())
}

fn controller_manager_arguments(files: &Files, kubeconfig: &Path, node: bool) -> Vec<String> {
    let of_nodes = if node { NODE_CONTROLLERS } else { &[] };
    let controllers = [CONTROLLERS, of_nodes].concat();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!(
            "--service-account-private-key-file={}",
            files.account_signing_key.display()
        ),
        format!("--root-ca-file={}", files.authority.display()),
        format!("--controllers={}", controllers.join(",")),
        "--leader-elect=false".to_owned(),
        // Serves nothing.
        "--secure-port=0".to_owned(),
    ]
}
