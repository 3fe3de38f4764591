//! `make bench`: what one warm admission costs, beside the least that any HTTPS server would pay for the same bytes.
//!
//! | process | what it is |
//! |---|---|
//! | this one | starts the others, serves a fake API server and a fake AWS (idle while it measures), takes the pipes of logs |
//! | ours | the binary itself, or the one that `ECR_INJECTOR` names, as `make compare` does: `ecr-injector serve` |
//! | ours, `--log warn` | the same without a log line for each admission |
//! | bare | axum and rustls with a handler that reads the body and answers what ours did ([`bare`]) |
//! | agnhost | Kubernetes' own sample webhook, if `AGNHOST` names it, as `make compare` does: its path that adds a sidecar to each Pod |
//! | load | a client on keep-alive connections, one process for each measurement ([`load`]) |
//!
//! Each server has a core for itself, with more requests than it can answer: what is compared is the work of a request.
//! The servers take turns within each round, so that whatever else the machine does hits all of them. CPU time is the
//! kernel's account of the server's process, user and system, and so includes the sockets. `docs/explanation/performance.md` says
//! what came out.
#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what it prints is what it is for, a bench that can't go on panics, and here a thread may wait"
)]

mod api_server;
mod bare;
mod instructions;
mod load;
mod processes;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use api_server::ApiServer;
use processes::Server;
use support::child::GuardedFolder;
use support::{Authority, FakeAws, ServingCertificate, reviews, webhook};

/// As the binary has it: what is compared is the handlers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const KILOBYTES: [usize; 3] = [4, 8, 40];
/// How long each server is measured in each round; `BENCH_SECONDS` changes it.
const SECONDS: f64 = 2.0;
const SERVER_NAME: &str = "ecr-injector.ecr-injector.svc";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [bare::COMMAND, rest @ ..] => bare::run(rest),
        [load::COMMAND, rest @ ..] => load::run(rest),
        [instructions::COMMAND, rest @ ..] => instructions::run(rest),
        // `cargo test --all-targets` runs benches too, and without this flag.
        flags if flags.contains(&"--bench") => compare(),
        _ => println!("to measure: make bench"),
    }
}

/// One measurement of one server.
#[derive(Clone, Copy)]
struct Sample {
    requests_per_second: f64,
    cpu_microseconds: f64,
    p50_microseconds: f64,
    p99_microseconds: f64,
}

fn compare() {
    processes::run_on(processes::CLIENTS_CORE);
    let setting = Setting::new();
    let answer = setting.folder.path().join("answer.json");
    let ours = setting.ours("ours", &["--log-format", "json"]);
    let quiet = setting.ours(
        "ours, --log warn",
        &["--log-format", "json", "--log", "warn"],
    );
    for server in [&ours, &quiet] {
        // The first one makes the pull secret; from then on the namespace is warm.
        setting.ask(server, &answer);
    }
    let bare = setting.bare(&answer);
    let mut servers = vec![bare, ours, quiet];
    servers.extend(setting.agnhost());

    println!(
        "A core for the server, and one for the load; each number is the median of {ROUNDS} rounds of {} s with {} connections, and each ratio that\n\
         of the rounds' own ratios to the bare handler. Reviews of a Pod of this size, in an opted-in namespace:\n",
        setting.duration.as_secs_f64(),
        load::CONNECTIONS,
    );
    println!(
        "   Pod  handler            requests/s            CPU µs/request            p50 µs    p99 µs"
    );
    let before = setting.calls(&servers);
    for kilobytes in KILOBYTES {
        let rounds = setting.measure(&servers, kilobytes);
        for (index, server) in servers.iter().enumerate() {
            print_row(kilobytes, server.name, index, &rounds);
        }
        println!();
    }
    println!("Memory after all this    anonymous      peak      first connection after");
    for server in &servers {
        println!(
            "        {:<17} {:>6.1} MiB  {:>5.1} MiB  {:>10} ms",
            server.name,
            server.mebibytes("RssAnon"),
            server.mebibytes("VmHWM"),
            server.started.as_millis(),
        );
    }
    instructions::print(&answer);
    let after = setting.calls(&servers);
    println!(
        "\nCalls for all these admissions: {} to the API server, {} to AWS",
        after.0 - before.0,
        after.1 - before.1
    );
    assert_eq!(after, before, "a warm admission called somebody");
}

/// Prints the medians of a server's samples, and those of the ratios to the first server of the same round.
fn print_row(kilobytes: usize, name: &str, index: usize, rounds: &[Vec<Sample>]) {
    let median_of =
        |what: fn(&Sample) -> f64| median(rounds.iter().map(|round| what(&round[index])));
    let ratio_of = |what: fn(&Sample) -> f64| {
        let ratio = |round: &Vec<Sample>| what(&round[index]) / what(&round[0]);
        median(rounds.iter().map(ratio))
    };
    println!(
        "{kilobytes:>3} KB  {name:<17} {:>10.0}  {:>5.2} ×   {:>10.1}  {:>5.2} ×  {:>8.0}  {:>8.0}",
        median_of(|sample| sample.requests_per_second),
        ratio_of(|sample| sample.requests_per_second),
        median_of(|sample| sample.cpu_microseconds),
        ratio_of(|sample| sample.cpu_microseconds),
        median_of(|sample| sample.p50_microseconds),
        median_of(|sample| sample.p99_microseconds),
    );
}

/// The environment of the servers.
struct Setting {
    folder: GuardedFolder,
    certificate: ServingCertificate,
    authority: std::path::PathBuf,
    api_server: ApiServer,
    aws: FakeAws,
    duration: Duration,
}

impl Setting {
    fn new() -> Self {
        support::crypto();
        let folder = GuardedFolder::create();
        let authority = Authority::new("bench");
        let certificate = authority.serving(&[SERVER_NAME], folder.path(), "serving");
        let authority_file = folder.path().join("ca.crt");
        fs::write(&authority_file, authority.pem()).unwrap();
        let api_server = ApiServer::start();
        let kubeconfig = api_server.kubeconfig().to_string();
        fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        for kilobytes in KILOBYTES {
            let body = reviews::of_a_pod(api_server::NAMESPACE, kilobytes * 1024);
            fs::write(body_file(folder.path(), kilobytes), body).unwrap();
        }
        let seconds = std::env::var("BENCH_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
        Self {
            folder,
            certificate,
            authority: authority_file,
            api_server,
            aws: FakeAws::start(),
            duration: Duration::from_secs_f64(seconds),
        }
    }

    fn ours(&self, name: &'static str, flags: &[&str]) -> Server {
        let (address, admin) = (free_address(), free_address());
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--listen={address}"),
            format!("--admin-listen={admin}"),
            format!("--tls-cert={}", self.certificate.certificate.display()),
            format!("--tls-key={}", self.certificate.key.display()),
            format!("--kubeconfig={}", path("kubeconfig")),
        ];
        arguments.extend(flags.iter().map(ToString::to_string));
        let program = std::env::var_os("ECR_INJECTOR");
        let program = program.unwrap_or(env!("CARGO_BIN_EXE_ecr-injector").into());
        let program = Path::new(&program);
        let server = Server::start(name, program, &arguments, self.aws.environment(), address);
        server.with_admin(admin)
    }

    fn bare(&self, answer: &Path) -> Server {
        let address = free_address();
        let arguments = [
            bare::COMMAND.to_owned(),
            address.to_string(),
            self.certificate.certificate.display().to_string(),
            self.certificate.key.display().to_string(),
            answer.display().to_string(),
        ];
        let program = std::env::current_exe().unwrap();
        Server::start("bare", &program, &arguments, Vec::new(), address)
    }

    /// The peer, if it has been built. It writes no line for an admission.
    fn agnhost(&self) -> Option<Server> {
        let program = std::env::var_os("AGNHOST")?;
        let address = free_address();
        let arguments = [
            "webhook".to_owned(),
            format!("--port={}", address.port()),
            format!("--tls-cert-file={}", self.certificate.certificate.display()),
            format!("--tls-private-key-file={}", self.certificate.key.display()),
            "--sidecar-image=sidecar.example/sidecar:1".to_owned(),
        ];
        let program = Path::new(&program);
        let server = Server::start("agnhost", program, &arguments, Vec::new(), address);
        Some(server.with_path("/mutating-pods-sidecar"))
    }

    /// All rounds for a size; in each the servers take turns, the other way round every second time.
    fn measure(&self, servers: &[Server], kilobytes: usize) -> Vec<Vec<Sample>> {
        let body = body_file(self.folder.path(), kilobytes);
        let sample = |server: &Server| {
            let before = server.cpu_time();
            let load = load::Load {
                address: server.address,
                path: server.path,
                authority: &self.authority,
                body: &body,
                duration: self.duration,
            };
            let outcome = load.run_in_a_process();
            let cpu = server.cpu_time().saturating_sub(before);
            Sample {
                requests_per_second: outcome.requests / outcome.took.as_secs_f64(),
                cpu_microseconds: cpu.as_secs_f64() * 1e6 / outcome.requests,
                p50_microseconds: outcome.p50.as_secs_f64() * 1e6,
                p99_microseconds: outcome.p99.as_secs_f64() * 1e6,
            }
        };
        let round = |number: usize| -> Vec<Sample> {
            if number.is_multiple_of(2) {
                return servers.iter().map(sample).collect();
            }
            let mut samples: Vec<Sample> = servers.iter().rev().map(sample).collect();
            samples.reverse();
            samples
        };
        (0..ROUNDS).map(round).collect()
    }

    /// One admission; its answer goes to a file.
    fn ask(&self, server: &Server, answer: &Path) {
        let load = load::Load {
            address: server.address,
            path: server.path,
            authority: &self.authority,
            body: &body_file(self.folder.path(), KILOBYTES[0]),
            duration: Duration::ZERO,
        };
        let body = load.ask_once();
        assert!(
            String::from_utf8_lossy(&body).contains("JSONPatch"),
            "the Pod was not patched"
        );
        fs::write(answer, body).unwrap();
    }

    /// The calls to the API server and to AWS so far, but for what asks again and again here: for the Lease, which isn't
    /// there, and for the guard, which isn't either. As the callers count them, which has to be what arrived.
    fn calls(&self, servers: &[Server]) -> (usize, usize) {
        let counted = |metric: &str| -> f64 {
            let all = servers.iter().filter_map(Server::metrics);
            all.map(|metrics| webhook::sum(&metrics, metric)).sum()
        };
        let others = [r#"{resource="leases"}"#, r#"{verb="dry_run"}"#];
        let others =
            others.map(|labels| counted(&format!("ecr_injector_kube_api_calls_total{labels}")));
        let arrived = (self.api_server.calls(), self.aws.calls().len());
        let to_api_server =
            counted("ecr_injector_kube_api_calls_total") - others.iter().sum::<f64>();
        let to_aws = counted("ecr_injector_aws_calls_total");
        for (count, counted) in [(arrived.0, to_api_server), (arrived.1, to_aws)] {
            assert_eq!(format!("{counted:.0}"), count.to_string(), "{arrived:?}");
        }
        arrived
    }
}

fn body_file(folder: &Path, kilobytes: usize) -> std::path::PathBuf {
    folder.join(format!("review-{kilobytes}.json"))
}

fn free_address() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
