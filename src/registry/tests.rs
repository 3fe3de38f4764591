//! Unit tests of `registry`.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn parts(host: &str) -> (String, String, Partition, Endpoint) {
    let registry = Registry::parse(host).unwrap_or_else(|| panic!("{host} is ECR"));
    assert_eq!(registry.host().as_str(), host);
    (
        registry.account().expect("an account").to_string(),
        registry.region().to_string(),
        registry.partition(),
        registry.endpoint(),
    )
}

#[test]
fn every_known_region_is_found_and_no_other() {
    assert!(region::REGIONS.is_sorted());
    for name in region::REGIONS {
        let region = Region::parse(name).unwrap_or_else(|| panic!("{name} has no partition"));
        assert!(region.is_known(), "{name}");
    }
    for partition in Partition::all() {
        let mut regions = region::REGIONS
            .iter()
            .filter_map(|name| Region::parse(name));
        let has_one = regions.any(|region| region.partition() == partition);
        assert!(has_one, "{partition:?} has no region");
        let example = Region::parse(partition.example_region()).expect("a region");
        assert_eq!(example.partition(), partition);
        assert!(example.is_known(), "{example}");
    }
    for name in ["aa-bcde-1", "eu-west-9", "us-gov-south-1", "cn-south-1"] {
        assert!(!Region::parse(name).expect("a form").is_known(), "{name}");
    }
    for name in [
        "EU-west-1",
        "eur-west-1",
        "e-west-1",
        "eu-west",
        "eu-west-123",
        "eu--1",
    ] {
        assert_eq!(Region::parse(name), None, "{name}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn every_form_that_aws_serves_is_parsed() {
    let plain = Endpoint::default();
    let fips = Endpoint {
        service: Service::Private,
        fips: true,
        dual_stack: false,
    };
    let dual = Endpoint {
        service: Service::Private,
        fips: false,
        dual_stack: true,
    };
    let both = Endpoint {
        service: Service::Private,
        fips: true,
        dual_stack: true,
    };
    for (host, region, partition, endpoint) in [
        (
            "dkr.ecr.eu-west-1.amazonaws.com",
            "eu-west-1",
            Partition::Aws,
            plain,
        ),
        (
            "dkr.ecr-fips.us-east-1.amazonaws.com",
            "us-east-1",
            Partition::Aws,
            fips,
        ),
        (
            "dkr-ecr.us-west-2.on.aws",
            "us-west-2",
            Partition::Aws,
            dual,
        ),
        (
            "dkr-ecr-fips.us-west-2.on.aws",
            "us-west-2",
            Partition::Aws,
            both,
        ),
        (
            "dkr.ecr.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
            Partition::AwsUsGov,
            plain,
        ),
        (
            "dkr.ecr-fips.us-gov-east-1.amazonaws.com",
            "us-gov-east-1",
            Partition::AwsUsGov,
            fips,
        ),
        (
            "dkr-ecr-fips.us-gov-east-1.on.aws",
            "us-gov-east-1",
            Partition::AwsUsGov,
            both,
        ),
        (
            "dkr.ecr.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
            Partition::AwsCn,
            plain,
        ),
        (
            "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
            "cn-northwest-1",
            Partition::AwsCn,
            dual,
        ),
        (
            "dkr.ecr.eusc-de-east-1.amazonaws.eu",
            "eusc-de-east-1",
            Partition::AwsEusc,
            plain,
        ),
        (
            "dkr.ecr.us-iso-east-1.c2s.ic.gov",
            "us-iso-east-1",
            Partition::AwsIso,
            plain,
        ),
        (
            "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
            "us-isob-east-1",
            Partition::AwsIsoB,
            plain,
        ),
        (
            "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            "eu-isoe-west-1",
            Partition::AwsIsoE,
            plain,
        ),
        (
            "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
            "us-isof-south-1",
            Partition::AwsIsoF,
            plain,
        ),
        (
            "dkr.ecr.ap-southeast-7.amazonaws.com",
            "ap-southeast-7",
            Partition::Aws,
            plain,
        ),
    ] {
        let host = format!("123456789012.{host}");
        assert_eq!(
            parts(&host),
            ("123456789012".into(), region.into(), partition, endpoint),
            "{host}"
        );
    }
}

#[test]
fn host_that_only_contains_a_registry_is_not_ecr() {
    for host in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
        "evil.123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "x123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.",
        "123456789012.dkr.ecr.us-east-1.evil.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.xamazonaws.com",
        "123456789012.dkr.ecr.amazonaws.com",
        "123456789012.ecr.us-east-1.amazonaws.com",
        "dkr.ecr.us-east-1.amazonaws.com",
        "api.ecr.us-east-1.amazonaws.com",
        "public.ecr.aws",
        "ecr-public.aws.com",
        "",
    ] {
        assert_eq!(Registry::parse(host), None, "{host}");
    }
}

#[test]
fn account_of_11_or_13_digits_is_not_ecr() {
    assert_eq!(
        Registry::parse("12345678901.dkr.ecr.us-east-1.amazonaws.com"),
        None
    );
    assert_eq!(
        Registry::parse("1234567890123.dkr.ecr.us-east-1.amazonaws.com"),
        None
    );
    assert_eq!(
        Registry::parse("１23456789012.dkr.ecr.us-east-1.amazonaws.com"),
        None
    );
}

#[test]
fn host_with_a_port_is_the_same_registry_under_another_key() {
    let name = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
    let plain = Registry::parse(name).expect("ECR");
    for port in ["1", "443", "4566", "65535"] {
        let host = format!("{name}:{port}");
        let (key, registry) = Aliases::default().resolve(&host).expect("ECR");
        assert_eq!(key.as_str(), host);
        assert_eq!(registry.host().as_str(), host);
        assert_eq!(registry.account(), plain.account());
        assert_eq!(registry.region(), plain.region());
        assert_eq!(registry.endpoint(), plain.endpoint());
        assert_eq!(Host::parse(&host).as_ref(), Some(&key));
    }
    for port in [
        "",
        "0",
        "0443",
        "65536",
        "99999999999",
        "+443",
        "x",
        "443:443",
        "４",
    ] {
        let host = format!("{name}:{port}");
        assert_eq!(Registry::parse(&host), None, "{host}");
        assert_eq!(Host::parse(&host), None, "{host}");
    }
}

#[test]
fn host_of_one_label_needs_a_port_as_in_image_references() {
    assert!(Host::parse("registry:5000").is_some());
    for text in [
        "registry",
        "",
        ":5000",
        "registry:",
        "a.b:5000/c",
        "[::1]:5000",
    ] {
        assert_eq!(Host::parse(text), None, "{text}");
    }
    let long = format!("{}.aa", vec!["a".repeat(61); 4].join("."));
    assert_eq!(long.len(), 250);
    assert!(Host::parse(&long).is_some() && Host::parse(&format!("{long}:80")).is_some());
    assert_eq!(Host::parse(&format!("{long}:443")), None, "over 253 bytes");
}

#[test]
fn upper_case_is_not_ecr_as_the_kubelet_matches_case() {
    assert_eq!(
        Registry::parse("123456789012.DKR.ECR.us-east-1.amazonaws.com"),
        None
    );
    assert_eq!(
        Registry::parse("123456789012.dkr.ecr.US-EAST-1.amazonaws.com"),
        None
    );
}

#[test]
fn userinfo_and_schemes_are_not_ecr() {
    assert_eq!(
        Registry::parse("AWS@123456789012.dkr.ecr.us-east-1.amazonaws.com"),
        None
    );
    assert_eq!(
        Registry::parse("https://123456789012.dkr.ecr.us-east-1.amazonaws.com"),
        None
    );
}

#[test]
fn mixes_of_region_form_and_suffix_are_not_ecr() {
    for host in [
        "dkr-ecr.us-east-1.amazonaws.com",
        "dkr.ecr.us-east-1.on.aws",
        "dkr.ecr.cn-north-1.amazonaws.com",
        "dkr.ecr.us-east-1.amazonaws.com.cn",
        "dkr.ecr.us-iso-east-1.amazonaws.com",
        "dkr.ecr.eu-west-1.amazonaws.eu",
        "dkr.ecr.localhost.amazonaws.com",
        "dkr.ecr.us-east-1a.amazonaws.com",
        "dkr.ecr.us-east-.amazonaws.com",
        "dkr.ecr.-.amazonaws.com",
    ] {
        let host = format!("123456789012.{host}");
        assert_eq!(Registry::parse(&host), None, "{host}");
    }
}

#[test]
fn alias_keeps_its_host_and_gets_its_registrys_token() {
    let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
        .parse()
        .expect("valid");
    let aliases =
        Aliases::new([("images.example.com".to_owned(), registry.clone())]).expect("valid");
    let (host, resolved) = aliases.resolve("images.example.com").expect("known");
    assert_eq!((host.as_str(), resolved), ("images.example.com", registry));
    assert_eq!(aliases.resolve("other.example.com"), None);
}

#[test]
fn alias_with_a_port_is_another_registry_than_without() {
    let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
        .parse()
        .expect("valid");
    for (alias, others) in [
        (
            "images.example.com:5000",
            ["images.example.com", "images.example.com:443"],
        ),
        (
            "images.example.com",
            ["images.example.com:5000", "images.example.com:80"],
        ),
        ("localhost:4566", ["localhost:4567", "a.localhost:4566"]),
    ] {
        let aliases = Aliases::new([(alias.to_owned(), registry.clone())]).expect("valid");
        let (host, _) = aliases.resolve(alias).expect("known");
        assert_eq!(host.as_str(), alias);
        for other in others {
            assert_eq!(aliases.resolve(other), None, "{other}");
            assert_eq!(aliases.lookalike(&format!("{other}/app")), None, "{other}");
        }
    }
}

#[test]
fn host_that_differs_from_an_alias_in_case_or_https_port_is_told() {
    let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
        .parse()
        .expect("valid");
    for (alias, image) in [
        ("images.example.com", "Images.Example.com/app:1"),
        ("images.example.com", "images.example.com:443/app:1"),
        ("images.example.com:443", "images.example.com/app:1"),
    ] {
        let aliases = Aliases::new([(alias.to_owned(), registry.clone())]).expect("valid");
        let expected = Lookalike::Alias(Host::parse(alias).expect("a host"));
        assert_eq!(aliases.lookalike(image), Some(expected), "{image}");
        for other in [
            &format!("{alias}/app"),
            "Registry.example.com/app",
            "Public.ecr.aws/app",
        ] {
            assert_eq!(aliases.lookalike(other), None, "{other}");
        }
    }
    let public = Aliases::default().with_public();
    assert_eq!(public.lookalike("Registry.example.com/app"), None);
    assert_eq!(
        public.lookalike("Public.ecr.aws/app"),
        Some(Lookalike::UpperCase)
    );
    assert_eq!(public.lookalike("public.ecr.aws/app"), None);
}

#[test]
fn ecr_public_is_resolved_only_if_included() {
    let with_port = "public.ecr.aws:443";
    assert!(!Aliases::default().include_public());
    assert!(Aliases::default().with_public().include_public());
    for host in ecr::PUBLIC_HOSTS.into_iter().chain([with_port]) {
        assert_eq!(Aliases::default().resolve(host), None, "{host}");
        let (resolved, registry) = Aliases::default()
            .with_public()
            .resolve(host)
            .expect("served");
        assert_eq!(resolved.as_str(), host);
        assert_eq!(registry.account(), None);
        assert_eq!(registry.region().as_str(), "us-east-1");
        assert_eq!(registry.endpoint().service, Service::Public);
    }
    for host in [
        "public.ecr.aws.evil.example",
        "x.public.ecr.aws",
        "PUBLIC.ECR.AWS",
    ] {
        assert_eq!(Registry::parse_public(host), None, "{host}");
    }
}

#[test]
fn partition_has_one_name_and_region_one_partition() {
    for (name, partition) in region::PARTITIONS {
        assert_eq!(Partition::parse(name), Some(partition));
        assert_eq!(partition.as_str(), name);
    }
    let region = Region::parse("us-gov-west-1").expect("a region");
    assert_eq!(region.partition(), Partition::AwsUsGov);
    assert_eq!(Partition::parse("aws-moon"), None);
}

#[test]
fn invalid_aliases_are_rejected() {
    let registry: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
        .parse()
        .expect("valid");
    let alias = |host: &str| Aliases::new([(host.to_owned(), registry.clone())]);
    for host in [
        "Images.example.com",
        "images.example.com:0443",
        "images.example.com:65536",
        "https://a.example",
        "a/b.c",
        "localhost",
        "",
    ] {
        assert!(matches!(alias(host), Err(AliasError::Host(_))), "{host}");
    }
    for host in [
        "210987654321.dkr.ecr.eu-west-1.amazonaws.com",
        "210987654321.dkr.ecr.eu-west-1.amazonaws.com:443",
        "public.ecr.aws:443",
    ] {
        let is_registry = matches!(alias(host), Err(AliasError::IsRegistry(_)));
        assert!(is_registry, "{host}");
    }
    let twice = [
        ("a.example".to_owned(), registry.clone()),
        ("a.example".to_owned(), registry),
    ];
    assert_eq!(
        Aliases::new(twice),
        Err(AliasError::Duplicate("a.example".into()))
    );
}

#[track_caller]
fn lookalike(image: &str) -> String {
    let found = Aliases::default().lookalike(image);
    found.map_or_else(String::new, |lookalike| lookalike.to_string())
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn lookalike_says_what_is_wrong() {
    let mut faults = Vec::new();
    for (image, expected) in [
        (
            "123456789012.ecr.eu-west-1.amazonaws.com/app",
            r#"its host has "ecr" where "dkr.ecr" belongs"#,
        ),
        (
            "123456789012.dkr.eu-west-1.amazonaws.com/app",
            r#"its host has "dkr" where "dkr.ecr" belongs"#,
        ),
        (
            "123456789012.ecr.dkr.eu-west-1.amazonaws.com/app",
            r#"its host has "ecr.dkr" where "dkr.ecr" belongs"#,
        ),
        (
            "123456789012.dkr_ecr.eu-west-1.amazonaws.com/app",
            r#"its host has "dkr_ecr" where "dkr.ecr" belongs"#,
        ),
        (
            "123456789012.dkr-ecr.eu-west-1.amazonaws.com/app",
            r#"it ends in "amazonaws.com" instead of on.aws"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.on.aws/app",
            r#"it ends in "on.aws" instead of amazonaws.com"#,
        ),
        (
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"its account "12345678901" is not 12 digits"#,
        ),
        (
            "1234567890123.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"its account "1234567890123" is not 12 digits"#,
        ),
        (
            "1234-5678-9012.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"its account "1234-5678-9012" is not 12 digits"#,
        ),
        (
            "ACCOUNT.dkr.ecr.REGION.amazonaws.com/app",
            r#"its account "ACCOUNT" is not 12 digits"#,
        ),
        (
            "evil.123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"its account "evil.123456789012" is not 12 digits"#,
        ),
        (
            "dkr.ecr.eu-west-1.amazonaws.com/app",
            "its host has no account of 12 digits in front",
        ),
        (
            ".dkr.ecr.eu-west-1.amazonaws.com/app",
            "its host has no account of 12 digits in front",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.co/app",
            r#"it ends in "amazonaws.co" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.ch/app",
            r#"it ends in "amazonaws.com.ch" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazon.com/app",
            r#"it ends in "amazon.com" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example/app",
            r#"it ends in "amazonaws.com.evil.example" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com_/app",
            r#"it ends in "amazonaws.com_" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1/app",
            r#"it ends in "" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com/app",
            r#"it ends in "amazonaws.com" instead of amazonaws.com.cn"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn/app",
            r#"it ends in "amazonaws.com.cn" instead of amazonaws.com"#,
        ),
        (
            "123456789012.dkr.ecr.us-iso-east-1.amazonaws.com/app",
            r#"it ends in "amazonaws.com" instead of c2s.ic.gov"#,
        ),
        (
            "123456789012.dkr.ecr.amazonaws.com/app",
            r#"its host has no region after "ecr""#,
        ),
        (
            "123456789012.dkr.ecr.on.aws/app",
            r#"its host has no region after "ecr""#,
        ),
        (
            "123456789012.dkr.ecr.eu-west1.amazonaws.com/app",
            r#"its region "eu-west1" should be eu-west-1"#,
        ),
        (
            "123456789012.dkr.ecr.euwest-1.amazonaws.com/app",
            r#"its region "euwest-1" should be eu-west-1"#,
        ),
        (
            "123456789012.dkr.ecr.eu_west_1.amazonaws.com/app",
            r#"its region "eu_west_1" should be eu-west-1"#,
        ),
        (
            "123456789012.dkr.ecr.us-east-1a.amazonaws.com/app",
            r#""us-east-1a" is not a region such as eu-west-1"#,
        ),
        (
            "123456789012.dkr.ecr.localhost.amazonaws.com/app",
            r#""localhost" is not a region such as eu-west-1"#,
        ),
        (
            "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            "images have no scheme such as https://",
        ),
        (
            "http://123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            "images have no scheme such as https://",
        ),
        (
            "docker://123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            "images have no scheme such as https://",
        ),
        (
            "${ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"the placeholder "${ACCOUNT}" was not replaced"#,
        ),
        (
            "$ACCOUNT.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"the placeholder "$ACCOUNT" was not replaced"#,
        ),
        (
            "$(ACCOUNT).dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"the placeholder "$(ACCOUNT)" was not replaced"#,
        ),
        (
            "<account>.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"the placeholder "<account>" was not replaced"#,
        ),
        (
            "{{ .Values.account }}.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"the placeholder "{{ .Values.account }}" was not replaced"#,
        ),
        (
            "123456789012.dkr.ecr.${AWS_REGION}.amazonaws.com/app",
            r#"the placeholder "${AWS_REGION}" was not replaced"#,
        ),
        (
            "123456789012.dkr.ecr.${AWS_REGION:-eu-west-1}.amazonaws.com/app",
            r#"the placeholder "${AWS_REGION:-eu-west-1}" was not replaced"#,
        ),
        (
            "123456789012.dkr.ecr.{{ .Values.region }}.amazonaws.com/app",
            r#"the placeholder "{{ .Values.region }}" was not replaced"#,
        ),
        (
            "123456789012.DKR.ECR.eu-west-1.amazonaws.com/app",
            "its host is not lower case, and kubelets compare case",
        ),
        (
            "123456789012.dkr.ecr.EU-WEST-1.amazonaws.com:443/app",
            "its host is not lower case, and kubelets compare case",
        ),
        (
            " 123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            "it has a blank or a control character",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app ",
            "it has a blank or a control character",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app\n",
            "it has a blank or a control character",
        ),
        (
            "AWS@123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
            r#"its host has the character "@""#,
        ),
        (
            "123456789012.dkr.ecr.eu\u{2010}west-1.amazonaws.com/app",
            r#"its host has the character "\u{2010}""#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com./app",
            "its host has a dot at an end, or two in a row",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1..amazonaws.com/app",
            "its host has a dot at an end, or two in a row",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:0443/app",
            r#"port "0443" is not 1 to 65535 without leading zeros"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:65536/app",
            r#"port "65536" is not 1 to 65535 without leading zeros"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:http/app",
            r#"port "http" is not 1 to 65535 without leading zeros"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:/app",
            r#"port "" is not 1 to 65535 without leading zeros"#,
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "it has no repository after the host",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:1.0",
            "it has no repository after the host",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/",
            "the image name is empty",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/App",
            "the image's path must be lower-case letters, digits and single separators",
        ),
        ("public.ecr.aws.com/app", "ECR Public is public.ecr.aws"),
        (
            "public.ecr.amazonaws.com/app",
            "ECR Public is public.ecr.aws",
        ),
        ("ecr.public.aws/app", "ECR Public is public.ecr.aws"),
    ] {
        let text = lookalike(image);
        if text != format!("looks like ECR, but {expected}") {
            faults.push(format!("{image}: {text:?}, not {expected:?}"));
        }
        // What a warning has room for, but for the longest reasons.
        assert!(text.chars().count() <= 97, "{text}");
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn images_of_other_registries_are_no_lookalikes() {
    for image in [
        "",
        "/",
        "nginx",
        "ecr",
        "dkr.ecr",
        "amazon/amazon-ecr-credential-helper:1",
        "amazon-ecr-credential-helper",
        "public.ecr.aws/nginx/nginx:1",
        "public.ecr.aws:443/nginx/nginx:1",
        "Public.ECR.aws/nginx/nginx:1",
        "ecr-public.aws.com/nginx/nginx",
        "registry.example/123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
        "ghcr.io/team/ecr-tools@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "ecr.example.com/app",
        "dkr.ecr.example.com/app",
        "my-ecr.example.com:5000/app",
        "secret-registry.example.com/app",
        "123456789012.registry.example.com/app",
        "${REGISTRY}/app",
        "https://registry.example.com/app",
        "quay.io/secreted/app",
    ] {
        assert_eq!(lookalike(image), "", "{image}");
    }
}

#[test]
fn lookalike_of_a_host_has_no_path() {
    let of = |host: &str| {
        Aliases::default()
            .lookalike_host(host)
            .map(|it| it.to_string())
    };
    let name = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    assert_eq!(of(name), None);
    assert_eq!(of(&format!("{name}:443")), None);
    assert_eq!(of("registry.example.com"), None);
    for (host, expected) in [
        (
            format!("{name}/app"),
            "looks like ECR, but a host has no path",
        ),
        (
            format!("https://{name}"),
            "looks like ECR, but images have no scheme such as https://",
        ),
    ] {
        assert_eq!(of(&host).as_deref(), Some(expected), "{host}");
    }
}

#[test]
fn lookalike_reads_only_the_beginning_of_a_text() {
    let before = "x".repeat(600);
    assert_eq!(
        lookalike(&format!("{before}.dkr.ecr.eu-west-1.amazonaws.com/app")),
        ""
    );
    let long = format!("{}.dkr.ecr.eu-west-1.amazonaws.com/app", "x".repeat(400));
    let told = lookalike(&long);
    assert!(
        told.contains("xxx…\" is not 12 digits") && told.len() < 100,
        "{told}"
    );
}

/// A second, naive parser: splits at the dots and compares the list of labels with each form.
fn naive(host: &str) -> bool {
    let labels: Vec<&str> = host.split('.').collect();
    let digits = |text: &str, length: usize| {
        text.chars().count() == length && text.chars().all(|c| c.is_ascii_digit())
    };
    let forms: &[(&[&str], &str, &[&str])] = &[
        (&["dkr", "ecr"], "amazonaws com", &["aws", "gov"]),
        (&["dkr", "ecr-fips"], "amazonaws com", &["aws", "gov"]),
        (&["dkr-ecr"], "on aws", &["aws", "gov"]),
        (&["dkr-ecr-fips"], "on aws", &["aws", "gov"]),
        (&["dkr", "ecr"], "amazonaws com cn", &["cn"]),
        (&["dkr", "ecr-fips"], "amazonaws com cn", &["cn"]),
        (&["dkr-ecr"], "on amazonwebservices com cn", &["cn"]),
        (&["dkr-ecr-fips"], "on amazonwebservices com cn", &["cn"]),
        (&["dkr", "ecr"], "amazonaws eu", &["eusc"]),
        (&["dkr", "ecr-fips"], "amazonaws eu", &["eusc"]),
        (&["dkr", "ecr"], "c2s ic gov", &["iso"]),
        (&["dkr", "ecr-fips"], "c2s ic gov", &["iso"]),
        (&["dkr", "ecr"], "sc2s sgov gov", &["isob"]),
        (&["dkr", "ecr-fips"], "sc2s sgov gov", &["isob"]),
        (&["dkr", "ecr"], "cloud adc-e uk", &["isoe"]),
        (&["dkr", "ecr-fips"], "cloud adc-e uk", &["isoe"]),
        (&["dkr", "ecr"], "csp hci ic gov", &["isof"]),
        (&["dkr", "ecr-fips"], "csp hci ic gov", &["isof"]),
    ];
    let partition = |region: &str| -> Option<&'static str> {
        let words: Vec<&str> = region.split('-').collect();
        let word =
            |w: &str| (1..=16).contains(&w.len()) && w.chars().all(|c| c.is_ascii_lowercase());
        let number = |w: &str| digits(w, 1) || digits(w, 2);
        match words[..] {
            [a, b, c, n] if word(c) && number(n) => match (a, b) {
                ("us", "gov") => Some("gov"),
                ("us", "iso") => Some("iso"),
                ("us", "isob") => Some("isob"),
                ("eu", "isoe") => Some("isoe"),
                ("us", "isof") => Some("isof"),
                ("eusc", "de") => Some("eusc"),
                _ => None,
            },
            ["cn", b, n] if word(b) && number(n) => Some("cn"),
            [a, b, n] if a.len() == 2 && word(a) && word(b) && number(n) => Some("aws"),
            _ => None,
        }
    };
    forms.iter().any(|(middle, suffix, partitions)| {
        let suffix: Vec<&str> = suffix.split(' ').collect();
        labels.len() == 1 + middle.len() + 1 + suffix.len()
            && digits(labels[0], 12)
            && &labels[1..=middle.len()] == *middle
            && labels[middle.len() + 2..] == suffix[..]
            && partition(labels[middle.len() + 1]).is_some_and(|found| partitions.contains(&found))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn agrees_with_a_naive_parser(
        account in "[0-9]{11,13}",
        middle in "(dkr\\.ecr|dkr-ecr|dkr\\.ecr-fips|dkr-ecr-fips|dkr|ecr)",
        region in "((us|eu|cn|ap|eusc|usx)-(gov-|iso-|isob-|isoe-|isof-|de-)?(east|west|north|)-[0-9]{1,3})",
        suffix in "(amazonaws\\.com|amazonaws\\.com\\.cn|amazonaws\\.eu|on\\.aws|on\\.amazonwebservices\\.com\\.cn|sc2s\\.sgov\\.gov|c2s\\.ic\\.gov|cloud\\.adc-e\\.uk|csp\\.hci\\.ic\\.gov|evil\\.example)(\\.x)?",
    ) {
        let host = format!("{account}.{middle}.{region}.{suffix}");
        prop_assert_eq!(Registry::parse(&host).is_some(), naive(&host), "{}", host);
    }

    #[test]
    fn valid_image_is_no_lookalike(
        account in "[0-9]{12}",
        form in prop::sample::select(vec![
            ("dkr.ecr", "eu-west-1", "amazonaws.com"),
            ("dkr.ecr-fips", "us-gov-west-1", "amazonaws.com"),
            ("dkr-ecr", "us-west-2", "on.aws"),
            ("dkr-ecr-fips", "ap-southeast-2", "on.aws"),
            ("dkr.ecr", "cn-north-1", "amazonaws.com.cn"),
            ("dkr-ecr", "cn-northwest-1", "on.amazonwebservices.com.cn"),
            ("dkr.ecr", "eusc-de-east-1", "amazonaws.eu"),
            ("dkr.ecr", "us-iso-east-1", "c2s.ic.gov"),
            ("dkr.ecr", "aa-bcde-77", "amazonaws.com"),
        ]),
        port in prop::option::of(1_u16..),
        path in "[a-z0-9]{1,8}(/(ecr|dkr|public\\.ecr\\.aws|[a-z0-9]{1,8}))?(:[A-Za-z0-9]{1,8})?",
    ) {
        let (middle, region, suffix) = form;
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let image = format!("{account}.{middle}.{region}.{suffix}{port}/{path}");
        prop_assert_eq!(Aliases::default().lookalike(&image), None, "{}", image);
        prop_assert_eq!(Lookalike::of_image(&image), None, "{}", image);
    }

    #[test]
    fn image_without_account_and_amazon_is_no_lookalike(
        text in "([a-z]{0,4}(ecr|dkr)?[.-]?(ecr|dkr|public)?[a-z.:-]{0,8}/)?(ecr|[a-z0-9/]{1,9})"
    ) {
        prop_assume!(!text.contains("amazon") && !text.contains("aws"));
        prop_assert_eq!(lookalike(&text), "");
    }

    #[test]
    fn lookalike_of_any_text_is_short_and_printable(
        before in "\\PC{0,40}|[0-9]{10,13}|\\$\\{[a-z]{0,60}\\}",
        middle in "(\\.dkr\\.ecr\\.|\\.ecr\\.|\\.dkr\\.|dkr-ecr)",
        after in "\\PC{0,40}|[a-z]{2}-[a-z]{4}-?[0-9]\\.amazon[a-z.]{0,20}|(\u{202e}|\n|[a-z.]){0,60}",
        path in "/\\PC{0,20}|",
    ) {
        for text in [format!("{before}{middle}{after}{path}"), format!("https://{before}{middle}amazonaws.com{path}")] {
            for lookalike in [Lookalike::of_image(&text), Lookalike::of_host(&text)].into_iter().flatten() {
                let told = lookalike.to_string();
                prop_assert!(told.chars().count() <= 120, "{}", told);
                prop_assert!(!told.contains(char::is_control) && !told.contains('\u{202e}'), "{:?}", told);
            }
        }
    }

    #[test]
    fn nothing_but_ecr_is_ecr(text in "\\PC{0,60}") {
        prop_assert_eq!(Registry::parse(&text).is_some(), naive(&text), "{}", text);
    }
}
