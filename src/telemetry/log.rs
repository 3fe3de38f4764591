//! Logs: to standard output, as text for people or JSON for machines; to standard error for
//! commands whose own output is on standard output.

pub mod direct;
mod format;
pub mod metrics;
pub mod writer;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    env,
    ffi::OsStr,
    io::{self, IsTerminal as _, stderr, stdout},
    panic,
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

pub use self::format::Format;
use self::{direct::DirectLog, writer::LogWriter};

/// Crates, by the start of their names, that log whole requests and replies, tokens included, at
/// levels finer than INFO. Those levels are never written, whatever the filter asks for.
const CAPPED: [&str; 2] = ["aws_", "hyper"];

/// Targets under which the SDK logs the errors of sources of credentials with all their causes,
/// which may hold the output of a credential process, kube's watcher those of a watch, as Rust
/// prints them, and kube's client those of a request, with a URL that may hold a password. None of
/// those lines is written; ecr-injector logs the failure itself.
const SILENCED: [&str; 4] = [
    "aws_config::profile::credentials",
    "aws_config::web_identity_token",
    "kube_client::client::builder",
    "kube_runtime::watcher",
];

/// Target under which kube's client logs the whole of a response that the client can't parse,
/// Secrets among them. The lines of its other targets, such as those about a CA bundle, hold no
/// secret.
const UNPARSED_RESPONSES: &str = "kube_client::client";

/// The longest message of a panic.
const MAX_PANIC_BYTES: usize = 600;

/// The log filter, which can change while the process runs; clones share the filter.
///
/// A line that the filter drops stays cheap: each call site caches whether its line is written,
/// until the filter changes. A line that is written takes a read lock, which costs nothing beside
/// the line.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

/// The reason why a filter is not in use.
#[derive(Debug, Error)]
pub enum FilterError {
    /// The text is not a filter. The last filter stays in use.
    #[error("not a filter in the form of RUST_LOG")]
    Parse(#[from] ParseError),
    /// No subscriber uses the filter: another subscriber was installed first.
    #[error("logs are not written by this process's own rules")]
    Gone,
}

impl Filter {
    /// Replaces the filter, in the form of `RUST_LOG`. Lines that are never written stay unwritten,
    /// whatever the filter asks for.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let parsed = filter.parse::<EnvFilter>()?;
        self.0.reload(parsed).map_err(|_| FilterError::Gone)?;
        let filter = &*line(filter, filter.len());
        tracing::info!(filter, "log filter changed");
        Ok(())
    }
}

/// Starts logging to standard output, through `writer`. `filter` is in the form of `RUST_LOG`.
pub fn start(format: Format, filter: &str, writer: LogWriter) -> Result<Filter, ParseError> {
    let is_coloured = format == Format::Text && wants_colours(stdout().is_terminal());
    let (filter, is_installed) = install(format, filter, writer.clone(), is_coloured)?;
    if is_installed && !is_coloured {
        DirectLog::new(format, writer).install();
    }
    Ok(filter)
}

/// Logs panics, instead of writing them to standard error, where a full pipe would hold up the
/// thread.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        let message = &*line(message, MAX_PANIC_BYTES);
        let location = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => backtrace.to_string(),
            _ => String::new(),
        };
        tracing::error!(location, backtrace, error = message, "a thread panicked");
    }));
}

/// Starts no log at all, so that nothing that others log is written.
pub fn start_silent() -> Result<Filter, ParseError> {
    Ok(install(Format::Text, "off", io::sink, false)?.0)
}

/// Starts logging as text to a writer that ends on standard error: standard output is the
/// command's own.
pub fn start_beside_output<W>(filter: &str, writer: W) -> Result<Filter, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let is_coloured = wants_colours(stderr().is_terminal());
    Ok(install(Format::Text, filter, writer, is_coloured)?.0)
}

/// Returns whether lines have colours: on a terminal, unless `NO_COLOR` is set.
fn wants_colours(is_terminal: bool) -> bool {
    is_coloured(is_terminal, env::var_os("NO_COLOR").as_deref())
}

/// Returns whether lines have colours, given the variable `NO_COLOR`: an empty one is as good as
/// none.
fn is_coloured(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Installs a subscriber for the whole process. Returns its filter, and whether it is in use: one that
/// is set already, such as that of a test, stays.
fn install<W>(
    format: Format,
    filter: &str,
    writer: W,
    is_coloured: bool,
) -> Result<(Filter, bool), ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (subscriber, filter) = filtered(filter)?;
    let layer = fmt::layer().with_writer(writer);
    let installed = match format {
        Format::Text => subscriber.with(layer.with_ansi(is_coloured)).try_init(),
        Format::Json => subscriber.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok((filter, installed.is_ok()))
}

/// Returns a subscriber for the lines that the filter and the caps let through.
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

/// Returns whether a line may be written. A directive of the filter can't do that: a more specific
/// directive of the user would override it.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    let is_among = |starts: &[&str]| -> bool {
        starts
            .iter()
            .any(|start| metadata.target().starts_with(start))
    };
    let is_silenced = is_among(&SILENCED) || metadata.target() == UNPARSED_RESPONSES;
    !is_silenced && (*metadata.level() <= Level::INFO || !is_among(&CAPPED))
}

/// Returns text of others in a form that is safe in a log line: at most `limit` bytes, and no
/// character that could begin another line or change how the line is displayed. Does not allocate
/// if nothing has to change.
#[must_use]
pub fn line(text: &str, limit: usize) -> Cow<'_, str> {
    let text = &text[..text.floor_char_boundary(limit)];
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_invisible(c) { '?' } else { c };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Returns whether a character is a control, a line separator or a mark that changes the direction
/// of writing.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Captures the log of one thread of a test.
#[cfg(test)]
pub(crate) mod captured {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::subscriber::{DefaultGuard, set_default};
    use tracing_subscriber::fmt::MakeWriter;

    /// The lines that were logged while the guard of [`Log::start`] lived; clones share them.
    #[derive(Clone, Default)]
    pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        /// Starts to capture on this thread.
        pub(crate) fn start(&self) -> DefaultGuard {
            let subscriber = tracing_subscriber::fmt().with_writer(self.clone());
            set_default(subscriber.with_ansi(false).finish())
        }

        /// Returns how often a text was logged.
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
    fn foreign_text_stays_on_its_line_and_is_bounded() {
        assert!(matches!(line("web-7f", 6), Cow::Borrowed("web-7f")));
        assert!(matches!(line("web-7f", 3), Cow::Borrowed("web")));
        assert_eq!(line("h\u{e9}", 2), "h");
        let hostile = "a\nb\r\u{2028}c\u{202e}d\u{1b}[2Je\u{85}\u{e9}";
        assert_eq!(line(hostile, 100), "a?b??c?d?[2Je?\u{e9}");
    }

    #[test]
    fn no_filter_shows_requests_and_replies_of_libraries() {
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
    fn replaced_filter_applies_at_once_and_keeps_the_caps() {
        let (subscriber, filter) = filtered("warn").expect("a filter");
        with_default(subscriber, || {
            let debugs = || enabled!(target: "ecr_injector::admission::handler", Level::DEBUG);
            assert!(!debugs());
            filter.set("ecr_injector=debug").expect("a filter");
            assert!(debugs());
            assert!(matches!(filter.set("a=b=c"), Err(FilterError::Parse(_))));
            assert!(debugs(), "the last filter stays");
            for text in ["trace", "aws_smithy_runtime=trace", "info,hyper_util=trace"] {
                filter.set(text).expect("a filter");
                holds_its_caps(text);
            }
            filter.set("off").expect("a filter");
            assert!(!enabled!(target: "ecr_injector::admission::handler", Level::ERROR));
        });
        assert!(matches!(filter.set("info"), Err(FilterError::Gone)));
    }

    /// Checks the caps under the subscriber of this thread.
    #[test]
    fn colours_are_for_terminals_and_no_color_switches_them_off() {
        for (is_terminal, no_color, expected) in [
            (true, None, true),
            (true, Some(""), true),
            (true, Some("1"), false),
            (true, Some("0"), false),
            (false, None, false),
        ] {
            assert_eq!(is_coloured(is_terminal, no_color.map(OsStr::new)), expected);
        }
    }

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
            enabled!(target: "kube_runtime::watcher", Level::WARN),
        ] {
            assert!(!is_written, "{filter}: a silenced target");
        }
        let ours = enabled!(target: "ecr_injector::admission::handler", Level::TRACE);
        assert_eq!(ours, filter == "trace", "{filter}");
        assert!(
            enabled!(target: "aws_sdk_ecr::operation", Level::WARN)
                || filter.starts_with("aws_smithy")
        );
    }
}
