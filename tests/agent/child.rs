//! A child of the test's own making, which asks a real agent for blocks.

use crate::world::{PATIENCE, Session, World, in_an_hour, tree_of};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use faasnet::net::{
    Purpose,
    framed::{self, FrameReader},
    identity::Peer,
};
use faasnet_actors::{
    id::BlockId,
    image::{BlockImage, Index},
    wire::{
        PROTOCOL_VERSION,
        frame::FrameLimits,
        peer::{FromParent, Reach, ToParent, Urgency},
    },
};
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 64 << 20 };
const BELOW: Reach = Reach::Upward { stripes: 1, depth: 9 };

pub struct Asking {
    frames: FrameReader<ReadHalf<TlsStream<TcpStream>>, FromParent>,
    writing: WriteHalf<TlsStream<TcpStream>>,
    pub index: Index,
}

impl Asking {
    /// Connects to the agent of a session as a VM that no agent has.
    pub async fn open(
        world: &World,
        name: &str,
        image: &BlockImage,
        parent: &Session,
    ) -> anyhow::Result<Self> {
        let (dialer, identity) = world.stranger(name);
        let (tree, key_hash) = (tree_of(image), Peer::of(&identity.certificate)?.key_hash);
        let capability = world.capabilities.issue(&tree, &name.parse()?, &key_hash, in_an_hour());
        let stream = dialer.vm(&parent.vm, parent.hello.address, Purpose::Blocks).await?;
        // A kernel that takes in tens of megabytes would hide in which order they were sent.
        socket2::SockRef::from(stream.get_ref().0).set_recv_buffer_size(1 << 20)?;
        let (reading, mut writing) = tokio::io::split(stream);
        let mut frames = FrameReader::<_, FromParent>::new(reading, FRAME);
        framed::write(&mut writing, &ToParent::Open { version: PROTOCOL_VERSION, tree, capability }, &[])
            .await?;
        ensure!(frames.expect(PATIENCE).await?.header == FromParent::Opened, "the agent refused");
        framed::write(&mut writing, &ToParent::WantIndex { reach: BELOW }, &[]).await?;
        loop {
            let frame = frames.expect(PATIENCE).await?;
            if frame.header == FromParent::Index {
                return Ok(Self { frames, writing, index: Index::decode(&frame.body)? });
            }
        }
    }

    pub async fn ask(&mut self, blocks: Vec<BlockId>, urgency: Urgency) -> anyhow::Result<()> {
        let want = ToParent::Want { request: None, blocks, urgency, path: Vec::new(), reach: BELOW };
        Ok(framed::write(&mut self.writing, &want, &[]).await?)
    }

    pub async fn next_block(&mut self) -> anyhow::Result<(BlockId, Bytes)> {
        loop {
            let frame = self.frames.expect(PATIENCE).await?;
            match frame.header {
                FromParent::Block { block } => return Ok((block, frame.body)),
                FromParent::Waiting { .. } => {}
                other => bail!("the agent said {other:?}"),
            }
        }
    }

    /// Takes every block, so many at once; returns their bytes.
    pub async fn take_all(&mut self, window: usize) -> anyhow::Result<u64> {
        let mut left = (0..self.index.block_count()).map(BlockId);
        let (mut waiting, mut bytes) = (0, 0);
        loop {
            let blocks: Vec<BlockId> = left.by_ref().take(window - waiting).collect();
            waiting += blocks.len();
            if waiting == 0 {
                return Ok(bytes);
            }
            if !blocks.is_empty() {
                self.ask(blocks, Urgency::Prefetch).await?;
            }
            let (block, stored) = self.next_block().await.context("waiting for a block")?;
            ensure!(self.index.entry(block).is_some_and(|entry| entry.stored_bytes as usize == stored.len()));
            waiting -= 1;
            bytes += stored.len() as u64;
        }
    }
}
