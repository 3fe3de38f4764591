//! The CA Secret, the registration and the settings that serving and the leader's rotation share.

use std::{sync::Arc, time::Duration};

use super::{ca_secret::CaSecret, registration::Registration, server_clock::ServerClock};
use crate::tls::{metrics::TlsMetrics, rotation::Lifetimes};

/// The longest sleep: a machine that was suspended, or a clock that was set, is noticed by then.
pub(super) const MAX_SLEEP: Duration = Duration::from_secs(30);

/// The parts of a self-managed authority.
pub(super) struct Shared {
    pub(super) secret: CaSecret,
    pub(super) registration: Registration,
    /// The DNS name that serving certificates are for.
    pub(super) service: String,
    pub(super) lifetimes: Lifetimes,
    pub(super) clock: ServerClock,
    pub(super) metrics: Arc<TlsMetrics>,
}
