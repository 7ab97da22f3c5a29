//! `faasnet-reading-runtime`: stands in for the OCI runtime on a test bed.

use clap::Parser;
use faasnet_loadtest::reading::ReadingRuntime;

fn main() -> anyhow::Result<()> {
    ReadingRuntime::parse().run()
}
