//! A collector of traces, which decodes what it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::post;
use http::StatusCode;
use hyper::body::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;

/// The bodies of the requests that a collector has received.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<Vec<Bytes>>>);

impl Received {
    pub fn bodies(&self) -> Vec<Bytes> {
        self.0.lock().unwrap().clone()
    }

    pub fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let bodies = self.0.lock().unwrap();
        let decode = |body: &Bytes| ExportTraceServiceRequest::decode(body.clone()).unwrap();
        bodies.iter().map(decode).collect()
    }

    pub fn spans(&self) -> Vec<Span> {
        let requests = self.requests().into_iter();
        let resources = requests.flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|spans| spans.scope_spans);
        scopes.flat_map(|spans| spans.spans).collect()
    }
}

/// A collector on a loopback port, which answers or never does.
pub async fn collector(answers: bool) -> (String, Received) {
    let received = Received::default();
    let kept = received.clone();
    let take = async move |body: Bytes| {
        kept.0.lock().unwrap().push(body);
        if !answers {
            std::future::pending::<()>().await;
        }
        StatusCode::OK
    };
    let router = Router::new().route("/v1/traces", post(take));
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service),
            );
        }
    });
    (url, received)
}

/// An id as the number that its hexadecimal form writes.
pub fn number(id: &[u8]) -> u128 {
    id.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// Those of the attributes that are texts.
pub fn texts(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |attribute: &'_ KeyValue| match attribute.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        _ => None,
    };
    let texts = attributes
        .iter()
        .filter_map(|it| Some((&*it.key, text(it)?)));
    texts.collect()
}
