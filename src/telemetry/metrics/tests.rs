//! Unit tests of `metrics`.

use super::*;

#[test]
fn what_was_counted_is_in_the_text() {
    let metrics = Metrics::default();
    metrics.admission("inject", "cached", Duration::from_millis(1));
    metrics.aws_call("get_authorization_token", "ok");
    metrics.api_call("apply", "secrets", "conflict");
    let text = metrics.to_text();
    for line in [
        r#"ecr_injector_admission_duration_seconds_count{decision="inject",reason="cached"} 1"#,
        r#"ecr_injector_aws_calls_total{operation="get_authorization_token",outcome="ok"} 1"#,
        r#"ecr_injector_kube_api_calls_total{verb="apply",resource="secrets",outcome="conflict"} 1"#,
        "ecr_injector_connections 0",
    ] {
        assert!(text.contains(line), "{line} not in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_measured_is_as_it_is_at_each_scrape_and_what_is_gone_is_not_shown() {
    let metrics = Metrics::default();
    let left = Arc::new(Mutex::new(Some(60)));
    let measured = left.clone();
    metrics.before_each_scrape(Box::new(move |metrics| {
        let left = *measured.lock().expect("a lock");
        metrics.expires_in(left);
        metrics.identities_expire_in(left.map(|left| (format!("of-{left}"), "here", left)));
    }));
    metrics.before_each_scrape(Box::new(|metrics| metrics.in_state("fresh", 7)));
    for seconds in [60, -5] {
        *left.lock().expect("a lock") = Some(seconds);
        let text = metrics.to_text();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("expiry"))
            .collect();
        assert!(
            lines.contains(&format!("ecr_injector_earliest_expiry_seconds {seconds}").as_str()),
            "{text}"
        );
        let series = format!(r#"identity="of-{seconds}",region="here"}} {seconds}"#);
        let of_identities = lines.iter().filter(|line| line.contains("identity="));
        let of_identities: Vec<_> = of_identities.collect();
        assert!(
            of_identities.len() == 1 && of_identities[0].ends_with(&series),
            "{text}"
        );
        assert!(text.contains(r#"ecr_injector_pull_secrets_by_state{state="fresh"} 7"#));
    }
    *left.lock().expect("a lock") = None;
    let text = metrics.to_text();
    assert!(!text.contains("expiry"), "{text}");
}

#[test]
fn the_leaders_figures_are_there_under_their_names() {
    let metrics = Metrics::default();
    metrics.refreshed("due");
    metrics.refresh_failed("throttled");
    metrics.repaired("deleted");
    metrics.queue_depth.set(3);
    metrics.waiting.set(2);
    metrics.oldest_overdue.set(60);
    let text = metrics.to_text();
    for line in [
        r#"ecr_injector_refreshes_total{reason="due"} 1"#,
        r#"ecr_injector_refresh_failures_total{reason="throttled"} 1"#,
        r#"ecr_injector_repairs_total{cause="deleted"} 1"#,
        "ecr_injector_refresh_queue_depth 3",
        "ecr_injector_refresh_waiting_for_token 2",
        "ecr_injector_refresh_oldest_overdue_seconds 60",
        "ecr_injector_guard_enforced -1",
    ] {
        assert!(text.contains(line), "{line} not in:\n{text}");
    }
}
