//! The reads of a bundle beside those of an installation: texts instead of what follows from them.

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{
    CONCURRENCY, Survey,
    reader::{List, Reader},
};
use crate::cli::doctor::{
    bundle::contents::Parts,
    finding::{Reading, Right},
    installation::{Installation, name, serving},
};

/// The lines and the bytes of a log that are read, its last ones.
const LOG: &str = "tailLines=5000&limitBytes=2097152&timestamps=false";
/// The most Events.
const MAX_EVENTS: usize = 1_000;
/// The replicas' port for metrics, where they name none.
const ADMIN_PORT: u64 = 8080;

impl Survey<'_> {
    /// Reads what only a bundle has.
    pub(crate) async fn parts(&self, it: &Installation) -> Parts {
        let reader = &self.reader();
        let own = &*it.names.namespace;
        let config = async {
            let Some((map, key)) = &it.names.config else {
                return Reading::Read(None);
            };
            let path = format!("/api/v1/namespaces/{own}/configmaps/{map}");
            let right = Right::new("get", format!("configmaps/{map}"), Some(own));
            let object = reader.get(&path, right).await;
            object.map(|object| Some(object?["data"][key].as_str()?.to_owned()))
        };
        let replicas = it.replicas.value().map_or(&[][..], Vec::as_slice);
        let replicas = replicas.iter().map(async |pod| {
            let pod_name = name(pod);
            let ports = serving(&pod["spec"]).map(|container| &container["ports"]);
            let mut ports = ports.and_then(Value::as_array).into_iter().flatten();
            let admin = ports.find(|port| port["name"] == "admin");
            let port = admin.and_then(|port| port["containerPort"].as_u64());
            let port = port.unwrap_or(ADMIN_PORT);
            let container = serving(&pod["spec"]).and_then(|it| it["name"].as_str());
            let container = container.unwrap_or_default();
            let path = format!("/api/v1/namespaces/{own}/pods/{pod_name}");
            let (metrics, log) = (
                format!("{path}:{port}/proxy/metrics"),
                format!("{path}/log?container={container}&{LOG}"),
            );
            let (metrics, log) = tokio::join!(
                reader.text(&metrics, Right::new("get", "pods/proxy", Some(own))),
                reader.text(&log, Right::new("get", "pods/log", Some(own))),
            );
            (pod_name.to_owned(), metrics, log)
        });
        let replicas: Vec<_> = replicas.collect();
        let replicas = stream::iter(replicas).buffered(CONCURRENCY).collect();
        let (config, replicas, events) = tokio::join!(config, replicas, events(reader, own));
        Parts {
            config,
            replicas,
            events,
        }
    }
}

/// Reads the Events of the installation's namespace, and those that ecr-injector published.
async fn events(reader: &Reader, own: &str) -> Reading<Vec<Value>> {
    let of_own = format!("/api/v1/namespaces/{own}/events");
    let lists = [
        (&*of_own, "", Some(own)),
        (
            "/api/v1/events",
            "fieldSelector=reportingComponent%3Decr-injector",
            None,
        ),
    ];
    let mut all = Vec::new();
    for (path, query, namespace) in lists {
        let list = List {
            path,
            query,
            metadata: false,
            right: Right::new("list", "events", namespace),
        };
        match reader.list(list, |event| Some(event.clone())).await {
            Reading::Read(events) => all.extend(events.unwrap_or_default()),
            other => return other.map(Option::unwrap_or_default),
        }
    }
    let seen_at = |event: &Value| {
        let at = event["lastTimestamp"].as_str();
        at.or(event["eventTime"].as_str()).map(str::to_owned)
    };
    all.sort_by_key(|event| std::cmp::Reverse(seen_at(event)));
    all.dedup_by(|one, other| one["metadata"]["uid"] == other["metadata"]["uid"]);
    all.truncate(MAX_EVENTS);
    Reading::Read(all)
}
