//! A deserializer of JSON that reads few values and skips the rest.
//!
//! A review is some kilobytes, of which a decision reads some dozens of bytes. Most of the time of
//! a general parser goes into what nobody reads. This one checks what it skips by the grammar, and
//! looks at eight bytes of a string at a time. It is content with less than all of JSON: the text
//! has no blanks between its values, as an API server writes it. Where this one stops,
//! `serde_json` reads the whole text again and has the last word. What this one accepts,
//! `serde_json` accepts too, and both fill the same types.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor, value::BorrowedStrDeserializer},
    forward_to_deserialize_any,
};

/// The deepest nesting of a value that is skipped.
const MAX_DEPTH: u32 = 127;
/// A one in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The highest bit of each byte.
const HIGH_BITS: u64 = ONES << 7;

/// Reads a whole text as `T`; `None` where `serde_json` has to say whether the text is one.
#[must_use]
pub fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<T> {
    // An encoder may end a text with a line feed. What holds for the whole text is checked at once,
    // in a fraction of the time that it would take for each string.
    let text = std::str::from_utf8(text).ok()?;
    let text = text.trim_end_matches([' ', '\n', '\r', '\t']);
    let least = |least: u8, byte: u8| least.min(byte);
    if text.bytes().fold(u8::MAX, least) < b' ' {
        return None;
    }
    let rest = text.as_bytes();
    let mut cursor = Cursor { text, rest };
    let value = T::deserialize(&mut cursor).ok()?;
    cursor.rest.is_empty().then_some(value)
}

/// Says that `serde_json` has to read the text.
#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not read")
    }
}

impl std::error::Error for Stopped {}

impl de::Error for Stopped {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// A position in a JSON text without control characters. After a method returned `None`, the
/// position means nothing.
#[derive(Debug)]
struct Cursor<'a> {
    text: &'a str,
    /// The end of the text, from the position on.
    rest: &'a [u8],
}

impl<'de> Deserializer<'de> for &mut Cursor<'de> {
    type Error = Stopped;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        match self.first().ok_or(Stopped)? {
            b'"' => visitor.visit_borrowed_str(self.text().ok_or(Stopped)?),
            b'{' => self.elements(true, |elements| visitor.visit_map(elements)),
            b'[' => self.elements(false, |elements| visitor.visit_seq(elements)),
            b't' => self
                .word(b"true")
                .ok_or(Stopped)
                .and_then(|()| visitor.visit_bool(true)),
            b'f' => self
                .word(b"false")
                .ok_or(Stopped)
                .and_then(|()| visitor.visit_bool(false)),
            b'n' => self
                .word(b"null")
                .ok_or(Stopped)
                .and_then(|()| visitor.visit_unit()),
            // No field in use is a number.
            _ => Err(Stopped),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        if self.first() != Some(b'n') {
            return visitor.visit_some(self);
        }
        self.word(b"null").ok_or(Stopped)?;
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        let text = self.text().ok_or(Stopped)?;
        visitor.visit_enum(BorrowedStrDeserializer::new(text))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.rest = skip(self.rest).ok_or(Stopped)?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

/// The elements of a list, or the fields of an object.
struct Elements<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    is_object: bool,
    is_first: bool,
    /// Whether the end was read.
    has_ended: bool,
}

impl Elements<'_, '_> {
    /// Goes to the next element, or behind the end.
    fn advance(&mut self) -> Option<bool> {
        let (first, after) = self.cursor.rest.split_first()?;
        if *first == closing(self.is_object) {
            self.cursor.rest = after;
            self.has_ended = true;
            return Some(false);
        }
        if !std::mem::take(&mut self.is_first) {
            // The end after a comma is no element, and stops whoever reads one.
            self.cursor.rest = self.cursor.rest.strip_prefix(b",")?;
        }
        Some(true)
    }
}

/// A key of an object.
struct Key<'a>(&'a str);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Stopped;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = Stopped;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Stopped> {
        if !self.advance().ok_or(Stopped)? {
            return Ok(None);
        }
        let key = self.cursor.text().ok_or(Stopped)?;
        self.cursor.take(b':').ok_or(Stopped)?;
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stopped> {
        seed.deserialize(&mut *self.cursor)
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Stopped;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Stopped> {
        if !self.advance().ok_or(Stopped)? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.cursor).map(Some)
    }
}

impl<'a> Cursor<'a> {
    /// Reads an object or a list to its end.
    fn elements<T>(
        &mut self,
        is_object: bool,
        read: impl FnOnce(&mut Elements<'_, 'a>) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        self.rest = self.rest.get(1..).ok_or(Stopped)?;
        let mut elements = Elements {
            cursor: self,
            is_object,
            is_first: true,
            has_ended: false,
        };
        let value = read(&mut elements)?;
        if elements.has_ended {
            Ok(value)
        } else {
            Err(Stopped)
        }
    }

    fn first(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Reads a string without an escape.
    fn text(&mut self) -> Option<&'a str> {
        let start = self.rest.strip_prefix(b"\"")?;
        let end = text_end(start)?;
        self.rest = end.strip_prefix(b"\"")?;
        let length = self.text.len();
        self.text.get(length - start.len()..length - end.len())
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        let (first, after) = self.rest.split_first()?;
        self.rest = after;
        (*first == expected).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(())
    }
}

/// Returns what follows a value of any kind.
fn skip(mut rest: &[u8]) -> Option<&[u8]> {
    // The open containers, the innermost in the lowest bit: 1 is an object.
    let (mut open, mut depth) = (0_u128, 0_u32);
    'value: loop {
        let (first, after) = rest.split_first()?;
        rest = match *first {
            b'"' => skip_string(after)?,
            first @ (b'{' | b'[') => {
                let is_object = first == b'{';
                if after.first() == Some(&closing(is_object)) {
                    &after[1..]
                } else {
                    if depth == MAX_DEPTH {
                        return None;
                    }
                    depth += 1;
                    open = open << 1 | u128::from(is_object);
                    rest = if is_object { skip_key(after)? } else { after };
                    continue 'value;
                }
            }
            b't' => rest.strip_prefix(b"true")?,
            b'f' => rest.strip_prefix(b"false")?,
            b'n' => rest.strip_prefix(b"null")?,
            _ => skip_number(rest)?,
        };
        // A value has ended, and with it perhaps the containers around it.
        while depth > 0 {
            let is_object = open & 1 == 1;
            let (next, after) = rest.split_first()?;
            if *next == b',' {
                rest = if is_object { skip_key(after)? } else { after };
                continue 'value;
            }
            if *next != closing(is_object) {
                return None;
            }
            rest = after;
            open >>= 1;
            depth -= 1;
        }
        return Some(rest);
    }
}

fn skip_key(rest: &[u8]) -> Option<&[u8]> {
    let after = skip_string(rest.strip_prefix(b"\"")?)?;
    after.strip_prefix(b":")
}

/// Returns what follows a string whose first quote was read.
#[inline]
fn skip_string(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (stop, after) = text_end(rest)?.split_first()?;
        if *stop == b'"' {
            return Some(after);
        }
        rest = skip_escape(after)?;
    }
}

/// Returns the rest of a string from its next quote or backslash on. Looks at eight bytes at a time.
#[inline]
fn text_end(mut rest: &[u8]) -> Option<&[u8]> {
    while let Some((chunk, after)) = rest.split_first_chunk() {
        let stops = stops(u64::from_le_bytes(*chunk));
        if stops != 0 {
            return rest.get(stops.trailing_zeros() as usize / 8..);
        }
        rest = after;
    }
    let is_stop = |byte: &u8| matches!(byte, b'"' | b'\\');
    rest.get(rest.iter().position(is_stop)?..)
}

/// Returns what follows an escape whose backslash was read.
fn skip_escape(rest: &[u8]) -> Option<&[u8]> {
    let (kind, after) = rest.split_first()?;
    match kind {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(after),
        b'u' => {
            let (digits, after) = after.split_first_chunk::<4>()?;
            digits.iter().all(u8::is_ascii_hexdigit).then_some(after)
        }
        _ => None,
    }
}

fn skip_number(rest: &[u8]) -> Option<&[u8]> {
    let mut rest = rest.strip_prefix(b"-").unwrap_or(rest);
    rest = match rest.strip_prefix(b"0") {
        Some(after) => after,
        None => skip_digits(rest)?,
    };
    if let Some(after) = rest.strip_prefix(b".") {
        rest = skip_digits(after)?;
    }
    if let [b'e' | b'E', after @ ..] = rest {
        let signless = match after {
            [b'+' | b'-', signless @ ..] => signless,
            _ => after,
        };
        rest = skip_digits(signless)?;
    }
    Some(rest)
}

/// Returns what follows one digit or more.
fn skip_digits(rest: &[u8]) -> Option<&[u8]> {
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    rest.get(count..).filter(|_| count > 0)
}

fn closing(is_object: bool) -> u8 {
    if is_object { b'}' } else { b']' }
}

/// Returns eight bytes with the highest bit set where a quote or a backslash is. Bits above the
/// lowest one that is set may be wrong.
#[inline]
fn stops(eight: u64) -> u64 {
    let is_zero = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes & HIGH_BITS;
    is_zero(eight ^ (ONES * u64::from(b'"'))) | is_zero(eight ^ (ONES * u64::from(b'\\')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;

    fn skips(text: &[u8]) -> bool {
        read::<IgnoredAny>(text).is_some()
    }

    fn parses(text: &[u8]) -> bool {
        serde_json::from_slice::<IgnoredAny>(text).is_ok()
    }

    #[test]
    fn values_of_any_type_but_numbers_are_read() {
        let text = r#"{"a":[null,true,false,"x"]}"#;
        let value = serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(read::<Value>(text.as_bytes()), Some(value));
        assert_eq!(read::<Value>(b"[1]"), None);
    }

    #[test]
    fn valid_values_are_skipped_and_others_are_not() {
        for valid in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "12",
            "-1.5e+10",
            "1E5",
            "0.0",
            "\"\"",
            "\"a\"",
            "[]",
            "{}",
            "[1,2,3] ",
            "{\"a\":1}",
            "{\"a\":{\"b\":[{}]},\"c\":\"\\u00e9\\n\"}",
            "\"0123456\\\"789\"",
            "\"01234567\"",
            "\"\u{e9}\u{1f600} and more text\"",
            "[[],[[]]]\n",
        ] {
            assert!(
                parses(valid.as_bytes()) && skips(valid.as_bytes()),
                "{valid}"
            );
        }
        for spaced in [" []", "[ ]", "{ }", "[1 ,2]", "{\"a\": 1}", "[\n1]", "\t1"] {
            assert!(
                parses(spaced.as_bytes()) && !skips(spaced.as_bytes()),
                "{spaced}"
            );
        }
        for invalid in [
            "",
            " ",
            "nul",
            "falsy",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "1e+",
            "\"",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12\"",
            "\"\\",
            "\"\n\"",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{",
            "{1:2}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "[1}",
            "{\"a\":1]",
            "1 2",
            "]",
            "}",
            "'a'",
            "\"12345678\u{1}\"",
            "{\"a\" 1}",
            "truefalse",
            "{}\u{c}",
            "{}\u{a0}",
        ] {
            assert!(
                !parses(invalid.as_bytes()) && !skips(invalid.as_bytes()),
                "{invalid}"
            );
        }
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(skips(nested(128).as_bytes()), "the innermost is empty");
        assert!(!skips(nested(129).as_bytes()));
    }

    /// Types of every shape that a review has.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Shapes<'a> {
        #[serde(borrow)]
        text: Option<&'a str>,
        flag: Option<bool>,
        list: Option<Vec<Shapes<'a>>>,
        kind: Option<Kind>,
        is_there: Option<IgnoredAny>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "UPPERCASE")]
    enum Kind {
        One,
        #[serde(other)]
        Other,
    }

    #[test]
    fn types_are_filled_as_serde_json_fills_them() {
        for (text, is_read) in [
            (r#"{"text":"a b","x":{"y":[1,{}]},"flag":true} "#, true),
            (
                r#"{"list":[{},{"text":"b","list":[]},{"kind":"ONE"},{"kind":"TWO"}]}"#,
                true,
            ),
            (
                r#"{"text":null,"flag":null,"list":null,"kind":null,"is_there":null}"#,
                true,
            ),
            (r#"{"is_there":{"a":[1,2,{"b":null}]}}"#, true),
            ("{}", true),
            // Read by serde_json alone.
            (r#"{"text": "a"}"#, false),
            (r#"{"text":"a\u0062"}"#, false),
            (r#"{"te\u0078t":"a"}"#, false),
            (r#"["a",true,null,null,null]"#, false),
            // Invalid for both.
            (r#"{"text":"a","text":"b"}"#, false),
            (r#"{"text":7}"#, false),
            (r#"{"list":{}}"#, false),
            (r#"["a"]"#, false),
            (r#"["a",true,null,null,null,null]"#, false),
            (r#"{"text":"a",}"#, false),
            (r#"{"list":[{},]}"#, false),
            (r#"{"text" "a"}"#, false),
            (r#"{"text":"a"} x"#, false),
            (r#"{"text":"a""#, false),
        ] {
            let ours = read::<Shapes<'_>>(text.as_bytes());
            assert_eq!(ours.is_some(), is_read, "{text}");
            if let Some(ours) = ours {
                let theirs = serde_json::from_str::<Shapes<'_>>(text).expect("valid");
                assert_eq!(ours, theirs, "{text}");
            }
        }
        assert!(read::<Shapes<'_>>(b"{\"text\":\"\xff\"}").is_none());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_serde_json_reads(
            text in r#"(\{|\[|\]|\}|,|:|"text"|"flag"|"list"|"kind"|"ONE"|"is_there"|true|null|7){0,12}"#
        ) {
            if let Some(ours) = read::<Shapes<'_>>(text.as_bytes()) {
                prop_assert_eq!(Some(ours), serde_json::from_str(&text).ok(), "{}", text);
            }
        }

        #[test]
        fn any_json_without_blanks_is_skipped(value in json()) {
            let text = serde_json::to_string(&value);
            prop_assert!(skips(text.expect("json").as_bytes()));
        }

        #[test]
        fn changed_json_is_skipped_only_if_serde_accepts_it(
            value in json(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            end in any::<prop::sample::Index>(),
        ) {
            let mut text = serde_json::to_vec(&value).expect("json");
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text.truncate(end.index(text.len()) + 1);
            prop_assert!(!skips(&text) || parses(&text), "{:?}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn near_json_is_skipped_only_if_serde_accepts_it(
            text in r#"[\[\]{}:,"\\/0-9eE+.\-a-u]{0,24}"#
        ) {
            prop_assert_eq!(skips(text.as_bytes()), parses(text.as_bytes()), "{}", text);
        }
    }
}
