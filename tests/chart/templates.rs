//! `charts/ecr-injector`: what Helm makes of it, whatever the values, and `deploy/`, which is rendered from it.
//!
//! `UPDATE=1 cargo test --test chart` writes what is made from something else: `deploy/`, the configuration's part of
//! `values.schema.json`, and the table in the chart's README.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::caller::Outcome;
use crate::support::helm::{
    RELEASE, chart, find, helm, kube_score, objects, of_the_test, try_template,
};
use crate::support::{Caller, ControlPlane, Shared};
use clap::CommandFactory as _;
use ecr_injector::aws::credentials::Source;
use ecr_injector::cli::Cli;
use ecr_injector::config::Config;
use serde_json::{Value, json};
use std::sync::Arc;

/// Values that people have, each in a cluster of its own: the name, and what is in the file.
const MATRIX: &[(&str, &str)] = &[
    ("the defaults", ""),
    (
        "certificates by cert-manager",
        "certificates: {mode: cert-manager}",
    ),
    (
        "certificates by an issuer of cert-manager",
        "certificates: {mode: cert-manager, certManager: {issuerRef: {kind: ClusterIssuer, name: company}, duration: 720h}}",
    ),
    (
        "a certificate from a Secret",
        "certificates: {mode: secret, secretName: our-own-tls}",
    ),
    (
        "a registration that fails closed",
        "webhook: {failurePolicy: Fail, timeoutSeconds: 10, reinvocationPolicy: Never, port: 10250,
                   annotations: {admissions.enforcer/disabled: 'true'}, labels: {team: platform},
                   namespaceSelector: {matchLabels: {tier: prod}, matchExpressions: [{key: legacy, operator: DoesNotExist}]},
                   objectSelector: {matchExpressions: [{key: skip, operator: DoesNotExist}]}}",
    ),
    (
        "an autoscaler",
        "autoscaling: {enabled: true, minReplicas: 3, maxReplicas: 9}",
    ),
    (
        "a network policy for everybody",
        "networkPolicy: {enabled: true}",
    ),
    (
        "a network policy with names",
        "networkPolicy:
           enabled: true
           apiServer: [{ipBlock: {cidr: 10.0.0.0/16}}]
           metrics: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
           extraEgress: [{ports: [{port: 3128}]}]",
    ),
    (
        "the node's network",
        "hostNetwork: true\nwebhook: {port: 9443}\nadminPort: 9444",
    ),
    (
        "OpenShift",
        "openshift: true\npriorityClassName: system-cluster-critical",
    ),
    (
        "a full configuration",
        "config:
           onFailure: deny
           allow: {accounts: ['012345678901'], regions: [eu-west-1]}
           aliases: [{host: images.example.com, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com},
                     {host: no.example.com, registry: 123456789012.dkr.ecr.eu-west-2.amazonaws.com}]
           publicEcr: true
           clusterName: 'on'
           identities: [{accounts: ['111122223333'], namespaces: ['team-a-*'],
                         assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/ecr-pull', externalId: '0x10', pullOnly: true}}]
           namespaceRoles: {allow: ['arn:aws:iam::*:role/ecr-pull-{namespace}']}
           prewarm: [images.example.com]
           refresh: {writesPerSecond: 50, sessionCap: 6h, forgetAfter: 14d}
           revoke: immediately
           discover: pods
           limits: {registriesPerPod: 8, registriesPerSecret: 32}
           optOutRemove: true
           log: {filter: 'info,ecr_injector=debug'}",
    ),
    (
        "names of one's own",
        "config: {secretName: registry-credentials, optIn: {label: example.com/registry, value: '1', excludeNamespaces: [monitoring]}}",
    ),
    (
        "an account and rights from elsewhere",
        "serviceAccount: {create: false, name: somebody}\nrbac: {create: false}",
    ),
    (
        "one unguarded replica",
        "replicaCount: 1\nguard: {enabled: false}\nflowSchema: {enabled: false}",
    ),
    (
        "labels of another policy on every Secret",
        "guard: {allowedLabels: [example.com/cost-centre, team], allowedAnnotations: [example.com/seen-by]}",
    ),
    (
        "monitors",
        "metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}, podMonitor: {enabled: true, interval: 1m}}",
    ),
    (
        "alerts and dashboards",
        "prometheusRule: {enabled: true, namespace: monitoring, rules: {EcrInjectorNoLeader: {for: 10m}}, extra: [{alert: Mine, expr: vector(1)}]}
dashboard: {configMap: {enabled: true, annotations: {grafana_folder: Kubernetes}}, grafanaDashboard: {enabled: true, folder: Kubernetes}}",
    ),
    ("no conditions", "matchConditions: {enabled: false}"),
    (
        "a condition of one's own",
        "matchConditions: {extra: [{name: not-by-hand, expression: 'request.userInfo.username != \"admin\"'}]}",
    ),
    (
        "an image by digest from a mirror",
        "image: {registry: 'mirror.example.com:5000', digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}
imagePullSecrets: [{name: mirror}]",
    ),
    (
        "IRSA",
        "aws: {roleArn: 'arn:aws-cn:iam::123456789012:role/ecr-injector', region: cn-north-1, secretName: ''}
serviceAccount: {annotations: {example.com/more: 'yes'}}",
    ),
    (
        "more of everything",
        "nameOverride: puller
commonLabels: {team: platform}
commonAnnotations: {example.com/owner: platform}
replicaCount: 5
resources: {limits: {cpu: 1}}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
topologySpreadConstraints: [{topologyKey: rack, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, labelSelector: {}}]
podLabels: {sidecar.istio.io/inject: 'false'}
podAnnotations: {example.com/note: '1'}
service: {port: 8443, annotations: {example.com/note: '1'}}
podDisruptionBudget: {maxUnavailable: 25%}
shutdownDelay: 20
log: {format: text, filter: 'info,ecr_injector::refresher=debug'}
dnsPolicy: Default
extraArgs: ['--tls-min-version=1.2']
extraEnv: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]
extraEnvFrom: [{configMapRef: {name: more, optional: true}}]
extraVolumes: [{name: bundle, configMap: {name: bundle, optional: true}}]
extraVolumeMounts: [{name: bundle, mountPath: /bundle}]
extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: more}, data: {a: b}}]",
    ),
    (
        "the policy instead of the webhook",
        "mode: policy
certificates: {mode: cert-manager}
config: {discover: pods, prewarm: [123456789012.dkr.ecr.eu-west-1.amazonaws.com], publicEcr: true, allow: {regions: [eu-west-1]},
         aliases: [{host: docker.io, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}]}",
    ),
    ("the policy below the webhook", "mode: both"),
    (
        "rules of the cluster",
        "revisionHistoryLimit: 3
strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
dnsConfig: {options: [{name: ndots, value: '1'}]}
hostAliases: [{ip: 192.0.2.1, hostnames: [sts.example.com]}]
podSecurityContext: {supplementalGroups: [5]}
containerSecurityContext: {privileged: false}
readinessProbe: {timeoutSeconds: 2}
livenessProbe: {timeoutSeconds: 3}
service: {ipFamilyPolicy: PreferDualStack}
global: {imageRegistry: mirror.example.com/proxy, imagePullSecrets: [mirror]}",
    ),
    (
        "a chart around it",
        "global: {imageRegistry: mirror.example.com}\nenabled: true",
    ),
];

/// Kinds that only an operator's definitions bring: their shape is looked at here, and no API server of ours knows them.
const FOREIGN: &[&str] = &[
    "cert-manager.io/v1",
    "grafana.integreatly.org/v1beta1",
    "monitoring.coreos.com/v1",
];

/// The findings of kube-score that stay as they are: the check, the sets of values in which
/// kube-score finds something, and why.
const LEFT: &[(&str, In, &str)] = &[
    (
        "container-resources",
        In::AllBut(&["more of everything"]),
        "a limit of CPU holds up admissions, for which the whole cluster waits; memory has one",
    ),
    (
        "container-cpu-requests-equal-limits",
        In::All,
        "for the same reason",
    ),
    (
        "container-memory-requests-equal-limits",
        In::All,
        "memory grows with the cluster: what a small one needs is asked for, and what a large one needs is allowed",
    ),
    (
        "container-resource-requests-equal-limits",
        In::All,
        "for these two reasons",
    ),
    (
        "container-ephemeral-storage-request-and-limit",
        In::All,
        "the container writes no file, and its log is rotated by the kubelet: for a limit it would be evicted",
    ),
    (
        "container-image-pull-policy",
        In::All,
        "Always makes each start wait for a registry; image.digest is there for who wants to be sure of the image",
    ),
    (
        "deployment-has-host-podantiaffinity",
        In::AllBut(&["one unguarded replica"]),
        "topologySpreadConstraints spread over zones as well as nodes, and let a cluster of one node have two replicas",
    ),
    (
        "pod-networkpolicy",
        In::AllBut(&[
            "a network policy for everybody",
            "a network policy with names",
        ]),
        "networkPolicy.enabled: from where the API servers call is known to the cluster's admin alone",
    ),
    (
        "container-security-context-user-group-id",
        In::Only(&["OpenShift"]),
        "the cluster chooses the user, out of the range that it gave to the namespace",
    ),
    (
        "deployment-replicas",
        In::Only(&["one unguarded replica"]),
        "it is what was asked for; the notes warn of it",
    ),
];

/// The flags of `serve` that the chart sets by other values: the process refuses one that is there twice.
const SET: [&str; 16] = [
    "admin-listen",
    "ca-secret",
    "config",
    "expect-credentials",
    "help",
    "lease-name",
    "listen",
    "log",
    "log-format",
    "no-admission",
    "service-name",
    "shutdown-delay",
    "state-key-secret",
    "tls-secret",
    "version",
    "webhook-configuration",
];

/// In which sets of values.
#[derive(Debug)]
enum In {
    All,
    AllBut(&'static [&'static str]),
    Only(&'static [&'static str]),
}

impl In {
    fn has(&self, set: &str) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(others) => !others.contains(&set),
            Self::Only(sets) => sets.contains(&set),
        }
    }
}

#[test]
fn kube_score_finds_what_is_left_for_a_reason_and_nothing_else() {
    for (name, values) in MATRIX {
        let left: BTreeSet<String> = LEFT
            .iter()
            .filter(|(_, sets, _)| sets.has(name))
            .map(|(check, _, _)| (*check).to_owned())
            .collect();
        // The Pod of `helm test` runs once: what is good for a Deployment isn't asked of it.
        let rendered = objects(RELEASE, RELEASE, values);
        let rendered: Vec<_> = rendered.iter().map(Value::to_string).collect();
        assert_eq!(findings(&rendered.join("\n---\n")), left, "{name}");
    }
}

/// The checks, optional ones included, that something rendered doesn't pass.
fn findings(rendered: &str) -> BTreeSet<String> {
    let mut kube_score = Command::new(kube_score())
        .args(["score", "--output-format=json", "--all-default-optional"])
        .args(["--kubernetes-version=v1.37", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = kube_score.stdin.take().unwrap();
    stdin.write_all(rendered.as_bytes()).unwrap();
    drop(stdin);
    let output = kube_score.wait_with_output().unwrap();
    let objects: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let kinds: Vec<_> = objects
        .iter()
        .map(|object| &object["type_meta"]["kind"])
        .collect();
    assert!(kinds.contains(&&json!("Deployment")), "{kinds:?}");
    objects
        .iter()
        .flat_map(|object| object["checks"].as_array().unwrap())
        .filter(|check| check["skipped"] == false && check["grade"].as_u64().unwrap() < 10)
        .map(|check| check["check"]["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn two_renderings_are_the_same_to_the_byte() {
    for (name, values) in MATRIX {
        let render = || try_template(RELEASE, RELEASE, values).unwrap();
        let first = render();
        assert_eq!(first, render(), "{name}");
        assert!(!first.contains("caBundle:"), "{name}");
    }
}

#[test]
fn helm_itself_has_nothing_to_complain_of() {
    let chart = chart();
    for (name, values) in MATRIX {
        let output = helm(&["lint", "--strict", chart.to_str().unwrap()], values);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {said}");
        assert!(!said.contains("[WARNING]"), "{name}: {said}");
    }
}

#[test]
fn deploy_is_what_the_chart_renders() {
    let rendered = try_template(RELEASE, RELEASE, "").unwrap();
    let mut files = BTreeMap::<String, Vec<&str>>::new();
    for document in rendered
        .split("---\n# Source: ecr-injector/templates/")
        .skip(1)
    {
        let (file, text) = document.split_once('\n').unwrap();
        // What `helm test` makes is nothing to apply.
        if file.starts_with("tests/") {
            continue;
        }
        files
            .entry(file.to_owned())
            .or_default()
            .push(text.trim_end());
    }
    let head = "# Rendered from charts/ecr-injector by `make deploy`: change it there.\n\n";
    for (file, documents) in &files {
        let text = format!("{head}{}\n", documents.join("\n---\n"));
        same_or_updated(&deploy().join(file), &text, "make deploy");
    }
    // What isn't rendered is written by hand, and all of it is in the list of what kustomize applies.
    let listed: Value =
        serde_saphyr::from_str(&fs::read_to_string(deploy().join("Kustomization")).unwrap())
            .unwrap();
    let listed: BTreeSet<String> = serde_json::from_value(listed["resources"].clone()).unwrap();
    let there: BTreeSet<String> = fs::read_dir(deploy())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|it| it == "yaml"))
        .collect();
    let mut expected: BTreeSet<String> = files.into_keys().collect();
    expected.insert("namespace.yaml".to_owned());
    assert_eq!(there, expected);
    assert_eq!(listed, expected);
}

/// For whoever applies `deploy/` rather than the chart.
#[test]
fn certs_has_the_objects_of_cert_manager_that_the_chart_renders() {
    let rendered = try_template(RELEASE, RELEASE, "certificates: {mode: cert-manager}").unwrap();
    let documents: Vec<&str> = rendered
        .split("---\n# Source: ecr-injector/templates/")
        .filter_map(|document| document.strip_prefix("certificate.yaml\n"))
        .map(str::trim_end)
        .collect();
    assert_eq!(documents.len(), 4);
    let head = "# Rendered from charts/ecr-injector by `make deploy`: change it there. How it is used: certs/README.md.\n\n";
    let text = format!("{head}{}\n", documents.join("\n---\n"));
    let certs = of_repository("certs");
    same_or_updated(&certs.join("cert-manager.yaml"), &text, "make deploy");
    // What its README says beside it: what is annotated, which Secret is served.
    let readme = fs::read_to_string(certs.join("README.md")).unwrap();
    let objects = objects(RELEASE, RELEASE, "certificates: {mode: cert-manager}");
    let registration = find(&objects, "MutatingWebhookConfiguration", "zz-ecr-injector");
    let annotations = registration["metadata"]["annotations"].as_object().unwrap();
    let (key, value) = annotations.iter().next().unwrap();
    let annotation = format!("{key}={}", value.as_str().unwrap());
    assert!(readme.contains(&format!(
        "mutatingwebhookconfiguration zz-ecr-injector {annotation}"
    )));
    let secret = &find(&objects, "Certificate", "ecr-injector-tls")["spec"]["secretName"];
    assert!(readme.contains(&format!("--tls-secret={}", secret.as_str().unwrap())));
}

#[test]
fn schema_of_the_values_has_the_configurations_own_in_it() {
    let path = chart().join("values.schema.json");
    let mut schema: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let docs = of_repository("docs/reference/config.schema.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(docs).unwrap()).unwrap();
    for of_a_file in ["$schema", "required"] {
        config.as_object_mut().unwrap().shift_remove(of_a_file);
    }
    // The flag's filter has the form of the file's.
    let filter = &config["properties"]["log"]["properties"]["filter"]["pattern"];
    schema["properties"]["log"]["properties"]["filter"]["pattern"] = filter.clone();
    let registry = &config["properties"]["aliases"]["items"]["properties"]["registry"];
    let patterns = format!(
        "{{{{- /* Written by `make schema`: the hosts of private registries, from the schema of the configuration. */ -}}}}\n\
         {{{{- define \"ecr-injector.registryPattern\" -}}}}\n{}\n{{{{- end -}}}}\n\n\
         {{{{- define \"ecr-injector.noRegistryPattern\" -}}}}\n{}\n{{{{- end -}}}}\n",
        registry["pattern"].as_str().unwrap(),
        registry["not"]["pattern"].as_str().unwrap()
    );
    same_or_updated(
        &chart().join("templates/_patterns.tpl"),
        &patterns,
        "make schema",
    );
    let arguments = Cli::command();
    let arguments = arguments.find_subcommand("serve").unwrap().get_arguments();
    let names: BTreeSet<&str> = arguments.filter_map(clap::Arg::get_long).collect();
    let names: Vec<&str> = names
        .into_iter()
        .filter(|name| !SET.contains(name))
        .collect();
    schema["properties"]["extraArgs"]["items"]["pattern"] =
        json!(format!("^--({})(=|$)", names.join("|")));
    schema["properties"]["config"] = config;
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    same_or_updated(&path, &text, "make schema");
}

#[test]
fn schema_knows_each_value_and_no_other() {
    fn compare(path: &str, values: &Value, schema: &Value) {
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        let closed = schema["additionalProperties"] == json!(false);
        assert!(closed, "{path}: anything is allowed");
        let (Some(values), false) = (values.as_object(), path == ".config") else {
            return;
        };
        let known: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        let there: BTreeSet<&str> = values.keys().map(String::as_str).collect();
        // What is empty by default shows none of its fields.
        let missing: Vec<_> = known
            .difference(&there)
            .filter(|key| **key != "global" && !values.is_empty())
            .collect();
        assert!(
            missing.is_empty(),
            "{path}: not in values.yaml: {missing:?}"
        );
        for (key, value) in values {
            let schema = properties
                .get(key)
                .unwrap_or_else(|| panic!("{path}.{key} is not in the schema"));
            compare(&format!("{path}.{key}"), value, schema);
        }
    }
    let values = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let schema = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    compare("", &values, &serde_json::from_str(&schema).unwrap());
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn values_that_cannot_be_are_refused_by_the_schema() {
    let digits = "image: {digest: 'sha256:12'}";
    for (values, complaint) in [
        ("replica: 2", "replica"),
        ("replicaCount: two", "/replicaCount"),
        ("replicaCount: -1", "/replicaCount"),
        ("image: {name: x}", "/image"),
        ("image: {pullPolicy: Sometimes}", "/image/pullPolicy"),
        ("image: {repository: 'Upper/Case'}", "/image/repository"),
        ("image: {tag: 'a:b'}", "/image/tag"),
        (digits, "/image/digest"),
        ("webhook: {failurePolicy: ignore}", "/webhook/failurePolicy"),
        ("webhook: {timeoutSeconds: 30}", "/webhook/timeoutSeconds"),
        ("webhook: {timeoutSeconds: 0}", "/webhook/timeoutSeconds"),
        ("webhook: {port: 443}", "/webhook/port"),
        ("webhook: {port: null}", "/webhook"),
        ("webhook: {caBundle: Cg==}", "/webhook"),
        ("webhook: null", "webhook"),
        ("certificates: {mode: self-signed}", "/certificates/mode"),
        ("certificates: {mode: secret}", "/certificates/secretName"),
        (
            "certificates: {certManager: {duration: 90}}",
            "/certificates/certManager/duration",
        ),
        ("aws: {roleArn: ecr-injector}", "/aws/roleArn"),
        ("aws: {region: Frankfurt}", "/aws/region"),
        ("aws: {accessKeyId: AKIA}", "/aws"),
        ("aws: {expectCredentials: irsa}", "/aws/expectCredentials"),
        ("serviceAccount: {create: false}", "/serviceAccount/name"),
        (
            "serviceAccount: {annotations: {a: 1}}",
            "/serviceAccount/annotations/a",
        ),
        ("config: null", "config"),
        ("config: {onFailure: fail}", "/config/onFailure"),
        ("config: {optIn: {value: true}}", "/config/optIn/value"),
        ("config: {secretName: 'a b'}", "/config/secretName"),
        ("config: {allow: {accounts: []}}", "/config/allow/accounts"),
        ("config: {allow: {regions: []}}", "/config/allow/regions"),
        ("config: {allow: {}}", "/config/allow"),
        (
            "config: {identities: [{namespaces: [], ambient: true}]}",
            "/config/identities/0/namespaces",
        ),
        (
            "config: {allow: {accounts: [123456789012]}}",
            "/config/allow/accounts/0",
        ),
        (
            "config: {aliases: [{host: 'a\")||(\"'}]}",
            "/config/aliases/0",
        ),
        ("config: {prewarmed: []}", "/config"),
        ("matchConditions: false", "/matchConditions"),
        (
            "matchConditions: {extra: [{name: x}]}",
            "/matchConditions/extra/0",
        ),
        (
            "metrics: {serviceMonitor: {enabled: 'yes'}}",
            "/metrics/serviceMonitor/enabled",
        ),
        ("log: {format: yaml}", "/log/format"),
        (
            "flowSchema: {matchingPrecedence: 9000}",
            "/flowSchema/matchingPrecedence",
        ),
        (
            "networkPolicy: {apiServerPorts: []}",
            "/networkPolicy/apiServerPorts",
        ),
        (
            "podDisruptionBudget: {maxUnavailable: 0}",
            "/podDisruptionBudget/maxUnavailable",
        ),
        (
            "commonLabels: {app.kubernetes.io/name: x}",
            "app.kubernetes.io/name",
        ),
        ("extraArgs: [serve]", "/extraArgs/0"),
        ("extraArgs: ['--no-such-flag=1']", "/extraArgs/0"),
        ("extraArgs: ['--log=debug']", "/extraArgs/0"),
        ("extraArgs: ['--tls-min-version 1.2']", "/extraArgs/0"),
        ("log: {filter: 'info,a=loud'}", "/log/filter"),
        ("image: {registry: 'm.example/'}", "/image/registry"),
        ("strategy: {type: OnDelete}", "/strategy/type"),
        ("readinessProbe: {httpGet: {}}", "/readinessProbe"),
        ("service: {ipFamilyPolicy: Dual}", "/service/ipFamilyPolicy"),
        ("hostAliases: [{ip: 192.0.2.1}]", "/hostAliases/0"),
        ("fullnameOverride: Upper", "/fullnameOverride"),
        ("fullnameOverride: 7up", "/fullnameOverride"),
        ("config: {optIn: {value: ''}}", "/config/optIn/value"),
        ("dnsPolicy: None", "/dnsPolicy"),
        (
            "guard: {allowedLabels: ['a\")||(\"']}",
            "/guard/allowedLabels/0",
        ),
        (
            "certificates: {certManager: {issuerRef: {kind: ClusterIssuer}}}",
            "/certificates/certManager/issuerRef",
        ),
    ] {
        let error = try_template(RELEASE, RELEASE, values).expect_err(values);
        let by_schema = error.contains("don't meet the specifications of the schema");
        assert!(by_schema && error.contains(complaint), "{values}\n{error}");
    }
}

#[test]
fn configuration_is_valid_and_rendered_in_all_other_places() {
    for (name, values) in MATRIX {
        let objects = objects(RELEASE, RELEASE, values);
        let of_kind = |kind: &str| -> Vec<&Value> {
            objects
                .iter()
                .filter(|object| object["kind"] == kind)
                .collect()
        };
        let config = of_kind("ConfigMap")[0]["data"]["config.yaml"]
            .as_str()
            .unwrap();
        let config =
            Config::parse(config, name).unwrap_or_else(|error| panic!("{name}: {error}\n{config}"));
        let config = config.excluding(ecr_injector::cluster::namespace::Namespace::parse(RELEASE));
        let (secret, opt_in) = (&config.rules.secret_name, &config.opt_in);

        let entries = of_kind("MutatingWebhookConfiguration");
        let entries = entries.iter().filter_map(|it| it["webhooks"].as_array());
        for webhook in entries.flatten() {
            let selector = &webhook["namespaceSelector"];
            assert_eq!(
                selector["matchLabels"][&opt_in.label],
                json!(opt_in.value),
                "{name}"
            );
            let excluded: BTreeSet<String> =
                serde_json::from_value(selector["matchExpressions"][0]["values"].clone()).unwrap();
            let rules: BTreeSet<String> = config
                .rules
                .excluded
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(excluded, rules, "{name}");
        }
        for role in of_kind("ClusterRole") {
            let rules = role["rules"].as_array().unwrap().iter();
            let mut secrets = rules.filter(|rule| rule["resources"] == json!(["secrets"]));
            assert!(
                secrets.all(|rule| rule["resourceNames"] == json!([secret])),
                "{name}"
            );
        }
        for policy in of_kind("ValidatingAdmissionPolicy") {
            let policy_name = policy["metadata"]["name"].as_str().unwrap();
            assert!(policy_name.ends_with(ecr_injector::pull_secret::guard::POLICIES));
            let text = policy["spec"].to_string();
            if policy_name.starts_with("secrets.") || policy_name.starts_with("removals.") {
                for word in [secret, &opt_in.label, &opt_in.value] {
                    assert!(
                        text.contains(&format!("\\\"{word}\\\"")),
                        "{name}: {word} in {text}"
                    );
                }
                for namespace in &config.rules.excluded {
                    assert!(text.contains(&format!("\\\"{namespace}\\\"")), "{name}");
                }
            }
        }
    }
}

/// The control plane that these tests share.
async fn plane() -> Arc<ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    PLANE.get_or_start(ControlPlane::start).await
}

/// Values, and the start of the warning that the notes have of them.
const RISKY: [(&str, &str); 9] = [
    (
        "webhook: {failurePolicy: Fail}",
        "webhook.failurePolicy is Fail",
    ),
    ("guard: {enabled: false}", "guard.enabled is false"),
    (
        "flowSchema: {enabled: false}",
        "flowSchema.enabled is false",
    ),
    ("replicaCount: 1", "replicaCount is 1"),
    (
        "autoscaling: {enabled: true, minReplicas: 1}",
        "autoscaling.minReplicas is 1",
    ),
    (
        "serviceAccount: {create: false, name: other}\naws: {roleArn: 'arn:aws:iam::123456789012:role/ecr'}",
        "aws.roleArn is an annotation",
    ),
    ("hostNetwork: true", "hostNetwork is on"),
    (
        "mode: policy\npolicy: {assumeServed: true}",
        "mode is policy, and neither",
    ),
    (
        "webhook: {timeoutSeconds: 29}",
        "webhook.timeoutSeconds is 29",
    ),
];

#[tokio::test]
async fn notes_say_what_comes_next_and_warn_of_what_is_risky() {
    // Helm 3 wants to see a cluster even for this.
    let kubeconfig = plane().await.kubeconfig_for_admin();
    let notes = |values: &str| {
        let chart = chart();
        let arguments = [
            "install",
            RELEASE,
            chart.to_str().unwrap(),
            "--namespace",
            RELEASE,
            "--dry-run=client",
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ];
        let output = helm(&arguments, values);
        assert!(output.status.success(), "{output:?}");
        let output = String::from_utf8(output.stdout).unwrap();
        output.split_once("NOTES:").unwrap().1.to_owned()
    };
    let quiet = notes("");
    assert!(!quiet.contains("WARNING"), "{quiet}");
    assert!(quiet.contains("kubectl label namespace NAMESPACE ecr-injector.dev/inject=enabled"));
    assert!(quiet.contains("docs/how-to/troubleshooting.md"), "{quiet}");
    assert!(quiet.contains("create secret generic ecr-injector-aws"));
    // Only a chart from the sources can name an image that nobody published.
    let unreleased = "NEXT: this chart is not from a release";
    assert!(quiet.contains(unreleased), "{quiet}");
    let digest = format!("image: {{digest: 'sha256:{}'}}", "a".repeat(64));
    for elsewhere in [digest.as_str(), "image: {registry: mirror.example.com}"] {
        let notes = notes(elsewhere);
        assert!(!notes.contains(unreleased), "{elsewhere}: {notes}");
    }
    let with_role = notes("aws: {roleArn: 'arn:aws:iam::123456789012:role/ecr'}");
    assert!(!with_role.contains("NOTE: no AWS"), "{with_role}");
    let own = notes("config: {secretName: mine, optIn: {label: example.com/in, value: 'yes'}}");
    assert!(
        own.contains("example.com/in=yes") && own.contains("credential in mine,"),
        "{own}"
    );
    for (values, warning) in RISKY {
        let notes = notes(values);
        assert!(
            notes.contains(&format!("WARNING: {warning}")),
            "{values}: {notes}"
        );
    }
    assert!(notes("certificates: {mode: secret, secretName: x}").contains("NEXT: the API server"));
    let both = "mode: both\npolicy: {assumeServed: true}";
    let note = "NOTE: mode is both, and neither";
    assert!(notes(both).contains(note));
    for provided in [
        "discover: pods",
        "prewarm: [123456789012.dkr.ecr.eu-west-1.amazonaws.com]",
    ] {
        let quiet = notes(&format!("{both}\nconfig: {{{provided}}}"));
        assert!(!quiet.contains(note), "{provided}: {quiet}");
    }
    // Of the webhook nothing is said where there is none, but that its values have no effect.
    let policy =
        "mode: policy\npolicy: {assumeServed: true}\nreplicaCount: 1\nconfig: {discover: pods}";
    let quiet = notes(policy);
    assert!(
        !quiet.contains("WARNING") && !quiet.contains("no effect"),
        "{quiet}"
    );
    let without_effect = notes(&format!("{policy}\nwebhook: {{failurePolicy: Fail}}"));
    assert!(without_effect.contains("of webhook all but the selectors have no effect"));
    assert!(!without_effect.contains("WARNING"), "{without_effect}");
}

#[test]
fn readme_has_each_value_with_its_comment() {
    let path = chart().join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once("<!-- values -->\n").unwrap();
    let (_, tail) = rest.split_once("<!-- end of values -->").unwrap();
    let values = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let table = table(&values);
    assert!(!table.contains("|  |"), "a value has no comment: {table}");
    let text = format!("{head}<!-- values -->\n{table}<!-- end of values -->{tail}");
    same_or_updated(&path, &text, "make deploy");
}

#[tokio::test]
async fn every_set_of_values_is_accepted_by_a_real_api_server() {
    let plane = plane().await;
    let admin = Caller(plane.admin().await);
    // Before 1.36 there are no MutatingAdmissionPolicies of v1.
    let has_policies = ControlPlane::minor_version() >= 36;
    let sets = MATRIX
        .iter()
        .filter(|(_, values)| has_policies || !values.starts_with("mode:"));
    for (name, values) in sets {
        let restricted = ("pod-security.kubernetes.io/enforce", "restricted");
        let namespace = plane.namespace("tools", &[restricted]).await;
        let objects = objects("pull", &namespace, values);
        let known = objects
            .iter()
            .filter(|object| !FOREIGN.iter().any(|group| object["apiVersion"] == *group));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": known.collect::<Vec<_>>()});
        let strictly = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        let output = plane.kubectl_with_input(&strictly, &list.to_string()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        let on_the_nodes_network = *name == "the node's network";
        let accepted = output.status.success() && said.contains("Warning") == on_the_nodes_network;
        assert!(accepted, "{name}: {said}");

        let deployment = objects.iter().find(|object| object["kind"] == "Deployment");
        let mut pod = deployment.unwrap()["spec"]["template"].clone();
        pod["metadata"]["name"] = json!("probe");
        let outcome = create_pod(&admin, &namespace, &pod).await;
        if on_the_nodes_network {
            outcome.forbidden();
        } else {
            outcome.allowed();
        }

        for mut object in of_the_test("pull", &namespace, values) {
            // In the namespace that the test would make.
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = json!(namespace);
            }
            if object["kind"] == "Pod" {
                create_pod(&admin, &namespace, &object).await.allowed();
            } else {
                let output = plane
                    .kubectl_with_input(&strictly, &object.to_string())
                    .await;
                assert!(
                    output.status.success() && output.stderr.is_empty(),
                    "{name}: {output:?}"
                );
            }
        }
    }
}

/// In a dry run, by the account that it names.
async fn create_pod(admin: &Caller, namespace: &str, pod: &Value) -> Outcome {
    let account = json!({"metadata": {"name": pod["spec"]["serviceAccountName"]}});
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    admin.post(&accounts, &account).await.allowed();
    let pods = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
    admin.post(&pods, pod).await
}

#[test]
fn release_test_has_the_releases_image_and_serves_nobody() {
    for (name, values) in MATRIX {
        let (objects, test) = (
            objects(RELEASE, "pull", values),
            of_the_test(RELEASE, "pull", values),
        );
        let of_kind = |objects: &[Value], kind: &str| -> Value {
            let found = objects.iter().find(|object| object["kind"] == kind);
            found.unwrap_or_else(|| panic!("{name}: no {kind}")).clone()
        };
        let (pod, deployment) = (of_kind(&test, "Pod"), of_kind(&objects, "Deployment"));
        let template = &deployment["spec"]["template"]["spec"];
        for field in [
            "securityContext",
            "imagePullSecrets",
            "nodeSelector",
            "tolerations",
            "affinity",
            "priorityClassName",
        ] {
            assert_eq!(pod["spec"][field], template[field], "{name}: {field}");
        }
        for field in ["image", "imagePullPolicy", "securityContext"] {
            assert_eq!(
                pod["spec"]["containers"][0][field], template["containers"][0][field],
                "{name}: {field}"
            );
        }
        // Whatever has the Deployment's labels gets reviews: the Service selects by them.
        let selector = deployment["spec"]["selector"]["matchLabels"].as_object();
        let selector = selector.unwrap();
        if let Some(service) = objects.iter().find(|object| object["kind"] == "Service") {
            assert_eq!(service["spec"]["selector"].as_object(), Some(selector));
        }
        let labels = &pod["metadata"]["labels"];
        assert!(
            selector.iter().any(|(key, value)| labels[key] != *value),
            "{name}"
        );
        assert_ne!(
            template["serviceAccountName"], pod["spec"]["serviceAccountName"],
            "{name}"
        );
        // The registration, or the policy, is about the namespace that is made.
        let is_policy = values.starts_with("mode: policy");
        let selector = if is_policy {
            let policy = of_kind(&objects, "MutatingAdmissionPolicy");
            policy["spec"]["matchConstraints"]["namespaceSelector"].clone()
        } else {
            let registration = of_kind(&objects, "MutatingWebhookConfiguration");
            registration["webhooks"][0]["namespaceSelector"].clone()
        };
        let wanted = selector["matchLabels"].as_object().unwrap().clone();
        let made = of_kind(&test, "Namespace");
        assert!(
            wanted
                .iter()
                .all(|(key, value)| made["metadata"]["labels"][key] == *value),
            "{name}"
        );
        for object in &test {
            let annotations = &object["metadata"]["annotations"];
            let policy = &annotations["helm.sh/hook-delete-policy"];
            assert_eq!(policy, "before-hook-creation,hook-succeeded", "{name}");
            assert_eq!(annotations["argocd.argoproj.io/hook"], "Skip", "{name}");
        }
    }
}

#[test]
fn release_test_asks_for_an_image_that_the_credentials_open() {
    let arguments = |values: &str| -> Vec<String> {
        let test = of_the_test(RELEASE, RELEASE, values);
        let pod = test.iter().find(|object| object["kind"] == "Pod").unwrap();
        serde_json::from_value(pod["spec"]["containers"][0]["args"].clone()).unwrap()
    };
    for (values, image) in [
        ("", "123456789012.dkr.ecr.us-east-1.amazonaws.com/probe"),
        (
            "aws: {region: eu-west-1}",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/probe",
        ),
        (
            "aws: {roleArn: 'arn:aws-cn:iam::111122223333:role/ecr', region: cn-north-1}",
            "111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn/probe",
        ),
        (
            "config: {allow: {accounts: ['012345678901', '111122223333'], regions: [eusc-de-east-1]}}",
            "012345678901.dkr.ecr.eusc-de-east-1.amazonaws.eu/probe",
        ),
        (
            "aws: {region: us-isob-east-1}",
            "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov/probe",
        ),
        (
            "aws: {region: us-iso-east-1}",
            "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov/probe",
        ),
        (
            "test: {image: 'images.example.com/x'}",
            "images.example.com/x",
        ),
    ] {
        let arguments = arguments(values);
        assert!(
            arguments.contains(&format!("--image={image}")),
            "{values}: {arguments:?}"
        );
    }
    let others = "test: {namespace: team-a, mint: false, wait: 5s}\nwebhook: {objectSelector: {matchLabels: {a: b}}}";
    let expected = [
        "probe",
        "--config=/etc/ecr-injector/config.yaml",
        "--namespace=team-a",
        "--image=123456789012.dkr.ecr.us-east-1.amazonaws.com/probe",
        "--label=a=b",
        "--wait=5s",
    ];
    assert_eq!(arguments(others), expected);
    let made = of_the_test(RELEASE, RELEASE, others);
    assert!(made.iter().all(|object| object["kind"] != "Namespace"));
    // Helm would remove one that somebody has, such as this.
    let name = |release: &str, namespace: &str| {
        let made = of_the_test(release, namespace, "");
        let made = made.iter().find(|object| object["kind"] == "Namespace");
        made.unwrap()["metadata"]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let one = name(RELEASE, "ecr-injector-test");
    let (start, hash) = one.rsplit_once('-').unwrap();
    assert_eq!((start, hash.len()), ("ecr-injector-test", 8));
    assert_ne!(one, name(RELEASE, RELEASE), "two releases of one name");
    // Nobody is served where the release itself is.
    let error = try_template(RELEASE, RELEASE, "test: {namespace: ecr-injector}");
    let error = error.expect_err("its own namespace");
    assert!(error.contains("the release's own namespace"), "{error}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (release, values, complaint) in [
        (
            RELEASE,
            "adminPort: 8443",
            "webhook.port and adminPort are both 8443",
        ),
        (
            RELEASE,
            "autoscaling: {enabled: true, minReplicas: 5, maxReplicas: 4}",
            "autoscaling.minReplicas is 5, more than maxReplicas, 4",
        ),
        ("7up", "", "set fullnameOverride"),
    ] {
        let error = try_template(release, RELEASE, values).expect_err(values);
        assert!(error.contains(complaint), "{values}\n{error}");
    }
    objects("7up", RELEASE, "fullnameOverride: seven-up");
    let dotted = objects("ecr.staging", RELEASE, "");
    find(&dotted, "Service", "ecr-staging-ecr-injector");
}

#[test]
fn label_that_is_set_twice_is_rendered_once() {
    let values = "commonLabels: {team: platform, release: none, note: x}
podLabels: {team: ecr, note: ''}
metrics: {serviceMonitor: {enabled: true, labels: {release: prometheus}}}
webhook: {labels: {team: admission}, namespaceSelector: {matchLabels: {ecr-injector.dev/inject: 'off'}}}";
    // A key that stands twice is an error of this parser.
    let objects = objects(RELEASE, RELEASE, values);
    let label = |object: &Value, key: &str| object["metadata"]["labels"][key].clone();
    let deployment = find(&objects, "Deployment", RELEASE);
    assert_eq!(label(deployment, "team"), "platform");
    assert_eq!(label(&deployment["spec"]["template"], "team"), "ecr");
    assert_eq!(label(&deployment["spec"]["template"], "note"), "");
    let monitor = find(&objects, "ServiceMonitor", RELEASE);
    assert_eq!(label(monitor, "release"), "prometheus");
    let registration = find(&objects, "MutatingWebhookConfiguration", "zz-ecr-injector");
    assert_eq!(label(registration, "team"), "admission");
    let selector = &registration["webhooks"][0]["namespaceSelector"]["matchLabels"];
    assert_eq!(*selector, json!({"ecr-injector.dev/inject": "enabled"}));
}

#[test]
fn each_mode_of_certificates_has_what_it_needs_and_no_more() {
    let arguments = |objects: &[Value]| -> Vec<String> {
        let deployment = find(objects, "Deployment", RELEASE);
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        serde_json::from_value(container["args"].clone()).unwrap()
    };
    let role_of_secrets = |objects: &[Value]| -> Value {
        let rules = find(objects, "Role", RELEASE)["rules"].as_array().unwrap();
        let mut secrets = rules
            .iter()
            .filter(|rule| rule["resources"] == json!(["secrets"]));
        // Whatever the mode: the key that seals states.
        let key = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ecr-injector-state-key"],
            "verbs": ["list", "watch", "create", "patch"]});
        assert_eq!(secrets.next(), Some(&key));
        let key = "--state-key-secret=ecr-injector-state-key".to_owned();
        assert!(arguments(objects).contains(&key));
        let rule = secrets.next().unwrap().clone();
        assert_eq!(secrets.next(), None);
        rule
    };
    let writes_registration = |objects: &[Value]| {
        let role = find(objects, "ClusterRole", RELEASE);
        role["rules"]
            .to_string()
            .contains("mutatingwebhookconfigurations")
    };
    let own = objects(RELEASE, RELEASE, "");
    assert!(arguments(&own).contains(&"--ca-secret=ecr-injector-ca".to_owned()));
    assert_eq!(
        role_of_secrets(&own)["resourceNames"],
        json!(["ecr-injector-ca"])
    );
    assert!(writes_registration(&own));

    let secret = objects(
        RELEASE,
        RELEASE,
        "certificates: {mode: secret, secretName: mine}",
    );
    assert!(arguments(&secret).contains(&"--tls-secret=mine".to_owned()));
    let readable = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["list", "watch"]});
    assert_eq!(role_of_secrets(&secret), readable);
    assert!(!writes_registration(&secret));

    let managed = objects(RELEASE, RELEASE, "certificates: {mode: cert-manager}");
    assert!(arguments(&managed).contains(&"--tls-secret=ecr-injector-tls".to_owned()));
    assert!(!writes_registration(&managed));
    let certificate = &find(&managed, "Certificate", "ecr-injector-tls")["spec"];
    assert_eq!(certificate["secretName"], "ecr-injector-tls");
    assert_eq!(
        certificate["dnsNames"],
        json!(["ecr-injector.ecr-injector.svc"])
    );
    assert_eq!(
        certificate["issuerRef"],
        json!({"kind": "Issuer", "name": "ecr-injector-root"})
    );
    let root = &find(&managed, "Certificate", "ecr-injector-root")["spec"];
    assert_eq!(root["isCA"], true);
    assert_eq!(
        find(&managed, "Issuer", "ecr-injector-root")["spec"]["ca"]["secretName"],
        root["secretName"]
    );
    assert_eq!(
        find(&managed, "Issuer", "ecr-injector-selfsigned")["spec"],
        json!({"selfSigned": {}})
    );
    let registration = find(&managed, "MutatingWebhookConfiguration", "zz-ecr-injector");
    assert_eq!(
        registration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"],
        "ecr-injector/ecr-injector-tls"
    );
    let by_issuer = "certificates: {mode: cert-manager, certManager: {issuerRef: {kind: ClusterIssuer, name: company}}}";
    let by_issuer = objects(RELEASE, RELEASE, by_issuer);
    assert!(!by_issuer.iter().any(|object| object["kind"] == "Issuer"));
    assert_eq!(
        find(&by_issuer, "Certificate", "ecr-injector-tls")["spec"]["issuerRef"]["name"],
        "company"
    );
}

#[test]
fn role_may_list_pods_only_where_the_leader_lists_them() {
    let rules = |values: &str| -> Vec<Value> {
        let objects = objects(RELEASE, RELEASE, values);
        let rules = find(&objects, "ClusterRole", RELEASE)["rules"].as_array();
        let of_pods = |rule: &&Value| {
            let resources = rule["resources"].as_array().unwrap();
            resources.contains(&json!("pods")) || resources.contains(&json!("*"))
        };
        rules.unwrap().iter().filter(of_pods).cloned().collect()
    };
    let list = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]});
    for (values, expected) in [
        ("", vec![]),
        ("config: {discover: none}", vec![]),
        ("config: {discover: null}", vec![]),
        ("config: {refresh: null}", vec![]),
        ("config: {refresh: {noticeMissed: false}}", vec![]),
        (
            "config: {refresh: {noticeMissed: true}}",
            vec![list.clone()],
        ),
        ("config: {discover: pods}", vec![list]),
    ] {
        assert_eq!(rules(values), expected, "{values}");
    }
    let unknown = try_template(RELEASE, RELEASE, "config: {discover: nodes}");
    assert!(unknown.is_err(), "{unknown:?}");
    // What docs/reference/configuration.md says to add by hand is what the chart renders.
    let document = fs::read_to_string(of_repository("docs/reference/configuration.md")).unwrap();
    let by_hand = document.split("```text\n").nth(1).unwrap();
    let by_hand = by_hand.split("```").next().unwrap();
    let by_hand: Vec<Value> = serde_saphyr::from_str(by_hand).unwrap();
    assert_eq!(rules("config: {discover: pods}"), by_hand);
}

#[test]
fn values_in_the_documentation_are_good() {
    let text = fs::read_to_string(of_repository("docs/how-to/install-elsewhere.md")).unwrap();
    let mut tried = 0;
    for block in text.split("```yaml\n").skip(1) {
        let block: Value = serde_saphyr::from_str(block.split("\n```").next().unwrap()).unwrap();
        try_template(RELEASE, RELEASE, &block.to_string()).unwrap();
        tried += 1;
    }
    assert_eq!(tried, 1);
}

#[test]
fn chart_around_this_one_can_set_its_values_and_leave_it_out() {
    let around = tempfile::tempdir().unwrap();
    let manifest = "{apiVersion: v2, name: platform, version: 1.0.0, dependencies: \
                    [{name: ecr-injector, version: '*', condition: ecr-injector.enabled}]}";
    fs::write(around.path().join("Chart.yaml"), manifest).unwrap();
    let inside = around.path().join("charts/ecr-injector");
    fs::create_dir_all(&inside).unwrap();
    copy(&chart(), &inside);
    let render = |values: &str| {
        let output = helm(&["template", "x", around.path().to_str().unwrap()], values);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{values}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let on = render("global: {imageRegistry: x}\necr-injector: {enabled: true, replicaCount: 7}");
    assert!(on.contains("replicas: 7"));
    assert_eq!(render("ecr-injector: {enabled: false}").trim(), "");
}

#[test]
fn monitors_select_what_has_the_metrics() {
    let values = "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}";
    let objects = objects(RELEASE, RELEASE, values);
    let service = find(&objects, "Service", "ecr-injector-metrics");
    let monitor = &find(&objects, "ServiceMonitor", RELEASE)["spec"];
    let selects = |selector: &Value, labels: &Value| {
        let selector = selector["matchLabels"].as_object().unwrap();
        selector.iter().all(|(key, value)| labels[key] == *value)
    };
    assert!(selects(
        &monitor["selector"],
        &service["metadata"]["labels"]
    ));
    // The Service that the API server calls has no such port and is not to be selected.
    let other = find(&objects, "Service", RELEASE);
    assert!(!selects(&monitor["selector"], &other["metadata"]["labels"]));
    let template = &find(&objects, "Deployment", RELEASE)["spec"]["template"];
    let pods = &find(&objects, "PodMonitor", RELEASE)["spec"];
    assert!(selects(&pods["selector"], &template["metadata"]["labels"]));
    let ports = template["spec"]["containers"][0]["ports"].to_string();
    for port in [
        &monitor["endpoints"][0]["port"],
        &pods["podMetricsEndpoints"][0]["port"],
        &service["spec"]["ports"][0]["targetPort"],
    ] {
        assert!(ports.contains(&port.to_string()), "{port} in {ports}");
    }
}

#[test]
fn pods_restart_only_for_what_a_running_process_cannot_take_up() {
    let template = |values: &str| {
        let objects = objects(RELEASE, RELEASE, values);
        find(&objects, "Deployment", RELEASE)["spec"]["template"].clone()
    };
    let before = template("");
    assert_eq!(
        template(
            "config: {prewarm: [123456789012.dkr.ecr.eu-west-1.amazonaws.com], optIn: {excludeNamespaces: [x]}}"
        ),
        before
    );
    for values in [
        "config: {secretName: other}",
        "config: {optIn: {label: other}}",
        "config: {optIn: {value: other}}",
    ] {
        assert_ne!(template(values), before, "{values}");
    }
}

#[test]
fn credentials_of_a_role_by_irsa_are_expected() {
    const ROLE: &str = "roleArn: 'arn:aws:iam::123456789012:role/ecr-injector'";
    let expected = |aws: &str| -> Option<String> {
        let objects = objects(RELEASE, RELEASE, &format!("aws: {{{aws}}}"));
        let deployment = find(&objects, "Deployment", RELEASE);
        let arguments = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
        let mut arguments = arguments.as_array().unwrap().iter();
        let flag = |text: &Value| {
            Some(
                text.as_str()?
                    .strip_prefix("--expect-credentials=")?
                    .to_owned(),
            )
        };
        arguments.find_map(flag)
    };
    assert_eq!(expected(""), None);
    assert_eq!(expected("expectCredentials: any"), None);
    assert_eq!(expected(ROLE).as_deref(), Some("web_identity"));
    assert_eq!(expected(&format!("{ROLE}, expectCredentials: any")), None);
    for source in Source::ALL.map(Source::as_str) {
        for role in ["", &format!("{ROLE}, ")] {
            let values = format!("{role}expectCredentials: {source}");
            assert_eq!(expected(&values).as_deref(), Some(source));
        }
    }
}

/// The rows of the README's table: each value that is no group, its default, and the comment above it.
fn table(values: &str) -> String {
    let mut table = "| value | default | meaning |\n| --- | --- | --- |\n".to_owned();
    let defaults: Value = serde_saphyr::from_str(values).unwrap();
    let (mut path, mut comment) = (Vec::<(usize, &str)>::new(), Vec::new());
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(words) = text.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        let Some((key, rest)) = text.split_once(':') else {
            comment.clear();
            continue;
        };
        path.retain(|(outer, _)| *outer < indent);
        let group = rest.is_empty();
        let keys = path.iter().map(|(_, key)| *key).chain([key]);
        let name = keys.clone().collect::<Vec<_>>().join(".");
        let default = keys.fold(&defaults, |value, key| &value[key]);
        let whole = name == "resources";
        let inside = name.starts_with("resources.");
        if !inside && (!group || whole || !comment.is_empty()) {
            let default = if group && !whole {
                "(group)".to_owned()
            } else {
                format!("`{default}`")
            };
            let comment = comment.join(" ").replace('|', "\\|");
            let _ = writeln!(table, "| `{name}` | {default} | {comment} |");
        }
        comment.clear();
        path.push((indent, key));
    }
    table
}

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    let copied = std::process::Command::new("cp")
        .arg("-R")
        .args([&from, to])
        .status();
    assert!(copied.unwrap().success());
}

/// Fails when the file differs, and says what writes it; writes it itself with UPDATE=1.
fn same_or_updated(path: &Path, text: &str, how: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, text).unwrap();
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(there == text, "{} has drifted: {how}", path.display());
}

fn deploy() -> PathBuf {
    of_repository("deploy")
}

fn of_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
