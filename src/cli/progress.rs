//! The progress of a command on standard error: a bar on a terminal, else a line every few seconds.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::telemetry::printable::printable;

/// The least time between two drawings of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// The least time between two lines, and before the first.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// The length of the bar.
const CELLS: usize = 24;
/// The control sequence that erases the line.
const CLEAR: &str = "\r\x1b[K";

/// Shows the progress of a command; clones share the line.
#[derive(Clone)]
pub(super) struct Progress(Arc<Inner>);

struct Inner {
    operation: &'static str,
    is_terminal: bool,
    line: Mutex<Line>,
}

struct Line {
    is_drawn: bool,
    updated: Instant,
}

impl Progress {
    /// Returns the progress of an operation, such as `refreshing`.
    pub(super) fn new(operation: &'static str) -> Self {
        let is_dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        Self(Arc::new(Inner {
            operation,
            is_terminal: io::stderr().is_terminal() && !is_dumb,
            line: Mutex::new(Line {
                is_drawn: false,
                updated: Instant::now(),
            }),
        }))
    }

    /// Shows that `done` of `all` namespaces are done.
    pub(super) fn set(&self, done: usize, all: usize) {
        let mut line = self.line();
        let pause = if self.0.is_terminal {
            BAR_INTERVAL
        } else {
            LINE_INTERVAL
        };
        if line.updated.elapsed() < pause {
            return;
        }
        line.updated = Instant::now();
        let text = if self.0.is_terminal {
            line.is_drawn = true;
            bar(self.0.operation, done, all)
        } else {
            format!("{}: {done} of {all} namespaces\n", self.0.operation)
        };
        // Progress that can't be shown is no error.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Writes a line to standard error, in place of the bar.
    pub(super) fn print(&self, text: &str) {
        // A line that can't be shown is no error.
        let _ = writeln!(self.clone(), "{}", printable(text));
    }

    /// Erases the bar.
    pub(super) fn clear(&self) {
        // A bar that can't be erased is no error.
        let _ = clear(&mut self.line());
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes other output to standard error, mostly logs, in place of the bar.
impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.line();
        clear(&mut line)?;
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn clear(line: &mut Line) -> io::Result<()> {
    if std::mem::take(&mut line.is_drawn) {
        io::stderr().write_all(CLEAR.as_bytes())?;
    }
    Ok(())
}

fn bar(operation: &str, done: usize, all: usize) -> String {
    let filled = (done * CELLS).checked_div(all).unwrap_or(CELLS).min(CELLS);
    let (full, empty) = ("#".repeat(filled), "-".repeat(CELLS - filled));
    format!("{CLEAR}{operation} [{full}{empty}] {done}/{all}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_fills_from_left_to_right_and_never_overflows() {
        for (done, all, filled) in [
            (0, 10, 0),
            (5, 10, 12),
            (10, 10, 24),
            (11, 10, 24),
            (0, 0, 24),
        ] {
            let bar = bar("refreshing", done, all);
            assert_eq!(bar.matches('#').count(), filled, "{bar:?}");
            assert_eq!(bar.matches(['#', '-']).count(), CELLS, "{bar:?}");
            assert!(bar.ends_with(&format!("] {done}/{all}")), "{bar:?}");
        }
    }
}
