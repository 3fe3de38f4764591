//! The leader of the replicas: the arguments of its election, and its tasks.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::task::JoinHandle;

use crate::{
    cli::{
        args::{parse_duration, parse_namespace},
        context::{Context, instance},
    },
    cluster::{
        event_recorder::EventRecorder,
        lease::{Elector, Leadership, Settings},
        namespace::Namespace,
        service_accounts::ServiceAccounts,
    },
    process::{
        readiness::{self, Condition},
        supervisor::Supervisor,
    },
    pull_secret::{provisioner::Provisioner, state_key::KeySecret},
    refresh::{
        Reconciler,
        discovery::Discoverer,
        missed::{MissedPods, MissedSources},
        near_misses::NearMisses,
    },
    registry::Host,
    tls::self_managed::SelfManaged,
};

/// The default name of the Lease, and the namespace of an installation outside a Pod.
const NAME: &str = "ecr-injector";

/// The arguments of the Lease, whose holder refreshes the pull secrets.
#[derive(Debug, Args)]
pub(super) struct LeaseArgs {
    /// Name of the Lease for leader election
    #[arg(id = "lease_name", long = "lease-name", env = "ECR_INJECTOR_LEASE_NAME", value_name = "NAME", default_value = NAME)]
    name: String,
    /// Namespace of the Lease; by default that of the Pod, outside a cluster ecr-injector
    #[arg(id = "lease_namespace", long = "lease-namespace", env = "ECR_INJECTOR_LEASE_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<Namespace>,
    /// How long other replicas wait for a leader that does not renew the Lease
    #[arg(id = "lease_duration", long = "lease-duration", env = "ECR_INJECTOR_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = parse_duration)]
    duration: Duration,
    /// How long a leader that can't renew the Lease keeps leading
    #[arg(id = "lease_renew_deadline", long = "lease-renew-deadline", env = "ECR_INJECTOR_LEASE_RENEW_DEADLINE", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    renew_deadline: Duration,
    /// Interval between attempts to renew or acquire the Lease
    #[arg(id = "lease_retry_period", long = "lease-retry-period", env = "ECR_INJECTOR_LEASE_RETRY_PERIOD", value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    retry_period: Duration,
}

impl LeaseArgs {
    /// Returns the namespace of the installation: the argument, that of the Pod, or the default.
    pub(super) fn namespace(&self, own: Option<Namespace>) -> anyhow::Result<Namespace> {
        let namespace = self.namespace.clone().or(own);
        let namespace = namespace.or_else(|| Namespace::parse(NAME));
        namespace.context("the Lease has no namespace")
    }

    /// Returns the settings of the election, if they are safe.
    pub(super) fn settings(&self, namespace: Namespace) -> anyhow::Result<Settings> {
        let settings = Settings {
            duration: self.duration,
            renew_deadline: self.renew_deadline,
            retry_period: self.retry_period,
            ..Settings::new(namespace, &self.name, &instance())
        };
        settings.check().context("the flags of the Lease")?;
        Ok(settings)
    }
}

/// The tasks of the leader.
#[derive(Clone)]
pub(super) struct LeaderTasks {
    reconciler: Reconciler,
    authority: Option<SelfManaged>,
    state_key: KeySecret,
    discoverer: Discoverer,
    near_misses: NearMisses,
}

impl LeaderTasks {
    /// Creates the tasks, which report to the provisioner and the recorder, and know the
    /// ServiceAccounts that are watched.
    pub(super) fn new(
        context: &Context,
        authority: Option<SelfManaged>,
        (provisioner, events, accounts): (&Provisioner, &EventRecorder, Option<ServiceAccounts>),
    ) -> Self {
        Self {
            reconciler: context.reconciler(Some(events.clone())),
            authority,
            state_key: context.state_key_secret.clone(),
            discoverer: discoverer(context, provisioner.clone(), events.clone(), accounts),
            near_misses: near_misses(context, events.clone()),
        }
    }

    /// Runs the tasks until the term is over.
    async fn run(self, term: Leadership, supervisor: Supervisor) {
        let is_over = || !term.holds();
        let keep_authority = async {
            match self.authority {
                Some(authority) => authority.keep(term.clone()).await,
                None => term.lost().await,
            }
        };
        let (reconcile, discover, near_misses) = (
            self.reconciler.lead(term.clone()),
            self.discoverer.lead(term.clone()),
            self.near_misses.lead(term.clone()),
        );
        let maintain = self.state_key.maintain(&term);
        tokio::join!(
            supervisor.supervise("refresh of pull secrets", is_over, reconcile),
            supervisor.supervise("certificate authority", is_over, keep_authority),
            supervisor.supervise("state key", is_over, maintain),
            supervisor.supervise("discovery of Pods", is_over, discover),
            supervisor.supervise("near misses of the opt-in", is_over, near_misses),
        );
    }
}

/// Takes part in the election once `synced`, until the process stops. The handle must be awaited
/// then: the task releases the Lease.
pub(super) fn elect(
    context: &Context,
    settings: Settings,
    tasks: LeaderTasks,
    synced: [Condition; 2],
) -> anyhow::Result<JoinHandle<()>> {
    let elector = Elector::new(
        context.cluster.refresher.clone(),
        settings,
        context.clock.clone(),
        context.metrics.cluster.clone(),
    )?;
    let supervisor = context.supervisor.clone();
    Ok(tokio::spawn(async move {
        let stop = supervisor.stop();
        let lead = |term: Leadership| tasks.clone().run(term, supervisor.clone());
        let elect = async {
            let synced = stop.run_until_cancelled(readiness::all_held(&synced));
            if synced.await.is_some() {
                elector.run(stop.clone(), lead).await;
            }
        };
        let is_over = || stop.is_cancelled();
        supervisor
            .supervise("leader election", is_over, Box::pin(elect))
            .await;
    }))
}

/// Returns the search for namespaces that nearly opted in, which publishes through the recorder.
fn near_misses(context: &Context, events: EventRecorder) -> NearMisses {
    NearMisses::new(
        context.cluster.refresher.clone(),
        context.live.clone(),
        events,
        context.metrics.cluster.clone(),
    )
}

/// Returns a discoverer that passes the needs of pending Pods to the provisioner, like an admission
/// that could not write the pull secret, and has missed Pods noticed.
fn discoverer(
    context: &Context,
    provisioner: Provisioner,
    events: EventRecorder,
    accounts: Option<ServiceAccounts>,
) -> Discoverer {
    let missed = MissedPods::new(MissedSources {
        client: context.cluster.refresher.clone(),
        secrets: context.secrets.clone(),
        accounts,
        events,
        metrics: context.metrics.refresh.clone(),
    });
    let namespaces = context.namespaces.clone();
    let sink = move |namespace: &Namespace, hosts: BTreeSet<Host>| {
        if namespaces.peek(namespace).is_some() {
            provisioner.retain_demand(namespace, hosts);
        }
    };
    Discoverer::new(
        context.cluster.refresher.clone(),
        context.namespaces.clone(),
        context.live.clone(),
        context.metrics.refresh.clone(),
        Arc::new(sink),
    )
    .with_missed(missed)
}
