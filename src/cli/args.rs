//! Arguments and parsers of values that several subcommands share.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};

use crate::{
    aws::{AwsEnvironmentError, Trust, credentials::Source},
    cluster::{
        Cluster, ClusterError, ClusterSource,
        namespace::{self, Namespace},
    },
    identity::RoleArn,
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

/// The arguments of commands that call an API server.
#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// Path of the kubeconfig; by default the service account of the Pod, else the usual KUBECONFIG
    /// rules
    #[arg(long, env = "ECR_INJECTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; by default its current one
    #[arg(
        long,
        env = "ECR_INJECTOR_CONTEXT",
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new()
    )]
    context: Option<String>,
    /// User to impersonate, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(
        long = "as",
        env = "ECR_INJECTOR_AS",
        value_name = "USER",
        value_parser = NonEmptyStringValueParser::new()
    )]
    impersonate: Option<String>,
}

impl ConnectionArgs {
    /// Configures the clients. Makes no call yet.
    pub(super) async fn connect(&self) -> Result<Cluster, ClusterError> {
        let source = ClusterSource {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            impersonate: self.impersonate.clone(),
        };
        Cluster::connect(&source).await
    }
}

/// Returns a parser of the names that the log and the metric have for sources of credentials.
fn source_parser() -> impl TypedValueParser<Value = Source> {
    let names = Source::ALL.map(Source::as_str);
    PossibleValuesParser::new(names).try_map(|name| Source::parse(&name).ok_or("no such source"))
}

impl AwsArgs {
    /// Reads the CA bundle.
    pub(super) fn trust(&self) -> Result<Trust, AwsEnvironmentError> {
        Trust::load(self.aws_ca_bundle.as_deref())
    }
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

/// Parses a duration that is not negative.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let duration = parsed.and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or("expected a duration such as 15s or 400ms")
}
