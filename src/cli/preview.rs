//! `ecr-injector preview`: shows a manifest as it would be admitted. Offline.
//!
//! Standard output has the objects alone, so that they can be piped on; the report goes to standard
//! error.

mod input;
mod notes;
mod verdict;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum, builder::FalseyValueParser};
use serde_json::{Value, json};
use similar::TextDiff;

pub(super) use self::input::Source;
use self::verdict::Verdict;
use super::{
    args::{parse_namespace, read_config},
    stdout,
};
use crate::{
    admission::manifest::{self, text},
    cluster::namespace::{Namespace, OptIn},
    telemetry::printable::{printable, printable_json},
};

const LONG_ABOUT: &str = "\
Show Pods and workloads as they would be admitted, without a cluster.

Pods, the Pod templates of Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs \
and PodTemplates, and Lists of these are printed with the pull secret that the webhook adds in an opted-in namespace. \
Other objects are printed unchanged; comments are lost. Of custom kinds the report tells which registries the Pods of their \
controllers would get.";
const AFTER_HELP: &str = "\
The objects go to standard output; why each was changed or skipped goes to standard error.
Nothing is written to standard output unless all input could be read, and some object in it is valid.

Exit codes:
  0  done, whether something would be changed or not
  1  the input or the configuration could not be read, or there is no valid object in the input
  2  wrong usage
  3  with --exit-code: an object would be changed, or Pods of its controller

Examples:
  ecr-injector preview -f deployment.yaml
  ecr-injector preview -f deployment.yaml --exit-code --quiet >/dev/null
  helm template ./chart | ecr-injector preview -n team --diff
  kubectl get pods -A -o yaml | ecr-injector preview -o patch";

/// The exit code with `--exit-code` if something would be changed.
const CHANGED: u8 = 3;

/// Show Pods and workloads as they would be admitted, without a cluster.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct PreviewArgs {
    /// File, directory (its *.yaml, *.yml and *.json, not its subdirectories) or - for standard
    /// input; may be repeated. By default standard input
    #[arg(
        short,
        long = "filename",
        env = "ECR_INJECTOR_FILENAME",
        value_name = "FILE|DIR|-"
    )]
    filenames: Vec<PathBuf>,
    /// Namespace of objects that have none; by default, default is assumed
    #[arg(
        short,
        long,
        env = "ECR_INJECTOR_NAMESPACE",
        value_name = "NAMESPACE",
        value_parser = parse_namespace
    )]
    namespace: Option<Namespace>,
    /// Output format
    #[arg(
        short,
        long,
        env = "ECR_INJECTOR_OUTPUT",
        value_enum,
        default_value_t,
        conflicts_with = "diff"
    )]
    output: Output,
    /// Print the changes as a unified diff instead of the objects
    #[arg(long, env = "ECR_INJECTOR_DIFF", value_parser = FalseyValueParser::new())]
    diff: bool,
    /// Exit with 3 if an object would be changed, or Pods of its controller
    #[arg(long)]
    exit_code: bool,
    /// Don't write the report; errors are still written
    #[arg(short, long)]
    quiet: bool,
    /// Path of the webhook's configuration file (YAML); by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The format of the objects.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// YAML documents
    #[default]
    Yaml,
    /// JSON: a single object as is, several as a List
    Json,
    /// The JSON Patch of each object that would change, one per line
    Patch,
}

impl PreviewArgs {
    /// Reads all input, then decides, then writes: invalid input never leaves half an output.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = read_config(self.config.as_deref())?;
        let sources = Source::from_paths(&self.filenames)?;
        let mut documents = Vec::new();
        let mut report = Report::default();
        for source in &sources {
            let read = source.read()?;
            if read.is_empty() {
                report.empty.push(source.to_string());
            }
            documents.extend(read);
        }
        if documents.is_empty() {
            bail!("no object in {}", report.empty.join(", "));
        }
        let mut changes = String::new();
        for document in &mut documents {
            let verdicts: Vec<_> = manifest::objects(document)
                .iter()
                .map(|object| Verdict::new(object, self.namespace.as_ref(), &config))
                .collect();
            for verdict in verdicts {
                report.add(&verdict);
                if verdict.patch.0.is_empty() {
                    continue;
                }
                let object = document
                    .pointer_mut(verdict.pointer.as_str())
                    .context("an object is no longer where it was found")?;
                let before = object.clone();
                json_patch::patch(object, &verdict.patch)
                    .with_context(|| format!("patching {}", verdict.title()))?;
                if self.diff {
                    changes += &diff(&verdict.title(), &before, object)?;
                } else if let Output::Patch = self.output {
                    let line = printable_json(&verdict.to_json().to_string());
                    let _ = writeln!(changes, "{line}");
                }
            }
        }
        if report.valid == 0 {
            let reason = match report.objects {
                0 => "no object in the input",
                _ => "no valid object in the input",
            };
            // There is nowhere left to report that this write failed.
            let _ = io::stderr().write_all(report.text.as_bytes());
            bail!(reason);
        }
        let output = match self.output {
            _ if self.diff => changes,
            Output::Yaml => yaml(&documents)?,
            Output::Json => json(documents)?,
            Output::Patch => changes,
        };
        let written = stdout::write(&output);
        let has_changes = report.changed + report.with_changed_pods > 0;
        // The report is written even if the objects could not be.
        if !self.quiet {
            // There is nowhere left to report that this write failed.
            let _ = io::stderr().write_all(report.finish(&config.opt_in).as_bytes());
        }
        written.context("writing to standard output")?;
        if self.exit_code && has_changes {
            return Ok(ExitCode::from(CHANGED));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn yaml(documents: &[Value]) -> anyhow::Result<String> {
    let documents: Result<Vec<_>, _> = documents.iter().map(text::to_yaml).collect();
    Ok(documents?.join("---\n"))
}

fn json(mut documents: Vec<Value>) -> anyhow::Result<String> {
    let document = match documents.len() {
        0 => return Ok(String::new()),
        1 => documents.remove(0),
        _ => {
            // kubectl does not look into a List within a List.
            let items: Vec<Value> = documents.into_iter().flat_map(items).collect();
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        }
    };
    let mut text = printable_json(&serde_json::to_string_pretty(&document)?);
    text.push('\n');
    Ok(text)
}

fn items(mut document: Value) -> Vec<Value> {
    let is_list = document["apiVersion"] == "v1" && document["kind"] == "List";
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if is_list => items,
        Some(taken) => {
            document["items"] = taken;
            vec![document]
        }
        None => vec![document],
    }
}

fn diff(title: &str, before: &Value, after: &Value) -> anyhow::Result<String> {
    let (before, after) = (text::to_yaml(before)?, text::to_yaml(after)?);
    let diff = TextDiff::from_lines(&before, &after)
        .unified_diff()
        .header(
            &format!("{title}\tas written"),
            &format!("{title}\tas admitted"),
        )
        .to_string();
    let lines: Vec<String> = diff.split('\n').map(printable_line).collect();
    Ok(lines.join("\n"))
}

/// Returns a line of a diff, which may have tabs.
fn printable_line(line: &str) -> String {
    let parts: Vec<_> = line.split('\t').map(printable).collect();
    parts.join("\t")
}

/// The report on all objects.
#[derive(Default)]
struct Report {
    text: String,
    objects: usize,
    /// The number of objects that the API server would not reject for their form.
    valid: usize,
    changed: usize,
    /// The number of unchanged objects whose controllers make Pods that would be changed.
    with_changed_pods: usize,
    /// The files without an object.
    empty: Vec<String>,
    /// The namespaces that have to be opted in for the changes.
    namespaces: BTreeSet<String>,
}

impl Report {
    fn add(&mut self, verdict: &Verdict) {
        self.objects += 1;
        self.valid += usize::from(verdict.is_valid());
        self.changed += usize::from(!verdict.patch.0.is_empty());
        self.with_changed_pods += usize::from(verdict.has_injected_pods());
        if verdict.is_injected() {
            self.namespaces.insert(verdict.namespace.clone());
        }
        let _ = write!(self.text, "{verdict}");
    }

    fn finish(mut self, opt_in: &OptIn) -> String {
        let (objects, changed) = (self.objects, self.changed);
        for name in &self.empty {
            let _ = writeln!(self.text, "{}: no object in it", printable(name));
        }
        let plural = if objects == 1 { "" } else { "s" };
        let _ = writeln!(
            self.text,
            "\n{objects} object{plural}, {changed} would be changed"
        );
        if self.with_changed_pods > 0 {
            let _ = writeln!(
                self.text,
                "{} unchanged, whose controllers make Pods that would be changed",
                self.with_changed_pods
            );
        }
        if !self.namespaces.is_empty() {
            let names = self.namespaces.iter();
            let names: Vec<_> = names.map(|name| printable(name)).collect();
            let label = format!("{}={}", opt_in.label, opt_in.value);
            let _ = writeln!(
                self.text,
                "Only Pods of namespaces with the label {label} are changed. To set it:\n  \
                 kubectl label namespace {} {label}",
                names.join(" ")
            );
        }
        self.text
    }
}
