//! The output of doctor: a table for people, short lines, JSON and YAML. Pure.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    admission::manifest::text,
    cli::doctor::{
        checks::Checked,
        finding::Status,
        pod::{ImageRow, Verdict},
    },
    telemetry::printable::{count, printable, printable_json},
};

/// The page whose headings are the codes.
const PAGE: &str = "docs/reference/doctor.md";
/// The width of the codes in the table.
const WIDTH: usize = 28;

/// The format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Short,
    Json,
    Yaml,
}

/// How a table is drawn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// Whether the terminal shows colours.
    pub(super) has_color: bool,
    /// Whether the terminal shows UTF-8.
    pub(super) has_utf8: bool,
}

/// How many checks had which result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) ok: usize,
    pub(super) warn: usize,
    pub(super) fail: usize,
    pub(super) skipped: usize,
}

impl Counts {
    pub(super) fn of(results: &[Checked]) -> Self {
        let of = |status| {
            results
                .iter()
                .filter(|it| it.finding.status() == status)
                .count()
        };
        Self {
            ok: of(Status::Ok),
            warn: of(Status::Warn),
            fail: of(Status::Fail),
            skipped: of(Status::Skipped),
        }
    }

    /// Whether the command succeeds.
    pub(super) fn is_ok(self, fails_on_warn: bool) -> bool {
        self.fail == 0 && !(fails_on_warn && self.warn > 0)
    }
}

pub(super) fn see(code: &str) -> String {
    format!("{PAGE}#{code}")
}

pub(super) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    printable(&text).into_owned()
}

/// Returns the results in a format.
pub(super) fn checks(
    results: &[Checked],
    (format, style): (Format, Style),
    (is_ok, took): (bool, Duration),
) -> String {
    match format {
        Format::Table => table(results, style),
        Format::Short => short(results),
        Format::Json => json_text(&object(results, is_ok, took)),
        Format::Yaml => yaml_text(&object(results, is_ok, took)),
    }
}

pub(super) fn json_text(value: &Value) -> String {
    printable_json(&format!("{value:#}\n"))
}

/// Returns YAML; strings of others are escaped before, as YAML would show them as they are.
pub(super) fn yaml_text(value: &Value) -> String {
    text::to_yaml(value).unwrap_or_else(|_| json_text(value))
}

pub(super) fn mark(status: Status, style: Style) -> String {
    let (utf8, ascii, color) = match status {
        Status::Ok => ("✔", "ok", "32"),
        Status::Warn => ("‼", "!!", "33"),
        Status::Fail => ("✗", "x ", "31"),
        Status::Skipped => ("-", "- ", "2"),
    };
    let text = if style.has_utf8 { utf8 } else { ascii };
    if style.has_color {
        format!("\x1b[{color}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn table(results: &[Checked], style: Style) -> String {
    let mut text = String::new();
    let mut category = "";
    // Writing to a String can't fail.
    for checked in results {
        if checked.category != category {
            category = checked.category;
            let _ = writeln!(text, "{category}");
        }
        let finding = &checked.finding;
        let mark = mark(finding.status(), style);
        let said = match (finding.status(), finding.text()) {
            (Status::Ok, "") => checked.title.to_owned(),
            (Status::Ok, note) => format!("{}: {}", checked.title, one_line(note)),
            (Status::Skipped, why) => format!("skipped: {}", one_line(why)),
            (_, cause) => one_line(cause),
        };
        let code = checked.code;
        let _ = writeln!(text, "  {mark} {code:<WIDTH$} {said}");
        if let Some(fix) = finding.fix() {
            let _ = writeln!(
                text,
                "      fix  {}\n      see  {}",
                one_line(fix),
                see(code)
            );
        }
    }
    let counts = Counts::of(results);
    let _ = writeln!(
        text,
        "{} ok, {}, {} failed, {} skipped",
        counts.ok,
        count(counts.warn, "warning"),
        counts.fail,
        counts.skipped
    );
    text
}

fn short(results: &[Checked]) -> String {
    let lines = results.iter().filter_map(|checked| {
        let word = match checked.finding.status() {
            Status::Ok => return None,
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
            Status::Skipped => "SKIP",
        };
        Some(format!(
            "{word} {} {}\n",
            checked.code,
            one_line(checked.finding.text())
        ))
    });
    lines.collect()
}

fn object(results: &[Checked], is_ok: bool, took: Duration) -> Value {
    let counts = Counts::of(results);
    let checks = results.iter().map(|checked| {
        let finding = &checked.finding;
        let is_problem = finding.fix().is_some();
        let text = one_line(finding.text());
        json!({
            "code": checked.code,
            "category": checked.category,
            "status": finding.status().as_str(),
            "title": checked.title,
            "note": (!is_problem).then_some(&text),
            "cause": is_problem.then_some(&text),
            "fix": finding.fix().map(one_line),
            "see": see(checked.code),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ok": is_ok,
        "tookMs": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "counts": {
            "ok": counts.ok, "warn": counts.warn, "fail": counts.fail, "skipped": counts.skipped,
        },
        "checks": checks.collect::<Vec<_>>(),
    })
}

/// Returns the verdicts on Pods in a format, each with the name of its Pod.
pub(super) fn pods(verdicts: &[(String, Verdict)], (format, style): (Format, Style)) -> String {
    match format {
        Format::Table => verdicts
            .iter()
            .map(|(name, it)| pod_table(name, it, style))
            .collect(),
        Format::Short => {
            let wrong = verdicts.iter().filter(|(_, verdict)| !verdict.is_ok);
            let lines = wrong.map(|(name, verdict)| {
                format!(
                    "FAIL {} {}: {}\n",
                    verdict.code,
                    one_line(name),
                    one_line(&verdict.text)
                )
            });
            lines.collect()
        }
        Format::Json => json_text(&pod_objects(verdicts)),
        Format::Yaml => yaml_text(&pod_objects(verdicts)),
    }
}

fn pod_table(name: &str, verdict: &Verdict, style: Style) -> String {
    let status = if verdict.is_ok {
        Status::Ok
    } else {
        Status::Fail
    };
    let mark = mark(status, style);
    let mut text = format!(
        "{mark} {}  {}: {}\n",
        one_line(name),
        verdict.code,
        one_line(&verdict.text)
    );
    for ImageRow {
        image,
        host,
        credential,
    } in &verdict.images
    {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "    image  {}\n           {host}: {credential}",
            one_line(image)
        );
    }
    if let Some(fix) = &verdict.fix {
        let _ = writeln!(
            text,
            "    fix    {}\n    see    {}",
            one_line(fix),
            see(verdict.code)
        );
    }
    text
}

fn pod_objects(verdicts: &[(String, Verdict)]) -> Value {
    let pods = verdicts.iter().map(|(name, verdict)| {
        let images = verdict.images.iter().map(|row| {
            json!({
                "image": one_line(&row.image), "registry": row.host, "credential": row.credential,
            })
        });
        json!({
            "pod": one_line(name),
            "code": verdict.code,
            "ok": verdict.is_ok,
            "message": one_line(&verdict.text),
            "images": images.collect::<Vec<_>>(),
            "fix": verdict.fix.as_deref().map(one_line),
            "see": see(verdict.code),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ok": verdicts.iter().all(|(_, verdict)| verdict.is_ok),
        "pods": pods.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Finding;

    fn results() -> Vec<Checked> {
        let checked = |code, category, finding| Checked {
            code,
            category,
            title: "it works",
            finding,
        };
        vec![
            checked("a-ok", "one", Finding::ok("")),
            checked("a-note", "one", Finding::ok("2 of 2")),
            checked("b-warn", "two", Finding::warn("a\x1b[31m\nb", "do this")),
            checked("b-fail", "two", Finding::fail("broken", "mend it")),
            checked("b-skip", "two", Finding::skipped("no right")),
        ]
    }

    #[test]
    fn table_has_causes_and_fixes_and_counts() {
        let text = table(&results(), Style::default());
        let expected = "\
one
  ok a-ok                         it works
  ok a-note                       it works: 2 of 2
two
  !! b-warn                       a\\u{1b}[31m b
      fix  do this
      see  docs/reference/doctor.md#b-warn
  x  b-fail                       broken
      fix  mend it
      see  docs/reference/doctor.md#b-fail
  -  b-skip                       skipped: no right
2 ok, 1 warning, 1 failed, 1 skipped
";
        assert_eq!(text, expected);
        let style = Style {
            has_color: true,
            has_utf8: true,
        };
        assert!(table(&results(), style).contains("\x1b[31m✗\x1b[0m b-fail"));
    }

    #[test]
    fn short_lines_omit_what_is_fine() {
        let text = short(&results());
        let expected = "WARN b-warn a\\u{1b}[31m b\nFAIL b-fail broken\nSKIP b-skip no right\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_and_yaml_have_the_same_value() {
        let of = |format| {
            checks(
                &results(),
                (format, Style::default()),
                (false, Duration::from_millis(7)),
            )
        };
        for text in [of(Format::Json), of(Format::Yaml)] {
            assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{text}");
        }
        let json: Value = serde_json::from_str(&of(Format::Json)).expect("JSON");
        let yaml: Value = serde_saphyr::from_str(&of(Format::Yaml)).expect("YAML");
        assert_eq!(json, yaml);
        assert_eq!(
            json["counts"],
            json!({"ok": 2, "warn": 1, "fail": 1, "skipped": 1})
        );
        let checks = json["checks"].as_array().expect("a list").iter();
        let statuses: Vec<&Value> = checks.map(|check| &check["status"]).collect();
        assert_eq!(statuses, ["ok", "ok", "warn", "fail", "skipped"]);
        assert_eq!(json["checks"][3]["cause"], "broken");
        assert_eq!(json["checks"][4]["note"], "no right");
        assert_eq!(json["tookMs"], 7);
    }

    /// A Pod that is fine, and one that isn't.
    fn verdicts() -> Vec<(String, Verdict)> {
        let image = ImageRow {
            image: "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1".to_owned(),
            host: "123456789012.dkr.ecr.eu-west-1.amazonaws.com".to_owned(),
            credential: "none".to_owned(),
        };
        let good = Verdict {
            code: "pod-fine",
            text: "it works".to_owned(),
            fix: None,
            is_ok: true,
            images: vec![],
        };
        let bad = Verdict {
            code: "pod-missed",
            text: "it was\nmissed".to_owned(),
            fix: Some("delete it".to_owned()),
            is_ok: false,
            images: vec![image],
        };
        vec![("team/good".to_owned(), good), ("team/bad".to_owned(), bad)]
    }

    #[test]
    fn table_of_pods_has_their_images_and_fixes() {
        let expected = "\
ok team/good  pod-fine: it works
x  team/bad  pod-missed: it was missed
    image  123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1
           123456789012.dkr.ecr.eu-west-1.amazonaws.com: none
    fix    delete it
    see    docs/reference/doctor.md#pod-missed
";
        let text = pods(&verdicts(), (Format::Table, Style::default()));
        assert_eq!(text, expected);
        let text = pods(&verdicts(), (Format::Short, Style::default()));
        assert_eq!(text, "FAIL pod-missed team/bad: it was missed\n");
    }

    #[test]
    fn pods_are_fine_in_json_if_each_of_them_is() {
        let of = |verdicts: &[(String, Verdict)]| -> Value {
            let text = pods(verdicts, (Format::Json, Style::default()));
            serde_json::from_str(&text).expect("JSON")
        };
        let both = of(&verdicts());
        assert_eq!(
            (&both["ok"], &both["pods"][0]["ok"]),
            (&json!(false), &json!(true))
        );
        let bad = &both["pods"][1];
        assert_eq!(
            (&bad["pod"], &bad["message"]),
            (&json!("team/bad"), &json!("it was missed"))
        );
        assert_eq!(bad["images"][0]["credential"], "none");
        assert_eq!(of(&verdicts()[..1])["ok"], true);
    }

    #[test]
    fn warnings_fail_only_on_request() {
        let mut counts = Counts::of(&results());
        assert!(!counts.is_ok(false));
        counts.fail = 0;
        assert!(counts.is_ok(false));
        assert!(!counts.is_ok(true));
        counts.warn = 0;
        assert!(counts.is_ok(true));
    }
}
