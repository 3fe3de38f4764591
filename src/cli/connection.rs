//! The choice of a cluster and a user, and why it can't be used.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, builder::NonEmptyStringValueParser};
use kube::{
    client::AuthError,
    config::{Kubeconfig, KubeconfigError},
};

use crate::{
    cluster::{Cluster, ClusterError, ClusterSource},
    telemetry::printable::cut,
};

const NO_CLUSTER: &str =
    "no cluster found; set --kubeconfig or KUBECONFIG, or choose another --context";
/// The most characters of what a plugin says.
const MAX_PLUGIN_ERROR: usize = 400;

/// The arguments of commands that call an API server.
#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// Path of the kubeconfig; by default the service account of the Pod, else the usual KUBECONFIG
    /// rules
    #[arg(long, env = "ECR_INJECTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; by default its current one
    #[arg(
        long,
        env = "ECR_INJECTOR_CONTEXT",
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new()
    )]
    context: Option<String>,
    /// User to impersonate, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(
        long = "as",
        env = "ECR_INJECTOR_AS",
        value_name = "USER",
        value_parser = NonEmptyStringValueParser::new()
    )]
    impersonate: Option<String>,
}

impl ConnectionArgs {
    /// Configures the clients. Makes no call yet.
    pub(super) async fn connect(&self) -> anyhow::Result<Cluster> {
        let source = ClusterSource {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            impersonate: self.impersonate.clone(),
        };
        let cluster = Cluster::connect(&source).await;
        cluster.map_err(|error| self.explain(error))
    }

    /// Returns an error that quotes nothing of the kubeconfig but names, as lines of it are secret,
    /// nor the output of a plugin, which is a credential.
    fn explain(&self, error: ClusterError) -> anyhow::Error {
        let error = match error {
            ClusterError::Kubeconfig { kubeconfig, source } => match *source {
                KubeconfigError::Parse(error) => {
                    let place = error
                        .without_snippet()
                        .location()
                        .map(|at| format!(": see line {}, column {}", at.line(), at.column()));
                    let place = place.unwrap_or_default();
                    anyhow!("{kubeconfig} is not YAML, or not a kubeconfig{place}")
                }
                source => anyhow::Error::new(source).context(format!("reading {kubeconfig}")),
            },
            ClusterError::Client(error) => match *error {
                kube::Error::Auth(AuthError::AuthExecStart(error)) => {
                    let plugin = self.plugin();
                    return anyhow::Error::new(error).context(format!(
                        "can't start {plugin}: install it, put it into the PATH, or choose another \
                         --context"
                    ));
                }
                kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => {
                    let said = String::from_utf8_lossy(&out.stderr);
                    let said = cut(said.trim(), MAX_PLUGIN_ERROR);
                    return anyhow!("{} failed ({}): {said}", self.plugin(), out.status);
                }
                kube::Error::Auth(AuthError::AuthExecParse(_)) => {
                    return anyhow!("{} printed no ExecCredential", self.plugin());
                }
                // Its URL may hold a password.
                kube::Error::ProxyProtocolUnsupported { .. }
                | kube::Error::ProxyProtocolDisabled { .. } => anyhow!(
                    "the proxy-url of the cluster in the kubeconfig, or the proxy in the environment, has \
                     a scheme that is not supported: expected http://HOST:PORT"
                ),
                error => ClusterError::Client(Box::new(error)).into(),
            },
            error => error.into(),
        };
        error.context(NO_CLUSTER)
    }

    /// Describes the exec plugin of the user, for errors.
    fn plugin(&self) -> String {
        let command = self.plugin_command();
        let quoted = command.map(|command| format!(" {command:?}"));
        format!(
            "the exec plugin{} of the kubeconfig",
            quoted.unwrap_or_default()
        )
    }

    fn plugin_command(&self) -> Option<String> {
        let file = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let file = file.ok()?;
        let context = self.context.as_ref().or(file.current_context.as_ref())?;
        let context = file.contexts.iter().find(|it| it.name == *context)?;
        let user = context.context.as_ref()?.user.as_ref()?;
        let user = file.auth_infos.iter().find(|it| it.name == *user)?;
        user.auth_info.as_ref()?.exec.as_ref()?.command.clone()
    }
}
