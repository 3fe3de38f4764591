//! The start of the small binary: the name of its file says which way in is called, or else its
//! first argument does.

use std::{
    ffi::{OsStr, OsString},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::{self, ExitCode},
    sync::{Mutex, PoisonError},
};

use super::{Answer, docker_helper, kubelet_plugin};

/// The name in messages of a call that names no way in.
const PROGRAM: &str = "ecr-credentials";
/// The exit code of wrong usage.
const USAGE_CODE: u8 = 2;
/// The exit code of a panic, as Rust has it.
const PANIC_CODE: u8 = 101;
const USAGE: &str = "copy or link this program as ecr-credential-provider, the kubelet's credential plugin, or as \
                     docker-credential-ecr-injector, docker's credential helper, or give credential-provider or \
                     docker-credential as the first argument";

/// The ways in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayIn {
    /// The kubelet's credential plugin.
    CredentialProvider,
    /// The docker credential helper.
    DockerCredential,
}

/// The place of the last panic.
static PANICKED_AT: Mutex<String> = Mutex::new(String::new());

/// Runs the way in that is called, and returns its exit code. `panics_abort` says whether nothing
/// unwinds. A panic ends in one line and
/// exit code 101, whatever `RUST_BACKTRACE` says: others show or log that line.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>, panics_abort: bool) -> ExitCode {
    // A panic that the SDK's caller catches is an error with a text of its own, and its message may
    // quote keys. So nothing is printed here.
    panic::set_hook(Box::new(move |panicked| {
        let place = panicked.location().map(ToString::to_string);
        let mut last = PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
        *last = place.unwrap_or_default();
        if panics_abort {
            drop(last);
            let _ = bug().write();
            process::exit(PANIC_CODE.into());
        }
    }));
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let answer = panic::catch_unwind(AssertUnwindSafe(|| answer(&arguments)));
    answer.unwrap_or_else(|_| bug()).write()
}

fn bug() -> Answer {
    let place = PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    let note = format!("this is a bug: panicked at {place}; please report this line");
    Answer::failure(PROGRAM, PANIC_CODE, note)
}

fn answer(arguments: &[OsString]) -> Answer {
    let (name, rest) = match arguments {
        [] => (OsStr::new(PROGRAM), arguments),
        [name, rest @ ..] => (name.as_os_str(), rest),
    };
    match way_in(name, rest) {
        Some((WayIn::CredentialProvider, arguments)) => kubelet_plugin::run(arguments),
        Some((WayIn::DockerCredential, arguments)) => docker_helper::run(arguments),
        None => Answer::failure(PROGRAM, USAGE_CODE, USAGE),
    }
}

/// Returns the way in, and its arguments.
fn way_in<'a>(program: &OsStr, arguments: &'a [OsString]) -> Option<(WayIn, &'a [OsString])> {
    let name = Path::new(program).file_name()?.to_str()?;
    if let Some(way_in) = WayIn::of_file(name) {
        return Some((way_in, arguments));
    }
    let (first, rest) = arguments.split_first()?;
    Some((WayIn::of_argument(first.to_str()?)?, rest))
}

impl WayIn {
    /// Returns the way in that a file is named for; a suffix such as a version may follow.
    fn of_file(name: &str) -> Option<Self> {
        if name.starts_with(kubelet_plugin::PROGRAM) {
            return Some(Self::CredentialProvider);
        }
        name.starts_with("docker-credential-")
            .then_some(Self::DockerCredential)
    }

    /// Returns the way in of a first argument, which is the subcommand of `ecr-injector`.
    fn of_argument(name: &str) -> Option<Self> {
        match name {
            "credential-provider" => Some(Self::CredentialProvider),
            "docker-credential" => Some(Self::DockerCredential),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_the_file_says_which_way_in_is_called() {
        let plugin = Some(WayIn::CredentialProvider);
        let docker = Some(WayIn::DockerCredential);
        for (name, arguments, expected) in [
            ("ecr-credential-provider", &["get-credentials"][..], plugin),
            ("/usr/local/bin/ecr-credential-provider-v1.2", &[], plugin),
            ("./ecr-credential-provider.exe", &[], plugin),
            (
                "/opt/ecr-credentials",
                &["credential-provider", "x"],
                plugin,
            ),
            ("docker-credential-ecr-injector", &["get"], docker),
            ("/usr/bin/docker-credential-ecr-login", &[], docker),
            ("ecr-credentials", &["docker-credential", "get"], docker),
            ("docker-credential", &["get"], None),
            ("ecr-credentials", &[], None),
            ("ecr-credentials", &["get-credentials"], None),
            ("/ecr-credential-provider/other", &[], None),
            ("", &[], None),
        ] {
            let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
            let found = way_in(OsStr::new(name), &arguments);
            assert_eq!(found.map(|found| found.0), expected, "{name}");
        }
    }
}
