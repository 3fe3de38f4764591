//! A provider of credentials that is built when its source has its turn: before that it costs
//! nothing, and most processes never get there.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use aws_credential_types::provider::{ProvideCredentials, future};

/// Builds a provider when it is first asked.
pub(super) struct Lazy {
    build: Box<dyn Fn() -> Arc<dyn ProvideCredentials> + Send + Sync>,
    built: OnceLock<Arc<dyn ProvideCredentials>>,
}

impl Lazy {
    /// Returns a provider that `build` will build.
    pub(super) fn new<P: ProvideCredentials + 'static>(
        build: impl Fn() -> P + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            build: Box::new(move || Arc::new(build())),
            built: OnceLock::new(),
        })
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lazy").field(&self.built).finish()
    }
}

impl ProvideCredentials for Lazy {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let provider = self.built.get_or_init(|| (self.build)());
        provider.provide_credentials()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use aws_credential_types::Credentials;

    use super::*;

    #[tokio::test]
    async fn provider_is_built_once_and_not_before_it_is_asked() {
        let builds = Arc::new(AtomicUsize::new(0));
        let counted = builds.clone();
        let lazy = Lazy::new(move || {
            counted.fetch_add(1, SeqCst);
            Credentials::new("AKIA", "secret", None, None, "test")
        });
        assert_eq!(builds.load(SeqCst), 0);
        for _ in 0..2 {
            let credentials = lazy.provide_credentials().await.expect("keys");
            assert_eq!(credentials.access_key_id(), "AKIA");
            assert_eq!(builds.load(SeqCst), 1);
        }
    }
}
