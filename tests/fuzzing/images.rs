//! An image, or the server of a docker command: whether its host is found exactly where the
//! published grammars have it, and never in a text that only looks like ECR.

use std::sync::LazyLock;

use ecr_injector::nodes::docker;
use ecr_injector::registry::image::ImageReference;
use ecr_injector::registry::{Aliases, Lookalike, Quoted, Registry};
use regex::Regex;

use super::{HOST, assert_is_one_line};

/// A reference, by the grammar in the comments of `distribution/reference`, each rule by its name:
/// domain, path, tag, digest.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    let separator = "(?:[_.]|__|-+)";
    let component = format!("[a-z0-9]+(?:{separator}[a-z0-9]+)*");
    let path = format!("{component}(?:/{component})*");
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let name = format!(r"{label}(?:\.{label})*");
    let domain = format!(r"(?:{name}|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    let tag = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    // The algorithms of opencontainers/go-digest, as the reference's parser validates it.
    let digest = "sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}";
    let text = format!(r"\A(?:({domain})/)?({path})(?::({tag}))?(?:@({digest}))?\z");
    Regex::new(&text).unwrap()
});

static IMAGE_ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A[a-f0-9]{64}\z").unwrap());

/// The prefixes of regions outside the commercial partition; the endings of their registries, where
/// there are any for IPv4 alone and for both versions of IP.
const PARTITIONS: [(&str, &str, Option<&str>); 8] = [
    (
        "cn-",
        r"amazonaws\.com\.cn",
        Some(r"on\.amazonwebservices\.com\.cn"),
    ),
    ("us-gov-", r"amazonaws\.com", Some(r"on\.aws")),
    ("us-iso-", r"c2s\.ic\.gov", None),
    ("us-isob-", r"sc2s\.sgov\.gov", None),
    ("eu-isoe-", r"cloud\.adc-e\.uk", None),
    ("us-isof-", r"csp\.hci\.ic\.gov", None),
    ("eusc-de-", r"amazonaws\.eu", None),
    ("", r"amazonaws\.com", Some(r"on\.aws")),
];

/// The hosts of private registries, by partition.
static REGISTRIES: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    let hosts = PARTITIONS.iter().map(|(prefix, dotted, dual)| {
        let area = if prefix.is_empty() {
            "[a-z]{2}-"
        } else {
            prefix
        };
        let region = format!("({area}[a-z]{{1,16}}-[0-9]{{1,2}})");
        let mut forms = vec![format!(r"\.ecr(?:-fips)?\.{region}\.{dotted}")];
        forms.extend(dual.map(|dual| format!(r"-ecr(?:-fips)?\.{region}\.{dual}")));
        let forms = forms.join("|");
        let text = format!(r"\A([0-9]{{12}})\.dkr(?:{forms})(?::([1-9][0-9]{{0,4}}))?\z");
        (*prefix, Regex::new(&text).unwrap())
    });
    hosts.collect()
});

static ALIASES: LazyLock<Aliases> = LazyLock::new(|| {
    let registry: Registry = HOST.parse().unwrap();
    let pairs = [
        ("mirror.example".to_owned(), registry.clone()),
        ("mirror.example:5000".to_owned(), registry),
    ];
    Aliases::new(pairs).unwrap().with_public()
});

pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let ours = ImageReference::parse(text).ok();
    let ours = ours.map(|image| (image.domain(), image.path(), image.tag(), image.digest()));
    let normalized = Normalized::new(text);
    let theirs = normalized.as_ref().and_then(Normalized::parts);
    assert_eq!(ours, theirs, "{text:?}");

    for host in [Some(text), ours.map(|(domain, ..)| domain)] {
        assert_registry_is_of_its_form(host.unwrap_or_default());
    }
    assert_lookalike_is_none(text, ours.map(|(domain, ..)| domain));
    assert_server_is_its_own(text);
    assert_is_one_line(&Quoted::new(text).to_string());
}

/// A reference with all that its author may leave out.
struct Normalized {
    text: String,
    is_official: bool,
}

type Parts<'a> = (&'a str, &'a str, Option<&'a str>, Option<&'a str>);

impl Normalized {
    /// Adds what a reference leaves out, as `ParseNormalizedNamed` does.
    fn new(text: &str) -> Option<Self> {
        if IMAGE_ID.is_match(text) {
            return None;
        }
        let (domain, remainder) = match text.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.to_lowercase() != first =>
            {
                (first, rest)
            }
            _ => ("docker.io", text),
        };
        let domain = if domain == "index.docker.io" {
            "docker.io"
        } else {
            domain
        };
        let is_official = domain == "docker.io" && !remainder.contains('/');
        let prefix = if is_official { "library/" } else { "" };
        Some(Self {
            text: format!("{domain}/{prefix}{remainder}"),
            is_official,
        })
    }

    /// The parts by the grammar, without the prefix of official images.
    fn parts(&self) -> Option<Parts<'_>> {
        let captures = REFERENCE.captures(&self.text)?;
        let part = |at: usize| captures.get(at).map(|part| part.as_str());
        let (domain, path) = (part(1)?, part(2)?);
        if path.len() > 255 {
            return None;
        }
        let path = if self.is_official {
            path.strip_prefix("library/")?
        } else {
            path
        };
        Some((domain, path, part(3), part(4)))
    }
}

/// Compares the parts of a host with those of the published forms.
fn assert_registry_is_of_its_form(host: &str) {
    let ours = Registry::parse(host);
    let ours = ours.as_ref().map(|registry| {
        assert_eq!(registry.host().as_str(), host);
        let account = registry.account().unwrap().as_str();
        (account, registry.region().as_str())
    });
    // A region is of the first partition whose prefix it has.
    let of_form = REGISTRIES.iter().find_map(|(prefix, form)| {
        let captures = form.captures(host)?;
        let region = captures.get(2).or_else(|| captures.get(3))?.as_str();
        let is_others = PARTITIONS
            .iter()
            .any(|(other, ..)| !other.is_empty() && other != prefix && region.starts_with(other));
        let port = captures.iter().last().flatten();
        let is_port = port.is_none_or(|port| {
            port.as_str().bytes().all(|b| b.is_ascii_digit())
                && port.as_str().parse::<u16>().is_ok()
        });
        (!is_others && is_port).then(|| (captures.get(1).unwrap().as_str(), region))
    });
    assert_eq!(ours, of_form, "{host:?}");
}

/// An image that is resolved doesn't look like one that isn't, and each note is one short line.
fn assert_lookalike_is_none(text: &str, domain: Option<&str>) {
    let resolved = domain.and_then(|domain| ALIASES.resolve(domain));
    let lookalike = ALIASES.lookalike(text);
    assert!(resolved.is_none() || lookalike.is_none(), "{lookalike:?}");
    if domain.is_some_and(|domain| Registry::parse(domain).is_some()) {
        assert_eq!(Lookalike::of_image(text), None);
    }
    if ALIASES.resolve(text).is_some() {
        assert_eq!(ALIASES.lookalike_host(text), None);
    }
    let of_host = ALIASES.lookalike_host(text);
    let own = [Lookalike::of_image(text), Lookalike::of_host(text)];
    for lookalike in own.into_iter().chain([lookalike, of_host]).flatten() {
        let note = lookalike.to_string();
        assert_is_one_line(&note);
        // An alias is quoted whole: the admin chose it.
        assert!(note.chars().count() <= 160, "{note}");
    }
}

/// A server of docker gets credentials only for the registry that is its whole host.
fn assert_server_is_its_own(text: &str) {
    let Some((host, registry)) = docker::resolve(text, &ALIASES) else {
        return;
    };
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let rest = rest.unwrap_or(text);
    let end = rest.find('/').unwrap_or(rest.len());
    let port = rest[..end]
        .strip_prefix(host.as_str())
        .expect("the whole host");
    let is_port = port
        .strip_prefix(':')
        .is_some_and(|port| port.parse::<u16>().is_ok());
    assert!(port.is_empty() || is_port, "{text:?} is not {host}");
    let is_alias = host.as_str().starts_with("mirror.example");
    assert!(is_alias || registry.host() == &host, "{host}: {registry:?}");
}
