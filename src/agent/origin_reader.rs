//! Reads blocks from the origin for one image.
//!
//! A registry answers requests side by side, so that they share the line: with many of them the first block comes
//! late, and everyone below this VM waits for it. With few the line falls idle between an answer and the next
//! request. So a few are made at a time, what is read now before what is read ahead, and what waits meanwhile joins
//! the request for its neighbours.

use super::{
    named_index::named_index,
    upstream::{Reporter, verified},
};
use bytes::Bytes;
use faasnet_actors::{
    agent::world::{UpstreamEvent, UpstreamTarget},
    id::BlockId,
    image::Index,
    wire::peer::{NotServed, ToParent, Urgency},
    world::{Origin, OriginError, Part},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};
use tokio::sync::mpsc;

/// Most stored bytes read from the origin by one request. A request costs the registry of this release's tests 4 ms of
/// CPU, because it reads 4 MiB ahead for each, however little is asked for.
const RANGE_BYTES_MAX: u64 = 4 << 20;

/// What is to be read and has not been asked for.
#[derive(Debug, Default)]
struct Waiting {
    /// What reads wait for, and what is wanted ahead of them, each in the order in which it is to come.
    demands: VecDeque<BlockId>,
    ahead: VecDeque<BlockId>,
    all: BTreeSet<BlockId>,
}

impl Waiting {
    fn want(&mut self, blocks: Vec<BlockId>, urgency: Urgency) {
        for block in blocks {
            match (self.all.insert(block), urgency) {
                (true, Urgency::Demand) => self.demands.push_back(block),
                (true, Urgency::Prefetch | Urgency::Background) => self.ahead.push_back(block),
                (false, Urgency::Demand) => self.hurry(&[block]),
                (false, Urgency::Prefetch | Urgency::Background) => {}
            }
        }
    }

    /// Reads wait for these now. What is not here is under way.
    fn hurry(&mut self, blocks: &[BlockId]) {
        let (hurried, ahead) = self.ahead.iter().partition(|block| blocks.contains(block));
        self.ahead = ahead;
        let hurried: VecDeque<BlockId> = hurried;
        self.demands.extend(hurried);
    }

    /// The blocks of the next request, one after the other in the image. `requests_max` are made at a time ahead of
    /// reads, and as many again for what reads wait for.
    fn next(&mut self, index: Option<&Index>, requests: usize, requests_max: usize) -> Option<Vec<BlockId>> {
        let first = match (self.demands.front(), self.ahead.front()) {
            (Some(&demand), _) if requests < 2 * requests_max => demand,
            (None, Some(&ahead)) if requests < requests_max => ahead,
            _ => return None,
        };
        let stored = |block: BlockId| {
            index.and_then(|index| index.entry(block)).map_or(0, |entry| u64::from(entry.stored_bytes))
        };
        let (mut from, mut to, mut bytes) = (first, first, stored(first));
        let mut joins = |block: Option<u32>| {
            let block = BlockId(block?);
            let fits = self.all.contains(&block) && bytes + stored(block) <= RANGE_BYTES_MAX;
            if fits {
                bytes += stored(block);
            }
            fits.then_some(block)
        };
        while let Some(after) = joins(to.0.checked_add(1)) {
            to = after;
        }
        while let Some(before) = joins(from.0.checked_sub(1)) {
            from = before;
        }
        let is_taken = |block: &BlockId| (from..=to).contains(block);
        self.demands.retain(|block| !is_taken(block));
        self.ahead.retain(|block| !is_taken(block));
        self.all.retain(|block| !is_taken(block));
        Some((from.0..=to.0).map(BlockId).collect())
    }
}

type RangeRead = BoxFuture<'static, (Vec<BlockId>, Result<Bytes, OriginError>)>;

/// Answers the commands that a parent would from the origin, until nobody asks any more.
pub(super) async fn read_origin(
    origin: &dyn Origin,
    target: &UpstreamTarget,
    mut orders: mpsc::Receiver<ToParent>,
    reporter: &Reporter,
    requests_max: usize,
) {
    reporter.tell(UpstreamEvent::Opened);
    let mut waiting = Waiting::default();
    // Told once for each request, however many blocks it needs.
    let mut read_for = None;
    let mut reads: FuturesUnordered<RangeRead> = FuturesUnordered::new();
    loop {
        while let Some(blocks) = waiting.next(target.index.get().map(Arc::as_ref), reads.len(), requests_max)
        {
            let reading = origin.read(&target.image, Part::Blob, blocks_range(target, &blocks));
            reads.push(Box::pin(async move { (blocks, reading.await) }));
        }
        tokio::select! {
            biased;
            Some((blocks, read)) = reads.next(), if !reads.is_empty() => {
                if let Err(error) = deliver(&blocks, read, target, reporter) {
                    return reporter.tell(UpstreamEvent::Closed { reason: error.to_string() });
                }
            }
            order = orders.recv() => match order {
                None => return,
                Some(ToParent::WantIndex { .. }) => {
                    let range = 0..target.image.index_bytes;
                    if let Err(reason) = deliver_index(origin.read(&target.image, Part::Index, range).await, target, reporter) {
                        return reporter.tell(UpstreamEvent::Closed { reason });
                    }
                }
                Some(ToParent::Want { blocks, urgency, request, .. }) => {
                    if let Some(request) = request.filter(|now| read_for.as_ref() != Some(now)) {
                        tracing::info!(tree = %target.tree, %request, "the origin is read for a request");
                        read_for = Some(request);
                    }
                    waiting.want(blocks, urgency);
                }
                Some(ToParent::Hurry { blocks }) => waiting.hurry(&blocks),
                Some(ToParent::Corrupt { .. } | ToParent::Open { .. }) => {}
            },
        }
    }
}

fn deliver_index(
    read: Result<Bytes, OriginError>,
    target: &UpstreamTarget,
    reporter: &Reporter,
) -> Result<(), String> {
    let encoded = read.map_err(|error| error.to_string())?;
    let index = named_index(&target.image, &encoded).map_err(|error| format!("the origin: {error}"))?;
    reporter.tell(UpstreamEvent::Index { index: Arc::new(index), encoded });
    Ok(())
}

fn blocks_range(target: &UpstreamTarget, blocks: &[BlockId]) -> std::ops::Range<u64> {
    let entry = |block: Option<&BlockId>| target.index.get().and_then(|index| index.entry(*block?));
    match (entry(blocks.first()), entry(blocks.last())) {
        (Some(first), Some(last)) => first.offset..last.offset + u64::from(last.stored_bytes),
        _ => 0..0,
    }
}

fn deliver(
    blocks: &[BlockId],
    read: Result<Bytes, OriginError>,
    target: &UpstreamTarget,
    reporter: &Reporter,
) -> Result<(), OriginError> {
    let mut bytes = match read {
        Ok(bytes) => bytes,
        Err(error) if error.is_retryable() => {
            tracing::warn!(%error, tree = %target.tree, "the origin did not give a range");
            for &block in blocks {
                reporter.tell(UpstreamEvent::NotServed { block, reason: NotServed::NoSource });
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut batch = Vec::new();
    for &block in blocks {
        let length =
            target.index.get().and_then(|index| index.entry(block)).map_or(0, |entry| entry.stored_bytes);
        let stored = bytes.split_to((length as usize).min(bytes.len()));
        match verified(target.index.get(), block, stored) {
            Ok(stored) => batch.push((block, stored)),
            Err(()) => reporter.tell(UpstreamEvent::Corrupt(block)),
        }
    }
    if !batch.is_empty() {
        reporter.tell(UpstreamEvent::Blocks(batch));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::image::{BLOCK_BYTES, BlockEntry, Codec};

    /// Nothing shrinks: eight blocks fill a request.
    fn index() -> Index {
        let entry = |block: u64| BlockEntry {
            offset: block * u64::from(BLOCK_BYTES),
            stored_bytes: BLOCK_BYTES,
            codec: Codec::Plain,
            hash: [0; 32],
        };
        Index::new(64 * u64::from(BLOCK_BYTES), 1, (0..64).map(entry).collect()).unwrap()
    }

    fn waiting(ahead: &[u32], demands: &[u32]) -> Waiting {
        let mut waiting = Waiting::default();
        waiting.want(ahead.iter().copied().map(BlockId).collect(), Urgency::Prefetch);
        waiting.want(demands.iter().copied().map(BlockId).collect(), Urgency::Demand);
        waiting
    }

    /// All requests until no more may be made.
    fn requests(waiting: &mut Waiting, max: usize) -> Vec<Vec<u32>> {
        let index = index();
        let mut made = Vec::new();
        while let Some(blocks) = waiting.next(Some(&index), made.len(), max) {
            made.push(blocks.into_iter().map(|block| block.0).collect());
        }
        made
    }

    #[test]
    fn blocks_in_a_row_are_read_by_one_request() {
        assert_eq!(requests(&mut waiting(&[2, 0, 1, 9], &[]), 4), [vec![0, 1, 2], vec![9]]);
        let nine: Vec<u32> = (3..12).collect();
        assert_eq!(requests(&mut waiting(&nine, &[]), 4), [nine[..8].to_vec(), vec![11]]);
    }

    #[test]
    fn few_requests_are_made_at_a_time_and_reads_do_not_wait_for_what_is_ahead() {
        let mut waiting = waiting(&[0, 2, 4, 6], &[20, 22, 24]);
        assert_eq!(requests(&mut waiting, 2), [[20], [22], [24]]);
        assert_eq!(requests(&mut waiting, 2), [[0], [2]]);
        waiting.hurry(&[BlockId(6), BlockId(33)]);
        waiting.want(vec![BlockId(4)], Urgency::Demand);
        assert_eq!(requests(&mut waiting, 1), [[6], [4]]);
        assert_eq!(requests(&mut waiting, 1), Vec::<Vec<u32>>::new());
        assert!(waiting.all.is_empty());
    }

    #[test]
    fn what_waits_joins_the_request_for_its_neighbours() {
        let mut waiting = waiting(&[0, 10, 12], &[]);
        let index = index();
        assert_eq!(waiting.next(Some(&index), 0, 1), Some(vec![BlockId(0)]));
        assert_eq!(waiting.next(Some(&index), 1, 1), None);
        waiting.want([11, 13, 11].map(BlockId).to_vec(), Urgency::Background);
        assert_eq!(waiting.next(Some(&index), 0, 1), Some((10..14).map(BlockId).collect()));
        assert_eq!(waiting.next(Some(&index), 0, 1), None);
    }
}
