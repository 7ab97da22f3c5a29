//! A parent that lies: a VM with a good certificate that serves blocks as no agent would. Whatever it does, its
//! child takes no wrong byte and gets the right ones from the next upstream.

use super::*;
use faasnet::net::tls::Acceptor;
use faasnet_actors::{
    image::{BLOCK_BYTES, BlockEntry, BlockImage, Codec, Index},
    wire::frame::encode_head,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// The connection is never answered.
    Silent,
    /// It opens, and then nothing comes.
    Stalls,
    /// It says over and over that it waits itself.
    WaitsForEver,
    /// What comes is no frame.
    Garbage,
    /// A frame longer than any may be.
    Endless,
    /// The bytes of another block under the number that was asked for.
    Swapped,
    /// Blocks without their last byte.
    Truncated,
    /// Blocks with a megabyte behind them.
    Oversized,
    /// One bit of each block is wrong.
    Corrupt,
    /// Each block is sent twice, the second time unasked.
    Replayed,
    /// Good blocks, but others than were asked for, and such as there are none.
    Unasked,
    /// Blocks of an image that was built before, under the numbers that were asked for.
    Old,
    /// The connection ends in the middle of a frame.
    HalfAFrame,
    /// A well-formed index of something else.
    OtherIndex,
    /// Half of the index.
    HalfAnIndex,
    /// Nothing is served, each time for another reason.
    Refuses,
}

const LIES: [Lie; 16] = [
    Lie::Silent,
    Lie::Stalls,
    Lie::WaitsForEver,
    Lie::Garbage,
    Lie::Endless,
    Lie::Swapped,
    Lie::Truncated,
    Lie::Oversized,
    Lie::Corrupt,
    Lie::Replayed,
    Lie::Unasked,
    Lie::Old,
    Lie::HalfAFrame,
    Lie::OtherIndex,
    Lie::HalfAnIndex,
    Lie::Refuses,
];

/// What an honest parent would have.
struct Stored {
    encoded: Bytes,
    index: Index,
    blob: Vec<u8>,
    /// Good blocks of an image built before, each of which has the number of one of these.
    old: Option<Box<Stored>>,
}

impl Stored {
    fn of(world: &World, image: &BlockImage, old: Option<&BlockImage>) -> Self {
        let read = |digest: faasnet_actors::id::Digest| {
            std::fs::read(world.folder.path().join("origin/blobs/sha256").join(digest.hex())).unwrap()
        };
        let encoded = read(image.index_digest);
        let index = Index::decode(&encoded).unwrap();
        let old = old.map(|old| Box::new(Self::of(world, old, None)));
        Self { encoded: encoded.into(), index, blob: read(image.blob_digest), old }
    }

    fn block(&self, block: BlockId) -> &[u8] {
        let entry = self.index.entry(block).unwrap();
        &self.blob[entry.offset as usize..][..entry.stored_bytes as usize]
    }
}

/// A VM that tells this lie; where its children find it.
async fn liar(world: &World, stored: Arc<Stored>, lie: Lie) -> Upstream {
    let (_, identity) = world.stranger("vm-9");
    let acceptor = Acceptor::agent(&identity, PATIENCE).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, stored) = (acceptor.clone(), Arc::clone(&stored));
            tokio::spawn(async move {
                if lie == Lie::Silent {
                    return tokio::time::sleep(PATIENCE).await;
                }
                let Ok(accepted) = acceptor.accept(stream).await else { return };
                let (reading, mut writing) = tokio::io::split(accepted.stream);
                let mut frames = FrameReader::<_, ToParent>::new(reading, FRAME);
                while let Ok(Some(frame)) = frames.next().await {
                    // Its child may have left it, as it should.
                    if answer(&mut writing, frame.header, &stored, lie).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Upstream::Vm { vm: "vm-9".parse().unwrap(), address }
}

async fn answer(
    out: &mut (impl AsyncWrite + Unpin),
    message: ToParent,
    stored: &Stored,
    lie: Lie,
) -> std::io::Result<()> {
    match message {
        ToParent::Open { .. } => framed::write(out, &FromParent::Opened, &[]).await,
        ToParent::WantIndex { .. } => match lie {
            Lie::OtherIndex => {
                let hash = *blake3::hash(b"a trick").as_bytes();
                let entry = BlockEntry { offset: 0, stored_bytes: 7, codec: Codec::Zstd, hash };
                let other = Index::new(u64::from(BLOCK_BYTES), 1, vec![entry]).unwrap();
                framed::write(out, &FromParent::Index, &other.encode()).await
            }
            Lie::HalfAnIndex => {
                let half = &stored.encoded[..stored.encoded.len() / 2];
                framed::write(out, &FromParent::Index, half).await
            }
            _ => framed::write(out, &FromParent::Index, &stored.encoded).await,
        },
        ToParent::Want { blocks, .. } => {
            for block in blocks {
                lie_about(out, block, stored, lie).await?;
            }
            Ok(())
        }
        ToParent::Corrupt { .. } | ToParent::Hurry { .. } => Ok(()),
    }
}

async fn lie_about(
    out: &mut (impl AsyncWrite + Unpin),
    block: BlockId,
    stored: &Stored,
    lie: Lie,
) -> std::io::Result<()> {
    use faasnet_actors::wire::peer::NotServed;
    let header = FromParent::Block { block };
    let mut bytes = stored.block(block).to_vec();
    match lie {
        Lie::Silent | Lie::Stalls | Lie::OtherIndex | Lie::HalfAnIndex => return Ok(()),
        Lie::WaitsForEver => loop {
            framed::write(out, &FromParent::Waiting { silent_ms: 1 }, &[]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        },
        Lie::Garbage => {
            out.write_all(&noise(u64::from(block.0), 100_000)).await?;
            return out.flush().await;
        }
        Lie::Endless => {
            let mut head = encode_head(&header, 0).unwrap().to_vec();
            head[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            out.write_all(&head).await?;
            return out.flush().await;
        }
        Lie::Swapped => {
            bytes = stored.block(BlockId((block.0 + 1) % stored.index.block_count())).to_vec();
        }
        Lie::Truncated => drop(bytes.pop()),
        Lie::Oversized => bytes.resize(bytes.len() + (1 << 20), 0),
        Lie::Corrupt => bytes[block.0 as usize % 100] ^= 1,
        Lie::Replayed => framed::write(out, &header, &bytes).await?,
        Lie::Unasked => {
            let count = stored.index.block_count();
            let other = BlockId((block.0 + count / 2) % count);
            let numbers =
                if block.0.is_multiple_of(2) { [other, BlockId(count)] } else { [BlockId(u32::MAX), other] };
            for block in numbers {
                let bytes = stored.index.entry(block).map_or(&bytes[..], |_| stored.block(block));
                framed::write(out, &FromParent::Block { block }, bytes).await?;
            }
            return Ok(());
        }
        Lie::Old => {
            let old = stored.old.as_ref().expect("made with one");
            bytes = old.block(BlockId(block.0 % old.index.block_count())).to_vec();
        }
        Lie::HalfAFrame => {
            out.write_all(&encode_head(&header, bytes.len()).unwrap()).await?;
            out.write_all(&bytes[..bytes.len() / 2]).await?;
            out.flush().await?;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        Lie::Refuses => {
            let reasons = [NotServed::Loop, NotServed::NotHeld, NotServed::NoSource, NotServed::Busy];
            let reason = reasons[block.0 as usize % reasons.len()];
            return framed::write(out, &FromParent::NotServed { block, reason }, &[]).await;
        }
    }
    framed::write(out, &header, &bytes).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_parent_says_the_child_reads_the_right_bytes_from_elsewhere() {
    let world = World::new().await;
    let big = noise(30, 5 << 20);
    let image = world.image("web", &website(&big), SERVE);
    let old = world.image("old", &website(&noise(31, 5 << 20)), SERVE);
    let stored = Arc::new(Stored::of(&world, &image, Some(&old)));
    let limits = [("FAASNET__TRANSFER__STALL_MS", "200"), ("FAASNET__HOLDER__READ_DEADLINE_MS", "8000")];
    for (number, lie) in (1..).zip(LIES) {
        let vm = format!("vm-{}", 10 + number);
        let parent = liar(&world, Arc::clone(&stored), lie).await;
        let agent = Agent::start(&world, &vm, &limits);
        let mut session = world.session(&vm).await;
        let start = format!("s{number}");
        session
            .orders
            .send(world.order(&start, &image, &vm, &session, vec![parent, Upstream::Origin]))
            .unwrap();
        session.ready(&start).await;
        assert_eq!(world.get(&session, &vm, &start, "/big").await, Ok(big.clone().into()), "{lie:?}");
        let log = agent.log();
        if !matches!(lie, Lie::Silent | Lie::Refuses | Lie::WaitsForEver | Lie::Stalls) {
            assert!(log.contains("vm-9"), "{lie:?}: nothing is said of the parent: {log}");
        }
        assert!(!log.contains("panicked"), "{lie:?}: {log}");
    }
}
