//! The credentials that sign a call: the ambient ones, or those of a profile.
//!
//! They are fetched before the call and given to it, and not by the SDK below it: so their end and
//! their origin are known, and the tokens that they mint can end with them.

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_config::provider_config::ProviderConfig;
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials as _, SharedCredentialsProvider, error::CredentialsError},
};
use tokio::{sync::Mutex as AsyncMutex, time::timeout};

use super::{
    credentials::{CredentialSource, NoCredentials, PinnedChain, Source, explain},
    held::Held,
    origin::{KnownPartition, Origin},
    profile::ProfileSource,
};
use crate::{
    identity::{Profile, RoleArn},
    registry::Region,
};

/// How long finding credentials may take: more than the chain's own limit, whose error names the
/// source that timed out.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(6);

/// Credentials that sign a call.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The keys, and when they expire.
    pub credentials: Credentials,
    /// Where they come from.
    pub origin: Origin,
    /// The partition that they are certainly of.
    pub partition: Option<KnownPartition>,
}

/// Finds the credentials that sign calls.
#[derive(Debug)]
pub(super) struct Signers {
    ambient: Ambient,
    /// The ambient signer, while its credentials last. Variables and profiles are not held here:
    /// reading them again costs nothing, and a profile may change.
    held: AsyncMutex<Option<(Held, Signer)>>,
    /// The configuration of calls below a profile.
    config: ProviderConfig,
    /// The profiles that rules named so far.
    profiles: Mutex<HashMap<Profile, Arc<ProfileSource>>>,
}

#[derive(Debug)]
pub(super) enum Ambient {
    /// The sources of the environment, and the profile among them.
    Chain(PinnedChain, Arc<ProfileSource>),
    /// Credentials that the caller gave.
    Given(Option<SharedCredentialsProvider>),
}

impl Signers {
    pub(super) fn new(ambient: Ambient, config: ProviderConfig) -> Self {
        Self {
            ambient,
            held: AsyncMutex::default(),
            config,
            profiles: Mutex::default(),
        }
    }

    /// Returns the signer of a profile, or else the ambient one.
    pub(super) async fn signer(&self, profile: Option<&Profile>) -> Result<Signer, NoCredentials> {
        let found = async {
            match profile {
                Some(profile) => self.of_profile(profile).await,
                None => self.ambient().await,
            }
        };
        let found = timeout(CREDENTIALS_TIMEOUT, found).await;
        let found = found
            .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT)));
        found.map_err(|error| explain(&error))
    }

    /// Has the held credentials fetched again if they are those that AWS rejected. While others are
    /// being fetched there is nothing to do, and nothing to wait for.
    pub(super) fn reject(&self, profile: Option<&Profile>, rejected: &Credentials) {
        match (profile, &self.ambient) {
            (Some(profile), _) => self.profile(profile).reject(rejected),
            (None, Ambient::Chain(_, profile)) => {
                if let Ok(mut held) = self.held.try_lock()
                    && let Some((credentials, _)) = &mut *held
                {
                    credentials.reject(rejected);
                }
                profile.reject(rejected);
            }
            (None, Ambient::Given(_)) => {}
        }
    }

    async fn of_profile(&self, profile: &Profile) -> Result<Signer, CredentialsError> {
        let profile = self.profile(profile);
        let source = CredentialSource::of_profile(profile.clone());
        let credentials = source.credentials().await?;
        Ok(Signer {
            credentials,
            origin: source.origin,
            partition: profile.partition().await,
        })
    }

    async fn ambient(&self) -> Result<Signer, CredentialsError> {
        let (chain, profile) = match &self.ambient {
            Ambient::Chain(chain, profile) => (chain, profile),
            Ambient::Given(provider) => return given(provider.as_ref()).await,
        };
        // One caller fetches, and the others wait for the result.
        let mut held = self.held.lock().await;
        if let Some((credentials, signer)) = &mut *held
            && credentials.credentials().is_some()
        {
            return Ok(signer.clone());
        }
        let (credentials, source) = match (chain.provide().await, &*held) {
            (Ok(provided), _) => provided,
            (Err(error), Some((held, signer))) if held.unexpired().is_some() => {
                let error = explain(&error).message;
                tracing::warn!(%error, "AWS rejected credentials and no others can be fetched; using them on");
                return Ok(signer.clone());
            }
            (Err(error), _) => return Err(error),
        };
        let signer = Signer {
            credentials: credentials.clone(),
            origin: source.origin.clone(),
            partition: match source.from {
                Source::Profile => profile.partition().await,
                from => known_partition(from, |name| env::var(name).ok()),
            },
        };
        if !matches!(source.from, Source::Environment | Source::Profile) {
            match &mut *held {
                Some((held, of_then)) => {
                    held.replace(credentials);
                    *of_then = signer.clone();
                }
                None => *held = Some((Held::new(credentials), signer.clone())),
            }
        }
        Ok(signer)
    }

    fn profile(&self, profile: &Profile) -> Arc<ProfileSource> {
        let mut profiles = self.profiles();
        let source = profiles.entry(profile.clone()).or_insert_with(|| {
            let name = Some(profile.name().to_owned());
            Arc::new(ProfileSource::new(name, self.config.clone()))
        });
        source.clone()
    }

    fn profiles(&self) -> MutexGuard<'_, HashMap<Profile, Arc<ProfileSource>>> {
        self.profiles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn given(provider: Option<&SharedCredentialsProvider>) -> Result<Signer, CredentialsError> {
    let provider = provider.ok_or_else(|| CredentialsError::not_loaded("none were given"))?;
    Ok(Signer {
        credentials: provider.provide_credentials().await?,
        origin: Origin::Given,
        partition: None,
    })
}

/// Returns the partition of a source's credentials, if it is certain: that of the web identity's
/// role; for a role that the node or its agent gives, that of the node. Keys in variables may be of
/// any partition, whatever the region beside them.
fn known_partition(from: Source, value: impl Fn(&str) -> Option<String>) -> Option<KnownPartition> {
    let region = || {
        ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .into_iter()
            .find_map(|name| Some((name, Region::parse(&value(name)?)?)))
    };
    match from {
        Source::WebIdentity => {
            let role = RoleArn::parse(&value("AWS_ROLE_ARN")?)?;
            Some(KnownPartition {
                partition: role.partition(),
                because: format!("AWS_ROLE_ARN is {role}"),
            })
        }
        // Another address is that of a program that gives any credentials.
        Source::InstanceMetadata if value("AWS_EC2_METADATA_SERVICE_ENDPOINT").is_some() => None,
        Source::InstanceMetadata | Source::PodIdentity => {
            let (name, region) = region()?;
            Some(KnownPartition {
                partition: region.partition(),
                because: format!("{name} is {region}"),
            })
        }
        Source::Environment | Source::Profile | Source::Container => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::SystemTime,
    };

    use aws_credential_types::provider::{ProvideCredentials, future};

    use super::*;
    use crate::process::clock::{Clock as _, SystemClock};

    /// Gives other keys at each fetch, and fails from the third on.
    #[derive(Debug, Default)]
    struct Sessions(AtomicUsize);

    impl ProvideCredentials for Sessions {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let fetch = 1 + self.0.fetch_add(1, SeqCst);
            let expiry = SystemTime::from(SystemClock.now()) + Duration::from_hours(1);
            let keys = Credentials::new(fetch.to_string(), "secret", None, Some(expiry), "test");
            future::ProvideCredentials::ready(if fetch < 3 {
                Ok(keys)
            } else {
                Err(CredentialsError::provider_error("STS throttles"))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rejections_fetch_once_a_minute_and_keep_what_works() {
        let sessions = Arc::new(Sessions::default());
        let source = CredentialSource {
            from: Source::WebIdentity,
            origin: Origin::Source("web_identity"),
            configured: None,
            provider: sessions.clone(),
        };
        let chain = PinnedChain::from_sources(vec![source], None, Arc::default());
        let config = ProviderConfig::without_region();
        let profile = Arc::new(ProfileSource::new(None, config.clone()));
        let signers = Signers::new(Ambient::Chain(chain, profile), config);
        let keys = async || signers.signer(None).await.expect("keys").credentials;

        let first = keys().await;
        signers.reject(None, &first);
        let second = keys().await;
        assert_eq!(second.access_key_id(), "2", "revoked keys are replaced");
        for rejected in [&first, &second].into_iter().cycle().take(20) {
            signers.reject(None, rejected);
            assert_eq!(keys().await, second);
        }
        assert_eq!(sessions.0.load(SeqCst), 2, "a tenant caused more fetches");

        tokio::time::advance(Duration::from_mins(1)).await;
        signers.reject(None, &second);
        assert_eq!(keys().await, second, "others can't be fetched");
        assert_eq!(sessions.0.load(SeqCst), 3);
        assert_eq!(keys().await, second);
        assert_eq!(sessions.0.load(SeqCst), 3, "one fetch for one rejection");
    }

    #[test]
    fn partition_is_known_only_where_it_is_certain() {
        let variables = [
            ("AWS_REGION", "cn-north-1"),
            ("AWS_ROLE_ARN", "arn:aws-us-gov:iam::123456789012:role/pull"),
        ];
        let value = |name: &str| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let partition = |from| known_partition(from, value).map(|known| known.partition.as_str());
        for (from, expected) in [
            (Source::Environment, None),
            (Source::WebIdentity, Some("aws-us-gov")),
            (Source::PodIdentity, Some("aws-cn")),
            (Source::InstanceMetadata, Some("aws-cn")),
            (Source::Container, None),
        ] {
            assert_eq!(partition(from), expected, "{from}");
        }
        let nothing = known_partition(Source::PodIdentity, |_| None);
        assert_eq!(nothing, None);
        let emulated = |name: &str| {
            Some(
                if name == "AWS_REGION" {
                    "cn-north-1"
                } else {
                    "x"
                }
                .to_owned(),
            )
        };
        assert_eq!(known_partition(Source::InstanceMetadata, emulated), None);
    }
}
