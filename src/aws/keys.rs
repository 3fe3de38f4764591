//! Keys as people have them: with a line break from a file, with quotes, with a byte order mark.
//!
//! The SDK puts keys into the headers of requests as they are, and panics on a key that no header
//! can hold.

use aws_credential_types::Credentials;

/// The names of the three parts of credentials, for errors.
pub(super) type Names = [&'static str; 3];

/// The names where the keys are variables.
pub(super) const VARIABLES: Names = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];
/// The names where the keys come from elsewhere.
pub(super) const PARTS: Names = [
    "the access key id",
    "the secret access key",
    "the session token",
];

/// Returns a value without what surrounds it by accident: blanks, line breaks, control characters,
/// a byte order mark, pairs of quotes. No key, ARN, region, URL or path of a mounted file has any
/// of these at its ends.
#[must_use]
pub(super) fn trimmed(value: &str) -> &str {
    let is_accident = |c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}';
    let mut value = value.trim_matches(is_accident);
    while let Some(inner) = unquoted(value) {
        value = inner.trim_matches(is_accident);
    }
    value
}

fn unquoted(value: &str) -> Option<&str> {
    let mut quotes = ['"', '\''].into_iter();
    quotes.find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
}

/// Returns credentials with trimmed keys, or what is wrong with those that no request can hold.
pub(super) fn checked(credentials: Credentials, names: Names) -> Result<Credentials, String> {
    let token = credentials.session_token().map(trimmed);
    let keys = [
        Some(trimmed(credentials.access_key_id())),
        Some(trimmed(credentials.secret_access_key())),
        token.filter(|token| !token.is_empty()),
    ];
    for (key, name) in keys.into_iter().zip(names) {
        if let Some(key) = key {
            check(key, name)?;
        }
    }
    let [access_key, secret, token] = keys.map(Option::unwrap_or_default);
    if access_key == credentials.access_key_id()
        && secret == credentials.secret_access_key()
        && token == credentials.session_token().unwrap_or_default()
    {
        return Ok(credentials);
    }
    let mut clean = Credentials::builder()
        .access_key_id(access_key)
        .secret_access_key(secret)
        .provider_name("trimmed");
    clean.set_session_token(Some(token.to_owned()).filter(|token| !token.is_empty()));
    clean.set_expiry(credentials.expiry());
    clean.set_account_id(credentials.account_id().cloned());
    Ok(clean.build())
}

/// Checks that a request can hold a key. The key itself is never in the error.
pub(super) fn check(key: &str, name: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err(format!("{name} is empty: set it again"));
    }
    let is_foreign = |c: char| !c.is_ascii_graphic() || matches!(c, '"' | '\'');
    match key.chars().position(is_foreign) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{name} has a blank, a line break, a quote or another character that no key has, at position {}: set it again",
            at + 1
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_surrounds_a_value_is_trimmed_and_nothing_inside() {
        for (value, expected) in [
            ("AKIA", "AKIA"),
            ("AKIA\n", "AKIA"),
            ("\u{feff}AKIA\r\n", "AKIA"),
            (" \"AKIA\" \n", "AKIA"),
            ("'\"AKIA'", "\"AKIA"),
            ("\"'AKIA'\"", "AKIA"),
            ("'\"AKIA\"'", "AKIA"),
            ("\"\"' \"AKIA\"'\"\"", "AKIA"),
            ("\"AKIA", "\"AKIA"),
            ("AK IA\0", "AK IA"),
            ("\n", ""),
            ("\"", "\""),
            ("\"\"", ""),
            ("", ""),
        ] {
            assert_eq!(trimmed(value), expected, "{value:?}");
            assert_eq!(trimmed(expected), expected, "a second round");
        }
    }

    #[test]
    fn credentials_keep_all_but_what_is_trimmed() {
        let expiry = std::time::SystemTime::UNIX_EPOCH;
        let given = |key: &str, token: Option<&str>| {
            Credentials::new(
                key,
                "se/cret+=",
                token.map(str::to_owned),
                Some(expiry),
                "test",
            )
        };
        let clean = checked(given("AKIA\n", Some("token\r\n")), PARTS).expect("clean");
        assert_eq!(
            (clean.access_key_id(), clean.secret_access_key()),
            ("AKIA", "se/cret+=")
        );
        assert_eq!(clean.session_token(), Some("token"));
        assert_eq!(clean.expiry(), Some(expiry));
        let clean = checked(given("AKIA", Some(" \n")), PARTS).expect("clean");
        assert_eq!(clean.session_token(), None);
    }

    #[test]
    fn error_names_the_part_and_holds_nothing_of_the_key() {
        for (key, name) in [
            (["AK\nIA", "secret", "token"], "AWS_ACCESS_KEY_ID"),
            (["AKIA", "sec ret", "token"], "AWS_SECRET_ACCESS_KEY"),
            (["AKIA", "secret", "tök"], "AWS_SESSION_TOKEN"),
            (["", "secret", "token"], "AWS_ACCESS_KEY_ID"),
        ] {
            let [access_key, secret, token] = key;
            let keys = Credentials::new(access_key, secret, Some(token.to_owned()), None, "test");
            let error = checked(keys, VARIABLES).expect_err(name);
            assert!(error.starts_with(name), "{error}");
            for part in key.iter().filter(|part| !part.is_empty()) {
                assert!(!error.contains(part), "{error}");
            }
        }
    }
}
