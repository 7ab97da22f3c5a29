//! Indexes that lie although they are those that the manager named, with the digests that it named: nothing wrong is
//! ever read, the start or the read fails, and other images of the VM are not touched.

use super::*;
use faasnet::image::artifact::digest_of;
use faasnet_actors::image::{BLOCK_BYTES, BlockEntry, BlockImage, Codec, Index};

const HEADER: usize = 32;
const ENTRY: usize = 48;

/// What is published of an image, to be changed.
struct Published {
    image: BlockImage,
    index: Vec<u8>,
    blob: Vec<u8>,
}

impl Published {
    fn of(world: &World, image: &BlockImage) -> Self {
        let read = |digest: faasnet_actors::id::Digest| {
            std::fs::read(world.folder.path().join("origin/blobs/sha256").join(digest.hex())).unwrap()
        };
        Self { index: read(image.index_digest), blob: read(image.blob_digest), image: image.clone() }
    }

    /// Publishes what is there now as another image, with the digests and lengths of its parts.
    fn publish(mut self, world: &World, name: &str) -> BlockImage {
        let write = |bytes: &[u8]| {
            let digest = digest_of(bytes);
            let path = world.folder.path().join("origin/blobs/sha256").join(digest.hex());
            std::fs::write(path, bytes).unwrap();
            (digest, bytes.len() as u64)
        };
        (self.image.index_digest, self.image.index_bytes) = write(&self.index);
        (self.image.blob_digest, _) = write(&self.blob);
        self.image.id = digest_of(name.as_bytes());
        self.image
    }

    fn put(&mut self, place: usize, bytes: &[u8]) {
        self.index[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// Gives a block other stored bytes; all that the index says of the blob is true.
    fn put_block(&mut self, block: u32, stored: &[u8]) {
        let index = Index::decode(&self.index).unwrap();
        let (mut blob, mut entries) = (Vec::new(), Vec::new());
        for number in 0..index.block_count() {
            let mut entry = index.entry(BlockId(number)).unwrap().clone();
            let before = &self.blob[entry.offset as usize..][..entry.stored_bytes as usize];
            entry.offset = blob.len() as u64;
            if number == block {
                let hash = *blake3::hash(stored).as_bytes();
                let stored_bytes = stored.len() as u32;
                entry = BlockEntry { offset: entry.offset, stored_bytes, codec: Codec::Zstd, hash };
                blob.extend_from_slice(stored);
            } else {
                blob.extend_from_slice(before);
            }
            entries.push(entry);
        }
        let changed = Index::new(index.plain_bytes(), index.metadata_blocks(), entries).unwrap();
        self.index = changed.packed(index.hot_blocks()).unwrap().encode();
        self.image.blob_bytes = blob.len() as u64;
        self.blob = blob;
    }
}

/// What an index or the manager says that is not so, and what is said about it.
type Lie = (&'static str, fn(&mut Published), &'static str);

const LIES: [Lie; 13] = [
    ("hot blocks beyond the end", |all| all.put(28, &10_000_u32.to_le_bytes()), "the numbers of blocks"),
    ("fewer hot blocks than metadata", |all| all.put(28, &0_u32.to_le_bytes()), "the numbers of blocks"),
    (
        "all blocks are metadata, and more",
        |all| all.put(12, &u32::MAX.to_le_bytes()),
        "the numbers of blocks",
    ),
    ("a file system without end", |all| all.put(16, &u64::MAX.to_le_bytes()), "the numbers of blocks"),
    ("more blocks than there are", |all| all.put(24, &u32::MAX.to_le_bytes()), "cut short"),
    ("overlapping blocks", |all| all.put(HEADER + ENTRY, &0_u64.to_le_bytes()), "overlapping"),
    ("a block beyond the blob", |all| all.put(HEADER, &(u64::MAX - 1).to_le_bytes()), "out of bounds"),
    ("an empty block", |all| all.put(HEADER + 8, &0_u32.to_le_bytes()), "out of bounds"),
    ("a block of gigabytes", |all| all.put(HEADER + 8, &u32::MAX.to_le_bytes()), "out of bounds"),
    ("an unknown codec", |all| all.put(HEADER + 12, &7_u32.to_le_bytes()), "unknown codec"),
    ("half of it", |all| all.index.truncate(HEADER + ENTRY / 2), "cut short"),
    ("another file system", |all| all.image.plain_bytes += 4096, "which the image has not"),
    ("another blob", |all| all.image.blob_bytes -= 1, "which the image has not"),
];

/// Stored bytes with a right hash that do not hold a block.
fn no_blocks() -> [(&'static str, Vec<u8>); 3] {
    let bomb = vec![0; 256 * BLOCK_BYTES as usize];
    let compressed = |plain: &[u8]| zstd::bulk::compress(plain, 19).unwrap();
    [("short", compressed(&bomb[..100])), ("bomb", compressed(&bomb)), ("noise", noise(50, 1000))]
}

async fn still_serves(world: &World, session: &mut Session, image: &BlockImage, start: &str, big: &[u8]) {
    session.orders.send(world.order(start, image, "vm-1", session, vec![Upstream::Origin])).unwrap();
    session.ready(start).await;
    let read = world.get(session, "vm-1", start, "/big").await.unwrap();
    assert!(read == big, "{start} reads wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_ends_the_start_with_what_is_wrong() {
    let world = World::new().await;
    let big = noise(51, 3 << 20);
    let image = world.image("web", &website(&big), SERVE);
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    for (number, (lie, tell, _)) in LIES.iter().enumerate() {
        let mut published = Published::of(&world, &image);
        tell(&mut published);
        let lying = published.publish(&world, lie);
        let order = world.order(&format!("lie-{number}"), &lying, "vm-1", &session, vec![Upstream::Origin]);
        let ToAgent::Start(mut order) = order else { unreachable!("an order to start") };
        order.ready_deadline_ms = 10_000; // for all of them together
        session.orders.send(ToAgent::Start(order)).unwrap();
    }
    still_serves(&world, &mut session, &image, "meanwhile", &big).await;
    let mut reasons = std::collections::BTreeMap::new();
    while reasons.len() < LIES.len() {
        let ended = session.report(|report| matches!(report, ToManager::Ended { .. })).await;
        let ToManager::Ended { start, reason, .. } = ended else { unreachable!("just matched") };
        reasons.insert(start.to_string(), reason);
    }
    for (number, (lie, _, said)) in LIES.iter().enumerate() {
        let reason = &reasons[&format!("lie-{number}")];
        let EndReason::ImageUnavailable(why) = reason else { panic!("{lie}: {reason:?}") };
        assert!(why.contains(said) && why.contains("deploy another build"), "{lie}: {why}");
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_none_although_their_hash_is_right_are_never_read() {
    let world = World::new().await;
    let big = noise(52, 3 << 20);
    let image = world.image("web", &website(&big), SERVE);
    // Of a read that fails nothing is in the page cache, and it may be asked for again.
    let agent = Agent::start(&world, "vm-1", &[]);
    let mut session = world.session("vm-1").await;
    let blocks = image.plain_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32;
    for (case, stored) in no_blocks() {
        // Metadata: nothing can be mounted.
        let start = format!("meta-{case}");
        let mut published = Published::of(&world, &image);
        published.put_block(0, &stored);
        let lying = published.publish(&world, &start);
        session.orders.send(world.order(&start, &lying, "vm-1", &session, vec![Upstream::Origin])).unwrap();
        let reason = session.ended(&start).await;
        let EndReason::ImageUnavailable(why) = &reason else { panic!("{case}: {reason:?}") };
        assert!(why.contains("does not have its hash or its plain length"), "{case}: {why}");

        // In the middle of a file, which no start reads.
        let start = format!("file-{case}");
        let mut published = Published::of(&world, &image);
        published.put_block(blocks - 3, &stored);
        let lying = published.publish(&world, &start);
        session.orders.send(world.order(&start, &lying, "vm-1", &session, vec![Upstream::Origin])).unwrap();
        session.ready(&start).await;
        let cut = world.get(&session, "vm-1", &start, "/big").await;
        assert!(cut.is_err(), "{case}: a file of which a block is none was read");
        session.orders.send(ToAgent::Stop { start: start.parse().unwrap() }).unwrap();
        session.ended(&start).await;
    }
    still_serves(&world, &mut session, &image, "after", &big).await;
    assert!(agent.log().contains("a block was not kept"), "{}", agent.log());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    let resident = agent.resident_bytes().1;
    assert!(resident < 128 << 20, "a bomb was unpacked: {} MiB", resident >> 20);
}
