//! The ring of the last events.

use super::{
    messages::{Happening, Kind, News},
    tally::{Tally, Totals},
};
use crate::{
    id::{FunctionName, ImageId, TenantId, VmId},
    model::ImageState,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use utoipa::ToSchema;

/// What the log keeps; of both the older goes first.
#[derive(Debug, Clone, Copy)]
pub struct RingLimits {
    pub events_max: usize,
    /// Of the events' texts.
    pub bytes_max: usize,
}

/// One event, with what filters look at and its text as all subscribers get it.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    pub number: u64,
    pub kind: Kind,
    pub tenant: Option<TenantId>,
    /// The functions that it is about: one, or all that use the tree's image.
    pub functions: Vec<FunctionName>,
    pub vm: Option<VmId>,
    pub json: Box<str>,
}

/// A part of the log. Numbers below `next` that no record has were not kept, or never told to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub stream: StreamId,
    pub records: Vec<Arc<Record>>,
    /// Where to read on.
    pub next: u64,
}

/// One life of the log: numbers of another one say nothing about this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamId {
    /// The manager's.
    pub term: u64,
    /// How often the log was rebuilt since.
    pub generation: u32,
}

/// An event as its subscribers get it.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventJson<'a> {
    #[schema(pattern = "^event$")]
    r#type: &'static str,
    /// One more than the event before it in the same stream.
    number: u64,
    /// Milliseconds since 1970.
    at_ms: u64,
    /// Whose it is; none for what is nobody's, such as VMs.
    tenant: Option<&'a TenantId>,
    /// The functions that it is about: one, or all that use the tree's image.
    functions: &'a [FunctionName],
    /// The VM that it is about.
    vm: Option<&'a VmId>,
    #[serde(flatten)]
    happening: &'a Happening,
}

pub struct EventLogCore {
    stream: StreamId,
    limits: RingLimits,
    ring: VecDeque<Arc<Record>>,
    bytes: usize,
    next: u64,
    /// The images of each function, and the functions of each image, as the log has heard of them.
    images: BTreeMap<(TenantId, FunctionName), BTreeSet<ImageId>>,
    users: BTreeMap<(TenantId, ImageId), BTreeSet<FunctionName>>,
    /// Refusals that no event has told of.
    refused: BTreeMap<(Option<TenantId>, Cow<'static, str>), u64>,
    tally: Tally,
}

impl EventLogCore {
    pub fn new(stream: StreamId, limits: RingLimits, counted_max: usize) -> Self {
        Self {
            stream,
            limits,
            ring: VecDeque::new(),
            bytes: 0,
            next: 1,
            images: BTreeMap::new(),
            users: BTreeMap::new(),
            refused: BTreeMap::new(),
            tally: Tally::new(counted_max),
        }
    }

    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The number of the next event.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Events that are kept, and their bytes.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ring.len(), self.bytes)
    }

    /// `count` events were dropped before they reached the log: they have numbers that nobody will see.
    pub fn skip(&mut self, count: u64) {
        self.next += count;
        self.tally.dropped(count);
    }

    /// Sums of all that was told, whatever the ring still has.
    pub fn totals(&self) -> Totals {
        self.tally.totals()
    }

    pub fn happened(&mut self, news: News, at_ms: u64) {
        self.tally.happened(&news);
        let News { tenant, happening } = news;
        let functions = self.functions(tenant.as_ref(), &happening);
        let (number, kind, vm) = (self.next, happening.kind(), happening.vm().cloned());
        let event = EventJson {
            r#type: "event",
            number,
            at_ms,
            tenant: tenant.as_ref(),
            functions: &functions,
            vm: vm.as_ref(),
            happening: &happening,
        };
        let json = serde_json::to_string(&event).expect("plain data").into_boxed_str();
        self.next += 1;
        self.bytes += json.len();
        self.ring.push_back(Arc::new(Record { number, kind, tenant, functions, vm, json }));
        while self.ring.len() > self.limits.events_max || self.bytes > self.limits.bytes_max {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.bytes -= oldest.json.len();
        }
    }

    /// Counted, and told with the next [`tick`](Self::tick): a flood of refusals is one event.
    pub fn refused(&mut self, tenant: Option<TenantId>, code: Cow<'static, str>) {
        self.tally.refused(code.clone());
        *self.refused.entry((tenant, code)).or_default() += 1;
    }

    pub fn tick(&mut self, at_ms: u64) {
        for ((tenant, code), count) in std::mem::take(&mut self.refused) {
            self.happened(News { tenant, happening: Happening::Refused { code, count } }, at_ms);
        }
    }

    /// The events from number `from` on: at most so many, and so many bytes, but at least one if there is one.
    pub fn read(&self, from: u64, events_max: usize, bytes_max: usize) -> Page {
        let first = self.ring.partition_point(|record| record.number < from);
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in self.ring.range(first..).take(events_max) {
            bytes += record.json.len();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(Arc::clone(record));
        }
        let is_end = first + records.len() == self.ring.len();
        let next = match records.last() {
            Some(last) if !is_end => last.number + 1,
            _ => self.next,
        };
        Page { stream: self.stream, records, next }
    }

    /// The functions that it is about. What functions and images belong together the log learns from the
    /// events of functions.
    fn functions(&mut self, tenant: Option<&TenantId>, happening: &Happening) -> Vec<FunctionName> {
        let Some(tenant) = tenant else { return Vec::new() };
        match happening {
            Happening::Function(view) => {
                let states = std::iter::once(&view.image_state).chain(&view.code_state);
                let images = states.filter_map(|state| match state {
                    ImageState::Ready { id, .. } => Some(*id),
                    ImageState::Converting { .. } | ImageState::Failed { .. } => None,
                });
                self.set_images(tenant, &view.name, images.collect());
                vec![view.name.clone()]
            }
            Happening::FunctionDeleted { name } => {
                self.set_images(tenant, name, BTreeSet::new());
                vec![name.clone()]
            }
            Happening::Start(view) => vec![view.function.clone()],
            other => {
                let image = other.image().map(|image| (tenant.clone(), image));
                let users = image.and_then(|image| self.users.get(&image));
                users.into_iter().flatten().cloned().collect()
            }
        }
    }

    fn set_images(&mut self, tenant: &TenantId, name: &FunctionName, images: BTreeSet<ImageId>) {
        let key = (tenant.clone(), name.clone());
        if self.images.get(&key).is_some_and(|known| *known == images) {
            return;
        }
        for image in self.images.remove(&key).unwrap_or_default() {
            let of = (tenant.clone(), image);
            if let Some(users) = self.users.get_mut(&of) {
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(&of);
                }
            }
        }
        for image in &images {
            self.users.entry((tenant.clone(), *image)).or_default().insert(name.clone());
        }
        if !images.is_empty() {
            self.images.insert(key, images);
        }
    }
}
