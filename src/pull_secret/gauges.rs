//! What the pull secrets are worth: measured at each scrape, on every replica, from what its own watches know. So an alert
//! works also when nobody leads, which is when it is needed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::{Knowledge, Unverified, is_public, state::State, store::PullSecrets};
use crate::{
    admission::decide::Rules,
    clock::Clock,
    current::Current,
    identity::IdentityHash,
    metrics::Metrics,
    namespace::store::Namespaces,
    registry::{Aliases, Host},
    token::Freshness,
};

/// The most series by identity and region: those that expire first. Rules may give each namespace an identity of its own,
/// and whoever may edit a pull secret can invent some.
const MAX_IDENTITIES: usize = 100;
/// Scrapes that follow each other faster show the same. Anybody who reaches the port may scrape, and with ten thousand
/// pull secrets to measure takes some milliseconds.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The region of a host that isn't an ECR registry, such as an alias that the configuration has no more.
const UNKNOWN_REGION: &str = "unknown";

/// What a pull secret is worth. Of several hosts the worst counts, and of these four the later is the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Worth {
    /// Each credential is fresh.
    Fresh,
    /// A credential should be renewed by now.
    Due,
    /// A host has no credential yet.
    Intent,
    /// A credential is expired, or too near to it to be used.
    Expired,
    /// It has no host.
    Empty,
    /// It isn't ours.
    Foreign,
    /// Nobody looked at it yet, and its state can't be read.
    Unverified,
    /// We looked, and somebody else had changed it.
    Tampered,
    /// It is kept fresh no longer.
    Retired,
}

impl Worth {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Fresh,
        Self::Due,
        Self::Intent,
        Self::Expired,
        Self::Empty,
        Self::Foreign,
        Self::Unverified,
        Self::Tampered,
        Self::Retired,
    ];

    /// As a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Due => "due",
            Self::Intent => "intent",
            Self::Expired => "expired",
            Self::Empty => "empty",
            Self::Foreign => "foreign",
            Self::Unverified => "unverified",
            Self::Tampered => "tampered",
            Self::Retired => "retired",
        }
    }

    /// What a pull secret is worth; `None` if there is none.
    #[must_use]
    pub fn of(known: &Knowledge, now: Timestamp) -> Option<Self> {
        Some(match known {
            Knowledge::Gone(_) => return None,
            Knowledge::Foreign(_) => Self::Foreign,
            Knowledge::Unverified {
                since: Unverified::Tampered,
                ..
            } => Self::Tampered,
            // At its word where nobody looked at it yet: a replica that doesn't lead looks at none but those that admissions
            // need, and the leader at all.
            known => {
                let claims = known.claims();
                claims.map_or(Self::Unverified, |state| Self::of_state(state, now))
            }
        })
    }

    fn of_state(state: &State, now: Timestamp) -> Self {
        if state.retired {
            return Self::Retired;
        }
        let hosts = state.hosts.iter();
        let worths = hosts.map(|(host, entry)| match entry.lifetime {
            Some(life) => match life.freshness(now) {
                Freshness::Fresh => Self::Fresh,
                Freshness::Due => Self::Due,
                Freshness::Expired => Self::Expired,
            },
            // Its images pull without one.
            None if is_public(host) => Self::Fresh,
            None => Self::Intent,
        });
        worths.max().unwrap_or(Self::Empty)
    }
}

/// One pull secret to measure.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// What is known of it.
    pub known: &'a Knowledge,
    /// Whether its namespace is one whose pull secret has to be good: opted in, not excluded, not being deleted.
    pub is_served: bool,
}

/// What all pull secrets are worth at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    /// How many are worth what; together all that are there.
    pub by_worth: BTreeMap<Worth, i64>,
    /// The seconds until the first credential expires of those that are served and not retired; negative if it has.
    pub expires_in: Option<i64>,
    /// The same by identity and region, the first before the others.
    pub identities: Vec<(IdentityHash, String, i64)>,
}

/// Measures all pull secrets.
#[must_use]
pub fn measure<'a>(
    subjects: impl IntoIterator<Item = Subject<'a>>,
    aliases: &Aliases,
    now: Timestamp,
) -> Figures {
    let mut by_worth = BTreeMap::new();
    // There are few hosts, so their regions are looked for in the end.
    let mut first: HashMap<(IdentityHash, &Host), Timestamp> = HashMap::new();
    for Subject { known, is_served } in subjects {
        let Some(worth) = Worth::of(known, now) else {
            continue;
        };
        *by_worth.entry(worth).or_default() += 1;
        let counts = is_served && !matches!(worth, Worth::Tampered | Worth::Retired);
        let state = known.claims().filter(|_| counts);
        for (host, entry) in state.iter().flat_map(|state| state.hosts.iter()) {
            if let Some(life) = entry.lifetime {
                let first = first.entry((entry.identity, host));
                let soonest = first.or_insert(life.expires_at);
                *soonest = life.expires_at.min(*soonest);
            }
        }
    }
    let left = |expires_at: Timestamp| expires_at.as_second() - now.as_second();
    let expires_in = first.values().copied().min().map(left);
    let mut regions: BTreeMap<(IdentityHash, String), Timestamp> = BTreeMap::new();
    for ((identity, host), expires_at) in first {
        let registry = aliases.resolve(host.as_str());
        let region = registry.map_or(UNKNOWN_REGION.to_owned(), |(_, registry)| {
            registry.region().to_string()
        });
        let soonest = regions.entry((identity, region)).or_insert(expires_at);
        *soonest = expires_at.min(*soonest);
    }
    let mut identities: Vec<_> = regions
        .into_iter()
        .map(|((identity, region), expires_at)| (identity, region, left(expires_at)))
        .collect();
    identities.sort_by_key(|(.., seconds)| *seconds);
    identities.truncate(MAX_IDENTITIES);
    Figures {
        by_worth,
        expires_in,
        identities,
    }
}

/// Has every scrape of the metrics measure what is known then.
pub fn measure_at_each_scrape(
    metrics: &Metrics,
    secrets: PullSecrets,
    namespaces: Namespaces,
    rules: Current<Rules>,
    clock: Arc<dyn Clock>,
) {
    let measured = Mutex::new(None::<Timestamp>);
    metrics.before_each_scrape(Box::new(move |metrics| {
        let now = clock.now();
        let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.is_some_and(|at| now.duration_since(at).abs() < PAUSE) {
            return;
        }
        *measured = Some(now);
        let (rules, all) = (rules.get(), secrets.all());
        let subjects = all.iter().map(|(namespace, entry)| Subject {
            known: entry.knowledge(),
            is_served: !rules.excluded.contains(namespace)
                && namespaces
                    .peek(namespace)
                    .is_some_and(|said| !said.is_terminating),
        });
        measure(subjects, &rules.aliases, now).show(metrics);
    }));
}

impl Figures {
    fn show(&self, metrics: &Metrics) {
        for worth in Worth::ALL {
            let count = self.by_worth.get(&worth).copied().unwrap_or_default();
            metrics.in_state(worth.as_str(), count);
        }
        metrics.expires_in(self.expires_in);
        let identities = self.identities.iter();
        metrics.identities_expire_in(
            identities.map(|(identity, region, seconds)| {
                (identity.to_string(), region.as_str(), *seconds)
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicI64, Ordering::SeqCst},
    };

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::Bytes;
    use k8s_openapi::api::core::v1::Secret;
    use kube::{Client, client::Body};

    use super::*;
    use crate::{
        config::Config,
        namespace::{Namespace, changes::Changes},
        pull_secret::{Foreign, state::HostState},
        registry::Registry,
        token::Lifetime,
    };

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const EU: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const EU_TOO: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
    const US: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    const PUBLIC: &str = "public.ecr.aws";
    const ALIAS: &str = "images.example.com";

    fn identity(number: u32) -> IdentityHash {
        IdentityHash::parse(&format!("{number:016x}")).expect("valid")
    }

    fn minutes(minutes: i64) -> SignedDuration {
        SignedDuration::from_mins(minutes)
    }

    /// A state whose hosts have so many minutes of twelve hours left; `None` is an intent.
    fn state(hosts: &[(u32, &str, Option<i64>)]) -> State {
        let hosts = hosts.iter().map(|(number, host, left)| {
            let lifetime = left.map(|left| Lifetime {
                minted_at: NOW + minutes(left - 720),
                expires_at: NOW + minutes(left),
            });
            let entry = HostState {
                identity: identity(*number),
                lifetime,
            };
            (Host::parse(host).expect("valid"), entry)
        });
        State {
            hosts: hosts.collect(),
            ..State::default()
        }
    }

    fn ours(hosts: &[(u32, &str, Option<i64>)]) -> Knowledge {
        Knowledge::Ours(state(hosts))
    }

    fn unverified(since: Unverified, claims: Option<State>) -> Knowledge {
        Knowledge::Unverified {
            claims,
            before: Some(Box::new(state(&[(1, EU, Some(-60))]))),
            since,
        }
    }

    fn retired(hosts: &[(u32, &str, Option<i64>)]) -> Knowledge {
        Knowledge::Ours(State {
            retired: true,
            ..state(hosts)
        })
    }

    fn aliases() -> Aliases {
        let registry = Registry::parse(US).expect("valid");
        let aliases = Aliases::new([(ALIAS.to_owned(), registry)]);
        aliases.expect("valid").with_public()
    }

    fn figures(subjects: &[(&Knowledge, bool)]) -> Figures {
        let subjects = subjects.iter().map(|(known, is_served)| Subject {
            known,
            is_served: *is_served,
        });
        measure(subjects, &aliases(), NOW)
    }

    #[test]
    fn every_pull_secret_is_worth_one_thing() {
        for (known, expected) in [
            (ours(&[(1, EU, Some(700))]), Some(Worth::Fresh)),
            (ours(&[(1, EU, Some(300))]), Some(Worth::Due)),
            // Less than five minutes.
            (ours(&[(1, EU, Some(4))]), Some(Worth::Expired)),
            (ours(&[(1, EU, Some(-1))]), Some(Worth::Expired)),
            // Longer than ECR lets any live: forged.
            (ours(&[(1, EU, Some(2000))]), Some(Worth::Expired)),
            (ours(&[(1, EU, None)]), Some(Worth::Intent)),
            (ours(&[]), Some(Worth::Empty)),
            // The worst counts.
            (
                ours(&[(1, EU, Some(700)), (1, US, Some(300))]),
                Some(Worth::Due),
            ),
            (
                ours(&[(1, EU, None), (1, US, Some(300))]),
                Some(Worth::Intent),
            ),
            (
                ours(&[(1, EU, None), (1, US, Some(-1))]),
                Some(Worth::Expired),
            ),
            // What pulls without a credential wants for none.
            (ours(&[(1, PUBLIC, None)]), Some(Worth::Fresh)),
            (ours(&[(1, PUBLIC, Some(-1))]), Some(Worth::Expired)),
            (Knowledge::Foreign(Foreign::Label), Some(Worth::Foreign)),
            (retired(&[(1, EU, Some(-1))]), Some(Worth::Retired)),
            (
                unverified(Unverified::Changed, None),
                Some(Worth::Unverified),
            ),
            (
                unverified(Unverified::Listed, None),
                Some(Worth::Unverified),
            ),
            // Taken at its word.
            (
                unverified(Unverified::Changed, Some(state(&[(1, EU, Some(700))]))),
                Some(Worth::Fresh),
            ),
            (
                unverified(Unverified::Listed, Some(state(&[(1, EU, Some(-1))]))),
                Some(Worth::Expired),
            ),
            (
                unverified(Unverified::Tampered, Some(state(&[(1, EU, Some(700))]))),
                Some(Worth::Tampered),
            ),
            (Knowledge::Gone(None), None),
        ] {
            assert_eq!(Worth::of(&known, NOW), expected, "{known:?}");
            let counted = figures(&[(&known, true)]).by_worth;
            let expected = expected.map(|worth| (worth, 1));
            assert_eq!(counted, expected.into_iter().collect(), "{known:?}");
        }
    }

    #[test]
    fn what_expires_first_is_of_a_namespace_that_is_served_and_of_no_retired_or_doubtful_secret() {
        let none = figures(&[]);
        assert_eq!((none.expires_in, none.identities.len()), (None, 0));
        let late = ours(&[(1, EU, Some(600)), (1, US, None)]);
        let soon = ours(&[(1, EU, Some(60))]);
        let over = unverified(Unverified::Listed, Some(state(&[(1, EU, Some(-2))])));
        let seconds = |subjects: &[(&Knowledge, bool)]| figures(subjects).expires_in;
        assert_eq!(seconds(&[(&late, true), (&soon, false)]), Some(36_000));
        assert_eq!(seconds(&[(&late, true), (&soon, true)]), Some(3600));
        assert_eq!(seconds(&[(&soon, true), (&over, true)]), Some(-120));
        for of_no_account in [
            retired(&[(1, EU, Some(1))]),
            ours(&[(1, EU, None)]),
            ours(&[]),
            unverified(Unverified::Tampered, Some(state(&[(1, EU, Some(1))]))),
            unverified(Unverified::Changed, None),
            Knowledge::Foreign(Foreign::Type),
            Knowledge::Gone(Some(state(&[(1, EU, Some(1))]))),
        ] {
            let figures = figures(&[(&late, true), (&of_no_account, true)]);
            assert_eq!(figures.expires_in, Some(36_000), "{of_no_account:?}");
            assert_eq!(figures.identities.len(), 1, "{of_no_account:?}");
        }
    }

    #[test]
    fn each_identity_has_a_series_a_region() {
        let one = ours(&[(1, EU, Some(60)), (1, US, Some(50)), (2, EU_TOO, Some(40))]);
        let two = ours(&[
            (1, EU_TOO, Some(30)),
            (1, ALIAS, Some(20)),
            (2, EU, Some(45)),
        ]);
        let three = ours(&[(3, PUBLIC, Some(10)), (3, "gone.example.com", Some(5))]);
        let figures = figures(&[(&one, true), (&two, true), (&three, true)]);
        let expected = [
            (3, "unknown", 300),
            (3, "us-east-1", 600),
            (1, "us-east-1", 1200),
            (1, "eu-west-1", 1800),
            (2, "eu-west-1", 2400),
        ];
        let expected = expected
            .map(|(number, region, seconds)| (identity(number), region.to_owned(), seconds));
        assert_eq!(figures.identities, expected);
    }

    #[test]
    fn of_too_many_identities_those_are_shown_that_expire_first() {
        let all: Vec<_> = (0..300)
            .map(|number| ours(&[(number, EU, Some(400 - i64::from(number)))]))
            .collect();
        let subjects: Vec<_> = all.iter().map(|known| (known, true)).collect();
        let figures = figures(&subjects);
        let shown: Vec<_> = figures.identities.iter().map(|(one, ..)| *one).collect();
        let expected: Vec<_> = (200..300).rev().map(identity).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_shown_has_every_state_and_nothing_that_is_no_more() {
        let metrics = Metrics::default();
        let known = ours(&[(0xa, EU, Some(60))]);
        figures(&[(&known, true)]).show(&metrics);
        let text = metrics.to_text();
        for line in [
            r#"ecr_injector_pull_secrets_by_state{state="due"} 1"#,
            r#"ecr_injector_pull_secrets_by_state{state="tampered"} 0"#,
            "ecr_injector_earliest_expiry_seconds 3600",
            r#"ecr_injector_identity_earliest_expiry_seconds{identity="000000000000000a",region="eu-west-1"} 3600"#,
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        let series = |text: &str| text.matches("by_state{").count();
        assert_eq!(series(&text), Worth::ALL.len());
        figures(&[]).show(&metrics);
        let text = metrics.to_text();
        assert!(!text.contains("expiry"), "{text}");
        assert!(text.contains(r#"by_state{state="due"} 0"#), "{text}");
        assert_eq!(series(&text), Worth::ALL.len());
    }

    /// It stands still until it is set.
    struct StoodClock(AtomicI64);

    impl Clock for StoodClock {
        fn now(&self) -> Timestamp {
            NOW + SignedDuration::from_millis(self.0.load(SeqCst))
        }
    }

    #[tokio::test]
    async fn each_scrape_measures_anew_but_no_more_than_once_a_second() {
        let service = tower::service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let client = Client::new(service, "default");
        let (metrics, config) = (Arc::<Metrics>::default(), Config::default());
        let secrets = PullSecrets::new(Changes::default(), metrics.clone());
        let changes = Changes::default();
        let namespaces = Namespaces::new(client, config.opt_in, changes, metrics.clone());
        let clock = Arc::new(StoodClock(AtomicI64::new(0)));
        let (rules, ticking) = (Current::new(config.rules), clock.clone());
        measure_at_each_scrape(&metrics, secrets.clone(), namespaces, rules, ticking);
        for (millis, shown) in [(0, 1), (999, 1), (1000, 3), (1500, 3), (-1000, 5)] {
            clock.0.store(millis, SeqCst);
            let namespace = Namespace::parse(&format!("at-{}", millis + 1000)).expect("valid");
            secrets.saw(&namespace, &Secret::default());
            let line = format!(r#"ecr_injector_pull_secrets_by_state{{state="foreign"}} {shown}"#);
            let text = metrics.to_text();
            assert!(text.contains(&line), "{millis}: {line} not in:\n{text}");
        }
    }
}
