//! `ecr-injector completion` and `ecr-injector man`: what shells and readers of manuals know of the
//! command line.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;

use super::stdout;

const AFTER_HELP: &str = "\
Examples:
  ecr-injector completion bash >/etc/bash_completion.d/ecr-injector
  ecr-injector completion zsh >\"${fpath[1]}/_ecr-injector\"
  ecr-injector completion fish >~/.config/fish/completions/ecr-injector.fish
  ecr-injector completion elvish >>~/.config/elvish/rc.elv
  ecr-injector completion powershell >>$PROFILE";

/// Print the completion script of a shell.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual pages of all commands.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder to write them to
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl CompletionArgs {
    /// Prints the script for these commands.
    pub fn run(self, mut commands: Command) -> anyhow::Result<ExitCode> {
        let name = commands.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut commands, name.clone(), &mut script);
        let mut script = String::from_utf8(script).context("the script is no text")?;
        if self.shell == Shell::Bash {
            // clap_complete names the states of a program with a hyphen in two ways, so that no
            // subcommand completes (clap#6421).
            let [wrong, right] = ["__subcmd__", "__"].map(|hyphen| name.replace('-', hyphen));
            script = script.replace(&wrong, &right);
        }
        stdout::write(&script).context("writing to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ManArgs {
    /// Writes a page for each of these commands.
    pub fn run(self, commands: Command) -> anyhow::Result<ExitCode> {
        let folder = &self.dir;
        fs::create_dir_all(folder)
            .with_context(|| format!("creating the folder --dir {}", folder.display()))?;
        clap_mangen::generate_to(commands, folder)
            .with_context(|| format!("writing manual pages to {}", folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
