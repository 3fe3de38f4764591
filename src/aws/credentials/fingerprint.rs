//! The fingerprint of the ambient identity: a hash of what decides the principal without any call.
//!
//! Tokens on disk are kept by it, so a token is found again before any credentials are resolved,
//! also where those are temporary (SSO, a role, Pod Identity). The inputs are those of the first
//! source that is configured, in the order of the chain. What can't be read gives no fingerprint:
//! a token that is found by half of the inputs may be another principal's.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read as _},
};

use base64::{
    Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::configured::POD_IDENTITY_VARIABLE;
use crate::{
    aws::{
        keys::trimmed,
        profile::{ProfileError, ProfileFiles, Sections},
        variables::{self, VariableError},
    },
    identity::Profile,
};

/// The most bytes of a token file that are read.
const MAX_TOKEN_FILE: u64 = 64 << 10;
/// The identifier of a boot of the machine: credentials of the instance metadata belong to the
/// instance.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The variables that lead to other instance metadata.
const METADATA: [&str; 3] = [
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_EC2_INSTANCE_PROFILE_NAME",
];

/// The hash of what decides the principal of the ambient credentials, or of a profile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    hash: String,
    access_key_id: Option<String>,
}

/// Why there is no fingerprint. Then no token on disk may be used.
#[derive(Debug, Error)]
#[error("what decides the AWS principal can't be read: {0}")]
pub struct FingerprintError(String);

/// The issuer and the subject of a JSON web token, unverified.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subject {
    /// The claim `iss`.
    pub iss: String,
    /// The claim `sub`.
    pub sub: String,
}

impl Fingerprint {
    /// Returns the fingerprint of the credentials that the chain would find.
    pub fn ambient() -> Result<Self, FingerprintError> {
        let files = ProfileFiles::from_environment();
        let inputs = Inputs {
            value: &variables::value,
            profile: &|name| sections(&files, name),
            read: &read,
        };
        inputs.ambient()
    }

    /// Returns the fingerprint of a profile that a rule names.
    pub fn of_profile(profile: &Profile) -> Result<Self, FingerprintError> {
        let files = ProfileFiles::from_environment();
        let inputs = Inputs {
            value: &variables::value,
            profile: &|name| sections(&files, name),
            read: &read,
        };
        inputs.of_profile(profile.name())
    }

    /// Returns the hash, in hex.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.hash
    }

    /// Returns the access key id, if it is known without a call: in the environment, or in a
    /// profile that has keys of its own.
    #[must_use]
    pub fn access_key_id(&self) -> Option<&str> {
        self.access_key_id.as_deref()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash)
    }
}

impl Subject {
    /// Returns the subject of a token, or `None` if the text is no JSON web token.
    #[must_use]
    pub fn of(token: &str) -> Option<Self> {
        let payload = token.trim().split('.').nth(1)?;
        let payload = URL_SAFE_NO_PAD
            .decode(payload)
            .or_else(|_| URL_SAFE.decode(payload))
            .ok()?;
        serde_json::from_slice(&payload).ok()
    }
}

impl From<VariableError> for FingerprintError {
    fn from(error: VariableError) -> Self {
        Self(error.to_string())
    }
}

impl From<ProfileError> for FingerprintError {
    fn from(error: ProfileError) -> Self {
        Self(error.to_string())
    }
}

/// The paths of the profile files as a text, and a profile in them.
type Found = Result<(String, Option<Sections>), ProfileError>;

/// The variables and the files of a process.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    value: &'a dyn Fn(&'static str) -> Result<Option<String>, VariableError>,
    profile: &'a dyn Fn(&str) -> Found,
    read: &'a dyn Fn(&str) -> io::Result<Zeroizing<String>>,
}

/// The hash of a list of texts: each with its length, so that no two lists are one.
struct Hasher(Sha256);

impl Inputs<'_> {
    fn ambient(self) -> Result<Fingerprint, FingerprintError> {
        let mut hasher = Hasher(Sha256::new());
        let access_key_id = (self.value)("AWS_ACCESS_KEY_ID")?;
        let secret = (self.value)("AWS_SECRET_ACCESS_KEY")?;
        match (access_key_id, secret) {
            // A session's access key id is its own.
            (Some(id), Some(_)) => {
                hasher.add("env").add(&id);
                return Ok(hasher.finish(Some(id)));
            }
            (None, None) => {}
            _ => {
                let text = "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set";
                return Err(FingerprintError(text.to_owned()));
            }
        }
        let named = (self.value)("AWS_PROFILE")?;
        let name = named.as_deref().unwrap_or("default");
        let (files, sections) = (self.profile)(name)?;
        match sections {
            Some(sections) => {
                self.add_profile(&mut hasher, name, &files, &sections)?;
                // Without credentials in it the chain goes on, perhaps: what follows counts too.
                if sections.has_credentials() && !sections.uses_other_sources() {
                    let id = sections.static_access_key_id().map(str::to_owned);
                    return Ok(hasher.finish(id));
                }
            }
            None if named.is_some() => {
                let text = format!("there is no profile {name:?} in {files}");
                return Err(FingerprintError(text));
            }
            None => {}
        }
        self.add_others(&mut hasher)?;
        Ok(hasher.finish(None))
    }

    fn of_profile(self, name: &str) -> Result<Fingerprint, FingerprintError> {
        let mut hasher = Hasher(Sha256::new());
        let (files, sections) = (self.profile)(name)?;
        let Some(sections) = sections else {
            let text = format!("there is no profile {name:?} in {files}");
            return Err(FingerprintError(text));
        };
        hasher.add("named");
        self.add_profile(&mut hasher, name, &files, &sections)?;
        if sections.uses_other_sources() {
            self.add_environment(&mut hasher)?;
            self.add_others(&mut hasher)?;
        }
        let id = sections.static_access_key_id().map(str::to_owned);
        Ok(hasher.finish(id))
    }

    fn add_profile(
        self,
        hasher: &mut Hasher,
        name: &str,
        files: &str,
        sections: &Sections,
    ) -> Result<(), FingerprintError> {
        hasher.add("profile").add(files).add(name);
        hasher.add(&sections.text);
        for file in sections.web_identity_token_files() {
            let token = self.text_of(file)?;
            hasher.add_subject(&token, file);
        }
        Ok(())
    }

    /// Adds the keys that a profile with `credential_source = Environment` uses.
    fn add_environment(self, hasher: &mut Hasher) -> Result<(), FingerprintError> {
        let id = (self.value)("AWS_ACCESS_KEY_ID")?;
        hasher.add("env").add(id.as_deref().unwrap_or_default());
        Ok(())
    }

    /// Adds the first of the sources behind the profile that is configured.
    fn add_others(self, hasher: &mut Hasher) -> Result<(), FingerprintError> {
        let role = self.optional("AWS_ROLE_ARN")?;
        match ((self.value)("AWS_WEB_IDENTITY_TOKEN_FILE")?, role) {
            (Some(file), Some(role)) => {
                let token = self.text_of(&file)?;
                hasher.add("web").add(&role).add_subject(&token, &file);
                return Ok(());
            }
            (Some(_), None) => {
                let text = "AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not";
                return Err(FingerprintError(text.to_owned()));
            }
            // A role alone is a setting for other tools.
            (None, _) => {}
        }
        let relative = (self.value)("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")?;
        let full = (self.value)("AWS_CONTAINER_CREDENTIALS_FULL_URI")?;
        let token_file = (self.value)(POD_IDENTITY_VARIABLE)?;
        if relative.is_some() || full.is_some() || token_file.is_some() {
            hasher.add("container");
            hasher.add(relative.as_deref().unwrap_or_default());
            hasher.add(full.as_deref().unwrap_or_default());
            let token = self.optional("AWS_CONTAINER_AUTHORIZATION_TOKEN")?;
            hasher.add(token.as_deref().unwrap_or_default());
            if let Some(file) = token_file {
                let token = self.text_of(&file)?;
                hasher.add_subject(&token, &token);
            }
            return Ok(());
        }
        let is_disabled = self.optional("AWS_EC2_METADATA_DISABLED")?;
        if is_disabled.is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Err(FingerprintError("no source is configured".to_owned()));
        }
        hasher.add("imds").add(self.text_of(BOOT_ID)?.trim());
        for name in METADATA {
            hasher.add(self.optional(name)?.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// Returns the value of a variable for which blank is unset, as for the SDK.
    fn optional(self, name: &'static str) -> Result<Option<String>, FingerprintError> {
        match (self.value)(name) {
            Err(VariableError::Blank(_)) => Ok(None),
            value => Ok(value?),
        }
    }

    fn text_of(self, file: &str) -> Result<Zeroizing<String>, FingerprintError> {
        let text = (self.read)(file);
        text.map_err(|error| FingerprintError(format!("reading {file}: {error}")))
    }
}

impl Hasher {
    fn add(&mut self, text: &str) -> &mut Self {
        self.0.update(text.len().to_be_bytes());
        self.0.update(text.as_bytes());
        self
    }

    /// Adds the subject of a token, which outlives the token, or else another text.
    fn add_subject(&mut self, token: &str, or: &str) {
        match Subject::of(token) {
            Some(Subject { iss, sub }) => self.add("jwt").add(&iss).add(&sub),
            None => self.add("opaque").add(or),
        };
    }

    fn finish(self, access_key_id: Option<String>) -> Fingerprint {
        let mut hash = String::with_capacity(64);
        for byte in self.0.finalize() {
            // Writing to a text can't fail.
            let _ = write!(hash, "{byte:02x}");
        }
        Fingerprint {
            hash,
            access_key_id,
        }
    }
}

fn sections(files: &ProfileFiles, name: &str) -> Found {
    let contents = files.read()?;
    Ok((files.to_string(), contents.sections(name)))
}

fn read(path: &str) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let file = fs::File::open(path)?;
    file.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
    Ok(Zeroizing::new(trimmed(&text).to_owned()))
}

#[cfg(test)]
mod tests;
