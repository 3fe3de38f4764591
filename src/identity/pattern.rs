//! Patterns of namespaces and role ARNs, with `*` as wildcard.
//!
//! A pattern is anchored: a pattern matches the whole text or not at all. `*` matches any run of
//! characters within one part, also an empty one; `:` and `/` separate the parts, so that no `*`
//! ever reaches from an account into a path, or from a path into a name. `{namespace}` matches the
//! name of the namespace. Every other character matches itself.

use std::fmt;

use thiserror::Error;

use crate::{cluster::namespace::Namespace, registry::Partition};

/// The placeholder of the namespace's name in patterns and templates.
pub const NAMESPACE: &str = "{namespace}";
/// The separators of parts, which no `*` matches.
const SEPARATORS: [char; 2] = [':', '/'];
/// Characters that are special in other pattern languages: rejected, so that nobody relies on them.
const UNSUPPORTED: [char; 7] = ['?', '[', ']', '\\', '(', ')', '|'];

/// A checked pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// The length of the prefix before the first wildcard or placeholder, which rules out most
    /// texts quickly.
    literal_prefix: usize,
}

/// The reason why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// An empty text can match nothing.
    #[error("a pattern can't be empty")]
    Empty,
    /// The text has a special character of another pattern language.
    #[error(
        "{0:?} has no meaning here: a pattern is a text with * for any characters but : and /, and {NAMESPACE}"
    )]
    Unknown(char),
    /// The text has braces around something else than `namespace`.
    #[error("the only name that can stand in braces is {NAMESPACE}")]
    Braces,
}

impl Pattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if let Some(unknown) = text.chars().find(|c| UNSUPPORTED.contains(c)) {
            return Err(PatternError::Unknown(unknown));
        }
        check_template(text)?;
        Ok(Self {
            text: text.to_owned(),
            literal_prefix: text.find(['*', '{']).unwrap_or(text.len()),
        })
    }

    /// Returns whether the whole of `text` matches, with the name of this namespace.
    #[must_use]
    pub fn matches(&self, text: &str, namespace: &Namespace) -> bool {
        if !text.starts_with(&self.text[..self.literal_prefix]) {
            return false;
        }
        // A namespace's name has neither separators nor wildcards, so the name adds none.
        let pattern = self.text.replace(NAMESPACE, namespace.as_str());
        let separators =
            |text: &str| -> Vec<char> { text.chars().filter(|c| SEPARATORS.contains(c)).collect() };
        separators(&pattern) == separators(text)
            && pattern
                .split(SEPARATORS)
                .zip(text.split(SEPARATORS))
                .all(|(pattern, part)| matches_part(pattern, part))
    }
}

impl Pattern {
    /// Returns whether the pattern of namespaces matches every name that the other one matches. Errs
    /// towards no.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let is_plain = !self.text.contains('{') && !other.text.contains('{');
        // A wildcard of the other pattern is a character that only a wildcard matches.
        self.matches_all() || self == other || is_plain && matches_part(&self.text, &other.text)
    }

    /// Returns whether the pattern matches the name of every namespace.
    #[must_use]
    pub fn matches_all(&self) -> bool {
        self.text
            .replacen(NAMESPACE, "*", 1)
            .chars()
            .all(|c| c == '*')
    }

    /// Returns whether some namespace's name matches.
    #[must_use]
    pub fn can_match_a_namespace(&self) -> bool {
        let text = &self.text;
        if text.contains(NAMESPACE) {
            return self.matches_all();
        }
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-*".contains(c);
        let literal = text.chars().filter(|c| *c != '*').count();
        literal <= 63 && text.chars().all(fits) && !text.starts_with('-') && !text.ends_with('-')
    }

    /// Returns whether the ARN of some role matches.
    #[must_use]
    pub fn can_match_a_role(&self) -> bool {
        let text = self.text.replace(NAMESPACE, "*");
        let parts: Vec<&str> = text.split(':').collect();
        let [arn, partition, iam, region, account, resource] = parts[..] else {
            return false;
        };
        let digits = account.chars().filter(|c| *c != '*').count();
        let is_account = account.chars().all(|c| c.is_ascii_digit() || c == '*')
            && (digits == 12 || digits < 12 && account.contains('*'));
        let mut path = resource.split('/');
        let is_role = path.next().is_some_and(|part| matches_part(part, "role"));
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-*".contains(c);
        let mut names = path.peekable();
        matches_part(arn, "arn")
            && Partition::all().any(|it| matches_part(partition, it.as_str()))
            && matches_part(iam, "iam")
            && matches_part(region, "")
            && is_account
            && is_role
            && names.peek().is_some()
            && names.all(|name| !name.is_empty() && name.chars().all(fits))
    }
}

/// Checks that the only placeholder in a text is [`NAMESPACE`].
pub fn check_template(text: &str) -> Result<(), PatternError> {
    if text.replace(NAMESPACE, "").contains(['{', '}']) {
        return Err(PatternError::Braces);
    }
    Ok(())
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Matches the pieces between the `*`s from left to right, each at its first occurrence; the first
/// is a prefix, the last a suffix. Linear except for the search of a piece.
fn matches_part(pattern: &str, part: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else {
        return pattern == part;
    };
    let Some(mut part) = part.strip_prefix(prefix) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let suffix = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = part.find(piece) else {
            return false;
        };
        part = &part[at + piece.len()..];
    }
    part.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn namespace() -> Namespace {
        Namespace::parse("team-a").expect("valid")
    }

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::parse(pattern)
            .expect("a pattern")
            .matches(text, &namespace())
    }

    #[test]
    fn pattern_matches_the_whole_text_or_not_at_all() {
        for (pattern, text, expected) in [
            ("team-a", "team-a", true),
            ("team-a", "team-a1", false),
            ("team-a", "xteam-a", false),
            ("team-*", "team-", true),
            ("team-*", "team-b", true),
            ("team-*", "my-team-b", false),
            ("*-prod", "a-prod", true),
            ("*-prod", "a-prod-b", false),
            ("*", "anything", true),
            ("*", "", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            // Pieces don't overlap.
            ("a*bb*b", "abb", false),
            ("a*bb*b", "abbb", true),
            ("a*a", "a", false),
            ("**", "x", true),
            ("{namespace}", "team-a", true),
            ("{namespace}", "team-b", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn wildcard_matches_within_one_part_of_an_arn() {
        let arns = "arn:aws:iam::*:role/ecr-pull-*";
        for (text, expected) in [
            ("arn:aws:iam::111122223333:role/ecr-pull-a", true),
            ("arn:aws:iam::111122223333:role/ecr-pull-a/admin", false),
            ("arn:aws:iam::111122223333:role/x/ecr-pull-a", false),
            ("arn:aws:iam::111122223333:role/admin", false),
            ("arn:aws:iam::1:role/x:role/ecr-pull-a", false),
            ("arn:aws-cn:iam::111122223333:role/ecr-pull-a", false),
        ] {
            assert_eq!(matches(arns, text), expected, "{text}");
        }
        assert!(matches(
            "arn:aws:iam::1:role/{namespace}",
            "arn:aws:iam::1:role/team-a"
        ));
        assert!(!matches(
            "arn:aws:iam::1:role/{namespace}",
            "arn:aws:iam::1:role/team-b"
        ));
    }

    #[test]
    fn pattern_is_shown_as_it_was_written() {
        for text in ["team-*", "arn:aws:iam::*:role/{namespace}"] {
            assert_eq!(Pattern::parse(text).expect("a pattern").to_string(), text);
        }
    }

    #[test]
    fn syntax_of_other_pattern_languages_is_rejected() {
        assert_eq!(Pattern::parse(""), Err(PatternError::Empty));
        for text in ["a?", "[ab]", "a|b", "(a)", "a\\*"] {
            assert!(
                matches!(Pattern::parse(text), Err(PatternError::Unknown(_))),
                "{text}"
            );
        }
        for text in ["{a,b}", "{cluster}", "}", "{namespace"] {
            assert_eq!(Pattern::parse(text), Err(PatternError::Braces), "{text}");
        }
    }

    /// Matches by the definition: a `*` matches some prefix of the rest, of any length.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=text.len())
                .take_while(|&n| text[..n].iter().all(|c| !SEPARATORS.contains(c)))
                .any(|n| naive(rest, &text[n..])),
            (Some((p, rest)), Some((t, others))) => p == t && naive(rest, others),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_matcher(pattern in "[ab:*/]{1,8}", text in "[ab:/]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), naive(&chars(&pattern), &chars(&text)));
        }
    }
}
