//! The webhook's decision on one object, and its report for people.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use json_patch::{
    Patch,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Value, json};

use crate::{
    admission::{
        decide::{Decision, Facts, Injection, OptInFacts, SkipReason, decide, demand, warning_for},
        manifest::Object,
        patch,
        pod::{Pod, ReferenceState},
        review::Request,
    },
    cluster::namespace::{Namespace, NamespaceSettings},
    pull_secret::SecretFacts,
    registry::{Host, Registry, image::ImageReference},
    rules::Rules,
};

/// The decision on an object.
pub(super) struct Verdict {
    kind: String,
    name: String,
    /// The object's namespace, if the object has one.
    own_namespace: Option<String>,
    /// The namespace that the object would be created in.
    pub(super) namespace: String,
    /// The object's position in its document.
    pub(super) pointer: PointerBuf,
    /// The change of the object.
    pub(super) patch: Patch,
    outcome: Outcome,
    /// Remarks: the field's name and the text.
    notes: Vec<(&'static str, String)>,
}

enum Outcome {
    /// The object has no Pod.
    PassedThrough,
    Skipped(String),
    Injected,
}

impl Verdict {
    /// Decides like the webhook, for an opted-in namespace without a pull secret.
    pub(super) fn new(object: &Object<'_>, default: &Namespace, rules: &Rules) -> Self {
        let mut verdict = Self {
            kind: object.kind.to_owned(),
            name: object.name.to_owned(),
            own_namespace: object.namespace.map(str::to_owned),
            namespace: object.namespace.unwrap_or(default.as_str()).to_owned(),
            pointer: object.path.clone(),
            patch: Patch::default(),
            outcome: Outcome::PassedThrough,
            notes: vec![],
        };
        let template = object
            .template
            .as_deref()
            .and_then(|pointer| Some((pointer, object.value.pointer(pointer.as_str())?)));
        if let Some((pointer, template)) = template {
            verdict.decide(pointer, template, rules);
        }
        verdict
    }

    fn decide(&mut self, pointer: &Pointer, template: &Value, rules: &Rules) {
        let pod: Pod<'_> = match serde_path_to_error::deserialize(template) {
            Ok(pod) => pod,
            Err(error) => {
                let field = format!("{}.{}", dotted(pointer), error.path());
                let field = field.trim_start_matches('.');
                let why = format!("the API server would reject it: {field}: {}", error.inner());
                self.outcome = Outcome::Skipped(why);
                return;
            }
        };
        for image in pod.images() {
            if let Err(error) = ImageReference::parse(image) {
                self.notes.push(("image", format!("{image:?}: {error}")));
            }
        }
        let domains: BTreeSet<String> = pod.domains().map(str::to_owned).collect();
        let namespace = self.namespace.clone();
        let request = Request::offline(&namespace, pod);
        let facts = Facts {
            opt_in: OptInFacts::OptedIn(&NamespaceSettings::default()),
            secret: SecretFacts::Absent,
            account_rejects_reference: false,
        };
        // Without a pull secret nothing can be old, so any time will do.
        let decision = match demand(&request, rules) {
            Ok(demand) => decide(demand, rules, &facts, Timestamp::UNIX_EPOCH),
            Err(reason) => Decision::Skip(reason),
        };
        match decision {
            Decision::Skip(reason) => {
                let warning = warning_for(reason, rules);
                self.notes.extend(warning.map(|text| ("warning", text)));
                self.outcome = Outcome::Skipped(self.skip_message(reason, &domains));
            }
            Decision::Inject(injection)
            | Decision::InjectAfterEnsuring(injection, _)
            | Decision::InjectUnprovisioned(injection) => {
                self.inject(pointer, injection, rules);
            }
        }
    }

    fn inject(&mut self, pointer: &Pointer, injection: Injection, rules: &Rules) {
        let Injection {
            reference,
            hosts,
            warnings,
            ..
        } = injection;
        let resolved = hosts
            .iter()
            .filter_map(|host| rules.aliases.resolve(host.as_str()));
        self.notes
            .extend(resolved.map(|(host, registry)| ("registry", describe(&host, &registry))));
        let list = format!("{}.spec.imagePullSecrets", dotted(pointer));
        let list = list.trim_start_matches('.');
        let name = &rules.secret_name;
        let secret = match reference {
            ReferenceState::Present => format!("{name}, in {list} already"),
            ReferenceState::Missing => format!("{name}, appended to {list}"),
            ReferenceState::NoList => format!("{name}, as {list}"),
        };
        self.notes.push(("secret", secret));
        self.notes
            .extend(warnings.into_iter().map(|text| ("warning", text)));
        self.patch = patch::append_in(pointer, name, reference);
        self.outcome = Outcome::Injected;
    }

    fn skip_message(&self, reason: SkipReason, domains: &BTreeSet<String>) -> String {
        let namespace = &self.namespace;
        match reason {
            SkipReason::NoRegistry if domains.is_empty() => "it has no image".into(),
            SkipReason::NoRegistry => {
                let domains: Vec<_> = domains.iter().map(String::as_str).collect();
                format!(
                    "no image is in a private ECR registry, only in {}",
                    domains.join(", ")
                )
            }
            SkipReason::NotOptedIn if Namespace::parse(namespace).is_none() => {
                format!("{namespace:?} can't be the name of a namespace")
            }
            SkipReason::NotOptedIn => {
                format!(
                    "the configuration excludes namespace {namespace} (optIn.excludeNamespaces)"
                )
            }
            SkipReason::NoIdentity(refusal) => refusal.to_string(),
            SkipReason::NotAllowed => {
                "the configuration allows none of its registries (allow)".into()
            }
            SkipReason::Disabled => "it is annotated ecr-injector.dev/inject: disabled".into(),
            SkipReason::Mirror => "a mirror Pod must not reference Secrets".into(),
            // These depend on a cluster, which a preview does not read.
            SkipReason::NotAPod
            | SkipReason::OtherOperation
            | SkipReason::Deleting
            | SkipReason::SameImages
            | SkipReason::Foreign(_)
            | SkipReason::UnreadablePod
            | SkipReason::MountableSecrets => reason.as_str().into(),
        }
    }

    /// Whether the object's Pods would reference the pull secret.
    pub(super) fn is_injected(&self) -> bool {
        matches!(self.outcome, Outcome::Injected)
    }

    /// Returns the patch with the object's name.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "patch": self.patch,
        })
    }

    /// Returns the kind, namespace and name. An object without a Pod may have no namespace at all.
    pub(super) fn title(&self) -> String {
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        let (kind, name) = (or(&self.kind, "(no kind)"), or(&self.name, "(no name)"));
        match (&self.own_namespace, &self.outcome) {
            (None, Outcome::PassedThrough) => format!("{kind} {name}"),
            _ => format!("{kind} {}/{name}", self.namespace),
        }
    }
}

/// Writes the object's block of the report.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.title())?;
        match &self.outcome {
            Outcome::PassedThrough => writeln!(f, "unchanged: it has no Pod")?,
            Outcome::Skipped(why) => writeln!(f, "skipped: {why}")?,
            Outcome::Injected if self.patch.0.is_empty() => writeln!(f, "already injected")?,
            Outcome::Injected => writeln!(f, "inject")?,
        }
        for (field, text) in &self.notes {
            writeln!(f, "  {:<10}{text}", format!("{field}:"))?;
        }
        Ok(())
    }
}

fn describe(host: &Host, registry: &Registry) -> String {
    let alias = if host == registry.host() {
        String::new()
    } else {
        format!(", an alias of {}", registry.host())
    };
    let endpoint = match (registry.endpoint().fips, registry.endpoint().dual_stack) {
        (false, false) => "",
        (true, false) => ", FIPS endpoint",
        (false, true) => ", dual-stack endpoint",
        (true, true) => ", dual-stack FIPS endpoint",
    };
    match registry.account() {
        Some(account) => format!(
            "{host}{alias} (account {account}, region {}{endpoint})",
            registry.region()
        ),
        None => format!("{host} (ECR Public)"),
    }
}

fn dotted(pointer: &Pointer) -> String {
    let tokens: Vec<_> = pointer
        .tokens()
        .map(|token| token.decoded().into_owned())
        .collect();
    tokens.join(".")
}
