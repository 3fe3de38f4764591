//! Logs: to standard output, as text for people or JSON for machines; beside a command's own output, to standard error.

use std::{
    borrow::Cow,
    env,
    io::{IsTerminal as _, stderr, stdout},
};

use thiserror::Error;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::{ParseError, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// The crates, by the start of their names, that write whole requests and replies at levels finer than INFO, tokens
/// included. Those levels are never written, whatever the filter asks for.
const CAPPED: [&str; 2] = ["aws_", "hyper"];

/// Where the SDK logs with all their causes the errors that sources of credentials end with: what a credential process
/// printed is among those. Nothing of it is written; what failed is in our own log, in our own words.
const SILENCED: [&str; 2] = [
    "aws_config::profile::credentials",
    "aws_config::web_identity_token",
];

/// Where kube's client logs the whole of an answer that it can't read, Secrets among them. What it says elsewhere, such as of
/// a CA bundle, is no secret.
const UNREAD_ANSWERS: &str = "kube_client::client";

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line for people; coloured on a terminal.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// What is logged, to be changed while it is; clones share it.
///
/// What the filter leaves out costs as little as ever: whether a line is written is worked out once for each place that
/// writes, and again only when the filter changes. A line that is written takes a lock for reading, which is nothing beside
/// the line.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

/// Why a filter is not in force.
#[derive(Debug, Error)]
pub enum FilterError {
    /// It isn't one. The last one stays.
    #[error("not a filter in the form of RUST_LOG: {0}")]
    Parse(#[from] ParseError),
    /// Nobody logs by it: another subscriber was first.
    #[error("logs are not written by this process's own rules")]
    Gone,
}

impl Filter {
    /// From now on this is logged, in the form of `RUST_LOG`. What is never written still isn't, whatever the filter asks
    /// for.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let parsed = filter.parse::<EnvFilter>()?;
        self.0.reload(parsed).map_err(|_| FilterError::Gone)?;
        let filter = &*line(filter, filter.len());
        tracing::info!(filter, "log filter changed");
        Ok(())
    }
}

/// Starts logging to standard output. `filter` is in the form of `RUST_LOG`.
pub fn start(format: Format, filter: &str) -> Result<Filter, ParseError> {
    let is_coloured = format == Format::Text && stdout().is_terminal();
    start_to(format, filter, stdout, is_coloured)
}

/// Starts logging as text to a writer that ends on standard error: standard output is the command's own.
pub fn start_beside_output<W>(filter: &str, writer: W) -> Result<Filter, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wants_none = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_coloured = stderr().is_terminal() && !wants_none;
    start_to(Format::Text, filter, writer, is_coloured)
}

fn start_to<W>(
    format: Format,
    filter: &str,
    writer: W,
    is_coloured: bool,
) -> Result<Filter, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (subscriber, filter) = filtered(filter)?;
    let layer = fmt::layer().with_writer(writer);
    // Where a subscriber is set already (a test's), its owner's choice stands.
    let _ = match format {
        Format::Text => subscriber.with(layer.with_ansi(is_coloured)).try_init(),
        Format::Json => subscriber.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok(filter)
}

/// Everything that a filter and the caps let through.
fn filtered(
    filter: &str,
) -> Result<
    (
        impl Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
        Filter,
    ),
    ParseError,
> {
    let (layer, handle) = reload::Layer::new(filter.parse::<EnvFilter>()?);
    let subscriber = tracing_subscriber::registry()
        .with(layer)
        .with(filter_fn(is_safe));
    Ok((subscriber, Filter(handle)))
}

/// A directive of the filter can't cap: a more specific one of the user's would win over it.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    let is_among = |starts: &[&str]| -> bool {
        starts
            .iter()
            .any(|start| metadata.target().starts_with(start))
    };
    let is_silenced = is_among(&SILENCED) || metadata.target() == UNREAD_ANSWERS;
    !is_silenced && (*metadata.level() <= Level::INFO || !is_among(&CAPPED))
}

/// What others said, as far as it may stand in a log line: at most so many bytes, and nothing that could begin another
/// line, or show it otherwise than it is written. Costs nothing where there is nothing to change.
#[must_use]
pub fn line(text: &str, limit: usize) -> Cow<'_, str> {
    let text = &text[..text.floor_char_boundary(limit)];
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_invisible(c) { '?' } else { c };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Controls, separators of lines, and what changes the direction of writing.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// What one thread of a test logs.
#[cfg(test)]
pub(crate) mod captured {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::subscriber::{DefaultGuard, set_default};
    use tracing_subscriber::fmt::MakeWriter;

    /// What was logged while the guard of [`Log::start`] lived; clones share it.
    #[derive(Clone, Default)]
    pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        /// From now on, on this thread.
        pub(crate) fn start(&self) -> DefaultGuard {
            let subscriber = tracing_subscriber::fmt().with_writer(self.clone());
            set_default(subscriber.with_ansi(false).finish())
        }

        /// How often a text was logged.
        pub(crate) fn count(&self, text: &str) -> usize {
            let log = self.0.lock().expect("a lock");
            String::from_utf8_lossy(&log).matches(text).count()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("a lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::{enabled, subscriber::with_default};

    use super::*;

    #[test]
    fn what_others_said_stays_on_its_line_and_is_not_long() {
        assert!(matches!(line("web-7f", 6), Cow::Borrowed("web-7f")));
        assert!(matches!(line("web-7f", 3), Cow::Borrowed("web")));
        assert_eq!(line("h\u{e9}", 2), "h");
        let hostile = "a\nb\r\u{2028}c\u{202e}d\u{1b}[2Je\u{85}\u{e9}";
        assert_eq!(line(hostile, 100), "a?b??c?d?[2Je?\u{e9}");
    }

    #[test]
    fn no_filter_brings_what_libraries_write_of_requests_and_replies() {
        for filter in [
            "trace",
            "aws_smithy_runtime=trace",
            "aws_smithy_runtime::client::orchestrator=trace",
            "info,aws_sdk_ecr=debug,hyper_util::client=trace",
        ] {
            let (subscriber, _) = filtered(filter).expect("a filter");
            with_default(subscriber, || holds_its_caps(filter));
        }
    }

    #[test]
    fn a_filter_that_is_set_later_is_in_force_at_once_and_keeps_the_caps() {
        let (subscriber, filter) = filtered("warn").expect("a filter");
        with_default(subscriber, || {
            let debugs = || enabled!(target: "ecr_injector::admission::handler", Level::DEBUG);
            assert!(!debugs());
            filter.set("ecr_injector=debug").expect("a filter");
            assert!(debugs());
            assert!(matches!(filter.set("a=b=c"), Err(FilterError::Parse(_))));
            assert!(debugs(), "the last one stays");
            for text in ["trace", "aws_smithy_runtime=trace", "info,hyper_util=trace"] {
                filter.set(text).expect("a filter");
                holds_its_caps(text);
            }
            filter.set("off").expect("a filter");
            assert!(!enabled!(target: "ecr_injector::admission::handler", Level::ERROR));
        });
        assert!(matches!(filter.set("info"), Err(FilterError::Gone)));
    }

    /// Under the subscriber of this thread.
    fn holds_its_caps(filter: &str) {
        for level in [Level::DEBUG, Level::TRACE] {
            let is_written = match level {
                Level::DEBUG => [
                    enabled!(target: "aws_smithy_runtime::client::orchestrator", Level::DEBUG),
                    enabled!(target: "aws_sdk_ecr::operation", Level::DEBUG),
                    enabled!(target: "hyper_util::client::legacy", Level::DEBUG),
                ],
                _ => [
                    enabled!(target: "aws_smithy_runtime::client::orchestrator", Level::TRACE),
                    enabled!(target: "aws_sdk_ecr::operation", Level::TRACE),
                    enabled!(target: "hyper_util::client::legacy", Level::TRACE),
                ],
            };
            assert_eq!(is_written, [false; 3], "{filter} at {level}");
        }
        for is_written in [
            enabled!(target: "aws_config::profile::credentials", Level::ERROR),
            enabled!(target: "aws_config::profile::credentials", Level::WARN),
            enabled!(target: "aws_config::web_identity_token", Level::WARN),
            enabled!(target: "kube_client::client", Level::ERROR),
        ] {
            assert!(!is_written, "{filter}: what nobody may read");
        }
        let ours = enabled!(target: "ecr_injector::admission::handler", Level::TRACE);
        assert_eq!(ours, filter == "trace", "{filter}");
        assert!(
            enabled!(target: "aws_sdk_ecr::operation", Level::WARN)
                || filter.starts_with("aws_smithy")
        );
    }
}
