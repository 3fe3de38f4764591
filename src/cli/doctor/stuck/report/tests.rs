//! The report about stuck Pods, in all formats.

use super::*;
use crate::{
    cli::doctor::stuck::group::tests::missed, config::Config, telemetry::printable::printable,
};

fn report() -> Report {
    let rules = Config::default().rules;
    let case = missed();
    let pod = StuckPod::of(&case, &rules).expect("a stuck Pod");
    let mut bare = case;
    bare.pod["metadata"]["ownerReferences"] = Value::Null;
    bare.pod["metadata"]["name"] = json!("bare");
    bare.pod["metadata"]["uid"] = json!("b");
    let bare = StuckPod::of(&bare, &rules).expect("a stuck Pod");
    Report {
        pods: vec![bare, pod],
        ..Report::default()
    }
}

fn in_all_formats(report: &Report) -> [String; 4] {
    [Format::Table, Format::Short, Format::Json, Format::Yaml]
        .map(|format| report.text((format, Style::default())))
}

#[test]
fn report_is_fine_only_when_nothing_is_left() {
    assert!(Report::default().is_ok());
    let mut report = report();
    assert!(!report.is_ok());
    report.outcomes.insert("u".to_owned(), Outcome::Restarted);
    assert!(!report.is_ok(), "a bare Pod is left");
    report.pods.remove(0);
    assert!(report.is_ok());
    report.unexamined = 1;
    assert!(!report.is_ok());
    report.unexamined = 0;
    report.stuck_again.insert("team/web-y".to_owned());
    assert!(!report.is_ok());
    report.stuck_again.clear();
    report.stop = Some(Stop::StuckAgain);
    assert!(!report.is_ok());
    report.stop = None;
    for outcome in [
        Outcome::WouldRestart,
        Outcome::Refused("no right".to_owned()),
    ] {
        report.outcomes.insert("u".to_owned(), outcome);
        assert!(!report.is_ok());
    }
}

#[test]
fn table_has_outcomes_and_what_is_left_to_do() {
    let mut report = report();
    report.not_ours = 2;
    report.outcomes.insert("u".to_owned(), Outcome::Restarted);
    let text = report.text((Format::Table, Style::default()));
    let image = "    image  123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1\n";
    let missed = text.find("ok team/web-x  stuck-missed: it was created without the webhook");
    let bare = text.find("x  team/bare  stuck-bare: it was created without the webhook");
    assert!(missed.expect(&text) < bare.expect(&text), "{text}");
    for part in [
        "    owner  ReplicaSet web\n",
        image,
        "    done   restarted\n",
        "    fix    no controller makes a new one: kubectl -n team get pod bare -o yaml",
        "    see    docs/reference/doctor.md#stuck-bare\n",
        "2 stuck Pods, 1 restarted; 2 more wait without being opted in\n",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    assert!(!text.contains("#stuck-missed"), "{text}");
}

#[test]
fn summary_counts_only_what_there_is() {
    let mut report = Report::default();
    let summary = |report: &Report| report.text((Format::Table, Style::default()));
    assert_eq!(summary(&report), "0 stuck Pods\n");
    report.unexamined = 3;
    let text = summary(&report);
    assert!(
        text.starts_with("0 stuck Pods; 3 were not examined: "),
        "{text}"
    );
}

#[test]
fn every_format_says_why_no_more_were_restarted() {
    let mut report = report();
    report.stop = Some(Stop::NoAnswer(
        "team/web-x".to_owned(),
        "time\x1b[31mout".to_owned(),
    ));
    for text in in_all_formats(&report) {
        assert!(text.contains("nothing more is restarted"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.lines().all(|line| printable(line) == line), "{text}");
    }
    report.stop = Some(Stop::NoReference("team/web-x".to_owned()));
    for text in in_all_formats(&report) {
        assert!(text.contains("restarting would loop"), "{text}");
    }
    report.stop = None;
    report.stuck_again.insert("team/web-y".to_owned());
    for text in in_all_formats(&report) {
        assert!(text.contains("team/web-y"), "{text}");
    }
}

#[test]
fn json_and_yaml_have_the_same_value() {
    let mut report = report();
    let refused = Outcome::Refused("exceeded quota".to_owned());
    report.outcomes.insert("u".to_owned(), refused);
    let [_, _, json, yaml] = in_all_formats(&report);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let yaml: Value = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(json, yaml);
    assert_eq!(json["counts"]["stuck-missed"], 1);
    assert_eq!(json["counts"]["stuck-job"], 0);
    assert_eq!(json["pods"][0]["outcome"], "not restarted");
    assert_eq!(json["pods"][0]["reason"], "exceeded quota");
    assert_eq!(json["pods"][1]["outcome"], Value::Null);
    assert_eq!(json["pods"][0]["verdict"], "pod-missed");
    assert_eq!(json["ok"], false);
}
