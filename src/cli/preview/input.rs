//! The sources of manifests: files, directories and standard input.

use std::{
    fmt,
    fs::{self, File},
    io::{self, IsTerminal as _, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::admission::manifest::text;

/// The extensions of files that `kubectl` reads from a directory.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// The most bytes of a file or of standard input: the objects take many times as much memory.
const MAX_BYTES: u64 = 64 << 20;

/// A file, or standard input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    /// Returns the sources that the arguments name, and the files of directories.
    pub(crate) fn from_paths(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        if paths.is_empty() {
            if io::stdin().is_terminal() {
                bail!(
                    "nothing to read: name a file or a directory with -f, or pipe manifests into standard input"
                );
            }
            return Ok(vec![Self::Stdin]);
        }
        let mut sources = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                if sources.contains(&Self::Stdin) {
                    bail!("standard input can be read only once: name -f - once");
                }
                sources.push(Self::Stdin);
            } else if path.is_dir() {
                sources.extend(files(path)?.into_iter().map(Self::File));
            } else {
                sources.push(Self::File(path.clone()));
            }
        }
        Ok(sources)
    }

    /// Reads the documents; none if there are only comments.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Value>> {
        let name = self.to_string();
        let bytes = match self {
            Self::Stdin => read_all(io::stdin()).context("reading standard input")?,
            Self::File(path) => {
                let hint = if name.starts_with("https://") || name.starts_with("http://") {
                    "; addresses are not fetched: pipe the file into standard input"
                } else {
                    ""
                };
                let read = File::open(path).and_then(read_all);
                read.map_err(|error| anyhow::anyhow!("-f: reading {name}: {error}{hint}"))?
            }
        };
        if bytes.len() as u64 > MAX_BYTES {
            let max = MAX_BYTES >> 20;
            bail!("{name} has more than {max} MiB: preview it in parts, such as by namespace");
        }
        text::read(&bytes).map_err(|error| {
            let hint = if bytes.windows(2).any(|pair| pair == b"{{") {
                "; this looks like a template: render it first, such as with helm template"
            } else {
                ""
            };
            anyhow::anyhow!("{name}: {error}{hint}")
        })
    }
}

/// Writes the source's name.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Reads to the end, or until there is more than an input may have.
fn read_all(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = directory.display();
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {name}"))? {
        let path = entry.with_context(|| format!("reading {name}"))?.path();
        let is_manifest = path
            .extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known));
        if is_manifest && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("{name} has no *.yaml, *.yml or *.json; subdirectories are not searched");
    }
    files.sort();
    Ok(files)
}
