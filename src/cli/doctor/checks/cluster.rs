//! Checks of the API server. Pure.
#![allow(clippy::unnecessary_wraps, reason = "every check has one type")]

use jiff::SignedDuration;

use crate::cli::doctor::{
    finding::{Finding, Reading},
    installation::Installation,
};

/// The oldest supported minor version of Kubernetes 1, as docs/reference/versions.md has it.
pub(super) const OLDEST: u32 = 30;
/// The newest tested minor version of Kubernetes 1.
pub(super) const NEWEST: u32 = 37;
/// The most that two clocks may differ: tokens last 12 h, but AWS refuses calls 5 min off.
const MAX_DIFFERENCE: SignedDuration = SignedDuration::from_mins(1);

pub(super) fn reachable(it: &Installation) -> Result<Finding, Finding> {
    match &it.server {
        Reading::Failed(error) => Ok(Finding::fail(
            format!("{}: {error}", it.server_name),
            "choose the cluster by --kubeconfig or --context; kubectl get namespaces must work \
             from here",
        )),
        // An API server that refuses has answered.
        _ => Ok(Finding::ok(it.server_name.clone())),
    }
}

pub(super) fn version(it: &Installation) -> Result<Finding, Finding> {
    let version = it.server.get()?;
    let mut parts = version.trim_start_matches('v').split('.');
    let mut number = || -> Option<u32> {
        let digits: String = parts
            .next()?
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().ok()
    };
    let (Some(major), Some(minor)) = (number(), number()) else {
        return Ok(Finding::warn(
            format!("the API server's version can't be read: {version:?}"),
            "see kubectl version",
        ));
    };
    let fix = "docs/reference/versions.md has what is supported and tested";
    Ok(if (major, minor) < (1, OLDEST) {
        Finding::fail(format!("{version} is older than 1.{OLDEST}"), fix)
    } else if (major, minor) > (1, NEWEST) {
        Finding::warn(
            format!("{version} is newer than what was tested, 1.{NEWEST}"),
            fix,
        )
    } else {
        Finding::ok(version.clone())
    })
}

pub(super) fn clock(it: &Installation) -> Result<Finding, Finding> {
    let Some(ahead) = it.clock_ahead else {
        return Ok(Finding::skipped("the API server's response has no Date"));
    };
    let seconds = ahead.abs().as_secs();
    Ok(if ahead.abs() > MAX_DIFFERENCE {
        Finding::warn(
            format!("the API server's clock and that of this machine differ by {seconds} s"),
            "set both by NTP: certificates and the calls to AWS depend on the time",
        )
    } else {
        Finding::ok(format!("{seconds} s apart"))
    })
}
