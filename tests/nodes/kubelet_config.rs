//! `ecr-injector credential-provider config`: the kubelet's configuration, as people redirect it to a file and check it.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn config(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(["credential-provider", "config"])
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = config(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// P-70
#[test]
fn file_of_each_distribution_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    for distribution in [
        "kubeadm",
        "eks",
        "eks-hybrid",
        "k3s",
        "rke2",
        "kops",
        "microk8s",
        "talos",
        "kind",
    ] {
        for more in [&[][..], &["--public", "--service-account-tokens"]] {
            let arguments = [&["--for", distribution], more].concat();
            let text = printed(&arguments);
            let json = printed(&[&arguments[..], &["-o", "json"]].concat());
            let yaml: Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(yaml, serde_json::from_str::<Value>(&json).unwrap());
            let text = match yaml.get("configuration") {
                Some(configuration) => configuration.to_string(),
                None => text,
            };
            fs::write(&file, text).unwrap();
            let output = config(&["--check", file.to_str().unwrap()]);
            assert!(output.status.success(), "{output:?}");
        }
    }
    let output = config(&["--check", folder.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn settings_are_in_the_printed_file() {
    let text = printed(&[
        "--partition",
        "aws-cn",
        "--alias",
        "docker.io=210987654321.dkr.ecr.eu-west-1.amazonaws.com",
        "--service-account-tokens",
        "--require-role-annotation",
        "--rbac",
    ]);
    for expected in [
        "--image-credential-provider-config=",
        "# An alias (docker.io): if containerd has mirrors",
        "- \"*.dkr.ecr.*.amazonaws.com.cn\"\n",
        "- \"docker.io\"\n",
        "\"--alias=docker.io=210987654321.dkr.ecr.eu-west-1.amazonaws.com\"",
        "serviceAccountTokenAudience: \"sts.amazonaws.com\"",
        "requiredServiceAccountAnnotationKeys:\n        - \"ecr-injector.dev/role-arn\"\n",
        "\n---\napiVersion: \"rbac.authorization.k8s.io/v1\"\nkind: \"ClusterRole\"\n",
        "request-serviceaccounts-token-audience",
        "name: \"system:nodes\"",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    assert!(
        !text.contains("amazonaws.com\"\n      - \"*.dkr-ecr"),
        "{text}"
    );
    assert!(!text.contains("*.on.aws"), "{text}");
    for wrong in [
        &["--for", "gke"][..],
        &["--partition", "aws-xx"],
        &["--rbac"],
        &["--alias", "x"],
    ] {
        assert_eq!(config(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn help_has_the_flags_of_plugin_and_configuration() {
    for (arguments, expected) in [
        (&["credential-provider", "--help"][..], "--without-role"),
        (&["credential-provider", "-h"], "--without-role"),
        (
            &["credential-provider", "config", "--help"],
            "--service-account-tokens",
        ),
        (
            &["credential-provider", "--version"],
            "ecr-credential-provider",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}

/// P-72
#[test]
fn mistakes_are_printed_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(
        &file,
        printed(&[]).replace(".amazonaws.com.cn", ".amazonaws.cn"),
    )
    .unwrap();
    for path in [file.as_path(), folder.path()] {
        let output = config(&["--check", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let start = format!("{}:", file.display());
        assert!(
            text.starts_with(&start) && text.contains("amazonaws.com.cn"),
            "{text}"
        );
    }
    for missing in ["/missing.yaml", "/proc/self/ns"] {
        let output = config(&["--check", missing]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}
