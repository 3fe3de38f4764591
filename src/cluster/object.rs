//! Partial types for objects that tenants may write, so that no content of theirs breaks a list.
//!
//! A client that may write an object may also write its managed fields, with dates that no type
//! here can hold: the API server accepts the year 9999. Read as the whole type, one such object
//! ends every list that it is in, and kube's client logs what it couldn't read. So only the fields
//! in use are read.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

/// The most `imagePullSecrets` of a ServiceAccount that are kept.
const MAX_PULL_SECRETS: usize = 256;

/// An object's metadata alone: names, versions, labels, annotations, and whether the object is
/// being deleted.
#[derive(Clone)]
pub struct Metadata<K> {
    /// The metadata, with the fields in use.
    pub metadata: ObjectMeta,
    kind: PhantomData<fn() -> K>,
}

/// A Secret's type and data, with the same part of its metadata.
#[derive(Clone)]
pub struct WholeSecret(pub Secret);

/// A ServiceAccount's metadata, and the names of its `imagePullSecrets`.
#[derive(Clone, Debug)]
pub struct PullingAccount {
    /// The metadata, with the fields in use.
    pub metadata: ObjectMeta,
    /// The names of the Secrets with which its Pods pull images.
    pub pull_secrets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<IgnoredAny>,
}

impl From<Read> for ObjectMeta {
    fn from(read: Read) -> Self {
        Self {
            name: read.name,
            namespace: read.namespace,
            uid: read.uid,
            resource_version: read.resource_version,
            labels: read.labels,
            annotations: read.annotations,
            creation_timestamp: read
                .creation_timestamp
                .and_then(|text| text.parse().ok().map(Time)),
            // Callers ask only whether there is a timestamp.
            deletion_timestamp: read.deletion_timestamp.map(|_| Time(Timestamp::UNIX_EPOCH)),
            ..Self::default()
        }
    }
}

impl<'de, K> Deserialize<'de> for Metadata<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Read,
        }
        let object = Object::deserialize(deserializer)?;
        Ok(Self {
            metadata: object.metadata.into(),
            kind: PhantomData,
        })
    }
}

impl<'de> Deserialize<'de> for WholeSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Read,
            #[serde(rename = "type")]
            type_: Option<String>,
            immutable: Option<bool>,
            data: Option<BTreeMap<String, ByteString>>,
        }
        let object = Object::deserialize(deserializer)?;
        Ok(Self(Secret {
            metadata: object.metadata.into(),
            type_: object.type_,
            immutable: object.immutable,
            data: object.data,
            ..Secret::default()
        }))
    }
}

impl<'de> Deserialize<'de> for PullingAccount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Reference {
            name: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Object {
            metadata: Read,
            image_pull_secrets: Option<Vec<Reference>>,
        }
        let object = Object::deserialize(deserializer)?;
        let references = object.image_pull_secrets.into_iter().flatten();
        Ok(Self {
            metadata: object.metadata.into(),
            pull_secrets: references
                .filter_map(|reference| reference.name)
                .take(MAX_PULL_SECRETS)
                .collect(),
        })
    }
}

impl<K> fmt::Debug for Metadata<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metadata").field(&self.metadata).finish()
    }
}

/// Shows the metadata, never the data.
impl fmt::Debug for WholeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WholeSecret")
            .field(&self.0.metadata)
            .finish()
    }
}

macro_rules! resource_of {
    ($kind:ty, $metadata_alone:literal, $($at:tt)+) => {
        type DynamicType = <$kind as Resource>::DynamicType;
        type Scope = <$kind as Resource>::Scope;

        fn metadata_api() -> bool {
            $metadata_alone
        }

        fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
            <$kind>::kind(of)
        }

        fn group(of: &Self::DynamicType) -> Cow<'_, str> {
            <$kind>::group(of)
        }

        fn version(of: &Self::DynamicType) -> Cow<'_, str> {
            <$kind>::version(of)
        }

        fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
            <$kind>::plural(of)
        }

        fn meta(&self) -> &ObjectMeta {
            &self.$($at)+
        }

        fn meta_mut(&mut self) -> &mut ObjectMeta {
            &mut self.$($at)+
        }
    };
}

impl<K: Resource> Resource for Metadata<K> {
    resource_of!(K, true, metadata);
}

impl Resource for PullingAccount {
    resource_of!(ServiceAccount, false, metadata);
}

impl Resource for WholeSecret {
    resource_of!(Secret, false, 0.metadata);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_use_are_read_and_others_can_hold_anything() {
        let text = r#"{"apiVersion": "v1", "kind": "Secret", "type": "t", "data": {"a": "eA=="}, "metadata": {
            "name": "n", "namespace": "team", "uid": "u", "resourceVersion": "7", "labels": {"l": "1"},
            "annotations": {"a": "2"}, "creationTimestamp": "2027-01-15T08:00:00Z",
            "deletionTimestamp": "9999-12-31T00:00:00Z", "finalizers": [7],
            "managedFields": [{"time": "9999-12-31T00:00:00Z"}]}}"#;
        let alone: Metadata<Secret> = serde_json::from_str(text).expect("readable");
        let WholeSecret(whole) = serde_json::from_str(text).expect("readable");
        assert!(serde_json::from_str::<Secret>(text).is_err());
        for metadata in [&alone.metadata, &whole.metadata] {
            assert_eq!(metadata.name.as_deref(), Some("n"));
            assert_eq!(metadata.namespace.as_deref(), Some("team"));
            assert_eq!(metadata.uid.as_deref(), Some("u"));
            assert_eq!(metadata.resource_version.as_deref(), Some("7"));
            assert!(metadata.labels.is_some() && metadata.annotations.is_some());
            assert!(metadata.creation_timestamp.is_some() && metadata.deletion_timestamp.is_some());
        }
        assert_eq!(whole.type_.as_deref(), Some("t"));
        let data = whole.data.as_ref().expect("data");
        assert_eq!(data["a"].0, b"x");
        assert!(!format!("{:?}", WholeSecret(whole)).contains("data"));
    }
}
