//! Policies about ECR itself: what a principal may do, and whom a repository or a registry lets in.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Document, IamError, Kind, one_or_many, one_partition,
    parts::{Organization, Repository, RolePattern},
};
use crate::{
    identity::RoleArn,
    registry::{AccountId, Partition, Region, Registry},
};

/// The actions of a pull. AWS's own policy for pulls has no `ecr:BatchCheckLayerAvailability`
/// either, which pushes need.
const PULLS: [&str; 2] = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"];
/// The further actions of the first pull through a cache.
const PULL_THROUGH: [&str; 2] = ["ecr:BatchImportUpstreamImage", "ecr:CreateRepository"];
/// The actions of a token for ECR Public.
const PUBLIC_TOKENS: [&str; 2] = [
    "ecr-public:GetAuthorizationToken",
    "sts:GetServiceBearerToken",
];

/// The registries of accounts, each in one region or in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries(BTreeSet<(AccountId, Option<Region>)>);

/// The permissions of a principal.
#[derive(Debug, Clone, Default)]
pub struct Permissions {
    /// The registries to pull from; none: no private registry.
    pub registries: Registries,
    /// The repositories in these registries; none: all.
    pub repositories: BTreeSet<Repository>,
    /// Whether the repositories may be those of a pull-through cache.
    pub pull_through: bool,
    /// Whether tokens for ECR Public are allowed.
    pub public: bool,
    /// The roles that may be assumed.
    pub assume: BTreeSet<RolePattern>,
    /// Whether sessions of these roles may have tags.
    pub session_tags: bool,
}

impl Registries {
    /// Adds the registry of an account in one region, or those in all regions.
    pub fn insert(&mut self, account: AccountId, region: Option<Region>) {
        self.0.insert((account, region));
    }

    /// Adds all of the others.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn partitions(&self) -> impl Iterator<Item = (String, Partition)> {
        self.0.iter().filter_map(|(account, region)| {
            let region = region.as_ref()?;
            Some((format!("{account} in {region}"), region.partition()))
        })
    }

    /// Returns the ARNs of repositories in these registries, sorted.
    fn arns(&self, repositories: &BTreeSet<Repository>, partition: Partition) -> Vec<String> {
        let any = BTreeSet::from([Repository::any()]);
        let repositories = if repositories.is_empty() {
            &any
        } else {
            repositories
        };
        let in_all: BTreeSet<&AccountId> = self
            .0
            .iter()
            .filter(|(_, region)| region.is_none())
            .map(|(account, _)| account)
            .collect();
        let arn = |(account, region): &(AccountId, Option<Region>), repository: &Repository| {
            let region = region.as_ref().map_or("*", Region::as_str);
            let partition = partition.as_str();
            format!("arn:{partition}:ecr:{region}:{account}:repository/{repository}")
        };
        let mut arns: Vec<String> = self
            .0
            .iter()
            .filter(|(account, region)| region.is_none() || !in_all.contains(account))
            .flat_map(|registry| repositories.iter().map(move |name| arn(registry, name)))
            .collect();
        arns.sort_unstable();
        arns
    }
}

/// Prints the policy of a principal. `partition` counts where nothing that is named has one.
pub fn policy(permissions: &Permissions, partition: Partition) -> Result<Document, IamError> {
    let registries = &permissions.registries;
    let roles = permissions.assume.iter();
    let roles = roles.map(|role| (role.to_string(), role.partition()));
    let partition = one_partition(registries.partitions().chain(roles), partition)?;
    if permissions.public && partition != Partition::Aws {
        return Err(IamError::Public(partition));
    }
    let allow = |sid: &str, actions: &[&str], resource: Value| {
        let actions = actions.iter().map(|&action| action.to_owned());
        json!({
            "Sid": sid,
            "Effect": "Allow",
            "Action": one_or_many(actions),
            "Resource": resource,
        })
    };
    let mut statements = Vec::new();
    if !registries.is_empty() {
        let arns = json!(registries.arns(&permissions.repositories, partition));
        statements.push(allow("Tokens", &["ecr:GetAuthorizationToken"], json!("*")));
        statements.push(allow("Pulls", &PULLS, arns.clone()));
        if permissions.pull_through {
            statements.push(allow("PullThroughCache", &PULL_THROUGH, arns));
        }
    }
    if permissions.public {
        statements.push(allow("PublicTokens", &PUBLIC_TOKENS, json!("*")));
    }
    if !permissions.assume.is_empty() {
        let actions: &[&str] = if permissions.session_tags {
            &["sts:AssumeRole", "sts:TagSession"]
        } else {
            &["sts:AssumeRole"]
        };
        let roles = permissions.assume.iter().map(ToString::to_string);
        let roles: Vec<String> = roles.collect();
        statements.push(allow("Assume", actions, json!(roles)));
    }
    Document::new(Kind::Permissions, statements)
}

/// The principals that a repository lets pull.
#[derive(Debug, Clone)]
pub enum Pullers {
    /// Roles, and all principals of accounts to whom those accounts allow it.
    Named(Vec<RoleArn>, Vec<AccountId>),
    /// The principals of an organization.
    Organization(Organization),
}

/// Prints the policy of a repository. `registry` is where the repository is, if that is known.
pub fn repository(pullers: &Pullers, registry: Option<&Registry>) -> Result<Document, IamError> {
    let actions = json!(PULLS);
    let statement = match pullers {
        Pullers::Named(roles, accounts) => {
            let registry =
                registry.map(|registry| (registry.host().to_string(), registry.partition()));
            let of_roles = roles
                .iter()
                .map(|role| (role.to_string(), role.partition()));
            let partition = one_partition(registry.into_iter().chain(of_roles), Partition::Aws)?;
            let roots = accounts
                .iter()
                .map(|account| format!("arn:{}:iam::{account}:root", partition.as_str()));
            let principals: BTreeSet<String> =
                roles.iter().map(ToString::to_string).chain(roots).collect();
            if principals.is_empty() {
                return Err(IamError::Nothing);
            }
            json!({
                "Sid": "PullsFromAnotherAccount",
                "Effect": "Allow",
                "Principal": {"AWS": one_or_many(principals)},
                "Action": actions,
            })
        }
        Pullers::Organization(organization) => json!({
            "Sid": "PullsFromTheOrganization",
            "Effect": "Allow",
            "Principal": "*",
            "Action": actions,
            "Condition": {"StringEquals": {"aws:PrincipalOrgID": organization.to_string()}},
        }),
    };
    Document::new(Kind::Repository, vec![statement])
}

/// Prints the policy of a registry whose pull-through cache these roles may fill.
pub fn registry(
    registry: &Registry,
    repositories: &BTreeSet<Repository>,
    roles: &[RoleArn],
) -> Result<Document, IamError> {
    let own = (registry.host().to_string(), registry.partition());
    let of_roles = roles
        .iter()
        .map(|role| (role.to_string(), role.partition()));
    let partition = one_partition(std::iter::once(own).chain(of_roles), Partition::Aws)?;
    let account = registry.account().ok_or(IamError::Nothing)?;
    let mut registries = Registries::default();
    registries.insert(account.clone(), Some(registry.region().clone()));
    let roles: BTreeSet<String> = roles.iter().map(ToString::to_string).collect();
    if roles.is_empty() {
        return Err(IamError::Nothing);
    }
    let statement = json!({
        "Sid": "PullThroughCache",
        "Effect": "Allow",
        "Principal": {"AWS": one_or_many(roles)},
        "Action": PULL_THROUGH,
        "Resource": registries.arns(repositories, partition),
    });
    Document::new(Kind::Registry, vec![statement])
}
