//! A holder that serves one image file, all of it present, and where it has mounted it.

use anyhow::{Context, ensure};
use bytes::BytesMut;
use faasnet_actors::{
    id::Digest,
    image::BLOCK_BYTES,
    wire::{
        PROTOCOL_VERSION,
        frame::{FrameLimits, decode, encode_head},
        holder::{FromHolder, Mount, ToHolder},
    },
};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

pub const IMAGE: Digest = Digest::from_bytes([1; 32]);

pub struct Mounted {
    pub holder: Child,
    stream: UnixStream,
    buffer: BytesMut,
    /// The folder with `file`, which FUSE serves, and `fs`, where it is mounted.
    pub path: PathBuf,
    _data: tempfile::TempDir,
}

impl Mounted {
    pub fn new(direct_io: bool, record: bool, image: &Path) -> anyhow::Result<Self> {
        let data = tempfile::tempdir_in(".")?;
        let program = std::env::current_exe()?.with_file_name("../faasnet");
        let mut command = Command::new(program);
        command.arg("holder").arg("--data").arg(data.path()).env("FAASNET__LOG__FILTER", "error");
        command.env("FAASNET__HOLDER__EROFS_DIRECT_IO", direct_io.to_string());
        let mut holder = command.stdout(Stdio::piped()).spawn().context("run `cargo build` first")?;
        BufReader::new(holder.stdout.take().context("piped")?).read_line(&mut String::new())?;
        let stream = UnixStream::connect(data.path().join("holder.sock"))?;
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let inside = data.path().canonicalize()?.strip_prefix("/")?.join("images").join(IMAGE.hex());
        let mut mounted =
            Self { holder, stream, buffer: BytesMut::new(), path: root.join(inside), _data: data };
        mounted.order(&ToHolder::Hello { version: PROTOCOL_VERSION })?;
        mounted.answer()?;
        let plain_bytes = fs::metadata(image)?.len();
        let blocks = plain_bytes.div_ceil(u64::from(BLOCK_BYTES));
        let present = vec![255; blocks.div_ceil(8) as usize];
        let plain_path = image.canonicalize()?;
        mounted.order(&ToHolder::Mount(Mount {
            image: IMAGE,
            plain_path,
            plain_bytes,
            present,
            record,
            packed: false,
        }))?;
        let answer = mounted.answer()?;
        ensure!(matches!(answer, FromHolder::Mounted { .. }), "{answer:?}");
        Ok(mounted)
    }

    pub fn order(&mut self, order: &ToHolder) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&encode_head(order, 0)?)?)
    }

    pub fn answer(&mut self) -> anyhow::Result<FromHolder> {
        let limits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 0 };
        loop {
            if let Ok(frame) = decode(&mut self.buffer, limits)? {
                return Ok(frame.header);
            }
            let mut chunk = [0; 4096];
            let len = self.stream.read(&mut chunk)?;
            ensure!(len > 0, "the holder hung up");
            self.buffer.extend_from_slice(&chunk[..len]);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.order(&ToHolder::Shutdown { grace_ms: 0 });
        let _ = self.holder.wait();
    }
}
