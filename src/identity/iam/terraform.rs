//! Documents as resources for Terraform, formatted as `terraform fmt` does it.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Document, Kind};

/// Returns the resource that a document is a part of. `attributes` come first, such as the name.
#[must_use]
pub fn resource(document: &Document, label: &str, attributes: &[(&str, &str)]) -> String {
    let (kind, field) = match document.kind() {
        Kind::Permissions => ("aws_iam_policy", "policy"),
        Kind::Trust => ("aws_iam_role", "assume_role_policy"),
        Kind::Repository => ("aws_ecr_repository_policy", "policy"),
        Kind::Registry => ("aws_ecr_registry_policy", "policy"),
    };
    let width = attributes.iter().map(|(name, _)| name.len()).max();
    let mut text = format!("resource \"{kind}\" \"{label}\" {{\n");
    for (name, value) in attributes {
        // Writing to a String can't fail.
        let width = width.unwrap_or_default();
        let _ = writeln!(text, "  {name:<width$} = {}", quoted(value));
    }
    let _ = writeln!(
        text,
        "  {field} = jsonencode({})\n}}",
        expression(&document.to_value(), 1)
    );
    text
}

/// Returns the attachment of a policy to a role of the same label.
#[must_use]
pub fn attachment(label: &str) -> String {
    format!(
        "resource \"aws_iam_role_policy_attachment\" \"{label}\" {{\n  role       = \
         aws_iam_role.{label}.name\n  policy_arn = aws_iam_policy.{label}.arn\n}}\n"
    )
}

/// Converts a name to a label: a letter or `_`, then letters, digits, `_` and `-`.
#[must_use]
pub fn label(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric();
    let label: String = name
        .chars()
        .map(|c| if fits(c) { c } else { '_' })
        .collect();
    if label.starts_with(|c: char| c.is_ascii_digit()) {
        format!("_{label}")
    } else {
        label
    }
}

fn expression(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth + 1);
    let end = "  ".repeat(depth);
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) if items.len() == 1 && items[0].is_string() => {
            format!("[{}]", expression(&items[0], depth))
        }
        Value::Array(items) => {
            let items = items
                .iter()
                .map(|item| format!("{indent}{},\n", expression(item, depth + 1)));
            format!("[\n{}{end}]", items.collect::<String>())
        }
        Value::Object(fields) => {
            let lines: Vec<(String, String)> = fields
                .iter()
                .map(|(name, value)| (key(name), expression(value, depth + 1)))
                .collect();
            format!("{{\n{}{end}}}", aligned(&lines, &indent))
        }
        other => other.to_string(),
    }
}

/// Writes fields with the equal signs of neighbouring lines below each other. A field of several
/// lines stands alone.
fn aligned(fields: &[(String, String)], indent: &str) -> String {
    let is_line = |(_, value): &&(String, String)| !value.contains('\n');
    let mut text = String::new();
    let mut rest = fields;
    while let Some((name, value)) = rest.first() {
        let run = rest.iter().take_while(is_line).count();
        if run == 0 {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{indent}{name} = {value}");
            rest = &rest[1..];
            continue;
        }
        let (lines, others) = rest.split_at(run);
        let width = lines.iter().map(|(name, _)| name.chars().count()).max();
        let width = width.unwrap_or_default();
        for (name, value) in lines {
            let _ = writeln!(text, "{indent}{name:<width$} = {value}");
        }
        rest = others;
    }
    text
}

/// Writes a key, in quotes unless it is an identifier.
fn key(name: &str) -> String {
    let is_identifier = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_identifier {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// Writes a text that Terraform takes as it is: no part of it is an expression.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    let text = text.replace("${", "$${").replace("%{", "%%{");
    format!("\"{text}\"")
}
