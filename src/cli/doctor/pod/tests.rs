//! The verdict on a Pod in every situation.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use serde_json::json;

use super::*;
use crate::{
    cli::doctor::finding::Right,
    config::Config,
    pull_secret::state::{Credential, Demand, HostState, State},
    token::{Lifetime, rules::Allow},
};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const LABEL: &str = "ecr-injector.dev/inject";

fn at(text: &str) -> Timestamp {
    format!("2027-01-15T{text}Z").parse().expect("a time")
}

fn state(host: &str, expires_at: Option<Timestamp>) -> State {
    let host = Host::parse(host).expect("a host");
    let mut state = State::from_wanted_hosts([&host], at("08:00:00")).expect("hosts");
    let demand = Demand::new(at("08:00:00"));
    let credential = expires_at.map(|expires_at| Credential {
        identity: crate::identity::Identity::Ambient.hash(),
        lifetime: Lifetime {
            minted_at: expires_at - SignedDuration::from_hours(12),
            expires_at,
        },
    });
    state.hosts.insert(host, HostState { demand, credential });
    state
}

fn secret(state: Option<State>) -> Reading<Option<PullSecretFacts>> {
    Reading::Read(Some(PullSecretFacts {
        namespace: "team".to_owned(),
        is_managed: true,
        state,
        other_managers: BTreeSet::new(),
    }))
}

fn settings() -> Settings {
    let config = Config::default();
    Settings {
        rules: config.rules,
        label: config.opt_in.label,
        value: config.opt_in.value,
        watches_service_accounts: true,
        lists_pods: false,
    }
}

fn namespace(
    labels: &[(&str, &str)],
    labelled_at: Option<Timestamp>,
) -> Reading<Option<NamespaceFacts>> {
    let labels = labels.iter();
    let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let at = labelled_at.map(|at| (LABEL.to_owned(), at));
    Reading::Read(Some(NamespaceFacts {
        name: "team".to_owned(),
        labels: labels.collect(),
        labelled_at: at.into_iter().collect::<BTreeMap<_, _>>(),
        ..NamespaceFacts::default()
    }))
}

/// A Pod that runs, with all that it needs.
fn fine_case() -> PodCase {
    PodCase {
        pod: json!({
            "metadata": {"name": "web", "creationTimestamp": "2027-01-15T09:00:00Z",
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}]},
            "spec": {
                "imagePullSecrets": [{"name": "ecr-pull-secret"}],
                "containers": [{"name": "app", "image": format!("{HOST}/app:1")}],
            },
            "status": {"phase": "Running",
                "containerStatuses": [{"name": "app", "state": {"running": {}}}]},
        }),
        is_stored: true,
        namespace_name: "team".to_owned(),
        namespace: namespace(&[(LABEL, "enabled")], Some(at("08:00:00"))),
        secret: secret(Some(state(HOST, Some(at("21:00:00"))))),
        account_rejects: Reading::Read(false),
        events: Reading::Read(Vec::new()),
        config: Reading::Read(ConfigFacts::Valid(Box::new(settings()))),
        now: at("10:00:00"),
    }
}

fn without_reference(case: &mut PodCase) {
    case.pod["spec"]["imagePullSecrets"] = json!([]);
}

fn waits(case: &mut PodCase, message: &str) {
    let state = json!({"waiting": {"reason": "ErrImagePull", "message": message}});
    case.pod["status"] = json!({"phase": "Pending",
        "containerStatuses": [{"name": "app", "state": state}]});
}

fn event(case: &mut PodCase, reason: &str, message: &str) {
    let event = PodEvent {
        reason: reason.to_owned(),
        message: message.to_owned(),
        count: 3,
        last: Some(at("09:59:50")),
    };
    case.events = Reading::Read(vec![event]);
}

fn image(case: &mut PodCase, image: &str) {
    case.pod["spec"]["containers"][0]["image"] = json!(image);
}

fn annotated(case: &mut PodCase, key: &str, value: &str) {
    case.pod["metadata"]["annotations"] = json!({key: value});
}

type Change = fn(&mut PodCase);

/// A situation, its verdict, a part of the text, and whether nothing is wrong.
#[rustfmt::skip]
const SITUATIONS: &[(&str, &str, bool, Change)] = &[
    ("pod-fine", "valid until 2027-01-15T21:00:00Z", true, |_| {}),
    ("pod-fine", "could not be read", true, |it| it.secret = Reading::Forbidden(Right::new("list", "secrets", None))),
    ("pod-no-ecr", "only in docker.io", true, |it| image(it, "nginx:1")),
    ("pod-no-ecr", "not 12 digits", true, |it| image(it, "12345678901.dkr.ecr.eu-west-1.amazonaws.com/app:1")),
    ("pod-static", "mirror", false, |it| annotated(it, "kubernetes.io/config.mirror", "x")),
    ("pod-sandbox-image", "pause image", false, |it| {
        it.pod["status"] = json!({"phase": "Pending"});
        event(it, "FailedCreatePodSandBox", "failed to get sandbox image \"pause:3\"");
    }),
    ("pod-sandbox-image", "pause image", false, |it| {
        it.pod["status"] = json!({"phase": "Pending"});
        event(it, "FailedCreatePodSandBox", "failed to pull image \"registry.k8s.io/pause:3.10\"");
    }),
    ("pod-fine", "valid until", true, |it| event(it, "FailedCreatePodSandBox", "failed to get sandbox image")),
    ("pod-fine", "valid until", true, |it| {
        it.pod["status"] = json!({"phase": "Pending"});
        event(it, "FailedCreatePodSandBox", "the network plugin failed");
    }),
    ("pod-fine", "valid until", true, |it| {
        it.pod["status"] = json!({"phase": "Pending"});
        event(it, "Pulling", "a sandbox image");
    }),
    ("pod-opted-out", "disabled", true, |it| { without_reference(it); annotated(it, LABEL, "disabled"); }),
    ("pod-not-opted-in", "has not the label", false, |it| { without_reference(it); it.namespace = namespace(&[], None); }),
    ("pod-not-opted-in", "The value", false, |it| { without_reference(it); it.namespace = namespace(&[(LABEL, "true")], None); }),
    ("pod-not-opted-in", "excludes the namespace team", false, |it| {
        without_reference(it);
        it.namespace = namespace(&[], None);
        let mut settings = settings();
        settings.rules.excluded.insert(Namespace::parse("team").expect("a name"));
        it.config = Reading::Read(ConfigFacts::Valid(Box::new(settings)));
    }),
    ("pod-not-opted-in", "does not exist", false, |it| { without_reference(it); it.namespace = Reading::Read(None); }),
    ("pod-not-allowed", "allows none", false, |it| {
        without_reference(it);
        let mut settings = settings();
        let accounts = BTreeSet::from([crate::registry::AccountId::parse("210987654321").expect("an id")]);
        settings.rules.allow = Allow { accounts, ..Allow::default() };
        it.config = Reading::Read(ConfigFacts::Valid(Box::new(settings)));
    }),
    ("pod-no-identity", "no identity", false, |it| {
        without_reference(it);
        let mut settings = settings();
        settings.rules.identities.default = crate::identity::DefaultIdentity::None;
        it.config = Reading::Read(ConfigFacts::Valid(Box::new(settings)));
    }),
    ("pod-account", "mountable secrets", false, |it| { without_reference(it); it.account_rejects = Reading::Read(true); }),
    ("pod-older-than-opt-in", "2027-01-15T09:30:00Z; it runs all the same", false, |it| {
        without_reference(it);
        it.namespace = namespace(&[(LABEL, "enabled")], Some(at("09:30:00")));
    }),
    ("pod-image-changed", "09:45:00Z", false, |it| {
        without_reference(it);
        let fields = json!({"f:spec": {"f:containers": {"k:app": {"f:image": {}}}}});
        it.pod["metadata"]["managedFields"] = json!([{"time": "2027-01-15T09:45:00Z", "fieldsV1": fields}]);
    }),
    ("pod-missed", "without the webhook", false, |it| { without_reference(it); waits(it, ""); }),
    ("pod-missed", "perhaps before its namespace was labelled", false, |it| {
        without_reference(it);
        it.namespace = namespace(&[(LABEL, "enabled")], None);
    }),
    ("pod-would-be-injected", "would get ecr-pull-secret", true, |it| { without_reference(it); it.is_stored = false; }),
    ("pod-secret-missing", "does not exist", false, |it| it.secret = Reading::Read(None)),
    ("pod-secret-foreign", "lacks the label", false, |it| if let Reading::Read(Some(secret)) = &mut it.secret { secret.is_managed = false; }),
    ("pod-secret-foreign", "lacks the label", false, |it| {
        without_reference(it);
        if let Reading::Read(Some(secret)) = &mut it.secret { secret.is_managed = false; }
    }),
    ("pod-secret-tampered", "can't be read", false, |it| it.secret = secret(None)),
    ("pod-secret-lacks-registry", HOST, false, |it| it.secret = secret(Some(state("other.example.com", None)))),
    ("pod-secret-pending", "no credential", false, |it| it.secret = secret(Some(state(HOST, None)))),
    ("pod-secret-expired", "pulls again at about 2027-01-15T10:00:35Z", false, |it| {
        it.secret = secret(Some(state(HOST, Some(at("09:59:00")))));
        waits(it, "403 Forbidden");
        event(it, "Pulling", "");
    }),
    ("pod-secret-expired", "pulls again within five minutes", false, |it| {
        it.secret = secret(Some(state(HOST, Some(at("09:59:00")))));
        waits(it, "403 Forbidden");
        event(it, "Pulling", "");
        it.now = at("10:00:35");
    }),
    ("pod-retry", "before the pull secret", false, |it| waits(it, "no basic auth credentials")),
    ("pod-denied", "the identity of ecr-injector itself", false, |it| waits(it, "not authorized to perform: ecr:BatchGetImage")),
    ("pod-no-image", "does not exist", false, |it| waits(it, "manifest unknown")),
    ("pod-stale-token", "is its clock right", false, |it| waits(it, "Your authorization token has expired.")),
    ("pod-stale-token", "(mine)", false, |it| {
        waits(it, "Your authorization token has expired.");
        it.pod["spec"]["imagePullSecrets"] = json!([{"name": "mine"}, {"name": "ecr-pull-secret"}]);
    }),
    ("pod-network", "can't reach", false, |it| waits(it, "x509: certificate signed by unknown authority")),
    ("pod-unknown", "no space left", false, |it| waits(it, "no space left on device")),
    ("pod-unknown", "you may not get namespaces", false, |it| {
        without_reference(it);
        it.namespace = Reading::Forbidden(Right::new("get", "namespaces", None));
    }),
    ("pod-unknown", "absent or invalid", false, |it| it.config = Reading::Read(ConfigFacts::Absent("x".to_owned()))),
    ("pod-unknown", "the Pod can't be read", false, |it| it.pod["spec"] = json!(7)),
];

#[test]
fn every_situation_has_its_verdict() {
    for (code, part, is_ok, change) in SITUATIONS {
        let mut case = fine_case();
        change(&mut case);
        let verdict = verdict(&case);
        assert_eq!(verdict.code, *code, "{verdict:?}");
        assert_eq!(verdict.is_ok, *is_ok, "{verdict:?}");
        assert_eq!(verdict.fix.is_none(), *is_ok, "{verdict:?}");
        assert!(verdict.text.contains(part), "{part}: {verdict:?}");
    }
}

#[test]
fn every_code_has_a_situation() {
    let tested: BTreeSet<&str> = SITUATIONS.iter().map(|row| row.0).collect();
    assert_eq!(tested, BTreeSet::from(CODES));
}

#[test]
fn missed_pod_runs_all_the_same_if_no_image_is_waited_for() {
    for (phase, is_waiting, runs) in [
        ("Running", false, true),
        ("Running", true, false),
        ("Pending", false, false),
    ] {
        let mut case = fine_case();
        without_reference(&mut case);
        if is_waiting {
            waits(&mut case, "no basic auth credentials");
        }
        case.pod["status"]["phase"] = json!(phase);
        let text = verdict(&case).text;
        assert_eq!(text.contains("it runs all the same"), runs, "{text}");
    }
}

#[test]
fn message_of_a_pod_that_backs_off_is_that_of_the_event() {
    let mut case = fine_case();
    waits(&mut case, "Back-off pulling image");
    let reason = &mut case.pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    *reason = json!("ImagePullBackOff");
    assert_eq!(verdict(&case).code, "pod-unknown");
    let message = |image: &str| format!("Failed to pull image \"{HOST}/{image}\": 403 Forbidden");
    for (reason, image, code) in [
        ("Failed", "app:1", "pod-denied"),
        ("Failed", "other:1", "pod-unknown"),
        ("Warned", "app:1", "pod-unknown"),
    ] {
        event(&mut case, reason, &message(image));
        assert_eq!(verdict(&case).code, code, "{reason} {image}");
    }
}

#[test]
fn advice_follows_the_owner_of_the_pod() {
    for (owners, part) in [
        (
            json!([{"kind": "ReplicaSet", "controller": true}]),
            "its ReplicaSet makes a new one",
        ),
        (
            json!([{"kind": "Job", "controller": true}]),
            "counts a failure",
        ),
        (json!([{"kind": "ReplicaSet"}]), "again from its manifest"),
        (Value::Null, "again from its manifest"),
    ] {
        let mut case = fine_case();
        without_reference(&mut case);
        case.pod["metadata"]["ownerReferences"] = owners;
        let fix = verdict(&case).fix.expect("a fix");
        assert!(fix.contains(part), "{fix}");
    }
}

#[test]
fn images_are_listed_with_their_credentials() {
    let rows = verdict(&fine_case()).images;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].host, HOST);
    assert_eq!(rows[0].credential, "until 2027-01-15T21:00:00Z");
    let mut over = fine_case();
    over.now = at("21:00:00");
    let rows = verdict(&over).images;
    assert_eq!(rows[0].credential, "expired at 2027-01-15T21:00:00Z");
}
