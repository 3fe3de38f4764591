//! `ecr-injector iam all`: writes the policies of every role in a configuration file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::{
    output::{Output, note},
    trust::IdentityArgs,
};
use crate::{
    cli::{
        args::{parse_namespace, parse_role},
        stdout,
    },
    cluster::namespace::Namespace,
    config::Config,
    identity::{
        RoleArn,
        iam::{
            installation::{self, Installation, RoleDocuments},
            parts::Repository,
            terraform,
        },
    },
};

#[derive(Debug, Args)]
pub(super) struct AllArgs {
    /// The configuration file of the webhook (YAML)
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The role that ecr-injector itself runs with
    #[arg(long, value_name = "ROLE_ARN", value_parser = parse_role)]
    role_arn: RoleArn,
    /// Folder to write the files to; files of the same name are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Namespace to replace {namespace} by; by default those that a rule names one by one; may be
    /// repeated
    #[arg(short, long = "namespace", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespaces: Vec<Namespace>,
    /// Repository to pull from, with * for any text; by default all; may be repeated
    #[arg(long = "repository", value_name = "NAME", value_parser = Repository::parse)]
    repositories: Vec<Repository>,
    /// The repositories are those of a pull-through cache: allow the first pull to import
    #[arg(long)]
    pull_through: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    identity: IdentityArgs,
}

impl AllArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = Config::read(&self.from).context("--from")?;
        let own_trust = self.identity.document()?;
        let repositories = self.repositories.iter().cloned().collect();
        let installation = Installation {
            identities: &config.rules.identities,
            accounts: &config.rules.allow.accounts,
            regions: &config.rules.allow.regions,
            public: config.rules.aliases.include_public(),
            own_role: &self.role_arn,
            has_session_tags: self.identity.pod_identity,
            namespaces: &self.namespaces,
            repositories: &repositories,
            pull_through: self.pull_through,
        };
        let mut roles = installation::documents(&installation)?;
        if own_trust.is_none() {
            roles[0].notes.push(format!(
                "the trust of {} is not printed: name how it is given to Pods, such as --irsa or \
                 --pod-identity",
                self.role_arn
            ));
        }
        roles[0].trust = own_trust;
        fs::create_dir_all(&self.out)
            .with_context(|| format!("creating the folder --out {}", self.out.display()))?;
        for role in &roles {
            for (name, text) in files(role, self.output) {
                let path = self.out.join(name);
                write(&path, &text)?;
                stdout::write(&format!("{}\n", path.display()))
                    .context("writing to standard output")?;
            }
            role.notes.iter().for_each(|text| note(text));
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Returns the files of a role, by name.
fn files(role: &RoleDocuments, output: Output) -> Vec<(String, String)> {
    let name = &role.name;
    if output == Output::Json {
        let documents = [("trust", &role.trust), ("policy", &role.policy)];
        let file = |(kind, document): (&str, &Option<_>)| {
            let document: &crate::identity::iam::Document = document.as_ref()?;
            Some((format!("{name}.{kind}.json"), document.to_json()))
        };
        return documents.into_iter().filter_map(file).collect();
    }
    let label = terraform::label(name);
    let path = role_path(&role.arn);
    let short = role.arn.rsplit('/').next().unwrap_or_default();
    let mut of_role = vec![("name", short)];
    of_role.extend(path.as_deref().map(|path| ("path", path)));
    let trust = role.trust.iter();
    let trust = trust.map(|document| terraform::resource(document, &label, &of_role));
    let policy = role.policy.iter();
    let policy = policy.map(|document| terraform::resource(document, &label, &[("name", short)]));
    let both = role.trust.is_some() && role.policy.is_some();
    let attachment = both.then(|| terraform::attachment(&label));
    let resources: Vec<String> = trust.chain(policy).chain(attachment).collect();
    if resources.is_empty() {
        return Vec::new();
    }
    vec![(format!("{name}.tf"), resources.join("\n"))]
}

/// Returns the path of a role between slashes, if it has one.
fn role_path(arn: &str) -> Option<String> {
    let (_, path) = arn.split_once(":role/")?;
    let (path, _) = path.rsplit_once('/')?;
    Some(format!("/{path}/"))
}
