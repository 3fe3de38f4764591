//! The kubelet's file of credential providers (`CredentialProviderConfig`): how it is written for a
//! distribution, and which hosts its patterns match.

pub mod check;

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::kubelet::Version;
use crate::{
    identity::machine::ROLE_ANNOTATIONS,
    registry::{HostForm, PUBLIC_HOSTS, Partition, Registry},
};

/// The version of the file.
pub(super) const API_VERSION: &str = "kubelet.config.k8s.io/v1";
pub(super) const KIND: &str = "CredentialProviderConfig";
/// The audience of ServiceAccounts' tokens for AWS.
pub const AUDIENCE: &str = "sts.amazonaws.com";
/// The name of the objects that let nodes request such tokens.
const RBAC_NAME: &str = "ecr-credential-provider-audience";

/// A way to install Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// `kubeadm`, and whatever passes flags to the kubelet.
    #[default]
    Kubeadm,
    /// Self-made machine images of EKS.
    Eks,
    /// Hybrid nodes of EKS.
    EksHybrid,
    /// k3s.
    K3s,
    /// RKE2.
    Rke2,
    /// kOps.
    Kops,
    /// `MicroK8s`.
    Microk8s,
    /// Talos Linux.
    Talos,
    /// kind.
    Kind,
}

/// The content of a file.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The distribution.
    pub distribution: Distribution,
    /// The partitions whose hosts are matched; empty: all.
    pub partitions: Vec<Partition>,
    /// The aliases.
    pub aliases: Vec<(String, Registry)>,
    /// Whether the public gallery gets a token.
    pub public: bool,
    /// How ServiceAccounts' tokens are used.
    pub service_accounts: ServiceAccounts,
}

/// The use of ServiceAccounts' tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceAccounts {
    /// The node's own identity mints for all Pods.
    #[default]
    Unused,
    /// A ServiceAccount's role mints.
    Used,
    /// A ServiceAccount's role mints, and the plugin is called for those alone that have our
    /// annotation.
    RoleRequired,
}

impl Distribution {
    /// All distributions, by their names.
    pub const ALL: [(&str, Self); 9] = [
        ("kubeadm", Self::Kubeadm),
        ("eks", Self::Eks),
        ("eks-hybrid", Self::EksHybrid),
        ("k3s", Self::K3s),
        ("rke2", Self::Rke2),
        ("kops", Self::Kops),
        ("microk8s", Self::Microk8s),
        ("talos", Self::Talos),
        ("kind", Self::Kind),
    ];

    /// Returns where the file and the program go, and how the kubelet finds them.
    fn place(self) -> &'static str {
        match self {
            Self::Kubeadm => {
                "This file: /etc/kubernetes/credential-provider.yaml\n\
                 Program: /usr/local/bin/credential-providers/ecr-credential-provider, mode 0755\n\
                 Kubelet, by kubeletExtraArgs of kubeadm's InitConfiguration and JoinConfiguration:\n  \
                 --image-credential-provider-config=/etc/kubernetes/credential-provider.yaml\n  \
                 --image-credential-provider-bin-dir=/usr/local/bin/credential-providers"
            }
            Self::Eks => {
                "This file: /etc/eks/image-credential-provider/config.json, in the place of the one that is there\n\
                 Program: /etc/eks/image-credential-provider/ecr-credential-provider, in the place of the other one\n\
                 Kubelet: nothing; its flags are set already"
            }
            Self::EksHybrid => {
                "This file: /etc/eks/image-credential-provider/config.json, in the place of the one that is there\n\
                 Program: /etc/eks/image-credential-provider/ecr-credential-provider, in the place of the other one\n\
                 Kubelet: nothing; its flags are set already. The credentials are those of nodeadm"
            }
            Self::K3s | Self::Rke2 => {
                "This file: /var/lib/rancher/credentialprovider/config.yaml\n\
                 Program: /var/lib/rancher/credentialprovider/bin/ecr-credential-provider, mode 0755; with SELinux run\n\
                 restorecon on it\n\
                 Kubelet: nothing but a restart of the service; both are found if both are there"
            }
            Self::Kops => {
                "This file: /var/lib/kubelet/credential-provider.conf, in the place of the one that is there\n\
                 Program: /usr/local/bin/ecr-credential-provider, in the place of the other one, by a hook or by\n\
                 additionalUserData\n\
                 Kubelet: nothing; its flags are set already"
            }
            Self::Microk8s => {
                "This file: /var/snap/microk8s/common/credential-provider.yaml\n\
                 Program: /var/snap/microk8s/common/credential-providers/ecr-credential-provider, mode 0755\n\
                 Kubelet, in /var/snap/microk8s/current/args/kubelet:\n  \
                 --image-credential-provider-config=/var/snap/microk8s/common/credential-provider.yaml\n  \
                 --image-credential-provider-bin-dir=/var/snap/microk8s/common/credential-providers"
            }
            Self::Talos => {
                "This document: in the machine configuration (Talos 1.14); before, its `configuration` is the value of\n\
                 machine.kubelet.credentialProviderConfig\n\
                 Program: /usr/local/lib/kubelet/credentialproviders/ecr-credential-provider, by a system extension"
            }
            Self::Kind => {
                "This file and the program: on the host, and mounted into each node by extraMounts, as\n\
                 /etc/kubernetes/credential-provider.yaml and /usr/local/bin/credential-providers\n\
                 Kubelet, by kubeadmConfigPatches with kubeletExtraArgs:\n  \
                 image-credential-provider-config: /etc/kubernetes/credential-provider.yaml\n  \
                 image-credential-provider-bin-dir: /usr/local/bin/credential-providers"
            }
        }
    }

    /// Returns the variables that the program needs there.
    fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // The kubelet sets no HOME, so these files are not found by themselves.
            Self::EksHybrid => &[(
                "AWS_SHARED_CREDENTIALS_FILE",
                "/eks-hybrid/.aws/credentials",
            )],
            Self::Kops => &[("HOME", "/root")],
            _ => &[],
        }
    }
}

impl Settings {
    /// Returns the patterns of all hosts for which the program is called.
    #[must_use]
    pub fn match_images(&self) -> Vec<String> {
        let is_wanted = |partition: &Partition| {
            self.partitions.is_empty() || self.partitions.contains(partition)
        };
        let forms = HostForm::all().filter(|form| form.partitions.iter().any(is_wanted));
        let mut patterns: Vec<String> = forms.map(|form| form.with("*", "*")).collect();
        if self.public {
            patterns.extend(PUBLIC_HOSTS.map(str::to_owned));
        }
        patterns.extend(self.aliases.iter().map(|(host, _)| host.clone()));
        patterns
    }

    /// Returns the configuration as a value.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut provider = json!({
            "name": "ecr-credential-provider",
            "apiVersion": Version::V1.as_str(),
            "matchImages": self.match_images(),
            "defaultCacheDuration": "0s",
        });
        let aliases = self.aliases.iter();
        let aliases = aliases.map(|(host, registry)| format!("--alias={host}={}", registry.host()));
        let public = self.public.then(|| "--public".to_owned());
        let arguments: Vec<String> = public.into_iter().chain(aliases).collect();
        if !arguments.is_empty() {
            provider["args"] = arguments.into();
        }
        let variables = self.distribution.variables();
        if !variables.is_empty() {
            let variables = variables.iter();
            let variables = variables.map(|(name, value)| json!({"name": name, "value": value}));
            provider["env"] = variables.collect();
        }
        let (required, optional) = match self.service_accounts {
            ServiceAccounts::RoleRequired => ROLE_ANNOTATIONS.split_at(1),
            _ => ROLE_ANNOTATIONS.split_at(0),
        };
        if self.service_accounts != ServiceAccounts::Unused {
            provider["tokenAttributes"] = json!({
                "serviceAccountTokenAudience": AUDIENCE,
                "cacheType": "ServiceAccount",
                "requireServiceAccount": true,
                "requiredServiceAccountAnnotationKeys": required,
                "optionalServiceAccountAnnotationKeys": optional,
            });
        }
        let config = json!({"apiVersion": API_VERSION, "kind": KIND, "providers": [provider]});
        match self.distribution {
            Distribution::Talos => json!({
                "apiVersion": "v1alpha1",
                "kind": "KubeCredentialProviderConfig",
                "configuration": config,
            }),
            _ => config,
        }
    }

    /// Returns the configuration as YAML, with comments that say where it goes.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        let notes = self.warnings();
        let lines = self.distribution.place().lines();
        for line in lines.chain(notes.iter().map(String::as_str)) {
            text += "# ";
            text += line;
            text += "\n";
        }
        write_yaml(&mut text, &self.to_json(), 0);
        text
    }

    /// Returns what to know of the settings.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some((host, _)) = self.aliases.first() {
            warnings.push(format!(
                "An alias ({host}): if containerd has mirrors for this host, it sends the token to each of them"
            ));
        }
        if self.service_accounts != ServiceAccounts::Unused {
            warnings.push(format!(
                "Nodes need the permission to request tokens for {AUDIENCE}: add --rbac"
            ));
            warnings
                .push("Static Pods have no ServiceAccount, so they get no credentials".to_owned());
        }
        warnings
    }
}

/// Returns the objects that let nodes request ServiceAccounts' tokens for AWS.
#[must_use]
pub fn rbac() -> [Value; 2] {
    let version = "rbac.authorization.k8s.io/v1";
    [
        json!({
            "apiVersion": version,
            "kind": "ClusterRole",
            "metadata": {"name": RBAC_NAME},
            "rules": [{
                "apiGroups": [""],
                "resources": [AUDIENCE],
                "verbs": ["request-serviceaccounts-token-audience"],
            }],
        }),
        json!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": RBAC_NAME},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": RBAC_NAME,
            },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Group",
                "name": "system:nodes",
            }],
        }),
    ]
}

/// Writes a value as YAML in block style; a JSON string is a string of YAML as well.
pub fn write_yaml(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let is_leaf = |value: &Value| match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // Writing to a String can't fail.
                let _ = if is_leaf(value) {
                    writeln!(text, "{indent}{name}: {value}")
                } else {
                    writeln!(text, "{indent}{name}:")
                };
                if !is_leaf(value) {
                    write_yaml(text, value, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_leaf(item) {
                    let _ = writeln!(text, "{indent}- {item}");
                } else {
                    let start = text.len();
                    write_yaml(text, item, depth + 1);
                    // The item's first line begins with the dash instead of two blanks.
                    text.replace_range(start..start + indent.len() + 2, &format!("{indent}- "));
                }
            }
        }
        _ => {
            let _ = writeln!(text, "{indent}{value}");
        }
    }
}

/// Returns whether a pattern matches a host, by the kubelet's rule: a glob for each label, as many
/// labels, and the very same port.
#[must_use]
pub fn matches(pattern: &str, host: &str) -> bool {
    let name_of = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
    let (pattern, host) = (name_of(pattern), name_of(host));
    let split = |text: &str| -> (Vec<String>, Option<String>) {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned())),
            None => (text, None),
        };
        (name.split('.').map(str::to_owned).collect(), port)
    };
    let ((globs, glob_port), (labels, port)) = (split(&pattern), split(&host));
    let labels_match = || {
        let mut pairs = globs.iter().zip(&labels);
        pairs.all(|(glob, label)| glob_matches(glob.as_bytes(), label.as_bytes()))
    };
    glob_port == port && globs.len() == labels.len() && labels_match()
}

/// Matches `*` and `?`; sets of characters, which no host needs, match nothing.
fn glob_matches(glob: &[u8], label: &[u8]) -> bool {
    match (glob.split_first(), label.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            (0..=label.len()).any(|skipped| glob_matches(rest, &label[skipped..]))
        }
        (Some((b'?', rest)), Some((_, left))) => glob_matches(rest, left),
        (Some((byte, rest)), Some((first, left))) if byte == first => glob_matches(rest, left),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
