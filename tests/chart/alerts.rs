//! The alerts of the chart: what Prometheus makes of them by promtool, on the series of a real registry. The cases are in
//! `alerts/cases.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ecr_injector::admission::outcome::Verdict;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::pull_secret::gauges::PullSecretState;
use ecr_injector::token::cache::MintError;
use serde_json::{Map, Value, json};

use crate::support::helm::{RELEASE, chart, find, objects, promtool, try_template};
use crate::support::openmetrics::{Series, series_of};

/// The end of the cases, in minutes.
const END: u64 = 60;
const ON: &str = "prometheusRule:\n  enabled: true\n";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the alerts as the chart has them.
fn definitions() -> Vec<Value> {
    let text = fs::read_to_string(chart().join("files/alerts.yaml")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    file["rules"].as_array().unwrap().clone()
}

/// Returns the spec of the rendered `PrometheusRule`.
fn rendered(values: &str) -> Value {
    let objects = objects(RELEASE, RELEASE, &format!("{ON}{values}"));
    let rule = objects.iter().find(|it| it["kind"] == "PrometheusRule");
    rule.unwrap()["spec"].clone()
}

/// Returns the rendered rules.
fn rules(values: &str) -> Vec<Value> {
    let spec = rendered(values);
    spec["groups"][0]["rules"].as_array().unwrap().clone()
}

fn names(rules: &[Value]) -> Vec<&str> {
    let names = rules.iter().map(|rule| rule["alert"].as_str().unwrap());
    names.collect()
}

/// Returns the series of a healthy replica: those of a fresh process, with what it learns soon.
fn healthy(instance: &str) -> BTreeMap<Series, String> {
    let mut all: BTreeMap<Series, String> = series_of(&Metrics::default().registry.to_text());
    let mut set = |series: &str, value: i64| {
        all.insert(Series::parse(series), value.to_string());
    };
    set("up", 1);
    set("process_start_time_seconds", -86_400);
    set("ecr_injector_leader", i64::from(instance == "a"));
    set("ecr_injector_guard_enforced", 1);
    set("ecr_injector_ca_bundle_trusted", 1);
    set("ecr_injector_earliest_expiry_seconds", 30_000);
    for (kind, seconds) in [("leaf", 604_800), ("ca", 20_000_000)] {
        let name = "ecr_injector_certificate_expiration_timestamp_seconds";
        set(&format!("{name}{{kind=\"{kind}\"}}"), seconds);
    }
    for state in PullSecretState::ALL.map(PullSecretState::as_str) {
        let count = if state == "fresh" { 100 } else { 0 };
        let name = "ecr_injector_pull_secrets_by_state";
        set(&format!("{name}{{state=\"{state}\"}}"), count);
    }
    let labelled = all.into_iter().map(|(mut series, value)| {
        series.labels.insert("instance".into(), instance.into());
        (series, value)
    });
    labelled.collect()
}

/// Returns the series of a case that rules read, each with its values in promtool's notation.
fn series(case: &Value, rules: &[Value]) -> Vec<Value> {
    let rules = json!(rules).to_string();
    let both = json!({"a": [0, END], "b": [0, END]});
    let replicas = case.get("replicas").unwrap_or(&both);
    let mut all = BTreeMap::new();
    for (instance, span) in replicas.as_object().unwrap() {
        let [from, to] = [0, 1].map(|at| span[at].as_u64().unwrap());
        for (series, value) in healthy(instance) {
            let mut values = format!("{value}x{}", to - from - u64::from(to < END));
            if from > 0 {
                values = format!("_x{from} {values}");
            }
            if to < END {
                values += " stale";
            }
            all.insert(series, values);
        }
    }
    for (series, values) in case["series"].as_object().unwrap_or(&Map::new()) {
        all.insert(Series::parse(series), values.as_str().unwrap().to_owned());
    }
    let of_release = [("namespace", RELEASE), ("job", "ecr-injector-metrics")];
    let read = all
        .into_iter()
        .filter(|(series, _)| rules.contains(&series.name));
    let input = read.map(|(mut series, values)| {
        for (label, value) in of_release {
            let labels = &mut series.labels;
            labels.entry(label.into()).or_insert_with(|| value.into());
        }
        json!({"series": series.to_string(), "values": values})
    });
    input.collect()
}

/// Returns promtool's test of a case, which names each alert at each time, also those that are quiet.
fn test_of(case: &Value, rules: &[Value], fired: &mut BTreeSet<String>) -> Value {
    let mut expectations = Vec::new();
    for (time, firing) in case["fires"].as_object().unwrap() {
        let known = names(rules);
        for alert in firing.as_object().unwrap().keys() {
            assert!(known.contains(&alert.as_str()), "{}: {alert}", case["name"]);
        }
        for rule in rules {
            let alert = rule["alert"].as_str().unwrap();
            let mut expected = Vec::new();
            for own in firing[alert].as_array().into_iter().flatten() {
                let mut labels = rule["labels"].as_object().unwrap().clone();
                labels.insert("namespace".into(), json!(RELEASE));
                labels.extend(own.as_object().unwrap().clone());
                labels.retain(|_, value| !value.is_null());
                for value in labels.values_mut().filter(|value| *value == "VERSION") {
                    *value = json!(env!("CARGO_PKG_VERSION"));
                }
                expected.push(json!({"exp_labels": labels}));
                fired.insert(alert.to_owned());
            }
            expectations
                .push(json!({"eval_time": time, "alertname": alert, "exp_alerts": expected}));
        }
    }
    json!({
        "name": case["name"], "interval": "1m",
        "input_series": series(case, rules), "alert_rule_test": expectations,
    })
}

#[test]
fn each_alert_fires_in_its_case_and_in_no_other() {
    let cases: Value = serde_saphyr::from_str(&read("tests/chart/alerts/cases.yaml")).unwrap();
    let mut by_values = BTreeMap::<&str, Vec<&Value>>::new();
    for case in cases.as_array().unwrap() {
        let values = case["values"].as_str().unwrap_or_default();
        by_values.entry(values).or_default().push(case);
    }
    let mut fired = BTreeSet::new();
    for (values, cases) in by_values {
        let mut rules = rules(values);
        for rule in &mut rules {
            // Other tests check them; promtool would want them word for word.
            rule.as_object_mut().unwrap().remove("annotations");
        }
        let tests: Vec<Value> = cases
            .iter()
            .map(|case| test_of(case, &rules, &mut fired))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let groups = json!({"groups": [{"name": "alerts", "rules": rules}]});
        fs::write(folder.path().join("rules.json"), groups.to_string()).unwrap();
        // Side by side, as a process of promtool takes one after another.
        let running = tests.chunks(10).enumerate().map(|(at, tests)| {
            let file = json!({
                "rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": tests,
            });
            let path = folder.path().join(format!("tests-{at}.json"));
            fs::write(&path, file.to_string()).unwrap();
            let mut promtool = Command::new(promtool());
            let promtool = promtool.args(["test", "rules"]).arg(&path);
            let promtool = promtool.stdout(Stdio::null()).stderr(Stdio::piped());
            promtool.spawn().unwrap()
        });
        for promtool in running.collect::<Vec<_>>() {
            let output = promtool.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{values}\n{told}");
        }
    }
    let all = definitions();
    let all: BTreeSet<String> = names(&all).into_iter().map(str::to_owned).collect();
    assert_eq!(fired, all, "an alert fires in no case");
}

/// A word that is misspelled selects nothing, and a new one is in no list.
#[test]
fn values_of_labels_in_the_rules_are_those_of_the_metrics() {
    let states = PullSecretState::ALL.map(PullSecretState::as_str);
    let decisions = Verdict::ALL.map(Verdict::as_str);
    let outcomes = ["ok"].into_iter().chain(MintError::REASONS).collect();
    let known: [(&str, Vec<&str>); 3] = [
        ("state", states.into()),
        ("decision", decisions.into()),
        ("outcome", outcomes),
    ];
    let mut passing = BTreeSet::new();
    for rule in definitions() {
        let expr = rule["expr"].as_str().unwrap();
        for (label, values) in &known {
            for matcher in expr
                .split([',', '{'])
                .filter_map(|it| it.strip_prefix(label))
            {
                let (operator, rest) = matcher.split_once('"').unwrap();
                let listed = rest.split('"').next().unwrap();
                for word in listed.split('|') {
                    assert!(values.contains(&word), "{}: {word}", rule["alert"]);
                }
                if *label == "outcome" {
                    let listed = listed.strip_prefix("ok|").unwrap_or(listed);
                    passing.insert(listed.to_owned());
                    assert!(["!~", "=~"].contains(&operator), "{operator}");
                }
            }
        }
    }
    // One alert has the errors that pass, the other all but them.
    assert_eq!(passing.len(), 1, "{passing:?}");
}

#[test]
fn prometheus_reads_the_rules_of_every_mode() {
    for values in [
        "",
        "certificates: {mode: cert-manager, certManager: {renewBefore: 90m}}",
        "certificates: {mode: secret, secretName: tls}\nguard: {enabled: false}",
        "fullnameOverride: puller\nwebhook: {timeoutSeconds: 29}",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.json");
        let spec = rendered(values);
        fs::write(&path, spec.to_string()).unwrap();
        let output = Command::new(promtool())
            .args(["check", "rules"])
            .arg(&path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{values}\n{told}");
        for word in ["SCOPE", "JOB", "THRESHOLD", "TIMEOUT"] {
            assert!(!spec.to_string().contains(word), "{values}: {word}");
        }
    }
}

#[test]
fn every_alert_can_be_changed_and_no_other_is_known() {
    let defined = definitions();
    for rule in &defined {
        let alert = rule["alert"].as_str().unwrap();
        let of = |values: &str| {
            let rules = rules(&format!("  rules: {{{alert}: {{{values}}}}}"));
            rules.into_iter().find(|rule| rule["alert"] == alert)
        };
        assert_eq!(of("enabled: false"), None, "{alert}");
        let changed = of("for: 7m, severity: page").unwrap();
        assert_eq!(changed["for"], "7m", "{alert}");
        assert_eq!(changed["labels"]["severity"], "page", "{alert}");
        let has_threshold = rule["expr"].as_str().unwrap().contains("THRESHOLD");
        let other = format!("{ON}  rules: {{{alert}: {{threshold: 0.125}}}}");
        match try_template(RELEASE, RELEASE, &other) {
            Ok(text) => assert!(has_threshold && text.contains("0.125"), "{alert}"),
            Err(error) => assert!(
                !has_threshold && error.contains("this alert has no threshold"),
                "{alert}: {error}"
            ),
        }
    }
    let zero = rules("  rules: {EcrInjectorExpirySoon: {threshold: 0}}");
    let zero = zero
        .iter()
        .find(|it| it["alert"] == "EcrInjectorExpirySoon");
    let zero = zero.unwrap()["expr"].as_str().unwrap();
    assert!(zero.ends_with("< 0"), "{zero}");
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap())
            .unwrap();
    let known = &schema["properties"]["prometheusRule"]["properties"]["rules"]["patternProperties"];
    let known: Vec<&String> = known.as_object().unwrap().keys().collect();
    assert_eq!(known, [&format!("^({})$", names(&defined).join("|"))]);
    let unknown = format!("{ON}  rules: {{NoLeader: {{enabled: false}}}}");
    let error = try_template(RELEASE, RELEASE, &unknown).unwrap_err();
    assert!(error.contains("/prometheusRule/rules"), "{error}");
}

#[test]
fn rule_object_is_never_empty() {
    let defined = definitions();
    let off = names(&defined).join(": {enabled: false}, ") + ": {enabled: false}";
    let off = format!("  rules: {{{off}}}\n");
    let error = try_template(RELEASE, RELEASE, &format!("{ON}{off}")).unwrap_err();
    assert!(error.contains("disables each alert"), "{error}");
    let extra = "  extra: [{alert: Mine, expr: vector(1)}]";
    assert_eq!(names(&rules(&format!("{off}{extra}"))), ["Mine"]);
    assert_eq!(names(&rules(extra)).len(), defined.len() + 1);
}

#[test]
fn rule_object_is_where_and_as_the_values_have_it() {
    let values = format!(
        "{ON}  namespace: monitoring\n  labels: {{release: prometheus}}\n  \
         annotations: {{a: b}}\n  runbookUrl: https://example.com/book"
    );
    let objects = objects(RELEASE, "pull", &values);
    let rule = find(&objects, "PrometheusRule", RELEASE);
    let metadata = &rule["metadata"];
    assert_eq!(metadata["namespace"], "monitoring");
    assert_eq!(metadata["labels"]["release"], "prometheus");
    assert_eq!(metadata["annotations"]["a"], "b");
    let first = &rule["spec"]["groups"][0]["rules"][0];
    assert_eq!(
        first["annotations"]["runbook_url"],
        "https://example.com/book#ecrinjectornoreplica"
    );
    // The metrics are those of the release, wherever the rules are.
    assert!(
        first["expr"]
            .as_str()
            .unwrap()
            .contains("namespace=\"pull\"")
    );
}

/// Each section says what happens and has a command; the order is that of the file.
#[test]
fn every_alert_has_its_section_among_the_runbooks() {
    let page = read("docs/how-to/runbooks.md");
    let sections: Vec<(&str, &str)> = page
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap())
        .filter(|(title, _)| title.starts_with("EcrInjector"))
        .collect();
    let defined = definitions();
    let titles: Vec<&str> = sections.iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, names(&defined));
    for (title, text) in sections {
        assert!(
            text.contains("\n$ ") || text.contains("\n```sh\n"),
            "{title}"
        );
    }
    let url = &rules("")[0]["annotations"]["runbook_url"];
    assert!(url.as_str().unwrap().contains("docs/how-to/runbooks.md#"));
}

/// The table of the alerts: name, severity, how long, condition and threshold.
#[test]
fn reference_has_each_alert_with_its_defaults() {
    let page = read("docs/reference/alerts.md");
    let rows: Vec<String> = page
        .lines()
        .filter(|line| line.starts_with("| [`EcrInjector"))
        .map(|line| line.rsplit_once(" | ").unwrap().0.to_owned())
        .collect();
    let expected: Vec<String> = definitions()
        .iter()
        .map(|rule| {
            let alert = rule["alert"].as_str().unwrap();
            let threshold = match (&rule["threshold"], &rule["thresholds"]) {
                (Value::Null, Value::Null) => "—".to_owned(),
                (Value::Null, _) => "by mode".to_owned(),
                (threshold, _) => threshold.to_string(),
            };
            format!(
                "| [`{alert}`](../how-to/runbooks.md#{}) | {} | {} | {threshold}",
                alert.to_lowercase(),
                rule["severity"].as_str().unwrap(),
                rule["for"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(rows, expected, "docs/reference/alerts.md");
}
