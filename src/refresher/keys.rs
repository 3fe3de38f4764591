//! Which tokens are being minted or can't be had, and who waits for them: an outage costs some calls a token, however many
//! namespaces wait for it, and holds up nobody else.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::schedule::backoff;
use crate::{
    namespace::Namespace,
    registry::Region,
    token::{TokenKey, cache::MintError},
};

/// The tokens that are not simply there.
#[derive(Debug, Default)]
pub(super) struct Keys {
    troubles: HashMap<TokenKey, Trouble>,
    /// For which tokens each namespace waits.
    waits: HashMap<Namespace, Wait>,
    /// What is to be minted and isn't yet, by when it was asked for.
    queue: BTreeMap<u64, TokenKey>,
    asked: u64,
    /// How many of each region's are being minted.
    minting: HashMap<Region, usize>,
    retries: Retries,
}

/// Whether what has failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Retries {
    /// After a pause.
    #[default]
    AfterAPause,
    /// Not at all.
    Never,
}

#[derive(Debug)]
struct Wait {
    keys: BTreeSet<TokenKey>,
    /// When the namespace was due.
    due: Timestamp,
}

#[derive(Debug)]
struct Trouble {
    stage: Stage,
    failures: u32,
    /// Why it couldn't be had the last time, if ever.
    error: Option<MintError>,
    /// Who asked during the first flight, and doesn't know how it ends.
    asking: HashSet<Namespace>,
    /// Who knows that it can't be had, and waits.
    waiting: HashSet<Namespace>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Minting,
    /// Not to be tried again before then; `None`: not at all.
    Pausing(Option<Instant>),
}

/// What is known of a token that is wanted.
#[derive(Debug)]
pub(super) enum Standing<'a> {
    /// Nobody has asked for it.
    Free,
    /// It is on its way.
    Minting,
    /// It couldn't be had, by this error, and nobody need wait for the next try's end.
    Failing(&'a MintError),
}

impl Stage {
    fn is_over(self, now: Instant) -> bool {
        matches!(self, Self::Pausing(Some(until)) if until <= now)
    }
}

impl Keys {
    /// None yet.
    pub(super) fn new(retries: Retries) -> Self {
        Self {
            retries,
            ..Self::default()
        }
    }

    /// How a token stands.
    pub(super) fn standing(&self, key: &TokenKey, now: Instant) -> Standing<'_> {
        match self.troubles.get(key) {
            None => Standing::Free,
            Some(trouble) if trouble.stage.is_over(now) => Standing::Free,
            Some(Trouble {
                error: Some(error), ..
            }) => Standing::Failing(error),
            Some(_) => Standing::Minting,
        }
    }

    /// It is to be minted from now on, in its turn.
    pub(super) fn start(&mut self, key: &TokenKey) {
        let trouble = self.troubles.entry(key.clone()).or_insert_with(|| Trouble {
            stage: Stage::Minting,
            failures: 0,
            error: None,
            asking: HashSet::new(),
            waiting: HashSet::new(),
        });
        trouble.stage = Stage::Minting;
        self.asked += 1;
        self.queue.insert(self.asked, key.clone());
    }

    /// The next one to mint: of the region that has the fewest under way, for one that doesn't answer is not to hold up the
    /// others; what has failed the least; what was asked for last.
    pub(super) fn take_first(&mut self) -> Option<TokenKey> {
        let rank = |(asked, key): &(&u64, &TokenKey)| {
            let under_way = self.minting.get(&key.region).copied().unwrap_or_default();
            let failures = self.troubles.get(key).map_or(0, |trouble| trouble.failures);
            (under_way, failures, Reverse(**asked))
        };
        let asked = *self.queue.iter().min_by_key(rank)?.0;
        let key = self.queue.remove(&asked)?;
        *self.minting.entry(key.region.clone()).or_default() += 1;
        Some(key)
    }

    /// One that was taken is minted no more, whatever came of it.
    pub(super) fn minted(&mut self, key: &TokenKey) {
        if let Some(count) = self.minting.get_mut(&key.region) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.minting.remove(&key.region);
            }
        }
    }

    /// When the first of those was due who wait.
    pub(super) fn oldest_due(&self) -> Option<Timestamp> {
        self.waits.values().map(|wait| wait.due).min()
    }

    /// A namespace that was due then waits for these, and for no others any more.
    pub(super) fn wait(
        &mut self,
        namespace: &Namespace,
        lacking: BTreeSet<TokenKey>,
        due: Timestamp,
    ) {
        self.leave(namespace);
        for key in &lacking {
            if let Some(trouble) = self.troubles.get_mut(key) {
                let waiters = match trouble.error {
                    None => &mut trouble.asking,
                    Some(_) => &mut trouble.waiting,
                };
                waiters.insert(namespace.clone());
            }
        }
        let wait = Wait { keys: lacking, due };
        self.waits.insert(namespace.clone(), wait);
    }

    /// A namespace waits no more.
    pub(super) fn leave(&mut self, namespace: &Namespace) {
        let wait = self.waits.remove(namespace);
        for key in wait.into_iter().flat_map(|wait| wait.keys) {
            if let Some(trouble) = self.troubles.get_mut(&key) {
                trouble.asking.remove(namespace);
                trouble.waiting.remove(namespace);
            }
        }
    }

    /// It is there. All who waited for it, and how often it had failed.
    pub(super) fn landed(&mut self, key: &TokenKey) -> (HashSet<Namespace>, u32) {
        let trouble = self.troubles.remove(key);
        self.queue.retain(|_, queued| queued != key);
        let (waiting, failures) = trouble.map_or_else(Default::default, |mut trouble| {
            trouble.waiting.extend(trouble.asking);
            (trouble.waiting, trouble.failures)
        });
        for namespace in &waiting {
            if let Some(wait) = self.waits.get_mut(namespace) {
                wait.keys.remove(key);
                if wait.keys.is_empty() {
                    self.waits.remove(namespace);
                }
            }
        }
        (waiting, failures)
    }

    /// It can't be had. Those who don't know it yet, and how long it is left alone.
    pub(super) fn failed(
        &mut self,
        key: &TokenKey,
        error: MintError,
        now: Instant,
    ) -> (HashSet<Namespace>, Duration) {
        let Some(trouble) = self.troubles.get_mut(key) else {
            return Default::default();
        };
        trouble.failures = trouble.failures.saturating_add(1);
        // Each token by itself: in an outage, many are not to be tried again in the same moment.
        let pause = backoff(
            trouble.failures,
            &format!("{} {:?}", key.identity, key.region),
        );
        let until = (self.retries == Retries::AfterAPause).then_some(now + pause);
        trouble.stage = Stage::Pausing(until);
        trouble.error = Some(error);
        let asking = std::mem::take(&mut trouble.asking);
        trouble.waiting.extend(asking.iter().cloned());
        (asking, pause)
    }

    /// Those whose pause is over. Where somebody waits, it is to be tried again; the others are forgotten.
    pub(super) fn take_retries(&mut self, now: Instant) -> Vec<TokenKey> {
        self.troubles
            .retain(|_, trouble| !trouble.stage.is_over(now) || !trouble.waiting.is_empty());
        let over = self
            .troubles
            .iter()
            .filter(|(_, trouble)| trouble.stage.is_over(now));
        over.map(|(key, _)| key.clone()).collect()
    }

    /// When the first pause is over.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let pauses = self
            .troubles
            .values()
            .filter_map(|trouble| match trouble.stage {
                Stage::Pausing(until) => until,
                Stage::Minting => None,
            });
        pauses.min()
    }

    /// Ends all pauses: what was true before a sleep may not be now.
    pub(super) fn hurry(&mut self, now: Instant) {
        for trouble in self.troubles.values_mut() {
            if let Stage::Pausing(Some(until)) = &mut trouble.stage {
                *until = now;
            }
        }
    }

    /// Those that can't be had, or wait for their turn to be minted.
    pub(super) fn wanting(&self) -> Vec<TokenKey> {
        let is_failing = |trouble: &Trouble| matches!(trouble.stage, Stage::Pausing(_));
        let failing = self
            .troubles
            .iter()
            .filter(|(_, trouble)| is_failing(trouble));
        let failing = failing.map(|(key, _)| key);
        failing.chain(self.queue.values()).cloned().collect()
    }

    /// How many namespaces wait.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        registry::{Endpoint, Registry},
        token::cache::Call,
    };

    fn key() -> TokenKey {
        let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        let registry: Registry = host.parse().expect("valid");
        assert_eq!(Some(registry.region().clone()), Region::parse("eu-west-1"));
        TokenKey::new(Identity::Ambient, &registry)
    }

    const DUE: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn namespace(name: &str) -> Namespace {
        Namespace::parse(name).expect("valid")
    }

    fn refused() -> MintError {
        MintError::Throttled(Call::GetAuthorizationToken, "ThrottlingException".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_once_to_each_and_its_end_to_all() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        let only = || BTreeSet::from([key()]);
        keys.start(&key());
        keys.wait(&namespace("a"), only(), DUE);
        let (told, pause) = keys.failed(&key(), refused(), now);
        assert_eq!(told, HashSet::from([namespace("a")]));
        assert!(matches!(keys.standing(&key(), now), Standing::Failing(_)));
        let later = now + pause;
        assert_eq!(keys.take_retries(later), [key()]);
        keys.start(&key());
        // Nobody need wait for how this one ends.
        assert!(matches!(keys.standing(&key(), later), Standing::Failing(_)));
        keys.wait(&namespace("b"), only(), DUE);
        let (told, longer) = keys.failed(&key(), refused(), later);
        assert_eq!(told, HashSet::new(), "both know it");
        assert!(longer > pause);
        keys.wait(&namespace("b"), only(), DUE);
        assert_eq!(keys.waiting(), 2);
        let (all, failures) = keys.landed(&key());
        assert_eq!((all.len(), failures, keys.waiting()), (2, 2, 0));
        assert!(matches!(keys.standing(&key(), later), Standing::Free));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_minted_next_is_of_a_region_with_few_under_way_and_has_failed_little() {
        let of = |region: &str, role: &str| {
            let host = format!("123456789012.dkr.ecr.{region}.amazonaws.com");
            let endpoint = Endpoint {
                fips: role == "fips",
                ..Endpoint::default()
            };
            TokenKey {
                endpoint,
                ..TokenKey::new(Identity::Ambient, &host.parse().expect("valid"))
            }
        };
        let (mut keys, now) = (Keys::default(), Instant::now());
        let failing = of("eu-west-1", "");
        keys.start(&failing);
        assert_eq!(keys.take_first(), Some(failing.clone()));
        keys.minted(&failing);
        let earlier = DUE - jiff::SignedDuration::from_secs(9);
        keys.wait(&namespace("b"), BTreeSet::from([failing.clone()]), DUE);
        keys.wait(&namespace("a"), BTreeSet::from([failing.clone()]), earlier);
        keys.failed(&failing, refused(), now);
        assert_eq!(keys.oldest_due(), Some(earlier));
        keys.leave(&namespace("a"));
        assert_eq!(keys.oldest_due(), Some(DUE));
        let (first, second, landed) = (
            of("us-east-1", ""),
            of("us-east-1", "fips"),
            of("eu-west-2", ""),
        );
        for key in [&first, &second, &failing, &landed] {
            keys.start(key);
        }
        assert!(keys.wanting().contains(&landed));
        keys.landed(&landed);
        // The newest that hasn't failed; then another region's although it has; then what is left.
        let order: Vec<_> = std::iter::from_fn(|| keys.take_first()).collect();
        assert_eq!(order, [second, failing, first]);
        assert_eq!(keys.wanting(), []);
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

    #[tokio::test(start_paused = true)]
    async fn what_all_have_left_is_not_tried_again() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        keys.start(&key());
        keys.wait(&namespace("a"), BTreeSet::from([key()]), DUE);
        let (_, pause) = keys.failed(&key(), refused(), now);
        keys.leave(&namespace("a"));
        assert_eq!(
            (keys.take_retries(now + pause), keys.waiting()),
            (vec![], 0)
        );
    }
}
