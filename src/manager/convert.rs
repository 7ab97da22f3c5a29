//! The converter as the scheduler's actor knows it: source images in, block images out.

use crate::{
    image::{
        convert::{ConvertOptions, convert, convert_again},
        progress::{Phase, Progress},
        publish,
        resolve::Platform,
        source,
    },
    settings::Settings,
};
use faasnet_actors::{
    image::BlockImage,
    world::{ConversionPhase, ConversionProgress, ConvertFailure, Converter, Packing},
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// How often the converter's counters are shown to others.
const LOOK: Duration = Duration::from_millis(100);

/// Converts on blocking threads, a few at a time.
pub struct ImageConverter {
    settings: Arc<Settings>,
    permits: Arc<Semaphore>,
}

impl ImageConverter {
    pub fn new(settings: Settings) -> Self {
        let permits = Arc::new(Semaphore::new(settings.image.conversions_max.max(1)));
        Self { settings: Arc::new(settings), permits }
    }
}

impl Converter for ImageConverter {
    fn convert(
        &self,
        image: &str,
        packing: Option<Packing>,
        shown: Arc<ConversionProgress>,
    ) -> BoxFuture<'static, Result<BlockImage, ConvertFailure>> {
        let (settings, permits, image) =
            (Arc::clone(&self.settings), Arc::clone(&self.permits), image.to_owned());
        Box::pin(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            let progress = Arc::new(Progress::default());
            let _cancel = CancelOnDrop(Arc::clone(&progress));
            let counters = Arc::clone(&progress);
            let mut work =
                tokio::task::spawn_blocking(move || run(&image, packing.as_ref(), &settings, &counters));
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
    image: &str,
    packing: Option<&Packing>,
    settings: &Settings,
    progress: &Progress,
) -> Result<BlockImage, ConvertFailure> {
    let failure = |error: &dyn std::fmt::Display| ConvertFailure(error.to_string());
    let source = source::open_for_api(image, settings).map_err(|error| failure(&error))?;
    let destination =
        publish::open(&settings.image.destination, settings).map_err(|error| failure(&error))?;
    let spool = match &settings.image.spool {
        none if none.as_os_str().is_empty() => settings.manager.data.join("spool"),
        spool => spool.clone(),
    };
    let options =
        ConvertOptions { platform: Platform::of_this_machine(), settings: settings.image.clone(), spool };
    let (source, destination) = (source.as_ref(), destination.as_ref());
    let converted = match packing {
        Some(packing) => convert_again(source, destination, &options, packing, progress),
        None => convert(source, destination, &options, progress),
    };
    converted.map_err(|error| failure(&error))
}
