//! Every check on a fine and on a failing installation.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    cli::doctor::{
        exposition::Exposition,
        finding::{Reading, Right},
        installation::{
            AccountReference, ConfigFacts, DryRun, Granted, Names, NamespaceFacts, PodFacts,
            PullSecretFacts, Settings,
        },
    },
    cluster::namespace::{Namespace, ROLE_ANNOTATION},
    config::Config,
    pull_secret::state::{Credential, Demand, HostState, State},
    registry::Host,
    token::Lifetime,
};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const LABEL: &str = "ecr-injector.dev/inject";
const METRICS: &str = "\
ecr_injector_build_info{version=\"0.1.0\"} 1
ecr_injector_ca_bundle_trusted 1
ecr_injector_certificate_expiration_timestamp_seconds{kind=\"leaf\"} 1800500000
ecr_injector_certificate_expiration_timestamp_seconds{kind=\"ca\"} 1820000000
ecr_injector_config_last_reload_successful 1
ecr_injector_config_restart_required 0
ecr_injector_credentials_source{source=\"pod_identity\"} 1
ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"ok\"} 3
ecr_injector_guard_enforced 1
";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn webhook(name: &str) -> Value {
    json!({
        "name": name, "failurePolicy": "Ignore", "timeoutSeconds": 5,
        "namespaceSelector": {
            "matchLabels": {LABEL: "enabled"},
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn",
                "values": ["kube-system", "ecr-injector"]}],
        },
        "matchConditions": [{"name": "names-an-ecr-image", "expression": "true"}],
        "clientConfig": {"caBundle": "eA==", "service":
            {"namespace": "ecr-injector", "name": "ecr-injector", "port": 443}},
    })
}

fn replica(number: u32) -> Value {
    json!({
        "metadata": {"name": format!("pod-{number}"), "creationTimestamp": ago(86_400).to_string()},
        "spec": {"nodeName": format!("node-{number}"),
            "containers": [{"args": ["serve"], "image": "ecr-injector:1"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn state(credential: Option<i64>, wanted_at: Timestamp) -> State {
    let host = Host::parse(HOST).expect("a host");
    let mut state = State::from_wanted_hosts([&host], now()).expect("a host");
    let credential = credential.map(|seconds| Credential {
        identity: crate::identity::Identity::Ambient.hash(),
        lifetime: Lifetime {
            minted_at: ago(43_200 - seconds),
            expires_at: ago(-seconds),
        },
    });
    let demand = Demand::new(wanted_at);
    state.hosts.insert(host, HostState { demand, credential });
    state
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> NamespaceFacts {
    let labels = labels.iter();
    let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    NamespaceFacts {
        name: name.to_owned(),
        labels: labels.collect(),
        ..NamespaceFacts::default()
    }
}

fn pull_secret(state: Option<State>) -> PullSecretFacts {
    PullSecretFacts {
        namespace: "team".to_owned(),
        is_managed: true,
        state,
        other_managers: BTreeSet::new(),
    }
}

pub(in crate::cli::doctor) fn settings() -> Settings {
    let config = Config::default().excluding(Namespace::parse("ecr-injector"));
    Settings {
        rules: config.rules,
        label: config.opt_in.label,
        value: config.opt_in.value,
        watches_service_accounts: true,
        lists_pods: false,
    }
}

fn granted(verb: &'static str, resource: &str, is_needed: bool) -> Granted {
    Granted {
        right: Right::new(verb, resource, None),
        is_needed,
        is_allowed: is_needed,
    }
}

fn policy(number: usize) -> Value {
    let user = "system:serviceaccount:ecr-injector:ecr-injector";
    json!({
        "metadata": {"name": format!("policy-{number}")},
        "spec": {"matchConditions": [{"expression": format!("request.userInfo.username == {user:?}")}]},
    })
}

fn binding(number: usize) -> Value {
    json!({"spec": {"policyName": format!("policy-{number}"), "validationActions": ["Deny"]}})
}

fn metrics(texts: &[&str]) -> Reading<Vec<(String, Reading<Exposition>)>> {
    let texts = texts.iter().enumerate();
    let read = texts.map(|(number, text)| {
        let read = Reading::Read(Exposition::parse(text));
        (format!("pod-{number}"), read)
    });
    Reading::Read(read.collect())
}

fn account_reference(age: i64) -> AccountReference {
    AccountReference {
        namespace: "team".to_owned(),
        account: "default".to_owned(),
        secret: "regcred-ecr".to_owned(),
        written_at: Some(ago(age)),
    }
}

/// Makes the installation one that is yet to come, with these rights.
fn uninstalled(it: &mut Installation, may_register: bool, other: bool) {
    it.deployment = Reading::Read(None);
    it.may_install = Reading::Read(vec![
        Granted {
            is_allowed: may_register,
            ..granted(
                "create",
                "mutatingwebhookconfigurations.admissionregistration.k8s.io",
                true,
            )
        },
        Granted {
            is_allowed: other,
            ..granted("create", "clusterroles.rbac.authorization.k8s.io", true)
        },
    ]);
    it.other_tools = Reading::Read(vec![]);
}

/// Makes the installation one of mode policy, or of both.
fn with_policy(it: &mut Installation, has_webhook: bool) {
    it.names.has_webhook = has_webhook;
    let condition = crate::registry::cel::private_image().replace('\n', "\n        ");
    it.mutating_policies = Reading::Read(Some(vec![json!({
        "metadata": {"name": "pull-secret-reference.ecr-injector.dev"},
        "spec": {
            "variables": [{"name": "ecr", "expression": format!("variables.images.exists(i,\n({condition}))")}],
            "mutations": [{"jsonPatch": {"expression": "{name: \"ecr-pull-secret\"}"}}],
        },
    })]));
    it.mutating_bindings = Reading::Read(Some(vec![
        json!({"spec": {"policyName": "pull-secret-reference.ecr-injector.dev"}}),
    ]));
}

/// An installation with nothing wrong.
pub(in crate::cli::doctor) fn fine() -> Installation {
    let labels = &[(LABEL, "enabled")];
    Installation {
        own_version: "0.1.0".to_owned(),
        now: now(),
        clock_ahead: Some(SignedDuration::from_secs(1)),
        server: Reading::Read("v1.33.4-eks-1".to_owned()),
        server_name: "https://10.0.0.1".to_owned(),
        names: Names::of_release("ecr-injector", "ecr-injector"),
        deployment: Reading::Read(Some(json!({
            "spec": {"replicas": 2}, "status": {"readyReplicas": 2},
        }))),
        registrations: Reading::Read(vec![
            json!({
                "metadata": {"name": "zz-ecr-injector"},
                "webhooks": [webhook("create.ecr-injector.dev"), webhook("update.ecr-injector.dev")],
            }),
            json!({"metadata": {"name": "others"}, "webhooks": [{"name": "a.example.com"}]}),
        ]),
        service: Reading::Read(Some(json!({"spec": {"ports": [{"port": 443}]}}))),
        endpoints: Reading::Read(vec![json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "ecr-injector"}},
            "endpoints": [{"conditions": {"ready": true}}, {}],
        })]),
        policies: Reading::Read(Some((0..guard::POLICIES).map(policy).collect())),
        bindings: Reading::Read(Some((0..guard::POLICIES).map(binding).collect())),
        mutating_policies: Reading::Read(Some(vec![])),
        mutating_bindings: Reading::Unread("after policy-there".to_owned()),
        may_install: Reading::Unread("installed".to_owned()),
        other_tools: Reading::Unread("installed".to_owned()),
        account_references: Reading::Read(vec![account_reference(43_100)]),
        replicas: Reading::Read(vec![replica(1), replica(2)]),
        metrics: metrics(&[METRICS, METRICS]),
        lease: Reading::Read(Some(json!({
            "spec": {"holderIdentity": "pod-1", "renewTime": ago(2).to_string()},
        }))),
        rights: Reading::Read(vec![
            granted("watch", "namespaces", true),
            granted("list", "secrets", false),
        ]),
        config: Reading::Read(ConfigFacts::Valid(Box::new(settings()))),
        namespaces: Reading::Read(vec![
            namespace("team", labels),
            namespace("kube-system", &[]),
        ]),
        pull_secrets: Reading::Read(vec![pull_secret(Some(state(Some(40_000), ago(9_000))))]),
        pods: Reading::Read(vec![PodFacts {
            namespace: "team".to_owned(),
            name: "web".to_owned(),
            has_reference: true,
            would_get_reference: true,
            waits_for_image: false,
        }]),
        sandboxes: Reading::Read(Vec::new()),
        dry_run: Reading::Read(DryRun::Injected("team".to_owned())),
    }
}

fn finding(installation: &Installation, code: &str) -> Finding {
    let results = run(installation, |check| check.code == code);
    results.into_iter().next().expect("the check").finding
}

/// Replaces the value at a path in the first object of a reading.
fn put(reading: &mut Reading<Vec<Value>>, pointer: &str, value: Value) {
    let Reading::Read(all) = reading else {
        panic!("not read");
    };
    let (path, key) = pointer.rsplit_once('/').expect("a path");
    all[0].pointer_mut(path).expect("there")[key] = value;
}

fn own(it: &mut Installation, pointer: &str, value: Value) {
    put(&mut it.registrations, pointer, value);
}

fn replaced(it: &mut Installation, from: &str, to: &str) {
    let text = METRICS.replace(from, to);
    assert_ne!(text, METRICS, "{from}");
    it.metrics = metrics(&[METRICS, &text]);
}

fn namespaces_with(it: &mut Installation, more: NamespaceFacts) {
    let Reading::Read(all) = &mut it.namespaces else {
        panic!("not read");
    };
    all.push(more);
}

fn pod(has_reference: bool, waits_for_image: bool) -> Reading<Vec<PodFacts>> {
    Reading::Read(vec![PodFacts {
        namespace: "team".to_owned(),
        name: "web".to_owned(),
        has_reference,
        would_get_reference: true,
        waits_for_image,
    }])
}

type Change = fn(&mut Installation);

/// A check, its result, a part of its text, and the change that breaks an installation.
#[rustfmt::skip]
const BROKEN: &[(&str, Status, &str, Change)] = &[
    ("cluster-reachable", Status::Fail, "https://10.0.0.1: connection refused", |it| it.server = Reading::Failed("connection refused".into())),
    ("cluster-version", Status::Fail, "older than 1.30", |it| it.server = Reading::Read("v1.29.9".into())),
    ("cluster-version", Status::Warn, "newer", |it| it.server = Reading::Read("v1.38.0+k3s1".into())),
    ("cluster-version", Status::Warn, "can't be read", |it| it.server = Reading::Read(String::new())),
    ("cluster-clock", Status::Warn, "61 s", |it| it.clock_ahead = Some(SignedDuration::from_secs(-61))),
    ("pre-rights", Status::Fail, "you may not create clusterroles", |it| uninstalled(it, true, false)),
    ("pre-admission-api", Status::Warn, "may not register webhooks, but", |it| uninstalled(it, false, true)),
    ("pre-admission-api", Status::Fail, "has no MutatingAdmissionPolicy", |it| {
        uninstalled(it, false, true);
        it.mutating_policies = Reading::Read(None);
    }),
    ("pre-others", Status::Warn, "kept by CronJob ops/renew", |it| {
        uninstalled(it, true, true);
        it.other_tools = Reading::Read(vec!["CronJob ops/renew".into()]);
    }),
    ("pre-others", Status::Warn, "is in team", |it| {
        uninstalled(it, true, true);
        if let Reading::Read(all) = &mut it.pull_secrets { all[0].is_managed = false; }
    }),
    ("pre-vap", Status::Warn, "no guard", |it| it.policies = Reading::Read(None)),
    ("pre-image-rewriter", Status::Warn, "zzz", |it| {
        let rule = json!({"apiGroups": [""], "operations": ["*"], "resources": ["pods"]});
        let other = json!({"metadata": {"name": "zzz"}, "webhooks": [{"rules": [rule]}]});
        if let Reading::Read(all) = &mut it.registrations { all.push(other); }
    }),
    ("pre-enforcer", Status::Warn, "AKS", |it| namespaces_with(it, namespace("kube-system", &[("kubernetes.azure.com/managedby", "aks")]))),
    ("registration-there", Status::Fail, "no MutatingWebhookConfiguration zz-ecr-injector", |it| own(it, "/metadata/name", json!("x"))),
    ("registration-there", Status::Fail, "with webhooks", |it| own(it, "/webhooks", json!([]))),
    ("registration-one", Status::Warn, "another", |it| {
        let other = json!({"metadata": {"name": "zz-other"}, "webhooks": [webhook("create.ecr-injector.dev")]});
        if let Reading::Read(all) = &mut it.registrations { all.push(other); }
    }),
    ("registration-trusts-us", Status::Fail, "update.ecr-injector.dev is empty; written by argocd", |it| {
        own(it, "/webhooks/1/clientConfig/caBundle", Value::Null);
        own(it, "/metadata/managedFields", json!([{"manager": "argocd", "fieldsV1": {"f:caBundle": {}}}]));
    }),
    ("registration-trusts-us", Status::Fail, "not that of the self-managed", |it| replaced(it, "trusted 1", "trusted 0")),
    ("registration-service", Status::Fail, "does not exist", |it| it.service = Reading::Read(None)),
    ("registration-service", Status::Fail, "no port 8443", |it| own(it, "/webhooks/0/clientConfig/service/port", json!(8443))),
    ("registration-service", Status::Fail, "no ready endpoint", |it| put(&mut it.endpoints, "/endpoints", json!([{"conditions": {"ready": false}}]))),
    ("registration-service", Status::Fail, "no ready endpoint", |it| it.endpoints = Reading::Read(vec![])),
    ("registration-selector", Status::Fail, "update.ecr-injector.dev has not", |it| own(it, "/webhooks/1/namespaceSelector/matchLabels", json!({"team": "x"}))),
    ("registration-failure-policy", Status::Warn, "is not excluded", |it| {
        own(it, "/webhooks/0/failurePolicy", json!("Fail"));
        own(it, "/webhooks/0/namespaceSelector/matchExpressions", json!([]));
    }),
    ("registration-failure-policy", Status::Warn, "one replica", |it| {
        own(it, "/webhooks/0/failurePolicy", json!("Fail"));
        it.deployment = Reading::Read(Some(json!({"spec": {"replicas": 1}})));
    }),
    ("registration-timeout", Status::Warn, "is 30", |it| own(it, "/webhooks/1/timeoutSeconds", json!(30))),
    ("registration-timeout", Status::Warn, "is 1", |it| own(it, "/webhooks/0/timeoutSeconds", json!(1))),
    ("registration-answers", Status::Fail, "was admitted without", |it| it.dry_run = Reading::Read(DryRun::NotInjected("was admitted without".into()))),
    ("registration-answers", Status::Skipped, "exceeded quota", |it| it.dry_run = Reading::Read(DryRun::Rejected("exceeded quota".into()))),
    ("policy-there", Status::Fail, "nothing adds the reference", |it| it.names.has_webhook = false),
    ("policy-there", Status::Fail, "nothing adds the reference", |it| { it.names.has_webhook = false; it.mutating_policies = Reading::Read(None); }),
    ("policy-bound", Status::Fail, "ignores it", |it| { with_policy(it, true); it.mutating_bindings = Reading::Read(Some(vec![])); }),
    ("policy-works", Status::Fail, "registries of this version", |it| {
        with_policy(it, true);
        if let Reading::Read(Some(all)) = &mut it.mutating_policies { all[0]["spec"]["variables"][0]["expression"] = json!("true"); }
    }),
    ("policy-works", Status::Fail, "another Secret than ecr-pull-secret", |it| {
        with_policy(it, true);
        if let Reading::Read(Some(all)) = &mut it.mutating_policies { all[0]["spec"]["mutations"][0]["jsonPatch"]["expression"] = json!("{name: \"other\"}"); }
    }),
    ("policy-works", Status::Fail, "was admitted without", |it| { with_policy(it, false); it.dry_run = Reading::Read(DryRun::NotInjected("was admitted without".into())); }),
    ("policy-works", Status::Skipped, "exceeded quota", |it| { with_policy(it, false); it.dry_run = Reading::Read(DryRun::Rejected("exceeded quota".into())); }),
    ("pods-ready", Status::Fail, "no Deployment ecr-injector/ecr-injector", |it| it.deployment = Reading::Read(None)),
    ("pods-ready", Status::Fail, "no replica of 2 is ready (CrashLoopBackOff)", |it| {
        it.deployment = Reading::Read(Some(json!({"spec": {"replicas": 2}})));
        put(&mut it.replicas, "/status/containerStatuses", json!([{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]));
    }),
    ("pods-ready", Status::Warn, "1 of 2", |it| it.deployment = Reading::Read(Some(json!({"spec": {"replicas": 2}, "status": {"readyReplicas": 1}})))),
    ("pods-same-version", Status::Warn, "ecr-injector:1, ecr-injector:2", |it| put(&mut it.replicas, "/spec/containers", json!([{"args": ["serve"], "image": "ecr-injector:2"}]))),
    ("pods-spread", Status::Warn, "on node-2", |it| put(&mut it.replicas, "/spec/nodeName", json!("node-2"))),
    ("leader-there", Status::Fail, "no Lease", |it| it.lease = Reading::Read(None)),
    ("leader-there", Status::Fail, "nobody", |it| it.lease = Reading::Read(Some(json!({"spec": {"holderIdentity": "", "renewTime": ago(1).to_string()}})))),
    ("leader-there", Status::Fail, "for 31 s", |it| it.lease = Reading::Read(Some(json!({"spec": {"holderIdentity": "p", "renewTime": ago(31).to_string()}})))),
    ("config-loads", Status::Fail, "line 3", |it| it.config = Reading::Read(ConfigFacts::Invalid("line 3".into()))),
    ("config-loads", Status::Fail, "does not exist", |it| it.config = Reading::Read(ConfigFacts::Absent("the ConfigMap".into()))),
    ("config-loads", Status::Fail, "rejected by pod-1", |it| replaced(it, "reload_successful 1", "reload_successful 0")),
    ("config-restart", Status::Warn, "pod-1", |it| replaced(it, "restart_required 0", "restart_required 1")),
    ("metrics-readable", Status::Warn, "pod-9: 502", |it| if let Reading::Read(all) = &mut it.metrics { all.push(("pod-9".into(), Reading::Failed("502".into()))); }),
    ("version-self", Status::Warn, "runs 0.2.0", |it| replaced(it, "0.1.0", "0.2.0")),
    ("cert-leaf", Status::Fail, "that of pod-1 expired", |it| replaced(it, "1800500000", "1800000000")),
    ("cert-leaf", Status::Warn, "not renewed", |it| replaced(it, "1800500000", "1800080000")),
    ("cert-authority", Status::Fail, "expired", |it| replaced(it, "1820000000", "1700000000")),
    ("cert-authority", Status::Warn, "not renewed", |it| replaced(it, "1820000000", "1800500000")),
    ("rbac-ours", Status::Fail, "may not watch namespaces", |it| if let Reading::Read(all) = &mut it.rights { all[0].is_allowed = false; }),
    ("rbac-too-much", Status::Warn, "may list secrets", |it| if let Reading::Read(all) = &mut it.rights { all[1].is_allowed = true; }),
    ("guard-there", Status::Warn, "what the ServiceAccount ecr-injector/ecr-injector may write", |it| it.policies = Reading::Read(Some(vec![]))),
    ("guard-there", Status::Fail, "1 of 6", |it| it.policies = Reading::Read(Some(vec![policy(0)]))),
    ("guard-bound", Status::Fail, "policy-0", |it| if let Reading::Read(Some(all)) = &mut it.bindings { all[0]["spec"]["validationActions"] = json!(["Audit"]); }),
    ("guard-works", Status::Fail, "accepted", |it| replaced(it, "guard_enforced 1", "guard_enforced 0")),
    ("guard-works", Status::Warn, "does not know", |it| replaced(it, "guard_enforced 1", "guard_enforced -1")),
    ("aws-source", Status::Warn, "different sources", |it| replaced(it, "pod_identity", "environment")),
    ("aws-source", Status::Warn, "instance", |it| it.metrics = metrics(&[&METRICS.replace("pod_identity", "instance_metadata")])),
    ("aws-source", Status::Fail, "no AWS credentials", |it| it.metrics = metrics(&["ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"credentials\"} 1\n"])),
    ("aws-reach", Status::Fail, "unreachable", |it| it.metrics = metrics(&["ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"unreachable\"} 1\n"])),
    ("aws-reach", Status::Warn, "timeout", |it| replaced(it, "outcome=\"ok\"", "outcome=\"timeout\"")),
    ("aws-clock", Status::Fail, "clock_skew", |it| it.metrics = metrics(&["ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"clock_skew\"} 1\n"])),
    // A session alone opens no registry.
    ("aws-mint", Status::Fail, "access_denied", |it| it.metrics = metrics(&["ecr_injector_aws_calls_total{operation=\"assume_role\",outcome=\"ok\"} 1\necr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"access_denied\"} 1\n"])),
    ("aws-mint", Status::Skipped, "no token was needed", |it| it.metrics = metrics(&["ecr_injector_guard_enforced 1\n"])),
    ("namespaces-opted-in", Status::Warn, "ecr-injector.dev/inject=enabled", |it| it.namespaces = Reading::Read(vec![namespace("team", &[])])),
    ("namespaces-label-typo", Status::Warn, "typo", |it| namespaces_with(it, namespace("typo", &[(LABEL, "true")]))),
    ("namespaces-excluded", Status::Warn, "kube-node-lease", |it| namespaces_with(it, namespace("kube-node-lease", &[(LABEL, "enabled")]))),
    ("namespaces-role", Status::Fail, "other: annotation ecr-injector.dev/role-arn is not the ARN", |it| {
        let mut other = namespace("other", &[(LABEL, "enabled")]);
        other.annotations = BTreeMap::from([(ROLE_ANNOTATION.to_owned(), "nonsense".to_owned())]);
        namespaces_with(it, other);
    }),
    ("secret-foreign", Status::Fail, "in team", |it| if let Reading::Read(all) = &mut it.pull_secrets { all[0].is_managed = false; }),
    ("secret-expired", Status::Fail, HOST, |it| it.pull_secrets = Reading::Read(vec![pull_secret(Some(state(Some(-1), ago(90_000))))])),
    ("secret-pending", Status::Fail, HOST, |it| it.pull_secrets = Reading::Read(vec![pull_secret(Some(state(None, ago(121))))])),
    ("secret-tampered", Status::Warn, "its state can't be read", |it| it.pull_secrets = Reading::Read(vec![pull_secret(None)])),
    ("secret-tampered", Status::Warn, "by kubectl", |it| if let Reading::Read(all) = &mut it.pull_secrets { all[0].other_managers.insert("kubectl".into()); }),
    ("secret-serviceaccounts", Status::Warn, "team/default names regcred-ecr, written 24 h ago", |it| it.account_references = Reading::Read(vec![account_reference(86_400)])),
    ("pods-missed", Status::Warn, "team/web", |it| it.pods = pod(false, false)),
    ("pods-stuck", Status::Fail, "team/web", |it| it.pods = pod(true, true)),
    ("sandbox-image", Status::Warn, "team/web", |it| it.sandboxes = Reading::Read(vec!["team/web".into()])),
];

/// A check, its result, its text, and a change that is near a fault and is none.
#[rustfmt::skip]
const HARMLESS: &[(&str, Status, &str, Change)] = &[
    ("cluster-version", Status::Ok, "v1.30.0", |it| it.server = Reading::Read("v1.30.0".into())),
    ("cluster-version", Status::Ok, "v1.37.9", |it| it.server = Reading::Read("v1.37.9".into())),
    ("cluster-clock", Status::Ok, "60 s apart", |it| it.clock_ahead = Some(SignedDuration::from_secs(60))),
    ("pods-same-version", Status::Ok, "a rollout is in progress: ecr-injector:1, ecr-injector:2", |it| {
        put(&mut it.replicas, "/spec/containers", json!([{"args": ["serve"], "image": "ecr-injector:2"}]));
        put(&mut it.replicas, "/metadata/creationTimestamp", json!(ago(599).to_string()));
    }),
    ("pods-spread", Status::Ok, "on 1 node", |it| if let Reading::Read(all) = &mut it.replicas { all.pop(); }),
    // Of two replicas on one node, one isn't ready.
    ("pods-spread", Status::Ok, "on 1 node", |it| {
        put(&mut it.replicas, "/spec/nodeName", json!("node-2"));
        put(&mut it.replicas, "/status/conditions", json!([
            {"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"},
        ]));
    }),
    ("leader-there", Status::Ok, "p", |it| it.lease = Reading::Read(Some(json!({"spec": {"holderIdentity": "p", "renewTime": ago(30).to_string()}})))),
    ("config-loads", Status::Ok, "", |_| {}),
    ("config-loads", Status::Ok, "as the replicas report", |it| it.config = Reading::Unread("no right".into())),
    ("version-self", Status::Skipped, "you may not get pods/proxy; kubectl auth can-i get pods/proxy -A", |it| {
        let forbidden = Reading::Forbidden(Right::new("get", "pods/proxy", None));
        it.metrics = Reading::Read(vec![("pod-1".into(), forbidden)]);
    }),
    ("cert-leaf", Status::Ok, "until 2027-01-16T08:00:00Z", |it| replaced(it, "1800500000", "1800086400")),
    ("aws-source", Status::Ok, "pod_identity", |it| it.metrics = metrics(&[
        METRICS, "ecr_injector_credentials_source{source=\"environment\"} 0\n",
        "ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"credentials\"} 1\n",
    ])),
    ("aws-source", Status::Skipped, "no credentials were needed yet", |it| it.metrics = metrics(&["ecr_injector_guard_enforced 1\n"])),
    ("aws-reach", Status::Ok, "", |it| replaced(it, "outcome=\"ok\"} 3", "outcome=\"timeout\"} 0")),
    ("aws-mint", Status::Skipped, "no call has succeeded, for other reasons", |it| it.metrics = metrics(&["ecr_injector_aws_calls_total{operation=\"get_authorization_token\",outcome=\"unreachable\"} 1\n"])),
    ("secret-pending", Status::Ok, "", |it| it.pull_secrets = Reading::Read(vec![pull_secret(Some(state(None, ago(120))))])),
    ("secret-serviceaccounts", Status::Ok, "", |it| it.account_references = Reading::Read(vec![account_reference(43_200)])),
];

#[test]
fn harmless_situations_are_no_findings() {
    for (code, status, text, change) in HARMLESS {
        let mut harmless = fine();
        change(&mut harmless);
        let finding = finding(&harmless, code);
        assert_eq!(
            (finding.status(), finding.text()),
            (*status, *text),
            "{code}"
        );
    }
}

#[test]
fn rollout_of_ten_minutes_is_a_finding() {
    let mut it = fine();
    let containers = json!([{"args": ["serve"], "image": "ecr-injector:2"}]);
    put(&mut it.replicas, "/spec/containers", containers);
    put(
        &mut it.replicas,
        "/metadata/creationTimestamp",
        json!(ago(600).to_string()),
    );
    assert_eq!(finding(&it, "pods-same-version").status(), Status::Warn);
}

#[test]
fn three_names_are_listed_and_the_others_counted() {
    for (names, expected) in [
        (&[][..], ""),
        (&["a", "b", "c"], "a, b, c"),
        (&["a", "b", "c", "d"], "a, b, c and 1 more"),
        (&["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ] {
        assert_eq!(listed(names), expected);
    }
}

#[test]
fn every_check_is_fine_on_a_fine_installation() {
    for checked in run(&fine(), |_| true) {
        assert_eq!(checked.finding.status(), Status::Ok, "{checked:?}");
    }
}

#[test]
fn every_check_finds_what_is_broken() {
    for (code, status, part, change) in BROKEN {
        let mut broken = fine();
        change(&mut broken);
        let finding = finding(&broken, code);
        assert_eq!(finding.status(), *status, "{code}: {finding:?}");
        assert!(finding.text().contains(part), "{code}: {finding:?}");
        let is_problem = [Status::Warn, Status::Fail].contains(status);
        assert_eq!(finding.fix().is_some(), is_problem, "{code}");
    }
}

#[test]
fn every_check_has_a_broken_installation() {
    let tested: BTreeSet<&str> = BROKEN.iter().map(|row| row.0).collect();
    let codes: BTreeSet<&str> = CHECKS.iter().map(|check| check.code).collect();
    assert_eq!(tested, codes);
    assert_eq!(codes.len(), CHECKS.len(), "no code is there twice");
    let before = |check: &Check, at: usize| {
        let after = check.after?;
        Some(CHECKS[..at].iter().any(|other| other.code == after))
    };
    for (at, check) in CHECKS.iter().enumerate() {
        assert_ne!(before(check, at), Some(false), "{}", check.code);
    }
}

#[test]
fn checks_before_an_installation_are_fine_where_nothing_is_in_the_way() {
    let mut it = fine();
    uninstalled(&mut it, true, true);
    for code in ["pre-rights", "pre-admission-api", "pre-others"] {
        assert_eq!(finding(&it, code).status(), Status::Ok, "{code}");
    }
    // A cluster without policies is fine with the default mode.
    it.mutating_policies = Reading::Read(None);
    assert_eq!(
        finding(&it, "pre-admission-api"),
        Finding::ok("by a webhook")
    );
    // Whether it is installed is not known.
    let mut it = fine();
    it.deployment = Reading::Failed("timeout".to_owned());
    assert_eq!(finding(&it, "pre-rights").status(), Status::Skipped);
}

#[test]
fn policy_is_fine_alone_and_beside_the_webhook() {
    for has_webhook in [true, false] {
        let mut it = fine();
        with_policy(&mut it, has_webhook);
        for code in ["policy-there", "policy-bound", "policy-works"] {
            assert_eq!(finding(&it, code).status(), Status::Ok, "{code}");
        }
        it.dry_run = Reading::Read(DryRun::NotInjected("no".to_owned()));
        let expected = if has_webhook {
            Status::Ok
        } else {
            Status::Fail
        };
        assert_eq!(finding(&it, "policy-works").status(), expected);
    }
}

/// Returns an installation of which the API server shows nothing.
fn unread(reading: fn() -> Reading<()>) -> Installation {
    fn of<T>(reading: fn() -> Reading<()>) -> Reading<T> {
        match reading() {
            Reading::Read(()) => panic!("not a reading without a value"),
            Reading::Forbidden(right) => Reading::Forbidden(right),
            Reading::Failed(error) => Reading::Failed(error),
            Reading::Unread(why) => Reading::Unread(why),
        }
    }
    Installation {
        deployment: of(reading),
        registrations: of(reading),
        service: of(reading),
        endpoints: of(reading),
        policies: of(reading),
        bindings: of(reading),
        mutating_policies: of(reading),
        mutating_bindings: of(reading),
        may_install: of(reading),
        other_tools: of(reading),
        account_references: of(reading),
        replicas: of(reading),
        metrics: of(reading),
        lease: of(reading),
        rights: of(reading),
        config: of(reading),
        namespaces: of(reading),
        pull_secrets: of(reading),
        pods: of(reading),
        sandboxes: of(reading),
        dry_run: of(reading),
        ..fine()
    }
}

#[test]
fn missing_rights_skip_checks_and_name_the_right() {
    let forbidden = || Reading::Forbidden(Right::new("list", "things", None));
    for checked in run(&unread(forbidden), |check| check.category != "cluster") {
        assert_eq!(checked.finding.status(), Status::Skipped, "{checked:?}");
        let text = checked.finding.text();
        let is_named = text.contains("kubectl auth can-i list things -A");
        assert!(is_named || text.starts_with("after "), "{checked:?}");
    }
}

#[test]
fn failed_reads_are_never_fine() {
    let failed = || Reading::Failed("timeout".to_owned());
    for checked in run(&unread(failed), |check| check.category != "cluster") {
        assert_ne!(checked.finding.status(), Status::Ok, "{checked:?}");
        assert_ne!(checked.finding.status(), Status::Warn, "{checked:?}");
    }
    let mut unreachable = fine();
    unreachable.server = Reading::Failed("refused".to_owned());
    let results = run(&unreachable, |_| true);
    assert_eq!(results[0].finding.status(), Status::Fail);
    for checked in &results[1..] {
        assert_eq!(checked.finding, Finding::skipped("after cluster-reachable"));
    }
}

#[test]
fn image_rewriter_is_called_later_and_for_new_pods() {
    let own = "zz-ecr-injector";
    for (name, groups, operation, resource, is_warned) in [
        ("zzz", "", "CREATE", "pods", true),
        ("zzz", "*", "*", "*/*", true),
        ("zzz", "apps", "CREATE", "pods", false),
        ("zzz", "", "UPDATE", "pods", false),
        ("zzz", "", "CREATE", "services", false),
        ("aaa", "", "CREATE", "pods", false),
        (own, "", "CREATE", "pods", false),
    ] {
        let rule =
            json!({"apiGroups": [groups], "operations": [operation], "resources": [resource]});
        let webhook = json!({"matchConditions": [{}], "rules": [rule]});
        let mut it = fine();
        if let Reading::Read(all) = &mut it.registrations {
            all.retain(|registration| registration["metadata"]["name"] != name);
            all.push(json!({"metadata": {"name": name}, "webhooks": [webhook]}));
        }
        let finding = finding(&it, "pre-image-rewriter");
        let status = if is_warned { Status::Warn } else { Status::Ok };
        assert_eq!(
            finding.status(),
            status,
            "{name} {groups} {operation} {resource}"
        );
    }
}

#[test]
fn enforcer_is_no_fault_where_it_is_switched_off() {
    let mut it = fine();
    let labels = &[("kubernetes.azure.com/managedby", "aks")];
    namespaces_with(&mut it, namespace("kube-system", labels));
    assert_eq!(finding(&it, "pre-enforcer").status(), Status::Warn);
    let annotations = json!({"admissions.enforcer/disabled": "true"});
    own(
        &mut it,
        "/metadata",
        json!({"name": "zz-ecr-injector", "annotations": annotations}),
    );
    assert_eq!(finding(&it, "pre-enforcer").status(), Status::Ok);
}

#[test]
fn policy_to_fail_is_fine_with_two_replicas_and_its_namespace_excluded() {
    let key = "kubernetes.io/metadata.name";
    for (key, operator, namespace, status) in [
        (key, "NotIn", "ecr-injector", Status::Ok),
        (key, "In", "ecr-injector", Status::Warn),
        (key, "NotIn", "kube-system", Status::Warn),
        ("team", "NotIn", "ecr-injector", Status::Warn),
    ] {
        let mut it = fine();
        own(&mut it, "/webhooks/0/failurePolicy", json!("Fail"));
        let expression = json!({"key": key, "operator": operator, "values": [namespace]});
        own(
            &mut it,
            "/webhooks/0/namespaceSelector/matchExpressions",
            json!([expression]),
        );
        let finding = finding(&it, "registration-failure-policy");
        assert_eq!(finding.status(), status, "{expression}");
    }
}

#[test]
fn roles_that_are_allowed_are_counted() {
    let role = "arn:aws:iam::123456789012:role/pull";
    let config = Config::parse_fields(&format!("namespaceRoles: {{allow: ['{role}']}}"), "config");
    let mut settings = settings();
    settings.rules.identities = config.expect("valid").rules.identities;
    let mut it = fine();
    it.config = Reading::Read(ConfigFacts::Valid(Box::new(settings)));
    for name in ["one", "two"] {
        let mut other = namespace(name, &[(LABEL, "enabled")]);
        other.annotations = BTreeMap::from([(ROLE_ANNOTATION.to_owned(), role.to_owned())]);
        namespaces_with(&mut it, other);
    }
    assert_eq!(finding(&it, "namespaces-role"), Finding::ok("2 roles"));
}

#[test]
fn metrics_without_a_replica_are_no_finding() {
    let mut it = fine();
    it.metrics = Reading::Read(vec![]);
    assert_eq!(
        finding(&it, "cert-leaf"),
        Finding::skipped("no replica runs")
    );
    it.metrics = Reading::Read(vec![(
        "pod-1".to_owned(),
        Reading::Failed("502".to_owned()),
    )]);
    assert_eq!(finding(&it, "metrics-readable").status(), Status::Warn);
    assert_eq!(
        finding(&it, "cert-leaf"),
        Finding::skipped("after metrics-readable")
    );
}

#[test]
fn replica_without_an_authority_says_nothing_about_the_bundle() {
    let mut it = fine();
    let files = METRICS
        .replace("kind=\"ca\"", "kind=\"other\"")
        .replace("trusted 1", "trusted 0");
    it.metrics = metrics(&[&files]);
    let skipped = Finding::skipped("no replica has a self-managed authority");
    assert_eq!(finding(&it, "registration-trusts-us"), skipped);
}

#[test]
fn installation_without_a_webhook_needs_no_registration() {
    let mut it = fine();
    it.names.has_webhook = false;
    it.registrations = Reading::Read(vec![]);
    it.policies = Reading::Read(Some((1..guard::POLICIES).map(policy).collect()));
    assert_eq!(finding(&it, "registration-there").status(), Status::Skipped);
    assert_eq!(finding(&it, "registration-answers").status(), Status::Ok);
    assert_eq!(finding(&it, "guard-there").status(), Status::Ok);
    it.names.has_webhook = true;
    assert_eq!(finding(&it, "registration-there").status(), Status::Fail);
    assert_eq!(finding(&it, "guard-there").status(), Status::Fail);
}

#[test]
fn what_the_rules_suspend_is_no_fault() {
    let mut it = fine();
    it.pull_secrets = Reading::Read(vec![pull_secret(Some(state(Some(-1), ago(90_000))))]);
    let allow = crate::token::rules::Allow {
        accounts: BTreeSet::from([
            crate::registry::AccountId::parse("210987654321").expect("an id")
        ]),
        ..Default::default()
    };
    let mut settings = settings();
    settings.rules.allow = allow;
    it.config = Reading::Read(ConfigFacts::Valid(Box::new(settings)));
    assert_eq!(finding(&it, "secret-expired").status(), Status::Ok);
}

#[test]
fn versions_are_those_of_the_page() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/versions.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let row = page
        .lines()
        .find(|line| line.starts_with("| Kubernetes |"))
        .expect("the row");
    assert!(
        row.contains(&format!("1.{} and newer", cluster::OLDEST)),
        "{row}"
    );
    assert!(
        row.contains(&format!("1.{} in every run", cluster::NEWEST)),
        "{row}"
    );
}
