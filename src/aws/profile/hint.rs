//! Names the profiles that the files have instead of one that was not found.

use aws_config::profile::ProfileSet;

use super::{Contents, ProfileFiles};

/// How many names of profiles an error has, and how many characters of each.
const MAX_NAMES: usize = 5;
const MAX_NAME: usize = 40;

impl ProfileFiles {
    /// Returns what the files have instead of the credentials of a profile: nothing but names.
    pub(super) fn hint(&self, set: &ProfileSet, name: &str, contents: &Contents) -> String {
        if set.get_profile(name).is_some() {
            return "; the profile is there, and has no keys, role, SSO session or process"
                .to_owned();
        }
        // Each file has a form of its own, and the SDK ignores a profile in the other one.
        let (plain, long) = (format!("[{name}]"), format!("[profile {name}]"));
        for (file, text, found, right) in [
            (&self.credentials, &contents.credentials, &long, &plain),
            (&self.config, &contents.config, &plain, &long),
        ] {
            if text
                .lines()
                .any(|line| header(line).as_ref() == Some(found))
            {
                let file = file.path.display();
                return format!("; {file} has {found}: write {right} in this file");
            }
        }
        let mut names: Vec<&str> = set.profiles().collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(MAX_NAMES);
        names.truncate(MAX_NAMES);
        let short = |name: &&str| name.chars().take(MAX_NAME).collect::<String>();
        let names: Vec<String> = names.iter().map(|n| format!("{:?}", short(n))).collect();
        match (names.join(", "), more) {
            (names, _) if names.is_empty() => "; there are no profiles".to_owned(),
            (names, 0) => format!("; there are {names}"),
            (names, more) => format!("; there are {names} and {more} more"),
        }
    }
}

/// Returns the header of a profile without superfluous blanks, if the line is one.
fn header(line: &str) -> Option<String> {
    let (inner, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let words: Vec<&str> = inner.split_whitespace().collect();
    Some(format!("[{}]", words.join(" ")))
}
