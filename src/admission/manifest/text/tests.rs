//! Unit tests of `text`.

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[track_caller]
fn one(text: &str) -> Value {
    let documents = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents[0].clone()
}

fn error(text: &str) -> String {
    read(text.as_bytes()).expect_err("refused").to_string()
}

#[test]
fn scalars_are_read_as_kubectl_reads_them() {
    // The right side is the output of sigs.k8s.io/yaml for the left side.
    for (text, expected) in [
        ("yes", json!(true)),
        ("on", json!(true)),
        ("y", json!(true)),
        ("N", json!(false)),
        ("\"yes\"", json!("yes")),
        ("0644", json!(420)),
        ("-017", json!(-15)),
        ("0o644", json!(420)),
        ("08", json!(8)),
        ("\"0123\"", json!("0123")),
        ("1e3", json!(1000)),
        ("'1e3'", json!("1e3")),
        ("1.10", json!(1.1)),
        ("0x1F", json!(31)),
        ("1_000", json!(1000)),
        (
            "12345678901234567890",
            json!(12_345_678_901_234_567_890_u64),
        ),
        ("-9223372036854775808", json!(i64::MIN)),
        ("2001-01-01", json!("2001-01-01")),
        ("1:30", json!("1:30")),
        ("~", json!(null)),
        ("", json!(null)),
        ("!!str 123", json!("123")),
        ("100m", json!("100m")),
        ("tRue", json!("tRue")),
        ("0777", json!(511)),
        ("-0777", json!(-511)),
        ("+0b11", json!(3)),
        ("0o8", json!("0o8")),
        ("0_7", json!(7)),
        ("1_", json!(1)),
        ("_1", json!("_1")),
        ("1__0", json!(10)),
        ("1_0.5", json!(10.5)),
        ("12:30:45", json!("12:30:45")),
        ("7e12345", json!("7e12345")),
        ("-1e400", json!("-1e400")),
        ("1e-400", json!(0)),
        ("+.5", json!(0.5)),
        ("infinity", json!("infinity")),
        ("0x1p3", json!("0x1p3")),
        (
            "18446744073709551616",
            json!(18_446_744_073_709_551_616_f64),
        ),
        ("+9223372036854775808", json!(9_223_372_036_854_775_808_f64)),
        (
            "2001-12-14T21:59:43.10-05:00",
            json!("2001-12-14T21:59:43.10-05:00"),
        ),
        ("!!binary aGVsbG8=", json!("hello")),
        ("!!str 1_0.5", json!("1_0.5")),
        ("!!str &x 0777", json!("0777")),
        ("&x 0777", json!(511)),
        ("\"\\x41\\u00e9\"", json!("Aé")),
        (
            "[0777, yes, 1_0.5, \"yes\"]",
            json!([511, true, 10.5, "yes"]),
        ),
        ("''", json!("")),
        ("!<tag:yaml.org,2002:str> 5", json!("5")),
        ("|\n  1_0.5", json!("1_0.5\n")),
        ("'1_0.5'", json!("1_0.5")),
    ] {
        assert_eq!(one(&format!("a: {text}\n")), json!({ "a": expected }));
    }
    assert_eq!(one("a: |\nb: 1\n"), json!({"a": "", "b": 1}));
    assert_eq!(
        one("a: &x {k: 1}\nb: *x\nc: {<<: *x, z: 2}"),
        json!({"a": {"k": 1}, "b": {"k": 1}, "c": {"z": 2, "k": 1}})
    );
}

#[test]
fn names_of_fields_are_those_of_kubectl() {
    for (text, expected) in [
        ("yes", "true"),
        ("on", "true"),
        ("y", "true"),
        ("Off", "false"),
        ("\"on\"", "on"),
        ("tRue", "tRue"),
        ("0777", "511"),
        ("\"0777\"", "0777"),
        ("1_000", "1000"),
        ("-0x10", "-16"),
        ("1.10", "1.1"),
        ("1e3", "1000"),
        ("6e06", "6e+06"),
        ("123456789.0", "1.2345679e+08"),
        ("0.00001", "1e-05"),
        (".Inf", ".inf"),
        ("2001-12-14", "2001-12-14"),
        ("12:30", "12:30"),
        ("1.2.3", "1.2.3"),
        ("!!str 1.10", "1.10"),
        ("1e400", "1e400"),
    ] {
        assert_eq!(
            one(&format!("{text}: x\n")),
            json!({ expected: "x" }),
            "{text}"
        );
    }
    for text in [
        "~: x",
        "null: x",
        "18446744073709551615: x",
        "? [a]\n: x",
        "{a: 1}: x",
    ] {
        let error = error(&format!("a: 1\n{text}\n"));
        assert!(
            error.contains("can't be the name of a field"),
            "{text}: {error}"
        );
    }
}

#[test]
fn merge_keys_follow_their_order_as_in_kubectl() {
    let base = "b: &b {k: 1, z: 2}\nc: &c {k: 3, v: 4}\n";
    for (text, expected) in [
        ("{<<: *b, z: 9}", json!({"k": 1, "z": 9})),
        ("{z: 9, <<: *b}", json!({"k": 1, "z": 2})),
        ("{<<: [*b, *c]}", json!({"k": 1, "z": 2, "v": 4})),
        ("{<<: *b, <<: *c}", json!({"k": 3, "z": 2, "v": 4})),
        ("{<<: {k: 5}, k: 6}", json!({"k": 6})),
        ("{\"<<\": 5}", json!({"<<": 5})),
    ] {
        let value = one(&format!("{base}m: {text}\n"));
        assert_eq!(value["m"], expected, "{text}");
    }
    for text in ["{<<: 5}", "{<<: }", "{<<: [5]}"] {
        let error = error(&format!("{base}m: {text}\n"));
        assert!(error.contains("a merge key (<<) takes"), "{text}: {error}");
    }
}

#[test]
fn field_that_is_there_twice_is_named() {
    for (text, name) in [
        ("{\"a\": 1, \"a\": 2}", "a"),
        ("{\"m\": [{\"b\": 1, \"b\": 2}]}", "b"),
        ("a: 1\na: 2\n", "a"),
        ("m: {b: 1, \"b\": 2}\n", "b"),
        ("yes: 1\ntrue: 2\n", "true"),
        ("8: 1\n010: 2\n", "8"),
    ] {
        let expected = format!("duplicate mapping key `{name}`");
        let got = error(text);
        assert!(got.contains(&expected), "{text}: {got}");
    }
}

#[test]
fn text_that_would_be_read_otherwise_is_an_error() {
    for (text, expected) in [
        ("a: !foo 5\n", "!foo"),
        ("a: [b:]\n", "write a space behind the colon, or quotes"),
        (
            "a: {b:, c: 1}\n",
            "write a space behind the colon, or quotes",
        ),
        ("a: !!timestamp 2001-12-14\n", "column 16: "),
        ("a: .inf\n", "JSON has no such number"),
        (
            "a: 1\n...\nb: 2\n",
            "line 3, column 1: expected --- before the next document",
        ),
        (
            "--- {a: 1}\n",
            "kubectl takes nothing but a comment behind ---",
        ),
        (
            "a: 1\n----\nb: 2\n",
            "kubectl takes nothing but a comment behind ---",
        ),
        ("%YAML 1.2\n---\na: 1\n", "document 1, line "),
    ] {
        let got = error(text);
        assert!(got.contains(expected), "{text}: {got}");
    }
}

#[test]
fn documents_stay_separate_and_empty_ones_are_left_out() {
    let count = |text: &str| read(text.as_bytes()).map(|documents| documents.len());
    assert_eq!(count(""), Ok(0));
    assert_eq!(count("---"), Ok(0));
    assert_eq!(count("# nothing\n"), Ok(0));
    assert_eq!(count("---\n---\n# c\n---\na: 1\n---\n"), Ok(1));
    assert_eq!(count("---\n{a: 1}\n--- # c\nb: 2\n...\n"), Ok(2));
    assert_eq!(count("a: 1\n---\n\u{feff}b: 2\n"), Ok(2));
    assert_eq!(count("a: 1\r\n---\r\nb: 2\r\n"), Ok(2));
    assert_eq!(count("{\"a\": 1}\n{\"b\": 2}{}"), Ok(3));
    assert_eq!(count("{a: 1}\n---\nb: 2"), Ok(2));
    assert_eq!(count("a: |\n  ---\n  x\n"), Ok(1));
}

#[test]
fn files_from_editors_on_windows_are_read() {
    let expected = json!({"a": "x\ny\n"});
    assert_eq!(one("\u{feff}a: |\r\n  x\r\n  y\r\n"), expected);
    let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        "\u{feff}a: |\r\n  x\r\n  y\r\n"
            .encode_utf16()
            .flat_map(unit)
            .collect()
    };
    assert_eq!(read(&utf16(u16::to_le_bytes)), Ok(vec![expected.clone()]));
    assert_eq!(read(&utf16(u16::to_be_bytes)), Ok(vec![expected]));
    assert_eq!(
        read(b"a: 1\nb: \xc3(\n"),
        Err(TextError::Encoding { line: 2 })
    );
}

#[test]
fn error_has_document_and_position() {
    for (text, expected) in [
        (
            "a: 1\n---\nb: [1, 2\nc: 3\n",
            "document 2, line 4, column 2: illegal placement of ':' indicator",
        ),
        (
            "# why\n---\na:\n\tb: 1\n",
            "document 1, line 4, column 2: tabs disallowed",
        ),
        (
            "---\n---\n---\na: 1\na: 2\n",
            "document 3, line 5, column 1: duplicate mapping key `a`",
        ),
        (
            "a: .nan",
            "document 1, line 1, column 4: JSON has no such number",
        ),
        (
            "{\"a\": 1}\n{\"b\": 2 \"c\"}",
            "document 2, line 2, column 9: expected `,` or `}`",
        ),
        (
            "a: 1\n---\n- b\n",
            "document 2, line 3: expected an object with apiVersion and kind, got a list",
        ),
        (
            "a: 1\n--- b\n",
            "document 2, line 2, column 4: kubectl takes nothing",
        ),
    ] {
        let got = error(text);
        assert!(got.starts_with(expected), "{text:?}: {got}");
        assert!(!got.contains(" at line"), "{got}");
    }
}

#[test]
fn long_comments_deep_nesting_and_many_documents_are_valid() {
    let comment = "  # why\n".repeat(100);
    assert_eq!(
        one(&format!("a:\n{comment}  b: 1\n")),
        json!({"a": {"b": 1}})
    );
    // A test's thread has a quarter of the main thread's stack.
    let deep = std::thread::Builder::new().stack_size(8 << 20).spawn(|| {
        let text: String = (0..120).map(|at| " ".repeat(at) + "a:\n").collect();
        one(&text);
        let text: String = (0..10_000).map(|at| " ".repeat(at) + "a:\n").collect();
        assert!(error(&text).starts_with("document 1, line 129, column "));
    });
    assert!(deep.expect("a thread").join().is_ok());
    assert_eq!(
        read("a: 1\n---\n".repeat(3000).as_bytes()).map(|d| d.len()),
        Ok(3000)
    );
}

#[test]
fn long_line_without_spaces_is_read_in_linear_time() {
    // A search from the start of the line for each number would take minutes.
    let text = format!("a: [{}1]\n", "1,".repeat(200_000));
    let list = one(&text);
    assert_eq!(list["a"].as_array().map(Vec::len), Some(200_001));
}

#[test]
fn alias_bomb_is_an_error() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for at in 1..12 {
        let before = format!("*a{}, ", at - 1).repeat(10);
        let line = format!("a{at}: &a{at} [{before}]\n");
        text.push_str(&line);
    }
    assert!(error(&text).starts_with("document 1, line "));
}

#[test]
fn text_is_quoted_where_a_parser_could_misread_it() {
    for text in [
        "yes",
        "No",
        "on",
        "y",
        "true",
        "null",
        "~",
        "",
        "0123",
        "1e3",
        "1_000",
        "0x1f",
        "1:30",
        "2001-01-01",
        "-",
        "- a",
        "a: b",
        "a #b",
        "#a",
        "*a",
        "&a",
        "!a",
        "@a",
        "%a",
        "`a",
        "=",
        "<<",
        " a",
        "a ",
        "---",
        ".5",
        "+1",
        "a:",
        "{a}",
        "[a]",
        "'",
        "\"",
    ] {
        for value in [
            json!({ "a": text }),
            json!({ text: "a" }),
            json!({"a": [text]}),
        ] {
            let yaml = to_yaml(&value).expect("YAML");
            assert!(yaml.contains(['"', '\'']), "{yaml}");
            assert_eq!(one(&yaml), value, "{yaml}");
        }
    }
}

#[test]
fn text_that_begins_with_a_tab_is_no_block() {
    let value = json!({"a": "\tall: x\n", "b": "x\n\ty\n"});
    assert_eq!(
        to_yaml(&value).expect("YAML"),
        "a: \"\\tall: x\\n\"\nb: |\n  x\n  \ty\n"
    );
}

#[test]
fn long_line_stays_one_line() {
    let value = json!({"args": ["word ".repeat(100).trim()]});
    assert_eq!(to_yaml(&value).expect("YAML").lines().count(), 2);
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,12}",
        "[ -~]{0,12}",
        "[a \n\t:#-]{0,12}",
        "[0-9eExob_.:+-]{1,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn written_yaml_reads_back_the_same(value in any_value(), other in any_value()) {
        let documents = vec![json!({ "a": value }), json!({ "b": other })];
        let mut text = String::new();
        for document in &documents {
            text += "---\n";
            text += &to_yaml(document).expect("YAML");
        }
        prop_assert_eq!(read(text.as_bytes()), Ok(documents), "{}", text);
    }
}
