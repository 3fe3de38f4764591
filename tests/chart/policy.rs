//! The `MutatingAdmissionPolicy` of the chart's modes `policy` and `both`: what Helm renders, and what a real API server
//! does with it.
//!
//! `UPDATE=1 cargo test --test chart policy::expressions` writes the chart's expressions.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::helm::{RELEASE, chart, find, helm, objects, of_the_test, try_template};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{Caller, ControlPlane, Rewriter, Shared, eventually};
use ecr_injector::config::Config;
use ecr_injector::registry::image::ImageReference;
use ecr_injector::registry::{Registry, cel};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

const ECR: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1";
const SOON: Duration = Duration::from_secs(30);

/// The forms of hosts that AWS serves.
const HOSTS: &[&str] = &[
    "123456789012.dkr.ecr.us-east-1.amazonaws.com",
    "000000000000.dkr.ecr.ap-southeast-7.amazonaws.com",
    "123456789012.dkr.ecr.zz-somewhere-12.amazonaws.com",
    "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
    "210987654321.dkr.ecr.us-gov-west-1.amazonaws.com",
    "210987654321.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
    "123456789012.dkr-ecr.eu-west-1.on.aws",
    "123456789012.dkr-ecr-fips.us-west-2.on.aws",
    "123456789012.dkr-ecr-fips.us-gov-east-1.on.aws",
    "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
    "123456789012.dkr.ecr-fips.cn-northwest-1.amazonaws.com.cn",
    "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
    "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
    "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
    "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
    "123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
    "123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
    "123456789012.dkr.ecr.us-east-1.amazonaws.com:443",
    "123456789012.dkr.ecr.us-east-1.amazonaws.com:65535",
    "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn:1",
];

/// Hosts that only look like one.
const LOOKALIKES: &[&str] = &[
    "x210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "x-210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "x.210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "21098765432.dkr.ecr.us-east-1.amazonaws.com",
    "2109876543210.dkr.ecr.us-east-1.amazonaws.com",
    "21098765432a.dkr.ecr.us-east-1.amazonaws.com",
    "dkr.ecr.us-east-1.amazonaws.com",
    ".dkr.ecr.us-east-1.amazonaws.com",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com.evil.example",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com.",
    "210987654321.dkr.ecr.us-east-1.amazonaws.comm",
    "210987654321.dkr.ecr.us-east-1.amazonaws.co",
    "210987654321.dkr.ecr.us-east-1.amazonaws.org",
    "210987654321.dkr.ecr.us-east-1.evil-amazonaws.com",
    "210987654321.dkr.ecr.us-east-1.evil.amazonaws.com",
    "210987654321.dkr.ecr.us-east-1xamazonaws.com",
    "210987654321.dkr.ecr.us-east-1.amazonawsxcom",
    "210987654321xdkr.ecr.us-east-1.amazonaws.com",
    "210987654321.dkrxecr.us-east-1.amazonaws.com",
    "210987654321.dkr.ecrxus-east-1.amazonaws.com",
    "210987654321.dkr.ecr.us-east-1.AMAZONAWS.com",
    "210987654321.DKR.ecr.us-east-1.amazonaws.com",
    "210987654321.dkr.ecr.US-EAST-1.amazonaws.com",
    "210987654321.dkr.ecr..amazonaws.com",
    "210987654321.dkr.ecr.amazonaws.com",
    "210987654321.dkr.ecr.us-east.amazonaws.com",
    "210987654321.dkr.ecr.us-east-.amazonaws.com",
    "210987654321.dkr.ecr.us--1.amazonaws.com",
    "210987654321.dkr.ecr.us-east-123.amazonaws.com",
    "210987654321.dkr.ecr.us-east-1a.amazonaws.com",
    "210987654321.dkr.ecr.usa-east-1.amazonaws.com",
    "210987654321.dkr.ecr.u-east-1.amazonaws.com",
    "210987654321.dkr.ecr.us-abcdefghijklmnopq-1.amazonaws.com",
    "210987654321.dkr.ecr.us-west-south-1.amazonaws.com",
    "210987654321.dkr.ecr.us_east_1.amazonaws.com",
    "210987654321.dkr.ecr.us-gov-1.amazonaws.com",
    "210987654321.dkr.ecr.us-iso-1.amazonaws.com",
    "210987654321.dkr.ecr.eu-isoe-1.cloud.adc-e.uk",
    "210987654321.dkr.ecr.us-iso-east-1.amazonaws.com",
    "210987654321.dkr.ecr.cn-north-1.amazonaws.com",
    "210987654321.dkr-ecr.cn-north-1.on.aws",
    "210987654321.dkr-ecr.us-gov-1.on.aws",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com.cn",
    "210987654321.dkr.ecr.eu-west-1.amazonaws.eu",
    "210987654321.dkr.ecr.eusc-de-east-1.amazonaws.com",
    "210987654321.dkr.ecr.eusc-de-1.amazonaws.eu",
    "210987654321.dkr.ecr.eu-west-1.c2s.ic.gov",
    "210987654321.dkr.ecr.us-east-1.on.aws",
    "210987654321.dkr-ecr.us-east-1.amazonaws.com",
    "210987654321.dkr-ecr.us-east-1.api.aws",
    "210987654321.dkr.ecr.cn-north-1.on.amazonwebservices.com.cn",
    "210987654321.dkr-ecr.eu-west-1.on.amazonwebservices.com.cn",
    "210987654321.dkr.ecr-fips-.us-east-1.amazonaws.com",
    "210987654321.dkr.ecr-fip.us-east-1.amazonaws.com",
    "210987654321.dkr.ecrfips.us-east-1.amazonaws.com",
    "210987654321.dkr..ecr.us-east-1.amazonaws.com",
    "210987654321.ecr.us-east-1.amazonaws.com",
    "api.ecr.us-east-1.amazonaws.com",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:0",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:0443",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:65536",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:99999",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:https",
    "210987654321.dkr.ecr.us-east-1.amazonaws.com:443:443",
    "user@210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "https://210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "public.ecr.aws",
    "evil.example/210987654321.dkr.ecr.us-east-1.amazonaws.com",
    "２10987654321.dkr.ecr.us-east-1.amazonaws.com",
];

/// Paths, tags and digests after a host: six that an image reference may have, and then others.
const PATHS: &[&str] = &[
    "/x",
    "/team/app",
    "/team/app:v1.2_3-4",
    "/a.b/c_d/e__f/g--h---i:1",
    "/x@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "/x:1@sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "",
    "/",
    "//x",
    "/x/",
    "/X",
    "/x/Y:1",
    "/-x",
    "/x-",
    "/a..b",
    "/a___b",
    "/a._b",
    "/x:",
    "/x:.1",
    "/x:1:2",
    "/x:a/b",
    "/x@",
    "/x@sha256:0123",
    "/x@sha1:0123456789abcdef0123456789abcdef01234567",
    "/x@md5:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "/x@sha256:0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef",
    "/x?y",
    "/x y",
    "/x\n/y",
    "/é",
];

#[test]
fn expressions_in_the_chart_are_those_of_the_registry_room() {
    let path = chart().join("templates/_images.tpl");
    let text = cel::chart_file();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{} has drifted: make deploy", path.display());
}

/// The policy of one set of values, in the control plane that these tests share. Each has an opt-in label of its own.
struct Policy {
    plane: Arc<ControlPlane>,
    config: Config,
    label: String,
    namespace: String,
}

async fn plane() -> Arc<ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    PLANE.get_or_start(ControlPlane::start).await
}

/// Returns the policy and its binding.
fn of_policy(objects: &[Value]) -> Vec<&Value> {
    let is_policy = |object: &&Value| {
        let kind = object["kind"].as_str().unwrap();
        kind.starts_with("MutatingAdmissionPolicy")
    };
    objects.iter().filter(is_policy).collect()
}

impl Policy {
    /// Applies the policy of a configuration, and waits until it is in force.
    async fn apply(name: &str, config: &str) -> Self {
        let label = format!("example.com/{name}");
        let config = format!("optIn: {{label: {label}}}\n{config}");
        let indented = config.replace('\n', "\n  ");
        let values = format!("mode: policy\nfullnameOverride: {name}\nconfig:\n  {indented}");
        let objects = objects("pull", "tools", &values);
        let plane = plane().await;
        let manifests: Vec<_> = of_policy(&objects)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(manifests.len(), 2);
        plane.apply(&manifests.join("\n---\n")).await;
        let namespace = plane.namespace(name, &[(&label, "enabled")]).await;
        let config = crate::support::config_file(&config);
        let policy = Self {
            plane,
            config: Config::parse(&config, "config.yaml").unwrap(),
            label,
            namespace,
        };
        let known = json!({"containers": [{"name": "main", "image": policy.known_image()}]});
        eventually("the policy is in force", SOON, async || {
            let admitted = policy.admitted(&pod("known", &known)).await;
            (names(&admitted) == [PULL_SECRET]).then_some(())
        })
        .await;
        policy
    }

    /// An image that the configuration allows.
    fn known_image(&self) -> String {
        let allow = &self.config.rules.allow;
        let account = allow
            .accounts
            .first()
            .map_or("123456789012", |it| it.as_str());
        let region = allow.regions.first().map_or("us-east-1", |it| it.as_str());
        format!("{account}.dkr.ecr.{region}.amazonaws.com/x:1")
    }

    async fn admin(&self) -> Caller {
        Caller(self.plane.admin().await)
    }

    /// Returns a Pod as it would be stored.
    async fn admitted(&self, pod: &Value) -> Value {
        let path = format!("{}?dryRun=All", pods(&self.namespace));
        self.admin().await.post(&path, pod).await.allowed()
    }

    /// Whether a Pod with this image gets the reference; `None` if the API server takes no such image.
    async fn refers(&self, image: &str) -> Option<bool> {
        let spec = json!({"containers": [{"name": "main", "image": image}]});
        let path = format!("{}?dryRun=All", pods(&self.namespace));
        let outcome = self.admin().await.post(&path, &pod("web", &spec)).await;
        let admitted: Value = serde_json::from_str(&outcome.0.ok()?).unwrap();
        Some(names(&admitted) == [PULL_SECRET])
    }

    /// Whether our own code gives a Pod with this image the reference.
    fn expects(&self, image: &str) -> bool {
        let rules = &self.config.rules;
        let reference = ImageReference::parse(image).ok();
        let resolved = reference.and_then(|it| rules.aliases.resolve(it.domain()));
        resolved.is_some_and(|(_, registry)| rules.allow.permits(&registry))
    }

    /// Compares the verdicts on these images, and returns how many of them get the reference.
    async fn agrees(&self, images: impl IntoIterator<Item = String>) -> usize {
        let verdicts = stream::iter(images).map(|image| async move {
            let refers = self.refers(&image).await;
            (image, refers)
        });
        let verdicts: Vec<_> = verdicts.buffer_unordered(16).collect().await;
        let mut served = 0;
        for (image, refers) in verdicts {
            let Some(refers) = refers else { continue };
            assert_eq!(refers, self.expects(&image), "{image}");
            served += usize::from(refers);
        }
        served
    }
}

fn pod(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// The names in a Pod's `imagePullSecrets`; an entry without one is empty.
fn names(pod: &Value) -> Vec<&str> {
    let list = pod["spec"]["imagePullSecrets"].as_array();
    let name = |entry: &'_ Value| entry["name"].as_str().map(str::len);
    list.into_iter()
        .flatten()
        .map(|entry| name(entry).map_or("", |_| entry["name"].as_str().unwrap()))
        .collect()
}

async fn plain_policy() -> Arc<Policy> {
    static POLICY: Shared<Policy> = Shared::new();
    POLICY
        .get_or_start(async || Policy::apply("plain", "").await)
        .await
}

#[tokio::test]
async fn policy_and_parser_agree_on_every_host_and_lookalike() {
    let policy = plain_policy().await;
    for host in HOSTS {
        assert!(Registry::parse(host).is_some(), "{host}");
        assert_eq!(
            policy.refers(&format!("{host}/x:1")).await,
            Some(true),
            "{host}"
        );
    }
    assert!(LOOKALIKES.len() >= 60);
    let mut refused = 0;
    for host in LOOKALIKES {
        assert!(Registry::parse(host).is_none(), "{host}");
        let refers = policy.refers(&format!("{host}/x:1")).await;
        assert!(!refers.unwrap_or_default(), "{host}");
        refused += usize::from(refers.is_none());
    }
    // The API server itself takes nearly any text for an image.
    assert_eq!(refused, 0);
    let images = HOSTS[..2].iter().flat_map(|host| {
        let image = move |path: &&str| format!("{host}{path}");
        PATHS.iter().map(image)
    });
    assert_eq!(policy.agrees(images).await, 2 * 6);
    // Paths and tags of the greatest length, and one more.
    let long = [254, 255, 256].map(|length| format!("{}/{}", HOSTS[0], "a".repeat(length)));
    let parts = [127, 128].map(|length| {
        let half = "a".repeat(length);
        format!("{}/{half}/{half}", HOSTS[0])
    });
    let tags = [127, 128, 129].map(|length| format!("{}/x:{}", HOSTS[0], "T".repeat(length)));
    assert_eq!(
        policy
            .agrees(long.into_iter().chain(parts).chain(tags))
            .await,
        2 + 1 + 2
    );
}

#[tokio::test]
async fn policy_and_parser_agree_on_hosts_with_one_change() {
    let policy = plain_policy().await;
    let mut images = Vec::new();
    for host in [HOSTS[0], HOSTS[5], HOSTS[11], HOSTS[17]] {
        for at in 0..=host.len() {
            for change in ["", ".", "-", "a", "1", "A", ":", "/"] {
                let inserted = format!("{}{change}{}", &host[..at], &host[at..]);
                images.push(format!("{inserted}/x:1"));
                if at < host.len() {
                    let replaced = format!("{}{change}{}", &host[..at], &host[at + 1..]);
                    images.push(format!("{replaced}/x:1"));
                }
            }
        }
    }
    let (all, served) = (images.len(), policy.agrees(images).await);
    assert!(
        all > 3_000 && served > 100 && served < all / 2,
        "{served} of {all}"
    );
}

#[tokio::test]
async fn reference_is_appended_to_what_the_pod_has() {
    let policy = plain_policy().await;
    for (list, expected) in [
        (None, vec![PULL_SECRET]),
        (Some(json!(null)), vec![PULL_SECRET]),
        (Some(json!([])), vec![PULL_SECRET]),
        (Some(json!([{"name": "a"}])), vec!["a", PULL_SECRET]),
        (
            Some(json!([{"name": PULL_SECRET}, {"name": "a"}])),
            vec![PULL_SECRET, "a"],
        ),
        (
            Some(json!([{"name": "a"}, {"name": PULL_SECRET}])),
            vec!["a", PULL_SECRET],
        ),
        (
            Some(json!([{"name": "a"}, {"name": "a"}])),
            vec!["a", "a", PULL_SECRET],
        ),
        (Some(json!([{}])), vec!["", PULL_SECRET]),
    ] {
        let mut spec = json!({"containers": [{"name": "main", "image": ECR}]});
        if let Some(list) = &list {
            spec["imagePullSecrets"] = list.clone();
        }
        let admitted = policy.admitted(&pod("list", &spec)).await;
        assert_eq!(names(&admitted), expected, "{list:?}");
    }
}

#[tokio::test]
async fn reference_is_appended_to_what_the_service_account_has() {
    let policy = plain_policy().await;
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", policy.namespace);
    let account = json!({"metadata": {"name": "builder"}, "imagePullSecrets": [{"name": "one"}, {"name": "two"}]});
    policy
        .admin()
        .await
        .post(&accounts, &account)
        .await
        .allowed();
    let spec =
        json!({"serviceAccountName": "builder", "containers": [{"name": "main", "image": ECR}]});
    let admitted = policy.admitted(&pod("account", &spec)).await;
    assert_eq!(names(&admitted), ["one", "two", PULL_SECRET]);
}

#[tokio::test]
async fn images_in_all_places_count() {
    let policy = plain_policy().await;
    let with = |more: Value| {
        let mut spec = json!({"containers": [{"name": "main", "image": "nginx"}]});
        json_patch::merge(&mut spec, &more);
        pod("place", &spec)
    };
    let init = |image: &str| with(json!({"initContainers": [{"name": "init", "image": image}]}));
    let volume =
        |image: &str| with(json!({"volumes": [{"name": "model", "image": {"reference": image}}]}));
    let second = json!([{"name": "main", "image": "nginx"}, {"name": "side", "image": ECR}]);
    let none: [&str; 0] = [];
    for (place, pod, expected) in [
        ("none", with(json!({})), &none[..]),
        (
            "second container",
            with(json!({"containers": second})),
            &[PULL_SECRET],
        ),
        ("init container", init(ECR), &[PULL_SECRET]),
        ("image volume", volume(ECR), &[PULL_SECRET]),
        ("other init container", init("busybox"), &none),
        ("other image volume", volume("quay.io/x/y:1"), &none),
    ] {
        assert_eq!(names(&policy.admitted(&pod).await), expected, "{place}");
    }
    // The list of a stored Pod can't change, and an ephemeral container is always added to one.
    let admin = policy.admin().await;
    let path = pods(&policy.namespace);
    admin.post(&path, &with(json!({}))).await.allowed();
    let debug = json!([{"op": "add", "path": "/spec/ephemeralContainers", "value": [{"name": "debug", "image": ECR}]}]);
    let path = format!("{path}/place/ephemeralcontainers");
    let changed = admin.json_patch(&path, &debug).await.allowed();
    assert_eq!(names(&changed), none);
}

#[tokio::test]
async fn aliases_and_ecr_public_get_the_reference_like_in_the_webhook() {
    let registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let config = format!(
        "publicEcr: true\naliases: [{{host: images.example.com, registry: {registry}}}, \
         {{host: 'mirror.example.com:5000', registry: {registry}}}]"
    );
    let policy = Policy::apply("aliases", &config).await;
    for (host, expected) in [
        ("images.example.com", true),
        ("images.example.com:443", false),
        ("imagesxexample.com", false),
        ("images.example.com.evil.example", false),
        ("evil.images.example.com", false),
        ("evil.example/images.example.com", false),
        ("mirror.example.com:5000", true),
        ("mirror.example.com", false),
        ("public.ecr.aws", true),
        ("public.ecr.aws:443", true),
        ("publicxecr.aws", false),
        ("ecr-public.aws.com", true),
        ("public.ecr.aws.evil.example", false),
        (registry, true),
        ("docker.io", false),
    ] {
        let image = format!("{host}/team/app:1");
        assert_eq!(policy.expects(&image), expected, "{image}");
        assert_eq!(policy.refers(&image).await, Some(expected), "{image}");
        let images = PATHS.iter().map(|path| format!("{host}{path}"));
        policy.agrees(images).await;
    }
    // Without publicEcr.
    let plain = plain_policy().await;
    assert_eq!(plain.refers("public.ecr.aws/x/y:1").await, Some(false));
    assert_eq!(plain.refers("images.example.com/x:1").await, Some(false));
}

#[tokio::test]
async fn docker_hub_as_an_alias_includes_images_without_a_host() {
    let registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let config = format!(
        "aliases: [{{host: docker.io, registry: {registry}}}, {{host: index.docker.io, registry: {registry}}}]"
    );
    let policy = Policy::apply("docker-hub", &config).await;
    let id = "0123456789abcdef".repeat(4);
    let images = [
        "nginx",
        "nginx:1",
        "my.image",
        "team/app:1",
        "team/sub/app",
        "a_b/c-d",
        "docker.io/nginx",
        "docker.io/team/app",
        "index.docker.io/library/nginx",
        "docker.io:443/x",
        "index.docker.io:443/x",
        "localhost/app",
        "localhost",
        "localhost:5000/app",
        "my.host/app",
        "host:5000/app",
        "Team/app",
        "quay.io/x/y",
        "nginx@sha256:0123",
        "-x",
        "x//y",
        "localhost/a/b",
        "localhosts/a",
        &id,
    ];
    let images = images.map(str::to_owned).into_iter();
    let long = [247, 248, 255, 256].map(|length| "a".repeat(length));
    let named = long.clone().map(|path| format!("docker.io/{path}"));
    let folder = [253, 254].map(|length| format!("b/{}", "a".repeat(length)));
    let images = images.chain(long).chain(named).chain(folder);
    assert!(policy.agrees(images).await >= 10);
}

#[tokio::test]
async fn registries_that_are_not_allowed_get_no_reference() {
    let alias = |host: &str, account: &str, region: &str| {
        format!("{{host: {host}, registry: {account}.dkr.ecr.{region}.amazonaws.com}}")
    };
    let ours = alias("ours.example.com", "111122223333", "eu-west-1");
    let account = alias("account.example.com", "444455556666", "eu-west-1");
    let region = alias("region.example.com", "111122223333", "us-east-1");
    let dual = "{host: dual.example.com, registry: 111122223333.dkr-ecr.eu-central-1.on.aws}";
    let config = format!(
        "publicEcr: true\nallow: {{accounts: ['111122223333', '012345678901'], regions: [eu-west-1, eu-central-1]}}\n\
         aliases: [{ours}, {account}, {region}, {dual}]"
    );
    let policy = Policy::apply("allowed", &config).await;
    let accounts = ["111122223333", "012345678901", "444455556666"];
    let regions = ["eu-west-1", "eu-central-1", "us-east-1", "eu-west-10"];
    let hosts = accounts.iter().flat_map(|account| {
        regions.iter().flat_map(move |region| {
            [
                format!("{account}.dkr.ecr.{region}.amazonaws.com"),
                format!("{account}.dkr-ecr-fips.{region}.on.aws"),
            ]
        })
    });
    let names = ["ours", "account", "region", "dual"].map(|name| format!("{name}.example.com"));
    let hosts = hosts.chain(names).chain(["public.ecr.aws".to_owned()]);
    let served = policy.agrees(hosts.map(|host| format!("{host}/x:1"))).await;
    assert_eq!(served, 2 * 2 * 2 + 2 + 1);
}

#[tokio::test]
async fn opted_out_mirror_and_foreign_pods_are_unchanged() {
    let policy = plain_policy().await;
    let spec = json!({"nodeName": "node", "containers": [{"name": "main", "image": ECR}]});
    let with = |annotations: Value| {
        let mut pod = pod("annotated", &spec);
        pod["metadata"]["annotations"] = annotations;
        pod
    };
    let none: [&str; 0] = [];
    for (annotations, expected) in [
        (json!({}), &[PULL_SECRET][..]),
        (json!({OPT_IN.0: "disabled"}), &none),
        (json!({OPT_IN.0: "Disabled"}), &[PULL_SECRET]),
        (json!({"kubernetes.io/config.mirror": "x"}), &none),
        (json!({"other": "disabled"}), &[PULL_SECRET]),
    ] {
        // The API server takes mirror Pods on a node only.
        let admitted = policy.admitted(&with(annotations.clone())).await;
        assert_eq!(names(&admitted), expected, "{annotations}");
    }
    let plane = plane().await;
    let admin = Caller(plane.admin().await);
    let label = json!({"metadata": {"labels": {&policy.label: "enabled"}}});
    admin
        .merge("/api/v1/namespaces/kube-system", &label)
        .await
        .allowed();
    let account = json!({"metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/kube-system/serviceaccounts";
    let _ = admin.post(accounts, &account).await;
    let plain = plane.namespace("not-opted-in", &[]).await;
    let other = plane
        .namespace("other-value", &[(&policy.label, "disabled")])
        .await;
    for namespace in [&plain, &other, "kube-system"] {
        let path = format!("{}?dryRun=All", pods(namespace));
        let admitted = admin.post(&path, &pod("web", &spec)).await.allowed();
        assert_eq!(names(&admitted), none, "{namespace}");
    }
}

#[tokio::test]
async fn image_that_a_later_webhook_rewrote_is_caught() {
    let policy = plain_policy().await;
    let plane = plane().await;
    let target = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
    let _rewriter = Rewriter::register(&plane, "zzz-later", "mirror.example", target).await;
    let labels = [(policy.label.as_str(), "enabled"), ("rewrite", "zzz-later")];
    let namespace = plane.namespace("rewritten", &labels).await;
    let admin = Caller(plane.admin().await);
    let spec = json!({"containers": [{"name": "main", "image": "mirror.example/team/app:1"}]});
    let path = format!("{}?dryRun=All", pods(&namespace));
    let admitted = eventually("the rewriter is asked", SOON, async || {
        let admitted = admin.post(&path, &pod("web", &spec)).await.allowed();
        let image = admitted["spec"]["containers"][0]["image"].as_str().unwrap();
        image.starts_with(target).then_some(admitted)
    });
    assert_eq!(names(&admitted.await), [PULL_SECRET]);
}

#[tokio::test]
async fn pods_with_many_long_images_are_within_the_cost() {
    let policy = plain_policy().await;
    let long = |host: &str| format!("{host}/{}:{}", "long/".repeat(50) + "name", "t".repeat(120));
    let containers = |count: usize, image: &str| -> Vec<Value> {
        (0..count)
            .map(|n| json!({"name": format!("c{n}"), "image": image}))
            .collect()
    };
    let ecr = long(HOSTS[0]);
    assert!(policy.expects(&ecr) && ecr.len() > 400, "{}", ecr.len());
    // Each passes the first test and fails the last: nothing costs more.
    let nearly = format!(
        "{}X",
        long("210987654321.dkr.ecr.us-east-1.amazonaws.com").replace(":t", "/X:t")
    );
    for (count, image) in [
        (64, ecr.as_str()),
        (63, nearly.as_str()),
        (500, "registry.example.com/a/rather/long/name:1"),
    ] {
        let mut all = containers(count, image);
        all.push(json!({"name": "last", "image": ecr}));
        let admitted = policy
            .admitted(&pod("many", &json!({"containers": all})))
            .await;
        assert_eq!(names(&admitted), [PULL_SECRET], "{count} of {image}");
    }
}

#[test]
fn mode_policy_has_the_policy_and_nothing_of_the_webhook() {
    let kinds = |values: &str| -> Vec<String> {
        let objects = objects(RELEASE, RELEASE, values);
        let kind = |object: &Value| object["kind"].as_str().unwrap().to_owned();
        objects.iter().map(kind).collect()
    };
    let policies = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
    let of_webhook = ["MutatingWebhookConfiguration", "Service"];
    for (values, has_policy, has_webhook) in [
        ("", false, true),
        ("mode: webhook", false, true),
        ("mode: policy", true, false),
        (
            "mode: policy\ncertificates: {mode: cert-manager}",
            true,
            false,
        ),
        (
            "mode: policy\ncertificates: {mode: secret, secretName: mine}",
            true,
            false,
        ),
        ("mode: both", true, true),
    ] {
        let kinds = kinds(values);
        for kind in policies {
            assert_eq!(
                kinds.iter().any(|it| it == kind),
                has_policy,
                "{kind}: {values}"
            );
        }
        for kind in of_webhook {
            assert_eq!(
                kinds.iter().any(|it| it == kind),
                has_webhook,
                "{kind}: {values}"
            );
        }
        assert!(!kinds.iter().any(|it| it == "Certificate"), "{values}");
    }
    let unknown = try_template(RELEASE, RELEASE, "mode: none").unwrap_err();
    assert!(unknown.contains("mode"), "{unknown}");
}

#[test]
fn mode_policy_runs_without_admission_and_its_rights() {
    let arguments = |objects: &[Value]| -> Vec<String> {
        let deployment = find(objects, "Deployment", RELEASE);
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        serde_json::from_value(container["args"].clone()).unwrap()
    };
    let webhook = objects(RELEASE, RELEASE, "");
    let policy = objects(
        RELEASE,
        RELEASE,
        "mode: policy\nnetworkPolicy: {enabled: true}",
    );
    let of_admission = [
        "--listen",
        "--service-name",
        "--ca-secret",
        "--webhook-configuration",
        "--tls-secret",
    ];
    let is_of_admission =
        |argument: &String| of_admission.iter().any(|it| argument.starts_with(it));
    assert_eq!(
        arguments(&webhook)
            .iter()
            .filter(|it| is_of_admission(it))
            .count(),
        4
    );
    assert!(!arguments(&policy).iter().any(is_of_admission));
    assert!(arguments(&policy).contains(&"--no-admission".to_owned()));
    assert_eq!(
        arguments(&objects(RELEASE, RELEASE, "mode: both")),
        arguments(&webhook)
    );
    let ports = |objects: &[Value]| {
        let deployment = find(objects, "Deployment", RELEASE);
        let container = deployment["spec"]["template"]["spec"]["containers"][0].clone();
        container["ports"].as_array().unwrap().len()
    };
    assert_eq!((ports(&webhook), ports(&policy)), (2, 1));
    let ingress = &find(&policy, "NetworkPolicy", RELEASE)["spec"]["ingress"];
    assert_eq!(ingress, &json!([{"ports": [{"port": "admin"}]}]));

    let rights = |objects: &[Value]| -> Vec<String> {
        let of = |kind| {
            find(objects, kind, RELEASE)["rules"]
                .as_array()
                .unwrap()
                .clone()
        };
        let rules = [of("ClusterRole"), of("Role")].concat();
        let text = |rule: &Value| format!("{} {}", rule["resources"], rule["resourceNames"]);
        rules.iter().map(text).collect()
    };
    let only_webhook: Vec<_> = rights(&webhook);
    let only_webhook: Vec<_> = only_webhook
        .iter()
        .filter(|it| !rights(&policy).contains(it))
        .collect();
    assert_eq!(
        only_webhook,
        [
            "[\"serviceaccounts\"] null",
            "[\"mutatingwebhookconfigurations\"] [\"zz-ecr-injector\"]",
            "[\"secrets\"] [\"ecr-injector-ca\"]",
        ]
    );
    let more: Vec<_> = rights(&policy);
    assert!(
        more.iter().all(|it| rights(&webhook).contains(it)),
        "{more:?}"
    );
}

#[test]
fn guard_of_mode_policy_names_nothing_of_the_webhook() {
    let webhook = objects(RELEASE, RELEASE, "");
    let policy = objects(RELEASE, RELEASE, "mode: policy");
    let guards = |objects: &[Value]| {
        objects
            .iter()
            .filter(|it| it["kind"] == "ValidatingAdmissionPolicy")
            .count()
    };
    assert_eq!((guards(&webhook), guards(&policy)), (6, 5));
    let of_policy: Vec<_> = policy
        .iter()
        .filter(|it| it["kind"] == "ValidatingAdmissionPolicy")
        .collect();
    let text = json!(of_policy).to_string();
    assert!(
        !text.contains("zz-ecr-injector") && !text.contains("ecr-injector-ca"),
        "{text}"
    );
}

#[test]
fn policy_has_the_selectors_of_the_registration() {
    let values = "mode: both
webhook:
  namespaceSelector: {matchLabels: {tier: prod}, matchExpressions: [{key: legacy, operator: DoesNotExist}]}
  objectSelector: {matchExpressions: [{key: skip, operator: DoesNotExist}]}
config: {secretName: mine, optIn: {label: example.com/in, value: 'yes', excludeNamespaces: [monitoring]}}";
    let objects = objects(RELEASE, RELEASE, values);
    let registration = find(&objects, "MutatingWebhookConfiguration", "zz-ecr-injector");
    let entry = &registration["webhooks"][0];
    let policy = find(
        &objects,
        "MutatingAdmissionPolicy",
        "pull-secret-reference.ecr-injector.dev",
    );
    let constraints = &policy["spec"]["matchConstraints"];
    for selector in ["namespaceSelector", "objectSelector"] {
        assert!(constraints[selector].is_object(), "{selector}");
        assert_eq!(constraints[selector], entry[selector], "{selector}");
    }
    assert_eq!(constraints["resourceRules"][0], entry["rules"][0]);
    let text = policy.to_string();
    assert!(
        text.contains("name: \\\"mine\\\"") && !text.contains(PULL_SECRET),
        "{text}"
    );
}

#[test]
fn cluster_without_the_api_is_refused_with_what_to_do() {
    let chart = chart();
    let render = |values: &str, versions: &[&str]| {
        let mut arguments = vec!["template", RELEASE, chart.to_str().unwrap()];
        for version in versions {
            arguments.extend(["--api-versions", version]);
        }
        let output = helm(&arguments, values);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(error)
    };
    let old = [
        "v1/Pod",
        "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
    ];
    let new = [
        old[0],
        "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy",
    ];
    for mode in ["policy", "both"] {
        let values = format!("mode: {mode}");
        let error = render(&values, &old).unwrap_err();
        let expected =
            "this cluster serves no MutatingAdmissionPolicy: Kubernetes 1.36, or mode: webhook";
        assert!(error.contains(expected), "{error}");
        render(&values, &new).unwrap();
        // Without a cluster nothing is known.
        render(&values, &[]).unwrap();
        render(&format!("{values}\npolicy: {{assumeServed: true}}"), &old).unwrap();
    }
    render("", &old).unwrap();
}

#[tokio::test]
async fn no_pod_is_missed_while_the_api_server_restarts() {
    let mut plane = ControlPlane::start().await;
    let objects = objects(RELEASE, RELEASE, "mode: policy");
    let manifests: Vec<_> = of_policy(&objects)
        .iter()
        .map(ToString::to_string)
        .collect();
    plane.apply(&manifests.join("\n---\n")).await;
    let namespace = plane.namespace("restarts", &[OPT_IN]).await;
    let spec = json!({"containers": [{"name": "main", "image": ECR}]});
    let (creator, path) = (Caller(plane.admin().await), pods(&namespace));
    eventually("the policy is in force", SOON, async || {
        let probe = format!("{path}?dryRun=All");
        let admitted = creator.post(&probe, &pod("web", &spec)).await.allowed();
        (names(&admitted) == [PULL_SECRET]).then_some(())
    })
    .await;
    let (done, mut is_done) = tokio::sync::oneshot::channel::<()>();
    let path_of_creator = path.clone();
    let create = tokio::spawn(async move {
        let request = json!({"metadata": {"generateName": "web-"}, "spec": spec}).to_string();
        let mut failed = 0;
        while is_done.try_recv().is_err() {
            let request = http::Request::post(&path_of_creator)
                .header("content-type", "application/json")
                .body(request.clone().into_bytes());
            // Refused while there is no API server, and again by one that is not ready.
            failed += usize::from(creator.0.request_text(request.unwrap()).await.is_err());
        }
        failed
    });
    for _ in 0..3 {
        plane.restart_api_server().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    done.send(()).unwrap();
    let failed = create.await.unwrap();
    let stored = Caller(plane.admin().await).get(&path).await.allowed();
    let stored = stored["items"].as_array().unwrap();
    assert!(
        failed > 0 && stored.len() > 100,
        "{failed} failed, {} stored",
        stored.len()
    );
    for pod in stored {
        assert_eq!(names(pod), [PULL_SECRET], "{}", pod["metadata"]["name"]);
    }
}

#[tokio::test]
async fn release_of_mode_policy_installs_where_the_api_is_served() {
    let plane = plane().await;
    let (chart, kubeconfig) = (chart(), plane.kubeconfig_for_admin());
    let arguments = [
        "install",
        "installed",
        chart.to_str().unwrap(),
        "--namespace=installed",
        "--create-namespace",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    let values = "mode: policy\nfullnameOverride: installed\nconfig: {discover: pods, optIn: {label: example.com/installed}}";
    let output = helm(&arguments, values);
    assert!(output.status.success(), "{output:?}");
    let namespace = plane
        .namespace("installed", &[("example.com/installed", "enabled")])
        .await;
    let admin = Caller(plane.admin().await);
    let spec = json!({"containers": [{"name": "main", "image": ECR}]});
    let path = format!("{}?dryRun=All", pods(&namespace));
    eventually("the policy is in force", SOON, async || {
        let admitted = admin.post(&path, &pod("web", &spec)).await.allowed();
        (names(&admitted) == [PULL_SECRET]).then_some(())
    })
    .await;
}

#[test]
fn release_test_of_mode_policy_asks_for_a_prewarmed_registry() {
    let image = |values: &str| {
        let objects = of_the_test(RELEASE, RELEASE, values);
        let pod = objects
            .iter()
            .find(|object| object["kind"] == "Pod")
            .unwrap();
        let arguments = pod["spec"]["containers"][0]["args"]
            .as_array()
            .unwrap()
            .clone();
        let image = arguments.iter().find_map(|it| {
            it.as_str()
                .unwrap()
                .strip_prefix("--image=")
                .map(str::to_owned)
        });
        image.unwrap()
    };
    let prewarm = "config: {prewarm: [111122223333.dkr.ecr.eu-west-1.amazonaws.com]}";
    assert_eq!(
        image(&format!("mode: policy\n{prewarm}")),
        "111122223333.dkr.ecr.eu-west-1.amazonaws.com/probe"
    );
    assert_eq!(
        image(prewarm),
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/probe"
    );
    assert_eq!(image("mode: policy"), image(""));
    let named = format!("mode: policy\ntest: {{image: example.com/x}}\n{prewarm}");
    assert_eq!(image(&named), "example.com/x");
}

/// Whether a folder of the repository has the file of the policy: `deploy/` is of mode webhook.
#[test]
fn deploy_has_no_policy() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policy.yaml");
    assert!(!deploy.exists());
}
