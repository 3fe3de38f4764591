//! What a command did to each namespace: a table for people, JSON for machines.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{cluster::namespace::Namespace, pull_secret::to_the_second, registry::Host};

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Output {
    /// A line per namespace
    #[default]
    Table,
    /// A JSON object
    Json,
}

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) namespace: Namespace,
    /// What was done, or would be.
    pub(super) result: &'static str,
    /// The hosts that the pull secret names.
    pub(super) hosts: Vec<Host>,
    /// When the first of its credentials expires.
    pub(super) expires_at: Option<Timestamp>,
    /// When there is something to do again.
    pub(super) due_at: Option<Timestamp>,
    /// What there is to say about it; if it isn't as it should be, why.
    pub(super) message: Option<String>,
    /// Whether it is as it should be.
    pub(super) is_good: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// For standard error, in one line or more.
    pub(super) summary: String,
}

impl Row {
    /// A namespace that is as it should be, and nothing more to say.
    pub(super) fn good(namespace: Namespace, result: &'static str) -> Self {
        Self {
            namespace,
            result,
            hosts: Vec::new(),
            expires_at: None,
            due_at: None,
            message: None,
            is_good: true,
        }
    }

    /// A namespace that isn't.
    pub(super) fn bad(namespace: Namespace, result: &'static str, message: String) -> Self {
        Self {
            message: Some(message),
            is_good: false,
            ..Self::good(namespace, result)
        }
    }
}

impl Report {
    /// Whether every namespace is as it should be.
    pub(super) fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.is_good)
    }

    pub(super) fn to_text(&self, output: Output) -> String {
        match output {
            Output::Table => self.to_table(),
            Output::Json => format!("{:#}\n", self.to_json()),
        }
    }

    /// Nothing, if there is no namespace.
    fn to_table(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let head = [
            "NAMESPACE",
            "RESULT",
            "REGISTRIES",
            "EXPIRES",
            "DUE",
            "MESSAGE",
        ]
        .map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head)
            .chain(self.rows.iter().map(cells))
            .collect();
        let mut widths = [0; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for line in &lines {
            let padded = line.iter().zip(widths);
            let cells: Vec<_> = padded
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            text += cells.join("   ").trim_end();
            text.push('\n');
        }
        text
    }

    fn to_json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(object).collect();
        json!({"ok": self.is_good(), "namespaces": rows})
    }
}

fn cells(row: &Row) -> [String; 6] {
    let when = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), to_the_second);
    // One line a namespace, whatever an API server or AWS says.
    let message = row.message.as_deref().unwrap_or_default();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    [
        row.namespace.to_string(),
        row.result.to_owned(),
        row.hosts.len().to_string(),
        when(row.expires_at),
        when(row.due_at),
        message,
    ]
}

fn object(row: &Row) -> Value {
    let hosts: Vec<_> = row.hosts.iter().map(Host::as_str).collect();
    json!({
        "namespace": row.namespace.as_str(),
        "result": row.result,
        "ok": row.is_good,
        "registries": hosts,
        "expiresAt": row.expires_at.map(to_the_second),
        "dueAt": row.due_at.map(to_the_second),
        "message": row.message,
    })
}

/// Returns a number with its noun: `1 namespace`, `2 namespaces`, `2 registries`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if number == 1 => format!("1 {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let name = |text| Namespace::parse(text).expect("valid");
        let host = |text| Host::parse(text).expect("valid");
        let at = "2026-03-01T12:00:00.75Z".parse().ok();
        let renewed = Row {
            hosts: vec![host("a.example"), host("b.example")],
            expires_at: at,
            ..Row::good(name("a-long-name"), "renewed")
        };
        let failed = Row::bad(name("b"), "failed", "said\non  two lines".to_owned());
        Report {
            rows: vec![renewed, failed],
            summary: String::new(),
        }
    }

    #[test]
    fn a_table_is_aligned_and_has_a_line_a_namespace() {
        let expected = "\
NAMESPACE     RESULT    REGISTRIES   EXPIRES                DUE   MESSAGE
a-long-name   renewed   2            2026-03-01T12:00:00Z   -
b             failed    0            -                      -     said on two lines
";
        assert_eq!(report().to_text(Output::Table), expected);
        assert_eq!(Report::default().to_text(Output::Table), "");
    }

    #[test]
    fn json_has_every_host_and_says_what_is_wrong() {
        let text = report().to_text(Output::Json);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["ok"], false);
        let [renewed, failed] = json["namespaces"].as_array().expect("a list").as_slice() else {
            panic!("{json}");
        };
        assert_eq!(renewed["registries"], json!(["a.example", "b.example"]));
        assert_eq!(renewed["expiresAt"], "2026-03-01T12:00:00Z");
        assert_eq!(renewed["dueAt"], Value::Null);
        assert_eq!(failed["message"], "said\non  two lines");
        assert_eq!(failed["ok"], false);
        let empty: Value =
            serde_json::from_str(&Report::default().to_text(Output::Json)).expect("JSON");
        assert_eq!(empty, json!({"ok": true, "namespaces": []}));
    }
}
