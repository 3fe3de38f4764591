//! The reference of all commands, which is their help.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use ecr_injector::cli::Cli;

const PAGE: &str = "docs/reference/commands.md";
const HEAD: &str = "\
<!-- Written by `make commands` from the code: change it there. -->

# Commands and flags

The help of every command, as `ecr-injector COMMAND --help` prints it. What the commands do and when
to use them: [command line](command-line.md).
";

/// Makes the help independent of the terminal and of the variables that are set.
fn steady(command: Command) -> Command {
    command
        .term_width(100)
        .mut_args(|arg| arg.hide_env_values(true))
        .mut_subcommands(steady)
}

fn write(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let help = command.clone().render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    // Writing to a String can't fail.
    let _ = write!(
        page,
        "\n## `{name}`\n\n```text\n{}\n```\n",
        lines.join("\n")
    );
    for command in command.get_subcommands() {
        if !command.is_hide_set() && command.get_name() != "help" {
            write(command, page);
        }
    }
}

/// `make commands` writes it.
#[test]
fn reference_of_commands_is_their_help() {
    let mut command = steady(Cli::command());
    command.build();
    let mut page = HEAD.to_owned();
    write(&command, &mut page);
    for of_two in [
        "## `ecr-injector config check`",
        "## `ecr-injector iam trust`",
    ] {
        assert!(page.contains(of_two), "{of_two}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "{PAGE} is not what the code says: run: make commands"
    );
}

/// A variable that was left set must not widen what a command does, so scopes have none.
#[test]
fn commands_on_a_cluster_choose_it_by_the_same_flags() {
    let mut command = Cli::command();
    command.build();
    let find = |path: &[&str]| {
        let start = Some(&command);
        let found = path
            .iter()
            .fold(start, |at, name| at?.find_subcommand(name));
        found.unwrap_or_else(|| panic!("no {path:?}"))
    };
    for path in [
        &["serve"][..],
        &["refresh"],
        &["cleanup"],
        &["probe"],
        &["doctor"],
        &["doctor", "pod"],
        &["doctor", "bundle"],
        &["config", "check"],
    ] {
        for (flag, variable) in [
            ("kubeconfig", "ECR_INJECTOR_KUBECONFIG"),
            ("context", "ECR_INJECTOR_CONTEXT"),
            ("as", "ECR_INJECTOR_AS"),
        ] {
            let mut arguments = find(path).get_arguments();
            let found = arguments.find(|argument| argument.get_long() == Some(flag));
            let found = found.unwrap_or_else(|| panic!("{path:?} lacks --{flag}"));
            assert_eq!(
                found.get_env(),
                Some(variable.as_ref()),
                "{path:?} --{flag}"
            );
        }
    }
    let kubeconfigs = |command: &Command| {
        let mut arguments = command.get_arguments();
        arguments.any(|argument| argument.get_long() == Some("kubeconfig"))
    };
    let nested = command.get_subcommands().flat_map(Command::get_subcommands);
    let all = command.get_subcommands().chain(nested);
    assert_eq!(
        all.filter(|it| kubeconfigs(it)).count(),
        8,
        "a new command on a cluster"
    );
}
