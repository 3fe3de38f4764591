//! IAM documents: the policies of principals, roles, repositories and registries, as data.

pub mod installation;
pub mod parts;
pub mod permissions;
pub mod terraform;
pub mod trust;

use serde_json::{Value, json};
use thiserror::Error;

use crate::registry::Partition;

/// The version of the policy language.
const VERSION: &str = "2012-10-17";

/// The kind of a document, which decides what it is attached to and how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The permissions of a principal.
    Permissions,
    /// The principals that may assume a role.
    Trust,
    /// The principals that may pull from a repository.
    Repository,
    /// The principals that may use the pull-through cache of a registry.
    Registry,
}

/// A policy that AWS takes as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    kind: Kind,
    statements: Vec<Value>,
}

/// The reason why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IamError {
    /// The parts belong to different partitions.
    #[error(
        "{first} is in partition {}, {second} in {}: a policy belongs to one partition; print one \
         for each",
        .partitions[0].as_str(),
        .partitions[1].as_str()
    )]
    Partitions {
        /// The part that decided the partition.
        first: String,
        /// A part of another partition.
        second: String,
        /// The partitions of both.
        partitions: [Partition; 2],
    },
    /// ECR Public is in the commercial partition alone.
    #[error("ECR Public is in partition aws alone, not in {}", .0.as_str())]
    Public(Partition),
    /// The document is longer than AWS takes it.
    #[error(
        "the document has {length} characters without blanks, and AWS takes at most {limit}: name \
         fewer, join names with wildcards, or print several documents"
    )]
    TooLong {
        /// The length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// No `ServiceAccount`, principal or resource is left to name.
    #[error("nothing is named that the document could allow")]
    Nothing,
    /// The name of a service in a partition is not known.
    #[error(
        "how EC2 is called as a principal in partition {} is not known here: take the trust policy \
         of a node's role that AWS made",
        .0.as_str()
    )]
    UnknownService(Partition),
    /// The own role is one of the roles that it is to assume.
    #[error(
        "--role-arn {0} is a role of the configuration too: name the role that ecr-injector itself \
         runs with"
    )]
    OwnRole(String),
}

impl Kind {
    /// Returns how many characters AWS takes, not counting blanks. Of trust policies AWS takes
    /// 2,048, and up to 4,096 on request.
    fn limit(self) -> usize {
        match self {
            Self::Permissions | Self::Repository | Self::Registry => 6144,
            Self::Trust => 4096,
        }
    }
}

impl Document {
    /// Makes a document of its statements, unless it is empty or too long.
    fn new(kind: Kind, statements: Vec<Value>) -> Result<Self, IamError> {
        if statements.is_empty() {
            return Err(IamError::Nothing);
        }
        let document = Self { kind, statements };
        let (length, limit) = (document.length(), kind.limit());
        if length > limit {
            return Err(IamError::TooLong { length, limit });
        }
        Ok(document)
    }

    /// Returns the kind of the document.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the length as AWS counts it: without blanks, of which no value has any.
    #[must_use]
    pub fn length(&self) -> usize {
        self.to_value().to_string().chars().count()
    }

    /// Returns the document as JSON.
    #[must_use]
    pub fn to_value(&self) -> Value {
        json!({"Version": VERSION, "Statement": self.statements})
    }

    /// Returns the document as the text of a file.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!("{:#}\n", self.to_value())
    }
}

/// Returns one text as it is, and several as a list: both are the same to AWS.
fn one_or_many(texts: impl IntoIterator<Item = String>) -> Value {
    let mut texts: Vec<String> = texts.into_iter().collect();
    if texts.len() == 1 {
        return Value::String(texts.remove(0));
    }
    json!(texts)
}

/// Returns the partition that all parts are in, or `default` if there are none.
fn one_partition(
    parts: impl IntoIterator<Item = (String, Partition)>,
    default: Partition,
) -> Result<Partition, IamError> {
    let mut parts = parts.into_iter();
    let Some((first, partition)) = parts.next() else {
        return Ok(default);
    };
    match parts.find(|(_, other)| *other != partition) {
        None => Ok(partition),
        Some((second, other)) => Err(IamError::Partitions {
            first,
            second,
            partitions: [partition, other],
        }),
    }
}

#[cfg(test)]
mod tests;
