//! `faasnet image`: converts OCI images into block images, and looks at the result.

use crate::{
    image::{
        convert::{ConvertOptions, convert, convert_packed},
        inspect::{FolderParts, Inspection, OriginParts, Parts, inspect, open_artifact, open_folder, verify},
        progress::{Phase, Progress},
        publish,
        resolve::Platform,
        source,
    },
    origin,
    registry::{Reference, jitter_seed},
    settings::Settings,
};
use anyhow::{Context, bail};
use clap::Subcommand;
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, ImageLocation},
    profile::Profile,
};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// What to do with images.
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Convert an OCI image into a block image and publish it
    Convert {
        /// HOST/REPOSITORY[:TAG], oci:DIR[:TAG] or oci:DIR@DIGEST
        source: String,
        /// folder:DIR or registry:HOST/REPOSITORY; image.destination if not given
        #[arg(long, value_name = "DEST")]
        to: Option<String>,
        /// The platform to take from an image for several, such as linux/arm64; this machine's if not given
        #[arg(long)]
        platform: Option<Platform>,
        /// What starts read, in JSON: it is packed behind the metadata, in that order
        #[arg(long, value_name = "FILE")]
        profile: Option<PathBuf>,
    },
    /// Show what a block image consists of
    Inspect {
        /// folder:DIR[@DIGEST] or registry:HOST/REPOSITORY@DIGEST
        image: String,
    },
    /// Read all of a block image and check every digest, hash and block
    Verify {
        /// folder:DIR[@DIGEST] or registry:HOST/REPOSITORY@DIGEST
        image: String,
    },
}

/// What a conversion made, and what it cost.
#[derive(Debug, Serialize)]
struct Conversion {
    image: BlockImage,
    /// Entries of all layers.
    entries: u64,
    /// Decompressed bytes of all layers.
    layer_plain_bytes: u64,
    elapsed_ms: u64,
    /// Plain bytes of the file system, a second.
    mb_per_s: f64,
    /// Most memory that this process ever had (VmHWM).
    peak_memory_bytes: u64,
}

/// Runs the command and prints its result.
pub async fn run(command: ImageCommand, settings: &Settings, json: bool) -> anyhow::Result<()> {
    match command {
        ImageCommand::Convert { source, to, platform, profile } => {
            let destination = to.unwrap_or_else(|| settings.image.destination.clone());
            let platform = platform.unwrap_or_else(Platform::of_this_machine);
            let conversion = run_convert(source, destination, platform, profile, settings, json).await?;
            if json { print_json(&conversion) } else { print_conversion(&conversion) }
        }
        ImageCommand::Inspect { image } => {
            let settings = settings.clone();
            let job = move |_: &Progress| {
                let (parts, image) = open(&image, &settings)?;
                Ok(inspect(&image, &*parts)?)
            };
            let inspection = watch(json, job).await?;
            if json { print_json(&inspection) } else { print_inspection(&inspection) }
        }
        ImageCommand::Verify { image } => {
            let settings = settings.clone();
            let job = move |progress: &Progress| {
                let (parts, image) = open(&image, &settings)?;
                Ok(verify(&image, &*parts, progress)?)
            };
            let verification = watch(json, job).await?;
            if json {
                return print_json(&verification);
            }
            let (blocks, id) = (verification.blocks, verification.id);
            println!("{id}: all {blocks} blocks are sound, {}", HumanBytes(verification.plain_bytes));
            Ok(())
        }
    }
}

async fn run_convert(
    source: String,
    destination: String,
    platform: Platform,
    profile: Option<PathBuf>,
    settings: &Settings,
    json: bool,
) -> anyhow::Result<Conversion> {
    let options = ConvertOptions::new(settings, platform);
    let profile = profile.as_deref().map(read_profile).transpose()?;
    let settings = settings.clone();
    let started = Instant::now();
    let job = move |progress: &Progress| {
        let from = source::open(&source, &settings)?;
        let to = publish::open(&destination, &settings)?;
        let converted = match &profile {
            Some(profile) => convert_packed(&*from, &*to, &options, profile, progress),
            None => convert(&*from, &*to, &options, progress),
        };
        let image = converted.with_context(|| format!("convert {source}"))?;
        Ok((image, progress.snapshot()))
    };
    let (image, counted) = watch(json, job).await?;
    let elapsed = started.elapsed();
    Ok(Conversion {
        entries: counted.entries,
        layer_plain_bytes: counted.layer_plain_bytes,
        elapsed_ms: elapsed.as_millis() as u64,
        mb_per_s: image.plain_bytes as f64 / 1e6 / elapsed.as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
        image,
    })
}

/// Longest file with a profile: a profile's limits, and generous room for how it is written.
const PROFILE_FILE_BYTES_MAX: u64 = 16 << 20;

fn read_profile(path: &Path) -> anyhow::Result<Profile> {
    let what = || format!("read the profile {}", path.display());
    let mut text = Vec::new();
    let file = File::open(path).with_context(what)?;
    file.take(PROFILE_FILE_BYTES_MAX + 1).read_to_end(&mut text).with_context(what)?;
    if text.len() as u64 > PROFILE_FILE_BYTES_MAX {
        bail!("the profile {} is longer than {PROFILE_FILE_BYTES_MAX} bytes", path.display());
    }
    serde_json::from_slice(&text).with_context(what)
}

/// Opens a published block image. Blocking.
fn open(text: &str, settings: &Settings) -> anyhow::Result<(Box<dyn Parts>, BlockImage)> {
    let manifest_bytes_max = settings.image.manifest_bytes_max;
    if let Some(reference) = text.strip_prefix("registry:") {
        let repository = reference.parse::<Reference>()?.repository.to_string();
        let location = ImageLocation::Registry { repository };
        let image = open_artifact(&*source::open(reference, settings)?, location, manifest_bytes_max)?;
        let origin = origin::open(&settings.origin, jitter_seed())?;
        let runtime = tokio::runtime::Handle::current();
        return Ok((Box::new(OriginParts { origin, image: image.clone(), runtime }), image));
    }
    let Some(rest) = text.strip_prefix("folder:") else {
        bail!(
            "{text:?} is not a block image: write folder:DIR, folder:DIR@DIGEST or registry:HOST/REPOSITORY@DIGEST"
        );
    };
    let (folder, digest) = match rest.split_once('@') {
        Some((folder, digest)) => (folder, Some(digest.parse::<Digest>()?)),
        None => (rest, None),
    };
    let folder = Path::new(folder);
    let image = open_folder(folder, digest, manifest_bytes_max)?;
    Ok((Box::new(FolderParts::new(folder, &image)), image))
}

/// Pause between drawings of the bar: ten a second look smooth.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a job on a blocking thread under a progress bar; Ctrl-C cancels it.
async fn watch<T: Send + 'static>(
    json: bool,
    job: impl FnOnce(&Progress) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let progress = Arc::new(Progress::default());
    let for_job = Arc::clone(&progress);
    let mut running = tokio::task::spawn_blocking(move || job(&for_job));
    // indicatif hides bars by itself where standard error is not a terminal.
    let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let template = "{msg:10} {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    let bar = ProgressBar::with_draw_target(None, target).with_style(style);
    let mut interval = tokio::time::interval(DRAW_INTERVAL);
    loop {
        tokio::select! {
            result = &mut running => {
                bar.finish_and_clear();
                return result.context("the conversion's thread panicked")?;
            }
            _ = interval.tick() => draw(&bar, &progress),
            signal = tokio::signal::ctrl_c() => {
                signal.context("wait for Ctrl-C")?;
                progress.cancel();
            }
        }
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let counted = progress.snapshot();
    let word = match counted.phase {
        Phase::Resolving => "resolving",
        Phase::Reading => "reading",
        Phase::Packing => "packing",
        Phase::Publishing => "publishing",
        Phase::Verifying => "verifying",
        Phase::Done => "done",
    };
    bar.set_message(word);
    bar.set_length(counted.total_bytes);
    bar.set_position(counted.done_bytes);
}

/// The kernel's record of the most memory this process had; 0 if it cannot be read.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn print_conversion(conversion: &Conversion) -> anyhow::Result<()> {
    let image = &conversion.image;
    println!("block image  {}", image.id);
    println!("source       {}", image.source);
    println!("location     {}", place(&image.location));
    println!("plain        {}", HumanBytes(image.plain_bytes));
    println!("stored       {}", HumanBytes(image.blob_bytes));
    println!("entries      {}", conversion.entries);
    println!("time         {:.2} s, {:.0} MB/s", conversion.elapsed_ms as f64 / 1e3, conversion.mb_per_s);
    println!("peak memory  {}", HumanBytes(conversion.peak_memory_bytes));
    Ok(())
}

fn print_inspection(inspection: &Inspection) -> anyhow::Result<()> {
    let runtime = &inspection.runtime;
    println!("block image  {}", inspection.id);
    println!("source       {}", inspection.source);
    println!("location     {}", place(&inspection.location));
    println!("format       {}", inspection.format_version);
    println!("plain        {}", HumanBytes(inspection.plain_bytes));
    println!("stored       {}, ratio {:.2}", HumanBytes(inspection.stored_bytes), inspection.ratio);
    println!("blocks       {}, {} of them not compressed", inspection.blocks, inspection.plain_blocks);
    println!("metadata     {} blocks", inspection.metadata_blocks);
    let hot = HumanBytes(inspection.hot_stored_bytes);
    println!("hot set      {} blocks with the metadata, {hot} stored", inspection.hot_blocks);
    println!("index        {}", HumanBytes(inspection.index_bytes));
    println!("entrypoint   {:?}", runtime.entrypoint);
    println!("cmd          {:?}", runtime.cmd);
    println!("user         {}:{} {:?}", runtime.uid, runtime.gid, runtime.additional_gids);
    println!("directory    {}", runtime.cwd);
    println!("stop signal  {}", runtime.stop_signal);
    for (name, value) in &runtime.env {
        println!("variable     {name}={value}");
    }
    Ok(())
}

fn place(location: &ImageLocation) -> String {
    match location {
        ImageLocation::Folder { path } => format!("folder:{}", path.display()),
        ImageLocation::Registry { repository } => format!("registry:{repository}"),
    }
}
