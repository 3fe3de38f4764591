//! Profiles of the shared configuration and credentials files.
//!
//! The SDK reads these files once and takes a file that can't be read for an empty one. Here they
//! are read before each use, as a mounted Secret changes by swapping a symlink, and a file that
//! can't be read is an error: otherwise the next source, another principal, would be used. The SDK
//! gets their contents without what surrounds the values by accident.

mod hint;
mod path;
mod sections;

use std::{env, error::Error as _, fmt, io, path::PathBuf};

use aws_config::{
    profile::{self, ProfileFileCredentialsProvider, ProfileFileRegionProvider, ProfileSet},
    provider_config::ProviderConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use aws_types::os_shim_internal::{Env, Fs};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use self::path::{FilePath, in_home};
pub(super) use self::sections::Sections;
use super::{
    held::Held,
    keys::{self, trimmed},
    origin::{KnownPartition, Origin},
    variables::{self, VariableError},
};
use crate::{identity::RoleArn, process::files, registry::Region};

/// The most profiles that refer to each other by `source_profile`.
const MAX_CHAIN: usize = 8;
/// The keys of a profile, and their names in errors.
const KEYS: [(&str, &str); 3] = [
    ("aws_access_key_id", keys::PARTS[0]),
    ("aws_secret_access_key", keys::PARTS[1]),
    ("aws_session_token", keys::PARTS[2]),
];

/// Why profile files can't be used. Its text holds nothing of their contents.
#[derive(Debug, Error)]
pub(super) enum ProfileError {
    /// A file can't be read.
    #[error("reading {file}: {error}: check that it is mounted, and its permissions")]
    Read { file: String, error: io::Error },
    /// A variable that names a file or the profile can't be used.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// A file is no text.
    #[error("{path} is not UTF-8: save it as UTF-8")]
    NotText { path: String },
    /// A file has another form.
    #[error("{0}")]
    Form(String),
    /// No file has the profile, or it has no credentials.
    #[error("no profile of this name has credentials there{0}")]
    Missing(String),
    /// A key can't be sent.
    #[error("in profile {profile:?}, {message}")]
    Key { profile: String, message: String },
}

/// The paths of both files.
#[derive(Debug, Clone)]
pub(super) struct ProfileFiles {
    config: FilePath,
    credentials: FilePath,
    /// Why a variable that names a file can't be used.
    unusable: Option<VariableError>,
}

/// The contents of both files, trimmed; empty for an absent file.
pub(super) struct Contents {
    config: Zeroizing<String>,
    credentials: Zeroizing<String>,
    /// The error of a file in a home folder of others, which was not read.
    unread: Option<ProfileError>,
    /// The files in which something was trimmed.
    trimmed: Vec<PathBuf>,
}

/// One profile, read again when a file changes.
#[derive(Debug)]
pub(super) struct ProfileSource {
    files: ProfileFiles,
    /// The name; `None`: the one that the environment selects.
    name: Option<String>,
    config: ProviderConfig,
    loaded: Mutex<Option<Loaded>>,
}

/// The state of the files when they were read, and the credentials of then.
#[derive(Debug)]
struct Loaded {
    digest: [u8; 32],
    provider: ProfileFileCredentialsProvider,
    /// The configuration of the provider, to build it again.
    config: ProviderConfig,
    /// Whether the files have the profile, and what they have, for errors.
    is_there: bool,
    hint: String,
    partition: Option<KnownPartition>,
    held: Option<Held>,
}

impl ProfileFiles {
    /// Returns the paths that the environment names, or else those in the home folder.
    pub(super) fn from_environment() -> Self {
        let mut unusable = None;
        let mut path = |variable: &'static str, default: &str| {
            let named = variables::value(variable).unwrap_or_else(|error| {
                unusable.get_or_insert(error);
                None
            });
            let is_named = named.is_some();
            let path = named.unwrap_or_else(|| default.to_owned());
            FilePath {
                path: in_home(&path, env::var_os("HOME")),
                variable: is_named.then_some(variable),
            }
        };
        let config = path("AWS_CONFIG_FILE", "~/.aws/config");
        let credentials = path("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
        Self {
            config,
            credentials,
            unusable,
        }
    }

    /// Reads both files. Only a file that a variable names has to be there and readable, as it is
    /// meant: an optional Secret may come later. The home folder may be another user's.
    pub(super) fn read(&self) -> Result<Contents, ProfileError> {
        self.unusable.map_or(Ok(()), Err)?;
        let (mut unread, mut trimmed) = (None, Vec::new());
        let mut read = |file: &FilePath| {
            let bytes = match file.bytes() {
                Ok(bytes) => Zeroizing::new(bytes),
                Err(error) => {
                    let is_absent = error.kind() == io::ErrorKind::NotFound;
                    let name = file.to_string();
                    let error = ProfileError::Read { file: name, error };
                    if file.variable.is_some() {
                        return Err(error);
                    }
                    if !is_absent {
                        unread.get_or_insert(error);
                    }
                    return Ok(Zeroizing::new(String::new()));
                }
            };
            let text = std::str::from_utf8(&bytes).map_err(|_| ProfileError::NotText {
                path: file.path.display().to_string(),
            })?;
            let clean = Zeroizing::new(clean(text));
            if *clean != text {
                trimmed.push(file.path.clone());
            }
            Ok(clean)
        };
        let (config, credentials) = (read(&self.config)?, read(&self.credentials)?);
        Ok(Contents {
            config,
            credentials,
            unread,
            trimmed,
        })
    }
}

impl fmt::Display for ProfileFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (config, credentials) = (self.config.path.display(), self.credentials.path.display());
        match (self.config.variable, self.credentials.variable) {
            (Some(_), None) => write!(f, "{config}"),
            (None, Some(_)) => write!(f, "{credentials}"),
            _ => write!(f, "{config} and {credentials}"),
        }
    }
}

/// Returns a file's text without a byte order mark, carriage returns, and what surrounds values by
/// accident. Lines and comments stay where they are.
fn clean(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut clean = String::with_capacity(text.len());
    for line in text.lines() {
        let line = line.trim_end_matches(['\r', '\0']);
        match line.split_once('=') {
            // The quotes of a command are its own.
            Some((key, value))
                if !key.trim_start().starts_with(['#', ';', '['])
                    && key.trim() != "credential_process" =>
            {
                clean.push_str(key);
                clean.push('=');
                let inner = trimmed(value);
                // Blanks alone are what the format allows, so they are no change.
                let is_clean = inner == value.trim_matches([' ', '\t']);
                clean.push_str(if is_clean { value } else { inner });
            }
            _ => clean.push_str(line),
        }
        clean.push('\n');
    }
    clean.truncate(if text.ends_with('\n') || text.is_empty() {
        clean.len()
    } else {
        clean.len() - 1
    });
    clean
}

impl Contents {
    /// Returns the text of a profile, or `None` if neither file has the profile.
    pub(super) fn sections(&self, name: &str) -> Option<Sections> {
        Sections::of(&self.config, &self.credentials, name)
    }

    /// Returns the contents as the SDK takes them.
    #[expect(
        deprecated,
        reason = "the other names are in a crate of the SDK's internals"
    )]
    pub(super) fn for_sdk(&self) -> profile::profile_file::ProfileFiles {
        use profile::profile_file::{ProfileFileKind, ProfileFiles};
        ProfileFiles::builder()
            .with_contents(ProfileFileKind::Config, &**self.config)
            .with_contents(ProfileFileKind::Credentials, &**self.credentials)
            .build()
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.config.len().to_be_bytes());
        digest.update(self.config.as_bytes());
        digest.update(self.credentials.as_bytes());
        digest.finalize().into()
    }
}

impl ProfileSource {
    /// Returns the profile of a name, or else of the one that the environment selects.
    pub(super) fn new(name: Option<String>, config: ProviderConfig) -> Self {
        Self::of(ProfileFiles::from_environment(), name, config)
    }

    fn of(files: ProfileFiles, name: Option<String>, config: ProviderConfig) -> Self {
        Self {
            files,
            name,
            config,
            loaded: Mutex::default(),
        }
    }

    /// Returns the profile's name and files, for errors.
    pub(super) fn origin(&self) -> Origin {
        let (name, files) = (self.selected(), &self.files);
        Origin::Profile(format!("profile {name:?} of {files}"))
    }

    /// Returns the profile's name.
    fn selected(&self) -> String {
        let name = self.name_given().ok().flatten();
        name.unwrap_or_else(|| "default".to_owned())
    }

    /// Returns the name that a rule or the environment gives, which then has to exist.
    fn name_given(&self) -> Result<Option<String>, VariableError> {
        match &self.name {
            Some(name) => Ok(Some(name.clone())),
            None => variables::value("AWS_PROFILE"),
        }
    }

    /// Returns the partition that the profile's role or region is in, if the profile was loaded.
    pub(super) async fn partition(&self) -> Option<KnownPartition> {
        let loaded = self.loaded.lock().await;
        loaded.as_ref().and_then(|loaded| loaded.partition.clone())
    }

    /// Has the credentials fetched again if AWS rejected these very ones.
    pub(super) fn reject(&self, rejected: &Credentials) {
        if let Ok(mut loaded) = self.loaded.try_lock()
            && let Some(held) = loaded.as_mut().and_then(|loaded| loaded.held.as_mut())
        {
            held.reject(rejected);
        }
    }

    /// Returns the profile's credentials, from new contents of the files if these have changed.
    pub(super) async fn credentials(&self) -> provider::Result {
        let is_given = self.name_given().map_err(|error| invalid(error.into()))?;
        let is_given = is_given.is_some();
        let files = self.files.clone();
        let contents = files::off_the_workers(move || files.read()).await;
        let mut contents = contents.map_err(invalid)?;
        let digest = contents.digest();
        let mut current = self.loaded.lock().await;
        let loaded = match &mut *current {
            Some(loaded) if loaded.digest == digest => loaded,
            _ => current.insert(self.load(&contents, digest).await.map_err(invalid)?),
        };
        if let Some(credentials) = loaded.held.as_mut().and_then(Held::credentials) {
            return Ok(credentials);
        }
        let error = match loaded.provider.provide_credentials().await {
            Ok(credentials) => {
                match &mut loaded.held {
                    Some(held) => held.replace(credentials.clone()),
                    None => loaded.held = Some(Held::new(credentials.clone())),
                }
                return Ok(credentials);
            }
            Err(error) => error,
        };
        // The SDK's provider gives the cause of a broken profile only once.
        loaded.provider = self.provider(&loaded.config, &contents);
        if let Some(held) = loaded.held.as_ref().and_then(Held::unexpired) {
            return Ok(held);
        }
        // Where the profile is there, an error with a source names what it refers to.
        let is_missing = matches!(error, CredentialsError::CredentialsNotLoaded(_))
            && (!loaded.is_there || error.source().is_none());
        if is_missing && is_given {
            let unread = contents.unread.take();
            let missing = || ProfileError::Missing(loaded.hint.clone());
            return Err(invalid(unread.unwrap_or_else(missing)));
        }
        Err(error)
    }

    fn provider(
        &self,
        config: &ProviderConfig,
        contents: &Contents,
    ) -> ProfileFileCredentialsProvider {
        ProfileFileCredentialsProvider::builder()
            .configure(config)
            .profile_files(contents.for_sdk())
            .profile_name(self.selected())
            .build()
    }

    async fn load(&self, contents: &Contents, digest: [u8; 32]) -> Result<Loaded, ProfileError> {
        for path in &contents.trimmed {
            let file = path.display();
            tracing::warn!(%file, "ignored quotes, line breaks or a byte order mark around values of the AWS profile file");
        }
        let name = self.selected();
        let set = profile::load(
            &Fs::real(),
            &Env::real(),
            &contents.for_sdk(),
            Some(name.clone().into()),
        )
        .await
        .map_err(|error| ProfileError::Form(form_error(&error)))?;
        check_keys(&set, &name)?;
        let mut config = self.config.clone();
        if self.name.is_some() {
            // Roles of the profile are assumed in its own region, which may be of a partition that
            // the environment's isn't.
            let region = ProfileFileRegionProvider::builder()
                .configure(&config)
                .profile_files(contents.for_sdk())
                .profile_name(&name)
                .build();
            let region = aws_config::meta::region::ProvideRegion::region(&region).await;
            if region.is_some() {
                config = config.with_region(region);
            }
        }
        Ok(Loaded {
            digest,
            provider: self.provider(&config, contents),
            config,
            is_there: set.get_profile(&name).is_some(),
            hint: self.files.hint(&set, &name, contents),
            partition: known_partition(&set, &name, self.name.is_some()),
            held: None,
        })
    }
}

impl ProvideCredentials for ProfileSource {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}

fn invalid(error: ProfileError) -> CredentialsError {
    CredentialsError::invalid_configuration(error)
}

/// Returns the profile and those that it takes its credentials from.
fn chain<'a>(set: &'a ProfileSet, name: &str) -> Vec<&'a profile::Profile> {
    let first = set.get_profile(name);
    let next = |profile: &&'a profile::Profile| {
        let source = profile.get("source_profile")?;
        set.get_profile(source).filter(|_| source != profile.name())
    };
    std::iter::successors(first, next).take(MAX_CHAIN).collect()
}

/// Checks that a request can hold the keys: for a role the SDK signs with them by itself.
fn check_keys(set: &ProfileSet, name: &str) -> Result<(), ProfileError> {
    for profile in chain(set, name) {
        for (key, part) in KEYS {
            if let Some(value) = profile.get(key) {
                keys::check(value, part).map_err(|message| ProfileError::Key {
                    profile: profile.name().to_owned(),
                    message,
                })?;
            }
        }
    }
    Ok(())
}

/// Returns the partition of a profile's role, or else of its region if that is written for these
/// keys: a region of the profile that the environment selects may be a default for other tools.
fn known_partition(set: &ProfileSet, name: &str, is_named: bool) -> Option<KnownPartition> {
    let profiles = chain(set, name);
    let role = profiles.iter().find_map(|profile| profile.get("role_arn"));
    if let Some(arn) = role.and_then(RoleArn::parse) {
        return Some(KnownPartition {
            partition: arn.partition(),
            because: format!("the profile has the role {arn}"),
        });
    }
    let region = profiles.iter().find_map(|profile| profile.get("region"));
    let region = region.filter(|_| is_named).and_then(Region::parse)?;
    Some(KnownPartition {
        partition: region.partition(),
        because: format!("the profile has the region {region}"),
    })
}

/// Returns what the SDK says about the form of a file: a line's number, and nothing of the line.
fn form_error(error: &profile::ProfileFileLoadError) -> String {
    let text = error.source().map(ToString::to_string);
    let text = text.unwrap_or_else(|| error.to_string());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
