//! The docker credential helper: one action, from standard input to an answer.
//!
//! Everything that needs no AWS ends before a runtime, TLS or the SDK are touched: docker asks for
//! every registry, and older podman runs every helper at every pull. A failure of a private
//! registry is answered as "not found", with the reason on standard error: any other answer stops
//! docker, also where the registry isn't even used.

mod kept;
mod settings;

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use tokio::{runtime::Builder, time::Instant};
use zeroize::Zeroizing;

use self::{
    kept::{Kept, Place, Turn},
    settings::{Level, Notes},
};
use super::{
    Answer,
    docker::{self, Call, NOT_FOUND, PROGRAM},
    docker_cache::{CacheKey, ecr_login::Keys},
    file_cache::endpoints_of_environment,
};
use crate::{
    aws::{
        AwsEnvironment, Trust, credentials::fingerprint::Fingerprint, http::HttpClients, restart,
    },
    config::Config,
    identity::Identity,
    process::clock::{Clock as _, SystemClock},
    registry::{Aliases, Host, Registry, Service},
    telemetry::error_chain::error_chain,
    tls,
    token::{
        Token, TokenKey,
        once::{MintRequest, mint_once},
    },
};

/// The most bytes of standard input. The longest is a login with a token.
const MAX_INPUT: u64 = 64 << 10;
/// How long to wait for another process that mints, and how much time that has to leave.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LEAST_FOR_MINT: Duration = Duration::from_secs(5);
const TRIES: usize = 2;

/// Runs one action, with the arguments behind the program's name.
#[must_use]
pub fn run(arguments: &[OsString]) -> Answer {
    let started = Instant::now();
    let arguments = arguments.iter().map(|text| text.to_string_lossy());
    let call = Call::parse(&arguments.map(Into::into).collect::<Vec<_>>());
    match call {
        Call::Version => return Answer::output(PROGRAM, docker::version()),
        Call::Help => return Answer::output(PROGRAM, docker::USAGE.to_owned()),
        // Its input is the word `unused`, if anything.
        Call::List => return list(),
        Call::Get | Call::Store | Call::Erase | Call::Usage | Call::Unknown(_) => {}
    }
    let is_wrong = matches!(call, Call::Usage | Call::Unknown(_));
    if is_wrong && io::stdin().is_terminal() {
        // A person, who has typed nothing.
        return wrong(call);
    }
    restart::trim();
    let input = match input() {
        Ok(input) => input,
        Err(text) => return failed(text),
    };
    if docker::is_for_the_kubelet(&input) {
        return failed(docker::USAGE).note(docker::FOR_THE_KUBELET);
    }
    let mut notes = Notes::from_environment();
    let answer = match call {
        Call::Get => match docker::server(&input) {
            Some(server) => get(&server, started, &mut notes),
            None => failed(docker::NO_SERVER),
        },
        Call::Store => match docker::login(&input) {
            Ok(server) => store(&server, &mut notes),
            Err(text) => failed(text),
        },
        Call::Erase => match docker::server(&input) {
            Some(server) => erase(&server, &mut notes),
            None => failed(docker::NO_SERVER),
        },
        other => wrong(other),
    };
    notes.lines.into_iter().fold(answer, Answer::note)
}

/// Returns the answer to a call that there isn't.
fn wrong(call: Call) -> Answer {
    match call {
        Call::Unknown(action) => failed(docker::unknown_action(&action)),
        _ => failed(docker::USAGE),
    }
}

fn failed(stdout: impl Into<String>) -> Answer {
    Answer::output(PROGRAM, stdout.into()).with_code(1)
}

fn input() -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut bytes);
    match read {
        Err(error) => Err(format!("reading standard input: {error}\n")),
        Ok(length) if length as u64 > MAX_INPUT => {
            Err(format!("standard input has more than {MAX_INPUT} bytes\n"))
        }
        // What is no text is no registry's host.
        Ok(_) => Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())),
    }
}

fn list() -> Answer {
    let mut notes = Notes::from_environment();
    let folder = settings::cache_folder(&mut notes);
    let kept = folder.and_then(|folder| Kept::existing(&folder).ok().flatten());
    let hosts = kept.map(|kept| kept.hosts(SystemClock.now()));
    let hosts = hosts.unwrap_or_default();
    Answer::output(PROGRAM, docker::list(hosts.iter().map(String::as_str)))
}

fn store(server: &str, notes: &mut Notes) -> Answer {
    let is_ours = host_of(server, notes).is_some();
    if !settings::ignores_logins() {
        return failed(docker::stores_none(server, is_ours));
    }
    let why = if is_ours {
        "tokens are fetched when they are needed"
    } else {
        "its images are pulled without credentials"
    };
    let server = docker::shown(server);
    let text = format!(
        "the login for {server} was not stored, as AWS_ECR_IGNORE_CREDS_STORAGE is true: {why}"
    );
    notes.add(Level::Error, text);
    Answer::output(PROGRAM, String::new())
}

fn erase(server: &str, notes: &mut Notes) -> Answer {
    let host = host_of(server, notes);
    if !settings::ignores_logins() {
        return failed(docker::stores_none(server, host.is_some()));
    }
    if let (Some(host), Some(folder)) = (host, settings::cache_folder(notes)) {
        let erased = match Kept::existing(&folder) {
            Ok(Some(kept)) => {
                let wait = LOCK_WAIT.min(settings::timeout(notes));
                kept.erase(host.as_str(), wait, || SystemClock.now())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = erased {
            notes.add(
                Level::Error,
                format!("{host}: the kept token stays: {error}"),
            );
        }
    }
    Answer::output(PROGRAM, String::new())
}

/// Returns the host of a server, or `None` if it is none of ours.
fn host_of(server: &str, notes: &mut Notes) -> Option<Host> {
    match settings::config() {
        Ok(config) => Some(docker::resolve(server, &config.rules.aliases)?.0),
        Err(error) => {
            notes.add(
                Level::Error,
                format!("ECR_INJECTOR_CONFIG: {}", error_chain(&error)),
            );
            docker::resolve(server, &Aliases::default()).map(|found| found.0)
        }
    }
}

fn get(server: &str, started: Instant, notes: &mut Notes) -> Answer {
    let config = match settings::config() {
        Ok(config) => config,
        Err(error) => {
            notes.add(
                Level::Error,
                format!("ECR_INJECTOR_CONFIG: {}", error_chain(&error)),
            );
            return failed(NOT_FOUND);
        }
    };
    let Some((host, registry)) = docker::resolve(server, &config.rules.aliases) else {
        return failed(NOT_FOUND);
    };
    let found = Lookup {
        host,
        registry,
        config,
        started,
    };
    match found.password(notes) {
        Ok(password) => Answer::output(PROGRAM, docker::credentials(server, &password)),
        Err(text) => {
            // Images of the public gallery are pulled without a token, too.
            let level = match found.registry.endpoint().service {
                Service::Private => Level::Error,
                Service::Public => Level::Info,
            };
            notes.add(level, format!("{}: {text}", found.host));
            failed(NOT_FOUND)
        }
    }
}

/// A registry whose token is wanted.
struct Lookup {
    host: Host,
    registry: Registry,
    config: Config,
    started: Instant,
}

impl Lookup {
    /// Returns the password: a kept one, or else a new one.
    fn password(&self, notes: &mut Notes) -> Result<SecretString, String> {
        if !self.config.rules.allow.permits(&self.registry) {
            return Err("the registry is not in the configuration's allow list".to_owned());
        }
        let choice = self.config.rules.identities.for_machine(&self.registry);
        for rule in choice.skipped {
            let host = &self.host;
            let text = format!(
                "{host}: identities[{rule}] is skipped: it is for certain namespaces, and there are none here"
            );
            notes.add(Level::Debug, text);
        }
        let identity = choice.identity;
        let identity = identity.map_err(|error| format!("no identity may mint: {error}"))?;
        let key = TokenKey::new(identity, &self.registry);
        let timeout = settings::timeout(notes);
        let mut place = self.place(&key, notes);
        let mut fallback = None;
        let mut lock = None;
        if let Some(found) = &place {
            let wait = LOCK_WAIT.min(timeout.saturating_sub(LEAST_FOR_MINT));
            match found.turn(self.started + wait, || SystemClock.now()) {
                Ok(Turn::Found(password)) => return Ok(password),
                Ok(Turn::Mint { held, kept }) => (lock, fallback) = (held, kept),
                Err(error) => {
                    notes.add(Level::Info, format!("no cache: {error}"));
                    place = None;
                }
            }
        }
        let token = match self.mint(key, self.started + timeout) {
            Ok(token) => token,
            Err(Failure {
                text,
                is_unavailable,
            }) => {
                let Some(kept) = fallback.filter(|_| is_unavailable) else {
                    return Err(text);
                };
                notes.add(
                    Level::Info,
                    format!("{}: using the kept token: {text}", self.host),
                );
                return Ok(kept);
            }
        };
        if let Some(place) = place
            && let Err(error) = place.keep(self.host.as_str(), &token, SystemClock.now())
        {
            notes.add(Level::Info, format!("the token is not written: {error}"));
        }
        drop(lock);
        Ok(token.password().clone())
    }

    /// Returns where the token is kept. What can't be told for certain has no place: a token must
    /// not be found by somebody else's key.
    fn place(&self, key: &TokenKey, notes: &mut Notes) -> Option<Place> {
        let folder = settings::cache_folder(notes)?;
        let fingerprint = match key.identity.profile() {
            Some(profile) => Fingerprint::of_profile(profile),
            None => Fingerprint::ambient(),
        };
        let fingerprint = match fingerprint {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                notes.add(Level::Info, format!("no cache: {error}"));
                return None;
            }
        };
        let kept = match Kept::open(&folder) {
            Ok(kept) => kept,
            Err(error) => {
                notes.add(Level::Info, format!("no cache: {error}"));
                return None;
            }
        };
        let base = format!("{fingerprint} {}", endpoints_of_environment());
        // The token of a role isn't the access key's.
        let is_role = matches!(key.identity, Identity::Role(_));
        let access_key_id = fingerprint.access_key_id().filter(|_| !is_role);
        Some(Place {
            kept,
            key: CacheKey::new(&base, key, self.host.as_str()),
            keys: access_key_id.map(|id| Keys::new(id, &self.registry)),
        })
    }

    fn mint(&self, key: TokenKey, ends: Instant) -> Result<Token, Failure> {
        let bundle = env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
        let trust = Trust::load(bundle.as_deref().map(Path::new));
        let trust = trust
            .map_err(|error| Failure::of(format!("AWS_CA_BUNDLE: {}", error_chain(&error))))?;
        tls::install_crypto_provider();
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let runtime = runtime.map_err(|error| Failure::of(format!("starting: {error}")))?;
        let request = MintRequest {
            key,
            web_identity: None,
            session_cap: self.config.session_cap,
            endpoints: self.config.endpoints.clone(),
            tries: TRIES,
        };
        let minted = runtime.block_on(async {
            let http = HttpClients::single_use(&trust);
            let environment = AwsEnvironment::read(http, None, Arc::default()).await;
            mint_once(environment, &request, ends).await
        });
        // A name that is still being resolved is nobody's concern.
        runtime.shutdown_background();
        minted.map_err(|error| Failure {
            is_unavailable: error.is_unavailable(),
            text: error_chain(&error),
        })
    }
}

/// Why there is no new token.
struct Failure {
    text: String,
    /// Whether AWS couldn't be asked, which says nothing about the identity.
    is_unavailable: bool,
}

impl Failure {
    fn of(text: String) -> Self {
        Self {
            text,
            is_unavailable: false,
        }
    }
}
