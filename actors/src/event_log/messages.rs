//! What the event log is told, and what can be read of it.

use super::{core::Page, tally::Totals};
use crate::{
    function_tree::{HoldingNews, SeatNews, TreeNews},
    id::{Epoch, FunctionName, ImageId, TenantId, VmId},
    model::{FunctionView, StartView, VmView},
    support::{Flow, Hop},
};
use actix::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use utoipa::ToSchema;

/// Something that has happened. What is about a thing carries the whole new state of it, so that whoever
/// applies it again, or after a newer one of the same thing was seen elsewhere, ends with the same.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", content = "data")]
pub enum Happening {
    Function(Box<FunctionView>),
    FunctionDeleted {
        name: FunctionName,
    },
    Start(Box<StartView>),
    Vm(Box<VmView>),
    VmRemoved {
        id: VmId,
    },
    Member {
        image: ImageId,
        #[serde(flatten)]
        seat: SeatNews,
    },
    MemberLeft {
        image: ImageId,
        vm: VmId,
        epoch: Epoch,
    },
    Transfer {
        image: ImageId,
        #[serde(flatten)]
        holding: HoldingNews,
    },
    /// `vm` says that `lost` does not serve it.
    Repair {
        image: ImageId,
        vm: VmId,
        lost: VmId,
        epoch: Epoch,
    },
    TreeDissolved {
        image: ImageId,
    },
    /// Answers that refused work because a limit was reached, since the last event of that kind.
    Refused {
        code: Cow<'static, str>,
        count: u64,
    },
    /// Somebody asked for a change.
    Audit(Audit),
}

/// A request that was to change something, and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Audit {
    pub who: String,
    pub role: &'static str,
    pub method: String,
    pub path: String,
    /// Of the answer.
    pub status: u16,
    pub request: String,
}

impl Happening {
    /// What the tree of an image tells.
    pub fn of_tree(image: ImageId, news: TreeNews) -> Self {
        match news {
            TreeNews::Seat(seat) => Self::Member { image, seat },
            TreeNews::Left { vm, epoch } => Self::MemberLeft { image, vm, epoch },
            TreeNews::Holding(holding) => Self::Transfer { image, holding },
            TreeNews::Repair { vm, lost, epoch } => Self::Repair { image, vm, lost, epoch },
            TreeNews::Dissolved => Self::TreeDissolved { image },
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Function(_) => Kind::Function,
            Self::FunctionDeleted { .. } => Kind::FunctionDeleted,
            Self::Start(_) => Kind::Start,
            Self::Vm(_) => Kind::Vm,
            Self::VmRemoved { .. } => Kind::VmRemoved,
            Self::Member { .. } => Kind::Member,
            Self::MemberLeft { .. } => Kind::MemberLeft,
            Self::Transfer { .. } => Kind::Transfer,
            Self::Repair { .. } => Kind::Repair,
            Self::TreeDissolved { .. } => Kind::TreeDissolved,
            Self::Refused { .. } => Kind::Refused,
            Self::Audit(_) => Kind::Audit,
        }
    }

    /// The VM that it is about.
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Start(view) => view.vm.as_ref(),
            Self::Vm(view) => Some(&view.id),
            Self::VmRemoved { id } => Some(id),
            Self::Member { seat, .. } => Some(&seat.vm),
            Self::Transfer { holding, .. } => Some(&holding.vm),
            Self::MemberLeft { vm, .. } | Self::Repair { vm, .. } => Some(vm),
            Self::Function(_)
            | Self::FunctionDeleted { .. }
            | Self::TreeDissolved { .. }
            | Self::Refused { .. }
            | Self::Audit(_) => None,
        }
    }

    /// The image whose tree it is about.
    pub(super) fn image(&self) -> Option<ImageId> {
        match self {
            Self::Member { image, .. }
            | Self::MemberLeft { image, .. }
            | Self::Transfer { image, .. }
            | Self::Repair { image, .. }
            | Self::TreeDissolved { image } => Some(*image),
            Self::Function(_)
            | Self::FunctionDeleted { .. }
            | Self::Start(_)
            | Self::Vm(_)
            | Self::VmRemoved { .. }
            | Self::Refused { .. }
            | Self::Audit(_) => None,
        }
    }
}

/// The kinds of events, as filters name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Function,
    FunctionDeleted,
    Start,
    Vm,
    VmRemoved,
    Member,
    MemberLeft,
    Transfer,
    Repair,
    TreeDissolved,
    Refused,
    Audit,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Function,
        Self::FunctionDeleted,
        Self::Start,
        Self::Vm,
        Self::VmRemoved,
        Self::Member,
        Self::MemberLeft,
        Self::Transfer,
        Self::Repair,
        Self::TreeDissolved,
        Self::Refused,
        Self::Audit,
    ];
}

/// A happening and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// None for what is nobody's, such as VMs.
    pub tenant: Option<TenantId>,
    pub happening: Happening,
}

impl News {
    pub fn of(tenant: &TenantId, happening: Happening) -> Self {
        Self { tenant: Some(tenant.clone()), happening }
    }

    pub fn of_all(happening: Happening) -> Self {
        Self { tenant: None, happening }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
pub enum ToEventLog {
    Happened {
        news: Box<News>,
        room: OwnedSemaphorePermit,
    },
    /// An answer refused work because a limit was reached.
    Refused {
        tenant: Option<TenantId>,
        code: Cow<'static, str>,
        room: OwnedSemaphorePermit,
    },
    /// Bounded by the subscribers, each of which waits for the answer.
    Read {
        from: u64,
        events_max: usize,
        bytes_max: usize,
        reply: oneshot::Sender<Page>,
    },
    /// Bounded like `Read`.
    Sum {
        reply: oneshot::Sender<Totals>,
    },
}

/// What is told is seen in the flows of whoever tells it.
impl Flow for ToEventLog {
    fn hop(&self) -> Option<Hop<'_>> {
        None
    }
}
