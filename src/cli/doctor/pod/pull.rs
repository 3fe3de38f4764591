//! The pull secret of a Pod, and why the pull of an image fails although the Pod references it.
//! Pure.

use jiff::SignedDuration;

use crate::{
    cli::doctor::{
        pod::{Examined, ImageRow, MAX_MESSAGE, Verdict, known, wrong},
        pull_error::PullError,
        waiting::{self, Waiting},
    },
    cluster::namespace::Namespace,
    identity::Identity,
    pull_secret::{is_public, state::State, to_the_second},
    telemetry::printable::cut,
    token::Freshness,
};

/// The pauses of the kubelet between the attempts of a pull, in seconds; the last one repeats.
const PULL_PAUSES: [i64; 6] = [13, 24, 45, 86, 166, 300];

impl Examined<'_> {
    pub(super) fn foreign(&self, why: &str) -> Verdict {
        let name = &self.settings.rules.secret_name;
        wrong(
            "pod-secret-foreign",
            format!("the Secret {name} is not that of ecr-injector: {why}"),
            format!(
                "delete it after you have looked who uses it ({name} in {}), or set another secretName",
                self.case.namespace_name
            ),
        )
    }

    /// Returns the state of the pull secret, if it has a credential for each image.
    pub(super) fn state(&self) -> Result<&State, Verdict> {
        let name = &self.settings.rules.secret_name;
        let wait = self.next_pull();
        let see = "ecr-injector doctor says what keeps the webhook from writing it";
        let Some(secret) = known(&self.case.secret, "the pull secret")? else {
            let text = format!("the Secret {name} does not exist{wait}");
            return Err(wrong("pod-secret-missing", text, see));
        };
        if !secret.is_managed {
            return Err(self.foreign("it lacks the label of ecr-injector"));
        }
        let Some(state) = &secret.state else {
            let text =
                format!("the state of {name} can't be read: another client changed it{wait}");
            return Err(wrong("pod-secret-tampered", text, see));
        };
        for (_, host) in &self.images {
            let Some(entry) = state.hosts.get(host) else {
                let text = format!("{name} has no entry for {host}{wait}");
                return Err(wrong("pod-secret-lacks-registry", text, see));
            };
            if is_public(host) {
                continue;
            }
            if entry.credential.is_none() {
                let text = format!("{name} has no credential for {host} yet{wait}");
                return Err(wrong("pod-secret-pending", text, see));
            }
            if entry.freshness(self.case.now) == Freshness::Expired {
                let text = format!("the credential of {name} for {host} has expired{wait}");
                return Err(wrong("pod-secret-expired", text, see));
            }
        }
        Ok(state)
    }

    /// Returns the containers that wait for an image of ECR.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let mut waiting = waiting::waiting(&self.case.pod, &self.settings.rules);
        waiting.retain(|it| it.host.is_some());
        waiting
    }

    /// Returns about when the kubelet tries the next pull, for the end of a sentence.
    pub(super) fn next_pull(&self) -> String {
        let events = self.case.events.value().into_iter().flatten();
        let pulls = events.filter(|event| event.reason == "Pulling");
        let last = pulls
            .filter_map(|event| Some((event.last?, event.count)))
            .max();
        let Some((last, count)) = last.filter(|_| !self.waiting().is_empty()) else {
            return String::new();
        };
        let at = count.clamp(1, PULL_PAUSES.len()) - 1;
        let next = last.saturating_add(SignedDuration::from_secs(PULL_PAUSES[at]));
        match next.ok().filter(|next| *next > self.case.now) {
            Some(next) => format!("; the kubelet pulls again at about {}", to_the_second(next)),
            None => "; the kubelet pulls again within five minutes".to_owned(),
        }
    }

    /// Explains a pull that failed although the pull secret has what is needed.
    pub(super) fn failed_pull(&self, waiting: &Waiting, state: &State) -> Verdict {
        let image = cut(&waiting.image, MAX_MESSAGE);
        let message = self.message(waiting);
        let said = cut(&message, MAX_MESSAGE);
        let wait = self.next_pull();
        match PullError::of(&message) {
            PullError::Unauthenticated => wrong(
                "pod-retry",
                format!("{image} was pulled before the pull secret had its credential{wait}"),
                "wait for the next pull; if it fails again, the node is older than the Secret's data \
                 says: see the log of its kubelet",
            ),
            PullError::Denied => {
                let by = self.minted_by(waiting);
                wrong(
                    "pod-denied",
                    format!("AWS denies the pull of {image} to {by}: {said}"),
                    "allow it in the policies of that principal and of the repository: ecr-injector \
                     iam policy and ecr-injector iam repository print them",
                )
            }
            PullError::NotFound => wrong(
                "pod-no-image",
                format!("{image} does not exist: {said}"),
                "see the repository, the tag, and the region of the host",
            ),
            PullError::ExpiredToken => {
                let others = self.other_secrets();
                let text = if others.is_empty() {
                    format!(
                        "the node sent an expired token for {image}, though that of the pull \
                             secret is valid until {}: is its clock right?",
                        state.expires_at().map(to_the_second).unwrap_or_default()
                    )
                } else {
                    format!(
                        "the node sent an expired token for {image}: another pull secret of the \
                             Pod has one for the same host ({})",
                        others.join(", ")
                    )
                };
                wrong(
                    "pod-stale-token",
                    text,
                    "remove the other pull secret, or set the clock of the node",
                )
            }
            PullError::Network => wrong(
                "pod-network",
                format!("the node can't reach the registry of {image}: {said}"),
                "see DNS, the proxy and the VPC endpoints of the node (api, dkr, S3)",
            ),
            PullError::Unknown => wrong(
                "pod-unknown",
                format!(
                    "the pull of {image} fails, and the message is none that is known: {said}{wait}"
                ),
                "kubectl describe pod has all of it; docs/how-to/troubleshooting.md#on-the-pod-pulls-fail \
                 explains such texts",
            ),
        }
    }

    /// Returns the message of a failed pull: while the kubelet waits, only an Event has it.
    fn message(&self, waiting: &Waiting) -> String {
        if waiting.reason == "ErrImagePull" {
            return waiting.message.clone();
        }
        let events = self.case.events.value().into_iter().flatten();
        let failed = events.filter(|event| {
            event.reason == "Failed"
                && event.message.starts_with("Failed to pull image")
                && event.message.contains(&waiting.image)
        });
        let last = failed.max_by_key(|event| event.last);
        last.map_or_else(|| waiting.message.clone(), |event| event.message.clone())
    }

    /// Returns the principal that mints for an image, for people.
    fn minted_by(&self, waiting: &Waiting) -> String {
        let rules = &self.settings.rules;
        let chosen = || {
            let host = waiting.host.as_ref()?;
            let namespace = Namespace::parse(&self.case.namespace_name)?;
            let facts = self.case.namespace.value()?.as_ref()?;
            rules.key_for(host.as_str(), &namespace, &facts.settings())
        };
        match chosen().map(|(_, key)| key.identity) {
            Some(Identity::Role(role)) => format!("the role {}", role.arn),
            Some(Identity::Profile(_)) => "the profile of the identity rule".to_owned(),
            Some(Identity::Ambient) => "the identity of ecr-injector itself".to_owned(),
            None => "the identity that minted the token".to_owned(),
        }
    }

    /// Returns the other pull secrets of the Pod.
    fn other_secrets(&self) -> Vec<&str> {
        let listed = self.case.pod["spec"]["imagePullSecrets"].as_array();
        let names = listed
            .into_iter()
            .flatten()
            .filter_map(|it| it["name"].as_str());
        names
            .filter(|name| *name != self.settings.rules.secret_name)
            .collect()
    }

    /// Returns the images with what the pull secret has for each.
    pub(super) fn rows(&self) -> Vec<ImageRow> {
        let state = self.case.secret.value().and_then(Option::as_ref);
        let state = state.and_then(|secret| secret.state.as_ref());
        let rows = self.images.iter().map(|(image, host)| {
            let entry = state.and_then(|state| state.hosts.get(host));
            let credential = match (state, entry.and_then(|entry| entry.credential)) {
                (None, _) => "unknown".to_owned(),
                (Some(_), None) => "none".to_owned(),
                (Some(_), Some(credential)) => {
                    let at = credential.lifetime.expires_at;
                    let word = if at > self.case.now {
                        "until"
                    } else {
                        "expired at"
                    };
                    format!("{word} {}", to_the_second(at))
                }
            };
            ImageRow {
                image: image.clone(),
                host: host.to_string(),
                credential,
            }
        });
        rows.collect()
    }
}
