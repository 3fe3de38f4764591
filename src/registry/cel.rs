//! ECR image references as CEL expressions, for the API server's own policies.
//!
//! CEL has regular expressions of RE2, and those have no look-ahead. Where the parsers of this room
//! take the first form that fits, an expression here excludes the forms before it.

use super::{
    ecr::{FORMS, PUBLIC_HOSTS, SUFFIXES},
    image::{MAX_PATH_BYTES, OFFICIAL_PREFIX},
    region::{PREFIXES, Partition},
};

/// A port from 1 to 65535 without leading zeros, as the hosts of registries have it.
const PORT: &str = "(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?";
/// The name of a place within a region, and its number.
const AREA: &str = "[a-z]{1,16}-[0-9]{1,2}";
/// A component of a path.
const COMPONENT: &str = "[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*";
/// A component of a path that no image reference takes for a domain.
const FIRST_COMPONENT: &str = "[a-z0-9]+(?:(?:__?|-+)[a-z0-9]+)*";
/// The tag and the digest after a path.
const TAG_AND_DIGEST: &str = "(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}))?$";

/// Returns the condition, in CEL, that the text `i` is the reference of an image in a private ECR
/// registry.
#[must_use]
pub fn private_image() -> String {
    let hosts = [false, true].map(|dual_stack| {
        let suffixes = SUFFIXES
            .iter()
            .filter(|(_, dual, _)| *dual == dual_stack)
            .map(|(suffix, _, partitions)| {
                format!("{}[.]{}", one_of(regions(partitions)), literal(suffix))
            });
        format!("{}{}", forms(dual_stack), one_of(suffixes))
    });
    let taken = [false, true].map(|dual_stack| {
        let suffixes = SUFFIXES
            .iter()
            .filter(|(_, dual, partitions)| {
                *dual == dual_stack && partitions.contains(&Partition::Aws)
            })
            .map(|(suffix, _, partitions)| {
                let prefixes = PREFIXES.iter().map(|(prefix, partition)| {
                    // Of its own partition, what is left of the region after the prefix is none.
                    let rest = if partitions.contains(partition) {
                        "[0-9]{1,2}"
                    } else {
                        "[a-z0-9-]+"
                    };
                    format!("{prefix}{rest}")
                });
                format!("{}[.]{}[:/]", one_of(prefixes), literal(suffix))
            });
        format!("{}{}", forms(dual_stack), one_of(suffixes))
    });
    [
        // Most images end here: the rest costs more.
        matches("^[0-9]{12}[.]dkr[.-]ecr"),
        matches(&format!(
            "^[0-9]{{12}}[.]{}{PORT}{}",
            one_of(hosts),
            path_and_rest()
        )),
        format!("!{}", matches(&format!("^[0-9]{{12}}[.]{}", one_of(taken)))),
        is_path_short(),
    ]
    .join("\n&& ")
}

/// Returns the condition, in CEL, that the text `i` is the reference of an image in ECR Public.
#[must_use]
pub fn public_image() -> String {
    let hosts = one_of(PUBLIC_HOSTS.map(literal));
    [
        matches(&format!("^{hosts}{PORT}{}", path_and_rest())),
        is_path_short(),
    ]
    .join("\n&& ")
}

/// Returns the condition, in CEL, that the text `i` is the reference of an image of a host, whose
/// regular expression takes the place of `HOST`.
#[must_use]
pub fn image_of_host() -> String {
    [
        matches(&format!("^HOST{}", path_and_rest())),
        is_path_short(),
    ]
    .join("\n&& ")
}

/// Returns the condition, in CEL, that the text `i` is the reference of an image of Docker Hub,
/// with its host or without.
#[must_use]
pub fn docker_hub_image() -> String {
    let rest = TAG_AND_DIGEST;
    let named = format!("(?:index[.])?docker[.]io{}", path_and_rest());
    let bare = format!("{COMPONENT}{rest}");
    let in_folder = format!("{FIRST_COMPONENT}(?:/{COMPONENT})+{rest}");
    let length = MAX_PATH_BYTES;
    [
        matches(&format!("^{}", one_of([named, bare, in_folder]))),
        format!("!{}", matches("^localhost/")),
        // An id of an image.
        format!("!{}", matches("^[0-9a-f]{64}$")),
        matches(&format!(
            "^(?:(?:index[.])?docker[.]io/)?[a-z0-9._/-]{{1,{length}}}(?:[:@]|$)"
        )),
        // The path of one component gets `library/` before it.
        format!(
            "!{}",
            matches(&format!(
                "^(?:(?:index[.])?docker[.]io/)?[a-z0-9._-]{{{},}}(?:[:@]|$)",
                length - OFFICIAL_PREFIX.len() + 1
            ))
        ),
    ]
    .join("\n&& ")
}

/// Returns the file of the chart that defines these conditions.
#[must_use]
pub fn chart_file() -> String {
    let definitions = [
        ("privateImage", private_image()),
        ("publicImage", public_image()),
        ("imageOfHost", image_of_host()),
        ("dockerHubImage", docker_hub_image()),
    ];
    let definitions = definitions.map(|(name, expression)| {
        format!("{{{{- define \"ecr-injector.{name}\" -}}}}\n{expression}\n{{{{- end -}}}}\n")
    });
    format!(
        "{{{{- /* Written from src/registry by `make deploy`: conditions in CEL on an image `i`. */ -}}}}\n\n{}",
        definitions.join("\n")
    )
}

/// Returns the forms between the account and the region.
fn forms(dual_stack: bool) -> String {
    let forms = FORMS.iter().filter(|(_, it)| it.dual_stack == dual_stack);
    one_of(forms.map(|(form, _)| literal(form)))
}

/// Returns the regions of some partitions. A commercial one may have the prefix of another
/// partition.
fn regions(partitions: &[Partition]) -> Vec<String> {
    let commercial = partitions.contains(&Partition::Aws);
    let commercial = commercial.then(|| format!("[a-z]{{2}}-{AREA}"));
    let others = PREFIXES
        .iter()
        .filter(|(_, partition)| partitions.contains(partition))
        .map(|(prefix, _)| format!("{prefix}{AREA}"));
    commercial.into_iter().chain(others).collect()
}

fn path_and_rest() -> String {
    format!("/{COMPONENT}(?:/{COMPONENT})*{TAG_AND_DIGEST}")
}

/// Returns the condition that the path behind a host is not longer than a reference may have it.
fn is_path_short() -> String {
    matches(&format!(
        "^[^/]+/[a-z0-9._/-]{{1,{MAX_PATH_BYTES}}}(?:[:@]|$)"
    ))
}

fn one_of(alternatives: impl IntoIterator<Item = String>) -> String {
    let alternatives: Vec<_> = alternatives.into_iter().collect();
    match alternatives.as_slice() {
        [one] => one.clone(),
        _ => format!("(?:{})", alternatives.join("|")),
    }
}

/// Returns a text that a regular expression matches as it is: of its special characters, hosts have
/// dots only. CEL would take a backslash for its own.
fn literal(text: &str) -> String {
    text.replace('.', "[.]")
}

fn matches(pattern: &str) -> String {
    format!("i.matches(\"{pattern}\")")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_need_no_escapes_in_cel_yaml_and_templates() {
        for expression in [
            private_image(),
            public_image(),
            image_of_host(),
            docker_hub_image(),
        ] {
            assert!(!expression.contains(['\\', '\'', '`']), "{expression}");
            assert!(!expression.contains("{{") && !expression.contains("}}"));
        }
    }

    #[test]
    fn chart_has_these_expressions() {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/charts/ecr-injector/templates/_images.tpl");
        let there = std::fs::read_to_string(&path).expect("a template of the chart");
        assert!(there == chart_file(), "{path} has drifted: make deploy");
    }

    #[test]
    fn every_form_suffix_and_prefix_is_in_the_expression() {
        let expression = private_image();
        let forms = FORMS.iter().map(|(form, _)| *form);
        let suffixes = SUFFIXES.iter().map(|(suffix, ..)| *suffix);
        let prefixes = PREFIXES.iter().map(|(prefix, _)| *prefix);
        for part in forms.chain(suffixes).chain(prefixes) {
            assert!(expression.contains(&literal(part)), "{part}");
        }
        for host in PUBLIC_HOSTS {
            assert!(public_image().contains(&literal(host)), "{host}");
        }
    }
}
