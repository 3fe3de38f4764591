//! Writes an error with its causes on one line, as a log field or a CLI error has them.

use std::{error::Error, iter::successors};

/// Returns an error and its causes, each once: some libraries repeat their cause in their own text.
/// The JSON log writes of an error's causes only those that its text holds.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let chain = successors(Some(error), |&error| error.source());
    for cause in chain.map(ToString::to_string) {
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
