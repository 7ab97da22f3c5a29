//! The console in a real Chromium, on a real manager with real agents. Needs root and the packages that
//! `./check` installs.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

mod browser;
mod docs;
mod fleet;
mod modules;
mod recording;
mod thousand;

use faasnet_loadtest::rig::ClusterSpec;

/// A cluster whose VMs have room for one instance of 256 MiB each, so that every start goes to another VM.
fn spec(vms: usize) -> ClusterSpec {
    let mut spec = ClusterSpec::new(env!("CARGO_BIN_EXE_faasnet"), vms);
    spec.settings.insert("AGENT__MEMORY_BYTES".into(), (256_u64 << 20).to_string());
    spec
}
