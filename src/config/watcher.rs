//! Watches the configuration file: reads it again whenever it changes, and keeps the last valid one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    error::ConfigError,
    live::Live,
    load::read_text,
    metrics::{ConfigMetrics, Reload},
    resolved::Config,
};
use crate::{
    process::{
        clock::Clock,
        file_watcher::{FileChange, FileWatcher},
    },
    telemetry::{error_chain::error_chain, log_once::LogOnce},
};

/// A configuration file that was read, before it is watched.
#[derive(Debug)]
pub struct ConfigWatcher {
    path: PathBuf,
    /// The text in use, as it was read.
    text: String,
}

/// A configuration file that is watched.
struct Follower {
    path: PathBuf,
    watcher: FileWatcher<String>,
    rejection: LogOnce,
}

impl ConfigWatcher {
    /// Reads a file, and returns the first configuration with what follows the file from then on.
    pub fn load(path: &Path) -> Result<(Config, Self), ConfigError> {
        let text = read_text(path)?;
        let config = Config::parse(&text, &path.display().to_string())?;
        let path = path.to_owned();
        Ok((config, Self { path, text }))
    }

    /// Replaces the configuration whenever the file changes and is valid, until the future is
    /// dropped. An invalid file is rejected as a whole with the reason, and the last valid one stays
    /// in use.
    pub async fn follow(
        self,
        live: Live,
        clock: Arc<dyn Clock>,
        metrics: Arc<ConfigMetrics>,
        period: Duration,
    ) {
        let mut follower = Follower {
            path: self.path,
            watcher: FileWatcher::new(self.text, period),
            rejection: LogOnce::default(),
        };
        loop {
            follower.poll(&live, &*clock, &metrics).await;
        }
    }
}

impl Follower {
    async fn poll(&mut self, live: &Live, clock: &dyn Clock, metrics: &ConfigMetrics) {
        let path = self.path.clone();
        let change = self.watcher.poll(move || read_text(&path)).await;
        let text = match change {
            Ok(FileChange::Changed(text)) => text,
            Ok(FileChange::None) => return self.clear_rejection(metrics),
            Ok(FileChange::Unsettled) => return,
            Err(error) => return self.reject(&error, metrics),
        };
        match Config::parse(&text, &self.path.display().to_string()) {
            Ok(config) => {
                let kept = live.replace(config);
                self.watcher.accept(text);
                self.rejection.clear();
                self.report_applied(&kept, clock, metrics);
            }
            Err(error) => self.reject(&error, metrics),
        }
    }

    fn report_applied(&self, kept: &[&str], clock: &dyn Clock, metrics: &ConfigMetrics) {
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

    /// Ends a rejection when the file holds again what is in use.
    fn clear_rejection(&mut self, metrics: &ConfigMetrics) {
        if self.rejection.clear() {
            metrics.reload_successful.set(1);
            let path = self.path.display();
            tracing::info!(%path, "configuration file matches the configuration in use again");
        }
    }

    fn reject(&mut self, error: &ConfigError, metrics: &ConfigMetrics) {
        let message = error_chain(error);
        let error = message.clone();
        if self.rejection.is_new(message) {
            tracing::error!(%error, "rejected the changed configuration; the last valid one stays in use");
            metrics.reload(Reload::Refused);
        }
        metrics.reload_successful.set(0);
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        cli::metrics::Metrics,
        cluster::namespace::Namespace,
        config::load::with_header,
        process::{clock::SystemClock, file_watcher::PERIOD},
        token::rules::OnFailure,
    };

    /// A watched file with its configuration and metrics.
    struct Fixture {
        folder: TempDir,
        live: Live,
        metrics: Metrics,
    }

    impl Fixture {
        /// Watches a new file with this text.
        fn with_text(text: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let text = with_header(text);
            std::fs::write(folder.path().join("config.yaml"), text).expect("written");
            Self::in_folder(folder)
        }

        fn in_folder(folder: TempDir) -> Self {
            let path = folder.path().join("config.yaml");
            let (config, watcher) = ConfigWatcher::load(&path).expect("valid");
            let live = Live::new(config, Namespace::parse("ecr-injector"));
            let metrics = Metrics::default();
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            metrics.config.applied(clock.now());
            tokio::spawn(watcher.follow(live.clone(), clock, metrics.config.clone(), PERIOD));
            Self {
                folder,
                live,
                metrics,
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("config.yaml")
        }

        /// Changes the file and waits until the watcher has applied or rejected it.
        async fn write(&self, text: &str) {
            self.write_raw(&with_header(text)).await;
        }

        async fn write_raw(&self, text: &str) {
            std::fs::write(self.path(), text).expect("written");
            two_periods_later().await;
        }

        /// Returns the generation, the numbers of applied and rejected files, whether the last
        /// reload succeeded, and whether a restart is required.
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

    /// Waits for one read of the file.
    async fn a_period_later() {
        sleep(PERIOD + Duration::from_millis(10)).await;
    }

    /// Waits for two reads of the file, after which a new text is applied.
    async fn two_periods_later() {
        sleep(2 * PERIOD + Duration::from_millis(10)).await;
    }

    const DENY: &str = "onFailure: deny\n";

    #[tokio::test(start_paused = true)]
    async fn changed_file_is_applied_after_two_equal_reads() {
        let fixture = Fixture::with_text("");
        let mut follower = fixture.live.follow();
        a_period_later().await;
        assert_eq!(fixture.counted(), [1, 0, 0, 1, 0]);
        let text = "onFailure: deny\nrefresh: {writesPerSecond: 7, sessionCap: 1h}\nlog: {filter: debug}\n";
        fixture.write(text).await;
        assert!(fixture.denies());
        assert_eq!(fixture.live.policy.get().writes_per_second, 7);
        let cap = crate::token::SessionCap::After(3600);
        assert_eq!(*fixture.live.session_cap.get(), cap);
        let config = follower.next().await;
        assert_eq!(config.log_filter.as_deref(), Some("debug"));
        a_period_later().await;
        assert_eq!(fixture.counted(), [2, 1, 0, 1, 0], "applied once");
        assert!(
            fixture
                .metrics
                .registry
                .to_text()
                .contains("config_last_reload_success_timestamp_seconds 1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_file_keeps_the_old_configuration_until_it_is_valid() {
        let fixture = Fixture::with_text(DENY);
        a_period_later().await;
        let bad = [
            "onFailure: [",
            "onFailure: explode",
            "onFailure: admit\nsecretNam: x",
            "onFailure: admit\nallow: {accounts: [\"12\"]}",
            "onFailure: admit\nlog: {filter: \"x=y=z\"}",
        ];
        for (refused, text) in (1..).zip(bad) {
            fixture.write(text).await;
            a_period_later().await;
            assert!(fixture.denies(), "{text}");
            assert_eq!(fixture.counted(), [1, 0, refused, 0, 0], "{text}");
        }
        std::fs::remove_file(fixture.path()).expect("removed");
        a_period_later().await;
        a_period_later().await;
        assert!(fixture.denies(), "a missing file");
        assert_eq!(fixture.counted(), [1, 0, 6, 0, 0]);

        fixture.write("onFailure: admit").await;
        assert!(!fixture.denies());
        assert_eq!(fixture.counted(), [2, 1, 6, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn emptied_file_keeps_the_old_configuration() {
        let fixture = Fixture::with_text(DENY);
        let emptied = ["", "# nothing\n", "{}\n", "---\n", "onFailure: admit\n"];
        for (refused, text) in (1..).zip(emptied) {
            fixture.write_raw(text).await;
            a_period_later().await;
            assert!(fixture.denies(), "{text:?}");
            let last = fixture.counted();
            assert_eq!((last[0], last[1], last[3]), (1, 0, 0), "{text:?}");
            assert!((1..=refused).contains(&last[2]), "{text:?}: {last:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn restored_file_is_valid_again_and_not_applied_twice() {
        let fixture = Fixture::with_text(DENY);
        fixture.write("onFailure: explode").await;
        assert_eq!(fixture.counted(), [1, 0, 1, 0, 0]);
        fixture.write(DENY).await;
        assert_eq!(fixture.counted(), [1, 0, 1, 1, 0]);
        // The error is logged and counted again, because the file was valid in between.
        fixture.write("onFailure: explode").await;
        assert_eq!(fixture.counted(), [1, 0, 2, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn half_written_file_is_neither_applied_nor_rejected() {
        let fixture = Fixture::with_text(DENY);
        // The watcher reads the file once while each of these is there.
        for half in ["", "# to be continued", "allow: {accounts: ["] {
            std::fs::write(fixture.path(), half).expect("written");
            a_period_later().await;
            assert!(fixture.denies(), "{half:?}");
            assert_eq!(fixture.counted(), [1, 0, 0, 1, 0], "{half:?}");
        }
        fixture
            .write("onFailure: deny\nallow: {accounts: [\"123456789012\"]}")
            .await;
        assert_eq!(fixture.counted(), [2, 1, 0, 1, 0]);
    }

    // In real time, on the one thread of its runtime.
    #[tokio::test]
    async fn file_that_hangs_stops_no_worker_and_is_rejected_once() {
        let fixture = Fixture::with_text("");
        let (path, period) = (fixture.path(), Duration::from_millis(50));
        let (_, watcher) = ConfigWatcher::load(&path).expect("valid");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = fixture.metrics.config.clone();
        tokio::spawn(watcher.follow(fixture.live.clone(), clock, metrics, period));
        std::fs::remove_file(&path).expect("removed");
        // Nobody writes to it, so opening it never ends.
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("the command mkfifo").success());
        let started = std::time::Instant::now();
        let mut last = started;
        while fixture.counted()[3] == 1 {
            sleep(period).await;
            let gap = std::mem::replace(&mut last, std::time::Instant::now()).elapsed();
            assert!(gap < Duration::from_secs(3), "the worker stood for {gap:?}");
            assert!(started.elapsed() < Duration::from_mins(1), "never rejected");
        }
        // Each further poll finds that it still hangs.
        sleep(6 * period).await;
        assert_eq!(fixture.counted(), [1, 0, 1, 0, 0]);
        // Ends the read, which would otherwise outlast the test.
        std::fs::write(&path, "late").expect("written");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, with_header(DENY)).expect("written");
        while !fixture.denies() {
            sleep(period).await;
            assert!(started.elapsed() < Duration::from_mins(1), "never applied");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fields_that_need_a_restart_stay_and_others_are_applied() {
        let fixture = Fixture::with_text("");
        let other =
            "secretName: other\noptIn: {label: example.com/x, value: \"on\"}\nonFailure: deny";
        fixture.write(other).await;
        let config = fixture.live.config();
        assert_eq!(config.rules.secret_name, "ecr-pull-secret");
        assert_eq!(config.opt_in, Config::default().opt_in);
        assert_eq!(fixture.live.rules.get().secret_name, "ecr-pull-secret");
        assert_eq!(
            fixture.live.policy.get().rules.secret_name,
            "ecr-pull-secret"
        );
        assert!(fixture.denies());
        assert_eq!(fixture.counted(), [2, 1, 0, 1, 1]);
        fixture.write(DENY).await;
        assert_eq!(fixture.counted(), [3, 2, 0, 1, 0], "no restart is needed");
    }

    #[tokio::test(start_paused = true)]
    async fn own_namespace_stays_excluded() {
        let fixture = Fixture::with_text("");
        fixture.write("optIn: {excludeNamespaces: [infra]}").await;
        let rules = fixture.live.rules.get();
        let excluded: Vec<_> = rules.excluded.iter().map(Namespace::as_str).collect();
        assert_eq!(excluded, ["ecr-injector", "infra"]);
    }

    #[tokio::test(start_paused = true)]
    async fn swapped_symlink_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        // The kubelet mounts a ConfigMap like this: a link into a folder that is itself a link.
        let of = |name: &str| folder.path().join(name);
        for (name, text) in [("..1", ""), ("..2", DENY)] {
            std::fs::create_dir(of(name)).expect("made");
            let text = with_header(text);
            std::fs::write(of(name).join("config.yaml"), text).expect("written");
        }
        std::os::unix::fs::symlink("..1", of("..data")).expect("linked");
        std::os::unix::fs::symlink("..data/config.yaml", of("config.yaml")).expect("linked");
        std::os::unix::fs::symlink("..2", of("..tmp")).expect("linked");
        let (tmp, data) = (of("..tmp"), of("..data"));
        let fixture = Fixture::in_folder(folder);
        assert!(!fixture.denies());
        std::fs::rename(tmp, data).expect("swapped");
        two_periods_later().await;
        assert!(fixture.denies());
    }
}
