//! `make demo`: the main job in one command, against a real API server.
//!
//! One Deployment with an image in a private ECR registry is applied, unchanged, to a namespace that opted in and to one
//! that did not; what the controllers then made is shown. Nothing is left behind, and nothing of the machine is touched
//! but loopback addresses and a temporary folder. There are no nodes, so no image is pulled.
//!
//! | set | for |
//! |---|---|
//! | `--shell` | staying up, with a KUBECONFIG to look around by, until Ctrl-C |
//! | `DEMO_AWS=real` | asking AWS, with the credentials of the environment, instead of a fake |
//! | `DEMO_IMAGE` | another image than the default |
//!
//! With the real AWS only the region of the image matters, which is the one that is asked: a token is not for one
//! account, and nothing is pulled. So the default, whose account is nobody's, does for every account of that partition.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "what it shows is what it is for, in real time"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::process::signals::Signals;
use ecr_injector::pull_secret::{DATA_KEY, EXPIRES_AT_ANNOTATION, TYPE};
use ecr_injector::registry::Registry;
use ecr_injector::registry::image::ImageReference;
use futures::FutureExt as _;
use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use similar::TextDiff;

use support::control_plane::{Options, programs};
use support::installation::{OPT_IN, PULL_SECRET};
use support::{ControlPlane, FakeAws, Installation, Webhook, eventually, pods, webhook};

#[path = "../tests/support/mod.rs"]
mod support;

const STEPS: usize = 6;
const OPTED_IN: &str = "opted-in";
const PLAIN: &str = "plain";
const DEFAULT_IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1.0";
/// The first finds a namespace without a pull secret, the second one with it.
const REPLICAS: usize = 2;
const LIMIT: Duration = Duration::from_secs(30);
/// The API server's metric of the duration of its calls to the webhook.
const ADMISSION_SECONDS: &str = "apiserver_admission_webhook_admission_duration_seconds";
const WEBHOOK_LABEL: &str = r#"{name="create.ecr-injector.dev"}"#;

#[tokio::main]
async fn main() -> ExitCode {
    // A panic of the test bed is an error like others here: it is told once, below.
    std::panic::set_hook(Box::new(|_| {}));
    let Ok(mut signals) = Signals::listen() else {
        return ExitCode::FAILURE;
    };
    let started = Instant::now();
    // Whichever way this ends, what was started is dropped, and so ended and removed, before the process goes. Ctrl-C
    // reaches the children too: what they then say is not the news.
    let outcome = tokio::select! {
        biased;
        code = signals.next() => {
            println!();
            return code;
        }
        outcome = AssertUnwindSafe(demo()).catch_unwind() => outcome,
    };
    let error = match outcome {
        Ok(Ok(())) => {
            println!("\nAll of it is gone again; {}.", seconds(started.elapsed()));
            return ExitCode::SUCCESS;
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => panic
                .downcast::<&str>()
                .map_or_else(|_| "it failed".to_owned(), |message| (*message).to_owned()),
        },
    };
    eprintln!("\ndemo: {error}");
    ExitCode::FAILURE
}

#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn demo() -> anyhow::Result<()> {
    let stays = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--shell" => true,
        _ => bail!("the one argument that it takes is --shell"),
    };
    let binary = binary()?;
    let image = Image::from_surroundings()?;
    let is_real = Aws::is_real()?;
    let mut progress = Progress::default();

    let plane = progress
        .step(
            "control plane: etcd, kube-apiserver with RBAC, kube-controller-manager",
            ControlPlane::start_with(Options {
                controllers: true,
                ..Options::default()
            }),
        )
        .await;
    let aws = if is_real {
        let what = "AWS: the real one, with the credentials of the environment";
        progress.step(what, async { Aws::Real }).await
    } else {
        let what = "AWS: a fake ECR on a loopback port";
        let start = async { Aws::Fake(FakeAws::start()) };
        progress.step(what, start).await
    };
    let installation = progress
        .step(
            "deploy/: namespace, RBAC, guard, flow schema, config, Service",
            Installation::apply(&plane),
        )
        .await;
    let webhook = progress
        .step(
            "webhook: ecr-injector serve over TLS, registered for opted-in namespaces",
            async {
                let options = options(&plane, &installation, &aws, binary).await;
                let webhook = Webhook::start(options).await;
                installation.register(&plane).await;
                webhook
            },
        )
        .await;

    let admin = plane.admin().await;
    let before = api_server_view(&admin).await?;
    progress
        .step(
            "two namespaces, and one Deployment applied unchanged to both",
            async {
                for namespace in [OPTED_IN, PLAIN] {
                    plane.apply(&namespace_manifest(namespace)).await;
                    plane.apply(&deployment(namespace, &image.name)).await;
                }
            },
        )
        .await;
    let (injected, untouched) = progress
        .step(
            "the Pods that the ReplicaSet controller makes of it",
            async { tokio::join!(pods_in(&admin, OPTED_IN), pods_in(&admin, PLAIN)) },
        )
        .await;

    show_pods(&injected, &untouched)?;
    show_secret(&admin, &image, &webhook).await?;
    show_admissions(&webhook, before, api_server_view(&admin).await?)?;
    aws.show_calls(&image, &webhook).await?;
    if stays {
        let folder = programs();
        println!("\nIt stays up until Ctrl-C. In another terminal:\n");
        println!(
            "  export KUBECONFIG={}",
            plane.kubeconfig_for_admin().display()
        );
        println!("  export PATH={}:$PATH", folder.display());
        println!("  kubectl get pods -A; kubectl -n {OPTED_IN} get secret {PULL_SECRET} -o yaml");
        println!(
            "  kubectl label namespace {PLAIN} {}={}",
            OPT_IN.0, OPT_IN.1
        );
        println!("  kubectl -n {PLAIN} rollout restart deployment demo");
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// The program that cargo built beside the example: target/<profile>/ecr-injector.
fn binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let folder = own.parent().and_then(std::path::Path::parent);
    let binary = folder.unwrap_or(&own).join("ecr-injector");
    ensure!(
        binary.is_file(),
        "there is no {}: run `cargo build` first (`make demo` does)",
        binary.display()
    );
    Ok(binary)
}

/// The image that the Deployment names.
struct Image {
    name: String,
    host: String,
    region: String,
}

impl Image {
    fn from_surroundings() -> anyhow::Result<Self> {
        let name = std::env::var("DEMO_IMAGE").unwrap_or_else(|_| DEFAULT_IMAGE.to_owned());
        let host = ImageReference::parse(&name)
            .with_context(|| format!("DEMO_IMAGE {name}"))?
            .domain()
            .to_owned();
        let registry = Registry::parse(&host).with_context(|| {
            format!("DEMO_IMAGE {name} is in no private ECR registry, such as {DEFAULT_IMAGE} is")
        })?;
        let region = registry.region().as_str().to_owned();
        Ok(Self { name, host, region })
    }
}

/// The AWS that answers `ecr:GetAuthorizationToken`.
enum Aws {
    Fake(FakeAws),
    Real,
}

impl Aws {
    fn is_real() -> anyhow::Result<bool> {
        match std::env::var("DEMO_AWS").as_deref() {
            Err(_) | Ok("" | "fake") => Ok(false),
            Ok("real") => Ok(true),
            Ok(other) => bail!("DEMO_AWS is {other:?}; it can be fake or real"),
        }
    }

    /// Returns the environment of the webhook's process.
    fn environment(&self) -> Vec<(String, String)> {
        match self {
            Self::Fake(fake) => fake.environment(),
            Self::Real => std::env::vars()
                .filter(|(name, _)| !name.starts_with("ECR_INJECTOR_"))
                .collect(),
        }
    }

    async fn show_calls(&self, image: &Image, webhook: &Webhook) -> anyhow::Result<()> {
        heading("AWS calls");
        let counted = webhook.metric("ecr_injector_aws_calls_total").await;
        match self {
            Self::Fake(fake) => {
                let calls = fake.calls();
                for call in &calls {
                    println!("  {} {} in {}", call.service, call.operation, call.region);
                }
                let expected = fake.ecr_calls(&image.region).len() == 1 && calls.len() == 1;
                ensure!(expected, "expected one AWS call in all");
            }
            Self::Real => println!("  {counted} by the webhook's own count"),
        }
        ensure!(
            (counted - 1.0).abs() < f64::EPSILON,
            "the webhook counted {counted}"
        );
        Ok(())
    }
}

/// How the webhook is started: as [`Installation::webhook`] does for tests, with whichever AWS.
async fn options(
    plane: &ControlPlane,
    installation: &Installation,
    aws: &Aws,
    binary: PathBuf,
) -> webhook::Options {
    webhook::Options {
        binary: Some(binary),
        config: String::new(),
        listen: installation.service_address(),
        admin_listen: (plane.private_address(), 8080).into(),
        certificate: Some(installation.certificate().clone()),
        kubeconfig: installation.kubeconfig(plane).await,
        arguments: Vec::new(),
        environment: aws.environment(),
    }
}

fn namespace_manifest(name: &str) -> String {
    let labels = match name {
        OPTED_IN => json!({OPT_IN.0: OPT_IN.1}),
        _ => json!({}),
    };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        .to_string()
}

fn deployment(namespace: &str, image: &str) -> String {
    let labels = json!({"app": "demo"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "demo", "namespace": namespace},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    // Its volume's name is random in each Pod, and would be a difference of its own.
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "app", "image": image}],
                },
            },
        },
    })
    .to_string()
}

async fn pods_in(admin: &Client, namespace: &str) -> Vec<Pod> {
    let api: Api<Pod> = Api::namespaced(admin.clone(), namespace);
    let what = format!("{namespace} has {REPLICAS} Pods");
    eventually(&what, LIMIT, async || {
        let pods = api.list(&ListParams::default().labels("app=demo")).await;
        pods.ok()
            .map(|list| list.items)
            .filter(|pods| pods.len() == REPLICAS)
    })
    .await
}

/// Shows where the Pods of the two namespaces differ; it must be by our entry and nothing else.
fn show_pods(injected: &[Pod], untouched: &[Pod]) -> anyhow::Result<()> {
    heading(&format!(
        "The Pod's spec in namespace {PLAIN} (-) and in {OPTED_IN} (+), which has the label {}={}",
        OPT_IN.0, OPT_IN.1
    ));
    let (injected_spec, untouched_spec) = (spec(injected)?, spec(untouched)?);
    show_diff(&untouched_spec, &injected_spec);
    for pod in injected {
        let names = pods::pull_secrets(pod);
        ensure!(
            names == [PULL_SECRET],
            "a Pod of {OPTED_IN} has the pull secrets {names:?}"
        );
    }
    for pod in untouched {
        let names = pods::pull_secrets(pod);
        ensure!(
            names.is_empty(),
            "a Pod of {PLAIN} has the pull secrets {names:?}"
        );
    }
    Ok(())
}

fn spec(pods: &[Pod]) -> anyhow::Result<String> {
    let spec = pods.first().and_then(|pod| pod.spec.as_ref());
    serde_saphyr::to_string(&spec).context("a Pod's spec as YAML")
}

fn show_diff(before: &str, after: &str) {
    let (green, red, plain) = if coloured() {
        ("\x1b[32m", "\x1b[31m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let diff = TextDiff::from_lines(before, after);
    for line in diff.unified_diff().context_radius(3).to_string().lines() {
        match line.chars().next() {
            Some('@') => println!("    …"),
            Some('+') => println!("  {green}{line}{plain}"),
            Some('-') => println!("  {red}{line}{plain}"),
            _ => println!("  {line}"),
        }
    }
    println!("    …");
}

async fn show_secret(admin: &Client, image: &Image, webhook: &Webhook) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), OPTED_IN);
    let secret = secrets
        .get_opt(PULL_SECRET)
        .await?
        .with_context(|| format!("{OPTED_IN} has no {PULL_SECRET}{}", warnings(webhook)))?;
    let kind = secret.type_.as_deref().unwrap_or_default();
    heading(&format!("Its pull secret {OPTED_IN}/{PULL_SECRET}, {kind}"));
    ensure!(kind == TYPE, "its type is not {TYPE}");
    let hosts = hosts(&secret)?;
    for (host, user) in &hosts {
        println!("  {host}: {user}");
    }
    ensure!(
        hosts.keys().eq([&image.host]),
        "expected a credential for {} alone{}",
        image.host,
        warnings(webhook)
    );
    let annotations = secret.metadata.annotations.unwrap_or_default();
    let expires_at: Timestamp = annotations
        .get(EXPIRES_AT_ANNOTATION)
        .context("it doesn't say when it expires")?
        .parse()?;
    let left = expires_at - Timestamp::now();
    println!(
        "  expires at {expires_at}, in {:.1} h",
        left.total(Unit::Hour)?
    );
    ensure!(left.is_positive(), "it has expired");
    Ok(())
}

/// Each host with what can be shown of its credential.
fn hosts(secret: &Secret) -> anyhow::Result<BTreeMap<String, String>> {
    let data = secret.data.as_ref().and_then(|data| data.get(DATA_KEY));
    let config: Value = serde_json::from_slice(&data.context("it has no data")?.0)?;
    let auths = config["auths"].as_object().context("it has no auths")?;
    let shown = auths.iter().map(|(host, entry)| {
        let auth = BASE64_STANDARD.decode(entry["auth"].as_str().unwrap_or_default())?;
        let auth = String::from_utf8(auth)?;
        let (user, password) = auth.split_once(':').context("an auth has no colon")?;
        let shown = format!(
            "user {user}, password not shown ({} characters)",
            password.len()
        );
        Ok((host.clone(), shown))
    });
    shown.collect()
}

/// Count and sum in seconds of the API server's calls to us.
async fn api_server_view(admin: &Client) -> anyhow::Result<(f64, f64)> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = admin.request_text(request).await?;
    let sum = |part: &str| {
        webhook::sum(
            &metrics,
            &format!("{ADMISSION_SECONDS}_{part}{WEBHOOK_LABEL}"),
        )
    };
    Ok((sum("count"), sum("sum")))
}

fn show_admissions(webhook: &Webhook, before: (f64, f64), after: (f64, f64)) -> anyhow::Result<()> {
    heading("Admissions, by the webhook's log");
    let mut reasons = Vec::new();
    for line in log(webhook) {
        if line["message"] != "admission" || line["namespace"] != OPTED_IN {
            continue;
        }
        let reason = line["reason"].as_str().unwrap_or_default();
        let what = match reason {
            "provisioned" => "asked ECR for a token and wrote the Secret, then let the Pod in",
            "cached" => "answered from memory",
            other => other,
        };
        let took = line["elapsed_ms"].as_f64().unwrap_or_default() / 1000.0;
        println!(
            "  {:>8}  {what}",
            milliseconds(Duration::from_secs_f64(took))
        );
        reasons.push(reason.to_owned());
    }
    let (calls, sum) = (after.0 - before.0, after.1 - before.1);
    let mean = Duration::try_from_secs_f64(sum / calls).unwrap_or_default();
    println!(
        "  The API server counted {calls} calls, {} on average with the way there and back.",
        milliseconds(mean)
    );
    ensure!(
        reasons.len() == REPLICAS && reasons.iter().any(|reason| reason == "provisioned"),
        "expected {REPLICAS} admissions, the first with a new Secret; got {reasons:?}"
    );
    Ok(())
}

fn log(webhook: &Webhook) -> Vec<Value> {
    let log = webhook.log();
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Returns the webhook's warnings and errors, to end an error's text with.
fn warnings(webhook: &Webhook) -> String {
    let mut lines = log(webhook);
    lines.retain(|line| matches!(line["level"].as_str(), Some("WARN" | "ERROR")));
    let lines: Vec<_> = lines.iter().map(|line| format!("\n  {line}")).collect();
    lines.concat()
}

/// Prints each step as it begins, and the time of the step when it is done.
#[derive(Default)]
struct Progress(usize);

impl Progress {
    async fn step<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        self.0 += 1;
        print!("{}/{STEPS}  {what} … ", self.0);
        // Where that fails, so will the next line.
        let _ = stdout().flush();
        let started = Instant::now();
        let output = work.await;
        println!("{}", seconds(started.elapsed()));
        output
    }
}

fn heading(text: &str) {
    let (bold, plain) = if coloured() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!("\n{bold}{text}{plain}");
}

fn coloured() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
