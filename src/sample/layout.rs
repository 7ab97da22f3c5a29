//! The sample image as an OCI image layout folder.

use super::{BALLAST_FOLDER, SampleImage, SampleOptions, archive::Archive, program::libraries};
use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

const TAG: &str = "latest";
const PROGRAM: &str = "/bin/faasnet";
const USER: &str = "sample";

/// Writes the image below `out`, which is created. Building again into the same folder is harmless; the
/// index, which names the rest, is written last.
pub fn build(out: &Path, options: &SampleOptions) -> anyhow::Result<SampleImage> {
    let blobs = Blobs::create(out)?;
    let base = base_layer(&blobs, options).context("pack the program")?;
    let ballast = ballast_layer(&blobs, options).context("pack the ballast")?;
    let config =
        blobs.json("application/vnd.oci.image.config.v1+json", &config(options, [&base, &ballast]))?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [base.blob.descriptor(), ballast.blob.descriptor()],
    });
    let manifest = blobs.json("application/vnd.oci.image.manifest.v1+json", &manifest)?;
    let mut entry = manifest.descriptor();
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    entry["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    blobs.write_index(&index)?;
    Ok(SampleImage {
        layout: out.to_path_buf(),
        tag: TAG.to_owned(),
        manifest_digest: manifest.digest,
        layer_bytes: base.blob.bytes + ballast.blob.bytes,
        start_digest: options.ballast().start_digest()?.to_hex().to_string(),
    })
}

/// The program, its libraries and what every Unix program expects to find. Compressed, as most layers are.
fn base_layer(blobs: &Blobs, options: &SampleOptions) -> anyhow::Result<Layer> {
    let mut compressed = blobs.start()?;
    let mut plain = Hashing::new(GzEncoder::new(&mut compressed, Compression::fast()));
    let mut archive = Archive::new(&mut plain);
    let libraries = libraries(&options.program)?;
    for (folder, mode) in folders(&libraries) {
        archive.folder(&folder, mode)?;
    }
    for (path, text) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/false\nsample:x:1000:1000:sample:/:/bin/false\n"),
        ("/etc/group", "root:x:0:\nsample:x:1000:\n"),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        archive.file(path, 0o644, text.len() as u64, text.as_bytes())?;
    }
    for library in &libraries {
        archive.copy(library, &library.to_string_lossy(), 0o755)?;
    }
    archive.copy(&options.program, PROGRAM, 0o755)?;
    archive.symbolic_link("/bin/sample", "faasnet")?;
    archive.hard_link("/etc/group-", "/etc/group")?;
    archive.finish()?;
    let (encoder, diff_id) = plain.finish();
    encoder.finish()?;
    Ok(Layer { blob: compressed.finish("application/vnd.oci.image.layer.v1.tar+gzip")?, diff_id })
}

/// Not compressed: nothing would come of it.
fn ballast_layer(blobs: &Blobs, options: &SampleOptions) -> anyhow::Result<Layer> {
    let mut plain = blobs.start()?;
    let mut archive = Archive::new(&mut plain);
    let ballast = options.ballast();
    for folder in ["/opt", "/opt/sample", BALLAST_FOLDER] {
        archive.folder(folder, 0o755)?;
    }
    for (file, (name, bytes)) in ballast.files().into_iter().enumerate() {
        archive.file(&format!("{BALLAST_FOLDER}/{name}"), 0o644, bytes, ballast.content(file as u64))?;
    }
    archive.finish()?;
    let blob = plain.finish("application/vnd.oci.image.layer.v1.tar")?;
    Ok(Layer { diff_id: blob.digest.clone(), blob })
}

/// Every folder of the first layer with its mode, parents first.
fn folders(libraries: &[PathBuf]) -> Vec<(String, u32)> {
    let fixed = ["/bin", "/dev", "/etc", "/proc", "/root", "/sys", "/tmp"].map(PathBuf::from);
    let parents = libraries.iter().flat_map(|library| library.ancestors().skip(1)).map(Path::to_path_buf);
    let mut all: BTreeSet<PathBuf> = fixed.into_iter().chain(parents).collect();
    all.remove(Path::new("/"));
    let mode = |path: &Path| match path.to_str() {
        Some("/tmp") => 0o1777,
        Some("/root") => 0o700,
        _ => 0o755,
    };
    all.iter().map(|path| (path.to_string_lossy().into_owned(), mode(path))).collect()
}

fn config(options: &SampleOptions, layers: [&Layer; 2]) -> Value {
    json!({
        "os": "linux",
        "architecture": architecture(),
        "created": "2020-01-01T00:00:00Z",
        "config": {
            "User": USER,
            "Env": ["PATH=/bin", format!("SAMPLE_READ_BYTES={}", options.read_bytes)],
            "Entrypoint": [PROGRAM],
            "Cmd": ["sample-serve"],
            "WorkingDir": "/tmp",
        },
        "rootfs": { "type": "layers", "diff_ids": layers.map(|layer| &layer.diff_id) },
    })
}

/// Go's names, which OCI uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Layer {
    blob: Blob,
    /// Digest of the archive before compression.
    diff_id: String,
}

/// A blob that lies in the layout.
struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: u64,
}

impl Blob {
    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes })
    }
}

/// The layout folder. Blobs get their names when they are complete, so none is ever half there.
struct Blobs(PathBuf);

impl Blobs {
    fn create(out: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(out.join("blobs/sha256")).with_context(|| format!("create {}", out.display()))?;
        Ok(Self(out.to_path_buf()))
    }

    fn start(&self) -> anyhow::Result<NewBlob> {
        let folder = self.0.join("blobs/sha256");
        let file = NamedTempFile::new_in(&folder)?;
        Ok(NewBlob { folder, out: Hashing::new(BufWriter::with_capacity(1 << 20, file)) })
    }

    fn json(&self, media_type: &'static str, value: &Value) -> anyhow::Result<Blob> {
        let mut blob = self.start()?;
        blob.write_all(&serde_json::to_vec(value)?)?;
        blob.finish(media_type)
    }

    fn write_index(&self, index: &Value) -> anyhow::Result<()> {
        fs::write(self.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut file = NamedTempFile::new_in(&self.0)?;
        file.write_all(&serde_json::to_vec(index)?)?;
        persist(file, &self.0.join("index.json"))
    }
}

struct NewBlob {
    folder: PathBuf,
    out: Hashing<BufWriter<NamedTempFile>>,
}

impl NewBlob {
    fn finish(self, media_type: &'static str) -> anyhow::Result<Blob> {
        let bytes = self.out.bytes;
        let (buffer, digest) = self.out.finish();
        let file = buffer.into_inner().map_err(|error| error.into_error())?;
        let name = digest.strip_prefix("sha256:").expect("made by finish");
        persist(file, &self.folder.join(name))?;
        Ok(Blob { media_type, digest, bytes })
    }
}

impl Write for NewBlob {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.out.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Temporary files are private; a layout is read by others.
fn persist(file: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    out: W,
    sha256: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(out: W) -> Self {
        Self { out, sha256: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, String) {
        (self.out, format!("sha256:{}", super::listing::hexadecimal(&self.sha256.finalize())))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.sha256.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn options() -> SampleOptions {
        SampleOptions { seed: 1, program: "/bin/cat".into(), ballast_bytes: 1_000_003, read_bytes: 500_000 }
    }

    #[test]
    fn equal_options_give_equal_digests_and_the_seed_matters() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = build(one.path(), &options()).unwrap();
        let second = build(other.path(), &options()).unwrap();
        assert_eq!(first.manifest_digest, second.manifest_digest);
        let again = build(one.path(), &options()).unwrap();
        assert_eq!(first, again);
        let seeded = build(other.path(), &SampleOptions { seed: 2, ..options() }).unwrap();
        assert_ne!(first.manifest_digest, seeded.manifest_digest);
    }

    #[test]
    fn the_layout_is_an_image_to_other_tools_and_its_program_runs() {
        let folder = tempfile::tempdir().unwrap();
        let image = build(&folder.path().join("layout"), &options()).unwrap();
        let bundle = folder.path().join("bundle");
        let reference = format!("{}:{}", image.layout.display(), image.tag);
        run(Command::new("umoci").args(["unpack", "--image", &reference]).arg(&bundle));
        let rootfs = bundle.join("rootfs");
        let ballast = rootfs.join(BALLAST_FOLDER.trim_start_matches('/'));
        let read = crate::sample::ballast::read_at_start(&ballast, 500_000).unwrap();
        assert_eq!(read.to_hex().to_string(), image.start_digest);
        let group = run(Command::new("chroot").arg(&rootfs).args([PROGRAM, "/etc/group-"]));
        assert_eq!(group, "root:x:0:\nsample:x:1000:\n");
    }

    fn run(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
