//! Which identity mints, as a table, and as laws that no input may break.

use ecr_injector::cluster::namespace::{Namespace, NamespaceSettings};
use ecr_injector::identity::pattern::Pattern;
use ecr_injector::identity::{
    AssumeRoleOptions, DefaultIdentity, Identities, Identity, NamespaceRoles, Profile, Refusal,
    RoleTemplate, Rule,
};
use ecr_injector::registry::{AccountId, Region, Registry};
use proptest::prelude::*;

const OWN: &str = "111122223333";
const OTHER: &str = "444455556666";

fn host(account: &str, region: &str) -> String {
    let suffix = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("{account}.dkr.ecr.{region}.{suffix}")
}

fn registry(host: &str) -> Registry {
    Registry::parse(host)
        .or_else(|| Registry::parse_public(host))
        .expect("a registry")
}

fn arn(name: &str) -> String {
    format!("arn:aws:iam::{OWN}:role/{name}")
}

fn rule(accounts: &[&str], regions: &[&str], namespaces: &[&str], role: Option<&str>) -> Rule {
    Rule {
        accounts: accounts
            .iter()
            .map(|text| AccountId::parse(text).expect("an account"))
            .collect(),
        regions: regions
            .iter()
            .map(|text| Region::parse(text).expect("a region"))
            .collect(),
        namespaces: namespaces
            .iter()
            .map(|text| Pattern::parse(text).expect("a pattern"))
            .collect(),
        assume_role: role.map(|name| RoleTemplate::new(arn(name), AssumeRoleOptions::default())),
        profile: None,
    }
}

fn allowing(patterns: &[&str]) -> NamespaceRoles {
    NamespaceRoles {
        allow: patterns
            .iter()
            .map(|text| Pattern::parse(text).expect("a pattern"))
            .collect(),
        options: AssumeRoleOptions::default(),
    }
}

fn said(role: Option<&str>) -> NamespaceSettings {
    NamespaceSettings {
        role: role.map(Into::into),
        ..NamespaceSettings::default()
    }
}

/// Returns the identity that mints, in a word: `ambient`, a role's name, or why none does.
fn who(identities: &Identities, host: &str, namespace: &str, annotation: Option<&str>) -> String {
    let namespace = Namespace::parse(namespace).expect("a namespace");
    let choice = identities.choose(&registry(host), &namespace, &said(annotation));
    match choice.identity {
        Ok(Identity::Ambient) => "ambient".to_owned(),
        Ok(Identity::Profile(profile)) => format!("profile {}", profile.name()),
        Ok(Identity::Role(role)) => {
            let (_, name) = role.arn.as_str().split_once(":role/").expect("a role");
            name.to_owned()
        }
        Err(refusal) => refusal.as_str().to_owned(),
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn first_rule_then_annotation_then_ambient_identity_mints() {
    let (ireland, oregon) = (host(OWN, "eu-west-1"), host(OWN, "us-west-2"));
    let (other, china) = (host(OTHER, "eu-west-1"), host(OWN, "cn-north-1"));
    let fips = format!("{OWN}.dkr.ecr-fips.us-east-1.amazonaws.com");
    let (public, gallery) = ("public.ecr.aws", "ecr-public.aws.com");
    let pull = arn("ecr-pull-x");
    let (pull_path, admin) = (arn("ecr-pull-x/admin"), arn("admin"));
    let own_name = arn("of-team-a");
    let china_role = format!("arn:aws-cn:iam::{OWN}:role/ecr-pull-x");
    let other_pull = format!("arn:aws:iam::{OTHER}:role/ecr-pull-x");

    let empty = Identities::default();
    let by_account = Identities {
        rules: vec![
            rule(&[OWN], &[], &[], Some("own")),
            rule(&[OTHER], &[], &[], Some("other")),
        ],
        ..Identities::default()
    };
    let by_region = Identities {
        rules: vec![rule(&[], &["eu-west-1"], &[], Some("eu"))],
        ..Identities::default()
    };
    let by_namespace = Identities {
        rules: vec![
            rule(&[], &[], &["team-a"], Some("a")),
            rule(&[], &[], &["team-*"], Some("any-team")),
            rule(&[], &[], &["platform"], None),
        ],
        default: DefaultIdentity::None,
        ..Identities::default()
    };
    let by_all = Identities {
        rules: vec![rule(
            &[OWN],
            &["eu-west-1"],
            &["team-a", "team-b"],
            Some("narrow"),
        )],
        namespace_roles: allowing(&["arn:aws:iam::*:role/ecr-pull-*"]),
        ..Identities::default()
    };
    let annotated = Identities {
        namespace_roles: allowing(&["arn:aws:iam::111122223333:role/ecr-pull-*"]),
        ..Identities::default()
    };
    let own_only = Identities {
        namespace_roles: allowing(&["arn:aws:iam::111122223333:role/of-{namespace}"]),
        default: DefaultIdentity::None,
        ..Identities::default()
    };
    let templated = Identities {
        rules: vec![rule(&[], &[], &[], Some("of-{namespace}"))],
        ..Identities::default()
    };
    let china_rules = Identities {
        namespace_roles: allowing(&["arn:aws-cn:iam::*:role/ecr-pull-*"]),
        ..Identities::default()
    };

    let cases: &[(&Identities, &str, &str, Option<&str>, &str)] = &[
        // Nothing configured.
        (&empty, &ireland, "team-a", None, "ambient"),
        (&empty, &china, "team-a", None, "ambient"),
        (&empty, &fips, "team-a", None, "ambient"),
        (&empty, public, "team-a", None, "ambient"),
        (&empty, &ireland, "team-a", Some(&pull), "role_not_allowed"),
        (&empty, &ireland, "team-a", Some(""), "invalid_role_arn"),
        (
            &empty,
            &ireland,
            "team-a",
            Some("ambient"),
            "invalid_role_arn",
        ),
        (&empty, public, "team-a", Some(&pull), "role_not_allowed"),
        // By the registry's account.
        (&by_account, &ireland, "team-a", None, "own"),
        (&by_account, &oregon, "team-a", None, "own"),
        (&by_account, &fips, "team-a", None, "own"),
        (&by_account, &other, "team-a", None, "other"),
        (
            &by_account,
            &host("999999999999", "eu-west-1"),
            "team-a",
            None,
            "ambient",
        ),
        (&by_account, public, "team-a", None, "ambient"),
        (&by_account, &china, "team-a", None, "partition_mismatch"),
        // A rule wins over an annotation, allowed or not.
        (&by_account, &ireland, "team-a", Some(&pull), "own"),
        (&by_account, &ireland, "team-a", Some("nonsense"), "own"),
        (
            &by_account,
            public,
            "team-a",
            Some(&pull),
            "role_not_allowed",
        ),
        // By region.
        (&by_region, &ireland, "team-a", None, "eu"),
        (&by_region, &other, "team-a", None, "eu"),
        (&by_region, &oregon, "team-a", None, "ambient"),
        (&by_region, public, "team-a", None, "ambient"),
        (&by_region, &china, "team-a", None, "ambient"),
        // By namespace; the first of two that match; and nobody by default.
        (&by_namespace, &ireland, "team-a", None, "a"),
        (&by_namespace, &ireland, "team-a1", None, "any-team"),
        (&by_namespace, &ireland, "team-x", None, "any-team"),
        (&by_namespace, &ireland, "my-team-a", None, "no_identity"),
        (&by_namespace, &ireland, "platform", None, "ambient"),
        (&by_namespace, &ireland, "platform", Some(&pull), "ambient"),
        (&by_namespace, &ireland, "platform-2", None, "no_identity"),
        (&by_namespace, &ireland, "default", None, "no_identity"),
        (
            &by_namespace,
            &ireland,
            "default",
            Some(&pull),
            "role_not_allowed",
        ),
        (&by_namespace, public, "team-a", None, "a"),
        (&by_namespace, gallery, "default", None, "no_identity"),
        (&by_namespace, &china, "team-b", None, "partition_mismatch"),
        // All three together: each has to match.
        (&by_all, &ireland, "team-a", None, "narrow"),
        (&by_all, &ireland, "team-b", None, "narrow"),
        (&by_all, &ireland, "team-c", None, "ambient"),
        (&by_all, &oregon, "team-a", None, "ambient"),
        (&by_all, &other, "team-a", None, "ambient"),
        (&by_all, &oregon, "team-a", Some(&pull), "ecr-pull-x"),
        (&by_all, &ireland, "team-a", Some(&pull), "narrow"),
        (&by_all, &oregon, "team-a", Some(&other_pull), "ecr-pull-x"),
        (&by_all, public, "team-a", Some(&pull), "ecr-pull-x"),
        // By annotation.
        (&annotated, &ireland, "team-a", Some(&pull), "ecr-pull-x"),
        (&annotated, &other, "team-b", Some(&pull), "ecr-pull-x"),
        (&annotated, &ireland, "team-a", None, "ambient"),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&admin),
            "role_not_allowed",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&pull_path),
            "role_not_allowed",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&other_pull),
            "role_not_allowed",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&china_role),
            "role_not_allowed",
        ),
        (
            &annotated,
            &china,
            "team-a",
            Some(&pull),
            "partition_mismatch",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(" "),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&format!("{pull} ")),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some(&format!("{pull}\n")),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some("arn:aws:iam::111122223333:user/ecr-pull-x"),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some("arn:aws:sts::111122223333:assumed-role/ecr-pull-x/s"),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some("arn:aws:iam::1111:role/ecr-pull-x"),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some("arn:aws:iam::111122223333:role/"),
            "invalid_role_arn",
        ),
        (
            &annotated,
            &ireland,
            "team-a",
            Some("arn:aws:iam::111122223333:role/ecr-pull-*"),
            "invalid_role_arn",
        ),
        (
            &china_rules,
            &china,
            "team-a",
            Some(&china_role),
            "ecr-pull-x",
        ),
        (
            &china_rules,
            &ireland,
            "team-a",
            Some(&china_role),
            "partition_mismatch",
        ),
        // Only the role of one's own name.
        (&own_only, &ireland, "team-a", Some(&own_name), "of-team-a"),
        (
            &own_only,
            &ireland,
            "team-b",
            Some(&own_name),
            "role_not_allowed",
        ),
        (&own_only, &ireland, "team-a", None, "no_identity"),
        (&templated, &ireland, "team-a", None, "of-team-a"),
        (&templated, &ireland, "team-b", None, "of-team-b"),
        (&templated, &ireland, "team-b", Some(&own_name), "of-team-b"),
    ];
    assert!(cases.len() >= 60, "{} cases", cases.len());
    for (at, (identities, host, namespace, annotation, expected)) in cases.iter().enumerate() {
        assert_eq!(
            who(identities, host, namespace, *annotation),
            *expected,
            "case {at}: {host} in {namespace} with {annotation:?}"
        );
    }
}

/// An ARN, near enough to one of the patterns below to hit or to miss them.
fn some_annotation() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        Just(None),
        "arn:(aws|aws-cn):iam::(111122223333|444455556666|1):role/(ecr-pull-|of-|x/|)(a|b|team-a|team-b|\\*|)(/admin|)"
            .prop_map(Some),
        "\\PC{0,40}".prop_map(Some),
    ]
}

fn some_rules() -> impl Strategy<Value = Identities> {
    let account = prop_oneof![Just(OWN), Just(OTHER)];
    let namespaces = prop_oneof![
        Just("team-a"),
        Just("team-*"),
        Just("*"),
        Just("{namespace}")
    ];
    let rule = (
        prop::collection::vec(account, 0..2),
        prop::collection::vec(namespaces, 0..2),
        prop::option::of(prop_oneof![Just("r1"), Just("r2"), Just("of-{namespace}")]),
        prop::option::of(prop_oneof![Just("vendor"), Just("cn")]),
    )
        .prop_map(|(accounts, namespaces, role, profile)| {
            let profile = profile.and_then(Profile::parse);
            let options = AssumeRoleOptions {
                profile: profile.clone(),
                ..AssumeRoleOptions::default()
            };
            Rule {
                assume_role: role.map(|name| RoleTemplate::new(arn(name), options)),
                profile,
                ..rule(&accounts, &[], &namespaces, None)
            }
        });
    let allow = prop::collection::vec(
        prop_oneof![
            Just("arn:aws:iam::*:role/ecr-pull-*"),
            Just("arn:aws:iam::111122223333:role/of-{namespace}"),
            Just("arn:aws-cn:iam::*:role/*"),
        ],
        0..3,
    );
    (prop::collection::vec(rule, 0..3), allow, any::<bool>()).prop_map(|(rules, allow, ambient)| {
        Identities {
            rules,
            namespace_roles: allowing(&allow),
            default: if ambient {
                DefaultIdentity::Ambient
            } else {
                DefaultIdentity::None
            },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whoever mints stands in the rule that decided, is the role that was annotated and allowed, or is the ambient
    /// identity where that is given to all.
    #[test]
    fn namespace_gets_no_identity_beyond_the_rules(
        identities in some_rules(),
        account in prop_oneof![Just(OWN), Just(OTHER)],
        region in prop_oneof![Just("eu-west-1"), Just("cn-north-1")],
        namespace in "team-[abc]",
        annotation in some_annotation(),
    ) {
        let registry = registry(&host(account, region));
        let namespace = Namespace::parse(&namespace).expect("valid");
        let choice = identities.choose(&registry, &namespace, &said(annotation.as_deref()));
        // By the words of the documentation, with none of the code above.
        let matching = identities.rules.iter().find(|rule| {
            (rule.accounts.is_empty() || rule.accounts.iter().any(|a| a.as_str() == account))
                && (rule.namespaces.is_empty() || rule.namespaces.iter().any(|pattern| {
                    match pattern.to_string().as_str() {
                        "team-a" => namespace.as_str() == "team-a",
                        _ => true,
                    }
                }))
        });
        match (matching, &annotation, &choice.identity) {
            (Some(rule), _, Ok(Identity::Ambient)) => {
                prop_assert!(rule.assume_role.is_none() && rule.profile.is_none());
            }
            (Some(rule), _, Ok(Identity::Profile(profile))) => {
                prop_assert!(rule.assume_role.is_none());
                prop_assert_eq!(rule.profile.as_ref(), Some(profile));
            }
            (Some(rule), _, Ok(Identity::Role(role))) => {
                let template = rule.assume_role.as_ref().expect("a role").arn();
                prop_assert_eq!(template.replace("{namespace}", namespace.as_str()), role.arn.as_str());
                prop_assert_eq!(region, "eu-west-1");
                prop_assert_eq!(&role.options.profile, &rule.profile);
            }
            (Some(rule), _, Err(refusal)) => {
                prop_assert!(rule.assume_role.is_some());
                prop_assert_eq!(refusal.as_str(), "partition_mismatch");
            }
            (None, Some(text), Ok(identity)) => {
                let Identity::Role(role) = identity else {
                    return Err(TestCaseError::fail("ambient in spite of an annotation"));
                };
                prop_assert_eq!(role.arn.as_str(), text);
                let own = format!("arn:aws:iam::111122223333:role/of-{namespace}");
                let is_given = identities.namespace_roles.allow.iter().any(|pattern| {
                    let (_, name) = text.split_once(":role/").expect("a role");
                    match pattern.to_string().as_str() {
                        "arn:aws:iam::*:role/ecr-pull-*" => {
                            text.starts_with("arn:aws:") && name.starts_with("ecr-pull-") && !name.contains('/')
                        }
                        "arn:aws-cn:iam::*:role/*" => text.starts_with("arn:aws-cn:") && !name.contains('/'),
                        _ => *text == own,
                    }
                });
                prop_assert!(is_given, "{} was not allowed", text);
                prop_assert_eq!(text.starts_with("arn:aws-cn:"), region == "cn-north-1");
            }
            (None, Some(_), Err(_)) => {}
            (None, None, Ok(identity)) => {
                prop_assert_eq!(identity, &Identity::Ambient);
                prop_assert_eq!(identities.default, DefaultIdentity::Ambient);
            }
            (None, None, Err(refusal)) => {
                prop_assert_eq!(refusal, &Refusal::NoDefault);
                prop_assert_eq!(identities.default, DefaultIdentity::None);
            }
        }
    }
}
