//! Finds out what lies where in a block image: reads the metadata of its file system from the origin, on a
//! blocking thread, one image at a time.

use crate::{
    image::{
        blocks::decode_block,
        erofs::read::{FileMap, ReadError},
        inspect::{InspectError, OriginParts, Parts, read_index},
    },
    settings::ProfileSettings,
};
use faasnet_actors::{
    id::{BlockId, ImageId},
    image::{BLOCK_BYTES, BlockImage, Index},
    profile::Profile,
    wire::holder::PlainRange,
    world::{HotSet, Origin, Part, Surveyor, TakenIn},
};
use futures::future::BoxFuture;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// Why it is not known what lies where.
#[derive(Debug, thiserror::Error)]
enum SurveyError {
    #[error(transparent)]
    Image(#[from] InspectError),
    #[error(transparent)]
    Metadata(#[from] ReadError),
    #[error("its metadata has {0} bytes; profile.metadata_bytes_max is the limit")]
    TooLarge(u64),
}

struct Survey {
    index: Index,
    files: FileMap,
}

/// What a survey works with; shared with its thread.
struct Desk {
    origin: Arc<dyn Origin>,
    metadata_bytes_max: u64,
    missed_max: u32,
    /// The last image that was looked at: an image is recorded some times, one after the other.
    last: Mutex<Option<(ImageId, Arc<Survey>)>>,
    /// One at a time: a map of an image may be as large as its metadata.
    turn: Arc<Semaphore>,
}

pub struct ImageSurveyor(Arc<Desk>);

impl ImageSurveyor {
    pub fn new(origin: Arc<dyn Origin>, settings: &ProfileSettings) -> Self {
        Self(Arc::new(Desk {
            origin,
            metadata_bytes_max: settings.metadata_bytes_max,
            missed_max: settings.missed_max,
            last: Mutex::new(None),
            turn: Arc::new(Semaphore::new(1)),
        }))
    }

    fn run<T: Send + 'static>(
        &self,
        image: Arc<BlockImage>,
        work: impl FnOnce(&Survey, &Desk) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, String>> {
        let desk = Arc::clone(&self.0);
        Box::pin(async move {
            let _turn = Arc::clone(&desk.turn).acquire_owned().await.expect("never closed");
            let runtime = tokio::runtime::Handle::current();
            let look = move || Ok(work(&*desk.survey(&image, runtime)?, &desk));
            let done = tokio::task::spawn_blocking(look).await;
            done.unwrap_or_else(|_| Err("the survey crashed".to_owned()))
        })
    }
}

impl Desk {
    fn survey(&self, image: &BlockImage, runtime: tokio::runtime::Handle) -> Result<Arc<Survey>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        if last.as_ref().is_none_or(|(id, _)| *id != image.id) {
            let parts = OriginParts { origin: Arc::clone(&self.origin), image: image.clone(), runtime };
            let read = |error: SurveyError| format!("the block image cannot be read: {error}");
            last = Some((image.id, Arc::new(self.read(image, &parts).map_err(read)?)));
        }
        let survey = last.as_ref().map(|(_, survey)| Arc::clone(survey)).expect("it was just made");
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        Ok(survey)
    }

    fn read(&self, image: &BlockImage, parts: &dyn Parts) -> Result<Survey, SurveyError> {
        let index = read_index(image, parts)?;
        let bytes = u64::from(index.metadata_blocks()) * u64::from(BLOCK_BYTES);
        if bytes > self.metadata_bytes_max {
            return Err(SurveyError::TooLarge(bytes));
        }
        let mut metadata = Vec::new();
        for block in (0..index.metadata_blocks()).map(BlockId) {
            let entry = index.entry(block).ok_or(InspectError::Sizes)?;
            let range = entry.offset..entry.offset + u64::from(entry.stored_bytes);
            let stored = parts.read(Part::Blob, range).map_err(InspectError::from)?;
            if !index.verify(block, &stored) {
                return Err(InspectError::Hash(block.0).into());
            }
            let plain = decode_block(entry, index.plain_len(block), &stored);
            metadata
                .extend_from_slice(&plain.map_err(|error| InspectError::Block { block: block.0, error })?);
        }
        Ok(Survey { files: FileMap::read(&metadata)?, index })
    }
}

impl Survey {
    /// The blocks that hold parts of a profile, in their order; those of the metadata come before all anyway.
    fn hot_set(&self, profile: &Profile) -> HotSet {
        let mut hot = HotSet::default();
        let mut seen = BTreeSet::new();
        for range in self.files.places(profile) {
            let block_of = |place: u64| (place / u64::from(BLOCK_BYTES)) as u32;
            for block in (block_of(range.start)..=block_of(range.end - 1)).map(BlockId) {
                let is_metadata = block.0 < self.index.metadata_blocks();
                let Some(entry) = self.index.entry(block).filter(|_| !is_metadata && seen.insert(block))
                else {
                    continue;
                };
                hot.stored_bytes += u64::from(entry.stored_bytes);
                hot.blocks.push(block);
            }
        }
        hot
    }
}

impl Surveyor for ImageSurveyor {
    fn take_in(
        &self,
        image: Arc<BlockImage>,
        before: Arc<Profile>,
        ranges: Arc<[PlainRange]>,
    ) -> BoxFuture<'static, Result<TakenIn, String>> {
        self.run(image, move |survey, desk| {
            let ranges = ranges.iter().filter_map(|range| Some(range.0..range.end()?));
            let recording = survey.files.parts(ranges);
            let mut profile = (*before).clone();
            profile.merge(&recording, desk.missed_max);
            let hot = survey.hot_set(&profile);
            TakenIn { profile, hot }
        })
    }

    fn place(
        &self,
        image: Arc<BlockImage>,
        profile: Arc<Profile>,
    ) -> BoxFuture<'static, Result<HotSet, String>> {
        self.run(image, move |survey, _| survey.hot_set(&profile))
    }
}
