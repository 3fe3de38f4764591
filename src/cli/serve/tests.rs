//! Unit tests of `serve`: what becomes of the process when one of its tasks fails.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use clap::Parser;
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::{
    process::clock::{Clock, SystemClock},
    telemetry::log::captured::Log,
};

const KUBECONFIG: &str = "{apiVersion: v1, kind: Config, current-context: x, \
    contexts: [{name: x, context: {cluster: x, user: x}}], users: [{name: x, user: {}}], \
    clusters: [{name: x, cluster: {server: \"http://127.0.0.1:9\"}}]}";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A clock that can be made to panic.
#[derive(Default)]
struct FailingClock(AtomicBool);

impl Clock for FailingClock {
    fn now(&self) -> Timestamp {
        assert!(!self.0.load(SeqCst), "the clock fails");
        SystemClock.now()
    }
}

/// Returns the arguments for a cluster that can't be reached, with a certificate in files.
fn arguments(folder: &TempDir) -> ServeArgs {
    let signed = rcgen::generate_simple_self_signed([format!("{SERVICE}.{SERVICE}.svc")]);
    let signed = signed.expect("a certificate");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.into_os_string()
    };
    let kubeconfig = write("kubeconfig", KUBECONFIG);
    let certificate = write("tls.crt", &signed.cert.pem());
    let key = write("tls.key", &signed.signing_key.serialize_pem());
    let flags = [
        ("--kubeconfig", kubeconfig),
        ("--tls-cert", certificate),
        ("--tls-key", key),
    ];
    let flags = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.into(), value]);
    let parsed = Arguments::try_parse_from(std::iter::once("serve".into()).chain(flags));
    parsed.expect("arguments").serve
}

async fn start(arguments: &ServeArgs, clock: &Arc<FailingClock>) -> Running {
    tls::install_crypto_provider();
    let free = async || {
        let socket = TcpListener::bind("127.0.0.1:0").await;
        socket.expect("a port")
    };
    let sockets = Sockets {
        admission: Some((free().await, 8)),
        admin: free().await,
    };
    let output = tempfile::tempfile().expect("a file");
    let writer = LogWriter::start(output).expect("a thread");
    let filter = log::start(log::Format::Text, "off", writer.clone()).expect("a filter");
    let context = Context::new(&arguments.context).await;
    let mut context = context.expect("the parts");
    context.clock = clock.clone();
    let started = arguments.start_in(context, (filter, writer), sockets);
    started.expect("started")
}

#[test]
fn flags_of_admission_are_refused_without_admission() {
    let parse = |flags: &[&str]| {
        let flags = ["serve", "--no-admission"].iter().chain(flags);
        Arguments::try_parse_from(flags).map(|it| it.serve.no_admission)
    };
    assert!(parse(&[]).expect("arguments"));
    assert!(parse(&["--admin-listen", "[::]:9090", "--lease-name", "x"]).is_ok());
    for flag in [
        "--listen=[::]:8443",
        "--service-name=x",
        "--tls-secret=x",
        "--ca-secret=x",
        "--webhook-configuration=x",
        "--client-ca=x",
        "--tls-min-version=1.2",
    ] {
        let refused = parse(&[flag]).expect_err(flag);
        assert_eq!(
            refused.kind(),
            clap::error::ErrorKind::ArgumentConflict,
            "{flag}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_background_task_ends_the_process_with_its_code() {
    let log = Log::default();
    let _guard = log.start();
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Arc::<FailingClock>::default();
    let running = start(&arguments(&folder), &clock).await;
    let early = timeout(Duration::from_mins(1), running.failed()).await;
    assert!(early.is_err(), "a task ended without a fault");
    clock.0.store(true, SeqCst);
    std::fs::write(folder.path().join("tls.crt"), "changed").expect("written");
    let code = timeout(Duration::from_mins(1), running.failed()).await;
    assert_eq!(code.expect("noticed"), ExitCode::from(TASK_FAILED));
    let line = "a background task ended unexpectedly; ending the process, to be restarted \
        task=\"serving certificate\" panicked=true";
    assert_eq!(log.count(line), 1);
    clock.0.store(false, SeqCst);
    running.drain();
    running.shut_down(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn listener_that_ends_before_its_stop_is_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(&arguments(&folder), &Arc::default()).await;
    // As the listeners are run.
    let supervisor = &running.context.supervisor;
    supervisor
        .supervise("a listener", || running.admin.stop.is_cancelled(), async {})
        .await;
    assert_eq!(supervisor.failed().await, "a listener");
    running.drain();
    running.shut_down(Duration::ZERO).await;
}
