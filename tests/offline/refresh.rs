//! The leader on a paused clock, in a cluster of the imagination: what takes hours outside takes a moment here, and a
//! fault can be put at the worst of them.

mod clocks;
mod due;
mod expiry;
mod hostile;
mod isolation;
mod leaving;
mod obstacles;
mod pending;
mod reconfigured;
mod repairs;
mod sweep;
mod terms;
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
