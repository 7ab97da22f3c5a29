//! The sample function: an HTTP server and the image around it, both made from this very program.
//!
//! `faasnet up` and the tests need a real image without a registry at hand. The image is an ordinary OCI
//! layout folder: a layer with this binary and the libraries it needs, and a layer of incompressible
//! ballast, of which the server reads some tens of MB when it starts, scattered, as applications do.

mod archive;
mod ballast;
mod layout;
pub mod listing;
mod program;
mod server;

pub use ballast::Ballast;
pub use layout::build;
pub use server::serve;

use serde::Serialize;
use std::{env, path::PathBuf};

/// Where the ballast lies in the image.
pub const BALLAST_FOLDER: &str = "/opt/sample/ballast";

/// How the sample image is built. Equal options and an equal program give equal digests.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// What the ballast is made of.
    pub seed: u64,
    /// The program to pack; its hidden verb `sample-serve` is the entry point.
    pub program: PathBuf,
    /// Size of the ballast in bytes.
    pub ballast_bytes: u64,
    /// Bytes of the ballast that the server reads when it starts.
    pub read_bytes: u64,
}

impl SampleOptions {
    /// This program, 256 MiB of ballast, of which 32 MiB are read: the sizes of a Python application with
    /// a few scientific libraries.
    pub fn of_this_program() -> std::io::Result<Self> {
        Ok(Self { seed: 1, program: env::current_exe()?, ballast_bytes: 256 << 20, read_bytes: 32 << 20 })
    }

    pub fn ballast(&self) -> Ballast {
        Ballast { seed: self.seed, bytes: self.ballast_bytes, read_bytes: self.read_bytes }
    }
}

/// A sample image that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleImage {
    /// The OCI layout folder.
    pub layout: PathBuf,
    pub tag: String,
    /// `sha256:...` of the manifest.
    pub manifest_digest: String,
    /// Bytes of all layers as they lie in the layout.
    pub layer_bytes: u64,
    /// BLAKE3, hexadecimal, of what the server must have read when it started.
    pub start_digest: String,
}

impl SampleImage {
    /// The image's name for `image convert` and `function deploy`.
    pub fn reference(&self) -> String {
        format!("oci:{}:{}", self.layout.display(), self.tag)
    }
}

/// How the server behaves; the image's environment sets it, and a function's settings may change it.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// `PORT`: where it listens, on loopback of the VM.
    pub port: u16,
    /// `SAMPLE_BALLAST`: folder of the ballast.
    pub ballast: PathBuf,
    /// `SAMPLE_READ_BYTES`: how much of it is read at the start.
    pub read_bytes: u64,
    /// `SAMPLE_EXIT_AT_START`: ends at once with this code, for tests.
    pub exit_at_start: Option<i32>,
    /// `SAMPLE_NEVER_ANSWER`: starts and never listens, for tests.
    pub never_answer: bool,
}

impl ServeOptions {
    /// Reads the variables named at the fields.
    pub fn from_env() -> anyhow::Result<Self> {
        Ok(Self {
            port: number("PORT")?.unwrap_or(8080),
            ballast: env::var_os("SAMPLE_BALLAST").map_or(BALLAST_FOLDER.into(), PathBuf::from),
            read_bytes: number("SAMPLE_READ_BYTES")?.unwrap_or(0),
            exit_at_start: number("SAMPLE_EXIT_AT_START")?,
            never_answer: env::var_os("SAMPLE_NEVER_ANSWER").is_some(),
        })
    }
}

fn number<T: std::str::FromStr>(name: &str) -> anyhow::Result<Option<T>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    let number = text.parse().map_err(|_| anyhow::anyhow!("{name}={text} is not a number in range"))?;
    Ok(Some(number))
}
