//! What the surveyor and the converter do for the keeper of profiles.
//!
//! A simulated image is one file, whose bytes lie in the image that the converter makes first as they lie in
//! the file. What a start reads of it is packed into the image that stands behind it in the model's list.

use super::*;
use faasnet_actors::{
    image::BLOCK_BYTES,
    profile::{FilePath, Profile},
    profiles::{self, Recording},
    wire::holder::PlainRange,
    world::{HotSet, Packing, TakenIn},
};
use std::ops::Range;

/// Reading the metadata of an image's file system from the origin, and working through it.
const SURVEY: Nanos = 100 * MILLISECOND;
/// As long as a conversion: the image of 1 GB that the README measures.
const PACKING: Nanos = 7_700 * MILLISECOND;
const FILE: &[u8] = b"/image";

pub(super) fn range_of(block: BlockId) -> PlainRange {
    PlainRange(u64::from(block.0) * u64::from(BLOCK_BYTES), BLOCK_BYTES.into())
}

impl World {
    pub(super) fn survey(&mut self, work: profiles::Effect) {
        let (delay, event) = match work {
            profiles::Effect::TakeIn { key, image, before, ranges } => {
                let result = self.take_in(&image, &before, &ranges).ok_or_else(|| "unknown image".into());
                (SURVEY, profiles::Event::TakenIn { key, image: image.id, result: result.map(Box::new) })
            }
            profiles::Effect::Pack { key, packing, .. } => {
                let packed = self.packed(&packing).ok_or_else(|| "unknown source".into());
                (PACKING, profiles::Event::Packed { key, result: packed.map(Box::new) })
            }
            profiles::Effect::Place { key, image, profile } => {
                let result = self.place(&image, &profile).ok_or_else(|| "unknown image".into());
                (SURVEY, profiles::Event::Placed { key, result })
            }
            _ => return,
        };
        self.manager_later(delay, Input::Profiles(Box::new(event)));
    }

    fn take_in(&self, image: &BlockImage, before: &Profile, ranges: &[PlainRange]) -> Option<TakenIn> {
        let path = FilePath::new(FILE).ok()?;
        let parts = ranges.iter().filter_map(|range| Some((path.clone(), range.0..range.end()?)));
        let recording = Profile::recorded(parts);
        let profile = if before.recordings() == 0 {
            recording
        } else {
            let mut profile = before.clone();
            profile.merge(&recording, self.limits.missed_max);
            profile
        };
        let hot = self.place(image, &profile)?;
        Some(TakenIn { profile, hot })
    }

    fn packed(&self, packing: &Packing) -> Option<BlockImage> {
        let of_source = |image: &&Image| image.description.source == packing.source && image.is_packed();
        self.images.iter().find(of_source).map(|image| image.description.clone())
    }

    fn place(&self, image: &BlockImage, profile: &Profile) -> Option<HotSet> {
        let image = self.images.iter().find(|known| known.description.id == image.id)?;
        let blocks: Vec<BlockId> = if image.is_packed() {
            image.reads.clone()
        } else {
            let blocks = |range: Range<u64>| {
                let block = |offset: u64| (offset / u64::from(BLOCK_BYTES)) as u32;
                (block(range.start)..=block(range.end - 1)).map(BlockId)
            };
            profile.parts().iter().flat_map(|part| blocks(part.start..part.end)).collect()
        };
        let stored_bytes = blocks.iter().map(|block| image.stored(*block).len() as u64).sum();
        Some(HotSet { blocks, stored_bytes })
    }

    /// What the model says is known of starts is learned before the first of them.
    pub(super) fn learn(&mut self) {
        for function in self.model.functions.clone() {
            let hot = self.model.images[function.image].hot;
            if hot == Hot::Unknown {
                continue;
            }
            let (tenant, _) = names(&function.tenant, &function.name);
            let image = &self.images[function.image];
            let key = (tenant.clone(), image.description.source);
            let (id, source) = (image.description.id, format!("image:{}", function.image));
            let recording = Recording {
                source: source.clone(),
                image: Arc::new(image.description.clone()),
                ranges: image.reads.iter().map(|block| range_of(*block)).collect(),
            };
            let recorded = profiles::Event::Recorded { tenant, recording };
            self.tell_manager(Input::Profiles(Box::new(recorded)));
            self.run_for(Duration::from_millis(500));
            if hot == Hot::Packed {
                let ticket = profiles::Ticket(0);
                let optimize = profiles::Event::Optimize { ticket, key, image: id, source };
                self.tell_manager(Input::Profiles(Box::new(optimize)));
                self.run_for(Duration::from_nanos(PACKING + 2 * SURVEY));
                self.run_for(Duration::from_millis(500));
            }
        }
    }
}
