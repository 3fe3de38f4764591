//! The log line of an admission, which is also the attributes of its span.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use tracing::Level;

use super::{outcome::Outcome, pod::Pod, review::Request};
use crate::{
    registry::Host,
    telemetry::{
        log::{
            direct::{self, DirectLog},
            line,
        },
        otel::Span,
    },
};

/// The maximum length of a name from the request, in bytes: no object has a longer one, but a
/// client may send one.
const MAX_LOGGED_BYTES: usize = 253;
/// The maximum length of an error, in bytes.
const MAX_LOGGED_ERROR_BYTES: usize = 600;
/// The maximum number of registries; the line has the number of further ones.
const MAX_LOGGED_HOSTS: usize = 16;

const MESSAGE: &str = "admission";
const MESSAGE_UNREADY: &str = "admission without a ready pull secret";

/// Logs an admission and sets the attributes of its span, unless neither is recorded.
pub(super) fn record(request: &Request<'_>, outcome: &Outcome, elapsed: Duration, span: &mut Span) {
    let is_logged = if outcome.error.is_none() && request.unreadable.is_none() {
        tracing::enabled!(tracing::Level::INFO)
    } else {
        tracing::enabled!(tracing::Level::WARN)
    };
    if is_logged || span.is_recording() {
        let line = AccessLogLine::new(request, outcome, elapsed);
        if is_logged {
            line.log();
        }
        line.set_on(span);
    }
}

/// The log line of an admission. The line has nothing of the Pod's spec and no credential, and each
/// text of the request is cut and escaped, so that no client can fill a disk or forge a line.
struct AccessLogLine<'a> {
    uid: Cow<'a, str>,
    namespace: Cow<'a, str>,
    pod: Cow<'a, str>,
    owner_kind: Cow<'a, str>,
    owner: Cow<'a, str>,
    operation: &'static str,
    dry_run: bool,
    decision: &'static str,
    reason: &'static str,
    registries: String,
    token_source: &'static str,
    secret_outcome: &'static str,
    elapsed_ms: f64,
    error: Option<String>,
}

impl<'a> AccessLogLine<'a> {
    fn new(request: &'a Request<'_>, outcome: &Outcome, elapsed: Duration) -> Self {
        let name = |name: &'a str| line(name, MAX_LOGGED_BYTES);
        let pod = request.object.as_ref();
        let (owner_kind, owner) = pod.map_or(("", ""), Pod::owner);
        let error = outcome.error.as_ref().map(ToString::to_string);
        let unreadable = || request.unreadable.as_ref().map(ToString::to_string);
        let micros = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
        Self {
            uid: name(request.uid()),
            namespace: name(&request.namespace.0),
            pod: name(pod.map_or("", |pod| pod.name())),
            owner_kind: name(owner_kind),
            owner: name(owner),
            operation: request.operation.as_str(),
            dry_run: request.dry_run,
            decision: outcome.verdict.as_str(),
            reason: outcome.reason,
            registries: joined(&outcome.hosts),
            token_source: outcome.tokens.as_str(),
            secret_outcome: outcome.secret.as_str(),
            elapsed_ms: f64::from(micros) / 1000.0,
            error: error
                .or_else(unreadable)
                .map(|error| line(&error, MAX_LOGGED_ERROR_BYTES).into_owned()),
        }
    }

    /// Sets the fields as attributes of a span.
    fn set_on(self, span: &mut Span) {
        if !span.is_recording() {
            return;
        }
        for (key, value) in [
            ("uid", self.uid),
            ("namespace", self.namespace),
            ("pod", self.pod),
            ("owner_kind", self.owner_kind),
            ("owner", self.owner),
            ("operation", self.operation.into()),
            ("decision", self.decision.into()),
            ("reason", self.reason.into()),
            ("registries", self.registries.into()),
            ("token_source", self.token_source.into()),
            ("secret_outcome", self.secret_outcome.into()),
        ] {
            span.set(key, value.into_owned());
        }
        span.set("dry_run", self.dry_run);
        span.set("elapsed_ms", self.elapsed_ms);
        if let Some(error) = self.error {
            span.fail(error);
        }
    }

    /// Logs the line. A macro, because the two events share all fields but the error, and differ in
    /// level and message.
    fn log(&self) {
        match direct::log() {
            Some(log) => self.log_to(log),
            None => self.log_by_tracing(),
        }
    }

    fn log_to(&self, log: &DirectLog) {
        let (level, message) = match &self.error {
            None => (Level::INFO, MESSAGE),
            Some(_) => (Level::WARN, MESSAGE_UNREADY),
        };
        let mut line = log
            .line(level, module_path!(), message)
            .field("uid", &*self.uid)
            .field("namespace", &*self.namespace)
            .field("pod", &*self.pod)
            .field("owner_kind", &*self.owner_kind)
            .field("owner", &*self.owner)
            .field("operation", self.operation)
            .field("dry_run", self.dry_run)
            .field("decision", self.decision)
            .field("reason", self.reason)
            .field("registries", &*self.registries)
            .field("token_source", self.token_source)
            .field("secret_outcome", self.secret_outcome)
            .field("elapsed_ms", self.elapsed_ms);
        if let Some(error) = &self.error {
            line = line.field("error", &**error);
        }
        line.write();
    }

    fn log_by_tracing(&self) {
        macro_rules! log {
            ($level:ident, $($more:tt)+) => {
                tracing::$level!(
                    uid = &*self.uid,
                    namespace = &*self.namespace,
                    pod = &*self.pod,
                    owner_kind = &*self.owner_kind,
                    owner = &*self.owner,
                    operation = self.operation,
                    dry_run = self.dry_run,
                    decision = self.decision,
                    reason = self.reason,
                    registries = self.registries,
                    token_source = self.token_source,
                    secret_outcome = self.secret_outcome,
                    elapsed_ms = self.elapsed_ms,
                    $($more)+
                )
            };
        }
        match &self.error {
            None => log!(info, "{MESSAGE}"),
            Some(error) => log!(warn, error, "{MESSAGE_UNREADY}"),
        }
    }
}

/// Joins hosts with commas, and counts those beyond [`MAX_LOGGED_HOSTS`].
fn joined(hosts: &[Host]) -> String {
    let shown = &hosts[..hosts.len().min(MAX_LOGGED_HOSTS)];
    let length = shown.iter().map(|host| host.as_str().len() + 1).sum();
    let mut list = String::with_capacity(length);
    for host in shown {
        let comma = if list.is_empty() { "" } else { "," };
        list.push_str(comma);
        list.push_str(host.as_str());
    }
    let more = hosts.len() - shown.len();
    if more > 0 {
        // Writing to a String can't fail.
        let _ = write!(list, ",and {more} more");
    }
    list
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use jiff::Timestamp;
    use tracing::subscriber::with_default;
    use tracing_subscriber::{fmt, layer::SubscriberExt as _};

    use super::*;
    use crate::telemetry::log::{Format, writer::LogWriter};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("a lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        /// Returns the one line with a fixed timestamp.
        fn line(&self) -> String {
            let text = String::from_utf8(self.0.lock().expect("a lock").clone()).expect("UTF-8");
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let start = text.find("20").expect("a year");
            let (before, rest) = text.split_at(start);
            let (timestamp, after) = rest.split_at("2030-01-01T00:00:00.000000Z".len());
            timestamp.parse::<Timestamp>().expect("a timestamp");
            assert!(
                timestamp.ends_with('Z') && timestamp.contains('.'),
                "{timestamp}"
            );
            format!("{before}TIMESTAMP{after}")
        }
    }

    fn log_line(text: &str, error: Option<&str>) -> AccessLogLine<'static> {
        AccessLogLine {
            uid: text.to_owned().into(),
            namespace: "team".into(),
            pod: "web-".into(),
            owner_kind: "".into(),
            owner: "\u{e9}\u{1f600}".into(),
            operation: "CREATE",
            dry_run: false,
            decision: "inject",
            reason: "cached",
            registries: "a.example,b.example".to_owned(),
            token_source: "none",
            secret_outcome: "known",
            elapsed_ms: 0.051,
            error: error.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn line_looks_the_same_with_and_without_tracing() {
        for format in [Format::Text, Format::Json] {
            for (text, error) in [
                ("705ab4f5-6393-11e8-b7cc-42010a800002", None),
                ("a \"b\" \\ 'c' \u{7f}\u{a0}", Some("why: \"x\"")),
                ("", Some("")),
            ] {
                let line = log_line(text, error);
                let (ours, theirs) = (Written::default(), Written::default());
                let writer = LogWriter::start(ours.clone()).expect("a thread");
                line.log_to(&DirectLog::new(format, writer.clone()));
                writer.flush_within(Duration::from_secs(30));
                let output = theirs.clone();
                let layer = fmt::layer().with_writer(move || output.clone());
                let registry = tracing_subscriber::registry();
                match format {
                    Format::Text => with_default(registry.with(layer.with_ansi(false)), || {
                        line.log_by_tracing();
                    }),
                    Format::Json => {
                        let layer = layer.json().flatten_event(true);
                        with_default(registry.with(layer), || line.log_by_tracing());
                    }
                }
                assert_eq!(ours.line(), theirs.line());
            }
        }
    }
}
