//! The metrics of pull secrets.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};

use crate::{
    cluster::metrics::ApiCalls,
    telemetry::{
        metrics::{Labels, OptionalGauge, Registry},
        phases::PhaseTimes,
    },
};

/// Metrics of pull secrets.
#[derive(Debug)]
pub struct PullSecretMetrics {
    /// Pull secrets found changed by another client, and repaired.
    pub tampered: Counter,
    /// Pull secrets that the watch knows.
    pub pull_secrets: Gauge,
    earliest_expiry: OptionalGauge,
    identity_expiries: Family<[(&'static str, String); 2], Gauge>,
    by_state: Family<Labels<1>, Gauge>,
    /// Namespaces whose pull secret lacks registries that Pods need, and is retried.
    pub wants_pending: Gauge,
    /// Namespaces that are not retried because too many were pending.
    pub wants_dropped: Counter,
    /// 1 if the guard rejected the test write, 0 if the API server accepted it, -1 while unknown.
    pub guard: Gauge,
    /// Durations of an admission's phases.
    pub phases: PhaseTimes,
    /// Calls to the Kubernetes API server.
    pub api_calls: ApiCalls,
}

impl PullSecretMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, phases: PhaseTimes, api_calls: ApiCalls) -> Self {
        let metrics = Self {
            tampered: registry.register(
                "tampered_secrets",
                "Pull secrets that an admission found changed by another client and repaired",
                Counter::default(),
            ),
            pull_secrets: registry.register(
                "pull_secrets",
                "Pull secrets known from the watch",
                Gauge::default(),
            ),
            earliest_expiry: registry.register_with_unit(
                "earliest_expiry",
                "Time until the first credential of an opted-in namespace expires, negative once it has expired",
                Unit::Seconds,
                OptionalGauge::default(),
            ),
            identity_expiries: registry.register_with_unit(
                "identity_earliest_expiry",
                "Time until the first credential of one identity in one region expires, negative once it has expired",
                Unit::Seconds,
                Family::default(),
            ),
            by_state: registry.register(
                "pull_secrets_by_state",
                "Pull secrets known from the watch, by state",
                Family::default(),
            ),
            wants_pending: registry.register(
                "provisioning_pending_namespaces",
                "Namespaces whose pull secret lacks registries that admitted Pods need, and is retried by this replica",
                Gauge::default(),
            ),
            wants_dropped: registry.register(
                "provisioning_dropped",
                "Namespaces not retried by this replica because too many were pending",
                Counter::default(),
            ),
            guard: registry.register(
                "guard_enforced",
                "1 if the guard rejected the test write at start, 0 if the API server accepted it, -1 while unknown",
                Gauge::default(),
            ),
            phases,
            api_calls,
        };
        metrics.guard.set(-1);
        metrics
    }

    /// Sets the seconds until the first credential expires, if there is any.
    pub fn expires_in(&self, seconds: Option<i64>) {
        self.earliest_expiry.set(seconds);
    }

    /// Sets the seconds until the first credential expires by identity and region, and removes all
    /// other series.
    pub fn identities_expire_in<'a>(
        &self,
        expiries: impl IntoIterator<Item = (String, &'a str, i64)>,
    ) {
        self.identity_expiries.clear();
        for (identity, region, seconds) in expiries {
            self.identity_expiries
                .get_or_create(&[("identity", identity), ("region", region.to_owned())])
                .set(seconds);
        }
    }

    /// Sets the number of pull secrets in a state.
    pub fn in_state(&self, state: &'static str, count: i64) {
        self.by_state.get_or_create(&[("state", state)]).set(count);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn scrape_measures_and_drops_former_series() {
        let mut registry = Registry::default();
        let (phases, api_calls) = (PhaseTimes::new(&mut registry), ApiCalls::new(&mut registry));
        let metrics = Arc::new(PullSecretMetrics::new(&mut registry, phases, api_calls));
        let left = Arc::new(Mutex::new(Some(60)));
        let (measured, set) = (left.clone(), metrics.clone());
        registry.before_each_scrape(Box::new(move || {
            let left = *measured.lock().expect("a lock");
            set.expires_in(left);
            set.identities_expire_in(left.map(|left| (format!("of-{left}"), "here", left)));
        }));
        registry.before_each_scrape(Box::new(move || metrics.in_state("fresh", 7)));
        for seconds in [60, -5] {
            *left.lock().expect("a lock") = Some(seconds);
            let text = registry.to_text();
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
        let text = registry.to_text();
        assert!(!text.contains("expiry"), "{text}");
    }
}
