//! Makes OCI layout folders by hand, so that a test controls every byte, and converts them.

use faasnet::{
    image::{
        artifact::digest_of,
        convert::{ConvertError, ConvertOptions, convert, convert_packed},
        progress::Progress,
        publish::folder::FolderDestination,
        resolve::Platform,
        source::layout::LayoutSource,
    },
    settings::{ImageSettings, Settings},
};
use faasnet_actors::{id::Digest, image::BlockImage, profile::Profile};
use serde_json::{Value, json};
use std::{fs, io::Write, path::Path};
use tempfile::TempDir;

pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer as it is published.
pub struct Layer {
    pub media_type: &'static str,
    pub stored: Vec<u8>,
    pub diff_id: Digest,
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Self {
        Self { media_type: PLAIN, diff_id: digest_of(&tar), stored: tar }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        Self { media_type: GZIP, diff_id: digest_of(tar), stored: encoder.finish().unwrap() }
    }

    pub fn zstd(tar: &[u8]) -> Self {
        let stored = zstd::encode_all(tar, 1).unwrap();
        Self { media_type: ZSTD, diff_id: digest_of(tar), stored }
    }
}

/// A folder with one image in it, tagged `test`.
pub struct Image {
    pub folder: TempDir,
}

/// With sorted keys: their order else depends on a feature that any crate of the workspace may turn on.
fn text(mut value: Value) -> Vec<u8> {
    value.sort_all_objects();
    serde_json::to_vec(&value).unwrap()
}

impl Image {
    pub fn new(layers: &[Layer]) -> Self {
        Self::with_config(layers, json!({}))
    }

    pub fn with_config(layers: &[Layer], process: Value) -> Self {
        Self::with_architecture(layers, process, &Platform::of_this_machine().architecture)
    }

    pub fn with_architecture(layers: &[Layer], process: Value, architecture: &str) -> Self {
        let image = Self { folder: TempDir::new().unwrap() };
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": process,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers: Vec<_> = layers.iter().map(|layer| image.put(layer.media_type, &layer.stored)).collect();
        let config = image.put("application/vnd.oci.image.config.v1+json", &text(config));
        image.put_manifest(json!({ "config": config, "layers": layers }));
        image
    }

    /// Writes a blob and returns its descriptor.
    pub fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        let blobs = self.folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    pub fn put_manifest(&self, mut manifest: Value) {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        manifest["schemaVersion"] = json!(2);
        manifest["mediaType"] = json!(media_type);
        let mut entry = self.put(media_type, &text(manifest));
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "test" });
        self.put_index(&json!({ "schemaVersion": 2, "manifests": [entry] }));
    }

    pub fn put_index(&self, index: &Value) {
        fs::write(self.folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(self.folder.path().join("index.json"), serde_json::to_vec(index).unwrap()).unwrap();
    }

    pub fn convert(&self) -> Result<Converted, ConvertError> {
        convert_layout(self.folder.path(), &settings())
    }

    pub fn convert_for(&self, platform: &str, settings: &ImageSettings) -> Result<Converted, ConvertError> {
        let folder = TempDir::new().unwrap();
        let platform = platform.parse().unwrap();
        let image = convert_into(self.folder.path(), folder.path(), platform, settings, None)?;
        Ok(Converted { image, folder })
    }

    /// Packed by the profile, at the smallest granularity, so that small files are split too.
    pub fn convert_packed(&self, platform: Platform, profile: &Profile) -> Result<Converted, ConvertError> {
        let folder = TempDir::new().unwrap();
        let mut settings = settings();
        settings.hot_chunk_bytes = 4096;
        let image = convert_into(self.folder.path(), folder.path(), platform, &settings, Some(profile))?;
        Ok(Converted { image, folder })
    }

    pub fn convert_into(&self, folder: &Path) -> Result<BlockImage, ConvertError> {
        convert_into(self.folder.path(), folder, Platform::of_this_machine(), &settings(), None)
    }
}

/// A block image in a folder of its own.
#[derive(Debug)]
pub struct Converted {
    pub folder: TempDir,
    pub image: BlockImage,
}

pub fn settings() -> ImageSettings {
    Settings::load(None).unwrap().image
}

pub fn convert_layout(layout: &Path, settings: &ImageSettings) -> Result<Converted, ConvertError> {
    let folder = TempDir::new().unwrap();
    let image = convert_into(layout, folder.path(), Platform::of_this_machine(), settings, None)?;
    Ok(Converted { image, folder })
}

fn convert_into(
    layout: &Path,
    folder: &Path,
    platform: Platform,
    settings: &ImageSettings,
    profile: Option<&Profile>,
) -> Result<BlockImage, ConvertError> {
    let spool = TempDir::new().unwrap();
    let source = LayoutSource::new(&format!("{}:test", layout.display()), settings.manifest_bytes_max)?;
    let options = ConvertOptions { platform, settings: settings.clone(), spool: spool.path().to_owned() };
    let (destination, progress) = (FolderDestination::new(folder), Progress::default());
    let converted = match profile {
        Some(profile) => convert_packed(&source, &destination, &options, profile, &progress),
        None => convert(&source, &destination, &options, &progress),
    };
    let left = fs::read_dir(spool.path()).unwrap().count();
    assert_eq!(left, 0, "a conversion leaves nothing in its spool");
    if converted.is_err() {
        assert!(!folder.join("index.json").exists(), "a failed conversion publishes nothing");
    }
    converted
}
