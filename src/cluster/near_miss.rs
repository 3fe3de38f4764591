//! Labels and annotations that nearly opt in or out: which they are, and what would work.

use std::collections::BTreeMap;

use super::{
    event::clip,
    namespace::{Namespace, ROLE_ANNOTATION},
};
use crate::registry::Quoted;

/// The longest key that is compared, in bytes: a domain of 253, a slash and a name of 63.
const MAX_KEY: usize = 317;

/// The intent of a value, by a word that people write for yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Such as `true`.
    Yes,
    /// Such as `false`.
    No,
}

impl Intent {
    /// Returns the intent of a value; `None` for one that is neither yes nor no.
    #[must_use]
    pub fn of(value: &str) -> Option<Self> {
        const WORDS: [(Intent, &[&str]); 2] = [
            (
                Intent::Yes,
                &["enabled", "enable", "true", "yes", "on", "y", "1", "inject"],
            ),
            (
                Intent::No,
                &[
                    "disabled", "disable", "false", "no", "off", "n", "0", "none", "never", "skip",
                    "ignore",
                ],
            ),
        ];
        let value = value.trim();
        let has = |words: &[&str]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
        let meant = WORDS.into_iter().find(|(_, words)| has(words));
        meant.map(|(intent, _)| intent)
    }
}

/// Returns whether a key looks like the one that opts in or out, but for its spelling; also for
/// that key itself. Other keys of ecr-injector don't.
#[must_use]
pub fn is_near_key(key: &str) -> bool {
    // Most keys end here.
    let has_ecr = key.as_bytes().windows(3);
    let mut has_ecr = has_ecr.filter(|word| word.eq_ignore_ascii_case(b"ecr"));
    if has_ecr.next().is_none() || key.len() > MAX_KEY || key == ROLE_ANNOTATION {
        return false;
    }
    let key = key.to_ascii_lowercase();
    let (domain, name) = key.split_once('/').unwrap_or((&*key, &*key));
    // The words of ecr-injector, however they are joined: not those within `secret-injector`.
    let mut is_ours = false;
    let mut is_injected_by_ecr = false;
    let mut is_start = true;
    for (at, byte) in domain.bytes().enumerate() {
        if is_start && byte == b'e' {
            is_ours |= has_letters(&domain[at..], "ecrinject");
            is_injected_by_ecr |= domain[at..].starts_with("ecr");
        }
        is_start = is_separator(byte);
    }
    is_ours || (is_injected_by_ecr && name.starts_with("inject"))
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'.' | b'-' | b'_')
}

/// Returns whether a text without its separators starts with these letters.
fn has_letters(text: &str, letters: &str) -> bool {
    let mut bytes = text.bytes().filter(|byte| !is_separator(*byte));
    letters.bytes().all(|letter| bytes.next() == Some(letter))
}

/// The reason why a namespace that looks opted in is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptInNearMiss {
    /// The namespace is excluded, and has the label or nearly so.
    Excluded,
    /// The label has this value.
    Value(Quoted),
    /// The label's key and value are an annotation.
    Annotation,
    /// A label or an annotation has a key that looks like the label's.
    Key(Quoted),
}

type Texts = BTreeMap<String, String>;

impl OptInNearMiss {
    /// Returns the near miss of a namespace's labels and annotations. A namespace that is opted in,
    /// or out by a value that means no, has none.
    #[must_use]
    pub fn of(
        labels: &Texts,
        annotations: &Texts,
        label: &str,
        value: &str,
        is_excluded: bool,
    ) -> Option<Self> {
        let near = Self::in_texts(labels, annotations, label, value);
        let is_opted_in = labels.get(label).is_some_and(|given| given == value);
        let is_told = near.is_some() || is_opted_in;
        if is_excluded {
            return is_told.then_some(Self::Excluded);
        }
        near
    }

    fn in_texts(labels: &Texts, annotations: &Texts, label: &str, value: &str) -> Option<Self> {
        let is_yes = |text: &str| text == value || Intent::of(text) == Some(Intent::Yes);
        if let Some(given) = labels.get(label) {
            let is_near =
                given != value && !given.is_empty() && Intent::of(given) != Some(Intent::No);
            return is_near.then(|| Self::Value(Quoted::new(given)));
        }
        if annotations.get(label).is_some_and(|given| is_yes(given)) {
            return Some(Self::Annotation);
        }
        let mut keys = labels.iter().chain(annotations);
        let near = keys.find(|(key, given)| {
            let is_near = is_near_key(key) || is_spelling_of(label, key);
            is_near && is_yes(given)
        });
        near.map(|(key, _)| Self::Key(Quoted::new(key)))
    }

    /// Returns the note of an Event, with what would work.
    #[must_use]
    pub fn note(&self, label: &str, value: &str, namespace: &Namespace) -> String {
        let (label, value) = (clip(label, MAX_KEY), clip(value, 63));
        let fix = format!("To opt in: kubectl label namespace {namespace} {label}={value}");
        match self {
            Self::Excluded => "The configuration excludes this namespace \
                (optIn.excludeNamespaces; that of ecr-injector is always excluded), so that no \
                label opts it in: its Pods get no pull secret. Use another namespace."
                .to_owned(),
            Self::Value(given) => format!(
                "The value {given} of the label {label} doesn't opt this namespace in. {fix} \
                 --overwrite"
            ),
            Self::Annotation => format!(
                "{label} is an annotation of this namespace, and opts it in only as a label. {fix}"
            ),
            Self::Key(key) => format!("The key {key} doesn't opt this namespace in. {fix}"),
        }
    }
}

/// Returns whether two keys differ in case and separators alone.
fn is_spelling_of(label: &str, key: &str) -> bool {
    let letters = |text: &str| -> String {
        let text = text.chars().filter(|c| !"-_./".contains(*c));
        text.map(|c| c.to_ascii_lowercase()).collect()
    };
    key.len() <= MAX_KEY && key != label && letters(key) == letters(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "ecr-injector.dev/inject";
    const DOMAIN: &str = "ecr-injector.dev";

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let pairs = pairs.iter();
        let owned = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    fn near(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Option<OptInNearMiss> {
        let (labels, annotations) = (texts(labels), texts(annotations));
        OptInNearMiss::of(&labels, &annotations, LABEL, "enabled", false)
    }

    #[test]
    fn label_with_another_value_is_near_unless_it_means_no() {
        for value in ["true", "Enabled", "yes", "1", "on", "inject", "team-a"] {
            let expected = Some(OptInNearMiss::Value(Quoted::new(value)));
            assert_eq!(near(&[(LABEL, value)], &[]), expected, "{value}");
        }
        for value in ["enabled", "disabled", "Disabled", "false", "no", "off", ""] {
            assert_eq!(near(&[(LABEL, value)], &[]), None, "{value}");
        }
    }

    #[test]
    fn long_key_is_read_once() {
        // The shortest of several times: how long it takes when nothing else runs.
        let time_of = |length: usize| {
            let dots = ".".repeat(length - "ecrinject".len());
            let (near, other) = (format!("ecr{dots}inject"), format!("ecr{dots}injec"));
            let time = |_| {
                let started = std::time::Instant::now();
                for _ in 0..100 {
                    assert!(is_near_key(&near));
                    assert!(!is_near_key(&other));
                }
                started.elapsed()
            };
            (0..20).map(time).min().unwrap()
        };
        let (short, long) = (time_of(MAX_KEY / 8), time_of(MAX_KEY));
        // Eight times the letters; joining the words after each one took 64 times as long.
        assert!(long < short * 24, "{long:?}, and an eighth takes {short:?}");
    }

    #[test]
    fn label_as_annotation_is_near() {
        for (value, expected) in [
            ("enabled", Some(OptInNearMiss::Annotation)),
            ("true", Some(OptInNearMiss::Annotation)),
            ("disabled", None),
            ("", None),
        ] {
            assert_eq!(near(&[], &[(LABEL, value)]), expected, "{value}");
        }
        let both = near(&[(LABEL, "enabled")], &[(LABEL, "enabled")]);
        assert_eq!(both, None);
    }

    #[test]
    fn key_of_another_spelling_is_near() {
        for key in [
            &format!("{DOMAIN}/injection"),
            &format!("{DOMAIN}/enabled"),
            &format!("{DOMAIN}/Inject"),
            "ecr-injector/inject",
            "ecr-injector.io/inject",
            "ecrinjector.dev/inject",
            "ecr.injector.dev/inject",
            "ecr-injetor.dev/inject",
            "ecr-injector",
            "ecr_injector",
            "ecr-injection",
        ] {
            let expected = Some(OptInNearMiss::Key(Quoted::new(key)));
            assert_eq!(near(&[(key, "enabled")], &[]), expected, "{key}");
            assert_eq!(near(&[], &[(key, "true")]), expected, "{key}");
            assert_eq!(near(&[(key, "disabled")], &[]), None, "{key}");
            assert_eq!(near(&[(key, "team-a")], &[]), None, "{key}");
        }
    }

    #[test]
    fn keys_of_others_are_not_near() {
        for key in [
            "istio-injection",
            "sidecar.istio.io/inject",
            "secret-injector.example.com/inject",
            "vault.hashicorp.com/agent-inject",
            "linkerd.io/inject",
            "eks.amazonaws.com/ecr",
            "ecr.example.com/team",
            "app.kubernetes.io/name",
            ROLE_ANNOTATION,
            "",
            "/",
        ] {
            assert_eq!(near(&[(key, "enabled")], &[(key, "true")]), None, "{key}");
        }
        // No key of Kubernetes is longer.
        let long = |length: usize| is_near_key(&format!("{:.<length$}", "ecrinject"));
        assert!(long(MAX_KEY) && !long(MAX_KEY + 1));
    }

    #[test]
    fn label_of_the_configuration_decides() {
        let of = |labels: &[(&str, &str)]| {
            OptInNearMiss::of(
                &texts(labels),
                &texts(&[]),
                "pull.example/ecr",
                "yes",
                false,
            )
        };
        assert_eq!(of(&[("pull.example/ecr", "yes")]), None);
        for (key, value, expected) in [
            (
                "pull.example/ecr",
                "y",
                OptInNearMiss::Value(Quoted::new("y")),
            ),
            (LABEL, "enabled", OptInNearMiss::Key(Quoted::new(LABEL))),
            (
                "pull.example/ECR",
                "yes",
                OptInNearMiss::Key(Quoted::new("pull.example/ECR")),
            ),
        ] {
            assert_eq!(of(&[(key, value)]), Some(expected), "{key}={value}");
        }
    }

    #[test]
    fn excluded_namespace_with_the_label_is_near() {
        let of = |labels: &[(&str, &str)]| {
            OptInNearMiss::of(&texts(labels), &texts(&[]), LABEL, "enabled", true)
        };
        for value in ["enabled", "true"] {
            assert_eq!(of(&[(LABEL, value)]), Some(OptInNearMiss::Excluded));
        }
        assert_eq!(of(&[(LABEL, "disabled")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn note_quotes_shortly_and_has_the_command() {
        let namespace = Namespace::parse("team").expect("a name");
        let command = "kubectl label namespace team ecr-injector.dev/inject=enabled";
        let foreign = "x\u{202e}\n".repeat(1000);
        for near in [
            OptInNearMiss::Value(Quoted::new(&foreign)),
            OptInNearMiss::Annotation,
            OptInNearMiss::Key(Quoted::new(&foreign)),
        ] {
            let note = near.note(LABEL, "enabled", &namespace);
            assert!(note.contains(command), "{note}");
            assert!(
                note.len() < 400 && !note.contains(['\u{202e}', '\n']),
                "{note}"
            );
        }
        let note = OptInNearMiss::Excluded.note(LABEL, "enabled", &namespace);
        assert!(
            note.contains("excludes") && !note.contains("kubectl"),
            "{note}"
        );
    }
}
