//! Why a verb failed, and what to do about it.

use crate::http::Problem;
use std::{fmt::Write as _, io, path::PathBuf, process::ExitCode, time::Duration};

/// As curl's for `--fail`.
pub const EXIT_ERROR_ANSWER: u8 = 22;
/// As a shell counts a program that Ctrl-C has ended.
pub const EXIT_INTERRUPTED: u8 = 130;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the manager at {url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("there is no token in {}: {error}", path.display())]
    Token { path: PathBuf, error: io::Error },
    /// The API's refusal.
    #[error("{} ({})", .0.detail, .0.code())]
    Refused(Problem),
    /// The same for a request that the gateway should have forwarded.
    #[error("{} ({})", .0.detail, .0.code())]
    NotForwarded(Problem),
    #[error("the answer is not that of a manager of this release: {0}")]
    Answer(String),
    #[error("the image or code could not be converted: {0}")]
    Conversion(String),
    #[error("{ended} of {count} starts did not become ready: {reason}")]
    Starts { ended: usize, count: usize, reason: String },
    #[error(
        "{missing} of {count} VMs do not hold it after {timeout:?}; it goes on, only nobody waits for it any more"
    )]
    Preheat { missing: usize, count: usize, timeout: Duration },
    #[error("it was not done within {0:?}; it goes on, only nobody waits for it any more")]
    Timeout(Duration),
    #[error("{} cannot be written: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("the result cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// What the user may do.
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable { .. } => {
                "is it running? `faasnet up` starts everything on this machine; --api or FAASNET_API name another"
            }
            Self::Token { .. } => {
                "set FAASNET_TOKEN, name a file with --token-file, or run as the user of the manager on its machine"
            }
            Self::Refused(problem) | Self::NotForwarded(problem) => return problem_hint(problem),
            Self::Conversion(_) => "deploy again when the image or the code is mended",
            Self::Starts { .. } => {
                "`faasnet start show ID` tells how far one came, `faasnet logs ID` what it printed"
            }
            Self::Preheat { .. } | Self::Timeout(_) => "--timeout gives it more time",
            Self::Answer(_) => "use the same release as the manager, and the address of its API",
            Self::Usage(_) | Self::File { .. } | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::NotForwarded(_) => EXIT_ERROR_ANSWER,
            _ => EXIT_FAILED,
        })
    }

    /// The text for stderr: a line that begins with `error:`, and perhaps one with a hint.
    pub fn report(&self) -> String {
        let mut text = format!("error: {}\n", super::output::printable(&self.to_string()));
        if let Some(hint) = self.hint() {
            writeln!(text, "hint: {hint}").expect("a string takes any text");
        }
        text
    }

    /// Whether it passes when the manager is back, or has less to do.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused(problem) => problem.status() >= 500,
            Self::Unreachable { .. } | Self::Answer(_) => true,
            _ => false,
        }
    }

    /// Whether the reader of our output has gone: nobody is left to be told.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn problem_hint(problem: &Problem) -> Option<String> {
    if let Some(seconds) = problem.retry_after {
        return Some(format!("try again in {seconds} s"));
    }
    let hint = match problem.code().as_ref() {
        "unauthorized" => "the token is not one of this manager's; look at FAASNET_TOKEN and --token-file",
        "image_failed" => "`faasnet function show NAME` tells why; deploy again when the image is mended",
        "not_found" => "`faasnet function list` shows what is there; --tenant chooses the tenant",
        "start_failed" | "instance_closed" => {
            "`faasnet start list NAME`, then `faasnet logs ID` show what happened"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
