//! A bare server to compare the webhook with: the same crates with their defaults, no bounds, no
//! guards, and a handler that reads the body and answers with fixed bytes.

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use ecr_injector::process::clock::SystemClock;
use ecr_injector::tls::files::Files;
use ecr_injector::tls::{self, CertResolver, MinVersion};
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const COMMAND: &str = "bare";

/// Serves until it is killed.
pub fn run(arguments: &[&str]) {
    let [address, certificate, key, answer] = arguments else {
        panic!("expected an address, a certificate, a key and an answer");
    };
    tls::install_crypto_provider();
    let files = Files {
        certificate: certificate.into(),
        key: key.into(),
    };
    let cert = files.cert(&SystemClock).unwrap();
    let config = tls::server_config(CertResolver::new(cert), MinVersion::Tls13, None);
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let answer = Bytes::from(fs::read(answer).unwrap());
    let router = router(answer);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve(address, acceptor, router));
}

/// Serves one connection in memory, in a task.
pub fn serve_in_memory(stream: DuplexStream, answer: Vec<u8>) {
    tokio::spawn(serve_connection(stream, router(answer.into())));
}

fn router(answer: Bytes) -> Router {
    Router::new().route(
        "/mutate",
        post(async move |request: Request| handle(request, answer).await),
    )
}

async fn handle(request: Request, answer: Bytes) -> Result<Response, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    std::hint::black_box(body);
    Ok(([(CONTENT_TYPE, "application/json")], Body::from(answer)).into_response())
}

async fn serve(address: &str, acceptor: TlsAcceptor, router: Router) {
    let listener = TcpListener::bind(address).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            // The probe that waits for the port makes no handshake.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            serve_connection(stream, router).await;
        });
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let service = TowerToHyperService::new(router);
    // A client that goes at the end of its measurement is no failure.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
