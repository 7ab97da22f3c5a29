//! Moves the blocks of one block image on one VM: asks upstreams, keeps what comes, serves children.
//!
//! A block's way: a read that misses (`Demand`) or a child's want makes the core ask an upstream; the
//! connection verifies what comes (`FromUpstream`), waiting children get it at once, the cache keeps
//! it, and the holder is told that its reads can go on.

#[cfg(test)]
mod ahead_tests;
mod children;
mod core;
mod done;
#[cfg(test)]
mod fixtures;
mod found;
mod links;
mod messages;
mod origin;
mod outbox;
mod read_ahead;
#[cfg(test)]
mod repair_tests;
mod rest;
mod shell;
#[cfg(test)]
mod tests;
mod window;

pub use self::{
    core::{ChildId, Effect, Event, Stalls, TransferCore, TransferLimits},
    done::{Done, DoneByAll},
    messages::{
        Ahead, Attach, ChildEvent, Demand, FromChild, FromImage, GetReport, HolderBack, ImageEvent,
        MountEnded, OpenChild, Opened, OriginAnswered, Placed, StoreBack, TransferReport, Wished,
    },
    rest::Wish,
    shell::{BlockTransfer, Complaint, TransferNews, TransferWorld},
};
