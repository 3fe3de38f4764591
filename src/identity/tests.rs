//! Unit tests of `identity`.

use super::*;

fn test_arn(name: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{name}")
}

#[test]
fn the_ambient_identitys_hash_is_that_of_its_name() {
    assert_eq!(Identity::Ambient.hash(), hash_of("ambient"));
}

#[test]
fn the_ambient_fingerprint_never_changes_because_secrets_carry_it() {
    assert_eq!(Identity::Ambient.hash().to_string(), "31d18c0defdc3e0e");
}

fn role(change: impl FnOnce(&mut Role)) -> Identity {
    let namespace = Namespace::parse("team-a").expect("valid");
    let arn = RoleArn::parse(&test_arn("pull")).expect("an ARN");
    let made = AssumeRoleOptions::default().role(arn, namespace.as_str());
    let mut role = Arc::unwrap_or_clone(made);
    change(&mut role);
    role.hash = hash_of_role(&role.arn, &role.manner);
    Identity::Role(Arc::new(role))
}

#[test]
fn a_roles_fingerprint_follows_who_it_is_and_what_it_may_do() {
    let plain = role(|_| {}).hash();
    assert_eq!(plain.to_string(), "46caae5cd7d367d3", "secrets carry it");
    for changed in [
        role(|role| role.arn = RoleArn::parse(&test_arn("push")).expect("an ARN")),
        role(|role| role.manner.external_id = Some("x".into())),
        role(|role| role.manner.session_name = "other".into()),
        role(|role| role.manner.pull_only = true),
        role(|role| {
            role.manner.tags.insert("team".into(), "a".into());
        }),
    ] {
        assert_ne!(changed.hash(), plain, "{changed:?}");
    }
    for same in [
        role(|role| role.manner.duration_seconds = 900),
        role(|role| role.manner.sts_region = Region::parse("eu-west-1")),
    ] {
        assert_eq!(same.hash(), plain, "{same:?}");
    }
}

#[test]
fn the_namespaces_name_is_put_in_wherever_it_is_asked_for() {
    let manner = AssumeRoleOptions {
        external_id: Some("prod/{namespace}".into()),
        session_name: "prod/{namespace}".into(),
        tags: BTreeMap::from([("namespace".into(), "{namespace}".into())]),
        ..AssumeRoleOptions::default()
    };
    let template = RoleTemplate::new(test_arn("pull-{namespace}"), manner);
    let namespace = Namespace::parse("team-a").expect("valid");
    let role = template.fill_in(&namespace).expect("a role");
    assert_eq!(role.arn.as_str(), test_arn("pull-team-a"));
    assert_eq!(role.manner.external_id.as_deref(), Some("prod/team-a"));
    assert_eq!(role.manner.session_name, "prod-team-a");
    assert_eq!(role.manner.tags["namespace"], "team-a");
}

#[test]
fn a_sessions_name_is_one_that_sts_takes_and_two_long_ones_stay_two() {
    assert_eq!(session_name("ecr-injector"), "ecr-injector");
    assert_eq!(session_name("a b/ä"), "a-b--");
    assert_eq!(session_name(""), "--");
    let long = |end: &str| session_name(&format!("{}{end}", "x".repeat(80)));
    assert_eq!(long("1").len(), 64);
    assert_ne!(long("1"), long("2"));
}

#[test]
fn only_sixteen_hex_digits_are_a_fingerprint() {
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
