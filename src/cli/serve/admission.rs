//! The webhook as the handler of the server's reviews, and its parts.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::time::Instant;

use super::{SERVICE, ServeArgs};
use crate::{
    admission::handler::Webhook,
    cli::{certificates::Certificates, context::Context},
    cluster::{
        event_recorder::EventRecorder, namespace::Namespace, service_accounts::ServiceAccounts,
    },
    process::readiness::Readiness,
    pull_secret::provisioner::{Provisioner, ProvisionerOptions},
    server::{ReviewHandler, accept::ClientTrust},
    telemetry::otel::Trace,
    tls::{CertPublisher, CertResolver, CertSource, self_managed::SelfManaged},
};

/// The TLS configuration of the admission listener, and the clients that it trusts, if they have to
/// show certificates.
pub(super) type Tls = (ServerConfig, Option<Arc<dyn ClientTrust>>);

impl ServeArgs {
    /// Returns the Service's name and the source of its certificate, if there is an admission
    /// listener.
    pub(super) fn serving_certificates(
        &self,
        context: &Context,
        home: &Namespace,
    ) -> anyhow::Result<Option<(String, Certificates)>> {
        if self.no_admission {
            return Ok(None);
        }
        let service = self.service_name.clone();
        let service = service.unwrap_or_else(|| format!("{SERVICE}.{}.svc", home.as_str()));
        let certificates = self.certificates.source(context, home, &service)?;
        Ok(Some((service, certificates)))
    }

    /// Starts to keep the serving certificate, and returns the listener's TLS.
    pub(super) fn serve_tls(
        &self,
        context: &Context,
        readiness: &mut Readiness,
        (service, certificates): (String, Certificates),
    ) -> anyhow::Result<Tls> {
        let Certificates { source, authority } = certificates;
        let resolver = serve_certificate(context, readiness, source, service);
        let (tls, clients) = self.certificates.server_config(context, resolver)?;
        if let Some(authority) = authority {
            watch_authority(context, readiness, authority);
        }
        Ok((tls, clients.map(|clients| clients as Arc<dyn ClientTrust>)))
    }
}

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

/// Returns the resolver of the source's certificates. The condition holds once there is one.
fn serve_certificate(
    context: &Context,
    readiness: &mut Readiness,
    source: Box<dyn CertSource>,
    service: String,
) -> Arc<CertResolver> {
    let (resolver, condition) = (
        Arc::<CertResolver>::default(),
        readiness
            .condition("certificate")
            .waiting_for("a certificate"),
    );
    let publisher = CertPublisher::new(
        resolver.clone(),
        service,
        condition,
        context.metrics.tls.clone(),
    );
    let run = source.run(publisher);
    context.supervisor.spawn("serving certificate", run);
    resolver
}

/// Starts to watch the self-managed authority, and to report whether it is trusted.
fn watch_authority(context: &Context, readiness: &mut Readiness, authority: SelfManaged) {
    let condition = readiness
        .condition("ca-bundle-trusted")
        .waiting_for("the MutatingWebhookConfiguration to trust the certificate authority");
    let report = authority.clone().report(condition);
    let supervisor = &context.supervisor;
    supervisor.spawn("report of trust", report);
    supervisor.spawn("watch of the certificate authority", authority.watch());
}
