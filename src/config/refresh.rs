//! The fields about refreshing pull secrets: `refresh`, `prewarm`, `revoke`, `discover`,
//! `optOutRemove`.

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    error::{FieldError, FieldErrors},
    patterns,
    value::{DAYS_AND_UNITS, plain_seconds, seconds},
};
use crate::{
    registry::{Aliases, Host, Registry},
    token::{SessionCap, rules::Revocation},
};

const DEFAULT_WRITES_PER_SECOND: u32 = 20;
/// An API server has other work to do; a higher rate would be a mistake.
const MAX_WRITES_PER_SECOND: u32 = 1000;
/// Longer than the time between two releases of most applications.
const DEFAULT_FORGET_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Demand is recorded at most once a day, so a shorter time would forget registries in use.
const MIN_FORGET_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Ten years: dates up to then can be computed with; for longer there is `never`.
const MAX_FORGET_AFTER: SignedDuration = SignedDuration::from_hours(3650 * 24);
/// A token with a shorter lifetime would be renewed all the time.
const MIN_SESSION_CAP_SECONDS: u32 = 900;

/// The settings by which the leader refreshes pull secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The hosts that every opted-in namespace's pull secret has before a Pod needs them.
    pub prewarm: Vec<Host>,
    /// Maximum number of pull secrets that the leader writes per second.
    pub writes_per_second: u32,
    /// Whether the pull secret of an opted-out namespace is deleted once all its credentials have
    /// expired.
    pub removes: bool,
    /// The time from a host's last admission to its removal; `None`: never.
    pub forget_after: Option<SignedDuration>,
    /// The time at which credentials end that the rules no longer allow.
    pub revocation: Revocation,
    /// The source of registries that no admission reported.
    pub discovery: Discovery,
    /// Whether the leader notices Pending Pods that lack the reference.
    pub notice_missed: bool,
}

/// The source from which the leader discovers registries that no admission reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Discovery {
    /// None: only admissions report registries.
    #[default]
    None,
    /// In the cluster's Pending Pods.
    Pods,
}

impl Discovery {
    /// Returns the value as the file has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pods => "pods",
        }
    }
}

impl Refresh {
    /// Whether the leader lists Pods, for which it needs a permission.
    #[must_use]
    pub fn lists_pods(&self) -> bool {
        self.notice_missed || self.discovery == Discovery::Pods
    }
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            prewarm: Vec::new(),
            writes_per_second: DEFAULT_WRITES_PER_SECOND,
            removes: false,
            forget_after: Some(DEFAULT_FORGET_AFTER),
            revocation: Revocation::default(),
            discovery: Discovery::default(),
            notice_missed: false,
        }
    }
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileRefresh {
    /// Cap of a token's lifetime: auto, the end of the session of the role that minted it; session,
    /// also of ambient credentials; none; or a duration such as 6h.
    #[schemars(extend("default" = "auto", "pattern" = patterns::SESSION_CAP, "minLength" = patterns::MIN_DURATION))]
    session_cap: Option<String>,
    /// Maximum number of pull secrets that the leader writes per second.
    #[schemars(extend("default" = DEFAULT_WRITES_PER_SECOND, "minimum" = 1, "maximum" = MAX_WRITES_PER_SECOND))]
    writes_per_second: Option<u32>,
    /// How long after a Pod last needed a registry it is removed from the pull secret, unless it is
    /// in prewarm: 1d to 3650d, or never.
    #[schemars(extend("default" = "30d", "pattern" = patterns::FORGET_AFTER, "minLength" = patterns::MIN_DURATION))]
    forget_after: Option<String>,
    /// Whether the leader lists pending Pods, and publishes an Event about each that has an image of
    /// ECR and lacks the pull secret. The `ClusterRole` needs a permission for it; the chart grants it
    /// with this value.
    #[schemars(extend("default" = false))]
    notice_missed: Option<bool>,
}

#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "camelCase")]
pub(super) enum FileRevocation {
    /// The credentials stay until they expire, and are not renewed.
    OnExpiry,
    /// The credentials are removed from the pull secrets at once, and image pulls that need them
    /// fail.
    Immediately,
}

#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileDiscovery {
    /// Only admissions report what Pods need.
    None,
    /// The leader also lists pending Pods, for which the `ClusterRole` needs a permission; the chart
    /// grants it with this value.
    Pods,
}

/// The file's five fields about refreshing.
pub(super) struct RefreshFields {
    pub(super) prewarm: Option<Vec<String>>,
    pub(super) refresh: Option<FileRefresh>,
    pub(super) revoke: Option<FileRevocation>,
    pub(super) discover: Option<FileDiscovery>,
    pub(super) opt_out_remove: Option<bool>,
}

impl RefreshFields {
    /// Checks all five, given two other fields: the aliases, and the maximum number of registries
    /// per pull secret.
    pub(super) fn check(
        self,
        aliases: &Aliases,
        registries_per_secret: usize,
        errors: &mut FieldErrors,
    ) -> (Refresh, SessionCap) {
        let default = Refresh::default();
        let fields = self.refresh.unwrap_or_default();
        let session_cap = errors.record(session_cap(fields.session_cap.as_deref()));
        let rate = fields.writes_per_second.map(writes_per_second);
        let rate = rate.and_then(|checked| errors.record(checked));
        let prewarm = prewarm(
            &self.prewarm.unwrap_or_default(),
            aliases,
            registries_per_secret,
            errors,
        );
        let forget_after = fields.forget_after.as_deref().map(forget_after);
        let forget_after = forget_after.and_then(|checked| errors.record(checked));
        let refresh = Refresh {
            prewarm,
            writes_per_second: rate.unwrap_or(default.writes_per_second),
            removes: self.opt_out_remove.unwrap_or(default.removes),
            forget_after: forget_after.unwrap_or(default.forget_after),
            revocation: match self.revoke {
                None | Some(FileRevocation::OnExpiry) => Revocation::OnExpiry,
                Some(FileRevocation::Immediately) => Revocation::Immediately,
            },
            discovery: match self.discover {
                None | Some(FileDiscovery::None) => Discovery::None,
                Some(FileDiscovery::Pods) => Discovery::Pods,
            },
            notice_missed: fields.notice_missed.unwrap_or(default.notice_missed),
        };
        (refresh, session_cap.unwrap_or_default())
    }
}

fn prewarm(
    texts: &[String],
    aliases: &Aliases,
    max_hosts: usize,
    errors: &mut FieldErrors,
) -> Vec<Host> {
    if texts.len() > max_hosts {
        let message = format!(
            "expected at most {max_hosts} hosts (limits.registriesPerSecret), got {}",
            texts.len()
        );
        errors.push("prewarm", message);
        return Vec::new();
    }
    let mut hosts = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        let message = match aliases.resolve(text) {
            Some((host, _)) if hosts.contains(&host) => format!("{text:?} is named twice"),
            Some((host, _)) => {
                hosts.push(host);
                continue;
            }
            None if Registry::parse_public(text).is_some() => {
                format!("{text:?} needs publicEcr: true")
            }
            None => format!("expected the host of an ECR registry or of an alias, got {text:?}"),
        };
        errors.push(format!("prewarm[{at}]"), message);
    }
    hosts
}

fn writes_per_second(value: u32) -> Result<u32, FieldError> {
    if (1..=MAX_WRITES_PER_SECOND).contains(&value) {
        return Ok(value);
    }
    let message = format!("expected 1 to {MAX_WRITES_PER_SECOND}, got {value}");
    Err(FieldError::new("refresh.writesPerSecond", message))
}

/// Parses a duration that may have days, such as `30d` or `720h`; `never` is `None`.
fn forget_after(text: &str) -> Result<Option<SignedDuration>, FieldError> {
    let field = "refresh.forgetAfter";
    if text == "never" {
        return Ok(None);
    }
    let Some(seconds) = plain_seconds(text, &DAYS_AND_UNITS) else {
        let message = format!("expected a duration such as 30d or 720h, or never, got {text:?}");
        return Err(FieldError::new(field, message));
    };
    let duration = SignedDuration::from_secs(seconds);
    if duration < MIN_FORGET_AFTER {
        return Err(FieldError::new(
            field,
            format!("expected at least 1d, got {text:?}"),
        ));
    }
    if duration > MAX_FORGET_AFTER {
        let message = format!("expected at most 3650d, or never, got {text:?}");
        return Err(FieldError::new(field, message));
    }
    Ok(Some(duration))
}

fn session_cap(text: Option<&str>) -> Result<SessionCap, FieldError> {
    let field = "refresh.sessionCap";
    match text {
        None | Some("auto") => Ok(SessionCap::Auto),
        Some("session") => Ok(SessionCap::Session),
        Some("none") => Ok(SessionCap::Off),
        Some(text) => {
            let cap = seconds(field, text).map_err(|error| {
                FieldError::new(
                    error.field,
                    format!("{}; or auto, session or none", error.message),
                )
            })?;
            if cap < MIN_SESSION_CAP_SECONDS {
                return Err(FieldError::new(
                    field,
                    format!("expected at least 15m, got {text:?}"),
                ));
            }
            Ok(SessionCap::After(cap))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn refresh(text: &str) -> Refresh {
        let config = Config::parse_fields(text, "config.yaml");
        config
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .refresh
    }

    fn error(text: &str) -> String {
        let error = Config::parse_fields(text, "config.yaml").expect_err(text);
        let error = error.to_string();
        error
            .strip_prefix("config.yaml: ")
            .expect("the file's name")
            .to_owned()
    }

    #[test]
    fn empty_file_keeps_pull_secrets_by_the_defaults() {
        for text in [
            "",
            "refresh: {}",
            "prewarm: []",
            "refresh: {forgetAfter: null}\nrevoke:\ndiscover: null",
            "revoke: onExpiry\ndiscover: none",
        ] {
            let expected = Refresh {
                prewarm: Vec::new(),
                writes_per_second: 20,
                removes: false,
                forget_after: Some(SignedDuration::from_hours(720)),
                revocation: Revocation::OnExpiry,
                discovery: Discovery::None,
                notice_missed: false,
            };
            assert_eq!(refresh(text), expected, "{text}");
        }
    }

    #[test]
    fn every_value_of_the_file_is_applied() {
        let text = "refresh: {writesPerSecond: 1000, sessionCap: 1h, forgetAfter: 2d, noticeMissed: true}\nrevoke: immediately\n\
            discover: pods\noptOutRemove: true";
        let expected = Refresh {
            prewarm: Vec::new(),
            writes_per_second: 1000,
            removes: true,
            forget_after: Some(SignedDuration::from_hours(48)),
            revocation: Revocation::Immediately,
            discovery: Discovery::Pods,
            notice_missed: true,
        };
        assert_eq!(refresh(text), expected);
    }

    #[test]
    fn ecr_hosts_and_aliases_are_prewarmed_in_the_files_order() {
        let text = format!(
            "aliases: [{{host: images.example.com, registry: {ECR}}}]\nprewarm: [images.example.com, {ECR}]"
        );
        let hosts = refresh(&text).prewarm;
        let hosts: Vec<&str> = hosts.iter().map(Host::as_str).collect();
        assert_eq!(hosts, ["images.example.com", ECR]);
    }

    #[test]
    fn ecr_public_is_prewarmed_only_with_public_ecr() {
        let text = "prewarm: [public.ecr.aws]";
        assert_eq!(
            error(text),
            "prewarm[0]: \"public.ecr.aws\" needs publicEcr: true"
        );
        let hosts = refresh(&format!("publicEcr: true\n{text}")).prewarm;
        assert_eq!(hosts[0].as_str(), "public.ecr.aws");
    }

    #[test]
    fn invalid_prewarm_host_is_reported_by_its_index() {
        let other = ECR.replace("eu", "us");
        let text = format!("prewarm: [{ECR}, {other}, docker.io]");
        assert_eq!(
            error(&text),
            "prewarm[2]: expected the host of an ECR registry or of an alias, got \"docker.io\""
        );
        let text = format!("prewarm: [{ECR}, {ECR}]");
        assert_eq!(
            error(&text),
            format!("prewarm[1]: \"{ECR}\" is named twice")
        );
        let text = format!("prewarm: [\"https://{ECR}\"]");
        assert!(error(&text).starts_with("prewarm[0]: expected the host"));
    }

    #[test]
    fn prewarm_is_limited_to_the_registries_per_secret() {
        let limits = "limits: {registriesPerPod: 1, registriesPerSecret: 1}";
        assert_eq!(
            refresh(&format!("{limits}\nprewarm: [{ECR}]"))
                .prewarm
                .len(),
            1
        );
        let two = format!("{limits}\nprewarm: [{ECR}, {}]", ECR.replace("eu", "us"));
        assert_eq!(
            error(&two),
            "prewarm: expected at most 1 hosts (limits.registriesPerSecret), got 2"
        );
    }

    #[test]
    fn writes_per_second_are_one_to_a_thousand() {
        for (value, expected) in [
            ("0", "expected 1 to 1000, got 0"),
            ("1001", "expected 1 to 1000, got 1001"),
            ("-1", "expected a whole number from 0 on, got -1"),
            ("1.5", "expected a whole number from 0 on, got 1.5"),
            ("many", "expected a whole number from 0 on, got a text"),
        ] {
            let error = error(&format!("refresh: {{writesPerSecond: {value}}}"));
            let expected = format!("refresh.writesPerSecond: {expected}");
            assert!(error.starts_with(&expected), "{value}: {error}");
        }
        assert_eq!(
            refresh("refresh: {writesPerSecond: 1}").writes_per_second,
            1
        );
    }

    #[test]
    fn forget_after_is_a_day_to_ten_years_or_never() {
        for (value, hours) in [
            ("1d", 24),
            ("24h", 24),
            ("1440m", 24),
            ("1d12h", 36),
            ("28d", 672),
            ("720h", 720),
            ("3650d", 87_600),
        ] {
            let forget_after = refresh(&format!("refresh: {{forgetAfter: {value}}}")).forget_after;
            let expected = SignedDuration::from_hours(hours);
            assert_eq!(forget_after, Some(expected), "{value}");
        }
        assert_eq!(refresh("refresh: {forgetAfter: never}").forget_after, None);
        let form = "expected a duration such as 30d or 720h, or never, got";
        for (value, expected) in [
            ("23h", "expected at least 1d, got \"23h\"".to_owned()),
            ("0s", "expected at least 1d, got \"0s\"".to_owned()),
            ("-30d", format!("{form} \"-30d\"")),
            ("4w", format!("{form} \"4w\"")),
            ("30 days", format!("{form} \"30 days\"")),
            ("P7D", format!("{form} \"P7D\"")),
            (
                "3651d",
                "expected at most 3650d, or never, got \"3651d\"".to_owned(),
            ),
            ("1mo", format!("{form} \"1mo\"")),
            ("1y", format!("{form} \"1y\"")),
            ("99999999999d", format!("{form} \"99999999999d\"")),
            ("soon", format!("{form} \"soon\"")),
            ("'30'", format!("{form} \"30\"")),
            ("''", format!("{form} \"\"")),
        ] {
            let error = error(&format!("refresh: {{forgetAfter: {value}}}"));
            assert_eq!(error, format!("refresh.forgetAfter: {expected}"), "{value}");
        }
        let number = error("refresh: {forgetAfter: 30}");
        assert!(
            number.starts_with("refresh.forgetAfter: expected a text in quotes"),
            "{number}"
        );
    }

    #[test]
    fn revoke_and_discover_take_their_own_words_only() {
        for (text, start) in [
            (
                "revoke: on_expiry",
                "revoke: expected onExpiry or immediately, got",
            ),
            ("revoke: true", "revoke: "),
            ("discover: nodes", "discover: expected none or pods, got"),
            ("discover: [pods]", "discover: "),
        ] {
            let error = error(text);
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }

    #[test]
    fn opt_out_remove_is_yes_or_no() {
        assert!(refresh("optOutRemove: true").removes);
        assert!(!refresh("optOutRemove: false").removes);
        assert!(error("optOutRemove: later").starts_with("optOutRemove: expected true or false"));
    }

    #[test]
    fn opt_out_grace_is_refused_with_the_reason_why_it_is_gone() {
        let error = error("optOutGrace: 24h\nsecretNam: x");
        let (gone, other) = error.split_once("; ").expect("both fields");
        assert!(
            gone.starts_with("optOutGrace: unknown field: removed"),
            "{gone}"
        );
        assert!(gone.contains("8 hours"), "{gone}");
        assert!(other.starts_with("secretNam: unknown field `secretNam`"));
    }
}
