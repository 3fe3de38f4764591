//! The environment variables that the AWS SDK reads, and what surrounds their values by accident.
//!
//! `kubectl create secret --from-file` and `echo … | base64` leave a line break behind a value, and
//! some files quotes around it. The SDK takes each value as it is, in many places, and has no hook
//! for all of them.

use std::{env, ffi::OsString};

use thiserror::Error;

use super::keys::trimmed;

/// The variable in which a process that was started again with trimmed variables has their names.
pub const TRIMMED: &str = "ECR_INJECTOR_TRIMMED_VARIABLES";
/// The variables of proxies, which calls to AWS go through.
const PROXIES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The variables that decide whose credentials are used. Where one is set and blank, someone meant
/// a source: that is an error, as the next source would be another principal.
const DECIDING: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_ECR_ROLE_ARN",
];

/// Why the value of a variable that is set can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum VariableError {
    /// Nothing is left of it.
    #[error("configured by half: {0} is set, and blank: set its value, or remove the variable")]
    Blank(&'static str),
    /// It is no text.
    #[error("{0} is not UTF-8: set it again")]
    NotText(&'static str),
}

/// Returns the trimmed value of a variable that decides whose credentials are used.
pub(super) fn value(name: &'static str) -> Result<Option<String>, VariableError> {
    usable(name, env::var_os(name))
}

fn usable(name: &'static str, value: Option<OsString>) -> Result<Option<String>, VariableError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let value = value.into_string();
    let value = value.map_err(|_| VariableError::NotText(name))?;
    match trimmed(&value) {
        "" => Err(VariableError::Blank(name)),
        value => Ok(Some(value.to_owned())),
    }
}

/// Returns the variables that have something to be trimmed, with their trimmed values. Where
/// nothing is left that is `None`, which counts as unset, but for those that decide whose
/// credentials are used.
#[must_use]
pub fn to_trim(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(String, Option<String>)> {
    let mut changed = Vec::new();
    for (name, value) in variables {
        // Other texts than UTF-8 are errors of the SDK.
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else {
            continue;
        };
        let trimmed = trimmed(&value);
        if is_for_aws(&name) && trimmed != value {
            let is_kept = !trimmed.is_empty() || DECIDING.contains(&&*name);
            let trimmed = is_kept.then(|| trimmed.to_owned());
            changed.push((name, trimmed));
        }
    }
    changed.sort_unstable();
    changed
}

/// Returns the names of the variables that were trimmed before this process was started.
#[must_use]
pub fn trimmed_names() -> Vec<String> {
    let names = env::var(TRIMMED).unwrap_or_default();
    let names = names.split(',').filter(|name| is_for_aws(name));
    names.map(str::to_owned).collect()
}

fn is_for_aws(name: &str) -> bool {
    name.starts_with("AWS_") || PROXIES.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn only_variables_for_aws_are_trimmed() {
        let variables = [
            ("AWS_REGION", "eu-west-1\n"),
            ("AWS_PROFILE", "\n"),
            ("AWS_DEFAULT_REGION", "''"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
            ("NO_PROXY", "localhost\r\n"),
            ("GREETING", "hello\n"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let expected = [
            ("AWS_DEFAULT_REGION", None),
            ("AWS_PROFILE", Some("")),
            ("AWS_REGION", Some("eu-west-1")),
            ("NO_PROXY", Some("localhost")),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(to_trim(variables), expected);
    }

    #[test]
    fn blank_value_is_an_error_and_never_unset() {
        let name = "AWS_PROFILE";
        assert_eq!(usable(name, None), Ok(None));
        assert_eq!(usable(name, Some(" a\n".into())), Ok(Some("a".to_owned())));
        for blank in ["", " ", "\n", "\"\"", "''", "\"' '\"\r\n"] {
            let error = usable(name, Some(blank.into()));
            assert_eq!(error, Err(VariableError::Blank(name)), "{blank:?}");
        }
        let value = OsString::from_vec(vec![b'a', 0xff]);
        let error = usable(name, Some(value));
        assert_eq!(error, Err(VariableError::NotText(name)));
    }
}
