//! The leader on a paused clock, in a cluster of the imagination: what takes hours outside takes a moment here, and a
//! fault can be put at the worst of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test that can't go on panics, and takes its own time"
)]

#[path = "refresh/clocks.rs"]
mod clocks;
#[path = "refresh/due.rs"]
mod due;
#[path = "refresh/expiry.rs"]
mod expiry;
#[path = "refresh/hostile.rs"]
mod hostile;
#[path = "refresh/isolation.rs"]
mod isolation;
#[path = "refresh/leaving.rs"]
mod leaving;
#[path = "refresh/obstacles.rs"]
mod obstacles;
#[path = "refresh/pending.rs"]
mod pending;
#[path = "refresh/reconfigured.rs"]
mod reconfigured;
#[path = "refresh/repairs.rs"]
mod repairs;
mod support;
#[path = "refresh/sweep.rs"]
mod sweep;
#[path = "refresh/terms.rs"]
mod terms;
#[path = "refresh/week.rs"]
mod week;

/// Two registries, so two tokens of one identity.
const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const VIRGINIA: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
/// Its images also pull without a credential.
const PUBLIC: &str = "public.ecr.aws";
/// Three identities: two roles, and for all others the ambient one.
const IDENTITIES: &str = r#"
identities:
  - {accounts: ["123456789012"], namespaces: ["a-*"], assumeRole: {roleArn: "arn:aws:iam::123456789012:role/a"}}
  - {accounts: ["123456789012"], namespaces: ["b-*"], assumeRole: {roleArn: "arn:aws:iam::123456789012:role/b"}}
"#;
