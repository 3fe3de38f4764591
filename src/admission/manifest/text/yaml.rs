//! Documents of YAML, as `kubectl` reads them: split at each `---`, scalars and names of fields by
//! YAML 1.1, merge keys in their order.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{
    DuplicateKeyPolicy, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned,
};

use super::{TextError, duplicate, scalar::Scalar, without_position};
use crate::telemetry::yaml_error;

/// How far before a scalar its tag may begin, in bytes.
const MAX_TAG: usize = 256;

/// Reads every document; empty ones are left out.
pub(super) fn read(text: &str) -> Result<Vec<Value>, TextError> {
    let mut values = Vec::new();
    for document in split(text)? {
        values.extend(document.read()?);
    }
    Ok(values)
}

/// The text of one document.
struct Document<'a> {
    text: &'a str,
    /// The document's number in the file, from 1.
    number: usize,
    /// The lines of the file before the text.
    lines_before: usize,
}

/// Splits a text into its documents, which `kubectl` does before it parses any of them.
fn split(text: &str) -> Result<Vec<Document<'_>>, TextError> {
    let mut documents = Vec::new();
    let (mut number, mut start, mut lines_before) = (0, 0, 0);
    let mut end = 0;
    let is_comment = |line: &str| line.trim().is_empty() || line.starts_with('#');
    for (at, line) in text.split_inclusive('\n').enumerate() {
        if let Some(rest) = line.strip_prefix("---") {
            if number > 0 {
                documents.push(Document {
                    text: &text[start..end],
                    number,
                    lines_before,
                });
            }
            number += 1;
            (start, lines_before) = (end + line.len(), at + 1);
            if !rest.trim().is_empty() && !rest.trim_start().starts_with('#') {
                return Err(TextError::Syntax {
                    document: number,
                    line: at + 1,
                    column: 4,
                    message: "kubectl takes nothing but a comment behind ---".to_owned(),
                });
            }
        } else if number == 0 && !is_comment(line) {
            number = 1;
        }
        end += line.len();
    }
    documents.push(Document {
        text: &text[start..],
        number: number.max(1),
        lines_before,
    });
    Ok(documents)
}

fn options() -> Options {
    // The parser's default limits are for untrusted input; a dump of a whole cluster exceeds them.
    // Aliases stay limited, and the depth is that of JSON.
    let budget = serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_documents: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
        max_depth: 128,
    };
    serde_saphyr::options! {
        budget: budget,
        emit_comments: false,
        with_snippet: false,
        // A tag that kubectl ignores would change the type of its value here.
        reject_unsupported_tags: true,
        // Decided here, by the rules of kubectl.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
    }
}

impl Document<'_> {
    /// Returns the object, or `None` if the document is empty.
    fn read(&self) -> Result<Option<Value>, TextError> {
        // kubectl strips the byte order mark of each document.
        let text = self.text.strip_prefix('\u{feff}').unwrap_or(self.text);
        let source = Source {
            document: self,
            text,
        };
        let nodes = serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options())
            .map_err(|error| source.parser_error(&error))?;
        let mut found = None;
        for node in nodes {
            let at = node.referenced;
            if matches!(node.value, Node::Null) {
                continue;
            }
            if found.is_some() {
                // kubectl would ignore this one.
                let message = "expected --- before the next document";
                return Err(source.error(at, message));
            }
            let got = match &node.value {
                Node::Map(_) => {
                    found = Some(source.value(node)?);
                    continue;
                }
                Node::List(_) => "a list",
                _ => "a single value",
            };
            return Err(TextError::NotAnObject {
                document: self.number,
                line: source.line(at),
                got,
            });
        }
        Ok(found)
    }
}

/// A node as the parser resolved it.
enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<Node>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Node, E> {
        Ok(Node::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }
}

/// The text that the nodes of a document are in.
struct Source<'a> {
    document: &'a Document<'a>,
    text: &'a str,
}

impl Source<'_> {
    fn value(&self, node: Spanned<Node>) -> Result<Value, TextError> {
        let at = node.referenced;
        match node.value {
            Node::List(items) => {
                let items: Result<Vec<_>, _> =
                    items.into_iter().map(|item| self.value(item)).collect();
                Ok(Value::Array(items?))
            }
            Node::Map(entries) => Ok(Value::Object(self.fields(entries)?)),
            scalar => {
                let scalar = self.scalar(scalar, node.defined);
                let value = scalar.and_then(Scalar::into_value);
                value.ok_or_else(|| self.error(at, "JSON has no such number: put it in quotes"))
            }
        }
    }

    fn fields(
        &self,
        entries: Vec<(Spanned<Node>, Spanned<Node>)>,
    ) -> Result<Map<String, Value>, TextError> {
        let mut fields = Map::new();
        let mut own = HashSet::new();
        for (name, value) in entries {
            let (at, value_at) = (name.referenced, value.referenced);
            if self.ends_in_flow(name.defined) {
                // A name to the parser, and a text with a colon to kubectl.
                return Err(self.error(at, "write a space behind the colon, or quotes"));
            }
            if self.is_merge_key(&name) {
                let merged = self.value(value)?;
                let objects = self.merged(merged, value_at)?;
                // kubectl follows the order: a merge key overrides what is before it.
                fields.extend(objects.into_iter().flatten());
                continue;
            }
            let name = self.name(name)?;
            let value = self.value(value)?;
            if !own.insert(name.clone()) {
                return Err(self.error(at, &duplicate(&name)));
            }
            fields.insert(name, value);
        }
        Ok(fields)
    }

    /// Returns the objects of a merge key, of which later ones override earlier ones.
    fn merged(&self, value: Value, at: Location) -> Result<Vec<Map<String, Value>>, TextError> {
        let values = match value {
            Value::Array(items) => items.into_iter().rev().collect(),
            value => vec![value],
        };
        let objects = values.into_iter().map(|value| match value {
            Value::Object(fields) => Ok(fields),
            _ => Err(self.error(at, "a merge key (<<) takes an object or a list of objects")),
        });
        objects.collect()
    }

    fn is_merge_key(&self, name: &Spanned<Node>) -> bool {
        matches!(&name.value, Node::Text(text) if text == "<<")
            && self.plain(name.defined) == Some("<<")
    }

    fn name(&self, node: Spanned<Node>) -> Result<String, TextError> {
        let at = node.referenced;
        let name = match node.value {
            Node::List(_) | Node::Map(_) => None,
            scalar => self
                .scalar(scalar, node.defined)
                .and_then(Scalar::into_name),
        };
        name.ok_or_else(|| self.error(at, "this can't be the name of a field: put it in quotes"))
    }

    /// Returns a scalar by the rules of kubectl, or `None` for a list and an object.
    fn scalar(&self, node: Node, at: Location) -> Option<Scalar> {
        let plain = self.plain(at);
        Some(match node {
            Node::Null => Scalar::Null,
            Node::Text(text) => match plain {
                // Quotes and the marks of a block make the source differ from the text; the parser
                // takes no plain scalar without a character for a text.
                Some(source) if source == text && !text.is_empty() => Scalar::resolve(&text),
                _ => Scalar::Text(text),
            },
            Node::Bool(value) => plain.map_or(Scalar::Bool(value), Scalar::resolve),
            Node::Int(value) => plain.map_or(Scalar::Int(value), Scalar::resolve),
            Node::Float(value) => plain.map_or(Scalar::Float(value), Scalar::resolve),
            Node::List(_) | Node::Map(_) => return None,
        })
    }

    /// Returns whether a name is followed by a colon and the end of an entry in braces or brackets.
    fn ends_in_flow(&self, name: Location) -> bool {
        let span = name.span();
        let end = span.byte_offset().zip(span.byte_len());
        let end = end.and_then(|(start, length)| usize::try_from(start + length).ok());
        let rest = end.and_then(|end| self.text.get(end..));
        rest.is_some_and(|rest| [":,", ":]", ":}"].iter().any(|end| rest.starts_with(end)))
    }

    /// Returns the source of a scalar, or `None` if it has a tag, which decides its type.
    fn plain(&self, at: Location) -> Option<&str> {
        let span = at.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        // A text without spaces is not searched from its start for each scalar.
        let window = self.text.floor_char_boundary(start.saturating_sub(MAX_TAG));
        let mut before = self.text.get(window..start)?.trim_end();
        // An anchor may be between the tag and the scalar.
        loop {
            let word = before.rsplit(char::is_whitespace).next()?;
            if word.contains('!') {
                return None;
            }
            if !word.contains('&') {
                break;
            }
            before = before[..before.len() - word.len()].trim_end();
        }
        self.text.get(start..end).map(str::trim_end)
    }

    fn line(&self, at: Location) -> usize {
        let line = usize::try_from(at.line()).unwrap_or(usize::MAX);
        self.document.lines_before.saturating_add(line)
    }

    fn error(&self, at: Location, message: &str) -> TextError {
        TextError::Syntax {
            document: self.document.number,
            line: self.line(at),
            column: usize::try_from(at.column()).unwrap_or(usize::MAX),
            message: message.to_owned(),
        }
    }

    fn parser_error(&self, error: &serde_saphyr::Error) -> TextError {
        let message = yaml_error::text(error);
        let at = error.location().unwrap_or(Location::UNKNOWN);
        let (line, column) = (at.line(), at.column());
        let message = without_position(&message, &format!(" at line {line}, column {column}"));
        self.error(at, &message)
    }
}
