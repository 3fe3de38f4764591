//! Unit tests of `identity`.

use super::*;

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
    let namespace = Namespace::parse("team-a").expect("valid");
    let role = template.resolve(&namespace).expect("a role");
    assert_eq!(role.arn.as_str(), test_arn("pull-team-a"));
    assert_eq!(role.options.external_id.as_deref(), Some("prod/team-a"));
    assert_eq!(role.options.session_name, "prod-team-a");
    assert_eq!(role.options.tags["namespace"], "team-a");
}

#[test]
fn session_name_fits_sts_and_long_names_stay_distinct() {
    assert_eq!(session_name("ecr-injector"), "ecr-injector");
    assert_eq!(session_name("a b/ä"), "a-b--");
    assert_eq!(session_name(""), "--");
    let long = |end: &str| session_name(&format!("{}{end}", "x".repeat(80)));
    assert_eq!(long("1").len(), 64);
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
