//! The errors of the binary: each says which file, flag, server or program it is about, and what to do; none is written
//! for a programmer, and none has a secret of a kubeconfig in it.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use axum::Router;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Authority, config_file, registry};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const SECRET: &str = "MARKER-of-a-secret";
/// Words that mean something to who programs, and to nobody who writes a file.
const OF_PROGRAMMERS: [&str; 26] = [
    "serialize",
    "serde",
    "Options",
    "with_snippet",
    "DuplicateKeyPolicy",
    "u64",
    "i64",
    "u32",
    "usize",
    "f64",
    "i128",
    "u128",
    "&str",
    "String",
    "Option<",
    "struct",
    "enum",
    "variant",
    "unit",
    "configured policy",
    "sequence",
    "budget",
    "Cow",
    "None",
    "breach",
    "total_replayed",
];

/// Runs a program of the package to its end, in an environment that has this in it and nothing else.
fn run_program(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    run_program(env!("CARGO_BIN_EXE_ecr-injector"), arguments, variables)
}

/// All that a program wrote, for people who look for one text.
fn written(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// A kubeconfig of one user on one server.
fn kubeconfig(server: &str, cluster: &Value, user: &Value) -> Value {
    let mut cluster = cluster.clone();
    cluster["server"] = server.into();
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "there", "cluster": cluster}],
        "contexts": [{"name": "here", "context": {"cluster": "there", "user": "me"}}],
        "users": [{"name": "me", "user": user}],
    })
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.0.path().join(name), text).unwrap();
        self.path(name)
    }

    fn kubeconfig(&self, server: &str) -> String {
        let file = kubeconfig(server, &json!({}), &json!({"token": "x"}));
        self.write("kubeconfig", &file.to_string())
    }
}

// Files

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn missing_file_is_named_with_what_named_it() {
    let folder = Folder::new();
    let (missing, kubeconfig) = (
        &*folder.path("nowhere"),
        &*folder.kubeconfig("https://127.0.0.1:1"),
    );
    let serve = [
        "serve",
        "--listen=:0",
        "--admin-listen=:0",
        "--kubeconfig",
        kubeconfig,
    ];
    let identity = ["identity", "--registry", HOST, "--namespace", "a"];
    let secret = ["secret", "--registry", HOST, "-n", "a"];
    let commands: [&[&str]; 9] = [
        &serve,
        &["preview"],
        &["probe", "--image", "x", "-n", "a"],
        &["doctor"],
        &["doctor", "pod", "a/b"],
        &identity,
        &secret,
        &["refresh", "--once"],
        &["cleanup", "--all"],
    ];
    let no_such_file = "No such file";
    for command in commands {
        for (flags, variables, name) in [
            (&["--config", missing][..], &[][..], "--config"),
            (
                &[],
                &[("ECR_INJECTOR_CONFIG", missing)],
                "ECR_INJECTOR_CONFIG",
            ),
        ] {
            // Nothing of a cluster is needed for it.
            let output = run(&[command, flags].concat(), variables);
            let said = written(&output);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
            let expected = format!(
                "ecr-injector: {name}: reading {missing}: check the path and its permissions"
            );
            assert!(
                said.contains(&expected) && said.contains(no_such_file),
                "{command:?}: {said}"
            );
        }
    }
    let written_cert = &*folder.write("some.pem", "no certificate");
    let flags: [(Vec<&str>, &str); 11] = [
        (
            [&identity[..], &["--aws-ca-bundle", missing]].concat(),
            "--aws-ca-bundle: reading the CA bundle",
        ),
        (
            [&secret[..], &["--aws-ca-bundle", missing]].concat(),
            "--aws-ca-bundle: reading the CA bundle",
        ),
        (
            [
                &serve[..],
                &["--tls-cert", missing, "--tls-key", written_cert],
            ]
            .concat(),
            "--tls-cert: reading the certificate",
        ),
        (
            [
                &serve[..],
                &["--tls-cert", written_cert, "--tls-key", missing],
            ]
            .concat(),
            "--tls-key: reading the key",
        ),
        (
            [&serve[..], &["--client-ca", missing]].concat(),
            "--client-ca: reading the clients' authorities",
        ),
        (vec!["preview", "-f", missing], "-f: reading"),
        (vec!["doctor", "pod", "-f", missing], "-f: reading"),
        (
            vec!["refresh", "--once", "--kubeconfig", missing],
            "(--kubeconfig)",
        ),
        (vec!["doctor", "--kubeconfig", missing], "(--kubeconfig)"),
        (
            vec![
                "iam",
                "all",
                "--from",
                missing,
                "--role-arn",
                "arn:aws:iam::123456789012:role/a",
                "--out",
                missing,
            ],
            "--from: reading",
        ),
        (
            vec!["credential-provider", "config", "--check", missing],
            "--check: reading",
        ),
    ];
    for (arguments, expected) in flags {
        let output = run(&arguments, &[]);
        let said = written(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        for part in [expected, missing, no_such_file] {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
    for (variable, arguments, expected) in [
        ("AWS_CA_BUNDLE", &identity[..], "AWS_CA_BUNDLE: reading"),
        ("KUBECONFIG", &["doctor"], "(KUBECONFIG)"),
        (
            "ECR_INJECTOR_KUBECONFIG",
            &["doctor"],
            "(ECR_INJECTOR_KUBECONFIG)",
        ),
    ] {
        let said = written(&run(arguments, &[(variable, missing)]));
        for part in [expected, missing, no_such_file] {
            assert!(said.contains(part), "{variable}: {said}");
        }
    }
}

#[test]
fn missing_file_is_named_by_the_programs_of_nodes() {
    let folder = Folder::new();
    let missing = &*folder.path("nowhere");
    let program = env!("CARGO_BIN_EXE_ecr-credentials");
    let image = format!("{HOST}/web");
    let keys = [
        ("AWS_ACCESS_KEY_ID", "AKIAXXXXXXXXXXXXXXXX"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ];
    for (flag, expected) in [
        ("--config", "--config: reading"),
        ("--aws-ca-bundle", "--aws-ca-bundle: reading"),
    ] {
        let arguments = [
            "credential-provider",
            "--try",
            &image,
            "--cache-dir",
            "none",
            flag,
            missing,
        ];
        let said = written(&run_program(program, &arguments, &keys));
        for part in [expected, missing, "No such file"] {
            assert!(said.contains(part), "{flag}: {said}");
        }
    }
    for (variable, expected) in [
        ("ECR_INJECTOR_CONFIG", "ECR_INJECTOR_CONFIG: reading"),
        ("AWS_CA_BUNDLE", "AWS_CA_BUNDLE: reading"),
    ] {
        let mut variables = keys.to_vec();
        variables.extend([(variable, missing), ("AWS_ECR_DISABLE_CACHE", "1")]);
        let mut child = Command::new(program)
            .args(["docker-credential", "get"])
            .env_clear()
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), HOST.as_bytes()).unwrap();
        let said = written(&child.wait_with_output().unwrap());
        for part in [expected, missing, "No such file"] {
            assert!(said.contains(part), "{variable}: {said}");
        }
    }
}

#[test]
fn files_that_a_kubeconfig_names_are_named() {
    let folder = Folder::new();
    let missing = folder.path("nowhere.pem");
    for (cluster, user) in [
        (json!({"certificate-authority": missing}), json!({})),
        (
            json!({}),
            json!({"client-certificate": missing, "client-key": missing}),
        ),
        (json!({}), json!({"tokenFile": missing})),
    ] {
        let file = kubeconfig("https://127.0.0.1:1", &cluster, &user).to_string();
        let path = folder.write("kubeconfig", &file);
        let output = run(&["cleanup", "--all", "--kubeconfig", &path], &[]);
        let said = written(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&missing), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn other_files_than_the_configuration_are_recognized() {
    let folder = Folder::new();
    let config = config_file("");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"config.yaml": config}});
    let map = folder.write("map.yaml", &map.to_string());
    let values = folder.write("values.yaml", "image: {tag: x}\nconfig: {secretName: a}\n");
    let kubeconfig = folder.kubeconfig("https://127.0.0.1:1");
    for (file, expected) in [
        (&map, "this is a ConfigMap"),
        (&values, "this is a value of the Helm chart"),
    ] {
        for arguments in [
            &[
                "serve",
                "--listen=:0",
                "--admin-listen=:0",
                "--kubeconfig",
                &kubeconfig,
                "--config",
                file,
            ][..],
            &[
                "identity",
                "--registry",
                HOST,
                "--namespace",
                "a",
                "--config",
                file,
            ],
            &["preview", "--config", file],
        ] {
            let output = run(arguments, &[]);
            let said = written(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(expected), "{said}");
            assert!(
                said.contains("ecr-injector config check reads"),
                "what to do: {said}"
            );
        }
        let output = run(&["config", "check", file], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", written(&output));
    }
}

// Servers

/// A server that can't be used, and what is said of it.
struct Unreachable {
    server: String,
    authority: Option<String>,
    advice: &'static str,
}

impl Unreachable {
    fn kubeconfig(&self, folder: &Folder) -> String {
        let data = self.authority.as_ref();
        let cluster = data.map_or_else(
            || json!({}),
            |pem| json!({"certificate-authority-data": BASE64_STANDARD.encode(pem)}),
        );
        let file = kubeconfig(&self.server, &cluster, &json!({"token": "x"}));
        folder.write("kubeconfig", &file.to_string())
    }
}

#[test]
fn server_that_can_not_be_reached_is_named_with_what_to_do() {
    let (authority, other) = (
        Authority::new("the API server's"),
        Authority::new("another"),
    );
    let (address, _server) = registry::serve(&authority, "127.0.0.1", Router::new());
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in plain.incoming().flatten() {
            let _ =
                std::io::Write::write_all(&mut &connection, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let cases = [
        Unreachable {
            server: "https://127.0.0.1:1".to_owned(),
            authority: None,
            advice: "nothing listens there",
        },
        Unreachable {
            server: "https://no-such-host.invalid:6443".to_owned(),
            authority: None,
            advice: "its name is unknown here",
        },
        Unreachable {
            server: format!("https://{address}"),
            authority: Some(other.pem()),
            advice: "its certificate is not of the certificate-authority in the kubeconfig",
        },
        Unreachable {
            server: format!("https://localhost:{}", address.port()),
            authority: Some(authority.pem()),
            advice: "its certificate is for other names",
        },
        Unreachable {
            server: format!("https://{plain_address}"),
            authority: None,
            advice: "what listens there does not speak TLS",
        },
    ];
    let folder = Folder::new();
    for case in cases {
        let path = case.kubeconfig(&folder);
        let image = format!("{HOST}/web");
        for arguments in [
            &["cleanup", "--all"][..],
            &["refresh", "--once"],
            &["doctor", "-o", "short"],
            &["probe", "--image", &image, "-n", "a", "--wait", "0s"],
        ] {
            let output = run(&[arguments, &["--kubeconfig", &path]].concat(), &[]);
            let said = written(&output);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            for part in [&*case.server, case.advice] {
                assert!(said.contains(part), "{arguments:?}: {part}: {said}");
            }
            assert!(!said.contains("Error("), "as Rust prints it: {said}");
        }
    }
}

/// Serves for some seconds, and returns the lines of the log.
fn log_of_serve(folder: &Folder, server: &str) -> Vec<Value> {
    let kubeconfig = folder.kubeconfig(server);
    let output = Command::new("timeout")
        .args([
            "3",
            env!("CARGO_BIN_EXE_ecr-injector"),
            "serve",
            "--listen=127.0.0.1:0",
        ])
        .args([
            "--admin-listen=127.0.0.1:0",
            "--shutdown-delay=0",
            "--log-format=json",
            "--log=debug",
        ])
        .args(["--kubeconfig", &kubeconfig])
        .env("HOME", folder.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn failed_watch_has_its_cause_once_and_no_line_of_a_library() {
    let folder = Folder::new();
    let lines = log_of_serve(&folder, "https://127.0.0.1:1");
    let watches: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "watch failed; retrying")
        .collect();
    assert!(watches.len() >= 2, "{lines:#?}");
    for line in watches {
        let error = line["error"].as_str().unwrap();
        assert_eq!(error.matches("Connection refused").count(), 1, "{error}");
        assert!(error.contains("nothing listens there"), "{error}");
        assert!(!error.contains('{') && !error.contains("Error("), "{error}");
    }
    let loud = |line: &&Value| line["level"] != "DEBUG" && line["level"] != "TRACE";
    for line in lines.iter().filter(loud) {
        let target = line["target"].as_str().unwrap();
        assert!(target.starts_with("ecr_injector"), "{line}");
    }
}

#[test]
fn serve_writes_colours_to_a_terminal_unless_no_color_is_set() {
    let folder = Folder::new();
    let kubeconfig = folder.kubeconfig("https://127.0.0.1:1");
    let serve = format!(
        "timeout 2 {} serve --listen=127.0.0.1:0 --admin-listen=127.0.0.1:0 --shutdown-delay=0 --kubeconfig {kubeconfig}",
        env!("CARGO_BIN_EXE_ecr-injector")
    );
    let on_a_terminal = |variables: &[(&str, &str)]| {
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &serve, "/dev/null"])
            .envs(variables.iter().copied())
            .env("TERM", "xterm-256color")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("watch failed"), "{text}");
        text
    };
    assert!(on_a_terminal(&[("NO_COLOR", "")]).contains('\x1b'));
    assert!(!on_a_terminal(&[("NO_COLOR", "1")]).contains('\x1b'));
}

// Texts that are no YAML, or that YAML reads as something else

/// Files that are wrong, each in a way of its own.
#[allow(clippy::too_many_lines, reason = "a table")]
fn broken_files() -> Vec<String> {
    let deep = |open: &str, close: &str| format!("a: {}{}", open.repeat(3000), close.repeat(3000));
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let entries = vec![format!("*a{}", n - 1); 10].join(", ");
            writeln!(text, "a{n}: &a{n} [{entries}]").unwrap();
        }
        text
    };
    let mut broken: Vec<String> = [
        "allow: [",
        "allow: {",
        "allow: ]",
        "allow: }",
        "a: b: c",
        "a:\n\t- b",
        "\ta: b",
        "a: \"b",
        "a: 'b",
        "- a\nb: c",
        "a: b\n c: d",
        "a: |\nb",
        "a: >\n b\nc",
        "a: *x",
        "a: &x",
        "a: &x &y b",
        "? a",
        ": b",
        "a: !!int x",
        "a: !!bool x",
        "secretName: !!int x",
        "secretName: !ours x",
        "secretName: !!binary x",
        "secretName: !!binary \"/w==\"",
        "!ours {a: b}",
        "<<: x",
        "<<: [x]",
        "a: <<",
        "a: b\na: c",
        "secretName: a\nsecretName: b",
        "1: b",
        "1.5: b",
        "true: b",
        "null: b",
        "[a]: b",
        "{a: b}: c",
        "a: .inf",
        "a: .nan",
        "a: 99999999999999999999999999999999999999999",
        "limits: {registriesPerPod: 1.5}",
        "limits: {registriesPerPod: -1}",
        "limits: {registriesPerPod: 99999999999999}",
        "limits: {registriesPerPod: .inf}",
        "limits: {registriesPerPod: 340282366920938463463374607431768211456}",
        "publicEcr: yes please",
        "publicEcr: 1",
        "publicEcr: null",
        "optIn: 5",
        "optIn: [a]",
        "identities: {a: b}",
        "identities: [a]",
        "identities: [[a]]",
        "aliases: [null]",
        "aliases: [5]",
        "aliases: [{host: 5}]",
        "onFailure: 5",
        "onFailure: {a: b}",
        "onFailure: Admit",
        "onFailure: [admit]",
        "revoke: {onExpiry: 1}",
        "discover: true",
        "log: info",
        "log: {filter: 5}",
        "refresh: {forgetAfter: 5}",
        "refresh: {sessionCap: [1h]}",
        "awsEndpoints: []",
        "awsEndpoints: {eu-west-1: x}",
        "awsEndpoints: {eu-west-1: {ecr: 5}}",
        "---\na: b\n---\nc: d",
        "--- a\n--- b",
        "%YAML 3.0\n---\na: b",
        "%TAG ! x",
        "a: `b",
        "a: @b",
        "a: %b",
        "a: b #",
        "\u{0}",
        "a: \u{7}",
        "a\u{feff}: b",
        "{\"a\": }",
        "{\"a\": 1,}",
        "{a: b",
        "[1, 2",
        "\"just a text",
        "just a text",
        "5",
        "null",
        "~",
        "...",
        "---",
        "!include other.yaml",
        "a: !include other.yaml",
        "${VALUE}",
        "a: ${VALUE}",
        "{{ .Values.a }}",
        "a: {{ .Values.a }}",
    ]
    .map(str::to_owned)
    .into();
    broken.extend([deep("[", "]"), deep("{a: ", "}"), bomb]);
    broken
}

/// Asserts that a message is one for the author of a file.
#[track_caller]
fn is_for_authors(input: &str, said: &str) {
    let input = input.chars().take(80).collect::<String>();
    assert!(!said.contains("panicked"), "{input:?}: {said}");
    for word in OF_PROGRAMMERS {
        assert!(!said.contains(word), "{input:?}: {word}: {said}");
    }
    assert!(said.len() < 2500, "{input:?}: {said}");
}

fn with_input(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever reads nothing closes the pipe.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn broken_configurations_are_explained_to_who_wrote_them() {
    let program = env!("CARGO_BIN_EXE_ecr-injector");
    let broken = broken_files();
    assert!(broken.len() > 90, "{}", broken.len());
    let header = "apiVersion: ecr-injector.dev/v1alpha1\nkind: Config\n";
    for text in &broken {
        for input in [text.clone(), format!("{header}{text}")] {
            let output = with_input(program, &["config", "check", "-"], &input);
            let said = String::from_utf8(output.stderr).unwrap();
            // Some are right with the header, such as one that is only a comment.
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{input}: {said}"
            );
            is_for_authors(&input, &said);
        }
    }
}

#[test]
fn broken_manifests_are_explained_to_who_wrote_them() {
    let program = env!("CARGO_BIN_EXE_ecr-injector");
    let header = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    let mut broken = broken_files();
    // Aliases of aliases: the limit for a dump of a whole cluster takes a while.
    broken.pop();
    for text in broken {
        for input in [text.clone(), format!("{header}{text}")] {
            let output = with_input(program, &["preview", "-q"], &input);
            is_for_authors(&input, &String::from_utf8(output.stderr).unwrap());
        }
    }
}

#[test]
fn broken_files_of_the_kubelet_and_of_docker_are_explained() {
    let folder = Folder::new();
    let header = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n";
    let of_the_kubelet = [
        "providers: x",
        "providers: {}",
        "providers: [x]",
        "providers: [[x]]",
        "providers: [{name: [x]}]",
        "providers: [{name: 5, matchImages: x}]",
        "providers: [{env: {a: b}}]",
        "providers: [{args: x}]",
        "providers: [{tokenAttributes: x}]",
        "providers: [{defaultCacheDuration: [1]}]",
        "providers: null",
    ];
    let mut broken = broken_files();
    broken.pop();
    let broken = broken.into_iter();
    for text in broken.chain(of_the_kubelet.map(str::to_owned)) {
        let path = folder.write("config.yaml", &format!("{header}{text}"));
        let output = run(&["credential-provider", "config", "--check", &path], &[]);
        is_for_authors(&text, &written(&output));
        let path = folder.write("config.json", &text);
        let arguments = ["docker-credential", "configure", HOST, "--file", &path];
        is_for_authors(&text, &written(&run(&arguments, &[])));
    }
    // What the kubelet itself might send.
    let program = env!("CARGO_BIN_EXE_ecr-credentials");
    for input in [
        "",
        "x",
        "[]",
        "{}",
        "5",
        r#"{"image": 5}"#,
        r#"{"apiVersion": []}"#,
        r#"{"image": "a", "image": "b"}"#,
    ] {
        let output = with_input(program, &["credential-provider"], input);
        assert_ne!(output.status.code(), Some(0), "{input}");
        is_for_authors(input, &written(&output));
    }
}

// Secrets of a kubeconfig

/// A kubeconfig with every field that may hold a secret.
fn full_kubeconfig() -> Value {
    let user = json!({
        "token": SECRET, "password": SECRET, "username": "me",
        "client-certificate-data": BASE64_STANDARD.encode(SECRET), "client-key-data": BASE64_STANDARD.encode(SECRET),
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", format!("exit 1 # {SECRET}")],
            "env": [{"name": "TOKEN", "value": SECRET}], "interactiveMode": "Never", "installHint": "install it",
        },
        "auth-provider": {"name": "oidc", "config": {
            "id-token": SECRET, "refresh-token": SECRET, "client-secret": SECRET, "client-id": "x",
            "idp-issuer-url": "https://127.0.0.1:1",
        }},
        "impersonate-user-extra": {"x": [SECRET]},
    });
    let cluster = json!({
        "certificate-authority-data": BASE64_STANDARD.encode(SECRET),
        "proxy-url": format!("http://me:{SECRET}@127.0.0.1:1"),
    });
    let mut file = kubeconfig(&format!("https://me:{SECRET}@127.0.0.1:1"), &cluster, &user);
    file["extensions"] = json!([{"name": "x", "extension": {"x": SECRET}}]);
    file
}

/// The paths of all values within.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.replace('/', "~1"), value))
            .collect(),
        Value::Array(entries) => entries
            .iter()
            .enumerate()
            .map(|(at, value)| (at.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        let path = format!("{path}/{name}");
        paths(child, &path, found);
        found.push(path);
    }
}

/// Runs commands on a kubeconfig, and asserts that nothing secret is in what they write.
fn keeps_secrets(path: &str, what: &str) {
    let encoded = BASE64_STANDARD.encode(SECRET);
    let commands: [&[&str]; 3] = [
        &["cleanup", "--all"],
        &["doctor"],
        &["refresh", "--once", "--log", "trace"],
    ];
    for arguments in commands {
        let output = run(
            &[arguments, &["--kubeconfig", path]].concat(),
            &[("PATH", "/usr/bin:/bin")],
        );
        let said = written(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(
            !said.contains(SECRET) && !said.contains(&encoded),
            "{what}: {arguments:?}: {said}"
        );
        assert!(!said.contains("panicked"), "{what}: {said}");
    }
}

#[test]
fn no_field_of_a_kubeconfig_shows_a_secret() {
    let folder = Folder::new();
    let whole = full_kubeconfig();
    let mut all = Vec::new();
    paths(&whole, "", &mut all);
    assert!(all.len() > 40, "{all:?}");
    let mut files = vec![("as it is".to_owned(), whole.to_string())];
    // One way to log in at a time: the first that works hides the others.
    for kept in [
        "token",
        "password",
        "exec",
        "auth-provider",
        "client-key-data",
    ] {
        let mut file = whole.clone();
        let user = file["users"][0]["user"].as_object_mut().unwrap();
        user.retain(|name, _| {
            name == kept || (kept == "client-key-data" && name == "client-certificate-data")
        });
        for cluster in ["certificate-authority-data", "proxy-url"] {
            let mut file = file.clone();
            file["clusters"][0]["cluster"]
                .as_object_mut()
                .unwrap()
                .remove(cluster);
            files.push((format!("{kept}, without {cluster}"), file.to_string()));
            let both = ["certificate-authority-data", "proxy-url"];
            let fields = file["clusters"][0]["cluster"].as_object_mut().unwrap();
            for name in both {
                fields.remove(name);
            }
            files.push((format!("{kept}, on a bare cluster"), file.to_string()));
        }
    }
    for (path, text) in [
        (
            "/clusters/0/cluster/proxy-url",
            format!("ftp://me:{SECRET}@127.0.0.1:1"),
        ),
        (
            "/clusters/0/cluster/proxy-url",
            format!("{SECRET} {SECRET}"),
        ),
        (
            "/clusters/0/cluster/server",
            format!("https://{SECRET} {SECRET}"),
        ),
        ("/users/0/user/token", format!("{SECRET}\n{SECRET}")),
        ("/users/0/user/client-key-data", format!("{SECRET}!")),
    ] {
        let mut file = whole.clone();
        *file.pointer_mut(path).unwrap() = text.into();
        files.push((format!("{path} is wrong"), file.to_string()));
    }
    for (what, text) in &files {
        keeps_secrets(&folder.write("kubeconfig", text), what);
    }
    // A value of another type in each place; then its text is not a name that an error may have.
    for path in &all {
        for value in [json!([SECRET]), json!({SECRET: SECRET}), json!(5)] {
            let mut file = whole.clone();
            *file.pointer_mut(path).unwrap() = value.clone();
            let written_to = folder.write("kubeconfig", &file.to_string());
            let output = run(
                &["cleanup", "--all", "--kubeconfig", &written_to],
                &[("PATH", "/usr/bin:/bin")],
            );
            let said = written(&output);
            assert_eq!(output.status.code(), Some(1), "{path}: {said}");
            assert!(!said.contains(SECRET), "{path}: {value}: {said}");
            is_for_authors(path, &said);
        }
    }
}

#[test]
fn kubeconfig_that_is_cut_off_shows_no_line() {
    let folder = Folder::new();
    let text = serde_saphyr::to_string(&full_kubeconfig()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 40, "{text}");
    for end in 1..lines.len() {
        let mut cut = lines[..end].join("\n");
        cut.push_str("\n  }broken: [");
        let path = folder.write("kubeconfig", &cut);
        let output = run(&["cleanup", "--all", "--kubeconfig", &path], &[]);
        let said = written(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains(SECRET), "{end}: {said}");
        assert!(
            said.contains("is not YAML, or not a kubeconfig"),
            "{end}: {said}"
        );
        is_for_authors(&cut, &said);
    }
}

/// The markers would be seen if they were shown.
#[test]
fn markers_of_secrets_are_found_where_they_are_written() {
    let output = run(&["identity", "--registry", SECRET, "--namespace", "a"], &[]);
    assert!(written(&output).contains(SECRET));
    let folder = Folder::new();
    let path: PathBuf = Path::new(&folder.path("kubeconfig")).into();
    let mut file = full_kubeconfig();
    file["current-context"] = SECRET.into();
    fs::write(&path, file.to_string()).unwrap();
    let output = run(
        &["cleanup", "--all", "--kubeconfig", path.to_str().unwrap()],
        &[],
    );
    assert!(
        written(&output).contains(SECRET),
        "the name of a context is no secret"
    );
}
