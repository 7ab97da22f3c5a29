//! Brings a package of code to the manager.

use super::{Failure, client::Client, output::progress};
use crate::image::zip::{Package, ZipError, ZipLimits};
use bytes::Bytes;
use faasnet_actors::id::Digest;
use futures::StreamExt;
use rawzip::FileReader;
use reqwest::{Body, Method};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};
use tokio_util::io::ReaderStream;

/// For all of an upload: the largest package over a slow line.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
struct Limits {
    package_bytes_max: u64,
}

/// Checks the zip at `path`, uploads it, and returns the digest by which a function names it.
pub async fn upload(client: &Client, path: &Path) -> Result<Digest, Failure> {
    let unusable = |reason: String| Failure::Usage(format!("{}: {reason}", path.display()));
    let failed = |error: io::Error| unusable(error.to_string());
    let file = File::open(path).map_err(|error| unusable(format!("it cannot be read: {error}")))?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(unusable("it is not a file; make a zip of it first".into()));
    }
    let limits: Limits = super::output::parse(&client.get("/v1/code").await?)?;
    if found.len() > limits.package_bytes_max {
        let (has, may) = (found.len(), limits.package_bytes_max);
        return Err(unusable(format!(
            "it has {has} bytes, and the manager takes {may} (code.package_bytes_max); leave out what the function \
             does not need"
        )));
    }
    check(file.try_clone().map_err(failed)?, found.len()).map_err(|error| unusable(error.to_string()))?;
    let digest = digest_of(file).map_err(failed)?;
    let sent = client.request(Method::PUT, &format!("/v1/code/{digest}"));
    let body = body(path, found.len()).await.map_err(failed)?;
    client.call(sent.timeout(UPLOAD_TIMEOUT).header("content-length", found.len()).body(body)).await?;
    Ok(digest)
}

/// What the manager would refuse in any case is said before anything is sent. Its limits are its own.
fn check(zip: File, bytes: u64) -> Result<(), ZipError> {
    let limits =
        ZipLimits { entries_max: u64::from(u32::MAX), plain_bytes_max: u64::MAX, ratio_max: u64::MAX };
    Package::read(FileReader::from(zip), bytes, &limits).map(drop)
}

fn digest_of(mut file: File) -> io::Result<Digest> {
    let (mut sha256, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    io::Seek::rewind(&mut file)?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(sha256.finalize().into())),
            got => sha256.update(&buffer[..got]),
        }
    }
}

/// The file as a stream that shows how far it has come.
async fn body(path: &Path, bytes: u64) -> io::Result<Body> {
    let progress = progress(bytes, "uploading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    let stream = ReaderStream::with_capacity(tokio::fs::File::open(path).await?, 256 * 1024);
    Ok(Body::wrap_stream(stream.inspect(move |chunk| match chunk {
        Ok(chunk) => progress.inc(Bytes::len(chunk) as u64),
        Err(_) => progress.abandon(),
    })))
}
