//! The configuration's file while the process runs: read again whenever it changes.
//!
//! It is read every few seconds and compared: a kubelet changes a mounted `ConfigMap` by swapping a symlink, and a notice of
//! the file system tells of that only to who watches the right folder. What is new is taken once it was read twice running.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    Config, ConfigError,
    live::Live,
    metrics::{ConfigMetrics, Reload},
};
use crate::process::clock::Clock;

/// How often the file is compared with what is in use.
pub const PERIOD: Duration = Duration::from_secs(5);

/// A file that is watched, from what it held last.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    /// What is in use, as it was read.
    taken: String,
    /// What was read last, if it was new then.
    seen: Option<String>,
    refused: Option<Refused>,
}

/// What can't be used.
#[derive(Debug)]
struct Refused {
    /// What was read, if anything could be.
    text: Option<String>,
    complaint: String,
}

impl Watched {
    /// Reads a file, and what is to be in use at first.
    pub fn load(path: &Path) -> Result<(Config, Self), ConfigError> {
        let taken = super::text_of(path)?;
        let config = Config::parse(&taken, &path.display().to_string())?;
        let watched = Self {
            path: path.to_owned(),
            taken,
            seen: None,
            refused: None,
        };
        Ok((config, watched))
    }

    /// Puts to use what the file holds whenever that changes and is good, until the future is dropped. What isn't good is
    /// refused as a whole with the reason, and the last good one stays.
    pub async fn follow(
        mut self,
        live: Live,
        clock: Arc<dyn Clock>,
        metrics: Arc<ConfigMetrics>,
        period: Duration,
    ) {
        loop {
            sleep(period).await;
            self.look(&live, &*clock, &metrics);
        }
    }

    fn look(&mut self, live: &Live, clock: &dyn Clock, metrics: &ConfigMetrics) {
        let text = match super::text_of(&self.path) {
            Ok(text) => text,
            Err(error) => return self.refuse(None, &error, metrics),
        };
        let refused = self.refused.as_ref();
        if refused.is_some_and(|refused| refused.text.as_ref() == Some(&text)) {
            return;
        }
        if text == self.taken {
            self.seen = None;
            return self.is_as_before(metrics);
        }
        // Whoever writes a file in place empties it first, and the first half of a configuration is one too.
        if self.seen.as_ref() != Some(&text) {
            self.seen = Some(text);
            return;
        }
        self.seen = None;
        match Config::parse(&text, &self.path.display().to_string()) {
            Ok(config) => {
                let kept = live.replace(config);
                self.taken = text;
                self.refused = None;
                self.took(&kept, clock, metrics);
            }
            Err(error) => self.refuse(Some(text), &error, metrics),
        }
    }

    fn took(&self, kept: &[&str], clock: &dyn Clock, metrics: &ConfigMetrics) {
        metrics.reload(Reload::Applied);
        metrics.applied(clock.now());
        metrics.reload_successful.set(1);
        metrics.restart_required.set(i64::from(!kept.is_empty()));
        let path = self.path.display();
        let generation = metrics.generation.get();
        tracing::info!(%path, generation, "reloaded the configuration");
        if !kept.is_empty() {
            let fields = kept.join(", ");
            tracing::warn!(%path, %fields, "some changed fields need a restart to take effect: kubectl rollout restart");
        }
    }

    /// The file holds again what is in use.
    fn is_as_before(&mut self, metrics: &ConfigMetrics) {
        if self.refused.take().is_some() {
            metrics.reload_successful.set(1);
            let path = self.path.display();
            tracing::info!(%path, "configuration file matches the configuration in use again");
        }
    }

    fn refuse(&mut self, text: Option<String>, error: &ConfigError, metrics: &ConfigMetrics) {
        let complaint = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let before = self.refused.as_ref().map(|refused| &refused.complaint);
        if before != Some(&complaint) {
            // What the YAML parser shows of the file in further lines is for a terminal.
            let error = complaint.lines().next().unwrap_or_default();
            tracing::error!(%error, "rejected the changed configuration; the last valid one stays in use");
            metrics.reload(Reload::Refused);
        }
        metrics.reload_successful.set(0);
        self.refused = Some(Refused { text, complaint });
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{
        cli::metrics::Metrics, cluster::namespace::Namespace, process::clock::SystemClock,
        rules::OnFailure,
    };

    /// A file, who follows it, and what is counted.
    struct Bed {
        folder: TempDir,
        live: Live,
        metrics: Metrics,
    }

    impl Bed {
        /// A file with this text that is followed.
        fn following(text: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("config.yaml"), text).expect("written");
            Self::over(folder)
        }

        fn over(folder: TempDir) -> Self {
            let path = folder.path().join("config.yaml");
            let (config, watched) = Watched::load(&path).expect("good");
            let live = Live::new(config, Namespace::parse("ecr-injector"));
            let metrics = Metrics::default();
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            metrics.config.applied(clock.now());
            tokio::spawn(watched.follow(live.clone(), clock, metrics.config.clone(), PERIOD));
            Self {
                folder,
                live,
                metrics,
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("config.yaml")
        }

        /// Changes the file and lets the follower look at it.
        async fn write(&self, text: &str) {
            std::fs::write(self.path(), text).expect("written");
            two_periods_later().await;
        }

        /// Returns the generation, how many files were applied and rejected, whether the last reload was successful, and
        /// whether a restart is required.
        fn counted(&self) -> [i64; 5] {
            let text = self.metrics.registry.to_text();
            [
                "config_generation",
                r#"config_reloads_total{outcome="applied"}"#,
                r#"config_reloads_total{outcome="rejected"}"#,
                "config_last_reload_successful",
                "config_restart_required",
            ]
            .map(|series| {
                let prefix = format!("ecr_injector_{series} ");
                let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
                line.unwrap_or_else(|| panic!("{series} not in:\n{text}"))
                    .parse()
                    .expect("a number")
            })
        }

        fn denies(&self) -> bool {
            self.live.rules.get().on_failure == OnFailure::Deny
        }
    }

    /// Lets the follower look once more.
    async fn a_period_later() {
        sleep(PERIOD + Duration::from_millis(10)).await;
    }

    /// Lets it see that what is new stays.
    async fn two_periods_later() {
        sleep(2 * PERIOD + Duration::from_millis(10)).await;
    }

    const DENY: &str = "onFailure: deny\n";

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_in_use_once_it_was_read_twice() {
        let bed = Bed::following("");
        let mut follower = bed.live.follow();
        a_period_later().await;
        assert_eq!(bed.counted(), [1, 0, 0, 1, 0]);
        let text = "onFailure: deny\nrefresh: {writesPerSecond: 7, sessionCap: 1h}\nlog: {filter: debug}\n";
        bed.write(text).await;
        assert!(bed.denies());
        assert_eq!(bed.live.policy.get().writes_per_second, 7);
        let cap = crate::token::SessionCap::After(3600);
        assert_eq!(*bed.live.session_cap.get(), cap);
        let told = follower.next().await;
        assert_eq!(told.log_filter.as_deref(), Some("debug"));
        a_period_later().await;
        assert_eq!(bed.counted(), [2, 1, 0, 1, 0], "taken once");
        assert!(
            bed.metrics
                .registry
                .to_text()
                .contains("config_last_reload_success_timestamp_seconds 1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_file_keeps_the_old_one_in_use_until_it_is_good() {
        let bed = Bed::following(DENY);
        a_period_later().await;
        let bad = [
            "onFailure: [",
            "onFailure: explode",
            "onFailure: admit\nsecretNam: x",
            "onFailure: admit\nallow: {accounts: [\"12\"]}",
            "onFailure: admit\nlog: {filter: \"x=y=z\"}",
        ];
        for (refused, text) in (1..).zip(bad) {
            bed.write(text).await;
            a_period_later().await;
            assert!(bed.denies(), "{text}");
            assert_eq!(bed.counted(), [1, 0, refused, 0, 0], "{text}");
        }
        std::fs::remove_file(bed.path()).expect("removed");
        a_period_later().await;
        a_period_later().await;
        assert!(bed.denies(), "a missing file");
        assert_eq!(bed.counted(), [1, 0, 6, 0, 0]);

        bed.write("onFailure: admit").await;
        assert!(!bed.denies());
        assert_eq!(bed.counted(), [2, 1, 6, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_put_back_is_good_again_and_nothing_is_taken_anew() {
        let bed = Bed::following(DENY);
        bed.write("onFailure: explode").await;
        assert_eq!(bed.counted(), [1, 0, 1, 0, 0]);
        bed.write(DENY).await;
        assert_eq!(bed.counted(), [1, 0, 1, 1, 0]);
        // The same mistake again is told again: it was gone in between.
        bed.write("onFailure: explode").await;
        assert_eq!(bed.counted(), [1, 0, 2, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_half_written_is_neither_taken_nor_refused() {
        let bed = Bed::following(DENY);
        // The middle of each is a look.
        for half in ["", "# to be continued", "allow: {accounts: ["] {
            std::fs::write(bed.path(), half).expect("written");
            a_period_later().await;
            assert!(bed.denies(), "{half:?}");
            assert_eq!(bed.counted(), [1, 0, 0, 1, 0], "{half:?}");
        }
        bed.write("onFailure: deny\nallow: {accounts: [\"123456789012\"]}")
            .await;
        assert_eq!(bed.counted(), [2, 1, 0, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cant_change_stays_and_the_rest_of_the_file_is_in_use() {
        let bed = Bed::following("");
        let other =
            "secretName: other\noptIn: {label: example.com/x, value: \"on\"}\nonFailure: deny";
        bed.write(other).await;
        let config = bed.live.config();
        assert_eq!(config.rules.secret_name, "ecr-pull-secret");
        assert_eq!(config.opt_in, Config::default().opt_in);
        assert_eq!(bed.live.rules.get().secret_name, "ecr-pull-secret");
        assert_eq!(bed.live.policy.get().rules.secret_name, "ecr-pull-secret");
        assert!(bed.denies());
        assert_eq!(bed.counted(), [2, 1, 0, 1, 1]);
        bed.write(DENY).await;
        assert_eq!(bed.counted(), [3, 2, 0, 1, 0], "no restart is needed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_namespace_that_we_run_in_stays_excluded() {
        let bed = Bed::following("");
        bed.write("optIn: {excludeNamespaces: [infra]}").await;
        let rules = bed.live.rules.get();
        let excluded: Vec<_> = rules.excluded.iter().map(Namespace::as_str).collect();
        assert_eq!(excluded, ["ecr-injector", "infra"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_symlink_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        // As the kubelet mounts a ConfigMap: a link into a folder that is itself a link.
        let of = |name: &str| folder.path().join(name);
        for (name, text) in [("..1", ""), ("..2", DENY)] {
            std::fs::create_dir(of(name)).expect("made");
            std::fs::write(of(name).join("config.yaml"), text).expect("written");
        }
        std::os::unix::fs::symlink("..1", of("..data")).expect("linked");
        std::os::unix::fs::symlink("..data/config.yaml", of("config.yaml")).expect("linked");
        std::os::unix::fs::symlink("..2", of("..tmp")).expect("linked");
        let (tmp, data) = (of("..tmp"), of("..data"));
        let bed = Bed::over(folder);
        assert!(!bed.denies());
        std::fs::rename(tmp, data).expect("swapped");
        two_periods_later().await;
        assert!(bed.denies());
    }
}
