//! The converter as the scheduler's actor knows it: source images in, block images out.

use crate::{
    code::CodePackages,
    image::{
        convert::{ConvertOptions, convert, convert_again},
        progress::{Phase, Progress},
        publish,
        resolve::Platform,
        source,
        zip::convert_package,
    },
    settings::Settings,
};
use faasnet_actors::{
    image::BlockImage,
    world::{ConversionPhase, ConversionProgress, ConvertFailure, Converter, Packing, Source},
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// How often the converter's counters are shown to others.
const LOOK: Duration = Duration::from_millis(100);

/// Converts on blocking threads, a few at a time.
pub struct ImageConverter {
    settings: Arc<Settings>,
    packages: CodePackages,
    permits: Arc<Semaphore>,
}

impl ImageConverter {
    pub fn new(settings: Settings, packages: CodePackages) -> Self {
        let permits = Arc::new(Semaphore::new(settings.image.conversions_max.max(1)));
        Self { settings: Arc::new(settings), packages, permits }
    }
}

impl Converter for ImageConverter {
    fn convert(
        &self,
        source: &Source,
        packing: Option<Packing>,
        shown: Arc<ConversionProgress>,
    ) -> BoxFuture<'static, Result<BlockImage, ConvertFailure>> {
        let (settings, permits) = (Arc::clone(&self.settings), Arc::clone(&self.permits));
        let (packages, source) = (self.packages.clone(), source.clone());
        Box::pin(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            let progress = Arc::new(Progress::default());
            let _cancel = CancelOnDrop(Arc::clone(&progress));
            let counters = Arc::clone(&progress);
            let mut work = tokio::task::spawn_blocking(move || {
                run(&source, packing.as_ref(), &packages, &settings, &counters)
            });
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => {
                        return done.unwrap_or_else(|_| Err(ConvertFailure("the converter crashed".into())));
                    }
                    _ = look.tick() => show(&progress, &shown),
                }
            }
        })
    }
}

/// Ends a conversion that nobody waits for any more.
struct CancelOnDrop(Arc<Progress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn show(progress: &Progress, shown: &ConversionProgress) {
    let now = progress.snapshot();
    let phase = match now.phase {
        Phase::Resolving | Phase::Reading => ConversionPhase::Reading,
        Phase::Packing => ConversionPhase::Writing,
        Phase::Publishing | Phase::Verifying | Phase::Done => ConversionPhase::Publishing,
    };
    if shown.phase() != phase {
        shown.begin(phase, now.total_bytes);
    }
    shown.set(now.done_bytes, now.total_bytes);
}

fn run(
    source: &Source,
    packing: Option<&Packing>,
    packages: &CodePackages,
    settings: &Settings,
    progress: &Progress,
) -> Result<BlockImage, ConvertFailure> {
    let failure = |error: &dyn std::fmt::Display| ConvertFailure(error.to_string());
    let destination =
        publish::open(&settings.image.destination, settings).map_err(|error| failure(&error))?;
    let (options, destination) =
        (ConvertOptions::new(settings, Platform::of_this_machine()), destination.as_ref());
    match source {
        Source::Image(image) => {
            let source = source::open_for_api(image, settings).map_err(|error| failure(&error))?;
            match packing {
                Some(packing) => convert_again(source.as_ref(), destination, &options, packing, progress),
                None => convert(source.as_ref(), destination, &options, progress),
            }
        }
        // What starts read of code is not recorded: it is small beside its runtime image.
        Source::Code(tenant, package) => {
            // Also makes sure that it is there: with another data folder than the manager's before, it is not.
            packages.keep(tenant, *package).map_err(|error| failure(&error))?;
            let path = packages.path(tenant, *package);
            convert_package(&path, *package, &settings.code.zip_limits(), destination, &options, progress)
        }
    }
    .map_err(|error| failure(&error))
}
