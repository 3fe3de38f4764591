//! The CPU time and the memory of a process, as the kernel counts them.

use std::fs;
use std::time::Duration;

/// `/proc` counts CPU time in these, on every Linux (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of all its threads so far.
pub fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field is the command in parentheses; the 14th and 15th are the times.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|text| text.parse::<f64>().unwrap())
        .sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// A line of `/proc/<pid>/status`, such as `VmRSS`.
pub fn mebibytes(process: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| *name == field).unwrap();
    let kilobytes: f64 = value.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes / 1024.0
}
