//! Tests that a mistake of seconds costs no credential, and that undoing it is enough.

use std::fs;

use super::*;

const SUSPENDED: &str = r#"ecr_injector_pull_secrets_by_state{state="suspended"}"#;
/// A life after which a credential soon has less than the five minutes left that a pull may take.
const SHORT: Duration = Duration::from_secs(330);
/// When a credential of that life is due, with a second to spare.
const DUE: Duration = Duration::from_secs(31);
/// A changed file is read twice, five seconds apart, before it counts.
const RELOADED: Duration = Duration::from_secs(20);

/// One wrong digit in the configuration.
#[tokio::test]
async fn wrong_account_suspends_credentials_and_keeps_them() {
    let good = "allow: {accounts: [\"123456789012\"]}\n";
    let bed = Bed::start(good, "info").await;
    let region = "eu-west-1";
    let host = registry(ACCOUNT, region);
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.lifetime = Some(SHORT));
    let (namespace, before) = bed.served("wiped", region).await;
    let minted = tokio::time::Instant::now();
    bed.aws.tune_ecr_in(region, |knobs| knobs.lifetime = None);
    let (calm, fresh) = bed.served("calm", "eu-west-2").await;

    bed.reload(&good.replace("12\"", "13\"")).await;
    for _ in 0..10 {
        sleep(Duration::from_millis(300)).await;
        for (namespace, before) in [(&namespace, &before), (&calm, &fresh)] {
            let now = bed.pull_secret(namespace).await.unwrap();
            assert!(
                auths(&now) == auths(before),
                "{namespace} has {:?}",
                auths(&now).keys()
            );
        }
    }
    bed.note(&namespace, &["RegistrySuspended"], SOON).await;
    assert!(bed.webhook.metric(SUSPENDED).await >= 1.0);
    let client = bed.plane.pod_creator().await;
    let meanwhile = pod("meanwhile", &image(region));
    let meanwhile = create(&client, &namespace, &meanwhile, false)
        .await
        .unwrap();
    assert_ne!(meanwhile.warnings, [""; 0]);

    tokio::time::sleep_until(minted + DUE).await;
    assert_eq!(
        bed.aws.ecr_calls(region).len(),
        1,
        "renewed while suspended"
    );
    bed.reload(good).await;
    let renewed = bed.until_renewed(&namespace, &host, &before).await;
    assert!(auths(&renewed).len() == 1, "{:?}", auths(&renewed).keys());
    bed.until_none_is_suspended().await;
    let now = bed.pull_secret(&calm).await.unwrap();
    assert!(
        auths(&now) == auths(&fresh),
        "what was good was minted again"
    );
}

/// One wrong letter in a namespace's annotation.
#[tokio::test]
async fn wrong_role_suspends_credentials_and_keeps_them() {
    let config = "namespaceRoles: {allow: [\"arn:aws:iam::*:role/ecr-pull-{namespace}\"]}\n";
    let bed = Bed::start(config, "info").await;
    let region = "eu-west-1";
    let host = registry(ACCOUNT, region);
    let namespace = bed.plane.namespace("typo", &[]).await;
    let good = role(&format!("ecr-pull-{namespace}"));
    let annotate = async |role: &str| {
        let change = json!({"metadata": {"annotations": {"ecr-injector.dev/role-arn": role}}});
        bed.change_namespace(&namespace, &change).await;
    };
    annotate(&good).await;
    bed.opt(&namespace, true).await;
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.lifetime = Some(SHORT));
    bed.first_pod(&namespace, region).await;
    let minted = tokio::time::Instant::now();
    bed.aws.tune_ecr_in(region, |knobs| knobs.lifetime = None);
    let before = bed.until_minted(&namespace, &host, &good, SOON).await;

    annotate(&good.replace("role/", "rol/")).await;
    for _ in 0..10 {
        sleep(Duration::from_millis(300)).await;
        let now = bed.pull_secret(&namespace).await.unwrap();
        assert!(
            auths(&now) == auths(&before),
            "it has {:?}",
            auths(&now).keys()
        );
    }
    bed.note(&namespace, &["RegistrySuspended"], SOON).await;
    assert!(bed.webhook.metric(SUSPENDED).await >= 1.0);
    let client = bed.plane.pod_creator().await;
    let meanwhile = pod("meanwhile", &image(region));
    let meanwhile = create(&client, &namespace, &meanwhile, false)
        .await
        .unwrap();
    assert_ne!(meanwhile.warnings, [""; 0]);

    tokio::time::sleep_until(minted + DUE).await;
    annotate(&good).await;
    bed.until_renewed(&namespace, &host, &before).await;
    bed.until_none_is_suspended().await;
}

impl Bed {
    /// Writes the configuration file, and waits until it is in use.
    async fn reload(&self, config: &str) {
        const APPLIED: &str = r#"ecr_injector_config_reloads_total{outcome="applied"}"#;
        let before = self.webhook.metric(APPLIED).await;
        fs::write(self.webhook.config(), crate::support::config_file(config)).unwrap();
        eventually("the new configuration is in use", RELOADED, async || {
            let now = self.webhook.metric(APPLIED).await;
            (now > before).then_some(())
        })
        .await;
    }

    async fn until_renewed(&self, namespace: &str, host: &str, before: &Secret) -> Secret {
        eventually("it is renewed at once", SOON, async || {
            let now = self.pull_secret(namespace).await?;
            let auth = auths(&now).remove(host)?;
            (auths(before)[host] != auth).then_some(now)
        })
        .await
    }

    async fn until_none_is_suspended(&self) {
        eventually("none is suspended", SOON, async || {
            (self.webhook.metric(SUSPENDED).await < 0.5).then_some(())
        })
        .await;
    }
}
