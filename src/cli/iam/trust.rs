//! `ecr-injector iam trust`: prints who may assume a role.

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args, error::ErrorKind};
use rustls::crypto::ring::default_provider;

use super::output::{OutputArgs, note, parse_account, parse_partition};
use crate::{
    cli::args::parse_role,
    identity::{
        RoleArn,
        iam::{
            Document,
            parts::{ClusterArn, ExternalId, OidcProvider, ServiceAccount, SessionTag},
            trust::{self, Conditions},
        },
    },
    registry::{AccountId, Partition},
};

/// The value of `--external-id` for which one is made.
const AUTO: &str = "auto";
/// The audience of the tokens that AWS SDKs exchange.
const AUDIENCE: &str = "sts.amazonaws.com";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("principal").required(true)
    .args(["irsa", "oidc", "pod_identity", "assumed_by", "ec2"]),
    group = ArgGroup::new("of_role").arg("assumed_by"))]
pub(super) struct TrustArgs {
    #[command(flatten)]
    identity: IdentityArgs,
    /// Trust another role: for the roles of identities in the configuration; may be repeated
    #[arg(long, value_name = "ROLE_ARN", value_parser = parse_role)]
    assumed_by: Vec<RoleArn>,
    /// With --assumed-by: the external id that the caller has to give; auto makes one
    #[arg(long, value_name = "ID", requires = "of_role", value_parser = parse_external_id)]
    external_id: Option<ExternalId>,
    /// With --assumed-by: session tag that the caller has to set, with * for any text in the value;
    /// may be repeated
    #[arg(long = "session-tag", value_name = "KEY[=VALUE]", requires = "of_role", value_parser = SessionTag::parse)]
    session_tags: Vec<SessionTag>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The ways in which Pods and nodes get a role.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "a flag for each way")]
#[command(
    group = ArgGroup::new("way").args(["irsa", "oidc", "pod_identity", "ec2"]),
    group = ArgGroup::new("of_pods").args(["irsa", "oidc", "pod_identity"]),
    group = ArgGroup::new("of_provider").args(["irsa", "oidc"]),
    // A flag that requires another is let through where a third one excludes that other; a group
    // that is required is not.
    group = ArgGroup::new("of_irsa").arg("irsa"),
    group = ArgGroup::new("of_oidc").arg("oidc"),
    group = ArgGroup::new("of_pod_identity").arg("pod_identity"),
)]
pub(super) struct IdentityArgs {
    /// Trust ServiceAccounts of an EKS cluster (IAM roles for service accounts)
    #[arg(long, requires_all = ["oidc_provider", "service_accounts"])]
    irsa: bool,
    /// Trust ServiceAccounts of any cluster whose issuer is an OIDC provider in IAM
    #[arg(long, requires_all = ["issuer", "service_accounts"])]
    oidc: bool,
    /// Trust ServiceAccounts of an EKS cluster with EKS Pod Identity
    #[arg(long, requires_all = ["cluster_arn", "service_accounts"])]
    pub(super) pod_identity: bool,
    /// Trust EC2: for the role of nodes
    #[arg(long)]
    ec2: bool,
    /// With --irsa: the OIDC provider of the cluster, as its ARN or its issuer
    #[arg(long, value_name = "PROVIDER", requires = "of_irsa", value_parser = OidcProvider::parse)]
    oidc_provider: Option<OidcProvider>,
    /// With --oidc: the issuer of the cluster
    #[arg(long, value_name = "URL", requires = "of_oidc", value_parser = parse_issuer)]
    issuer: Option<OidcProvider>,
    /// With --oidc: the audience of the tokens [default: sts.amazonaws.com]
    #[arg(long, value_name = "AUDIENCE", requires = "of_oidc", value_parser = parse_audience)]
    audience: Option<String>,
    /// With --pod-identity: the cluster
    #[arg(long, value_name = "ARN", requires = "of_pod_identity", value_parser = ClusterArn::parse)]
    cluster_arn: Option<ClusterArn>,
    /// ServiceAccount to trust; may be repeated
    #[arg(long = "service-account", value_name = "NAMESPACE/NAME", requires = "of_pods", value_parser = ServiceAccount::parse)]
    service_accounts: Vec<ServiceAccount>,
    /// Accept * in --service-account
    #[arg(long, requires = "service_accounts")]
    allow_wildcards: bool,
    /// With --irsa and --oidc: the account of the OIDC provider, where its ARN is not given
    #[arg(long, value_name = "ACCOUNT", requires = "of_provider", value_parser = parse_account)]
    account: Option<AccountId>,
    /// Partition, where neither the provider nor the cluster tells it [default: aws]
    #[arg(long, value_name = "PARTITION", requires = "way", value_parser = parse_partition)]
    partition: Option<Partition>,
}

fn parse_issuer(text: &str) -> Result<OidcProvider, &'static str> {
    if !text.contains("://") {
        return Err("expected the issuer of the cluster such as https://oidc.example/id/1");
    }
    OidcProvider::parse(text)
}

fn parse_audience(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "*?".contains(c)) {
        return Err("expected the audience of the tokens, without blanks and wildcards");
    }
    Ok(text.to_owned())
}

fn parse_external_id(text: &str) -> Result<ExternalId, &'static str> {
    if text != AUTO {
        return ExternalId::parse(text);
    }
    let mut bytes = [0; 16];
    let filled = default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| "the system gave no random bytes: name an external id")?;
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    ExternalId::parse(&digits.collect::<String>())
}

impl TrustArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let document = if self.assumed_by.is_empty() {
            self.identity.document()?.context("no principal is named")?
        } else {
            let conditions = Conditions::new(self.external_id.as_ref(), &self.session_tags);
            trust::assumed_by(&self.assumed_by, &[conditions])?
        };
        self.output.print(&document)?;
        if let Some(id) = &self.external_id {
            note(&format!(
                "the caller has to give the external id {id}: externalId in the configuration"
            ));
        }
        Ok(())
    }
}

impl IdentityArgs {
    /// Returns the trust in what the flags name, or `None` if they name nothing.
    pub(super) fn document(&self) -> anyhow::Result<Option<Document>> {
        if self.ec2 {
            return Ok(Some(trust::ec2(self.partition.unwrap_or(Partition::Aws))?));
        }
        let accounts = &self.service_accounts;
        let wild = accounts.iter().find(|account| account.has_wildcard());
        if let Some(account) = wild.filter(|_| !self.allow_wildcards) {
            let text = format!(
                "--service-account {account} trusts every ServiceAccount that matches: name each, or \
                 add --allow-wildcards\n"
            );
            clap::Error::raw(ErrorKind::ValueValidation, text).exit();
        }
        if let Some(cluster) = self.cluster_arn.as_ref().filter(|_| self.pod_identity) {
            ensure!(
                self.partition.is_none_or(|it| it == cluster.partition),
                "--partition is another than that of --cluster-arn {cluster}"
            );
            return Ok(Some(trust::pod_identity(cluster, accounts)?));
        }
        let provider = self.oidc_provider.as_ref().or(self.issuer.as_ref());
        let Some(provider) = provider.filter(|_| self.irsa || self.oidc) else {
            return Ok(None);
        };
        let name = &provider.name;
        let account = match (&provider.account, &self.account) {
            (Some(of_arn), Some(given)) if of_arn != given => {
                anyhow::bail!("--account is another than that of the OIDC provider {name}")
            }
            (Some(account), _) | (None, Some(account)) => account,
            (None, None) => {
                let text = "--account is missing: the account of the OIDC provider\n";
                clap::Error::raw(ErrorKind::MissingRequiredArgument, text).exit();
            }
        };
        let partition = match (provider.partition, self.partition) {
            (Some(of_provider), Some(given)) if of_provider != given => {
                anyhow::bail!("--partition is another than that of the OIDC provider {name}")
            }
            (known, given) => known.or(given).unwrap_or(Partition::Aws),
        };
        let audience = self.audience.as_deref().unwrap_or(AUDIENCE);
        let document = trust::web_identity(provider, (account, partition), audience, accounts)?;
        Ok(Some(document))
    }
}
