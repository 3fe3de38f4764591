//! docker's `config.json` as data: which helper has the credentials of which host.
//!
//! Podman, skopeo and buildah have the same fields in their `auth.json`.

use serde::Serialize as _;
use serde_json::{Map, Value, ser::PrettyFormatter};
use thiserror::Error;

/// The field with the helper of each host.
const HELPERS: &str = "credHelpers";
/// The field with what `docker login` stored.
const LOGINS: &str = "auths";
/// The indentation of docker.
const INDENT: &str = "\t";

/// A file. It may hold passwords, so it has no `Debug`.
pub struct DockerConfig {
    fields: Map<String, Value>,
    indent: String,
}

/// Why a file can't be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DockerConfigError {
    /// The file is no JSON object.
    #[error("it is not a JSON object: mend it, or move it away")]
    NotAnObject,
    /// A field has another type.
    #[error("its field credHelpers is not an object of texts: mend it, or move it away")]
    Helpers,
}

impl DockerConfig {
    /// Parses a file; an empty one has no fields.
    pub fn parse(text: &str) -> Result<Self, DockerConfigError> {
        let value = match text.trim() {
            "" => Value::Object(Map::new()),
            text => serde_json::from_str(text).map_err(|_| DockerConfigError::NotAnObject)?,
        };
        let Value::Object(fields) = value else {
            return Err(DockerConfigError::NotAnObject);
        };
        let is_object_of_texts = |value: &Value| {
            let helpers = value.as_object();
            helpers.is_some_and(|helpers| helpers.values().all(Value::is_string))
        };
        if !fields.get(HELPERS).is_none_or(is_object_of_texts) {
            return Err(DockerConfigError::Helpers);
        }
        let mut lines = text.lines();
        let first = lines.find(|line| line.trim_start().starts_with('"'));
        let indent = first.map(|line| &line[..line.len() - line.trim_start().len()]);
        let indent = indent.filter(|indent| !indent.is_empty());
        Ok(Self {
            fields,
            indent: indent.unwrap_or(INDENT).to_owned(),
        })
    }

    /// Returns the file.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut bytes = Vec::new();
        let formatter = PrettyFormatter::with_indent(self.indent.as_bytes());
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        // JSON values always serialize, and as text.
        let _ = self.fields.serialize(&mut serializer);
        String::from_utf8(bytes).unwrap_or_default() + "\n"
    }

    /// Has a host's credentials from a helper.
    pub fn set(&mut self, host: &str, helper: &str) {
        let helpers = self.fields.entry(HELPERS);
        let helpers = helpers.or_insert_with(|| Value::Object(Map::new()));
        if let Some(helpers) = helpers.as_object_mut() {
            helpers.insert(host.to_owned(), helper.into());
        }
    }

    /// Removes a host's helper if it is this one.
    pub fn unset(&mut self, host: &str, helper: &str) {
        let Some(helpers) = self.fields.get_mut(HELPERS).and_then(Value::as_object_mut) else {
            return;
        };
        if helpers.get(host).and_then(Value::as_str) == Some(helper) {
            helpers.shift_remove(host);
        }
        if helpers.is_empty() {
            self.fields.shift_remove(HELPERS);
        }
    }

    /// Returns whether the file has a password of `docker login` for a host.
    #[must_use]
    pub fn has_login(&self, host: &str) -> bool {
        let Some(logins) = self.fields.get(LOGINS).and_then(Value::as_object) else {
            return false;
        };
        let names = [host.to_owned(), format!("https://{host}")];
        names.iter().any(|name| {
            let login = logins.get(name).and_then(Value::as_object);
            // docker leaves an empty object where a helper has the password.
            login.is_some_and(|login| !login.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn parse(text: &str) -> DockerConfig {
        let parsed = DockerConfig::parse(text);
        parsed.unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn other_fields_keep_their_place_and_form() {
        let text = "{\n    \"auths\": {\n        \"b\": {}\n    },\n    \"credHelpers\": {\n        \
                    \"gcr.io\": \"gcloud\"\n    },\n    \"credsStore\": \"desktop\"\n}\n";
        let mut config = parse(text);
        assert_eq!(config.to_json(), text);
        config.set(HOST, "ecr-injector");
        let expected = text.replace(
            "\"gcloud\"\n",
            &format!("\"gcloud\",\n        \"{HOST}\": \"ecr-injector\"\n"),
        );
        assert_eq!(config.to_json(), expected);
        config.unset(HOST, "ecr-login");
        assert_eq!(config.to_json(), expected);
        config.unset(HOST, "ecr-injector");
        assert_eq!(config.to_json(), text);
    }

    #[test]
    fn new_file_has_the_form_of_docker() {
        let mut config = parse("");
        config.set(HOST, "ecr-injector");
        let expected =
            format!("{{\n\t\"credHelpers\": {{\n\t\t\"{HOST}\": \"ecr-injector\"\n\t}}\n}}\n");
        assert_eq!(config.to_json(), expected);
        config.unset(HOST, "ecr-injector");
        assert_eq!(config.to_json(), "{}\n");
    }

    #[test]
    fn file_of_another_form_is_an_error() {
        for text in ["[]", "{", "null"] {
            let error = DockerConfig::parse(text).err();
            assert_eq!(error, Some(DockerConfigError::NotAnObject), "{text}");
        }
        for text in [r#"{"credHelpers":[]}"#, r#"{"credHelpers":{"a":1}}"#] {
            let error = DockerConfig::parse(text).err();
            assert_eq!(error, Some(DockerConfigError::Helpers), "{text}");
        }
    }

    #[test]
    fn login_with_a_password_is_found() {
        let config = parse(r#"{"auths":{"a":{"auth":"x"},"https://b":{"auth":"x"},"c":{}}}"#);
        assert!(config.has_login("a") && config.has_login("b"));
        assert!(!config.has_login("c") && !config.has_login("d"));
    }
}
