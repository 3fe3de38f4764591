//! Which tokens are being minted or can't be had, and who waits for them: an outage costs some calls a token, however many
//! namespaces wait for it, and holds up nobody else.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::schedule::backoff;
use crate::{
    namespace::Namespace,
    token::{TokenKey, cache::MintError},
};

/// The tokens that are not simply there.
#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<TokenKey, Trouble>);

#[derive(Debug)]
struct Trouble {
    stage: Stage,
    failures: u32,
    error: Option<MintError>,
    /// Who asked since the flight began, and doesn't know how it ends.
    asking: HashSet<Namespace>,
    /// Who knows that it can't be had, and waits.
    waiting: HashSet<Namespace>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Minting,
    /// Not to be tried again before then.
    Pausing(Instant),
}

/// What is known of a token that is wanted.
#[derive(Debug)]
pub(super) enum Standing<'a> {
    /// Nobody has asked for it.
    Free,
    /// It is on its way.
    Minting,
    /// It can't be had now, by this error.
    Failing(&'a MintError),
}

impl Keys {
    /// How a token stands.
    pub(super) fn standing(&self, key: &TokenKey, now: Instant) -> Standing<'_> {
        match self.0.get(key) {
            Some(Trouble {
                stage: Stage::Minting,
                ..
            }) => Standing::Minting,
            Some(Trouble {
                stage: Stage::Pausing(until),
                error: Some(error),
                ..
            }) if *until > now => Standing::Failing(error),
            _ => Standing::Free,
        }
    }

    /// It is being minted from now on.
    pub(super) fn start(&mut self, key: &TokenKey) {
        let trouble = self.0.entry(key.clone()).or_insert_with(|| Trouble {
            stage: Stage::Minting,
            failures: 0,
            error: None,
            asking: HashSet::new(),
            waiting: HashSet::new(),
        });
        trouble.stage = Stage::Minting;
    }

    /// A namespace waits for it.
    pub(super) fn wait(&mut self, key: &TokenKey, namespace: &Namespace) {
        if let Some(trouble) = self.0.get_mut(key) {
            match trouble.stage {
                Stage::Minting if !trouble.waiting.contains(namespace) => {
                    trouble.asking.insert(namespace.clone());
                }
                Stage::Minting => {}
                Stage::Pausing(_) => {
                    trouble.waiting.insert(namespace.clone());
                }
            }
        }
    }

    /// It is there. All who waited for it, and how often it had failed.
    pub(super) fn landed(&mut self, key: &TokenKey) -> (HashSet<Namespace>, u32) {
        let trouble = self.0.remove(key);
        trouble.map_or_else(Default::default, |mut trouble| {
            trouble.waiting.extend(trouble.asking);
            (trouble.waiting, trouble.failures)
        })
    }

    /// It can't be had. Those who don't know it yet, and how long it is left alone.
    pub(super) fn failed(
        &mut self,
        key: &TokenKey,
        error: MintError,
        now: Instant,
    ) -> (HashSet<Namespace>, Duration) {
        let Some(trouble) = self.0.get_mut(key) else {
            return Default::default();
        };
        trouble.failures = trouble.failures.saturating_add(1);
        let pause = backoff(trouble.failures, &format!("{:?}", key.region));
        trouble.stage = Stage::Pausing(now + pause);
        trouble.error = Some(error);
        (std::mem::take(&mut trouble.asking), pause)
    }

    /// Those whose pause is over. Where somebody waits, it is to be tried again; the others are forgotten.
    pub(super) fn take_retries(&mut self, now: Instant) -> Vec<TokenKey> {
        let is_over =
            |trouble: &Trouble| matches!(trouble.stage, Stage::Pausing(until) if until <= now);
        self.0.retain(|_, trouble| {
            !is_over(trouble) || !trouble.waiting.is_empty() || !trouble.asking.is_empty()
        });
        let over = self.0.iter().filter(|(_, trouble)| is_over(trouble));
        over.map(|(key, _)| key.clone()).collect()
    }

    /// When the first pause is over.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let pauses = self.0.values().filter_map(|trouble| match trouble.stage {
            Stage::Pausing(until) => Some(until),
            Stage::Minting => None,
        });
        pauses.min()
    }

    /// Ends all pauses: what was true before a sleep may not be now.
    pub(super) fn hurry(&mut self, now: Instant) {
        for trouble in self.0.values_mut() {
            if let Stage::Pausing(until) = &mut trouble.stage {
                *until = now;
            }
        }
    }

    /// Those that can't be had.
    pub(super) fn failing(&self) -> Vec<TokenKey> {
        let failing = self
            .0
            .iter()
            .filter(|(_, trouble)| matches!(trouble.stage, Stage::Pausing(_)));
        failing.map(|(key, _)| key.clone()).collect()
    }

    /// How many namespaces wait.
    pub(super) fn waiting(&self) -> usize {
        let waiting = self.0.values();
        waiting
            .map(|trouble| trouble.waiting.len() + trouble.asking.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        registry::{Region, Registry},
        token::cache::Call,
    };

    fn key() -> TokenKey {
        let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let registry: Registry = host.parse().expect("valid");
        assert_eq!(Some(registry.region().clone()), Region::parse("eu-west-1"));
        TokenKey::new(Identity::Ambient, &registry)
    }

    fn namespace(name: &str) -> Namespace {
        Namespace::parse(name).expect("valid")
    }

    fn refused() -> MintError {
        MintError::Throttled(Call::GetAuthorizationToken, "ThrottlingException".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_once_to_each_and_its_end_to_all() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        keys.start(&key());
        keys.wait(&key(), &namespace("a"));
        let (told, pause) = keys.failed(&key(), refused(), now);
        assert_eq!(told, HashSet::from([namespace("a")]));
        keys.wait(&key(), &namespace("a"));
        assert!(matches!(keys.standing(&key(), now), Standing::Failing(_)));
        let later = now + pause;
        assert_eq!(keys.take_retries(later), [key()]);
        keys.start(&key());
        keys.wait(&key(), &namespace("a"));
        keys.wait(&key(), &namespace("b"));
        let (told, longer) = keys.failed(&key(), refused(), later);
        assert_eq!(told, HashSet::from([namespace("b")]), "a knows it");
        assert!(longer > pause);
        keys.wait(&key(), &namespace("b"));
        assert_eq!(keys.waiting(), 2);
        let (all, failures) = keys.landed(&key());
        assert_eq!((all.len(), failures), (2, 2));
        assert!(matches!(keys.standing(&key(), later), Standing::Free));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_tried_again() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        keys.start(&key());
        let (_, pause) = keys.failed(&key(), refused(), now);
        assert_eq!(keys.next_retry(), Some(now + pause));
        assert_eq!(keys.take_retries(now + pause), []);
        assert_eq!(keys.next_retry(), None);
    }
}
