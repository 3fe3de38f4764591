//! Removes from a text what could be a secret. Pure.
//!
//! Nothing that is known to be one is read for a bundle. This is the net below that: a log line that
//! quotes a URL, a flag of somebody's own, an error with a token in it.

use std::borrow::Cow;

/// The text in the place of a removed word.
pub(super) const REMOVED: &str = "[removed]";
/// Shorter words of mixed characters are names: the generated part of a Pod's name, a version.
const MIN_MIXED: usize = 24;
/// Shorter words of hexadecimal digits are revisions and uids.
const MIN_HEX: usize = 48;
/// The hexadecimal digits of a SHA-256, as digests of images have them.
const SHA256_HEX: usize = 64;
/// The prefixes of access keys of AWS.
const ACCESS_KEYS: [&str; 2] = ["AKIA", "ASIA"];
/// Words after which a value is a secret, however short it is.
const NAMES: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "bearer",
    "basic",
    "externalid",
];
/// The ends of longer names whose value is removed. One that ends in `secret` names a Secret.
const NAME_ENDS: [&str; 4] = ["-password", "-passwd", "-token", "-secret-access-key"];

/// Returns a text without what could be a secret.
pub(super) fn scrub(text: &str) -> String {
    let mut scrubbed = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") {
            in_pem = true;
            scrubbed.push_str(REMOVED);
            scrubbed.push('\n');
        }
        let ends = line.contains("-----END ");
        if !in_pem {
            scrub_line(line, &mut scrubbed);
        }
        in_pem &= !ends;
    }
    scrubbed
}

/// Whether a character is part of a word that could be a secret.
fn is_of_word(it: char) -> bool {
    it.is_ascii_alphanumeric() || "+/=_-".contains(it)
}

fn scrub_line(line: &str, scrubbed: &mut String) {
    let mut rest = line;
    let mut before = Cow::Borrowed("");
    let mut after_name = false;
    while let Some(first) = rest.chars().next() {
        if !is_of_word(first) {
            scrubbed.push(first);
            // A name and its value are apart by quotes, colons and spaces alone.
            after_name &= "\"':= \\".contains(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(|it| !is_of_word(it)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        if after_name && !names_a_secret(word) && has_value(word) {
            scrubbed.push_str(REMOVED);
            after_name = false;
        } else if let Some((name, value)) = word.split_once('=')
            && names_a_secret(name)
        {
            scrubbed.push_str(name);
            scrubbed.push('=');
            scrubbed.push_str(if value.is_empty() { "" } else { REMOVED });
            after_name = value.is_empty();
        } else {
            let is_digest = before == "sha256" && word.len() == SHA256_HEX;
            let is_removed = !is_digest && is_secret(word);
            scrubbed.push_str(if is_removed { REMOVED } else { word });
            after_name = is_name(word, tail);
        }
        before = Cow::Owned(word.to_owned());
        rest = tail;
    }
}

/// Whether a word is one of [`NAMES`], a flag of that name, or a longer name of a value that is
/// secret: `DB_PASSWORD`.
fn names_a_secret(word: &str) -> bool {
    let name = word
        .trim_start_matches('-')
        .to_lowercase()
        .replace('_', "-");
    NAMES.contains(&&*name) || NAME_ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether a word names the value that follows: `password: x`, `"token":"x"`, `Basic x`,
/// `--token x`.
fn is_name(word: &str, tail: &str) -> bool {
    let is_scheme = ["bearer", "basic"].contains(&&*word.to_lowercase());
    let is_flag = word.starts_with('-') && names_a_secret(word);
    let after_quote = tail.trim_start_matches(['"', '\'', '\\']);
    (is_scheme || is_flag) && tail.starts_with(' ')
        || names_a_secret(word) && after_quote.starts_with([':', '='])
}

/// Whether a word that follows a name is a value and not the next word of a sentence.
fn has_value(word: &str) -> bool {
    !["null", "true", "false"].contains(&word)
}

fn is_secret(word: &str) -> bool {
    let has = |of: fn(&char) -> bool| word.chars().any(|it| of(&it));
    let (upper, lower, digit) = (
        has(char::is_ascii_uppercase),
        has(char::is_ascii_lowercase),
        has(char::is_ascii_digit),
    );
    let is_access_key =
        word.len() >= 16 && ACCESS_KEYS.iter().any(|it| word.starts_with(it)) && !lower;
    let is_hex = word.len() >= MIN_HEX && digit && word.chars().all(|it| it.is_ascii_hexdigit());
    is_access_key || is_hex || (word.len() >= MIN_MIXED && upper && lower && digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_a_secret_is_removed() {
        for (text, expected) in [
            ("key AKIAIOSFODNN7EXAMPLE used", "key [removed] used"),
            ("ASIAIOSFODNN7EXAMPLE", "[removed]"),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[removed]"),
            (
                "jwt eyJhbGciOiJSUzI1NiIsImtpZCI6.eyJhdWQiOlsiaHR0cHM6Ly9r.sGnA9xQ1",
                "jwt [removed].[removed].sGnA9xQ1",
            ),
            ("{\"password\":\"short\"}", "{\"password\":\"[removed]\"}"),
            (
                "{\\\"token\\\":\\\"abc\\\"}",
                "{\\\"token\\\":\\\"[removed]\\\"}",
            ),
            ("externalId: abc", "externalId: [removed]"),
            (
                "--password=abc --Token abc serve",
                "--password=[removed] --Token [removed] serve",
            ),
            (
                "DB_PASSWORD=abc --registry-token abc AWS_SECRET_ACCESS_KEY: abc",
                "DB_PASSWORD=[removed] --registry-token [removed] AWS_SECRET_ACCESS_KEY: [removed]",
            ),
            ("password=abc", "password=[removed]"),
            (
                "Authorization: Basic QVdTOmE=",
                "Authorization: Basic [removed]",
            ),
            ("bearer abc", "bearer [removed]"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nMIIE\nabc\n-----END PRIVATE KEY-----\nb\n",
                "a\n[removed]\nb\n",
            ),
            (&"0123456789abcdef".repeat(4), "[removed]"),
        ] {
            assert_eq!(scrub(text), expected);
        }
    }

    #[test]
    fn what_people_need_is_kept() {
        for text in [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:v1\n",
            "ecr_injector_certificate_expiration_timestamp_seconds{kind=\"leaf\"} 1800500000\n",
            "arn:aws:iam::123456789012:role/team/ecr-injector-pull-only\n",
            "pod/ecr-injector-7f9c5d6b8-x2x4v uid 7c1b4c2e-93f2-4f4e-8a3e-0e8f0c6f6a11\n",
            "2027-01-15T10:00:00.123456Z WARN the token could not be minted: AccessDeniedException\n",
            "KubeletEnsureSecretPulledImages is on; FailedToRetrieveImagePullSecret\n",
            "the pull secret has no credential; secret ecr-pull-secret\n",
            "--state-key-secret=ecr-injector-state-key --ca-secret ecr-injector-ca\n",
            "{\"token\":null,\"secret\":true}\n",
            "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/secrets/token\n",
        ] {
            assert_eq!(scrub(text), text);
        }
        let digest = format!("app@sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(scrub(&digest), digest);
    }
}
