//! The variables of one run of the docker helper.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;

use crate::config::{Config, ConfigError};

/// The time for everything, where the environment sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// The folder of the cache, where the environment names none: that of amazon-ecr-credential-helper.
const DEFAULT_FOLDER: &str = "~/.ecr";
/// The users of the machine, among them this one's home.
const USERS: &str = "/etc/passwd";

/// Which lines are written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Off,
    Error,
    Info,
    Debug,
}

/// Lines for standard error, of a level and above.
#[derive(Debug)]
pub(super) struct Notes {
    level: Level,
    pub(super) lines: Vec<String>,
}

impl Notes {
    /// Returns a list for the level that the environment sets.
    pub(super) fn from_environment() -> Self {
        let text = variable("ECR_INJECTOR_LOG");
        let level = match text.as_deref() {
            Some("off") => Level::Off,
            Some("info") => Level::Info,
            Some("debug") => Level::Debug,
            _ => Level::Error,
        };
        let mut notes = Self {
            level,
            lines: Vec::new(),
        };
        if let Some(text) =
            text.filter(|text| !["off", "error", "info", "debug"].contains(&&**text))
        {
            let text = format!("ECR_INJECTOR_LOG is {text:?}: expected off, error, info or debug");
            notes.add(Level::Error, text);
        }
        notes
    }

    pub(super) fn add(&mut self, level: Level, text: impl Into<String>) {
        if level <= self.level {
            self.lines.push(text.into());
        }
    }
}

/// Returns whether logins pass without being stored.
pub(super) fn ignores_logins() -> bool {
    env::var_os("AWS_ECR_IGNORE_CREDS_STORAGE").is_some_and(|value| value == "true")
}

/// Returns the time for everything. A value that is none is a mistake that costs no pull.
pub(super) fn timeout(notes: &mut Notes) -> Duration {
    let Some(text) = variable("ECR_INJECTOR_TIMEOUT") else {
        return DEFAULT_TIMEOUT;
    };
    let parsed = text.parse::<SignedDuration>().ok();
    let parsed = parsed.and_then(|duration| Duration::try_from(duration).ok());
    parsed
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or_else(|| {
            let text = format!(
                "ECR_INJECTOR_TIMEOUT is {text:?}: expected a duration such as 15s; it is {} s now",
                DEFAULT_TIMEOUT.as_secs()
            );
            notes.add(Level::Error, text);
            DEFAULT_TIMEOUT
        })
}

/// Returns the configuration that the environment names. Without one, ECR Public gets tokens too:
/// who configures a helper for a host wants them.
pub(super) fn config() -> Result<Config, ConfigError> {
    if let Some(path) = env::var_os("ECR_INJECTOR_CONFIG").filter(|path| !path.is_empty()) {
        return Config::read_without_log_filter(Some(Path::new(&path)));
    }
    let mut config = Config::default();
    config.rules.aliases = config.rules.aliases.with_public();
    Ok(config)
}

/// Returns the folder of the cache, or `None` if the cache is off or there is no home.
pub(super) fn cache_folder(notes: &mut Notes) -> Option<PathBuf> {
    if env::var_os("AWS_ECR_DISABLE_CACHE").is_some_and(|value| !value.is_empty()) {
        return None;
    }
    let named = env::var_os("AWS_ECR_CACHE_DIR").filter(|path| !path.is_empty());
    let path = named.map_or_else(|| PathBuf::from(DEFAULT_FOLDER), PathBuf::from);
    let Ok(below_home) = path.strip_prefix("~") else {
        if path.as_os_str().as_encoded_bytes().starts_with(b"~") {
            let text = "no cache: AWS_ECR_CACHE_DIR names the home of another user: write it out";
            notes.add(Level::Info, text);
            return None;
        }
        return Some(path);
    };
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.map(PathBuf::from).or_else(home_of_this_user);
    if home.is_none() {
        let text = format!("no cache: HOME is not set, and {USERS} has no home of this user");
        notes.add(Level::Info, text);
    }
    home.map(|home| home.join(below_home))
}

fn home_of_this_user() -> Option<PathBuf> {
    let users = fs::read_to_string(USERS).ok()?;
    home_in(&users, rustix::process::getuid().as_raw()).map(PathBuf::from)
}

/// Returns the home of a user in the form of `/etc/passwd`.
fn home_in(users: &str, user: u32) -> Option<&str> {
    let user = user.to_string();
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).filter(|home| home.starts_with('/'))?;
        (fields.get(2) == Some(&user.as_str())).then_some(*home)
    })
}

/// Returns the text of a variable, or `None` if it is empty.
fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name)?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_that_of_the_user_with_the_id() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken:x:7\nme:x:1000:1000::/home/me:/bin/sh\n\
                     none:x:8:8::nonexistent:/bin/false\n";
        assert_eq!(home_in(users, 0), Some("/root"));
        assert_eq!(home_in(users, 1000), Some("/home/me"));
        for absent in [7, 8, 100] {
            assert_eq!(home_in(users, absent), None);
        }
    }
}
