//! `ecr-injector iam`: prints IAM policies. Offline: AWS is never asked.

mod installation;
mod output;
mod trust;

use std::{collections::BTreeSet, process::ExitCode};

use clap::{ArgGroup, Args, Subcommand, error::ErrorKind};

use self::{
    installation::AllArgs,
    output::{
        Output, OutputArgs, note, parse_account, parse_partition, parse_region, parse_registry,
        parse_repository,
    },
    trust::TrustArgs,
};
use super::args::parse_role;
use crate::{
    identity::{
        RoleArn,
        iam::{
            parts::{Organization, Repository, RolePattern},
            permissions::{self, Permissions, Pullers, Registries},
        },
    },
    registry::{AccountId, Partition, Region, Registry},
};

const LONG_ABOUT: &str = "\
Print IAM policies for ecr-injector, as JSON or for Terraform. AWS is never asked, and nothing is changed.

Every policy is as narrow as the flags: without --repository it covers all repositories of the registries that are named, \
and no other registry.";
const AFTER_HELP: &str = "\
Exit codes:
  0  the policy is on standard output; with `all`: the files are written
  1  the parts belong to different partitions, or the policy is longer than AWS takes it
  2  wrong usage

Examples:
  ecr-injector iam policy --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com --repository 'team-a/*'
  ecr-injector iam trust --irsa --account 123456789012 \\
    --oidc-provider oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF \\
    --service-account ecr-injector/ecr-injector
  ecr-injector iam repository --pull-by arn:aws:iam::123456789012:role/ecr-injector
  ecr-injector iam all --from config.yaml --role-arn arn:aws:iam::123456789012:role/ecr-injector --out iam";

const NOTHING: &str = "\
nothing to allow: name registries with --registry or --account, ECR Public with --public, or roles with --assume
";
const NO_REPOSITORY: &str =
    "-o terraform sets the policy of one repository: name it with --repository\n";

/// Print IAM policies, as JSON or for Terraform.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP, arg_required_else_help = true)]
pub struct IamArgs {
    #[command(subcommand)]
    kind: KindArgs,
}

#[derive(Debug, Subcommand)]
enum KindArgs {
    /// Print the policy of a role that mints: tokens and pulls, or the roles that it may assume
    Policy(PolicyArgs),
    /// Print the trust policy of a role: who may assume it
    Trust(Box<TrustArgs>),
    /// Print the policy of a repository whose images another account pulls
    Repository(RepositoryArgs),
    /// Print the policy of a registry whose pull-through cache a role may fill
    Registry(RegistryArgs),
    /// Write the policies of every role in a configuration file
    All(Box<AllArgs>),
}

#[derive(Debug, Args)]
struct PolicyArgs {
    /// Host of a registry to pull from; may be repeated
    #[arg(long = "registry", value_name = "HOST", value_parser = parse_registry)]
    registries: Vec<Registry>,
    /// Account whose registries to pull from; may be repeated
    #[arg(long = "account", value_name = "ACCOUNT", value_parser = parse_account)]
    accounts: Vec<AccountId>,
    /// With --account: region of the registries, by default all; may be repeated
    #[arg(long = "region", value_name = "REGION", value_parser = parse_region, requires = "accounts")]
    regions: Vec<Region>,
    /// Partition, where neither a region nor a role tells it
    #[arg(long, value_name = "PARTITION", default_value = "aws", value_parser = parse_partition)]
    partition: Partition,
    /// Repository to pull from, with * for any text; by default all; may be repeated
    #[arg(long = "repository", value_name = "NAME", value_parser = Repository::parse)]
    repositories: Vec<Repository>,
    /// The repositories are those of a pull-through cache: allow the first pull to import
    #[arg(long)]
    pull_through: bool,
    /// Also allow tokens for ECR Public
    #[arg(long)]
    public: bool,
    /// Role that may be assumed, with * for any text; may be repeated
    #[arg(long = "assume", value_name = "ROLE_ARN", value_parser = RolePattern::parse)]
    assume: Vec<RolePattern>,
    /// With --assume: allow tags on the sessions, for tags in the configuration and always with EKS
    /// Pod Identity
    #[arg(long, requires = "assume")]
    session_tags: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("pullers").required(true).multiple(true)
    .args(["roles", "accounts", "organization"]))]
struct RepositoryArgs {
    /// Role that may pull; may be repeated
    #[arg(long = "pull-by", value_name = "ROLE_ARN", value_parser = parse_role)]
    roles: Vec<RoleArn>,
    /// Account whose principals may pull, as far as that account allows it; may be repeated
    #[arg(long = "account", value_name = "ACCOUNT", value_parser = parse_account)]
    accounts: Vec<AccountId>,
    /// Organization whose principals may pull
    #[arg(long, value_name = "ID", value_parser = Organization::parse, conflicts_with_all = ["roles", "accounts"])]
    organization: Option<Organization>,
    /// Host of the registry that has the repository, for its partition
    #[arg(long, value_name = "HOST", value_parser = parse_registry)]
    registry: Option<Registry>,
    /// With -o terraform: the repository
    #[arg(long, value_name = "NAME", value_parser = parse_repository)]
    repository: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct RegistryArgs {
    /// Let roles fill the pull-through cache: the one thing that this command knows for a registry
    #[arg(long, required = true)]
    pull_through: bool,
    /// Role that may fill it; may be repeated
    #[arg(long = "by", value_name = "ROLE_ARN", required = true, value_parser = parse_role)]
    roles: Vec<RoleArn>,
    /// Host of the registry
    #[arg(long, value_name = "HOST", value_parser = parse_registry)]
    registry: Registry,
    /// Repository of the cache, with * for any text, such as docker-hub/*; by default all; may be
    /// repeated
    #[arg(long = "repository", value_name = "NAME", value_parser = Repository::parse)]
    repositories: Vec<Repository>,
    #[command(flatten)]
    output: OutputArgs,
}

impl IamArgs {
    /// Prints the documents.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.kind {
            KindArgs::Policy(args) => args.run()?,
            KindArgs::Trust(args) => args.run()?,
            KindArgs::Repository(args) => args.run()?,
            KindArgs::Registry(args) => args.run()?,
            KindArgs::All(args) => args.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl PolicyArgs {
    fn run(self) -> anyhow::Result<()> {
        if self.registries.is_empty()
            && self.accounts.is_empty()
            && self.assume.is_empty()
            && !self.public
        {
            clap::Error::raw(ErrorKind::MissingRequiredArgument, NOTHING).exit();
        }
        let mut registries = Registries::default();
        for registry in &self.registries {
            if let Some(account) = registry.account() {
                registries.insert(account.clone(), Some(registry.region().clone()));
            }
        }
        for account in &self.accounts {
            if self.regions.is_empty() {
                registries.insert(account.clone(), None);
            }
            for region in &self.regions {
                registries.insert(account.clone(), Some(region.clone()));
            }
        }
        let permissions = Permissions {
            registries,
            repositories: self.repositories.into_iter().collect(),
            pull_through: self.pull_through,
            public: self.public,
            assume: self.assume.into_iter().collect(),
            session_tags: self.session_tags,
        };
        self.output
            .print(&permissions::policy(&permissions, self.partition)?)
    }
}

impl RepositoryArgs {
    fn run(self) -> anyhow::Result<()> {
        let pullers = match self.organization {
            Some(organization) => Pullers::Organization(organization),
            None => Pullers::Named(self.roles, self.accounts),
        };
        let document = permissions::repository(&pullers, self.registry.as_ref())?;
        match (&self.repository, self.output.output) {
            (None, Output::Terraform) => {
                clap::Error::raw(ErrorKind::MissingRequiredArgument, NO_REPOSITORY).exit();
            }
            (Some(repository), Output::Terraform) => {
                let repository = [("repository", repository.as_str())];
                self.output.print_with(&document, &repository)?;
            }
            (_, Output::Json) => self.output.print(&document)?,
        }
        note(
            "across accounts both sides are needed: this policy on each repository, and the \
             repositories in the policy of the principal (ecr-injector iam policy)",
        );
        Ok(())
    }
}

impl RegistryArgs {
    fn run(self) -> anyhow::Result<()> {
        let repositories: BTreeSet<Repository> = self.repositories.into_iter().collect();
        let document = permissions::registry(&self.registry, &repositories, &self.roles)?;
        self.output.print_with(&document, &[])
    }
}
