//! A cluster with one node that runs containers: a control plane, containerd, a kubelet, and the
//! registry that stands for ECR under its name.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::isolation::{command_line, processes};
use crate::node::{
    PATH, built, containerd_programs, kubelet_config, start_containerd, start_proxy,
};
use crate::registry::Registry;
use crate::support::child::GuardedChild;
use crate::support::control_plane::{AuditLevel, NODE, Options};
use crate::support::pods::pod_with;
use crate::support::{Authority, ControlPlane, FakeAws, eventually};

/// In the account of the fake AWS's keys.
pub(crate) const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const PLUGIN: &str = "ecr-credential-provider";
/// Where the plugin keeps tokens.
pub(crate) const TOKENS: &str = "/run/ecr-injector/tokens";
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
/// How long a Pod that waits may take until it is ready: the kubelet tries again after 10 s, and
/// then after twice as long each time.
const RECOVERY: Duration = Duration::from_mins(4);

/// In the order in which all of it ends.
pub(crate) struct Lab {
    kubelet: Option<GuardedChild>,
    proxy: Option<GuardedChild>,
    _scheduler: GuardedChild,
    containerd: GuardedChild,
    pub(crate) plane: ControlPlane,
    pub(crate) registry: Registry,
    pub(crate) aws: Arc<FakeAws>,
    pub(crate) admin: Client,
    /// Fields of the kubelet's configuration that a test changes.
    settings: Value,
    folder: TempDir,
    started: Instant,
}

/// Where the kubelet gets credentials from, beside the Pod's pull secrets.
#[derive(Clone, Copy, Default)]
pub(crate) struct Plugin {
    /// Flags of `ecr-injector credential-provider config`. Without any it is for kubeadm.
    pub(crate) config: &'static [&'static str],
    /// The plugin's own flags.
    pub(crate) arguments: &'static [&'static str],
}

impl Lab {
    /// The control plane of a lab.
    pub(crate) const OPTIONS: Options = Options {
        controllers: true,
        audit: AuditLevel::Metadata,
        traces: false,
        node: true,
        endpoints: false,
    };

    /// Starts all but the kubelet.
    pub(crate) async fn start() -> Self {
        Self::start_with(Self::OPTIONS).await
    }

    /// Starts all but the kubelet, with a control plane of its own kind.
    pub(crate) async fn start_with(options: Options) -> Self {
        let started = Instant::now();
        let plane = ControlPlane::start_with(options).await;
        let aws = Arc::new(FakeAws::start_at(plane.private_address()));
        let folder = TempDir::new().unwrap();
        let authority = Authority::new("the registry's CA");
        let registry = Registry::start(&authority, Arc::clone(&aws), folder.path());
        let containerd = start_containerd(folder.path(), &authority, &registry);
        let scheduler = GuardedChild::spawn(
            &built("kube-scheduler"),
            [
                format!("--kubeconfig={}", plane.kubeconfig_for_admin().display()),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ],
            Some(&[]),
            folder.path().join("scheduler.log"),
        );
        let lab = Self {
            kubelet: None,
            proxy: None,
            settings: json!({}),
            _scheduler: scheduler,
            containerd,
            admin: plane.admin().await,
            plane,
            registry,
            aws,
            folder,
            started,
        };
        lab.install(Path::new(env!("CARGO_BIN_EXE_ecr-credentials")));
        lab.say("the control plane runs");
        lab
    }

    /// Starts all of it.
    pub(crate) async fn with(plugin: Plugin) -> Self {
        let mut lab = Self::start().await;
        lab.start_kubelet(Some(plugin)).await;
        lab
    }

    /// Prints how long after the start of the lab something was so.
    pub(crate) fn say(&self, what: &str) {
        println!("{:7.2} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Installs a file as the plugin, in place of the one that is there.
    pub(crate) fn install(&self, program: &Path) {
        let path = |name: &str| self.folder.path().join(name);
        fs::create_dir_all(path("providers")).unwrap();
        symlink(program, path("providers/new")).unwrap();
        let installed = path("providers").join(PLUGIN);
        fs::rename(path("providers/new"), installed).unwrap();
    }

    /// Returns a path for a test's own file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the kubelet, or ends the one that runs and starts another. What it remembers of pulls
    /// is on the disk and stays; credentials aren't.
    pub(crate) async fn start_kubelet(&mut self, plugin: Option<Plugin>) {
        if let Some(kubelet) = &mut self.kubelet {
            kubelet.signal("TERM");
            kubelet.ended(LIMIT).await;
        }
        let folder = self.folder.path();
        let mut config = kubelet_config(folder, &self.plane.client_authority());
        let settings = self.settings.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(settings);
        fs::write(folder.join("kubelet.json"), config.to_string()).unwrap();
        let mut arguments = vec![
            format!("--config={}", folder.join("kubelet.json").display()),
            format!(
                "--kubeconfig={}",
                self.plane.kubeconfig_for_node().display()
            ),
            format!("--hostname-override={NODE}"),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--cert-dir={}", folder.join("kubelet-pki").display()),
            "--v=2".to_owned(),
        ];
        if let Some(plugin) = plugin {
            let config = self.provider_config(plugin);
            fs::write(folder.join("provider.json"), config.to_string()).unwrap();
            for (flag, name) in [("config", "provider.json"), ("bin-dir", "providers")] {
                let path = folder.join(name);
                arguments.push(format!(
                    "--image-credential-provider-{flag}={}",
                    path.display()
                ));
            }
        }
        let environment = [("PATH".to_owned(), PATH.to_owned())];
        let log = folder.join("kubelet.log");
        self.kubelet = Some(GuardedChild::spawn(
            &built("kubelet"),
            arguments,
            Some(&environment),
            log,
        ));
        self.wait_for_node().await;
        self.say("the kubelet is ready");
    }

    /// Changes fields of the kubelet's configuration, from its next start on.
    pub(crate) fn configure_kubelet(&mut self, settings: Value) {
        self.settings = settings;
    }

    /// Starts kube-proxy. From then on Services lead to their Pods.
    pub(crate) async fn start_proxy(&mut self) {
        let kubeconfig = self.plane.kubeconfig_for_admin();
        // The API server doesn't write its own endpoints in there.
        let api_server = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "endpoints": [{"addresses": [self.plane.api_server().ip()]}],
            "ports": [{"name": "https", "port": self.plane.api_server().port()}],
        });
        self.plane.apply(&api_server.to_string()).await;
        let mut proxy = start_proxy(self.folder.path(), &kubeconfig);
        eventually("kube-proxy is healthy", LIMIT, async || {
            proxy.assert_running();
            let answer = get("127.0.0.1:10256", "/healthz").await?;
            answer.starts_with("HTTP/1.0 200").then_some(())
        })
        .await;
        self.proxy = Some(proxy);
        self.say("kube-proxy is healthy");
    }

    /// Imports an archive of an image into containerd under this name, without its tag.
    pub(crate) fn import(&self, archive: &Path, name: &str) {
        let output = Command::new(containerd_programs().join("ctr"))
            .args([
                "--address",
                crate::node::CONTAINERD,
                "--namespace",
                "k8s.io",
            ])
            .args(["images", "import", "--base-name", name])
            .arg(archive)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        self.say(&format!("{name} is imported"));
    }

    pub(crate) fn kubelet_pid(&self) -> u32 {
        self.kubelet.as_ref().unwrap().id()
    }

    /// Returns what all kubelets so far have logged.
    pub(crate) fn kubelet_log(&self) -> String {
        self.kubelet.as_ref().unwrap().log()
    }

    /// Returns the configuration that ours prints, with the variables by which the plugin finds the
    /// fake AWS.
    fn provider_config(&self, plugin: Plugin) -> Value {
        let printed = printed_config(&["-o", "json"], plugin);
        let mut config: Value = serde_json::from_str(&printed).unwrap();
        let provider = &mut config["providers"][0];
        let listed = |field: &Value| field.as_array().cloned().unwrap_or_default();
        let mut variables = listed(&provider["env"]);
        let ours = self.aws.environment().into_iter();
        variables.extend(ours.map(|(name, value)| json!({"name": name, "value": value})));
        provider["env"] = variables.into();
        let mut arguments = listed(&provider["args"]);
        arguments.extend(plugin.arguments.iter().map(|&argument| argument.into()));
        provider["args"] = arguments.into();
        config
    }

    async fn wait_for_node(&mut self) {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let kubelet = self.kubelet.as_mut().unwrap();
        let containerd = &mut self.containerd;
        eventually("the node is ready", LIMIT, async || {
            containerd.assert_running();
            kubelet.assert_running();
            let answer = get("127.0.0.1:10248", "/healthz").await?;
            let node = nodes.get_opt(NODE).await.ok()??;
            let is_tainted = node.spec.is_some_and(|spec| spec.taints.is_some());
            let conditions = node.status?.conditions?;
            let is_ready = |name: &str, status: &str| name == "Ready" && status == "True";
            let mut conditions = conditions.iter();
            let ready = conditions.any(|it| is_ready(&it.type_, &it.status));
            (ready && !is_tainted && answer.ends_with("ok")).then_some(())
        })
        .await;
    }

    /// Creates a Pod that runs this repository's image, with more fields in its `spec`.
    pub(crate) async fn create(&self, namespace: &str, name: &str, more: &Value) {
        let spec = spec(name, more);
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        let pod = pod_with(name, &spec);
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> Value {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        serde_json::to_value(pods.get(name).await.unwrap()).unwrap()
    }

    /// Creates a Pod whose image is that of the repository with its name, and waits until it is
    /// ready.
    pub(crate) async fn runs(&self, namespace: &str, name: &str, more: &Value) {
        let created = Instant::now();
        self.create(namespace, name, more).await;
        self.wait_until_ready(namespace, name).await;
        let took = created.elapsed().as_secs_f64();
        self.say(&format!("{name} is ready after {took:.2} s"));
    }

    pub(crate) async fn wait_until_ready(&self, namespace: &str, name: &str) {
        self.wait(namespace, name, "is ready", is_ready).await;
    }

    /// Creates such a Pod, waits until the kubelet says that its image can't be pulled, and returns
    /// what it says.
    pub(crate) async fn cannot_pull(&self, namespace: &str, name: &str, more: &Value) -> String {
        self.create(namespace, name, more).await;
        self.wait_for_failed_pull(namespace, name).await
    }

    pub(crate) async fn wait_for_failed_pull(&self, namespace: &str, name: &str) -> String {
        let said = self
            .wait(namespace, name, "can't be pulled", failed_pull)
            .await;
        self.say(&format!("{name} can't be pulled: {said}"));
        said
    }

    /// Waits until a Pod that waits for its image is ready, as the kubelet tries again.
    pub(crate) async fn wait_until_recovered(&self, namespace: &str, name: &str) {
        let waited = Instant::now();
        self.wait_within(RECOVERY, namespace, name, "is ready", is_ready)
            .await;
        let took = waited.elapsed().as_secs_f64();
        self.say(&format!("{name}, which waited, is ready after {took:.2} s"));
    }

    /// Waits until something is so of a Pod.
    pub(crate) async fn wait<T>(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> Option<T>,
    ) -> T {
        self.wait_within(LIMIT, namespace, name, what, check).await
    }

    async fn wait_within<T>(
        &self,
        limit: Duration,
        namespace: &str,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let pod = self.pod(namespace, name).await;
            if let Some(answer) = check(&pod) {
                return answer;
            }
            if Instant::now() > deadline {
                let mut message = format!("not after {limit:?}: {name} {what}\n");
                writeln!(message, "{:#}", pod["status"]).unwrap();
                let kubelet = self.kubelet.as_ref().unwrap();
                let logs = [kubelet.log_tail(), self.containerd.log_tail()];
                panic!("{message}{}", logs.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the process of a Pod's container.
    pub(crate) fn kill_container(&self, name: &str) {
        let wanted = format!("/pause {name}");
        let found: Vec<_> = processes()
            .filter(|it| command_line(it) == wanted)
            .collect();
        assert_eq!(found.len(), 1, "processes of {name}");
        let pid = found[0].file_name().unwrap();
        let killed = Command::new("sh")
            .args(["-c", "kill -KILL \"$1\"", "sh"])
            .arg(pid)
            .status();
        assert!(killed.unwrap().success());
        self.say(&format!("the container of {name} was killed"));
    }

    /// Removes the plugin's tokens, as a reboot does.
    pub(crate) fn forget_tokens(&self) {
        fs::remove_dir_all(TOKENS).unwrap();
        self.say("the plugin's tokens are removed");
    }
}

/// Prints the plugin's configuration.
pub(crate) fn printed_config(flags: &[&str], plugin: Plugin) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(["credential-provider", "config"])
        .args(flags)
        .args(plugin.config)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the image of a repository.
pub(crate) fn image(repository: &str) -> String {
    image_at(HOST, repository)
}

/// Returns the image of a repository of another host.
pub(crate) fn image_at(host: &str, repository: &str) -> String {
    format!("{host}/{repository}:v1")
}

/// Returns the host of another region.
pub(crate) fn host(region: &str) -> String {
    format!("123456789012.dkr.ecr.{region}.amazonaws.com")
}

/// Returns the `spec` of a Pod that runs a repository's image, with more fields.
pub(crate) fn spec(repository: &str, more: &Value) -> Value {
    let mut spec = json!({
        "hostNetwork": true,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": image(repository), "args": [repository]}],
    });
    let more = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(more);
    spec
}

pub(crate) fn is_ready(pod: &Value) -> Option<()> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let mut conditions = conditions.iter();
    let ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
    ready.then_some(())
}

/// Returns what the kubelet says of a pull that failed, of whatever kind of container.
pub(crate) fn failed_pull(pod: &Value) -> Option<String> {
    let kinds = [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    let statuses = kinds
        .iter()
        .filter_map(|kind| pod["status"][*kind].as_array());
    let mut waiting = statuses.flatten().map(|status| &status["state"]["waiting"]);
    let failed = waiting.find(|waiting| waiting["reason"] == "ErrImagePull");
    Some(failed?["message"].as_str()?.to_owned())
}

/// Returns the answer of an HTTP server.
async fn get(address: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
