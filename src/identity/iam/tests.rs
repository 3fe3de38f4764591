//! Tests of the IAM documents.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Document, IamError, Kind,
    installation::{self, Installation},
    parts::{ClusterArn, ExternalId, OidcProvider, Repository, RolePattern, ServiceAccount},
    parts::{Organization, SessionTag},
    permissions::{self, Permissions, Registries},
    terraform,
    trust::{self, Conditions},
};
use crate::{
    cluster::namespace::Namespace,
    identity::{
        AssumeRoleOptions, DefaultIdentity, Identities, NamespaceRoles, Profile, RoleArn,
        RoleTemplate, Rule, pattern::Pattern,
    },
    registry::{AccountId, Partition, Region},
};

const OWN: &str = "arn:aws:iam::111122223333:role/ecr-injector";

fn account(text: &str) -> AccountId {
    AccountId::parse(text).expect("an account")
}

fn role(text: &str) -> RoleArn {
    RoleArn::parse(text).expect("an ARN")
}

fn pulls(account_id: &str, region: Option<&str>) -> Permissions {
    let mut registries = Registries::default();
    let region = region.map(|region| Region::parse(region).expect("a region"));
    registries.insert(account(account_id), region);
    Permissions {
        registries,
        ..Permissions::default()
    }
}

#[test]
fn repositories_are_every_pair_of_registry_and_name() {
    let mut permissions = pulls("123456789012", Some("eu-west-1"));
    permissions
        .registries
        .extend(pulls("210987654321", None).registries);
    // All regions of the account have that one among them.
    let one = pulls("210987654321", Some("us-east-1"));
    permissions.registries.extend(one.registries);
    for name in ["team-a/*", "base"] {
        let repository = Repository::parse(name).expect("a repository");
        permissions.repositories.insert(repository);
    }
    let document = permissions::policy(&permissions, Partition::Aws).expect("a policy");
    let expected = json!([
        "arn:aws:ecr:*:210987654321:repository/base",
        "arn:aws:ecr:*:210987654321:repository/team-a/*",
        "arn:aws:ecr:eu-west-1:123456789012:repository/base",
        "arn:aws:ecr:eu-west-1:123456789012:repository/team-a/*",
    ]);
    assert_eq!(document.to_value()["Statement"][1]["Resource"], expected);
}

#[test]
fn parts_of_two_partitions_are_an_error() {
    let mut permissions = pulls("123456789012", Some("cn-north-1"));
    let arn = "arn:aws:iam::123456789012:role/x";
    let pattern = RolePattern::parse(arn).expect("a pattern");
    permissions.assume.insert(pattern);
    let error = permissions::policy(&permissions, Partition::Aws).expect_err("two partitions");
    assert_eq!(
        error.to_string(),
        "123456789012 in cn-north-1 is in partition aws-cn, arn:aws:iam::123456789012:role/x in \
         aws: a policy belongs to one partition; print one for each"
    );
    permissions.assume.clear();
    permissions.public = true;
    let error = permissions::policy(&permissions, Partition::Aws);
    assert_eq!(error, Err(IamError::Public(Partition::AwsCn)));
}

#[test]
fn document_that_is_too_long_is_an_error_with_both_numbers() {
    let mut permissions = pulls("123456789012", Some("eu-west-1"));
    let name = |at: usize| Repository::parse(&format!("team/{at:0>40}")).expect("a repository");
    for at in 0.. {
        permissions.repositories.insert(name(at));
        let document = permissions::policy(&permissions, Partition::Aws);
        let Err(error) = document else { continue };
        let IamError::TooLong { length, limit } = error else {
            panic!("{error}");
        };
        assert_eq!(limit, 6144);
        assert!((6145..6300).contains(&length), "{length}");
        assert!(error.to_string().contains(&length.to_string()), "{error}");
        return;
    }
}

#[test]
fn nothing_to_allow_is_no_document() {
    let nothing = permissions::policy(&Permissions::default(), Partition::Aws);
    assert_eq!(nothing, Err(IamError::Nothing));
    assert_eq!(trust::assumed_by(&[], &[]), Err(IamError::Nothing));
    let cluster = ClusterArn::parse("arn:aws:eks:eu-west-1:123456789012:cluster/c");
    let cluster = cluster.expect("a cluster");
    assert_eq!(trust::pod_identity(&cluster, &[]), Err(IamError::Nothing));
}

#[test]
fn texts_that_are_no_names_are_rejected() {
    fn rejected<T>(parse: impl Fn(&str) -> Result<T, &'static str>, texts: &[&str]) {
        for text in texts {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
    rejected(
        Repository::parse,
        &[
            "",
            "Team/app",
            "/app",
            "app/",
            "a//b",
            "app:v1",
            "a?",
            "${x}",
            &"a".repeat(257),
        ],
    );
    rejected(
        RolePattern::parse,
        &[
            "*",
            "arn:aws:iam::*:user/x",
            "arn:*:iam::123456789012:role/x",
            "arn:aws:iam::12:role/x",
        ],
    );
    rejected(
        ServiceAccount::parse,
        &[
            "", "a", "/b", "a/", "a/b/c", "A/b", "a/B", "a/b:1", "a?/b", "a/b ", "${x}/b",
        ],
    );
    rejected(
        OidcProvider::parse,
        &[
            "",
            "http://oidc.example/id",
            "https://",
            "https://user@oidc.example",
            "oidc",
            "https://oidc.example:8443/id",
            "https://oidc.example/id?x=1",
            "https://oidc.example/i d",
            "arn:aws:iam::123456789012:role/x",
            "ftp://oidc.example",
            "HTTPS://oidc.example",
            "arn:aws:iam::12:oidc-provider/oidc.example",
        ],
    );
    rejected(
        ClusterArn::parse,
        &[
            "c",
            "arn:aws:eks:eu-west-1:123456789012:cluster/",
            "arn:aws:eks:*:123456789012:cluster/c",
            "arn:aws:eks:cn-north-1:123456789012:cluster/c",
            "arn:aws:eks:eu-west-1:123456789012:cluster/*",
        ],
    );
    rejected(
        Organization::parse,
        &["", "o-", "o-ABC123DEF4", "r-abc123def4", "o-abc123def"],
    );
    rejected(
        ExternalId::parse,
        &["", "a", "a b", "a*", &"a".repeat(1225)],
    );
    rejected(
        SessionTag::parse,
        &["", "=x", "a b", "a*=x", "a=", "a=\"", "a=${x}"],
    );
}

#[test]
fn oidc_provider_is_named_as_iam_names_it() {
    let name = "oidc.eks.cn-north-1.amazonaws.com.cn/id/0A";
    for text in [
        "https://oidc.eks.cn-north-1.amazonaws.com.cn/id/0A/",
        name,
        &format!("arn:aws-cn:iam::123456789012:oidc-provider/{name}"),
    ] {
        let provider = OidcProvider::parse(text).expect(text);
        assert_eq!(
            (&*provider.name, provider.partition),
            (name, Some(Partition::AwsCn))
        );
    }
    let other = OidcProvider::parse("https://oidc.example").expect("an issuer");
    assert_eq!((&*other.name, other.partition), ("oidc.example", None));
}

/// One statement with both names of both namespaces would trust four `ServiceAccount`s.
#[test]
fn pod_identity_pairs_no_namespace_with_anothers_accounts() {
    let cluster = ClusterArn::parse("arn:aws:eks:eu-west-1:123456789012:cluster/c");
    let accounts = ["a/x", "b/y", "a/z", "b/p-*"].map(|it| ServiceAccount::parse(it).expect(it));
    let document = trust::pod_identity(&cluster.expect("a cluster"), &accounts).expect("trust");
    let tags = |at: usize, operator: &str| {
        let tests = &document.to_value()["Statement"][at]["Condition"][operator];
        ["kubernetes-namespace", "kubernetes-service-account"]
            .map(|tag| tests[format!("aws:RequestTag/{tag}")].clone())
    };
    assert_eq!(tags(0, "StringEquals"), [json!("a"), json!(["x", "z"])]);
    assert_eq!(tags(1, "StringEquals"), [json!("b"), Value::Null]);
    assert_eq!(tags(1, "StringLike"), [Value::Null, json!(["p-*", "y"])]);
}

#[test]
fn role_of_nodes_trusts_ec2_by_its_name_in_the_partition() {
    for (partition, service) in [
        (Partition::Aws, "ec2.amazonaws.com"),
        (Partition::AwsUsGov, "ec2.amazonaws.com"),
        (Partition::AwsCn, "ec2.amazonaws.com.cn"),
    ] {
        let document = trust::ec2(partition).expect("trust").to_value();
        assert_eq!(document["Statement"][0]["Principal"]["Service"], service);
    }
    let unknown = trust::ec2(Partition::AwsEusc).expect_err("not known");
    assert!(
        unknown.to_string().contains("aws-eusc is not known here"),
        "{unknown}"
    );
}

#[test]
fn tag_without_a_value_has_to_be_there() {
    let tags = ["team", "namespace=a-*", "stage=prod"].map(|it| SessionTag::parse(it).expect(it));
    let conditions = Conditions::new(None, &tags);
    let document = trust::assumed_by(&[role(OWN)], &[conditions]).expect("trust");
    let expected = json!({
        "StringLike": {"aws:RequestTag/namespace": "a-*", "aws:RequestTag/team": "?*"},
        "StringEquals": {"aws:RequestTag/stage": "prod"},
    });
    assert_eq!(document.to_value()["Statement"][0]["Condition"], expected);
}

#[test]
fn terraform_takes_no_part_of_a_text_for_an_expression() {
    let statement = json!({"Condition": {"a\"b": "${x} %{y} \\"}});
    let document = Document::new(Kind::Permissions, vec![statement]).expect("short");
    let text = terraform::resource(&document, "x", &[]);
    assert!(text.contains(r#""a\"b" = "$${x} %%{y} \\""#), "{text}");
    assert_eq!(terraform::label("1.a-b"), "_1_a_b");
}

/// A configuration, and what is printed for it.
struct Printed {
    identities: Identities,
    accounts: BTreeSet<AccountId>,
    namespaces: Vec<Namespace>,
}

impl Printed {
    fn of(rules: Vec<Rule>) -> Self {
        Self {
            identities: Identities {
                rules,
                default: DefaultIdentity::None,
                ..Identities::default()
            },
            accounts: BTreeSet::new(),
            namespaces: Vec::new(),
        }
    }

    fn documents(&self) -> Result<Vec<installation::RoleDocuments>, IamError> {
        installation::documents(&Installation {
            identities: &self.identities,
            accounts: &self.accounts,
            regions: &BTreeSet::new(),
            public: true,
            own_role: &role(OWN),
            has_session_tags: false,
            namespaces: &self.namespaces,
            repositories: &BTreeSet::new(),
            pull_through: false,
        })
    }

    /// Returns the name, the trust's conditions and the first repositories of each role but the
    /// own.
    fn roles(&self) -> Vec<(String, Vec<Value>, Value)> {
        let documents = self.documents().expect("documents");
        let of = |it: &installation::RoleDocuments| {
            let value = |document: &Option<Document>| {
                document.as_ref().map_or(Value::Null, Document::to_value)
            };
            let statements = value(&it.trust)["Statement"].clone();
            let statements = statements.as_array().cloned().unwrap_or_default();
            let conditions = statements.iter().map(|it| it["Condition"].clone());
            let policy = value(&it.policy)["Statement"][1]["Resource"].clone();
            (it.name.clone(), conditions.collect(), policy)
        };
        documents[1..].iter().map(of).collect()
    }
}

fn rule(namespaces: &[&str], arn: &str, options: AssumeRoleOptions) -> Rule {
    let patterns = namespaces.iter().map(|it| Pattern::parse(it).expect(it));
    Rule {
        accounts: BTreeSet::from([account("210987654321")]),
        regions: BTreeSet::new(),
        namespaces: patterns.collect(),
        assume_role: Some(RoleTemplate::new(arn.to_owned(), options)),
        profile: None,
    }
}

fn tagged() -> AssumeRoleOptions {
    AssumeRoleOptions {
        external_id: Some("prod/{namespace}".to_owned()),
        tags: [("namespace".to_owned(), "{namespace}".to_owned())].into(),
        ..AssumeRoleOptions::default()
    }
}

#[test]
fn template_is_one_role_per_namespace_that_is_known() {
    let arn = "arn:aws:iam::111122223333:role/pull-{namespace}";
    let mut printed = Printed::of(vec![rule(&["team-a", "team-b"], arn, tagged())]);
    let condition = |namespace: &str| {
        json!({"StringEquals": {
            "sts:ExternalId": format!("prod/{namespace}"),
            "aws:RequestTag/namespace": namespace,
        }})
    };
    let resource = json!(["arn:aws:ecr:*:210987654321:repository/*"]);
    let expected = |namespace: &str| {
        let name = format!("pull-{namespace}");
        (name, vec![condition(namespace)], resource.clone())
    };
    assert_eq!(printed.roles(), [expected("team-a"), expected("team-b")]);

    // Those that are named, as far as the rule matches them.
    let names = ["team-b", "other"];
    printed.namespaces = names.map(|it| Namespace::parse(it).expect(it)).to_vec();
    assert_eq!(printed.roles(), [expected("team-b")]);

    // None is known: the placeholder stays, and the notes say so.
    printed.namespaces.clear();
    printed.identities.rules = vec![rule(&["team-*"], arn, tagged())];
    assert_eq!(printed.roles(), [expected("{namespace}")]);
    let notes = printed.documents().expect("documents")[1].notes.join("\n");
    assert!(
        notes.contains("name the namespaces with --namespace"),
        "{notes}"
    );
}

#[test]
fn role_for_many_namespaces_has_the_tags_of_all() {
    let arn = "arn:aws:iam::111122223333:role/pull";
    let condition = |namespaces: &[&str]| {
        let (_, conditions, _) = Printed::of(vec![rule(namespaces, arn, tagged())])
            .roles()
            .remove(0);
        conditions[0].clone()
    };
    assert_eq!(
        condition(&["a", "b"]),
        json!({"StringEquals": {
            "sts:ExternalId": ["prod/a", "prod/b"], "aws:RequestTag/namespace": ["a", "b"],
        }})
    );
    assert_eq!(
        condition(&["a-*", "b"]),
        json!({"StringLike": {
            "sts:ExternalId": ["prod/a-*", "prod/b"], "aws:RequestTag/namespace": ["a-*", "b"],
        }})
    );
    assert_eq!(
        condition(&[]),
        json!({"StringLike": {"sts:ExternalId": "prod/*", "aws:RequestTag/namespace": "*"}})
    );
}

/// A condition of one rule must not hold for the sessions of another.
#[test]
fn rules_of_one_role_keep_their_own_conditions() {
    let arn = "arn:aws:iam::111122223333:role/pull";
    let rules = vec![
        rule(&["a"], arn, tagged()),
        rule(&["b"], arn, AssumeRoleOptions::default()),
    ];
    let printed = Printed::of(rules).roles();
    assert_eq!(printed.len(), 1);
    let (_, conditions, _) = &printed[0];
    assert_eq!(conditions.len(), 2);
    assert!(
        conditions[0].is_object() && conditions[1].is_null(),
        "{conditions:?}"
    );
}

#[test]
fn own_role_may_assume_the_roles_and_mints_only_if_it_has_to() {
    let own = |printed: &Printed| {
        let policy = printed.documents().expect("documents").remove(0).policy;
        policy.map_or(Value::Null, |it| it.to_value()["Statement"].clone())
    };
    let arn = "arn:aws:iam::111122223333:role/pull-{namespace}";
    let mut printed = Printed::of(vec![rule(&[], arn, AssumeRoleOptions::default())]);
    let assume = json!({
        "Sid": "Assume",
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Resource": ["arn:aws:iam::111122223333:role/pull-*"],
    });
    assert_eq!(own(&printed), json!([assume]));

    printed.identities.default = DefaultIdentity::Ambient;
    printed.accounts = BTreeSet::from([account("444455556666")]);
    let statements = own(&printed);
    let sids: Vec<&Value> = statements
        .as_array()
        .expect("some")
        .iter()
        .map(|it| &it["Sid"])
        .collect();
    assert_eq!(sids, ["Tokens", "Pulls", "PublicTokens", "Assume"]);
    let resource = json!(["arn:aws:ecr:*:444455556666:repository/*"]);
    assert_eq!(statements[1]["Resource"], resource);

    // A role that a profile assumes is not for the own role to assume, nor is the trust known.
    let options = AssumeRoleOptions {
        profile: Profile::parse("partner"),
        ..AssumeRoleOptions::default()
    };
    let printed = Printed::of(vec![rule(&["a"], arn, options)]);
    assert_eq!(own(&printed), Value::Null);
    let documents = printed.documents().expect("documents");
    assert!(documents[1].trust.is_none() && documents[1].policy.is_some());
    assert!(
        documents[1]
            .notes
            .join("\n")
            .contains("profile partner assumes")
    );
}

#[test]
fn roles_of_annotations_are_printed_if_their_names_are_known() {
    let roles = |pattern: &str| {
        let mut printed = Printed::of(Vec::new());
        printed.identities.namespace_roles = NamespaceRoles {
            allow: vec![Pattern::parse(pattern).expect(pattern)],
            options: tagged(),
        };
        printed.namespaces = vec![Namespace::parse("a").expect("a name")];
        let documents = printed.documents().expect("documents");
        let own = documents[0].policy.as_ref().expect("a policy").to_value();
        let names: Vec<String> = documents[1..].iter().map(|it| it.name.clone()).collect();
        (own["Statement"][0]["Resource"].clone(), names)
    };
    let known = roles("arn:aws:iam::111122223333:role/pull-{namespace}");
    let arns = json!(["arn:aws:iam::111122223333:role/pull-*"]);
    assert_eq!(known, (arns, vec!["pull-a".to_owned()]));
    let unknown = roles("arn:aws:iam::*:role/pull-*");
    assert_eq!(unknown, (json!(["arn:aws:iam::*:role/pull-*"]), vec![]));
}

#[test]
fn files_of_roles_with_one_name_are_told_apart() {
    let arns = [
        "111122223333:role/pull",
        "111122223333:role/x/Pull",
        "444455556666:role/other",
    ];
    let rules = arns.map(|arn| {
        rule(
            &[],
            &format!("arn:aws:iam::{arn}"),
            AssumeRoleOptions::default(),
        )
    });
    let printed = Printed::of(rules.to_vec()).roles();
    let names: Vec<&str> = printed.iter().map(|(name, ..)| &**name).collect();
    assert_eq!(names, ["111122223333.pull", "111122223333.x.Pull", "other"]);
    let error = Printed::of(vec![rule(&[], OWN, AssumeRoleOptions::default())]).documents();
    assert_eq!(error.map(|_| ()), Err(IamError::OwnRole(OWN.to_owned())));
}
