//! Tests that a few hostile namespaces, or a stranger who reaches the port, take nothing from all others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::Behaviour;
use crate::support::Trust;
use crate::support::Wire;
use crate::support::bed::review;
use crate::support::pods::{pod_with, pull_secrets};
use crate::support::proc::mebibytes;
use crate::support::wire::post;
use futures::future::join_all;
use rustls::version::TLS13;
use tokio::net::TcpStream;

use super::*;

/// A life that leaves, after some seconds, less than the five minutes that a pull may take.
const SHORT: Duration = Duration::from_secs(320);

#[tokio::test]
async fn edited_secrets_starve_nobody() {
    const OTHERS: usize = 60;
    const LIMIT: Duration = Duration::from_secs(45);
    let _alone = alone().await;
    let bed = Bed::start("", "warn").await;
    let (region, theirs) = ("eu-west-1", "eu-west-2");
    let host = registry(ACCOUNT, region);
    let mut attacked = Vec::new();
    for _ in 0..4 {
        attacked.push(bed.served("bad", theirs).await.0);
    }
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.lifetime = Some(SHORT));
    let others = join_all((0..OTHERS).map(|_| bed.served("other", region))).await;
    let minted = Instant::now();
    bed.aws.tune_ecr_in(region, |knobs| knobs.lifetime = None);

    let admin = bed.plane.admin().await;
    let config = r#"{"auths":{}}"#;
    let forged = wish(&registry(ACCOUNT, theirs), config).to_string();
    let change = json!({"metadata": {"annotations": {STATE: forged}}, "stringData": {".dockerconfigjson": config}});
    let attack = attacked.into_iter().map(|namespace| {
        let secrets: Api<Secret> = Api::namespaced(admin.clone(), &namespace);
        let change = change.clone();
        async move {
            loop {
                let params = PatchParams::default();
                let _ = secrets
                    .patch(PULL_SECRET, &params, &Patch::Merge(&change))
                    .await;
                sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let writes = async || bed.webhook.metric("ecr_injector_refreshes_total").await;
    let written_before = writes().await;
    let began = Instant::now();
    let attack = tokio::spawn(join_all(attack.collect::<Vec<_>>()));
    // By then all of them are due. A new configuration reschedules all namespaces, so that they are due at one moment.
    sleep(Duration::from_secs(20).saturating_sub(minted.elapsed())).await;
    std::fs::write(
        bed.webhook.config(),
        crate::support::config_file("refresh: {writesPerSecond: 19}\n"),
    )
    .unwrap();
    let mut left: Vec<_> = others.iter().collect();
    let due = Instant::now();
    while !left.is_empty() && due.elapsed() < LIMIT {
        sleep(Duration::from_secs(1)).await;
        let found = join_all(left.iter().map(|(namespace, _)| bed.pull_secret(namespace))).await;
        let mut found = found.into_iter();
        left.retain(|(_, before)| {
            let now = found.next().flatten();
            now.is_none_or(|now| auths(&now).get(&host) == auths(before).get(&host))
        });
    }
    let lasted = began.elapsed();
    let written = writes().await - written_before;
    let contested = r#"ecr_injector_refresh_failures_total{reason="contested"}"#;
    let contested = bed.webhook.metric(contested).await;
    attack.abort();
    let renewed = OTHERS - left.len();
    let figures = format!(
        "{renewed} of {OTHERS} renewed; {written} writes in {lasted:?}, {contested} contested"
    );
    assert_eq!(renewed, OTHERS, "{figures}");
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let theirs = written - OTHERS as f64;
    assert!(theirs <= lasted.as_secs_f64(), "{figures}");
    assert!(contested >= 1.0, "{figures}");
}

/// Reviews past the API server, each with sixteen regions that don't exist, for which AWS never answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_regions_cost_no_memory_and_nobodys_token() {
    const CLIENTS: usize = 256;
    const HONEST: usize = 20;
    const FLOOD: Duration = Duration::from_secs(12);
    let _alone = alone().await;
    let bed = Bed::start("", "error").await;
    let (namespace, _) = bed.served("team", "eu-west-1").await;
    let honest = join_all((0..HONEST).map(|_| bed.plane.namespace("honest", &[OPT_IN]))).await;
    bed.aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    bed.aws
        .tune_ecr_in("eu-west-2", |knobs| knobs.behaviour = Behaviour::Answer);
    let pid = bed.webhook.pid();
    let before = mebibytes(pid, "VmRSS");
    let trust = Trust::of(bed.installation.authority());
    let (next, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let client = async |_| {
        let stream = TcpStream::connect(bed.webhook.address()).await.ok()?;
        let stream = trust.connect(stream, &[&TLS13], &["http/1.1"]).await.ok()?;
        let mut wire = Wire::new(stream);
        while !over.load(Ordering::Relaxed) {
            let first = next.fetch_add(16, Ordering::Relaxed);
            let review = review(&namespace, &pod_with("x", &invented(first..first + 16)));
            wire.send(post("/mutate?timeout=1s", review.to_string()))
                .await;
            wire.answer().await?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    };
    let flood = join_all((0..CLIENTS).map(client));
    let honest_pods = async {
        sleep(FLOOD / 2).await;
        let admitted = honest.iter().map(|name| bed.first_pod(name, "eu-west-2"));
        let (admitted, ()) = tokio::join!(join_all(admitted), sleep(FLOOD / 2));
        over.store(true, Ordering::Relaxed);
        let unserved = admitted.into_iter().filter(|admitted| {
            pull_secrets(&admitted.pod) != [PULL_SECRET] || !admitted.warnings.is_empty()
        });
        unserved.map(|admitted| admitted.warnings).collect()
    };
    let (_, unserved): (_, Vec<Vec<String>>) = tokio::join!(flood, honest_pods);
    let peak = mebibytes(pid, "VmHWM");
    let answered = answered.load(Ordering::Relaxed);
    let figures = format!(
        "{answered} reviews; {before:.0} MiB before, {peak:.0} at the peak; {} of {HONEST} unserved: {unserved:?}",
        unserved.len()
    );
    assert!(answered > CLIENTS, "{figures}");
    assert!(peak - before <= 96.0, "{figures}");
    assert!(unserved.is_empty(), "{figures}");
}

/// Returns a spec whose images are in regions that nobody has heard of.
fn invented(numbers: std::ops::Range<usize>) -> Value {
    let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap());
    let containers = numbers.map(|n| {
        let name: String = [456_976, 17_576, 676, 26, 1]
            .map(|place| letter(n / place))
            .iter()
            .collect();
        json!({"name": format!("c{n}"), "image": image(&format!("aa-{name}-1"))})
    });
    json!({"containers": containers.collect::<Value>()})
}
