//! The verdict on one Pod: whether it has what it needs to pull its images from ECR, and if not,
//! why. Pure.

mod pull;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    admission::{
        decide::{Decision, Facts, OptInFacts, SkipReason, decide, demand},
        missed::{History, MissedReason},
        pod::{Pod, ReferenceState},
        review::Request,
    },
    cli::doctor::{
        finding::Reading,
        installation::{ConfigFacts, NamespaceFacts, PullSecretFacts, Settings},
        waiting,
    },
    cluster::{namespace::Namespace, near_miss::OptInNearMiss},
    pull_secret::{Foreign, SecretFacts, to_the_second},
    registry::Host,
    telemetry::printable::cut,
};

/// All codes of verdicts, each a heading of the reference.
pub(super) const CODES: [&str; 25] = [
    "pod-fine",
    "pod-would-be-injected",
    "pod-no-ecr",
    "pod-opted-out",
    "pod-static",
    "pod-not-opted-in",
    "pod-not-allowed",
    "pod-no-identity",
    "pod-account",
    "pod-older-than-opt-in",
    "pod-image-changed",
    "pod-missed",
    "pod-secret-missing",
    "pod-secret-foreign",
    "pod-secret-tampered",
    "pod-secret-lacks-registry",
    "pod-secret-pending",
    "pod-secret-expired",
    "pod-retry",
    "pod-denied",
    "pod-no-image",
    "pod-stale-token",
    "pod-network",
    "pod-sandbox-image",
    "pod-unknown",
];

/// The most characters of a message that is shown.
const MAX_MESSAGE: usize = 300;

/// A Pod with all that its verdict depends on.
pub(super) struct PodCase {
    /// The Pod.
    pub(super) pod: Value,
    /// Whether the Pod is in the cluster; else it is one in a file.
    pub(super) is_stored: bool,
    /// The name of its namespace.
    pub(super) namespace_name: String,
    /// Its namespace.
    pub(super) namespace: Reading<Option<NamespaceFacts>>,
    /// The pull secret of its namespace.
    pub(super) secret: Reading<Option<PullSecretFacts>>,
    /// Whether its ServiceAccount makes the API server reject a reference to the pull secret.
    pub(super) account_rejects: Reading<bool>,
    /// The Events about the Pod.
    pub(super) events: Reading<Vec<PodEvent>>,
    /// The configuration.
    pub(super) config: Reading<ConfigFacts>,
    /// The time.
    pub(super) now: Timestamp,
}

/// An Event about a Pod.
#[derive(Debug, Clone)]
pub(super) struct PodEvent {
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) count: usize,
    pub(super) last: Option<Timestamp>,
}

/// The verdict on a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The word that names the verdict, an anchor of the reference.
    pub(super) code: &'static str,
    /// The sentence.
    pub(super) text: String,
    /// The next step, if one is needed.
    pub(super) fix: Option<String>,
    /// Whether nothing is wrong.
    pub(super) is_ok: bool,
    /// The images of ECR, with their credentials.
    pub(super) images: Vec<ImageRow>,
}

/// An image and its credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageRow {
    pub(super) image: String,
    pub(super) host: String,
    pub(super) credential: String,
}

type Answer = Result<Verdict, Verdict>;

fn wrong(code: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict {
        code,
        text: text.into(),
        fix: Some(fix.into()),
        is_ok: false,
        images: Vec::new(),
    }
}

fn fine(code: &'static str, text: impl Into<String>) -> Verdict {
    Verdict {
        code,
        text: text.into(),
        fix: None,
        is_ok: true,
        images: Vec::new(),
    }
}

/// Returns the value of a reading; without one the verdict is that nothing is known.
fn known<'a, T>(reading: &'a Reading<T>, what: &str) -> Result<&'a T, Verdict> {
    reading.get().map_err(|finding| {
        let text = format!(
            "{what} could not be read, so nothing is known: {}",
            finding.text()
        );
        let fix = "run the command with that right; --config names a file instead of the \
                   configuration in the cluster";
        wrong("pod-unknown", text, finding.fix().unwrap_or(fix))
    })
}

/// Returns the verdict on a Pod.
pub(super) fn verdict(case: &PodCase) -> Verdict {
    let config = known(&case.config, "the configuration");
    let settings = config.and_then(|config| {
        config.settings().ok_or_else(|| {
            let fix = "ecr-injector doctor --only deployment names what is wrong with it";
            wrong("pod-unknown", "the configuration is absent or invalid", fix)
        })
    });
    let settings = match settings {
        Ok(settings) => settings,
        Err(verdict) => return verdict,
    };
    let read = Pod::deserialize(&case.pod);
    let Ok(pod) = read else {
        let fix = "the field that is wrong: ecr-injector preview -f";
        return wrong("pod-unknown", "the Pod can't be read", fix);
    };
    let examined = Examined {
        case,
        settings,
        images: images(&pod, settings),
        has_reference: pod.reference_state(&settings.rules.secret_name) == ReferenceState::Present,
    };
    let mut verdict = examined.examine(pod).unwrap_or_else(|verdict| verdict);
    verdict.images = examined.rows();
    verdict
}

/// Returns the images of ECR, with their hosts in the pull secret.
fn images(pod: &Pod<'_>, settings: &Settings) -> Vec<(String, Host)> {
    let images = pod.images().filter_map(|image| {
        let host = waiting::host_of(image, &settings.rules)?;
        Some((image.to_owned(), host))
    });
    images.collect()
}

struct Examined<'a> {
    case: &'a PodCase,
    settings: &'a Settings,
    images: Vec<(String, Host)>,
    has_reference: bool,
}

impl Examined<'_> {
    fn examine(&self, pod: Pod<'_>) -> Answer {
        if self.images.is_empty() {
            return Ok(self.no_ecr(&pod));
        }
        if pod.is_mirror() {
            return Err(wrong(
                "pod-static",
                "it is the mirror of a static Pod, which may not reference Secrets",
                "give the node credentials: ecr-injector credential-provider, the kubelet's plugin",
            ));
        }
        self.sandbox()?;
        if !self.has_reference {
            return self.without_reference(pod);
        }
        let waiting = self.waiting();
        if waiting.is_empty() && self.case.secret.value().is_none() {
            let text = "it references the pull secret, and no image waits to be pulled; the pull \
                        secret could not be read";
            return Ok(fine("pod-fine", text));
        }
        let state = self.state()?;
        if let Some(waiting) = waiting.first() {
            return Err(self.failed_pull(waiting, state));
        }
        let expires = state.expires_at().map(to_the_second).unwrap_or_default();
        let secret = &self.settings.rules.secret_name;
        let text = format!("it references {secret}, which is valid until {expires}");
        Ok(fine("pod-fine", text))
    }

    /// Explains a Pod without an image of ECR, with the images that nearly are.
    fn no_ecr(&self, pod: &Pod<'_>) -> Verdict {
        let aliases = &self.settings.rules.aliases;
        let near = pod
            .images()
            .find_map(|image| Some((image, aliases.lookalike(image)?)));
        if let Some((image, why)) = near {
            let image = cut(image, MAX_MESSAGE);
            return fine("pod-no-ecr", format!("no image is in ECR; {image} {why}"));
        }
        let domains: BTreeSet<&str> = pod.domains().collect();
        let domains: Vec<&str> = domains.into_iter().take(5).collect();
        fine(
            "pod-no-ecr",
            format!("no image is in ECR, only in {}", domains.join(", ")),
        )
    }

    /// Fails if the sandbox of the Pod can't be created for want of its image.
    fn sandbox(&self) -> Result<(), Verdict> {
        let has_started = self.case.pod["status"]["containerStatuses"].as_array();
        let has_started = has_started.into_iter().flatten().any(|status| {
            let state = &status["state"];
            state["running"].is_object() || state["terminated"].is_object()
        });
        let events = self.case.events.value().into_iter().flatten();
        let mut events = events.filter(|event| {
            event.reason == "FailedCreatePodSandBox"
                && (event.message.contains("sandbox image") || event.message.contains("pause"))
        });
        match events.next() {
            Some(event) if !has_started => Err(wrong(
                "pod-sandbox-image",
                format!(
                    "the node can't pull its pause image: {}",
                    cut(&event.message, MAX_MESSAGE)
                ),
                "no pull secret helps: update the image (AMI) of the node, or the sandbox image in \
                 the configuration of its runtime",
            )),
            _ => Ok(()),
        }
    }

    /// Explains why a Pod has no reference.
    fn without_reference(&self, pod: Pod<'_>) -> Answer {
        let Self { case, settings, .. } = self;
        if pod.is_disabled() {
            return Ok(fine(
                "pod-opted-out",
                "it is annotated ecr-injector.dev/inject: disabled, so that it gets no pull secret",
            ));
        }
        let place = &case.namespace_name;
        let Some(facts) = known(&case.namespace, "the namespace")? else {
            let fix = "create it with the label that opts it in";
            return Err(wrong(
                "pod-not-opted-in",
                format!("the namespace {place} does not exist"),
                fix,
            ));
        };
        self.opted_in(facts)?;
        let rejects = *known(&case.account_rejects, "the ServiceAccount")?;
        let secret = known(&case.secret, "the pull secret")?;
        let request = Request::offline(place, pod);
        let opted_in = facts.settings();
        let decision = demand(&request, &settings.rules).map(|demand| {
            let facts = Facts {
                opt_in: OptInFacts::OptedIn(&opted_in),
                secret: match secret {
                    Some(secret) if !secret.is_managed => SecretFacts::Foreign(Foreign::Label),
                    _ => SecretFacts::Absent,
                },
                account_rejects_reference: rejects,
            };
            decide(demand, &settings.rules, &facts, case.now)
        });
        if let Err(reason) | Ok(Decision::Skip(reason)) = decision {
            return Err(self.skipped(reason));
        }
        if !case.is_stored {
            let name = &settings.rules.secret_name;
            let text = format!("it would get {name} in {place}, if the webhook answers");
            return Ok(fine("pod-would-be-injected", text));
        }
        Err(self.missed(facts))
    }

    /// Fails if the namespace is not opted in.
    fn opted_in(&self, facts: &NamespaceFacts) -> Result<(), Verdict> {
        let settings = self.settings;
        let (label, value) = (&settings.label, &settings.value);
        let Some(name) = Namespace::parse(&facts.name).filter(|_| !settings.is_opted_in(facts))
        else {
            return Ok(());
        };
        let is_excluded = settings.rules.excluded.contains(&name);
        let near = OptInNearMiss::of(&facts.labels, &facts.annotations, label, value, is_excluded);
        let fix =
            format!("kubectl label namespace {name} {label}={value}, and create the Pod again");
        Err(match near {
            Some(near) => wrong("pod-not-opted-in", near.note(label, value, &name), fix),
            None if is_excluded => wrong(
                "pod-not-opted-in",
                format!("the configuration excludes the namespace {name}"),
                "use another namespace, or remove it from optIn.excludeNamespaces",
            ),
            None => wrong(
                "pod-not-opted-in",
                format!("the namespace {name} has not the label {label}={value}"),
                fix,
            ),
        })
    }

    fn skipped(&self, reason: SkipReason) -> Verdict {
        let rules = &self.settings.rules;
        match reason {
            SkipReason::NotAllowed => wrong(
                "pod-not-allowed",
                "the configuration allows none of its registries (allow)",
                "allow the account and the region, and create the Pod again",
            ),
            SkipReason::NoIdentity(why) => wrong(
                "pod-no-identity",
                format!("no identity may mint for it: {why}"),
                "ecr-injector identity explains the choice",
            ),
            SkipReason::Foreign(why) => self.foreign(&why.to_string()),
            SkipReason::MountableSecrets => wrong(
                "pod-account",
                format!(
                    "its ServiceAccount enforces mountable secrets, and does not list {}",
                    rules.secret_name
                ),
                format!(
                    "add {} to the imagePullSecrets of the ServiceAccount",
                    rules.secret_name
                ),
            ),
            other => wrong(
                "pod-unknown",
                format!("an admission would skip it: {}", other.as_str()),
                "docs/reference/events-warnings.md#skip-reasons has the reasons",
            ),
        }
    }

    /// Explains why a Pod that should have a reference has none.
    fn missed(&self, facts: &NamespaceFacts) -> Verdict {
        let fix = self.recreate();
        let runs = if self.waiting().is_empty() && self.case.pod["status"]["phase"] == "Running" {
            "; it runs all the same, by the node's plugin or an image that was there, which the API \
             does not show"
        } else {
            ""
        };
        let labelled = facts.labelled_at.get(&self.settings.label).copied();
        let history = History::of(&self.case.pod, labelled);
        let time = |at: Option<Timestamp>| at.map(to_the_second).unwrap_or_default();
        match history.reason() {
            MissedReason::OlderThanOptIn => {
                let (created, labelled) = (time(history.created), time(labelled));
                return wrong(
                    "pod-older-than-opt-in",
                    format!(
                        "it was created at {created}, and the label of its namespace was last \
                         written at {labelled}{runs}"
                    ),
                    fix,
                );
            }
            MissedReason::ImageChanged => {
                let written = time(history.image_written);
                return wrong(
                    "pod-image-changed",
                    format!(
                        "an image was changed at {written}, after its creation, when its \
                         imagePullSecrets can't change{runs}"
                    ),
                    fix,
                );
            }
            MissedReason::NotInjected => {}
        }
        let perhaps = if labelled.is_none() {
            " (or perhaps before its namespace was labelled: the API server does not have the time)"
        } else {
            ""
        };
        wrong(
            "pod-missed",
            format!(
                "it was created without the webhook: it did not answer in time, or a later webhook \
                 wrote the image{perhaps}{runs}"
            ),
            fix,
        )
    }

    /// Returns how a Pod like this one is created again.
    fn recreate(&self) -> String {
        let metadata = &self.case.pod["metadata"];
        let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
        let mut owners = owners.filter(|owner| owner["controller"] == true);
        let name = metadata["name"].as_str().unwrap_or_default();
        let place = &self.case.namespace_name;
        match owners.next().and_then(|owner| owner["kind"].as_str()) {
            Some("Job") => format!(
                "kubectl -n {place} delete pod {name}: its Job makes a new one, and counts a failure"
            ),
            Some(kind) => {
                format!("kubectl -n {place} delete pod {name}: its {kind} makes a new one")
            }
            None => "delete it, and create it again from its manifest".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
