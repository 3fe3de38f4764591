//! The texts of docs/how-to/troubleshooting.md that the commands write.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{config_file, shows};

/// Returns all that a program of the package writes.
fn written(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

#[test]
fn files_and_hosts_are_named_as_the_page_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let program = env!("CARGO_BIN_EXE_ecr-injector");
    let checked = |text: &str| {
        fs::write(&path, text).unwrap();
        written(program, &["config", "check", path.to_str().unwrap()])
    };
    shows(
        "`config.yaml: allow.accounts[0]: expected 12 digits in quotes, got \"12\"`",
        &checked(&config_file("allow: {accounts: [\"12\"]}")),
    );
    shows(
        "`config.yaml: apiVersion: is missing: write apiVersion: ecr-injector.dev/v1alpha1`",
        &checked(""),
    );
    shows(
        "`no object in standard input`",
        &written(program, &["preview"]),
    );
    let program = env!("CARGO_BIN_EXE_ecr-credentials");
    let arguments = ["credential-provider", "--try", "docker.io/library/nginx"];
    shows(
        "`is not a host of ECR, so there are no credentials for it`",
        &written(program, &arguments),
    );
}
