//! `ecr-injector credential-provider`: the kubelet's credential plugin, as in the small binary.

use std::{ffi::OsString, process::ExitCode};

use clap::Args;

use crate::nodes::kubelet_plugin;

const LONG_ABOUT: &str = "\
Run as the kubelet's exec credential plugin: a CredentialProviderRequest on standard input, credentials on standard output.

The flags are those of the small binary ecr-credential-provider, which is what to install on nodes.";

/// Run as the kubelet's credential plugin for Amazon ECR
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, disable_help_flag = true, args_conflicts_with_subcommands = true)]
pub struct CredentialProviderArgs {
    /// Flags of the plugin; --help lists them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<OsString>,
}

impl CredentialProviderArgs {
    /// Answers one request.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        Ok(kubelet_plugin::run(&self.flags).write())
    }
}
