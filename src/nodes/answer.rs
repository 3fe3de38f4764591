//! The answer of a way in: standard output, standard error and the exit code, written in one place.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use serde_json::Value;
use zeroize::Zeroizing;

use crate::telemetry::printable::printable;

/// The longest line on standard error, in bytes with its line break: the kubelet copies it into its
/// log.
const MAX_LINE: usize = 1024;

/// An answer that is not written yet. Its output may hold a password, so it has no `Debug`.
pub struct Answer {
    program: &'static str,
    stdout: Zeroizing<String>,
    notes: Vec<String>,
    code: u8,
}

impl Answer {
    /// Returns an answer on standard output, with exit code 0. `program` begins each note.
    #[must_use]
    pub fn output(program: &'static str, stdout: impl Into<Zeroizing<String>>) -> Self {
        Self {
            program,
            stdout: stdout.into(),
            notes: Vec::new(),
            code: 0,
        }
    }

    /// Returns an answer with nothing on standard output, one note and an exit code.
    #[must_use]
    pub fn failure(program: &'static str, code: u8, note: impl Into<String>) -> Self {
        let answer = Self::output(program, String::new()).note(note);
        Self { code, ..answer }
    }

    /// Adds a line on standard error.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Sets the exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Returns an answer of the kubelet's plugin with its password replaced, for a person.
    #[must_use]
    pub(super) fn redacted(self) -> Self {
        let Ok(mut response) = serde_json::from_str::<Value>(&self.stdout) else {
            return self;
        };
        let entries = response["auth"].as_object_mut().into_iter().flatten();
        for (_, credential) in entries {
            let length = credential["password"].as_str().map_or(0, str::len);
            credential["password"] = format!("({length} characters, not shown)").into();
        }
        let stdout = format!("{response:#}\n").into();
        Self { stdout, ..self }
    }

    /// Returns the lines for standard error: whatever a text holds, it is one line.
    fn stderr(&self) -> String {
        let lines = self.notes.iter();
        let lines = lines.map(|note| line(&format!("{}: {note}", self.program)));
        lines.collect()
    }

    /// Writes the answer, and returns its exit code: 1 if nobody reads standard output.
    #[must_use]
    pub fn write(self) -> ExitCode {
        // There is nowhere left to report that this write failed.
        let _ = io::stderr().write_all(self.stderr().as_bytes());
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(self.stdout.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            Ok(()) => ExitCode::from(self.code),
            Err(_) => ExitCode::FAILURE,
        }
    }
}

/// Returns a text as one line of at most [`MAX_LINE`] bytes.
fn line(text: &str) -> String {
    let text = printable(text);
    let fits = |end: &usize| *end <= MAX_LINE - "…\n".len();
    if text.len() < MAX_LINE {
        return format!("{text}\n");
    }
    let ends = text.char_indices().map(|(at, _)| at);
    let end = ends.take_while(fits).last().unwrap_or_default();
    format!("{}…\n", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_is_one_short_line_whatever_it_holds() {
        let long = format!("a\nb\u{202e}{}", "ö".repeat(2000));
        let answer = Answer::failure("ecr-credential-provider", 1, long).note("c");
        let stderr = answer.stderr();
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with("ecr-credential-provider: a\\nb\\u{202e}ö"));
        assert!(lines[0].len() < MAX_LINE && lines[0].ends_with("ö…"));
        assert_eq!(lines[1], "ecr-credential-provider: c");
        for length in [MAX_LINE - 2, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1] {
            let line = line(&"x".repeat(length));
            assert!(line.len() <= MAX_LINE && line.ends_with('\n'), "{length}");
            assert_eq!(line.contains('…'), length >= MAX_LINE);
        }
    }
}
