//! Every entry of docs/how-to/troubleshooting.md has a producer of its text, and each producer an entry: what is written on
//! the page is what programs write.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::operations::literals;
use crate::support::troubleshooting::{headings, is_of, page};

/// Each entry, and the file that produces its text: a test that calls `shows` with the heading and what a program has
/// written; a snapshot that a test compares with what the code says; or, for a text that the code has as it is, the code.
const PRODUCERS: &[(&str, &str)] = &[
    (
        "`no credential yet for 1 ECR registry (REASON); image pulls may fail until then`",
        "tests/apiserver/faults.rs",
    ),
    (
        "`pull secret ecr-pull-secret is not ready`",
        "tests/apiserver/faults.rs",
    ),
    (
        "`the API server rejected Secret ecr-pull-secret`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`Secret ecr-pull-secret left unchanged`",
        "tests/offline/snapshots/verdict@dry_run_with_a_foreign_secret.yaml.snap",
    ),
    (
        "`this Pod does not reference pull secret ecr-pull-secret; recreate it`",
        "tests/offline/snapshots/verdict@update_in_a_dry_run.yaml.snap",
    ),
    (
        "`registry not in the allow list: HOST`",
        "tests/offline/snapshots/verdict@allow_one_of_two.yaml.snap",
    ),
    (
        "`an image looks like ECR, but …`",
        "tests/offline/snapshots/verdict@lookalike_beside_a_registry.yaml.snap",
    ),
    (
        "`an image is not the alias HOST: case and port count`",
        "tests/offline/snapshots/verdict@alias_in_upper_case.yaml.snap",
    ),
    (
        "`annotation ecr-injector.dev/inject: \"false\" has no effect; only disabled opts out`",
        "tests/offline/snapshots/verdict@annotation_of_another_value.yaml.snap",
    ),
    (
        "`label ecr-injector.dev/inject has no effect on a Pod`",
        "tests/offline/snapshots/verdict@opt_in_by_a_label_on_the_pod.yaml.snap",
    ),
    (
        "`credentials for only 16 of 20 ECR registries (limits.registriesPerPod)`",
        "tests/offline/snapshots/verdict@more_registries_than_the_cap.yaml.snap",
    ),
    (
        "`no room in the pull secret for 1 of this Pod's ECR registries`",
        "src/admission/outcome.rs",
    ),
    (
        "`annotation ecr-injector.dev/role-arn is not the ARN of a role`",
        "tests/offline/snapshots/verdict@identity_annotation_is_no_arn.yaml.snap",
    ),
    (
        "`the role in annotation ecr-injector.dev/role-arn is not in namespaceRoles.allow`",
        "tests/offline/snapshots/verdict@identity_annotation_not_allowed.yaml.snap",
    ),
    (
        "`the role is in partition aws, the registry in aws-cn`",
        "tests/offline/snapshots/verdict@identity_of_another_partition.yaml.snap",
    ),
    (
        "`no identity rule matches this registry and namespace`",
        "tests/offline/snapshots/verdict@identity_for_nobody.yaml.snap",
    ),
    (
        "`no credential yet for 1 ECR registry (overloaded); image pulls may fail until then`",
        "tests/offline/webhook_router.rs",
    ),
    (
        "`this namespace could not be read (namespace_unknown); image pulls may fail until it can`",
        "tests/offline/webhook_router.rs",
    ),
    (
        "`this Pod could not be read; if it has ECR images, they may fail to pull`",
        "tests/offline/snapshots/verdict@pod_that_is_none.yaml.snap",
    ),
    (
        "`ServiceAccount enforces mountable secrets: add ecr-pull-secret to its imagePullSecrets`",
        "tests/offline/snapshots/verdict@account_enforces_mountable_secrets.yaml.snap",
    ),
    (
        "`is not allowed because service account … does not reference that imagePullSecret`",
        "tests/apiserver/admission.rs",
    ),
    (
        "`pod updates may not change fields other than`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`admission webhook \"create.ecr-injector.dev\" denied the request`",
        "tests/apiserver/faults.rs",
    ),
    (
        "`failed calling webhook \"create.ecr-injector.dev\"`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`service \"ecr-injector\" not found`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`no endpoints available for service \"ecr-injector\"`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`connect: connection refused`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`context deadline exceeded`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`x509: certificate signed by unknown authority`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`x509: certificate is valid for NAME.NAMESPACE.svc, not NAME.NAMESPACE.svc`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`ImagePullBackOff`, and the Pod has no `imagePullSecrets`",
        "tests/kubelet/texts.rs",
    ),
    (
        "`ImagePullBackOff`, and the Pod references `ecr-pull-secret`",
        "tests/kubelet/texts.rs",
    ),
    ("`ErrImagePull`", "tests/kubelet/texts.rs"),
    (
        "`FailedToRetrieveImagePullSecret`",
        "tests/kubelet/texts.rs",
    ),
    (
        "`pull access denied, repository does not exist or may require authorization`",
        "tests/kubelet/texts.rs",
    ),
    ("`no basic auth credentials`", "tests/kubelet/texts.rs"),
    (
        "`Your authorization token has expired. Reauthenticate and try again.`",
        "tests/clients/texts.rs",
    ),
    (
        "`unexpected status from HEAD request to … 403 Forbidden`",
        "tests/kubelet/texts.rs",
    ),
    (
        "`is not authorized to perform: ecr:BatchGetImage on resource`",
        "tests/clients/texts.rs",
    ),
    ("`HOST/…: not found`", "tests/kubelet/texts.rs"),
    (
        "`name unknown: The repository with name … does not exist in the registry with id`",
        "tests/clients/texts.rs",
    ),
    ("`TokenRefused`", "src/pull_secret/events.rs"),
    ("`RoleRefused`", "src/pull_secret/events.rs"),
    ("`ForeignSecret`", "src/pull_secret/events.rs"),
    ("`EcrPullSecretNotInjected`", "src/pull_secret/events.rs"),
    ("`NotOptedIn`", "src/pull_secret/events.rs"),
    ("`QuotaExceeded`", "src/pull_secret/events.rs"),
    ("`exceeded quota`", "tests/apiserver/troubleshooting.rs"),
    ("`WriteForbidden`", "src/pull_secret/events.rs"),
    (
        "`is forbidden: User \"system:serviceaccount:ecr-injector:ecr-injector\" cannot`",
        "tests/apiserver/troubleshooting.rs",
    ),
    ("`PullSecretContested`", "src/pull_secret/events.rs"),
    ("`PullSecretRepaired`", "src/pull_secret/events.rs"),
    ("`RegistrySuspended`", "src/pull_secret/events.rs"),
    ("`no AWS credentials yet`", "src/aws/mod.rs"),
    (
        "`pull secret lacks registries that its Pods need; retrying`",
        "src/pull_secret/provisioner.rs",
    ),
    (
        "`lost leadership: the Lease was not renewed in time`",
        "src/cluster/lease.rs",
    ),
    ("`not allowed to use the Lease`", "src/cluster/lease.rs"),
    ("`guard is not enforced`", "src/pull_secret/guard.rs"),
    (
        "`MutatingWebhookConfiguration not found`",
        "src/tls/self_managed.rs",
    ),
    (
        "`serving certificate does not cover the Service name`",
        "src/tls/publisher.rs",
    ),
    (
        "`rejected the serving certificate; the last valid one stays in use`",
        "src/tls/publisher.rs",
    ),
    (
        "`clock differs from that of the API server`",
        "src/tls/self_managed/server_clock.rs",
    ),
    (
        "`a background task ended unexpectedly`",
        "src/process/supervisor.rs",
    ),
    (
        "`a connection ended before its request was answered`",
        "src/server/accept.rs",
    ),
    (
        "`rejected the changed configuration; the last valid one stays in use`",
        "src/config/watcher.rs",
    ),
    (
        "`it could not be read within 5 s; does its volume hang?`",
        "src/process/files.rs",
    ),
    (
        "`some changed fields need a restart to take effect`",
        "src/config/watcher.rs",
    ),
    (
        "`the configuration suspends registries in more than half of the namespaces`",
        "src/refresh/reporter.rs",
    ),
    (
        "`not allowed to list pending Pods`",
        "src/refresh/discovery.rs",
    ),
    (
        "`no admission reports the registries of Pods`",
        "src/cli/serve.rs",
    ),
    ("`watch failed; retrying`", "src/cluster/watch.rs"),
    (
        "`file descriptor limit is low; reducing max connections`",
        "src/cli/serve/listen.rs",
    ),
    (
        "`namespace changes repeatedly; backing off`",
        "src/refresh/reporter.rs",
    ),
    ("`credentials`", "src/token/error.rs"),
    ("`access_denied`", "src/token/error.rs"),
    ("`clock_skew`", "src/token/error.rs"),
    ("`invalid_signature`", "src/token/error.rs"),
    ("`unknown_access_key`", "src/token/error.rs"),
    ("`partition_mismatch`", "src/token/error.rs"),
    ("`session_expired`", "src/token/error.rs"),
    ("`throttled`", "src/token/error.rs"),
    (
        "`server_error`, `timeout`, `unreachable`",
        "src/token/error.rs",
    ),
    ("`invalid_response`", "src/token/error.rs"),
    ("`request_error`", "src/token/error.rs"),
    ("`internal_error`", "src/token/error.rs"),
    ("`deadline`", "src/token/error.rs"),
    ("`too_many_regions`", "src/token/error.rs"),
    ("`too_many_mints`", "src/token/error.rs"),
    (
        "`denied request: ecr-injector writes …`",
        "tests/support/caller.rs",
    ),
    (
        "`this cluster serves no MutatingAdmissionPolicy: Kubernetes 1.36, or mode: webhook`",
        "charts/ecr-injector/templates/policy.yaml",
    ),
    (
        "`a Service can't have a name that begins with a digit`",
        "charts/ecr-injector/templates/_helpers.tpl",
    ),
    ("`UPGRADE FAILED`", "tests/apiserver/troubleshooting.rs"),
    (
        "`Apply failed with 1 conflict: conflict with \"NAME\"`",
        "tests/apiserver/troubleshooting.rs",
    ),
    ("`field is immutable`", "tests/apiserver/troubleshooting.rs"),
    (
        "`unable to load root certificates: unable to parse bytes as PEM block`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`illegal base64 data at input byte`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`the server could not find the requested resource`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`no matches for kind \"ServiceMonitor\" in version \"monitoring.coreos.com/v1\"`",
        "tests/apiserver/troubleshooting.rs",
    ),
    (
        "`lacks permissions for this command in …`",
        "src/cli/permissions.rs",
    ),
    (
        "`--registry \"HOST\" is neither the host of an ECR registry nor an alias of the configuration`",
        "tests/apiserver/recipes.rs",
    ),
    (
        "`no credential for HOST: no identity may mint for it here`",
        "src/cli/refresh/named.rs",
    ),
    (
        "`can't start the exec plugin \"aws-iam-authenticator\" of the kubeconfig`",
        "tests/cli/frame.rs",
    ),
    (
        "`is not YAML, or not a kubeconfig: see line 7, column 4`",
        "tests/cli/frame.rs",
    ),
    (
        "`config.yaml: allow.accounts[0]: expected 12 digits in quotes, got \"12\"`",
        "tests/cli/texts.rs",
    ),
    (
        "`config.yaml: apiVersion: is missing: write apiVersion: ecr-injector.dev/v1alpha1`",
        "tests/cli/texts.rs",
    ),
    (
        "`expected at least one entry, got an empty list; for all, leave the field out`",
        "src/config/value.rs",
    ),
    ("`no object in standard input`", "tests/cli/texts.rs"),
    ("`duplicate mapping key`", "src/admission/manifest/text.rs"),
    ("`can't listen there`", "src/cli/serve/listen.rs"),
    (
        "`is not a host of ECR, so there are no credentials for it`",
        "tests/cli/texts.rs",
    ),
    (
        "`the ServiceAccount names no role`",
        "src/nodes/kubelet_plugin/plan.rs",
    ),
    (
        "`STS's AssumeRoleWithWebIdentity of … was refused`",
        "tests/nodes/plugin/accounts.rs",
    ),
    (
        "`is not authorized to request tokens for audience \"sts.amazonaws.com\"`",
        "tests/kubelet/accounts.rs",
    ),
    (
        "`AWS has no FIPS endpoint for ECR in eu-west-1`",
        "tests/cli/identity_mint/hosts.rs",
    ),
    ("`this is a bug: panicked at …`", "src/nodes/entry.rs"),
    (
        "`unauthorized: authentication required`",
        "tests/clients/texts.rs",
    ),
    (
        "`credentials not found in native keychain`",
        "src/nodes/docker.rs",
    ),
    ("`error getting credentials`", "tests/clients/texts.rs"),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the texts of a source, without its comments and its unit tests.
fn texts(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: Vec<_> = lines.map(|line| line.replace("'\"'", "' '")).collect();
    let texts = literals(&code.join("\n")).into_iter();
    texts.map(|text| text.replace("\\\"", "\"")).collect()
}

fn faults(page: &str, producers: &[(&str, &str)]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut table: BTreeMap<&str, &str> = BTreeMap::new();
    for (heading, producer) in producers {
        if table.insert(heading, producer).is_some() {
            faults.push(format!("twice in the table: {heading}"));
        }
    }
    let entries = headings(page);
    for heading in &entries {
        match table.get(heading) {
            None => faults.push(format!("no producer: {heading}")),
            Some(producer) if !produces(producer, heading) => {
                faults.push(format!("{producer} does not produce {heading}"));
            }
            Some(_) => {}
        }
    }
    let unknown = table.keys().filter(|heading| !entries.contains(heading));
    faults.extend(unknown.map(|heading| format!("no entry: {heading}")));
    faults
}

/// Whether a file produces the text of an entry.
fn produces(producer: &str, heading: &str) -> bool {
    let text = read(producer);
    if producer.starts_with("tests/offline/snapshots/") {
        let texts = text.lines().filter(|line| line.contains("ecr-injector: "));
        return texts
            .into_iter()
            .any(|line| is_of(heading, &line.replace("\\\"", "\"")));
    }
    if producer.starts_with("tests/") {
        let literal = format!("{heading:?}");
        return text.contains("shows(") && text.contains(&literal);
    }
    if producer.starts_with("charts/") {
        return is_of(heading, &text);
    }
    texts(&text).iter().any(|text| is_of(heading, text))
}

#[test]
fn every_entry_has_a_producer_and_every_producer_an_entry() {
    let faults = faults(&page(), PRODUCERS);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn drift_of_the_page_or_of_the_table_is_found() {
    let page = page();
    let added = format!("{page}\n### `a text that nobody writes`\n");
    assert_eq!(
        faults(&added, PRODUCERS),
        ["no producer: `a text that nobody writes`"]
    );
    let changed = page.replacen(
        "### `watch failed; retrying`",
        "### `watch broke; retrying`",
        1,
    );
    assert_eq!(
        faults(&changed, PRODUCERS),
        [
            "no producer: `watch broke; retrying`",
            "no entry: `watch failed; retrying`"
        ]
    );
    let mut table = PRODUCERS.to_vec();
    let row = table
        .iter_mut()
        .find(|(heading, _)| *heading == "`watch failed; retrying`");
    row.unwrap().1 = "src/cluster/lease.rs";
    assert_eq!(
        faults(&page, &table),
        ["src/cluster/lease.rs does not produce `watch failed; retrying`"]
    );
}

/// The texts of other programs, which nobody can look up in our reference: cause, check, fix.
#[test]
fn texts_of_other_programs_have_cause_check_and_fix() {
    let page = page();
    let entries: Vec<&str> = page.split("\n### ").skip(1).collect();
    let with_parts = entries
        .iter()
        .filter(|entry| entry.contains("- **Cause.**"));
    let mut complete = 0;
    for entry in with_parts {
        let at = ["- **Cause.**", "- **Check.**", "- **Fix.**"].map(|part| entry.find(part));
        let heading = entry.lines().next().unwrap();
        assert!(
            at.iter().all(Option::is_some) && at.is_sorted(),
            "{heading}"
        );
        let check = &entry[at[1].unwrap()..at[2].unwrap()];
        assert!(check.contains('`'), "{heading}: no command");
        complete += 1;
    }
    assert!(complete >= 20, "{complete}");
    // Each text that only a real cluster or a real client produces is one of these.
    let of_others = [
        "tests/apiserver/troubleshooting.rs",
        "tests/kubelet/texts.rs",
        "tests/clients/texts.rs",
    ];
    let elsewhere = [
        "ImagePullBackOff",
        "authentication required",
        "getting credentials",
        "rejected Secret",
    ];
    for (heading, _) in PRODUCERS
        .iter()
        .filter(|(_, producer)| of_others.contains(producer))
    {
        let entry = entries
            .iter()
            .find(|entry| entry.starts_with(*heading))
            .unwrap();
        let is_elsewhere = elsewhere.iter().any(|part| heading.contains(part));
        assert!(is_elsewhere || entry.contains("- **Cause.**"), "{heading}");
    }
}

/// Returns the anchor of a heading, as GitHub and the book make it.
fn anchor(heading: &str) -> String {
    let heading = heading.to_lowercase();
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect()
}

/// Returns the pages that a text names, each with the anchor behind it.
fn pages_in(text: &str) -> Vec<(String, String)> {
    let named = text.match_indices("docs/").map(|(at, _)| {
        let is_of_path = |c: char| c.is_ascii_alphanumeric() || "/-_.#".contains(c);
        let end = text[at..]
            .find(|c| !is_of_path(c))
            .map_or(text.len(), |end| at + end);
        text[at..end].trim_end_matches('.')
    });
    let pages = named.filter(|path| path.contains(".md"));
    pages
        .map(|path| {
            let (page, anchor) = path.split_once('#').unwrap_or((path, ""));
            (page.to_owned(), anchor.to_owned())
        })
        .collect()
}

/// Returns the files below a folder.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn pages_that_messages_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "charts/ecr-injector/templates"] {
        files(&root.join(folder), &mut found);
    }
    let mut named = 0;
    for file in found {
        let text = fs::read_to_string(&file).unwrap();
        // A line of a literal that goes on in the next.
        let text = text
            .lines()
            .map(str::trim_start)
            .collect::<Vec<_>>()
            .join("\n")
            .replace("\\\n", "");
        for (page, wanted) in pages_in(&text) {
            let page_text = fs::read_to_string(root.join(&page));
            let page_text =
                page_text.unwrap_or_else(|error| panic!("{}: {page}: {error}", file.display()));
            let mut headings = page_text.lines().filter(|line| line.starts_with('#'));
            let is_there =
                headings.any(|line| anchor(line.trim_start_matches('#').trim()) == wanted);
            // The anchors of doctor's codes are made at run time.
            assert!(
                wanted.is_empty() || is_there || wanted.starts_with("b-"),
                "{}: {page}#{wanted}",
                file.display()
            );
            named += usize::from(page.ends_with("troubleshooting.md"));
        }
    }
    assert!(named >= 3, "{named}");
    assert_eq!(
        anchor("`no basic auth credentials` from docker"),
        "no-basic-auth-credentials-from-docker"
    );
}
