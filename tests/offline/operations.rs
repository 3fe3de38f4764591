//! The reference pages of metrics, logs, Events, warnings and results against the code: what a person reads there during an
//! incident has to be true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::admission::missed::MissedReason;
use ecr_injector::admission::outcome::Verdict;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::pull_secret::gauges::PullSecretState;
use ecr_injector::pull_secret::provisioner::{SecretSource, TokenSource};
use ecr_injector::refresh::metrics::DiscoveryRun;
use ecr_injector::server::metrics::{Handshake, Shed};
use ecr_injector::telemetry::metrics::FamilyDescriptor;
use ecr_injector::telemetry::otel::metrics::Spans;
use ecr_injector::telemetry::phases::Phase;
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::support;
use crate::support::InProcess;
use crate::support::in_process::NAMESPACE;
use crate::support::wire::review_of;

const METRICS: &str = "docs/reference/metrics.md";
const LOGS: &str = "docs/reference/logs.md";
const EVENTS: &str = "docs/reference/events-warnings.md";
const EXIT_CODES: &str = "docs/reference/exit-codes.md";
const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the cells of a table's line, without the spaces around them.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.replace("\\|", "\u{0}")
        .split('|')
        .map(|cell| cell.trim().replace('\u{0}', "|"))
        .collect()
}

/// Returns the rows of every table of a page whose first column has this head.
fn rows(page: &str, first_column: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut is_wanted = false;
    for line in read(page).lines() {
        if !line.starts_with('|') {
            is_wanted = false;
        } else if cells(line)[0] == first_column {
            is_wanted = true;
        } else if is_wanted && !line.starts_with("| ---") {
            rows.push(cells(line));
        }
    }
    assert!(!rows.is_empty(), "{page} has no table of {first_column}s");
    rows
}

/// Returns the words in the first column of a page's tables with this head.
fn first_words(page: &str, first_column: &str) -> BTreeSet<String> {
    let rows = rows(page, first_column);
    let words = rows.iter().map(|row| quoted(&row[0])[0].clone());
    words.collect()
}

/// Returns the words of the first column of the first table below a heading.
fn words_below(page: &str, anchor: &str) -> BTreeSet<String> {
    let text = read(page);
    let slug = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.replace(' ', "-").replace(['`', '\''], "")
    };
    let below = text
        .lines()
        .skip_while(|line| !line.starts_with('#') || slug(line) != anchor)
        .skip(1)
        .take_while(|line| !line.starts_with('#'));
    let table = below
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let words: BTreeSet<String> = table
        .skip(2)
        .map(|line| quoted(&cells(line)[0])[0].clone())
        .collect();
    assert!(!words.is_empty(), "{page} has no table below #{anchor}");
    words
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Returns the labels that a row names, each with its values: `` `a`: `x`, `y`; `b`: `z`, [more](page.md#heading) ``, where
/// a link stands for the first table below that heading.
fn labels(cell: &str) -> BTreeMap<String, BTreeSet<String>> {
    let of = |part: &str| {
        let mut words = quoted(part).into_iter();
        let label = words.next()?;
        let mut values: BTreeSet<String> = words.collect();
        for link in part.split("](").skip(1) {
            let link = &link[..link.find(')')?];
            let (page, anchor) = link.split_once('#')?;
            let page = match page {
                "" => METRICS.to_owned(),
                page => format!("docs/reference/{page}"),
            };
            values.extend(words_below(&page, anchor));
        }
        Some((label, values))
    };
    cell.split(';').filter_map(of).collect()
}

#[test]
fn every_metric_is_in_the_tables_and_the_tables_have_no_other() {
    let metrics = Metrics::default().registry;
    let documented: BTreeMap<String, String> = rows(METRICS, "metric")
        .iter()
        .map(|row| {
            assert_eq!(row.len(), 5, "{METRICS}: not five cells: {row:?}");
            (quoted(&row[0])[0].clone(), row[1].clone())
        })
        .collect();
    let mut faults = Vec::new();
    for family in metrics.families() {
        match documented.get(&family.name) {
            None => faults.push(format!(
                "{METRICS} lacks a line; add:\n| `{}` | {} | `LABEL`: `VALUE`, … | WHAT IT MEANS | WHAT TO DO |",
                family.name, family.kind
            )),
            Some(kind) if kind != family.kind => faults.push(format!(
                "{METRICS}: `{}` is a {}, not a {kind}",
                family.name, family.kind
            )),
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = metrics.families().iter().map(|it| &*it.name).collect();
    for name in documented.keys().filter(|name| !names.contains(&***name)) {
        faults.push(format!(
            "{METRICS}: nothing registers `{name}`; take its line out"
        ));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// An alert on the first event of a counter needs a series that is 0 before.
#[test]
fn marked_counters_and_no_others_are_there_from_the_start() {
    let text = Metrics::default().registry.to_text();
    for row in rows(METRICS, "metric") {
        let name = quoted(&row[0])[0].clone();
        if row[1] != "counter" {
            continue;
        }
        let is_marked = row[0].ends_with('*');
        let is_there = text.contains(&format!("\n{name}"));
        assert_eq!(
            is_there, is_marked,
            "{METRICS}: `{name}`: is it marked with *?"
        );
        for (label, values) in labels(&row[2]).into_iter().filter(|_| is_marked) {
            for value in values {
                let value = format!("{label}=\"{value}\"");
                let mut lines = text.lines().filter(|line| line.starts_with(&name));
                assert!(lines.any(|line| line.contains(&value)), "{name}: {value}");
            }
        }
    }
}

#[test]
fn scrape_shows_what_the_registry_has() {
    let metrics = Metrics::default().registry;
    let text = metrics.to_text();
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for line in shown {
        let (name, kind) = line.split_once(' ').unwrap();
        let is_of = |family: &&FamilyDescriptor| {
            family.name.strip_prefix(name).is_some_and(|rest| {
                matches!(
                    (rest, kind),
                    ("", _) | ("_total", "counter") | ("_info", "info")
                )
            })
        };
        assert!(metrics.families().iter().any(|it| is_of(&it)), "{line}");
    }
    assert!(text.contains("process_cpu_seconds_total "), "{text}");
}

/// The words of an enum: the texts that its `as_str` gives.
fn words(path: &str, name: &str) -> BTreeSet<String> {
    let text = read(path);
    let start = text
        .find(&format!("\nimpl CallOutcome for {name} {{"))
        .or_else(|| text.find(&format!("\nimpl {name} {{")))
        .unwrap_or_else(|| panic!("{path}: no impl {name}"));
    let body = &text[start..start + 1 + text[start + 1..].find("\n}").unwrap()];
    let body = &body[body.find("fn as_str").unwrap()..];
    let body = &body[..body.find("\n    }").unwrap()];
    let literals = body.split("=> \"").skip(1);
    let words: BTreeSet<String> = literals
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert!(!words.is_empty(), "{path}: {name} has no words");
    words
}

/// All files below src/.
fn sources() -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}

/// The texts that are given to a function anywhere in the sources, up to the end of the call.
fn given_to(function: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for text in sources() {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for call in code.split(&format!("{function}(")).skip(1) {
            let arguments = &call[..call.find([';', '\n']).unwrap_or(call.len())];
            words.extend(arguments.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    assert!(!words.is_empty(), "nobody calls {function}");
    words
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of all labels")]
fn every_value_that_a_label_can_have_is_in_the_tables() {
    let mint = words("src/token/error.rs", "MintError");
    let ensure = words("src/pull_secret/error.rs", "PullSecretError");
    let refusal = words("src/identity/mod.rs", "Refusal");
    let union = |sets: &[&BTreeSet<String>]| -> BTreeSet<String> {
        sets.iter().flat_map(|set| (*set).clone()).collect()
    };
    let verdicts = set(Verdict::ALL.map(Verdict::as_str));
    let refused = {
        let text = read("src/server/mod.rs");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let parts = code.split("(StatusCode::").skip(1);
        let rejected = set(parts.filter_map(|part| part[..part.find(')')?].split('"').nth(1)));
        union(&[&rejected, &given_to("refused_request")])
    };
    let prefix = "ecr_injector_";
    let expected = [
        ("admission_duration_seconds", "decision", verdicts),
        (
            "admission_phase_duration_seconds",
            "phase",
            set(Phase::ALL.map(Phase::as_str)),
        ),
        ("shed_total", "kind", set(Shed::ALL.map(Shed::as_str))),
        (
            "tls_handshakes_total",
            "outcome",
            set(Handshake::ALL.map(Handshake::as_str)),
        ),
        (
            "trace_spans_total",
            "outcome",
            set(Spans::ALL.map(Spans::as_str)),
        ),
        (
            "discovery_runs_total",
            "outcome",
            set(DiscoveryRun::ALL.map(DiscoveryRun::as_str)),
        ),
        (
            "missed_pods_total",
            "reason",
            set(MissedReason::ALL.map(MissedReason::as_str)),
        ),
        ("rejected_requests_total", "reason", refused),
        (
            "connection_failures_total",
            "reason",
            given_to("connection_failure"),
        ),
        ("rejected_identities_total", "reason", refusal.clone()),
        ("aws_calls_total", "outcome", union(&[&set(["ok"]), &mint])),
        (
            "credentials_source",
            "source",
            words("src/aws/credentials/source.rs", "Source"),
        ),
        (
            "pull_secrets_by_state",
            "state",
            set(PullSecretState::ALL.map(PullSecretState::as_str)),
        ),
        (
            "lease_transitions_total",
            "to",
            given_to("lease_transition"),
        ),
        (
            "certificate_reloads_total",
            "outcome",
            given_to("certificate_reload"),
        ),
        (
            "certificate_expiration_timestamp_seconds",
            "kind",
            given_to("certificate_expiry"),
        ),
        (
            "repairs_total",
            "cause",
            words("src/pull_secret/mod.rs", "Damage"),
        ),
        (
            "refresh_failures_total",
            "reason",
            union(&[&set(["contested"]), &mint, &ensure]),
        ),
    ];
    let documented: BTreeMap<String, _> = rows(METRICS, "metric")
        .iter()
        .map(|row| (quoted(&row[0])[0].clone(), labels(&row[2])))
        .collect();
    let mut faults = Vec::new();
    for (family, label, values) in expected {
        let row = &documented[&format!("{prefix}{family}")];
        let Some(listed) = row.get(label) else {
            faults.push(format!("`{prefix}{family}` lacks the label `{label}`"));
            continue;
        };
        for value in values.difference(listed) {
            faults.push(format!(
                "in the line of `{prefix}{family}`, add `{value}` to `{label}`"
            ));
        }
        for value in listed.difference(&values) {
            faults.push(format!(
                "in the line of `{prefix}{family}`, take `{value}` out of `{label}`: nothing gives it"
            ));
        }
    }
    assert!(faults.is_empty(), "{METRICS}:\n{}", faults.join("\n"));
}

#[test]
fn reasons_of_admissions_are_those_of_the_pages() {
    let text = read(METRICS);
    let section = &text[text.find("\n## Reasons of admissions\n").unwrap()..];
    let section = &section[..section.find("\n### ").unwrap()];
    for reason in ["cached", "provisioned", "dry_run"] {
        assert!(section.contains(&format!("`{reason}`")), "{reason}");
    }
    for (page, anchor, expected) in [
        (
            EVENTS,
            "skip-reasons",
            words("src/admission/decide.rs", "SkipReason"),
        ),
        (
            METRICS,
            "identity-errors",
            words("src/identity/mod.rs", "Refusal"),
        ),
        (
            METRICS,
            "aws-errors",
            words("src/token/error.rs", "MintError"),
        ),
        (
            METRICS,
            "pull-secret-errors",
            words("src/pull_secret/error.rs", "PullSecretError"),
        ),
    ] {
        assert_eq!(words_below(page, anchor), expected, "{page}#{anchor}");
        let link = if page == METRICS {
            format!("(#{anchor})")
        } else {
            format!("(events-warnings.md#{anchor})")
        };
        assert!(section.contains(&link), "{METRICS}: no {link}");
    }
}

#[test]
fn calls_to_the_api_server_are_those_of_the_page() {
    let verbs = given_to("count_call")
        .into_iter()
        .chain(given_to("ApiCall::new"))
        .chain(given_to("self.call"));
    let is_word = |text: &String| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let called: BTreeSet<String> = verbs.filter(is_word).collect();
    let mut listed = words_below(METRICS, "calls-to-the-api-server");
    listed.extend(words_below(METRICS, "resources"));
    assert_eq!(listed, called);
    let outcomes = [
        words("src/cluster/write.rs", "WriteError"),
        words("src/cluster/lease.rs", "LeaseError"),
        words("src/pull_secret/writer/api.rs", "CallError"),
        // Of calls whose errors have no words of their own.
        set(["ok", "gone", "rejected", "error", "timeout", "guard"]),
    ];
    let outcomes: BTreeSet<String> = outcomes.into_iter().flatten().collect();
    assert_eq!(words_below(METRICS, "outcomes-of-calls"), outcomes);
}

#[test]
fn event_reasons_are_those_of_the_table() {
    let text = read("src/pull_secret/events.rs");
    let text = &text[text.find("fn to_record(").unwrap()..];
    let body = &text[..text.find("\n    }").unwrap()];
    // A reason is a word that another follows, the action.
    let is_word = |text: &str| text.starts_with(char::is_uppercase) && !text.contains(' ');
    let parts: Vec<&str> = body.split('"').collect();
    let pairs = parts
        .windows(4)
        .filter(|it| is_word(it[1]) && it[2].trim() == "," && is_word(it[3]));
    let reasons: BTreeMap<String, &str> = pairs
        .map(|it| {
            let before = it[0].trim_end();
            let is_normal = before.ends_with("normal(");
            (
                it[1].to_owned(),
                if is_normal { "Normal" } else { "Warning" },
            )
        })
        .collect();
    let table = rows(EVENTS, "Event");
    let listed: BTreeMap<String, &str> = table
        .iter()
        .map(|row| (quoted(&row[0])[0].clone(), &*row[1]))
        .collect();
    assert_eq!(listed, reasons, "{EVENTS}");
}

/// Returns a string literal's text: without the line breaks of the source.
fn text_of(literal: &str) -> String {
    let mut lines = literal.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |text, line| text + line.trim_start())
}

/// Returns the string literals of a piece of code, without one that the end cuts off.
pub(crate) fn literals(code: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find('"') {
        rest = &rest[start + 1..];
        let mut is_escaped = false;
        let end = rest.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        let Some(end) = end else { break };
        literals.push(text_of(&rest[..end]));
        rest = &rest[end + 1..];
    }
    literals
}

#[test]
fn warnings_and_denials_are_those_of_the_tables() {
    let (decide, outcome) = (
        read("src/admission/decide.rs"),
        read("src/admission/outcome.rs"),
    );
    let mut written = BTreeSet::new();
    for text in [&decide, &outcome] {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for call in code.split("warning(").skip(1) {
            let statement = &call[..call
                .find([';', '}'])
                .map_or(call.len(), |at| at.max(400).min(call.len()))];
            // A call's own text, if it has one: in the call, or in the `format!` that it is given.
            let argument = statement
                .trim_start()
                .trim_start_matches("&format!(")
                .trim_start();
            if argument.starts_with('"') {
                written.insert(literals(argument)[0].clone());
            }
        }
    }
    assert_eq!(first_words(EVENTS, "warning"), written, "{EVENTS}");

    let denials = literals(&outcome);
    let denials = denials
        .into_iter()
        .filter(|text| text.starts_with("ecr-injector: "));
    assert_eq!(
        first_words(EVENTS, "message"),
        denials.collect(),
        "{EVENTS}"
    );

    let identity =
        read("src/identity/mod.rs").replace("{ROLE_ANNOTATION}", "ecr-injector.dev/role-arn");
    for row in rows(EVENTS, "identity error") {
        let text = &quoted(&row[1])[0];
        assert!(
            identity.contains(&format!("#[error(\"{text}\")]")),
            "{text}"
        );
    }
    assert_eq!(
        first_words(EVENTS, "identity error"),
        words("src/identity/mod.rs", "Refusal")
    );
}

#[test]
fn labels_and_annotations_are_those_of_the_table() {
    let code = sources().concat();
    let keys = code.split("\"ecr-injector.dev/").skip(1);
    let mut keys: BTreeSet<String> = keys
        .map(|rest| format!("ecr-injector.dev/{}", rest.split('"').next().unwrap()))
        .filter(|key| {
            key.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-./".contains(&b))
        })
        .collect();
    // The version of the configuration file is none.
    assert!(keys.remove("ecr-injector.dev/v1alpha1"));
    keys.insert("app.kubernetes.io/managed-by".to_owned());
    assert_eq!(first_words(EVENTS, "key"), keys, "{EVENTS}");
}

#[test]
fn results_of_commands_are_those_of_the_tables() {
    for (path, column) in [
        ("src/cli/refresh.rs", "refresh result"),
        ("src/cli/cleanup.rs", "cleanup result"),
    ] {
        let text = read(path);
        let code = text.split("#[cfg(test)]").next().unwrap();
        // A noun that is counted is no result.
        let code = code.replace(", \"registry\")", ")");
        let is_result = |text: &String| {
            text.starts_with(char::is_lowercase)
                && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        };
        let listed = first_words(EXIT_CODES, column);
        let mut written = BTreeSet::from(["interrupted".to_owned()]);
        for call in code
            .split("Row::")
            .skip(1)
            .chain(code.split("let result =").skip(1))
        {
            let statement = &call[..call.find(';').unwrap_or(call.len())];
            let head = statement.split("..Row").next().unwrap();
            written.extend(literals(head).into_iter().take(2).filter(is_result));
        }
        for part in code.split("(result, message) = match").skip(1) {
            let part = &part[..part.find("};\n        let row").unwrap()];
            written.extend(literals(part).into_iter().filter(is_result));
        }
        assert_eq!(listed, written, "{EXIT_CODES}: {column}");
    }
}

#[test]
fn exit_code_of_a_failed_task_is_on_the_page() {
    let code = read("src/cli/serve.rs");
    let code = code.split("const TASK_FAILED: u8 = ").nth(1).unwrap();
    let code = code.split(';').next().unwrap();
    let row = rows(EXIT_CODES, "code")
        .into_iter()
        .find(|row| row[0] == code);
    let meaning = row.unwrap_or_else(|| panic!("{EXIT_CODES} lacks {code}"))[1].clone();
    assert!(meaning.contains("background task"), "{meaning}");
}

/// Returns the arguments of a call whose opening bracket has just ended.
fn arguments(code: &str) -> &str {
    let (mut depth, mut is_text, mut is_escaped) = (1, false, false);
    let end = code.find(|c| {
        match c {
            '"' if !is_escaped => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth -= 1,
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
        depth == 0
    });
    &code[..end.unwrap()]
}

/// Returns each message at info, warn and error with its level, as the code has it.
fn messages() -> BTreeMap<String, &'static str> {
    let mut messages = BTreeMap::new();
    for text in sources() {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for level in ["info", "warn", "error"] {
            for call in code.split(&format!("tracing::{level}!(")).skip(1) {
                let call = arguments(call);
                let message = literals(call).pop().unwrap();
                messages.insert(message, level);
            }
        }
    }
    messages
}

#[test]
fn every_message_is_on_the_page_and_the_page_has_no_other() {
    let table = rows(LOGS, "message");
    let listed: BTreeMap<String, &str> = table
        .iter()
        .map(|row| (quoted(&row[0])[0].clone(), &*row[1]))
        .collect();
    let page = read(LOGS);
    let mut faults = Vec::new();
    let written = messages();
    for (message, level) in &written {
        match listed.get(message) {
            Some(listed) if listed == level => {}
            Some(listed) => faults.push(format!("`{message}` is at {level}, not at {listed}")),
            // The long ones are listed by their beginning.
            None => {
                let beginnings = page.lines().filter_map(|line| line.strip_prefix("- `"));
                let mut beginnings = beginnings.filter_map(|line| line.strip_suffix('`'));
                if !beginnings.any(|start| message.starts_with(start)) {
                    faults.push(format!("add:\n| `{message}` | {level} | WHAT TO DO |"));
                }
            }
        }
    }
    for message in listed.keys().filter(|it| !written.contains_key(*it)) {
        faults.push(format!("nothing writes `{message}`"));
    }
    let beginnings = page.lines().filter_map(|line| line.strip_prefix("- `"));
    for start in beginnings.filter_map(|line| line.strip_suffix('`')) {
        if !written.keys().any(|message| message.starts_with(start)) {
            faults.push(format!("nothing writes `{start}…`"));
        }
    }
    assert!(faults.is_empty(), "{LOGS}:\n{}", faults.join("\n"));
}

/// Where all that this process logs goes, in both formats.
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

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The log lines of one test, as text and as JSON.
struct Logs {
    text: Log,
    json: Log,
    _guard: DefaultGuard,
}

impl Logs {
    fn start() -> Self {
        let (text, json) = (Log::default(), Log::default());
        let (to_text, to_json) = (text.clone(), json.clone());
        let text_layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || to_text.clone());
        let json_layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(move || to_json.clone());
        let subscriber = tracing_subscriber::registry()
            .with(text_layer)
            .with(json_layer);
        Self {
            text,
            json,
            _guard: support::log::scoped(subscriber),
        }
    }

    /// Returns the one JSON line of an admission.
    fn line_of(&self, uid: &str) -> Value {
        let written = self.json.text();
        let mut lines = written
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["uid"] == uid);
        let line = lines.next().unwrap_or_else(|| panic!("no line of {uid}"));
        assert_eq!(lines.next(), None, "one line an admission");
        line
    }
}

async fn post(webhook: &InProcess, body: String) -> Value {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/mutate?timeout=1s")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .unwrap();
    let response = webhook.router.clone().oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

fn pod() -> Value {
    json!({
        "metadata": {"generateName": "web-7f-", "ownerReferences": [
            {"kind": "ConfigMap", "name": "other"},
            {"kind": "ReplicaSet", "name": "web-7f", "controller": true},
        ]},
        "spec": {"containers": [{"name": "app", "image": format!("{HOST}/app:v1"),
            "env": [{"name": "PASSWORD", "value": "hunter2"}]}]},
    })
}

#[tokio::test(start_paused = true)]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn admission_line_has_the_fields_of_the_table() {
    let logs = Logs::start();
    let webhook = InProcess::new();
    post(&webhook, review_of("f-cold", &pod())).await;
    post(&webhook, review_of("f-warm", &pod())).await;
    let dry = review_of("f-dry", &pod());
    post(
        &webhook,
        dry.replacen("\"uid\"", "\"dryRun\":true,\"uid\"", 1),
    )
    .await;
    let other = review_of("f-other", &pod());
    post(&webhook, other.replace(NAMESPACE, "elsewhere")).await;
    let failing = InProcess::new();
    failing.mint.set_hangs(true);
    post(&failing, review_of("f-late", &pod())).await;

    let (cold, late) = (logs.line_of("f-cold"), logs.line_of("f-late"));
    let own = ["timestamp", "level", "message", "target"];
    let fields: BTreeSet<&str> = [&cold, &late]
        .iter()
        .flat_map(|line| line.as_object().unwrap().keys())
        .map(String::as_str)
        .filter(|field| !own.contains(field))
        .collect();
    let table = rows(LOGS, "admission field");
    let listed: BTreeMap<String, &str> = table
        .iter()
        .map(|row| (quoted(&row[0])[0].clone(), &*row[1]))
        .collect();
    for field in &fields {
        assert!(
            listed.contains_key(*field),
            "{LOGS} lacks a line; add under \"## Admissions\":\n| `{field}` | WHAT IT IS |"
        );
    }
    for field in listed.keys() {
        assert!(
            fields.contains(&**field),
            "{LOGS}: no admission's line has `{field}`; take its line out"
        );
    }
    let words = |field: &str| quoted(listed[field]).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(words("decision"), set(Verdict::ALL.map(Verdict::as_str)));
    assert_eq!(
        words_below(LOGS, "token-sources"),
        set(TokenSource::ALL.map(TokenSource::as_str))
    );
    assert_eq!(
        words_below(LOGS, "outcomes-for-the-pull-secret"),
        set(SecretSource::ALL.map(SecretSource::as_str))
    );
    assert_eq!(
        words("operation"),
        self::words("src/admission/review.rs", "Operation")
    );

    for (field, value) in [
        ("namespace", json!(NAMESPACE)),
        ("pod", json!("web-7f-")),
        ("owner_kind", json!("ReplicaSet")),
        ("owner", json!("web-7f")),
        ("operation", json!("create")),
        ("dry_run", json!(false)),
        ("decision", json!("inject")),
        ("reason", json!("provisioned")),
        ("registries", json!(HOST)),
        ("token_source", json!("minted")),
        ("secret_outcome", json!("written")),
    ] {
        assert_eq!(cold[field], value, "{field}");
    }
    assert!(cold["elapsed_ms"].is_f64(), "{cold}");
    let told = |uid: &str| {
        let line = logs.line_of(uid);
        [
            "level",
            "decision",
            "reason",
            "token_source",
            "secret_outcome",
        ]
        .map(|field| line[field].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(
        told("f-warm"),
        ["INFO", "inject", "cached", "none", "known"]
    );
    assert_eq!(
        told("f-dry"),
        ["INFO", "inject", "dry_run", "none", "dry_run"]
    );
    assert_eq!(logs.line_of("f-dry")["dry_run"], true);
    assert_eq!(
        told("f-other"),
        ["INFO", "skip", "not_opted_in", "none", "none"]
    );
    assert_eq!(
        told("f-late"),
        ["WARN", "inject_unready", "deadline", "failed", "requested"]
    );
    let duration = late["elapsed_ms"].as_f64().unwrap();
    assert!((500.0..750.0).contains(&duration), "{duration}");
}

#[tokio::test]
async fn log_lines_hold_no_token_and_nothing_of_a_pods_spec() {
    let logs = Logs::start();
    let webhook = InProcess::new();
    post(&webhook, review_of("s-cold", &pod())).await;
    post(&webhook, review_of("s-warm", &pod())).await;
    let auth = BASE64_STANDARD.encode("AWS:token-1");
    let data = webhook.api.secret(NAMESPACE).unwrap()["data"][".dockerconfigjson"].clone();
    let data = data.as_str().unwrap();
    let config = String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap();
    assert!(config.contains(&auth), "the token was minted and written");
    for written in [logs.text.text(), logs.json.text()] {
        assert!(written.contains("s-cold") && written.contains("s-warm"));
        for secret in ["token-1", &auth, data, "hunter2", "PASSWORD", "app:v1"] {
            assert!(!written.contains(secret), "{secret} is in:\n{written}");
        }
    }
}

#[tokio::test]
async fn hostile_names_start_no_line_and_make_none_long() {
    let logs = Logs::start();
    let webhook = InProcess::new();
    let hostile = format!(
        "x\nFORGED\r\u{2028}FORGED\u{85}\u{202e}\u{1b}[2J{}",
        "y".repeat(100_000)
    );
    let pod = json!({
        "metadata": {"name": hostile, "ownerReferences": [
            {"kind": hostile, "name": hostile, "controller": true}]},
        "spec": {"containers": [{"image": hostile}]},
    });
    let body = review_of("h-1", &pod);
    let named = format!("\"namespace\":{}", json!(hostile));
    let body = body.replace(&format!("\"namespace\":\"{NAMESPACE}\""), &named);
    assert!(body.matches("FORGED").count() >= 10, "the namespace is too");
    post(&webhook, body).await;
    for written in [logs.text.text(), logs.json.text()] {
        let mut of_it = written.lines().filter(|line| line.contains("FORGED"));
        let line = of_it.next().expect("it is logged");
        assert_eq!(of_it.next(), None, "one line");
        assert!(line.contains("h-1"), "{line}");
        assert!(line.len() < 2048, "{} bytes", line.len());
        for c in ['\r', '\u{2028}', '\u{85}', '\u{202e}', '\u{1b}'] {
            assert!(!line.contains(c), "{c:?} in {line}");
        }
    }
}
