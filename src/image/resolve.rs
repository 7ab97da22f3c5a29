//! From a reference to the layers of one platform's image.

use crate::image::{
    layer::{Checked, Compression, Layer},
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, ImageConfig, Index, Manifest, OCI_INDEX, OCI_MANIFEST},
    source::{BlobRef, Document, Source, SourceError},
};
use serde::de::DeserializeOwned;
use std::{fmt, io::Read, str::FromStr};

/// Indexes within indexes: registries nest one, and nobody more.
const INDEX_DEPTH_MAX: usize = 3;

/// What an image is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// Any, if none is named.
    pub variant: Option<String>,
}

impl Platform {
    /// That of this machine, in the words of Go, which images use.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    fn fits(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let variant_fits = self.variant.is_none() || self.variant.as_deref() == variant;
        self.os == os && self.architecture == architecture && variant_fits
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(out, "/{variant}"))
    }
}

/// The text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: write it like linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if os != "linux" || architecture.is_empty() {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

/// Why an image cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the image is not made for {wanted}: it exists for {}", existing.join(", "))]
    Platform { wanted: Platform, existing: Vec<String> },
    #[error("the image has {count} layers, more than {limit}, the limit set by image.layers_max")]
    TooManyLayers { count: usize, limit: usize },
    #[error("layer {digest} is of type {media_type}, which is not supported")]
    LayerType { digest: String, media_type: String },
}

/// Limits of what is read here.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub manifest_bytes_max: u64,
    pub layers_max: usize,
}

/// One platform's image.
#[derive(Debug)]
pub struct Resolved {
    /// The manifest, as an artifact's `subject` names it.
    pub manifest: BlobRef,
    pub config: ImageConfig,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

/// Follows indexes to the image of a platform, and reads its manifest and configuration.
pub fn resolve(source: &dyn Source, wanted: &Platform, limits: Limits) -> Result<Resolved, ResolveError> {
    let document = find_manifest(source, wanted, limits)?;
    let what = format!("manifest {}", document.digest);
    let manifest: Manifest = parse(&document.bytes, &what)?;
    if manifest.layers.len() > limits.layers_max {
        return Err(ResolveError::TooManyLayers { count: manifest.layers.len(), limit: limits.layers_max });
    }
    let config: ImageConfig = read_config(source, &BlobRef::from(&manifest.config), limits)?;
    if !wanted.fits(&config.os, &config.architecture, wanted.variant.as_deref()) {
        let existing = vec![format!("{}/{}", config.os, config.architecture)];
        return Err(ResolveError::Platform { wanted: wanted.clone(), existing });
    }
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        let (stated, layers) = (config.rootfs.diff_ids.len(), manifest.layers.len());
        return Err(invalid(what, format!("it has {layers} layers, its configuration {stated}")).into());
    }
    let media_type = if document.media_type.is_empty() { OCI_MANIFEST } else { &document.media_type };
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let compression = Compression::of(&descriptor.media_type).ok_or_else(|| ResolveError::LayerType {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.clone(),
        })?;
        layers.push(Layer { blob: descriptor.into(), compression, diff_id: *diff_id });
    }
    let manifest = BlobRef {
        media_type: media_type.to_owned(),
        digest: document.digest,
        size: document.bytes.len() as u64,
    };
    Ok(Resolved { manifest, config, layers })
}

fn find_manifest(source: &dyn Source, wanted: &Platform, limits: Limits) -> Result<Document, ResolveError> {
    let mut document = source.root()?;
    for _ in 0..INDEX_DEPTH_MAX {
        check_size(&document, limits)?;
        document.media_type = media_type(&document)?;
        match document.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => return Ok(document),
            OCI_INDEX | DOCKER_LIST => {}
            other => {
                let reason = format!("its type {other:?} is not that of an image");
                return Err(invalid(format!("manifest {}", document.digest), reason).into());
            }
        }
        let index: Index = parse(&document.bytes, &format!("index {}", document.digest))?;
        document = source.manifest(choose(&index, wanted)?)?;
    }
    Err(invalid("the image".to_owned(), "indexes are nested too deeply".to_owned()).into())
}

fn choose(index: &Index, wanted: &Platform) -> Result<faasnet_actors::id::Digest, ResolveError> {
    // Entries without a platform may be anything; the image configuration decides.
    let fits = |entry: &&crate::image::manifest::Descriptor| match &entry.platform {
        Some(platform) => wanted.fits(&platform.os, &platform.architecture, platform.variant.as_deref()),
        None => index.manifests.len() == 1,
    };
    if let Some(entry) = index.manifests.iter().find(fits) {
        return Ok(entry.digest);
    }
    let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
    // Attestations of builders carry this platform.
    let real = platforms.filter(|platform| platform.os != "unknown");
    let existing = real.map(|platform| {
        let variant = platform.variant.as_ref().map_or_else(String::new, |variant| format!("/{variant}"));
        format!("{}/{}{variant}", platform.os, platform.architecture)
    });
    Err(ResolveError::Platform { wanted: wanted.clone(), existing: existing.collect() })
}

/// The stated type, or what the fields look like when none is stated.
fn media_type(document: &Document) -> Result<String, SourceError> {
    if matches!(document.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST) {
        return Ok(document.media_type.clone());
    }
    let fields: serde_json::Value = parse(&document.bytes, &format!("manifest {}", document.digest))?;
    if let Some(stated) = fields.get("mediaType").and_then(serde_json::Value::as_str) {
        return Ok(stated.to_owned());
    }
    if fields.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        let reason = "it is of Docker's schema 1, which was withdrawn: push the image again".to_owned();
        return Err(invalid(format!("manifest {}", document.digest), reason));
    }
    let looks_like = if fields.get("manifests").is_some() { OCI_INDEX } else { OCI_MANIFEST };
    Ok(looks_like.to_owned())
}

fn check_size(document: &Document, limits: Limits) -> Result<(), SourceError> {
    let limit = limits.manifest_bytes_max;
    if document.bytes.len() as u64 <= limit {
        return Ok(());
    }
    let what = format!("manifest {}", document.digest);
    Err(SourceError::TooLarge { what, limit, setting: "image.manifest_bytes_max" })
}

fn read_config(source: &dyn Source, blob: &BlobRef, limits: Limits) -> Result<ImageConfig, SourceError> {
    let what = format!("image configuration {}", blob.digest);
    if blob.size > limits.manifest_bytes_max {
        let limit = limits.manifest_bytes_max;
        return Err(SourceError::TooLarge { what, limit, setting: "image.manifest_bytes_max" });
    }
    let mut bytes = Vec::new();
    let mut checked = Checked::blob(source.blob(blob)?, blob);
    checked.read_to_end(&mut bytes).map_err(|error| match error.downcast::<SourceError>() {
        Ok(error) => error,
        Err(error) => SourceError::Unavailable { what: what.clone(), reason: error.to_string() },
    })?;
    parse(&bytes, &what)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(what.to_owned(), error.to_string()))
}

fn invalid(what: String, reason: String) -> SourceError {
    SourceError::Invalid { what, reason }
}
