//! The metrics of a replica, in the text format of Prometheus. Pure.

use std::collections::BTreeMap;

/// The most series that are kept of one replica.
const MAX_SERIES: usize = 10_000;

/// The metrics of ecr-injector in a scrape.
#[derive(Debug, Clone, Default)]
pub(super) struct Exposition(Vec<Series>);

/// A value with its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    name: String,
    /// The labels.
    pub(super) labels: BTreeMap<String, String>,
    /// The value.
    pub(super) value: f64,
}

impl Exposition {
    /// Reads the lines that are metrics of ecr-injector, and skips all others.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("ecr_injector_"));
        Self(lines.filter_map(series).take(MAX_SERIES).collect())
    }

    /// Returns all series of a metric.
    pub(super) fn series(&self, name: &str) -> impl Iterator<Item = &Series> {
        self.0.iter().filter(move |series| series.name == name)
    }

    /// Returns the value of a metric without labels.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        self.series(name).next().map(|series| series.value)
    }

    /// Returns the value of the series with this label.
    pub(super) fn labelled(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let mut series = self.series(name);
        let found = series.find(|series| series.labels.get(label).is_some_and(|it| it == value));
        found.map(|series| series.value)
    }

    /// Whether a metric has the value 1; `None` if it is absent.
    pub(super) fn is_one(&self, name: &str) -> Option<bool> {
        self.value(name).map(|value| value.total_cmp(&1.0).is_eq())
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// Reads labels up to the brace that ends them, and returns them with the rest of the line.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = &quoted[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_their_labels_and_others_skipped() {
        let text = "# TYPE ecr_injector_leader gauge\n\
            ecr_injector_leader 1\n\
            ecr_injector_x_total{a=\"one\",b=\"t\\\"w,o}\"} 2.5 170000\n\
            ecr_injector_broken{a=\"one\n\
            process_threads 7\n\
            ecr_injector_none{} NaN\n# EOF\n";
        let metrics = Exposition::parse(text);
        assert_eq!(metrics.is_one("ecr_injector_leader"), Some(true));
        assert_eq!(
            metrics.labelled("ecr_injector_x_total", "b", "t\"w,o}"),
            Some(2.5)
        );
        assert_eq!(metrics.labelled("ecr_injector_x_total", "b", "other"), None);
        assert_eq!(metrics.value("process_threads"), None);
        assert_eq!(metrics.value("ecr_injector_broken"), None);
        assert!(metrics.value("ecr_injector_none").is_some_and(f64::is_nan));
    }
}
