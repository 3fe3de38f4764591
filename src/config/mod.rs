//! The configuration: the one place that knows the file's format.
//!
//! A file is read as a whole, checked as a whole, and turned into the rules that the other rooms take. Every value has
//! a default, so an empty file serves.

mod identities;
pub mod live;
pub mod metrics;
mod refresh;
pub mod schema;
mod shape;
pub mod watched;

use std::{collections::BTreeSet, fmt, path::Path};

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error;
use tracing_subscriber::EnvFilter;

pub use self::refresh::{Discovery, Refresh};
use self::{
    identities::{FileDefaultIdentity, FileNamespaceRoles, FileRule},
    refresh::{FileDiscovery, FileRefresh, FileRevocation},
};
use crate::{
    cluster::{
        namespace::{self, Namespace},
        namespaces::OptIn,
    },
    identity::Identities,
    registry::{AccountId, Aliases, Region, Registry},
    rules::{Allow, MAX_HOSTS, OnFailure, Rules},
    token::SessionCap,
};

const API_VERSION: &str = "ecr-injector.dev/v1alpha1";
const KIND: &str = "Config";
const DEFAULT_SECRET_NAME: &str = "ecr-pull-secret";
const DEFAULT_OPT_IN_LABEL: &str = "ecr-injector.dev/inject";
const DEFAULT_OPT_IN_VALUE: &str = "enabled";
const DEFAULT_EXCLUDED: [&str; 2] = ["kube-system", "kube-node-lease"];
const DEFAULT_REGISTRIES_PER_POD: usize = 16;
const DEFAULT_REGISTRIES_PER_SECRET: usize = 64;
/// A Secret holds at most 1 MiB, and a host takes about 5 KB of it.
const MAX_REGISTRIES_PER_SECRET: usize = MAX_HOSTS;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What decisions follow.
    pub rules: Rules,
    /// Which namespaces are opted in.
    pub opt_in: OptIn,
    /// What the lives of tokens are cut to.
    pub session_cap: SessionCap,
    /// How pull secrets are kept.
    pub refresh: Refresh,
    /// What is logged, in the form of `RUST_LOG`, if the file says so.
    pub log_filter: Option<String>,
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file couldn't be read.
    #[error("reading {path}: check the path and its permissions")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{path} is not YAML: {message}")]
    Yaml {
        /// The file.
        path: String,
        /// What the parser said.
        message: String,
    },
    /// Fields have wrong values.
    #[error("{path}: {}", listed(.wrong))]
    Fields {
        /// The file.
        path: String,
        /// Each of them, in the order of the checks; there is at least one.
        wrong: Vec<FieldError>,
    },
}

/// A wrong field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as a path from the document's root.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn listed(wrong: &[FieldError]) -> String {
    let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> FieldError {
    FieldError {
        field: field.into(),
        message: message.into(),
    }
}

/// All that is wrong, as it is found: whoever puts a file right wants to hear of everything at once.
#[derive(Debug, Default)]
struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// The value, or what is wrong with it is kept.
    fn take<T>(&mut self, checked: Result<T, FieldError>) -> Option<T> {
        checked.map_err(|wrong| self.0.push(wrong)).ok()
    }
}

/// Configuration of ecr-injector. Every field has a default, so an empty file is valid.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Config")]
struct File {
    /// Version of the format.
    #[schemars(extend("enum" = [API_VERSION, null]))]
    api_version: Option<String>,
    /// Kind of the file.
    #[schemars(extend("enum" = [KIND, null]))]
    kind: Option<String>,
    /// Name of the pull secret in every namespace. RBAC and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_SECRET_NAME, "pattern" = schema::OBJECT_NAME, "maxLength" = 253))]
    secret_name: Option<String>,
    /// Which namespaces are opted in.
    opt_in: Option<FileOptIn>,
    /// What happens to a Pod whose pull secret can't be completed in time.
    #[schemars(extend("default" = "admit"))]
    on_failure: Option<FileOnFailure>,
    /// Which registries get credentials; by default all.
    allow: Option<FileAllow>,
    /// What happens to credentials that the rules (allow, identities, aliases) no longer allow.
    #[schemars(extend("default" = "onExpiry"))]
    revoke: Option<FileRevocation>,
    /// Other host names (a CNAME, a mirror) that stand for ECR registries.
    aliases: Option<Vec<FileAlias>>,
    /// Limits of the number of registries.
    limits: Option<FileLimits>,
    /// Whether public.ecr.aws gets credentials as well.
    #[schemars(extend("default" = false))]
    public_ecr: Option<bool>,
    /// Replaces {cluster} in identities and namespaceRoles.
    #[schemars(extend("pattern" = schema::CLUSTER_NAME))]
    cluster_name: Option<String>,
    /// Rules for which identity mints; the first match wins.
    identities: Option<Vec<FileRule>>,
    /// Roles that namespaces may request with the annotation ecr-injector.dev/role-arn.
    namespace_roles: Option<FileNamespaceRoles>,
    /// Identity that mints if neither a rule nor an annotation matches.
    #[schemars(extend("default" = "ambient"))]
    default_identity: Option<FileDefaultIdentity>,
    /// How pull secrets are refreshed.
    refresh: Option<FileRefresh>,
    /// Hosts of ECR registries or aliases whose credentials every opted-in namespace gets before a
    /// Pod needs them.
    #[schemars(with = "Option<schema::Hosts>")]
    prewarm: Option<Vec<String>>,
    /// Where the leader discovers registries that no admission reported.
    #[schemars(extend("default" = "none"))]
    discover: Option<FileDiscovery>,
    /// Whether the pull secret of an opted-out namespace is deleted once all its credentials have
    /// expired.
    #[schemars(extend("default" = false))]
    opt_out_remove: Option<bool>,
    /// Logging.
    log: Option<FileLog>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileOptIn {
    /// Key of the label. The `MutatingWebhookConfiguration` and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_OPT_IN_LABEL, "pattern" = schema::LABEL_KEY))]
    label: Option<String>,
    /// Value of the label. The `MutatingWebhookConfiguration` and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_OPT_IN_VALUE, "pattern" = schema::LABEL_VALUE))]
    value: Option<String>,
    /// Namespaces that are never opted in, whatever their labels; the namespace of ecr-injector is
    /// always excluded.
    #[schemars(with = "Option<schema::Namespaces>", extend("default" = DEFAULT_EXCLUDED))]
    exclude_namespaces: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum FileOnFailure {
    /// The Pod is admitted with the reference and a warning; its image pulls succeed once the
    /// Secret is complete.
    Admit,
    /// The Pod is denied (503); its controller retries.
    Deny,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileAllow {
    /// AWS accounts, each in quotes; empty: all.
    #[schemars(with = "Option<schema::Accounts>")]
    accounts: Option<Vec<String>>,
    /// AWS regions; empty: all.
    #[schemars(with = "Option<schema::Regions>")]
    regions: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileAlias {
    /// Host in image references.
    #[schemars(extend("pattern" = schema::HOST))]
    host: String,
    /// ECR registry that the host stands for.
    #[schemars(extend("pattern" = schema::HOST))]
    registry: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileLimits {
    /// Maximum number of registries per Pod; further ones get no credentials, and the creator of
    /// the Pod a warning.
    #[schemars(extend("default" = DEFAULT_REGISTRIES_PER_POD, "minimum" = 1, "maximum" = MAX_REGISTRIES_PER_SECRET))]
    registries_per_pod: Option<usize>,
    /// Maximum number of registries per pull secret.
    #[schemars(extend("default" = DEFAULT_REGISTRIES_PER_SECRET, "minimum" = 1, "maximum" = MAX_REGISTRIES_PER_SECRET))]
    registries_per_secret: Option<usize>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileLog {
    /// Log filter in the form of RUST_LOG, such as info or `info,ecr_injector=debug`; by default
    /// that of --log.
    #[schemars(extend("minLength" = 1))]
    filter: Option<String>,
}

impl Config {
    /// The file's if one is named; without one every value has its default.
    pub fn of(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(path)?, &path.display().to_string())
    }

    /// Checks a file's text; `path` is for the errors alone.
    pub fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let value = value_of(text).map_err(|message| ConfigError::Yaml {
            path: path.to_owned(),
            message,
        })?;
        if value.is_null() {
            return Ok(Self::default());
        }
        let checked = shape::file_of(value).and_then(File::check);
        checked.map_err(|wrong| ConfigError::Fields {
            path: path.to_owned(),
            wrong,
        })
    }

    /// Leaves one more namespace alone: the one that we run in.
    #[must_use]
    pub fn excluding(mut self, own: Option<Namespace>) -> Self {
        self.rules.excluded.extend(own);
        self
    }
}

/// What a text says, before anybody asks whether it may. `null` if it says nothing.
fn value_of(text: &str) -> Result<serde_json::Value, String> {
    let says_nothing = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(says_nothing) {
        return Ok(serde_json::Value::Null);
    }
    // Comments that are kept are counted, and the parser gives up at the 33rd line in a row.
    let options = serde_saphyr::options! { emit_comments: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Rules {
                secret_name: DEFAULT_SECRET_NAME.to_owned(),
                excluded: DEFAULT_EXCLUDED
                    .iter()
                    .filter_map(|name| Namespace::parse(name))
                    .collect(),
                aliases: Aliases::default(),
                allow: Allow::default(),
                identities: Identities::default(),
                registries_per_pod: DEFAULT_REGISTRIES_PER_POD,
                registries_per_secret: DEFAULT_REGISTRIES_PER_SECRET,
                on_failure: OnFailure::Admit,
            },
            opt_in: OptIn {
                label: DEFAULT_OPT_IN_LABEL.to_owned(),
                value: DEFAULT_OPT_IN_VALUE.to_owned(),
            },
            session_cap: SessionCap::default(),
            refresh: Refresh::default(),
            log_filter: None,
        }
    }
}

impl File {
    fn check(self) -> Result<Config, Vec<FieldError>> {
        let mut wrongs = FieldErrors::default();
        self.check_header(&mut wrongs);
        let mut config = Config::default();
        if let Some(name) = self.secret_name
            && let Some(name) = wrongs.take(secret_name(name))
        {
            config.rules.secret_name = name;
        }
        if let Some(opt_in) = self.opt_in {
            opt_in.check(&mut config, &mut wrongs);
        }
        if let Some(on_failure) = self.on_failure {
            config.rules.on_failure = match on_failure {
                FileOnFailure::Admit => OnFailure::Admit,
                FileOnFailure::Deny => OnFailure::Deny,
            };
        }
        if let Some(allow) = self.allow {
            config.rules.allow = allow.check(&mut wrongs);
        }
        let before = wrongs.0.len();
        if let Some(aliases) = self.aliases {
            config.rules.aliases = check_aliases(aliases, &mut wrongs);
        }
        if self.public_ecr == Some(true) {
            config.rules.aliases = config.rules.aliases.with_public();
        }
        if let Some(limits) = self.limits {
            limits.check(&mut config, &mut wrongs);
        }
        // Whether a host can be warmed ahead hangs on both.
        let prewarm = self.prewarm.filter(|_| wrongs.0.len() == before);
        let name = self.cluster_name.as_deref();
        if let Some(name) = name {
            wrongs.take(check_cluster_name(name));
        }
        // What is wrong with the name is not wrong with all that it stands in.
        let name = name.map(|name| check_cluster_name(name).map_or("cluster", |()| name));
        config.rules.identities = identities::check(
            self.identities.unwrap_or_default(),
            self.namespace_roles,
            self.default_identity,
            name,
            &mut wrongs,
        );
        let keeping = refresh::File {
            prewarm,
            refresh: self.refresh,
            revoke: self.revoke,
            discover: self.discover,
            removes: self.opt_out_remove,
        };
        let most = config.rules.registries_per_secret;
        (config.refresh, config.session_cap) =
            keeping.check(&config.rules.aliases, most, &mut wrongs);
        if let Some(filter) = self.log.and_then(|log| log.filter) {
            config.log_filter = wrongs.take(log_filter(filter));
        }
        if wrongs.0.is_empty() {
            Ok(config)
        } else {
            Err(wrongs.0)
        }
    }

    fn check_header(&self, wrongs: &mut FieldErrors) {
        for (field, given, expected) in [
            ("apiVersion", &self.api_version, API_VERSION),
            ("kind", &self.kind, KIND),
        ] {
            if let Some(given) = given.as_ref().filter(|given| *given != expected) {
                let message = format!("expected {expected}, got {given:?}");
                wrongs.0.push(wrong(field, message));
            }
        }
    }
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.display().to_string(),
        source,
    })
}

fn secret_name(name: String) -> Result<String, FieldError> {
    let valid = name.len() <= 253 && name.split('.').all(namespace::is_label);
    if valid {
        return Ok(name);
    }
    let message = format!("{name:?} can't be the name of a Secret");
    Err(wrong("secretName", message))
}

impl FileOptIn {
    fn check(self, config: &mut Config, wrongs: &mut FieldErrors) {
        if let Some(label) = self.label {
            let (prefix, name) = label.rsplit_once('/').unwrap_or(("example.com", &label));
            if is_label_part(name) && !name.is_empty() && prefix.split('.').all(namespace::is_label)
            {
                config.opt_in.label = label;
            } else {
                let message = format!("{label:?} can't be a label's key");
                wrongs.0.push(wrong("optIn.label", message));
            }
        }
        if let Some(value) = self.value {
            // Kubernetes takes an empty one; but the guard reads a label that isn't there as empty.
            if is_label_part(&value) && !value.is_empty() {
                config.opt_in.value = value;
            } else {
                let message = format!("{value:?} can't be the label's value");
                wrongs.0.push(wrong("optIn.value", message));
            }
        }
        if let Some(names) = self.exclude_namespaces {
            let field = "optIn.excludeNamespaces";
            config.rules.excluded = each(
                field,
                &names,
                "a namespace's name",
                Namespace::parse,
                wrongs,
            );
        }
    }
}

/// At most 63 letters, digits and inner `-`, `_`, `.`: what a label's name and value have in common.
fn is_label_part(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(bytes.first())
        && edge(bytes.last())
}

impl FileAllow {
    fn check(self, wrongs: &mut FieldErrors) -> Allow {
        Allow {
            accounts: accounts("allow", self.accounts, wrongs),
            regions: regions("allow", self.regions, wrongs),
        }
    }
}

fn accounts(
    field: &str,
    texts: Option<Vec<String>>,
    wrongs: &mut FieldErrors,
) -> BTreeSet<AccountId> {
    let (field, texts) = (format!("{field}.accounts"), texts.unwrap_or_default());
    each(
        &field,
        &texts,
        "12 digits in quotes",
        AccountId::parse,
        wrongs,
    )
}

fn regions(field: &str, texts: Option<Vec<String>>, wrongs: &mut FieldErrors) -> BTreeSet<Region> {
    let (field, texts) = (format!("{field}.regions"), texts.unwrap_or_default());
    let expected = "a region such as eu-west-1";
    each(&field, &texts, expected, Region::parse, wrongs)
}

fn check_aliases(aliases: Vec<FileAlias>, wrongs: &mut FieldErrors) -> Aliases {
    let mut pairs = Vec::with_capacity(aliases.len());
    let mut good = Aliases::default();
    for (at, alias) in aliases.into_iter().enumerate() {
        let registry = alias.registry.parse::<Registry>();
        let registry =
            registry.map_err(|e| wrong(format!("aliases[{at}].registry"), e.to_string()));
        let Some(registry) = wrongs.take(registry) else {
            continue;
        };
        pairs.push((alias.host, registry));
        // The whole list again for each entry: that is how an error knows which one it was.
        let all = Aliases::new(pairs.iter().cloned());
        let all = all.map_err(|e| wrong(format!("aliases[{at}].host"), e.to_string()));
        match wrongs.take(all) {
            Some(all) => good = all,
            None => drop(pairs.pop()),
        }
    }
    good
}

/// What EKS takes for a cluster's name, so that it fits wherever it is put in.
fn check_cluster_name(name: &str) -> Result<(), FieldError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    let message = format!("expected 1 to 100 letters, digits and any of _.-, got {name:?}");
    Err(wrong("clusterName", message))
}

/// What the subscriber of the logs takes. It takes an empty text too, and then logs nothing but errors.
fn log_filter(text: String) -> Result<String, FieldError> {
    let refuse = |why: String| {
        let message =
            format!("expected a filter such as info or info,ecr_injector=debug, got {text:?}{why}");
        Err(wrong("log.filter", message))
    };
    if text.trim().is_empty() {
        return refuse(String::new());
    }
    match EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => refuse(format!(": {error}")),
    }
}

/// A duration such as `90m`, `1h30m` or `24h`, in seconds.
fn seconds(field: &str, text: &str) -> Result<u32, FieldError> {
    let duration: Option<SignedDuration> = text.parse().ok();
    duration
        .and_then(|duration| u32::try_from(duration.as_secs()).ok())
        .ok_or_else(|| {
            let message = format!("expected a duration such as 90m or 24h, got {text:?}");
            wrong(field, message)
        })
}

impl FileLimits {
    fn check(self, config: &mut Config, wrongs: &mut FieldErrors) {
        let before = wrongs.0.len();
        let rules = &mut config.rules;
        for (field, given, limit) in [
            (
                "limits.registriesPerPod",
                self.registries_per_pod,
                &mut rules.registries_per_pod,
            ),
            (
                "limits.registriesPerSecret",
                self.registries_per_secret,
                &mut rules.registries_per_secret,
            ),
        ] {
            let Some(value) = given else {
                continue;
            };
            if (1..=MAX_REGISTRIES_PER_SECRET).contains(&value) {
                *limit = value;
            } else {
                let message = format!("expected 1 to {MAX_REGISTRIES_PER_SECRET}, got {value}");
                wrongs.0.push(wrong(field, message));
            }
        }
        if wrongs.0.len() == before && rules.registries_per_pod > rules.registries_per_secret {
            let message = "registriesPerPod can't exceed registriesPerSecret";
            wrongs.0.push(wrong("limits", message));
        }
    }
}

fn each<T: Ord>(
    field: &str,
    texts: &[String],
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
    wrongs: &mut FieldErrors,
) -> BTreeSet<T> {
    let parsed = texts.iter().enumerate().filter_map(|(at, text)| {
        let message = || format!("expected {expected}, got {text:?}");
        wrongs.take(parse(text).ok_or_else(|| wrong(format!("{field}[{at}]"), message())))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests;
