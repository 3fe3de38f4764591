//! Plain calls to the API server, and who it was that refused one: for tests that are about the answer and not about the
//! object.

use http::{Method, Request};
use kube::Client;
use kube::core::Status;
use serde_json::{Value, json};

/// Somebody who calls the API server.
pub struct Caller(pub Client);

/// The body of a call that the API server allowed, or the status by which it refused.
pub struct Outcome(pub Result<String, Box<Status>>);

impl Caller {
    pub async fn get(&self, path: &str) -> Outcome {
        self.call(Method::GET, path, "json", None).await
    }

    pub async fn post(&self, path: &str, object: &Value) -> Outcome {
        self.call(Method::POST, path, "json", Some(object)).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Outcome {
        self.call(Method::PUT, path, "json", Some(object)).await
    }

    pub async fn delete(&self, path: &str) -> Outcome {
        self.call(Method::DELETE, path, "json", None).await
    }

    pub async fn merge(&self, path: &str, change: &Value) -> Outcome {
        let kind = "merge-patch+json";
        self.call(Method::PATCH, path, kind, Some(change)).await
    }

    pub async fn json_patch(&self, path: &str, operations: &Value) -> Outcome {
        let kind = "json-patch+json";
        self.call(Method::PATCH, path, kind, Some(operations)).await
    }

    /// Server-side apply, forced, under the webhook's field manager.
    pub async fn apply(&self, path: &str, object: &Value) -> Outcome {
        let path = format!("{path}?fieldManager=ecr-injector&force=true");
        let kind = "apply-patch+yaml";
        self.call(Method::PATCH, &path, kind, Some(object)).await
    }

    pub async fn apply_dry_run(&self, path: &str, object: &Value) -> Outcome {
        let path = format!("{path}?fieldManager=ecr-injector&force=true&dryRun=All");
        let kind = "apply-patch+yaml";
        self.call(Method::PATCH, &path, kind, Some(object)).await
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Outcome {
        let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", format!("application/{kind}"))
            .body(body);
        match self.0.request_text(request.unwrap()).await {
            Ok(body) => Outcome(Ok(body)),
            Err(kube::Error::Api(status)) => Outcome(Err(status)),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// The rules of RBAC that speak of this caller, as text.
    pub async fn rights_in(&self, namespace: &str) -> Vec<String> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let answer = self.post(reviews, &review).await.allowed();
        let rules = answer["status"]["resourceRules"].as_array().unwrap();
        rules.iter().map(Value::to_string).collect()
    }
}

impl Outcome {
    #[track_caller]
    pub fn allowed(self) -> Value {
        match self.0 {
            Ok(body) => serde_json::from_str(&body).unwrap(),
            Err(status) => panic!("refused: {status:?}"),
        }
    }

    /// RBAC refused.
    #[track_caller]
    pub fn forbidden(self) {
        match self.0 {
            Ok(body) => panic!("allowed: {body}"),
            Err(status) => assert!(status.code == 403, "{status:?}"),
        }
    }

    /// A `ValidatingAdmissionPolicy` refused, and said this.
    #[track_caller]
    pub fn denied(self, saying: &str) {
        match self.0 {
            Ok(body) => panic!("allowed: {body}"),
            Err(status) => {
                let by_policy = status.code == 422 && status.message.contains("denied request: ");
                assert!(by_policy && status.message.contains(saying), "{status:?}");
                if status
                    .message
                    .contains("denied request: ecr-injector writes")
                {
                    super::shows("`denied request: ecr-injector writes …`", &status.message);
                }
            }
        }
    }

    /// The API server called this webhook, and failed.
    pub fn tried_to_call(&self, webhook: &str) -> bool {
        let failure = format!("failed calling webhook {webhook:?}");
        matches!(&self.0, Err(status) if status.message.contains(&failure))
    }
}
