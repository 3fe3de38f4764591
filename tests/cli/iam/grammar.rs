//! A checker of IAM documents: of the grammar, as far as ecr-injector uses it.

use serde_json::{Value, json};

/// The actions that some document of ecr-injector has.
const ACTIONS: [&str; 9] = [
    "ecr-public:GetAuthorizationToken",
    "ecr:BatchGetImage",
    "ecr:BatchImportUpstreamImage",
    "ecr:CreateRepository",
    "ecr:GetAuthorizationToken",
    "ecr:GetDownloadUrlForLayer",
    "sts:AssumeRole",
    "sts:AssumeRoleWithWebIdentity",
    "sts:GetServiceBearerToken",
];
/// An action that a trust policy has beside one of the others.
const TAG_SESSION: &str = "sts:TagSession";
const OPERATORS: [&str; 3] = ["ArnEquals", "StringEquals", "StringLike"];
const FIELDS: [&str; 6] = [
    "Action",
    "Condition",
    "Effect",
    "Principal",
    "Resource",
    "Sid",
];
const MAX_LENGTH: usize = 6144;

/// Returns the texts of a text or a list of texts, or `None` if it is neither.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(items) if !items.is_empty() => items.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// Returns what is wrong with a document.
pub(super) fn faults(document: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if document["Version"] != "2012-10-17" {
        faults.push("another version".to_owned());
    }
    if document.to_string().len() > MAX_LENGTH {
        faults.push("too long".to_owned());
    }
    let Some(statements) = document["Statement"].as_array().filter(|it| !it.is_empty()) else {
        faults.push("no statements".to_owned());
        return faults;
    };
    for statement in statements {
        faults.extend(statement_faults(statement));
    }
    faults
}

fn statement_faults(statement: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let Some(fields) = statement.as_object() else {
        return vec!["a statement that is no object".to_owned()];
    };
    for field in fields
        .keys()
        .filter(|field| !FIELDS.contains(&field.as_str()))
    {
        faults.push(format!("unknown field {field}"));
    }
    if statement["Effect"] != "Allow" {
        faults.push("another effect".to_owned());
    }
    match fields.get("Sid").map(Value::as_str) {
        Some(Some(sid)) if sid.bytes().all(|b| b.is_ascii_alphanumeric()) => {}
        None => {}
        Some(_) => faults.push("a Sid that is no word".to_owned()),
    }
    match texts(&statement["Action"]) {
        None => faults.push("no actions".to_owned()),
        Some(actions) => {
            let known = |action: &&str| ACTIONS.contains(action) || *action == TAG_SESSION;
            faults.extend(
                actions
                    .iter()
                    .filter(|action| !known(action))
                    .map(|action| format!("unknown action {action}")),
            );
            if !actions.is_sorted() {
                faults.push("unsorted actions".to_owned());
            }
        }
    }
    if fields.get("Resource").is_none() && fields.get("Principal").is_none() {
        faults.push("neither principal nor resource".to_owned());
    }
    if let Some(resource) = fields.get("Resource") {
        let is_resource = |text: &str| text == "*" || text.starts_with("arn:aws");
        let is_fine = texts(resource).is_some_and(|it| it.into_iter().all(is_resource));
        if !is_fine {
            faults.push("a resource that is no ARN".to_owned());
        }
    }
    faults.extend(principal_faults(statement));
    for (operator, tests) in statement["Condition"].as_object().into_iter().flatten() {
        if !OPERATORS.contains(&operator.as_str()) {
            faults.push(format!("unknown operator {operator}"));
        }
        let wild = |text: &&str| text.contains(['*', '?']);
        let Some(tests) = tests.as_object().filter(|tests| !tests.is_empty()) else {
            faults.push("a condition without a test".to_owned());
            continue;
        };
        for (key, values) in tests {
            match texts(values) {
                _ if !key.contains(':') => faults.push(format!("unknown key {key}")),
                None => faults.push(format!("{key} has no values")),
                Some(values) if operator == "StringEquals" && values.iter().any(wild) => {
                    faults.push(format!("{key}: a wildcard that is taken literally"));
                }
                Some(_) => {}
            }
        }
    }
    faults
}

fn principal_faults(statement: &Value) -> Vec<String> {
    match &statement["Principal"] {
        Value::Null => vec![],
        Value::String(all) if all == "*" && statement["Condition"].is_object() => vec![],
        Value::Object(kinds) if !kinds.is_empty() => {
            let fault = |(kind, names): (&String, &Value)| match texts(names) {
                None => Some(format!("principal {kind} has no names")),
                Some(_) if !["AWS", "Federated", "Service"].contains(&kind.as_str()) => {
                    Some(format!("unknown kind of principal {kind}"))
                }
                Some(names) if names.contains(&"*") => Some("everybody".to_owned()),
                Some(_) => None,
            };
            kinds.iter().filter_map(fault).collect()
        }
        _ => vec!["everybody, or nobody".to_owned()],
    }
}

/// The checker sees each single mistake.
#[test]
fn checker_finds_the_one_mistake_of_each_document() {
    let good = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "Pulls",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
            "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            "Resource": ["arn:aws:ecr:*:123456789012:repository/*"],
            "Condition": {"StringEquals": {"aws:SourceAccount": "123456789012"}},
        }],
    });
    assert_eq!(faults(&good), [""; 0]);
    let long = "x".repeat(MAX_LENGTH);
    for (path, value, expected) in [
        ("/Version", json!("2008-10-17"), "another version"),
        ("/Statement", json!([]), "no statements"),
        ("/Statement/0", json!("Allow"), "no object"),
        ("/Statement/0/Sid", json!("not a word"), "Sid"),
        ("/Statement/0/Sid", json!(long), "too long"),
        ("/Statement/0/Effect", json!("Deny"), "another effect"),
        ("/Statement/0/Effect", json!("allow"), "another effect"),
        ("/Statement/0/Principal", json!("*"), ""),
        ("/Statement/0/Principal", json!({"AWS": "*"}), "everybody"),
        (
            "/Statement/0/Principal",
            json!({"Aws": "arn:aws:x"}),
            "unknown kind",
        ),
        ("/Statement/0/Principal", json!({"AWS": []}), "no names"),
        ("/Statement/0/Action", json!("ecr:*"), "unknown action"),
        (
            "/Statement/0/Action",
            json!("ecr:BatchGetImages"),
            "unknown action",
        ),
        (
            "/Statement/0/Action",
            json!(["ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"]),
            "unsorted",
        ),
        ("/Statement/0/Action", json!([]), "no actions"),
        ("/Statement/0/Resource", json!("repository/*"), "no ARN"),
        ("/Statement/0/Resource", json!([]), "no ARN"),
        (
            "/Statement/0/Condition",
            json!({"StringEqual": {"aws:x": "y"}}),
            "unknown operator",
        ),
        (
            "/Statement/0/Condition",
            json!({"StringEquals": {"x": "y"}}),
            "unknown key",
        ),
        (
            "/Statement/0/Condition",
            json!({"StringEquals": {"aws:x": []}}),
            "no values",
        ),
        (
            "/Statement/0/Condition",
            json!({"StringEquals": {"aws:x": "y-*"}}),
            "literally",
        ),
        (
            "/Statement/0/Condition",
            json!({"StringEquals": {}}),
            "without a test",
        ),
    ] {
        let mut document = good.clone();
        *document.pointer_mut(path).unwrap() = value.clone();
        let found = faults(&document);
        if expected.is_empty() {
            // Everybody, under a condition.
            assert_eq!(found, [""; 0], "{path} {value}");
            continue;
        }
        assert_eq!(found.len(), 1, "{path} {value}: {found:?}");
        assert!(found[0].contains(expected), "{path} {value}: {found:?}");
    }
    for field in ["Principal", "Resource"] {
        let mut document = good.clone();
        let statement = document["Statement"][0].as_object_mut().unwrap();
        statement.remove(field);
        assert_eq!(faults(&document), [""; 0]);
        document["Statement"][0]
            .as_object_mut()
            .unwrap()
            .remove("Principal");
        document["Statement"][0]
            .as_object_mut()
            .unwrap()
            .remove("Resource");
        assert_eq!(faults(&document), ["neither principal nor resource"]);
    }
    let mut document = good;
    document["Statement"][0]["Actions"] = json!("x");
    assert_eq!(faults(&document), ["unknown field Actions"]);
}
