//! `faasnet-loadtest`: the test bed and the measurements of this repository.

use clap::{Parser, Subcommand};
use faasnet_loadtest::{
    bed::cli::BedVerb, chaos::Chaos, compare::Compare, distribute::Distribute, drive::DriveVerb,
    hotset::HotSet, overload::Overload, paper::Paper, simulate::cli::SimulateVerb, warm::WarmWorker,
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
    /// Cold starts on one VM, for images of three kinds: what they read, move and take, beside warm ones
    #[command(name = "hotset")]
    HotSet(HotSet),
    /// Bursts and whole images on N VMs with shaped links: the last one ready, beside the least that it can take
    Distribute(Distribute),
    /// Open-loop load on a running system: a burst, a steady rate, a step, a ramp, or a trace
    #[command(subcommand)]
    Drive(Box<DriveVerb>),
    /// Kill, stop and cut off parts of a cluster in the middle of a burst, and look at what was promised
    Chaos(Chaos),
    /// Many times what a function can serve, beside another tenant: what is answered, how fast, and what it takes
    Overload(Overload),
    /// The cores of manager and agents on virtual time
    #[command(subcommand)]
    Simulate(SimulateVerb),
    Paper(Paper),
    /// Runs one container from a local overlay; the other verbs start it
    #[command(hide = true)]
    WarmWorker(WarmWorker),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Arguments::parse().verb {
        Verb::Bed(verb) => verb.run(),
        Verb::Compare(compare) => compare.run(),
        Verb::HotSet(hotset) => hotset.run(),
        Verb::Distribute(distribute) => distribute.run(),
        Verb::Drive(verb) => verb.run(),
        Verb::Chaos(chaos) => chaos.run(),
        Verb::Overload(overload) => overload.run(),
        Verb::Simulate(verb) => verb.run(),
        Verb::Paper(paper) => paper.run(),
        Verb::WarmWorker(worker) => worker.run(),
    }
}
