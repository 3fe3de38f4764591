//! Writes log lines without `tracing`, which costs an admission more than its decision.
//!
//! The lines look as those that `tracing` writes, and follow the same filter: whoever logs asks
//! `tracing::enabled!` first. There is a log for them once [`super::start`] has installed its own
//! subscriber, unless its lines are coloured.

use std::{io::Write as _, sync::OnceLock};

use jiff::fmt::{StdIoWrite, temporal::DateTimePrinter};
use serde::Serialize;
use tracing::Level;

use super::{format::Format, writer::LogWriter};
use crate::process::clock::{Clock as _, SystemClock};

/// The digits of a second's fraction in a timestamp.
const TIMESTAMP: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
/// The capacity of a line; most are shorter.
const CAPACITY: usize = 768;

static LOG: OnceLock<DirectLog> = OnceLock::new();

/// The process's log, in its format.
#[derive(Debug)]
pub struct DirectLog {
    format: Format,
    writer: LogWriter,
}

/// A line in progress.
#[derive(Debug)]
pub struct Line<'a> {
    log: &'a DirectLog,
    target: &'static str,
    bytes: Vec<u8>,
}

/// Returns the log, if lines may be written to it.
#[must_use]
pub fn log() -> Option<&'static DirectLog> {
    LOG.get()
}

impl DirectLog {
    /// Returns a log of this format.
    #[must_use]
    pub fn new(format: Format, writer: LogWriter) -> Self {
        Self { format, writer }
    }

    /// Makes this the process's log, unless there is one.
    pub(super) fn install(self) {
        let _ = LOG.set(self);
    }

    /// Begins a line of this level, target and message.
    #[must_use]
    pub fn line(&self, level: Level, target: &'static str, message: &str) -> Line<'_> {
        let now = SystemClock.now();
        let mut bytes = Vec::with_capacity(CAPACITY);
        // Here and below: writing to a Vec can't fail.
        if self.format == Format::Json {
            bytes.extend_from_slice(b"{\"timestamp\":\"");
            let _ = TIMESTAMP.print_timestamp(&now, StdIoWrite(&mut bytes));
            let _ = write!(bytes, "\",\"level\":\"{level}\",\"message\":");
            write_json(&mut bytes, message);
        } else {
            let _ = TIMESTAMP.print_timestamp(&now, StdIoWrite(&mut bytes));
            let _ = write!(bytes, " {level:>5} {target}: {message}");
        }
        Line {
            log: self,
            target,
            bytes,
        }
    }
}

impl Line<'_> {
    /// Adds a field.
    #[must_use]
    pub fn field(mut self, key: &str, value: impl Serialize + std::fmt::Debug) -> Self {
        if self.log.format == Format::Json {
            let _ = write!(self.bytes, ",\"{key}\":");
            write_json(&mut self.bytes, value);
        } else {
            let _ = write!(self.bytes, " {key}={value:?}");
        }
        self
    }

    /// Writes the line.
    pub fn write(mut self) {
        if self.log.format == Format::Json {
            let _ = write!(self.bytes, ",\"target\":\"{}\"}}", self.target);
        }
        self.bytes.push(b'\n');
        let _ = self.log.writer.clone().write_all(&self.bytes);
    }
}

fn write_json(bytes: &mut Vec<u8>, value: impl Serialize) {
    let _ = serde_json::to_writer(bytes, &value);
}
