//! `faasnet-loadtest`: the test bed and the measurements of this repository.

use clap::{Parser, Subcommand};
use faasnet_loadtest::{
    bed::cli::BedVerb, chaos::Chaos, compare::Compare, overload::Overload, simulate::cli::SimulateVerb,
};

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
    /// Kill, stop and cut off parts of a cluster in the middle of a burst, and look at what was promised
    Chaos(Chaos),
    /// Many times what a function can serve, beside another tenant: what is answered, how fast, and what it takes
    Overload(Overload),
    /// The cores of manager and agents on virtual time
    #[command(subcommand)]
    Simulate(SimulateVerb),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Arguments::parse().verb {
        Verb::Bed(verb) => verb.run(),
        Verb::Compare(compare) => compare.run(),
        Verb::Chaos(chaos) => chaos.run(),
        Verb::Overload(overload) => overload.run(),
        Verb::Simulate(verb) => verb.run(),
    }
}
