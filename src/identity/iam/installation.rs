//! The documents of every role that a configuration names, and of the role of ecr-injector itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Document, IamError,
    parts::{Repository, RolePattern},
    permissions::{self, Permissions, Registries},
    trust::{self, Conditions},
};
use crate::{
    cluster::namespace::Namespace,
    identity::{
        AssumeRoleOptions, DefaultIdentity, Identities, RoleArn, RoleTemplate,
        pattern::{NAMESPACE, Pattern},
    },
    registry::{AccountId, Partition, Region},
};

/// The region of ECR Public.
const PUBLIC_REGION: &str = "us-east-1";

/// A configuration, and what it doesn't tell.
#[derive(Debug)]
pub struct Installation<'a> {
    /// The identities of the configuration.
    pub identities: &'a Identities,
    /// The accounts whose registries the configuration allows; none: all.
    pub accounts: &'a BTreeSet<AccountId>,
    /// The regions that the configuration allows; none: all.
    pub regions: &'a BTreeSet<Region>,
    /// Whether ECR Public gets credentials.
    pub public: bool,
    /// The role that ecr-injector itself runs with.
    pub own_role: &'a RoleArn,
    /// Whether sessions of that role have tags of EKS Pod Identity, which go along with each call.
    pub has_session_tags: bool,
    /// The namespaces by which `{namespace}` is replaced; none: those that the rules name.
    pub namespaces: &'a [Namespace],
    /// The repositories to pull from; none: all.
    pub repositories: &'a BTreeSet<Repository>,
    /// Whether the repositories may be those of a pull-through cache.
    pub pull_through: bool,
}

/// The documents of one role.
#[derive(Debug)]
pub struct RoleDocuments {
    /// The ARN; it has `{namespace}` in it where no namespace is known.
    pub arn: String,
    /// The name of the role, or another that no other role's files have.
    pub name: String,
    /// The trust in whoever may assume the role; `None` if that is not known here.
    pub trust: Option<Document>,
    /// The permissions of the role; `None` if it needs no permission.
    pub policy: Option<Document>,
    /// Remarks about the documents.
    pub notes: Vec<String>,
}

/// A role as the rules name it, so far.
#[derive(Debug, Default)]
struct Gathered {
    registries: Registries,
    public: bool,
    conditions: Vec<Conditions>,
    notes: BTreeSet<String>,
}

/// The registries that a rule matches.
#[derive(Clone, Copy)]
struct Matched<'a> {
    accounts: &'a BTreeSet<AccountId>,
    regions: &'a BTreeSet<Region>,
    namespaces: &'a [Pattern],
}

/// Returns the documents of every role, that of ecr-injector itself first. Its trust is not among
/// them: the configuration doesn't tell who may assume it.
pub fn documents(installation: &Installation<'_>) -> Result<Vec<RoleDocuments>, IamError> {
    let identities = installation.identities;
    let mut roles: BTreeMap<String, Gathered> = BTreeMap::new();
    let mut own = Gathered::default();
    let (no_accounts, no_regions) = (BTreeSet::new(), BTreeSet::new());
    let all = Matched {
        accounts: &no_accounts,
        regions: &no_regions,
        namespaces: &[],
    };
    let mut assume = BTreeSet::new();
    let mut session_tags = installation.has_session_tags;
    let own_account = installation.own_role.account();
    for rule in &identities.rules {
        let matched = Matched {
            accounts: &rule.accounts,
            regions: &rule.regions,
            namespaces: &rule.namespaces,
        };
        match (&rule.assume_role, &rule.profile) {
            (Some(template), _) => {
                installation.gather(template, matched, &mut roles);
                if template.options.profile.is_none() {
                    assume.extend(wildcard(&template.arn));
                    session_tags |= !template.options.tags.is_empty();
                }
            }
            (None, Some(profile)) => {
                let name = profile.name();
                own.notes.insert(format!(
                    "profile {name} mints itself: its principal is not known here, and needs the \
                     permissions of `ecr-injector iam policy`"
                ));
            }
            (None, None) => {
                let partition = installation.own_role.partition();
                installation.add(&mut own, matched, (own_account, partition));
            }
        }
    }
    for pattern in &identities.namespace_roles.allow {
        let (text, options) = (pattern.to_string(), &identities.namespace_roles.options);
        assume.extend(wildcard(&text));
        session_tags |= !options.tags.is_empty();
        if text.contains('*') {
            own.notes.insert(format!(
                "the roles that match {text} of namespaceRoles are not printed: annotations name \
                 them"
            ));
        } else {
            let template = RoleTemplate::new(text, options.clone());
            installation.gather(&template, all, &mut roles);
        }
    }
    if identities.default == DefaultIdentity::Ambient {
        let partition = installation.own_role.partition();
        installation.add(&mut own, all, (own_account, partition));
    }
    if roles.contains_key(installation.own_role.as_str()) {
        return Err(IamError::OwnRole(installation.own_role.to_string()));
    }
    let own_policy = Permissions {
        assume,
        session_tags,
        ..installation.permissions(&own)
    };
    let mut documents = vec![RoleDocuments {
        arn: installation.own_role.to_string(),
        name: String::new(),
        trust: None,
        policy: optional(permissions::policy(
            &own_policy,
            installation.own_role.partition(),
        ))?,
        notes: own.notes.into_iter().collect(),
    }];
    for (arn, gathered) in roles {
        documents.push(installation.documents_of(arn, gathered)?);
    }
    name(&mut documents);
    Ok(documents)
}

/// Returns no document where nothing is to be allowed.
fn optional(document: Result<Document, IamError>) -> Result<Option<Document>, IamError> {
    match document {
        Err(IamError::Nothing) => Ok(None),
        document => document.map(Some),
    }
}

/// Returns the pattern of the ARNs that a template or a pattern of the configuration stands for.
fn wildcard(arn: &str) -> Option<RolePattern> {
    RolePattern::parse(&arn.replace(NAMESPACE, "*")).ok()
}

/// Names the files of each role: by the role's name, unless two have it.
fn name(documents: &mut [RoleDocuments]) {
    let short = |arn: &str| arn.rsplit('/').next().unwrap_or_default().to_owned();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for document in &*documents {
        // Some file systems take names that differ in case for one.
        *counts
            .entry(short(&document.arn).to_ascii_lowercase())
            .or_default() += 1;
    }
    for document in documents {
        let name = short(&document.arn);
        document.name = if counts[&name.to_ascii_lowercase()] == 1 {
            name
        } else {
            let fields: Vec<&str> = document.arn.splitn(6, ':').collect();
            let path = fields[5].trim_start_matches("role/").replace('/', ".");
            format!("{}.{path}", fields[4])
        };
    }
}

impl Installation<'_> {
    /// Adds the roles that a template stands for in the namespaces that its rule matches.
    fn gather(
        &self,
        template: &RoleTemplate,
        matched: Matched<'_>,
        roles: &mut BTreeMap<String, Gathered>,
    ) {
        let namespaces = self.namespaces(matched.namespaces);
        let options = &template.options;
        let is_template = template.arn.contains(NAMESPACE);
        let instances: Vec<(String, Vec<String>)> = if is_template && !namespaces.is_empty() {
            let of = |namespace: &String| {
                let arn = template.arn.replace(NAMESPACE, namespace);
                (arn, vec![namespace.clone()])
            };
            namespaces.iter().map(of).collect()
        } else if is_template {
            vec![(template.arn.clone(), vec![NAMESPACE.to_owned()])]
        } else if namespaces.is_empty() {
            let patterns = matched.namespaces.iter().map(ToString::to_string);
            let mut patterns: Vec<String> =
                patterns.map(|text| text.replace(NAMESPACE, "*")).collect();
            if patterns.is_empty() {
                patterns.push("*".to_owned());
            }
            vec![(template.arn.clone(), patterns)]
        } else {
            vec![(template.arn.clone(), namespaces)]
        };
        for (arn, namespaces) in instances {
            let mut fields = arn.split(':');
            let partition = fields.nth(1).and_then(Partition::parse);
            let account = fields.nth(2).unwrap_or_default().to_owned();
            let role = roles.entry(arn.clone()).or_default();
            if arn.contains(NAMESPACE) {
                role.notes.insert(format!(
                    "{NAMESPACE} is left in the documents of {arn}: name the namespaces with \
                     --namespace, or replace it"
                ));
            }
            if let Some(profile) = &options.profile {
                role.notes.insert(format!(
                    "profile {} assumes {arn}: its principal is not known here, so print the trust \
                     with `ecr-injector iam trust --assumed-by`",
                    profile.name()
                ));
            } else {
                let conditions = conditions(options, &namespaces);
                if !role.conditions.contains(&conditions) {
                    role.conditions.push(conditions);
                }
            }
            self.add(
                role,
                matched,
                (&account, partition.unwrap_or(Partition::Aws)),
            );
        }
    }

    /// Returns the namespaces that are known to match a rule: those that were named, else those
    /// that the rule names one by one. None: they are not known.
    fn namespaces(&self, patterns: &[Pattern]) -> Vec<String> {
        if self.namespaces.is_empty() {
            let names: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            let is_known = names.iter().all(|name| !name.contains(['*', '{']));
            return if is_known { names } else { Vec::new() };
        }
        let matches = |namespace: &&Namespace| {
            let mut patterns = patterns.iter();
            patterns.len() == 0
                || patterns.any(|pattern| pattern.matches(namespace.as_str(), namespace))
        };
        let namespaces = self.namespaces.iter().filter(matches);
        namespaces.map(ToString::to_string).collect()
    }

    /// Adds the registries of a rule: those that the rule and the allow list name; where neither
    /// names an account, those of the role's own.
    fn add(
        &self,
        role: &mut Gathered,
        matched: Matched<'_>,
        (account, partition): (&str, Partition),
    ) {
        let accounts = common(matched.accounts, self.accounts);
        let regions = common(matched.regions, self.regions);
        let is_public = matched.accounts.is_empty()
            && partition == Partition::Aws
            && (matched.regions.is_empty()
                || matched
                    .regions
                    .iter()
                    .any(|it| it.as_str() == PUBLIC_REGION));
        role.public |= self.public && is_public;
        let (Some(accounts), Some(regions)) = (accounts, regions) else {
            role.notes.insert(
                "a rule matches no registry of the allow list: nothing is printed for it"
                    .to_owned(),
            );
            return;
        };
        let accounts = if accounts.is_empty() {
            role.notes.insert(format!(
                "the configuration names no account: the policy is for the registries of \
                 {account}, the role's own; name accounts in `allow` or in the rule for others"
            ));
            AccountId::parse(account).into_iter().collect()
        } else {
            accounts
        };
        let usable: Vec<&Region> = regions
            .iter()
            .filter(|region| region.partition() == partition)
            .collect();
        if usable.len() < regions.len() {
            role.notes.insert(format!(
                "regions outside of partition {} are left out: tokens are valid in one partition",
                partition.as_str()
            ));
        }
        for account in accounts {
            if regions.is_empty() {
                role.registries.insert(account, None);
            } else {
                for &region in &usable {
                    role.registries
                        .insert(account.clone(), Some(region.clone()));
                }
            }
        }
    }

    fn permissions(&self, role: &Gathered) -> Permissions {
        Permissions {
            registries: role.registries.clone(),
            repositories: self.repositories.clone(),
            pull_through: self.pull_through,
            public: role.public,
            ..Permissions::default()
        }
    }

    fn documents_of(&self, arn: String, role: Gathered) -> Result<RoleDocuments, IamError> {
        let partition = arn.split(':').nth(1).and_then(Partition::parse);
        let partition = partition.unwrap_or(Partition::Aws);
        let policy = permissions::policy(&self.permissions(&role), partition);
        let own_role = std::slice::from_ref(self.own_role);
        Ok(RoleDocuments {
            arn,
            name: String::new(),
            trust: optional(trust::assumed_by(own_role, &role.conditions))?,
            policy: optional(policy)?,
            notes: role.notes.into_iter().collect(),
        })
    }
}

/// Returns what is in both sets, of which an empty one stands for all; `None` if there is nothing.
fn common<T: Ord + Clone>(one: &BTreeSet<T>, other: &BTreeSet<T>) -> Option<BTreeSet<T>> {
    match (one.is_empty(), other.is_empty()) {
        (true, _) => Some(other.clone()),
        (_, true) => Some(one.clone()),
        _ => {
            let both: BTreeSet<T> = one.intersection(other).cloned().collect();
            (!both.is_empty()).then_some(both)
        }
    }
}

/// Returns the conditions of sessions with these options in these namespaces.
fn conditions(options: &AssumeRoleOptions, namespaces: &[String]) -> Conditions {
    let values = |text: &String| -> BTreeSet<String> {
        let of = |namespace: &String| text.replace(NAMESPACE, namespace);
        namespaces.iter().map(of).collect()
    };
    let external_ids = options.external_id.as_ref().map(values);
    Conditions {
        external_ids: external_ids.unwrap_or_default(),
        tags: options
            .tags
            .iter()
            .map(|(key, value)| (key.clone(), values(value)))
            .collect(),
    }
}
