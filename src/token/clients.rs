//! How long clients live: a process that mints often keeps them, and one that mints once doesn't.

use moka::future::Cache;

use super::client::{Client, ClientKey, StsEndpoint};

/// The most clients in the cache; a client is cheap to create again.
const MAX_CLIENTS: u64 = 256;
/// The most clients of STS: one per region.
const MAX_STS_CLIENTS: u64 = 64;

/// Gives clients: kept ones, or else what `make` makes.
pub(super) trait Clients: Send + Sync {
    /// Returns a client of ECR or ECR Public.
    fn client(
        &self,
        key: &ClientKey,
        make: impl FnOnce() -> Client + Send,
    ) -> impl Future<Output = Client> + Send;

    /// Returns a client of STS.
    fn sts(
        &self,
        endpoint: &StsEndpoint,
        make: impl FnOnce() -> aws_sdk_sts::Client + Send,
    ) -> impl Future<Output = aws_sdk_sts::Client> + Send;
}

/// Keeps clients: one per region and endpoint, shared by all identities.
pub(super) struct KeptClients {
    clients: Cache<ClientKey, Client>,
    sts: Cache<StsEndpoint, aws_sdk_sts::Client>,
}

/// Makes a client for each call.
pub(super) struct NewClients;

impl Default for KeptClients {
    fn default() -> Self {
        Self {
            clients: Cache::builder().max_capacity(MAX_CLIENTS).build(),
            sts: Cache::builder().max_capacity(MAX_STS_CLIENTS).build(),
        }
    }
}

impl Clients for KeptClients {
    async fn client(&self, key: &ClientKey, make: impl FnOnce() -> Client + Send) -> Client {
        self.clients.get_with_by_ref(key, async { make() }).await
    }

    async fn sts(
        &self,
        endpoint: &StsEndpoint,
        make: impl FnOnce() -> aws_sdk_sts::Client + Send,
    ) -> aws_sdk_sts::Client {
        self.sts.get_with_by_ref(endpoint, async { make() }).await
    }
}

impl Clients for NewClients {
    async fn client(&self, _: &ClientKey, make: impl FnOnce() -> Client + Send) -> Client {
        make()
    }

    async fn sts(
        &self,
        _: &StsEndpoint,
        make: impl FnOnce() -> aws_sdk_sts::Client + Send,
    ) -> aws_sdk_sts::Client {
        make()
    }
}
