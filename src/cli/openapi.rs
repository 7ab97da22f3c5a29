//! `faasnet openapi`: the description of the API, without a manager.

use super::Failure;
use clap::Args;
use std::{io::Write, process::ExitCode};

#[derive(Debug, Args)]
pub struct OpenApi {}

impl OpenApi {
    pub fn run(&self, out: &mut (dyn Write + Send)) -> Result<ExitCode, Failure> {
        writeln!(out, "{:#}", crate::http::document())?;
        Ok(ExitCode::SUCCESS)
    }
}
