//! The text of a profile: its sections of both files, and those that they refer to.

use std::collections::BTreeSet;

use zeroize::Zeroizing;

/// The most sections that are followed from one profile.
const MAX_SECTIONS: usize = 16;
/// The keys of which one alone makes a profile a source of credentials: with any of them the chain
/// ends at the profile, be it with an error.
const CREDENTIAL_KEYS: [&str; 7] = [
    "aws_access_key_id",
    "credential_process",
    "login_session",
    "role_arn",
    "sso_account_id",
    "sso_session",
    "sso_start_url",
];

/// A section of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Profile(String),
    SsoSession(String),
}

/// Which of the two files a text is: their headers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Config,
    Credentials,
}

/// The sections of a profile, without comments.
pub(crate) struct Sections {
    /// The lines, each section after its header.
    pub(crate) text: Zeroizing<String>,
    /// The keys of the profile's own sections, in lower case.
    keys: BTreeSet<String>,
    access_key_ids: BTreeSet<String>,
    web_identity_token_files: BTreeSet<String>,
}

impl Sections {
    /// Returns the sections of a profile, or `None` if neither file has one.
    pub(crate) fn of(config: &str, credentials: &str, name: &str) -> Option<Self> {
        let first = Section::Profile(name.to_owned());
        let mut found = Self {
            text: Zeroizing::default(),
            keys: BTreeSet::new(),
            access_key_ids: BTreeSet::new(),
            web_identity_token_files: BTreeSet::new(),
        };
        let (mut seen, mut next) = (BTreeSet::new(), vec![first.clone()]);
        while let Some(section) = next.pop() {
            if seen.len() >= MAX_SECTIONS || !seen.insert(section.clone()) {
                continue;
            }
            for (file, text) in [(File::Config, config), (File::Credentials, credentials)] {
                let is_own = section == first;
                found.take(file, text, &section, is_own, &mut next);
            }
        }
        (!found.text.is_empty()).then_some(found)
    }

    /// Returns whether the profile is a source of credentials, or one that is configured by half.
    pub(crate) fn has_credentials(&self) -> bool {
        CREDENTIAL_KEYS.iter().any(|key| self.has(key))
    }

    /// Returns whether the profile takes credentials from another source of the process.
    pub(crate) fn uses_other_sources(&self) -> bool {
        self.text.lines().any(|line| {
            let key = key_value(line).map(|(key, _)| key);
            key.is_some_and(|key| key == "credential_source")
        })
    }

    /// Returns the access key id if the profile has its own keys and nothing else.
    pub(crate) fn static_access_key_id(&self) -> Option<&str> {
        let others = CREDENTIAL_KEYS.iter().skip(1);
        let has_others = others
            .chain(&[
                "source_profile",
                "credential_source",
                "web_identity_token_file",
            ])
            .any(|key| self.has(key));
        let mut ids = self.access_key_ids.iter();
        match (ids.next(), ids.next()) {
            (Some(id), None) if !has_others => Some(id),
            _ => None,
        }
    }

    /// Returns the files of web identity tokens.
    pub(crate) fn web_identity_token_files(&self) -> impl Iterator<Item = &str> {
        self.web_identity_token_files.iter().map(String::as_str)
    }

    fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    fn take(
        &mut self,
        file: File,
        text: &str,
        section: &Section,
        is_own: bool,
        next: &mut Vec<Section>,
    ) {
        let mut is_inside = false;
        for line in text.lines() {
            let content = line.trim();
            if content.is_empty() || content.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                is_inside = header(file, content).as_ref() == Some(section);
            }
            if !is_inside {
                continue;
            }
            self.text.push_str(line.trim_end());
            self.text.push('\n');
            let Some((key, value)) = key_value(line) else {
                continue;
            };
            match key.as_str() {
                "source_profile" => next.push(Section::Profile(value.to_owned())),
                "sso_session" => next.push(Section::SsoSession(value.to_owned())),
                "web_identity_token_file" => {
                    self.web_identity_token_files.insert(value.to_owned());
                }
                "aws_access_key_id" if is_own => {
                    self.access_key_ids.insert(value.to_owned());
                }
                _ => {}
            }
            if is_own {
                self.keys.insert(key);
            }
        }
    }
}

/// Returns the section that a header begins.
fn header(file: File, line: &str) -> Option<Section> {
    let (inner, _) = line.strip_prefix('[')?.split_once(']')?;
    let words: Vec<&str> = inner.split_whitespace().collect();
    match (file, words.as_slice()) {
        (File::Config, ["default"]) => Some(Section::Profile("default".to_owned())),
        (File::Config, ["profile", name]) | (File::Credentials, [name]) => {
            Some(Section::Profile((*name).to_owned()))
        }
        (File::Config, ["sso-session", name]) => Some(Section::SsoSession((*name).to_owned())),
        _ => None,
    }
}

/// Returns the key in lower case and the value of a line. An indented line belongs to the value
/// above.
fn key_value(line: &str) -> Option<(String, &str)> {
    if line.starts_with([' ', '\t', '[']) {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    let comments = [" #", " ;", "\t#", "\t;"];
    let end = comments.iter().filter_map(|comment| value.find(comment));
    let end = end.min().unwrap_or(value.len());
    Some((key.trim().to_ascii_lowercase(), value[..end].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
[default]
region = eu-west-1
# a comment
[profile prod]
ROLE_ARN = arn:aws:iam::123456789012:role/x
source_profile = base
[sso-session corp]
sso_region = eu-west-1
[profile base]
sso_session = corp ; said here
s3 =
  sso_session = other
[profile loop]
source_profile = loop
[sso-session other]
sso_region = us-east-1
";
    const CREDENTIALS: &str = "\
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = secret
[profile prod]
aws_access_key_id = AKIAWRONGFILE
[two]
aws_access_key_id = AKIAONE
aws_access_key_id = AKIATWO
";

    fn of(name: &str) -> Option<Sections> {
        Sections::of(CONFIG, CREDENTIALS, name)
    }

    #[test]
    fn profile_has_the_text_of_all_that_it_points_to() {
        let prod = of("prod").expect("a profile");
        assert_eq!(
            *prod.text,
            "[profile prod]\nROLE_ARN = arn:aws:iam::123456789012:role/x\nsource_profile = base\n\
             [profile base]\nsso_session = corp ; said here\ns3 =\n  sso_session = other\n\
             [sso-session corp]\nsso_region = eu-west-1\n"
        );
        assert!(prod.has_credentials());
        assert_eq!(prod.static_access_key_id(), None);
    }

    #[test]
    fn access_key_id_is_known_only_if_keys_are_all_there_is() {
        let default = of("default").expect("a profile");
        assert_eq!(default.static_access_key_id(), Some("AKIADEFAULT"));
        assert!(default.has_credentials());
        let two = of("two").expect("a profile");
        assert_eq!(two.static_access_key_id(), None);
        let with_role = "[profile x]\naws_access_key_id = AKIA\nrole_arn = r\n";
        let with_role = Sections::of(with_role, "", "x").expect("a profile");
        assert_eq!(with_role.static_access_key_id(), None);
    }

    #[test]
    fn profile_without_credentials_says_so() {
        let region = Sections::of("[default]\nregion = eu-west-1\n", "", "default");
        assert!(!region.expect("a profile").has_credentials());
        assert!(of("absent").is_none());
    }

    #[test]
    fn sections_that_point_at_each_other_end() {
        let looped = of("loop").expect("a profile");
        assert_eq!(*looped.text, "[profile loop]\nsource_profile = loop\n");
        let link = |at| format!("[profile p{at}]\nsource_profile = p{}\n", at + 1);
        let chain: Vec<String> = (0..40).map(link).collect();
        let chain = Sections::of(&chain.concat(), "", "p0").expect("a profile");
        assert_eq!(chain.text.lines().count(), 2 * MAX_SECTIONS);
    }
}
