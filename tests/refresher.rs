//! The refresher on a paused clock, in a cluster of the imagination: what takes hours outside takes a moment here, and a
//! fault can be put at the worst of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test that can't go on panics, and takes its own time"
)]

#[path = "refresher/clocks.rs"]
mod clocks;
#[path = "refresher/due.rs"]
mod due;
#[path = "refresher/expiry.rs"]
mod expiry;
#[path = "refresher/healing.rs"]
mod healing;
#[path = "refresher/intents.rs"]
mod intents;
#[path = "refresher/isolation.rs"]
mod isolation;
#[path = "refresher/leaving.rs"]
mod leaving;
#[path = "refresher/obstacles.rs"]
mod obstacles;
#[path = "refresher/reconfigured.rs"]
mod reconfigured;
mod support;
#[path = "refresher/sweep.rs"]
mod sweep;
#[path = "refresher/terms.rs"]
mod terms;
#[path = "refresher/week.rs"]
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
