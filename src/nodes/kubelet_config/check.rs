//! The check of a kubelet's file of credential providers: by the kubelet's rules, for a wrong file
//! stops it from starting, and for what it takes and is a mistake all the same.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{API_VERSION, KIND, Version, matches};
use crate::{
    registry::{HostForm, PUBLIC_HOSTS},
    telemetry::{
        printable::{printable, shorten_quotes},
        yaml_error,
    },
};

/// The versions of the file that kubelets take.
const API_VERSIONS: [&str; 3] = [
    API_VERSION,
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
/// Tokens live for twelve hours, and half of that is what a response says.
const MAX_DEFAULT: SignedDuration = SignedDuration::from_hours(6);
const ACCOUNT: &str = "123456789012";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: Spanned<String>,
    api_version: Option<Spanned<String>>,
    #[serde(default)]
    match_images: Vec<Spanned<String>>,
    default_cache_duration: Option<Spanned<String>>,
    #[serde(default)]
    #[expect(dead_code, reason = "any list of texts is valid")]
    args: Option<Vec<String>>,
    #[serde(default)]
    #[expect(dead_code, reason = "any list of these is valid")]
    env: Option<Vec<Variable>>,
    token_attributes: Option<Spanned<TokenAttributes>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "any texts are valid")]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

/// The findings so far, and the file that is being checked.
struct Findings<'a> {
    file: &'a str,
    found: Vec<String>,
}

impl Findings<'_> {
    fn add(&mut self, line: u64, text: impl AsRef<str>) {
        let (file, text) = (self.file, printable(text.as_ref()));
        self.found.push(format!("{file}:{line}: {text}"));
    }
}

/// Checks files as a kubelet merges them, by pairs of name and text; returns a line for each
/// finding.
#[must_use]
pub fn check(files: &[(String, String)]) -> Vec<String> {
    let mut findings = Findings {
        file: "",
        found: Vec::new(),
    };
    let mut providers = Vec::new();
    for (name, text) in files {
        findings.file = name;
        match parse(text) {
            Ok(file) => {
                check_file(&file, &mut findings);
                let of_file = file.providers.into_iter();
                providers.extend(of_file.map(|provider| (name.as_str(), provider)));
            }
            Err(why) => {
                let why = printable(&why).into_owned();
                findings.found.push(format!("{name}: {why}"));
            }
        }
    }
    check_together(&providers, &mut findings);
    findings.found
}

fn parse(text: &str) -> Result<File, String> {
    let options = serde_saphyr::options! {
        emit_comments: false,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| shorten_quotes(&yaml_error::text(&error)))
}

fn line<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

fn check_file(file: &File, findings: &mut Findings<'_>) {
    match &file.api_version {
        None => findings.add(1, format!("apiVersion is missing: expected {API_VERSION}")),
        Some(version) if !API_VERSIONS.contains(&&*version.value) => {
            let got = &version.value;
            findings.add(
                line(version),
                format!("apiVersion {got:?}: expected {API_VERSION}"),
            );
        }
        Some(_) => {}
    }
    match &file.kind {
        None => findings.add(1, format!("kind is missing: expected {KIND}")),
        Some(kind) if kind.value != KIND => {
            findings.add(
                line(kind),
                format!("kind {:?}: expected {KIND}", kind.value),
            );
        }
        Some(_) => {}
    }
    if file.providers.is_empty() {
        findings.add(1, "providers is empty: the kubelet needs one at least");
    }
    for provider in &file.providers {
        check_provider(provider, findings);
    }
}

fn check_provider(provider: &Provider, findings: &mut Findings<'_>) {
    let (name, at) = (&provider.name.value, line(&provider.name));
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
        findings.add(at, format!("name {name:?} is not the name of a file"));
    }
    let version = provider.api_version.as_ref();
    match version {
        None => findings.add(at, format!("provider {name:?} has no apiVersion")),
        Some(version) if Version::parse(&version.value).is_none() => {
            let (got, known) = (&version.value, Version::V1.as_str());
            findings.add(
                line(version),
                format!("apiVersion {got:?}: expected {known}"),
            );
        }
        Some(_) => {}
    }
    if provider.match_images.is_empty() {
        findings.add(at, format!("provider {name:?} has no matchImages"));
    }
    for pattern in &provider.match_images {
        check_pattern(pattern, findings);
    }
    check_duration(provider, findings);
    if let Some(attributes) = &provider.token_attributes {
        let is_v1 = version.and_then(|version| Version::parse(&version.value));
        let is_v1 = is_v1 == Some(Version::V1);
        for text in wrong_attributes(&attributes.value, is_v1) {
            findings.add(line(attributes), text);
        }
    }
    check_forms(provider, findings);
}

fn check_pattern(pattern: &Spanned<String>, findings: &mut Findings<'_>) {
    let (text, at) = (&pattern.value, line(pattern));
    if text.is_empty() || text.contains("://") || text.contains(char::is_whitespace) {
        findings.add(
            at,
            format!("matchImages {text:?} is not a host, with or without a path"),
        );
    }
    let host = text.split('/').next().unwrap_or_default();
    if host.ends_with(".amazonaws.cn") {
        findings.add(
            at,
            format!("matchImages {text:?} matches no registry: hosts in China end with .amazonaws.com.cn"),
        );
    }
    if host.contains(['[', ']', '\\']) {
        findings.add(
            at,
            format!("matchImages {text:?} has a set of characters, which is not checked here: use * instead"),
        );
    }
}

fn check_duration(provider: &Provider, findings: &mut Findings<'_>) {
    let Some(given) = &provider.default_cache_duration else {
        let name = &provider.name.value;
        let at = line(&provider.name);
        return findings.add(at, format!("provider {name:?} has no defaultCacheDuration"));
    };
    let (text, at) = (&given.value, line(given));
    let parsed = go_duration(text);
    match parsed {
        None => findings.add(
            at,
            format!("defaultCacheDuration {text:?} is not a duration such as 10m0s"),
        ),
        Some(duration) if duration.is_negative() => {
            findings.add(at, format!("defaultCacheDuration {text:?} is negative"));
        }
        Some(duration) if duration > MAX_DEFAULT => findings.add(
            at,
            format!(
                "defaultCacheDuration {text:?} is longer than six hours: a token whose end the kubelet isn't told may \
                 be used when it is over"
            ),
        ),
        Some(_) => {}
    }
}

/// Parses a duration as Go writes it: numbers, each with a unit, or a zero alone.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut rest = unsigned;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c))?);
        let unit = after.find(is_number).unwrap_or(after.len());
        let is_unit = ["ns", "us", "µs", "ms", "s", "m", "h"].contains(&&after[..unit]);
        if number.is_empty() || number.matches('.').count() > 1 || !is_unit {
            return None;
        }
        rest = &after[unit..];
    }
    text.parse().ok()
}

fn wrong_attributes(attributes: &TokenAttributes, is_v1: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |is_wrong: bool, text: &str| {
        if is_wrong {
            wrong.push(format!("tokenAttributes: {text}"));
        }
    };
    check(!is_v1, "only providers of the version v1 may have them");
    check(
        attributes.service_account_token_audience.is_empty(),
        "serviceAccountTokenAudience is missing",
    );
    check(
        !["ServiceAccount", "Token"].contains(&&*attributes.cache_type),
        "cacheType has to be ServiceAccount or Token",
    );
    check(
        attributes.require_service_account.is_none(),
        "requireServiceAccount is missing",
    );
    let keys = |keys: &Option<Vec<String>>| keys.clone().unwrap_or_default();
    let required = keys(&attributes.required_service_account_annotation_keys);
    let optional = keys(&attributes.optional_service_account_annotation_keys);
    check(
        attributes.require_service_account == Some(false) && !required.is_empty(),
        "requiredServiceAccountAnnotationKeys needs requireServiceAccount: true",
    );
    check(
        required.iter().any(|key| optional.contains(key)),
        "an annotation is both required and optional",
    );
    let mut sorted: Vec<_> = required.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    check(
        sorted.len() < required.len(),
        "an annotation is required twice",
    );
    wrong
}

/// Finds forms of ECR's hosts that a provider leaves out, of a partition of which it has others.
fn check_forms(provider: &Provider, findings: &mut Findings<'_>) {
    let is_covered = |host: &str| {
        let mut patterns = provider.match_images.iter();
        patterns.any(|pattern| matches(&pattern.value, host))
    };
    let mut missing = BTreeSet::new();
    for form in HostForm::all() {
        for partition in form.partitions {
            let hosts_of_partition = HostForm::all()
                .filter(|other| other.partitions.contains(partition))
                .map(|other| other.with(ACCOUNT, partition.example_region()));
            let has_some = hosts_of_partition.into_iter().any(|host| is_covered(&host));
            if has_some && !is_covered(&form.with(ACCOUNT, partition.example_region())) {
                missing.insert(form.with("*", "*"));
            }
        }
    }
    let name = &provider.name.value;
    for pattern in missing {
        let text =
            format!("provider {name:?} leaves out {pattern}, and has other hosts of its partition");
        findings.add(line(&provider.name), text);
    }
}

/// Finds providers of one name, and hosts for which two are called.
fn check_together<'a>(providers: &[(&'a str, Provider)], findings: &mut Findings<'a>) {
    let forms = HostForm::all().filter_map(|form| {
        let region = form.partitions.first()?.example_region();
        Some(form.with(ACCOUNT, region))
    });
    let hosts: Vec<String> = forms.chain(PUBLIC_HOSTS.map(str::to_owned)).collect();
    for (at, (file, provider)) in providers.iter().enumerate() {
        let name = &provider.name.value;
        for (other_file, other) in &providers[..at] {
            let is_same_name = other.name.value == *name;
            let both = |host: &&String| {
                [other, provider].iter().all(|provider| {
                    let mut patterns = provider.match_images.iter();
                    patterns.any(|pattern| matches(&pattern.value, host))
                })
            };
            let shared = hosts.iter().find(both);
            let place = format!("{other_file}:{}", line(&other.name));
            let text = match shared {
                _ if is_same_name => {
                    format!("name {name:?} is that of the provider in {place} too")
                }
                Some(host) => format!(
                    "provider {name:?} is called for {host}, and the one in {place} too: each pull then waits for both"
                ),
                None => continue,
            };
            findings.file = file;
            findings.add(line(&provider.name), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the kubelet's documentation, shortened to what concerns ECR, in our own words.
    const SAMPLE: &str = r#"apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - "*.dkr.ecr.*.amazonaws.cn"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - name: AWS_PROFILE
        value: example_profile
"#;

    fn findings(text: &str) -> Vec<String> {
        check(&[("f.yaml".to_owned(), text.to_owned())])
    }

    fn has(found: &[String], line: u64, text: &str) {
        let start = format!("f.yaml:{line}: ");
        let is_there = |finding: &String| finding.starts_with(&start) && finding.contains(text);
        assert!(found.iter().any(is_there), "{line} {text}: {found:#?}");
    }

    /// P-72
    #[test]
    fn mistakes_of_a_usual_file_are_found_with_their_lines() {
        let found = findings(SAMPLE);
        has(&found, 7, "hosts in China end with .amazonaws.com.cn");
        has(&found, 8, "longer than six hours");
        has(&found, 4, "leaves out *.dkr.ecr-fips.*.amazonaws.com,");
        has(&found, 4, "leaves out *.dkr-ecr.*.on.aws,");
        let is_of_china = |finding: &String| finding.contains("*.amazonaws.com.cn,");
        assert!(!found.iter().any(is_of_china), "{found:#?}");
    }

    #[test]
    fn rules_of_the_kubelet_are_held() {
        let v1 = "apiVersion: credentialprovider.kubelet.k8s.io/v1";
        for (from, to, line, text) in [
            (
                "apiVersion: kubelet.config.k8s.io/v1\n",
                "",
                1,
                "apiVersion is missing",
            ),
            (
                "config.k8s.io/v1\n",
                "config.k8s.io/v2\n",
                1,
                "expected kubelet.config",
            ),
            (
                "kind: CredentialProviderConfig",
                "kind: KubeletConfiguration",
                2,
                "expected Cred",
            ),
            (
                "name: ecr-credential-provider",
                "name: bin/ecr",
                4,
                "name of a file",
            ),
            (
                "name: ecr-credential-provider",
                "name: ''",
                4,
                "name of a file",
            ),
            (v1, "args: []", 4, "has no apiVersion"),
            (v1, "apiVersion: v1", 9, "expected credentialprovider"),
            (
                "defaultCacheDuration: \"12h\"",
                "args: []",
                4,
                "no defaultCacheDuration",
            ),
            ("\"12h\"", "\"-1m\"", 8, "is negative"),
            ("\"12h\"", "soon", 8, "not a duration"),
            (
                "\"*.dkr.ecr.*.amazonaws.com\"",
                "https://x",
                6,
                "not a host",
            ),
            (
                "    args:",
                "    tokenAttributes: {}\n    args:",
                10,
                "cacheType has to be",
            ),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            // `args` is there already where another field is replaced by it.
            let rest = if to == "args: []" {
                SAMPLE.replace("    args: [get-credentials]\n", "")
            } else {
                SAMPLE.to_owned()
            };
            has(&findings(&rest.replacen(from, to, 1)), line, text);
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        let seconds = |text| go_duration(text).map(|duration| duration.as_secs());
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("12h", Some(43_200)),
            ("5h30m12s", Some(19_812)),
            ("1.5h", Some(5_400)),
            ("-1m", Some(-60)),
            ("90000ms", Some(90)),
            ("10", None),
            ("", None),
            ("PT1H", None),
            ("5 hours", None),
            ("1d", None),
            ("h", None),
            ("1.2.3s", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_field_and_broken_yaml_are_found() {
        for (text, expected) in [
            (SAMPLE.replace("matchImages", "matchImage"), "matchImage"),
            (SAMPLE.replace("args: [", "args: [["), "f.yaml: "),
            (String::new(), "f.yaml"),
        ] {
            let found = findings(&text);
            let is_there = found.iter().any(|finding| finding.contains(expected));
            assert!(is_there, "{found:#?}");
        }
    }

    #[test]
    fn two_providers_for_one_host_are_found_across_files() {
        let other = SAMPLE.replace("ecr-credential-provider", "other");
        let files = [("a.yaml", SAMPLE), ("b.yaml", &other)];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let found = check(&files);
        let expected = "b.yaml:4: provider \"other\" is called for";
        assert!(
            found.iter().any(|finding| finding.starts_with(expected)),
            "{found:#?}"
        );
        let twice = [files[0].clone(), ("c.yaml".to_owned(), files[0].1.clone())];
        let found = check(&twice);
        let expected = "is that of the provider in a.yaml:4 too";
        assert!(
            found.iter().any(|finding| finding.contains(expected)),
            "{found:#?}"
        );
    }
}
