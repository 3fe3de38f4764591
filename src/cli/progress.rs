//! How far a command has come, on standard error: a bar if that is a terminal, else a line now and then.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How often a bar is drawn at the most.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written at the most, the first time included.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The length of a bar.
const CELLS: usize = 24;
/// Takes away what stands on the line.
const CLEAR: &str = "\r\x1b[K";

/// Tells how far a command has come; clones share the line.
#[derive(Clone)]
pub(super) struct Progress(Arc<Inner>);

struct Inner {
    doing: &'static str,
    is_terminal: bool,
    line: Mutex<Line>,
}

struct Line {
    is_drawn: bool,
    told: Instant,
}

impl Progress {
    /// Of a command that does this, such as `refreshing`.
    pub(super) fn of(doing: &'static str) -> Self {
        let is_dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        Self(Arc::new(Inner {
            doing,
            is_terminal: io::stderr().is_terminal() && !is_dumb,
            line: Mutex::new(Line {
                is_drawn: false,
                told: Instant::now(),
            }),
        }))
    }

    /// So many are done, of so many.
    pub(super) fn set(&self, done: usize, all: usize) {
        let mut line = self.line();
        let pause = if self.0.is_terminal {
            DRAW_EVERY
        } else {
            LINE_EVERY
        };
        if line.told.elapsed() < pause {
            return;
        }
        line.told = Instant::now();
        let text = if self.0.is_terminal {
            line.is_drawn = true;
            bar(self.0.doing, done, all)
        } else {
            format!("{}: {done} of {all} namespaces\n", self.0.doing)
        };
        // Whoever doesn't look at it misses nothing.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Writes a line to standard error, with no bar in its way.
    pub(super) fn say(&self, text: &str) {
        // As above.
        let _ = writeln!(self.clone(), "{text}");
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        // As above.
        let _ = clear(&mut self.line());
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What else goes to standard error goes through here, logs above all.
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

fn bar(doing: &str, done: usize, all: usize) -> String {
    let filled = (done * CELLS).checked_div(all).unwrap_or(CELLS).min(CELLS);
    let (full, empty) = ("#".repeat(filled), "-".repeat(CELLS - filled));
    format!("{CLEAR}{doing} [{full}{empty}] {done}/{all}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_from_left_to_right_and_never_overflows() {
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
