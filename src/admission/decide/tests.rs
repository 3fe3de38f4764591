//! Unit tests of `decide`.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;
use crate::{
    identity::{Identities, Identity},
    pull_secret::state::{Credential, DataDigest, Demand as WantedSince, HostState},
    registry::{AccountId, Aliases, Region},
    token::{
        Lifetime,
        rules::{Allow, OnFailure},
    },
};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const OREGON: &str = "210987654321.dkr.ecr.us-west-2.amazonaws.com";

fn rules() -> Rules {
    Rules {
        secret_name: "ecr-pull-secret".into(),
        excluded: BTreeSet::from([Namespace::parse("kube-system").expect("valid")]),
        aliases: Aliases::default(),
        allow: Allow::default(),
        identities: Identities::default(),
        registries_per_pod: 16,
        registries_per_secret: 64,
        on_failure: OnFailure::Admit,
    }
}

fn pod(images: &[&str]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .map(|image| json!({"name": "c", "image": image}))
        .collect();
    json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
}

fn review(request: &Value) -> Vec<u8> {
    let mut request = request.clone();
    let defaults = json!({"uid": "u", "operation": "CREATE", "namespace": "team",
            "resource": {"group": "", "version": "v1", "resource": "pods"}});
    for (key, value) in defaults.as_object().expect("an object") {
        request
            .as_object_mut()
            .expect("an object")
            .entry(key.clone())
            .or_insert(value.clone());
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        .to_string()
        .into_bytes()
}

fn verdict(request: &Value, rules: &Rules, facts: &Facts<'_>) -> Decision {
    let body = review(request);
    let request = Request::parse(&body).expect("a review");
    match demand(&request, rules) {
        Ok(demand) => decide(demand, rules, facts, NOW),
        Err(reason) => Decision::Skip(reason),
    }
}

fn settings() -> NamespaceSettings {
    NamespaceSettings {
        uid: "0b2a".into(),
        ..NamespaceSettings::default()
    }
}

fn facts<'a>(settings: &'a NamespaceSettings, secret: SecretFacts<'a>) -> Facts<'a> {
    Facts {
        opt_in: OptInFacts::OptedIn(settings),
        secret,
        account_rejects_reference: false,
    }
}

/// Returns the decision where the namespace is opted in and has no pull secret.
fn cold_verdict(request: &Value, rules: &Rules) -> Decision {
    verdict(request, rules, &facts(&settings(), SecretFacts::Absent))
}

fn state(hours_old: i64) -> State {
    let minted_at = NOW - SignedDuration::from_hours(hours_old);
    let lifetime = Lifetime {
        minted_at,
        expires_at: minted_at + SignedDuration::from_hours(12),
    };
    let credential = Credential {
        identity: Identity::Ambient.hash(),
        lifetime,
    };
    let entry = HostState {
        demand: WantedSince::new(minted_at),
        credential: Some(credential),
    };
    State {
        hosts: std::iter::once((Host::parse(IRELAND).expect("valid"), entry)).collect(),
        digest: DataDigest::default(),
        ..State::default()
    }
}

fn image(host: &str) -> String {
    format!("{host}/app:v1")
}

#[test]
fn namespace_without_credentials_is_ensured_first() {
    let object = pod(&["nginx", &image(IRELAND), &image(IRELAND)]);
    let Decision::InjectAfterEnsuring(injection, missing) =
        cold_verdict(&json!({ "object": object }), &rules())
    else {
        panic!("not ensured")
    };
    assert_eq!(injection.reference, ReferenceState::NoList);
    assert_eq!(
        missing.keys().map(Host::as_str).collect::<Vec<_>>(),
        [IRELAND]
    );
}

#[test]
fn namespace_with_credentials_is_answered_from_memory() {
    for (age, due) in [(1, false), (5, true), (11, true)] {
        let state = state(age);
        let settings = settings();
        let facts = facts(&settings, SecretFacts::Ours(&state));
        let Decision::Inject(injection) = verdict(
            &json!({"object": pod(&[&image(IRELAND)])}),
            &rules(),
            &facts,
        ) else {
            panic!("not from memory at {age} h")
        };
        assert_eq!(injection.due, due, "{age} h");
    }
    let expired = state(12);
    let settings = settings();
    let facts = facts(&settings, SecretFacts::Ours(&expired));
    let decision = verdict(
        &json!({"object": pod(&[&image(IRELAND)])}),
        &rules(),
        &facts,
    );
    assert!(
        matches!(decision, Decision::InjectAfterEnsuring(..)),
        "expired"
    );
}

#[test]
fn only_the_missing_registries_are_ensured() {
    let state = state(1);
    let settings = settings();
    let facts = facts(&settings, SecretFacts::Ours(&state));
    let object = pod(&[&image(IRELAND), &image(OREGON)]);
    let Decision::InjectAfterEnsuring(injection, missing) =
        verdict(&json!({ "object": object }), &rules(), &facts)
    else {
        panic!("not ensured")
    };
    assert_eq!((injection.hosts.len(), missing.len()), (2, 1));
    assert!(missing.contains_key(OREGON));
}

#[test]
fn dry_run_ensures_nothing_and_still_injects() {
    let request = json!({"dryRun": true, "object": pod(&[&image(IRELAND)])});
    assert!(
        matches!(cold_verdict(&request, &rules()), Decision::Inject(i) if i.reference == ReferenceState::NoList)
    );
}

#[test]
fn other_requests_are_skipped_with_a_reason() {
    let ecr = pod(&[&image(IRELAND)]);
    let annotated = |key: &str, value: &str| {
        let mut pod = ecr.clone();
        pod["metadata"]["annotations"] = json!({ key: value });
        pod
    };
    let mut deleting = ecr.clone();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (request, reason) in [
        (
            json!({"object": pod(&["nginx", "example.com/a"])}),
            SkipReason::NoRegistry,
        ),
        (
            json!({"object": ecr, "namespace": "kube-system"}),
            SkipReason::NotOptedIn,
        ),
        (
            json!({"object": ecr, "namespace": "../x"}),
            SkipReason::NotOptedIn,
        ),
        (
            json!({"object": ecr, "operation": "DELETE"}),
            SkipReason::OtherOperation,
        ),
        (
            json!({"object": annotated("kubernetes.io/config.mirror", "x")}),
            SkipReason::Mirror,
        ),
        (
            json!({"object": annotated("ecr-injector.dev/inject", "disabled")}),
            SkipReason::Disabled,
        ),
        (
            json!({"object": deleting, "operation": "UPDATE", "oldObject": pod(&[])}),
            SkipReason::Deleting,
        ),
        (
            json!({"object": ecr, "operation": "UPDATE", "oldObject": ecr}),
            SkipReason::SameImages,
        ),
        (
            json!({"object": pod(&["nginx", &image(IRELAND)]), "operation": "UPDATE",
                "oldObject": pod(&[&image(IRELAND), "nginx"])}),
            SkipReason::SameImages,
        ),
        (json!({"object": null}), SkipReason::NotAPod),
    ] {
        assert_eq!(
            cold_verdict(&request, &rules()),
            Decision::Skip(reason),
            "{request}"
        );
    }
    let plain = Facts {
        opt_in: OptInFacts::NotOptedIn,
        secret: SecretFacts::Absent,
        account_rejects_reference: false,
    };
    assert_eq!(
        verdict(&json!({ "object": ecr }), &rules(), &plain),
        Decision::Skip(SkipReason::NotOptedIn)
    );
}

#[test]
fn skipped_pod_is_warned_about_what_its_user_can_change() {
    let typo = format!("{}/app", IRELAND.replace("123456789012", "12345678901"));
    let mut labelled = pod(&["nginx"]);
    labelled["metadata"]["labels"] = json!({"ecr-injector.dev/inject": "disabled"});
    let mut annotated = pod(&["nginx"]);
    annotated["metadata"]["annotations"] = json!({"ecr-injector.dev/inject": "off"});
    let none = |reason| (pod(&[&typo]), reason, [].as_slice());
    for (object, reason, expected) in [
        (pod(&["nginx"]), SkipReason::NoRegistry, [].as_slice()),
        (pod(&[&typo]), SkipReason::NoRegistry, &["not 12 digits"]),
        (
            labelled,
            SkipReason::NoRegistry,
            &["has no effect on a Pod; label the namespace"],
        ),
        (
            annotated,
            SkipReason::NoRegistry,
            &["has no effect; only disabled opts out"],
        ),
        (
            pod(&["nginx"]),
            SkipReason::NotAllowed,
            &["the allow list has none"],
        ),
        (
            pod(&[&typo]),
            SkipReason::NotAllowed,
            &["the allow list has none", "not 12 digits"],
        ),
        (
            pod(&[]),
            SkipReason::UnreadablePod,
            &["this Pod could not be read"],
        ),
        none(SkipReason::Mirror),
        none(SkipReason::Disabled),
    ] {
        let body = review(&json!({ "object": object }));
        let request = Request::parse(&body).expect("a review");
        let warnings = skip_warnings(reason, &request, &rules());
        assert_eq!(warnings.len(), expected.len(), "{reason:?}: {warnings:?}");
        for (warning, part) in warnings.iter().zip(expected) {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
}

#[test]
fn account_that_rejects_the_reference_has_its_pods_skipped() {
    let settings = settings();
    let rejecting = |opt_in| Facts {
        account_rejects_reference: true,
        ..Facts {
            opt_in,
            ..facts(&settings, SecretFacts::Absent)
        }
    };
    let object = pod(&[&image(IRELAND)]);
    for opt_in in [OptInFacts::OptedIn(&settings), OptInFacts::Unknown] {
        let decision = verdict(&json!({ "object": object }), &rules(), &rejecting(opt_in));
        assert_eq!(decision, Decision::Skip(SkipReason::MountableSecrets));
    }
    let warning = warning_for(SkipReason::MountableSecrets, &rules()).expect("a warning");
    assert!(warning.contains("add ecr-pull-secret to its imagePullSecrets"));
    // Nothing is added to these.
    let mut with_ours = object.clone();
    with_ours["spec"]["imagePullSecrets"] = json!([{"name": "ecr-pull-secret"}]);
    let stored = json!({"object": object, "operation": "UPDATE", "oldObject": pod(&["nginx"])});
    for request in [json!({ "object": with_ours }), stored] {
        let facts = rejecting(OptInFacts::OptedIn(&settings));
        let decision = verdict(&request, &rules(), &facts);
        assert!(
            matches!(decision, Decision::InjectAfterEnsuring(..)),
            "{decision:?}"
        );
    }
}

#[test]
fn unknown_namespace_gets_the_reference_and_nothing_is_ensured() {
    let unknown = |secret| Facts {
        opt_in: OptInFacts::Unknown,
        secret,
        account_rejects_reference: false,
    };
    let object = pod(&[&image(IRELAND), &image(OREGON)]);
    let create = json!({ "object": object });
    let state = state(1);
    for secret in [SecretFacts::Absent, SecretFacts::Ours(&state)] {
        let decision = verdict(&create, &rules(), &unknown(secret));
        let Decision::InjectUnprovisioned(injection) = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(injection.reference, ReferenceState::NoList);
        assert_eq!(injection.hosts.len(), 2);
    }
    let update = json!({"object": object, "operation": "UPDATE", "oldObject": pod(&["nginx"])});
    let decision = verdict(&update, &rules(), &unknown(SecretFacts::Absent));
    let Decision::InjectUnprovisioned(injection) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(injection.reference, ReferenceState::Present);
    let foreign = SecretFacts::Foreign(Foreign::Label);
    assert_eq!(
        verdict(&create, &rules(), &unknown(foreign)),
        Decision::Skip(SkipReason::Foreign(Foreign::Label))
    );
}

#[test]
fn foreign_secret_leaves_the_pod_unpatched_with_a_warning() {
    for why in [
        Foreign::Label,
        Foreign::Type,
        Foreign::Immutable,
        Foreign::Entries,
    ] {
        let settings = settings();
        let facts = facts(&settings, SecretFacts::Foreign(why));
        let decision = verdict(
            &json!({"object": pod(&[&image(IRELAND)])}),
            &rules(),
            &facts,
        );
        assert_eq!(decision, Decision::Skip(SkipReason::Foreign(why)));
        let warning = warning_for(SkipReason::Foreign(why), &rules()).expect("a warning");
        assert!(
            warning.chars().count() <= 120 && !warning.ends_with('…'),
            "{warning}"
        );
    }
}

#[test]
fn update_never_patches_and_warns_without_the_reference() {
    let mut object = pod(&[&image(OREGON)]);
    let old = pod(&[&image(IRELAND)]);
    let request = json!({"object": object, "oldObject": old, "operation": "UPDATE"});
    let Decision::InjectAfterEnsuring(injection, missing) = cold_verdict(&request, &rules()) else {
        panic!("not ensured")
    };
    assert_eq!(
        (injection.reference, injection.warnings.len(), missing.len()),
        (ReferenceState::Present, 1, 1)
    );
    object["spec"]["imagePullSecrets"] = json!([{"name": "ecr-pull-secret"}]);
    let request = json!({"object": object, "oldObject": old, "operation": "UPDATE"});
    let Decision::InjectAfterEnsuring(injection, _) = cold_verdict(&request, &rules()) else {
        panic!("not ensured")
    };
    assert!(injection.warnings.is_empty());
}

#[test]
fn update_of_ephemeral_containers_is_ensured() {
    let mut object = pod(&["nginx"]);
    object["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": image(IRELAND)}]);
    let request = json!({"object": object, "oldObject": pod(&["nginx"]), "operation": "UPDATE",
            "subResource": "ephemeralcontainers"});
    assert!(
        matches!(cold_verdict(&request, &rules()), Decision::InjectAfterEnsuring(_, m) if m.len() == 1)
    );
}

#[test]
fn allow_limits_accounts_and_regions() {
    let mut rules = rules();
    rules
        .allow
        .accounts
        .insert(AccountId::parse("123456789012").expect("valid"));
    let both = json!({"object": pod(&[&image(IRELAND), &image(OREGON)])});
    let Decision::InjectAfterEnsuring(injection, missing) = cold_verdict(&both, &rules) else {
        panic!("not ensured")
    };
    assert!(missing.contains_key(IRELAND) && missing.len() == 1);
    assert_eq!(
        injection.warnings,
        [format!(
            "ecr-injector: registry not in the allow list: {OREGON}"
        )]
    );
    rules
        .allow
        .regions
        .insert(Region::parse("us-west-2").expect("valid"));
    assert_eq!(
        cold_verdict(&both, &rules),
        Decision::Skip(SkipReason::NotAllowed)
    );
}

#[test]
fn refused_registries_are_counted_in_one_warning() {
    let mut rules = rules();
    let account = AccountId::parse("210987654321").expect("valid");
    rules.allow.accounts.insert(account);
    let second = IRELAND.replace("eu-west-1", "us-east-1");
    let images = [image(IRELAND), image(OREGON), image(&second)];
    for (count, end) in [(2, ""), (3, " and 1 more")] {
        let images: Vec<&str> = images[..count].iter().map(String::as_str).collect();
        let decision = cold_verdict(&json!({"object": pod(&images)}), &rules);
        let Decision::InjectAfterEnsuring(injection, _) = decision else {
            panic!("not ensured")
        };
        let warning = format!("ecr-injector: registry not in the allow list: {IRELAND}{end}");
        assert_eq!(injection.warnings, [warning]);
    }
}

#[test]
fn reasons_to_skip_have_labels_of_their_own() {
    let reasons = [
        SkipReason::NotAPod,
        SkipReason::UnreadablePod,
        SkipReason::OtherOperation,
        SkipReason::Mirror,
        SkipReason::Disabled,
        SkipReason::Deleting,
        SkipReason::SameImages,
        SkipReason::NoRegistry,
        SkipReason::NotOptedIn,
        SkipReason::NotAllowed,
        SkipReason::NoIdentity(Refusal::NotAnArn),
        SkipReason::NoIdentity(Refusal::NoDefault),
        SkipReason::Foreign(Foreign::Label),
        SkipReason::MountableSecrets,
    ];
    let labels: BTreeSet<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(labels.len(), reasons.len(), "{labels:?}");
}

#[test]
fn registry_without_an_identity_gets_no_other_identity() {
    let settings = NamespaceSettings {
        role: Some("arn:aws:iam::123456789012:role/admin".into()),
        ..NamespaceSettings::default()
    };
    let state = state(1);
    for secret in [SecretFacts::Absent, SecretFacts::Ours(&state)] {
        let facts = facts(&settings, secret);
        let request = json!({"object": pod(&[&image(IRELAND)])});
        let reason = SkipReason::NoIdentity(Refusal::NotAllowed);
        assert_eq!(verdict(&request, &rules(), &facts), Decision::Skip(reason));
        let warning = warning_for(reason, &rules()).expect("a warning");
        assert!(!warning.ends_with('…'), "{warning}");
    }
}

#[test]
fn demand_noted_a_day_ago_is_to_be_noted_again() {
    let settings = settings();
    for (hours, is_unnoted) in [(0, false), (23, false), (24, true)] {
        let mut state = state(1);
        let host = Host::parse(IRELAND).expect("valid");
        let entry = state.hosts.get_mut(&host).expect("there");
        entry.demand = WantedSince::new(NOW - SignedDuration::from_hours(hours));
        let facts = facts(&settings, SecretFacts::Ours(&state));
        let request = json!({"object": pod(&[&image(IRELAND)])});
        let Decision::Inject(injection) = verdict(&request, &rules(), &facts) else {
            panic!("not from memory at {hours} h")
        };
        let unnoted = injection.unnoted.contains_key(IRELAND);
        assert_eq!(unnoted, is_unnoted, "{hours} h");
    }
}

#[test]
fn unverified_secret_counts_as_one_without_credentials() {
    let settings = settings();
    let request = json!({"object": pod(&[&image(IRELAND)])});
    let facts = facts(&settings, SecretFacts::Unverified);
    let Decision::InjectAfterEnsuring(injection, missing) = verdict(&request, &rules(), &facts)
    else {
        panic!("not ensured")
    };
    assert_eq!((injection.due, missing.len()), (false, 1));
}

#[test]
fn host_without_a_credential_is_ensured() {
    let (settings, mut pending) = (settings(), state(1));
    let host = Host::parse(IRELAND).expect("valid");
    pending.hosts.get_mut(&host).expect("there").credential = None;
    let facts = facts(&settings, SecretFacts::Ours(&pending));
    let request = json!({"object": pod(&[&image(IRELAND)])});
    let decision = verdict(&request, &rules(), &facts);
    assert!(matches!(decision, Decision::InjectAfterEnsuring(_, missing) if missing.len() == 1));
}

#[test]
fn pod_wants_what_its_admission_would_have_wanted() {
    let mut rules = rules();
    let namespace = Namespace::parse("team").expect("valid");
    let system = Namespace::parse("kube-system").expect("valid");
    let wanted =
        |rules: &Rules, namespace: &Namespace, pod: &Value, settings: &NamespaceSettings| {
            let text = pod.to_string();
            let pod: Pod<'_> = serde_json::from_str(&text).expect("a Pod");
            let hosts = hosts_wanted_by(&pod, rules, namespace, settings);
            hosts
                .iter()
                .map(|host| host.as_str().to_owned())
                .collect::<Vec<_>>()
        };
    let mut plain = pod(&[&image(OREGON), "nginx", ":::", "", &image(IRELAND)]);
    let none: [&str; 0] = [];
    assert_eq!(
        wanted(&rules, &namespace, &plain, &NamespaceSettings::default()),
        none
    );
    plain["spec"]["imagePullSecrets"] = json!([{"name": "a"}, {"name": "ecr-pull-secret"}]);
    let both = wanted(&rules, &namespace, &plain, &NamespaceSettings::default());
    assert_eq!(both, [IRELAND, OREGON]);
    assert_eq!(
        wanted(&rules, &system, &plain, &NamespaceSettings::default()),
        none
    );
    for (field, value) in [
        (
            "annotations",
            json!({"ecr-injector.dev/inject": "disabled"}),
        ),
        ("annotations", json!({"kubernetes.io/config.mirror": "x"})),
        ("deletionTimestamp", json!("2026-01-01T00:00:00Z")),
    ] {
        let mut other = plain.clone();
        other["metadata"][field] = value;
        assert_eq!(
            wanted(&rules, &namespace, &other, &NamespaceSettings::default()),
            none
        );
    }
    let annotated = NamespaceSettings {
        role: Some("arn:aws:iam::123456789012:role/admin".into()),
        ..NamespaceSettings::default()
    };
    assert_eq!(wanted(&rules, &namespace, &plain, &annotated), none);
    rules.registries_per_pod = 1;
    let first = wanted(&rules, &namespace, &plain, &NamespaceSettings::default());
    assert_eq!(first, [OREGON]);
    let account = AccountId::parse("123456789012").expect("valid");
    rules.allow.accounts.insert(account);
    let allowed = wanted(&rules, &namespace, &plain, &NamespaceSettings::default());
    assert_eq!(allowed, [IRELAND]);
}

#[test]
fn registries_beyond_the_limit_get_a_warning_only() {
    let images: Vec<String> = (0..20)
        .map(|n| format!("{n:012}.dkr.ecr.eu-west-1.amazonaws.com/a"))
        .collect();
    let object = pod(&images.iter().map(String::as_str).collect::<Vec<_>>());
    let Decision::InjectAfterEnsuring(injection, missing) =
        cold_verdict(&json!({ "object": object }), &rules())
    else {
        panic!("not ensured")
    };
    assert_eq!(missing.len(), 16);
    assert_eq!(
        injection.warnings,
        ["ecr-injector: credentials for only 16 of 20 ECR registries (limits.registriesPerPod)"]
    );
}
