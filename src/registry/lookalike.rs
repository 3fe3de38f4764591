//! Images that look like ones of ECR and are none: the reason, with the right form.

use std::fmt;

use super::{
    ecr::{AccountId, PUBLIC_HOSTS, Registry, SUFFIXES},
    host::{Host, is_port},
    image::{ImageError, ImageReference},
    region::{Partition, REGIONS},
};

/// The longest part of a text that is looked at, in bytes. Every host fits.
pub(super) const MAX_TEXT: usize = 512;
/// The longest quoted part, in characters.
const MAX_QUOTE: usize = 28;
/// The fewest digits that make a text look like an account.
const ACCOUNT_DIGITS: usize = 10;
/// The characters of placeholders in templates.
const PLACEHOLDER: [char; 6] = ['$', '{', '}', '<', '>', '%'];

/// The reason why a text looks like ECR, or like an alias, and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookalike {
    /// A part is a template's placeholder.
    Placeholder(Quoted),
    /// The text begins with a URL's scheme.
    Scheme,
    /// The text has white space or control characters.
    Blank,
    /// The host has a character that no host has.
    Character(Quoted),
    /// The account is missing.
    NoAccount,
    /// The account is none.
    Account(Quoted),
    /// The labels between account and region are none of ECR's.
    Service(Quoted),
    /// The region is missing.
    NoRegion,
    /// The region is none; the one that was meant, if it is obvious.
    Region(Quoted, Option<&'static str>),
    /// The host does not end as the registries of its region do.
    Suffix(Quoted, &'static str),
    /// The host has an empty label.
    EmptyLabel,
    /// The port is none, or not written as every other.
    Port(Quoted),
    /// The host has upper-case letters.
    UpperCase,
    /// There is no repository after the host.
    NoRepository,
    /// There is something after the host, where a host is expected.
    Path,
    /// The rest of the image is not a reference.
    Reference(ImageError),
    /// The host looks like one of ECR Public.
    Public,
    /// The host differs from this alias in case, or in the port 443 that is the default.
    Alias(Host),
}

/// A part of a foreign text: short, and without characters that a terminal would follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(Box<str>);

impl Quoted {
    /// Quotes the beginning of a text, with escapes for all but printable ASCII.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut escaped = text.chars().flat_map(char::escape_default);
        let mut quoted: String = escaped.by_ref().take(MAX_QUOTE).collect();
        if escaped.next().is_some() {
            quoted.push('…');
        }
        Self(quoted.into())
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// Continues a sentence that begins with the image or the host.
impl fmt::Display for Lookalike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Alias(alias) = self {
            return write!(f, "is not the alias {alias}: case and port count");
        }
        f.write_str("looks like ECR, but ")?;
        match self {
            Self::Placeholder(part) => write!(f, "the placeholder {part} was not replaced"),
            Self::Scheme => f.write_str("images have no scheme such as https://"),
            Self::Blank => f.write_str("it has a blank or a control character"),
            Self::Character(part) => write!(f, "its host has the character {part}"),
            Self::NoAccount => f.write_str("its host has no account of 12 digits in front"),
            Self::Account(part) => write!(f, "its account {part} is not 12 digits"),
            Self::Service(part) => write!(f, "its host has {part} where \"dkr.ecr\" belongs"),
            Self::NoRegion => f.write_str("its host has no region after \"ecr\""),
            Self::Region(part, Some(meant)) => write!(f, "its region {part} should be {meant}"),
            Self::Region(part, None) => write!(f, "{part} is not a region such as eu-west-1"),
            Self::Suffix(part, expected) => write!(f, "it ends in {part} instead of {expected}"),
            Self::EmptyLabel => f.write_str("its host has a dot at an end, or two in a row"),
            Self::Port(part) => write!(f, "port {part} is not 1 to 65535 without leading zeros"),
            Self::UpperCase => f.write_str("its host is not lower case, and kubelets compare case"),
            Self::NoRepository => f.write_str("it has no repository after the host"),
            Self::Path => f.write_str("a host has no path"),
            Self::Reference(error) => error.fmt(f),
            Self::Public => write!(f, "ECR Public is {}", PUBLIC_HOSTS[0]),
            Self::Alias(_) => Ok(()),
        }
    }
}

impl Lookalike {
    /// Returns why an image that looks like one of ECR is none. Images of ECR are `None`, as are
    /// all that don't look like it, which a search for three letters tells.
    #[must_use]
    pub fn of_image(image: &str) -> Option<Self> {
        let text = Text::new(image)?;
        text.fault().or_else(|| {
            if text.path.is_none() {
                return Some(Self::NoRepository);
            }
            ImageReference::parse(image).err().map(Self::Reference)
        })
    }

    /// Returns why a text that looks like the host of a registry is none.
    #[must_use]
    pub fn of_host(host: &str) -> Option<Self> {
        let text = Text::new(host)?;
        let has_path = text.path.is_some();
        text.fault().or_else(|| has_path.then_some(Self::Path))
    }
}

/// A text that looks like ECR, and its parts. The host is as written.
struct Text<'a> {
    has_scheme: bool,
    has_blank: bool,
    host: &'a str,
    port: Option<&'a str>,
    path: Option<&'a str>,
    parts: Parts<'a>,
}

/// The parts of a host.
struct Parts<'a> {
    account: &'a str,
    service: &'a str,
    /// The rest after the service: region and suffix.
    rest: &'a str,
    is_public: bool,
}

impl<'a> Text<'a> {
    /// Returns the parts, or `None` for a text that doesn't look like ECR.
    fn new(text: &'a str) -> Option<Self> {
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        let has_word =
            |word: &[u8]| word.eq_ignore_ascii_case(b"ecr") || word.eq_ignore_ascii_case(b"dkr");
        if !text.as_bytes().windows(3).any(has_word) {
            return None;
        }
        let scheme = text
            .split_once("://")
            .filter(|(scheme, _)| !scheme.contains('/'));
        let rest = scheme.map_or(text, |(_, rest)| rest);
        let (head, path) = match rest.split_once('/') {
            Some((head, path)) => (head, Some(path)),
            None => (rest, None),
        };
        // A placeholder or user info may have a colon of its own; a tag without a path is no port.
        let (host, port) = match head.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                (host, path.is_some().then_some(port))
            }
            _ => (head, None),
        };
        let host = if path.is_none() {
            host.split_once(['@', ':']).map_or(host, |(host, _)| host)
        } else {
            host
        };
        Some(Self {
            has_scheme: scheme.is_some(),
            has_blank: text.contains(|c: char| c.is_whitespace() || c.is_control()),
            host,
            port,
            path,
            parts: Parts::new(host)?,
        })
    }

    /// Returns the first fault of the host.
    fn fault(&self) -> Option<Lookalike> {
        let quoted = |text| Quoted::new(text);
        let Parts { account, rest, .. } = self.parts;
        if let Some(placeholder) = placeholder(account, rest) {
            return Some(Lookalike::Placeholder(quoted(placeholder)));
        }
        if self.has_scheme {
            return Some(Lookalike::Scheme);
        }
        if self.has_blank {
            return Some(Lookalike::Blank);
        }
        let is_foreign = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
        if let Some(found) = self.host.find(is_foreign) {
            let rest = &self.host[found..];
            let end = rest.chars().next().map_or(0, char::len_utf8);
            return Some(Lookalike::Character(quoted(&rest[..end])));
        }
        if self.parts.is_public {
            // Its images pull without a credential, in any case and through any port.
            let is_exact = Registry::parse_public(&self.host.to_ascii_lowercase()).is_some();
            return (!is_exact).then_some(Lookalike::Public);
        }
        self.parts.fault().or_else(|| {
            let wrong_port = self.port.filter(|port| !is_port(port));
            if let Some(port) = wrong_port {
                return Some(Lookalike::Port(quoted(port)));
            }
            let has_upper = self.host.bytes().any(|b| b.is_ascii_uppercase());
            has_upper.then_some(Lookalike::UpperCase)
        })
    }
}

/// Returns the part that is a placeholder, or a text with one.
fn placeholder<'a>(account: &'a str, rest: &'a str) -> Option<&'a str> {
    if account.contains(PLACEHOLDER) {
        return Some(account);
    }
    let from = rest.find(PLACEHOLDER)?;
    let last = rest.rfind(PLACEHOLDER)?;
    let to = rest[last..].find('.').map_or(rest.len(), |at| last + at);
    Some(&rest[from..to])
}

impl<'a> Parts<'a> {
    /// Splits a host that looks like one of ECR at the labels of the service; `None` for others.
    fn new(host: &'a str) -> Option<Self> {
        // The same length: each offset fits both.
        let lower = host.to_ascii_lowercase();
        let mut labels = Vec::new();
        let mut start = 0;
        for label in lower.split('.') {
            labels.push((start, label));
            start += label.len() + 1;
        }
        let has = |word: &str| labels.iter().any(|(_, label)| *label == word);
        let is_amazon = labels.iter().any(|(_, label)| label.starts_with("amazon"))
            || SUFFIXES.iter().any(|(suffix, ..)| lower.ends_with(suffix));
        let is_public = has("ecr-public") || (has("public") && has("ecr"));
        let is_public = is_public && (is_amazon || has("aws"));
        let is_service = |label: &str| label.contains("dkr") || label.starts_with("ecr");
        let first = labels.iter().position(|(_, label)| is_service(label))?;
        let after = labels[first..]
            .iter()
            .position(|(_, label)| !is_service(label));
        let after = after.map_or(labels.len(), |count| first + count);
        let begin = labels[first].0;
        let end = labels
            .get(after)
            .map_or(host.len() + 1, |(start, _)| *start);
        let account = &host[..begin.saturating_sub(1)];
        let digits = account.bytes().filter(u8::is_ascii_digit).count();
        let is_account = digits >= ACCOUNT_DIGITS || account.contains(PLACEHOLDER);
        let has_both = labels[first..after]
            .iter()
            .any(|(_, it)| it.contains("dkr"))
            && lower[begin..end - 1].contains("ecr");
        let has_region = labels
            .get(after)
            .is_some_and(|(_, label)| Partition::of_region(label).is_some());
        let is_ecr = is_amazon || is_public || (is_account && (has_both || has_region));
        is_ecr.then(|| Self {
            account,
            service: &host[begin..end - 1],
            rest: host.get(end..).unwrap_or_default(),
            is_public,
        })
    }

    /// Returns the first fault; case is none here.
    fn fault(&self) -> Option<Lookalike> {
        let is = |text: &str, form: &str| text.eq_ignore_ascii_case(form);
        if self.account.is_empty() {
            return Some(Lookalike::NoAccount);
        }
        if AccountId::parse(self.account).is_none() {
            return Some(Lookalike::Account(Quoted::new(self.account)));
        }
        let forms = ["dkr.ecr", "dkr.ecr-fips", "dkr-ecr", "dkr-ecr-fips"];
        let Some(form) = forms.iter().position(|form| is(self.service, form)) else {
            return Some(Lookalike::Service(Quoted::new(self.service)));
        };
        let is_dual_stack = form >= 2;
        let (region, suffix) = self.rest.split_once('.').unwrap_or((self.rest, ""));
        let region = region.to_ascii_lowercase();
        let Some(partition) = Partition::of_region(&region) else {
            let is_suffix = |(known, ..): &(&str, bool, _)| is(self.rest, known);
            let is_missing =
                region.is_empty() || region.starts_with("amazon") || SUFFIXES.iter().any(is_suffix);
            return Some(if is_missing {
                Lookalike::NoRegion
            } else {
                Lookalike::Region(Quoted::new(&region), meant(&region))
            });
        };
        let mut suffixes = SUFFIXES.iter().filter(|(.., of)| of.contains(&partition));
        let Some((expected, ..)) = suffixes.find(|(_, dual, _)| *dual == is_dual_stack) else {
            return Some(Lookalike::Service(Quoted::new(self.service)));
        };
        if is(suffix, expected) {
            return None;
        }
        let has_empty = !suffix.is_empty() && suffix.split('.').any(str::is_empty);
        Some(if has_empty {
            Lookalike::EmptyLabel
        } else {
            Lookalike::Suffix(Quoted::new(suffix), expected)
        })
    }
}

/// Returns the known region that a text names but for its separators.
fn meant(region: &str) -> Option<&'static str> {
    let letters = |text: &str| -> String { text.chars().filter(|c| !"-_".contains(*c)).collect() };
    let meant = letters(region);
    REGIONS.into_iter().find(|known| letters(known) == meant)
}
