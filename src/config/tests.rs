//! Unit tests of `config`.

use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::{
    cluster::namespace::{Namespace, OptIn},
    identity::{AssumeRoleOptions, DefaultIdentity, Profile, RoleTemplate},
    registry::Region,
    token::{SessionCap, rules::OnFailure},
};

fn error(text: &str) -> String {
    Config::parse_fields(text, "config.yaml")
        .expect_err("refused")
        .to_string()
}

const API_VERSION: &str = "apiVersion: ecr-injector.dev/v1alpha1\n";

#[test]
fn emptied_file_is_invalid() {
    let is_missing = "config.yaml: apiVersion: is missing: write apiVersion: \
                      ecr-injector.dev/v1alpha1; kind: is missing: write kind: Config";
    for text in [
        "",
        "\n \n",
        "# nothing yet\n",
        "---\n",
        "{}",
        "null",
        "~",
        "---\n# x\n---\n",
    ] {
        let error = Config::parse(text, "config.yaml").expect_err(text);
        let error = error.to_string();
        // The parser rejects several documents itself.
        let is_several = text.matches("---").count() > 1;
        assert!(is_several || error == is_missing, "{text:?}: {error}");
    }
    let error = |text: &str| {
        let error = Config::parse(text, "config.yaml").expect_err(text);
        error.to_string()
    };
    assert_eq!(
        error(API_VERSION),
        "config.yaml: kind: is missing: write kind: Config"
    );
    assert!(error("kind: Config\nonFailure: deny").contains("apiVersion: is missing"));
    assert!(error("apiVersion:\nkind: Config").contains("apiVersion: is missing"));
}

#[test]
fn file_that_is_no_object_is_invalid() {
    for text in ["- a", "5", "words", "[]", "a: 1\n---\nb: 2"] {
        assert!(Config::parse(text, "config.yaml").is_err(), "{text}");
    }
}

#[test]
fn header_of_another_file_is_invalid() {
    let error = |text: &str| {
        let error = Config::parse(text, "config.yaml").expect_err(text);
        error.to_string()
    };
    assert_eq!(
        error("apiVersion: v1\nkind: Pod"),
        "config.yaml: kind: expected Config of ecr-injector.dev/v1alpha1, got \"Pod\" of \"v1\""
    );
    assert_eq!(
        error("apiVersion: v1\nkind: Config"),
        "config.yaml: apiVersion: expected ecr-injector.dev/v1alpha1, got \"v1\""
    );
}

#[test]
fn empty_list_that_would_mean_all_is_invalid() {
    let role = "assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a'}";
    let empty = "expected at least one entry, got an empty list; for all, leave the field out";
    let nothing = "expected a value, got nothing; for the default, leave the field out";
    for (text, field, message) in [
        (
            "allow: {accounts: [], regions: [eu-west-1]}",
            "allow.accounts",
            empty,
        ),
        ("allow: {accounts: null}", "allow.accounts", empty),
        (
            "allow:\n  accounts:\n  regions: [eu-west-1]",
            "allow.accounts",
            empty,
        ),
        ("allow: {regions: []}", "allow.regions", empty),
        (
            &format!("identities: [{{accounts: [], {role}}}]"),
            "identities[0].accounts",
            empty,
        ),
        (
            &format!("identities: [{{regions: ~, {role}}}]"),
            "identities[0].regions",
            empty,
        ),
        (
            "identities: [{namespaces: [], ambient: true}]",
            "identities[0].namespaces",
            empty,
        ),
        ("allow:", "allow", nothing),
        (
            "allow: {}",
            "allow",
            "expected accounts, regions or both; to allow all, leave allow out",
        ),
        ("defaultIdentity:", "defaultIdentity", nothing),
    ] {
        assert_eq!(
            error(text),
            format!("config.yaml: {field}: {message}"),
            "{text}"
        );
    }
    for text in [
        "optIn: {excludeNamespaces: []}",
        "aliases: []",
        "identities: []",
        "namespaceRoles: {allow: []}",
        "prewarm: []",
    ] {
        let config = Config::parse_fields(text, "config.yaml");
        assert!(config.is_ok(), "{text}: {config:?}");
    }
}

#[test]
fn field_that_is_there_twice_is_named() {
    for text in [
        "onFailure: deny\nonFailure: admit",
        "{\"onFailure\": \"deny\", \"onFailure\": \"admit\"}",
        "onFailure: deny\n\"onFailure\": admit",
    ] {
        assert!(
            error(text).contains("duplicate mapping key `onFailure`"),
            "{}",
            error(text)
        );
    }
}

#[test]
fn text_of_the_file_is_escaped_in_errors() {
    for text in [
        "\"a\\x1b[31m\\nb\": 1",
        "onFailure: \"\\x1b[31m\\nconfig.yaml: valid\"",
        "identities: [{ambient: true, assumeRole: {tags: {\"\\x1b\\n\": 5}}}]",
        "a: [\"\u{202e}\"\n\u{1b}",
    ] {
        let error = error(text);
        let is_plain = error.chars().all(|c| !c.is_control() && c != '\u{202e}');
        assert!(is_plain, "{error:?}");
    }
}

#[test]
fn aliases_are_checked_in_linear_time() {
    let registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let alias = |at: usize| format!("- {{host: h{at}.example, registry: {registry}}}\n");
    // A check of each entry against all before it would take a quarter of an hour.
    let aliases: Vec<String> = (0..20_000).chain([7]).map(alias).collect();
    assert_eq!(
        error(&format!("aliases:\n{}", aliases.concat())),
        "config.yaml: aliases[20000].host: \"h7.example\" is named twice"
    );
}

#[test]
fn file_with_nothing_but_its_header_has_the_defaults() {
    for text in ["", "# nothing yet\n"] {
        let config = Config::parse_fields(text, "config.yaml")
            .unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(config.rules.secret_name, "ecr-pull-secret");
        assert_eq!(
            config.opt_in,
            OptIn {
                label: "ecr-injector.dev/inject".into(),
                value: "enabled".into()
            }
        );
        assert_eq!(config.rules.excluded.len(), 2);
    }
}

#[test]
fn long_comment_is_no_error() {
    let comment = "  # why\n".repeat(100);
    let text = format!("limits:\n{comment}  registriesPerPod: 2\naliases:\n{comment}  []\n");
    let config = Config::parse_fields(&text, "config.yaml").expect("valid");
    assert_eq!(config.rules.registries_per_pod, 2);
}

#[test]
fn every_field_of_a_full_file_is_applied() {
    let text = r#"
secretName: my.pull-secret
optIn: {label: example.com/ecr, value: "yes", excludeNamespaces: [infra]}
onFailure: deny
allow: {accounts: ["123456789012"], regions: [eu-west-1]}
aliases:
  - host: images.example.com
    registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com
limits: {registriesPerPod: 2, registriesPerSecret: 4}
"#;
    let config = Config::parse_fields(text, "config.yaml").expect("valid");
    assert_eq!(config.rules.secret_name, "my.pull-secret");
    assert_eq!(
        config.opt_in,
        OptIn {
            label: "example.com/ecr".into(),
            value: "yes".into()
        }
    );
    assert_eq!(
        config
            .rules
            .excluded
            .iter()
            .map(Namespace::as_str)
            .collect::<Vec<_>>(),
        ["infra"]
    );
    assert_eq!(config.rules.on_failure, OnFailure::Deny);
    assert_eq!(
        (
            config.rules.allow.accounts.len(),
            config.rules.allow.regions.len()
        ),
        (1, 1)
    );
    assert!(config.rules.aliases.resolve("images.example.com").is_some());
    assert_eq!(
        (
            config.rules.registries_per_pod,
            config.rules.registries_per_secret
        ),
        (2, 4)
    );
    let own = Namespace::parse("ecr-injector");
    assert_eq!(config.excluding(own).rules.excluded.len(), 2);
}

#[test]
fn every_field_of_identities_is_applied() {
    let text = r#"
clusterName: prod
publicEcr: true
defaultIdentity: none
refresh: {sessionCap: none}
identities:
  - accounts: ["111122223333"]
    regions: [eu-west-1]
    namespaces: ["team-*"]
    assumeRole:
      roleArn: arn:aws:iam::111122223333:role/{cluster}-{namespace}
      externalId: "{cluster}/{namespace}"
      sessionName: x-{namespace}
      tags: {cluster: "{cluster}"}
      pullOnly: true
      duration: 30m
      stsRegion: eu-west-1
  - namespaces: [platform]
    ambient: true
namespaceRoles:
  allow: ["arn:aws:iam::*:role/ecr-pull-{namespace}"]
  externalId: shared
"#;
    let config = Config::parse_fields(text, "config.yaml").expect("valid");
    assert_eq!(config.session_cap, SessionCap::Off);
    assert!(config.rules.aliases.resolve("public.ecr.aws").is_some());
    let identities = config.rules.identities;
    assert_eq!(identities.default, DefaultIdentity::None);
    let role = identities.rules[0].assume_role.as_ref().expect("a role");
    let options = AssumeRoleOptions {
        external_id: Some("prod/{namespace}".into()),
        session_name: "x-{namespace}".into(),
        tags: BTreeMap::from([("cluster".into(), "prod".into())]),
        pull_only: true,
        duration_seconds: 1800,
        sts_region: Region::parse("eu-west-1"),
        profile: None,
    };
    let arn = "arn:aws:iam::111122223333:role/prod-{namespace}".to_owned();
    assert_eq!(*role, RoleTemplate::new(arn, options));
    assert!(identities.rules[1].assume_role.is_none() && identities.rules[1].profile.is_none());
    let options = identities.namespace_roles.options;
    assert_eq!(options.session_name, "ecr-injector-prod");
    assert_eq!(options.external_id.as_deref(), Some("shared"));
    let capped = Config::parse_fields("refresh: {sessionCap: 6h}", "config.yaml").expect("valid");
    assert_eq!(capped.session_cap, SessionCap::After(21_600));
    let capped =
        Config::parse_fields("refresh: {sessionCap: session}", "config.yaml").expect("valid");
    assert_eq!(capped.session_cap, SessionCap::Session);
}

#[test]
fn rules_profile_mints_or_assumes_the_rules_role() {
    let text = "identities:\n- profile: vendor\n- profile: cn\n  assumeRole: \
                {roleArn: \"arn:aws-cn:iam::111122223333:role/pull\"}\n- ambient: false\n  profile: a/b@c\n";
    let config = Config::parse_fields(text, "config.yaml").expect("valid");
    let rules = &config.rules.identities.rules;
    let names: Vec<_> = rules
        .iter()
        .map(|rule| rule.profile.as_ref().map(Profile::name))
        .collect();
    assert_eq!(names, [Some("vendor"), Some("cn"), Some("a/b@c")]);
    let options = AssumeRoleOptions {
        profile: Profile::parse("cn"),
        ..AssumeRoleOptions::default()
    };
    let arn = "arn:aws-cn:iam::111122223333:role/pull".to_owned();
    assert_eq!(rules[1].assume_role, Some(RoleTemplate::new(arn, options)));
    assert!(rules[0].assume_role.is_none());
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn invalid_value_is_reported_by_its_path() {
    for (text, expected) in [
        ("secretNam: x", "secretNam: unknown field `secretNam`"),
        ("optIn: {lable: x}", "optIn.lable: unknown field `lable`"),
        (
            "secretName: Nö",
            "secretName: \"Nö\" can't be the name of a Secret",
        ),
        (
            "onFailure: explode",
            "onFailure: expected admit or deny, got \"explode\"",
        ),
        (
            "allow: {accounts: [\"12\"]}",
            "allow.accounts[0]: expected 12 digits in quotes, got \"12\"",
        ),
        (
            "allow: {regions: [eu-west-1, moon]}",
            "allow.regions[1]: expected a region such as eu-west-1",
        ),
        (
            "aliases: [{host: a.example, registry: b.example}]",
            "aliases[0].registry: \"b.example\" is not a private ECR",
        ),
        (
            "aliases: [{host: a.example}]",
            "aliases[0]: missing field `registry`",
        ),
        (
            "limits: {registriesPerPod: 0}",
            "limits.registriesPerPod: expected 1 to 128, got 0",
        ),
        (
            "limits: {registriesPerPod: 65}",
            "limits: registriesPerPod can't exceed",
        ),
        (
            "optIn: {excludeNamespaces: [A]}",
            "optIn.excludeNamespaces[0]: expected a namespace's name",
        ),
        ("optIn: {label: 'a b'}", "optIn.label:"),
        ("optIn: {value: 'a b'}", "optIn.value:"),
        ("optIn: {value: ''}", "optIn.value:"),
        (
            "refresh: {sessionCap: 5m}",
            "refresh.sessionCap: expected at least 15m",
        ),
        (
            "refresh: {sessionCap: soon}",
            "refresh.sessionCap: expected a duration such as 90m or 24h, got \"soon\"; or auto, session or none",
        ),
        (
            "clusterName: 'a b'",
            "clusterName: expected 1 to 100 letters",
        ),
        (
            "identities: [{namespaces: [a]}]",
            "identities[0]: expected one of the two: assumeRole or profile (or both), or ambient: true",
        ),
        (
            "identities: [{ambient: true, assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a'}}]",
            "identities[0]: expected one of the two",
        ),
        (
            "identities: [{ambient: true}, {namespaces: ['a?'], ambient: true}]",
            "identities[1].namespaces[0]: '?' has no meaning here",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:user/a'}}]",
            "identities[0].assumeRole.roleArn: expected arn:aws:iam::ACCOUNT:role/NAME",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/{cluster}'}}]",
            "identities[0].assumeRole.roleArn: {cluster} needs clusterName",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/{pod}'}}]",
            "identities[0].assumeRole.roleArn: the only name that can stand in braces is {namespace}",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a', duration: 13h}}]",
            "identities[0].assumeRole.duration: expected 15m to 12h",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a', stsRegion: moon}}]",
            "identities[0].assumeRole.stsRegion: expected a region",
        ),
        (
            "identities: [{assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a', externalId: 'a b'}}]",
            "identities[0].assumeRole.externalId: expected 2 to 1,224",
        ),
        (
            "identities: [{assumeRole: {}}]",
            "identities[0].assumeRole: missing field `roleArn`",
        ),
        (
            "namespaceRoles: {allow: ['role/*']}",
            "namespaceRoles.allow[0]: expected a pattern of role ARNs",
        ),
        (
            "namespaceRoles: {}",
            "namespaceRoles: missing field `allow`",
        ),
        (
            "defaultIdentity: nobody",
            "defaultIdentity: expected ambient or none, got \"nobody\"",
        ),
    ] {
        let got = error(text);
        assert!(
            got.starts_with(&format!("config.yaml: {expected}")),
            "{text}: {got}"
        );
    }
    assert!(
        error("a: [").starts_with("config.yaml is not YAML:"),
        "{}",
        error("a: [")
    );
}

#[test]
fn missing_file_is_named_in_the_error() {
    let error = Config::read(Path::new("/nowhere/config.yaml"))
        .expect_err("missing")
        .to_string();
    assert!(
        error.starts_with("reading /nowhere/config.yaml: "),
        "{error}"
    );
}
