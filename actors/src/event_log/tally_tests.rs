use super::{
    messages::{Happening, News},
    tally::{Durations, Ending, Tally, Totals},
};
use crate::{
    explain::Phase,
    function_tree::{Cause, HoldingNews, SeatNews, SeatPlace, TreeNews},
    id::{Digest, Epoch},
    model::{StartState, StartView, Timeline},
    wire::control::{BytesBySource, EndReason},
};

fn tell(tally: &mut Tally, happening: Happening) {
    tally.happened(&News::of(&"acme".parse().expect("name"), happening));
}

fn start(number: u32, state: StartState, timeline_us: Timeline, reason: Option<EndReason>) -> Happening {
    Happening::Start(Box::new(StartView {
        id: format!("start-{number}").parse().expect("id"),
        function: "web".parse().expect("name"),
        accepted_at_ms: None,
        request_id: None,
        vm: None,
        state,
        reason,
        timeline_us,
        bytes: BytesBySource::default(),
        stalls: 2,
        stalled_us: 30_000,
        longest_stall_us: 20_000,
        waits: Default::default(),
        worst_stall: None,
    }))
}

/// Chosen after a millisecond; ready after so many more.
fn ready(number: u32, ms: u64) -> Happening {
    let timeline = Timeline { waiting: Some(1000), ready: Some(1000 + 1000 * ms), ..Timeline::default() };
    start(number, StartState::Ready, timeline, None)
}

fn waits(number: u32) -> Happening {
    start(number, StartState::Waiting, Timeline::default(), None)
}

fn ended(number: u32, reason: EndReason, timeline: Timeline) -> Happening {
    start(number, StartState::Ended, timeline, Some(reason))
}

fn tree(image: u8, news: TreeNews) -> Happening {
    Happening::of_tree(Digest::from_bytes([image; 32]), news)
}

fn seat(image: u8, vm: u32, depth: u32, cause: Cause) -> Happening {
    let vm = format!("vm-{vm}").parse().expect("name");
    let places = vec![SeatPlace { depth, parent: None }];
    tree(image, TreeNews::Seat(SeatNews { vm, epoch: Epoch::default(), ready: false, places, cause }))
}

fn holds(image: u8, vm: u32, parent: u64, origin: u64) -> Happening {
    let vm = format!("vm-{vm}").parse().expect("name");
    let bytes = BytesBySource { parent, ancestor: 0, origin };
    tree(image, TreeNews::Holding(HoldingNews { vm, blocks_present: 1, blocks_total: 2, bytes }))
}

fn left(image: u8, vm: u32) -> Happening {
    let vm = format!("vm-{vm}").parse().expect("name");
    tree(image, TreeNews::Left { vm, epoch: Epoch::default() })
}

fn trees(Totals { trees, members, height, .. }: Totals) -> (u64, u64, u32) {
    (trees, members, height)
}

#[test]
fn a_start_counts_once_however_often_it_is_told() {
    let mut tally = Tally::new(100);
    for _ in 0..3 {
        tell(&mut tally, waits(1));
    }
    for _ in 0..3 {
        tell(&mut tally, ready(1, 150));
    }
    let timeline = Timeline { waiting: Some(1000), ready: Some(151_000), ..Timeline::default() };
    for _ in 0..3 {
        tell(&mut tally, ended(1, EndReason::Idle, timeline));
    }
    tell(&mut tally, waits(2));
    tell(&mut tally, ended(2, EndReason::NoRoom, Timeline::default()));
    let totals = tally.totals();
    let mut expected = Durations { count: 1, sum_us: 151_000, ..Durations::default() };
    expected.up_to[7] = 1;
    assert_eq!(Durations::BOUNDS_US[7], 200_000);
    assert_eq!(totals.ready, expected);
    assert_eq!(totals.phases[&Phase::Waiting].up_to[0], 1, "exactly a bound belongs below it");
    assert_eq!(totals.phases.get(&Phase::Run), None);
    assert_eq!((totals.stalls, totals.stalled_us), (2, 30_000));
    let idle = Ending { reason: "idle", was_ready: true };
    let no_room = Ending { reason: "no_room", was_ready: false };
    assert_eq!(totals.ended.into_iter().collect::<Vec<_>>(), [(idle, 1), (no_room, 1)]);
}

#[test]
fn what_became_ready_before_this_log_or_this_manager_is_not_measured() {
    let mut tally = Tally::new(100);
    // A rebuilt log hears of an instance.
    tell(&mut tally, ready(1, 5));
    // A new manager takes one over: when it was accepted nobody knows.
    tell(&mut tally, waits(2));
    let taken_over = Timeline { ready: Some(3), ..Timeline::default() };
    tell(&mut tally, start(2, StartState::Ready, taken_over, None));
    assert_eq!(tally.totals(), Totals::default());
}

#[test]
fn what_takes_longer_than_a_minute_is_in_no_bucket() {
    let mut tally = Tally::new(100);
    tell(&mut tally, waits(1));
    tell(&mut tally, ready(1, 90_000));
    let Durations { up_to, count, sum_us } = tally.totals().ready.clone();
    assert_eq!((up_to.iter().sum::<u64>(), count, sum_us), (0, 1, 90_001_000));
}

#[test]
fn bytes_are_what_was_received_since_the_member_joined() {
    let mut tally = Tally::new(100);
    tell(&mut tally, seat(1, 0, 0, Cause::Joined));
    tell(&mut tally, holds(1, 0, 0, 100));
    tell(&mut tally, holds(1, 0, 0, 100));
    tell(&mut tally, holds(1, 0, 50, 120));
    // Its agent is another process now, and counts from nothing.
    tell(&mut tally, holds(1, 0, 50, 20));
    // Back at a new manager, which hears what it holds before it has a place.
    tell(&mut tally, holds(1, 7, 1_000_000, 0));
    tell(&mut tally, seat(1, 7, 1, Cause::Joined));
    tell(&mut tally, holds(1, 7, 1_000_001, 0));
    let bytes = tally.totals().bytes;
    assert_eq!(bytes, BytesBySource { parent: 51, ancestor: 0, origin: 140 });
}

#[test]
fn trees_are_as_their_members_were_told() {
    let mut tally = Tally::new(100);
    for (image, vm, depth) in [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 0, 0)] {
        tell(&mut tally, seat(image, vm, depth, Cause::Joined));
    }
    assert_eq!(trees(tally.totals()), (2, 4, 2));
    tell(&mut tally, left(1, 1));
    tell(&mut tally, seat(1, 2, 1, Cause::Moved));
    tell(&mut tally, seat(1, 2, 1, Cause::Ready));
    assert_eq!(trees(tally.totals()), (2, 3, 1));
    tell(&mut tally, tree(1, TreeNews::Dissolved));
    let totals = tally.totals();
    assert_eq!((totals.joined, totals.moved, totals.left), (4, 1, 3));
    assert_eq!(trees(totals), (1, 1, 0));
}

#[test]
fn the_oldest_are_forgotten_and_that_is_said() {
    let mut tally = Tally::new(2);
    for number in 0..5 {
        tell(&mut tally, waits(number));
        tell(&mut tally, seat(1, number, number, Cause::Joined));
    }
    tell(&mut tally, ready(4, 1));
    let totals = tally.totals();
    assert_eq!((totals.forgotten, totals.ready.count), (6, 1));
    assert_eq!(trees(totals), (1, 2, 4));
    (0..5).for_each(|number| tell(&mut tally, left(1, number)));
    assert_eq!(trees(tally.totals()), (0, 0, 0));
}

#[test]
fn codes_of_refusals_are_few() {
    let mut tally = Tally::new(1);
    (0..300).for_each(|number| tally.refused(format!("code_{number}").into()));
    (0..2).for_each(|_| tally.refused("code_7".into()));
    let refused = tally.totals().refused;
    assert_eq!((refused.len(), refused["code_7"], refused["other"]), (101, 3, 200));
}

#[test]
fn the_name_of_a_reason_is_that_of_its_json() {
    let text = String::new;
    let exited = EndReason::Exited(crate::wire::holder::Exit::Code(1));
    let all = [
        EndReason::Stopped,
        EndReason::Idle,
        EndReason::ImageUnavailable(text()),
        EndReason::MountFailed(text()),
        EndReason::RunFailed(text()),
        exited,
        EndReason::NotReady,
        EndReason::Refused(text()),
        EndReason::VmLost,
        EndReason::NoRoom,
    ];
    for (name, reason) in EndReason::NAMES.into_iter().zip(&all) {
        assert_eq!(serde_json::to_value(reason).expect("plain data")["kind"], reason.name());
        assert_eq!(name, reason.name());
    }
}
