//! Tests of the examples for Argo CD, Flux and Terraform, which people copy from `deploy/` and
//! change: the examples agree with the chart.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::helm::{RELEASE, find, objects};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::registry::Partition;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Ctx, Vars, data, unwrap_valr};
use jaq_json::{Val, read};
use serde_json::{Value, json};

/// A release as one of the examples has it.
struct Release {
    objects: Vec<Value>,
}

impl Release {
    fn of(name: &Value, namespace: &Value, values: &Value) -> Self {
        let (name, namespace) = (name.as_str().unwrap(), namespace.as_str().unwrap());
        Self {
            objects: objects(name, namespace, &values.to_string()),
        }
    }

    /// Returns the registration that the chart renders, and the one in the cluster once the webhook
    /// has filled in the `caBundle`.
    fn registration(&self, name: &Value) -> (Value, Value) {
        let name = name.as_str().unwrap();
        let rendered = find(&self.objects, "MutatingWebhookConfiguration", name);
        let mut live = rendered.clone();
        for entry in live["webhooks"].as_array_mut().unwrap() {
            entry["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode("an authority"));
        }
        (rendered.clone(), live)
    }
}

fn of_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    let path = of_repository(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The namespace is held to what `deploy/` holds it to.
#[track_caller]
fn is_restricted(labels: &Value) {
    let enforced = "pod-security.kubernetes.io/enforce";
    let namespace = documents("deploy/namespace.yaml").remove(0);
    assert_eq!(labels[enforced], namespace["metadata"]["labels"][enforced]);
    assert_eq!(labels[enforced], "restricted");
}

/// Runs a filter of jq, as Argo CD does.
fn jq(filter: &str, input: &Value) -> Value {
    let functions = jaq_core::funs().chain(jaq_json::funs());
    let arena = Arena::default();
    let program = File {
        code: filter,
        path: (),
    };
    let modules = Loader::new(jaq_core::defs()).load(&arena, program).unwrap();
    let compiler = jaq_core::Compiler::default().with_funs(functions);
    let filter = compiler.compile(modules).unwrap();
    let context = Ctx::<data::JustLut<Val>>::new(&filter.lut, Vars::new([]));
    let input = read::parse_single(input.to_string().as_bytes()).unwrap();
    let mut output = filter.id.run((context, input)).map(unwrap_valr);
    let value = output.next().unwrap().unwrap();
    assert!(output.next().is_none());
    serde_json::from_str(&value.to_string()).unwrap()
}

#[test]
fn argo_cd_ignores_each_ca_bundle_and_nothing_else() {
    let application = documents("deploy/argocd/application.yaml").remove(0);
    let spec = &application["spec"];
    let (source, ignored) = (&spec["source"], &spec["ignoreDifferences"]);
    let chart = of_repository(source["path"].as_str().unwrap());
    assert!(chart.join("Chart.yaml").is_file());
    assert_eq!(source["helm"]["releaseName"], RELEASE);
    let namespace = &spec["destination"]["namespace"];
    let values = &source["helm"]["valuesObject"];
    let release = Release::of(&source["helm"]["releaseName"], namespace, values);

    assert_eq!(ignored.as_array().unwrap().len(), 1);
    let (rendered, live) = release.registration(&ignored[0]["name"]);
    assert_eq!(ignored[0]["kind"], rendered["kind"]);
    let version = rendered["apiVersion"].as_str().unwrap();
    assert_eq!(ignored[0]["group"], version.split('/').next().unwrap());
    let paths = ignored[0]["jqPathExpressions"].as_array().unwrap();
    assert_eq!(paths.len(), 1);
    let without = format!("del({})", paths[0].as_str().unwrap());
    assert_eq!(jq(&without, &live), rendered);
    assert_eq!(jq(&without, &rendered), rendered);

    // Without this a sync would empty the field that the comparison ignores.
    let options = spec["syncPolicy"]["syncOptions"].as_array().unwrap();
    for option in [
        "RespectIgnoreDifferences=true",
        "ServerSideApply=true",
        "CreateNamespace=true",
    ] {
        assert!(options.contains(&json!(option)), "{option}");
    }
    is_restricted(&spec["syncPolicy"]["managedNamespaceMetadata"]["labels"]);
}

#[test]
fn flux_ignores_each_ca_bundle_and_nothing_else() {
    for (file, kind) in [
        ("deploy/flux/git.yaml", "GitRepository"),
        ("deploy/flux/oci.yaml", "OCIRepository"),
    ] {
        let there = documents(file);
        let namespace = find(&there, "Namespace", RELEASE);
        is_restricted(&namespace["metadata"]["labels"]);
        let (source, release) = (
            find(&there, kind, RELEASE),
            find(&there, "HelmRelease", RELEASE),
        );
        assert_eq!(there.len(), 3, "{file}");
        for object in [source, release] {
            let own = &namespace["metadata"]["name"];
            assert_eq!(&object["metadata"]["namespace"], own, "{file}");
        }
        let spec = &release["spec"];
        let reference = if kind == "GitRepository" {
            let chart = &spec["chart"]["spec"];
            let folder = of_repository(chart["chart"].as_str().unwrap());
            assert!(folder.join("Chart.yaml").is_file());
            &chart["sourceRef"]
        } else {
            &spec["chartRef"]
        };
        assert_eq!(reference, &json!({"kind": kind, "name": RELEASE}));

        let ignored = spec["driftDetection"]["ignore"].as_array().unwrap();
        assert_eq!(ignored.len(), 1, "{file}");
        let namespace = &release["metadata"]["namespace"];
        let release = Release::of(&spec["releaseName"], namespace, &spec["values"]);
        let target = &ignored[0]["target"];
        let (rendered, mut live) = release.registration(&target["name"]);
        assert_eq!(target["kind"], rendered["kind"]);
        for path in ignored[0]["paths"].as_array().unwrap() {
            let (parent, field) = path.as_str().unwrap().rsplit_once('/').unwrap();
            let parent = live.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            assert!(parent.shift_remove(field).is_some(), "{file}: {path}");
        }
        assert_eq!(live, rendered, "{file}");
    }
}

#[test]
fn terraform_trusts_pod_identity_for_the_charts_account() {
    let policies = text("deploy/iam/terraform/policies.tf");
    for tag in ["namespace", "service_account"] {
        let of_pod = format!("kubernetes-{}", tag.replace('_', "-"));
        let line = format!(r#""{of_pod}\": \"ecr-injector", "{of_pod}\": \"${{var.{tag}}}""#);
        assert!(policies.contains(&line), "{line}");
    }
}

#[test]
fn terraform_fills_in_each_policy_and_trusts_the_charts_account() {
    let folder = "deploy/iam/terraform";
    let policies = text(&format!("{folder}/policies.tf"));
    let mut used = BTreeSet::new();
    for block in policies.split("\n\n").filter(|it| it.contains("file(")) {
        let (_, path) = block.split_once("file(\"${path.module}/").unwrap();
        let (path, _) = path.split_once('"').unwrap();
        let examples: Vec<String> = block
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\", "))
            .map(|(example, _)| example.replace("\\\"", "\""))
            .collect();
        assert_eq!(block.matches("replace(").count(), examples.len(), "{path}");
        for partition in Partition::all().map(Partition::as_str) {
            let of_partition = |text: &str| text.replace("${var.partition}", partition);
            let path = of_partition(path);
            let mut policy = text(&format!("{folder}/{path}"));
            for example in &examples {
                let example = of_partition(example);
                assert!(policy.contains(&example), "{path} has no {example}");
                // One that begins in a key ends in its value.
                let is_pair = example.contains("\": \"");
                policy = policy.replace(&example, if is_pair { "-\": \"-" } else { "-" });
            }
            for left in ["123456789012", "CLUSTER", "eu-west-1", "012345"] {
                assert!(!policy.contains(left), "{path} still has {left}");
            }
            serde_json::from_str::<Value>(&policy).unwrap();
            used.insert(path);
        }
    }
    let used: Vec<&str> = used.iter().map(String::as_str).collect();
    let expected = [
        "../policy-aws-cn.json",
        "../policy-aws-eusc.json",
        "../policy-aws-iso-b.json",
        "../policy-aws-iso-e.json",
        "../policy-aws-iso-f.json",
        "../policy-aws-iso.json",
        "../policy-aws-us-gov.json",
        "../policy-aws.json",
        "../repository-policy.json",
        "../trust-irsa.json",
        "../trust-pod-identity.json",
    ];
    assert_eq!(used, expected);

    let objects = objects(RELEASE, RELEASE, "");
    let account = &find(&objects, "ServiceAccount", RELEASE)["metadata"];
    let default = |variable: &str| {
        let variables = text(&format!("{folder}/variables.tf"));
        let (_, rest) = variables
            .split_once(&format!("variable \"{variable}\" {{\n"))
            .unwrap();
        let (block, _) = rest.split_once("\n}").unwrap();
        let (_, value) = block.split_once("default     = \"").unwrap();
        json!(value.split_once('"').unwrap().0)
    };
    let names = [default("namespace"), default("service_account")];
    assert_eq!(
        names,
        [account["namespace"].clone(), account["name"].clone()]
    );
    let subject = |namespace: &str, name: &str| format!("system:serviceaccount:{namespace}:{name}");
    let example = subject(names[0].as_str().unwrap(), names[1].as_str().unwrap());
    let filled_in = subject("${var.namespace}", "${var.service_account}");
    let line = format!("\"{example}\", \"{filled_in}\"");
    assert!(policies.contains(&line), "{line}");
    let trust: Value = serde_json::from_str(&text("deploy/iam/trust-irsa.json")).unwrap();
    let condition = trust["Statement"][0]["Condition"]["StringEquals"]
        .as_object()
        .unwrap();
    let of_account = condition.iter().find(|(key, _)| key.ends_with(":sub"));
    assert_eq!(of_account.unwrap().1, &json!(example));
    // The association of Pod Identity names the same two.
    let main = text(&format!("{folder}/main.tf"));
    let association = main.split("resource \"aws_eks_pod_identity_association\"");
    let association = association.last().unwrap().split("\n}").next().unwrap();
    for named in [
        "namespace       = var.namespace",
        "service_account = var.service_account",
    ] {
        assert!(association.contains(named), "{named}");
    }
}
