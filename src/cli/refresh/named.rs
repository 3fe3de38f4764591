//! The registries of `refresh --registry`, which the pull secrets get although no Pod needs them.

use anyhow::Context as _;

use crate::{
    cli::report::Row,
    process::current::Current,
    registry::Host,
    token::rules::{Policy, Rules},
};

/// The registries that are named on the command line.
pub(super) struct Named(Vec<Host>);

impl Named {
    /// Resolves hosts and aliases, if the rules allow all of them.
    pub(super) fn resolve(texts: &[String], rules: &Rules) -> anyhow::Result<Self> {
        let host = |text: &String| {
            let resolved = rules.aliases.resolve(text);
            let (host, registry) = resolved.with_context(|| {
                let why = rules.aliases.lookalike_host(text);
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                format!(
                    "--registry {text:?} is neither the host of an ECR registry nor an alias of \
                     the configuration{why}; ECR Public needs publicEcr: true"
                )
            })?;
            anyhow::ensure!(
                rules.allow.permits(&registry),
                "--registry {host} is not in the allow list of the configuration; add its account \
                 and region to allow"
            );
            Ok(host)
        };
        texts.iter().map(host).collect::<Result<_, _>>().map(Self)
    }

    /// Adds the registries to those that every pull secret has.
    pub(super) fn prewarm(&self, policy: &Current<Policy>) {
        let mut named = Policy::clone(&policy.get());
        named.prewarm.extend(self.0.iter().cloned());
        policy.replace(named);
    }

    /// Makes the row of a pull secret that lacks one of the registries an error.
    pub(super) fn require(&self, row: Row) -> Row {
        let missing = self.0.iter().find(|host| !row.hosts.contains(host));
        let Some(host) = missing.filter(|_| row.is_ok && row.result != "skipped") else {
            return row;
        };
        Row {
            message: Some(format!(
                "no credential for {host}: no identity may mint for it here, or \
                 limits.registriesPerSecret is reached"
            )),
            is_ok: false,
            ..row
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::namespace::Namespace, config::Config};

    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn resolve(text: &str, config: &str) -> Result<Named, String> {
        let header = "apiVersion: ecr-injector.dev/v1alpha1\nkind: Config\n";
        let config = Config::parse(&format!("{header}{config}"), "config.yaml").expect("valid");
        Named::resolve(&[text.to_owned()], &config.rules).map_err(|error| error.to_string())
    }

    #[test]
    fn named_registry_that_gets_no_credential_is_an_error() {
        let alias = format!("aliases: [{{host: images.example.com, registry: {ECR}}}]");
        for (text, config) in [(ECR, ""), ("images.example.com", &alias)] {
            assert_eq!(resolve(text, config).expect("named").0[0].as_str(), text);
        }
        for (text, config, expected) in [
            (
                "docker.io",
                "",
                "neither the host of an ECR registry nor an alias",
            ),
            ("public.ecr.aws", "", "ECR Public needs publicEcr: true"),
            (
                "images.example.com",
                "",
                "nor an alias of the configuration",
            ),
            (
                ECR,
                "allow: {regions: [us-east-1]}",
                "is not in the allow list",
            ),
        ] {
            let error = resolve(text, config).err().expect("an error");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn row_without_a_named_registry_is_an_error() {
        let named = resolve(ECR, "").expect("named");
        let team = Namespace::parse("team").expect("valid");
        let row = Row::ok(team.clone(), "fresh");
        assert!(!named.require(row.clone()).is_ok);
        let hosts = named.0.clone();
        assert!(named.require(Row { hosts, ..row }).is_ok);
        assert!(named.require(Row::ok(team, "skipped")).is_ok);
    }
}
