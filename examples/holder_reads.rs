//! Measures reads of a mounted block image that is wholly present: EROFS with `directio` against
//! buffered. Needs root and `mkfs.erofs`. `cargo run --example holder_reads [MEBIBYTES]`, after
//! `cargo build`.

mod mounted;

use anyhow::{Context, ensure};
use mounted::Mounted;
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    thread,
    time::Instant,
};

const READS: u64 = 20_000;
const THREADS: u64 = 4;

fn main() -> anyhow::Result<()> {
    let mebibytes = std::env::args().nth(1).map_or(Ok(256), |text| text.parse::<u64>())?;
    let folder = tempfile::tempdir_in(".")?;
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    let mut bytes = blake3::Hasher::new().finalize_xof();
    std::io::copy(&mut bytes.by_ref().take(mebibytes << 20), &mut File::create(root.join("big"))?)?;
    let image = folder.path().join("image");
    let made = Command::new("mkfs.erofs").arg(&image).arg(&root).output().context("erofs-utils")?;
    ensure!(made.status.success(), "mkfs.erofs");
    fs::remove_dir_all(&root)?;
    File::open(&image)?.sync_all()?;
    println!(
        "{:8} {:>9} {:>9} {:>9} {:>9} {:>9} | {:>21} | read of cache file",
        "mode", "seq MB/s", "again", "4K/s cold", "4K/s 4thr", "4K/s warm", "cached MiB: fs file .."
    );
    for round in 0..3 {
        for (name, direct_io) in [("directio", true), ("buffered", false)] {
            measure(name, direct_io, &image, mebibytes << 20)
                .with_context(|| format!("{name}, round {round}"))?;
        }
    }
    Ok(())
}

fn measure(name: &str, direct_io: bool, image: &Path, file_bytes: u64) -> anyhow::Result<()> {
    // Sequential and random each on a fresh mount; the cache file itself is warm, as when just fetched.
    std::io::copy(&mut File::open(image)?, &mut std::io::sink())?;
    let mounted = Mounted::new(direct_io, false, image)?;
    let (first, again) = (mounted.sequential()?, mounted.sequential()?);
    let (cached, read) = (mounted.cached(image)?, mounted.bytes_read()?);
    drop(mounted);
    let mounted = Mounted::new(direct_io, false, image)?;
    let (cold, warm) = (mounted.random(1, file_bytes, 1)?, mounted.random(1, file_bytes, 1)?);
    let random_read = mounted.bytes_read()?;
    drop(mounted);
    let mounted = Mounted::new(direct_io, false, image)?;
    let threads = mounted.random(2, file_bytes, THREADS)?;
    println!(
        "{name:8} {first:9.0} {again:9.0} {cold:9.0} {threads:9.0} {warm:9.0} | {cached} | sequential {} MiB, random {} MiB",
        read >> 20,
        random_read >> 20,
    );
    Ok(())
}

impl Mounted {
    /// MB/s of one pass over the file.
    fn sequential(&self) -> anyhow::Result<f64> {
        let mut file = File::open(self.path.join("fs/big"))?;
        let (mut buffer, mut total, start) = (vec![0; 1 << 20], 0_usize, Instant::now());
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(total as f64 / 1e6 / start.elapsed().as_secs_f64()),
                len => total += len,
            }
        }
    }

    /// Reads of 4 KiB a second, at places that `seed` decides.
    fn random(&self, seed: u64, file_bytes: u64, threads: u64) -> anyhow::Result<f64> {
        let start = Instant::now();
        let work = |thread: u64| {
            let file = File::open(self.path.join("fs/big"))?;
            // Without it, read-ahead would be measured.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
            let mut state = seed << 32 | thread << 16 | 1;
            let mut buffer = [0; 4096];
            for _ in 0..READS / threads {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                file.read_exact_at(&mut buffer, (state >> 20) % (file_bytes / 4096) * 4096)?;
            }
            anyhow::Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
        })?;
        Ok(READS as f64 / start.elapsed().as_secs_f64())
    }

    /// MiB in the page cache: of the file seen by containers, of the FUSE file, of the cache file.
    fn cached(&self, image: &Path) -> anyhow::Result<String> {
        let mut texts = Vec::new();
        for path in [&self.path.join("fs/big"), &self.path.join("file"), &image.to_owned()] {
            let mut command = Command::new("fincore");
            command.args(["--bytes", "--noheadings", "--output", "RES"]).arg(path);
            let output = command.output().context("fincore")?;
            let bytes: u64 = String::from_utf8(output.stdout)?.trim().parse().unwrap_or(0);
            texts.push(format!("{:6}", bytes >> 20));
        }
        Ok(texts.join(" "))
    }

    /// Bytes that the holder read, nearly all of them from the cache file.
    fn bytes_read(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.holder.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).context("rchar")?;
        Ok(line.parse()?)
    }
}
