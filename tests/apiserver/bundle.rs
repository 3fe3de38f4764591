//! `ecr-injector doctor bundle` against a real API server: what is in it, and that no secret is, however it got there.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::doctor::{IMAGE, Patient, SOON};
use crate::support::command::Ran;
use crate::support::eventually;
use crate::support::installation::{NAME, PULL_SECRET};

/// Passwords and keys that are in the cluster.
const MARKERS: [&str; 4] = [
    "m4rkerInASecret0fOthers",
    "m4rkerInAVariable",
    "m4rkerInAnAnnotation",
    "m4rkerInTheConfig",
];

/// The files of an archive, by their paths below its folder.
fn files(path: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(&*bytes));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let (folder, path) = path.split_once('/').unwrap();
        assert!(folder.starts_with("ecr-injector-bundle-"), "{folder}");
        files.insert(path.to_owned(), text);
    }
    files
}

fn json(files: &BTreeMap<String, String>, path: &str) -> Value {
    let text = files
        .get(path)
        .unwrap_or_else(|| panic!("no {path}: {:?}", files.keys()));
    serde_json::from_str(text).unwrap()
}

async fn bundle(patient: &Patient, name: &str) -> BTreeMap<String, String> {
    let path = patient.plane.folder().join(name);
    let arguments = ["bundle", "--file", path.to_str().unwrap()];
    let Ran {
        code,
        stdout,
        stderr,
    } = patient.run(&arguments).await;
    assert_eq!((code, &*stdout), (Some(0), ""), "{stderr}");
    assert!(stderr.contains("read it before you pass it on"), "{stderr}");
    files(&path)
}

/// Puts markers where secrets of people are.
async fn mark(patient: &Patient) {
    let admin = patient.admin().await;
    let secrets = format!("/api/v1/namespaces/{}/secrets", patient.team);
    let secret = json!({"metadata": {"name": "regcred"}, "stringData": {"password": MARKERS[0]}});
    admin.post(&secrets, &secret).await.allowed();
    let deployment = format!("/apis/apps/v1/namespaces/{NAME}/deployments/{NAME}");
    let change = json!([
        {"op": "add", "path": "/spec/template/spec/containers/0/env",
            "value": [{"name": "AWS_SECRET_ACCESS_KEY", "value": MARKERS[1]}]},
        {"op": "add", "path": "/metadata/annotations",
            "value": {"kubectl.kubernetes.io/last-applied-configuration": MARKERS[2]}},
    ]);
    admin.json_patch(&deployment, &change).await.allowed();
    let map = format!("/api/v1/namespaces/{NAME}/configmaps/{NAME}");
    let text = admin.get(&map).await.allowed()["data"]["config.yaml"].clone();
    let text = format!(
        "# {}\n{}\nidentities:\n- assumeRole: {{roleArn: arn:aws:iam::123456789012:role/x, externalId: {}}}\n",
        MARKERS[3],
        text.as_str().unwrap(),
        MARKERS[3]
    );
    admin
        .merge(&map, &json!({"data": {"config.yaml": text}}))
        .await
        .allowed();
}

/// All secrets of the cluster: the markers, and the data of every Secret.
async fn secrets(patient: &Patient) -> Vec<String> {
    let admin = patient.admin().await;
    let all = admin.get("/api/v1/secrets").await.allowed();
    let mut secrets: Vec<String> = MARKERS.map(str::to_owned).to_vec();
    for secret in all["items"].as_array().unwrap() {
        for value in secret["data"]
            .as_object()
            .into_iter()
            .flat_map(|it| it.values())
        {
            let text = value.as_str().unwrap();
            let bytes = BASE64_STANDARD.decode(text).unwrap();
            secrets.push(text.to_owned());
            secrets.extend(String::from_utf8(bytes.clone()));
            // The password in the data of a pull secret, and each token in it.
            let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            for entry in value["auths"]
                .as_object()
                .into_iter()
                .flat_map(|it| it.values())
            {
                let auth = entry["auth"].as_str().unwrap();
                let pair = BASE64_STANDARD.decode(auth).unwrap();
                let pair = String::from_utf8(pair).unwrap();
                secrets.extend([auth.to_owned(), pair.split_once(':').unwrap().1.to_owned()]);
            }
        }
    }
    secrets.retain(|secret| secret.len() >= 8);
    secrets
}

#[tokio::test]
async fn archive_has_what_helps_and_no_secret() {
    let patient = Patient::start().await;
    mark(&patient).await;
    let files = bundle(&patient, "all.tar.gz").await;
    let findings = json(&files, "findings.json");
    assert!(findings["counts"]["ok"].as_u64().unwrap() > 20);
    let deployment = json(&files, "deployment.json");
    let env = &deployment["containers"][0]["env"];
    assert!(env.to_string().contains("AWS_SECRET_ACCESS_KEY"), "{env}");
    let metrics = &files["replicas/replica/metrics.txt"];
    assert!(metrics.contains("ecr_injector_build_info{"), "{metrics}");
    let pull_secrets = json(&files, "pull-secrets.json");
    let host = IMAGE.split('/').next().unwrap();
    assert!(
        pull_secrets[0]["hosts"][host]["expiresAt"].is_string(),
        "{pull_secrets:#}"
    );
    let config = json(&files, "config.json");
    assert_eq!(
        config["identities"][0]["assumeRole"]["externalId"],
        "[removed]"
    );
    let namespaces = json(&files, "namespaces.json");
    let opted_in = namespaces["optedIn"].as_array().unwrap();
    let names = opted_in.iter().map(|it| it["name"].as_str().unwrap());
    assert!(names.clone().any(|it| it == patient.team), "{namespaces:#}");
    assert!(names.clone().all(|it| it != "default"), "{namespaces:#}");
    // There is no kubelet that could give the log.
    let manifest = json(&files, "manifest.json");
    let left_out = manifest["leftOut"].to_string();
    assert!(left_out.contains("replicas/replica/log.txt"), "{left_out}");
    let listed = manifest["files"].as_array().unwrap().len();
    assert_eq!(listed + 1, files.len(), "{manifest:#}");

    let secrets = secrets(&patient).await;
    assert!(secrets.len() > 10, "{}", secrets.len());
    let mut archive: Vec<(String, Vec<u8>)> = files
        .into_iter()
        .map(|(path, text)| (path, text.into_bytes()))
        .collect();
    let path = patient.plane.folder().join("all.tar.gz");
    archive.push(("the archive".to_owned(), std::fs::read(path).unwrap()));
    let in_base64 = secrets.iter().map(|secret| BASE64_STANDARD.encode(secret));
    let needles: Vec<String> = secrets.iter().cloned().chain(in_base64).collect();
    for (path, bytes) in &archive {
        for needle in &needles {
            let found = bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes());
            assert!(!found, "{path} has {needle}");
        }
    }

    // An archive that is there is not replaced.
    let path = patient.plane.folder().join("all.tar.gz");
    let arguments = ["bundle", "--file", path.to_str().unwrap()];
    let Ran { code, stderr, .. } = patient.run(&arguments).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("--file"), "{stderr}");
}

#[tokio::test]
async fn archive_without_rights_lists_what_is_missing() {
    let patient = Patient::start().await;
    // Half of the rights: none in the namespace of the installation, none on Secrets.
    let admin = patient.admin().await;
    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/ecr-injector-doctor";
    let rules = json!({"rules": [
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list"]},
        {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["list"]},
    ]});
    admin.merge(role, &rules).await.allowed();
    let files = eventually("the rights are gone", SOON, async || {
        let name = format!("half-{:?}.tar.gz", std::time::Instant::now());
        let files = bundle(&patient, &name).await;
        (!files.contains_key("deployment.json")).then_some(files)
    })
    .await;
    for path in ["findings.json", "registrations.json", "namespaces.json"] {
        assert!(files.contains_key(path), "{path}");
    }
    let manifest = json(&files, "manifest.json");
    let left_out = manifest["leftOut"].as_array().unwrap();
    for (path, right) in [
        ("deployment.json", "list deployments.apps"),
        ("pods.json", "list pods"),
        ("pull-secrets.json", "you may not"),
        ("config.json", "configmaps"),
    ] {
        let found = left_out.iter().find(|it| it["what"] == path);
        let why = found.unwrap_or_else(|| panic!("{path}: {manifest:#}"))["why"].as_str();
        assert!(why.unwrap().contains(right), "{path}: {why:?}");
    }
    assert!(
        !files
            .values()
            .any(|text| text.contains(PULL_SECRET) && text.contains("auths"))
    );
}
