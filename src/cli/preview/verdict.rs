//! What the webhook would do to one object, and how a person is told.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use json_patch::{
    Patch,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Value, json};

use crate::{
    admission::{
        decide::{Decision, Facts, Injection, SkipReason, decide, demand, warning_for},
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

/// What would become of an object.
pub(super) struct Verdict {
    kind: String,
    name: String,
    /// The object's namespace, if it names one.
    own_namespace: Option<String>,
    /// The namespace that it would be in.
    pub(super) namespace: String,
    /// Where the object reference in its document.
    pub(super) place: PointerBuf,
    /// What would be changed in it.
    pub(super) patch: Patch,
    outcome: Outcome,
    /// What is to be said beside it: the field's name and the text.
    notes: Vec<(&'static str, String)>,
}

enum Outcome {
    /// There is no Pod in it.
    PassedThrough,
    LeftAlone(String),
    Injected,
}

impl Verdict {
    /// Decides as the webhook does, for a namespace that opted in and has no pull secret yet.
    pub(super) fn of(object: &Object<'_>, default: &Namespace, rules: &Rules) -> Self {
        let mut verdict = Self {
            kind: object.kind.to_owned(),
            name: object.name.to_owned(),
            own_namespace: object.namespace.map(str::to_owned),
            namespace: object.namespace.unwrap_or(default.as_str()).to_owned(),
            place: object.path.clone(),
            patch: Patch::default(),
            outcome: Outcome::PassedThrough,
            notes: vec![],
        };
        let template = object
            .template
            .as_deref()
            .and_then(|place| Some((place, object.value.pointer(place.as_str())?)));
        if let Some((place, template)) = template {
            verdict.decide(place, template, rules);
        }
        verdict
    }

    fn decide(&mut self, place: &Pointer, template: &Value, rules: &Rules) {
        let pod: Pod<'_> = match serde_path_to_error::deserialize(template) {
            Ok(pod) => pod,
            Err(error) => {
                let field = format!("{}.{}", dotted(place), error.path());
                let field = field.trim_start_matches('.');
                let why = format!("the API server would reject it: {field}: {}", error.inner());
                self.outcome = Outcome::LeftAlone(why);
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
            opted_in: Some(&NamespaceSettings::default()),
            secret: SecretFacts::Absent,
        };
        // Nothing is old where there is no pull secret, so any time will do.
        let decision = match demand(&request, rules) {
            Ok(demand) => decide(demand, rules, &facts, Timestamp::UNIX_EPOCH),
            Err(reason) => Decision::Skip(reason),
        };
        match decision {
            Decision::Skip(reason) => {
                let warning = warning_for(reason, rules);
                self.notes.extend(warning.map(|text| ("warning", text)));
                self.outcome = Outcome::LeftAlone(self.why(reason, &domains));
            }
            Decision::Inject(injection) | Decision::InjectAfterEnsuring(injection, _) => {
                self.inject(place, injection, rules);
            }
        }
    }

    fn inject(&mut self, place: &Pointer, injection: Injection, rules: &Rules) {
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
        let list = format!("{}.spec.imagePullSecrets", dotted(place));
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
        self.patch = patch::append_in(place, name, reference);
        self.outcome = Outcome::Injected;
    }

    fn why(&self, reason: SkipReason, domains: &BTreeSet<String>) -> String {
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
            // No cluster was asked, so none of these can be known.
            SkipReason::NotAPod
            | SkipReason::OtherOperation
            | SkipReason::Deleting
            | SkipReason::SameImages
            | SkipReason::Foreign(_)
            | SkipReason::Overloaded => reason.as_str().into(),
        }
    }

    /// Whether its Pods would have the pull secret.
    pub(super) fn is_injected(&self) -> bool {
        matches!(self.outcome, Outcome::Injected)
    }

    /// The patch with the object's name.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "patch": self.patch,
        })
    }

    /// Kind, namespace and name. An object without a Pod may have no namespace at all.
    pub(super) fn title(&self) -> String {
        let or =
            |text: &str, otherwise: &str| if text.is_empty() { otherwise } else { text }.to_owned();
        let (kind, name) = (or(&self.kind, "(no kind)"), or(&self.name, "(no name)"));
        match (&self.own_namespace, &self.outcome) {
            (None, Outcome::PassedThrough) => format!("{kind} {name}"),
            _ => format!("{kind} {}/{name}", self.namespace),
        }
    }
}

/// The block of the report.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.title())?;
        match &self.outcome {
            Outcome::PassedThrough => writeln!(f, "unchanged: it has no Pod")?,
            Outcome::LeftAlone(why) => writeln!(f, "skipped: {why}")?,
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

fn dotted(place: &Pointer) -> String {
    let tokens: Vec<_> = place
        .tokens()
        .map(|token| token.decoded().into_owned())
        .collect();
    tokens.join(".")
}
