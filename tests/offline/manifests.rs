//! `deploy/` and the code name the same things: the Secret, the label, the excluded namespaces, the path.

use std::collections::BTreeSet;
use std::path::Path;

use ecr_injector::cluster::event_recorder::REPORTER;
use ecr_injector::config::Config;
use ecr_injector::pull_secret::state_key::DEFAULT_NAME;
use ecr_injector::pull_secret::state_key::plan::SECRET_TYPE;
use ecr_injector::registry::Partition;
use ecr_injector::server::PATH;
use ecr_injector::{
    cluster::ownership::{MANAGED_BY, MANAGED_BY_LABEL},
    pull_secret::{DATA_KEY, TYPE},
};
use serde_json::{Value, json};

fn documents(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn own_namespace() -> String {
    documents("namespace.yaml")[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn excluded() -> BTreeSet<String> {
    let config = Config::default().excluding(ecr_injector::cluster::namespace::Namespace::parse(
        &own_namespace(),
    ));
    config
        .rules
        .excluded
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn configuration_as_shipped_is_the_default() {
    let config = documents("configmap.yaml")[0]["data"]["config.yaml"]
        .as_str()
        .unwrap()
        .to_owned();
    let shipped = Config::parse(&config, "configmap.yaml").unwrap();
    assert_eq!(format!("{shipped:?}"), format!("{:?}", Config::default()));
}

#[test]
fn guards_policies_are_known_by_their_names() {
    let policies = documents("guard.yaml");
    for policy in &policies {
        let name = policy["metadata"]["name"].as_str().unwrap();
        assert!(
            name.ends_with(ecr_injector::pull_secret::guard::POLICIES),
            "{name}"
        );
    }
    assert!(!policies.is_empty());
}

/// A Dockerfile can't be built here, but what Cargo has to find can be looked for.
#[test]
fn dockerfile_copies_all_that_cargo_asks_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = tempfile::tempdir().unwrap();
    let dockerfile = std::fs::read_to_string(root.join("Dockerfile")).unwrap();
    let mut copied = 0;
    for line in dockerfile.lines() {
        let Some(paths) = line.strip_prefix("COPY ") else {
            continue;
        };
        let mut paths: Vec<&str> = paths.split(' ').collect();
        if paths[0].starts_with("--from") {
            break;
        }
        let to = context.path().join(paths.pop().unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let mut copy = std::process::Command::new("cp");
        copy.arg("-R").args(paths).arg(to).current_dir(root);
        assert!(copy.status().unwrap().success(), "{line}");
        copied += 1;
    }
    assert!(copied > 2, "{copied}");
    // Nothing is compiled: before it looks for the binary, and finds none of that name, Cargo looks for each target's file.
    let build = std::process::Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--bin", "no-such"])
        .current_dir(context.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&build.stderr);
    assert!(error.contains("no bin target named `no-such`"), "{error}");
}

#[test]
fn iam_policies_allow_pulls_and_nothing_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/iam");
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let pulls = json!(["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]);
    for partition in Partition::all().map(Partition::as_str) {
        let policy = read(&format!("policy-{partition}.json"));
        let statements = policy["Statement"].as_array().unwrap();
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0]["Action"], "ecr:GetAuthorizationToken");
        assert_eq!(statements[1]["Action"], pulls);
        let resources = json!([format!("arn:{partition}:ecr:*:123456789012:repository/*")]);
        assert_eq!(statements[1]["Resource"], resources);
    }
    let statement = &read("repository-policy.json")["Statement"][0];
    assert_eq!(statement["Action"], pulls);
    let account = "system:serviceaccount:ecr-injector:ecr-injector";
    assert!(read("trust-irsa.json").to_string().contains(account));
}

#[test]
fn each_role_is_narrowed_to_the_names_of_what_is_ours() {
    let rules = |kind: &str| -> Vec<Value> {
        let roles = documents("rbac.yaml");
        let role = roles.into_iter().find(|role| role["kind"] == kind).unwrap();
        role["rules"].as_array().unwrap().clone()
    };
    let names = |rules: &[Value], resource: &str| -> Vec<Value> {
        let of = rules
            .iter()
            .filter(|rule| rule["resources"] == json!([resource]));
        of.map(|rule| rule["resourceNames"].clone()).collect()
    };
    let cluster = rules("ClusterRole");
    let pull_secret = json!([Config::default().rules.secret_name]);
    assert_eq!(names(&cluster, "secrets"), [pull_secret]);
    let registration = &documents("registration.yaml")[0]["metadata"]["name"];
    let narrowed = names(&cluster, "mutatingwebhookconfigurations");
    assert_eq!(narrowed, [json!([registration])]);
    assert_eq!(
        names(&rules("Role"), "secrets"),
        [json!([DEFAULT_NAME]), json!(["ecr-injector-ca"])]
    );
}

#[test]
fn defaults_of_serve_are_what_is_installed() {
    let arguments = ["ecr-injector", "serve", "--help"];
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(&arguments[1..])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let registration = &documents("registration.yaml")[0]["metadata"]["name"];
    for name in [
        registration.as_str().unwrap(),
        "ecr-injector-ca",
        DEFAULT_NAME,
    ] {
        assert!(
            help.contains(&format!("[default: {name}]")),
            "{name}: {help}"
        );
    }
}

#[test]
fn registration_has_the_codes_namespaces_and_path() {
    let config = Config::default();
    let registration = documents("registration.yaml").remove(0);
    let webhooks = registration["webhooks"].as_array().unwrap();
    assert_eq!(webhooks.len(), 2);
    for webhook in webhooks {
        let selector = &webhook["namespaceSelector"];
        assert_eq!(
            selector["matchLabels"],
            json!({config.opt_in.label.clone(): config.opt_in.value})
        );
        let named: BTreeSet<String> =
            serde_json::from_value(selector["matchExpressions"][0]["values"].clone()).unwrap();
        assert_eq!(named, excluded());
        assert_eq!(webhook["clientConfig"]["service"]["path"], PATH);
        assert_eq!(
            webhook["clientConfig"]["service"]["namespace"],
            json!(own_namespace())
        );
        assert!(
            webhook["clientConfig"].get("caBundle").is_none(),
            "applying the file would wipe out the caBundle"
        );
        assert_eq!(webhook["sideEffects"], "NoneOnDryRun");
    }
    assert_eq!(
        webhooks[1]["failurePolicy"], "Ignore",
        "an UPDATE must never depend on us"
    );
}

#[test]
fn one_lease_is_narrowed_by_name_and_events_are_only_created() {
    let rules: Vec<Value> = documents("rbac.yaml")
        .into_iter()
        .filter_map(|document| document["rules"].as_array().cloned())
        .flatten()
        .collect();
    let of = |resource: &str| {
        let mut rules = rules
            .iter()
            .filter(|rule| rule["resources"] == json!([resource]));
        let rule = rules.next().unwrap();
        assert!(rules.next().is_none(), "{resource}");
        rule
    };
    assert_eq!(of("leases")["resourceNames"], json!([own_namespace()]));
    assert_eq!(of("leases")["verbs"], json!(["get", "create", "update"]));
    assert_eq!(of("events")["verbs"], json!(["create"]));
    let removal = rules
        .iter()
        .flat_map(|rule| rule["verbs"].as_array().unwrap());
    assert!(!removal.into_iter().any(|verb| verb == "delete"));
}

#[test]
fn guard_knows_the_reporter_of_events() {
    let policy = documents("guard.yaml")
        .into_iter()
        .find(|document| document["metadata"]["name"] == "events.ecr-injector.dev")
        .unwrap();
    let text = policy["spec"].to_string();
    for word in [REPORTER, &Config::default().rules.secret_name] {
        assert!(
            text.contains(&format!("== \\\"{word}\\\"")),
            "{word} not in {text}"
        );
    }
}

#[test]
fn guard_knows_the_name_label_type_and_excluded_namespaces() {
    let config = Config::default();
    let guard = documents("guard.yaml");
    let policy = guard
        .iter()
        .find(|document| document["metadata"]["name"] == "secrets.ecr-injector.dev")
        .unwrap();
    let text = policy["spec"].to_string();
    for word in [
        config.rules.secret_name.as_str(),
        &config.opt_in.label,
        &config.opt_in.value,
        MANAGED_BY_LABEL,
        MANAGED_BY,
        TYPE,
        DATA_KEY,
        DEFAULT_NAME,
        SECRET_TYPE,
    ] {
        assert!(text.contains(word), "the guard doesn't name {word}");
    }
    for namespace in excluded() {
        assert!(
            text.contains(&format!("\\\"{namespace}\\\"")),
            "the guard doesn't exclude {namespace}"
        );
    }
}
