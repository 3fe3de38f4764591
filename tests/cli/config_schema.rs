//! The schema of the configuration takes what the parser takes, for each kind of text: the chart has
//! nothing but the schema. Good texts are mutated at each place, and both are asked.

use ecr_injector::config::{Config, schema};
use jsonschema::Validator;
use serde_json::{Value, json};

/// Fields, by a pointer into a file, with good texts.
const TEXTS: &[(&str, &[&str])] = &[
    ("/secretName", &["ecr-pull-secret", "a.b-c.0"]),
    ("/optIn/label", &["ecr-injector.dev/inject", "a.B_c-d"]),
    ("/optIn/value", &["enabled", "A.b_c-1"]),
    ("/optIn/excludeNamespaces/0", &["kube-system"]),
    ("/allow/accounts/0", &["123456789012"]),
    (
        "/allow/regions/0",
        &[
            "eu-west-1",
            "us-gov-west-1",
            "us-gov-1",
            "us-isob-east-1",
            "eusc-de-east-1",
            "eu-isoe-west-1",
            "eu-isoe-1",
            "us-iso-1",
            "cn-north-1",
        ],
    ),
    (
        "/aliases/0/registry",
        &[
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com:65535",
            "123456789012.dkr.ecr.us-gov-1.amazonaws.com",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com",
            "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
            "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
            "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
            "123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            "123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
            "123456789012.dkr-ecr.us-east-1.on.aws",
            "123456789012.dkr-ecr-fips.cn-north-1.on.amazonwebservices.com.cn",
            "public.ecr.aws",
        ],
    ),
    (
        "/aliases/0/host",
        &[
            "images.example.com",
            "images:5000",
            "images.example.com:65535",
            "docker.io",
            "public.ecr.aws:443",
            "ecr-public.aws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.us-gov-1.amazonaws.com",
        ],
    ),
    ("/clusterName", &["A_b.c-9"]),
    ("/identities/0/accounts/0", &["123456789012"]),
    ("/identities/0/regions/0", &["eu-west-1"]),
    ("/identities/0/namespaces/0", &["team-*", "{namespace}-*"]),
    ("/identities/0/profile", &["a/b.c%d@e:f+g_h-i"]),
    (
        "/identities/0/assumeRole/roleArn",
        &[
            "arn:aws:iam::123456789012:role/a/ecr-{namespace}-{cluster}",
            "arn:aws-iso-b:iam::123456789012:role/a+=,.@-_b",
            "arn:aws:iam::{cluster}:role/a",
            "arn:{cluster}:iam::123456789012:role/a",
        ],
    ),
    (
        "/identities/0/assumeRole/externalId",
        &["a_+=,.@:/-b{namespace}{cluster}"],
    ),
    (
        "/identities/0/assumeRole/sessionName",
        &["x-{namespace}-{cluster} ü"],
    ),
    ("/identities/0/assumeRole/tags/team", &["x-{namespace} ü"]),
    ("/identities/0/assumeRole/stsRegion", &["us-east-1"]),
    (
        "/namespaceRoles/allow/0",
        &["arn:aws:iam::*:role/ecr-pull-{namespace}"],
    ),
    (
        "/awsEndpoints/eu-west-1/ecr",
        &[
            "https://vpce_1.api.ecr.eu-west-1.vpce.amazonaws.com:8443/",
            "https://192.0.2.1:443",
            "https://255.249.199.10",
            "https://[2001:db8::1]:65535",
            "https://[1:2:3:4:5:6:7:8]",
            "https://[1:2:3:4:5:6:7::]",
            "https://[::]",
            "http://localhost:80",
            "http://127.0.0.1:8080/",
            "http://[::1]:1/",
            "HTTPS://a.example",
        ],
    ),
    (
        "/log/filter",
        &[
            "info,ecr_injector::refresh=debug",
            "WARN,a=TRACE,b=5",
            "[span]=info",
        ],
    ),
];

/// Characters that a mutation inserts, or puts in the place of another.
const INSERTED: [char; 12] = ['a', 'Z', '9', '-', '.', '_', ':', '/', '{', '=', ' ', 'ü'];

/// Durations are parsed with bounds that no pattern has: the schema takes more of them.
const DURATIONS: &[&str] = &[
    "/refresh/sessionCap",
    "/refresh/forgetAfter",
    "/identities/0/assumeRole/duration",
];

fn validator() -> Validator {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// Returns a valid file with each field of the tables.
fn file() -> Value {
    json!({
        "apiVersion": "ecr-injector.dev/v1alpha1",
        "kind": "Config",
        "secretName": "a",
        "optIn": {"label": "a", "value": "a", "excludeNamespaces": ["a"]},
        "allow": {"accounts": ["123456789012"], "regions": ["eu-west-1"]},
        "aliases": [{"host": "a.b", "registry": "123456789012.dkr.ecr.eu-west-1.amazonaws.com"}],
        "clusterName": "cluster",
        "identities": [{
            "accounts": ["123456789012"], "regions": ["eu-west-1"], "namespaces": ["a"], "profile": "a",
            "assumeRole": {
                "roleArn": "arn:aws:iam::123456789012:role/a", "externalId": "ab", "sessionName": "a",
                "tags": {"team": "a"}, "stsRegion": "eu-west-1", "duration": "1h",
            },
        }],
        "namespaceRoles": {"allow": ["arn:aws:iam::123456789012:role/a"]},
        "awsEndpoints": {"eu-west-1": {"ecr": "https://a"}},
        "refresh": {"sessionCap": "1h", "forgetAfter": "1d"},
        "log": {"filter": "info"},
    })
}

/// Returns a text, and those that differ from it by one character, or by a long part.
fn mutations(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut all = vec![text.to_owned(), String::new()];
    for at in 0..=chars.len() {
        let (before, after) = chars.split_at(at);
        let joined = |middle: &[char], after: &[char]| -> String {
            before.iter().chain(middle).chain(after).collect()
        };
        // Half of the characters at each place, the other half at the next.
        let inserted = INSERTED.iter().skip(at % 2).step_by(2);
        all.extend(inserted.clone().map(|c| joined(&[*c], after)));
        if let [_, after @ ..] = after {
            all.push(joined(&[], after));
            all.extend(inserted.map(|c| joined(&[*c], after)));
        }
    }
    for at in [0, chars.len() / 2, chars.len()] {
        for (part, times) in [
            ("a", 62),
            ("a", 63),
            ("a", 64),
            ("a", 101),
            ("a.", 126),
            ("a.", 130),
        ] {
            let (before, after) = chars.split_at(at);
            let (before, after): (String, String) =
                (before.iter().collect(), after.iter().collect());
            all.push(format!("{before}{}{after}", part.repeat(times)));
        }
    }
    all
}

#[test]
fn schema_takes_each_text_that_the_parser_takes_and_no_other() {
    let validator = validator();
    let base = file();
    assert!(validator.is_valid(&base) && Config::parse(&base.to_string(), "x").is_ok());
    let (mut taken, mut refused) = (0, 0);
    for (field, texts) in TEXTS {
        for text in texts.iter().flat_map(|text| mutations(text)) {
            let mut file = base.clone();
            *file.pointer_mut(field).unwrap() = json!(text);
            let parsed = Config::parse(&file.to_string(), "x");
            let is_valid = validator.is_valid(&file);
            assert_eq!(is_valid, parsed.is_ok(), "{field}: {text:?}: {parsed:?}");
            if is_valid { taken += 1 } else { refused += 1 }
        }
    }
    assert!(taken > 1500 && refused > 4000, "{taken} {refused}");
}

#[test]
fn schema_takes_each_duration_that_the_parser_takes() {
    let validator = validator();
    let base = file();
    let mut refused = 0;
    for field in DURATIONS {
        for text in ["1h30m", "auto", "never", "12h", "1d2h3m4s", "900s"]
            .iter()
            .flat_map(|text| mutations(text))
        {
            let mut file = base.clone();
            *file.pointer_mut(field).unwrap() = json!(text);
            let parsed = Config::parse(&file.to_string(), "x");
            let is_valid = validator.is_valid(&file);
            assert!(is_valid || parsed.is_err(), "{field}: {text:?}");
            refused += usize::from(!is_valid);
            // No pattern has bounds.
            if let Err(error) = parsed {
                let error = error.to_string();
                let is_bound = error.contains("at least") || error.contains("at most");
                let is_bound = is_bound || error.contains("15m to 12h");
                assert_eq!(is_valid, is_bound, "{field}: {text:?}: {error}");
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn schema_takes_one_identity_and_an_endpoint_as_the_parser_does() {
    let validator = validator();
    let role = json!({"roleArn": "arn:aws:iam::123456789012:role/a"});
    let mut tried = 0;
    for role in [None, Some(Value::Null), Some(role)] {
        for ambient in [
            None,
            Some(Value::Null),
            Some(json!(true)),
            Some(json!(false)),
        ] {
            for profile in [None, Some(Value::Null), Some(json!("a"))] {
                let fields = [
                    ("assumeRole", &role),
                    ("ambient", &ambient),
                    ("profile", &profile),
                ];
                let identity: Value = fields
                    .iter()
                    .filter_map(|(name, value)| Some(((*name).to_owned(), (*value).clone()?)))
                    .collect();
                let mut file = file();
                file["identities"] = json!([identity]);
                let parsed = Config::parse(&file.to_string(), "x");
                assert_eq!(
                    validator.is_valid(&file),
                    parsed.is_ok(),
                    "{identity}: {parsed:?}"
                );
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 36);
    for endpoints in [
        json!({"eu-west-1": {}}),
        json!({"eu-west-1": {"ecr": null}}),
        json!({"eu-west-1": {"ecr": null, "sts": "https://a"}}),
        json!({"us-gov-1": {"ecr": "https://a"}}),
        json!({"us-gov-west-1": {"ecr": "https://a"}}),
    ] {
        let mut file = file();
        file["awsEndpoints"] = endpoints.clone();
        let parsed = Config::parse(&file.to_string(), "x");
        assert_eq!(
            validator.is_valid(&file),
            parsed.is_ok(),
            "{endpoints}: {parsed:?}"
        );
    }
}
