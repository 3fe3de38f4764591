//! The credential plugin with the tokens of ServiceAccounts: the role of a Pod's account mints.

use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::{Lab, Plugin, printed_config};
use crate::support::shows;

pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/shop-pull";
pub(crate) const ANNOTATION: &str = "ecr-injector.dev/role-arn";
pub(crate) const TOKENS: Plugin = Plugin {
    config: &["--service-account-tokens"],
    arguments: &[],
};
const REQUIRED: Plugin = Plugin {
    config: &["--service-account-tokens", "--require-role-annotation"],
    arguments: &[],
};

/// Lets nodes request the tokens, by what ours prints.
pub(crate) async fn allow_tokens(lab: &Lab) {
    let printed = printed_config(&["--rbac"], TOKENS);
    let (_, rbac) = printed.split_once("---\n").unwrap();
    lab.plane.apply(rbac).await;
}

/// Creates an account with this role, and returns what a Pod has to say to have it.
pub(crate) async fn account(lab: &Lab, namespace: &str, name: &str, role: Option<&str>) -> Value {
    let mut account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    });
    if let Some(role) = role {
        account["metadata"]["annotations"][ANNOTATION] = role.into();
    }
    lab.plane.apply(&account.to_string()).await;
    json!({"serviceAccountName": name})
}

#[test]
fn role_of_the_service_account_pulls_if_nodes_may_have_its_token() {
    isolated(async || {
        let lab = Lab::with(TOKENS).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        let robot = account(&lab, &shop, "robot", Some(ROLE)).await;
        lab.cannot_pull(&shop, "not-allowed", &robot).await;
        let why = r#"not authorized to request tokens for audience \"sts.amazonaws.com\""#;
        let log = lab.kubelet_log().replace(r"\\", r"\");
        assert!(log.contains(why), "{log}");
        let heading = "`is not authorized to request tokens for audience \"sts.amazonaws.com\"`";
        shows(heading, &log.replace('\\', ""));
        assert!(lab.aws.calls().is_empty());

        allow_tokens(&lab).await;
        lab.runs(&shop, "allowed", &robot).await;
        // The Pod that waits is pulled at the kubelet's next attempt.
        lab.wait_until_ready(&shop, "not-allowed").await;
        let [session] = &lab.aws.calls_to("sts")[..] else {
            panic!("{:?}", lab.aws.calls());
        };
        assert_eq!(session.operation, "AssumeRoleWithWebIdentity");
        assert_eq!(session.parameters["RoleArn"], ROLE);
        assert_eq!(
            session.parameters["RoleSessionName"],
            format!("{shop}.robot")
        );
        let principals = lab.registry.principals("allowed");
        assert!(
            principals.iter().all(|it| it.contains("shop-pull")),
            "{principals:?}"
        );
        assert_eq!(principals.len(), 1);
    });
}

#[test]
fn service_account_without_a_role_pulls_nothing() {
    isolated(async || {
        let mut lab = Lab::with(TOKENS).await;
        allow_tokens(&lab).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        let nobody = account(&lab, &shop, "nobody", None).await;
        lab.cannot_pull(&shop, "denied", &nobody).await;
        let log = lab.kubelet_log();
        assert!(
            log.contains("ecr-credential-provider: 123456789012"),
            "{log}"
        );

        lab.start_kubelet(Some(REQUIRED)).await;
        // Until its end the one before tried again.
        let before = lab.kubelet_log().len();
        lab.cannot_pull(&shop, "not-asked", &nobody).await;
        let log = lab.kubelet_log();
        assert!(
            !log[before..].contains("ecr-credential-provider: 123456789012"),
            "{log}"
        );
        assert!(lab.aws.calls().is_empty());
        let robot = account(&lab, &shop, "robot", Some(ROLE)).await;
        lab.runs(&shop, "asked", &robot).await;
    });
}
