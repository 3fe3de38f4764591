//! The output of `ecr-injector iam`, and the parsers of values that its commands share.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::{
    cli::stdout,
    identity::iam::{Document, parts::Repository, terraform},
    registry::{AccountId, Partition, Region, Registry},
    telemetry::printable::printable,
};

/// The format of a document, and the name that Terraform has for it.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
    /// With -o terraform: the name of the policy or role, and of its resource
    #[arg(long, value_name = "NAME", default_value = "ecr-injector", value_parser = parse_name)]
    name: String,
}

/// The format of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// The document alone, as AWS takes it
    #[default]
    Json,
    /// A resource for Terraform
    Terraform,
}

pub(super) fn parse_registry(text: &str) -> Result<Registry, &'static str> {
    if Registry::parse_public(text).is_some() {
        return Err("ECR Public has no repositories to allow: use --public");
    }
    Registry::parse(text).ok_or(
        "expected the host of a private ECR registry: ACCOUNT.dkr.ecr.REGION.amazonaws.com or \
         another form of AWS",
    )
}

pub(super) fn parse_account(text: &str) -> Result<AccountId, &'static str> {
    AccountId::parse(text).ok_or("expected 12 digits")
}

pub(super) fn parse_region(text: &str) -> Result<Region, &'static str> {
    Region::parse(text).ok_or("expected a region such as eu-west-1")
}

pub(super) fn parse_partition(text: &str) -> Result<Partition, String> {
    Partition::parse(text).ok_or_else(|| {
        let names: Vec<&str> = Partition::all().map(Partition::as_str).collect();
        format!("expected one of {}", names.join(", "))
    })
}

pub(super) fn parse_repository(text: &str) -> Result<String, &'static str> {
    let repository = Repository::parse(text)?;
    if text.contains('*') {
        return Err("expected one repository, without *");
    }
    Ok(repository.to_string())
}

pub(super) fn parse_name(text: &str) -> Result<String, &'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits and any of _+=,.@-")
    }
}

impl OutputArgs {
    /// Writes a document. In Terraform the resource of a policy or role has a name.
    pub(super) fn print(&self, document: &Document) -> anyhow::Result<()> {
        self.print_with(document, &[("name", &self.name)])
    }

    pub(super) fn print_with(
        &self,
        document: &Document,
        attributes: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let text = match self.output {
            Output::Json => document.to_json(),
            Output::Terraform => {
                terraform::resource(document, &terraform::label(&self.name), attributes)
            }
        };
        stdout::write(&text).context("writing to standard output")
    }
}

/// Writes a remark to standard error; a line that can't be written is no error.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {}", printable(text));
}
