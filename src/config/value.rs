//! Checks of values that several fields have: accounts, regions, durations.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::error::{FieldError, FieldErrors};
use crate::registry::{AccountId, Region};

/// The form of an account in the file.
pub(super) const ACCOUNT: &str = "12 digits in quotes";

/// Deserializes a list that limits something, of which none means no limit. An empty list is an
/// error, for it would be read by some as "none" and by others as "all", and so is a field with
/// nothing behind it.
pub(super) fn listed<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list: Option<Vec<T>> = Option::deserialize(deserializer)?;
    match list {
        Some(list) if !list.is_empty() => Ok(Some(list)),
        _ => Err(D::Error::custom(
            "expected at least one entry, got an empty list; for all, leave the field out",
        )),
    }
}

/// Deserializes a field that restricts something: nothing behind its name is an error, for the
/// default restricts nothing.
pub(super) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let value: Option<T> = Option::deserialize(deserializer)?;
    if value.is_none() {
        return Err(D::Error::custom(
            "expected a value, got nothing; for the default, leave the field out",
        ));
    }
    Ok(value)
}

/// The units of a duration, each with its seconds, in the order in which a text has them.
pub(super) const DAYS_AND_UNITS: [(char, i64); 4] =
    [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
/// The most digits of a number in a duration, so that no sum overflows.
const MAX_DIGITS: usize = 9;

pub(super) fn accounts(
    field: &str,
    texts: Option<Vec<String>>,
    errors: &mut FieldErrors,
) -> BTreeSet<AccountId> {
    let (field, texts) = (format!("{field}.accounts"), texts.unwrap_or_default());
    parse_each(&field, &texts, ACCOUNT, AccountId::parse, errors)
}

pub(super) fn regions(
    field: &str,
    texts: Option<Vec<String>>,
    errors: &mut FieldErrors,
) -> BTreeSet<Region> {
    let (field, texts) = (format!("{field}.regions"), texts.unwrap_or_default());
    let expected = "a region such as eu-west-1";
    parse_each(&field, &texts, expected, Region::parse, errors)
}

/// Parses each text, and records an error with its index for those that can't be parsed.
pub(super) fn parse_each<T: Ord>(
    field: &str,
    texts: &[String],
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
    errors: &mut FieldErrors,
) -> BTreeSet<T> {
    let parsed = texts.iter().enumerate().filter_map(|(at, text)| {
        let message = || format!("expected {expected}, got {text:?}");
        errors
            .record(parse(text).ok_or_else(|| FieldError::new(format!("{field}[{at}]"), message())))
    });
    parsed.collect()
}

/// Parses a duration such as `90m`, `1h30m` or `24h` into seconds.
pub(super) fn seconds(field: &str, text: &str) -> Result<u32, FieldError> {
    let [_, units @ ..] = &DAYS_AND_UNITS;
    plain_seconds(text, units)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .ok_or_else(|| {
            let message = format!("expected a duration such as 90m or 24h, got {text:?}");
            FieldError::new(field, message)
        })
}

/// Returns the seconds of a duration such as `1h30m`: whole numbers, each unit once and in its order.
/// The chart reads durations by the same rules.
pub(super) fn plain_seconds(text: &str, units: &[(char, i64)]) -> Option<i64> {
    let (mut rest, mut sum) = (text, 0);
    for (unit, seconds) in units {
        let after_digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = &rest[..rest.len() - after_digits.len()];
        if let Some(after) = after_digits.strip_prefix(*unit)
            && (1..=MAX_DIGITS).contains(&digits.len())
        {
            sum += digits.parse::<i64>().ok()? * seconds;
            rest = after;
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(sum)
}
