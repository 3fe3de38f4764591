//! The report about stuck Pods and their restarts, in all formats. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::{Value, json};

use super::group::{Group, StuckPod};
use crate::{
    cli::doctor::{
        finding::Status,
        output::{Format, Style, json_text, mark, one_line, see, yaml_text},
    },
    telemetry::printable::count,
};

/// The most new Pods that are named.
const MAX_NAMED: usize = 5;

/// The outcome for a Pod that was to be restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The Pod was evicted or deleted.
    Restarted,
    /// The Pod would have been, without `--dry-run`.
    WouldRestart,
    /// The Pod was gone already.
    Gone,
    /// The API server refused, for this reason.
    Refused(String),
}

/// The reason why no more Pods were restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The copy of this Pod did not get the reference.
    NoReference(String),
    /// The API server gave no answer about the copy of this Pod, for this reason.
    NoAnswer(String, String),
    /// New Pods are stuck again.
    StuckAgain,
}

/// All that a run found and did.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The stuck Pods.
    pub(super) pods: Vec<StuckPod>,
    /// How many others wait in namespaces that are not opted in, or opted out by themselves.
    pub(super) not_ours: usize,
    /// How many were not examined.
    pub(super) unexamined: usize,
    /// The outcome for each Pod that was to be restarted, by its uid.
    pub(super) outcomes: BTreeMap<String, Outcome>,
    /// The new Pods that are stuck again.
    pub(super) stuck_again: BTreeSet<String>,
    /// Why no more were restarted.
    pub(super) stop: Option<Stop>,
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::WouldRestart => "would be restarted",
            Self::Gone => "gone",
            Self::Refused(_) => "not restarted",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused(why) => Some(why),
            Self::Restarted | Self::WouldRestart | Self::Gone => None,
        }
    }
}

impl Stop {
    fn text(&self) -> String {
        match self {
            Self::NoReference(pod) => format!(
                "nothing more is restarted: a copy of {pod}, created in a dry run, did not get the \
                 pull secret. The webhook does not answer now, so that restarting would loop; \
                 ecr-injector doctor says why"
            ),
            Self::NoAnswer(pod, why) => format!(
                "nothing more is restarted: creating a copy of {pod} (dry run) failed: {why}"
            ),
            Self::StuckAgain => "nothing more is restarted: new Pods are stuck again; \
                                 ecr-injector doctor pod NAMESPACE/NAME says why"
                .to_owned(),
        }
    }
}

impl Report {
    /// Whether nothing is stuck any more.
    pub(super) fn is_ok(&self) -> bool {
        self.unexamined == 0
            && self.stop.is_none()
            && self.stuck_again.is_empty()
            && self.pods.iter().all(|pod| self.is_solved(pod))
    }

    fn is_solved(&self, pod: &StuckPod) -> bool {
        let outcome = self.outcomes.get(&pod.uid);
        matches!(outcome, Some(Outcome::Restarted | Outcome::Gone))
    }

    /// Returns the report in a format.
    pub(super) fn text(&self, (format, style): (Format, Style)) -> String {
        match format {
            Format::Table => self.table(style),
            Format::Short => self.short(),
            Format::Json => json_text(&self.object()),
            Format::Yaml => yaml_text(&self.object()),
        }
    }

    /// Returns the Pods in the order of the output.
    fn ordered(&self) -> Vec<&StuckPod> {
        let mut pods: Vec<&StuckPod> = self.pods.iter().collect();
        pods.sort_by_key(|pod| (pod.group, pod.title()));
        pods
    }

    fn stuck_again(&self) -> String {
        let named = self.stuck_again.iter().take(MAX_NAMED);
        let named: Vec<&str> = named.map(String::as_str).collect();
        format!(
            "{} stuck again: {}",
            count(self.stuck_again.len(), "new Pod"),
            named.join(", ")
        )
    }

    fn table(&self, style: Style) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        for pod in self.ordered() {
            let outcome = self.outcomes.get(&pod.uid);
            let status = if self.is_solved(pod) {
                Status::Ok
            } else {
                Status::Fail
            };
            let mark = mark(status, style);
            let (title, code) = (one_line(&pod.title()), pod.group.code());
            let said = one_line(&pod.verdict.text);
            let _ = writeln!(text, "{mark} {title}  {code}: {said}");
            if let Some(owner) = &pod.owner {
                let owner = format!("{} {}", owner.kind, owner.name);
                let _ = writeln!(text, "    owner  {}", one_line(&owner));
            }
            for row in &pod.verdict.images {
                let _ = writeln!(text, "    image  {}", one_line(&row.image));
            }
            if let Some(outcome) = outcome {
                let why = outcome.reason().map(|why| format!(": {}", one_line(why)));
                let word = outcome.as_str();
                let _ = writeln!(text, "    done   {word}{}", why.unwrap_or_default());
            }
            if status == Status::Fail {
                let (fix, see) = (one_line(&pod.fix()), see(code));
                let _ = writeln!(text, "    fix    {fix}\n    see    {see}");
            }
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let mut text = count(self.pods.len(), "stuck Pod");
        let restarted = self.pods.iter().filter(|pod| self.is_solved(pod)).count();
        // Writing to a String can't fail.
        if !self.outcomes.is_empty() {
            let _ = write!(text, ", {restarted} restarted");
        }
        if self.not_ours > 0 {
            let _ = write!(text, "; {} more wait without being opted in", self.not_ours);
        }
        if self.unexamined > 0 {
            let _ = write!(
                text,
                "; {} were not examined: name namespaces by -n, or run the command again",
                self.unexamined
            );
        }
        text.push('\n');
        if !self.stuck_again.is_empty() {
            let _ = writeln!(text, "{}", one_line(&self.stuck_again()));
        }
        if let Some(stop) = &self.stop {
            let _ = writeln!(text, "{}", one_line(&stop.text()));
        }
        text
    }

    fn short(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        for pod in self.ordered() {
            let outcome = self.outcomes.get(&pod.uid);
            let word = if self.is_solved(pod) { "OK" } else { "FAIL" };
            let done = outcome.map_or(&*pod.verdict.text, |outcome| outcome.as_str());
            let (title, code) = (one_line(&pod.title()), pod.group.code());
            let _ = writeln!(text, "{word} {code} {title}: {}", one_line(done));
        }
        if !self.stuck_again.is_empty() {
            let _ = writeln!(text, "FAIL {}", one_line(&self.stuck_again()));
        }
        if let Some(stop) = &self.stop {
            let _ = writeln!(text, "FAIL {}", one_line(&stop.text()));
        }
        text
    }

    fn object(&self) -> Value {
        let groups = Group::ALL.map(|group| {
            let number = self.pods.iter().filter(|pod| pod.group == group).count();
            (group.code().to_owned(), json!(number))
        });
        let pods = self.ordered().into_iter().map(|pod| {
            let outcome = self.outcomes.get(&pod.uid);
            let images = pod.verdict.images.iter().map(|row| one_line(&row.image));
            let owner = pod
                .owner
                .as_ref()
                .map(|owner| json!({"kind": one_line(&owner.kind), "name": one_line(&owner.name)}));
            json!({
                "pod": one_line(&pod.title()),
                "code": pod.group.code(),
                "verdict": pod.verdict.code,
                "ok": self.is_solved(pod),
                "message": one_line(&pod.verdict.text),
                "owner": owner,
                "images": images.collect::<Vec<_>>(),
                "outcome": outcome.map(Outcome::as_str),
                "reason": outcome.and_then(Outcome::reason).map(one_line),
                "fix": one_line(&pod.fix()),
                "see": see(pod.group.code()),
            })
        });
        let again = self.stuck_again.iter().map(|pod| one_line(pod));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ok": self.is_ok(),
            "counts": groups.into_iter().collect::<serde_json::Map<_, _>>(),
            "notOptedIn": self.not_ours,
            "unexamined": self.unexamined,
            "stuckAgain": again.collect::<Vec<_>>(),
            "stopped": self.stop.as_ref().map(|stop| one_line(&stop.text())),
            "pods": pods.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests;
