//! Two tenants of one registry, each with a role whose tokens open its own repository alone.

use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::image;
use crate::webhook_lab::WebhookLab;

const CONFIG: &str = r#"
clusterName: test
identities:
  - namespaces: ["tenant-a-*"]
    assumeRole: {roleArn: "arn:aws:iam::123456789012:role/tenant-a", pullOnly: true}
  - namespaces: ["tenant-b-*"]
    assumeRole: {roleArn: "arn:aws:iam::123456789012:role/tenant-b", pullOnly: true}
"#;

/// A Pod of a repository of this name.
fn of(repository: &str) -> Value {
    json!({"containers": [{"name": "main", "image": image(repository), "args": ["x"]}]})
}

#[test]
fn token_of_a_tenant_opens_its_own_repository_alone() {
    isolated(async || {
        let mut bed = WebhookLab::start(CONFIG).await;
        let role = |tenant: &str| format!("arn:aws:iam::123456789012:role/{tenant}");
        for (tenant, repositories) in [
            ("tenant-a", ["a/one", "a/two"]),
            ("tenant-b", ["b/one", "b/two"]),
        ] {
            for repository in repositories {
                bed.lab.registry.only_for(repository, &role(tenant));
            }
        }
        let (a, b) = (
            bed.opted_in("tenant-a").await,
            bed.opted_in("tenant-b").await,
        );
        bed.lab.runs(&a, "own", &of("a/one")).await;
        bed.lab.runs(&b, "own", &of("b/one")).await;
        for (namespace, foreign) in [(&a, "b/two"), (&b, "a/two"), (&b, "a/one")] {
            // The image of the last is on the node, pulled by the other tenant.
            let name = foreign.replace('/', "-");
            let said = bed.lab.cannot_pull(namespace, &name, &of(foreign)).await;
            assert!(said.contains("403"), "{said}");
        }
        assert_eq!(
            bed.lab.registry.principals("a/one"),
            [role("tenant-a")].into()
        );
        assert_eq!(
            bed.lab.registry.principals("b/one"),
            [role("tenant-b")].into()
        );

        // Without the rules both have the token of one user, which opens neither.
        bed.stop().await;
        bed.start_again_with("").await;
        let a = bed.opted_in("tenant-a").await;
        let said = bed.lab.cannot_pull(&a, "no-rule", &of("a/two")).await;
        assert!(said.contains("403"), "{said}");
    });
}
