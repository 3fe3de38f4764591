//! The path of a shared file, and its place in the home folder.

use std::{ffi::OsString, fmt, io, path::PathBuf};

use crate::process::files;

#[derive(Debug, Clone)]
pub(super) struct FilePath {
    pub(super) path: PathBuf,
    /// The variable that names the file; without one, the file may be absent.
    pub(super) variable: Option<&'static str>,
}

/// Returns a path whose `~` is the home folder, where there is one.
pub(super) fn in_home(path: &str, home: Option<OsString>) -> PathBuf {
    let home = home.map(PathBuf::from).filter(|home| home.is_absolute());
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

impl FilePath {
    /// Reads the file. Without a home folder there is none in it: relative to the current folder,
    /// which may be anybody's, its name would be somebody else's file.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        if self.path.starts_with("~") {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "HOME is not set to an absolute path",
            ));
        }
        files::read(&self.path)
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.variable {
            Some(variable) => write!(f, "{path} (named by {variable})"),
            None => write!(f, "{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_in_no_home_folder_is_absent_and_never_relative() {
        for (home, expected) in [
            (Some("/home/ci"), "/home/ci/.aws/config"),
            (Some(""), "~/.aws/config"),
            (Some("home"), "~/.aws/config"),
            (None, "~/.aws/config"),
        ] {
            let path = in_home("~/.aws/config", home.map(Into::into));
            assert_eq!(path, PathBuf::from(expected), "{home:?}");
        }
        assert_eq!(in_home("/etc/config", None), PathBuf::from("/etc/config"));
        let path = FilePath {
            path: in_home("~/../Cargo.toml", None),
            variable: None,
        };
        let error = path.bytes().expect_err("no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("HOME"), "{error}");
    }
}
