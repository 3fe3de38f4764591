//! Plain scalars of YAML 1.1, as `sigs.k8s.io/yaml` resolves them: the reader of `kubectl`.
//!
//! Its rules are neither those of the YAML 1.1 specification nor those of 1.2: `12:30` is a text and
//! not 750, `0777` and `0o777` are octal, `1_000` is a number, `tRue` is a text.

use serde_json::{Number, Value};

/// The greatest integer up to which all integers are exact as floats.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The value of a scalar.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    /// An integer from the least `i64` to the greatest `u64`.
    Int(i128),
    /// A float; infinite or not a number only where the text names it (`.inf`, `.nan`).
    Float(f64),
    Text(String),
}

impl Scalar {
    /// Resolves a plain scalar without a tag.
    pub(super) fn resolve(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                return Self::Bool(true);
            }
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off"
            | "OFF" => return Self::Bool(false),
            ".nan" | ".NaN" | ".NAN" => return Self::Float(f64::NAN),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
                return Self::Float(f64::INFINITY);
            }
            "-.inf" | "-.Inf" | "-.INF" => return Self::Float(f64::NEG_INFINITY),
            _ => {}
        }
        let number = match text.as_bytes()[0] {
            b'.' => float(text),
            b'+' | b'-' | b'0'..=b'9' => {
                let digits = text.replace('_', "");
                integer(&digits).map(Self::Int).or_else(|| float(&digits))
            }
            _ => None,
        };
        number.unwrap_or_else(|| Self::Text(text.to_owned()))
    }

    /// Returns the value in JSON, or `None` for a number that JSON lacks.
    pub(super) fn into_value(self) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => value.into(),
            Self::Int(value) => Value::Number(Number::from_i128(value)?),
            // `1e3` and the like are floats in YAML, and Kubernetes converts whole ones before it
            // checks their type.
            #[allow(
                clippy::cast_possible_truncation,
                reason = "whole and within ±2^53, so exact"
            )]
            Self::Float(value) if value.fract() == 0.0 && value.abs() <= MAX_EXACT => {
                (value as i64).into()
            }
            Self::Float(value) => Value::Number(Number::from_f64(value)?),
            Self::Text(text) => text.into(),
        })
    }

    /// Returns the name of a field, or `None` where `kubectl` has none for the value.
    pub(super) fn into_name(self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => i64::try_from(value).ok().map(|value| value.to_string()),
            #[allow(
                clippy::cast_possible_truncation,
                reason = "kubectl rounds to 32 bits as well"
            )]
            Self::Float(value) => Some(short(value as f32)),
            Self::Text(text) => Some(text),
        }
    }
}

/// Parses an integer with an optional sign and a prefix of its base.
fn integer(text: &str) -> Option<i128> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (base, digits) = match unsigned.get(..2) {
        Some("0x" | "0X") => (16, &unsigned[2..]),
        Some("0o" | "0O") => (8, &unsigned[2..]),
        Some("0b" | "0B") => (2, &unsigned[2..]),
        Some(_) if unsigned.starts_with('0') => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    if !digits.starts_with(|c: char| c.is_digit(base)) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, base).ok()?;
    let is_signed = unsigned.len() < text.len();
    let value = if text.starts_with('-') {
        -magnitude
    } else {
        magnitude
    };
    // Only a number without a sign may need the 64th bit.
    let fits = i64::try_from(value).is_ok() || !is_signed && u64::try_from(value).is_ok();
    fits.then_some(value)
}

/// Parses a decimal float; one that is too great is `None`, and so a text.
fn float(text: &str) -> Option<Scalar> {
    // Rust also parses `inf`, `infinity` and `nan`.
    let is_decimal = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    if !text.chars().all(is_decimal) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    value.is_finite().then_some(Scalar::Float(value))
}

/// Writes a float with the least digits that identify it, as Go's format `g` does.
fn short(value: f32) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return value.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
