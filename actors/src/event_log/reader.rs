//! One subscriber's way through the log: a position and a filter, nothing that grows.

use super::core::{Page, Record, StreamId};
use super::messages::Kind;
use crate::id::{FunctionName, TenantId, VmId};
use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

/// What a subscriber wants, and what it may see.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this tenant's; without one everybody's, and what is nobody's, such as VMs.
    pub tenant: Option<TenantId>,
    pub function: Option<FunctionName>,
    pub vm: Option<VmId>,
    /// Without any, all that it may see.
    pub kinds: BTreeSet<Kind>,
    /// Whether it may see who changed what.
    pub sees_audit: bool,
}

impl Filter {
    pub fn passes(&self, record: &Record) -> bool {
        (self.tenant.is_none() || record.tenant == self.tenant)
            && self.function.as_ref().is_none_or(|function| record.functions.contains(function))
            && self.vm.as_ref().is_none_or(|vm| record.vm.as_ref() == Some(vm))
            && (self.kinds.is_empty() || self.kinds.contains(&record.kind))
            && (self.sees_audit || record.kind != Kind::Audit)
    }
}

/// What a subscriber is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Event(Arc<Record>),
    /// These were not kept long enough, or never reached the log; some may not have passed the filter.
    Lost {
        from: u64,
        to: u64,
    },
    /// The log began anew: what happened in between nobody can say. Its first number is 1.
    Began(StreamId),
}

#[derive(Debug)]
pub struct Reader {
    stream: StreamId,
    /// The number of the next event that it has not seen.
    position: u64,
    filter: Filter,
}

impl Reader {
    pub fn new(stream: StreamId, position: u64, filter: Filter) -> Self {
        Self { stream, position, filter }
    }

    pub fn stream(&self) -> StreamId {
        self.stream
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes what was read from [`position`](Self::position).
    pub fn take(&mut self, page: Page) -> Vec<Item> {
        let mut items = Vec::new();
        if page.stream != self.stream {
            self.stream = page.stream;
            self.position = 1;
            items.push(Item::Began(page.stream));
            // It was read from a number that meant something else.
            return items;
        }
        for record in page.records {
            self.pass_over(record.number, &mut items);
            self.position = record.number + 1;
            if self.filter.passes(&record) {
                items.push(Item::Event(record));
            }
        }
        self.pass_over(page.next, &mut items);
        items
    }

    fn pass_over(&mut self, to: u64, items: &mut Vec<Item>) {
        if to > self.position {
            items.push(Item::Lost { from: self.position, to: to - 1 });
            self.position = to;
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.term, self.generation)
    }
}

/// Not the name of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream must be two numbers with a dot between them, as the event stream said it")]
pub struct StreamIdError;

impl FromStr for StreamId {
    type Err = StreamIdError;

    fn from_str(text: &str) -> Result<Self, StreamIdError> {
        let (term, generation) = text.split_once('.').ok_or(StreamIdError)?;
        let (term, generation) = (term.parse(), generation.parse());
        Ok(Self {
            term: term.map_err(|_| StreamIdError)?,
            generation: generation.map_err(|_| StreamIdError)?,
        })
    }
}
