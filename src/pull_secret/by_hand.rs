//! Secrets with ECR tokens that people create by hand, for readers that nobody injects into.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{
    DATA_KEY, DesiredCredential, EXPIRES_AT_ANNOTATION, TYPE,
    merge::{Changes, MergeMode, merge},
    state::{Seal, Subject},
    to_the_second,
};
use crate::{
    cluster::namespace::Namespace,
    registry::Host,
    token::{Token, USER, rules::MAX_HOSTS},
};

/// The label by which Argo CD finds the credentials of a repository.
const ARGOCD_LABEL: (&str, &str) = ("argocd.argoproj.io/secret-type", "repository");

/// The name and the namespace of a Secret.
#[derive(Debug, Clone)]
pub struct SecretName {
    /// The name.
    pub name: String,
    /// The namespace; `None`: that of whoever applies the Secret.
    pub namespace: Option<Namespace>,
}

/// The tokens of a Secret, by the host that images name.
pub type Tokens = BTreeMap<Host, Arc<Token>>;

/// Returns when the first of the tokens expires.
#[must_use]
pub fn expires_at(tokens: &Tokens) -> Option<Timestamp> {
    let ends = tokens.values().map(|token| token.lifetime().expires_at);
    ends.min()
}

/// Encodes a docker config. Some old readers ignore `auth`, so user and password are beside it.
#[must_use]
pub fn docker_config(tokens: &Tokens) -> SecretString {
    #[derive(Serialize)]
    struct Entry<'a> {
        auth: String,
        username: &'a str,
        password: &'a str,
    }
    #[derive(Serialize)]
    struct Config<'a> {
        auths: BTreeMap<&'a str, Entry<'a>>,
    }
    let entries = tokens.iter().map(|(host, token)| {
        let entry = Entry {
            auth: token.auth().expose_secret().to_owned(),
            username: USER,
            password: token.password().expose_secret(),
        };
        (host.as_str(), entry)
    });
    let config = Config {
        auths: entries.collect(),
    };
    // A map of strings always serializes.
    serde_json::to_string(&config).unwrap_or_default().into()
}

/// Returns a Secret for the kubelet and whoever reads docker configs as it does.
#[must_use]
pub fn docker_secret(name: SecretName, tokens: &Tokens) -> Secret {
    let config = docker_config(tokens);
    Secret {
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from([bytes(DATA_KEY, config.expose_secret())])),
        ..annotated(name, expires_at(tokens))
    }
}

/// Returns a Secret with the credentials of a repository in Argo CD: the Helm charts in a registry.
#[must_use]
pub fn argocd_secret(name: SecretName, host: &Host, token: &Token) -> Secret {
    let password = token.password();
    let mut secret = Secret {
        data: Some(BTreeMap::from([
            bytes("enableOCI", "true"),
            bytes("name", host.as_str()),
            bytes("password", password.expose_secret()),
            bytes("type", "helm"),
            bytes("url", host.as_str()),
            bytes("username", USER),
        ])),
        ..annotated(name, Some(token.lifetime().expires_at))
    };
    let (key, value) = ARGOCD_LABEL;
    secret.metadata.labels = Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
    secret
}

/// Returns a pull secret as the leader would write it, but for its seal: nobody has the state key
/// here. So the leader takes its registries over as wanted, and mints their tokens itself.
#[must_use]
pub fn managed_secret(
    name: &str,
    namespace: &Namespace,
    wanted: &BTreeMap<Host, DesiredCredential>,
    now: Timestamp,
) -> Option<Secret> {
    let changes = Changes {
        mode: MergeMode::Add,
        wanted,
        forgotten: &[].into(),
        revoked: &[].into(),
        remembered: None,
        limit: MAX_HOSTS,
    };
    let subject = Subject {
        namespace: namespace.as_str(),
        namespace_uid: "",
        secret_uid: "",
    };
    let revision = u64::try_from(now.as_millisecond()).unwrap_or_default();
    let secret = merge(None, changes, now).secret?;
    let secret = secret.sealed(revision, subject, |_| Some(Seal::default()))?;
    let mut object = secret.to_object(name, namespace, None);
    // The precondition of an apply by ecr-injector, which other clients may not set.
    object.metadata.resource_version = None;
    Some(object)
}

fn bytes(key: &str, value: &str) -> (String, ByteString) {
    (key.to_owned(), ByteString(value.as_bytes().to_vec()))
}

fn annotated(name: SecretName, expires_at: Option<Timestamp>) -> Secret {
    let annotation = |at| (EXPIRES_AT_ANNOTATION.to_owned(), to_the_second(at));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.name),
            namespace: name.namespace.map(|namespace| namespace.to_string()),
            annotations: Some(expires_at.map(annotation).into_iter().collect()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;
    use crate::{identity::Identity, pull_secret::state_of};

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const HOSTS: [&str; 2] = [
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com",
    ];

    fn tokens(hosts: &[&str]) -> Tokens {
        let token = |at: usize, host: &&str| {
            let text = BASE64_STANDARD.encode(format!("AWS:password-{at}"));
            let end = NOW + SignedDuration::from_hours(12 - i64::try_from(at).expect("few"));
            let token = Token::decode(Some(&text), Some(end), None, NOW).expect("a token");
            (Host::parse(host).expect("a host"), Arc::new(token))
        };
        let tokens = hosts.iter().enumerate();
        tokens.map(|(at, host)| token(at, host)).collect()
    }

    fn name(namespace: Option<&str>) -> SecretName {
        SecretName {
            name: "ecr".to_owned(),
            namespace: namespace.and_then(Namespace::parse),
        }
    }

    fn value(secret: &Secret) -> Value {
        serde_json::to_value(secret).expect("a Secret")
    }

    #[test]
    fn secret_has_each_host_with_both_forms_of_its_credential() {
        let data = r#"{"auths":{"123456789012.dkr.ecr.eu-west-1.amazonaws.com":{"auth":"QVdTOnBhc3N3b3JkLTA=","username":"AWS","password":"password-0"},"123456789012.dkr.ecr.us-east-1.amazonaws.com":{"auth":"QVdTOnBhc3N3b3JkLTE=","username":"AWS","password":"password-1"}}}"#;
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "ecr",
                "namespace": "team-a",
                "annotations": {"ecr-injector.dev/expires-at": "2027-01-15T19:00:00Z"},
            },
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": BASE64_STANDARD.encode(data)},
        });
        let secret = docker_secret(name(Some("team-a")), &tokens(&HOSTS));
        assert_eq!(value(&secret), expected);
        let secret = docker_secret(name(None), &tokens(&HOSTS));
        assert_eq!(value(&secret)["metadata"].get("namespace"), None);
    }

    #[test]
    fn argocd_gets_a_repository_without_scheme() {
        let (host, token) = tokens(&HOSTS[..1]).pop_first().expect("one");
        let secret = value(&argocd_secret(name(Some("argocd")), &host, &token));
        let data = [
            ("enableOCI", "true"),
            ("name", HOSTS[0]),
            ("password", "password-0"),
            ("type", "helm"),
            ("url", HOSTS[0]),
            ("username", "AWS"),
        ];
        let data = data.map(|(key, value)| (key.to_owned(), json!(BASE64_STANDARD.encode(value))));
        let data: serde_json::Map<String, Value> = data.into_iter().collect();
        assert_eq!(secret["data"], Value::Object(data));
        let labels = json!({"argocd.argoproj.io/secret-type": "repository"});
        assert_eq!(secret["metadata"]["labels"], labels);
        assert_eq!(secret.get("type"), None);
    }

    #[test]
    fn managed_secret_is_ours_but_not_proven() {
        let wanted = tokens(&HOSTS).into_iter().map(|(host, token)| {
            let desired = DesiredCredential {
                identity: Identity::Ambient.hash(),
                token: Some(token),
            };
            (host, desired)
        });
        let namespace = Namespace::parse("team-a").expect("a name");
        let secret = managed_secret("ecr-pull-secret", &namespace, &wanted.collect(), NOW);
        let secret = secret.expect("a Secret");
        let state = state_of(&secret.metadata).expect("a state");
        assert_eq!(
            state.hosts.keys().map(Host::as_str).collect::<Vec<_>>(),
            HOSTS
        );
        assert_eq!(secret.metadata.resource_version, None);
        let read = super::super::Existing::read(&secret, |_| false);
        let read = read.expect("nothing of others is in it");
        assert_eq!((read.claimed.len(), read.state), (2, None));
    }
}
