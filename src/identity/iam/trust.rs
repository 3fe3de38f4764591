//! Trust policies: who may assume a role.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    Document, IamError, Kind, one_or_many, one_partition,
    parts::{ClusterArn, ExternalId, OidcProvider, ServiceAccount, SessionTag},
};
use crate::{
    identity::RoleArn,
    registry::{AccountId, Partition},
};

/// The conditions under which another role may assume a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The external ids, of which the caller has to have one; `*` stands for any text. None: any.
    pub external_ids: BTreeSet<String>,
    /// The values of each session tag that the caller has to set; `*` stands for any text.
    pub tags: BTreeMap<String, BTreeSet<String>>,
}

impl Conditions {
    /// Collects the flags of a command.
    #[must_use]
    pub fn new(external_id: Option<&ExternalId>, tags: &[SessionTag]) -> Self {
        let mut conditions = Self {
            external_ids: external_id.iter().map(ToString::to_string).collect(),
            tags: BTreeMap::new(),
        };
        for tag in tags {
            // A tag that is there and not empty.
            let value = tag.value.clone().unwrap_or_else(|| "?*".to_owned());
            let values = conditions.tags.entry(tag.key.clone()).or_default();
            values.insert(value);
        }
        conditions
    }

    fn to_value(&self) -> Option<Value> {
        let mut condition = Map::new();
        let mut add = |key: String, values: &BTreeSet<String>| {
            let operator = operator(values.iter());
            let tests = condition.entry(operator).or_insert_with(|| json!({}));
            tests[key] = one_or_many(values.iter().cloned());
        };
        if !self.external_ids.is_empty() {
            add("sts:ExternalId".to_owned(), &self.external_ids);
        }
        for (key, values) in &self.tags {
            add(format!("aws:RequestTag/{key}"), values);
        }
        (!condition.is_empty()).then_some(Value::Object(condition))
    }
}

/// Returns the operator that compares with these values: only a wildcard needs patterns.
fn operator<'a>(values: impl IntoIterator<Item = &'a String>) -> &'static str {
    let mut values = values.into_iter();
    if values.any(|value| value.contains(['*', '?'])) {
        "StringLike"
    } else {
        "StringEquals"
    }
}

/// Prints the trust in `ServiceAccount`s whose tokens the provider issues for this audience.
pub fn web_identity(
    provider: &OidcProvider,
    (account, partition): (&AccountId, Partition),
    audience: &str,
    accounts: &[ServiceAccount],
) -> Result<Document, IamError> {
    let subject = |account: &ServiceAccount| {
        format!(
            "system:serviceaccount:{}:{}",
            account.namespace, account.name
        )
    };
    let subjects: BTreeSet<String> = accounts.iter().map(subject).collect();
    if subjects.is_empty() {
        return Err(IamError::Nothing);
    }
    let name = &provider.name;
    let operator = operator(&subjects);
    let mut condition = Map::new();
    condition.insert(
        "StringEquals".to_owned(),
        json!({format!("{name}:aud"): audience}),
    );
    let tests = condition.entry(operator).or_insert_with(|| json!({}));
    tests[format!("{name}:sub")] = one_or_many(subjects);
    let statement = json!({
        "Effect": "Allow",
        "Principal": {
            "Federated": format!("arn:{}:iam::{account}:oidc-provider/{name}", partition.as_str()),
        },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": condition,
    });
    Document::new(Kind::Trust, vec![statement])
}

/// Prints the trust in `ServiceAccount`s of one cluster through EKS Pod Identity. Each namespace
/// has a statement of its own: one with all names would pair each namespace with each name.
pub fn pod_identity(
    cluster: &ClusterArn,
    accounts: &[ServiceAccount],
) -> Result<Document, IamError> {
    let mut namespaces: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for account in accounts {
        let names = namespaces.entry(&account.namespace).or_default();
        names.insert(account.name.clone());
    }
    let statement = |(namespace, names): (&str, BTreeSet<String>)| {
        let mut condition = Map::new();
        condition.insert(
            "StringEquals".to_owned(),
            json!({"aws:SourceAccount": cluster.account.to_string()}),
        );
        condition.insert(
            "ArnEquals".to_owned(),
            json!({"aws:SourceArn": cluster.to_string()}),
        );
        for (tag, values) in [
            (
                "kubernetes-namespace",
                BTreeSet::from([namespace.to_owned()]),
            ),
            ("kubernetes-service-account", names),
        ] {
            let tests = condition
                .entry(operator(&values))
                .or_insert_with(|| json!({}));
            tests[format!("aws:RequestTag/{tag}")] = one_or_many(values);
        }
        json!({
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": condition,
        })
    };
    Document::new(Kind::Trust, namespaces.into_iter().map(statement).collect())
}

/// Prints the trust in other roles, under one of these sets of conditions. Tags are always
/// allowed: those that EKS Pod Identity sets on the session of the caller go along with each call.
pub fn assumed_by(roles: &[RoleArn], conditions: &[Conditions]) -> Result<Document, IamError> {
    let partitions = roles
        .iter()
        .map(|role| (role.to_string(), role.partition()));
    one_partition(partitions, Partition::Aws)?;
    let roles: BTreeSet<String> = roles.iter().map(ToString::to_string).collect();
    if roles.is_empty() {
        return Err(IamError::Nothing);
    }
    let principals = one_or_many(roles);
    let statement = |conditions: &Conditions| {
        let mut statement = json!({
            "Effect": "Allow",
            "Principal": {"AWS": principals},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        });
        if let Some(condition) = conditions.to_value() {
            statement["Condition"] = condition;
        }
        statement
    };
    Document::new(Kind::Trust, conditions.iter().map(statement).collect())
}

/// Prints the trust in the instances of an account: the role of nodes.
pub fn ec2(partition: Partition) -> Result<Document, IamError> {
    let service = match partition {
        Partition::AwsCn => "ec2.amazonaws.com.cn",
        Partition::AwsIso => "ec2.c2s.ic.gov",
        Partition::AwsIsoB => "ec2.sc2s.sgov.gov",
        Partition::AwsIsoE => "ec2.cloud.adc-e.uk",
        Partition::AwsIsoF => "ec2.csp.hci.ic.gov",
        Partition::Aws | Partition::AwsUsGov => "ec2.amazonaws.com",
        Partition::AwsEusc => return Err(IamError::UnknownService(partition)),
    };
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    });
    Document::new(Kind::Trust, vec![statement])
}
