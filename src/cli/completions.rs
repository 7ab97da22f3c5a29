//! `faasnet completions SHELL`.

use super::{Cli, Failure};
use clap::{Args, CommandFactory};
use std::{io::Write, process::ExitCode};

#[derive(Debug, Args)]
pub struct Completions {
    shell: clap_complete::Shell,
}

impl Completions {
    pub fn run(&self, out: &mut (dyn Write + Send)) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "faasnet", &mut script);
        out.write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
