//! Checks of every write, and of every Pod that is reported ready.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ecr_injector::{cluster::namespace::Namespace, pull_secret::is_public, registry::Host};
use jiff::Timestamp;

use super::{
    super::server::{Request, Truth, lock},
    Violation, World,
    process::{Asked, settings, team},
};

impl World<'_> {
    /// I2: a Pod that is reported ready has all its hosts in the Secret, unless others took them
    /// and the replica couldn't know.
    pub(super) fn check_ready(
        &self,
        hosts: &BTreeSet<Host>,
        knew: Option<u64>,
    ) -> Result<(), Violation> {
        let truth = lock(&self.server).truth(&team());
        let now = self.now();
        let is_excused = self
            .damage
            .is_some_and(|at| knew.is_none_or(|knew| knew < at));
        let hosts = hosts.difference(&self.revoked);
        // Public images pull without.
        for host in hosts.filter(|host| !is_public(host)) {
            if !is_excused && !truth.has_good(host, now) {
                let text = shown(&truth, now);
                return Err(Violation(format!(
                    "I2: a Pod was told that {host} is ready; stored: {text}"
                )));
            }
        }
        Ok(())
    }

    /// I4: a process that knows of an opt-out, and had finished what it had begun before, asks for no write. What it asks for
    /// is its own fault, whoever would refuse it.
    pub(super) fn check_new_calls(&mut self) -> Result<(), Violation> {
        let mut gate = self.gate.lock().unwrap();
        for call in gate.calls.iter_mut().filter(|call| !call.is_checked) {
            call.is_checked = true;
            let is_apply = matches!(call.request, Asked::Api(Request::Apply(_)));
            // A replica asks the API server itself, and remembers the answer for some seconds of the machine's time.
            let is_out = call.namespace != team()
                || call.process == self.scenario.leader
                    && self.processes[call.process].is_out_for_good;
            if is_apply && is_out {
                return Err(Violation(format!(
                    "I4: process {} writes to {}, which is not opted in",
                    call.process, call.namespace
                )));
            }
        }
        Ok(())
    }

    /// I1, I5 and I6: what a write of ours may do.
    pub(super) fn check_write(
        &mut self,
        process: usize,
        namespace: &Namespace,
        before: &Truth,
        after: &Truth,
    ) -> Result<(), Violation> {
        let now = self.now();
        let had = before.state.iter().flat_map(|state| state.hosts.keys());
        for host in had.filter(|host| before.has_good(host, now)) {
            let (is_kept, is_revoked) = (
                after.has_good(host, now),
                self.scenario.revokes && !self.permits(process, host, true),
            );
            if !is_kept && is_revoked {
                self.revoked.insert(host.clone());
            } else if !is_kept {
                return Err(Violation(format!(
                    "I1: {host} loses a good credential; before: {}; after: {}",
                    shown(before, now),
                    shown(after, now)
                )));
            }
        }
        let Some(state) = &after.state else {
            if before.state.is_some() {
                return Err(Violation("I1: what is stored is not proven".to_owned()));
            }
            return Ok(());
        };
        for (host, entry) in state.hosts.iter() {
            let password = after.passwords.get(host.as_str());
            let Some(credential) = entry.credential else {
                if password.is_some() {
                    return Err(Violation(format!("I6: {host} has data and no credential")));
                }
                continue;
            };
            let Some(password) = password else {
                return Err(Violation(format!(
                    "I2: {host} has a credential and no data"
                )));
            };
            let is_old = before.passwords.get(host.as_str()) == Some(password);
            let text = String::from_utf8(STANDARD.decode(password).unwrap_or_default());
            let is_its = text.is_ok_and(|text| {
                let expected = format!("AWS:{} ", credential.identity);
                text.starts_with(&expected)
                    && (host.as_str().contains(region_of(&text)) || region_of(&text) == "us-east-1")
            });
            if !is_its {
                return Err(Violation(format!("I6: {host} has a credential of another")));
            }
            if !is_old && !self.permits(process, host, false) {
                return Err(Violation(format!("I6: {host} gets what no rule allows")));
            }
        }
        let stray = after.passwords.keys().find(|host| {
            let host = Host::parse(host);
            !host.is_some_and(|host| state.hosts.contains_key(&host))
        });
        if let Some(host) = stray {
            return Err(Violation(format!(
                "I6: the data have {host} beside the state"
            )));
        }
        if *namespace == team() && self.wanted.iter().all(|host| after.has_good(host, now)) {
            self.damage = None;
        }
        Ok(())
    }

    /// Whether a process has a configuration that allows a host, or had one.
    pub(super) fn permits(&self, process: usize, host: &Host, is_now: bool) -> bool {
        let last = self.processes[process].config;
        let first = if is_now { last } else { 0 };
        let configs = &self.scenario.configs[first..=last];
        let team = team();
        configs.iter().any(|config| {
            let key = config.rules.key_for(host.as_str(), &team, &settings(&team));
            key.is_some()
        })
    }
}

fn region_of(password: &str) -> &str {
    password.split(' ').nth(1).unwrap_or("none")
}

pub(super) fn shown(truth: &Truth, now: Timestamp) -> String {
    let Some(state) = &truth.state else {
        return "nothing proven".to_owned();
    };
    let hosts: Vec<String> = state
        .hosts
        .iter()
        .map(|(host, _)| {
            let mark = if truth.has_good(host, now) {
                "good"
            } else {
                "none"
            };
            format!("{host}: {mark}")
        })
        .collect();
    format!("[{}]", hosts.join(", "))
}
