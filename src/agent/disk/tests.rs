use super::*;
use crate::image::blocks::{BlockWriter, decode_block};
use faasnet_actors::{
    id::Digest,
    image::{BLOCK_BYTES, ImageLocation, RuntimeConfig},
};
use sha2::{Digest as _, Sha256};
use std::io::Write;
use tempfile::TempDir;

/// Blocks that shrink, one that does not, one of zeros, and a short one at the end.
fn content() -> Vec<u8> {
    let mut content: Vec<u8> = (0..5 * BLOCK_BYTES + 1000).map(|place| (place / 777) as u8).collect();
    let block = BLOCK_BYTES as usize;
    blake3::Hasher::new().finalize_xof().fill(&mut content[block..2 * block]);
    content[2 * block..3 * block].fill(0);
    content
}

const NOISE: BlockId = BlockId(1);
const ZEROS: BlockId = BlockId(2);

struct World {
    data: TempDir,
    content: Vec<u8>,
    stored: Vec<Bytes>,
    index: Arc<Index>,
    image: BlockImage,
}

impl World {
    /// A cache in which a former agent has kept every block.
    async fn new() -> Self {
        let (data, content) = (tempfile::tempdir().expect("a folder"), content());
        let path = data.path().join("blob");
        let blob = File::create(&path).expect("created");
        let mut writer = BlockWriter::new(blob, 1, 3).expect("threads");
        writer.write_all(&content).expect("written");
        let entries = writer.finish().expect("packed").entries;
        let mut bytes = Bytes::from(fs::read(path).expect("read"));
        let stored = entries.iter().map(|entry| bytes.split_to(entry.stored_bytes as usize)).collect();
        let index = Arc::new(Index::new(content.len() as u64, 1, entries).expect("valid"));
        let digest = Digest::from_bytes(Sha256::digest(index.encode()).into());
        let image = BlockImage {
            id: digest,
            source: digest,
            index_digest: digest,
            index_bytes: index.encode().len() as u64,
            blob_digest: digest,
            blob_bytes: index.blob_bytes(),
            plain_bytes: index.plain_bytes(),
            location: ImageLocation::Folder { path: "/".into() },
            runtime: RuntimeConfig::default(),
        };
        let world = Self { data, content, stored, index, image };
        world.fill().await;
        world
    }

    async fn fill(&self) {
        let cache = self.cache();
        cache.open(&self.tree(), &self.image).await.expect("opened");
        cache.save_index(&self.tree(), self.index.encode().into()).await.expect("kept");
        for (block, stored) in (0..).map(BlockId).zip(&self.stored) {
            let keeping = cache.keep(&self.tree(), Arc::clone(&self.index), block, stored.clone());
            keeping.await.expect("kept");
        }
    }

    fn cache(&self) -> Cache {
        Cache::open(self.data.path(), 2).expect("opened")
    }

    fn tree(&self) -> TreeId {
        TreeId { tenant: "acme".parse().expect("a name"), image: self.image.id }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache().folder(&self.tree()).join(name)
    }

    /// What the next agent finds and can use. What it can use is checked against the truth.
    async fn usable(&self) -> BTreeSet<BlockId> {
        let cache = self.cache();
        let opened = cache.open(&self.tree(), &self.image).await.expect("opened");
        let mut usable = BTreeSet::new();
        for block in opened.unverified {
            let index = Arc::clone(&self.index);
            if cache.check(&self.tree(), Arc::clone(&index), block).await.expect("readable") {
                let at = index.plain_offset(block) as usize;
                let mut plain = vec![1; index.plain_len(block) as usize];
                File::open(&opened.plain_path)
                    .expect("there")
                    .read_exact_at(&mut plain, at as u64)
                    .expect("read");
                assert!(plain == self.content[at..at + plain.len()], "a wrong byte in {block:?}");
                let loaded = cache.load(&self.tree(), index, block).await;
                assert_eq!(loaded, Ok(self.stored[block.0 as usize].clone()));
                usable.insert(block);
            }
        }
        usable
    }

    fn all(&self) -> BTreeSet<BlockId> {
        (0..self.index.block_count()).map(BlockId).collect()
    }

    fn change(&self, name: &str, at: u64) {
        let file = File::options().read(true).write(true).open(self.path(name)).expect("there");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    }
}

#[tokio::test]
async fn the_next_agent_finds_every_block_and_no_form_is_kept_twice() {
    let world = World::new().await;
    assert_eq!(world.usable().await, world.all());
    let kept = |name: &str| fs::metadata(world.path(name)).expect("there").blocks() * 512;
    let plain = kept("plain");
    assert!(plain <= 5 * u64::from(BLOCK_BYTES), "zeros take room: {plain}");
    let noise = u64::from(world.index.entry(NOISE).expect("there").stored_bytes);
    assert_eq!(noise, u64::from(BLOCK_BYTES), "it does not shrink");
    assert!(kept("stored") < noise, "what does not shrink is kept twice: {}", kept("stored"));
}

#[tokio::test]
async fn a_changed_byte_anywhere_costs_its_block_and_nothing_else() {
    let world = World::new().await;
    for block in world.all() {
        let entry = world.index.entry(block).expect("there");
        let plain = (world.index.plain_offset(block), world.index.plain_len(block));
        let stored = (entry.offset, entry.stored_bytes);
        for (name, (from, length)) in [("plain", plain), ("stored", stored)] {
            if name == "stored" && entry.codec == Codec::Plain {
                continue;
            }
            for at in [from, from + u64::from(length) / 2, from + u64::from(length) - 1] {
                world.change(name, at);
                let mut rest = world.all();
                rest.remove(&block);
                assert_eq!(world.usable().await, rest, "{block:?}: byte {at} of {name}");
                let next = world.cache();
                let opened = next.open(&world.tree(), &world.image).await.expect("opened");
                assert_eq!(opened.unverified, rest, "what is damaged is forgotten");
                world.fill().await;
            }
        }
    }
}

#[tokio::test]
async fn files_that_a_crash_has_cut_short_give_what_is_whole_in_them() {
    let world = World::new().await;
    for name in ["plain", "stored", "present", "index"] {
        let whole = fs::metadata(world.path(name)).expect("there").len();
        for share in 0..8 {
            let file = File::options().write(true).open(world.path(name)).expect("there");
            file.set_len(whole * share / 8).expect("cut");
            let usable = world.usable().await;
            assert!(usable.len() < world.all().len(), "{name} has {share}/8 of its length");
            assert!(name != "plain" || usable.len() as u64 >= (share * 6 / 8).saturating_sub(1));
            world.fill().await;
            assert_eq!(world.usable().await, world.all());
        }
    }
}

#[tokio::test]
async fn zeros_replace_what_was_there() {
    let world = World::new().await;
    world.change("plain", world.index.plain_offset(ZEROS) + 70_000);
    world.fill().await;
    assert_eq!(world.usable().await, world.all());
}

#[tokio::test]
async fn what_is_not_a_block_is_not_kept() {
    let world = World::new().await;
    let (cache, index) = (world.cache(), Arc::clone(&world.index));
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 3).expect("compressed");
    let kept = cache.keep(&world.tree(), index, BlockId(0), bomb.into()).await;
    assert_eq!(kept, Err(DiskError::Corrupt(BlockId(0))));
    assert_eq!(world.usable().await, world.all(), "the good one is still there");
}

#[test]
fn files_of_few_images_are_open_at_once() {
    let data = tempfile::tempdir().expect("a folder");
    let open = OpenImages::default();
    let folder = |number| data.path().join(format!("{number}"));
    for number in 0..OPEN_IMAGES_MAX + 10 {
        fs::create_dir(folder(number)).expect("created");
        open.again(&folder(number)).expect("made");
        open.get(&folder(0)).expect("opened");
    }
    let images = &open.lock().images;
    assert_eq!(images.len(), OPEN_IMAGES_MAX);
    assert!(images.contains_key(&folder(0)), "it was used lately");
}

#[test]
fn a_decoder_that_has_seen_a_long_block_accepts_no_more_for_a_short_one() {
    let world: Vec<u8> = vec![7; BLOCK_BYTES as usize];
    let stored = zstd::bulk::compress(&world, 3).expect("compressed");
    let entry = faasnet_actors::image::BlockEntry {
        offset: 0,
        stored_bytes: stored.len() as u32,
        codec: Codec::Zstd,
        hash: *blake3::hash(&stored).as_bytes(),
    };
    let mut decoder = BlockDecoder::default();
    assert_eq!(decoder.decode(&entry, BLOCK_BYTES, &stored), Ok(&world[..]));
    assert!(decoder.decode(&entry, 1000, &stored).is_err());
    assert_eq!(decode_block(&entry, BLOCK_BYTES, &stored), Ok(world));
}

/// All that can be used, and nothing else, before and after everything is written again.
async fn usable_then_mended(world: &World, expected: &BTreeSet<BlockId>) {
    assert_eq!(world.usable().await, *expected);
    world.fill().await;
    assert_eq!(world.usable().await, world.all());
}

#[tokio::test]
async fn blocks_that_have_changed_places_are_not_used() {
    let world = World::new().await;
    let (one, other) = (BlockId(0), BlockId(3));
    let rest: BTreeSet<BlockId> =
        world.all().into_iter().filter(|block| ![one, other].contains(block)).collect();
    for name in ["plain", "stored"] {
        let file = File::options().read(true).write(true).open(world.path(name)).expect("there");
        let place = |block: BlockId| {
            let entry = world.index.entry(block).expect("there");
            if name == "stored" { entry.offset } else { world.index.plain_offset(block) }
        };
        // As much as both have.
        let stored = [one, other].map(|block| world.index.entry(block).expect("there").stored_bytes);
        let length = if name == "stored" { stored[0].min(stored[1]) } else { BLOCK_BYTES };
        let [mut first, mut second] = [vec![0; length as usize], vec![0; length as usize]];
        file.read_exact_at(&mut first, place(one)).expect("read");
        file.read_exact_at(&mut second, place(other)).expect("read");
        assert!(first != second, "{name}");
        file.write_all_at(&first, place(other)).expect("written");
        file.write_all_at(&second, place(one)).expect("written");
        usable_then_mended(&world, &rest).await;
    }
}

#[tokio::test]
async fn files_of_another_image_give_nothing() {
    let world = World::new().await;
    let other: Vec<u8> = world.content.iter().rev().copied().collect();
    for name in ["plain", "stored"] {
        let length = fs::metadata(world.path(name)).expect("there").len() as usize;
        fs::write(world.path(name), &other[..length.min(other.len())]).expect("written");
        // Zeros are zeros in any image; nothing else is alike.
        let is_alike = |block: &BlockId| {
            let at = world.index.plain_offset(*block) as usize;
            let end = at + world.index.plain_len(*block) as usize;
            name == "plain" && world.content[at..end] == other[at..end]
        };
        let alike = world.all().into_iter().filter(is_alike);
        let untouched: BTreeSet<BlockId> =
            if name == "stored" { BTreeSet::from([NOISE]) } else { alike.collect() };
        usable_then_mended(&world, &untouched).await;
    }
    // An index of something else is none, and without it no mark counts.
    let entry = world.index.entry(BlockId(0)).expect("there").clone();
    let elsewhere = Index::new(u64::from(BLOCK_BYTES), 1, vec![entry]).expect("valid");
    fs::write(world.path("index"), elsewhere.encode()).expect("written");
    usable_then_mended(&world, &BTreeSet::new()).await;
}

/// Puts something into the place of a file.
type Put<'a> = &'a dyn Fn(&Path);

#[tokio::test]
async fn what_is_no_file_gives_way_and_nothing_is_written_through_a_link() {
    let world = World::new().await;
    let victim = world.data.path().join("victim");
    let precious = b"precious".repeat(1000);
    let fifo = |path: &Path| {
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).expect("a pipe");
    };
    let replacements: [(&str, Put<'_>); 5] = [
        ("a link", &|path| std::os::unix::fs::symlink(&victim, path).expect("linked")),
        ("a dangling link", &|path| std::os::unix::fs::symlink("/nowhere/at/all", path).expect("linked")),
        ("a second name", &|path| fs::hard_link(&victim, path).expect("linked")),
        ("a folder", &|path| fs::create_dir_all(path.join("deep")).expect("made")),
        ("a pipe", &fifo),
    ];
    for name in ["plain", "stored", "present", "index"] {
        for (what, put) in replacements {
            fs::write(&victim, &precious).expect("written");
            for path in [world.path(name), world.path(name).with_extension("new")] {
                remove(&path).expect("removed");
                put(&path);
            }
            let usable = world.usable().await;
            // What did not shrink is in one file only, zeros are a hole in it.
            let most = if name == "stored" || name == "plain" { 1 } else { 0 };
            assert!(usable.len() <= most, "{name} is {what}: {usable:?}");
            world.fill().await;
            assert_eq!(world.usable().await, world.all(), "{name} is {what}");
            assert!(
                fs::read(&victim).expect("there") == precious,
                "{name} is {what}: the target was written"
            );
            remove(&world.path(name).with_extension("new")).expect("removed");
        }
    }
    // The whole folder.
    let (folder, moved) = (world.cache().folder(&world.tree()), world.data.path().join("moved"));
    fs::rename(&folder, &moved).expect("moved");
    std::os::unix::fs::symlink(&moved, &folder).expect("linked");
    assert_eq!(world.usable().await, BTreeSet::new());
    assert!(moved.join("plain").exists());
    world.fill().await;
    assert_eq!(world.usable().await, world.all());
}

#[tokio::test]
async fn a_file_that_goes_while_its_image_is_open_is_not_made_anew() {
    let world = World::new().await;
    let cache = world.cache();
    cache.open(&world.tree(), &world.image).await.expect("opened");
    fs::remove_file(world.path("plain")).expect("removed");
    // As when many other images were used meanwhile.
    cache.open.close(&cache.folder(&world.tree()));
    let keeping = cache.keep(&world.tree(), Arc::clone(&world.index), NOISE, world.stored[1].clone());
    assert!(matches!(keeping.await, Err(DiskError::Io(_))));
    assert!(!world.path("plain").exists());
}
