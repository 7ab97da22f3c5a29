//! The binary: arguments, settings, logging, then the verb.

use anyhow::Context;
use clap::Parser;
use faasnet::{
    cli::{Access, Cli, ClientVerb, Command, Image, Process, Verb, run_image},
    holder,
    settings::{LogFormat, LogSettings, Settings},
};
use std::{ffi::OsString, path::Path, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// As clap's for arguments that are not understood.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let Cli { config, json, api, token_file, tenant, verb } = Cli::parse();
    if let Verb::Process(Process::HolderStep { arguments }) = &verb {
        return step(arguments);
    }
    let settings = match prepare(config.as_deref()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match verb {
        Verb::Process(process) => match process.run(settings, config, json) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Verb::Image(Image::Here(command)) => {
            let done = actix::System::new().block_on(run_image(command, &settings, json));
            match done {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        Verb::Image(Image::OfFunction(image)) => {
            let command = Command::Client(ClientVerb::Image(image));
            ask(command, Access { json, api, token_file, tenant }, &settings)
        }
        Verb::Command(command) => ask(command, Access { json, api, token_file, tenant }, &settings),
    }
}

/// A helper process of the holder, which reads its standard error as the reason.
fn step(arguments: &[OsString]) -> ExitCode {
    match holder::run_step(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(command: Command, access: Access, settings: &Settings) -> ExitCode {
    let result =
        actix::System::new().block_on(async { command.run(access, settings, &mut std::io::stdout()).await });
    match result {
        Ok(code) => code,
        Err(failure) => {
            if !failure.is_broken_pipe() {
                eprint!("{}", failure.report());
            }
            failure.exit_code()
        }
    }
}

fn prepare(config: Option<&Path>) -> anyhow::Result<Settings> {
    // The one provider of TLS in this process; the first to install it wins.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = Settings::load(config)?;
    start_logging(&settings.log)?;
    Ok(settings)
}

/// Logs to stderr: stdout is for results.
fn start_logging(settings: &LogSettings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.filter).context("setting log.filter is not understood")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
