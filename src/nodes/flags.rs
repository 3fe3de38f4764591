//! The flags and variables of the kubelet's credential plugin. Reading a dozen flags by hand costs
//! no time at each image pull.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use thiserror::Error;
use tracing::level_filters::LevelFilter;

use crate::{
    identity::machine::ROLE_ANNOTATIONS,
    registry::{AliasError, Aliases, Registry},
};

/// The variable of the role of ServiceAccounts without such an annotation.
pub(super) const DEFAULT_ROLE: &str = "AWS_ECR_ROLE_ARN";
const CACHE_FOLDER: &str = "/run/ecr-injector/tokens";
const TIMEOUT: Duration = Duration::from_secs(25);
/// The kubelet kills a plugin after a minute.
const MAX_TIMEOUT: Duration = Duration::from_secs(55);
/// The seconds that a session of a role may last.
const SESSIONS: std::ops::RangeInclusive<u64> = 900..=43_200;
/// The flags of klog, which a kubelet's configuration may have for the provider that this one
/// replaces: without a value, and with one.
const KLOG_SWITCHES: [&str; 7] = [
    "logtostderr",
    "alsologtostderr",
    "one_output",
    "add_dir_header",
    "skip_headers",
    "skip_log_headers",
    "legacy_stderr_threshold_behavior",
];
const KLOG_VALUES: [&str; 8] = [
    "v",
    "vmodule",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "log_backtrace_at",
    "stderrthreshold",
    "log-flush-frequency",
];

/// The help of the program.
pub const HELP: &str = "\
The kubelet's exec credential plugin for Amazon ECR. The kubelet starts it for an image and sends a
CredentialProviderRequest on standard input; nobody has to run it by hand.

Options:
      --alias HOST=REGISTRY    Also answer for HOST, with the token of that registry; may be repeated
      --public                 Ask for a token for the public gallery (public.ecr.aws) too
      --config FILE            Configuration of ecr-injector: aliases, publicEcr, allow, identities,
                               awsEndpoints [env: ECR_INJECTOR_CONFIG]
      --role-annotation KEY    Annotation of the ServiceAccount that names its role, instead of the
                               usual ones; may be repeated, the first that is there counts
      --without-role WHAT      For ServiceAccounts without a role: deny (default), or ambient
      --session-duration TIME  Duration of a role's session, 15m to 12h
      --on-outage WHAT         If AWS can't be asked for a ServiceAccount: fail (default), or
                               start-cached
      --cache-dir DIR          Folder of the tokens, or none [default: /run/ecr-injector/tokens]
      --timeout TIME           Time for all of it, at most 55s [default: 25s]
      --aws-ca-bundle FILE     CA bundle for AWS instead of the system's [env: AWS_CA_BUNDLE]
      --log LEVEL              Log to standard error: error, warn, info or debug
      --try IMAGE              Play the kubelet for an image, and show no password
      --help, --version

The variable AWS_ECR_ROLE_ARN names the role of ServiceAccounts without an annotation. Credentials,
region, endpoints and proxies are those of the AWS SDK (docs/reference/aws-credentials.md).

Exit codes:
  0  a response is on standard output
  1  there is none; standard error has the reason
  2  wrong usage
";

/// The settings of a run.
#[derive(Debug)]
pub(super) struct Flags {
    /// Aliases by flags, and whether the public gallery gets a token.
    pub(super) aliases: Vec<(String, Registry)>,
    pub(super) public: bool,
    pub(super) config: Option<PathBuf>,
    pub(super) role_annotations: Vec<String>,
    /// The text of [`DEFAULT_ROLE`].
    pub(super) default_role: Option<String>,
    pub(super) without_role: WithoutRole,
    pub(super) session_duration: Option<u32>,
    pub(super) on_outage: OnOutage,
    pub(super) cache: Option<PathBuf>,
    pub(super) timeout: Duration,
    pub(super) ca_bundle: Option<PathBuf>,
    pub(super) log: LevelFilter,
    /// The image for which the kubelet is played.
    pub(super) image: Option<String>,
}

/// The handling of a ServiceAccount without a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutRole {
    /// It gets nothing.
    Deny,
    /// It gets a token of the node's own identity.
    Ambient,
}

/// The answer if AWS can't be asked for a ServiceAccount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnOutage {
    /// An error: the kubelet then pulls anonymously.
    Fail,
    /// A credential that may be out of date, by which the kubelet starts an image that it has.
    StartCached,
}

/// The first of these that is wanted.
#[derive(Debug)]
pub(super) enum Wanted {
    Help,
    Version,
    Run(Box<Flags>),
}

/// Wrong usage.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum UsageError {
    #[error("unknown flag {0:?}; --help lists the flags")]
    Unknown(String),
    #[error("{0} needs a value; --help lists the flags")]
    NoValue(&'static str),
    #[error("{flag} {value:?}: expected {expected}")]
    Value {
        flag: &'static str,
        value: String,
        expected: String,
    },
    #[error("an argument is not UTF-8")]
    NotText,
}

impl Flags {
    /// Reads the flags; arguments that are none are ignored, as some installations pass one.
    pub(super) fn parse(
        arguments: &[OsString],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Wanted, UsageError> {
        let texts = arguments.iter().map(|argument| argument.to_str());
        let texts: Option<Vec<&str>> = texts.collect();
        let texts = texts.ok_or(UsageError::NotText)?;
        let has = |names: [&str; 2]| texts.iter().any(|text| names.contains(text));
        if has(["--help", "-h"]) {
            return Ok(Wanted::Help);
        }
        if has(["--version", "-V"]) {
            return Ok(Wanted::Version);
        }
        let path = |name: &str| variable(name).filter(|path| !path.is_empty());
        let mut flags = Self {
            aliases: Vec::new(),
            public: false,
            config: path("ECR_INJECTOR_CONFIG").map(Into::into),
            role_annotations: Vec::new(),
            default_role: variable(DEFAULT_ROLE).map(|text| text.to_string_lossy().into_owned()),
            without_role: WithoutRole::Deny,
            session_duration: None,
            on_outage: OnOutage::Fail,
            cache: Some(CACHE_FOLDER.into()),
            timeout: TIMEOUT,
            ca_bundle: path("AWS_CA_BUNDLE").map(Into::into),
            log: LevelFilter::OFF,
            image: None,
        };
        let mut rest = texts.into_iter();
        while let Some(text) = rest.next() {
            if let Some((name, value)) = split(text) {
                flags.set(name, value, &mut rest)?;
            }
        }
        if flags.role_annotations.is_empty() {
            flags.role_annotations = ROLE_ANNOTATIONS.map(str::to_owned).into();
        }
        Ok(Wanted::Run(Box::new(flags)))
    }

    fn set<'a>(
        &mut self,
        name: &'a str,
        value: Option<&'a str>,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), UsageError> {
        let mut of = |flag: &'static str| {
            let value = value.or_else(|| rest.next());
            value
                .ok_or(UsageError::NoValue(flag))
                .map(|value| (flag, value))
        };
        match name {
            "alias" => {
                let given = of("--alias")?;
                let alias = alias(given.1).map_err(|error| wrong(given, &error))?;
                self.aliases.push(alias);
            }
            "public" => self.public = true,
            "config" => self.config = Some(of("--config")?.1.into()),
            "role-annotation" => self
                .role_annotations
                .push(of("--role-annotation")?.1.into()),
            "without-role" => {
                let known = [
                    ("deny", WithoutRole::Deny),
                    ("ambient", WithoutRole::Ambient),
                ];
                self.without_role = one_of(of("--without-role")?, &known)?;
            }
            "session-duration" => {
                let given = of("--session-duration")?;
                let seconds = duration(given.1).map(|duration| duration.as_secs());
                let seconds = seconds.filter(|seconds| SESSIONS.contains(seconds));
                let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
                let expected = "a duration from 15m to 12h";
                self.session_duration = Some(seconds.ok_or_else(|| wrong(given, expected))?);
            }
            "on-outage" => {
                let known = [
                    ("fail", OnOutage::Fail),
                    ("start-cached", OnOutage::StartCached),
                ];
                self.on_outage = one_of(of("--on-outage")?, &known)?;
            }
            "cache-dir" => {
                let folder = of("--cache-dir")?.1;
                self.cache = (folder != "none").then(|| folder.into());
            }
            "timeout" => {
                let given = of("--timeout")?;
                let limits = Duration::from_secs(1)..=MAX_TIMEOUT;
                let timeout = duration(given.1).filter(|timeout| limits.contains(timeout));
                let expected = "a duration from 1s to 55s";
                self.timeout = timeout.ok_or_else(|| wrong(given, expected))?;
            }
            "aws-ca-bundle" => self.ca_bundle = Some(of("--aws-ca-bundle")?.1.into()),
            "log" => {
                let known = [
                    ("error", LevelFilter::ERROR),
                    ("warn", LevelFilter::WARN),
                    ("info", LevelFilter::INFO),
                    ("debug", LevelFilter::DEBUG),
                ];
                self.log = one_of(of("--log")?, &known)?;
            }
            "try" => self.image = Some(of("--try")?.1.to_owned()),
            name if KLOG_SWITCHES.contains(&name) => {}
            name if KLOG_VALUES.contains(&name) => drop(of("a flag of klog")?),
            _ => {
                let unknown = name.chars().take(80).collect::<String>();
                return Err(UsageError::Unknown(format!("--{unknown}")));
            }
        }
        Ok(())
    }
}

/// Returns the name and the value of a flag; `None` for another argument.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    Some(match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    })
    .filter(|(name, _)| !name.is_empty())
}

fn wrong((flag, value): (&'static str, &str), expected: &str) -> UsageError {
    UsageError::Value {
        flag,
        value: value.chars().take(200).collect(),
        expected: expected.to_owned(),
    }
}

fn one_of<T: Copy>(given: (&'static str, &str), known: &[(&str, T)]) -> Result<T, UsageError> {
    let found = known.iter().find(|(name, _)| *name == given.1);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        wrong(given, &names.join(" or "))
    })
}

fn duration(text: &str) -> Option<Duration> {
    let duration: jiff::SignedDuration = text.parse().ok()?;
    duration.try_into().ok()
}

/// Parses `HOST=REGISTRY`.
pub(super) fn alias(text: &str) -> Result<(String, Registry), String> {
    let expected =
        "HOST=REGISTRY, such as mirror.example:5000=123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let (host, registry) = text.split_once('=').ok_or(expected)?;
    let registry = Registry::parse(registry).ok_or(expected)?;
    let alias = (host.to_owned(), registry);
    let checked: Result<Aliases, AliasError> = Aliases::new([alias.clone()]);
    checked.map_err(|error| error.to_string())?;
    Ok(alias)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Box<Flags>, UsageError> {
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        let variable = |name: &str| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| value.into())
        };
        match Flags::parse(&arguments, variable)? {
            Wanted::Run(flags) => Ok(flags),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_of_klog_and_other_arguments_are_ignored() {
        let arguments = [
            "get-credentials",
            "-v",
            "4",
            "--v=4",
            "--v",
            "2",
            "--logtostderr",
            "--logtostderr=false",
            "--public",
            "-",
            "--",
        ];
        assert!(parse(&arguments, &[]).expect("flags").public);
    }

    #[test]
    fn values_are_taken_with_and_without_an_equals_sign() {
        let registry = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
        let alias = format!("mirror.example:5000={registry}");
        let flags = parse(
            &[
                "--alias",
                &alias,
                "--timeout=2s",
                "--session-duration",
                "15m",
                "--cache-dir=none",
            ],
            &[("ECR_INJECTOR_CONFIG", ""), ("AWS_CA_BUNDLE", "/ca.pem")],
        );
        let flags = flags.expect("flags");
        assert_eq!(flags.aliases[0].0, "mirror.example:5000");
        assert_eq!(flags.aliases[0].1.host().as_str(), registry);
        assert_eq!(flags.timeout, Duration::from_secs(2));
        assert_eq!(flags.session_duration, Some(900));
        assert_eq!((flags.cache, flags.config), (None, None));
        assert_eq!(flags.ca_bundle, Some("/ca.pem".into()));
        assert_eq!(flags.role_annotations, ROLE_ANNOTATIONS);
    }

    #[test]
    fn typos_and_wrong_values_are_errors_that_name_the_flag() {
        for (arguments, expected) in [
            (&["--alais", "x=y"][..], "--alais"),
            (&["-x"], "--x"),
            (&["--alias"], "--alias needs a value"),
            (&["--alias", "x"], "expected HOST=REGISTRY"),
            (&["--alias", "x=docker.io"], "expected HOST=REGISTRY"),
            (&["--without-role", "node"], "deny or ambient"),
            (&["--on-outage=always"], "fail or start-cached"),
            (&["--timeout", "0s"], "1s to 55s"),
            (&["--timeout", "2m"], "1s to 55s"),
            (&["--session-duration", "5m"], "15m to 12h"),
            (&["--log", "loud"], "error or warn"),
        ] {
            let error = parse(arguments, &[]).expect_err("wrong").to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
