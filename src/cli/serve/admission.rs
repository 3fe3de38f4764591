//! The webhook as the handler of the server's reviews, and its parts.

use tokio::time::Instant;

use crate::{
    admission::handler::Webhook,
    cli::context::Context,
    cluster::{event_recorder::EventRecorder, service_accounts::ServiceAccounts},
    pull_secret::provisioner::{Provisioner, ProvisionerOptions},
    server::ReviewHandler,
    telemetry::otel::Trace,
};

impl ReviewHandler for Webhook {
    async fn review(
        &self,
        body: &[u8],
        started: Instant,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Vec<u8>, String> {
        let response = Self::review(self, body, started, deadline, trace).await;
        response.map_err(|error| error.with_cause())
    }
}

/// Returns the handler of admission reviews.
pub(super) fn webhook(
    context: &Context,
    provisioner: Provisioner,
    events: EventRecorder,
    accounts: Option<ServiceAccounts>,
) -> Webhook {
    let webhook = Webhook::new(
        context.live.rules.clone(),
        context.namespaces.clone(),
        context.secrets.clone(),
        provisioner,
        context.clock.clone(),
        context.metrics.admission.clone(),
    )
    .with_events(events);
    match accounts {
        Some(accounts) => webhook.with_service_accounts(accounts),
        None => webhook,
    }
}

/// Returns the provisioner of pull secrets.
pub(super) fn provisioner(context: &Context, events: EventRecorder) -> Provisioner {
    Provisioner::new(ProvisionerOptions {
        writer: context.writer(&context.cluster.client),
        namespaces: context.namespaces.clone(),
        rules: context.live.rules.clone(),
        tokens: context.tokens.clone(),
        metrics: context.metrics.pull_secret.clone(),
        events: Some(events),
        tasks: context.supervisor.tasks().clone(),
        stop: context.supervisor.stop().clone(),
    })
}
