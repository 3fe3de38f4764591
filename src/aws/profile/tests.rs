//! Unit tests of `profile`.

use std::{fs, os::unix::fs::symlink, path::Path};

use aws_smithy_http_client::test_util::infallible_client_fn;
use aws_smithy_types::body::SdkBody;
use tempfile::TempDir;

use super::*;

#[test]
fn only_what_surrounds_values_is_cleaned() {
    for (text, expected) in [
        ("[a]\r\nb = \"c\"\r\n", "[a]\nb =c\n"),
        ("\u{feff}[a]\nb = c", "[a]\nb = c"),
        (
            "[a]\n# b = \"c\"\n[x=\"y\"]\n",
            "[a]\n# b = \"c\"\n[x=\"y\"]\n",
        ),
        (
            "[s]\necr =\n  endpoint_url = 'https://x'\n",
            "[s]\necr =\n  endpoint_url =https://x\n",
        ),
        (
            "credential_process = \"a b\" \"c\"\n",
            "credential_process = \"a b\" \"c\"\n",
        ),
        ("", ""),
    ] {
        assert_eq!(clean(text), expected, "{text:?}");
    }
}

/// A volume as a kubelet mounts a Secret: the files are links into a folder, which is a link that is
/// swapped.
struct Volume(TempDir);

impl Volume {
    fn mount(content: &str) -> Self {
        let volume = Self(tempfile::tempdir().expect("a folder"));
        volume.swap("first", content);
        let link = volume.path("credentials");
        symlink("..data/credentials", link).expect("a link");
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn swap(&self, name: &str, content: &str) {
        fs::create_dir(self.path(name)).expect("a folder");
        fs::write(self.path(name).join("credentials"), content).expect("a file");
        symlink(name, self.path("..new")).expect("a link");
        fs::rename(self.path("..new"), self.path("..data")).expect("swapped");
    }

    fn profile(&self, name: &str) -> ProfileSource {
        let file = |path: &Path, variable| FilePath {
            path: path.to_owned(),
            variable,
        };
        let variable = "AWS_SHARED_CREDENTIALS_FILE";
        let files = ProfileFiles {
            config: file(Path::new("/nowhere/config"), None),
            credentials: file(&self.path("credentials"), Some(variable)),
            unusable: None,
        };
        let client = infallible_client_fn(|_| http::Response::new(SdkBody::empty()));
        let config = ProviderConfig::without_region().with_http_client(client);
        ProfileSource::of(files, Some(name.to_owned()), config)
    }
}

fn keys(profile: &str, access_key: &str) -> String {
    format!("[{profile}]\naws_access_key_id = {access_key}\naws_secret_access_key = secret\n")
}

async fn access_key(profile: &ProfileSource) -> Result<String, String> {
    let credentials = profile.credentials().await;
    credentials
        .map(|credentials| credentials.access_key_id().to_owned())
        .map_err(|error| format!("{}", error.source().expect("a source")))
}

#[tokio::test]
async fn mounted_secret_that_changes_is_read_again() {
    let volume = Volume::mount(&keys("vendor", "AKIAOLD"));
    let profile = volume.profile("vendor");
    assert_eq!(access_key(&profile).await.as_deref(), Ok("AKIAOLD"));
    volume.swap("second", &keys("vendor", "AKIANEW"));
    assert_eq!(access_key(&profile).await.as_deref(), Ok("AKIANEW"));
}

#[tokio::test]
async fn profile_that_went_away_is_an_error_until_it_is_back() {
    let volume = Volume::mount(&keys("vendor", "AKIAOLD"));
    let profile = volume.profile("vendor");
    assert_eq!(access_key(&profile).await.as_deref(), Ok("AKIAOLD"));
    volume.swap("without", &keys("other", "AKIAOTHER"));
    let error = access_key(&profile).await.expect_err("no such profile");
    assert!(error.contains("no profile of this name"), "{error}");
    fs::remove_file(volume.path("..data")).expect("removed");
    let error = access_key(&profile).await.expect_err("no such file");
    assert!(error.contains("No such file"), "{error}");
    volume.swap("again", &keys("vendor", "AKIABACK"));
    assert_eq!(access_key(&profile).await.as_deref(), Ok("AKIABACK"));
}

#[tokio::test]
async fn profiles_that_refer_to_each_other_end_in_an_error() {
    let text = "[a]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = b\n\
                [b]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = a\n";
    let volume = Volume::mount(text);
    let error = access_key(&volume.profile("a")).await;
    assert!(error.is_err(), "{error:?}");
}

#[tokio::test]
async fn broken_profile_names_its_cause_at_each_try() {
    let role = "role_arn = arn:aws:iam::123456789012:role/x\n";
    for (text, cause) in [
        (format!("[a]\n{role}source_profile = base\n"), "base"),
        (format!("[a]\n{role}"), "source"),
        (format!("[a]\n{role}credential_source = Moon\n"), "Moon"),
        (
            format!("[a]\n{role}source_profile = b\n[b]\n{role}source_profile = a\n"),
            "loop",
        ),
        ("[a]\nsso_session = work\n".to_owned(), "work"),
        ("[a]\nregion = eu-west-1\n".to_owned(), "is there"),
        ("[b]\n".to_owned(), "no profile of this name"),
    ] {
        let volume = Volume::mount(&text);
        let profile = volume.profile("a");
        for round in 1..=3 {
            let error = access_key(&profile).await.expect_err("broken");
            assert!(error.contains(cause), "{round} of {text}: {error}");
        }
    }
}

#[tokio::test]
async fn missing_profile_names_those_that_are_there() {
    for (text, expected) in [
        ("", "there are no profiles"),
        ("[b]\n[a]\n", "there are \"a\", \"b\""),
        (
            "[g]\n[f]\n[e]\n[d]\n[c]\n[b]\n[a]\n",
            "\"a\", \"b\", \"c\", \"d\", \"e\" and 2 more",
        ),
        ("[b]\n[ profile\t vendor ] # x\n", "write [vendor] in"),
    ] {
        let text = text.replace("]\n", "]\naws_secret_access_key = hunter2\n");
        let volume = Volume::mount(&text);
        let error = access_key(&volume.profile("vendor")).await;
        let error = error.expect_err("missing");
        assert!(error.contains("no profile of this name"), "{error}");
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn rejected_keys_of_a_profile_stay_if_others_cannot_be_fetched() {
    let volume = Volume::mount("");
    let printed = volume.path("printed");
    fs::write(
        &printed,
        r#"{"Version": 1, "AccessKeyId": "ASIA", "SecretAccessKey": "secret"}"#,
    )
    .expect("a file");
    let process = format!("[a]\ncredential_process = /bin/cat {}\n", printed.display());
    volume.swap("second", &process);
    let profile = volume.profile("a");
    let keys = profile.credentials().await.expect("keys");
    fs::remove_file(&printed).expect("removed");
    profile.reject(&keys);
    assert_eq!(access_key(&profile).await.as_deref(), Ok("ASIA"));
}
