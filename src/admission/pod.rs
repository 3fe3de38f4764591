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

use crate::registry::image::ImageReference;

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
/// `None` if there is no list.
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
            while let Some(element) = list.next_element()? {
                kept.extend((self.0)(element));
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

/// The two annotations that matter; others are not kept.
#[derive(Debug, Default, Clone, Copy)]
struct Annotations {
    disabled: bool,
    mirror: bool,
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Picker;
        impl<'de> Visitor<'de> for Picker {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut found = Annotations::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        INJECT_ANNOTATION => {
                            let value: Option<Text<'de>> = map.next_value()?;
                            found.disabled = value.is_some_and(|value| value.0 == INJECT_DISABLED);
                        }
                        MIRROR_ANNOTATION => {
                            map.next_value::<IgnoredAny>()?;
                            found.mirror = true;
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Picker)
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
        self.annotations().disabled
    }

    /// Returns whether the Pod is the mirror of a static Pod.
    #[must_use]
    pub fn is_mirror(&self) -> bool {
        self.annotations().mirror
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

    fn annotations(&self) -> Annotations {
        self.metadata
            .as_ref()
            .and_then(|metadata| metadata.annotations)
            .unwrap_or_default()
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
mod tests {
    use super::*;

    fn parse(json: &str) -> Pod<'_> {
        serde_json::from_str(json).expect("a Pod")
    }

    #[test]
    fn images_of_all_four_lists_are_found() {
        let pod = parse(
            r#"{"spec":{"volumes":[{"name":"v","image":{"reference":"d/4"}},{"name":"e","emptyDir":{}}],
                "containers":[{"image":"a/1","env":[{"name":"image","value":"no"}]}],
                "initContainers":[{"image":"b/2"}],"ephemeralContainers":[{"image":"c/3"}]}}"#,
        );
        assert_eq!(
            pod.images().collect::<Vec<_>>(),
            ["a/1", "b/2", "c/3", "d/4"]
        );
    }

    #[test]
    fn lists_keep_only_the_elements_that_matter() {
        let pod = parse(
            r#"{"metadata":{"name":"x","ownerReferences":[{},{"controller":false,"kind":"A"},{"controller":true,"kind":"B",
                "name":"b"},{"controller":true,"kind":"C"}]},
                "spec":{"containers":[{},{"image":""},{"image":""},{"image":"a/1"},{"image":""}],"imagePullSecrets":[{},{"name":""}]}}"#,
        );
        assert_eq!(pod.owner(), ("B", "b"));
        assert_eq!(pod.images().collect::<Vec<_>>(), ["", "a/1"]);
        assert_eq!(pod.reference_state("ours"), ReferenceState::Missing);
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!(spec.image_pull_secrets.as_deref(), Some(&[][..]));
        let owners = pod.metadata.as_ref().expect("metadata");
        assert_eq!(owners.owner_references.as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn list_longer_than_any_in_etcd_is_an_error() {
        let pod = |count: usize| {
            let containers = vec![r#"{"image":"a"}"#; count].join(",");
            format!(r#"{{"spec":{{"containers":[{containers}]}}}}"#)
        };
        assert_eq!(parse(&pod(MAX_ELEMENTS)).images().count(), MAX_ELEMENTS);
        let error = serde_json::from_str::<Pod<'_>>(&pod(MAX_ELEMENTS + 1)).expect_err("too long");
        assert!(error.to_string().contains("more than 15000"), "{error}");
    }

    #[test]
    fn null_is_absent_everywhere() {
        let pod = parse(
            r#"{"metadata":null,"spec":{"containers":null,"initContainers":[{"image":null}],"volumes":[{"image":null}],
                "imagePullSecrets":null}}"#,
        );
        assert_eq!(pod.images().count(), 0);
        assert_eq!(pod.reference_state("x"), ReferenceState::NoList);
        let pod = parse(r#"{"metadata":{"annotations":null,"ownerReferences":null},"spec":null}"#);
        assert!(!pod.is_disabled() && !pod.is_mirror());
        assert_eq!(pod.owner(), ("Pod", ""));
    }

    #[test]
    fn strings_without_an_escape_are_borrowed_others_copied() {
        let pod = parse(r#"{"spec":{"containers":[{"image":"a/b"},{"image":"a\/c"}]}}"#);
        let containers = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.as_ref())
            .expect("containers");
        assert!(matches!(&containers[0], Text(Cow::Borrowed("a/b"))));
        assert!(matches!(&containers[1], Text(Cow::Owned(text)) if text == "a/c"));
    }

    #[test]
    fn two_annotations_are_read_among_others() {
        let pod =
            parse(r#"{"metadata":{"annotations":{"x":"y","ecr-injector.dev/inject":"disabled"}}}"#);
        assert!(pod.is_disabled() && !pod.is_mirror());
        let pod = parse(
            r#"{"metadata":{"annotations":{"ecr-injector.dev/inject":"no","kubernetes.io/config.mirror":""}}}"#,
        );
        assert!(!pod.is_disabled() && pod.is_mirror());
    }

    #[test]
    fn missing_list_differs_from_one_without_the_reference() {
        assert_eq!(
            parse(r#"{"spec":{}}"#).reference_state("ours"),
            ReferenceState::NoList
        );
        assert_eq!(
            parse(r#"{"spec":{"imagePullSecrets":[]}}"#).reference_state("ours"),
            ReferenceState::Missing
        );
        let pod = parse(r#"{"spec":{"imagePullSecrets":[{},{"name":"other"},{"name":"ours"}]}}"#);
        assert_eq!(pod.reference_state("ours"), ReferenceState::Present);
        assert_eq!(pod.reference_state("our"), ReferenceState::Missing);
    }

    #[test]
    fn prefix_of_a_generated_name_replaces_a_missing_name() {
        assert_eq!(
            parse(r#"{"metadata":{"generateName":"web-"}}"#).name(),
            "web-"
        );
        assert_eq!(
            parse(r#"{"metadata":{"name":"web-1","generateName":"web-"}}"#).name(),
            "web-1"
        );
    }

    #[test]
    fn owner_is_the_controller_or_else_the_pod_itself() {
        let pod = parse(
            r#"{"metadata":{"generateName":"web-7f-","ownerReferences":[{"kind":"ConfigMap","name":"other"},
                {"kind":"Node","name":"n","controller":false},{"kind":"ReplicaSet","name":"web-7f","controller":true}]}}"#,
        );
        assert_eq!(pod.owner(), ("ReplicaSet", "web-7f"));
        let pod = parse(
            r#"{"metadata":{"generateName":"web-","ownerReferences":[{"kind":"ConfigMap","name":"other","controller":null}]}}"#,
        );
        assert_eq!(pod.owner(), ("Pod", "web-"));
    }
}
