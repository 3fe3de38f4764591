//! The result of a check, and the result of a read. Pure.

use std::fmt;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing is wrong; a note for people.
    Ok(String),
    /// Something is likely wrong, or will be.
    Warn(Problem),
    /// Something is wrong.
    Fail(Problem),
    /// The check could not be made, for this reason.
    Skipped(String),
}

/// A problem, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The cause.
    pub(super) cause: String,
    /// The next step.
    pub(super) fix: String,
}

/// The kind of a result, as the output names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Ok,
    Skipped,
    Warn,
    Fail,
}

/// A right of the person who runs the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    /// The verb, such as `list`.
    pub(super) verb: &'static str,
    /// The resource as kubectl names it, such as `deployments.apps`.
    pub(super) resource: String,
    /// The namespace; `None` for all of them, and for objects outside of namespaces.
    pub(super) namespace: Option<String>,
}

/// The result of a read.
#[derive(Debug, Clone)]
pub(super) enum Reading<T> {
    /// The API server returned this.
    Read(T),
    /// The API server refused, for want of a right.
    Forbidden(Right),
    /// The read failed: nothing is known.
    Failed(String),
    /// The read was not made, because something else was missing.
    Unread(String),
}

impl Finding {
    pub(super) fn ok(note: impl Into<String>) -> Self {
        Self::Ok(note.into())
    }

    pub(super) fn warn(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Warn(Problem {
            cause: cause.into(),
            fix: fix.into(),
        })
    }

    pub(super) fn fail(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Fail(Problem {
            cause: cause.into(),
            fix: fix.into(),
        })
    }

    pub(super) fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }

    /// Returns the kind of the result.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Ok(_) => Status::Ok,
            Self::Warn(_) => Status::Warn,
            Self::Fail(_) => Status::Fail,
            Self::Skipped(_) => Status::Skipped,
        }
    }

    /// Returns the note, the cause or the reason.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Ok(text) | Self::Skipped(text) => text,
            Self::Warn(problem) | Self::Fail(problem) => &problem.cause,
        }
    }

    /// Returns the next step, if there is a problem.
    pub(super) fn fix(&self) -> Option<&str> {
        match self {
            Self::Warn(problem) | Self::Fail(problem) => Some(&problem.fix),
            Self::Ok(_) | Self::Skipped(_) => None,
        }
    }
}

impl Status {
    /// Returns the word of JSON and YAML.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Right {
    pub(super) fn new(
        verb: &'static str,
        resource: impl Into<String>,
        namespace: Option<&str>,
    ) -> Self {
        Self {
            verb,
            resource: resource.into(),
            namespace: namespace.map(str::to_owned),
        }
    }

    /// Returns the reason why a check without this right is skipped.
    fn reason(&self) -> String {
        let scope = match &self.namespace {
            Some(namespace) => format!(" -n {namespace}"),
            None => " -A".to_owned(),
        };
        let Self { verb, resource, .. } = self;
        format!("you may not {self}; kubectl auth can-i {verb} {resource}{scope}")
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

impl<T> Reading<T> {
    /// Returns the value, or the finding of a check that needs it: skipped without the right or
    /// without what else was missing, failed where the API server failed.
    pub(super) fn get(&self) -> Result<&T, Finding> {
        match self {
            Self::Read(value) => Ok(value),
            Self::Forbidden(right) => Err(Finding::Skipped(right.reason())),
            Self::Unread(why) => Err(Finding::Skipped(why.clone())),
            Self::Failed(error) => Err(Finding::fail(
                format!("a read failed, so nothing is known: {error}"),
                "see that the API server answers kubectl, and run the command again",
            )),
        }
    }

    /// Returns the value, if there is one.
    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Read(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the reading of something that follows from the value.
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Read(value) => Reading::Read(f(value)),
            Self::Forbidden(right) => Reading::Forbidden(right),
            Self::Failed(error) => Reading::Failed(error),
            Self::Unread(why) => Reading::Unread(why),
        }
    }

    /// Returns why there is no value, for a read that depends on it.
    pub(super) fn unread<U>(&self, of: &str) -> Option<Reading<U>> {
        match self {
            Self::Read(_) => None,
            Self::Forbidden(right) => Some(Reading::Forbidden(right.clone())),
            Self::Failed(_) => Some(Reading::Unread(format!("{of} could not be read"))),
            Self::Unread(why) => Some(Reading::Unread(why.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_right_skips_and_failed_read_fails() {
        let right = Right::new("list", "deployments.apps", Some("ecr-injector"));
        let forbidden = Reading::<()>::Forbidden(right).get().expect_err("none");
        assert_eq!(forbidden.status(), Status::Skipped);
        assert_eq!(
            forbidden.text(),
            "you may not list deployments.apps in namespace ecr-injector; kubectl auth can-i list \
             deployments.apps -n ecr-injector"
        );
        let failed = Reading::<()>::Failed("timeout".to_owned());
        assert_eq!(failed.get().expect_err("none").status(), Status::Fail);
        let unread = Reading::<()>::Unread("no config".to_owned());
        assert_eq!(unread.get().expect_err("none").status(), Status::Skipped);
    }

    #[test]
    fn read_that_depends_on_another_says_which_is_missing() {
        let text = |reading: Reading<()>| {
            let dependent: Reading<u32> = reading.unread("the Deployment")?;
            Some(dependent.get().expect_err("none").text().to_owned())
        };
        let right = Right::new("get", "deployments.apps", None);
        assert_eq!(text(Reading::Read(())), None);
        assert_eq!(
            text(Reading::Forbidden(right.clone())),
            Some(right.reason())
        );
        let failed = Reading::Failed("timeout".to_owned());
        let expected = Some("the Deployment could not be read".to_owned());
        assert_eq!(text(failed), expected);
        let unread = Reading::Unread("no config".to_owned());
        assert_eq!(text(unread), Some("no config".to_owned()));
    }
}
