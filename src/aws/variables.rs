//! The environment variables that the AWS SDK reads, and what surrounds their values by accident.
//!
//! `kubectl create secret --from-file` and `echo … | base64` leave a line break behind a value, and
//! some files quotes around it. The SDK takes each value as it is, in many places, and has no hook
//! for all of them.

use std::{env, ffi::OsString};

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

/// Returns the variables that have something to be trimmed, with their trimmed values; `None` where
/// nothing is left, which counts as unset.
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
            changed.push((
                name,
                Some(trimmed.to_owned()).filter(|text| !text.is_empty()),
            ));
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
    use super::*;

    #[test]
    fn only_variables_for_aws_are_trimmed() {
        let variables = [
            ("AWS_REGION", "eu-west-1\n"),
            ("AWS_PROFILE", "\n"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
            ("NO_PROXY", "localhost\r\n"),
            ("GREETING", "hello\n"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let expected = [
            ("AWS_PROFILE", None),
            ("AWS_REGION", Some("eu-west-1")),
            ("NO_PROXY", Some("localhost")),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(to_trim(variables), expected);
    }
}
