//! Debian's docker-registry on a host of a bed, whose log says how many bytes it gave to whom.

use super::{image::Image, process::Service, run, wait_until};
use crate::bed::BedState;
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

const PORT: u16 = 5000;
const CONFIG: &str = "config.yml";
/// Where [`Service`] puts what the registry prints.
const LOG: &str = "registry.log";

/// A registry with the folder of its data.
#[derive(Debug)]
pub struct Registry {
    /// None while it is killed.
    service: Option<Service>,
    address: SocketAddr,
    bed: BedState,
    host: String,
    folder: PathBuf,
}

/// What a registry gave for one blob or manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    pub answers: u64,
    pub bytes: u64,
}

impl Registry {
    /// On a host of a bed.
    pub fn on_bed(bed: &BedState, host: &str, folder: &Path) -> anyhow::Result<Self> {
        let address = SocketAddr::from((bed.address(host)?, PORT));
        fs::create_dir_all(folder)?;
        let config = json!({
            "version": "0.1",
            "log": { "level": "info", "formatter": "json", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": folder.join("data") } },
            "http": { "addr": address.to_string() },
        });
        fs::write(folder.join(CONFIG), config.to_string())?; // JSON is YAML.
        let (bed, host) = (bed.clone(), host.to_owned());
        let mut registry = Self { service: None, address, bed, host, folder: folder.to_path_buf() };
        registry.start_again()?;
        Ok(registry)
    }

    /// kill -9 of the registry.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.service.take().context("no registry runs")?.kill()
    }

    /// Starts the registry with the data it has, and waits until it listens.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let mut command = self.bed.command(&self.host, "docker-registry")?;
        command.arg("serve").arg(self.folder.join(CONFIG));
        let service = Service::start("registry", &mut command, &self.folder)
            .context("is the package docker-registry installed?")?;
        let service = self.service.insert(service);
        wait_until("the registry to listen", Duration::from_secs(20), || {
            if let Some(status) = service.ended()? {
                anyhow::bail!("it ended with {status}: {}", fs::read_to_string(&service.log)?);
            }
            let connect = || TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok();
            self.bed.inside(&self.host, connect)
        })?;
        Ok(())
    }

    /// `HOST:PORT` as in references.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Pushes an image with skopeo and gives its reference.
    pub fn push(&self, image: &Image, repository: &str) -> anyhow::Result<String> {
        let reference = format!("{}/{repository}:{}", self.name(), image.tag);
        run(self
            .bed
            .command(&self.host, "skopeo")?
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{}", image.layout.display(), image.tag))
            .arg(format!("docker://{reference}")))?;
        Ok(reference)
    }

    /// What was given for requests whose path contains `part`, by the registry's own log.
    pub fn given(&self, part: &str) -> anyhow::Result<Given> {
        let mut given = Given::default();
        for (_, bytes) in self.answers()?.into_iter().filter(|(uri, _)| uri.contains(part)) {
            given.answers += 1;
            given.bytes += bytes;
        }
        Ok(given)
    }

    /// The same for each blob, by its digest.
    pub fn given_by_blob(&self) -> anyhow::Result<BTreeMap<String, Given>> {
        let mut by_blob: BTreeMap<String, Given> = BTreeMap::new();
        for (uri, bytes) in self.answers()? {
            let Some((_, digest)) = uri.split_once("/blobs/sha256:") else { continue };
            let given = by_blob.entry(format!("sha256:{digest}")).or_default();
            given.answers += 1;
            given.bytes += bytes;
        }
        Ok(by_blob)
    }

    /// Path and body length of every finished answer to a GET.
    fn answers(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let text = fs::read_to_string(self.folder.join(LOG))?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let answers =
            lines.filter(|line| line["msg"] == "response completed" && line["http.request.method"] == "GET");
        let read = |line: Value| {
            let uri = line["http.request.uri"].as_str().unwrap_or_default().to_owned();
            (uri, line["http.response.written"].as_u64().unwrap_or(0))
        };
        Ok(answers.map(read).collect())
    }

    /// Digests of the blobs of one repository.
    pub fn blobs(&self, repository: &str) -> anyhow::Result<Vec<String>> {
        let repositories = self.folder.join("data/docker/registry/v2/repositories");
        let mut digests = Vec::new();
        for link in fs::read_dir(repositories.join(repository).join("_layers/sha256"))? {
            digests.push(format!("sha256:{}", link?.file_name().to_string_lossy()));
        }
        Ok(digests)
    }

    /// The file that holds a blob, to damage it.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder.join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}
