//! The webhook's decision on one object, and its report for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use json_patch::{
    Patch,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Value, json};

use super::notes::{
    describe, dotted, form_fault, image_note, is_asked_about, namespace_note, workload_note,
};
use crate::{
    admission::{
        decide::{
            Decision, Facts, Injection, OptInFacts, SkipReason, decide, demand, skip_warnings,
        },
        manifest::{Content, Object, custom},
        patch,
        pod::{Pod, ReferenceState},
        review::Request,
    },
    cluster::namespace::{Namespace, NamespaceSettings},
    config::Config,
    pull_secret::SecretFacts,
    registry::Host,
    telemetry::printable::{printable, shorten_quotes},
    token::rules::Rules,
};

/// The namespace of an object for which nothing names one.
const DEFAULT_NAMESPACE: &str = "default";

/// The decision on an object.
pub(super) struct Verdict {
    kind: String,
    name: String,
    /// The object's namespace, if the object has one.
    own_namespace: Option<String>,
    /// The namespace that the object would be created in.
    pub(super) namespace: String,
    /// Whether neither the object nor a flag names the namespace.
    is_assumed: bool,
    /// The object's position in its document.
    pub(super) pointer: PointerBuf,
    /// The change of the object.
    pub(super) patch: Patch,
    outcome: Outcome,
    /// Whether the Pod opts out by its annotation.
    is_disabled: bool,
    /// Whether a controller of a custom kind makes Pods from the object.
    is_custom: bool,
    /// Remarks: the field's name and the text.
    notes: Vec<(&'static str, String)>,
}

enum Outcome {
    /// The object has no Pod.
    PassedThrough,
    /// `kubectl` rejects the object; the reason.
    Invalid(String),
    /// The API server would reject the Pod or the template for its form; the reason.
    Rejected(String),
    Skipped(String),
    Injected,
    /// The object stays unchanged, and the Pods that its controller makes would be injected.
    PodsInjected(Vec<Host>),
    /// The object stays unchanged, and so would the Pods that its controller makes.
    PodsSkipped(String),
    /// The object stays unchanged, and the images of the Pods that its controller makes are not
    /// known; the reason.
    Unknown(String),
}

/// The decision on a Pod.
enum Answer {
    Skip {
        why: String,
        warnings: Vec<String>,
        /// Whether the Pod wants no registry.
        is_foreign: bool,
    },
    Inject(Injection),
    /// The API server would reject the Pod for its form.
    Reject(String),
}

impl Verdict {
    /// Decides like the webhook, for an opted-in namespace without a pull secret.
    pub(super) fn new(object: &Object<'_>, given: Option<&Namespace>, config: &Config) -> Self {
        let namespace = object.namespace.or(given.map(Namespace::as_str));
        let mut verdict = Self {
            kind: object.kind.to_owned(),
            name: object.name.to_owned(),
            own_namespace: object.namespace.map(str::to_owned),
            namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned(),
            is_assumed: namespace.is_none(),
            pointer: object.path.clone(),
            patch: Patch::default(),
            outcome: Outcome::PassedThrough,
            is_disabled: false,
            is_custom: object.content == Content::Custom,
            notes: vec![],
        };
        let rules = &config.rules;
        match &object.content {
            Content::Template(pointer) => {
                let template = object.value.pointer(pointer.as_str());
                if let Some(template) = template.filter(|template| !template.is_null()) {
                    verdict.decide(pointer, template, rules);
                    let note = workload_note(object, pointer).filter(|_| !verdict.is_disabled);
                    verdict.notes.extend(note.map(|text| ("metadata", text)));
                } else {
                    let field = dotted(pointer);
                    verdict.outcome = Outcome::Rejected(format!("{field} is missing"));
                }
            }
            Content::Custom => verdict.decide_custom(object.value, rules),
            Content::Invalid(reason) => verdict.outcome = Outcome::Invalid(reason.clone()),
            Content::NoPod => {}
        }
        let note = namespace_note(object, config);
        verdict.notes.extend(note.map(|text| ("label", text)));
        verdict
    }

    fn decide(&mut self, pointer: &Pointer, template: &Value, rules: &Rules) {
        let (answer, notes) = self.ask(pointer, template, rules);
        self.notes.extend(notes);
        match answer {
            Answer::Skip { why, warnings, .. } => {
                let warnings = warnings.into_iter();
                self.notes.extend(warnings.map(|text| ("warning", text)));
                self.outcome = Outcome::Skipped(why);
            }
            Answer::Inject(injection) => self.inject(pointer, injection, rules),
            Answer::Reject(why) => self.outcome = Outcome::Rejected(why),
        }
    }

    /// Decides on each Pod that the controller of a custom kind may make.
    fn decide_custom(&mut self, object: &Value, rules: &Rules) {
        let pods = custom::pods(object);
        let unknown = custom::unknown(object, &pods);
        let mut hosts = BTreeMap::new();
        let (mut skipped, mut foreign) = (Vec::new(), None);
        let (mut images, mut warnings) = (BTreeSet::new(), BTreeSet::new());
        for made in &pods {
            let (answer, notes) = self.ask(&made.path, &made.pod, rules);
            images.extend(notes);
            match answer {
                Answer::Inject(injection) => {
                    warnings.extend(injection.warnings);
                    let resolved = injection.hosts.iter();
                    let resolved = resolved.filter_map(|host| rules.aliases.resolve(host.as_str()));
                    hosts.extend(resolved);
                }
                Answer::Skip {
                    why,
                    warnings: others,
                    is_foreign,
                } => {
                    warnings.extend(others);
                    if is_foreign {
                        foreign = foreign.or(Some(why));
                    } else {
                        skipped.push((dotted(&made.path), why));
                    }
                }
                Answer::Reject(why) => {
                    let why = format!("the API server would reject it: {why}");
                    skipped.push((dotted(&made.path), why));
                }
            }
        }
        self.notes.extend(images);
        let warnings = warnings.into_iter().map(|text| ("warning", text));
        if hosts.is_empty() {
            self.notes.extend(warnings);
            let is_excluded = Namespace::parse(&self.namespace)
                .is_none_or(|namespace| rules.excluded.contains(&namespace));
            // An excluded namespace decides whatever the images are.
            let unknown = unknown.filter(|_| skipped.is_empty() || !is_excluded);
            let why = skipped.into_iter().next().map(|(_, why)| why).or(foreign);
            self.outcome = match (unknown, why) {
                (Some(why), _) => Outcome::Unknown(why),
                (None, Some(why)) => Outcome::PodsSkipped(why),
                (None, None) => Outcome::PassedThrough,
            };
            return;
        }
        let registries = hosts
            .iter()
            .map(|(host, registry)| describe(host, registry));
        self.notes.extend(registries.map(|text| ("registry", text)));
        let secret = format!("{}, in imagePullSecrets of these Pods", rules.secret_name);
        self.notes.push(("secret", secret));
        let skipped = skipped.into_iter();
        self.notes
            .extend(skipped.map(|(path, why)| ("skipped", format!("{path}: {why}"))));
        self.notes.extend(unknown.map(|why| ("unknown", why)));
        self.notes.extend(warnings);
        self.outcome = Outcome::PodsInjected(hosts.into_keys().collect());
    }

    /// Decides on a Pod or a template, and notes what is wrong with its images.
    fn ask(
        &mut self,
        pointer: &Pointer,
        template: &Value,
        rules: &Rules,
    ) -> (Answer, Vec<(&'static str, String)>) {
        if let Some(fault) = form_fault(template) {
            let field = format!("{}.{fault}", dotted(pointer));
            let field = field.trim_start_matches('.').to_owned();
            return (Answer::Reject(field), Vec::new());
        }
        let pod: Pod<'_> = match serde_path_to_error::deserialize(template) {
            Ok(pod) => pod,
            Err(error) => {
                let field = format!("{}.{}", dotted(pointer), error.path());
                let field = field.trim_start_matches('.');
                let error = shorten_quotes(&error.inner().to_string());
                return (Answer::Reject(format!("{field}: {error}")), Vec::new());
            }
        };
        // A controller replaces the parameters of a custom kind.
        let is_written = |image: &&str| !self.is_custom || !custom::has_parameter(image);
        let notes = pod.images().filter(is_written);
        let notes = notes.filter_map(|image| Some(("image", image_note(image, rules)?)));
        let notes = notes.collect();
        let is_final = !self.is_custom || pod.images().all(|image| !custom::has_parameter(image));
        let is_warned = is_final && is_asked_about(&pod, rules);
        self.is_disabled = pod.is_disabled();
        let has_image = pod.images().next().is_some();
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
        let answer = match decision {
            Decision::Skip(reason) => Answer::Skip {
                why: self.skip_message(reason, &domains, has_image),
                warnings: if is_warned {
                    skip_warnings(reason, &request, rules)
                } else {
                    Vec::new()
                },
                is_foreign: reason == SkipReason::NoRegistry,
            },
            Decision::Inject(mut injection)
            | Decision::InjectAfterEnsuring(mut injection, _)
            | Decision::InjectUnprovisioned(mut injection) => {
                injection.warnings.retain(|_| is_warned);
                Answer::Inject(injection)
            }
        };
        (answer, notes)
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

    fn skip_message(
        &self,
        reason: SkipReason,
        domains: &BTreeSet<String>,
        has_image: bool,
    ) -> String {
        let namespace = &self.namespace;
        match reason {
            SkipReason::NoRegistry if domains.is_empty() && has_image => {
                "none of its images is a valid reference".into()
            }
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

    /// Whether neither `kubectl` nor the API server would reject the object for its form.
    pub(super) fn is_valid(&self) -> bool {
        !matches!(self.outcome, Outcome::Invalid(_) | Outcome::Rejected(_))
    }

    /// Whether the object's Pods would reference the pull secret.
    pub(super) fn is_injected(&self) -> bool {
        matches!(self.outcome, Outcome::Injected) || self.has_injected_pods()
    }

    /// Whether the object stays unchanged, and Pods that its controller makes reference the pull
    /// secret.
    pub(super) fn has_injected_pods(&self) -> bool {
        matches!(self.outcome, Outcome::PodsInjected(_))
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

    /// Returns the kind, namespace and name on one line. An object without a Pod may have no
    /// namespace at all.
    pub(super) fn title(&self) -> String {
        printable(&self.raw_title()).into_owned()
    }

    fn raw_title(&self) -> String {
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        let (kind, name) = (or(&self.kind, "(no kind)"), or(&self.name, "(no name)"));
        match (&self.own_namespace, &self.outcome) {
            (
                None,
                Outcome::PassedThrough
                | Outcome::Invalid(_)
                | Outcome::PodsSkipped(_)
                | Outcome::Unknown(_),
            ) => format!("{kind} {name}"),
            _ => format!("{kind} {}/{name}", self.namespace),
        }
    }
}

/// Writes the object's block of the report.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match &self.outcome {
            Outcome::PassedThrough => "unchanged: it has no Pod".to_owned(),
            Outcome::Invalid(why) => format!("skipped: kubectl rejects it: {why}"),
            Outcome::Rejected(why) => {
                format!("skipped: the API server would reject it: {why}")
            }
            Outcome::Skipped(why) => format!("skipped: {why}"),
            Outcome::Injected if self.patch.0.is_empty() => "already injected".to_owned(),
            Outcome::Injected => "inject".to_owned(),
            Outcome::PodsInjected(hosts) => {
                let hosts: Vec<_> = hosts.iter().map(Host::as_str).collect();
                let hosts = hosts.join(", ");
                format!("unchanged: its controller's Pods would get it: {hosts}")
            }
            Outcome::PodsSkipped(why) => {
                format!("unchanged: its controller's Pods would not get it: {why}")
            }
            Outcome::Unknown(why) => format!("unknown: {why}"),
        };
        writeln!(f, "{}: {}", self.title(), printable(&result))?;
        for (field, text) in &self.notes {
            writeln!(f, "  {:<10}{}", format!("{field}:"), printable(text))?;
        }
        let is_namespaced = matches!(
            self.outcome,
            Outcome::Injected
                | Outcome::Rejected(_)
                | Outcome::Skipped(_)
                | Outcome::PodsInjected(_)
        );
        if self.is_assumed && is_namespaced {
            let namespace = &self.namespace;
            writeln!(
                f,
                "  assumed:  namespace {namespace}; neither the object nor -n names one"
            )?;
        }
        Ok(())
    }
}
