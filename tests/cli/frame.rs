//! The frame of all commands: the version, completion, manual pages, variables.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::shows;

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments, &[]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn version_has_what_the_build_was_told() {
    let version = env!("CARGO_PKG_VERSION");
    let text = printed(&["version"]);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(&*format!("ecr-injector {version}")));
    let json: Value = serde_json::from_str(&printed(&["version", "-o", "json"])).unwrap();
    assert_eq!(json["version"], version);
    // The tests are built as the binary is.
    for (name, told) in [
        ("commit", option_env!("ECR_INJECTOR_COMMIT")),
        ("date", option_env!("ECR_INJECTOR_BUILD_DATE")),
    ] {
        let told = told.filter(|text| !text.is_empty());
        assert_eq!(json[name].as_str(), told);
        let line = format!("{name:<13}{}", told.unwrap_or("unknown"));
        assert_eq!(lines.next(), Some(&*line));
    }
    assert_eq!(printed(&["--version"]), format!("ecr-injector {version}\n"));
}

#[test]
fn every_shell_completes_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completion", shell]);
        for word in ["refresh", "streaming-lists", "ecr-injector"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let output = run(&["completion", "tcsh"], &[]);
    assert_eq!(output.status.code(), Some(2));
}

/// bash itself, as far as it is installed everywhere.
#[test]
fn bash_completes_a_command_and_a_flag() {
    let script = printed(&["completion", "bash"]);
    let complete = |words: &str, at: usize| {
        let ask = format!(
            "{script}\ncomplete=$(complete -p ecr-injector); complete=${{complete##*-F }}\n\
             COMP_WORDS=({words}); COMP_CWORD={at}\n\
             ${{complete%% *}} ecr-injector \"${{COMP_WORDS[COMP_CWORD]}}\" ecr-injector\n\
             echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("ecr-injector clean", 1), "cleanup");
    assert_eq!(complete("ecr-injector cleanup --conte", 2), "--context");
}

#[test]
fn manual_has_a_page_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man");
    printed(&["man", "--dir", out.to_str().unwrap()]);
    let entries = fs::read_dir(&out).unwrap();
    let pages: BTreeSet<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in [
        "",
        "-serve",
        "-refresh",
        "-config-check",
        "-iam-trust",
        "-secret",
    ] {
        assert!(
            pages.contains(&format!("ecr-injector{page}.1")),
            "{page}: {pages:?}"
        );
    }
    let page = fs::read_to_string(out.join("ecr-injector-cleanup.1")).unwrap();
    assert!(page.contains("kubeconfig"), "{page}");
    assert!(!printed(&["--help"]).contains("  man "), "hidden");
    let output = run(&["man", "--dir", "/dev/null/x"], &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("creating the folder --dir /dev/null/x"),
        "{error}"
    );
}

/// A manifest may set a variable and leave it empty.
#[test]
fn empty_variables_are_as_good_as_none() {
    let names = [
        "ECR_INJECTOR_OUTPUT",
        "ECR_INJECTOR_CONTEXT",
        "ECR_INJECTOR_AS",
    ];
    let empty = names.map(|name| (name, ""));
    for arguments in [&["config", "check", "absent"][..], &["cleanup"]] {
        let output = run(arguments, &empty);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!error.contains("invalid value"), "{arguments:?}: {error}");
        assert!(
            !error.contains("a value is required"),
            "{arguments:?}: {error}"
        );
    }
    // It is the empty value that is ignored.
    let output = run(
        &["config", "check", "absent"],
        &[("ECR_INJECTOR_OUTPUT", "x")],
    );
    assert_eq!(output.status.code(), Some(2));
}

/// Writes a kubeconfig, and runs a command on its cluster.
#[track_caller]
fn fails_with(kubeconfig: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, kubeconfig).unwrap();
    let path = path.to_str().unwrap();
    let output = run(
        &["cleanup", "--all", "--kubeconfig", path],
        &[("PATH", "/usr/bin:/bin")],
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains("SECRET"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn with_user(user: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{{"name": "c", "cluster": {{"server": "https://127.0.0.1:1"}}}}],
        "contexts": [{{"name": "c", "context": {{"cluster": "c", "user": "u"}}}}],
        "users": [{{"name": "u", "user": {user}}}]}}"#
    )
}

#[test]
fn no_line_of_a_kubeconfig_is_shown() {
    for (broken, place) in [
        (
            "users:\n- name: x\n  user:\n    token: SECRET\n   bad: [SECRET\n",
            "see line 5, column",
        ),
        (
            "users:\n- name: x\n  user:\n    token: [SECRET]\n",
            "see line 4, column",
        ),
        ("users: SECRET\n", "see line 1, column"),
        ("SECRET\n", "see line 1, column"),
    ] {
        let error = fails_with(broken);
        assert!(error.contains(place), "{broken}: {error}");
        shows(
            "`is not YAML, or not a kubeconfig: see line 7, column 4`",
            &error,
        );
    }
    // Values that are of no use, in a file that is well-formed.
    for user in [
        r#"{"client-certificate-data": "SECRET-!", "client-key-data": "SECRET-!"}"#,
        r#"{"client-certificate-data": "U0VDUkVU", "client-key-data": "U0VDUkVU"}"#,
        r#"{"token": "SECRET\n"}"#,
    ] {
        fails_with(&with_user(user));
    }
}

#[test]
fn exec_plugin_that_is_missing_or_fails_is_named() {
    let exec = |command: &str, arguments: &str| {
        let exec = format!(
            r#"{{"exec": {{"apiVersion": "client.authentication.k8s.io/v1", "command": "{command}",
            "args": ["-c", "{arguments}"], "interactiveMode": "Never"}}}}"#
        );
        fails_with(&with_user(&exec))
    };
    let error = exec("aws-iam-authenticator", "SECRET");
    let expected = "\"aws-iam-authenticator\" of the kubeconfig: install it";
    assert!(error.contains(expected), "{error}");
    shows(
        "`can't start the exec plugin \"aws-iam-authenticator\" of the kubeconfig`",
        &error,
    );
    let error = exec("sh", "echo SECRET; echo log in first >&2; exit 3");
    let expected = "the exec plugin \"sh\" of the kubeconfig failed (exit status: 3): log in first";
    assert!(error.contains(expected), "{error}");
    let error = exec("sh", "echo SECRET: [SECRET");
    assert!(
        error.contains("\"sh\" of the kubeconfig printed no ExecCredential"),
        "{error}"
    );
}

#[test]
fn address_without_a_host_and_delay_with_a_unit_are_understood() {
    let serve = |flags: &[&str]| {
        let flags = [&["serve", "--kubeconfig", "/nowhere"], flags].concat();
        let output = run(&flags, &[]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let flags = [
        "--listen",
        ":0",
        "--admin-listen",
        ":0",
        "--shutdown-delay",
        "5s",
    ];
    let (code, error) = serve(&flags);
    assert_eq!(code, Some(1), "{error}");
    assert!(
        error.contains("/nowhere"),
        "it goes on to the cluster: {error}"
    );
    for (flags, message) in [
        (["--listen", "8443"], "expected :PORT, or ADDRESS:PORT"),
        (["--listen", ":70000"], "expected :PORT, or ADDRESS:PORT"),
        (
            ["--shutdown-delay=-5s", "--listen=:0"],
            "expected a duration",
        ),
        (["--shutdown-delay", "soon"], "expected a duration"),
    ] {
        let (code, error) = serve(&flags);
        assert_eq!(code, Some(2), "{flags:?}: {error}");
        assert!(error.contains(message), "{flags:?}: {error}");
    }
}
