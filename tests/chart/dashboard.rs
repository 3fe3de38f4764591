//! The dashboard of the chart: made from the reference of the metrics, and each of its queries evaluated by promtool on
//! the metrics of a replica that works.
//!
//! `make dashboard` writes `charts/ecr-injector/files/dashboard.json`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ecr_injector::cli::metrics::Metrics;
use serde_json::{Value, json};

use crate::support::bed::{create, image};
use crate::support::fake_aws::{Behaviour, Knobs};
use crate::support::helm::{RELEASE, chart, find, objects, promtool};
use crate::support::openmetrics::{Series, series_of};
use crate::support::pods::pod;
use crate::support::{Bed, eventually};

const METRICS: &str = "docs/reference/metrics.md";
/// Selects what the variables of the dashboard do.
const SCOPE: &str = r#"cluster=~"$cluster",namespace=~"$namespace""#;
/// The families that a healthy replica with a few admissions has no series of: those of the
/// self-managed authority, which this one does not have, and those that wait for a failure or for
/// a refresh hours later.
const SILENT: &[&str] = &[
    "ecr_injector_ca_bundle_trusted",
    "ecr_injector_ca_rotation_steps_total",
    "ecr_injector_connection_failures_total",
    "ecr_injector_refreshes_total",
    "ecr_injector_rejected_identities_total",
    "ecr_injector_rejected_requests_total",
];

/// A metric, as its line in the reference has it.
struct Metric {
    section: String,
    name: String,
    kind: String,
    labels: Vec<String>,
    description: String,
}

/// Returns the metrics of the reference, in its order.
fn catalogue() -> Vec<Metric> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(METRICS)).unwrap();
    let (mut section, mut metrics) = (String::new(), Vec::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        let quoted = |cell: &str| -> Vec<String> {
            let words = cell.split('`').skip(1).step_by(2);
            words.map(str::to_owned).collect()
        };
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let Some(name) = cells[0].strip_prefix('`') else {
            continue;
        };
        if !name.starts_with("ecr_injector_") && !name.starts_with("process_") {
            continue;
        }
        let labels = cells[2].trim_matches('|').split(';');
        let labels = labels.filter_map(|label| quoted(label).into_iter().next());
        let texts = cells[3..].iter().map(|text| plain(text));
        metrics.push(Metric {
            section: section.clone(),
            name: quoted(cells[0])[0].clone(),
            kind: cells[1].to_owned(),
            labels: labels.collect(),
            description: texts.collect::<Vec<_>>().join("\n\n"),
        });
    }
    metrics
}

/// Returns a cell without the targets of its links.
fn plain(text: &str) -> String {
    let mut parts = text.split("](");
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        plain += part.split_once(')').unwrap().1;
    }
    plain.replace('[', "").trim().to_owned()
}

/// A query and the legend of its lines.
type Target = (String, String);

impl Metric {
    /// Returns the title of the panel: the name as words.
    fn title(&self) -> String {
        let name = self.name.strip_prefix("ecr_injector_");
        let name = name.unwrap_or(&self.name).replace('_', " ");
        let words = name.trim_end_matches(" total").trim_end_matches(" info");
        format!("{}{}", words[..1].to_uppercase(), &words[1..])
    }

    fn targets(&self) -> Vec<Target> {
        let name = &self.name;
        let legend = |labels: &[String]| {
            let labels = labels.iter().map(|label| format!("{{{{{label}}}}}"));
            labels.collect::<Vec<_>>().join(" ")
        };
        let by = |labels: &[String]| match labels {
            [] => String::new(),
            labels => format!(" by ({})", labels.join(", ")),
        };
        // Anything may have the metrics of a process.
        let selected = if name.starts_with("process_") {
            format!("({name}{{{SCOPE}}} and on (job, instance) ecr_injector_build_info{{{SCOPE}}})")
        } else {
            format!("{name}{{{SCOPE}}}")
        };
        let mut each = vec!["instance".to_owned()];
        each.extend(self.labels.clone());
        let rate = format!("rate({name}{{{SCOPE}}}[$__rate_interval])");
        match &*self.kind {
            "counter" if name.starts_with("process_") => {
                let rate =
                    format!("{rate} and on (job, instance) ecr_injector_build_info{{{SCOPE}}}");
                vec![(format!("sum by (instance) ({rate})"), legend(&each))]
            }
            "counter" => vec![(
                format!("sum{} ({rate})", by(&self.labels)),
                legend(&self.labels),
            )],
            "histogram" => {
                let labels = &self.labels[..1];
                let rate = format!("rate({name}_bucket{{{SCOPE}}}[$__rate_interval])");
                let sum = format!("sum by (le, {}) ({rate})", labels.join(", "));
                ["0.5", "0.99"]
                    .map(|share| {
                        let query = format!("histogram_quantile({share}, {sum})");
                        (query, format!("{} {share}", legend(labels)))
                    })
                    .into()
            }
            "info" => vec![(
                format!("count{} ({selected})", by(&self.labels)),
                legend(&self.labels),
            )],
            _ if name.ends_with("_timestamp_seconds") || name == "process_start_time_seconds" => {
                let query = if name.contains("expiration") {
                    format!("min{} ({selected} - time())", by(&each))
                } else {
                    format!("max{} (time() - {selected})", by(&each))
                };
                vec![(query, legend(&each))]
            }
            // Each replica measures all pull secrets.
            _ if self.section == "Pull secrets" => {
                let of = if name.contains("expiry") {
                    "min"
                } else {
                    "max"
                };
                let query = format!("{of}{} ({selected})", by(&self.labels));
                vec![(query, legend(&self.labels))]
            }
            _ => vec![(format!("max{} ({selected})", by(&each)), legend(&each))],
        }
    }

    fn unit(&self) -> &'static str {
        match &*self.kind {
            "counter" if self.name.contains("_cpu_") => "short",
            "counter" => "ops",
            _ if self.name.ends_with("_bytes") => "bytes",
            _ if self.name.ends_with("_seconds") => "s",
            _ => "short",
        }
    }
}

/// The title of a panel, its kind and its unit, and its queries, each with its legend.
type Outline = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// The panels that are seen at first. `SCOPE` is what the variables select.
const OVERVIEW: &[Outline] = &[
    (
        "Replicas",
        "stat",
        "short",
        &[("count(ecr_injector_build_info{SCOPE})", "")],
    ),
    (
        "Leaders",
        "stat",
        "short",
        &[("sum(ecr_injector_leader{SCOPE})", "")],
    ),
    (
        "Until the first credential expires",
        "stat",
        "s",
        &[("min(ecr_injector_earliest_expiry_seconds{SCOPE})", "")],
    ),
    (
        "Until the serving certificate expires",
        "stat",
        "s",
        &[(
            r#"min(ecr_injector_certificate_expiration_timestamp_seconds{SCOPE,kind="leaf"} - time())"#,
            "",
        )],
    ),
    (
        "Admissions",
        "timeseries",
        "ops",
        &[(
            "sum by (decision) (rate(ecr_injector_admissions_total{SCOPE}[$__rate_interval]))",
            "{{decision}}",
        )],
    ),
    (
        "Duration of admissions",
        "timeseries",
        "s",
        &[
            (
                "histogram_quantile(0.5, sum by (le) (rate(ecr_injector_admission_duration_seconds_bucket{SCOPE}[$__rate_interval])))",
                "quantile 0.5",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(ecr_injector_admission_duration_seconds_bucket{SCOPE}[$__rate_interval])))",
                "quantile 0.99",
            ),
        ],
    ),
    (
        "Pull secrets by state",
        "timeseries",
        "short",
        &[(
            "max by (state) (ecr_injector_pull_secrets_by_state{SCOPE})",
            "{{state}}",
        )],
    ),
    (
        "Failed calls to AWS",
        "timeseries",
        "ops",
        &[(
            r#"sum by (operation, outcome) (rate(ecr_injector_aws_calls_total{SCOPE,outcome!="ok"}[$__rate_interval])) > 0"#,
            "{{operation}} {{outcome}}",
        )],
    ),
    (
        "Calls of the API server that failed",
        "timeseries",
        "ops",
        &[
            (
                r#"sum by (name) (rate(apiserver_admission_webhook_fail_open_count{cluster=~"$cluster",name=~"(create|update)[.]ecr-injector[.]dev"}[$__rate_interval]))"#,
                "{{name}} ignored",
            ),
            (
                r#"sum by (name) (rate(apiserver_admission_webhook_rejection_count{cluster=~"$cluster",name=~"(create|update)[.]ecr-injector[.]dev",error_type="calling_webhook_error"}[$__rate_interval]))"#,
                "{{name}} rejected",
            ),
        ],
    ),
];

/// Returns the panels of [`OVERVIEW`].
fn overview(mut next: impl FnMut() -> usize) -> Vec<Value> {
    let panels = OVERVIEW.iter().map(|(title, kind, unit, targets)| {
        let targets: Vec<Target> = targets
            .iter()
            .map(|(query, legend)| (query.replace("SCOPE", SCOPE), (*legend).to_owned()))
            .collect();
        panel(next(), kind, title, "", unit, &targets)
    });
    panels.collect()
}

fn panel(
    id: usize,
    kind: &str,
    title: &str,
    description: &str,
    unit: &str,
    targets: &[Target],
) -> Value {
    let datasource = json!({"type": "prometheus", "uid": "${datasource}"});
    let targets: Vec<Value> = targets
        .iter()
        .zip(["A", "B", "C"])
        .map(|((expr, legend), id)| {
            json!({
                "datasource": datasource, "expr": expr, "refId": id,
                "legendFormat": if legend.is_empty() { "all" } else { legend },
            })
        })
        .collect();
    json!({
        "id": id, "type": kind, "title": title, "description": description,
        "datasource": datasource,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    })
}

/// Places panels in rows from line `y` on, so many beside each other; returns the next free line.
fn place(panels: &mut [Value], mut y: usize, columns: usize, height: usize) -> usize {
    let width = 24 / columns;
    for row in panels.chunks_mut(columns) {
        for (column, panel) in row.iter_mut().enumerate() {
            panel["gridPos"] = json!({"h": height, "w": width, "x": column * width, "y": y});
        }
        y += height;
    }
    y
}

fn variable(name: &str, label: &str, query: &str) -> Value {
    json!({
        "type": "query", "name": name, "label": label, "query": {"query": query, "refId": name},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query, "refresh": 2, "sort": 1,
        "multi": true, "includeAll": true, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    })
}

/// Returns the dashboard: an overview, and a closed row for each section of the reference.
fn dashboard() -> Value {
    let mut ids = 1..;
    let mut next = || ids.next().unwrap();
    let mut panels = overview(&mut next);
    let y = place(&mut panels[..4], 0, 4, 4);
    let y = place(&mut panels[4..], y, 2, 8);
    let metrics = catalogue();
    let mut sections: Vec<&str> = metrics.iter().map(|metric| &*metric.section).collect();
    sections.dedup();
    for (y, section) in (y..).zip(sections) {
        let id = next();
        let of_section = metrics.iter().filter(|metric| metric.section == section);
        let mut inner: Vec<Value> = of_section
            .map(|it| {
                let description = format!("`{}`: {}", it.name, it.description);
                panel(
                    next(),
                    "timeseries",
                    &it.title(),
                    &description,
                    it.unit(),
                    &it.targets(),
                )
            })
            .collect();
        place(&mut inner, y + 1, 3, 7);
        panels.push(json!({
            "id": id, "type": "row", "title": section, "collapsed": true, "panels": inner,
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
        }));
    }
    let of_cluster = "label_values(ecr_injector_build_info, cluster)";
    let of_namespace = r#"label_values(ecr_injector_build_info{cluster=~"$cluster"}, namespace)"#;
    json!({
        "uid": "ecr-injector", "title": "ecr-injector", "tags": ["ecr-injector"],
        "description": "Pull secrets for private Amazon ECR images",
        "editable": true, "graphTooltip": 1, "schemaVersion": 39, "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
            variable("cluster", "Cluster", of_cluster),
            variable("namespace", "Namespace", of_namespace),
        ]},
        "panels": panels,
    })
}

/// Returns each query with the title of its panel.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let outer = dashboard["panels"].as_array().unwrap();
    let inner = outer.iter().filter_map(|panel| panel["panels"].as_array());
    let of = |panel: &Value| -> Vec<(String, String)> {
        let targets = panel["targets"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        targets
            .map(|target| (text(&panel["title"]), text(&target["expr"])))
            .collect()
    };
    outer.iter().chain(inner.flatten()).flat_map(of).collect()
}

#[test]
fn dashboard_is_made_from_the_reference_of_the_metrics() {
    let documented: BTreeSet<String> = catalogue().into_iter().map(|it| it.name).collect();
    let registry = Metrics::default().registry;
    let registered = registry.families().iter().map(|it| it.name.clone());
    assert_eq!(documented, registered.collect());
    let text = format!("{}\n", serde_json::to_string_pretty(&dashboard()).unwrap());
    let path = chart().join("files/dashboard.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "{} has drifted: make dashboard",
        path.display()
    );
}

#[test]
fn dashboard_is_rendered_as_it_is_for_both_kinds_of_grafana() {
    let values = "dashboard:
  namespace: monitoring
  configMap: {enabled: true, labels: {grafana_dashboard: null, find_me: 'yes'}, annotations: {grafana_folder: Kubernetes}}
  grafanaDashboard: {enabled: true, folder: Kubernetes}";
    let objects = objects(RELEASE, RELEASE, values);
    let file = fs::read_to_string(chart().join("files/dashboard.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let parsed = |text: &Value| -> Value { serde_json::from_str(text.as_str().unwrap()).unwrap() };

    let map = find(&objects, "ConfigMap", "ecr-injector-dashboard");
    assert_eq!(parsed(&map["data"]["ecr-injector.json"]), file);
    let metadata = &map["metadata"];
    assert_eq!(metadata["namespace"], "monitoring");
    assert_eq!(metadata["labels"]["find_me"], "yes");
    assert_eq!(metadata["labels"].get("grafana_dashboard"), None);
    assert_eq!(metadata["annotations"]["grafana_folder"], "Kubernetes");

    let custom = find(&objects, "GrafanaDashboard", "ecr-injector-dashboard");
    assert_eq!(parsed(&custom["spec"]["json"]), file);
    assert_eq!(custom["spec"]["folder"], "Kubernetes");
    assert_eq!(
        custom["spec"]["instanceSelector"]["matchLabels"]["dashboards"],
        "grafana"
    );
}

/// Returns the metrics of a replica that has admitted Pods, injected and skipped, one of them while
/// AWS throttled, and those of an API server that then could not call it under either failure
/// policy.
async fn metrics_of_a_loaded_replica() -> [String; 2] {
    let mut bed = Bed::start("", "info").await;
    let client = bed.plane.pod_creator().await;
    for prefix in ["one", "two"] {
        let namespace = bed.opted_in(prefix).await;
        for name in ["cold", "warm"] {
            let pod = pod(name, &image("us-east-1"));
            create(&client, &namespace, &pod, false).await.unwrap();
        }
        let mut skipped = pod("skipped", &image("us-east-1"));
        let annotations = skipped.metadata.annotations.get_or_insert_default();
        annotations.insert("ecr-injector.dev/inject".into(), "disabled".into());
        create(&client, &namespace, &skipped, false).await.unwrap();
    }
    let throttle = |ecr: &mut Knobs| ecr.behaviour = Behaviour::Throttle;
    bed.aws.tune_ecr_in("eu-west-2", throttle);
    let namespace = bed.opted_in("throttled").await;
    let unready = pod("unready", &image("eu-west-2"));
    create(&client, &namespace, &unready, false).await.unwrap();
    let what = "the metrics of the leader and of its pull secrets, one of which is not complete";
    let replica = eventually(what, Duration::from_mins(1), async || {
        let text = bed.webhook.metrics().await;
        let families = [
            "lease_transitions_total{",
            "identity_earliest_expiry_seconds{",
            "refresh_failures_total{",
        ];
        families.iter().all(|it| text.contains(it)).then_some(text)
    })
    .await;
    bed.webhook.kill();
    let namespace = bed.opted_in("three").await;
    let ignored = pod("ignored", &image("us-east-1"));
    create(&client, &namespace, &ignored, false).await.unwrap();
    let fail = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]"#;
    let registration = ["patch", "mutatingwebhookconfiguration", "zz-ecr-injector"];
    let patch = [&registration[..], &["--type", "json", "-p", fail]].concat();
    let patched = bed.plane.kubectl(&patch).await;
    assert!(patched.status.success(), "{patched:?}");
    let what = "a Pod that is rejected";
    eventually(what, Duration::from_secs(20), async || {
        let rejected = pod("rejected", &image("us-east-1"));
        let outcome = create(&client, &namespace, &rejected, true).await;
        outcome.err()
    })
    .await;
    let admin = bed.plane.admin().await;
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    [replica, admin.request_text(request).await.unwrap()]
}

#[tokio::test]
async fn every_query_has_an_answer_from_a_loaded_replica() {
    let [text, of_api_server] = metrics_of_a_loaded_replica().await;
    let registry = Metrics::default().registry;
    let scraped = series_of(&text);
    let shows = |family: &str| {
        let mut names = scraped.keys().map(|series| &*series.name);
        names.any(|name| name == family || name.strip_suffix("_bucket") == Some(family))
    };
    let silent: BTreeSet<&str> = registry
        .families()
        .iter()
        .map(|it| &*it.name)
        .filter(|name| !shows(name))
        .collect();
    assert_eq!(silent, SILENT.iter().copied().collect());

    let mut input = Vec::new();
    for (mut series, value) in scraped {
        let is_rising = ["_total", "_bucket", "_count", "_sum"];
        let is_rising = is_rising.iter().any(|end| series.name.ends_with(end));
        for (label, of_target) in [
            ("cluster", "x"),
            ("namespace", "y"),
            ("job", "z"),
            ("instance", "a"),
        ] {
            series.labels.insert(label.into(), of_target.into());
        }
        let values = if is_rising {
            format!("0+{value}x20")
        } else {
            format!("{value}x20")
        };
        input.push(json!({"series": series.to_string(), "values": values}));
    }
    let of_webhooks = |line: &&str| {
        let families = ["fail_open", "rejection"];
        let names = families.map(|it| format!("apiserver_admission_webhook_{it}_count{{"));
        names.iter().any(|name| line.starts_with(name))
    };
    for line in of_api_server.lines().filter(of_webhooks) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let mut series = Series::parse(series);
        series.labels.insert("cluster".into(), "x".into());
        let values = format!("0+{value}x20");
        input.push(json!({"series": series.to_string(), "values": values}));
    }
    let written = fs::read_to_string(chart().join("files/dashboard.json")).unwrap();
    let queries = queries(&serde_json::from_str(&written).unwrap());
    assert!(queries.len() > registry.families().len());
    let tests: Vec<Value> = queries
        .iter()
        .map(|(_, query)| {
            let is_silent = silent.iter().any(|name| {
                ["", "_bucket"]
                    .iter()
                    .any(|end| query.contains(&format!("{name}{end}{{")))
            });
            let query = query
                .replace("$cluster", ".*")
                .replace("$namespace", "y")
                .replace("$__rate_interval", "5m");
            let answer = json!([{"labels": "{}", "value": 1}]);
            json!({
                "expr": format!("count(({query})) > bool 0"), "eval_time": "15m",
                "exp_samples": if is_silent { json!([]) } else { answer },
            })
        })
        .collect();
    let file = json!({"evaluation_interval": "1m", "tests": [
        {"interval": "1m", "input_series": input, "promql_expr_test": tests},
    ]});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tests.json");
    fs::write(&path, file.to_string()).unwrap();
    let output = Command::new(promtool())
        .args(["test", "rules"])
        .arg(&path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}
