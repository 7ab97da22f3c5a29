//! The command line.

use anyhow::Context;
use clap::{Parser, Subcommand};
use faasnet::{
    cli,
    holder::{self, HolderOptions},
    settings::Settings,
};
use std::{ffi::OsString, path::PathBuf, process::ExitCode};

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
    /// Checks whether this machine can run functions, and says how to mend what is missing.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Holds mounts and containers; started by the agent.
    #[command(hide = true)]
    Holder {
        /// The VM's data folder.
        #[arg(long)]
        data: PathBuf,
    },
    /// One call of the holder that may hang on its own mounts.
    #[command(hide = true, name = holder::STEP_VERB)]
    HolderStep {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Verb::HolderStep { arguments } = &arguments.verb {
        if let Err(error) = holder::run_step(arguments) {
            // The holder passes it on as the reason.
            eprintln!("{error}");
            std::process::exit(1);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings::load(arguments.config.as_deref()).context("reading the settings")?;
    let filter =
        tracing_subscriber::EnvFilter::try_new(&settings.log.filter).context("reading log.filter")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match arguments.verb {
        Verb::HolderStep { .. } => {}
        Verb::Doctor { json } => return Ok(cli::doctor::run(&settings, json)?),
        Verb::Holder { data } => holder::run(HolderOptions { data, settings: settings.holder })?,
    }
    Ok(ExitCode::SUCCESS)
}
