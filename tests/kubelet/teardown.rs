//! The machine of a test leaves nothing behind, also where the test is killed.

use std::env;
use std::time::Duration;

use serde_json::json;

use crate::isolation::{Machine, is_inside, isolated};
use crate::lab::{Lab, Plugin};
use crate::support::eventually;

const RUNNING: &str = "a Pod runs; waiting to be killed";

#[test]
fn killed_test_leaves_no_process_and_no_cgroup() {
    let name = "teardown::killed_test_leaves_no_process_and_no_cgroup";
    if is_inside() {
        return isolated(async || {
            let lab = Lab::with(Plugin::default()).await;
            let shop = lab.plane.namespace("shop", &[]).await;
            lab.runs(&shop, "web", &json!({})).await;
            println!("{RUNNING}");
            std::future::pending::<()>().await;
        });
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
        let machine = Machine::start(&env::current_exe().unwrap(), &arguments);
        eventually(RUNNING, Duration::from_mins(3), async || {
            machine.log().contains(RUNNING).then_some(())
        })
        .await;
        let processes = machine.processes();
        for wanted in ["kubelet", "kube-apiserver", "/pause web"] {
            let runs = processes
                .iter()
                .any(|process| process.command_line.contains(wanted));
            assert!(runs, "{wanted}: {processes:#?}");
        }
        machine.lose().await;
        let left = processes.iter().filter(|process| process.runs());
        assert_eq!(left.count(), 0);
    });
}
