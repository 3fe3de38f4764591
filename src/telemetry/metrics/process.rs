//! The metrics of the process itself, under the names that every Prometheus client uses.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::registry::FamilyDescriptor;

/// The families: the name without the suffix of its type, the help text, and whether it is a
/// counter.
const FAMILIES: [(&str, &str, bool); 7] = [
    (
        "process_cpu_seconds",
        "CPU time spent, user and system together, in seconds",
        true,
    ),
    ("process_resident_memory_bytes", "Memory in RAM", false),
    ("process_virtual_memory_bytes", "Address space", false),
    ("process_open_fds", "Open file descriptors", false),
    (
        "process_max_fds",
        "The most file descriptors that may be open",
        false,
    ),
    ("process_threads", "Threads", false),
    (
        "process_start_time_seconds",
        "When the process started, in seconds since 1970",
        false,
    ),
];

/// Reads `/proc/self` at each scrape; without a `/proc`, there are no series.
#[derive(Debug)]
pub(super) struct Process;

impl Process {
    pub(super) fn families() -> impl Iterator<Item = FamilyDescriptor> {
        FAMILIES
            .into_iter()
            .map(|(name, _, is_counter)| FamilyDescriptor {
                name: format!("{name}{}", if is_counter { "_total" } else { "" }),
                kind: if is_counter { "counter" } else { "gauge" },
            })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(values) = values() else {
            return Ok(());
        };
        for ((name, help, is_counter), value) in FAMILIES.into_iter().zip(values) {
            let Some(value) = value else { continue };
            if is_counter {
                let metric = ConstCounter::new(value);
                let family = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
                metric.encode(family)?;
            } else {
                let metric = ConstGauge::new(value);
                let family = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
                metric.encode(family)?;
            }
        }
        Ok(())
    }
}

/// Returns the values, in the order of [`FAMILIES`].
#[cfg(target_os = "linux")]
#[expect(
    clippy::cast_precision_loss,
    reason = "no process has so many bytes or ticks that a double could not count them"
)]
fn values() -> Option<[Option<f64>; 7]> {
    use procfs::{
        boot_time_secs, page_size,
        process::{LimitValue, Process},
        ticks_per_second,
    };
    let process = Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let ticks = ticks_per_second() as f64;
    let limit = |limits: procfs::process::Limits| match limits.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit as f64),
        LimitValue::Unlimited => None,
    };
    Some([
        Some((stat.utime + stat.stime) as f64 / ticks),
        Some((stat.rss * page_size()) as f64),
        Some(stat.vsize as f64),
        process.fd_count().ok().map(|count| count as f64),
        process.limits().ok().and_then(limit),
        Some(stat.num_threads as f64),
        boot_time_secs()
            .ok()
            .map(|booted| booted as f64 + stat.starttime as f64 / ticks),
    ])
}

#[cfg(not(target_os = "linux"))]
fn values() -> Option<[Option<f64>; 7]> {
    None
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;
    use crate::process::clock::{Clock as _, SystemClock};

    #[test]
    fn process_metrics_are_those_of_this_process() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let mut text = String::new();
        encode(&mut text, &registry).expect("a String takes all");
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(' '))
            });
            let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{text}"));
            line.rsplit(' ')
                .next()
                .expect("a value")
                .parse()
                .expect("a number")
        };
        for family in Process::families() {
            assert!(value(&family.name) >= 0.0, "{}", family.name);
        }
        let mebibyte = 1024.0 * 1024.0;
        let resident = value("process_resident_memory_bytes");
        assert!(resident > mebibyte && resident < value("process_virtual_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_open_fds") <= value("process_max_fds"));
        let now = SystemClock.now().as_duration().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age} s old");
    }
}
