//! Calls of `ip` and `tc`; what they complain about becomes the error.

use anyhow::{Context, ensure};
use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

pub fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    run("ip", arguments)
}

pub fn tc(arguments: &[&str]) -> anyhow::Result<String> {
    run("tc", arguments)
}

/// Several lines for `ip` inside one namespace, in one process.
pub fn ip_batch(namespace: &str, lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip (package iproute2)")?;
    child.stdin.take().expect("stdin was asked for").write_all(lines.as_bytes()).context("write to ip")?;
    let output = child.wait_with_output().context("wait for ip")?;
    checked(&output, || format!("ip -n {namespace} with\n{lines}"))
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program} (package iproute2)"))?;
    checked(&output, || format!("{program} {}", arguments.join(" ")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn checked(output: &Output, what: impl Fn() -> String) -> anyhow::Result<()> {
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", what(), complaint.trim());
    Ok(())
}
