//! The arguments of the serving certificate, and its source.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use jiff::SignedDuration;
use rustls::ServerConfig;

use super::{args::parse_duration, context::Context};
use crate::{
    cluster::namespace::Namespace,
    process::{clock::Clock, file_watcher, files::named_by},
    tls::{
        self, CertResolver, CertSource, MinVersion,
        clients::Clients,
        files::{FileSource, Files},
        rotation::Lifetimes,
        secret::NamedSecret,
        self_managed::{self, SelfManaged},
    },
};

/// The shortest lifetime of a serving certificate that leaves time to renew it.
const MIN_LIFETIME: Duration = Duration::from_secs(20);

/// The arguments of the serving certificate. By default ecr-injector signs its own, with an
/// authority that it keeps in a Secret and makes the API server trust.
#[derive(Debug, Args)]
pub(super) struct CertificateArgs {
    /// Serving certificate with its chain (PEM), reloaded when it changes
    #[arg(
        long,
        env = "ECR_INJECTOR_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(
        long,
        env = "ECR_INJECTOR_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// Secret of type kubernetes.io/tls with the serving certificate, in the namespace of
    /// ecr-injector
    #[arg(
        long,
        env = "ECR_INJECTOR_TLS_SECRET",
        value_name = "NAME",
        conflicts_with = "tls_cert"
    )]
    tls_secret: Option<String>,
    /// Self-managed: Secret of the certificate authority, in the namespace of ecr-injector
    #[arg(
        long,
        env = "ECR_INJECTOR_CA_SECRET",
        value_name = "NAME",
        default_value = "ecr-injector-ca"
    )]
    ca_secret: String,
    /// Self-managed: `MutatingWebhookConfiguration` whose caBundle the leader keeps
    #[arg(
        long,
        env = "ECR_INJECTOR_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "zz-ecr-injector"
    )]
    webhook_configuration: String,
    /// Self-managed: lifetime of a certificate authority, rotated after two thirds of it
    #[arg(long, env = "ECR_INJECTOR_CA_LIFETIME", value_name = "DURATION", default_value = "8760h", value_parser = parse_duration)]
    ca_lifetime: Duration,
    /// Self-managed: lifetime of a serving certificate, renewed after two thirds of it
    #[arg(long, env = "ECR_INJECTOR_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "168h", value_parser = parse_duration)]
    certificate_lifetime: Duration,
    /// Self-managed: how long a new authority is in the caBundle before it signs
    #[arg(long, env = "ECR_INJECTOR_CA_PROPAGATION_DELAY", value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    ca_propagation_delay: Duration,
    /// Admit only clients with a certificate of these authorities (PEM), reloaded when it changes
    #[arg(long, env = "ECR_INJECTOR_CLIENT_CA", value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Admit only clients with this common name or DNS name; may be repeated
    #[arg(
        long,
        env = "ECR_INJECTOR_CLIENT_NAME",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "client_ca"
    )]
    client_name: Vec<String>,
    /// Minimum TLS version to accept
    #[arg(
        long,
        env = "ECR_INJECTOR_TLS_MIN_VERSION",
        value_name = "VERSION",
        default_value_t
    )]
    tls_min_version: MinVersion,
}

/// The source of the serving certificate, and the authority that the leader keeps, if there is one.
pub(super) struct Certificates {
    pub(super) source: Box<dyn CertSource>,
    pub(super) authority: Option<SelfManaged>,
}

impl CertificateArgs {
    /// Returns the source, which has read nothing but files so far.
    pub(super) fn source(
        &self,
        context: &Context,
        home: &Namespace,
        service: &str,
    ) -> anyhow::Result<Certificates> {
        let clock: Arc<dyn Clock> = context.clock.clone();
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let files = Files {
                certificate: certificate.clone(),
                key: key.clone(),
            };
            return Ok(Certificates {
                source: Box::new(load(files, clock)?),
                authority: None,
            });
        }
        let client = context.cluster.client.clone();
        if let Some(name) = &self.tls_secret {
            let secret = NamedSecret::new(client, home, name.clone(), clock);
            return Ok(Certificates {
                source: Box::new(secret),
                authority: None,
            });
        }
        let authority = SelfManaged::new(self_managed::SelfManagedOptions {
            client,
            namespace: home.clone(),
            secret: self.ca_secret.clone(),
            registration: self.webhook_configuration.clone(),
            service: service.to_owned(),
            lifetimes: self.lifetimes()?,
            clock,
            metrics: context.metrics.tls.clone(),
        });
        Ok(Certificates {
            source: Box::new(authority.clone()),
            authority: Some(authority),
        })
    }

    /// Returns the TLS configuration of the listener, and which clients are trusted, if they have to
    /// show certificates.
    pub(super) fn server_config(
        &self,
        context: &Context,
        serving: Arc<CertResolver>,
    ) -> anyhow::Result<(ServerConfig, Option<Arc<Clients>>)> {
        let clients = match &self.client_ca {
            Some(path) => {
                let clients = Clients::load(path.clone(), self.client_name.clone());
                let flag = named_by("--client-ca", "ECR_INJECTOR_CLIENT_CA", Some(path));
                let clients = clients.context(flag)?;
                let metrics = context.metrics.tls.clone();
                let follow = clients.clone().follow(file_watcher::CERT_PERIOD, metrics);
                context.supervisor.spawn("client authorities", follow);
                Some(clients)
            }
            None => None,
        };
        let config = tls::server_config(serving, self.tls_min_version, clients.clone())?;
        Ok((config, clients))
    }

    fn lifetimes(&self) -> anyhow::Result<Lifetimes> {
        let (ca, leaf) = (self.ca_lifetime, self.certificate_lifetime);
        anyhow::ensure!(
            leaf >= MIN_LIFETIME && self.ca_propagation_delay < ca / 6 && leaf <= ca / 3,
            "--certificate-lifetime must be at least {} s and at most a third of --ca-lifetime, \
             and --ca-propagation-delay less than a sixth of it",
            MIN_LIFETIME.as_secs()
        );
        let signed =
            |duration| SignedDuration::try_from(duration).context("the lifetimes of certificates");
        Ok(Lifetimes {
            authority: signed(ca)?,
            leaf: signed(leaf)?,
            publication: signed(self.ca_propagation_delay)?,
        })
    }
}

/// Reads a certificate from its files; an error begins with the flag of the file that it is about.
fn load(files: Files, clock: Arc<dyn Clock>) -> anyhow::Result<FileSource> {
    let Files { certificate, key } = files.clone();
    files
        .load(clock, file_watcher::CERT_PERIOD)
        .map_err(|error| {
            let is_key = error.path() == Some(&*key.display().to_string());
            let flag = if is_key {
                named_by("--tls-key", "ECR_INJECTOR_TLS_KEY", Some(&key))
            } else {
                named_by("--tls-cert", "ECR_INJECTOR_TLS_CERT", Some(&certificate))
            };
            anyhow::Error::new(error).context(flag)
        })
}
