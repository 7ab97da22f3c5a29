//! The binary: arguments, settings, logging, then the verb.

use anyhow::Context;
use clap::Parser;
use faasnet::{
    cli::Cli,
    settings::{LogFormat, LogSettings, Settings},
};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// As clap's for arguments that are not understood.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match prepare(&cli) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let result = actix::System::new().block_on(async { cli.run(&settings, &mut std::io::stdout()).await });
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

fn prepare(cli: &Cli) -> anyhow::Result<Settings> {
    // The one provider of TLS in this process; the first to install it wins.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = Settings::load(cli.config.as_deref())?;
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
