//! Images of HTTP servers, made of unpacked Debian packages by umoci, as OCI layouts: one in Python with
//! variants, and services in Node.js and on a JVM (`service`).
//!
//! The first layer holds the packages; the second one the server and everything that file systems and
//! layers can do besides files: links, devices, pipes, extended attributes, capabilities, ACLs, sparse and
//! long-named files, a file removed from the first layer and one replaced.

use super::{debian, run, service, split_mix};
use anyhow::Context;
use rustix::fs::FlockOperation;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

const TAG: &str = "latest";
/// Part of the cached folders' names; raise it when what is built here changes.
const PYTHON_VERSION: u32 = 9;
const SERVICE_VERSION: u32 = 1;
/// A file of ours beside the layout's, which OCI allows.
const UNPACKED_BYTES: &str = "unpacked-bytes";
const SERVER: &str = include_str!("server.py");
/// Of what `Reader` in server.py reads: 256 blocks, which last for minutes at its pace.
const BALLAST_BYTES: u64 = 128 << 20;
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// About 50 MB: the interpreter and its library.
    Minimal,
    /// More than 500 MB: SciPy and pandas with all they depend on; the server imports them when it starts.
    Scientific,
    /// The minimal one and 128 MiB that do not compress; the server reads in them when its environment has
    /// `READS_AT_START` and `READER_PAUSE_MS`.
    Ballast,
    /// A web service with the libraries that such ones have, on Node.js.
    Node,
    /// One on a JVM, with its class data archive, as Debian's package brings it.
    Jvm,
}

/// An image in an OCI layout folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub layout: PathBuf,
    pub tag: String,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Minimal => "python",
            Self::Scientific => "python-scientific",
            Self::Ballast => "python-ballast",
            Self::Node => "node",
            Self::Jvm => "jvm",
        }
    }

    fn is_python(self) -> bool {
        match self {
            Self::Minimal | Self::Scientific | Self::Ballast => true,
            Self::Node | Self::Jvm => false,
        }
    }

    fn version(self) -> u32 {
        if self.is_python() { PYTHON_VERSION } else { SERVICE_VERSION }
    }

    fn packages(self) -> anyhow::Result<BTreeSet<String>> {
        let minimal = [
            "busybox-static",
            "libc6",
            "libexpat1",
            "libpython3.11-minimal",
            "libpython3.11-stdlib",
            "libssl3",
            "python3.11-minimal",
            "zlib1g",
        ];
        let minimal = BTreeSet::from(minimal.map(str::to_owned));
        Ok(match self {
            Self::Minimal | Self::Ballast => minimal,
            Self::Scientific => {
                let science = ["python3-scipy", "python3-pandas", "python3-matplotlib"];
                minimal.into_iter().chain(debian::closure(&science)?).collect()
            }
            Self::Node => service::node_packages()?,
            Self::Jvm => service::jvm_packages()?,
        })
    }

    fn command(self) -> Vec<String> {
        let python = |imports: &[&str]| {
            let server = ["/usr/bin/python3.11", "/srv/server.py"];
            server.iter().chain(imports).map(|&argument| argument.to_owned()).collect()
        };
        match self {
            Self::Minimal | Self::Ballast => python(&[]),
            Self::Scientific => python(&["numpy", "scipy.linalg", "scipy.optimize", "pandas"]),
            Self::Node => service::node_command(),
            Self::Jvm => service::jvm_command(),
        }
    }
}

impl Image {
    /// The image from `cache`, built first if it is not there. Processes that ask at once wait for one.
    pub fn cached(cache: &Path, variant: Variant) -> anyhow::Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        let lock = File::create(cache.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let layout = cache.join(format!("{}-v{}", variant.name(), variant.version()));
        if !layout.join("index.json").exists() {
            let scratch = tempfile::tempdir_in(cache)?;
            let built = scratch.path().join("layout");
            build(&built, scratch.path(), &cache.join("packages"), variant)
                .with_context(|| format!("build the image {}", variant.name()))?;
            fs::rename(built, &layout)?;
        }
        Ok(Self { layout, tag: TAG.to_owned() })
    }

    /// Unpacks the image as umoci understands it, for comparison; returns the root folder.
    pub fn unpack(&self, into: &Path) -> anyhow::Result<PathBuf> {
        let bundle = into.join("bundle");
        let image = format!("{}:{}", self.layout.display(), self.tag);
        run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
        Ok(bundle.join("rootfs"))
    }

    /// Bytes of all layers as they lie in a registry.
    pub fn layer_bytes(&self) -> anyhow::Result<u64> {
        let manifest = self.manifest()?;
        let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
        Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).sum())
    }

    /// Bytes of all files of the unpacked image.
    pub fn unpacked_bytes(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.layout.join(UNPACKED_BYTES))?;
        text.parse().context("read the size of the unpacked image")
    }

    /// The image's manifest.
    pub fn manifest(&self) -> anyhow::Result<Value> {
        let read = |path: &str| -> anyhow::Result<Value> {
            Ok(serde_json::from_slice(&fs::read(self.layout.join(path))?)?)
        };
        let index = read("index.json")?;
        let digest = index["manifests"][0]["digest"].as_str().context("the layout names no manifest")?;
        read(&format!("blobs/{}", digest.replace(':', "/")))
    }
}

fn build(layout: &Path, scratch: &Path, packages: &Path, variant: Variant) -> anyhow::Result<()> {
    let image = format!("{}:{TAG}", layout.display());
    let bundle = scratch.join("bundle");
    let rootfs = bundle.join("rootfs");
    run(Command::new("umoci").arg("init").arg("--layout").arg(layout))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;

    debian::unpack(&variant.packages()?, packages, &rootfs)?;
    write_base(&rootfs)?;
    match variant {
        Variant::Minimal | Variant::Scientific => {}
        Variant::Ballast => write_ballast(&rootfs.join("opt/ballast")).context("write the ballast")?,
        Variant::Node => service::write_node(&rootfs)?,
        Variant::Jvm => service::write_jvm(&rootfs, scratch, packages).context("compile the service")?,
    }
    run(Command::new("umoci").args(["repack", "--refresh-bundle", "--image", &image]).arg(&bundle))?;
    if variant.is_python() {
        fs::write(rootfs.join("srv/server.py"), SERVER)?;
    }
    write_oddities(&rootfs)?;
    run(Command::new("umoci").args(["repack", "--image", &image]).arg(&bundle))?;

    fs::write(layout.join(UNPACKED_BYTES), file_bytes(&rootfs)?.to_string())?;
    let mut config = Command::new("umoci");
    config.args(["config", "--image", &image, "--config.workingdir", "/srv"]);
    for variable in ["PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"] {
        config.args(["--config.env", variable]);
    }
    for argument in variant.command() {
        config.args(["--config.entrypoint", &argument]);
    }
    run(&mut config)?;
    Ok(())
}

/// As `du` counts: each file once, holes not at all.
fn file_bytes(root: &Path) -> anyhow::Result<u64> {
    let text = run(Command::new("du").args(["-s", "--block-size=1"]).arg(root))?;
    let number = text.split_whitespace().next().context("du printed nothing")?;
    Ok(number.parse()?)
}

fn write_base(rootfs: &Path) -> anyhow::Result<()> {
    for folder in ["dev", "etc", "opt/odd", "proc", "srv", "sys", "tmp", "root"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    // Packages leave the choice between equal libraries to a script, which is not run here.
    let libraries = rootfs.join("usr/lib/x86_64-linux-gnu");
    for library in ["libblas.so.3", "liblapack.so.3", "libopenblas.so.0"] {
        if libraries.join("openblas-pthread").join(library).exists() {
            symlink(format!("openblas-pthread/{library}"), libraries.join(library))?;
        }
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/srv:/bin/sh\n"),
        ("etc/group", "root:x:0:\napp:x:1000:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/hostname", "image\n"),
        ("etc/resolv.conf", ""),
        ("opt/odd/removed-later", "in the first layer only\n"),
        ("opt/odd/replaced-later", "first\n"),
    ] {
        fs::write(rootfs.join(path), text)?;
    }
    fs::create_dir(rootfs.join("opt/odd/emptied-later"))?;
    fs::write(rootfs.join("opt/odd/emptied-later/file"), "gone\n")?;
    Ok(())
}

/// Each page is SplitMix64 from the page's number on, so that the server knows what it must read.
fn write_ballast(path: &Path) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for page in 0..BALLAST_BYTES / PAGE_BYTES {
        let mut state = page;
        for _ in 0..PAGE_BYTES / 8 {
            out.write_all(&split_mix(&mut state).to_le_bytes())?;
        }
    }
    Ok(out.flush()?)
}

fn write_oddities(rootfs: &Path) -> anyhow::Result<()> {
    let odd = rootfs.join("opt/odd");
    fs::remove_file(odd.join("removed-later"))?;
    fs::remove_file(odd.join("emptied-later/file"))?;
    fs::write(odd.join("replaced-later"), "second\n")?;
    fs::write(odd.join("empty"), "")?;
    fs::write(odd.join("x".repeat(255)), "a long name\n")?;
    fs::write(odd.join("blank and \u{e4}\u{f6}\u{fc}"), "a name with blanks and letters\n")?;
    fs::write(odd.join("linked"), "three names\n")?;
    fs::hard_link(odd.join("linked"), odd.join("linked-2"))?;
    fs::hard_link(odd.join("linked"), rootfs.join("srv/linked-3"))?;
    symlink("linked", odd.join("symbolic"))?;
    symlink("/nowhere", odd.join("dangling"))?;
    let sparse = File::create(odd.join("sparse"))?;
    sparse.set_len(3 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 1 << 20)?;
    let shell = |script: &str| run(Command::new("sh").args(["-ec", script]).current_dir(&odd));
    shell(
        "mknod null-device c 1 3; mknod block-device b 7 200; mkfifo pipe; \
         cp /bin/true capable; setcap cap_net_bind_service+ep capable; \
         echo listed > listed; setfacl -m u:1000:rw,g:1000:r listed; \
         echo noted > noted; setfattr -n user.note -v remember noted; \
         echo owned > owned; chown 1000:1000 owned; chmod 4750 owned; \
         mkdir sticky; chmod 3777 sticky; setfacl -d -m u:1000:rwx sticky; \
         mkdir many; cd many; i=0; while [ $i -lt 1500 ]; do : > file-$i; i=$((i+1)); done",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_unpacks_to_a_server_that_python_can_run() {
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rig");
        let image = Image::cached(&cache, Variant::Minimal).unwrap();
        let folder = tempfile::tempdir_in(&cache).unwrap();
        let rootfs = image.unpack(folder.path()).unwrap();
        assert!(!rootfs.join("opt/odd/removed-later").exists());
        let import = ["/usr/bin/python3.11", "-c", "import http.server, hashlib, json; print('fine')"];
        assert_eq!(run(Command::new("chroot").arg(&rootfs).args(import)).unwrap(), "fine\n");
    }
}
