//! The check that an account has the permissions of a command, before the command starts.

use crate::cluster::{
    Cluster,
    rights::{self, Permission},
    unreachable,
};

/// Fails if this account lacks any of these permissions, with a list of those.
pub(super) async fn check_permissions(
    cluster: &Cluster,
    permissions: &[Permission],
) -> anyhow::Result<()> {
    let (client, server) = (&cluster.client, &cluster.server);
    let missing = rights::missing(client, permissions)
        .await
        .map_err(|error| {
            let advice = unreachable::advice(&error).map(|advice| format!(": {advice}"));
            let context = format!(
                "can't use {server}{}; if that is the wrong cluster, see --kubeconfig and `kubectl \
                 config current-context`; if it is the right one, `kubectl get namespaces` must \
                 work from here",
                advice.unwrap_or_default()
            );
            anyhow::Error::new(error).context(context)
        })?;
    if missing.is_empty() {
        return Ok(());
    }
    let account = rights::account(client).await;
    let account = account.as_deref().unwrap_or("this account");
    let lines: Vec<_> = missing
        .iter()
        .map(|permission| format!("\nmissing: {permission}"))
        .collect();
    anyhow::bail!(
        "{account} lacks permissions for this command in {server}; docs/how-to/refresh-and-clean-up.md has the Role{}",
        lines.concat()
    );
}
