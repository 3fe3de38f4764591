//! `ecr-injector iam`: the policies that it prints, the files in `deploy/iam`, and the commands in
//! the documents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

mod grammar;

const REGISTRY: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-injector";
const ISSUER: &str = "oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF";

fn iam(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .arg("iam")
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Prints a document, which has to be one.
#[track_caller]
fn printed(arguments: &[&str]) -> Value {
    let output = iam(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert!(!out.lines().any(|line| line.ends_with(' ')), "{out}");
    let document = serde_json::from_str(&out).unwrap();
    assert_eq!(grammar::faults(&document), [""; 0], "{out}");
    assert_eq!(out, text(&iam(arguments).stdout), "the same each time");
    document
}

/// Fails with this code and this in the message, and prints nothing.
#[track_caller]
fn fails(arguments: &[&str], code: i32, message: &str) {
    let output = iam(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(error.contains(message), "{arguments:?}: {error}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn policy_of_a_registry_allows_tokens_and_pulls() {
    let expected = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Tokens",
                "Effect": "Allow",
                "Action": "ecr:GetAuthorizationToken",
                "Resource": "*",
            },
            {
                "Sid": "Pulls",
                "Effect": "Allow",
                "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                "Resource": ["arn:aws:ecr:eu-west-1:210987654321:repository/*"],
            },
        ],
    });
    assert_eq!(printed(&["policy", "--registry", REGISTRY]), expected);
    let by_account = [
        "policy",
        "--account",
        "210987654321",
        "--region",
        "eu-west-1",
    ];
    assert_eq!(printed(&by_account), expected);
}

#[test]
fn policy_has_the_arns_of_its_partition() {
    for (partition, region, suffix) in [
        ("aws", "eu-west-1", "amazonaws.com"),
        ("aws-cn", "cn-north-1", "amazonaws.com.cn"),
        ("aws-us-gov", "us-gov-west-1", "amazonaws.com"),
        ("aws-eusc", "eusc-de-east-1", "amazonaws.eu"),
        ("aws-iso", "us-iso-east-1", "c2s.ic.gov"),
        ("aws-iso-b", "us-isob-east-1", "sc2s.sgov.gov"),
        ("aws-iso-e", "eu-isoe-west-1", "cloud.adc-e.uk"),
        ("aws-iso-f", "us-isof-south-1", "csp.hci.ic.gov"),
    ] {
        let host = format!("210987654321.dkr.ecr.{region}.{suffix}");
        let document = printed(&["policy", "--registry", &host]);
        let arn = format!("arn:{partition}:ecr:{region}:210987654321:repository/*");
        assert_eq!(document["Statement"][1]["Resource"], json!([arn]));
        let document = printed(&[
            "policy",
            "--account",
            "210987654321",
            "--partition",
            partition,
        ]);
        let arn = format!("arn:{partition}:ecr:*:210987654321:repository/*");
        assert_eq!(document["Statement"][1]["Resource"], json!([arn]));
        if partition != "aws" {
            let both = ["policy", "--registry", &host, "--registry", REGISTRY];
            fails(&both, 1, "a policy belongs to one partition");
            fails(
                &["policy", "--registry", &host, "--public"],
                1,
                "partition aws alone",
            );
        }
    }
}

#[test]
fn flags_of_policy_add_what_they_name() {
    let repositories = ["--repository", "team-a/*", "--repository", "base"];
    let document = printed(&[&["policy", "--registry", REGISTRY][..], &repositories].concat());
    let arn = |name: &str| format!("arn:aws:ecr:eu-west-1:210987654321:repository/{name}");
    let expected = json!([arn("base"), arn("team-a/*")]);
    assert_eq!(document["Statement"][1]["Resource"], expected);
    let document = printed(&[
        "policy",
        "--registry",
        REGISTRY,
        "--pull-through",
        "--public",
        "--assume",
        ROLE,
        "--session-tags",
    ]);
    let actions: Vec<&Value> = document["Statement"]
        .as_array()
        .unwrap()
        .iter()
        .map(|statement| &statement["Action"])
        .collect();
    assert_eq!(
        json!(actions[2..]),
        json!([
            ["ecr:BatchImportUpstreamImage", "ecr:CreateRepository"],
            [
                "ecr-public:GetAuthorizationToken",
                "sts:GetServiceBearerToken"
            ],
            ["sts:AssumeRole", "sts:TagSession"],
        ])
    );
    assert_eq!(document["Statement"][4]["Resource"], json!([ROLE]));
}

#[test]
fn policy_without_anything_to_allow_is_wrong_usage() {
    fails(&["policy"], 2, "nothing to allow");
    fails(&["policy", "--region", "eu-west-1"], 2, "--account");
    fails(
        &["policy", "--registry", "public.ecr.aws"],
        2,
        "use --public",
    );
    fails(
        &["policy", "--registry", "https://x"],
        2,
        "ACCOUNT.dkr.ecr.REGION",
    );
    fails(&["policy", "--account", "12"], 2, "12 digits");
    fails(
        &["policy", "--account", "123456789012", "--partition", "x"],
        2,
        "aws-us-gov",
    );
    fails(
        &["policy", "--registry", REGISTRY, "--repository", "A"],
        2,
        "name of a repository",
    );
}

#[test]
fn policy_that_aws_would_not_take_is_an_error_with_its_length() {
    let names: Vec<String> = (0..99)
        .map(|at| format!("--repository=team/{at:0>40}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let arguments = [&["policy", "--registry", REGISTRY][..], &names].concat();
    fails(
        &arguments,
        1,
        "characters without blanks, and AWS takes at most 6144",
    );
}

#[test]
fn irsa_trusts_named_accounts_by_subject_and_audience() {
    let base = [
        "trust",
        "--irsa",
        "--account",
        "123456789012",
        "--oidc-provider",
        ISSUER,
    ];
    fails(&base, 2, "--service-account");
    let with = |accounts: &[&'static str]| -> Vec<&str> {
        let flags = accounts
            .iter()
            .flat_map(|account| ["--service-account", account]);
        base.iter().copied().chain(flags).collect()
    };
    let document = printed(&with(&["b/y", "a/x"]));
    let condition = json!({"StringEquals": {
        format!("{ISSUER}:aud"): "sts.amazonaws.com",
        format!("{ISSUER}:sub"): ["system:serviceaccount:a:x", "system:serviceaccount:b:y"],
    }});
    let statement = &document["Statement"][0];
    assert_eq!(statement["Condition"], condition);
    let provider = format!("arn:aws:iam::123456789012:oidc-provider/{ISSUER}");
    assert_eq!(statement["Principal"], json!({"Federated": provider}));

    fails(&with(&["a/*"]), 2, "add --allow-wildcards");
    let mut wild = with(&["a/*"]);
    wild.push("--allow-wildcards");
    let condition = json!({
        "StringEquals": {format!("{ISSUER}:aud"): "sts.amazonaws.com"},
        "StringLike": {format!("{ISSUER}:sub"): "system:serviceaccount:a:*"},
    });
    assert_eq!(printed(&wild)["Statement"][0]["Condition"], condition);

    let without_account = [
        "trust",
        "--irsa",
        "--oidc-provider",
        ISSUER,
        "--service-account",
        "a/x",
    ];
    fails(&without_account, 2, "--account is missing");
    fails(&["trust", "--ec2", "--service-account", "a/x"], 2, "--irsa");
    fails(&["trust"], 2, "--pod-identity");
}

#[test]
fn oidc_trusts_a_provider_as_aws_names_it() {
    let with = |issuer: &'static str| {
        [
            "trust",
            "--oidc",
            "--account",
            "123456789012",
            "--service-account",
            "a/x",
            "--issuer",
            issuer,
        ]
    };
    let document = printed(&with("https://oidc.example/id/1/"));
    let statement = &document["Statement"][0];
    assert_eq!(
        statement["Principal"]["Federated"],
        "arn:aws:iam::123456789012:oidc-provider/oidc.example/id/1"
    );
    assert_eq!(
        statement["Condition"]["StringEquals"],
        json!({
            "oidc.example/id/1:aud": "sts.amazonaws.com",
            "oidc.example/id/1:sub": "system:serviceaccount:a:x",
        })
    );
    fails(
        &with("http://oidc.example/id/1"),
        2,
        "https:// issuers alone",
    );
    let audience = [&with("https://oidc.example")[..], &["--audience", "ecr"]].concat();
    let document = printed(&audience);
    let tests = &document["Statement"][0]["Condition"]["StringEquals"];
    assert_eq!(tests["oidc.example:aud"], "ecr");
}

#[test]
fn pod_identity_trusts_one_account_of_one_cluster() {
    let cluster = "arn:aws:eks:eu-west-1:123456789012:cluster/prod";
    let base = ["trust", "--pod-identity", "--cluster-arn", cluster];
    fails(&base, 2, "--service-account");
    let document = printed(&[&base[..], &["--service-account", "ns/name"]].concat());
    let condition = json!({
        "StringEquals": {
            "aws:SourceAccount": "123456789012",
            "aws:RequestTag/kubernetes-namespace": "ns",
            "aws:RequestTag/kubernetes-service-account": "name",
        },
        "ArnEquals": {"aws:SourceArn": cluster},
    });
    assert_eq!(document["Statement"][0]["Condition"], condition);
}

#[test]
fn external_id_is_made_on_request_and_told() {
    let base = ["trust", "--assumed-by", ROLE, "--external-id"];
    let ids: Vec<String> = [(); 2]
        .map(|()| {
            let output = iam(&[&base[..], &["auto"]].concat());
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            let id = &document["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"];
            let id = id.as_str().unwrap().to_owned();
            assert!(text(&output.stderr).contains(&format!("external id {id}:")));
            id
        })
        .to_vec();
    assert_ne!(ids[0], ids[1]);
    assert_eq!(ids[0].len(), 32);
    fails(&[&base[..], &["a b"]].concat(), 2, "letters, digits");
}

#[test]
fn flags_of_another_way_are_wrong_usage() {
    let provider = ["--oidc-provider", ISSUER];
    let issuer = ["--issuer", "https://oidc.example"];
    let cluster = [
        "--cluster-arn",
        "arn:aws:eks:eu-west-1:123456789012:cluster/c",
    ];
    for way in [&["--ec2"][..], &["--assumed-by", ROLE]] {
        for flag in [
            provider,
            issuer,
            cluster,
            ["--audience", "x"],
            ["--service-account", "a/x"],
            ["--account", "123456789012"],
        ] {
            fails(&[&["trust"], way, &flag].concat(), 2, "required");
        }
    }
    for flag in ["--external-id", "--session-tag"] {
        fails(&["trust", "--ec2", flag, "auto"], 2, "--assumed-by");
    }
    let two = ["trust", "--ec2", "--assumed-by", ROLE];
    fails(&two, 2, "cannot be used with");
}

#[test]
fn repository_lets_roles_accounts_or_an_organization_pull() {
    let document = printed(&["repository", "--organization", "o-abc123def4"]);
    let statement = &document["Statement"][0];
    assert_eq!(statement["Principal"], "*");
    let condition = json!({"StringEquals": {"aws:PrincipalOrgID": "o-abc123def4"}});
    assert_eq!(statement["Condition"], condition);
    let china = "210987654321.dkr.ecr.cn-north-1.amazonaws.com.cn";
    let of_account = [
        "repository",
        "--account",
        "123456789012",
        "--registry",
        china,
    ];
    let document = printed(&of_account);
    let root = "arn:aws-cn:iam::123456789012:root";
    assert_eq!(document["Statement"][0]["Principal"], json!({"AWS": root}));
    fails(&["repository"], 2, "--pull-by");
    fails(
        &["repository", "--pull-by", ROLE, "--registry", china],
        1,
        "one partition",
    );
    let both = [
        "repository",
        "--pull-by",
        ROLE,
        "--organization",
        "o-abc123def4",
    ];
    fails(&both, 2, "cannot be used with");
    let output = iam(&["repository", "--pull-by", ROLE]);
    assert!(text(&output.stderr).contains("both sides are needed"));
    fails(
        &["repository", "--pull-by", ROLE, "-o", "terraform"],
        2,
        "--repository",
    );
}

#[test]
fn registry_lets_roles_fill_its_cache() {
    let base = [
        "registry",
        "--by",
        ROLE,
        "--registry",
        REGISTRY,
        "--repository",
        "docker-hub/*",
    ];
    let document = printed(&[&base[..], &["--pull-through"]].concat());
    let statement = &document["Statement"][0];
    let actions = json!(["ecr:BatchImportUpstreamImage", "ecr:CreateRepository"]);
    assert_eq!(statement["Action"], actions);
    let arn = "arn:aws:ecr:eu-west-1:210987654321:repository/docker-hub/*";
    assert_eq!(statement["Resource"], json!([arn]));
    fails(&base, 2, "--pull-through");
}

/// As `terraform fmt` leaves it: neighbouring lines have their equal signs below each other, and a
/// field of several lines stands alone.
#[test]
#[allow(clippy::too_many_lines, reason = "two texts")]
fn terraform_output_is_formatted() {
    let output = iam(&[
        "policy",
        "--registry",
        REGISTRY,
        "-o",
        "terraform",
        "--name",
        "my-app",
        "--repository",
        "a",
        "--repository",
        "b",
    ]);
    let expected = r#"resource "aws_iam_policy" "my_app" {
  name = "my-app"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Tokens"
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*"
      },
      {
        Sid    = "Pulls"
        Effect = "Allow"
        Action = [
          "ecr:BatchGetImage",
          "ecr:GetDownloadUrlForLayer",
        ]
        Resource = [
          "arn:aws:ecr:eu-west-1:210987654321:repository/a",
          "arn:aws:ecr:eu-west-1:210987654321:repository/b",
        ]
      },
    ]
  })
}
"#;
    assert_eq!(text(&output.stdout), expected);
    let output = iam(&[
        "trust",
        "--pod-identity",
        "--cluster-arn",
        "arn:aws:eks:eu-west-1:123456789012:cluster/c",
        "--service-account",
        "ns/name",
        "-o",
        "terraform",
    ]);
    let expected = r#"resource "aws_iam_role" "ecr_injector" {
  name = "ecr-injector"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect = "Allow"
        Principal = {
          Service = "pods.eks.amazonaws.com"
        }
        Action = [
          "sts:AssumeRole",
          "sts:TagSession",
        ]
        Condition = {
          StringEquals = {
            "aws:SourceAccount"                         = "123456789012"
            "aws:RequestTag/kubernetes-namespace"       = "ns"
            "aws:RequestTag/kubernetes-service-account" = "name"
          }
          ArnEquals = {
            "aws:SourceArn" = "arn:aws:eks:eu-west-1:123456789012:cluster/c"
          }
        }
      },
    ]
  })
}
"#;
    assert_eq!(text(&output.stdout), expected);
}

const CONFIG: &str = r#"
allow: {accounts: ["210987654321"]}
identities:
  - namespaces: [team-a, team-b]
    assumeRole:
      roleArn: arn:aws:iam::210987654321:role/pull-{namespace}
      tags: {namespace: "{namespace}"}
  - namespaces: [batch-*]
    assumeRole:
      roleArn: arn:aws:iam::210987654321:role/pulls/batch
      externalId: prod/{namespace}
defaultIdentity: none
"#;

fn with_config(yaml: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    fs::write(&config, crate::support::config_file(yaml)).unwrap();
    (folder, config)
}

#[test]
fn all_writes_the_documents_of_every_role_of_a_configuration() {
    let (folder, config) = with_config(CONFIG);
    let out = folder.path().join("iam");
    let (config, out) = (config.to_str().unwrap(), out.to_str().unwrap());
    let cluster = "arn:aws:eks:eu-west-1:111122223333:cluster/c";
    let base = ["all", "--from", config, "--role-arn", ROLE, "--out", out];
    let pods = [
        "--pod-identity",
        "--cluster-arn",
        cluster,
        "--service-account",
        "e/e",
    ];
    let output = iam(&[&base[..], &pods].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut names: Vec<String> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let roles = ["batch", "ecr-injector", "pull-team-a", "pull-team-b"];
    let kinds = ["policy", "trust"];
    let expected = roles
        .map(|role| kinds.map(|kind| format!("{role}.{kind}.json")))
        .concat();
    assert_eq!(names, expected);
    let listed = text(&output.stdout);
    for name in &names {
        assert!(listed.contains(name), "{listed}");
        let document = fs::read_to_string(Path::new(out).join(name)).unwrap();
        let document = serde_json::from_str(&document).unwrap();
        assert_eq!(grammar::faults(&document), [""; 0], "{name}");
    }
    let read = |name: &str| -> Value {
        let document = fs::read_to_string(Path::new(out).join(name)).unwrap();
        serde_json::from_str::<Value>(&document).unwrap()["Statement"].clone()
    };
    let trust = &read("pull-team-a.trust.json")[0];
    assert_eq!(trust["Principal"], json!({"AWS": ROLE}));
    let condition = json!({"StringEquals": {"aws:RequestTag/namespace": "team-a"}});
    assert_eq!(trust["Condition"], condition);
    let condition = json!({"StringLike": {"sts:ExternalId": "prod/batch-*"}});
    assert_eq!(read("batch.trust.json")[0]["Condition"], condition);
    let own = read("ecr-injector.policy.json");
    assert_eq!(own.as_array().unwrap().len(), 1, "{own}");
    assert_eq!(
        own[0]["Action"],
        json!(["sts:AssumeRole", "sts:TagSession"])
    );
    let arn = |name: &str| format!("arn:aws:iam::210987654321:role/{name}");
    assert_eq!(
        own[0]["Resource"],
        json!([arn("pull-*"), arn("pulls/batch")])
    );

    let terraform = folder.path().join("terraform");
    let terraform = terraform.to_str().unwrap();
    let output = iam(&[&base[..6], &[terraform, "-o", "terraform"]].concat());
    assert!(
        text(&output.stderr).contains("the trust of"),
        "of ecr-injector itself"
    );
    let batch = fs::read_to_string(Path::new(terraform).join("batch.tf")).unwrap();
    for line in [
        "resource \"aws_iam_role\" \"batch\" {\n  name = \"batch\"\n  path = \"/pulls/\"\n",
        "  role       = aws_iam_role.batch.name\n  policy_arn = aws_iam_policy.batch.arn\n",
    ] {
        assert!(batch.contains(line), "{batch}");
    }
    fails(&base[..3], 2, "--role-arn");
    let own = [
        "all",
        "--from",
        config,
        "--out",
        out,
        "--role-arn",
        "arn:aws:iam::210987654321:role/pulls/batch",
    ];
    fails(&own, 1, "is a role of the configuration too");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a script with the command in its PATH.
fn shell(script: &str, folder: &Path) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_ecr-injector"));
    let path = format!("{}:/usr/bin:/bin", binary.parent().unwrap().display());
    Command::new("sh")
        .args(["-euc", script])
        .env_clear()
        .env("PATH", path)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Returns the scripts in a document's blocks.
fn scripts(markdown: &str) -> Vec<String> {
    let blocks = markdown.split("\n```").skip(1).step_by(2);
    let of_shell = blocks.filter_map(|block| {
        let (language, script) = block.split_once('\n')?;
        ["sh", "console"].contains(&language).then_some(script)
    });
    of_shell.map(|script| script.replace("\\\n", " ")).collect()
}

/// `make deploy` writes them.
#[test]
fn deploy_has_what_the_commands_in_its_readme_print() {
    let folder = root().join("deploy/iam");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let script = &scripts(&readme)[0];
    let made = tempfile::tempdir().unwrap();
    let output = shell(script, made.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = |folder: &Path| {
        let entries = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut names: Vec<String> = entries
            .filter(|path| path.extension().is_some_and(|it| it == "json"))
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    };
    if std::env::var_os("UPDATE").is_some() {
        for name in files(made.path()) {
            fs::copy(made.path().join(&name), folder.join(&name)).unwrap();
        }
    }
    assert_eq!(files(&folder), files(made.path()));
    for name in files(&folder) {
        let read = |folder: &Path| fs::read_to_string(folder.join(&name)).unwrap();
        assert_eq!(read(&folder), read(made.path()), "{name}: run: make deploy");
    }
}

#[test]
fn commands_in_the_documents_print_policies() {
    let (folder, _) = with_config(CONFIG);
    let mut pages = vec![root().join("deploy/iam/README.md")];
    for part in ["tutorial", "how-to", "reference", "explanation"] {
        let entries = fs::read_dir(root().join("docs").join(part)).unwrap();
        pages.extend(entries.map(|entry| entry.unwrap().path()));
    }
    let mut run = 0;
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|it| it == "md"))
    {
        for script in scripts(&fs::read_to_string(page).unwrap()) {
            for line in script.lines() {
                let command = line.trim_start_matches("$ ");
                if !command.starts_with("ecr-injector iam ") {
                    continue;
                }
                let output = shell(command, folder.path());
                let error = text(&output.stderr);
                assert!(
                    output.status.success(),
                    "{}: {command}\n{error}",
                    page.display()
                );
                run += 1;
            }
        }
    }
    assert!(run > 12, "{run}");
}
