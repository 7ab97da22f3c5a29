//! What is decided about profiles: which recordings count, and when an image is packed.
//!
//! ```text
//!             a recording                taken in, durable        enough recordings, or asked for
//!   (none) ---------------> taking in ---------------------> known ------------------> packing
//!                              |   ^                           ^                         |
//!                              v   | further recordings wait   |  failed: after a pause  | packed, placed,
//!                            (dropped)                         +-------------------------+ durable: told
//! ```
//!
//! One row of the metadata store for each profile, written again as a whole; one write of a row at a time. The
//! scheduler hears only of what is durable.

use super::{
    messages::Hint,
    records::{self, PackedImage, ProfileRecord},
};
use crate::{
    id::{BlockId, Digest, ImageId, TenantId},
    image::BlockImage,
    model::{PackingState, ProfileView},
    profile::Profile,
    scheduler::{ControlError, put_image},
    support::Snapshot,
    wire::holder::PlainRange,
    world::{ConversionProgress, HotSet, MetadataError, Packing, TakenIn, Write},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A profile is of a source image, for one tenant.
pub type ProfileKey = (TenantId, Digest);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileLimits {
    /// Profiles of all tenants. Above it the one that was recorded longest ago is forgotten.
    pub profiles_max: usize,
    /// Ranges of one recording.
    pub ranges_max: usize,
    /// Recordings that wait until others of their image are taken in.
    pub recordings_waiting_max: usize,
    /// Blocks of a hot set that a start is told.
    pub hot_blocks_max: usize,
    /// Recordings after which an image is packed; 0 for never.
    pub optimize_after: u32,
    /// Images packed at once.
    pub packings_max: usize,
    pub attempts_max: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl ProfileLimits {
    /// What `config/default.toml` says. A test of the settings holds them equal.
    pub const SHIPPED: Self = Self {
        profiles_max: 1000,
        ranges_max: 8192,
        recordings_waiting_max: 16,
        hot_blocks_max: 4096,
        optimize_after: 3,
        packings_max: 1,
        attempts_max: 5,
        retry_min: Duration::from_secs(10),
        retry_max: Duration::from_secs(600),
    };
}

/// Images of one source whose hot sets are kept: the first one, the packed one, and those before it that drain.
const IMAGES_PER_SOURCE: usize = 4;
/// Pause after a write that failed: a full or absent store is not helped by more attempts.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// What is to be done about a function of which nothing is known.
const NO_RECORDING: &str = "no start of this function was recorded yet; start an instance on a VM that does not \
                            hold the image, and ask again when it is ready";

/// Whoever waits for an answer; numbered by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a start has read of its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// How the function names the source image.
    pub source: String,
    pub image: Arc<BlockImage>,
    /// In the order of first use, as the VM says.
    pub ranges: Arc<[PlainRange]>,
}

#[derive(Debug)]
pub enum Event {
    /// What an earlier manager left. Comes first.
    Loaded(Vec<(ProfileKey, ProfileRecord, Option<Arc<BlockImage>>)>),
    Recorded {
        tenant: TenantId,
        recording: Recording,
    },
    TakenIn {
        key: ProfileKey,
        image: ImageId,
        result: Result<Box<TakenIn>, String>,
    },
    Packed {
        key: ProfileKey,
        result: Result<Box<BlockImage>, String>,
    },
    Placed {
        key: ProfileKey,
        result: Result<HotSet, String>,
    },
    Written {
        key: ProfileKey,
        version: u64,
        result: Result<(), MetadataError>,
    },
    View {
        ticket: Ticket,
        key: ProfileKey,
        image: ImageId,
    },
    /// Pack the image, whatever the settings say.
    Optimize {
        ticket: Ticket,
        key: ProfileKey,
        image: ImageId,
        source: String,
    },
    /// The scheduler was rebuilt.
    TellAll,
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    /// To be answered by `TakenIn`.
    TakeIn {
        key: ProfileKey,
        image: Arc<BlockImage>,
        before: Arc<Profile>,
        ranges: Arc<[PlainRange]>,
    },
    /// To be answered by `Packed`.
    Pack {
        key: ProfileKey,
        source: String,
        packing: Packing,
        progress: Handle,
    },
    /// To be answered by `Placed`.
    Place {
        key: ProfileKey,
        image: Arc<BlockImage>,
        profile: Arc<Profile>,
    },
    /// To be answered by `Written`.
    Persist {
        key: ProfileKey,
        version: u64,
        writes: Vec<Write>,
    },
    /// `None`: nothing is known any more.
    Tell {
        key: ProfileKey,
        hint: Option<Hint>,
    },
    Answer {
        ticket: Ticket,
        answer: Result<Box<ProfileView>, ControlError>,
    },
}

/// How far a conversion is. Two are equal when they are the same one.
#[derive(Debug, Clone)]
pub struct Handle(pub Arc<ConversionProgress>);

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

enum Work {
    None,
    /// The converter is at it, with that profile.
    Packing {
        progress: Arc<ConversionProgress>,
        profile: Arc<Profile>,
    },
    /// It is looked up where the hot set lies in what the converter made.
    Placing {
        packed: PackedImage,
        image: Arc<BlockImage>,
    },
}

struct Entry {
    source: String,
    profile: Arc<Profile>,
    /// The newest last.
    hot: Vec<(ImageId, Arc<HotSet>)>,
    packed: Option<(PackedImage, Arc<BlockImage>)>,
    /// A packing was asked for and has not been done.
    is_wanted: bool,
    waiting: VecDeque<Recording>,
    is_taking_in: bool,
    work: Work,
    failures: u32,
    failure: Option<String>,
    /// Not packed before that.
    retry_at: Option<Instant>,
    /// The order of the last recordings.
    used: u64,
    /// Counts changes; the row has the first `durable` of them, or `writing` is on its way.
    version: u64,
    durable: u64,
    writing: Option<u64>,
    write_at: Option<Instant>,
    /// Whoever waits for a version to be durable.
    answers: Vec<(u64, Ticket, ImageId)>,
}

impl Entry {
    fn new(source: String) -> Self {
        Self {
            source,
            profile: Arc::default(),
            hot: Vec::new(),
            packed: None,
            is_wanted: false,
            waiting: VecDeque::new(),
            is_taking_in: false,
            work: Work::None,
            failures: 0,
            failure: None,
            retry_at: None,
            used: 0,
            version: 0,
            durable: 0,
            writing: None,
            write_at: None,
            answers: Vec::new(),
        }
    }

    fn record(&self) -> ProfileRecord {
        ProfileRecord {
            source: self.source.clone(),
            profile: (*self.profile).clone(),
            hot: self.hot.iter().map(|(image, hot)| (*image, (**hot).clone())).collect(),
            packed: self.packed.as_ref().map(|(packed, _)| packed.clone()),
            is_wanted: self.is_wanted,
        }
    }

    fn set_hot(&mut self, image: ImageId, hot: HotSet) {
        self.hot.retain(|(known, _)| *known != image);
        if self.hot.len() == IMAGES_PER_SOURCE {
            self.hot.remove(0);
        }
        self.hot.push((image, Arc::new(hot)));
    }

    fn is_working(&self) -> bool {
        self.is_taking_in || !matches!(self.work, Work::None)
    }

    /// Whether somebody waits for something that is being done.
    fn is_busy(&self) -> bool {
        self.is_working() || self.writing.is_some() || self.is_wanted
    }

    /// Whether the packed image is the one that the profile makes.
    fn is_packed(&self) -> bool {
        let fingerprint = self.profile.fingerprint();
        self.packed.as_ref().is_some_and(|(packed, _)| packed.fingerprint == fingerprint)
    }

    fn hint(&self, hot_blocks_max: usize) -> Hint {
        let first =
            |hot: &HotSet| -> Arc<[BlockId]> { hot.blocks.iter().copied().take(hot_blocks_max).collect() };
        // The index of a packed image says itself what is hot.
        let is_packed =
            |image: &ImageId| self.packed.as_ref().is_some_and(|(packed, _)| packed.image == *image);
        let hot = self.hot.iter().filter(|(image, _)| !is_packed(image));
        Hint {
            recordings: self.profile.recordings(),
            hot: hot.map(|(image, hot)| (*image, first(hot))).collect(),
            packed: self.packed.as_ref().map(|(_, image)| Arc::clone(image)),
        }
    }
}

pub struct ProfilesCore {
    limits: ProfileLimits,
    entries: BTreeMap<ProfileKey, Entry>,
    used: u64,
    packing: usize,
}

impl ProfilesCore {
    pub fn new(limits: ProfileLimits) -> Self {
        Self { limits, entries: BTreeMap::new(), used: 0, packing: 0 }
    }

    pub fn observe(&self) -> Snapshot {
        let waiting = self.entries.values().map(|entry| entry.waiting.len()).sum();
        Snapshot::new(format!("{} profiles, {} images are being packed", self.entries.len(), self.packing))
            .queue("recordings", waiting, self.limits.recordings_waiting_max)
    }

    pub fn apply(&mut self, event: Event, now: Instant, effects: &mut Vec<Effect>) {
        match event {
            Event::Loaded(rows) => self.loaded(rows, effects),
            Event::Recorded { tenant, recording } => self.recorded(tenant, recording, effects),
            Event::TakenIn { key, image, result } => self.taken_in(&key, image, result, now, effects),
            Event::Packed { key, result } => self.packed(&key, result, now, effects),
            Event::Placed { key, result } => self.placed(&key, result, now, effects),
            Event::Written { key, version, result } => self.written(&key, version, result, now, effects),
            Event::View { ticket, key, image } => {
                let answer = self.view(&key, image).ok_or_else(no_recording);
                effects.push(Effect::Answer { ticket, answer });
            }
            Event::Optimize { ticket, key, image, source } => {
                self.optimize(ticket, &key, image, source, now, effects);
            }
            Event::TellAll => {
                for key in self.entries.keys().cloned().collect::<Vec<_>>() {
                    self.tell(&key, effects);
                }
            }
            Event::Tick => {
                for key in self.entries.keys().cloned().collect::<Vec<_>>() {
                    self.persist(&key, now, effects);
                }
            }
        }
        self.pack_next(now, effects);
        debug_assert!(self.packing <= self.limits.packings_max.max(1));
    }

    fn loaded(
        &mut self,
        rows: Vec<(ProfileKey, ProfileRecord, Option<Arc<BlockImage>>)>,
        effects: &mut Vec<Effect>,
    ) {
        for (key, row, image) in rows {
            let mut entry = Entry::new(row.source);
            entry.profile = Arc::new(row.profile);
            entry.hot = row.hot.into_iter().map(|(image, hot)| (image, Arc::new(hot))).collect();
            entry.packed = row.packed.zip(image);
            entry.is_wanted = row.is_wanted;
            self.entries.insert(key.clone(), entry);
            self.tell(&key, effects);
        }
    }

    fn recorded(&mut self, tenant: TenantId, recording: Recording, effects: &mut Vec<Effect>) {
        let key = (tenant, recording.image.source);
        let plain_bytes = recording.image.plain_bytes;
        let is_inside = |range: &PlainRange| range.end().is_some_and(|end| end <= plain_bytes);
        let is_sound =
            recording.ranges.len() <= self.limits.ranges_max && recording.ranges.iter().all(is_inside);
        let waiting: usize = self.entries.values().map(|entry| entry.waiting.len()).sum();
        // A VM that tells nonsense is not listened to; of more than can wait, later starts are recorded.
        if recording.ranges.is_empty() || !is_sound || waiting >= self.limits.recordings_waiting_max {
            return;
        }
        if !self.entries.contains_key(&key) && !self.make_room(effects) {
            return;
        }
        self.used += 1;
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry::new(recording.source.clone()));
        entry.used = self.used;
        entry.source.clone_from(&recording.source);
        entry.waiting.push_back(recording);
        self.take_in_next(&key, effects);
    }

    /// Forgets the profile that was used longest ago when there are as many as may be.
    fn make_room(&mut self, effects: &mut Vec<Effect>) -> bool {
        if self.entries.len() < self.limits.profiles_max {
            return true;
        }
        let idle = self.entries.iter().filter(|(_, entry)| !entry.is_busy());
        let Some(key) = idle.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone()) else {
            return false;
        };
        self.entries.remove(&key);
        // Nobody waits for it; a version of a profile is never 0.
        let writes = vec![records::delete(&key)];
        effects.push(Effect::Persist { key: key.clone(), version: 0, writes });
        effects.push(Effect::Tell { key, hint: None });
        true
    }

    fn take_in_next(&mut self, key: &ProfileKey, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.is_taking_in) else { return };
        let Some(Recording { source: _, image, ranges }) = entry.waiting.pop_front() else { return };
        entry.is_taking_in = true;
        let before = Arc::clone(&entry.profile);
        effects.push(Effect::TakeIn { key: key.clone(), image, before, ranges });
    }

    fn taken_in(
        &mut self,
        key: &ProfileKey,
        image: ImageId,
        result: Result<Box<TakenIn>, String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.is_taking_in = false;
        if let Ok(taken) = result {
            let TakenIn { profile, hot } = *taken;
            entry.profile = Arc::new(profile);
            entry.set_hot(image, hot);
            entry.failures = 0;
            entry.version += 1;
        } else if entry.version == 0 && entry.waiting.is_empty() {
            self.entries.remove(key);
            return;
        }
        self.take_in_next(key, effects);
        self.persist(key, now, effects);
    }

    fn optimize(
        &mut self,
        ticket: Ticket,
        key: &ProfileKey,
        image: ImageId,
        source: String,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let entry = self.entries.get_mut(key).filter(|entry| entry.profile.recordings() > 0);
        let Some(entry) = entry else {
            return effects.push(Effect::Answer { ticket, answer: Err(no_recording()) });
        };
        (entry.failures, entry.failure, entry.retry_at) = (0, None, None);
        entry.source = source;
        if !entry.is_packed() && !entry.is_wanted {
            entry.is_wanted = true;
            entry.version += 1;
        }
        entry.answers.push((entry.version, ticket, image));
        self.persist(key, now, effects);
        self.answer(key, effects);
    }

    /// Answers those who waited for what is durable now.
    fn answer(&mut self, key: &ProfileKey, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let durable = entry.durable;
        let told: Vec<_> = entry.answers.extract_if(.., |(version, ..)| *version <= durable).collect();
        for (_, ticket, image) in told {
            let answer = self.view(key, image).ok_or_else(no_recording);
            effects.push(Effect::Answer { ticket, answer });
        }
    }

    /// Begins what is due, as many at once as may be.
    fn pack_next(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (optimize_after, attempts_max) = (self.limits.optimize_after, self.limits.attempts_max);
        for (key, entry) in &mut self.entries {
            if self.packing >= self.limits.packings_max.max(1) {
                return;
            }
            let recordings = entry.profile.recordings();
            let is_enough = optimize_after > 0 && recordings >= optimize_after && entry.packed.is_none();
            let is_idle = matches!(entry.work, Work::None) && !entry.is_taking_in && entry.waiting.is_empty();
            let may_try = entry.failures < attempts_max && entry.retry_at.is_none_or(|at| at <= now);
            // What an interrupted manager would not do again is not begun.
            let is_durable = entry.durable == entry.version;
            let is_due = is_idle && may_try && is_durable && recordings > 0 && (entry.is_wanted || is_enough);
            if !is_due {
                continue;
            }
            self.packing += 1;
            let (progress, profile) = (Arc::new(ConversionProgress::default()), Arc::clone(&entry.profile));
            entry.work = Work::Packing { progress: Arc::clone(&progress), profile: Arc::clone(&profile) };
            let packing = Packing { source: key.1, profile };
            let (key, source) = (key.clone(), entry.source.clone());
            effects.push(Effect::Pack { key, source, packing, progress: Handle(progress) });
        }
    }

    fn packed(
        &mut self,
        key: &ProfileKey,
        result: Result<Box<BlockImage>, String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Work::Packing { profile, .. } = std::mem::replace(&mut entry.work, Work::None) else { return };
        match result {
            Ok(image) if image.source != key.1 => {
                self.failed(key, "another source image was converted".to_owned(), now, effects);
            }
            Ok(image) => {
                let image: Arc<BlockImage> = Arc::from(image);
                let (recordings, fingerprint) = (profile.recordings(), profile.fingerprint());
                let packed = PackedImage { image: image.id, recordings, fingerprint };
                entry.work = Work::Placing { packed, image: Arc::clone(&image) };
                effects.push(Effect::Place { key: key.clone(), image, profile });
            }
            Err(reason) => self.failed(key, reason, now, effects),
        }
    }

    fn placed(
        &mut self,
        key: &ProfileKey,
        result: Result<HotSet, String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Work::Placing { packed, image } = std::mem::replace(&mut entry.work, Work::None) else { return };
        match result {
            Ok(hot) => {
                self.packing -= 1;
                entry.set_hot(image.id, hot);
                entry.packed = Some((packed, image));
                entry.is_wanted = false;
                (entry.failures, entry.failure) = (0, None);
                entry.version += 1;
                self.persist(key, now, effects);
            }
            // Nobody is sent to an image that could not be read.
            Err(reason) => self.failed(key, reason, now, effects),
        }
    }

    fn failed(&mut self, key: &ProfileKey, reason: String, now: Instant, effects: &mut Vec<Effect>) {
        self.packing -= 1;
        let Some(entry) = self.entries.get_mut(key) else { return };
        let pause = self.limits.retry_min.saturating_mul(2_u32.saturating_pow(entry.failures));
        entry.failures += 1;
        entry.failure = Some(reason);
        entry.retry_at = Some(now + pause.min(self.limits.retry_max));
        if entry.failures >= self.limits.attempts_max && entry.is_wanted {
            entry.is_wanted = false;
            entry.version += 1;
            self.persist(key, now, effects);
        }
    }

    /// Writes a row that has changed, unless it is being written.
    fn persist(&mut self, key: &ProfileKey, now: Instant, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let may_write = entry.writing.is_none() && entry.write_at.is_none_or(|at| at <= now);
        if entry.version == entry.durable || !may_write {
            return;
        }
        entry.writing = Some(entry.version);
        let mut writes = vec![records::put(key, &entry.record())];
        // Trusted from the moment on at which functions may name it.
        writes.extend(entry.packed.as_ref().map(|(_, image)| put_image(image)));
        effects.push(Effect::Persist { key: key.clone(), version: entry.version, writes });
    }

    fn written(
        &mut self,
        key: &ProfileKey,
        version: u64,
        result: Result<(), MetadataError>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.writing == Some(version)) else {
            return;
        };
        entry.writing = None;
        match result {
            Ok(()) => {
                (entry.durable, entry.write_at) = (version, None);
                if entry.version == version {
                    self.tell(key, effects);
                }
                self.answer(key, effects);
                self.persist(key, now, effects);
            }
            Err(error) => {
                entry.write_at = Some(now + WRITE_AGAIN);
                for (_, ticket, _) in std::mem::take(&mut entry.answers) {
                    let answer = Err(ControlError::Metadata(error.clone()));
                    effects.push(Effect::Answer { ticket, answer });
                }
                // It would never be taken. Without it starts read as they did before.
                if matches!(error, MetadataError::TooLarge(_)) && !entry.is_working() {
                    self.entries.remove(key);
                    effects.push(Effect::Tell { key: key.clone(), hint: None });
                }
            }
        }
    }

    fn tell(&self, key: &ProfileKey, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(key).filter(|entry| entry.durable == entry.version) else {
            return;
        };
        let hint = Some(entry.hint(self.limits.hot_blocks_max));
        effects.push(Effect::Tell { key: key.clone(), hint });
    }

    /// As it is seen by those who use that image.
    fn view(&self, key: &ProfileKey, image: ImageId) -> Option<Box<ProfileView>> {
        let entry = self.entries.get(key).filter(|entry| entry.profile.recordings() > 0)?;
        let hot = entry.hot.iter().find(|(known, _)| *known == image).map(|(_, hot)| hot);
        let is_packed = entry.packed.as_ref().is_some_and(|(packed, _)| packed.image == image);
        let files: BTreeSet<_> = entry.profile.parts().iter().map(|part| &part.path).collect();
        Some(Box::new(ProfileView {
            source: key.1,
            image,
            recordings: entry.profile.recordings(),
            files: files.len() as u64,
            plain_bytes: entry.profile.bytes(),
            blocks: hot.map(|hot| hot.blocks.len() as u64),
            stored_bytes: hot.map(|hot| hot.stored_bytes),
            is_packed,
            packing: entry.packing_state(),
            profile: (*entry.profile).clone(),
        }))
    }
}

impl Entry {
    fn packing_state(&self) -> PackingState {
        match &self.work {
            Work::Packing { progress, .. } => PackingState::Running {
                phase: progress.phase().name().into(),
                done: progress.done(),
                total: progress.total(),
            },
            Work::Placing { .. } => PackingState::Running { phase: "placing".into(), done: 0, total: 0 },
            Work::None if self.is_packed() => PackingState::Done,
            Work::None => match &self.failure {
                Some(reason) => PackingState::Failed { reason: reason.clone(), attempts: self.failures },
                None if self.is_wanted => PackingState::Waiting,
                None => PackingState::None,
            },
        }
    }
}

fn no_recording() -> ControlError {
    ControlError::Conflict(NO_RECORDING.to_owned())
}
