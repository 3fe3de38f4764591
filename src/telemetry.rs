//! Logs: to standard output, as text for people or JSON for machines; beside a command's own output, to standard error.

use std::{
    env,
    io::{IsTerminal as _, stderr, stdout},
};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::{ParseError, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::LookupSpan,
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

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line for people; coloured on a terminal.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging. `filter` is in the form of `RUST_LOG`.
pub fn start(format: Format, filter: &str) -> Result<(), ParseError> {
    let registry = filtered(filter)?;
    // Where a subscriber is set already (a test's), its owner's choice stands.
    let _ = match format {
        Format::Text => registry
            .with(fmt::layer().with_ansi(stdout().is_terminal()))
            .try_init(),
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true))
            .try_init(),
    };
    Ok(())
}

/// Starts logging as text to a writer that ends on standard error: standard output is the command's own.
pub fn start_beside_output<W>(filter: &str, writer: W) -> Result<(), ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wants_none = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = fmt::layer()
        .with_writer(writer)
        .with_ansi(stderr().is_terminal() && !wants_none);
    // As above.
    let _ = filtered(filter)?.with(layer).try_init();
    Ok(())
}

fn filtered(
    filter: &str,
) -> Result<impl Subscriber + for<'a> LookupSpan<'a> + Send + Sync, ParseError> {
    let filter = filter.parse::<EnvFilter>()?;
    Ok(tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(is_safe)))
}

/// A directive of the filter can't cap: a more specific one of the user's would win over it.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    let is_among = |starts: &[&str]| -> bool {
        starts
            .iter()
            .any(|start| metadata.target().starts_with(start))
    };
    !is_among(&SILENCED) && (*metadata.level() <= Level::INFO || !is_among(&CAPPED))
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
    fn no_filter_brings_what_libraries_write_of_requests_and_replies() {
        for filter in [
            "trace",
            "aws_smithy_runtime=trace",
            "aws_smithy_runtime::client::orchestrator=trace",
            "info,aws_sdk_ecr=debug,hyper_util::client=trace",
        ] {
            let subscriber = tracing_subscriber::registry()
                .with(filter.parse::<EnvFilter>().expect("a filter"))
                .with(filter_fn(is_safe));
            with_default(subscriber, || {
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
                ] {
                    assert!(!is_written, "{filter}: errors of credential sources");
                }
                let ours = enabled!(target: "ecr_injector::webhook", Level::TRACE);
                assert_eq!(ours, filter == "trace", "{filter}");
                assert!(
                    enabled!(target: "aws_sdk_ecr::operation", Level::WARN)
                        || filter.starts_with("aws_smithy")
                );
            });
        }
    }
}
