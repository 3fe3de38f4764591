//! Unit tests of `kubelet_config`.

use super::*;

/// A host of each form in each of its partitions.
fn hosts() -> Vec<String> {
    let forms = HostForm::all();
    let hosts = forms.flat_map(|form| {
        let partitions = form.partitions.iter();
        partitions.map(move |partition| form.with("210987654321", partition.example_region()))
    });
    hosts.collect()
}

/// P-71
#[test]
fn each_host_is_matched_by_exactly_one_pattern() {
    let patterns = Settings::default().match_images();
    let hosts = hosts();
    assert_eq!((patterns.len(), hosts.len()), (18, 22));
    for host in hosts {
        let registry = Registry::parse(&host).expect("a registry");
        let count = |patterns: &[String]| {
            let matching = patterns.iter().filter(|pattern| matches(pattern, &host));
            matching.count()
        };
        assert_eq!(count(&patterns), 1, "{host}");
        for partition in Partition::all() {
            let settings = Settings {
                partitions: vec![partition],
                ..Settings::default()
            };
            let is_in = partition == registry.partition()
                // These two share their domains.
                || [partition, registry.partition()].iter().all(|partition| {
                    matches!(partition, Partition::Aws | Partition::AwsUsGov)
                });
            let expected = usize::from(is_in);
            assert_eq!(
                count(&settings.match_images()),
                expected,
                "{host} {partition:?}"
            );
        }
    }
}

/// P-71
#[test]
fn no_pattern_matches_a_lookalike() {
    let suffixes = [
        "amazonaws.com",
        "amazonaws.cn",
        "amazonaws.com.cn",
        "amazonaws.eu",
        "on.aws",
        "api.aws",
    ];
    let mut lookalikes: Vec<String> = suffixes
        .iter()
        .flat_map(|suffix| {
            [
                format!("210987654321.dkr.ecr.eu-west-1.{suffix}.evil.example"),
                format!("evil.210987654321.dkr.ecr.eu-west-1.{suffix}"),
                format!("210987654321.dkr.ecr.{suffix}"),
                format!("210987654321.ecr.eu-west-1.{suffix}"),
                format!("210987654321.dkr.s3.eu-west-1.{suffix}"),
            ]
        })
        .collect();
    lookalikes.extend(
        [
            "210987654321.dkr.ecr.cn-north-1.amazonaws.cn",
            "210987654321.dkr.ecr.eu-west-1.on.aws",
            "210987654321.dkr-ecr.eu-west-1.amazonaws.com",
            "210987654321.dkr.ecr.eu-west-1.amazonaws.com:443",
            "api.ecr.eu-west-1.amazonaws.com",
            "public.ecr.aws",
            "docker.io",
            "registry.k8s.io",
            "localhost:5000",
            "amazonaws.com",
        ]
        .map(str::to_owned),
    );
    assert_eq!(lookalikes.len(), 40);
    for pattern in Settings::default().match_images() {
        for host in &lookalikes {
            assert!(!matches(&pattern, host), "{pattern} {host}");
        }
    }
}

/// P-70
#[test]
fn file_for_each_distribution_is_what_the_kubelet_takes() {
    for (name, distribution) in Distribution::ALL {
        for service_accounts in [
            ServiceAccounts::Unused,
            ServiceAccounts::Used,
            ServiceAccounts::RoleRequired,
        ] {
            let settings = Settings {
                distribution,
                partitions: Vec::new(),
                aliases: vec![(
                    "mirror.example:5000".to_owned(),
                    "210987654321.dkr.ecr.eu-west-1.amazonaws.com"
                        .parse()
                        .expect("one"),
                )],
                public: true,
                service_accounts,
            };
            let yaml = settings.to_yaml();
            let read: Value = serde_saphyr::from_str(&yaml).expect("YAML");
            assert_eq!(read, settings.to_json(), "{name}");
            assert!(yaml.starts_with("# This "), "{yaml}");
            let mut file = read;
            if distribution == Distribution::Talos {
                file = file["configuration"].take();
            }
            let findings = check::check(&[("test".to_owned(), file.to_string())]);
            assert_eq!(findings, [] as [String; 0], "{name} {service_accounts:?}");
        }
    }
}

fn provider(settings: &Settings) -> Value {
    settings.to_json()["providers"][0].take()
}

#[test]
fn provider_has_the_variables_and_arguments_that_it_needs() {
    let hybrid = json!([{
        "name": "AWS_SHARED_CREDENTIALS_FILE", "value": "/eks-hybrid/.aws/credentials",
    }]);
    for (distribution, env) in [
        (Distribution::EksHybrid, hybrid),
        (
            Distribution::Kops,
            json!([{"name": "HOME", "value": "/root"}]),
        ),
        (Distribution::Eks, Value::Null),
    ] {
        let settings = Settings {
            distribution,
            ..Settings::default()
        };
        assert_eq!(provider(&settings)["env"], env, "{distribution:?}");
        assert_eq!(provider(&settings)["args"], Value::Null);
    }
    let host = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
    let settings = Settings {
        aliases: vec![("mirror.example".to_owned(), host.parse().expect("one"))],
        public: true,
        ..Settings::default()
    };
    let arguments = json!(["--public", format!("--alias=mirror.example={host}")]);
    assert_eq!(provider(&settings)["args"], arguments);
}

#[test]
fn tokens_of_service_accounts_are_asked_for_only_if_they_are_used() {
    for (service_accounts, keys) in [
        (ServiceAccounts::Unused, None),
        (ServiceAccounts::Used, Some(ROLE_ANNOTATIONS.split_at(0))),
        (
            ServiceAccounts::RoleRequired,
            Some(ROLE_ANNOTATIONS.split_at(1)),
        ),
    ] {
        let settings = Settings {
            service_accounts,
            ..Settings::default()
        };
        let expected = keys.map(|(required, optional)| (json!(required), json!(optional)));
        let attributes = &provider(&settings)["tokenAttributes"];
        let found = attributes.is_object().then(|| {
            let required = attributes["requiredServiceAccountAnnotationKeys"].clone();
            (
                required,
                attributes["optionalServiceAccountAnnotationKeys"].clone(),
            )
        });
        assert_eq!(found, expected, "{service_accounts:?}");
        let warnings = settings.warnings();
        assert_eq!(warnings.is_empty(), keys.is_none(), "{warnings:?}");
        for warning in warnings {
            assert!(
                settings.to_yaml().contains(&format!("\n# {warning}\n")),
                "{warning}"
            );
        }
    }
}

#[test]
fn file_with_an_alias_warns_of_its_mirrors() {
    let host = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
    let settings = Settings {
        aliases: vec![("mirror.example".to_owned(), host.parse().expect("one"))],
        ..Settings::default()
    };
    let yaml = settings.to_yaml();
    assert!(
        yaml.contains("\n# An alias (mirror.example): if containerd has mirrors"),
        "{yaml}"
    );
}

#[test]
fn yaml_is_in_block_style() {
    let value = json!({"a": {"b": [1, {"c": "d: e", "f": []}]}, "g": {}});
    let mut text = String::new();
    write_yaml(&mut text, &value, 0);
    let expected = "a:\n  b:\n    - 1\n    - c: \"d: e\"\n      f: []\ng: {}\n";
    assert_eq!(text, expected);
}

#[test]
fn globs_match_within_a_label() {
    for (pattern, host, expected) in [
        ("*.example", "a.example", true),
        ("*.example", "a.b.example", false),
        ("*", "a", true),
        ("a*c.example", "abc.example", true),
        ("a?c.example", "abc.example", true),
        ("a?c.example", "ac.example", false),
        ("a.example:5000", "a.example:5000", true),
        ("a.example", "a.example:5000", false),
        ("a.example/path", "a.example", true),
    ] {
        assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
    }
}
