//! The entry of the helper in docker's configuration.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::command::{Machine, R, Run};
use crate::support::FakeAws;

const OLD: &str = "{\n\t\"auths\": {\n\t\t\"https://R\": {\n\t\t\t\"auth\": \"hunter2\"\n\t\t}\n\t},\n\t\
                   \"credsStore\": \"desktop\"\n}";

async fn configure(machine: &Machine<'_>, arguments: &[&str]) -> Run {
    let program = env!("CARGO_BIN_EXE_ecr-injector");
    let arguments = [&["docker-credential", "configure"], arguments].concat();
    machine.run_as(program.as_ref(), &arguments, "").await
}

#[tokio::test]
async fn difference_is_shown_before_it_is_written() {
    let aws = FakeAws::start();
    let machine = Machine::without_credentials(&aws);
    let path = machine.home().join(".docker/config.json");
    fs::create_dir(path.parent().unwrap()).unwrap();
    let old = OLD.replace('R', R);
    fs::write(&path, &old).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();

    let run = configure(&machine, &[R]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    let added = format!("+\t\t\"{R}\": \"ecr-injector\"\n");
    for part in [
        &*added,
        "run it again with --write",
        "docker logout",
        "no docker-credential-ecr-injector in PATH",
    ] {
        assert!(run.out.contains(part), "no {part:?}: {run:#?}");
    }
    assert!(!run.out.contains("hunter2"), "{run:#?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), old);

    let run = configure(&machine, &[R, "--write"]).await;
    assert!(run.out.contains(&added), "{run:#?}");
    let new = fs::read_to_string(&path).unwrap();
    let expected = old.replace(
        "\"desktop\"\n}",
        &format!("\"desktop\",\n\t\"credHelpers\": {{\n\t\t\"{R}\": \"ecr-injector\"\n\t}}\n}}\n"),
    );
    assert_eq!(new, expected);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o640
    );

    let run = configure(&machine, &[R, "--write"]).await;
    assert!(run.out.contains("as wanted"), "{run:#?}");
    configure(&machine, &[R, "--remove", "--write"]).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), old.clone() + "\n");
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn one_line_file_shows_no_password() {
    let aws = FakeAws::start();
    let machine = Machine::without_credentials(&aws);
    let real = machine.home().join("dotfiles.json");
    fs::write(&real, r#"{"auths":{"x":{"auth":"hunter2"}}}"#).unwrap();
    let link = machine.home().join("config.json");
    symlink(&real, &link).unwrap();
    let machine = machine.set("DOCKER_CONFIG", link.parent().unwrap().to_str().unwrap());
    let run = configure(&machine, &[R, "public.ecr.aws", "--write"]).await;
    assert!(
        run.out.contains("+    \"public.ecr.aws\"") || run.out.contains("+\t\t\"public.ecr.aws\"")
    );
    assert!(!run.out.contains("hunter2"), "{run:#?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("credHelpers"));
}

#[tokio::test]
async fn what_is_no_registry_or_no_configuration_is_an_error() {
    let aws = FakeAws::start();
    let machine = Machine::without_credentials(&aws);
    let path = machine.home().join("auth.json");
    let file = path.to_str().unwrap();
    for (host, words) in [
        ("ghcr.io", "neither a registry of ECR"),
        (&*R.replace("dkr.", ""), "dkr"),
        (&R.to_uppercase(), "not lower case"),
    ] {
        let run = configure(&machine, &[host, "--file", file, "--write"]).await;
        assert_eq!(run.code, Some(1), "{run:#?}");
        assert!(run.err.contains(words), "{run:#?}");
        assert!(!path.exists());
    }
    fs::write(&path, "[]").unwrap();
    let run = configure(&machine, &[R, "--file", file, "--write"]).await;
    assert!(run.err.contains("not a JSON object"), "{run:#?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "[]");
    fs::remove_file(&path).unwrap();
    let run = configure(&machine, &[R, "--file", file, "--write"]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let machine = machine.config(&format!(
        "aliases:\n- host: images.example.com\n  registry: {R}\n"
    ));
    let run = configure(&machine, &["images.example.com", "--file", file]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
}
