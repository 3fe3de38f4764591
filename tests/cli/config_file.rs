//! The configuration's file: what is said of it while it is followed, its schema, and the command that checks it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecr_injector::cli::metrics::Metrics;
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::config::schema;
use ecr_injector::config::watcher::ConfigWatcher;
use ecr_injector::process::clock::SystemClock;
use ecr_injector::process::file_watcher::PERIOD;
use jsonschema::Validator;
use serde_json::Value;
use tokio::time::sleep;

use crate::support::config_file;

/// Where a test's log lines go.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets the follower look three times.
async fn three_periods() {
    sleep(3 * PERIOD + Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn log_has_each_complaint_once_with_its_path_and_field() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let _guard = crate::support::log::scoped(subscriber.finish());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, config_file("")).unwrap();
    let (config, watched) = ConfigWatcher::load(&path).unwrap();
    let live = Live::new(config, None);
    tokio::spawn(watched.follow(
        live,
        Arc::new(SystemClock),
        Metrics::default().config,
        PERIOD,
    ));
    for text in ["allow: {accounts: [\"12\"]}", "secretName: other"] {
        std::fs::write(&path, config_file(text)).unwrap();
        three_periods().await;
    }
    std::fs::remove_file(&path).unwrap();
    three_periods().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let path = path.display();
    for line in [
        &format!("{path}: allow.accounts[0]: expected 12 digits in quotes, got \"12\""),
        "reloaded the configuration",
        "fields=secretName",
        "kubectl rollout restart",
        &format!("reading {path}: check the path and its permissions: No such file"),
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line} in:\n{text}");
    }
}

fn of_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn validator() -> Validator {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// `make schema` regenerates the schema.
#[test]
fn schema_in_docs_is_the_one_that_the_code_makes() {
    let path = of_repository("docs/reference/config.schema.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, schema::text()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, schema::text(), "run: make schema");
}

/// Every field, by its path, with its schema.
fn fields(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let branches = schema["anyOf"].as_array().into_iter().flatten();
    for part in branches.chain([schema, &schema["items"]]) {
        let properties = part["properties"].as_object().into_iter().flatten();
        for (name, field) in properties {
            let path = format!("{path}.{name}");
            found.push((path.clone(), field.clone()));
            fields(field, &path, found);
        }
    }
}

/// Asserts that each map of a schema takes the fields that it names alone. Conditions are about
/// fields that are named beside them.
fn assert_closed(schema: &Value) {
    match schema {
        Value::Object(fields) => {
            let is_map =
                fields.contains_key("properties") || fields.contains_key("patternProperties");
            assert!(
                !is_map || fields["additionalProperties"] == false,
                "{schema}"
            );
            let is_condition = |name: &str| matches!(name, "oneOf" | "not");
            let inner = fields.iter().filter(|(name, _)| !is_condition(name));
            inner.for_each(|(_, schema)| assert_closed(schema));
        }
        Value::Array(items) => items.iter().for_each(assert_closed),
        _ => {}
    }
}

#[test]
fn every_field_says_what_it_means_and_no_map_takes_unknown_ones() {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    let mut found = Vec::new();
    fields(&schema, "", &mut found);
    assert!(found.len() > 45, "{}", found.len());
    for (path, field) in &found {
        assert!(field["description"].is_string(), "{path}: {field}");
    }
    assert_closed(&schema);
}

/// The examples of the documentation and the shipped file, as it is and with all that it shows in comments.
fn examples() -> Vec<(String, String)> {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    let known = schema["properties"].as_object().unwrap();
    let is_ours = |value: &Value| {
        let fields = value.as_object().into_iter().flatten();
        let mut fields =
            fields.filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str()));
        fields.any(|(name, _)| known.contains_key(name))
    };
    let mut examples = Vec::new();
    let docs = ["tutorial", "how-to", "reference", "explanation"].map(|kind| {
        let pages = std::fs::read_dir(of_repository("docs").join(kind)).unwrap();
        pages.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    });
    let docs = docs.into_iter().flatten();
    for path in docs.chain([of_repository("README.md")]) {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        for block in blocks.filter_map(|rest| rest.split("\n```").next()) {
            let parsed: Result<Value, _> = serde_saphyr::from_str(block);
            if parsed.is_ok_and(|value| is_ours(&value)) {
                // Most pages show a part of the file.
                examples.push((path.display().to_string(), config_file(block)));
            }
        }
    }
    let shipped = std::fs::read_to_string(of_repository("deploy/configmap.yaml")).unwrap();
    let shipped: Value = serde_saphyr::from_str(&shipped).unwrap();
    let shipped = shipped["data"]["config.yaml"].as_str().unwrap();
    examples.push(("deploy/configmap.yaml".to_owned(), shipped.to_owned()));
    let lines: Vec<&str> = shipped.lines().map(uncommented).collect();
    let name = "deploy/configmap.yaml, uncommented".to_owned();
    examples.push((name, lines.join("\n")));
    examples
}

/// A line without its `#`, if what stands behind is a field or an entry and not prose.
fn uncommented(line: &str) -> &str {
    let Some(rest) = line.strip_prefix("# ") else {
        return line;
    };
    let first = rest.split_whitespace().next().unwrap_or_default();
    if first == "-" || first.ends_with(':') {
        rest
    } else {
        line
    }
}

#[test]
fn every_example_is_good_for_the_parser_and_for_the_schema() {
    let (validator, examples) = (validator(), examples());
    assert!(examples.len() >= 5, "{}", examples.len());
    for (name, text) in &examples {
        if let Err(error) = Config::parse(text, name) {
            panic!("{error}:\n{text}");
        }
        let value: Value = serde_saphyr::from_str(text).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{name}: {wrong:?}:\n{text}");
    }
    let (_, all) = examples.last().unwrap();
    let value: Value = serde_saphyr::from_str(all).unwrap();
    assert!(value.as_object().unwrap().len() > 6, "{all}");
}

#[test]
fn schema_takes_what_the_parser_takes() {
    let validator = validator();
    for text in [
        "{}",
        "secretName: null\noptIn:\naliases:\nidentities: null\nprewarm:\nrefresh: null\nonFailure:",
        "aliases: []\nidentities: []\nprewarm: []",
        "secretName: a.b-c.0",
        "optIn: {label: app, value: \"1\", excludeNamespaces: []}",
        "optIn: {label: a.b/C_d.e-f, value: A.b_c}",
        "allow: {regions: [us-gov-west-1, us-isob-east-1, eusc-de-east-1, cn-north-1, ap-southeast-10]}",
        "clusterName: A_b.c-9",
        "refresh: {forgetAfter: 30d}",
        "refresh: {forgetAfter: 720h}",
        "refresh: {forgetAfter: never}",
        "revoke: onExpiry",
        "revoke: immediately",
        "revoke: null",
        "discover: none",
        "discover: pods",
        "discover: null",
        "refresh: {sessionCap: none}",
        "refresh: {sessionCap: 6h, writesPerSecond: 1000}",
        "limits: {registriesPerPod: 1, registriesPerSecret: 128}",
        "identities: [{ambient: true, namespaces: [\"*-{namespace}\"]}]",
        "namespaceRoles: {allow: []}",
        "defaultIdentity: none",
        "log: {filter: \"info,ecr_injector=debug\"}",
    ] {
        let text = config_file(text);
        let parsed = Config::parse(&text, "config.yaml");
        parsed.unwrap_or_else(|error| panic!("{text}: {error}"));
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&value)
            .map(|e| e.to_string())
            .collect();
        assert!(wrong.is_empty(), "{text}: {wrong:?}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn schema_refuses_what_the_parser_refuses_for_its_shape() {
    let validator = validator();
    let role = "roleArn: 'arn:aws:iam::111122223333:role/a'";
    for text in [
        "secretNam: x",
        "secretName: 5",
        "secretName: Nö",
        "optIn: {lable: x}",
        "allow:",
        "allow: {}",
        "allow: {accounts: []}",
        "allow: {regions: []}",
        "allow: {accounts: null}",
        "identities: [{accounts: [], ambient: true}]",
        "identities: [{regions: null, ambient: true}]",
        "identities: [{namespaces: [], ambient: true}]",
        "defaultIdentity: null",
        "optIn: enabled",
        "optIn: {value: true}",
        "optIn: {excludeNamespaces: kube-system}",
        "optIn: {excludeNamespaces: [A]}",
        "onFailure: explode",
        "onFailure: true",
        "allow: {account: []}",
        "allow: {accounts: [123456789012]}",
        "allow: {accounts: [\"12\"]}",
        "allow: {regions: [moon]}",
        "aliases: [{host: a.example.com}]",
        "aliases: [{host: a.example.com, registry: b.example.com, port: 5}]",
        "aliases: {host: a.example.com}",
        "limits: {registriesPerPod: 0}",
        "limits: {registriesPerPod: \"1\"}",
        "limits: {registriesPerSecret: 129}",
        "limits: {registriesPerNode: 1}",
        "publicEcr: 1",
        "clusterName: 'a b'",
        "identities: {}",
        "identities: [{namespace: [a], ambient: true}]",
        "identities: [{namespaces: ['a?'], ambient: true}]",
        "identities: [{assumeRole: {}}]",
        "identities: [{assumeRole: {roleArn: role/a}}]",
        &format!("identities: [{{assumeRole: {{{role}, duration: soon}}}}]"),
        &format!("identities: [{{assumeRole: {{{role}, pullOnly: \"yes\"}}}}]"),
        &format!("identities: [{{assumeRole: {{{role}, tags: [a]}}}}]"),
        &format!("identities: [{{assumeRole: {{{role}, tags: {{a: 1}}}}}}]"),
        "namespaceRoles: {}",
        "namespaceRoles: {allow: null}",
        "namespaceRoles: {allow: ['*']}",
        "defaultIdentity: role",
        "prewarm: [A]",
        "prewarm: a.example.com",
        "refresh: {writesPerSecond: 0}",
        "refresh: {writesPerSecond: 1.5}",
        "refresh: {writesPerMinute: 1}",
        "refresh: {sessionCap: 5}",
        "refresh: {sessionCap: soon}",
        "refresh: {sessionCap: PT6H}",
        "refresh: {sessionCap: 6 hours}",
        "refresh: {forgetAfter: 30}",
        "refresh: {forgetAfter: soon}",
        "refresh: {forgetAfter: [1d]}",
        "revoke: onexpiry",
        "revoke: true",
        "discover: nodes",
        "discover: [pods]",
        "optOutGrace: 24h",
        "optOutRemove: later",
        "log: info",
        "log: {filter: \"\"}",
        "log: {level: info}",
    ] {
        let text = config_file(text);
        assert!(Config::parse(&text, "config.yaml").is_err(), "{text}");
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        assert!(!validator.is_valid(&value), "the schema takes {text}");
    }
    for text in [
        "[]",
        "words",
        "{}",
        "kind: Config",
        "apiVersion: ecr-injector.dev/v1alpha1",
        "apiVersion: v1\nkind: Config",
        "apiVersion: ecr-injector.dev/v1alpha1\nkind: Pod",
        "apiVersion: ecr-injector.dev/v1alpha1\nkind:",
    ] {
        assert!(Config::parse(text, "config.yaml").is_err(), "{text}");
        let value: Value = serde_saphyr::from_str(text).unwrap();
        assert!(!validator.is_valid(&value), "the schema takes {text}");
    }
}

#[test]
fn emptied_file_fails_by_its_name_in_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("emptied.yaml");
    let path = path.to_str().unwrap();
    let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let image = format!("{host}/web");
    for text in ["", "# nothing\n", "{}", "---\n", "onFailure: deny\n"] {
        std::fs::write(path, text).unwrap();
        for arguments in [
            &["config", "check", path][..],
            &["preview", "--config", path],
            &[
                "identity",
                "--config",
                path,
                "--registry",
                host,
                "--namespace",
                "a",
            ],
            &[
                "probe",
                "--config",
                path,
                "--image",
                &image,
                "--namespace",
                "a",
            ],
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--config",
                path,
            ],
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = self::text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            let part = format!("{path}: apiVersion: is missing");
            assert!(said.contains(&part), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn file_that_hangs_at_the_start_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        path.to_str().unwrap().to_owned()
    };
    let (config, bundle, kubeconfig) = (pipe("config.yaml"), pipe("ca.pem"), pipe("kubeconfig"));
    let children = [
        ("--config", &config),
        ("--aws-ca-bundle", &bundle),
        ("--kubeconfig", &kubeconfig),
    ]
    .map(|(flag, path)| {
        let child = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--admin-listen=127.0.0.1:0",
                flag,
                path,
            ])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        (path, child.unwrap())
    });
    for (path, child) in children {
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let parts = [path, "does its volume hang?"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}

#[test]
fn text_of_a_file_moves_no_cursor_and_forges_no_line() {
    let input = "\"a\\x1b[2Jb\\nconfig.yaml: valid\": 1\nclusterName: \"\\x9b\\u202e\"\n";
    let output = config(&["check", "-"], &config_file(input));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains(['\x1b', '\u{9b}', '\u{202e}']), "{said:?}");
    assert!(
        said.contains("a\\u{1b}[2Jb\\nconfig.yaml: valid: unknown field"),
        "{said}"
    );
    assert!(!said.contains("\nconfig.yaml: valid"), "{said}");
}

fn config(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .arg("config")
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever reads nothing closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn good_file_is_summed_up() {
    let input = "allow: {accounts: [\"123456789012\"]}\nonFailure: deny\nrefresh: {forgetAfter: 36h}\nrevoke: immediately\n\
         discover: pods\noptOutRemove: true\npublicEcr: true";
    let output = config(&["check", "-"], &config_file(input));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for part in [
        "standard input: valid\n",
        "ecr-pull-secret\n",
        "ecr-injector.dev/inject=enabled, except kube-node-lease, kube-system\n",
        "1 account, all regions; no aliases; ECR Public\n",
        "no rules; no patterns for annotated roles; default: ambient\n",
        "20 writes per second",
        "36h after a Pod last needed the registry\n",
        "immediately\n",
        "pods: also what pending Pods need\n",
        "true: pull secrets are deleted once all credentials have expired\n",
        "deny\n",
    ] {
        assert!(said.contains(part), "{part} not in:\n{said}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn errors_of_all_files_are_reported_and_fail() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, config_file(text)).unwrap();
        path.display().to_string()
    };
    let good = write("good.yaml", "");
    let bad = write(
        "bad.yaml",
        "secretName: A\nallow: {accounts: [\"1\", \"123456789012\", \"2\"]}\nclusterName: 'a b'\nidentities:\n  - assumeRole: {roleArn: role/x, duration: 1m}\n  - ambient: false\nlog: {filter: \"x=y=z\"}\nprewarm: [docker.io]",
    );
    let shape = write("shape.yaml", "secretNam: x\nallow: {accounts: [1]}");
    let not_yaml = write("not.yaml", "allow: [");
    let missing = folder.path().join("missing.yaml").display().to_string();
    let output = config(&["check", &good, &bad, &shape, &not_yaml, &missing], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with(&format!("{good}: valid\n")));
    let said = text(&output.stderr);
    for (path, start) in [
        (&bad, "secretName: \"A\" can't be"),
        (&bad, "allow.accounts[0]: expected 12 digits"),
        (&bad, "allow.accounts[2]: expected 12 digits"),
        (&bad, "clusterName: expected 1 to 100"),
        (&bad, "identities[0].assumeRole.roleArn: expected arn:"),
        (&bad, "identities[0].assumeRole.duration: expected 15m"),
        (&bad, "identities[1]: expected one of the two"),
        (&bad, "prewarm[0]: expected the host"),
        (&bad, "log.filter: expected a filter"),
        (&shape, "secretNam: unknown field"),
        (
            &shape,
            "allow.accounts[0]: expected 12 digits in quotes, got a number",
        ),
    ] {
        let start = format!("{path}: {start}");
        assert!(said.contains(&start), "{start} not in:\n{said}");
    }
    assert!(said.contains(&format!("{not_yaml} is not YAML")), "{said}");
    assert!(said.contains(&format!("reading {missing}")), "{said}");
    assert!(
        said.ends_with("ecr-injector: 4 of 5 files are invalid\n"),
        "{said}"
    );
    assert_eq!(said.matches(&format!("{bad}: ")).count(), 9, "{said}");
    assert_eq!(said.matches(&format!("{shape}: ")).count(), 2, "{said}");
}

#[test]
fn usage_errors_have_their_own_code_and_the_schema_is_printed() {
    assert_eq!(config(&["check"], "").status.code(), Some(2));
    assert_eq!(config(&["chek"], "").status.code(), Some(2));
    assert_eq!(config(&["check", "-", "-"], "").status.code(), Some(1));
    let output = config(&["schema"], "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), schema::text());
}

/// Runs the command on a file that is no configuration, and returns what it said.
fn rejected(arguments: &[&str], input: &str) -> String {
    let output = config(arguments, input);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn endless_file_is_read_to_a_mebibyte() {
    let said = rejected(&["check", "/dev/zero"], "");
    assert!(said.starts_with("/dev/zero has more than 1 MiB"), "{said}");
    let padded = |size: usize| {
        let mut file = config_file("");
        file += "\n";
        file += &"#".repeat(size - file.len());
        file
    };
    let said = rejected(&["check", "-"], &padded((1 << 20) + 1));
    assert!(
        said.starts_with("standard input has more than 1 MiB"),
        "{said}"
    );
    let output = config(&["check", "-"], &padded(1 << 20));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn error_quotes_little_of_a_wrong_file() {
    let secret = "aws_secret_access_key ".repeat(1000);
    // A key of more than 1024 characters is no YAML.
    let key = &secret[..1000];
    for input in [
        format!("\"{key}\": 1"),
        format!("\"{key}\": 1\n\"{key}\": 2"),
        config_file(&format!("awsEndpoints: {{\"{key}\": {{ecr: x}}}}")),
        secret.clone(),
        format!("- {secret}"),
        format!("\"{secret}\": 1"),
        config_file(&format!("secretName: {secret}")),
        config_file(&format!("onFailure: {secret}")),
        config_file(&format!(
            "aliases: [{{host: a.example, registry: \"{secret}\"}}]"
        )),
        config_file(&format!("log: {{filter: \"{secret}=x=y\"}}")),
        config_file(&format!("prewarm: [\"{secret}\"]")),
        format!("apiVersion: \"{secret}\"\nkind: \"{secret}\""),
    ] {
        let said = rejected(&["check", "-"], &input);
        assert!(said.len() < 1000, "{said}");
    }
    let many = format!("allow: {{accounts: [{}]}}", "a, ".repeat(10_000));
    let said = rejected(&["check", "-"], &config_file(&many));
    assert_eq!(said.lines().count(), 51, "{said}");
}

#[test]
fn file_of_another_kind_is_named_first() {
    for (input, expected) in [
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {}\n",
            "standard input: kind: expected Config of ecr-injector.dev/v1alpha1, got \"Deployment\"",
        ),
        (
            "[]",
            "standard input: expected a map with apiVersion and kind, got a list\n",
        ),
    ] {
        let said = rejected(&["check", "-"], input);
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn config_map_and_values_are_checked_by_their_fields() {
    let file = config_file("secretName: mine");
    let map = |text: &str| {
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"config.yaml": text}})
            .to_string()
    };
    let values = "replicaCount: 2\nimage: {tag: x}\nconfig: {secretName: mine}";
    let around = "other: {}\necr-injector: {config: {secretName: mine}}";
    for input in [&map(&file), values, around] {
        let output = config(&["check", "-"], input);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{input}: {}",
            text(&output.stderr)
        );
        let said = text(&output.stdout);
        assert!(said.starts_with("standard input: valid\n"), "{said}");
        assert!(said.contains("secretName    mine\n"), "{said}");
    }
    // The chart's defaults are those of the process.
    let output = config(&["check", "-"], "image: {tag: x}");
    assert!(text(&output.stdout).contains("secretName    ecr-pull-secret\n"));
    for (input, expected) in [
        (
            &*map(&config_file("secretName: A")),
            "standard input: data.config.yaml: secretName: \"A\" can't be",
        ),
        (&map("a: ["), "standard input: data.config.yaml is not YAML"),
        (
            &map(""),
            "standard input: data.config.yaml: apiVersion: is missing",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {a: b, c: d}",
            "standard input: data: expected the configuration as the text of config.yaml",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap",
            "standard input: data: expected the configuration",
        ),
        (
            "image: {}\nconfig: {secretName: A}",
            "standard input: config.secretName: \"A\" can't be",
        ),
        (
            "image: {}\nconfig: {secretNam: A}",
            "standard input: config.secretNam: unknown field",
        ),
        (
            "image: {}\nconfig: []",
            "standard input: config: expected a map",
        ),
        (
            "image: {}\nconfig:",
            "standard input: config: expected a map",
        ),
        (
            "ecr-injector: {config: {limits: {registriesPerSecret: 8}}}",
            "standard input: ecr-injector.config.limits: registriesPerPod can't exceed",
        ),
    ] {
        let said = rejected(&["check", "-"], input);
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn files_around_the_configuration_are_named_to_serve() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for (file, expected) in [
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {config.yaml: \"\"}",
            "kind: expected Config of ecr-injector.dev/v1alpha1, got \"ConfigMap\" of \"v1\": this is a \
             ConfigMap, and only ecr-injector config check reads it: give its data",
        ),
        (
            "image: {tag: x}\nconfig: {}",
            "config: this is a value of the Helm chart, and only ecr-injector config check reads these",
        ),
    ] {
        std::fs::write(&path, file).unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn rules_that_never_match_are_warnings_with_their_path() {
    let fields = "identities: [{ambient: true}, {namespaces: [a], ambient: true}]";
    let map =
        serde_json::json!({"kind": "ConfigMap", "data": {"config.yaml": config_file(fields)}});
    for (input, path) in [
        (config_file(fields), "identities[1]"),
        (map.to_string(), "data.config.yaml: identities[1]"),
        (format!("config: {{{fields}}}"), "config.identities[1]"),
    ] {
        let output = config(&["check", "-"], &input);
        assert_eq!(output.status.code(), Some(0));
        let said = text(&output.stderr);
        let expected =
            format!("standard input: warning: {path}: never matches: identities[0] comes first");
        assert!(
            said.starts_with(&expected) && said.lines().count() == 1,
            "{said}"
        );
    }
}
