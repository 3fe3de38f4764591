//! Whom an access key belongs to, and until when: the part of IAM that every call needs.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{ACCESS_KEY, Request, SECRET_MARKER, Signature, USER};

/// An access key with what goes with it.
#[derive(Clone, Debug)]
pub struct Keys {
    pub access_key: String,
    pub secret_access_key: String,
    /// Sessions have one, users don't.
    pub session_token: Option<String>,
    pub expires_at: Option<Timestamp>,
}

pub(super) struct Iam(HashMap<String, Holder>);

struct Holder {
    principal: String,
    /// The end of a session; a user's keys have none.
    until: Option<Timestamp>,
}

/// Returns the secret of every access key: the fake checks no signature's value.
pub fn secret_access_key() -> String {
    format!("key-{SECRET_MARKER}")
}

/// A web identity token that [`super::FakeAws::leak_in`] finds.
pub fn web_identity_token(name: &str) -> String {
    format!("eyJhbGciOiJub25lIn0.{name}.{SECRET_MARKER}")
}

impl Keys {
    /// The variables that give them to a process.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut variables = vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), self.access_key.clone()),
            (
                "AWS_SECRET_ACCESS_KEY".to_owned(),
                self.secret_access_key.clone(),
            ),
        ];
        let token = self.session_token.clone();
        variables.extend(token.map(|token| ("AWS_SESSION_TOKEN".to_owned(), token)));
        variables
    }
}

impl Default for Iam {
    fn default() -> Self {
        let user = Holder {
            principal: USER.to_owned(),
            until: None,
        };
        Self(HashMap::from([(ACCESS_KEY.to_owned(), user)]))
    }
}

impl Iam {
    /// New keys; with an end they are a session's.
    pub(super) fn issue(&mut self, principal: &str, until: Option<Timestamp>) -> Keys {
        let kind = until.map_or("AKIA", |_| "ASIA");
        let access_key = format!("{kind}FAKE{:012}", self.0.len());
        let holder = Holder {
            principal: principal.to_owned(),
            until,
        };
        self.0.insert(access_key.clone(), holder);
        Keys {
            access_key,
            secret_access_key: secret_access_key(),
            session_token: until.map(|_| format!("session-{SECRET_MARKER}")),
            expires_at: until,
        }
    }

    /// Whose key it is; nothing for a stranger's.
    pub(super) fn principal(&self, access_key: &str) -> String {
        let holder = self.0.get(access_key);
        holder.map_or_else(String::new, |holder| holder.principal.clone())
    }

    /// Whether the key exists, came with a session's token if it is a session's, and signed for this service.
    pub(super) fn authenticates(&self, request: &Request, signature: &Signature) -> bool {
        let holder = self.0.get(&signature.access_key);
        holder.is_some_and(|holder| holder.until.is_some() == request.session_token)
            && signature.service == request.service.name()
    }

    /// Whether the key is one of a session that has ended.
    pub(super) fn is_over(&self, access_key: &str) -> bool {
        let until = self.0.get(access_key).and_then(|holder| holder.until);
        until.is_some_and(|until| until <= Timestamp::now())
    }
}
