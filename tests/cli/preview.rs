//! `ecr-injector preview` as a user runs it: the real binary, its two outputs and its exit code.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use ecr_injector::admission::manifest::text;
use serde_json::{Value, json};

const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/web:1.4";

struct Outcome {
    code: Option<i32>,
    objects: String,
    report: String,
}

fn preview(arguments: &[&str], input: &str) -> Outcome {
    preview_in(Path::new("."), arguments, input.as_bytes())
}

fn preview_in(directory: &Path, arguments: &[&str], input: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .arg("preview")
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A command that ends without reading breaks the pipe; that is its right.
    let writer = std::thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Outcome {
        code: output.status.code(),
        objects: String::from_utf8(output.stdout).unwrap(),
        report: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Outcome {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.report);
        self
    }

    #[track_caller]
    fn fails(self, code: i32, with: &str) {
        assert_eq!(self.code, Some(code), "{}", self.report);
        assert_eq!(self.objects, "");
        assert!(self.report.contains(with), "{}", self.report);
    }

    #[track_caller]
    fn tells(&self, text: &str) {
        assert!(self.report.contains(text), "{text}\n---\n{}", self.report);
    }

    fn documents(&self) -> Vec<Value> {
        text::read(self.objects.as_bytes()).unwrap()
    }

    fn patches(&self) -> Vec<Value> {
        self.objects
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn spec(image: &str) -> Value {
    json!({"containers": [{"name": "web", "image": image}]})
}

fn pod(name: &str, image: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec(image)})
}

fn workload(api_version: &str, kind: &str, template: &str) -> Value {
    let mut value = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec(IMAGE)});
    for name in template.split('/').rev().filter(|name| !name.is_empty()) {
        value = json!({ name: value });
    }
    value["apiVersion"] = json!(api_version);
    value["kind"] = json!(kind);
    value["metadata"] = json!({"name": "web", "namespace": "team"});
    value
}

const KINDS: [(&str, &str, &str); 9] = [
    ("v1", "Pod", ""),
    ("v1", "PodTemplate", "/template"),
    ("v1", "ReplicationController", "/spec/template"),
    ("apps/v1", "Deployment", "/spec/template"),
    ("apps/v1", "StatefulSet", "/spec/template"),
    ("apps/v1", "DaemonSet", "/spec/template"),
    ("apps/v1", "ReplicaSet", "/spec/template"),
    ("batch/v1", "Job", "/spec/template"),
    ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
];

fn all_kinds() -> Vec<Value> {
    KINDS
        .iter()
        .map(|(api_version, kind, template)| workload(api_version, kind, template))
        .collect()
}

fn stream(documents: &[Value]) -> String {
    let documents: Vec<_> = documents
        .iter()
        .map(|document| text::to_yaml(document).unwrap())
        .collect();
    documents.join("---\n")
}

#[test]
fn every_kind_gets_the_pull_secret_in_its_template_only() {
    for ((_, kind, template), before) in KINDS.iter().zip(all_kinds()) {
        let outcome = preview(&[], &stream(std::slice::from_ref(&before))).ok();
        let mut expected = before;
        expected.pointer_mut(template).unwrap()["spec"]["imagePullSecrets"] =
            json!([{"name": "ecr-pull-secret"}]);
        // As texts, because the order of the fields counts.
        assert_eq!(outcome.objects, text::to_yaml(&expected).unwrap());
        outcome.tells(&format!("{kind} team/web: inject\n"));
        outcome.tells("  registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com (account 123456789012, region eu-west-1)\n");
        let place = format!("{template}/spec/imagePullSecrets").replace('/', ".");
        let place = place.trim_start_matches('.');
        outcome.tells(&format!("  secret:   ecr-pull-secret, as {place}\n"));
        outcome.tells("kubectl label namespace team ecr-injector.dev/inject=enabled\n");
    }
}

#[test]
fn lists_stay_lists_and_typed_ones_are_understood() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("a", IMAGE),
        {"apiVersion": "v1", "kind": "PodList", "items": [
            {"metadata": {"name": "b", "namespace": "x"}, "spec": spec(IMAGE)},
        ]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}},
    ]});
    let outcome = preview(&["-o", "json"], &list.to_string()).ok();
    let after: Value = serde_json::from_str(&outcome.objects).unwrap();
    let ours = json!([{"name": "ecr-pull-secret"}]);
    assert_eq!(after["kind"], "List");
    assert_eq!(after["items"][0]["spec"]["imagePullSecrets"], ours);
    assert_eq!(
        after["items"][1]["items"][0]["spec"]["imagePullSecrets"],
        ours
    );
    assert_eq!(after["items"][2], list["items"][2]);
    outcome.tells("Pod default/a: inject");
    outcome.tells("Pod x/b: inject");
    outcome.tells("ConfigMap c: unchanged");
    outcome.tells("3 objects, 2 would be changed");
}

#[test]
fn object_without_a_pod_passes_unchanged() {
    let text = "apiVersion: example.com/v1
kind: Widget
metadata:
  name: w
spec:
  template:
    spec:
      containers:
      - image: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/web
  quoted:
  - \"yes\"
  - \"0123\"
  - \"1e3\"
  - \"12:30\"
  mode: 420
  script: |
    #!/bin/sh
    echo hi
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: c
data: {}
";
    let text = &text.replace("123456789012.dkr.ecr.eu-west-1.amazonaws.com/web", "nginx");
    let outcome = preview(&[], text).ok();
    assert_eq!(outcome.objects, *text);
    outcome.tells(
        "Widget w: unchanged: its controller's Pods would not get it: \
         no image is in a private ECR registry, only in docker.io",
    );
    outcome.tells("ConfigMap c: unchanged: it has no Pod");
    outcome.tells("2 objects, 0 would be changed");
    assert!(
        !outcome.report.contains("kubectl label"),
        "{}",
        outcome.report
    );
}

#[test]
fn preview_of_a_preview_changes_nothing() {
    let mut documents = all_kinds();
    documents.push(json!({"kind": "List", "apiVersion": "v1", "items": all_kinds()}));
    for output in ["yaml", "json"] {
        let once = preview(&["-o", output], &stream(&documents)).ok();
        let twice = preview(&["-o", output], &once.objects).ok();
        assert_eq!(twice.objects, once.objects);
        twice.tells("CronJob team/web: already injected");
        twice.tells("already\n");
        twice.tells("18 objects, 0 would be changed");
        for flag in [&["-o", "patch"][..], &["--diff"]] {
            assert_eq!(preview(flag, &once.objects).ok().objects, "");
        }
    }
}

#[test]
fn every_golden_pod_is_the_same_after_a_second_preview() {
    let pods = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods");
    let once = preview(&["-f", pods.to_str().unwrap()], "").ok();
    let twice = preview(&["-f", "-"], &once.objects).ok();
    assert_eq!(twice.objects, once.objects);
    twice.tells(" 0 would be changed");
}

#[test]
fn several_objects_are_one_list_in_json_and_one_stays_itself() {
    let documents = [
        pod("a", "nginx"),
        json!({"apiVersion": "v1", "kind": "List", "items": [pod("b", "nginx"), pod("c", "nginx")]}),
    ];
    let outcome = preview(&["-o", "json"], &stream(&documents)).ok();
    let list: Value = serde_json::from_str(&outcome.objects).unwrap();
    assert_eq!(
        list,
        json!({"apiVersion": "v1", "kind": "List", "items": [pod("a", "nginx"), pod("b", "nginx"), pod("c", "nginx")]})
    );
    let outcome = preview(&["-o", "json"], &stream(&documents[..1])).ok();
    assert_eq!(
        serde_json::from_str::<Value>(&outcome.objects).unwrap(),
        documents[0]
    );
}

#[test]
fn patches_are_one_a_line_and_make_the_objects_that_are_shown() {
    let mut documents = all_kinds();
    documents[3]["spec"]["template"]["spec"]["imagePullSecrets"] = json!([{"name": "quay"}]);
    documents.push(pod("plain", "nginx"));
    let input = stream(&documents);
    let patches = preview(&["-o", "patch"], &input).ok().patches();
    assert_eq!(patches.len(), KINDS.len());
    assert_eq!(
        patches[3],
        json!({
            "kind": "Deployment", "namespace": "team", "name": "web",
            "patch": [{
                "op": "add",
                "path": "/spec/template/spec/imagePullSecrets/-",
                "value": {"name": "ecr-pull-secret"},
            }],
        })
    );
    for (document, line) in documents.iter_mut().zip(&patches) {
        let patch: json_patch::Patch = serde_json::from_value(line["patch"].clone()).unwrap();
        json_patch::patch(document, &patch).unwrap();
    }
    assert_eq!(preview(&[], &input).ok().documents(), documents);
}

#[test]
fn diff_shows_the_line_that_differs() {
    let input = stream(&[workload("apps/v1", "Deployment", "/spec/template")]);
    let outcome = preview(&["--diff"], &input).ok();
    assert_eq!(
        outcome.objects,
        "--- Deployment team/web\tas written
+++ Deployment team/web\tas admitted
@@ -7,6 +7,8 @@
       containers:
       - name: web
         image: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/web:1.4
+      imagePullSecrets:
+      - name: ecr-pull-secret
 apiVersion: apps/v1
 kind: Deployment
 metadata:
"
    );
}

#[test]
fn namespace_comes_from_object_then_flag_then_default() {
    let mut own = pod("own", IMAGE);
    own["metadata"]["namespace"] = json!("shop");
    let input = stream(&[pod("bare", IMAGE), own]);
    let namespaces = |arguments: &[&str]| -> Vec<Value> {
        let outcome = preview(arguments, &input).ok();
        let patches = outcome.patches();
        patches
            .iter()
            .map(|patch| patch["namespace"].clone())
            .collect()
    };
    assert_eq!(namespaces(&["-o", "patch"]), ["default", "shop"]);
    assert_eq!(namespaces(&["-o", "patch", "-n", "team"]), ["team", "shop"]);
    let outcome = preview(&["-n", "kube-system"], &input).ok();
    outcome
        .tells("Pod kube-system/bare: skipped: the configuration excludes namespace kube-system");
    outcome.tells("Pod shop/own: inject");
    outcome.tells("kubectl label namespace shop ecr-injector.dev/inject=enabled\n");
}

#[test]
fn configuration_decides_as_in_the_webhook() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("config.yaml"),
        r#"
apiVersion: ecr-injector.dev/v1alpha1
kind: Config
secretName: team-ecr
optIn: {label: example.com/ecr, value: "on", excludeNamespaces: [infra]}
allow: {accounts: ["123456789012"]}
aliases: [{host: images.example.com, registry: 123456789012.dkr.ecr-fips.us-east-1.amazonaws.com}]
limits: {registriesPerPod: 1}
"#,
    )
    .unwrap();
    let mut infra = pod("infra", IMAGE);
    infra["metadata"]["namespace"] = json!("infra");
    let mut both = pod("both", IMAGE);
    both["spec"]["initContainers"] = json!([{"name": "i", "image": "images.example.com/x"}]);
    let documents = [
        pod("alias", "images.example.com/web"),
        pod("other", "999999999999.dkr.ecr.eu-west-1.amazonaws.com/web"),
        infra,
        both,
    ];
    let input = stream(&documents);
    let outcome = preview_in(
        directory.path(),
        &["--config", "config.yaml"],
        input.as_bytes(),
    )
    .ok();
    assert_eq!(
        outcome.documents()[0]["spec"]["imagePullSecrets"],
        json!([{"name": "team-ecr"}])
    );
    outcome.tells("  registry: images.example.com, an alias of 123456789012.dkr.ecr-fips.us-east-1.amazonaws.com (account 123456789012, region us-east-1, FIPS endpoint)\n");
    outcome.tells("Pod default/other: skipped: the configuration allows none of its registries");
    outcome.tells("Pod infra/infra: skipped: the configuration excludes namespace infra");
    outcome.tells("  warning:  ecr-injector: credentials for only 1 of 2 ECR registries");
    outcome.tells("kubectl label namespace default example.com/ecr=on\n");

    let bad = crate::support::config_file("secretNam: x");
    fs::write(directory.path().join("config.yaml"), bad).unwrap();
    preview_in(
        directory.path(),
        &["--config", "config.yaml"],
        input.as_bytes(),
    )
    .fails(1, "config.yaml: secretNam: unknown field");
}

#[test]
fn reason_for_a_skipped_pod_is_shown() {
    let mut disabled = workload("apps/v1", "Deployment", "/spec/template");
    disabled["spec"]["template"]["metadata"]["annotations"] =
        json!({"ecr-injector.dev/inject": "disabled"});
    let mut annotated = workload("apps/v1", "Deployment", "/spec/template");
    annotated["metadata"]["annotations"] = json!({"ecr-injector.dev/inject": "disabled"});
    let mut mirror = pod("mirror", IMAGE);
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let mut bad = pod("bad", "Foo Bar");
    bad["spec"]["containers"][0]["name"] = json!("x");
    let mut wrong = pod("wrong", "nginx");
    wrong["spec"]["containers"][0]["image"] = json!(7);
    let mut lost = pod("lost", IMAGE);
    lost["metadata"]["namespace"] = json!("No/Name");
    let documents = [
        disabled,
        annotated,
        mirror,
        bad,
        wrong,
        lost,
        pod("plain", "nginx"),
        json!({"apiVersion": "v1", "kind": "Pod"}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}}),
    ];
    let outcome = preview(&[], &stream(&documents)).ok();
    for text in [
        "Deployment team/web: skipped: it is annotated ecr-injector.dev/inject: disabled\n",
        // The annotation of a Deployment is not its Pods'.
        "Deployment team/web: inject\n",
        "Pod default/mirror: skipped: a mirror Pod must not reference Secrets\n",
        "  image:    \"Foo Bar\": the image's path must be",
        "Pod default/wrong: skipped: the API server would reject it: spec.containers[0].image: invalid type: integer `7`",
        "Pod No/Name/lost: skipped: \"No/Name\" can't be the name of a namespace\n",
        "Pod default/plain: skipped: no image is in a private ECR registry, only in docker.io\n",
        "Pod default/(no name): skipped: it has no image\n",
        "9 objects, 1 would be changed\n",
    ] {
        outcome.tells(text);
    }
}

#[test]
fn directory_is_its_manifests_in_order_and_not_recursive() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
    write("b.yml", stream(&[pod("b", IMAGE)]));
    write("a.yaml", stream(&[pod("a", IMAGE)]));
    write("c.json", pod("c", IMAGE).to_string());
    write("readme.md", "{{ no manifest".into());
    fs::create_dir(directory.path().join("more.yaml")).unwrap();
    write("more.yaml/d.yaml", "- no manifest".into());
    let names = |outcome: Outcome| -> Vec<Value> {
        let documents = outcome.ok().documents();
        documents
            .iter()
            .map(|document| document["metadata"]["name"].clone())
            .collect()
    };
    let run = |arguments: &[&str]| preview_in(directory.path(), arguments, b"");
    assert_eq!(names(run(&["-f", "."])), ["a", "b", "c"]);
    // Files in the order that they are named in, whatever their extension.
    assert_eq!(
        names(run(&["-f", "c.json", "-f", ".", "--filename", "b.yml"])),
        ["c", "a", "b", "c", "b"]
    );
    assert_eq!(
        names(preview_in(
            directory.path(),
            &["-f", "b.yml", "-f", "-"],
            stream(&[pod("stdin", IMAGE)]).as_bytes()
        )),
        ["b", "stdin"]
    );
    fs::create_dir(directory.path().join("empty")).unwrap();
    run(&["-f", "empty"]).fails(1, "empty has no *.yaml, *.yml or *.json");
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("good.yaml", &stream(&[pod("good", IMAGE)]));
    let run = |file: &str| preview_in(directory.path(), &["-f", "good.yaml", "-f", file], b"");
    for (file, text, error) in [
        (
            "syntax.yaml",
            "a: 1\n---\nb: [1\nc: 2\n",
            "syntax.yaml: document 2, line 4, column 2: ",
        ),
        (
            "tab.yaml",
            "a:\n\tb: 1\n",
            "tab.yaml: document 1, line 2, column 2: tabs disallowed",
        ),
        (
            "list.yaml",
            "- a\n",
            "list.yaml: document 1, line 1: expected an object with apiVersion and kind, got a list",
        ),
        (
            "twice.yaml",
            "a: 1\na: 2\n",
            "twice.yaml: document 1, line 2, column 1: duplicate mapping key `a`",
        ),
        (
            "cut.json",
            "{\"a\": 1}\n{\"b\": ",
            "cut.json: document 2, line 2, column ",
        ),
        (
            "template.yaml",
            "image: {{ .Values.image }}\n",
            "render it first, such as with helm template",
        ),
    ] {
        write(file, text);
        run(file).fails(1, error);
    }
    fs::write(directory.path().join("latin1.yaml"), b"a: 1\nb: \xe9\n").unwrap();
    run("latin1.yaml").fails(1, "latin1.yaml: line 2: not UTF-8 text");
    run("missing.yaml").fails(1, "reading missing.yaml: No such file");
    run("https://example.com/x.yaml").fails(1, "addresses are not fetched");
    preview(&[], "a: [").fails(1, "standard input: document 1, line 1, column ");
    preview(&["-f", "-", "-f", "-"], "").fails(1, "standard input can be read only once");
    preview(&["--config", "missing.yaml"], "").fails(1, "reading missing.yaml: ");
}

#[test]
fn usage_error_is_code_2() {
    for arguments in [
        &["--wat"][..],
        &["file.yaml"],
        &["-o", "xml"],
        &["-n", "Not_A_Name"],
        &["--diff", "-o", "json"],
        &["-f"],
    ] {
        preview(arguments, "").fails(2, "error: ");
    }
}

#[test]
fn input_without_an_object_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for input in [
        "",
        "\n",
        "---\n",
        "# nothing\n---\n\n",
        "\u{feff}",
        "null\n",
        "~",
    ] {
        for arguments in [&[][..], &["-o", "json"], &["-o", "patch"], &["--diff"]] {
            preview(arguments, input).fails(1, "no object in standard input");
        }
        fs::write(directory.path().join("empty.yaml"), input).unwrap();
        let run = |arguments: &[&str]| preview_in(directory.path(), arguments, b"");
        run(&["-f", "empty.yaml"]).fails(1, "no object in empty.yaml");
        run(&["-f", "."]).fails(1, "no object in ./empty.yaml");
    }
    // As with kubectl, one empty file among others is none, but it is named.
    let good = stream(&[pod("good", IMAGE)]);
    let arguments = ["-f", "empty.yaml", "-f", "-"];
    let outcome = preview_in(directory.path(), &arguments, good.as_bytes()).ok();
    outcome.tells("empty.yaml: no object in it\n");
    outcome.tells("1 object, 1 would be changed");
}

/// Objects of custom kinds that make Pods, each with the place of its images.
#[allow(clippy::too_many_lines, reason = "a table")]
fn custom_kinds() -> Vec<Value> {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec(IMAGE)});
    let of = |api_version: &str, kind: &str, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "web", "namespace": "team"}, "spec": spec});
    let replicas = |field: &str| json!({field: {"Worker": {"replicas": 1, "template": template}}});
    let task = json!({"steps": [{"name": "s", "image": IMAGE, "script": "true"}]});
    let workflow =
        json!({"entrypoint": "a", "templates": [{"name": "a", "container": {"image": IMAGE}}]});
    let ray = json!({"headGroupSpec": {"template": template}, "workerGroupSpecs": [{"template": template}]});
    vec![
        of(
            "argoproj.io/v1alpha1",
            "Rollout",
            json!({"template": template}),
        ),
        of(
            "serving.knative.dev/v1",
            "Service",
            json!({"template": {"spec": spec(IMAGE)}}),
        ),
        of("argoproj.io/v1alpha1", "Workflow", workflow.clone()),
        of("argoproj.io/v1alpha1", "WorkflowTemplate", workflow.clone()),
        of(
            "argoproj.io/v1alpha1",
            "CronWorkflow",
            json!({"workflowSpec": workflow}),
        ),
        of("tekton.dev/v1", "Task", task.clone()),
        of("tekton.dev/v1", "TaskRun", json!({"taskSpec": task})),
        of(
            "tekton.dev/v1",
            "PipelineRun",
            json!({"pipelineSpec": {"tasks": [{"taskSpec": task}]}}),
        ),
        of(
            "sparkoperator.k8s.io/v1beta2",
            "SparkApplication",
            json!({"image": IMAGE, "driver": {"cores": 1}}),
        ),
        of(
            "sparkoperator.k8s.io/v1beta2",
            "SparkApplication",
            json!({"driver": {"image": IMAGE}}),
        ),
        of("ray.io/v1", "RayCluster", ray.clone()),
        of("ray.io/v1", "RayService", json!({"rayClusterConfig": ray})),
        of("ray.io/v1", "RayJob", json!({"rayClusterSpec": ray})),
        of(
            "kubeflow.org/v1",
            "PyTorchJob",
            replicas("pytorchReplicaSpecs"),
        ),
        of("kubeflow.org/v1", "TFJob", replicas("tfReplicaSpecs")),
        of(
            "kubeflow.org/v2beta1",
            "MPIJob",
            replicas("mpiReplicaSpecs"),
        ),
        of(
            "apps.kruise.io/v1alpha1",
            "CloneSet",
            json!({"template": template}),
        ),
        of(
            "apps.kruise.io/v1alpha1",
            "SidecarSet",
            json!({"containers": [{"name": "s", "image": IMAGE}]}),
        ),
        of(
            "apps.kruise.io/v1alpha1",
            "ImagePullJob",
            json!({"image": IMAGE}),
        ),
        of(
            "apps.openshift.io/v1",
            "DeploymentConfig",
            json!({"template": template}),
        ),
        of(
            "serving.kserve.io/v1beta1",
            "InferenceService",
            json!({"predictor": {"model": {"image": IMAGE}}}),
        ),
        of(
            "serving.kserve.io/v1beta1",
            "InferenceService",
            json!({"predictor": spec(IMAGE)}),
        ),
        of(
            "keda.sh/v1alpha1",
            "ScaledJob",
            json!({"jobTargetRef": {"template": template}}),
        ),
        of(
            "jobset.x-k8s.io/v1alpha2",
            "JobSet",
            json!({"replicatedJobs": [{"template": {"spec": {"template": template}}}]}),
        ),
        of(
            "monitoring.coreos.com/v1",
            "Prometheus",
            json!({"image": IMAGE, "containers": [{"name": "prometheus"}]}),
        ),
        of(
            "example.com/v1",
            "Widget",
            json!({"proxy": {"sidecarImage": IMAGE}}),
        ),
        of(
            "example.com/v1",
            "Widget",
            json!({"image": {"repository": IMAGE, "tag": "1"}}),
        ),
        of(
            "example.com/v1",
            "pod",
            json!({"volumes": [{"image": {"reference": IMAGE}}]}),
        ),
    ]
}

#[test]
fn registries_of_custom_kinds_pods_are_told() {
    for object in custom_kinds() {
        let kind = object["kind"].as_str().unwrap();
        let input = stream(std::slice::from_ref(&object));
        let outcome = preview(&[], &input).ok();
        assert_eq!(outcome.objects, input, "unchanged");
        outcome.tells(&format!(
            "{kind} team/web: unchanged: its controller's Pods would get it: \
             123456789012.dkr.ecr.eu-west-1.amazonaws.com\n"
        ));
        outcome.tells("  secret:   ecr-pull-secret, in imagePullSecrets of these Pods\n");
        outcome.tells("1 object, 0 would be changed\n1 unchanged, whose controllers make Pods");
        outcome.tells("kubectl label namespace team ecr-injector.dev/inject=enabled\n");
        assert_eq!(preview(&["-o", "patch"], &input).ok().objects, "");
    }
}

#[test]
fn pods_of_custom_kinds_follow_the_configuration() {
    let mut disabled = custom_kinds().swap_remove(0);
    disabled["spec"]["template"]["metadata"]["annotations"] =
        json!({"ecr-injector.dev/inject": "disabled"});
    let mut excluded = custom_kinds().swap_remove(0);
    excluded["metadata"]["namespace"] = json!("kube-system");
    let mut own = custom_kinds().swap_remove(0);
    own["metadata"]["annotations"] = json!({"ecr-injector.dev/inject": "disabled"});
    let outcome = preview(&[], &stream(&[disabled, excluded, own])).ok();
    let prefix = "/web: unchanged: its controller's Pods would not get it: ";
    outcome.tells(&format!(
        "{prefix}it is annotated ecr-injector.dev/inject: disabled\n"
    ));
    outcome.tells(&format!(
        "{prefix}the configuration excludes namespace kube-system"
    ));
    // The annotation of a Rollout is not its Pods'.
    outcome.tells("Rollout team/web: unchanged: its controller's Pods would get it: 1234");
}

#[test]
fn images_that_no_pod_is_made_of_are_not_claimed() {
    let text = format!("image: {IMAGE}");
    let documents = [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"image": IMAGE, "values.yaml": text}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"image": IMAGE}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "data": {"spec": {"template": {"spec": spec(IMAGE)}}}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "d"}, "spec": {"image": IMAGE}}),
        json!({"apiVersion": "image.toolkit.fluxcd.io/v1", "kind": "ImageRepository", "metadata": {"name": "i"}, "spec": {"image": IMAGE}}),
        json!({"apiVersion": "kyverno.io/v1", "kind": "ClusterPolicy", "metadata": {"name": "p"}, "spec": {"rules": [{"image": IMAGE}]}}),
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "annotations": {"image": IMAGE}},
            "spec": {"args": [IMAGE], "env": [{"name": "IMAGE", "value": IMAGE}], "text": text}, "status": {"image": IMAGE}}),
    ];
    let outcome = preview(&[], &stream(&documents)).ok();
    assert_eq!(
        outcome
            .report
            .matches(": unchanged: it has no Pod\n")
            .count(),
        6,
        "{}",
        outcome.report
    );
    outcome.tells(
        "Widget w: unknown: spec.args.0 names an ECR registry, and none of its fields is known \
         to be an image\n",
    );
    assert!(!outcome.report.contains("dkr.ecr"), "{}", outcome.report);
    assert!(
        !outcome.report.contains("kubectl label"),
        "{}",
        outcome.report
    );
}

#[test]
fn kind_that_kubectl_rejects_is_told() {
    for (api_version, kind, hint) in [
        ("v1", "pod", "write kind: Pod with apiVersion: v1\n"),
        ("v1", "POD", "write kind: Pod with apiVersion: v1\n"),
        (
            "apps/v1",
            "deployment",
            "write kind: Deployment with apiVersion: apps/v1\n",
        ),
        (
            "v1",
            "Deployment",
            "write kind: Deployment with apiVersion: apps/v1\n",
        ),
        (
            "batch/v1",
            "cronjob",
            "write kind: CronJob with apiVersion: batch/v1\n",
        ),
        ("v1", "service", "kinds begin with a capital letter\n"),
        ("", "Pod", "it has no apiVersion\n"),
        ("v1", "", "it has no kind\n"),
    ] {
        let mut object = pod("web", IMAGE);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        let outcome = preview(&[], &stream(&[object]));
        assert_eq!(outcome.code, Some(1));
        assert_eq!(outcome.objects, "");
        let kind = if kind.is_empty() { "(no kind)" } else { kind };
        outcome.tells(&format!("{kind} web: skipped: kubectl rejects it: "));
        outcome.tells(hint);
        outcome.tells("no valid object in the input\n");
    }
}

#[test]
fn input_without_a_valid_object_is_an_error() {
    let empty = json!({"apiVersion": "v1", "kind": "List", "items": []});
    for arguments in [&[][..], &["-o", "json"], &["-o", "patch"], &["--diff"]] {
        preview(arguments, &stream(std::slice::from_ref(&empty)))
            .fails(1, "no object in the input\n");
        preview(arguments, "Error: could not find template\n").fails(
            1,
            "skipped: kubectl rejects it: it has no apiVersion\necr-injector: no valid object",
        );
        let mut wrong = pod("web", IMAGE);
        wrong["spec"]["containers"][0]["image"] = json!(7);
        let bare = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}});
        let invalid = [wrong, bare, json!({"a": 1})];
        preview(arguments, &stream(&invalid)).fails(
            1,
            "Deployment default/(no name): skipped: the API server would reject it: \
             spec.template is missing\n",
        );
        // One that is valid is enough.
        let valid = [json!({"a": 1}), pod("web", IMAGE)];
        preview(arguments, &stream(&valid)).ok();
    }
}

#[test]
fn endless_input_is_read_to_a_limit() {
    preview(&["-f", "/dev/zero"], "").fails(1, "/dev/zero has more than 64 MiB");
}

#[test]
fn metadata_that_is_no_text_is_told() {
    for (namespace, value) in [("n", "false"), ("no", "false"), ("2024", "2024")] {
        let input = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: {namespace}\n\
             spec:\n  containers:\n  - image: {IMAGE}\n"
        );
        let reason = format!(
            "Pod web: skipped: kubectl rejects it: metadata.namespace: {value} is not a text; \
             write it in quotes"
        );
        preview(&[], &input).fails(1, &reason);
        let quoted = input.replace(
            &format!("namespace: {namespace}"),
            &format!("namespace: \"{namespace}\""),
        );
        preview(&[], &quoted)
            .ok()
            .tells(&format!("Pod {namespace}/web: inject\n"));
    }
    let mut deployment = workload("apps/v1", "Deployment", "/spec/template");
    deployment["spec"]["template"]["metadata"]["labels"]["version"] = json!(1.0);
    preview(&[], &deployment.to_string()).fails(
        1,
        "kubectl rejects it: spec.template.metadata.labels.version: 1.0 is not a text",
    );
}

#[test]
fn pod_of_another_form_is_rejected() {
    for (spec, fault) in [
        (json!([[{"image": IMAGE}]]), "spec: expected a map"),
        (json!("x"), "spec: expected a map"),
        (
            json!({"containers": [[IMAGE]]}),
            "spec.containers[0]: expected a map",
        ),
        (
            json!({"containers": {"image": IMAGE}}),
            "spec.containers: expected a list",
        ),
        (
            json!({"containers": [{"image": IMAGE}], "imagePullSecrets": ["x"]}),
            "spec.imagePullSecrets[0]: expected a map",
        ),
    ] {
        let mut object = pod("web", IMAGE);
        object["spec"] = spec;
        let reason = format!("Pod default/web: skipped: the API server would reject it: {fault}\n");
        preview(&[], &object.to_string()).fails(1, &reason);
    }
    let mut deployment = workload("apps/v1", "Deployment", "/spec/template");
    deployment["spec"]["template"]["spec"]["volumes"] = json!([1]);
    preview(&[], &deployment.to_string()).fails(
        1,
        "would reject it: spec.template.spec.volumes[0]: expected a map\n",
    );
}

#[test]
fn null_elements_of_a_pod_are_empty_ones() {
    let mut object = pod("web", IMAGE);
    let container = object["spec"]["containers"][0].clone();
    object["spec"] = json!({
        "containers": [null, container], "initContainers": [null], "volumes": [null],
        "imagePullSecrets": [null],
    });
    let outcome = preview(&["-o", "patch"], &object.to_string()).ok();
    outcome.tells("Pod default/web: inject\n");
    assert_eq!(
        outcome.patches()[0]["patch"][0]["path"],
        "/spec/imagePullSecrets/-"
    );
}

#[test]
fn custom_kind_whose_images_are_not_known_is_unknown() {
    let of = |spec: Value| {
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec}).to_string()
    };
    for (spec, reason) in [
        (
            json!({"steps": [{"image": "$(params.builder)"}]}),
            "the image \"$(params.builder)\" has a parameter, which its controller replaces",
        ),
        (
            json!({"templates": [{"container": {"image": "{{inputs.parameters.image}}"}}]}),
            "has a parameter",
        ),
        (json!({"image": "${IMAGE}"}), "has a parameter"),
        (
            json!({"image": format!("{IMAGE}-{{{{tag}}}}")}),
            "has a parameter",
        ),
        (
            json!({"template": {"spec": spec("$(params.account).dkr.ecr.eu-west-1.amazonaws.com/a")}}),
            "has a parameter",
        ),
        (
            json!({"workloadRef": {"kind": "Deployment", "name": "web"}}),
            "its Pods are made from the template of another object (spec.workloadRef)",
        ),
        (
            json!({"values": {"a": [{"picture": IMAGE}]}}),
            "spec.values.a.0.picture names an ECR registry",
        ),
    ] {
        let outcome = preview(&[], &of(spec)).ok();
        outcome.tells("Widget w: unknown: ");
        outcome.tells(reason);
        for claim in ["would not get it", "has no Pod", "image:", "warning:"] {
            assert!(!outcome.report.contains(claim), "{}", outcome.report);
        }
    }
    let outcome = preview(&[], &of(json!({"image": IMAGE, "sidecarImage": "${X}"}))).ok();
    outcome.tells("Pods would get it: 1234");
    outcome.tells("  unknown:  the image \"${X}\" has a parameter");
    // The namespace decides whatever the images are.
    let outcome = preview(&["-n", "kube-system"], &of(json!({"image": "${IMAGE}"}))).ok();
    outcome.tells("would not get it: the configuration excludes namespace kube-system");
    let outcome = preview(&[], &of(json!({"image": "nginx"}))).ok();
    outcome.tells("would not get it: no image is in a private ECR registry");
}

#[test]
fn lookalike_in_a_custom_kind_is_told() {
    let wrong = "123456789012.ecr.eu-west-1.amazonaws.com/shop/web";
    let template = json!({"spec": spec(wrong)});
    for (spec, outcome) in [
        (json!({"template": template}), "would not get it"),
        (
            json!({"template": template, "image": IMAGE}),
            "would get it",
        ),
    ] {
        let object = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "w"}, "spec": spec});
        let shown = preview(&[], &object.to_string()).ok();
        shown.tells(outcome);
        shown.tells(&format!(
            "  image:    {wrong:?}: looks like ECR, but its host has \"ecr\" where"
        ));
    }
}

#[test]
fn assumed_namespace_is_told() {
    let mut documents = vec![pod("bare", IMAGE), pod("plain", "nginx")];
    documents.extend(custom_kinds().drain(..1));
    documents[2]["metadata"] = json!({"name": "bare"});
    let line = "  assumed:  namespace default; neither the object nor -n names one\n";
    let outcome = preview(&[], &stream(&documents)).ok();
    assert_eq!(
        outcome.report.matches(line).count(),
        3,
        "{}",
        outcome.report
    );
    let outcome = preview(&["-n", "default"], &stream(&documents)).ok();
    assert!(!outcome.report.contains("assumed"), "{}", outcome.report);
    documents.drain(1..);
    documents[0]["metadata"]["namespace"] = json!("default");
    let outcome = preview(&[], &stream(&documents)).ok();
    assert!(!outcome.report.contains("assumed"), "{}", outcome.report);
}

#[test]
fn text_of_a_manifest_moves_no_cursor_and_forges_no_line() {
    let evil = "x\u{1b}[2J\r\nPod default/forged: inject\u{202e}\u{9b}";
    let with_name = |mut object: Value| {
        object["metadata"]["name"] = json!(evil);
        object
    };
    let mut kind = pod("k", IMAGE);
    kind["kind"] = json!(evil);
    let mut custom = kind.clone();
    custom["apiVersion"] = json!(format!("{evil}/v1"));
    let mut namespace = pod("n", IMAGE);
    namespace["metadata"]["namespace"] = json!(evil);
    let mut wrong = pod("w", IMAGE);
    wrong["spec"]["containers"] = json!({ evil: evil });
    let documents = [
        with_name(pod("", IMAGE)),
        with_name(pod("", evil)),
        with_name(custom_kinds().swap_remove(0)),
        kind,
        custom,
        namespace,
        wrong,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": evil}}),
    ];
    let is_plain = |text: &str| {
        let forged = text.contains("\nPod default/forged: inject");
        !forged
            && text
                .chars()
                .all(|c| "\n\t".contains(c) || !c.is_control() && c != '\u{202e}')
    };
    let input = stream(&documents);
    let outcome = preview(&["-o", "patch"], &input).ok();
    assert!(is_plain(&outcome.report), "{:?}", outcome.report);
    outcome
        .tells("Pod default/x\\u{1b}[2J\\r\\nPod default/forged: inject\\u{202e}\\u{9b}: inject\n");
    assert!(is_plain(&outcome.objects), "{:?}", outcome.objects);
    let json = preview(&["-o", "json"], &input).ok().objects;
    assert!(is_plain(&json), "{json:?}");
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["items"][7], documents[7]);
    let outcome = preview(&["--diff"], &input).ok();
    assert!(is_plain(&outcome.objects), "{:?}", outcome.objects);
    for input in [
        format!(
            "\"{}\": 1\n\"{}\": 1\n",
            "\\x1b\\n\\u202e", "\\x1b\\n\\u202e"
        ),
        "{\"\\u001b\\n\": 1, \"\\u001b\\n\": 2}".to_owned(),
        "a: *\u{1b}\u{202e}\n".to_owned(),
    ] {
        let outcome = preview(&[], &input);
        assert_eq!(outcome.code, Some(1), "{}", outcome.report);
        assert!(is_plain(&outcome.report), "{:?}", outcome.report);
    }
}

#[test]
fn json_with_a_field_twice_is_an_error_that_names_it() {
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "spec": {{"containers": [{{"image": "{IMAGE}", "image": "nginx"}}]}}}}"#
    );
    preview(&[], &text).fails(1, "duplicate mapping key `image`");
    let text = format!(
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {IMAGE}\n    image: nginx\n"
    );
    preview(&[], &text).fails(
        1,
        "document 1, line 6, column 5: duplicate mapping key `image`",
    );
}

#[test]
fn help_lists_the_exit_codes() {
    let outcome = preview(&["--help"], "").ok();
    assert!(
        outcome.objects.contains("Exit codes:\n  0  done"),
        "{}",
        outcome.objects
    );
}

#[test]
fn reader_that_has_seen_enough_is_no_error() {
    let documents: Vec<_> = (0..2000)
        .map(|at| pod(&format!("pod-{at}"), IMAGE))
        .collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(["preview", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(stream(&documents).as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let report = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(
        report.contains("2000 objects, 2000 would be changed"),
        "{report}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk_is_an_error() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(["preview", "-f"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods/image_of_a_container.yaml"))
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(
        report.contains("writing to standard output: No space left"),
        "{report}"
    );
}

#[test]
fn image_that_only_looks_like_ecr_is_told_with_the_right_form() {
    for (image, why) in [
        (
            "123456789012.ecr.eu-west-1.amazonaws.com/shop/web",
            r#"its host has "ecr" where "dkr.ecr" belongs"#,
        ),
        (
            "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/web",
            "images have no scheme such as https://",
        ),
        (
            "{{ .Values.account }}.dkr.ecr.eu-west-1.amazonaws.com/shop/web",
            r#"the placeholder "{{ .Values.account }}" was not replaced"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "it has no repository after the host",
        ),
    ] {
        let outcome = preview(&[], &pod("web", image).to_string()).ok();
        outcome.tells("Pod default/web: skipped: ");
        outcome.tells(&format!(
            "  image:    {image:?}: looks like ECR, but {why}\n"
        ));
        // The API server asks the webhook about no other Pod.
        let warning = format!("  warning:  ecr-injector: an image looks like ECR, but {why}\n");
        let is_warned = outcome.report.contains(&warning);
        assert_eq!(is_warned, image.contains(".dkr.ecr"), "{}", outcome.report);
    }
    let long = format!(
        "${{{}}}.dkr.ecr.eu-west-1.amazonaws.com/a",
        "x\u{1b}[1m".repeat(50)
    );
    let outcome = preview(&[], &pod("web", &long).to_string()).ok();
    outcome.tells("was not replaced");
    outcome.tells("skipped: none of its images is a valid reference\n");
    assert!(outcome.report.len() < 2000 && !outcome.report.contains('\u{1b}'));
    for image in [
        IMAGE,
        "public.ecr.aws/nginx/nginx:1",
        "ghcr.io/team/ecr-tools",
    ] {
        let outcome = preview(&[], &pod("web", image).to_string()).ok();
        assert!(!outcome.report.contains("looks like"), "{}", outcome.report);
    }
}

#[test]
fn image_with_a_port_gets_a_credential_under_the_port() {
    let image = IMAGE.replace("amazonaws.com/", "amazonaws.com:443/");
    let outcome = preview(&[], &pod("web", &image).to_string()).ok();
    outcome.tells("Pod default/web: inject\n");
    outcome.tells("  registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com:443 (account 123456789012, region eu-west-1)\n");
}

#[test]
fn key_on_the_workload_instead_of_its_template_is_told() {
    let mut deployment = workload("apps/v1", "Deployment", "spec/template");
    for (field, value) in [("annotations", "disabled"), ("labels", "enabled")] {
        deployment["metadata"] = json!({"name": "web", field: {"ecr-injector.dev/inject": value}});
        let outcome = preview(&[], &deployment.to_string()).ok();
        outcome.tells("Deployment default/web: inject\n");
        outcome.tells(&format!("  metadata: \"ecr-injector.dev/inject\": \"{value}\" of the Deployment itself has no effect; \
            to opt its Pods out, set the annotation ecr-injector.dev/inject: disabled in spec.template.metadata.annotations\n"));
    }
    deployment["spec"]["template"]["metadata"]["annotations"] =
        json!({"ecr-injector.dev/inject": "disabled"});
    let outcome = preview(&[], &deployment.to_string()).ok();
    assert!(
        !outcome.report.contains("has no effect"),
        "{}",
        outcome.report
    );
}

#[test]
fn namespace_that_looks_opted_in_is_told() {
    let namespace = |name: &str, labels: Value| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string()
    };
    let near = namespace("team", json!({"ecr-injector.dev/inject": "true"}));
    preview(&[], &near).ok().tells(
        "To opt in: kubectl label namespace team ecr-injector.dev/inject=enabled --overwrite\n",
    );
    let excluded = namespace("kube-system", json!({"ecr-injector.dev/inject": "enabled"}));
    preview(&[], &excluded)
        .ok()
        .tells("optIn.excludeNamespaces");
    for labels in [
        json!({"ecr-injector.dev/inject": "enabled"}),
        json!({"ecr-injector.dev/inject": "disabled"}),
        json!({}),
    ] {
        let outcome = preview(&[], &namespace("team", labels)).ok();
        assert!(!outcome.report.contains("label:"), "{}", outcome.report);
    }
}

#[test]
fn exit_code_tells_whether_something_would_be_changed() {
    let changed = stream(&[pod("a", IMAGE)]);
    let custom = stream(&custom_kinds()[..1]);
    let unchanged = stream(&[pod("a", "nginx:1")]);
    for (input, code) in [(&changed, 3), (&custom, 3), (&unchanged, 0)] {
        for arguments in [&["--exit-code"][..], &["--exit-code", "-q", "--diff"]] {
            assert_eq!(
                preview(arguments, input).code,
                Some(code),
                "{arguments:?} {input}"
            );
        }
        preview(&[], input).ok();
    }
    // An error is no change.
    preview(&["--exit-code"], "").fails(1, "no object in standard input");
    // A second preview finds nothing to change.
    let admitted = preview(&["--exit-code"], &changed).objects;
    assert_eq!(preview(&["--exit-code"], &admitted).code, Some(0));
}

#[test]
fn quiet_preview_has_no_report_but_errors() {
    let input = stream(&[pod("a", IMAGE)]);
    for arguments in [&[][..], &["-o", "patch"], &["--diff"]] {
        let loud = preview(arguments, &input).ok();
        let quiet = preview(&[arguments, &["--quiet"]].concat(), &input).ok();
        assert_eq!(quiet.report, "");
        assert!(!loud.report.is_empty());
        assert_eq!(quiet.objects, loud.objects);
    }
    preview(&["--quiet"], "").fails(1, "no object in standard input");
    preview(&["--quiet"], "a: [").fails(1, "standard input");
}
