//! Connections to upstreams: another VM's agent, or the origin.
//!
//! Each is a task of its own. What arrives is verified here, before any actor sees it, and handed on
//! in batches: crossing to the actors' thread costs more than looking at the next frame.

use super::{named_index::named_index, origin_reader::read_origin};
use crate::net::{
    Purpose,
    framed::{self, FrameReader, ReadError},
    tls::Dialer,
};
use actix::Recipient;
use bytes::Bytes;
use faasnet_actors::{
    agent::world::{FromUpstream, TaskLink, UpstreamEvent, UpstreamTarget, Upstreams},
    id::{BlockId, VmId},
    image::Index,
    wire::{
        PROTOCOL_VERSION,
        control::Upstream,
        frame::FrameLimits,
        peer::{FromParent, ToParent},
    },
    world::Origin,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};

/// Blocks in one message to the transfer: at 512 KiB each, a batch is there within a few milliseconds.
const BATCH_BLOCKS_MAX: usize = 8;

/// Pause between two words that a parent waits, or is sending: a transfer looks at silent upstreams that often.
const WAITS_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of connections to upstreams.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamLimits {
    pub frame: FrameLimits,
    pub handshake: Duration,
    /// Commands that may wait for a connection.
    pub commands_max: usize,
    /// Ranges of one image read from the origin at a time, and as many again for what reads wait for.
    pub origin_requests_max: usize,
}

pub struct Dialling {
    pub dialer: watch::Receiver<Dialer>,
    pub origin: Arc<dyn Origin>,
    pub limits: UpstreamLimits,
}

impl Upstreams for Dialling {
    fn open(&self, target: UpstreamTarget, events: Recipient<FromUpstream>) -> TaskLink<ToParent> {
        let (commands, orders) = mpsc::channel(self.limits.commands_max);
        let reporter = Reporter { upstream: target.upstream.clone(), link: target.link, events };
        let limits = self.limits;
        let task = match target.upstream.clone() {
            Upstream::Origin => {
                let origin = Arc::clone(&self.origin);
                let requests_max = limits.origin_requests_max;
                tokio::spawn(async move {
                    read_origin(&*origin, &target, orders, &reporter, requests_max).await;
                })
            }
            Upstream::Vm { vm, address } => {
                let dialer = self.dialer.borrow().clone();
                tokio::spawn(async move {
                    let end = talk(&dialer, &vm, address, &target, orders, &reporter, limits).await;
                    let reason = end.err().unwrap_or_else(|| "the parent closed the connection".into());
                    reporter.tell(UpstreamEvent::Closed { reason: format!("VM {vm}: {reason}") });
                })
            }
        };
        TaskLink { commands, task: task.abort_handle() }
    }
}

pub(super) struct Reporter {
    upstream: Upstream,
    link: u64,
    events: Recipient<FromUpstream>,
}

impl Reporter {
    pub(super) fn tell(&self, event: UpstreamEvent) {
        self.events.do_send(FromUpstream { upstream: self.upstream.clone(), link: self.link, event });
    }
}

/// Speaks with a parent until one side ends.
async fn talk(
    dialer: &Dialer,
    vm: &VmId,
    address: SocketAddr,
    target: &UpstreamTarget,
    mut orders: mpsc::Receiver<ToParent>,
    reporter: &Reporter,
    limits: UpstreamLimits,
) -> Result<(), String> {
    let stream = dialer.vm(vm, address, Purpose::Blocks).await.map_err(|error| error.to_string())?;
    let (reading, mut writing) = tokio::io::split(stream);
    let mut frames = FrameReader::<_, FromParent>::new(reading, limits.frame);
    let open = ToParent::Open {
        version: PROTOCOL_VERSION,
        tree: target.tree.clone(),
        capability: target.capability.clone(),
    };
    framed::write(&mut writing, &open, &[]).await.map_err(|error| error.to_string())?;
    match frames.expect(limits.handshake).await.map_err(|error| error.to_string())?.header {
        FromParent::Opened => reporter.tell(UpstreamEvent::Opened),
        FromParent::Refused { reason } => return Err(reason.to_string()),
        other => return Err(format!("it answered {other:?} to the opening")),
    }
    let mut owed = Owed::default();
    let mut look = tokio::time::interval(WAITS_PAUSE);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut received = 0;
    loop {
        tokio::select! {
            biased;
            frame = frames.next() => match frame.map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(frame) => receive(frame.header, frame.body, &mut frames, &mut owed, target, reporter)?,
            },
            order = orders.recv() => match order {
                None => return Ok(()),
                Some(order) => {
                    owed.asked(&order);
                    framed::write(&mut writing, &order, &[]).await.map_err(|error| error.to_string())?;
                }
            },
            // On a slow line a block takes longer than the silence after which a parent is left.
            _ = look.tick(), if owed.blocks + owed.indexes > 0 => {
                if std::mem::replace(&mut received, frames.received()) != received && owed.waits(Instant::now()) {
                    reporter.tell(UpstreamEvent::Waits);
                }
            }
        }
    }
}

/// What a parent may still say: it gets nothing into the transfer's mailbox that was not asked for.
#[derive(Default)]
struct Owed {
    blocks: usize,
    indexes: usize,
    waits_told_at: Option<Instant>,
}

impl Owed {
    fn asked(&mut self, order: &ToParent) {
        match order {
            ToParent::Want { blocks, .. } => self.blocks += blocks.len(),
            ToParent::WantIndex { .. } => self.indexes += 1,
            ToParent::Open { .. } | ToParent::Hurry { .. } | ToParent::Corrupt { .. } => {}
        }
    }

    fn answered(owed: &mut usize) -> Result<(), String> {
        *owed = owed.checked_sub(1).ok_or("it answers what it was not asked")?;
        Ok(())
    }

    /// True if the transfer is to hear that the parent waits.
    fn waits(&mut self, now: Instant) -> bool {
        let is_due = self.waits_told_at.is_none_or(|at| now.duration_since(at) >= WAITS_PAUSE);
        if is_due {
            self.waits_told_at = Some(now);
        }
        is_due
    }
}

/// Takes a frame and those that are here already; blocks go on in one message.
fn receive<R: tokio::io::AsyncRead + Unpin>(
    header: FromParent,
    body: Bytes,
    frames: &mut FrameReader<R, FromParent>,
    owed: &mut Owed,
    target: &UpstreamTarget,
    reporter: &Reporter,
) -> Result<(), String> {
    let mut batch = Vec::new();
    let mut next = Some((header, body));
    while let Some((header, body)) = next {
        match &header {
            FromParent::Block { .. } | FromParent::NotServed { .. } => Owed::answered(&mut owed.blocks)?,
            FromParent::Index => Owed::answered(&mut owed.indexes)?,
            FromParent::Waiting { .. } | FromParent::Refused { .. } | FromParent::Opened => {}
        }
        match header {
            FromParent::Block { block } => match verified(target.index.get(), block, body) {
                Ok(stored) => batch.push((block, stored)),
                Err(()) => reporter.tell(UpstreamEvent::Corrupt(block)),
            },
            FromParent::Index => {
                let index = named_index(&target.image, &body).map_err(|error| error.to_string())?;
                reporter.tell(UpstreamEvent::Index { index: Arc::new(index), encoded: body });
            }
            FromParent::NotServed { block, reason } => {
                reporter.tell(UpstreamEvent::NotServed { block, reason });
            }
            FromParent::Waiting { silent_ms: _ } => {
                if owed.waits(Instant::now()) {
                    reporter.tell(UpstreamEvent::Waits);
                }
            }
            FromParent::Refused { reason } => return Err(reason.to_string()),
            FromParent::Opened => return Err("it opened the connection twice".into()),
        }
        if batch.len() >= BATCH_BLOCKS_MAX {
            break;
        }
        let ready = frames.ready().map_err(|error: ReadError| error.to_string())?;
        next = ready.map(|frame| (frame.header, frame.body));
    }
    if !batch.is_empty() {
        reporter.tell(UpstreamEvent::Blocks(batch));
    }
    Ok(())
}

pub(super) fn verified(index: Option<&Arc<Index>>, block: BlockId, stored: Bytes) -> Result<Bytes, ()> {
    index.filter(|index| index.verify(block, &stored)).map(|_| stored).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{
        identity::{Authority, Identity, new_request},
        tls::Acceptor,
    };
    use actix::prelude::*;
    use faasnet_actors::{
        agent::world::IndexCell,
        id::{Digest, TreeId},
        image::{BLOCK_BYTES, BlockEntry, BlockImage, Codec, ImageLocation, RuntimeConfig},
        wire::{
            control::Capability,
            peer::{NotServed, Reach, Urgency},
        },
        world::{OriginError, Part},
    };
    use futures::future::BoxFuture;
    use sha2::{Digest as _, Sha256};
    use std::time::SystemTime;
    use tokio::net::TcpListener;

    const LIMITS: UpstreamLimits = UpstreamLimits {
        frame: FrameLimits { header_bytes_max: 4096, body_bytes_max: 1 << 20 },
        handshake: Duration::from_secs(10),
        commands_max: 16,
        origin_requests_max: 4,
    };

    /// Passes on what the connection tells the transfer.
    struct Listener(mpsc::UnboundedSender<UpstreamEvent>);

    impl Actor for Listener {
        type Context = Context<Self>;
    }

    impl Handler<FromUpstream> for Listener {
        type Result = ();

        fn handle(&mut self, message: FromUpstream, _: &mut Context<Self>) {
            let _ = self.0.send(message.event);
        }
    }

    struct NoOrigin;

    impl Origin for NoOrigin {
        fn read(
            &self,
            _: &BlockImage,
            _: Part,
            _: std::ops::Range<u64>,
        ) -> BoxFuture<'static, Result<Bytes, OriginError>> {
            Box::pin(async { Err(OriginError::NotFound("nothing is here".into())) })
        }
    }

    fn stored(block: u8) -> Bytes {
        Bytes::from(vec![block; 100])
    }

    fn index() -> Index {
        let entry = |block: u8| BlockEntry {
            offset: u64::from(block) * 100,
            stored_bytes: 100,
            codec: Codec::Zstd,
            hash: *blake3::hash(&stored(block)).as_bytes(),
        };
        Index::new(3 * u64::from(BLOCK_BYTES), 1, (0..3).map(entry).collect()).expect("valid")
    }

    fn image(index: &Index) -> BlockImage {
        let encoded = index.encode();
        BlockImage {
            id: Digest::from_bytes([1; 32]),
            source: Digest::from_bytes([2; 32]),
            index_digest: Digest::from_bytes(Sha256::digest(&encoded).into()),
            index_bytes: encoded.len() as u64,
            blob_digest: Digest::from_bytes([3; 32]),
            blob_bytes: index.blob_bytes(),
            plain_bytes: index.plain_bytes(),
            location: ImageLocation::Folder { path: "/nowhere".into() },
            runtime: RuntimeConfig::default(),
        }
    }

    fn identity(authority: &Authority, vm: &VmId) -> Identity {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (key, request) = new_request().expect("a request");
        let life = Duration::from_secs(3600);
        let (certificate, _) =
            authority.issue_vm(vm, &request, SystemTime::now(), life).expect("a certificate");
        Identity::store(folder.path(), &key, &certificate, authority.certificate_pem()).expect("stored")
    }

    /// Opens a connection to a parent that answers as `parent` says; returns what the transfer heard.
    async fn hear(
        known: Option<Index>,
        command: ToParent,
        parent: impl Fn(ToParent) -> Vec<(FromParent, Bytes)> + Send + 'static,
        events_wanted: usize,
    ) -> Vec<UpstreamEvent> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let authority = Authority::open(folder.path(), SystemTime::now()).expect("a CA");
        let (child, vm): (VmId, VmId) = ("child".parse().expect("valid"), "parent".parse().expect("valid"));
        let acceptor =
            Acceptor::agent(&identity(&authority, &vm), Duration::from_secs(10)).expect("an acceptor");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let stream =
                acceptor.accept(listener.accept().await.expect("came").0).await.expect("accepted").stream;
            let (reading, mut writing) = tokio::io::split(stream);
            let mut frames = FrameReader::<_, ToParent>::new(reading, LIMITS.frame);
            while let Ok(Some(frame)) = frames.next().await {
                for (header, body) in parent(frame.header) {
                    framed::write(&mut writing, &header, &body).await.expect("the child reads");
                }
            }
        });
        let dialer = Dialer::new(&identity(&authority, &child), Duration::from_secs(10)).expect("a dialer");
        let (_dialers, dialer) = watch::channel(dialer);
        let dialling = Dialling { dialer, origin: Arc::new(NoOrigin), limits: LIMITS };
        let cell = IndexCell::default();
        if let Some(known) = known {
            cell.set(Arc::new(known)).expect("new");
        }
        let image = image(&index());
        let target = UpstreamTarget {
            upstream: Upstream::Vm { vm, address },
            link: 1,
            tree: TreeId { tenant: "acme".parse().expect("valid"), image: image.id },
            image: Arc::new(image),
            capability: Capability { claims: Vec::new(), signature: Vec::new() },
            index: cell,
        };
        let (heard, mut events) = mpsc::unbounded_channel();
        let link = dialling.open(target, Listener(heard).start().recipient());
        assert!(link.send(command));
        let mut seen = Vec::new();
        while seen.len() < events_wanted {
            let event = events.recv().await.expect("the connection tells");
            // Frames that come slowly are a word that the parent lives; on a busy machine any does.
            if !matches!(event, UpstreamEvent::Waits) {
                seen.push(event);
            }
        }
        seen
    }

    fn want(block: u32) -> ToParent {
        ToParent::Want {
            request: None,
            blocks: vec![BlockId(block)],
            urgency: Urgency::Demand,
            path: Vec::new(),
            reach: Reach::Held,
        }
    }

    fn answer(command: &ToParent, block: u32, body: Bytes) -> Vec<(FromParent, Bytes)> {
        match command {
            ToParent::Open { .. } => vec![(FromParent::Opened, Bytes::new())],
            _ => vec![(FromParent::Block { block: BlockId(block) }, body)],
        }
    }

    #[actix::test]
    async fn a_block_comes_verified() {
        let events = hear(Some(index()), want(1), |command| answer(&command, 1, stored(1)), 2).await;
        let [UpstreamEvent::Opened, UpstreamEvent::Blocks(blocks)] = &events[..] else {
            panic!("something else came");
        };
        assert_eq!(blocks[..], [(BlockId(1), stored(1))]);
    }

    #[actix::test]
    async fn a_block_with_other_bytes_never_reaches_the_transfer() {
        let events = hear(Some(index()), want(1), |command| answer(&command, 1, stored(2)), 2).await;
        assert!(matches!(events[1], UpstreamEvent::Corrupt(BlockId(1))));
    }

    #[actix::test]
    async fn a_parent_with_another_index_is_left() {
        let parent = |command: ToParent| match command {
            ToParent::Open { .. } => vec![(FromParent::Opened, Bytes::new())],
            _ => {
                let entries = vec![BlockEntry {
                    offset: 0,
                    stored_bytes: 7,
                    codec: Codec::Zstd,
                    hash: *blake3::hash(b"a trick").as_bytes(),
                }];
                let evil = Index::new(u64::from(BLOCK_BYTES), 1, entries).expect("valid in itself");
                vec![(FromParent::Index, evil.encode().into())]
            }
        };
        let events = hear(None, ToParent::WantIndex { reach: Reach::Held }, parent, 2).await;
        let UpstreamEvent::Closed { reason } = &events[1] else {
            panic!("the parent was believed");
        };
        assert!(reason.contains("digest"), "{reason}");
    }

    #[test]
    fn a_parent_that_says_over_and_over_that_it_waits_is_heard_now_and_then() {
        let (mut owed, now) = (Owed::default(), Instant::now());
        let heard = (0..1000).filter(|milli| owed.waits(now + Duration::from_millis(*milli))).count();
        assert_eq!(heard, 20);
    }

    #[actix::test]
    async fn a_parent_that_answers_what_it_was_not_asked_is_left() {
        let refuse =
            |block| (FromParent::NotServed { block: BlockId(block), reason: NotServed::Busy }, Bytes::new());
        let parent = move |command: ToParent| match command {
            ToParent::Open { .. } => vec![(FromParent::Opened, Bytes::new())],
            _ => vec![refuse(1), refuse(1)],
        };
        let events = hear(Some(index()), want(1), parent, 3).await;
        assert!(matches!(&events[2], UpstreamEvent::Closed { reason } if reason.contains("not asked")));
    }
}
