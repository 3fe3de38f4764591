//! The figures of a soak: a row every fifteen seconds, and the verdict at the end.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ecr_injector::pull_secret::EXPIRES_AT_ANNOTATION;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, ListParams};

use crate::churn::{Churn, Pods, opted_in};
use crate::faults::Fault;
use crate::support::control_plane::target;
use crate::support::installation::PULL_SECRET;
use crate::support::{ControlPlane, Webhook, proc};
use crate::{MORTAL, STEADY};

/// A credential with less than this left is none to rely on.
const MIN_LEFT_SECONDS: f64 = 300.0;
/// The most that memory may grow, in MiB an hour.
const MAX_SLOPE: f64 = 1.0;
/// How many rows may show credentials that expired between two runs.
const MAX_STALE_ROWS: usize = 20;
/// Shorter runs show no slope.
const SLOPE_FROM_MINUTES: usize = 60;

const COLUMNS: [&str; 12] = [
    "minutes",
    "fault",
    "anonymous_mib",
    "resident_mib",
    "threads",
    "descriptors",
    "other_anonymous_mib",
    "pull_secrets",
    "least_left_seconds",
    "refreshes",
    "pods",
    "pods_without",
];

pub struct Figures {
    namespaces: Api<Namespace>,
    secrets: Api<Secret>,
    file: File,
    rows: Vec<Row>,
    /// Writes of pull secrets that replicas count, and the last count of each.
    refreshes: f64,
    counted: [f64; 2],
    /// Pods without the reference while no fault explained them, and at the last row.
    unexplained: usize,
    without: usize,
    were_lost: bool,
    earlier: Earlier,
    /// Whether credentials may have expired before the first row.
    resumes: bool,
}

/// The last row of the run that this one goes on with.
#[derive(Clone, Copy, Default)]
struct Earlier {
    minutes: f64,
    refreshes: f64,
    pods: usize,
    pods_without: usize,
}

#[derive(Clone, Copy)]
struct Row {
    hours: f64,
    anonymous: f64,
    resident: f64,
    threads: f64,
    descriptors: f64,
    /// Until the first credential expires; absent while the API server is away.
    least_left: Option<f64>,
}

impl Figures {
    /// Begins the file, or goes on with that of an earlier run.
    pub async fn start(plane: &ControlPlane, resumes: bool) -> Self {
        let path =
            std::env::var("SOAK_CSV").map_or_else(|_| target().join("soak.csv"), PathBuf::from);
        println!("figures: {}", path.display());
        let earlier = resumes.then(|| Earlier::read(&path));
        let mut file = File::options()
            .create(true)
            .write(true)
            .append(resumes)
            .truncate(!resumes)
            .open(&path)
            .unwrap();
        if !resumes {
            writeln!(file, "{}", COLUMNS.join(",")).unwrap();
        }
        Self {
            namespaces: Api::all(plane.admin().await),
            secrets: Api::all(plane.admin().await),
            file,
            rows: Vec::new(),
            refreshes: 0.0,
            counted: [0.0; 2],
            unexplained: 0,
            without: 0,
            were_lost: false,
            earlier: earlier.unwrap_or_default(),
            resumes,
        }
    }

    pub async fn sample(
        &mut self,
        replicas: &[Webhook],
        churn: &Churn,
        fault: Fault,
        elapsed: Duration,
    ) {
        let is_paused = fault == Fault::Paused || fault == Fault::Killed;
        for (index, replica) in replicas.iter().enumerate() {
            if index == MORTAL && is_paused {
                continue;
            }
            let count = replica.metric("ecr_injector_refreshes_total").await;
            let before = std::mem::replace(&mut self.counted[index], count);
            // A replica that was started again counts from zero.
            self.refreshes += if count < before {
                count
            } else {
                count - before
            };
        }
        let lives = self.lives().await;
        let pid = replicas[STEADY].pid();
        let row = Row {
            hours: elapsed.as_secs_f64() / 3600.0,
            anonymous: proc::mebibytes(pid, "RssAnon"),
            resident: proc::mebibytes(pid, "VmRSS"),
            threads: entries(pid, "task"),
            descriptors: entries(pid, "fd"),
            least_left: lives.iter().copied().reduce(f64::min),
        };
        self.rows.push(row);
        let pods = churn.pods();
        let lost = fault.loses_reviews();
        if !lost && !self.were_lost {
            self.unexplained += pods.without - self.without;
        }
        (self.without, self.were_lost) = (pods.without, lost);
        let other = if is_paused {
            String::new()
        } else {
            let anonymous = proc::mebibytes(replicas[MORTAL].pid(), "RssAnon");
            format!("{anonymous:.2}")
        };
        let left = row
            .least_left
            .map_or(String::new(), |left| format!("{left:.0}"));
        writeln!(
            self.file,
            "{:.2},{fault:?},{:.2},{:.2},{:.0},{:.0},{other},{},{left},{:.0},{},{}",
            self.earlier.minutes + row.hours * 60.0,
            row.anonymous,
            row.resident,
            row.threads,
            row.descriptors,
            lives.len(),
            self.earlier.refreshes + self.refreshes,
            self.earlier.pods + pods.stored,
            self.earlier.pods_without + pods.without
        )
        .unwrap();
    }

    /// The seconds that each pull secret of an opted-in namespace has left; none while the API
    /// server doesn't answer.
    async fn lives(&self) -> Vec<f64> {
        // Nothing can be renewed in a namespace that is being deleted.
        let Ok(living) = opted_in(&self.namespaces).await else {
            return Vec::new();
        };
        let living: HashSet<String> = living.into_iter().collect();
        let named = ListParams::default().fields(&format!("metadata.name={PULL_SECRET}"));
        let Ok(listed) = self.secrets.list_metadata(&named).await else {
            return Vec::new();
        };
        let now = Timestamp::now();
        let expiries = listed.items.iter().filter_map(|secret| {
            let namespace = secret.metadata.namespace.as_ref()?;
            let annotations = secret.metadata.annotations.as_ref()?;
            let expiry = annotations.get(EXPIRES_AT_ANNOTATION)?;
            let expiry = expiry.parse::<Timestamp>().ok()?;
            living.contains(namespace).then_some(expiry)
        });
        expiries
            .map(|expiry| expiry.duration_since(now).as_secs_f64())
            .collect()
    }

    /// Prints the verdict.
    ///
    /// # Panics
    ///
    /// Panics if anything grew, expired, or was stored without the reference.
    pub fn report(&self, pods: &Pods, namespaces: usize, minutes: usize) {
        // Caches and the allocator fill in the first quarter.
        let later = &self.rows[self.rows.len() / 4..];
        let slope = |of: fn(&Row) -> f64| slope(later, of);
        let (anonymous, resident) = (slope(|row| row.anonymous), slope(|row| row.resident));
        let (threads, descriptors) = (slope(|row| row.threads), slope(|row| row.descriptors));
        let mut lives: Vec<f64> = self.rows.iter().filter_map(|row| row.least_left).collect();
        if self.resumes {
            let stale = lives
                .iter()
                .take_while(|left| **left < MIN_LEFT_SECONDS)
                .count();
            println!("rows until all that had expired was renewed: {stale}");
            assert!(stale <= MAX_STALE_ROWS, "what has expired isn't renewed");
            lives.drain(..stale);
        }
        let least = lives.into_iter().fold(f64::INFINITY, f64::min);
        let peak = self.rows.iter().map(|row| row.resident).fold(0.0, f64::max);
        #[expect(clippy::cast_precision_loss, reason = "a count of some thousands")]
        let renewals = (self.earlier.refreshes + self.refreshes) / namespaces as f64;
        println!(
            "anonymous memory: {anonymous:+.2} MiB/h; resident: {resident:+.2} MiB/h, at most {peak:.1} MiB"
        );
        println!("threads: {threads:+.2}/h; descriptors: {descriptors:+.2}/h");
        println!("least life of a credential: {least:.0} s; writes per namespace: {renewals:.1}");
        println!(
            "{} Pods stored, {} of them without the reference, {} while no fault explained it; {} not stored",
            pods.stored, pods.without, self.unexplained, pods.failed
        );
        assert!(
            least >= MIN_LEFT_SECONDS,
            "a credential had {least:.0} s left"
        );
        assert_eq!(
            self.unexplained, 0,
            "Pods were stored without the reference"
        );
        if minutes < SLOPE_FROM_MINUTES {
            println!("a run of less than {SLOPE_FROM_MINUTES} minutes shows no trend");
            return;
        }
        assert!(
            anonymous < MAX_SLOPE && resident < MAX_SLOPE,
            "memory grows"
        );
        assert!(
            threads < 1.0 && descriptors < 10.0,
            "threads or descriptors grow"
        );
    }
}

impl Earlier {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let last: Vec<&str> = text.lines().last().unwrap().split(',').collect();
        let of = |column: &str| {
            let place = COLUMNS.iter().position(|name| *name == column).unwrap();
            last[place]
        };
        Self {
            minutes: of("minutes").parse().unwrap(),
            refreshes: of("refreshes").parse().unwrap(),
            pods: of("pods").parse().unwrap(),
            pods_without: of("pods_without").parse().unwrap(),
        }
    }
}

/// The slope of a figure by least squares, per hour.
#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
fn slope(rows: &[Row], of: fn(&Row) -> f64) -> f64 {
    let count = rows.len() as f64;
    let mean = |of: &dyn Fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(&|row| row.hours), mean(&of));
    let covariance = mean(&|row| (row.hours - x) * (of(row) - y));
    covariance / mean(&|row| (row.hours - x).powi(2))
}

#[expect(clippy::cast_precision_loss, reason = "a count of some dozens")]
fn entries(pid: u32, folder: &str) -> f64 {
    fs::read_dir(format!("/proc/{pid}/{folder}"))
        .unwrap()
        .count() as f64
}
