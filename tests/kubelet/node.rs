//! The programs of a node: containerd, the kubelet and kube-proxy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::registry::{self, Registry};
use crate::support::child::GuardedChild;
use crate::support::control_plane::NODE;
use crate::support::{Authority, control_plane};

/// The search path of the node's programs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The registry by a name that isn't ECR's: containerd pulls the sandbox's image itself.
pub(crate) const SANDBOX_HOST: &str = "sandbox.test";
/// The addresses of Pods that have a network of their own.
const POD_NETWORK: &str = "10.77.1.0/24";
/// Where Debian has them.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Returns a program of `make kubelet-lab`.
pub(crate) fn built(name: &str) -> PathBuf {
    let target = control_plane::target().join("kubelet-lab").join(name);
    assert!(
        target.is_file(),
        "{} isn't built: make kubelet-lab builds it",
        target.display()
    );
    target
}

/// Starts containerd, which pulls from the registry whatever host an image names.
pub(crate) fn start_containerd(
    folder: &Path,
    authority: &Authority,
    registry: &Registry,
) -> GuardedChild {
    let path = |name: &str| folder.join(name);
    fs::write(path("registry.pem"), authority.pem()).unwrap();
    let hosts = path("certs.d/_default");
    fs::create_dir_all(&hosts).unwrap();
    let ca = path("registry.pem").display().to_string();
    let registry = format!("https://{}", registry.address);
    // containerd 1 reads no file without a table of hosts.
    let text = format!("server = \"{registry}\"\n[host.\"{registry}\"]\nca = \"{ca}\"\n");
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    fs::create_dir(path("cni")).unwrap();
    let network = json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": path("cni/addresses"),
                "ranges": [[{"subnet": POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(path("cni/pods.conflist"), network.to_string()).unwrap();
    let programs = containerd_programs();
    fs::write(
        path("containerd.toml"),
        containerd_config(folder, is_first_major(&programs)),
    )
    .unwrap();
    let search = format!("{}:{PATH}", programs.display());
    GuardedChild::spawn(
        &programs.join("containerd"),
        [format!("--config={}", path("containerd.toml").display())],
        Some(&[("PATH".to_owned(), search)]),
        path("containerd.log"),
    )
}

/// Returns the folder of containerd, its shim and ctr: `ECR_INJECTOR_CONTAINERD`, or what `make
/// kubelet-lab` built.
pub(crate) fn containerd_programs() -> PathBuf {
    let built = || built("containerd").parent().unwrap().to_owned();
    env::var_os("ECR_INJECTOR_CONTAINERD").map_or_else(built, PathBuf::from)
}

/// Whether it is containerd 1, which has a configuration of its own and no image volumes.
pub(crate) fn is_first_major(programs: &Path) -> bool {
    let containerd = programs.join("containerd");
    let output = Command::new(containerd).arg("--version").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    let number = version.split_whitespace().nth(2).unwrap();
    number.trim_start_matches('v').starts_with("1.")
}

fn containerd_config(folder: &Path, is_first_major: bool) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let sandbox = format!("{SANDBOX_HOST}/{}:v1", registry::OPEN);
    let (root, certs, cni) = (path("containerd"), path("certs.d"), path("cni"));
    let settings = if is_first_major {
        format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{cni}"
"#
        )
    } else {
        format!(
            r#"version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{certs}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{cni}"
"#
        )
    };
    let (first, rest) = settings.split_once('\n').unwrap();
    format!(
        r#"{first}
root = "{root}"
state = "/run/containerd"
{rest}[grpc]
address = "{CONTAINERD}"
"#
    )
}

/// A kubelet that leaves alone what of the machine is outside of the lab.
pub(crate) fn kubelet_config(folder: &Path, client_authority: &Path) -> Value {
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

/// Starts kube-proxy, which sends what calls a Service to its Pods.
pub(crate) fn start_proxy(folder: &Path, kubeconfig: &Path) -> GuardedChild {
    // Zeros leave the kernel's own limits, which are not the network namespace's to change.
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": NODE,
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    });
    let path = folder.join("kube-proxy.json");
    fs::write(&path, config.to_string()).unwrap();
    GuardedChild::spawn(
        &built("kube-proxy"),
        [format!("--config={}", path.display())],
        Some(&[("PATH".to_owned(), PATH.to_owned())]),
        folder.join("kube-proxy.log"),
    )
}
