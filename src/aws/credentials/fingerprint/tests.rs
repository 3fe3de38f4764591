//! Tests of the fingerprint: what changes it, and what gives none.

use std::collections::BTreeMap;

use super::*;

/// A process: its variables, files, and the profile files.
#[derive(Clone, Default)]
struct Process {
    variables: BTreeMap<&'static str, String>,
    files: BTreeMap<String, String>,
    config: String,
}

impl Process {
    fn new() -> Self {
        Self::default().file(BOOT_ID, "boot-1\n")
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.variables.insert(name, value.to_owned());
        self
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn config(mut self, text: &str) -> Self {
        text.clone_into(&mut self.config);
        self
    }

    fn keys(self, id: &str, secret: &str) -> Self {
        self.set("AWS_ACCESS_KEY_ID", id)
            .set("AWS_SECRET_ACCESS_KEY", secret)
    }

    fn fingerprint(&self, profile: Option<&str>) -> Result<Fingerprint, FingerprintError> {
        let inputs = Inputs {
            value: &|name| match self.variables.get(name).map(|value| trimmed(value)) {
                Some("") => Err(VariableError::Blank(name)),
                value => Ok(value.map(str::to_owned)),
            },
            profile: &|name| {
                let sections = Sections::of(&self.config, "", name);
                Ok(("~/.aws/config".to_owned(), sections))
            },
            read: &|path| match self.files.get(path) {
                Some(text) => Ok(Zeroizing::new(text.clone())),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        match profile {
            Some(name) => inputs.of_profile(name),
            None => inputs.ambient(),
        }
    }

    fn ambient(&self) -> Fingerprint {
        let found = self.fingerprint(None);
        found.unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(&self) -> String {
        let found = self.fingerprint(None);
        found.expect_err("no fingerprint").to_string()
    }

    fn named(&self, profile: &str) -> Result<Fingerprint, FingerprintError> {
        self.fingerprint(Some(profile))
    }
}

fn jwt(iss: &str, sub: &str, exp: u32) -> String {
    let payload = format!(r#"{{"iss":"{iss}","sub":"{sub}","exp":{exp}}}"#);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
}

#[test]
fn key_id_alone_decides_keys_of_the_environment() {
    let first = Process::new().keys("AKIAONE", "secret");
    let rotated = Process::new()
        .keys("AKIAONE", "other")
        .set("AWS_PROFILE", "x");
    assert_eq!(first.ambient(), rotated.ambient());
    assert_eq!(first.ambient().access_key_id(), Some("AKIAONE"));
    let other = Process::new().keys("AKIATWO", "secret");
    assert_ne!(first.ambient(), other.ambient());
}

#[test]
fn profile_is_told_by_its_text_and_name() {
    let text = "[profile a]\nsso_session = s\n[sso-session s]\nsso_region = eu-west-1\n\
                [profile b]\nsso_session = s\n";
    let process = |text: &str, name| Process::new().config(text).set("AWS_PROFILE", name);
    let first = process(text, "a").ambient();
    assert_eq!(first.access_key_id(), None);
    assert_ne!(first, process(text, "b").ambient());
    let edited = text.replace("sso_region = eu-west-1", "sso_region = us-east-1");
    assert_ne!(first, process(&edited, "a").ambient());
    let beside = format!("{text}[profile c]\nrole_arn = r\n");
    assert_eq!(first, process(&beside, "a").ambient());
    // The machine and later sources decide nothing.
    let later = process(text, "a")
        .file(BOOT_ID, "boot-2")
        .set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x");
    assert_eq!(first, later.ambient());
}

#[test]
fn profile_without_credentials_leaves_it_to_the_next_source() {
    let process = Process::new().config("[default]\nregion = eu-west-1\n");
    let other_boot = process.clone().file(BOOT_ID, "boot-2");
    assert_ne!(process.ambient(), other_boot.ambient());
    let role = "[default]\nrole_arn = r\ncredential_source = Ec2InstanceMetadata\n";
    let role = Process::new().config(role);
    assert_ne!(
        role.ambient(),
        role.clone().file(BOOT_ID, "boot-2").ambient()
    );
}

#[test]
fn token_file_counts_by_its_subject() {
    let process = |token: &str| {
        Process::new()
            .set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
            .file("/token", token)
    };
    let first = process(&jwt("https://a", "s", 1)).ambient();
    assert_eq!(first, process(&jwt("https://a", "s", 2)).ambient());
    assert_ne!(first, process(&jwt("https://b", "s", 1)).ambient());
    assert_ne!(first, process(&jwt("https://a", "t", 1)).ambient());
    let other_role = process(&jwt("https://a", "s", 1)).set("AWS_ROLE_ARN", "r");
    assert_ne!(first, other_role.ambient());

    let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let pod = |token: &str| {
        Process::new()
            .set(uri, "http://169.254.170.23/v1/credentials")
            .set(POD_IDENTITY_VARIABLE, "/token")
            .file("/token", token)
            .ambient()
    };
    assert_eq!(
        pod(&jwt("https://a", "s", 1)),
        pod(&jwt("https://a", "s", 2))
    );
    assert_ne!(
        pod(&jwt("https://a", "s", 1)),
        pod(&jwt("https://a", "t", 1))
    );
    assert_ne!(pod("opaque-1"), pod("opaque-2"));
}

#[test]
fn unreadable_inputs_give_no_fingerprint() {
    let boot = Process::default().error();
    assert!(boot.contains(BOOT_ID), "{boot}");
    let half = Process::new().set("AWS_ACCESS_KEY_ID", "AKIA").error();
    assert!(half.contains("only one is set"), "{half}");
    let blank = Process::new().set("AWS_PROFILE", "\n").error();
    assert!(blank.contains("AWS_PROFILE is set, and blank"), "{blank}");
    let absent = Process::new().set("AWS_PROFILE", "absent").error();
    assert!(absent.contains("no profile \"absent\""), "{absent}");
    let file = Process::new()
        .set("AWS_ROLE_ARN", "r")
        .set("AWS_WEB_IDENTITY_TOKEN_FILE", "/absent");
    assert!(file.error().contains("reading /absent"));
    let half = Process::new().set("AWS_WEB_IDENTITY_TOKEN_FILE", "/t");
    assert!(half.error().contains("AWS_ROLE_ARN is not"));
    let no_role = half.set("AWS_ROLE_ARN", " ");
    assert!(no_role.error().contains("AWS_ROLE_ARN is not"));
    let disabled = Process::new().set("AWS_EC2_METADATA_DISABLED", "true");
    assert!(disabled.error().contains("no source"));
}

#[test]
fn named_profile_differs_from_the_ambient_one() {
    let text = "[profile a]\naws_access_key_id = AKIA\naws_secret_access_key = s\n";
    let process = Process::new().config(text).set("AWS_PROFILE", "a");
    let named = process.named("a").expect("a fingerprint");
    assert_eq!(named.access_key_id(), Some("AKIA"));
    assert_eq!(process.ambient().access_key_id(), Some("AKIA"));
    assert_ne!(named, process.ambient());
    assert!(process.named("b").is_err());
}

#[test]
fn texts_are_never_joined_to_the_same_fingerprint() {
    let process = |relative, full| {
        Process::new()
            .set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", relative)
            .set("AWS_CONTAINER_CREDENTIALS_FULL_URI", full)
            .ambient()
    };
    assert_ne!(process("/ab", "c"), process("/a", "bc"));
    assert!(!process("/ab", "c").to_string().contains("/ab"));
}
