//! Profiles: what starts read of their images, kept for good, and put to use.
//!
//! An actor of its own beside the scheduler, so that what goes wrong here disturbs no start: recordings come
//! from VMs that nobody vouches for, and packing takes minutes. The scheduler hears of results (`Hinted`) and
//! keeps them for the starts that it places.

mod core;
mod messages;
mod records;
mod shell;
#[cfg(test)]
mod tests;

pub use self::core::{Effect, Event, ProfileKey, ProfileLimits, ProfilesCore, Recording, Ticket};
pub use messages::{Hint, Hinted, ToProfiles};
pub use records::{PackedImage, ProfileRecord, read as read_profiles};
pub use shell::{Profiles, ProfilesSettings};
