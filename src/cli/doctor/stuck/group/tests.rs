//! The group of a stuck Pod, and its copy.

use std::collections::BTreeMap;

use super::*;
use crate::{
    cli::doctor::{
        finding::Reading,
        installation::{ConfigFacts, NamespaceFacts, Settings},
    },
    config::Config,
};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const LABEL: &str = "ecr-injector.dev/inject";

fn rules() -> Rules {
    Config::default().rules
}

/// A Pod of a controller that was missed, in an opted-in namespace.
pub(in crate::cli::doctor::stuck) fn missed() -> PodCase {
    let config = Config::default();
    let settings = Settings {
        rules: config.rules,
        label: config.opt_in.label,
        value: config.opt_in.value,
        watches_service_accounts: true,
        lists_pods: false,
    };
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}});
    PodCase {
        pod: json!({
            "metadata": {"name": "web-x", "generateName": "web-", "namespace": "team", "uid": "u",
                "creationTimestamp": "2027-01-15T09:00:00Z", "labels": {"app": "web"},
                "resourceVersion": "7",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "o", "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"nodeName": "node-1", "priority": 0, "priorityClassName": "high",
                "containers": [{"name": "app", "image": format!("{HOST}/app:1")}]},
            "status": {"phase": "Pending",
                "containerStatuses": [{"name": "app", "state": waiting}]},
        }),
        is_stored: true,
        namespace_name: "team".to_owned(),
        namespace: Reading::Read(Some(NamespaceFacts {
            name: "team".to_owned(),
            labels: BTreeMap::from([(LABEL.to_owned(), "enabled".to_owned())]),
            ..NamespaceFacts::default()
        })),
        secret: Reading::Read(None),
        account_rejects: Reading::Read(false),
        events: Reading::Read(Vec::new()),
        config: Reading::Read(ConfigFacts::Valid(Box::new(settings))),
        now: "2027-01-15T10:00:00Z".parse().expect("a time"),
    }
}

fn owned_by(case: &mut PodCase, kind: &str) {
    case.pod["metadata"]["ownerReferences"][0]["kind"] = json!(kind);
}

type Change = fn(&mut PodCase);

/// A situation, its group, and a part of what is to be done.
#[rustfmt::skip]
const SITUATIONS: &[(Option<Group>, &str, Change)] = &[
    (Some(Group::Missed), "--stuck --restart, or kubectl -n team delete pod web-x", |_| {}),
    (Some(Group::Missed), "--restart", |it| owned_by(it, "StatefulSet")),
    (Some(Group::Missed), "--restart", |it| owned_by(it, "Rollout")),
    (Some(Group::Job), "--restart --jobs", |it| owned_by(it, "Job")),
    (Some(Group::Bare), "kubectl -n team get pod web-x -o yaml | kubectl replace --force -f -", |it| it.pod["metadata"]["ownerReferences"] = Value::Null),
    // An owner that is no controller replaces nothing.
    (Some(Group::Bare), "replace", |it| it.pod["metadata"]["ownerReferences"][0]["controller"] = json!(false)),
    (Some(Group::Static), "credential-provider", |it| it.pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})),
    (Some(Group::Static), "", |it| owned_by(it, "Node")),
    (Some(Group::Referenced), "ecr-injector doctor", |it| it.pod["spec"]["imagePullSecrets"] = json!([{"name": "ecr-pull-secret"}])),
    (Some(Group::Skipped), "imagePullSecrets of the ServiceAccount", |it| it.account_rejects = Reading::Read(true)),
    (Some(Group::Skipped), "run the command", |it| it.secret = Reading::Unread("no right".to_owned())),
    (None, "", |it| it.pod["metadata"]["annotations"] = json!({LABEL: "disabled"})),
    (None, "", |it| if let Reading::Read(Some(facts)) = &mut it.namespace { facts.labels.clear(); }),
];

#[test]
fn stuck_pods_are_grouped_by_what_helps_them() {
    for (number, (group, fix, change)) in SITUATIONS.iter().enumerate() {
        let mut case = missed();
        change(&mut case);
        let stuck = StuckPod::of(&case, &rules());
        let found = stuck.as_ref().map(|pod| pod.group);
        assert_eq!(found, *group, "{number}: {:?}", verdict(&case));
        if let Some(stuck) = stuck {
            assert!(stuck.fix().contains(fix), "{number}: {}", stuck.fix());
        }
    }
    for group in Group::ALL {
        assert!(
            SITUATIONS.iter().any(|row| row.0 == Some(group)),
            "{group:?}"
        );
    }
}

#[test]
fn stuck_pod_waits_for_ecr_and_is_not_being_deleted() {
    let pod = missed().pod;
    assert!(is_stuck(&pod, &rules()));
    let mut other = pod.clone();
    other["spec"]["containers"][0]["image"] = json!("nginx:1");
    assert!(!is_stuck(&other, &rules()));
    let mut deleted = pod.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2027-01-15T10:00:00Z");
    assert!(!is_stuck(&deleted, &rules()));
    let mut runs = pod;
    runs["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
    assert!(!is_stuck(&runs, &rules()));
}

#[test]
fn copy_is_the_pod_without_what_the_server_sets() {
    let stuck = StuckPod::of(&missed(), &rules()).expect("a stuck Pod");
    let expected = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-", "namespace": "team", "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                "uid": "o", "controller": true}]},
        "spec": {"priorityClassName": "high",
            "containers": [{"name": "app", "image": format!("{HOST}/app:1")}]},
    });
    assert_eq!(stuck.copy(), expected);
    let mut long = missed();
    long.pod["metadata"]["generateName"] = Value::Null;
    long.pod["metadata"]["name"] = json!("x".repeat(253));
    let copy = StuckPod::of(&long, &rules()).expect("a stuck Pod").copy();
    let prefix = copy["metadata"]["generateName"].as_str().expect("a prefix");
    assert_eq!(prefix.len(), MAX_NAME);
}
