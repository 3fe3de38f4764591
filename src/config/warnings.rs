//! Warnings about parts of a valid configuration that can never have an effect.

use std::collections::BTreeSet;

use super::{error::FieldError, resolved::Config};
use crate::{cluster::namespace::Namespace, identity::Rule, registry::Region};

impl Config {
    /// Returns the parts that can never match, by their fields: rules, patterns and hosts that
    /// another field rules out, and regions that this release doesn't know.
    #[must_use]
    pub fn warnings(&self) -> Vec<FieldError> {
        let (rules, allow) = (&self.rules, &self.rules.allow);
        let mut found = unknown_regions("allow.regions", &allow.regions);
        for (at, rule) in rules.identities.rules.iter().enumerate() {
            let field = format!("identities[{at}]");
            found.extend(unknown_regions(&format!("{field}.regions"), &rule.regions));
            found.extend(self.never_matching(&field, rule));
            let before = rules.identities.rules[..at].iter();
            if let Some(first) = before
                .clone()
                .position(|before| before.matches_all_of(rule))
            {
                let message = format!(
                    "never matches: identities[{first}] comes first, and matches every registry and \
                     namespace that this rule does"
                );
                found.push(FieldError::new(field, message));
            }
        }
        for (at, pattern) in rules.identities.namespace_roles.allow.iter().enumerate() {
            if !pattern.can_match_a_role() {
                let field = format!("namespaceRoles.allow[{at}]");
                let message = format!(
                    "{:?} never matches: a role's ARN is arn:PARTITION:iam::ACCOUNT:role/NAME, and * \
                     matches neither : nor /",
                    pattern.to_string()
                );
                found.push(FieldError::new(field, message));
            }
        }
        for (host, registry) in rules.aliases.iter() {
            if !allow.permits(registry) {
                let message = format!(
                    "{host} never gets a credential: allow doesn't have {}",
                    registry.host()
                );
                found.push(FieldError::new("aliases", message));
            }
        }
        for (at, host) in self.refresh.prewarm.iter().enumerate() {
            let registry = rules.aliases.resolve(host.as_str());
            if registry.is_some_and(|(_, registry)| !allow.permits(&registry)) {
                let message =
                    format!("{host} never gets a credential: allow doesn't have its registry");
                found.push(FieldError::new(format!("prewarm[{at}]"), message));
            }
        }
        found
    }

    /// Returns why a rule can never match, or one of its patterns.
    fn never_matching(&self, field: &str, rule: &Rule) -> Vec<FieldError> {
        let (rules, allow) = (&self.rules, &self.rules.allow);
        let mut found = Vec::new();
        let mut push = |field: String, message: &str| found.push(FieldError::new(field, message));
        for (at, pattern) in rule.namespaces.iter().enumerate() {
            let field = format!("{field}.namespaces[{at}]");
            let text = pattern.to_string();
            let namespace = Namespace::parse(&text);
            if !pattern.can_match_a_namespace() {
                push(
                    field,
                    &format!("{text:?} never matches: no namespace has such a name"),
                );
            } else if namespace.is_some_and(|namespace| rules.excluded.contains(&namespace)) {
                let message = format!("{text:?} never matches: optIn.excludeNamespaces has it");
                push(field, &message);
            }
        }
        if is_disjoint(&rule.accounts, &allow.accounts) {
            push(
                format!("{field}.accounts"),
                "never match: allow.accounts has none of them",
            );
        }
        // ECR Public has a region, and no account; the allow list is not about it.
        let matches_public = rules.aliases.include_public() && rule.accounts.is_empty();
        if is_disjoint(&rule.regions, &allow.regions) && !matches_public {
            push(
                format!("{field}.regions"),
                "never match: allow.regions has none of them",
            );
        }
        found
    }
}

fn is_disjoint<T: Ord>(set: &BTreeSet<T>, allowed: &BTreeSet<T>) -> bool {
    !set.is_empty() && !allowed.is_empty() && set.is_disjoint(allowed)
}

fn unknown_regions(field: &str, regions: &BTreeSet<Region>) -> Vec<FieldError> {
    let unknown = regions.iter().filter(|region| !region.is_known());
    let error = |region: &Region| {
        let message = format!(
            "{region} is no region that this release knows: check its spelling, unless it is a new one"
        );
        FieldError::new(field, message)
    };
    unknown.map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/a'}";

    fn warnings(fields: &str) -> Vec<String> {
        let config = Config::parse_fields(fields, "config.yaml");
        let config = config.unwrap_or_else(|error| panic!("{fields}: {error}"));
        config.warnings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn configuration_whose_parts_can_match_has_no_warning() {
        for fields in [
            "",
            "allow: {accounts: ['111122223333'], regions: [eu-west-1, us-gov-west-1]}",
            &format!(
                "identities: [{{namespaces: [team-*], {ROLE}}}, {{namespaces: [team], {ROLE}}}, {{{ROLE}}}]"
            ),
            &format!(
                "identities: [{{accounts: ['111122223333'], {ROLE}}}, {{namespaces: ['{{namespace}}'], {ROLE}}}]"
            ),
            &format!(
                "identities: [{{namespaces: [a], regions: [eu-west-1], {ROLE}}}, {{namespaces: [a], {ROLE}}}]"
            ),
            "namespaceRoles: {allow: ['arn:aws:iam::*:role/ecr-{namespace}', 'arn:*:iam::111122223333:role/*/*', \
             'arn:aws:iam::1*3:*/x']}",
            "prewarm: [111122223333.dkr.ecr.eu-west-1.amazonaws.com]",
            // ECR Public is in us-east-1, whatever allow says.
            &format!(
                "publicEcr: true\nallow: {{regions: [eu-west-1]}}\nidentities: [{{regions: [us-east-1], {ROLE}}}]"
            ),
        ] {
            assert_eq!(warnings(fields), Vec::<String>::new(), "{fields}");
        }
    }

    #[test]
    fn rule_behind_one_that_matches_all_of_its_own_is_told() {
        for (first, second) in [
            ("", ""),
            ("", "namespaces: [a],"),
            ("namespaces: ['*'],", "accounts: ['111122223333'],"),
            ("namespaces: ['{namespace}'],", ""),
            ("namespaces: [team-*],", "namespaces: [team-a-*, team-b],"),
            ("namespaces: ['*-a*', x],", "namespaces: [x, b-ab*],"),
            (
                "regions: [eu-west-1, eu-west-2],",
                "regions: [eu-west-2], namespaces: [a],",
            ),
        ] {
            let fields = format!("identities: [{{{first} {ROLE}}}, {{{second} {ROLE}}}]");
            let found = warnings(&fields);
            let expected = "identities[1]: never matches: identities[0] comes first";
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{fields}: {found:?}"
            );
        }
    }

    #[test]
    fn part_that_another_field_rules_out_is_told() {
        let allow = "allow: {accounts: ['111122223333'], regions: [eu-west-1]}";
        for (fields, expected) in [
            (
                format!("{allow}\nidentities: [{{accounts: ['000000000000'], {ROLE}}}]"),
                "identities[0].accounts: never match: allow.accounts",
            ),
            (
                format!("{allow}\nidentities: [{{regions: [eu-west-2], {ROLE}}}]"),
                "identities[0].regions: never match: allow.regions",
            ),
            (
                format!("identities: [{{namespaces: [a, Team-*], {ROLE}}}]"),
                "identities[0].namespaces[1]: \"Team-*\" never matches: no namespace",
            ),
            (
                format!("identities: [{{namespaces: ['team-{{namespace}}'], {ROLE}}}]"),
                "identities[0].namespaces[0]: ",
            ),
            (
                format!("identities: [{{namespaces: [kube-system], {ROLE}}}]"),
                "identities[0].namespaces[0]: \"kube-system\" never matches: optIn.excludeNamespaces",
            ),
            (
                "namespaceRoles: {allow: ['arn:aws:iam:*:role/x']}".to_owned(),
                "namespaceRoles.allow[0]: ",
            ),
            (
                "namespaceRoles: {allow: ['arn:aws:iam::*:role*']}".to_owned(),
                "namespaceRoles.allow[0]: ",
            ),
            (
                "namespaceRoles: {allow: ['arn:aws:iam::1234:role/x']}".to_owned(),
                "namespaceRoles.allow[0]: ",
            ),
            (
                format!(
                    "{allow}\naliases: [{{host: a.example, registry: 000000000000.dkr.ecr.eu-west-1.amazonaws.com}}]"
                ),
                "aliases: a.example never gets a credential",
            ),
            (
                format!("{allow}\nprewarm: [111122223333.dkr.ecr.eu-west-2.amazonaws.com]"),
                "prewarm[0]: 111122223333.dkr.ecr.eu-west-2.amazonaws.com never gets",
            ),
            (
                "allow: {regions: [eu-wst-1]}".to_owned(),
                "allow.regions: eu-wst-1 is no region",
            ),
            (
                format!("identities: [{{regions: [eu-wst-1], {ROLE}}}]"),
                "identities[0].regions: eu-wst-1 is no region",
            ),
        ] {
            let found = warnings(&fields);
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{fields}: {found:?}"
            );
        }
    }
}
