//! The metrics of a listener: its connections and its requests.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::telemetry::metrics::{Counters, Registry};

/// Metrics of a listener.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Requests to the admission listener that are being read or answered.
    pub in_flight: Gauge,
    shed: Counters,
    handshakes: Counters,
    refused_requests: Counters,
    connection_failures: Counters,
    /// Open connections to the admission listener.
    pub connections: Gauge,
    /// Requests whose handler panicked.
    pub panics: Counter,
}

impl ServerMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            in_flight: registry.register(
                "requests_in_flight",
                "Requests to the admission listener that are in progress",
                Gauge::default(),
            ),
            shed: registry.counters(
                "shed",
                "Connections and request bodies that were shed because of overload",
                "kind",
                Shed::ALL.map(Shed::as_str),
            ),
            handshakes: registry.counters(
                "tls_handshakes",
                "TLS handshakes on the admission listener, by outcome",
                "outcome",
                Handshake::ALL.map(Handshake::as_str),
            ),
            refused_requests: registry.counters(
                "rejected_requests",
                "HTTP requests that were not answered with an AdmissionReview, by reason",
                "reason",
                [],
            ),
            connection_failures: registry.counters(
                "connection_failures",
                "Connections that failed or were closed by the server, by reason",
                "reason",
                [],
            ),
            connections: registry.register(
                "connections",
                "Open connections to the admission listener",
                Gauge::default(),
            ),
            panics: registry.register(
                "panics",
                "Requests whose handler panicked",
                Counter::default(),
            ),
        }
    }

    /// Counts a connection or a body that was shed because of overload.
    pub fn shed(&self, kind: Shed) {
        self.shed.count(kind.as_str());
    }

    /// Counts a TLS handshake.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes.count(outcome.as_str());
    }

    /// Counts an HTTP request that was not answered with a review.
    pub fn refused_request(&self, reason: &'static str) {
        self.refused_requests.count(reason);
    }

    /// Counts a connection that failed or was closed for taking too long.
    pub fn connection_failure(&self, reason: &'static str) {
        self.connection_failures.count(reason);
    }
}

impl Default for ServerMetrics {
    /// Returns metrics that no registry shows, for a listener that is not counted.
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

/// A load that was shed because of overload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// An idle connection was closed for a new one.
    Connection,
    /// A body exceeded the limit on the bytes of all bodies in flight.
    Body,
}

impl Shed {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::Connection, Self::Body];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Body => "body",
        }
    }
}

/// The outcome of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// The connection is established.
    Done,
    /// The client or the server aborted the handshake with an error.
    Failed,
    /// The handshake exceeded its deadline.
    TimedOut,
}

impl Handshake {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::TimedOut];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
        }
    }
}
