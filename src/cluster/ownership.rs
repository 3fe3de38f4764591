//! The marks of objects that ecr-injector writes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The label of a Secret that ecr-injector manages.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "ecr-injector";
/// The field manager of every write.
pub const FIELD_MANAGER: &str = "ecr-injector";

/// Whether the metadata has the label of ecr-injector.
#[must_use]
pub fn is_managed(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|value| value == MANAGED_BY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_managed_by_the_value_of_its_label() {
        let metadata = |label: Option<&str>| ObjectMeta {
            labels: label.map(|value| [(MANAGED_BY_LABEL.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert!(is_managed(&metadata(Some("ecr-injector"))));
        assert!(!is_managed(&metadata(Some("Helm"))));
        assert!(!is_managed(&metadata(None)));
    }
}
