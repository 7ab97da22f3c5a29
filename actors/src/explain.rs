//! Why a start took as long as it did: where it lost time against others of its function, and to whom.
//!
//! The phase that took longest beyond the median of the function's other starts names where the time went.
//! For phases in which blocks are awaited, what the VM's blocks waited for names the cause. With too few others
//! to compare with, the longest phase counts.

use crate::{
    id::{StartId, VmId},
    model::{StartState, StartView, Timeline},
    wire::control::{Wait, Waits},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Fewer other starts than that have no median worth the name.
const OTHERS_MIN: usize = 3;
/// A start that lost less than this part of its time against others was as usual.
const USUAL: u64 = 5;

/// The parts of a start, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Waiting,
    Placing,
    Connecting,
    Index,
    Metadata,
    Whole,
    Mount,
    Run,
    Probe,
}

impl Phase {
    pub const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Placing,
        Self::Connecting,
        Self::Index,
        Self::Metadata,
        Self::Whole,
        Self::Mount,
        Self::Run,
        Self::Probe,
    ];

    /// Its length in microseconds, once it is over.
    pub fn of(self, timeline: &Timeline) -> Option<u64> {
        match self {
            Self::Waiting => timeline.waiting,
            Self::Placing => timeline.placing,
            Self::Connecting => timeline.connecting,
            Self::Index => timeline.index,
            Self::Metadata => timeline.metadata,
            Self::Whole => timeline.whole,
            Self::Mount => timeline.mount,
            Self::Run => timeline.run,
            Self::Probe => timeline.probe,
        }
    }

    fn set(self, timeline: &mut Timeline, length: Option<u64>) {
        let place = match self {
            Self::Waiting => &mut timeline.waiting,
            Self::Placing => &mut timeline.placing,
            Self::Connecting => &mut timeline.connecting,
            Self::Index => &mut timeline.index,
            Self::Metadata => &mut timeline.metadata,
            Self::Whole => &mut timeline.whole,
            Self::Mount => &mut timeline.mount,
            Self::Run => &mut timeline.run,
            Self::Probe => &mut timeline.probe,
        };
        *place = length;
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Placing => "placing",
            Self::Connecting => "connecting",
            Self::Index => "index",
            Self::Metadata => "metadata",
            Self::Whole => "whole",
            Self::Mount => "mount",
            Self::Run => "run",
            Self::Probe => "probe",
        }
    }
}

/// What a start lost its time to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", content = "vm")]
#[schema(as = StartCause)]
pub enum Cause {
    /// It has not come far enough to say.
    Unknown,
    /// It took no longer than others of its function.
    AsUsual,
    /// No VM had room, or the image was not converted.
    NoRoom,
    /// Other starts on its VM were before it.
    FullVm,
    /// Nobody to ask for blocks answered at once.
    Connecting,
    /// The VM above it in the tree gave its blocks slowly.
    Parent(Option<VmId>),
    /// Another VM of the tree did.
    Ancestor(Option<VmId>),
    /// The registry did.
    Origin,
    /// The VM's disk took its blocks slowly.
    Disk,
    /// The file system was mounted slowly.
    Mount,
    /// The container runtime took long.
    Runtime,
    /// The application took long until it answered.
    Application,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub start: StartId,
    pub cause: Cause,
    /// Where it lost the most time.
    pub phase: Option<Phase>,
    /// How much of it, in microseconds.
    pub lost_us: u64,
    /// For people.
    pub text: String,
    /// How many other starts of the function it was compared with, and the median of each of their phases.
    pub others: usize,
    pub usual_us: Option<Timeline>,
}

/// Explains a start beside others of its function; itself among them does not count.
pub fn explain(start: &StartView, others: &[StartView]) -> Explanation {
    let ready = |other: &&StartView| other.id != start.id && other.timeline_us.ready.is_some();
    let others: Vec<&Timeline> = others.iter().filter(ready).map(|other| &other.timeline_us).collect();
    let usual = (others.len() >= OTHERS_MIN).then(|| median(&others));
    let lost = |phase: Phase| {
        let usual = usual.as_ref().and_then(|usual| phase.of(usual)).unwrap_or(0);
        (phase.of(&start.timeline_us).unwrap_or(0).saturating_sub(usual), phase)
    };
    // Of equals the first: what follows may follow from it.
    let (lost_us, phase) =
        Phase::ALL.into_iter().rev().map(lost).max_by_key(|(lost, _)| *lost).expect("nine");
    let whole: u64 = Phase::ALL.into_iter().filter_map(|phase| phase.of(&start.timeline_us)).sum();
    let cause = match phase.of(&start.timeline_us) {
        _ if start.state == StartState::Waiting => Cause::NoRoom,
        None => Cause::Unknown,
        Some(_) if usual.is_some() && lost_us * USUAL < whole => Cause::AsUsual,
        Some(length) => cause(phase, length, start),
    };
    let text = text(&cause, phase, lost_us, start);
    let phase = (!matches!(cause, Cause::Unknown)).then_some(phase);
    Explanation {
        start: start.id.clone(),
        cause,
        phase,
        lost_us,
        text,
        others: others.len(),
        usual_us: usual,
    }
}

fn cause(phase: Phase, length: u64, start: &StartView) -> Cause {
    // Reads of many processes wait at once: their waits may be longer together than the phase.
    let waits_for_blocks = start.stalled_us.saturating_mul(2) >= length;
    match phase {
        Phase::Waiting => Cause::NoRoom,
        Phase::Placing => Cause::FullVm,
        Phase::Connecting => Cause::Connecting,
        Phase::Index | Phase::Metadata | Phase::Whole => slowest(start).unwrap_or(Cause::Unknown),
        Phase::Mount => Cause::Mount,
        Phase::Run if waits_for_blocks => slowest(start).unwrap_or(Cause::Runtime),
        Phase::Probe if waits_for_blocks => slowest(start).unwrap_or(Cause::Application),
        Phase::Run => Cause::Runtime,
        Phase::Probe => Cause::Application,
    }
}

/// Who or what blocks waited for longest, all together.
fn slowest(start: &StartView) -> Option<Cause> {
    let Waits { parent, ancestor, origin, disk } = start.waits;
    let from = start.worst_stall.as_ref().and_then(|stall| stall.from.clone());
    let causes = [
        (parent, Cause::Parent(from.clone())),
        (ancestor, Cause::Ancestor(from)),
        (origin, Cause::Origin),
        (disk, Cause::Disk),
    ];
    let came = causes.into_iter().filter(|(wait, _)| wait.blocks > 0);
    came.max_by_key(|(wait, _)| wait.us).map(|(_, cause)| cause)
}

fn text(cause: &Cause, phase: Phase, lost_us: u64, start: &StartView) -> String {
    let lost = format!("{} in phase {}", millis(lost_us), phase.name());
    let mean = |wait: Wait| millis(wait.us / u64::from(wait.blocks.max(1)));
    let vm = |vm: &Option<VmId>| vm.as_ref().map_or_else(String::new, |vm| format!(", {vm},"));
    match cause {
        Cause::Unknown => "it has not come far enough to say".into(),
        Cause::AsUsual => "it took no longer than others of its function".into(),
        Cause::NoRoom => format!("no VM had room for it, or its image was not converted yet: {lost}"),
        Cause::FullVm => format!("other starts on its VM were before it: {lost}"),
        Cause::Connecting => format!("nobody who has its blocks answered at once: {lost}"),
        Cause::Parent(parent) => format!(
            "its parent in the tree{} gave blocks slowly, each after {} on average: {lost}",
            vm(parent),
            mean(start.waits.parent)
        ),
        Cause::Ancestor(ancestor) => format!(
            "another VM of the tree{} gave blocks slowly, each after {} on average: {lost}",
            vm(ancestor),
            mean(start.waits.ancestor)
        ),
        Cause::Origin => format!(
            "the registry gave blocks slowly, each after {} on average: {lost}",
            mean(start.waits.origin)
        ),
        Cause::Disk => {
            format!("the VM's disk took blocks slowly, each in {} on average: {lost}", mean(start.waits.disk))
        }
        Cause::Mount => format!("its file system was mounted slowly: {lost}"),
        Cause::Runtime => format!("the container runtime took long, as on a VM with too little CPU: {lost}"),
        Cause::Application => {
            format!("the application took long until it answered, with its blocks there: {lost}")
        }
    }
}

fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// Of each phase, over those that had it.
fn median(timelines: &[&Timeline]) -> Timeline {
    let middle = |mut lengths: Vec<u64>| {
        lengths.sort_unstable();
        lengths.get(lengths.len() / 2).copied()
    };
    let mut usual = Timeline::default();
    for phase in Phase::ALL {
        phase.set(&mut usual, middle(timelines.iter().filter_map(|timeline| phase.of(timeline)).collect()));
    }
    usual.ready = middle(timelines.iter().filter_map(|timeline| timeline.ready).collect());
    usual
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::BlockId,
        wire::control::{BytesBySource, WorstStall},
    };

    fn start(number: u32, lengths: [u64; 9]) -> StartView {
        let mut timeline_us = Timeline { ready: Some(lengths.iter().sum()), ..Timeline::default() };
        for (phase, length) in Phase::ALL.into_iter().zip(lengths) {
            phase.set(&mut timeline_us, Some(length));
        }
        StartView {
            id: format!("start-{number}").parse().expect("name"),
            function: "web".parse().expect("name"),
            accepted_at_ms: None,
            request_id: None,
            vm: Some("vm-1".parse().expect("name")),
            state: StartState::Ready,
            reason: None,
            timeline_us,
            bytes: BytesBySource::default(),
            stalls: 0,
            stalled_us: 0,
            longest_stall_us: 0,
            waits: Waits::default(),
            worst_stall: None,
        }
    }

    const USUAL_US: [u64; 9] = [1_000, 1_000, 5_000, 10_000, 30_000, 0, 5_000, 90_000, 100_000];

    fn others() -> Vec<StartView> {
        (1..=5).map(|number| start(number, USUAL_US.map(|length| length + u64::from(number)))).collect()
    }

    /// One whose phase took so much longer.
    fn slow(phase: Phase, by: u64) -> StartView {
        let mut lengths = USUAL_US;
        lengths[phase as usize] += by;
        start(9, lengths)
    }

    fn wait(blocks: u32, us: u64) -> Wait {
        Wait { blocks, us }
    }

    #[test]
    fn the_phase_that_took_longer_than_for_others_is_named() {
        let cases = [
            (Phase::Waiting, Cause::NoRoom),
            (Phase::Placing, Cause::FullVm),
            (Phase::Connecting, Cause::Connecting),
            (Phase::Mount, Cause::Mount),
            (Phase::Run, Cause::Runtime),
            (Phase::Probe, Cause::Application),
        ];
        for (phase, cause) in cases {
            let explanation = explain(&slow(phase, 400_000), &others());
            assert_eq!((explanation.phase, explanation.cause), (Some(phase), cause));
            assert!((399_990..=400_000).contains(&explanation.lost_us), "{}", explanation.lost_us);
        }
    }

    #[test]
    fn blocks_are_blamed_on_who_they_waited_for() {
        let of = |waits: Waits, from: Option<&str>| {
            let mut start = slow(Phase::Metadata, 500_000);
            start.waits = waits;
            let from = from.map(|vm| vm.parse().expect("name"));
            start.worst_stall = Some(WorstStall { block: BlockId(3), us: 1, disk_us: 0, from });
            explain(&start, &others())
        };
        let (little, much) = (wait(10, 1_000), wait(40, 16_000_000));
        let slow_parent = of(Waits { parent: much, disk: little, ..Waits::default() }, Some("vm-7"));
        assert_eq!(slow_parent.cause, Cause::Parent(Some("vm-7".parse().expect("name"))));
        let text = "its parent in the tree, vm-7, gave blocks slowly, each after 400.0 ms on average: 499.9 ms in phase metadata";
        assert_eq!(slow_parent.text, text);
        let slow_registry = of(Waits { origin: much, disk: little, ..Waits::default() }, None);
        assert_eq!(slow_registry.cause, Cause::Origin);
        let slow_disk = of(Waits { parent: little, disk: much, ..Waits::default() }, None);
        assert_eq!(slow_disk.cause, Cause::Disk);
    }

    #[test]
    fn an_application_that_waits_for_its_blocks_is_not_blamed() {
        let mut start = slow(Phase::Probe, 400_000);
        start.stalled_us = 390_000;
        start.waits = Waits { origin: wait(12, 390_000), ..Waits::default() };
        assert_eq!(explain(&start, &others()).cause, Cause::Origin);
        start.stalled_us = 20_000;
        assert_eq!(explain(&start, &others()).cause, Cause::Application);
    }

    #[test]
    fn what_is_as_usual_is_said_and_so_is_what_is_not_known() {
        let explanation = explain(&start(9, USUAL_US), &others());
        assert_eq!((explanation.cause, explanation.others), (Cause::AsUsual, 5));
        assert_eq!(explanation.usual_us.and_then(|usual| usual.run), Some(90_003));
        let alone = explain(&slow(Phase::Run, 0), &others()[..2]);
        assert_eq!((alone.cause, alone.usual_us), (Cause::Application, None), "the longest phase counts");
        let mut waiting = start(9, USUAL_US);
        (waiting.timeline_us, waiting.state) = (Timeline::default(), StartState::Waiting);
        assert_eq!(explain(&waiting, &others()).cause, Cause::NoRoom);
        waiting.state = StartState::Starting;
        assert_eq!(explain(&waiting, &others()).cause, Cause::Unknown);
    }
}
