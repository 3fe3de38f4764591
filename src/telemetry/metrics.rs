//! The registry of Prometheus metrics, with the metrics of the process itself; each room registers
//! its own. Every label has a closed set of values or, as identities have, a bounded number: no
//! host, namespace or message is a label. `docs/reference/metrics.md` explains each metric, and
//! what to do about it.

mod family;
mod process;
mod registry;

use prometheus_client::metrics::info::Info;

use self::process::Process;
pub use self::{
    family::{Counters, Labels, OptionalGauge, Timed},
    registry::{FamilyDescriptor, Measure, Registry},
};

impl Default for Registry {
    /// Returns a registry with the version of the binary and the metrics of the process.
    fn default() -> Self {
        let mut registry = Self::with_prefix("ecr_injector");
        registry.add(
            "build",
            "Version of the running binary",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_collector(Process, Process::families());
        registry
    }
}
