//! The frame of all commands: the version, completion, manual pages, variables.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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
