//! By what the metrics are told apart: the labels, and the closed sets of their values.

use prometheus_client::encoding::EncodeLabelSet;

/// What became of a changed configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// It is in use.
    Applied,
    /// It is refused as a whole.
    Refused,
}

impl Reload {
    pub(super) fn labels(self) -> OutcomeLabels {
        let outcome = match self {
            Self::Applied => "applied",
            Self::Refused => "rejected",
        };
        OutcomeLabels { outcome }
    }
}

/// A part of an admission that is timed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The review is read out of its JSON.
    Parse,
    /// What the cluster is known to look like is looked up, and the verdict reached.
    Decide,
    /// Tokens are got, from memory or from AWS.
    Token,
    /// The pull secret is written.
    Write,
}

/// What was not served because there was too much at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// A connection gave its place to a new one.
    Connection,
    /// A body found no room among those in flight.
    Body,
    /// A review was answered at once, because too many others were in hand.
    Review,
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// With a connection.
    Done,
    /// With an error of ours or the client's.
    Failed,
    /// By its deadline.
    TimedOut,
}

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spans {
    /// The collector has them.
    Sent,
    /// The collector didn't take them.
    Failed,
    /// Too many others waited to be sent.
    Dropped,
}

/// How a round of discovery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryRun {
    /// At the end of the list.
    Complete,
    /// Before the end of the list, because there were more Pods than a round looks at.
    Truncated,
    /// By a refusal for want of rights.
    Refused,
    /// By a page that did not come in time.
    TimedOut,
    /// By any other error.
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Parse, Self::Decide, Self::Token, Self::Write];

    /// As a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Decide => "decide",
            Self::Token => "token",
            Self::Write => "write",
        }
    }
}

impl Shed {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connection, Self::Body, Self::Review];

    /// As a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Body => "body",
            Self::Review => "review",
        }
    }
}

impl Handshake {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::TimedOut];

    /// As a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
        }
    }
}

impl Spans {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sent, Self::Failed, Self::Dropped];

    /// As a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl DiscoveryRun {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Complete,
        Self::Truncated,
        Self::Refused,
        Self::TimedOut,
        Self::Failed,
    ];

    /// Returns the outcome as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "ok",
            Self::Truncated => "truncated",
            Self::Refused => "forbidden",
            Self::TimedOut => "timeout",
            Self::Failed => "error",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AdmissionLabels {
    pub(super) decision: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PhaseLabels {
    pub(super) phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AwsLabels {
    pub(super) operation: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SourceLabels {
    pub(super) source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ApiLabels {
    pub(super) verb: &'static str,
    pub(super) resource: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StepLabels {
    pub(super) step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TransitionLabels {
    pub(super) to: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct IdentityLabels {
    pub(super) identity: String,
    pub(super) region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    pub(super) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CauseLabels {
    pub(super) cause: &'static str,
}
