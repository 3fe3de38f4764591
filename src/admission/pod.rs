//! The partial, borrowed view of a Pod: the few fields that an admission decision reads.
//!
//! The deserializer skips every other field, and since the answer is a patch, nothing of the Pod is
//! lost. Strings borrow from the request's body wherever JSON has them without an escape. Lists
//! keep only the elements that matter: a body of eight megabytes has room for millions of others.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    cluster::near_miss::{Intent, is_near_key},
    registry::{Quoted, image::ImageReference},
};

/// The Pod annotation that opts a single Pod out.
pub const INJECT_ANNOTATION: &str = "ecr-injector.dev/inject";
/// The value of [`INJECT_ANNOTATION`] that opts out.
pub const INJECT_DISABLED: &str = "disabled";
/// The annotation that the kubelet sets on the mirror of a static Pod, which may not reference
/// Secrets.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The most elements that are kept of a list. A Pod in etcd has at most 1.5 MiB, and a container in
/// it takes more than a hundred bytes with the fields that the API server defaults.
const MAX_ELEMENTS: usize = 15_000;

/// A string that borrows where it can. A bare `Option<Cow<str>>` would always copy: serde only
/// borrows into a `Cow` in a field with `borrow`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// The fields of a Pod that a decision reads.
#[derive(Debug, Default, Deserialize)]
pub struct Pod<'a> {
    #[serde(borrow, default)]
    metadata: Option<Metadata<'a>>,
    #[serde(borrow, default)]
    spec: Option<Spec<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    generate_name: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(default)]
    annotations: Option<Annotations>,
    #[serde(default)]
    labels: Option<Labels>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(borrow, default, deserialize_with = "controller")]
    owner_references: Option<Vec<Owner<'a>>>,
}

/// One of a Pod's owners.
#[derive(Debug, Deserialize)]
struct Owner<'a> {
    #[serde(default)]
    controller: Option<bool>,
    #[serde(borrow, default)]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, default, deserialize_with = "images")]
    containers: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "images")]
    init_containers: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "images")]
    ephemeral_containers: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "image_volumes")]
    volumes: Option<Vec<Text<'a>>>,
    #[serde(borrow, default, deserialize_with = "names")]
    image_pull_secrets: Option<Vec<Text<'a>>>,
    #[serde(borrow, default)]
    service_account_name: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct Container<'a> {
    #[serde(borrow, default)]
    image: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct Volume<'a> {
    #[serde(borrow, default)]
    image: Option<ImageVolume<'a>>,
}

#[derive(Debug, Deserialize)]
struct ImageVolume<'a> {
    #[serde(borrow, default)]
    reference: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct LocalReference<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
}

/// Deserializes owner references, and keeps the controller alone.
fn controller<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Owner<'de>>>, D::Error> {
    let mut is_found = false;
    filter_list(list, |owner: Owner<'de>| {
        let is_first = owner.controller == Some(true) && !is_found;
        is_found |= is_first;
        is_first.then_some(owner)
    })
}

/// Deserializes containers, and keeps their images.
fn images<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Text<'de>>>, D::Error> {
    // One empty image is kept for the preview of manifests.
    let mut has_empty = false;
    filter_list(list, |container: Container<'de>| {
        let image = container.image?;
        let is_repeated = image.0.is_empty() && std::mem::replace(&mut has_empty, true);
        (!is_repeated).then_some(image)
    })
}

/// Deserializes volumes, and keeps the references of image volumes.
fn image_volumes<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Text<'de>>>, D::Error> {
    filter_list(list, |volume: Volume<'de>| {
        not_empty(volume.image?.reference)
    })
}

/// Deserializes local references, and keeps their names.
fn names<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Text<'de>>>, D::Error> {
    filter_list(list, |reference: LocalReference<'de>| {
        not_empty(reference.name)
    })
}

fn not_empty(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| !text.0.is_empty())
}

/// Deserializes a list, and keeps the values that `keep` returns for its elements, one at a time;
/// `None` if there is no list. A null element is an empty one, as the API server reads it, of which
/// nothing is kept.
fn filter_list<'de, D, E, T>(
    list: D,
    keep: impl FnMut(E) -> Option<T>,
) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    E: Deserialize<'de>,
{
    struct SeqVisitor<E, F>(F, PhantomData<E>);
    impl<'de, E: Deserialize<'de>, T, F: FnMut(E) -> Option<T>> Visitor<'de> for SeqVisitor<E, F> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_none<X>(self) -> Result<Self::Value, X> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, list: D) -> Result<Self::Value, D::Error> {
            list.deserialize_seq(self)
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while let Some(element) = list.next_element::<Option<E>>()? {
                kept.extend(element.and_then(&mut self.0));
                if kept.len() > MAX_ELEMENTS {
                    let text = format_args!("a list of more than {MAX_ELEMENTS} elements");
                    return Err(A::Error::custom(text));
                }
            }
            Ok(Some(kept))
        }
    }
    list.deserialize_option(SeqVisitor(keep, PhantomData))
}

/// The two annotations that matter, and the first that nearly opts out; others are not kept.
#[derive(Debug, Default)]
struct Annotations {
    disabled: bool,
    mirror: bool,
    near_miss: Option<OptOutNearMiss>,
}

/// The first label that nearly opts out; others are not kept.
#[derive(Debug, Default)]
struct Labels {
    near_miss: Option<OptOutNearMiss>,
}

/// A label or an annotation of a Pod that looks as if it opted the Pod out, or in, and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptOutNearMiss {
    /// [`INJECT_ANNOTATION`] has this value.
    Value(Quoted),
    /// [`INJECT_ANNOTATION`] is a label.
    Label,
    /// Another key that looks like it, with a value that means yes or no.
    Key(Quoted),
}

/// Calls `visit` with each key of a map of texts, and with its value unless that is null.
fn for_each<'de, D, F>(map: D, visit: F) -> Result<(), D::Error>
where
    D: Deserializer<'de>,
    F: FnMut(&str, Option<&str>),
{
    struct MapVisitor<F>(F);
    impl<'de, F: FnMut(&str, Option<&str>)> Visitor<'de> for MapVisitor<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of texts")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<Text<'de>>()? {
                if key.0 == MIRROR_ANNOTATION {
                    map.next_value::<IgnoredAny>()?;
                    (self.0)(&key.0, None);
                } else if key.0 == INJECT_ANNOTATION || is_near_key(&key.0) {
                    let value: Option<Text<'de>> = map.next_value()?;
                    (self.0)(&key.0, value.as_ref().map(|value| &*value.0));
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }
    map.deserialize_map(MapVisitor(visit))
}

/// Returns the near miss of a key that is not [`INJECT_ANNOTATION`].
fn near_key(key: &str, value: Option<&str>) -> Option<OptOutNearMiss> {
    Intent::of(value?)?;
    Some(OptOutNearMiss::Key(Quoted::new(key)))
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut found = Self::default();
        for_each(deserializer, |key, value| {
            let near_miss = match key {
                INJECT_ANNOTATION => {
                    found.disabled = value == Some(INJECT_DISABLED);
                    let value = value.filter(|value| *value != INJECT_DISABLED);
                    let value = value.filter(|value| !value.is_empty());
                    value.map(|value| OptOutNearMiss::Value(Quoted::new(value)))
                }
                MIRROR_ANNOTATION => {
                    found.mirror = true;
                    None
                }
                _ => near_key(key, value),
            };
            found.near_miss = found.near_miss.take().or(near_miss);
        })?;
        Ok(found)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut found = Self::default();
        for_each(deserializer, |key, value| {
            let near_miss = match (key, value) {
                (INJECT_ANNOTATION, Some("") | None) => None,
                (INJECT_ANNOTATION, _) => Some(OptOutNearMiss::Label),
                _ => near_key(key, value),
            };
            found.near_miss = found.near_miss.take().or(near_miss);
        })?;
        Ok(found)
    }
}

/// The state of the reference to the pull secret in a Pod's `spec.imagePullSecrets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceState {
    /// The field is absent or null.
    NoList,
    /// There is a list without the reference.
    Missing,
    /// The list has the reference already.
    Present,
}

impl<'a> Pod<'a> {
    /// Returns every image of the Pod as written, in the order containers, init containers,
    /// ephemeral containers, image volumes.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        self.spec.iter().flat_map(Spec::images)
    }

    /// Returns the domain of every image that can be parsed, in order, with repetitions.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.images()
            .filter_map(|image| Some(ImageReference::parse(image).ok()?.domain()))
    }

    /// Returns the state of the reference to the Secret `name`.
    #[must_use]
    pub fn reference_state(&self, name: &str) -> ReferenceState {
        match self
            .spec
            .as_ref()
            .and_then(|spec| spec.image_pull_secrets.as_ref())
        {
            None => ReferenceState::NoList,
            Some(list) if list.iter().any(|listed| listed.0 == name) => ReferenceState::Present,
            Some(_) => ReferenceState::Missing,
        }
    }

    /// Returns the name of the Pod's ServiceAccount, as the API server defaults it.
    #[must_use]
    pub fn service_account(&self) -> &str {
        let named = self
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.as_ref());
        named
            .filter(|name| !name.0.is_empty())
            .map_or("default", |name| &name.0)
    }

    /// Returns whether the Pod opts out by its annotation.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.annotations().is_some_and(|it| it.disabled)
    }

    /// Returns whether the Pod is the mirror of a static Pod.
    #[must_use]
    pub fn is_mirror(&self) -> bool {
        self.annotations().is_some_and(|it| it.mirror)
    }

    /// Returns the label or annotation that nearly opts the Pod out, unless another one does.
    #[must_use]
    pub fn opt_out_near_miss(&self) -> Option<&OptOutNearMiss> {
        if self.is_disabled() {
            return None;
        }
        let labels = self.metadata.as_ref()?.labels.as_ref();
        let annotation = self.annotations().and_then(|it| it.near_miss.as_ref());
        annotation.or_else(|| labels?.near_miss.as_ref())
    }

    /// Returns whether the Pod is being deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.metadata
            .as_ref()
            .is_some_and(|metadata| metadata.deletion_timestamp.is_some())
    }

    /// Returns the Pod's name, or the prefix of a generated name, or an empty text.
    #[must_use]
    pub fn name(&self) -> &str {
        let metadata = self.metadata.as_ref();
        let is_set =
            |text: &'_ Option<Text<'a>>| text.as_ref().map(|t| t.0.len()).unwrap_or_default() > 0;
        match metadata {
            Some(m) if is_set(&m.name) => m.name.as_ref().map_or("", |t| &t.0),
            Some(m) => m.generate_name.as_ref().map_or("", |t| &t.0),
            None => "",
        }
    }

    /// Returns kind and name of the Pod's controller, or of the Pod itself if there is none.
    #[must_use]
    pub fn owner(&self) -> (&str, &str) {
        let owners = self
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.owner_references.as_ref());
        let controller = owners.and_then(|owners| owners.first());
        controller.map_or(("Pod", self.name()), |owner| {
            (
                owner.kind.as_ref().map_or("", |t| &*t.0),
                owner.name.as_ref().map_or("", |t| &*t.0),
            )
        })
    }

    fn annotations(&self) -> Option<&Annotations> {
        self.metadata.as_ref()?.annotations.as_ref()
    }
}

impl Spec<'_> {
    fn images(&self) -> impl Iterator<Item = &str> {
        let containers = [
            &self.containers,
            &self.init_containers,
            &self.ephemeral_containers,
        ]
        .into_iter()
        .flatten()
        .flatten();
        let volumes = self.volumes.iter().flatten();
        containers.chain(volumes).map(|text| &*text.0)
    }
}

#[cfg(test)]
mod tests;
