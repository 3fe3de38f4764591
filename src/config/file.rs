//! The format of the configuration file, and the checks of its fields.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    endpoints::{self, FileEndpoints},
    error::{FieldError, FieldErrors},
    identities::{self, FileDefaultIdentity, FileNamespaceRoles, FileRule},
    patterns,
    refresh::{FileDiscovery, FileRefresh, FileRevocation, RefreshFields},
    resolved::{
        Config, DEFAULT_EXCLUDED, DEFAULT_OPT_IN_LABEL, DEFAULT_OPT_IN_VALUE,
        DEFAULT_REGISTRIES_PER_POD, DEFAULT_REGISTRIES_PER_SECRET, DEFAULT_SECRET_NAME,
    },
    value::{accounts, listed, parse_each, present, regions},
};
use crate::{
    cluster::namespace::{self, Namespace},
    registry::{Aliases, Registry},
    token::rules::{Allow, MAX_HOSTS, OnFailure},
};

/// Parses a log filter, or returns why that fails.
pub(super) type ParseFilter = fn(&str) -> Result<(), String>;

pub(super) const API_VERSION: &str = "ecr-injector.dev/v1alpha1";
pub(super) const KIND: &str = "Config";
/// A Secret holds at most 1 MiB, and a host takes about 5 KB of it.
const MAX_REGISTRIES_PER_SECRET: usize = MAX_HOSTS;
/// The most characters of the prefix of a label's key, as Kubernetes has it.
const MAX_LABEL_PREFIX: usize = 253;

/// Configuration of ecr-injector. Every field but apiVersion and kind has a default.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Config", extend("required" = ["apiVersion", "kind"]))]
pub(super) struct File {
    /// Version of the format; required.
    #[schemars(extend("type" = "string", "enum" = [API_VERSION]))]
    api_version: Option<String>,
    /// Kind of the file; required.
    #[schemars(extend("type" = "string", "enum" = [KIND]))]
    kind: Option<String>,
    /// Name of the pull secret in every namespace. RBAC and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_SECRET_NAME, "pattern" = patterns::OBJECT_NAME, "maxLength" = 253))]
    secret_name: Option<String>,
    /// Which namespaces are opted in.
    opt_in: Option<FileOptIn>,
    /// Handling of a Pod whose pull secret can't be completed in time.
    #[schemars(extend("default" = "admit"))]
    on_failure: Option<FileOnFailure>,
    /// Which registries get credentials; by default all.
    #[serde(default, deserialize_with = "present")]
    #[schemars(
        with = "FileAllow",
        skip_serializing_if = "Option::is_none",
        extend("minProperties" = 1)
    )]
    allow: Option<FileAllow>,
    /// Handling of credentials that the rules (allow, identities, aliases) no longer allow.
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
    #[schemars(extend("pattern" = patterns::CLUSTER_NAME))]
    cluster_name: Option<String>,
    /// Rules for which identity mints; the first match wins.
    identities: Option<Vec<FileRule>>,
    /// Roles that namespaces may request with the annotation ecr-injector.dev/role-arn.
    namespace_roles: Option<FileNamespaceRoles>,
    /// Identity that mints if neither a rule nor an annotation matches.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "FileDefaultIdentity", extend("default" = "ambient"))]
    default_identity: Option<FileDefaultIdentity>,
    /// How pull secrets are refreshed.
    refresh: Option<FileRefresh>,
    /// Hosts of ECR registries or aliases whose credentials every opted-in namespace gets before a
    /// Pod needs them.
    #[schemars(with = "Option<patterns::Hosts>")]
    prewarm: Option<Vec<String>>,
    /// Where the leader discovers registries that no admission reported.
    #[schemars(extend("default" = "none"))]
    discover: Option<FileDiscovery>,
    /// Whether ServiceAccounts are watched, so that a Pod whose account enforces mountable secrets
    /// and doesn't list the pull secret is admitted without the reference: the API server would
    /// reject the Pod with it. Needs list and watch on serviceaccounts; a change requires a restart.
    #[schemars(extend("default" = true))]
    watch_service_accounts: Option<bool>,
    /// Whether the pull secret of an opted-out namespace is deleted once all its credentials have
    /// expired.
    #[schemars(extend("default" = false))]
    opt_out_remove: Option<bool>,
    /// Endpoints of AWS by region, such as those of VPC endpoints; in other regions they are those of
    /// the environment, or AWS's own.
    #[schemars(schema_with = "endpoints::by_region")]
    aws_endpoints: Option<BTreeMap<String, FileEndpoints>>,
    /// Logging.
    log: Option<FileLog>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileOptIn {
    /// Key of the label. The `MutatingWebhookConfiguration` and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_OPT_IN_LABEL, "pattern" = patterns::LABEL_KEY, "allOf" = [{"pattern": patterns::LABEL_PREFIX}]))]
    label: Option<String>,
    /// Value of the label. The `MutatingWebhookConfiguration` and the guard contain it too; a change
    /// requires a restart.
    #[schemars(extend("default" = DEFAULT_OPT_IN_VALUE, "pattern" = patterns::LABEL_VALUE))]
    value: Option<String>,
    /// Namespaces that are never opted in, whatever their labels; the namespace of ecr-injector is
    /// always excluded.
    #[schemars(with = "Option<patterns::Namespaces>", extend("default" = DEFAULT_EXCLUDED))]
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
    /// AWS accounts, each in quotes; by default all.
    #[serde(default, deserialize_with = "listed")]
    #[schemars(with = "patterns::Accounts", skip_serializing_if = "Option::is_none")]
    accounts: Option<Vec<String>>,
    /// AWS regions; by default all.
    #[serde(default, deserialize_with = "listed")]
    #[schemars(with = "patterns::Regions", skip_serializing_if = "Option::is_none")]
    regions: Option<Vec<String>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileAlias {
    /// Host in image references.
    #[schemars(extend("pattern" = patterns::HOST, "maxLength" = patterns::MAX_HOST, "not" = patterns::no_ecr_host()))]
    host: String,
    /// ECR registry that the host stands for.
    #[schemars(extend("pattern" = patterns::REGISTRY, "not" = patterns::no_registry()))]
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
    /// Log filter in the form of RUST_LOG, such as info or `info,ecr_injector=debug`, without spans
    /// and fields; by default that of --log.
    #[schemars(extend("pattern" = patterns::LOG_FILTER))]
    filter: Option<String>,
}

impl File {
    pub(super) fn check(self, parse_filter: ParseFilter) -> Result<Config, Vec<FieldError>> {
        let mut errors = FieldErrors::default();
        self.check_header(&mut errors);
        let mut config = Config::default();
        if let Some(name) = self.secret_name
            && let Some(name) = errors.record(secret_name(name))
        {
            config.rules.secret_name = name;
        }
        if let Some(opt_in) = self.opt_in {
            opt_in.check(&mut config, &mut errors);
        }
        if let Some(on_failure) = self.on_failure {
            config.rules.on_failure = match on_failure {
                FileOnFailure::Admit => OnFailure::Admit,
                FileOnFailure::Deny => OnFailure::Deny,
            };
        }
        if let Some(allow) = self.allow {
            config.rules.allow = allow.check(&mut errors);
        }
        let before = errors.len();
        if let Some(aliases) = self.aliases {
            config.rules.aliases = check_aliases(aliases, &mut errors);
        }
        if self.public_ecr == Some(true) {
            config.rules.aliases = config.rules.aliases.with_public();
        }
        if let Some(limits) = self.limits {
            limits.check(&mut config, &mut errors);
        }
        // The check of prewarm needs valid aliases and limits.
        let prewarm = self.prewarm.filter(|_| errors.len() == before);
        let name = self.cluster_name.as_deref();
        if let Some(name) = name {
            errors.record(check_cluster_name(name));
        }
        // An invalid name is one error, and no further error in each field that refers to the name.
        let name = name.map(|name| check_cluster_name(name).map_or("cluster", |()| name));
        config.rules.identities = identities::check(
            self.identities.unwrap_or_default(),
            self.namespace_roles,
            self.default_identity,
            name,
            &mut errors,
        );
        let fields = RefreshFields {
            prewarm,
            refresh: self.refresh,
            revoke: self.revoke,
            discover: self.discover,
            opt_out_remove: self.opt_out_remove,
        };
        let max_hosts = config.rules.registries_per_secret;
        (config.refresh, config.session_cap) =
            fields.check(&config.rules.aliases, max_hosts, &mut errors);
        if let Some(watches) = self.watch_service_accounts {
            config.watches_service_accounts = watches;
        }
        config.endpoints = endpoints::check(self.aws_endpoints.unwrap_or_default(), &mut errors);
        if let Some(filter) = self.log.and_then(|log| log.filter) {
            config.log_filter = errors.record(log_filter(filter, parse_filter));
        }
        errors.into_result(config)
    }

    fn check_header(&self, errors: &mut FieldErrors) {
        for (field, given, expected) in [
            ("apiVersion", &self.api_version, API_VERSION),
            ("kind", &self.kind, KIND),
        ] {
            match given {
                Some(given) if given == expected => {}
                Some(given) => errors.push(field, format!("expected {expected}, got {given:?}")),
                // An emptied file would otherwise allow all.
                None => errors.push(field, format!("is missing: write {field}: {expected}")),
            }
        }
    }
}

fn secret_name(name: String) -> Result<String, FieldError> {
    let valid = name.len() <= 253 && name.split('.').all(namespace::is_label);
    if valid {
        return Ok(name);
    }
    let message = format!("{name:?} can't be the name of a Secret");
    Err(FieldError::new("secretName", message))
}

impl FileOptIn {
    fn check(self, config: &mut Config, errors: &mut FieldErrors) {
        if let Some(label) = self.label {
            let (prefix, name) = label.rsplit_once('/').unwrap_or(("example.com", &label));
            let is_prefix =
                prefix.len() <= MAX_LABEL_PREFIX && prefix.split('.').all(namespace::is_label);
            if is_label_part(name) && !name.is_empty() && is_prefix {
                config.opt_in.label = label;
            } else {
                let message = format!("{label:?} can't be a label's key");
                errors.push("optIn.label", message);
            }
        }
        if let Some(value) = self.value {
            // Kubernetes accepts an empty value; but the guard reads a missing label as empty.
            if is_label_part(&value) && !value.is_empty() {
                config.opt_in.value = value;
            } else {
                let message = format!("{value:?} can't be the label's value");
                errors.push("optIn.value", message);
            }
        }
        if let Some(names) = self.exclude_namespaces {
            let field = "optIn.excludeNamespaces";
            config.rules.excluded = parse_each(
                field,
                &names,
                "a namespace's name",
                Namespace::parse,
                errors,
            );
        }
    }
}

/// Returns whether a text has at most 63 letters, digits and inner `-`, `_`, `.`, as the name and
/// the value of a label must.
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
    fn check(self, errors: &mut FieldErrors) -> Allow {
        if self.accounts.is_none() && self.regions.is_none() {
            let message = "expected accounts, regions or both; to allow all, leave allow out";
            errors.push("allow", message);
        }
        Allow {
            accounts: accounts("allow", self.accounts, errors),
            regions: regions("allow", self.regions, errors),
        }
    }
}

fn check_aliases(given: Vec<FileAlias>, errors: &mut FieldErrors) -> Aliases {
    let mut aliases = Aliases::default();
    for (at, alias) in given.into_iter().enumerate() {
        let registry = alias.registry.parse::<Registry>();
        let registry =
            registry.map_err(|e| FieldError::new(format!("aliases[{at}].registry"), e.to_string()));
        if let Some(registry) = errors.record(registry) {
            let inserted = aliases.insert(alias.host, registry);
            errors.record(
                inserted.map_err(|e| FieldError::new(format!("aliases[{at}].host"), e.to_string())),
            );
        }
    }
    aliases
}

/// Checks a cluster's name by the rules of EKS, so that every field that refers to the name fits.
fn check_cluster_name(name: &str) -> Result<(), FieldError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    let message = format!("expected 1 to 100 letters, digits and any of _.-, got {name:?}");
    Err(FieldError::new("clusterName", message))
}

/// Checks a log filter. The subscriber would accept an empty text too, and then log errors alone; and
/// filters by spans and fields, which no schema can check.
fn log_filter(text: String, parse: ParseFilter) -> Result<String, FieldError> {
    let reject = |reason: String| {
        let message = format!(
            "expected a filter such as info or info,ecr_injector=debug, got {text:?}{reason}"
        );
        Err(FieldError::new("log.filter", message))
    };
    if !text.split(',').all(is_directive) {
        return reject(String::new());
    }
    match parse(&text) {
        Ok(()) => Ok(text),
        Err(error) => reject(format!(": {error}")),
    }
}

/// Returns whether a text is a level, or a target with or without a level.
fn is_directive(text: &str) -> bool {
    let (target, level) = match text.split_once('=') {
        Some((target, level)) => (target, Some(level)),
        None => (text, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_:-".contains(c);
    let is_level = |level: &str| {
        let is_word = ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|word| level == *word || level == word.to_ascii_uppercase());
        is_word || matches!(level, "0" | "1" | "2" | "3" | "4" | "5")
    };
    !target.is_empty() && target.chars().all(fits) && level.is_none_or(is_level)
}

impl FileLimits {
    fn check(self, config: &mut Config, errors: &mut FieldErrors) {
        let before = errors.len();
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
                errors.push(field, message);
            }
        }
        if errors.len() == before && rules.registries_per_pod > rules.registries_per_secret {
            let message = "registriesPerPod can't exceed registriesPerSecret";
            errors.push("limits", message);
        }
    }
}
