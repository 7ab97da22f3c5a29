//! The core: what becomes of recordings, when an image is packed, and what survives.

use super::{
    core::{Effect, Event, ProfileKey, ProfileLimits, ProfilesCore, Recording, Ticket},
    messages::Hint,
    records::ProfileRecord,
};
use crate::{
    id::{BlockId, Digest},
    image::BlockImage,
    model::{PackingState, ProfileView},
    profile::{FilePath, Profile},
    scheduler::{ControlError, decode},
    wire::holder::PlainRange,
    world::{HotSet, MetadataError, Packing, TakenIn, Write},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const LIMITS: ProfileLimits =
    ProfileLimits { profiles_max: 2, ranges_max: 3, recordings_waiting_max: 2, ..ProfileLimits::SHIPPED };

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn key(number: u8) -> ProfileKey {
    ("acme".parse().expect("name"), digest(number))
}

/// The image that a function has at first, of that source; a packed one differs in its digest.
fn image(source: u8) -> Arc<BlockImage> {
    Arc::new(BlockImage::of_test(digest(source)))
}

fn packed_image(source: u8) -> BlockImage {
    BlockImage { id: digest(source + 100), ..BlockImage::of_test(digest(source)) }
}

fn profile(start: u64) -> Profile {
    Profile::recorded([(FilePath::new(b"/app").expect("a path"), start..start + 10)])
}

fn hot(blocks: &[u32]) -> HotSet {
    HotSet { blocks: blocks.iter().copied().map(BlockId).collect(), stored_bytes: 7 }
}

struct Desk {
    core: ProfilesCore,
    now: Instant,
    effects: Vec<Effect>,
}

impl Desk {
    fn new(limits: ProfileLimits) -> Self {
        Self { core: ProfilesCore::new(limits), now: Instant::now(), effects: Vec::new() }
    }

    fn apply(&mut self, event: Event) {
        self.core.apply(event, self.now, &mut self.effects);
    }

    fn record(&mut self, source: u8, ranges: &[(u64, u64)]) {
        let ranges = ranges.iter().map(|(place, length)| PlainRange(*place, *length)).collect();
        let recording = Recording { source: "app:1".into(), image: image(source), ranges };
        self.apply(Event::Recorded { tenant: key(source).0, recording });
    }

    /// Takes out the only effect of that kind.
    fn take<T>(&mut self, what: impl Fn(&Effect) -> Option<T>) -> Option<T> {
        let place = self.effects.iter().position(|effect| what(effect).is_some())?;
        what(&self.effects.remove(place))
    }

    fn taken_in(&mut self, source: u8, profile: Profile, hot: HotSet) {
        let taking = self.take(|effect| matches!(effect, Effect::TakeIn { .. }).then_some(()));
        assert_eq!(taking, Some(()), "{:?}", self.effects);
        let result = Ok(Box::new(TakenIn { profile, hot }));
        self.apply(Event::TakenIn { key: key(source), image: digest(source), result });
    }

    /// Makes what is to be written durable, and gives the last row.
    fn written(&mut self) -> Option<Vec<Write>> {
        let mut last = None;
        while let Some((key, version, writes)) = self.take(|effect| match effect {
            Effect::Persist { key, version, writes } => Some((key.clone(), *version, writes.clone())),
            _ => None,
        }) {
            last = Some(writes);
            self.apply(Event::Written { key, version, result: Ok(()) });
        }
        last
    }

    fn told(&mut self) -> Option<Hint> {
        self.take(|effect| match effect {
            Effect::Tell { hint, .. } => Some(hint.clone()),
            _ => None,
        })?
    }

    fn packing(&mut self) -> Option<Packing> {
        self.take(|effect| match effect {
            Effect::Pack { packing, .. } => Some(packing.clone()),
            _ => None,
        })
    }

    fn packed(&mut self, source: u8, result: Result<BlockImage, String>) {
        self.apply(Event::Packed { key: key(source), result: result.map(Box::new) });
    }

    fn placed(&mut self, source: u8, result: Result<HotSet, String>) {
        assert!(self.take(|effect| matches!(effect, Effect::Place { .. }).then_some(())).is_some());
        self.apply(Event::Placed { key: key(source), result });
    }

    fn answer(&mut self) -> Option<Result<Box<ProfileView>, ControlError>> {
        self.take(|effect| match effect {
            Effect::Answer { answer, .. } => Some(answer.clone()),
            _ => None,
        })
    }

    fn view(&mut self, source: u8, image: Digest) -> Result<Box<ProfileView>, ControlError> {
        self.apply(Event::View { ticket: Ticket(9), key: key(source), image });
        self.answer().expect("views are answered at once")
    }

    fn optimize(&mut self, source: u8) {
        let (ticket, image, name) = (Ticket(1), digest(source), "app:1".to_owned());
        self.apply(Event::Optimize { ticket, key: key(source), image, source: name });
    }

    /// One recording of that source, durable and told.
    fn known(limits: ProfileLimits) -> Self {
        let mut desk = Self::new(limits);
        desk.record(1, &[(0, 10)]);
        desk.taken_in(1, profile(0), hot(&[5, 3]));
        desk.written();
        desk.told().expect("told");
        desk
    }
}

fn row(writes: &[Write]) -> ProfileRecord {
    let row = writes.iter().find_map(|write| match write {
        Write::Put(row) if row.table == crate::world::Table::Profiles => Some(decode(row).expect("a record")),
        _ => None,
    });
    row.expect("a profile is written")
}

#[test]
fn a_recording_is_told_to_starts_when_it_is_durable() {
    let mut desk = Desk::new(LIMITS);
    desk.record(1, &[(0, 10)]);
    desk.taken_in(1, profile(0), hot(&[5, 3]));
    assert_eq!(desk.told(), None, "not yet on the disk");
    let writes = desk.written().expect("written");
    assert_eq!(row(&writes).profile, profile(0));
    let hint = desk.told().expect("told");
    assert_eq!((hint.recordings, &hint.hot[&digest(1)][..]), (1, &[BlockId(5), BlockId(3)][..]));
    let view = desk.view(1, digest(1)).expect("known");
    assert_eq!((view.recordings, view.files, view.plain_bytes, view.blocks), (1, 1, 10, Some(2)));
    assert_eq!(view.packing, PackingState::None);
}

#[test]
fn recordings_of_one_image_are_taken_in_one_after_the_other_and_too_many_are_dropped() {
    let mut desk = Desk::new(LIMITS);
    for _ in 0..5 {
        desk.record(1, &[(0, 10)]);
    }
    for number in 0..3 {
        desk.taken_in(1, profile(number * 10), hot(&[1]));
    }
    assert!(!desk.effects.iter().any(|effect| matches!(effect, Effect::TakeIn { .. })), "two could wait");
    let hint = desk.written().and_then(|_| desk.told()).expect("told");
    assert_eq!(hint.recordings, 1, "as the surveyor counts");
}

#[test]
fn what_no_start_can_have_read_is_not_taken() {
    let mut desk = Desk::new(LIMITS);
    let many = [(0, 1), (2, 1), (4, 1), (6, 1)];
    let nonsense: [&[(u64, u64)]; 5] = [&[(990, 11)], &[(u64::MAX, 2)], &[(5, 0)], &[], &many];
    for ranges in nonsense {
        desk.record(1, ranges);
    }
    assert_eq!(desk.effects, []);
    assert!(desk.view(1, digest(1)).is_err());
}

#[test]
fn an_image_that_cannot_be_looked_at_leaves_nothing_behind() {
    let mut desk = Desk::new(LIMITS);
    desk.record(1, &[(0, 10)]);
    desk.effects.clear();
    let result = Err("the origin is away".to_owned());
    desk.apply(Event::TakenIn { key: key(1), image: digest(1), result });
    assert_eq!(desk.effects, []);
    assert!(matches!(desk.view(1, digest(1)), Err(ControlError::Conflict(_))));
}

#[test]
fn an_image_is_packed_after_enough_recordings_and_told_when_it_was_read_and_is_durable() {
    let mut desk = Desk::known(ProfileLimits { optimize_after: 1, ..LIMITS });
    let packing = desk.packing().expect("one is enough");
    assert_eq!((packing.source, &*packing.profile), (digest(1), &profile(0)));
    assert!(matches!(desk.view(1, digest(1)).expect("known").packing, PackingState::Running { .. }));
    desk.packed(1, Ok(packed_image(1)));
    desk.placed(1, Ok(hot(&[1])));
    assert_eq!(desk.told(), None);
    let writes = desk.written().expect("written");
    assert!(writes.contains(&crate::scheduler::put_image(&packed_image(1))), "trusted with the same commit");
    let hint = desk.told().expect("told");
    assert_eq!(hint.packed.expect("packed").id, digest(101));
    assert_eq!(hint.hot.keys().copied().collect::<Vec<_>>(), [digest(1)], "its index says what is hot in it");
    let view = desk.view(1, digest(101)).expect("known");
    assert_eq!((view.is_packed, view.packing, view.blocks), (true, PackingState::Done, Some(1)));
    desk.now += Duration::from_secs(3600);
    desk.apply(Event::Tick);
    assert_eq!(desk.packing(), None);
}

#[test]
fn nothing_is_packed_by_itself_when_the_setting_says_never() {
    let mut desk = Desk::known(ProfileLimits { optimize_after: 0, ..LIMITS });
    desk.apply(Event::Tick);
    assert_eq!(desk.packing(), None);
}

#[test]
fn whoever_asks_for_it_is_answered_when_it_is_durable_that_it_will_be_done() {
    let mut desk = Desk::known(LIMITS);
    desk.optimize(1);
    assert_eq!((desk.answer(), desk.packing()), (None, None));
    assert!(row(&desk.written().expect("written")).is_wanted);
    assert_eq!(desk.answer().expect("answered").expect("accepted").packing, PackingState::Waiting);
    assert!(desk.packing().is_some());
    desk.packed(1, Ok(packed_image(1)));
    desk.placed(1, Ok(hot(&[1])));
    assert!(!row(&desk.written().expect("written")).is_wanted);
    desk.optimize(1);
    assert_eq!(desk.answer().expect("answered").expect("done").packing, PackingState::Done);
    assert_eq!(desk.packing(), None);
}

#[test]
fn whoever_asks_before_anything_was_recorded_is_told_what_to_do() {
    let mut desk = Desk::new(LIMITS);
    desk.optimize(1);
    let Some(Err(ControlError::Conflict(text))) = desk.answer() else { panic!("refused") };
    assert!(text.contains("start an instance"), "{text}");
}

#[test]
fn a_failed_attempt_is_repeated_after_growing_pauses_until_they_are_enough() {
    let limits = ProfileLimits { optimize_after: 1, attempts_max: 3, ..LIMITS };
    let mut desk = Desk::known(limits);
    let mut at = Vec::new();
    let from = desk.now;
    for _ in 0..100 {
        if desk.packing().is_some() {
            at.push((desk.now - from).as_secs());
            // Made, but not to be read: as bad as not made.
            match at.len() {
                2 => {
                    desk.packed(1, Ok(packed_image(1)));
                    desk.placed(1, Err("the origin is away".into()));
                }
                _ => desk.packed(1, Err("no space left".into())),
            }
        }
        desk.now += Duration::from_secs(1);
        desk.apply(Event::Tick);
    }
    assert_eq!(at, [0, 10, 30]);
    assert_eq!(desk.told(), None, "nobody is sent to what was not made");
    let failed = PackingState::Failed { reason: "no space left".into(), attempts: 3 };
    assert_eq!(desk.view(1, digest(1)).expect("known").packing, failed);
    desk.optimize(1);
    desk.written();
    assert!(desk.packing().is_some(), "it is asked for");
}

#[test]
fn an_image_of_another_source_is_not_used() {
    let mut desk = Desk::known(ProfileLimits { optimize_after: 1, ..LIMITS });
    desk.packing();
    desk.packed(1, Ok(packed_image(2)));
    let PackingState::Failed { .. } = desk.view(1, digest(1)).expect("known").packing else {
        panic!("it failed")
    };
}

#[test]
fn a_later_manager_knows_what_was_durable_and_does_what_was_asked() {
    let mut desk = Desk::known(LIMITS);
    desk.optimize(1);
    let record = row(&desk.written().expect("written"));
    let mut later = Desk::new(LIMITS);
    later.apply(Event::Loaded(vec![(key(1), record, None)]));
    let hint = later.told().expect("told");
    assert_eq!((hint.recordings, hint.packed), (1, None));
    assert!(hint.hot.contains_key(&digest(1)));
    assert!(later.packing().is_some());
    later.packed(1, Ok(packed_image(1)));
    later.placed(1, Ok(hot(&[1])));
    let record = row(&later.written().expect("written"));
    let mut last = Desk::new(LIMITS);
    last.apply(Event::Loaded(vec![(key(1), record, Some(Arc::new(packed_image(1))))]));
    assert_eq!(last.told().expect("told").packed.expect("packed").id, digest(101));
    assert_eq!(last.packing(), None);
}

#[test]
fn a_row_that_could_not_be_written_is_written_again_and_who_asked_is_told() {
    let mut desk = Desk::known(LIMITS);
    desk.optimize(1);
    let version = desk.take(|effect| match effect {
        Effect::Persist { version, .. } => Some(*version),
        _ => None,
    });
    let error = MetadataError::Unavailable("away".into());
    desk.apply(Event::Written {
        key: key(1),
        version: version.expect("written"),
        result: Err(error.clone()),
    });
    assert_eq!(desk.answer(), Some(Err(ControlError::Metadata(error))));
    desk.apply(Event::Tick);
    assert_eq!(desk.written(), None, "a pause first");
    desk.now += Duration::from_secs(1);
    desk.apply(Event::Tick);
    assert!(desk.written().is_some());
}

#[test]
fn a_row_that_no_store_takes_is_forgotten() {
    let mut desk = Desk::new(LIMITS);
    desk.record(1, &[(0, 10)]);
    desk.taken_in(1, profile(0), hot(&[5]));
    let error = MetadataError::TooLarge(1 << 30);
    desk.apply(Event::Written { key: key(1), version: 1, result: Err(error) });
    desk.effects.retain(|effect| matches!(effect, Effect::Tell { .. }));
    assert_eq!(desk.effects, [Effect::Tell { key: key(1), hint: None }]);
}

#[test]
fn above_the_limit_the_profile_that_was_recorded_longest_ago_goes() {
    let mut desk = Desk::new(LIMITS);
    for source in [1, 2, 1, 3] {
        desk.record(source, &[(0, 10)]);
        desk.taken_in(source, profile(u64::from(source) * 10), hot(&[1]));
        desk.written();
    }
    let known = [1, 2, 3].map(|source| desk.view(source, digest(source)).is_ok());
    assert_eq!(known, [true, false, true]);
    assert!(desk.effects.contains(&Effect::Tell { key: key(2), hint: None }));
}
