//! `faasnet-loadtest`: the test bed and the measurements of this repository.

use clap::{Parser, Subcommand};
use faasnet_loadtest::{bed::cli::BedVerb, compare::Compare};

#[derive(Parser)]
#[command(name = "faasnet-loadtest", version, about = "Test bed and load tests for FaaSNet")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Network namespaces joined by a bridge, with shaped links
    #[command(subcommand)]
    Bed(BedVerb),
    /// One VM from the call to the first answer, beside ctr pull and run of the same image
    Compare(Compare),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Arguments::parse().verb {
        Verb::Bed(verb) => verb.run(),
        Verb::Compare(compare) => compare.run(),
    }
}
