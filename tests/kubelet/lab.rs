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
use crate::registry::{self, Registry};
use crate::support::child::GuardedChild;
use crate::support::control_plane::{NODE, Options};
use crate::support::pods::pod_with;
use crate::support::{Authority, ControlPlane, FakeAws, control_plane, eventually};

/// In the account of the fake AWS's keys.
pub(crate) const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const PLUGIN: &str = "ecr-credential-provider";
/// Where the plugin keeps tokens.
pub(crate) const TOKENS: &str = "/run/ecr-injector/tokens";
/// The registry by a name that isn't ECR's: containerd pulls the sandbox's image itself.
const SANDBOX_HOST: &str = "sandbox.test";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const LIMIT: Duration = Duration::from_mins(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// In the order in which all of it ends.
pub(crate) struct Lab {
    kubelet: Option<GuardedChild>,
    _scheduler: GuardedChild,
    containerd: GuardedChild,
    pub(crate) plane: ControlPlane,
    pub(crate) registry: Registry,
    pub(crate) aws: Arc<FakeAws>,
    admin: Client,
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
    /// Starts all but the kubelet.
    pub(crate) async fn start() -> Self {
        let started = Instant::now();
        let plane = ControlPlane::start_with(Options {
            controllers: true,
            node: true,
            ..Options::default()
        })
        .await;
        let aws = Arc::new(FakeAws::start());
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
        let config = kubelet_config(folder, &self.plane.client_authority());
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
        let mut spec = json!({
            "hostNetwork": true,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image(name), "args": [name]}],
        });
        let more = more.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(more);
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
        self.wait(namespace, name, "is ready", |pod| {
            let conditions = pod["status"]["conditions"].as_array()?;
            let mut conditions = conditions.iter();
            let ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
            ready.then(String::new)
        })
        .await;
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

    /// Waits until something is so of a Pod.
    pub(crate) async fn wait<T>(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let pod = self.pod(namespace, name).await;
            if let Some(answer) = check(&pod) {
                return answer;
            }
            if Instant::now() > deadline {
                let mut message = format!("not after {LIMIT:?}: {name} {what}\n");
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
    format!("{HOST}/{repository}:v1")
}

/// Returns what the kubelet says of a pull that failed.
pub(crate) fn failed_pull(pod: &Value) -> Option<String> {
    let statuses = pod["status"]["containerStatuses"].as_array()?;
    let waiting = statuses.iter().map(|status| &status["state"]["waiting"]);
    let failed = waiting
        .into_iter()
        .find(|waiting| waiting["reason"] == "ErrImagePull");
    Some(failed?["message"].as_str()?.to_owned())
}

/// Returns a program of `make kubelet-lab`.
fn built(name: &str) -> PathBuf {
    let target = control_plane::target().join("kubelet-lab").join(name);
    assert!(
        target.is_file(),
        "{} isn't built: make kubelet-lab builds it",
        target.display()
    );
    target
}

fn start_containerd(folder: &Path, authority: &Authority, registry: &Registry) -> GuardedChild {
    let path = |name: &str| folder.join(name);
    fs::write(path("registry.pem"), authority.pem()).unwrap();
    for host in [HOST, SANDBOX_HOST] {
        let hosts = path("certs.d").join(host);
        fs::create_dir_all(&hosts).unwrap();
        let ca = path("registry.pem").display().to_string();
        let text = format!("server = \"https://{}\"\nca = \"{ca}\"\n", registry.address);
        fs::write(hosts.join("hosts.toml"), text).unwrap();
    }
    // Pods of the host's network need no plugin; a network has to be there all the same.
    fs::create_dir(path("cni")).unwrap();
    let network = json!({
        "cniVersion": "1.0.0", "name": "loopback", "plugins": [{"type": "loopback"}],
    });
    fs::write(path("cni/loopback.conflist"), network.to_string()).unwrap();
    let config = format!(
        r#"version = 3
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{SANDBOX_HOST}/{open}:v1"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{certs}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni}"]
conf_dir = "{cni}"
"#,
        root = path("containerd").display(),
        open = registry::OPEN,
        certs = path("certs.d").display(),
        cni = path("cni").display(),
    );
    fs::write(path("containerd.toml"), config).unwrap();
    let programs = built("containerd");
    let search = format!("{}:{PATH}", programs.parent().unwrap().display());
    GuardedChild::spawn(
        &programs,
        [format!("--config={}", path("containerd.toml").display())],
        Some(&[("PATH".to_owned(), search)]),
        path("containerd.log"),
    )
}

/// A kubelet that leaves alone what of the machine is outside of the lab.
fn kubelet_config(folder: &Path, client_authority: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": client_authority},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "podLogsDir": folder.join("pod-logs"),
        "volumePluginDir": folder.join("volume-plugins"),
        "readOnlyPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": false,
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%"},
        "resolvConf": "/etc/resolv.conf",
    })
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
