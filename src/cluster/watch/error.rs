//! The text of a watch's error.

use kube::{core::Status, runtime::watcher};

use crate::cluster::unreachable::explained;

/// Returns what failed, and each of its causes once. kube's own text repeats them, and has the whole
/// response of the API server as Rust prints it.
pub(super) fn text(error: &watcher::Error) -> String {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    let (attempt, source) = match error {
        InitialListFailed(source) => ("listing", source),
        WatchStartFailed(source) => ("beginning to watch", source),
        WatchFailed(source) => ("watching", source),
        WatchError(status) => return format!("watching: {}", rejection(status)),
        NoResourceVersion => return error.to_string(),
    };
    match source {
        kube::Error::Api(status) => format!("{attempt}: {}", rejection(status)),
        other => format!("{attempt}: {}", explained(other)),
    }
}

fn rejection(status: &Status) -> String {
    let message = match &*status.message {
        "" => &status.reason,
        message => message,
    };
    format!("the API server responded {} {message}", status.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden() -> Box<Status> {
        let message = "namespaces is forbidden: User \"x\" cannot list resource \"namespaces\"";
        Box::new(Status::failure(message, "Forbidden").with_code(403))
    }

    #[test]
    fn cause_is_told_once_and_not_as_rust_prints_it() {
        let message = forbidden().message;
        for (error, start) in [
            (
                watcher::Error::InitialListFailed(kube::Error::Api(forbidden())),
                "listing: ",
            ),
            (
                watcher::Error::WatchStartFailed(kube::Error::Api(forbidden())),
                "beginning to watch: ",
            ),
            (watcher::Error::WatchError(forbidden()), "watching: "),
        ] {
            let text = text(&error);
            assert_eq!(
                text,
                format!("{start}the API server responded 403 {message}")
            );
            assert_ne!(text, error.to_string(), "kube's own text");
        }
        let empty = Status::failure("", "Expired").with_code(410);
        let text = text(&watcher::Error::WatchError(Box::new(empty)));
        assert_eq!(text, "watching: the API server responded 410 Expired");
    }

    #[test]
    fn error_of_the_connection_has_each_cause_once() {
        let refused = std::io::Error::other("connection refused");
        let source = kube::Error::Service(Box::new(refused));
        let text = text(&watcher::Error::WatchFailed(source));
        assert_eq!(text, "watching: ServiceError: connection refused");
    }
}
