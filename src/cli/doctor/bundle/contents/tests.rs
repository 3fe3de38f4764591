//! Unit tests of `contents`.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cli::doctor::{checks::tests::fine, finding::Right};

const MARKER: &str = "m4rk-r";

#[test]
fn objects_have_the_fields_that_are_named_alone() {
    let object = json!({
        "metadata": {"name": "x", "labels": {"app": "x"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": MARKER}},
        "spec": {"replicas": 2, "template": {"metadata": {"annotations": {"a": MARKER}},
            "spec": {"serviceAccountName": "x", "containers": [{"name": "x", "image": "i",
                "args": ["serve", "--config=/etc/x"],
                "env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": MARKER}],
                "command": [MARKER]}], "volumes": [{"name": MARKER}]}}},
        "status": {"readyReplicas": 2, "other": MARKER},
    });
    let text = deployment(&object).to_string();
    assert!(!text.contains(MARKER), "{text}");
    for part in [
        "AWS_SECRET_ACCESS_KEY",
        "--config=/etc/x",
        "\"readyReplicas\":2",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut replica = object["spec"]["template"].clone();
    replica["metadata"]["name"] = json!("pod-1");
    let text = pod(&replica).to_string();
    assert!(!text.contains(MARKER), "{text}");
    let webhooks = json!({"metadata": {"name": "r", "annotations": {"a": MARKER}},
        "webhooks": [{"name": "w", "clientConfig": {"caBundle": "eA==", "url": MARKER}}]});
    let text = registration(&webhooks).to_string();
    assert!(text.contains("\"caBundleBytes\":4"), "{text}");
    assert!(!text.contains(MARKER), "{text}");
}

#[test]
fn configuration_has_no_external_id_and_no_comment() {
    let mut all = Contents::default();
    let text = format!(
        "# {MARKER}\nidentities:\n- assumeRole: {{roleArn: arn:aws:iam::123456789012:role/x, externalId: {MARKER}}}\n"
    );
    all.config(&Reading::Read(Some(text)));
    let file = &all.files[0];
    assert_eq!(file.path, "config.json");
    assert!(!file.text.contains(MARKER), "{}", file.text);
    assert!(file.text.contains("role/x"), "{}", file.text);
    assert!(
        file.text.contains("\"externalId\": \"[removed]\""),
        "{}",
        file.text
    );
}

#[test]
fn large_file_is_cut_and_listed() {
    let mut all = Contents::default();
    for (path, characters) in [("log.txt", MAX_BYTES / 2 + 1), ("fits.txt", MAX_BYTES / 2)] {
        all.add(path, "é".repeat(characters));
    }
    for file in &all.files {
        assert_eq!(file.text.len(), MAX_BYTES, "{}", file.path);
    }
    let left_out: Vec<&str> = all.left_out.iter().map(|(path, _)| &**path).collect();
    assert_eq!(left_out, ["log.txt"]);
}

/// Returns the bundle of an installation whose namespaces and one log could not be read.
fn bundle() -> BTreeMap<String, String> {
    let mut installation = fine();
    installation.namespaces = Reading::Forbidden(Right::new("list", "namespaces", None));
    let event = json!({"reason": "ForeignSecret", "metadata": {"uid": MARKER},
        "message": "token=hunter2", "involvedObject": {"kind": "Namespace", "name": "team"}});
    let parts = Parts {
        config: Reading::Read(None),
        replicas: vec![(
            "pod-1".to_owned(),
            Reading::Read("ecr_injector_leader 1\n".to_owned()),
            Reading::Failed("timeout".to_owned()),
        )],
        events: Reading::Read(vec![event]),
    };
    let all = Contents::of(&installation, &parts, "{}".to_owned());
    let files = all.files.into_iter();
    files.map(|file| (file.path, file.text)).collect()
}

#[test]
fn bundle_has_a_file_of_each_reading_or_says_why_not() {
    let files = bundle();
    let manifest: Value = serde_json::from_str(&files["manifest.json"]).expect("JSON");
    let texts = |list: &str, field: &str| -> BTreeSet<String> {
        let entries = manifest[list].as_array().expect("a list").iter();
        let texts = entries.map(|entry| entry[field].as_str().expect("a text").to_owned());
        texts.collect()
    };
    let mut paths: BTreeSet<String> = files.keys().cloned().collect();
    paths.remove("manifest.json");
    assert_eq!(texts("files", "path"), paths);
    let expected = [
        "cluster.json",
        "deployment.json",
        "events.json",
        "findings.json",
        "lease.json",
        "pods.json",
        "pull-secrets.json",
        "registrations.json",
        "replicas/pod-1/metrics.txt",
    ];
    assert_eq!(paths, expected.map(str::to_owned).into());
    let left_out = [
        "config.json",
        "namespaces.json",
        "replicas/pod-1/log.txt",
        "secrets",
        "values of env, annotations",
    ];
    assert_eq!(texts("leftOut", "what"), left_out.map(str::to_owned).into());
    assert_eq!(manifest["createdAt"], "2027-01-15T08:00:00Z");
}

#[test]
fn files_of_a_bundle_have_what_support_asks_for() {
    let files = bundle();
    let value = |path: &str, pointer: &str| {
        let file: Value = serde_json::from_str(&files[path]).expect("JSON");
        file.pointer(pointer).cloned().unwrap_or_default()
    };
    let host = "/0/hosts/123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    for (path, pointer, expected) in [
        ("cluster.json", "/version", json!("v1.33.4-eks-1")),
        ("cluster.json", "/clockAheadSeconds", json!(1)),
        ("lease.json", "/holderIdentity", json!("pod-1")),
        ("pods.json", "/1/nodeName", json!("node-2")),
        ("pods.json", "/1/status/phase", json!("Running")),
        ("pull-secrets.json", "/0/managed", json!(true)),
        (
            "pull-secrets.json",
            &format!("{host}/wantedAt"),
            json!("2027-01-15T05:30:00Z"),
        ),
        (
            "pull-secrets.json",
            &format!("{host}/expiresAt"),
            json!("2027-01-15T19:06:40Z"),
        ),
        ("events.json", "/0/about/name", json!("team")),
        ("events.json", "/0/message", json!("token=[removed]")),
    ] {
        assert_eq!(value(path, pointer), expected, "{path} {pointer}");
    }
    assert!(!files["events.json"].contains(MARKER));
}

#[test]
fn namespaces_of_a_bundle_are_counted_and_the_opted_in_listed() {
    let installation = fine();
    let parts = Parts {
        config: Reading::Read(None),
        replicas: vec![],
        events: Reading::Read(vec![]),
    };
    let all = Contents::of(&installation, &parts, "{}".to_owned());
    let file = all.files.iter().find(|file| file.path == "namespaces.json");
    let namespaces: Value = serde_json::from_str(&file.expect("one").text).expect("JSON");
    let team = json!({"name": "team", "terminating": false, "role": null});
    assert_eq!(namespaces, json!({"all": 2, "optedIn": [team]}));
}
