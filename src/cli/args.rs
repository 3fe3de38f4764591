//! Arguments and parsers of values that several subcommands share.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{
    aws::{Trust, credentials::Source},
    cluster::namespace::{self, Namespace},
    config::Config,
    identity::RoleArn,
    process::files::named_by,
};

/// The arguments of commands that call AWS.
#[derive(Debug, Args)]
pub(super) struct AwsArgs {
    /// CA bundle (PEM) to verify AWS endpoints with, instead of the system's
    #[arg(long, env = "AWS_CA_BUNDLE", value_name = "FILE")]
    aws_ca_bundle: Option<PathBuf>,
    /// The only source of ambient credentials to use; credentials of any other source are an error
    #[arg(
        long,
        env = "ECR_INJECTOR_EXPECT_CREDENTIALS",
        value_name = "SOURCE",
        value_parser = source_parser()
    )]
    pub(super) expect_credentials: Option<Source>,
}

/// Returns a parser of the names that the log and the metric have for sources of credentials.
fn source_parser() -> impl TypedValueParser<Value = Source> {
    let names = Source::ALL.map(Source::as_str);
    PossibleValuesParser::new(names).try_map(|name| Source::parse(&name).ok_or("no such source"))
}

impl AwsArgs {
    /// Reads the CA bundle.
    pub(super) fn trust(&self) -> anyhow::Result<Trust> {
        let path = self.aws_ca_bundle.as_deref();
        Trust::load(path).with_context(|| named_by("--aws-ca-bundle", "AWS_CA_BUNDLE", path))
    }
}

/// Reads and checks the configuration file, if there is a path; without one every field has its
/// default.
pub(super) fn read_config(path: Option<&Path>) -> anyhow::Result<Config> {
    Config::load_or_default(path).with_context(|| config_flag(path))
}

/// Returns what named the configuration file.
pub(super) fn config_flag(path: Option<&Path>) -> &'static str {
    named_by("--config", "ECR_INJECTOR_CONFIG", path)
}

/// Parses the name of a namespace.
pub(super) fn parse_namespace(text: &str) -> Result<Namespace, &'static str> {
    Namespace::parse(text).ok_or("expected lower-case letters, digits and inner dashes, at most 63")
}

/// Parses the name of a Secret.
pub(super) fn parse_secret_name(text: &str) -> Result<String, &'static str> {
    if text.len() <= 253 && text.split('.').all(namespace::is_label) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a Secret: lower-case letters, digits, inner dashes and dots")
    }
}

/// Parses the ARN of a role.
pub(super) fn parse_role(text: &str) -> Result<RoleArn, &'static str> {
    RoleArn::parse(text).ok_or("expected arn:aws:iam::ACCOUNT:role/NAME (or another partition's)")
}

/// Parses an address to listen on; without a host, all of this machine.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, &'static str> {
    let text = match text.strip_prefix(':') {
        Some(port) => &format!("[::]:{port}"),
        None => text,
    };
    let error = "expected :PORT, or ADDRESS:PORT such as 127.0.0.1:8443 or [::1]:8443";
    text.parse().map_err(|_| error)
}

/// Parses a duration; a number alone is one of seconds.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().map(Duration::from_secs);
    seconds.or_else(|_| parse_duration(text))
}

/// Parses a duration that is not negative.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let duration = parsed.and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or("expected a duration such as 15s or 400ms")
}
