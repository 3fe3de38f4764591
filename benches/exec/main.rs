//! `make bench-exec`: what one run of the kubelet's credential plugin and of the docker credential helper costs, beside
//! the programs that people come from.
//!
//! Each run is a process of its own, as a kubelet and a docker client start it: with an environment of its own, over TLS,
//! with all of the system's authorities to read. The runs take turns within each round, so that whatever else the machine
//! does hits all of them. Time is from the start of a process to its end, CPU time the kernel's account of it, memory its
//! peak. `docs/explanation/performance.md` says what came out.
//!
//! | variable | what it names |
//! |---|---|
//! | `ECR_CREDENTIALS` | our binary as it is released; `make bench-exec` builds it |
//! | `ECR_CREDENTIAL_PROVIDER`, `ECR_LOGIN` | cloud-provider-aws' plugin, amazon-ecr-credential-helper: without them only we are measured |
//! | `BENCH_ROUNDS` | the rounds, 30 unless set |
//! | `REPORTS` | a folder for callgrind's reports of our runs, instead of measurements (`make order`) |
#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what it prints is what it is for, a bench that can't go on panics, and here a thread may wait"
)]

mod runs;

#[path = "../../tests/support/mod.rs"]
mod support;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use runs::{Bed, Run, Sample};

const ROUNDS: usize = 30;
/// The runs at once for one registry: the images of a node that has just started.
const AT_ONCE: usize = 12;
/// The most that may lie between the first and the last answer of these.
const SPREAD_MILLISECONDS: f64 = 3.0;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benches too, and without this flag.
    if env::args().any(|argument| argument == "--bench") {
        return measure();
    }
    println!("to measure: make bench-exec");
    ExitCode::SUCCESS
}

/// The program that a variable names.
fn program(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

fn measure() -> ExitCode {
    let ours = program("ECR_CREDENTIALS").expect("ECR_CREDENTIALS names our binary");
    let plugin = program("ECR_CREDENTIAL_PROVIDER");
    let helper = program("ECR_LOGIN");
    let bed = Bed::new(&ours);
    if let Some(folder) = program("REPORTS") {
        for (index, run) in bed.order_runs().iter().enumerate() {
            let report = folder.join(index.to_string());
            let report = format!("--callgrind-out-file={}", report.display());
            let options = ["--quiet", "--tool=callgrind", "--demangle=no", &report];
            run.below("valgrind", &options);
        }
        return ExitCode::SUCCESS;
    }
    let rounds = env::var("BENCH_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut groups = bed.plugin_runs(plugin.as_deref());
    groups.extend(bed.helper_runs(helper.as_deref()));
    for run in groups.iter().flatten() {
        // What is cached is there from then on, and what is read from the disk is in memory.
        run.once();
    }
    for run in groups.iter().flatten() {
        let calls = bed.aws.calls().len();
        run.once();
        let asks = bed.aws.calls().len() > calls;
        assert_eq!(asks, run.asks, "{}: whether it asks AWS", run.name);
    }
    let mut samples: Vec<Vec<Vec<Sample>>> = groups
        .iter()
        .map(|group| vec![Vec::new(); group.len()])
        .collect();
    for _ in 0..rounds {
        for (group, samples) in groups.iter().zip(&mut samples) {
            for (run, samples) in group.iter().zip(samples) {
                samples.push(run.once());
            }
        }
    }
    println!(
        "medians of {rounds} rounds; ratios are to ours of the same round, and so is each \"must\" of docs/explanation/performance.md\n"
    );
    println!(
        "                                                      ms       CPU ms     peak MB    must"
    );
    let mut over = Vec::new();
    for (group, samples) in groups.iter().zip(&samples) {
        for (run, own) in group.iter().zip(samples) {
            over.extend(print_row(run, own, &samples[0]));
        }
        println!();
    }
    over.extend(at_once(&bed));
    over.extend(size(&ours));
    if over.is_empty() {
        return ExitCode::SUCCESS;
    }
    for line in over {
        println!("over: {line}");
    }
    ExitCode::FAILURE
}

/// Prints the figures of a run, and returns what is over its limit.
fn print_row(run: &Run, samples: &[Sample], ours: &[Sample]) -> Option<String> {
    let milliseconds = median(samples.iter().map(|sample| sample.milliseconds));
    let cpu = median(samples.iter().map(|sample| sample.cpu_milliseconds));
    let megabytes = run.peak_megabytes();
    let ratio = |what: fn(&Sample) -> f64| {
        median(
            samples
                .iter()
                .zip(ours)
                .map(|(own, ours)| what(own) / what(ours)),
        )
    };
    let must = run.must.map_or_else(String::new, |must| must.to_string());
    println!(
        "{:<46} {milliseconds:>6.2} {:>5.1}× {cpu:>6.2} {:>5.1}× {megabytes:>6.1}    {must}",
        run.name,
        ratio(|sample| sample.milliseconds),
        ratio(|sample| sample.cpu_milliseconds),
    );
    let must = run.must?;
    let held = milliseconds <= must.milliseconds && megabytes <= must.megabytes;
    (!held).then(|| {
        format!(
            "{}: {milliseconds:.2} ms, {megabytes:.1} MB; must: {must}",
            run.name
        )
    })
}

/// Starts runs for images of one registry together: AWS is asked once.
fn at_once(bed: &Bed) -> Option<String> {
    let run = bed.cold_plugin_run();
    let calls = bed.aws.calls().len();
    let started = std::time::Instant::now();
    let mut ends: Vec<f64> = thread::scope(|scope| {
        let end = || {
            run.once();
            started.elapsed().as_secs_f64() * 1e3
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(end)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    ends.sort_by(f64::total_cmp);
    let calls = bed.aws.calls().len() - calls;
    let (first, last) = (ends[0], ends[AT_ONCE - 1]);
    println!(
        "{AT_ONCE} at once, nothing cached: {calls} call, first answer after {first:.1} ms, last {last:.1} ms\n"
    );
    (calls != 1 || last - first > SPREAD_MILLISECONDS).then(|| {
        format!(
            "{AT_ONCE} at once: {calls} calls, {:.1} ms from first to last",
            last - first
        )
    })
}

fn size(ours: &Path) -> Option<String> {
    let bytes = std::fs::metadata(ours).unwrap().len();
    println!("{bytes} bytes");
    (bytes > 6_000_000).then(|| format!("{bytes} bytes; 6,000,000 are the most"))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
