//! Golden tests of the decisions about Pods, held by example: `tests/pods/*.yaml`.
//!
//! A fixture is a Pod's YAML, headed by why it is there. A second document may change the situation ([`Situation`]); without
//! one the Pod is created in an opted-in namespace that has no pull secret, under the default configuration. The
//! snapshots have the verdict, the patch, the warnings, and what would be ensured: each host with the token that it needs.
//! After a change that is meant: `INSTA_UPDATE=always cargo test --test offline admission_golden`, then read the difference.

use std::{collections::BTreeMap, fs, path::Path};

use ecr_injector::{
    admission::{
        decide::{Decision, Facts, OptInFacts, decide, demand, skip_warnings},
        manifest::text,
        patch,
        review::Request,
    },
    cluster::namespace::NamespaceSettings,
    config::Config,
    identity::Identity,
    pull_secret::{
        Foreign, SecretFacts,
        state::{Credential, DataDigest, Demand, HostState, State},
    },
    registry::{Host, Service},
    token::{Lifetime, MAX_LIFE, TokenKey},
};
use jiff::{SignedDuration, Timestamp};
use json_patch::Patch;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// The situation in which a Pod is reviewed.
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Situation {
    operation: String,
    sub_resource: Option<String>,
    namespace: String,
    dry_run: bool,
    /// The Pod as it is stored, on UPDATE.
    old: Option<Value>,
    opted_in: OptedIn,
    /// Whether the ServiceAccount enforces mountable secrets, and lacks the pull secret.
    account_rejects_reference: bool,
    /// The namespace's annotation.
    role: Option<String>,
    secret: Secret,
    /// The configuration file.
    config: Value,
}

/// Whether the namespace is opted in; null: it can't be read.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum OptedIn {
    Known(bool),
    Unknown,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Secret {
    #[default]
    Absent,
    Unverified,
    Foreign(Why),
    /// Ours, with the age of each host's credential in hours.
    Hosts(BTreeMap<String, i64>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Why {
    Label,
    Type,
    Immutable,
    Entries,
}

impl Default for Situation {
    fn default() -> Self {
        Self {
            operation: "CREATE".into(),
            sub_resource: None,
            namespace: "team".into(),
            dry_run: false,
            old: None,
            opted_in: OptedIn::Known(true),
            account_rejects_reference: false,
            role: None,
            secret: Secret::Absent,
            config: json!({}),
        }
    }
}

struct Fixture {
    pod: Value,
    situation: Situation,
}

/// The webhook's answer and actions for a Pod.
struct Verdict {
    /// The verdict in a word or two.
    word: String,
    patch: Patch,
    warnings: Vec<String>,
    ensures: BTreeMap<Host, TokenKey>,
    due: bool,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let mut documents = text::read(&fs::read(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .into_iter();
        let pod = documents.next().unwrap();
        let situation = documents
            .next()
            .map_or_else(Situation::default, |document| {
                serde_json::from_value(document)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            });
        assert!(documents.next().is_none(), "{}", path.display());
        Self { pod, situation }
    }

    fn verdict(&self, pod: &Value) -> Verdict {
        let config = Config::parse(
            &crate::support::config_file(&self.situation.config.to_string()),
            "config",
        )
        .unwrap();
        let rules = &config.rules;
        let body = self.review(pod);
        let request = Request::parse(&body).unwrap();
        let state = self.situation.secret.state();
        let said = NamespaceSettings {
            role: self.situation.role.as_deref().map(Into::into),
            ..NamespaceSettings::default()
        };
        let facts = Facts {
            opt_in: match self.situation.opted_in {
                OptedIn::Known(true) => OptInFacts::OptedIn(&said),
                OptedIn::Known(false) => OptInFacts::NotOptedIn,
                OptedIn::Unknown => OptInFacts::Unknown,
            },
            account_rejects_reference: self.situation.account_rejects_reference,
            secret: match &self.situation.secret {
                Secret::Absent => SecretFacts::Absent,
                Secret::Unverified => SecretFacts::Unverified,
                Secret::Foreign(why) => SecretFacts::Foreign(match why {
                    Why::Label => Foreign::Label,
                    Why::Type => Foreign::Type,
                    Why::Immutable => Foreign::Immutable,
                    Why::Entries => Foreign::Entries,
                }),
                Secret::Hosts(_) => SecretFacts::Ours(&state),
            },
        };
        let decision = match demand(&request, rules) {
            Ok(demand) => decide(demand, rules, &facts, NOW),
            Err(reason) => Decision::Skip(reason),
        };
        let (verdict, injection, ensures) = match decision {
            Decision::Skip(reason) => {
                return Verdict {
                    word: format!("skip: {}", reason.as_str()),
                    patch: Patch::default(),
                    warnings: skip_warnings(reason, &request, rules),
                    ensures: BTreeMap::new(),
                    due: false,
                };
            }
            Decision::Inject(injection) => ("inject", injection, BTreeMap::new()),
            Decision::InjectUnprovisioned(injection) => {
                ("inject unprovisioned", injection, BTreeMap::new())
            }
            Decision::InjectAfterEnsuring(injection, missing) => {
                ("inject after provisioning", injection, missing)
            }
        };
        Verdict {
            word: verdict.into(),
            patch: patch::append(&rules.secret_name, injection.reference),
            warnings: injection.warnings,
            ensures,
            due: injection.due,
        }
    }

    fn review(&self, pod: &Value) -> Vec<u8> {
        let situation = &self.situation;
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "subResource": situation.sub_resource,
                "name": "",
                "namespace": situation.namespace,
                "operation": situation.operation,
                "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
                "object": pod,
                "oldObject": situation.old,
                "dryRun": situation.dry_run,
            },
        });
        serde_json::to_vec(&review).unwrap()
    }
}

impl Secret {
    fn state(&self) -> State {
        let Self::Hosts(ages) = self else {
            return State::default();
        };
        let hosts = ages.iter().map(|(host, hours)| {
            let minted_at = NOW - SignedDuration::from_hours(*hours);
            let entry = HostState {
                demand: Demand::new(NOW),
                credential: Some(Credential {
                    identity: Identity::Ambient.hash(),
                    lifetime: Lifetime {
                        minted_at,
                        expires_at: minted_at + MAX_LIFE,
                    },
                }),
            };
            (Host::parse(host).unwrap(), entry)
        });
        State {
            hosts: hosts.collect(),
            digest: DataDigest::default(),
            ..State::default()
        }
    }
}

impl Verdict {
    fn to_yaml(&self) -> String {
        let mut snapshot = json!({"verdict": self.word});
        if !self.patch.0.is_empty() {
            snapshot["patch"] = serde_json::to_value(&self.patch).unwrap();
        }
        if !self.warnings.is_empty() {
            snapshot["warnings"] = json!(self.warnings);
        }
        if !self.ensures.is_empty() {
            let ensures: Vec<String> = self
                .ensures
                .iter()
                .map(|(host, key)| ensured(host, key))
                .collect();
            snapshot["ensures"] = json!(ensures);
        }
        if self.due {
            snapshot["due"] = json!(true);
        }
        text::to_yaml(&snapshot).unwrap()
    }
}

fn ensured(host: &Host, key: &TokenKey) -> String {
    let endpoint = match (key.endpoint.fips, key.endpoint.dual_stack) {
        (false, false) => "",
        (true, false) => " FIPS",
        (false, true) => " dual-stack",
        (true, true) => " dual-stack FIPS",
    };
    let identity = match &key.identity {
        Identity::Ambient => String::new(),
        Identity::Profile(profile) => format!(", as profile {}", profile.name()),
        Identity::Role(role) => format!(", as {}", role.arn),
    };
    let service = match key.endpoint.service {
        Service::Private => "",
        Service::Public => " of ECR Public",
    };
    format!(
        "{host} by a token of {}{endpoint}{service}{identity}",
        key.region
    )
}

/// Checks every patch: it applies, changes nothing but the list, and is empty the second time.
fn check(fixture: &Fixture, pod: &Value) -> Result<(), TestCaseError> {
    let verdict = fixture.verdict(pod);
    let mut after = pod.clone();
    prop_assert!(json_patch::patch(&mut after, &verdict.patch).is_ok());
    let again = fixture.verdict(&after);
    prop_assert!(again.patch.0.is_empty(), "a second pass changes something");
    if !verdict.patch.0.is_empty() {
        prop_assert_eq!(&fixture.situation.operation, "CREATE");
        let list = |pod: &Value| {
            let list = pod["spec"]["imagePullSecrets"].as_array();
            list.cloned().unwrap_or_default()
        };
        let (had, has) = (list(pod), list(&after));
        prop_assert_eq!(&has[..had.len()], &had[..]);
        prop_assert_eq!(has.len(), had.len() + 1);
        prop_assert_eq!(again.word, verdict.word);
        prop_assert_eq!(again.ensures, verdict.ensures);
    }
    let without_list = |pod: &Value| {
        let mut pod = pod.clone();
        if let Some(spec) = pod["spec"].as_object_mut() {
            spec.remove("imagePullSecrets");
        }
        pod
    };
    if pod["spec"].is_object() {
        prop_assert_eq!(without_list(pod), without_list(&after));
    } else {
        prop_assert_eq!(pod, &after);
    }
    for warning in &verdict.warnings {
        prop_assert!(warning.chars().count() <= 120, "{}", warning);
    }
    Ok(())
}

#[test]
fn each_pod_gets_the_verdict_of_its_snapshot() {
    insta::glob!("../pods", "*.yaml", |path| {
        let fixture = Fixture::read(path);
        let snapshot = fixture.verdict(&fixture.pod).to_yaml();
        let why: String = fs::read_to_string(path)
            .unwrap()
            .lines()
            .map_while(|line| line.strip_prefix("# "))
            .collect::<Vec<_>>()
            .join(" ");
        assert!(!why.is_empty(), "{} doesn't say why", path.display());
        insta::with_settings!({description => why, omit_expression => true, prepend_module_to_snapshot => false}, {
            insta::assert_snapshot!("verdict", snapshot);
        });
        check(&fixture, &fixture.pod).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    });
}

#[test]
fn every_snapshot_has_its_pod() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in fs::read_dir(tests.join("offline/snapshots")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(pod) = name
            .strip_prefix("verdict@")
            .and_then(|name| name.strip_suffix(".snap"))
        {
            assert!(
                tests.join("pods").join(pod).exists(),
                "{name} has no Pod any more; remove it"
            );
        }
    }
}

/// One step away from a fixture: a field at a path that steps down by index loses its value, or gets another.
#[derive(Debug, Clone)]
struct Mutation {
    steps: Vec<prop::sample::Index>,
    value: Option<Value>,
}

impl Mutation {
    fn apply(&self, value: &mut Value) {
        let Some((step, rest)) = self.steps.split_first() else {
            return;
        };
        let rest = Self {
            steps: rest.to_vec(),
            value: self.value.clone(),
        };
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let name = fields.keys().nth(step.index(fields.len())).unwrap().clone();
                match (rest.steps.is_empty(), &self.value) {
                    (true, None) => _ = fields.remove(&name),
                    (true, Some(new)) => _ = fields.insert(name, new.clone()),
                    (false, _) => rest.apply(&mut fields[&name]),
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let at = step.index(items.len());
                match (rest.steps.is_empty(), &self.value) {
                    (true, None) => _ = items.remove(at),
                    (true, Some(new)) => items.push(new.clone()),
                    (false, _) => rest.apply(&mut items[at]),
                }
            }
            _ => {}
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let value = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => Just(Some(json!([]))),
        1 => Just(Some(json!({}))),
        1 => Just(Some(json!("x\u{e9}\n\"~/"))),
        1 => Just(Some(json!({"name": "ecr-pull-secret"}))),
        1 => Just(Some(json!({"name": "n", "image": "333333333333.dkr.ecr.eu-west-3.amazonaws.com/x"}))),
        1 => Just(Some(json!([{"name": "ecr-pull-secret"}, {"name": "other"}]))),
    ];
    (
        prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        value,
    )
        .prop_map(|(steps, value)| Mutation { steps, value })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn patch_changes_only_the_list_of_pull_secrets(
        pick in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        thread_local! {
            static FIXTURES: Vec<Fixture> = {
                let pods = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods");
                let mut paths: Vec<_> = fs::read_dir(pods).unwrap().map(|entry| entry.unwrap().path()).collect();
                paths.sort();
                paths.iter().map(|path| Fixture::read(path)).collect()
            };
        }
        FIXTURES.with(|fixtures| {
            let fixture = &fixtures[pick.index(fixtures.len())];
            let mut pod = fixture.pod.clone();
            for mutation in &mutations {
                mutation.apply(&mut pod);
            }
            check(fixture, &pod)
        })?;
    }
}
