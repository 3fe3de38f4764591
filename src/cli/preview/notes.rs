//! Remarks on an object, beside the decision.

use std::collections::BTreeMap;

use json_patch::jsonptr::Pointer;
use serde_json::Value;

use crate::{
    admission::{
        manifest::Object,
        pod::{INJECT_ANNOTATION, INJECT_DISABLED, Pod},
    },
    cluster::{
        namespace::Namespace,
        near_miss::{Intent, OptInNearMiss, is_near_key},
    },
    config::Config,
    registry::{Host, Quoted, Registry, image::ImageReference},
    token::rules::Rules,
};

/// The longest image in a remark, in characters.
const MAX_IMAGE: usize = 300;
/// Parts of the hosts of private registries by which the API server finds Pods for the webhook.
const ECR_PARTS: [&str; 2] = [".dkr.ecr", ".dkr-ecr"];
/// The hosts of ECR Public.
const PUBLIC_HOSTS: [&str; 2] = ["public.ecr.aws", "ecr-public.aws.com"];

/// The lists of maps in a Pod's spec that a decision reads.
const LISTS: [&str; 5] = [
    "containers",
    "initContainers",
    "ephemeralContainers",
    "volumes",
    "imagePullSecrets",
];

/// Returns the first part of a Pod that has the wrong type. The webhook gets Pods that the API
/// server has decoded, and its parser would take a list as a map, by the order of the fields.
pub(super) fn form_fault(pod: &Value) -> Option<String> {
    let is_map = |value: &Value| value.is_object() || value.is_null();
    if !is_map(pod) {
        return Some("expected a map".to_owned());
    }
    let spec = &pod["spec"];
    if !is_map(spec) {
        return Some("spec: expected a map".to_owned());
    }
    LISTS.into_iter().find_map(|name| match &spec[name] {
        Value::Null => None,
        Value::Array(items) => {
            let at = items.iter().position(|item| !is_map(item))?;
            Some(format!("spec.{name}[{at}]: expected a map"))
        }
        _ => Some(format!("spec.{name}: expected a list")),
    })
}

/// Returns whether the API server asks the webhook about a Pod, by the `matchConditions` of the
/// chart.
pub(super) fn is_asked_about(pod: &Pod<'_>, rules: &Rules) -> bool {
    let aliases = &rules.aliases;
    let is_matched = |image: &str| {
        let host = image.split_once('/').map(|(host, _)| host);
        let is_public = |host: &str| {
            let name = host.split_once(':').map_or(host, |(name, _)| name);
            aliases.include_public() && PUBLIC_HOSTS.contains(&name)
        };
        ECR_PARTS.iter().any(|part| image.contains(part))
            || host.is_some_and(|host| is_public(host) || aliases.resolve(host).is_some())
    };
    // An image without a host is one of docker.io.
    aliases.resolve("docker.io").is_some() || pod.images().any(is_matched)
}

/// Returns the label or annotation of a workload that has an effect only on its Pods.
pub(super) fn workload_note(object: &Object<'_>, template: &Pointer) -> Option<String> {
    if template.is_root() {
        return None;
    }
    let texts = texts(object, "annotations").into_iter();
    let mut texts = texts.chain(self::texts(object, "labels"));
    let is_meant =
        |(key, value): &(String, String)| is_near_key(key) && Intent::of(value).is_some();
    let (key, value) = texts.find(is_meant)?;
    let (key, value, kind) = (Quoted::new(&key), Quoted::new(&value), object.kind);
    Some(format!(
        "{key}: {value} of the {kind} itself has no effect; to opt its Pods out, set the \
         annotation {INJECT_ANNOTATION}: {INJECT_DISABLED} in {}.metadata.annotations",
        dotted(template)
    ))
}

/// Returns why a Namespace that looks opted in is not.
pub(super) fn namespace_note(object: &Object<'_>, config: &Config) -> Option<String> {
    if object.kind != "Namespace" {
        return None;
    }
    let (opt_in, namespace) = (&config.opt_in, Namespace::parse(object.name)?);
    let near_miss = OptInNearMiss::of(
        &texts(object, "labels"),
        &texts(object, "annotations"),
        &opt_in.label,
        &opt_in.value,
        config.rules.excluded.contains(&namespace),
    )?;
    Some(near_miss.note(&opt_in.label, &opt_in.value, &namespace))
}

/// Returns the labels or the annotations of an object, without values that are no texts.
fn texts(object: &Object<'_>, field: &str) -> BTreeMap<String, String> {
    let pairs = object.value["metadata"][field].as_object();
    let texts = pairs.into_iter().flatten();
    let texts = texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    texts.collect()
}

/// Returns what is wrong with an image: that it is no reference, or only looks like one of ECR.
pub(super) fn image_note(image: &str, rules: &Rules) -> Option<String> {
    let why = match rules.aliases.lookalike(image) {
        Some(lookalike) => lookalike.to_string(),
        None => ImageReference::parse(image).err()?.to_string(),
    };
    let cut: String = image.chars().take(MAX_IMAGE).collect();
    let mark = if cut.len() < image.len() { "…" } else { "" };
    Some(format!("{cut:?}{mark}: {why}"))
}

pub(super) fn describe(host: &Host, registry: &Registry) -> String {
    let alias = if host == registry.host() {
        String::new()
    } else {
        format!(", an alias of {}", registry.host())
    };
    let endpoint = match (registry.endpoint().fips, registry.endpoint().dual_stack) {
        (false, false) => "",
        (true, false) => ", FIPS endpoint",
        (false, true) => ", dual-stack endpoint",
        (true, true) => ", dual-stack FIPS endpoint",
    };
    match registry.account() {
        Some(account) => format!(
            "{host}{alias} (account {account}, region {}{endpoint})",
            registry.region()
        ),
        None => format!("{host} (ECR Public)"),
    }
}

pub(super) fn dotted(pointer: &Pointer) -> String {
    let tokens: Vec<_> = pointer
        .tokens()
        .map(|token| token.decoded().into_owned())
        .collect();
    tokens.join(".")
}
