//! Two years of a self-managed authority, with the clock as an argument: three replicas that hear late, leaders that come
//! and go, hands that reset the registration. At each moment a client that trusts what was published up to a minute ago
//! accepts what each replica serves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ecr_injector::tls::authority::{Authority, Leaf};
use ecr_injector::tls::rotation::{Lifetimes, Step, needs_renewal};
use jiff::{SignedDuration, Timestamp};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

const BEGIN: Timestamp = Timestamp::constant(1_800_000_000, 0);
const SERVICE: &str = "ecr-injector.ecr-injector.svc";
const REPLICAS: usize = 3;
const DAY: i64 = 24 * 60 * 60;
const YEARS: i64 = 2 * 365 * DAY;
/// How long an API server may take to hear of what it is to trust.
const CLIENT_LAG: i64 = 60;
/// While something changes, and otherwise.
const FINE: i64 = 5;
const COARSE: i64 = 600;

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        i64::try_from(self.0 % below.unsigned_abs()).unwrap()
    }
}

struct Replica {
    /// The Secret as it was heard of last, and when that changes.
    view: Arc<Authority>,
    hears: Vec<(Timestamp, Arc<Authority>)>,
    deaf_until: Timestamp,
    leaf: (u64, Leaf),
}

struct World {
    now: Timestamp,
    dice: Dice,
    secret: Arc<Authority>,
    /// The registration's CA bundles, each with the start of its trust; the last one counts.
    published: Vec<(Timestamp, String)>,
    published_since: Option<Timestamp>,
    /// Somebody reset the registration; until then the registration isn't repaired.
    reset_until: Option<Timestamp>,
    leaderless_until: Timestamp,
    replicas: Vec<Replica>,
    leaves: u64,
    steps: Vec<(Timestamp, Step)>,
    changed_at: Timestamp,
    verified: HashMap<(u64, String), bool>,
}

impl World {
    fn new(seed: u64) -> Self {
        let secret = Arc::new(Authority::new(BEGIN, Lifetimes::default()).unwrap());
        let replicas = (0..REPLICAS)
            .map(|number| Replica {
                view: secret.clone(),
                hears: Vec::new(),
                deaf_until: BEGIN,
                leaf: (number as u64, secret.sign(SERVICE, BEGIN).unwrap()),
            })
            .collect();
        Self {
            now: BEGIN,
            dice: Dice(seed),
            published: vec![(BEGIN, secret.bundle())],
            published_since: Some(BEGIN),
            reset_until: None,
            leaderless_until: BEGIN,
            secret,
            replicas,
            leaves: REPLICAS as u64,
            steps: Vec::new(),
            changed_at: BEGIN,
            verified: HashMap::new(),
        }
    }

    fn run(&mut self) {
        while self.now < BEGIN + seconds(YEARS) {
            let is_quiet = self.now > self.changed_at + seconds(30 * 60);
            let pace = if is_quiet { COARSE } else { FINE };
            self.now += seconds(pace);
            self.misfortune(pace);
            self.lead();
            self.no_leaf_has_expired();
            self.serve();
            self.check();
        }
    }

    /// Lets misfortunes happen at any time: each once in some days.
    fn misfortune(&mut self, pace: i64) {
        if self.dice.roll(10 * DAY) < pace {
            self.leaderless_until = self.now + seconds(self.dice.roll(3 * DAY));
        }
        if self.dice.roll(DAY) < pace {
            self.reset_until = Some(self.now + seconds(self.dice.roll(30)));
        }
        for index in 0..REPLICAS {
            if self.dice.roll(7 * DAY) < pace {
                self.replicas[index].deaf_until = self.now + seconds(self.dice.roll(20 * 60 * 60));
            }
        }
        // Somebody asks for a new one, about each month.
        if self.dice.roll(30 * DAY) < pace && self.secret.stage().next.is_none() {
            let why = ecr_injector::tls::rotation::Renewal::Requested;
            let stage = self.secret.stage();
            if stage.old.is_empty() && stage.step(None, self.now).is_none() {
                self.step(Step::Prepare(why));
            }
        }
    }

    fn lead(&mut self) {
        if self.now < self.leaderless_until {
            // The next leader hasn't seen it published.
            self.published_since = None;
            return;
        }
        if self.reset_until.is_some_and(|until| self.now < until) {
            self.published_since = None;
            return;
        }
        self.reset_until = None;
        let bundle = self.secret.bundle();
        if self
            .published
            .last()
            .is_none_or(|(_, held)| *held != bundle)
        {
            self.published.push((self.now, bundle));
            self.changed_at = self.now;
            self.published_since = None;
        }
        let since = *self.published_since.get_or_insert(self.now);
        if let Some(step) = self.secret.stage().step(Some(since), self.now) {
            self.step(step);
            self.published_since = None;
        }
    }

    fn step(&mut self, step: Step) {
        self.secret = Arc::new(self.secret.after(step, self.now).unwrap());
        self.steps.push((self.now, step));
        self.changed_at = self.now;
        for replica in &mut self.replicas {
            let hears = self.now.max(replica.deaf_until) + seconds(self.dice.roll(40));
            replica.hears.push((hears, self.secret.clone()));
        }
    }

    fn serve(&mut self) {
        for replica in &mut self.replicas {
            if let Some(at) = replica.hears.iter().rposition(|(at, _)| *at <= self.now) {
                replica.view = replica.hears[at].1.clone();
                replica.hears.drain(..=at);
            }
            let (_, leaf) = &replica.leaf;
            let is_good =
                replica.view.signed(leaf) && needs_renewal(&leaf.cert.validity, self.now).is_none();
            if !is_good {
                self.leaves += 1;
                replica.leaf = (self.leaves, replica.view.sign(SERVICE, self.now).unwrap());
            }
        }
    }

    /// Also a moment before they are renewed.
    fn no_leaf_has_expired(&self) {
        for replica in &self.replicas {
            let (_, leaf) = &replica.leaf;
            assert!(leaf.cert.validity.contains(self.now), "an expired leaf");
        }
    }

    /// A client that trusts any bundle that was the published one within the last minute accepts each replica.
    fn check(&mut self) {
        let lately = self.now - seconds(CLIENT_LAG);
        let first = self
            .published
            .iter()
            .rposition(|(since, _)| *since <= lately);
        let bundles = self.published[first.unwrap_or(0)..].to_vec();
        for (number, replica) in self.replicas.iter().enumerate() {
            let (id, leaf) = &replica.leaf;
            for (_, bundle) in &bundles {
                let key = (*id, bundle.clone());
                let now = self.now;
                let accepted = *self
                    .verified
                    .entry(key)
                    .or_insert_with(|| accepts(bundle, leaf, now));
                assert!(
                    accepted,
                    "at {now} replica {number} is refused; the steps: {:?}",
                    self.steps
                );
            }
        }
    }
}

fn accepts(bundle: &str, leaf: &Leaf, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
    let at = Duration::from_secs(now.as_second().unsigned_abs());
    let name = ServerName::try_from(SERVICE).unwrap();
    let certificate = leaf.cert.certificate().unwrap();
    let at = UnixTime::since_unix_epoch(at);
    let result = verifier
        .unwrap()
        .verify_server_cert(certificate, &[], &name, &[], at);
    result.is_ok()
}

#[test]
fn replicas_are_trusted_for_two_years_of_rotations() {
    for seed in [1, 0x9E37_79B9_7F4A_7C15, 0xDEAD_BEEF] {
        let mut world = World::new(seed);
        world.run();
        let count = |which: fn(&Step) -> bool| {
            let steps = world.steps.iter().filter(|(_, step)| which(step));
            steps.count()
        };
        let promoted = count(|step| *step == Step::Promote);
        assert!(promoted >= 3, "seed {seed}: {:?}", world.steps);
        assert!(count(|step| *step == Step::Retire) + 1 >= promoted);
        assert_eq!(count(|step| matches!(step, Step::Replace(_))), 0);
        println!(
            "seed {seed}: {} steps, {promoted} changes of the authority, {} certificates, {} pairs verified",
            world.steps.len(),
            world.leaves,
            world.verified.len()
        );
        assert!(
            world
                .published
                .iter()
                .all(|(_, bundle)| bundle.matches("BEGIN").count() <= 3)
        );
    }
}
