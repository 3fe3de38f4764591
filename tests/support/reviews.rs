//! Reviews as an API server sends them when a controller makes a Pod of an ordinary workload: containers
//! with variables, probes and mounts, the plugins' additions, and `managedFields` that mirror all of it.

use serde_json::{Map, Value, json};

use super::fake_aws::ACCOUNT;

/// A review of the creation of a Pod in this namespace that has this many bytes.
pub fn of_a_pod(namespace: &str, bytes: usize) -> Vec<u8> {
    let mut pod = pod(namespace, 0);
    // As many variables as fit, and the rest in an annotation.
    for variables in 1.. {
        let next = self::pod(namespace, variables);
        if next.to_string().len() > bytes {
            break;
        }
        pod = next;
    }
    let missing = bytes - pod.to_string().len();
    let text = pod["metadata"]["annotations"]["example.com/change-cause"].as_str();
    let text = format!("{}{}", text.unwrap(), ".".repeat(missing));
    pod["metadata"]["annotations"]["example.com/change-cause"] = json!(text);
    assert_eq!(pod.to_string().len(), bytes);
    review(namespace, &pod).to_string().into_bytes()
}

fn review(namespace: &str, pod: &Value) -> Value {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "9a5f3a6c-8d1c-4d9e-b0b5-0f3b0c1f7a11",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=3d1c5a1e-0a44-4f0e-9c0f-6f1f9d0f2a55"]},
            },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// A container for every 24 variables, each with its own.
#[allow(clippy::too_many_lines, reason = "one Pod, written out")]
fn pod(namespace: &str, variables: usize) -> Value {
    let counts: Vec<usize> = (0..=variables / 24)
        .map(|index| (variables - index * 24).min(24))
        .collect();
    let containers: Vec<Value> = counts
        .iter()
        .enumerate()
        .map(|(index, count)| container(index, *count))
        .collect();
    let managed: Map<String, Value> = counts
        .iter()
        .enumerate()
        .map(|(index, count)| {
            (
                format!(r#"k:{{"name":"{}"}}"#, container_name(index)),
                managed_container(*count),
            )
        })
        .collect();
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "generateName": "checkout-7d4b9c6f58-",
            "namespace": namespace,
            "creationTimestamp": null,
            "labels": {
                "app.kubernetes.io/name": "checkout",
                "app.kubernetes.io/part-of": "shop",
                "app.kubernetes.io/version": "2.31.4",
                "pod-template-hash": "7d4b9c6f58",
                "team": "payments",
            },
            "annotations": {
                "example.com/change-cause": "Release 2.31.4 ",
                "prometheus.io/port": "9102",
                "prometheus.io/scrape": "true",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "checkout-7d4b9c6f58",
                "uid": "5b3e0c77-2a4c-4b5a-8a43-4f7f0f5d2c19",
                "controller": true,
                "blockOwnerDeletion": true,
            }],
            "managedFields": [{
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2030-01-01T00:00:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:example.com/change-cause": {}, "f:prometheus.io/port": {}, "f:prometheus.io/scrape": {}},
                        "f:generateName": {},
                        "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:app.kubernetes.io/part-of": {}, "f:pod-template-hash": {}, "f:team": {}},
                        "f:ownerReferences": {".": {}, r#"k:{"uid":"5b3e0c77-2a4c-4b5a-8a43-4f7f0f5d2c19"}"#: {}},
                    },
                    "f:spec": {"f:containers": managed, "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}},
                },
            }],
        },
        "spec": {
            "volumes": [
                {"name": "config", "configMap": {"name": "checkout", "defaultMode": 420}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ]}},
            ],
            "containers": containers,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "checkout",
            "serviceAccount": "checkout",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "priority": 0,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    })
}

fn container_name(index: usize) -> String {
    ["app", "proxy", "metrics", "worker", "cache", "agent"]
        .get(index)
        .map_or_else(|| format!("sidecar-{index}"), ToString::to_string)
}

fn container(index: usize, variables: usize) -> Value {
    let name = container_name(index);
    let variables: Vec<Value> = (0..variables).map(variable).collect();
    json!({
        "name": name,
        "image": format!("{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/shop/{name}:2.31.4"),
        "ports": [{"name": "http", "containerPort": 8080 + index, "protocol": "TCP"}],
        "env": variables,
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "512Mi"}},
        "volumeMounts": [
            {"name": "config", "readOnly": true, "mountPath": "/etc/checkout"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"},
            "timeoutSeconds": 1, "periodSeconds": 5, "successThreshold": 1, "failureThreshold": 3,
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false},
    })
}

fn variable_name(index: usize) -> String {
    format!("CHECKOUT_SETTING_{index}")
}

fn variable(index: usize) -> Value {
    match index % 3 {
        0 => {
            json!({"name": variable_name(index), "valueFrom": {"configMapKeyRef": {"name": "checkout", "key": format!("setting-{index}")}}})
        }
        1 => {
            json!({"name": variable_name(index), "value": format!("https://service-{index}.shop.svc:8443/api?retries=3")})
        }
        _ => {
            json!({"name": variable_name(index), "value": format!(r#"{{"rate":{index},"unit":"s"}}"#)})
        }
    }
}

fn managed_container(variables: usize) -> Value {
    let variables: Map<String, Value> = (0..variables)
        .map(|index| {
            (
                format!(r#"k:{{"name":"{}"}}"#, variable_name(index)),
                json!({".": {}, "f:name": {}, "f:value": {}}),
            )
        })
        .collect();
    json!({
        ".": {}, "f:env": variables, "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}, "f:httpGet": {}},
        "f:name": {}, "f:ports": {}, "f:readinessProbe": {".": {}, "f:httpGet": {}}, "f:resources": {},
        "f:securityContext": {}, "f:terminationMessagePath": {}, "f:volumeMounts": {},
    })
}
