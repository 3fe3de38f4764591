//! The text of `/metrics`, as series with their values.

use std::collections::BTreeMap;
use std::fmt;

/// A name with labels. No value of ours has a comma or a quote in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

impl Series {
    /// Reads `name{label="value",…}`.
    pub fn parse(text: &str) -> Self {
        let (name, labels) = text.split_once('{').unwrap_or((text, "}"));
        let labels = labels.strip_suffix('}').unwrap();
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (label, value) = label.split_once('=').unwrap();
            (label.to_owned(), value.trim_matches('"').to_owned())
        });
        Self {
            name: name.to_owned(),
            labels: labels.collect(),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.labels.iter();
        let labels: Vec<_> = labels
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        write!(f, "{}{{{}}}", self.name, labels.join(","))
    }
}

/// Returns the series of a scrape, with the text of each value.
pub fn series_of(text: &str) -> BTreeMap<Series, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (Series::parse(series), value.to_owned())
    });
    pairs.collect()
}
