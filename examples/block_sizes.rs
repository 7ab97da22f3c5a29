//! What block size and codec cost: stored bytes of an image, and for the blocks that a recorded start touches
//! their stored bytes and the time to decode them. Needs root.
//!
//! ```text
//! cargo build --release && cargo run --release --example block_sizes -- LAYOUT COMMAND...
//! ```
//!
//! `LAYOUT` is an OCI layout; `COMMAND` is run in it and stands for a start. What it reads is recorded by a holder
//! with the smallest read-ahead, as of a first start on a VM, and for a file system without a packed hot set.

mod mounted;

use anyhow::{Context, ensure};
use faasnet::{
    image::{
        blocks::decode_block,
        convert::{ConvertOptions, convert},
        progress::Progress,
        publish::folder::FolderDestination,
        resolve::Platform,
        source::layout::LayoutSource,
    },
    settings::Settings,
};
use faasnet_actors::{
    id::{BlockId, Digest},
    image::Index,
    wire::holder::{FromHolder, PlainRange, ToHolder},
};
use mounted::{IMAGE, Mounted};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    time::Instant,
};

const SIZES_KIB: [usize; 5] = [64, 128, 256, 512, 1024];
const LEVELS: [i32; 4] = [-3, 1, 3, 9];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (layout, command) = arguments.split_first().context("give a layout and a command")?;
    let folder = tempfile::tempdir_in(".")?;
    let image = folder.path().join("image");
    write_plain(layout, folder.path(), &image)?;
    let ranges = record(&image, command)?;
    let plain = fs::read(&image)?;
    let read: u64 = ranges.iter().map(|range| range.1).sum();
    println!("the file system has {} MiB, the start reads {:.1} MB", plain.len() >> 20, read as f64 / 1e6);
    println!(
        "| KiB | zstd | image stored | blocks touched | their stored bytes | of what is read | decoded in |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kibibytes in SIZES_KIB {
        let bytes = kibibytes << 10;
        let touched: BTreeSet<u64> = ranges.iter().flat_map(|range| blocks(*range, bytes as u64)).collect();
        for level in LEVELS {
            let pack = |block: &[u8]| zstd::bulk::compress(block, level);
            let packed: Vec<Vec<u8>> = plain.chunks(bytes).map(pack).collect::<Result<_, _>>()?;
            let stored = |block: usize| packed[block].len().min(bytes) as u64;
            let all: u64 = (0..packed.len()).map(stored).sum();
            let needed: u64 = touched.iter().map(|block| stored(*block as usize)).sum();
            let mut decoder = zstd::bulk::Decompressor::new()?;
            let mut out = vec![0; bytes];
            let begin = Instant::now();
            for block in &touched {
                decoder.decompress_to_buffer(&packed[*block as usize], &mut out)?;
            }
            println!(
                "| {kibibytes} | {level} | {:.0} MB | {} | {:.1} MB | {:.2} | {:.0} ms |",
                all as f64 / 1e6,
                touched.len(),
                needed as f64 / 1e6,
                needed as f64 / read as f64,
                begin.elapsed().as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}

fn blocks(PlainRange(from, length): PlainRange, bytes: u64) -> std::ops::RangeInclusive<u64> {
    from / bytes..=(from + length.max(1) - 1) / bytes
}

/// The file system of an image, as the converter makes it.
fn write_plain(layout: &str, folder: &Path, to: &Path) -> anyhow::Result<()> {
    let settings = Settings::default().image;
    let source = LayoutSource::new(layout, settings.manifest_bytes_max)?;
    let origin = folder.join("origin");
    let options =
        ConvertOptions { platform: Platform::of_this_machine(), settings, spool: folder.join("spool") };
    let image = convert(&source, &FolderDestination::new(origin.clone()), &options, &Progress::default())?;
    let blob = |digest: Digest| fs::read(origin.join("blobs/sha256").join(digest.hex()));
    let index = Index::decode(&blob(image.index_digest)?)?;
    let stored = blob(image.blob_digest)?;
    let mut file = File::create(to)?;
    for block in (0..index.block_count()).map(BlockId) {
        let entry = index.entry(block).context("counted by the index")?;
        let bytes = &stored[entry.offset as usize..][..entry.stored_bytes as usize];
        file.write_all(&decode_block(entry, index.plain_len(block), bytes)?)?;
    }
    Ok(())
}

/// What the command reads of the image, in the order of first use.
fn record(image: &Path, command: &[String]) -> anyhow::Result<Vec<PlainRange>> {
    let mut mounted = Mounted::new(true, true, image)?;
    let status = Command::new("chroot").arg(mounted.path.join("fs")).args(command).status()?;
    ensure!(status.success(), "the command failed");
    mounted.order(&ToHolder::EndRecording { image: IMAGE })?;
    match mounted.answer()? {
        FromHolder::Recorded { ranges, .. } => Ok(ranges),
        other => anyhow::bail!("the holder said {other:?}"),
    }
}
