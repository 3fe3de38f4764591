//! Unit tests of `identity`.

use super::*;
use crate::config::Config;

fn test_arn(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

#[test]
fn ambient_identitys_hash_is_that_of_its_name() {
    assert_eq!(Identity::Ambient.hash(), hash_of("ambient"));
}

#[test]
fn ambient_hash_never_changes_because_secrets_carry_it() {
    assert_eq!(Identity::Ambient.hash().to_string(), "31d18c0defdc3e0e");
}

fn role(change: impl FnOnce(&mut Role)) -> Identity {
    let namespace = Namespace::parse("team-a").expect("valid");
    let arn = RoleArn::parse(&test_arn("pull")).expect("an ARN");
    let made = AssumeRoleOptions::default().role(arn, namespace.as_str());
    let mut role = Arc::unwrap_or_clone(made);
    change(&mut role);
    role.hash = hash_of_role(&role.arn, &role.options);
    Identity::Role(Arc::new(role))
}

#[test]
fn role_hash_covers_the_principal_and_its_permissions() {
    let plain = role(|_| {}).hash();
    assert_eq!(plain.to_string(), "46caae5cd7d367d3", "secrets carry it");
    for changed in [
        role(|role| role.arn = RoleArn::parse(&test_arn("push")).expect("an ARN")),
        role(|role| role.options.external_id = Some("x".into())),
        role(|role| role.options.session_name = "other".into()),
        role(|role| role.options.pull_only = true),
        role(|role| {
            role.options.tags.insert("team".into(), "a".into());
        }),
        role(|role| role.options.profile = Profile::parse("vendor")),
    ] {
        assert_ne!(changed.hash(), plain, "{changed:?}");
    }
    for same in [
        role(|role| role.options.duration_seconds = 900),
        role(|role| role.options.sts_region = Region::parse("eu-west-1")),
    ] {
        assert_eq!(same.hash(), plain, "{same:?}");
    }
}

#[test]
fn profiles_hash_is_that_of_no_other_identity() {
    let profile = |name| Identity::Profile(Profile::parse(name).expect("a profile"));
    let hash = profile("vendor").hash();
    assert_eq!(hash.to_string(), "6063e649621d4765", "secrets carry it");
    assert_ne!(hash, profile("vendor-2").hash());
    assert_ne!(profile("ambient").hash(), Identity::Ambient.hash());
    let role = |name| role(|role| role.options.profile = Profile::parse(name)).hash();
    assert_ne!(role("vendor"), role("vendor-2"));
    assert_ne!(role("vendor"), hash);
}

#[test]
fn identities_are_spread_in_hash_tables() {
    let state = std::hash::RandomState::new();
    let hash = |identity: &Identity| std::hash::BuildHasher::hash_one(&state, identity);
    let vendor = Identity::Profile(Profile::parse("vendor").expect("a profile"));
    assert_ne!(hash(&Identity::Ambient), hash(&vendor));
    assert_eq!(hash(&vendor), hash(&vendor.clone()));
}

#[test]
fn first_call_is_signed_by_the_profile_if_there_is_one() {
    let vendor = Profile::parse("vendor").expect("a profile");
    let role = |profile: Option<&Profile>| role(|role| role.options.profile = profile.cloned());
    assert_eq!(Identity::Profile(vendor.clone()).profile(), Some(&vendor));
    assert_eq!(role(Some(&vendor)).profile(), Some(&vendor));
    assert_eq!(role(None).profile(), None);
    assert_eq!(Identity::Ambient.profile(), None);
}

#[test]
fn profile_names_are_those_of_the_sdk() {
    for name in ["default", "aws-cn", "user@example.com", "a/b.c:d+e%f"] {
        assert!(Profile::parse(name).is_some(), "{name}");
    }
    let long = "x".repeat(129);
    for name in ["", "two words", "a]", "line\n", "{namespace}", "ö", &long] {
        assert_eq!(Profile::parse(name), None, "{name:?}");
    }
}

#[test]
fn namespace_placeholder_is_replaced_in_every_text() {
    let options = AssumeRoleOptions {
        external_id: Some("prod/{namespace}".into()),
        session_name: "prod/{namespace}".into(),
        tags: BTreeMap::from([("namespace".into(), "{namespace}".into())]),
        ..AssumeRoleOptions::default()
    };
    let template = RoleTemplate::new(test_arn("pull-{namespace}"), options);
    assert_eq!(template.arn(), test_arn("pull-{namespace}"));
    let namespace = Namespace::parse("team-a").expect("valid");
    let role = template.resolve(&namespace).expect("a role");
    assert_eq!(role.arn.as_str(), test_arn("pull-team-a"));
    assert_eq!(role.options.external_id.as_deref(), Some("prod/team-a"));
    assert_eq!(role.options.session_name, "prod-team-a");
    assert_eq!(role.options.tags["namespace"], "team-a");
}

/// Returns the identities of a configuration.
fn identities(config: &str) -> Identities {
    let config = Config::parse_fields(config, "config");
    config.expect("valid").rules.identities
}

/// Returns the identity that mints, in a word (`ambient`, a role's name, or why there is none), and
/// the reason for the choice.
fn chosen(
    identities: &Identities,
    host: &str,
    namespace: &str,
    role: Option<&str>,
) -> (String, String) {
    let registry = Registry::parse(host).expect("a registry");
    let namespace = Namespace::parse(namespace).expect("a namespace");
    let settings = NamespaceSettings {
        role: role.map(Into::into),
        ..NamespaceSettings::default()
    };
    let choice = identities.choose(&registry, &namespace, &settings);
    let word = match choice.identity {
        Ok(Identity::Ambient) => "ambient".to_owned(),
        Ok(Identity::Profile(profile)) => profile.name().to_owned(),
        Ok(Identity::Role(role)) => role.arn.as_str().replace(&test_arn(""), ""),
        Err(refusal) => refusal.as_str().to_owned(),
    };
    (word, choice.reason.to_string())
}

#[test]
fn rule_comes_before_the_annotation_and_that_before_the_default() {
    let identities = identities(
        "
identities:
- {accounts: ['111122223333'], regions: [eu-west-1], namespaces: [team-a],
   assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/narrow'}}
- {namespaces: [platform, 'ops-*'], ambient: true}
- {accounts: ['444455556666'], profile: vendor}
namespaceRoles: {allow: ['arn:aws:iam::111122223333:role/of-{namespace}']}
defaultIdentity: none
",
    );
    let ireland = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";
    let oregon = "111122223333.dkr.ecr.us-west-2.amazonaws.com";
    let other = "444455556666.dkr.ecr.eu-west-1.amazonaws.com";
    let china = "111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn";
    let (of_a, of_b) = (test_arn("of-team-a"), test_arn("of-team-b"));
    for (host, namespace, role, expected, part) in [
        (ireland, "team-a", None, "narrow", "identities[0]"),
        (ireland, "team-a", Some(&*of_a), "narrow", "identities[0]"),
        (oregon, "team-a", None, "no_identity", "names no role"),
        (ireland, "team-b", None, "no_identity", "names no role"),
        (ireland, "platform", None, "ambient", "identities[1]"),
        (china, "ops-1", None, "ambient", "identities[1]"),
        (other, "team-a", None, "vendor", "identities[2]"),
        (
            oregon,
            "team-b",
            Some(&of_b),
            "of-team-b",
            "has the annotation",
        ),
        (
            oregon,
            "team-b",
            Some(&of_a),
            "role_not_allowed",
            "has the annotation",
        ),
        (
            oregon,
            "team-b",
            Some("nonsense"),
            "invalid_role_arn",
            "has the annotation",
        ),
        (
            china,
            "team-b",
            Some(&of_b),
            "partition_mismatch",
            "has the annotation",
        ),
    ] {
        let (found, reason) = chosen(&identities, host, namespace, role);
        assert_eq!(found, expected, "{host} {namespace} {role:?}");
        assert!(
            reason.contains(part),
            "{host} {namespace} {role:?}: {reason}"
        );
    }
    let (ambient, _) = chosen(&Identities::default(), ireland, "team-a", None);
    assert_eq!(ambient, "ambient");
}

#[test]
fn identities_depend_on_namespaces_by_pattern_or_placeholder() {
    let role = "arn:aws:iam::111122223333:role";
    for (config, expected) in [
        (String::new(), false),
        (
            format!("identities: [{{assumeRole: {{roleArn: '{role}/x'}}}}]"),
            false,
        ),
        (
            format!("identities: [{{assumeRole: {{roleArn: '{role}/{{namespace}}'}}}}]"),
            true,
        ),
        (
            "identities: [{ambient: true, namespaces: [a]}]".to_owned(),
            true,
        ),
        (format!("namespaceRoles: {{allow: ['{role}/x']}}"), false),
        (
            format!("namespaceRoles: {{allow: ['{role}/{{namespace}}']}}"),
            true,
        ),
        (
            format!("namespaceRoles: {{allow: ['{role}/x'], externalId: 'of-{{namespace}}'}}"),
            true,
        ),
    ] {
        let found = identities(&config).depends_on_namespace();
        assert_eq!(found, expected, "{config}");
    }
}

#[test]
fn rule_matches_all_of_a_narrower_one() {
    let rule = |fields: &str| {
        let config = format!("identities: [{{ambient: true{fields}}}]");
        identities(&config).rules.remove(0)
    };
    let one = ", accounts: ['111122223333']";
    let both = ", accounts: ['111122223333', '444455556666']";
    for (wide, narrow, expected) in [
        ("", "", true),
        ("", one, true),
        (both, one, true),
        (one, both, false),
        (one, "", false),
        (", regions: [eu-west-1]", "", false),
        ("", ", regions: [eu-west-1]", true),
        (", namespaces: [team-a]", "", false),
        (", namespaces: ['*']", "", true),
        (
            ", namespaces: ['team-*']",
            ", namespaces: [team-a, team-b]",
            true,
        ),
        (
            ", namespaces: ['team-*']",
            ", namespaces: [team-a, ops]",
            false,
        ),
    ] {
        let found = rule(wide).matches_all_of(&rule(narrow));
        assert_eq!(found, expected, "{wide} / {narrow}");
    }
}

#[test]
fn session_name_fits_sts_and_long_names_stay_distinct() {
    assert_eq!(session_name("ecr-injector"), "ecr-injector");
    assert_eq!(session_name("a b/ä"), "a-b--");
    assert_eq!(session_name(""), "--");
    let long = |end: &str| session_name(&format!("{}{end}", "x".repeat(80)));
    assert_eq!(long("1").len(), 64);
    let longest = "x".repeat(64);
    assert_eq!(session_name(&longest), longest);
    assert_ne!(long("1"), long("2"));
}

#[test]
fn only_16_hex_digits_are_a_hash() {
    assert!(IdentityHash::parse("0123456789abcdef").is_some());
    for text in [
        "",
        "0123456789ABCDEF",
        "0123456789abcde",
        "0123456789abcdeg",
    ] {
        assert_eq!(IdentityHash::parse(text), None, "{text}");
    }
}
