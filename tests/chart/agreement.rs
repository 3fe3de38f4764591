//! The chart refuses a configuration if and only if the process does: each of these is given to both, as values to `helm
//! template` and as a file to `config check`. What the chart takes, the process also takes as it is rendered.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::helm::{RELEASE, find, try_template};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";
const ECR: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";

/// Configurations that the process refuses, with a part of the path in Helm's message.
#[allow(clippy::too_many_lines, reason = "a table")]
fn wrong() -> Vec<(Value, &'static str)> {
    let role = |fields: &str| {
        let mut role: Value = serde_saphyr::from_str(fields).unwrap();
        if role["roleArn"].is_null() {
            role["roleArn"] = json!(ROLE);
        }
        json!({"identities": [{"assumeRole": role}]})
    };
    let yaml = |text: &str| -> Value { serde_saphyr::from_str(text).unwrap() };
    vec![
        (yaml("limits: {registriesPerPod: 65}"), "config.limits"),
        (yaml("limits: {registriesPerSecret: 8}"), "config.limits"),
        (json!({"secretName": "a".repeat(64)}), "/config/secretName"),
        (
            json!({"optIn": {"label": format!("{}/a", "a".repeat(64))}}),
            "/config/optIn/label",
        ),
        (
            json!({"optIn": {"label": "a".repeat(64)}}),
            "/config/optIn/label",
        ),
        (
            yaml("allow: {regions: [us-gov-1]}"),
            "/config/allow/regions/0",
        ),
        (
            yaml("allow: {regions: [eu-west]}"),
            "/config/allow/regions/0",
        ),
        (
            yaml("aliases: [{host: a.example, registry: b.example}]"),
            "/config/aliases/0/registry",
        ),
        (
            json!({"aliases": [{"host": ECR, "registry": ECR}]}),
            "/config/aliases/0/host",
        ),
        (
            json!({"aliases": [{"host": "public.ecr.aws", "registry": ECR}]}),
            "/config/aliases/0/host",
        ),
        (
            json!({"aliases": [{"host": "a.b:65536", "registry": ECR}]}),
            "/config/aliases/0/host",
        ),
        (
            json!({"aliases": [{"host": "a.b", "registry": ECR}, {"host": "a.b", "registry": ECR}]}),
            "config.aliases[1].host",
        ),
        (yaml("prewarm: [docker.io]"), "config.prewarm[0]"),
        (yaml("prewarm: [public.ecr.aws]"), "config.prewarm[0]"),
        (json!({"prewarm": [ECR, ECR]}), "config.prewarm"),
        (
            json!({"limits": {"registriesPerPod": 1, "registriesPerSecret": 1},
                   "prewarm": [ECR, "111122223333.dkr.ecr.eu-west-2.amazonaws.com"]}),
            "config.prewarm",
        ),
        (
            yaml("identities: [{namespaces: [a]}]"),
            "/config/identities/0",
        ),
        (
            yaml("identities: [{ambient: true, profile: a}]"),
            "/config/identities/0",
        ),
        (
            yaml("identities: [{ambient: false}]"),
            "/config/identities/0",
        ),
        (
            role("roleArn: 'arn:aws:iam::111122223333:user/a'"),
            "/config/identities/0/assumeRole/roleArn",
        ),
        (
            role("roleArn: 'arn:aws:iam::111122223333:role/{cluster}'"),
            "config.identities[0].assumeRole.roleArn",
        ),
        (
            role("roleArn: 'arn:aws:iam::111122223333:role/{pod}'"),
            "/config/identities/0/assumeRole/roleArn",
        ),
        (
            role("duration: 13h"),
            "config.identities[0].assumeRole.duration",
        ),
        (
            role("duration: 14m59s"),
            "config.identities[0].assumeRole.duration",
        ),
        (
            role("externalId: 'a b'"),
            "/config/identities/0/assumeRole/externalId",
        ),
        (
            role("sessionName: 'a{b}'"),
            "/config/identities/0/assumeRole/sessionName",
        ),
        (
            role("tags: {team: '{cluster}'}"),
            "config.identities[0].assumeRole.tags.team",
        ),
        (
            role("tags: {'': a}"),
            "/config/identities/0/assumeRole/tags",
        ),
        (
            yaml("identities: [{namespaces: ['{pod}'], ambient: true}]"),
            "/config/identities/0/namespaces/0",
        ),
        (
            yaml("namespaceRoles: {allow: ['arn:aws:iam::*:role/{cluster}']}"),
            "/config/namespaceRoles/allow/0",
        ),
        (
            yaml("namespaceRoles: {allow: [], duration: 1m}"),
            "config.namespaceRoles.duration",
        ),
        (
            yaml("refresh: {sessionCap: 5m}"),
            "config.refresh.sessionCap",
        ),
        (
            yaml("refresh: {sessionCap: 1.5h}"),
            "/config/refresh/sessionCap",
        ),
        (
            yaml("refresh: {forgetAfter: 12h}"),
            "config.refresh.forgetAfter",
        ),
        (
            yaml("refresh: {forgetAfter: 3651d}"),
            "config.refresh.forgetAfter",
        ),
        (
            yaml("awsEndpoints: {eu-west-1: {}}"),
            "/config/awsEndpoints/eu-west-1",
        ),
        (
            yaml("awsEndpoints: {eu: {ecr: 'https://a'}}"),
            "/config/awsEndpoints",
        ),
        (
            yaml("awsEndpoints: {eu-west-1: {ecr: 'http://a'}}"),
            "/config/awsEndpoints/eu-west-1/ecr",
        ),
        (
            yaml("awsEndpoints: {eu-west-1: {sts: 'https://a/b'}}"),
            "/config/awsEndpoints/eu-west-1/sts",
        ),
        (
            yaml("awsEndpoints: {eu-west-1: {sts: 'https://192.0.2'}}"),
            "/config/awsEndpoints/eu-west-1/sts",
        ),
        (yaml("log: {filter: 'info,a=loud'}"), "/config/log/filter"),
        (yaml("log: {filter: ' '}"), "/config/log/filter"),
    ]
}

/// Values that fields may have: at the edges of what is valid, on both sides.
#[allow(clippy::too_many_lines, reason = "a table")]
fn pool() -> Vec<(&'static str, Vec<Value>)> {
    let texts = |texts: &[&str]| -> Vec<Value> { texts.iter().map(|text| json!(text)).collect() };
    let durations = [
        "15m", "12h", "43201s", "899s", "0h15m", "90", "1h1h", "PT1H", "000900s",
    ];
    let cluster = [
        "{cluster}",
        "x-{cluster}",
        "{namespace}-{cluster}",
        "{cluster",
    ];
    let role = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
    vec![
        ("/clusterName", texts(&["prod", "a b", "", "x"])),
        (
            "/limits/registriesPerPod",
            vec![
                json!(1),
                json!(0),
                json!(40),
                json!(128),
                json!("8"),
                Value::Null,
            ],
        ),
        (
            "/limits/registriesPerSecret",
            vec![json!(16), json!(15), json!(128), json!(129), Value::Null],
        ),
        ("/refresh/sessionCap", texts(&durations)),
        (
            "/refresh/forgetAfter",
            texts(&[
                "1d",
                "24h",
                "23h59m59s",
                "3650d",
                "87601h",
                "never",
                "ever",
                "1w",
            ]),
        ),
        (
            "/refresh/writesPerSecond",
            vec![json!(1000), json!(1001), json!(-1), Value::Null],
        ),
        (
            "/refresh/noticeMissed",
            vec![json!(true), json!(false), json!("yes"), Value::Null],
        ),
        ("/identities/0/assumeRole/duration", texts(&durations)),
        ("/identities/0/assumeRole/externalId", texts(&cluster)),
        ("/identities/0/assumeRole/sessionName", texts(&cluster)),
        (
            "/identities/0/assumeRole/roleArn",
            vec![
                json!(role("a")),
                json!(role("a/{cluster}")),
                json!(role("{namespace}")),
                json!(role("")),
                json!(role("a//b")),
                json!("arn:aws:iam::{cluster}:role/a"),
            ],
        ),
        (
            "/identities/0/ambient",
            vec![json!(true), json!(false), Value::Null],
        ),
        (
            "/identities/0/profile",
            vec![json!("a"), json!("a b"), Value::Null],
        ),
        ("/identities/0/assumeRole", vec![Value::Null]),
        (
            "/aliases/0/host",
            texts(&["a.b", "a:5000", "a", "A.b", ECR, "docker.io"]),
        ),
        (
            "/prewarm/0",
            texts(&[
                "a.b",
                "c.d",
                "public.ecr.aws:443",
                ECR,
                "111122223333.dkr.ecr.cn-north-1.amazonaws.com",
            ]),
        ),
        ("/publicEcr", vec![json!(true), json!(false), json!("yes")]),
        (
            "/awsEndpoints/eu-west-1/ecr",
            texts(&[
                "https://a:65536",
                "https://[::1]",
                "http://[::1]:1",
                "https://a_b",
                "",
            ]),
        ),
        ("/log/filter", texts(&["debug", "a=b", "a=1,b", ","])),
    ]
}

/// Returns a valid configuration that has every field of the pool.
fn base() -> Value {
    json!({
        "clusterName": "prod",
        "limits": {"registriesPerPod": 8, "registriesPerSecret": 32},
        "refresh": {"sessionCap": "6h", "forgetAfter": "14d", "writesPerSecond": 50, "noticeMissed": true},
        "identities": [{"assumeRole": {"roleArn": ROLE, "duration": "1h", "externalId": "ab", "sessionName": "a"},
            "ambient": false, "profile": null}],
        "aliases": [{"host": "a.b", "registry": ECR}],
        "prewarm": [ECR],
        "publicEcr": false,
        "awsEndpoints": {"eu-west-1": {"ecr": "https://a"}},
        "log": {"filter": "info"},
    })
}

/// Returns configurations in which two fields have a value of the pool.
fn generated() -> Vec<Value> {
    let mut found = Vec::new();
    let pool = pool();
    // A linear congruential generator: the same ones in each run.
    let mut state = 23_u64;
    let mut below = |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    while found.len() < 72 {
        let mut config = base();
        for _ in 0..2 {
            let (field, values) = &pool[below(pool.len())];
            let value = values[below(values.len())].clone();
            // A role that was taken away has no field.
            if let Some(place) = config.pointer_mut(field) {
                *place = value;
            }
        }
        if !found.contains(&config) {
            found.push(config);
        }
    }
    found
}

/// Returns what `config check` says of each configuration: nothing if it is valid.
fn said_by_the_process(files: &[Value]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-injector"));
    command.args(["config", "check"]);
    for (at, file) in files.iter().enumerate() {
        let path = folder.path().join(format!("{at}.yaml"));
        std::fs::write(&path, file.to_string()).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    let (valid, said) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    let of = |at: usize| {
        let path = folder.path().join(format!("{at}.yaml"));
        let path = path.display().to_string();
        let of_file = said
            .lines()
            .filter(|line| line.starts_with(&path) && !line.contains(": warning: "));
        let errors: Vec<&str> = of_file.collect();
        assert_eq!(
            errors.is_empty(),
            valid.contains(&format!("{path}: valid\n")),
            "{}: {said}",
            files[at]
        );
        errors.join("\n")
    };
    (0..files.len()).map(of).collect()
}

/// Returns what Helm says of each configuration as the chart's values, or the rendered `ConfigMap`.
fn said_by_the_chart(configs: &[Value]) -> Vec<Result<Value, String>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(config) = configs.get(at) else {
                return found;
            };
            let values = json!({"config": config}).to_string();
            let rendered = try_template(RELEASE, RELEASE, &values).map(|text| {
                let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
                find(&documents, "ConfigMap", RELEASE).clone()
            });
            found.push((at, rendered));
        }
    };
    let mut all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, said)| said).collect()
}

#[test]
fn chart_refuses_what_the_process_refuses() {
    let wrong = wrong();
    let known = wrong.len();
    let paths: Vec<&str> = wrong.iter().map(|(_, path)| *path).collect();
    let mut configs: Vec<Value> = wrong.into_iter().map(|(config, _)| config).collect();
    configs.push(base());
    configs.extend(generated());
    let files: Vec<Value> = configs
        .iter()
        .map(|config| {
            let mut file = json!({"apiVersion": "ecr-injector.dev/v1alpha1", "kind": "Config"});
            file.as_object_mut()
                .unwrap()
                .extend(config.as_object().unwrap().clone());
            file
        })
        .collect();
    let process = said_by_the_process(&files);
    let chart = said_by_the_chart(&configs);
    let (mut accepted, mut maps) = (0, Vec::new());
    for (at, (chart, process)) in chart.iter().zip(&process).enumerate() {
        let config = &configs[at];
        assert_eq!(
            chart.is_err(),
            !process.is_empty(),
            "{config}\nchart: {chart:?}\nprocess: {process}"
        );
        match chart {
            Ok(map) => {
                accepted += 1;
                maps.push(map.clone());
            }
            Err(said) if at < known => assert!(said.contains(paths[at]), "{config}\n{said}"),
            Err(said) => assert!(said.contains("config"), "{config}\n{said}"),
        }
    }
    let refused = chart.len() - accepted;
    assert!(
        known >= 24 && accepted >= 12 && refused >= known + 28,
        "{accepted} accepted, {refused} refused"
    );
    for said in said_by_the_process(&maps) {
        assert_eq!(said, "");
    }
}
