//! `ecr-injector config check --cluster`: finds the registries that a file would suspend in a
//! cluster, before the file is applied. Reads metadata alone.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Secret};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, ObjectList},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::{connection::ConnectionArgs, permissions::check_permissions, report::count};
use crate::{
    cluster::{
        namespace::Namespace,
        namespaces,
        object::Metadata,
        ownership,
        rights::{Permission, Scope},
    },
    config::Config,
    pull_secret::{self, state::State},
    refresh::impact::{Impact, Suspended},
    token::rules::Revocation,
};

/// The number of objects in a page of a list.
const PAGE: u32 = 500;
/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most suspended hosts that the text names; JSON has all of them.
const NAMED: usize = 20;

/// The comparison of a file with a cluster.
#[derive(Debug)]
pub(super) struct Comparison {
    server: String,
    /// The number of namespaces with the file's label.
    opted_in: usize,
    /// The number of pull secrets whose hosts can't be read.
    unreadable: usize,
    revocation: Revocation,
    pub(super) impact: Impact,
}

/// Reads the cluster's opted-in namespaces and the metadata of their pull secrets.
pub(super) async fn compare(
    config: &Config,
    connection: &ConnectionArgs,
) -> anyhow::Result<Comparison> {
    let cluster = connection.connect().await?;
    let rules = &config.rules;
    let rights = [
        Permission::everywhere("list", Scope::Namespaces),
        Permission::everywhere("list", Scope::Secrets(rules.secret_name.clone())),
    ];
    check_permissions(&cluster, &rights).await?;
    let label = format!("{}={}", config.opt_in.label, config.opt_in.value);
    let namespaces: Vec<Metadata<NamespaceObject>> = list(
        &Api::all(cluster.client.clone()),
        ListParams::default().labels(&label),
    )
    .await
    .context("listing the opted-in namespaces")?;
    let name = format!("metadata.name={}", rules.secret_name);
    let secrets: Vec<Metadata<Secret>> = list(
        &Api::all(cluster.client.clone()),
        ListParams::default().fields(&name),
    )
    .await
    .with_context(|| format!("listing the Secrets named {}", rules.secret_name))?;
    let mut unreadable = 0;
    let mut states: BTreeMap<String, State> = BTreeMap::new();
    for secret in &secrets {
        if !ownership::is_managed(&secret.metadata) {
            continue;
        }
        match pull_secret::state_of(&secret.metadata) {
            Some(state) => {
                states.insert(secret.namespace().unwrap_or_default(), state);
            }
            None => unreadable += 1,
        }
    }
    let pull_secrets: Vec<_> = namespaces
        .iter()
        .filter_map(|object| {
            let namespace = Namespace::parse(&object.name_any())?;
            let hosts = &states.get(namespace.as_str())?.hosts;
            let hosts = hosts.keys().cloned().collect();
            Some((namespace, namespaces::settings_of(object), hosts))
        })
        .collect();
    Ok(Comparison {
        server: cluster.server,
        opted_in: namespaces.len(),
        unreadable,
        revocation: config.refresh.revocation,
        impact: Impact::new(rules, &pull_secrets),
    })
}

/// Lists all objects, page by page, with a timeout for each page.
async fn list<K>(api: &Api<K>, params: ListParams) -> anyhow::Result<Vec<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = timeout(PAGE_TIMEOUT, api.list(&params)).await;
        let ObjectList {
            items, metadata, ..
        } = page.with_context(|| format!("no response within {} s", PAGE_TIMEOUT.as_secs()))??;
        all.extend(items);
        match metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

impl Comparison {
    /// Returns the lines for people, to print below the summary of the file.
    pub(super) fn to_text(&self) -> String {
        let impact = &self.impact;
        let mut cluster = format!(
            "{}; {} opted in, {} with {} in their pull secrets",
            self.server,
            count(self.opted_in, "namespace"),
            impact.namespaces,
            count(impact.hosts, "registry"),
        );
        if self.unreadable > 0 {
            let unreadable = count(self.unreadable, "pull secret");
            cluster = format!("{cluster}; {unreadable} can't be read and were not counted");
        }
        let suspended = if impact.suspended.is_empty() {
            "nothing".to_owned()
        } else {
            format!(
                "{} in {}: {}",
                count(impact.suspended.len(), "registry"),
                count(impact.affected_namespaces(), "namespace"),
                self.consequence()
            )
        };
        let mut text = format!("  cluster       {cluster}\n  suspends      {suspended}\n");
        for suspended in impact.suspended.iter().take(NAMED) {
            let Suspended {
                namespace,
                host,
                cause,
            } = suspended;
            // Writing to a String can't fail.
            let _ = writeln!(text, "    {namespace}  {host}  {cause}");
        }
        if let Some(more @ 1..) = impact.suspended.len().checked_sub(NAMED) {
            let _ = writeln!(text, "    and {more} more; -o json has all of them");
        }
        text
    }

    /// Returns the comparison as a JSON object.
    pub(super) fn to_json(&self, file: &str) -> Value {
        let impact = &self.impact;
        let suspended = impact.suspended.iter().map(|it| {
            json!({
                "namespace": it.namespace.as_str(),
                "registry": it.host.as_str(),
                "reason": it.cause.as_str(),
                "message": it.cause.to_string(),
            })
        });
        json!({
            "ok": !impact.is_widespread(),
            "file": file,
            "server": self.server,
            "optedInNamespaces": self.opted_in,
            "namespaces": impact.namespaces,
            "registries": impact.hosts,
            "unreadablePullSecrets": self.unreadable,
            "affectedNamespaces": impact.affected_namespaces(),
            "suspended": suspended.collect::<Vec<_>>(),
        })
    }

    /// Fails if the file suspends so much that it looks like a mistake.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let impact = &self.impact;
        ensure!(
            !impact.is_widespread(),
            "the file would suspend registries in {} of {} namespaces, which looks like a mistake",
            impact.affected_namespaces(),
            impact.namespaces
        );
        Ok(())
    }

    fn consequence(&self) -> &'static str {
        match self.revocation {
            Revocation::OnExpiry => "kept until they expire, and not renewed",
            Revocation::Immediately => "removed at once (revoke: immediately)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{refresh::impact::Cause, registry::Host, token::rules::Suspension};

    fn comparison(affected: usize, namespaces: usize) -> Comparison {
        let suspended = (0..affected).map(|number| Suspended {
            namespace: Namespace::parse(&format!("team-{number:02}")).expect("valid"),
            host: Host::parse("images.example.com").expect("valid"),
            cause: Cause::Rules(Suspension::NotEcr),
        });
        Comparison {
            server: "https://10.0.0.1".to_owned(),
            opted_in: namespaces + 1,
            unreadable: 0,
            revocation: Revocation::OnExpiry,
            impact: Impact {
                namespaces,
                hosts: namespaces,
                suspended: suspended.collect(),
            },
        }
    }

    #[test]
    fn text_names_twenty_hosts_and_counts_the_rest() {
        let text = comparison(0, 1).to_text();
        let expected = "  cluster       https://10.0.0.1; 2 namespaces opted in, 1 with 1 registry in their pull secrets\n  \
            suspends      nothing\n";
        assert_eq!(text, expected);
        let text = comparison(20, 60).to_text();
        assert!(!text.contains("more"), "{text}");
        let text = comparison(23, 60).to_text();
        assert!(
            text.contains("23 registries in 23 namespaces: kept until they expire"),
            "{text}"
        );
        assert_eq!(text.matches("images.example.com").count(), 20, "{text}");
        assert!(text.contains("    team-19  images.example.com  the host is neither"));
        assert!(text.ends_with("    and 3 more; -o json has all of them\n"));
    }

    #[test]
    fn widespread_suspension_fails() {
        assert!(comparison(9, 9).check().is_ok());
        let error = comparison(11, 20).check().expect_err("a mistake");
        assert!(error.to_string().contains("11 of 20 namespaces"), "{error}");
        let json = comparison(11, 20).to_json("config.yaml");
        assert_eq!(
            (&json["ok"], &json["affectedNamespaces"]),
            (&json!(false), &json!(11))
        );
        assert_eq!(json["suspended"][10]["reason"], "not_ecr");
        assert_eq!(comparison(1, 20).to_json("config.yaml")["ok"], true);
    }
}
