//! `ecr-injector doctor pod`: says about one Pod whether it can pull its images from ECR, and if
//! not, why.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    arguments::{InstallationArgs, installed_in, run_on_cluster},
    finding::Reading,
    output,
    pod::{Verdict, verdict},
    survey::Survey,
};
use crate::{
    admission::manifest::{Content, objects},
    cli::{args::parse_namespace, preview::Source, stdout},
    cluster::namespace::Namespace,
};

const AFTER_HELP: &str = "\
Exit codes:
  0  nothing is wrong with it, or it is meant to be so (opted out, no image of ECR)
  1  something is wrong, or nothing could be found out
  2  wrong usage

Examples:
  ecr-injector doctor pod team-a/web-7f9c5d-x2x4v
  ecr-injector doctor pod web-7f9c5d-x2x4v -n team-a -o json
  kubectl get deployment web -n team-a -o yaml | ecr-injector doctor pod -f -";

/// Say about one Pod whether it can pull its images from ECR, and if not, why
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct PodArgs {
    /// Pod, as NAMESPACE/NAME, or NAME with -n
    #[arg(
        value_name = "POD",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    pod: Option<String>,
    /// File with Pods or workloads that are not in the cluster yet, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Namespace of the Pod, unless the Pod names one
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<Namespace>,
    /// Namespace of the installation; by default that of the Pod, outside a cluster ecr-injector
    #[arg(long, env = "ECR_INJECTOR_INSTALL_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    install_namespace: Option<Namespace>,
    #[command(flatten)]
    installation: InstallationArgs,
}

/// A Pod to examine.
enum Subject {
    Stored(Namespace, String),
    Written(Namespace, String, Value),
}

impl PodArgs {
    /// Examines the Pods, and fails if something is wrong with one.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let subjects = self.subjects()?;
        let config = self.installation.config()?;
        run_on_cluster(&self.installation.connection, async |cluster| {
            let namespace = installed_in(self.install_namespace.as_ref(), &cluster)?;
            let survey = Survey {
                cluster: &cluster,
                namespace: &namespace,
                release: &self.installation.release,
                config: config.as_ref(),
                is_pre: false,
                image: None,
            };
            let shared = survey.shared().await;
            let mut verdicts: Vec<(String, Verdict)> = Vec::new();
            for subject in subjects {
                let (title, case) = match subject {
                    Subject::Written(namespace, title, pod) => {
                        (title, shared.case(&namespace, pod, false).await)
                    }
                    Subject::Stored(namespace, name) => {
                        let title = format!("{namespace}/{name}");
                        match shared.stored(&namespace, &name).await {
                            Reading::Read(Some(case)) => (title, case),
                            Reading::Read(None) => bail!(
                                "there is no Pod {title} in {}; with -f one of a file is examined",
                                cluster.server
                            ),
                            other => match other.get() {
                                Ok(_) => continue,
                                Err(finding) => {
                                    bail!("reading the Pod {title}: {}", finding.text())
                                }
                            },
                        }
                    }
                };
                verdicts.push((title, verdict(&case)));
            }
            let text = output::pods(&verdicts, self.installation.output.format());
            stdout::write(&text).context("writing to standard output")?;
            let is_ok = verdicts.iter().all(|(_, verdict)| verdict.is_ok);
            Ok(if is_ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
    }

    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        let Some(file) = &self.file else {
            let pod = self.pod.as_deref().unwrap_or_default();
            let (namespace, name) = match pod.split_once('/') {
                Some((namespace, name)) => (parse_namespace(namespace).ok(), name),
                None => (self.namespace.clone(), pod),
            };
            let namespace = namespace.with_context(|| {
                format!("{pod:?} names no namespace: write NAMESPACE/NAME, or name it by -n")
            })?;
            let is_name =
                name.len() <= 253 && name.split('.').all(crate::cluster::namespace::is_label);
            anyhow::ensure!(is_name, "{name:?} can't be the name of a Pod");
            return Ok(vec![Subject::Stored(namespace, name.to_owned())]);
        };
        let sources = Source::from_paths(std::slice::from_ref(file))?;
        let mut subjects = Vec::new();
        for source in sources {
            for document in source.read()? {
                for object in objects(&document) {
                    let Content::Template(path) = &object.content else {
                        continue;
                    };
                    let template = object.value.pointer(path.as_str());
                    let Some(template) = template.filter(|it| it.is_object()) else {
                        continue;
                    };
                    let namespace = match object.namespace {
                        Some(name) => parse_namespace(name).ok(),
                        None => self.namespace.clone(),
                    };
                    let (kind, name) = (object.kind, object.name);
                    let namespace = namespace.with_context(|| {
                        format!("the {kind} {name} names no namespace: name it by -n")
                    })?;
                    let title = format!("{kind} {namespace}/{name}");
                    let pod = as_pod(template);
                    subjects.push(Subject::Written(namespace, title, pod));
                }
            }
        }
        anyhow::ensure!(
            !subjects.is_empty(),
            "{} has no Pod and no workload",
            file.display()
        );
        Ok(subjects)
    }
}

/// Returns a template as the Pod that a controller makes of it.
fn as_pod(template: &Value) -> Value {
    json!({"metadata": template["metadata"], "spec": template["spec"]})
}
