//! Whoever watches a tree and applies what it is told knows the tree.

use super::{World, held, join, reported, vm};
use crate::{
    function_tree::{Event, SeatNews, TreeCore, TreeNews},
    id::VmId,
};
use std::collections::BTreeMap;

/// What is known of a tree from what it told.
#[derive(Default)]
pub(super) struct Watched {
    seats: BTreeMap<VmId, SeatNews>,
    /// All but seats, of the last event.
    pub others: Vec<TreeNews>,
}

impl Watched {
    pub fn hears(&mut self, news: TreeNews) {
        match news {
            TreeNews::Seat(seat) => drop(self.seats.insert(seat.vm.clone(), seat)),
            TreeNews::Left { vm, epoch } => {
                let seat = self.seats.remove(&vm).expect("only members leave");
                assert!(epoch >= seat.epoch, "events of one tree are in order");
            }
            TreeNews::Dissolved => self.seats.clear(),
            other => self.others.push(other),
        }
    }

    pub fn check(&self, core: &TreeCore) {
        let known = |seat: &SeatNews| (seat.vm.clone(), seat.ready, seat.places.clone());
        let is: Vec<_> = core.seats().iter().map(known).collect();
        assert_eq!(self.seats.values().map(known).collect::<Vec<_>>(), is, "who watches knows the tree");
    }
}

#[test]
fn fill_levels_and_complaints_are_told_once() {
    let mut world = World::with(3);
    let epoch = world.core.epoch();
    world.watched.others.clear();
    world.apply(Event::Held { vm: vm(1), held: held(epoch, 4) });
    world.apply(Event::Held { vm: vm(1), held: held(epoch, 4) });
    world.complain(2, 0);
    world.complain(2, 0);
    let told: Vec<String> = world.watched.others.iter().map(|news| format!("{news:?}")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(matches!(&world.watched.others[0], TreeNews::Holding(holding) if holding.blocks_present == 4));
    assert!(
        matches!(&world.watched.others[1], TreeNews::Repair { vm: by, lost, .. } if (by, lost) == (&vm(2), &vm(0)))
    );
}

#[test]
fn members_that_report_to_a_rebuilt_tree_are_told_as_those_that_join() {
    let mut next = reported(&World::with(4), &[]);
    assert!(next.watched.seats.is_empty(), "nobody has a place before all have reported");
    next.apply(Event::Gathered);
    next.apply(join(4));
    assert_eq!(next.watched.seats.len(), 5);
}
