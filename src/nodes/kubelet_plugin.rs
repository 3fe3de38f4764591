//! The kubelet's exec credential plugin: one request on standard input, one response on standard
//! output. Whatever needs no AWS ends before a runtime is built or credentials are loaded.

mod plan;

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _, Read as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::runtime::Builder;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use self::plan::Plan;
use super::{
    Answer,
    file_cache::{FileCache, Slot},
    flags::{self, Flags, OnOutage, Wanted},
    kubelet::{Auth, CredentialRequest, response},
};
use crate::{
    aws::{AwsEnvironment, Trust, credentials::fingerprint::Subject, http::HttpClients, restart},
    config::Config,
    process::{
        clock::{Clock as _, SystemClock},
        files::named_by,
    },
    registry::{Aliases, Registry, Service},
    telemetry::{
        error_chain::error_chain,
        printable::{cut, shortened},
    },
    tls,
    token::{MIN_LEFT, Token, USER, error::MintError, once::mint_once},
};

pub use super::flags::HELP;

/// The name of the program, which begins its messages.
pub(super) const PROGRAM: &str = "ecr-credential-provider";
/// The most bytes of a request.
const MAX_INPUT: u64 = 1 << 20;
/// How long the kubelet may keep an answer without credentials, in seconds.
const KEEP_NONE: u64 = 600;
/// The exit code of wrong usage.
const USAGE: u8 = 2;
/// A cached token is used without asking AWS until this share of its life is over, in per cent.
const FRESH_PERCENT: i64 = 50;
/// The time that a run has left for a call of its own when it stops waiting for another's.
const OWN_CALL: Duration = Duration::from_secs(10);
/// The most characters of a claim of a token that are shown.
const MAX_CLAIM: usize = 200;
const ON_A_TERMINAL: &str = "the kubelet starts this program and sends it a request; to play the kubelet, give \
                             --try 123456789012.dkr.ecr.eu-west-1.amazonaws.com/IMAGE; --help lists the flags";

/// Answers one request, read from standard input.
#[must_use]
pub fn run(arguments: &[OsString]) -> Answer {
    let started = Instant::now();
    restart::trim();
    let flags = match Flags::parse(arguments, |name| env::var_os(name)) {
        Ok(Wanted::Run(flags)) => flags,
        Ok(Wanted::Help) => return Answer::output(PROGRAM, HELP.to_owned()),
        Ok(Wanted::Version) => {
            let version = format!("{PROGRAM} (ecr-injector {})\n", env!("CARGO_PKG_VERSION"));
            return Answer::output(PROGRAM, version);
        }
        Err(error) => return Answer::failure(PROGRAM, USAGE, error.to_string()),
    };
    // Whatever takes the lines costs memory at each start.
    if flags.log != LevelFilter::OFF {
        log(&flags);
    }
    let deadline = started + flags.timeout;
    if let Some(image) = &flags.image {
        return attempt(&flags, image, deadline);
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Answer::failure(PROGRAM, USAGE, ON_A_TERMINAL);
    }
    let mut input = zeroize::Zeroizing::new(Vec::new());
    if let Err(error) = stdin.lock().take(MAX_INPUT + 1).read_to_end(&mut input) {
        return failed(format!("reading standard input: {error}"));
    }
    if input.len() as u64 > MAX_INPUT {
        return failed("standard input is longer than 1 MiB, which no request of the kubelet is");
    }
    match CredentialRequest::parse(&input) {
        Ok(request) => Run::new(&flags, &request, deadline).answer(),
        Err(error) => failed(error.to_string()),
    }
}

/// Parses the value of `--alias`.
pub fn parse_alias(text: &str) -> Result<(String, Registry), String> {
    flags::alias(text)
}

/// Has our own lines logged. Those of the SDK may hold tokens.
fn log(flags: &Flags) {
    let ours = Targets::new().with_target("ecr_injector", flags.log);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    // It fails only if there is a log already.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(ours))
        .try_init();
}

fn failed(note: impl Into<String>) -> Answer {
    Answer::failure(PROGRAM, 1, note)
}

/// Plays the kubelet for an image, and shows what it would get without the password.
fn attempt(flags: &Flags, image: &str, deadline: Instant) -> Answer {
    let request = CredentialRequest::to_json(image);
    match CredentialRequest::parse(request.as_bytes()) {
        Ok(request) => Run::new(flags, &request, deadline).answer().redacted(),
        Err(error) => failed(error.to_string()),
    }
}

/// One run, with its request.
struct Run<'a> {
    flags: &'a Flags,
    request: &'a CredentialRequest,
    host: &'a str,
    deadline: Instant,
}

/// Why there is no token.
enum Failure {
    /// A mistake, and AWS was not asked.
    Text(String),
    Mint(Box<MintError>),
    /// AWS could not be asked, and the cached token, if there is one, is over.
    Outage(Box<MintError>, Option<Token>),
}

impl<'a> Run<'a> {
    fn new(flags: &'a Flags, request: &'a CredentialRequest, deadline: Instant) -> Self {
        Self {
            flags,
            request,
            host: request.host(),
            deadline,
        }
    }

    fn answer(&self) -> Answer {
        let config = match Config::read_without_log_filter(self.flags.config.as_deref()) {
            Ok(config) => config,
            Err(error) => {
                let path = self.flags.config.as_deref();
                let flag = named_by("--config", "ECR_INJECTOR_CONFIG", path);
                return failed(format!("{flag}: {}", error_chain(&error)));
            }
        };
        let aliases = match self.aliases(config.rules.aliases.clone()) {
            Ok(aliases) => aliases,
            Err(note) => return Answer::failure(PROGRAM, USAGE, note),
        };
        let Some(registry) = self.registry(&aliases) else {
            return self.not_ours(&aliases);
        };
        if !config.rules.allow.permits(&registry) {
            return self.failed("the registry is not in the configuration's allow list");
        }
        let is_public = registry.endpoint().service == Service::Public;
        let token = self.token(&config, &registry);
        match token {
            Ok((token, note)) => {
                let answer = self.credentials(&token);
                note.into_iter().fold(answer, Answer::note)
            }
            // These images can be pulled without a token, and a bad one would prevent that.
            Err(Failure::Mint(error) | Failure::Outage(error, None))
                if is_public && matches!(*error, MintError::NoSource { .. }) =>
            {
                self.none(KEEP_NONE)
            }
            Err(Failure::Outage(error, cached)) if self.starts_cached() => {
                let password = cached
                    .as_ref()
                    .map(|token| token.password().expose_secret());
                self.auth(password.unwrap_or_default(), 0)
                    .note(self.text(Failure::Mint(error)))
            }
            Err(failure) if is_public => self.none(0).note(self.text(failure)),
            Err(failure) => self.failed(&self.plain(failure)),
        }
    }

    /// Returns the aliases of the configuration and of the flags.
    fn aliases(&self, mut aliases: Aliases) -> Result<Aliases, String> {
        for (host, registry) in &self.flags.aliases {
            let added = aliases.insert(host.clone(), registry.clone());
            added.map_err(|error| format!("--alias: {error}"))?;
        }
        Ok(if self.flags.public {
            aliases.with_public()
        } else {
            aliases
        })
    }

    /// Returns the registry of the image: that of an alias with its port, or else without.
    fn registry(&self, aliases: &Aliases) -> Option<Registry> {
        let without_port = self.host.split_once(':').map(|(name, _)| name);
        let hosts = [Some(self.host), without_port];
        hosts
            .into_iter()
            .flatten()
            .find_map(|host| Some(aliases.resolve(host)?.1))
    }

    /// Answers for a host that gets no token. A token would go to a stranger, and an error would
    /// count as the plugin's at each pull.
    fn not_ours(&self, aliases: &Aliases) -> Answer {
        if Registry::parse_public(self.host).is_some() {
            return self.none(KEEP_NONE);
        }
        let why = aliases.lookalike_host(self.host);
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        self.none(KEEP_NONE).note(format!(
            "{:?} is not a host of ECR{why}, so there are no credentials for it: matchImages in the kubelet's \
             configuration is wider than it has to be",
            shortened(self.host)
        ))
    }

    fn none(&self, keep: u64) -> Answer {
        Answer::output(PROGRAM, response(self.request.version, None, keep))
    }

    fn credentials(&self, token: &Token) -> Answer {
        let left = token.lifetime().expires_at.duration_since(now()).as_secs();
        self.auth(token.password().expose_secret(), left / 2)
    }

    fn auth(&self, password: &str, keep: i64) -> Answer {
        let auth = Auth {
            host: self.host,
            username: USER,
            password,
        };
        let keep = u64::try_from(keep).unwrap_or_default();
        Answer::output(PROGRAM, response(self.request.version, Some(auth), keep))
    }

    fn failed(&self, why: &str) -> Answer {
        failed(format!("{}: {why}", shortened(self.host)))
    }

    fn text(&self, failure: Failure) -> String {
        format!("{}: {}", shortened(self.host), self.plain(failure))
    }

    fn plain(&self, failure: Failure) -> String {
        match failure {
            Failure::Text(text) => text,
            Failure::Mint(error) | Failure::Outage(error, _) => {
                let subject = self.request.service_account.as_ref();
                let subject = subject.map(|account| account.token.expose_secret());
                let is_refused = matches!(*error, MintError::Refused(..));
                let claims = subject.filter(|_| is_refused).and_then(Subject::of);
                let claims = claims.map(|Subject { iss, sub }| {
                    let (iss, sub) = (cut(&iss, MAX_CLAIM), cut(&sub, MAX_CLAIM));
                    format!("; the token has sub {sub:?} and iss {iss:?}")
                });
                format!("{error}{}", claims.unwrap_or_default())
            }
        }
    }

    /// Returns a token from the disk or from AWS, and a note about it.
    fn token(
        &self,
        config: &Config,
        registry: &Registry,
    ) -> Result<(Token, Option<String>), Failure> {
        let plan = match &self.request.service_account {
            Some(account) => Plan::of_account(self.flags, account, config, registry),
            None => Plan::of_machine(config, registry),
        };
        let plan = plan.map_err(Failure::Text)?;
        let cache = self.flags.cache.as_deref().and_then(open_cache);
        let slot = cache.as_ref().zip(plan.key.as_deref());
        let slot = slot.map(|(cache, key)| cache.slot(key));
        let fresh = |slot: &Slot<'_>| slot.read(now()).filter(is_fresh);
        if let Some(token) = slot.as_ref().and_then(fresh) {
            return Ok((token, None));
        }
        let limit = self.left().saturating_sub(OWN_CALL);
        let _lock = slot.as_ref().and_then(|slot| slot.lock(limit));
        // Whoever had the lock may have written it.
        if let Some(token) = slot.as_ref().and_then(fresh) {
            return Ok((token, None));
        }
        match self.mint(&plan) {
            Ok(token) => {
                let written = slot.map(|slot| slot.write(&token, now()));
                if let Some(Err(error)) = written {
                    tracing::warn!(%error, "writing a token to the cache failed");
                }
                Ok((token, None))
            }
            Err(Failure::Mint(error)) if error.is_unavailable() => {
                let cached = slot.and_then(|slot| slot.read(now()));
                self.without_aws(cached, *error)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Returns what is left if AWS can't be asked. A refusal never ends here: somebody took the
    /// permission away.
    fn without_aws(
        &self,
        cached: Option<Token>,
        error: MintError,
    ) -> Result<(Token, Option<String>), Failure> {
        let has_time = |token: &Token| {
            let lifetime = token.lifetime();
            !lifetime.is_expired(now()) && lifetime.expires_at.duration_since(now()) >= MIN_LEFT
        };
        match cached {
            Some(token) if has_time(&token) => {
                let note = format!(
                    "{}: {error}; answered with the cached token",
                    shortened(self.host)
                );
                Ok((token, Some(note)))
            }
            cached => Err(Failure::Outage(Box::new(error), cached)),
        }
    }

    /// Returns whether a ServiceAccount gets a credential that may be out of date in an outage. The
    /// kubelet starts an image that it has if the credential is of the ServiceAccount that pulled
    /// it, whatever the password.
    fn starts_cached(&self) -> bool {
        let has_account = self.request.service_account.is_some();
        has_account && self.flags.on_outage == OnOutage::StartCached
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn mint(&self, plan: &Plan) -> Result<Token, Failure> {
        tls::install_crypto_provider();
        let bundle = self.flags.ca_bundle.as_deref();
        let trust = Trust::load(bundle).map_err(|error| {
            let flag = named_by("--aws-ca-bundle", "AWS_CA_BUNDLE", bundle);
            Failure::Text(format!("{flag}: {}", error_chain(&error)))
        })?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::Text(format!("starting the runtime: {error}")))?;
        let minted = runtime.block_on(async {
            let http = HttpClients::single_use(&trust);
            let environment = AwsEnvironment::read(http, None, Arc::default()).await;
            mint_once(environment, &plan.mint, self.deadline.into()).await
        });
        // Looking up a name may still block a thread, and nobody needs its result.
        runtime.shutdown_background();
        minted.map_err(|error| Failure::Mint(Box::new(error)))
    }
}

/// Opens the folder of tokens; without one, each run asks AWS.
fn open_cache(folder: &Path) -> Option<FileCache> {
    let opened = FileCache::open(folder);
    opened
        .inspect_err(|error| tracing::warn!(%error, "the folder of tokens is not used"))
        .ok()
}

fn is_fresh(token: &Token) -> bool {
    let (lifetime, now) = (token.lifetime(), now());
    !lifetime.has_used(FRESH_PERCENT, now)
        && !lifetime.is_expired(now)
        && lifetime.expires_at.duration_since(now) >= MIN_LEFT
}

fn now() -> Timestamp {
    SystemClock.now()
}
