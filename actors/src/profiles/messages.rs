//! What is said to and by the keeper of profiles.

use super::core::{ProfileKey, Recording};
use crate::{
    id::{BlockId, ImageId, TenantId},
    image::BlockImage,
    model::ProfileView,
    scheduler::Reply,
    support::{Flow, Hop},
};
use actix::prelude::*;
use std::{collections::BTreeMap, sync::Arc};

/// From the scheduler. Bounded by the starts that are recorded at once and by the permits of questions.
#[derive(Message)]
#[rtype(result = "()")]
pub enum ToProfiles {
    /// A start was recorded.
    Recorded { tenant: TenantId, recording: Recording },
    /// What is known of the starts of those who use that image.
    View { key: ProfileKey, image: ImageId, reply: Reply<ProfileView> },
    /// Pack the image now.
    Optimize { key: ProfileKey, image: ImageId, source: String, reply: Reply<ProfileView> },
    /// The scheduler was rebuilt and knows nothing.
    TellAll,
}

impl Flow for ToProfiles {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about) = match self {
            Self::Recorded { tenant, .. } => ("Recorded", tenant),
            Self::Optimize { key, .. } => ("Optimize", &key.0),
            Self::View { .. } | Self::TellAll => return None,
        };
        Some(Hop { message, about, permit: "" })
    }
}

/// To the scheduler: what starts on the images of one source are to be told. Bounded by what it has said itself.
#[derive(Message, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct Hinted {
    pub key: ProfileKey,
    /// None when nothing is known any more.
    pub hint: Option<Hint>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hint {
    /// Starts that were recorded.
    pub recordings: u32,
    /// What starts read of images that are not packed, in order.
    pub hot: BTreeMap<ImageId, Arc<[BlockId]>>,
    /// The image to be used from now on; durable.
    pub packed: Option<Arc<BlockImage>>,
}

impl Flow for Hinted {
    fn hop(&self) -> Option<Hop<'_>> {
        Some(Hop { message: "Hinted", about: &self.key.0, permit: "" })
    }
}
