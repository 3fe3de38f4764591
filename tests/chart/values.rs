//! Values for clusters with rules of their own: what each of them renders, and that the defaults render nothing of it.

use std::collections::BTreeSet;
use std::fs;

use crate::support::helm::{RELEASE, chart, find, objects, of_the_test, try_template};
use serde_json::{Value, json};

/// A value, where it is rendered (kind, name, pointer), and as what.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Value,
);

#[allow(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let deployment = |values, pointer, rendered| (values, "Deployment", RELEASE, pointer, rendered);
    let monitor = "metrics: {serviceMonitor: {enabled: true, scrapeTimeout: 5s, namespace: monitoring,
        relabelings: [{action: labeldrop, regex: pod}], metricRelabelings: [{action: drop, regex: go_.*}]}}";
    let pods = "metrics: {podMonitor: {enabled: true, scrapeTimeout: 5s, namespace: monitoring,
        relabelings: [{action: labeldrop, regex: pod}], metricRelabelings: [{action: drop, regex: go_.*}]}}";
    vec![
        deployment(
            "revisionHistoryLimit: 0",
            "/spec/revisionHistoryLimit",
            json!(0),
        ),
        deployment(
            "strategy: {type: Recreate}",
            "/spec/strategy",
            json!({"type": "Recreate"}),
        ),
        deployment(
            "runtimeClassName: gvisor",
            "/spec/template/spec/runtimeClassName",
            json!("gvisor"),
        ),
        deployment(
            "dnsConfig: {options: [{name: ndots, value: '1'}]}",
            "/spec/template/spec/dnsConfig",
            json!({"options": [{"name": "ndots", "value": "1"}]}),
        ),
        deployment(
            "hostAliases: [{ip: 192.0.2.1, hostnames: [sts.example.com]}]",
            "/spec/template/spec/hostAliases",
            json!([{"ip": "192.0.2.1", "hostnames": ["sts.example.com"]}]),
        ),
        deployment(
            "initContainers: [{name: first, image: a}]",
            "/spec/template/spec/initContainers",
            json!([{"name": "first", "image": "a"}]),
        ),
        deployment(
            "extraContainers: [{name: proxy, image: a}]",
            "/spec/template/spec/containers/1",
            json!({"name": "proxy", "image": "a"}),
        ),
        deployment(
            "podSecurityContext: {supplementalGroups: [5]}",
            "/spec/template/spec/securityContext/supplementalGroups",
            json!([5]),
        ),
        deployment(
            "containerSecurityContext: {privileged: false}",
            "/spec/template/spec/containers/0/securityContext/privileged",
            json!(false),
        ),
        deployment(
            "readinessProbe: {initialDelaySeconds: 0}",
            "/spec/template/spec/containers/0/readinessProbe/initialDelaySeconds",
            json!(0),
        ),
        deployment(
            "livenessProbe: {initialDelaySeconds: 7}",
            "/spec/template/spec/containers/0/livenessProbe/initialDelaySeconds",
            json!(7),
        ),
        deployment(
            "global: {imagePullSecrets: [a, {name: b}]}",
            "/spec/template/spec/imagePullSecrets",
            json!([{"name": "a"}, {"name": "b"}]),
        ),
        (
            "service: {ipFamilyPolicy: PreferDualStack}",
            "Service",
            RELEASE,
            "/spec/ipFamilyPolicy",
            json!("PreferDualStack"),
        ),
        (
            "service: {ipFamilies: [IPv6]}",
            "Service",
            RELEASE,
            "/spec/ipFamilies",
            json!(["IPv6"]),
        ),
        (
            monitor,
            "ServiceMonitor",
            RELEASE,
            "/spec/endpoints/0/scrapeTimeout",
            json!("5s"),
        ),
        (
            monitor,
            "ServiceMonitor",
            RELEASE,
            "/spec/endpoints/0/relabelings/0/regex",
            json!("pod"),
        ),
        (
            monitor,
            "ServiceMonitor",
            RELEASE,
            "/spec/endpoints/0/metricRelabelings/0/regex",
            json!("go_.*"),
        ),
        (
            monitor,
            "ServiceMonitor",
            RELEASE,
            "/spec/namespaceSelector/matchNames",
            json!([RELEASE]),
        ),
        (
            pods,
            "PodMonitor",
            RELEASE,
            "/spec/podMetricsEndpoints/0/scrapeTimeout",
            json!("5s"),
        ),
        (
            pods,
            "PodMonitor",
            RELEASE,
            "/spec/podMetricsEndpoints/0/relabelings/0/regex",
            json!("pod"),
        ),
        (
            pods,
            "PodMonitor",
            RELEASE,
            "/spec/podMetricsEndpoints/0/metricRelabelings/0/regex",
            json!("go_.*"),
        ),
        (
            pods,
            "PodMonitor",
            RELEASE,
            "/spec/namespaceSelector/matchNames",
            json!([RELEASE]),
        ),
    ]
}

#[test]
fn value_is_rendered_where_it_belongs_and_not_by_default() {
    let monitors = "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}";
    let defaults = objects(RELEASE, RELEASE, monitors);
    for (values, kind, name, pointer, rendered) in rows() {
        let objects = objects(RELEASE, RELEASE, values);
        assert_eq!(
            find(&objects, kind, name).pointer(pointer),
            Some(&rendered),
            "{values}"
        );
        let default = find(&defaults, kind, name).pointer(pointer);
        assert!(
            default.is_none() || pointer == "/spec/strategy",
            "{pointer}: {default:?}"
        );
    }
    for kind in ["ServiceMonitor", "PodMonitor"] {
        let monitor = find(&defaults, kind, RELEASE);
        assert_eq!(monitor["metadata"]["namespace"], RELEASE);
        assert_eq!(monitor.pointer("/spec/namespaceSelector"), None);
    }
    let elsewhere = objects(
        RELEASE,
        RELEASE,
        "metrics: {serviceMonitor: {enabled: true, namespace: monitoring}}",
    );
    assert_eq!(
        find(&elsewhere, "ServiceMonitor", RELEASE)["metadata"]["namespace"],
        "monitoring"
    );
    // The Service that it selects stays with the Pods.
    assert_eq!(
        find(&elsewhere, "Service", "ecr-injector-metrics")["metadata"]["namespace"],
        RELEASE
    );
}

#[test]
fn defaults_of_security_and_probes_stay_beside_what_is_set() {
    let values = "podSecurityContext: {runAsUser: 1000}
containerSecurityContext: {readOnlyRootFilesystem: false}
livenessProbe: {failureThreshold: 3}";
    let objects = objects(RELEASE, RELEASE, values);
    let pod = &find(&objects, "Deployment", RELEASE)["spec"]["template"]["spec"];
    let expected = json!({"runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 65532, "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(pod["securityContext"], expected);
    let container = &pod["containers"][0];
    let expected = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": false,
        "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], expected);
    let probe = &container["livenessProbe"];
    assert_eq!(
        (&probe["failureThreshold"], &probe["periodSeconds"]),
        (&json!(3), &json!(10))
    );
}

#[test]
fn image_comes_from_the_mirror_of_the_chart_around() {
    let image = |values: &str| {
        let objects = objects(RELEASE, RELEASE, values);
        let pods = of_the_test(RELEASE, RELEASE, values);
        let pod = pods.iter().find(|object| object["kind"] == "Pod").unwrap();
        let image = &find(&objects, "Deployment", RELEASE)["spec"]["template"]["spec"]["containers"]
            [0]["image"];
        assert_eq!(pod["spec"]["containers"][0]["image"], *image, "{values}");
        image.as_str().unwrap().to_owned()
    };
    let tag = "image: {tag: '1'}";
    assert_eq!(image(tag), "ghcr.io/ecr-injector/ecr-injector:1");
    assert_eq!(
        image(&format!("{tag}\nglobal: {{imageRegistry: m.example}}")),
        "m.example/ecr-injector/ecr-injector:1"
    );
    assert_eq!(
        image(&format!("{tag}\nglobal: {{imageRegistry: ''}}")),
        "ghcr.io/ecr-injector/ecr-injector:1"
    );
    assert_eq!(
        image("image: {tag: '1', registry: 'm.example:5000/proxy/ghcr'}"),
        "m.example:5000/proxy/ghcr/ecr-injector/ecr-injector:1"
    );
    for values in [
        "image: {registry: m.example/}",
        "image: {registry: 'https://m.example'}",
        "global: {imageRegistry: 'm.example//a'}",
    ] {
        try_template(RELEASE, RELEASE, values).expect_err(values);
    }
}

#[test]
fn each_object_follows_the_namespace_override() {
    let values = "namespaceOverride: tools\nmetrics: {serviceMonitor: {enabled: true}}\nnetworkPolicy: {enabled: true}
certificates: {mode: cert-manager}\nautoscaling: {enabled: true}";
    let namespaces: BTreeSet<String> = objects(RELEASE, "release", values)
        .iter()
        .filter_map(|object| Some(object["metadata"]["namespace"].as_str()?.to_owned()))
        .collect();
    assert_eq!(namespaces, BTreeSet::from(["tools".to_owned()]));
    // Nothing refers to that of the release.
    let overridden = try_template(RELEASE, "tools", values).unwrap();
    let other = try_template(RELEASE, "somewhere-else", values).unwrap();
    assert_eq!(overridden, other);
}

#[test]
fn new_values_grant_no_permission() {
    let rules = |values: &str| -> Vec<Value> {
        let objects = objects(RELEASE, RELEASE, values);
        let roles = objects.iter().filter(|object| object["rules"].is_array());
        roles.map(|role| role["rules"].clone()).collect()
    };
    let default = rules("");
    for (values, ..) in rows() {
        assert_eq!(rules(values), default, "{values}");
    }
}

#[test]
fn chart_says_who_keeps_it_and_where() {
    let chart_yaml = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let chart_yaml: Value = serde_saphyr::from_str(&chart_yaml).unwrap();
    for field in ["home", "sources", "icon", "maintainers"] {
        assert!(!chart_yaml[field].is_null(), "{field}");
    }
    let icon = chart_yaml["icon"].as_str().unwrap();
    let file = icon.rsplit_once("/charts/ecr-injector/").unwrap().1;
    assert!(chart().join(file).is_file(), "{icon}");
    // Artifact Hub reads lists out of texts.
    for field in ["changes", "images", "links"] {
        let text = chart_yaml["annotations"][format!("artifacthub.io/{field}")]
            .as_str()
            .unwrap();
        let list: Vec<Value> = serde_saphyr::from_str(text).unwrap();
        assert!(!list.is_empty(), "{field}");
    }
}
