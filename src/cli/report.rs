//! The report of a command on each namespace: a table for people, JSON for machines.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use crate::telemetry::printable::count;
use crate::{
    cluster::namespace::Namespace,
    pull_secret::to_the_second,
    registry::Host,
    telemetry::printable::{printable, printable_json},
};

/// The format of a report.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Output {
    /// A line per namespace
    #[default]
    Table,
    /// A JSON object
    Json,
}

/// The result for one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) namespace: Namespace,
    /// The result, such as `renewed` or `would-renew`.
    pub(super) result: &'static str,
    /// The hosts of the pull secret.
    pub(super) hosts: Vec<Host>,
    /// When the first of its credentials expires.
    pub(super) expires_at: Option<Timestamp>,
    /// When work is due next.
    pub(super) due_at: Option<Timestamp>,
    /// A remark, or the error.
    pub(super) message: Option<String>,
    /// Whether the pull secret is in the desired state.
    pub(super) is_ok: bool,
}

/// The rows of all namespaces, and their summary.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// The summary for standard error, in one line or more.
    pub(super) summary: String,
}

impl Row {
    /// Returns the row of a namespace in the desired state, without a message.
    pub(super) fn ok(namespace: Namespace, result: &'static str) -> Self {
        Self {
            namespace,
            result,
            hosts: Vec::new(),
            expires_at: None,
            due_at: None,
            message: None,
            is_ok: true,
        }
    }

    /// Returns the row of a namespace that is not in the desired state.
    pub(super) fn error(namespace: Namespace, result: &'static str, message: String) -> Self {
        Self {
            message: Some(message),
            is_ok: false,
            ..Self::ok(namespace, result)
        }
    }
}

impl Report {
    /// Whether every namespace is in the desired state.
    pub(super) fn is_ok(&self) -> bool {
        self.rows.iter().all(|row| row.is_ok)
    }

    /// Returns the report in a format.
    pub(super) fn to_text(&self, output: Output) -> String {
        match output {
            Output::Table => self.to_table(),
            Output::Json => printable_json(&format!("{:#}\n", self.to_json())),
        }
    }

    /// Returns the table; the empty text if there is no namespace.
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
        json!({"ok": self.is_ok(), "namespaces": rows})
    }
}

fn cells(row: &Row) -> [String; 6] {
    let when = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), to_the_second);
    // One line per namespace, whatever line breaks a message of the API server or AWS has.
    let message = row.message.as_deref().unwrap_or_default();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = printable(&message).into_owned();
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
        "ok": row.is_ok,
        "registries": hosts,
        "expiresAt": row.expires_at.map(to_the_second),
        "dueAt": row.due_at.map(to_the_second),
        "message": row.message,
    })
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
            ..Row::ok(name("a-long-name"), "renewed")
        };
        let failed = Row::error(name("b"), "failed", "said\non  two lines".to_owned());
        Report {
            rows: vec![renewed, failed],
            summary: String::new(),
        }
    }

    #[test]
    fn table_is_aligned_and_has_one_line_per_namespace() {
        let expected = "\
NAMESPACE     RESULT    REGISTRIES   EXPIRES                DUE   MESSAGE
a-long-name   renewed   2            2026-03-01T12:00:00Z   -
b             failed    0            -                      -     said on two lines
";
        assert_eq!(report().to_text(Output::Table), expected);
        assert_eq!(Report::default().to_text(Output::Table), "");
    }

    #[test]
    fn json_has_every_host_and_the_error() {
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
