//! The part of the file that says how pull secrets are kept: `refresh`, `prewarm`, `optOutGrace`, `optOutRemove`.

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Wrong, Wrongs, schema, seconds, wrong};
use crate::{
    registry::{Aliases, Host, Registry},
    token::SessionCap,
};

const DEFAULT_WRITES_PER_SECOND: u32 = 20;
/// What an API server takes beside all its other work; more would be a mistake.
const MAX_WRITES_PER_SECOND: u32 = 1000;
const DEFAULT_GRACE: SignedDuration = SignedDuration::from_hours(24);
/// Past it nobody remembers that the namespace was opted out.
const MAX_GRACE_DAYS: u32 = 30;
/// A token whose life is shorter than this would be renewed all the time.
const MIN_SESSION_CAP_SECONDS: u32 = 900;

/// How the leader keeps pull secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// The hosts that each opted-in namespace's pull secret has before any Pod asks.
    pub prewarm: Vec<Host>,
    /// How many pull secrets the leader writes in a second at most.
    pub writes_per_second: u32,
    /// How long a pull secret is kept fresh after its namespace was opted out.
    pub grace: SignedDuration,
    /// Whether it is removed then; else it stays, marked as retired.
    pub removes: bool,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            prewarm: Vec::new(),
            writes_per_second: DEFAULT_WRITES_PER_SECOND,
            grace: DEFAULT_GRACE,
            removes: false,
        }
    }
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileRefresh {
    /// What a token's life is cut to: auto, the end of the session of the role that minted it; none; or a duration such as 6h.
    #[schemars(extend("default" = "auto", "pattern" = schema::SESSION_CAP))]
    session_cap: Option<String>,
    /// How many pull secrets the leader writes in a second at most.
    #[schemars(extend("default" = DEFAULT_WRITES_PER_SECOND, "minimum" = 1, "maximum" = MAX_WRITES_PER_SECOND))]
    writes_per_second: Option<u32>,
}

/// A duration as text. Zero needs no unit, and then YAML takes it for a number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a duration such as 90m or 24h")]
pub(super) enum FileDuration {
    Number(i64),
    Text(String),
}

/// What the file says about it, in four places.
pub(super) struct File {
    pub(super) prewarm: Option<Vec<String>>,
    pub(super) refresh: Option<FileRefresh>,
    pub(super) grace: Option<FileDuration>,
    pub(super) removes: Option<bool>,
}

impl File {
    /// Checks all four, given what other fields say: the aliases, and how many registries a pull secret can have.
    pub(super) fn check(
        self,
        aliases: &Aliases,
        registries_per_secret: usize,
        wrongs: &mut Wrongs,
    ) -> (Refresh, SessionCap) {
        let default = Refresh::default();
        let of_refresh = self.refresh.unwrap_or_default();
        let session_cap = wrongs.take(session_cap(of_refresh.session_cap.as_deref()));
        let pace = of_refresh.writes_per_second.map(writes_per_second);
        let pace = pace.and_then(|checked| wrongs.take(checked));
        let prewarm = prewarm(
            &self.prewarm.unwrap_or_default(),
            aliases,
            registries_per_secret,
            wrongs,
        );
        let grace = self.grace.map(grace);
        let grace = grace.and_then(|checked| wrongs.take(checked));
        let refresh = Refresh {
            prewarm,
            writes_per_second: pace.unwrap_or(default.writes_per_second),
            grace: grace.unwrap_or(default.grace),
            removes: self.removes.unwrap_or(default.removes),
        };
        (refresh, session_cap.unwrap_or_default())
    }
}

fn prewarm(texts: &[String], aliases: &Aliases, most: usize, wrongs: &mut Wrongs) -> Vec<Host> {
    if texts.len() > most {
        let message = format!(
            "expected at most {most} hosts (limits.registriesPerSecret), got {}",
            texts.len()
        );
        wrongs.0.push(wrong("prewarm", message));
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
        wrongs.0.push(wrong(format!("prewarm[{at}]"), message));
    }
    hosts
}

fn writes_per_second(value: u32) -> Result<u32, Wrong> {
    if (1..=MAX_WRITES_PER_SECOND).contains(&value) {
        return Ok(value);
    }
    let message = format!("expected 1 to {MAX_WRITES_PER_SECOND}, got {value}");
    Err(wrong("refresh.writesPerSecond", message))
}

fn grace(duration: FileDuration) -> Result<SignedDuration, Wrong> {
    let field = "optOutGrace";
    let text = match duration {
        FileDuration::Number(0) => "0s".to_owned(),
        FileDuration::Number(number) => number.to_string(),
        FileDuration::Text(text) => text,
    };
    let grace = seconds(field, &text)?;
    if grace > MAX_GRACE_DAYS * 24 * 60 * 60 {
        let message = format!("expected at most {MAX_GRACE_DAYS} days, got {text:?}");
        return Err(wrong(field, message));
    }
    Ok(SignedDuration::from_secs(grace.into()))
}

fn session_cap(text: Option<&str>) -> Result<SessionCap, Wrong> {
    let field = "refresh.sessionCap";
    match text {
        None | Some("auto") => Ok(SessionCap::Session),
        Some("none") => Ok(SessionCap::Off),
        Some(text) => {
            let cap = seconds(field, text)
                .map_err(|it| wrong(it.field, format!("{}; or auto, or none", it.message)))?;
            if cap < MIN_SESSION_CAP_SECONDS {
                return Err(wrong(field, format!("expected at least 15m, got {text:?}")));
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
        let config = Config::parse(text, "config.yaml");
        config
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .refresh
    }

    fn error(text: &str) -> String {
        let error = Config::parse(text, "config.yaml").expect_err(text);
        let error = error.to_string();
        error
            .strip_prefix("config.yaml: ")
            .expect("the file's name")
            .to_owned()
    }

    #[test]
    fn without_a_word_pull_secrets_stay_fresh_for_a_day_and_are_never_removed() {
        for text in ["", "refresh: {}", "prewarm: []"] {
            let expected = Refresh {
                prewarm: Vec::new(),
                writes_per_second: 20,
                grace: SignedDuration::from_hours(24),
                removes: false,
            };
            assert_eq!(refresh(text), expected, "{text}");
        }
    }

    #[test]
    fn what_the_file_says_is_taken() {
        let text = "refresh: {writesPerSecond: 1000, sessionCap: 1h}\noptOutGrace: 90m\noptOutRemove: true";
        let expected = Refresh {
            prewarm: Vec::new(),
            writes_per_second: 1000,
            grace: SignedDuration::from_mins(90),
            removes: true,
        };
        assert_eq!(refresh(text), expected);
    }

    #[test]
    fn ecr_hosts_and_aliases_are_warmed_ahead_in_the_order_of_the_file() {
        let text = format!(
            "aliases: [{{host: images.example.com, registry: {ECR}}}]\nprewarm: [images.example.com, {ECR}]"
        );
        let hosts = refresh(&text).prewarm;
        let hosts: Vec<&str> = hosts.iter().map(Host::as_str).collect();
        assert_eq!(hosts, ["images.example.com", ECR]);
    }

    #[test]
    fn the_public_gallery_is_warmed_ahead_only_where_it_is_served() {
        let text = "prewarm: [public.ecr.aws]";
        assert_eq!(
            error(text),
            "prewarm[0]: \"public.ecr.aws\" needs publicEcr: true"
        );
        let hosts = refresh(&format!("publicEcr: true\n{text}")).prewarm;
        assert_eq!(hosts[0].as_str(), "public.ecr.aws");
    }

    #[test]
    fn a_host_that_cant_be_warmed_ahead_is_named_by_its_place() {
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
    fn no_more_hosts_are_warmed_ahead_than_a_pull_secret_can_have() {
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
            ("-1", "invalid value: integer `-1`"),
            ("1.5", "invalid type: floating point `1.5`"),
            ("many", "invalid type: string \"many\""),
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
    fn the_time_of_grace_is_none_to_thirty_days() {
        for (value, hours) in [("0", 0), ("0s", 0), ("36h", 36), ("720h", 720)] {
            let grace = refresh(&format!("optOutGrace: {value}")).grace;
            assert_eq!(grace, SignedDuration::from_hours(hours), "{value}");
        }
        for (value, expected) in [
            ("721h", "expected at most 30 days, got \"721h\""),
            ("-1h", "expected a duration such as 90m or 24h, got \"-1h\""),
            (
                "soon",
                "expected a duration such as 90m or 24h, got \"soon\"",
            ),
            ("24", "expected a duration such as 90m or 24h, got \"24\""),
            ("[1h]", "expected a duration such as 90m or 24h"),
        ] {
            let error = error(&format!("optOutGrace: {value}"));
            assert_eq!(error, format!("optOutGrace: {expected}"), "{value}");
        }
    }

    #[test]
    fn removal_after_the_time_of_grace_is_yes_or_no() {
        assert!(refresh("optOutRemove: true").removes);
        assert!(!refresh("optOutRemove: false").removes);
        assert!(error("optOutRemove: later").starts_with("optOutRemove: invalid type"));
    }
}
