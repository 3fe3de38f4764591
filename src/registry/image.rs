//! Image references, in the grammar of `distribution/reference`.
//!
//! Only this file knows where the host ends and the path begins. The parser follows the kubelet's
//! own (`reference.ParseNormalizedNamed`), so that ecr-injector finds a registry exactly when the
//! kubelet would pull from that registry.

use thiserror::Error;

/// The maximum length of a path in bytes, without the domain (since distribution/reference 0.6).
pub const MAX_PATH_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";
/// The old name of Docker Hub, which the kubelet replaces.
const LEGACY_DOMAIN: &str = "index.docker.io";
pub(super) const OFFICIAL_PREFIX: &str = "library/";

/// A parsed image reference, borrowed from a container's `image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageReference<'a> {
    domain: &'a str,
    path: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

/// The reason why a text is not an image reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The text is empty, or there is no path before the tag or digest.
    #[error("the image name is empty")]
    Empty,
    /// The domain is not `host[:port]`.
    #[error("the image's domain is not a host name with an optional port")]
    Domain,
    /// The path has a character or a separator that the grammar does not allow.
    #[error("the image's path must be lower-case letters, digits and single separators")]
    Path,
    /// The tag has a wrong character, or more than 128 characters.
    #[error("the image's tag must be 1 to 128 letters, digits, '_', '.' or '-'")]
    Tag,
    /// The digest is of an unknown algorithm, or of a wrong length.
    #[error("the image's digest must be sha256:, sha384: or sha512: and lower-case hex digits")]
    Digest,
    /// The path is longer than [`MAX_PATH_BYTES`].
    #[error("the image's path is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// The text is a bare name of 64 hex digits, which is an image id and not a reference.
    #[error("64 hex digits are an image id, not a name")]
    Identifier,
}

impl<'a> ImageReference<'a> {
    /// Parses `[domain/]path[:tag][@digest]`; a name without a domain is Docker Hub's, as in
    /// Kubernetes.
    pub fn parse(text: &'a str) -> Result<Self, ImageError> {
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ImageError::Identifier);
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (text, None),
        };
        let (domain, remainder) = split_domain(named);
        let (path, tag) = match remainder.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        if path.is_empty() {
            return Err(ImageError::Empty);
        }
        let domain = match domain {
            Some(domain) if is_domain(domain) => domain,
            Some(_) => return Err(ImageError::Domain),
            None => DEFAULT_DOMAIN,
        };
        let domain = if domain == LEGACY_DOMAIN {
            DEFAULT_DOMAIN
        } else {
            domain
        };
        if !is_path(path) {
            return Err(ImageError::Path);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ImageError::Tag);
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(ImageError::Digest);
        }
        let official = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            OFFICIAL_PREFIX.len()
        } else {
            0
        };
        if official + path.len() > MAX_PATH_BYTES {
            return Err(ImageError::TooLong);
        }
        Ok(Self {
            domain,
            path,
            tag,
            digest,
        })
    }

    /// Returns the registry's host with its port, if there is one, as written; `docker.io` if the
    /// name has no host, or that of `index.docker.io`.
    #[must_use]
    pub fn domain(&self) -> &'a str {
        self.domain
    }

    /// Returns the repository's path, without domain, tag and digest.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// Returns the tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&'a str> {
        self.tag
    }

    /// Returns the digest, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&'a str> {
        self.digest
    }
}

/// Splits off the first segment if it is a domain: if it has a '.' or ':', is `localhost`, or has
/// an upper-case letter.
fn split_domain(named: &str) -> (Option<&str>, &str) {
    match named.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, named),
    }
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

fn is_domain(domain: &str) -> bool {
    let host = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            let address_ok =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            return address_ok && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => match domain.split_once(':') {
            Some((host, port)) if is_port(port) => host,
            Some(_) => return false,
            None => domain,
        },
    };
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether each component is of lower-case letters and digits, joined by one '.', one or
/// two '_', or any number of '-'.
fn is_path(path: &str) -> bool {
    path.split('/').all(|component| {
        let mut separator = 0..0;
        let bytes = component.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
                if !is_separator(&bytes[separator.clone()]) {
                    return false;
                }
                separator = at + 1..at + 1;
            } else if at == 0 {
                return false;
            } else {
                separator.end = at + 1;
            }
        }
        !bytes.is_empty() && separator.is_empty()
    })
}

fn is_separator(bytes: &[u8]) -> bool {
    matches!(bytes, b"" | b"." | b"_" | b"__") || bytes.iter().all(|b| *b == b'-')
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG_BYTES
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// Returns whether a text is `algorithm:hex` of an algorithm that `opencontainers/go-digest` has; the
/// kubelet rejects any other.
fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(is_lower_hex)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn domain(text: &str) -> Result<&str, ImageError> {
        ImageReference::parse(text).map(|image| image.domain())
    }

    #[test]
    fn segment_without_dot_colon_or_upper_case_is_in_the_path() {
        let image = ImageReference::parse("team/app:1.2").expect("valid");
        assert_eq!(
            (image.domain(), image.path(), image.tag()),
            ("docker.io", "team/app", Some("1.2"))
        );
        assert_eq!(domain("nginx"), Ok("docker.io"));
        assert_eq!(domain("localhost/app"), Ok("localhost"));
        assert_eq!(domain("Registry/app"), Ok("Registry"));
        assert_eq!(domain("registry:5000/app"), Ok("registry:5000"));
        assert_eq!(domain("[fd00::1]:5000/app"), Ok("[fd00::1]:5000"));
    }

    #[test]
    fn old_name_of_docker_hub_is_replaced() {
        assert_eq!(domain("index.docker.io/library/nginx:1"), Ok("docker.io"));
        assert_eq!(
            domain("index.docker.io:443/nginx"),
            Ok("index.docker.io:443")
        );
        let long = "a".repeat(MAX_PATH_BYTES - OFFICIAL_PREFIX.len() + 1);
        let text = format!("index.docker.io/{long}");
        assert_eq!(domain(&text), Err(ImageError::TooLong));
    }

    #[test]
    fn digest_is_of_an_algorithm_that_the_kubelet_knows() {
        for (algorithm, length, is_valid) in [
            ("sha256", 64, true),
            ("sha384", 96, true),
            ("sha512", 128, true),
            ("sha256", 63, false),
            ("SHA256", 64, false),
            ("md5", 32, false),
            ("sha1", 40, false),
            ("blake3", 64, false),
            ("sha512+b64u", 64, false),
        ] {
            let text = format!("a.example/app@{algorithm}:{}", "a".repeat(length));
            assert_eq!(ImageReference::parse(&text).is_ok(), is_valid, "{text}");
        }
        let upper = SHA.to_uppercase().replace("SHA256", "sha256");
        let text = format!("a.example/app@{upper}");
        assert_eq!(ImageReference::parse(&text), Err(ImageError::Digest));
    }

    #[test]
    fn reference_may_have_both_a_tag_and_a_digest() {
        let text = format!("123456789012.dkr.ecr.eu-west-1.amazonaws.com/a/b:v1@{SHA}");
        let image = ImageReference::parse(&text).expect("valid");
        assert_eq!(
            image.domain(),
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            (image.path(), image.tag(), image.digest()),
            ("a/b", Some("v1"), Some(SHA))
        );
    }

    #[test]
    fn port_and_tag_are_kept_apart() {
        let image = ImageReference::parse("host.example:5000/app:v1").expect("valid");
        assert_eq!(
            (image.domain(), image.path(), image.tag()),
            ("host.example:5000", "app", Some("v1"))
        );
    }

    #[test]
    fn port_without_a_path_is_a_tag() {
        let image = ImageReference::parse("host:5000").expect("valid");
        assert_eq!(
            (image.domain(), image.path(), image.tag()),
            ("docker.io", "host", Some("5000"))
        );
    }

    #[test]
    fn names_that_the_kubelet_rejects_are_errors() {
        for (text, error) in [
            ("", ImageError::Empty),
            ("a.example/", ImageError::Empty),
            ("a.example/App", ImageError::Path),
            ("a.example/a//b", ImageError::Path),
            ("a.example/a___b", ImageError::Path),
            ("a.example/a..b", ImageError::Path),
            ("a.example/-a", ImageError::Path),
            ("a.example/a-", ImageError::Path),
            ("a.example/app:", ImageError::Tag),
            ("a.example/app:-x", ImageError::Tag),
            ("a.example/app@sha256:12", ImageError::Digest),
            ("user:pw@a.example/app", ImageError::Digest),
            ("https://a.example/app", ImageError::Domain),
            ("a..example/app", ImageError::Domain),
            ("-a.example/app", ImageError::Domain),
            ("a.example:x/app", ImageError::Domain),
            ("a.exämple/app", ImageError::Domain),
            ("[]:5000/app", ImageError::Domain),
            ("[a.example]/app", ImageError::Domain),
            ("[::1]x/app", ImageError::Domain),
            (
                "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                ImageError::Identifier,
            ),
        ] {
            assert_eq!(ImageReference::parse(text), Err(error), "{text}");
        }
        let long = |bytes: usize| format!("a.example/{}", "a".repeat(bytes));
        assert!(ImageReference::parse(&long(MAX_PATH_BYTES)).is_ok());
        let too_long = long(MAX_PATH_BYTES + 1);
        assert_eq!(ImageReference::parse(&too_long), Err(ImageError::TooLong));
        let tag = format!("a.example/a:{}", "a".repeat(129));
        assert_eq!(ImageReference::parse(&tag), Err(ImageError::Tag));
    }

    /// A second parser, written to be obviously correct rather than fast: applies the production
    /// rules of the grammar to every split.
    mod naive {
        fn one_of(c: char, set: &str) -> bool {
            set.contains(c)
        }
        const LOWER: &str = "abcdefghijklmnopqrstuvwxyz0123456789";
        const WORD: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
        const ALNUM: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

        fn component(s: &str) -> bool {
            // alpha-numeric [separator alpha-numeric]*
            let run = s.chars().take_while(|c| one_of(*c, LOWER)).count();
            if run == 0 {
                return false;
            }
            let rest = &s[run..];
            if rest.is_empty() {
                return true;
            }
            let dashes = rest.chars().take_while(|c| *c == '-').count();
            let mut lengths = vec![];
            if dashes > 0 {
                lengths.push(dashes);
            }
            if rest.starts_with("__") {
                lengths.push(2);
            }
            if rest.starts_with(['.', '_']) {
                lengths.push(1);
            }
            lengths.into_iter().any(|length| component(&rest[length..]))
        }

        fn label(s: &str) -> bool {
            !s.is_empty()
                && s.chars().all(|c| one_of(c, ALNUM) || c == '-')
                && !s.starts_with('-')
                && !s.ends_with('-')
        }

        fn host(s: &str) -> bool {
            if s.starts_with('[') && s.ends_with(']') && s.len() > 2 {
                return s[1..s.len() - 1]
                    .chars()
                    .all(|c| c.is_ascii_hexdigit() || c == ':');
            }
            s.split('.').all(label)
        }

        fn domain(s: &str) -> bool {
            host(s)
                || s.rsplit_once(':').is_some_and(|(h, port)| {
                    host(h) && !port.is_empty() && port.chars().all(|c| c.is_ascii_digit())
                })
        }

        fn digest(s: &str) -> bool {
            let parts: Vec<&str> = s.split(':').collect();
            let [algorithm, hex] = parts[..] else {
                return false;
            };
            let known = [("sha256", 64), ("sha384", 96), ("sha512", 128)];
            known.contains(&(algorithm, hex.len()))
                && hex.chars().all(|c| one_of(c, "0123456789abcdef"))
        }

        /// Tries every split into domain, path, tag and digest; the grammar allows at most one.
        pub(super) fn parse(text: &str) -> Option<(String, String)> {
            if text.len() == 64 && text.chars().all(|c| one_of(c, "0123456789abcdef")) {
                return None;
            }
            let mut cuts = vec![(text, None)];
            cuts.extend(
                text.match_indices('@')
                    .map(|(at, _)| (&text[..at], Some(&text[at + 1..]))),
            );
            for (named, the_digest) in cuts {
                if the_digest.is_some_and(|d| !digest(d)) {
                    continue;
                }
                let mut tags = vec![(named, None)];
                tags.extend(
                    named
                        .match_indices(':')
                        .map(|(at, _)| (&named[..at], Some(&named[at + 1..]))),
                );
                for (name, tag) in tags {
                    let tag_ok = tag.is_none_or(|t: &str| {
                        (1..=128).contains(&t.len())
                            && t.chars().all(|c| one_of(c, WORD) || c == '.' || c == '-')
                            && !t.starts_with(['.', '-'])
                    });
                    if !tag_ok {
                        continue;
                    }
                    let (the_domain, path) = match name.split_once('/') {
                        Some((first, rest))
                            if first.contains('.')
                                || first.contains(':')
                                || first == "localhost"
                                || first.to_lowercase() != first =>
                        {
                            (first, rest)
                        }
                        _ => ("docker.io", name),
                    };
                    let is_hub = ["docker.io", "index.docker.io"].contains(&the_domain);
                    let full = if is_hub && !path.contains('/') {
                        format!("library/{path}")
                    } else {
                        path.to_owned()
                    };
                    let the_domain = if is_hub { "docker.io" } else { the_domain };
                    if domain(the_domain) && path.split('/').all(component) && full.len() <= 255 {
                        return Some((the_domain.to_owned(), path.to_owned()));
                    }
                }
            }
            None
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_parser_on_texts_near_the_grammar(
            text in "(index.docker.io/|[a-zA-Z0-9.:\\[\\]-]{0,12}/)?[a-zA-Z0-9._/-]{0,16}(:[a-zA-Z0-9._-]{0,8})?(@(sha256|sha384|md5|a+b):([0-9a-fA-F]{30,66}|[0-9a-f]{64}|[0-9a-f]{96}))?"
        ) {
            let ours = ImageReference::parse(&text).ok().map(|i| (i.domain().to_owned(), i.path().to_owned()));
            prop_assert_eq!(ours, naive::parse(&text), "{}", text);
        }

        #[test]
        fn agrees_with_a_naive_parser_on_any_text(text in "\\PC{0,40}") {
            let ours = ImageReference::parse(&text).ok().map(|i| (i.domain().to_owned(), i.path().to_owned()));
            prop_assert_eq!(ours, naive::parse(&text), "{}", text);
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = ImageReference::parse(&text);
        }
    }
}
