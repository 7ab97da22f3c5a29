//! The command line.

use anyhow::Context;
use clap::{Parser, Subcommand};
use faasnet::{
    holder::{self, HolderOptions},
    settings::Settings,
};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "faasnet", version, about)]
struct Arguments {
    /// Settings that differ from the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Holds mounts and containers; started by the agent.
    #[command(hide = true)]
    Holder {
        /// The VM's data folder.
        #[arg(long)]
        data: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings = Settings::load(arguments.config.as_deref()).context("reading the settings")?;
    let filter =
        tracing_subscriber::EnvFilter::try_new(&settings.log.filter).context("reading log.filter")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match arguments.verb {
        Verb::Holder { data } => holder::run(HolderOptions { data, settings: settings.holder }),
    }
}
