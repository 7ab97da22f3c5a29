//! What the targets in `fuzz/` run: everything that reads bytes of others, as hostile as they come.
//!
//! A target panics when something is wrong: a parser that panics, takes memory without bounds, or makes
//! something of bytes that does not keep its own promises. They are here, and not in `fuzz/`, so that they are
//! compiled and run on their seeds and on whatever was found with every other test.

use crate::{
    image::{
        blocks::decode_block,
        erofs::{Layout, Writer, read::FileMap},
        manifest::{ImageConfig, Index as ManifestIndex, Manifest},
        merge::Merger,
        packing::Plan,
        runtime::{AccountFiles, runtime_config},
        tar::{EntryKind, Reader},
        tree::{Kind, Tree},
        zip::{Package, ZipError, ZipLimits},
    },
    registry::Reference,
};
use bytes::BytesMut;
use faasnet_actors::{
    image::{BLOCK_BYTES, BLOCKS_MAX, BlockEntry, Codec, Index},
    profile::Profile,
    wire::{
        control::{CapabilityClaims, JoinAnswer, JoinRequest, ToAgent, ToManager},
        frame::{FrameLimits, decode, encode_head},
        handover::{FromPredecessor, ToPredecessor},
        holder::{FromHolder, ToHolder},
        peer::{FromParent, ToParent},
        request::{RequestAnswer, RequestHead},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, iter};

/// A target by its name, as `fuzz/fuzz_targets` and the folders of inputs have it.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 8] = [
    ("frames", frames),
    ("index", index),
    ("block", block),
    ("profile", profile),
    ("manifest", manifest),
    ("layer", layer),
    ("zip", zip),
    ("erofs", erofs),
];

/// Entries of a layer that are looked at: more take time and find nothing new.
const ENTRIES_MAX: usize = 2000;
/// A sparse file may say that it is longer than any disk; the converter looks at its size first.
const COPIED_BYTES_MAX: u64 = 1 << 20;
/// `PATH_MAX` of Linux, less the final NUL.
const PATH_BYTES_MAX: usize = 4095;

/// The first byte says whose frames they are.
pub fn frames(data: &[u8]) {
    let Some((speaker, bytes)) = data.split_first() else { return };
    match speaker % 12 {
        0 => frames_of::<ToParent>(bytes),
        1 => frames_of::<FromParent>(bytes),
        2 => frames_of::<ToManager>(bytes),
        3 => frames_of::<ToAgent>(bytes),
        4 => frames_of::<ToHolder>(bytes),
        5 => frames_of::<FromHolder>(bytes),
        6 => frames_of::<JoinRequest>(bytes),
        7 => frames_of::<JoinAnswer>(bytes),
        8 => frames_of::<RequestHead>(bytes),
        9 => frames_of::<RequestAnswer>(bytes),
        10 => frames_of::<(ToPredecessor, FromPredecessor)>(bytes),
        _ => frames_of::<CapabilityClaims>(bytes),
    }
}

fn frames_of<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let limits = FrameLimits { header_bytes_max: 1 << 16, body_bytes_max: 1 << 16 };
    let mut buffer = BytesMut::from(bytes);
    loop {
        let before = buffer.len();
        match decode::<T>(&mut buffer, limits) {
            Err(_) => return,
            Ok(Err(needed)) => {
                assert!(needed > buffer.len(), "what is there is enough");
                assert!(needed <= 8 + (2 << 16), "more is waited for than the limits allow");
                return;
            }
            Ok(Ok(frame)) => {
                assert!(buffer.len() < before, "a frame takes bytes");
                // What was understood is said so that it is understood again.
                let said = encode_head(&frame.header, 0).expect("it was decoded");
                let limits = FrameLimits { header_bytes_max: u32::MAX, body_bytes_max: 0 };
                let again = decode::<T>(&mut BytesMut::from(&said[..]), limits);
                let again = again.expect("it was just encoded").expect("all of it is there").header;
                assert_eq!(encode_head(&again, 0).expect("it was decoded"), said);
            }
        }
    }
}

pub fn index(data: &[u8]) {
    let Ok(index) = Index::decode(data) else { return };
    assert_eq!(index.encode(), data);
    let (mut plain, mut end) = (0, 0);
    for block in (0..index.block_count()).map(faasnet_actors::id::BlockId) {
        let entry = index.entry(block).expect("counted");
        assert!(entry.offset >= end, "blocks overlap");
        end = entry.offset + u64::from(entry.stored_bytes);
        assert!((1..=BLOCK_BYTES).contains(&index.plain_len(block)));
        assert_eq!(index.plain_offset(block), plain);
        plain += u64::from(index.plain_len(block));
    }
    assert!(index.block_count() <= BLOCKS_MAX);
    assert!(end <= index.blob_bytes(), "blocks lie outside the blob");
    assert_eq!(plain, index.plain_bytes());
    assert!(index.metadata_blocks() <= index.hot_blocks() && index.hot_blocks() <= index.block_count());
}

/// The first two bytes say the codec and the length that the index promises, the rest is what is stored.
pub fn block(data: &[u8]) {
    let Some(([codec, length], stored)) = data.split_first_chunk() else { return };
    let codec = if codec % 2 == 0 { Codec::Plain } else { Codec::Zstd };
    let plain_len = (u32::from(*length) << 11).clamp(1, BLOCK_BYTES);
    let entry = BlockEntry { offset: 0, stored_bytes: stored.len() as u32, codec, hash: [0; 32] };
    if let Ok(plain) = decode_block(&entry, plain_len, stored) {
        assert_eq!(plain.len(), plain_len as usize);
    }
}

/// Two profiles: the first byte says where the second begins.
pub fn profile(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (one, other) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
    let read =
        |bytes: &[u8]| rmp_serde::from_slice(bytes).ok().or_else(|| serde_json::from_slice(bytes).ok());
    let (Some(mut merged), other): (Option<Profile>, Option<Profile>) = (read(one), read(other)) else {
        return;
    };
    merged.merge(&other.unwrap_or_default(), 3);
    let again = rmp_serde::to_vec_named(&merged).expect("profiles are plain data");
    let again: Profile = rmp_serde::from_slice(&again).expect("a merged profile keeps its own rules");
    assert_eq!(again, merged);
    assert_eq!(again.fingerprint(), merged.fingerprint());
}

/// A manifest, an index of manifests and a configuration, each read as the others too; what a configuration
/// says of users is looked up in the rest of the bytes.
pub fn manifest(data: &[u8]) {
    let place = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (json, rest) = (&data[..place], data.get(place + 1..).unwrap_or_default());
    let _manifest = serde_json::from_slice::<Manifest>(json);
    let _index = serde_json::from_slice::<ManifestIndex>(json);
    if let Ok(text) = std::str::from_utf8(json)
        && let Ok(reference) = text.parse::<Reference>()
    {
        let said = reference.to_string();
        let again = said.parse::<Reference>().expect("what is said of a reference names it");
        assert_eq!(again.to_string(), said);
    }
    let Ok(config) = serde_json::from_slice::<ImageConfig>(json) else { return };
    let files = AccountFiles { passwd: rest.to_vec(), group: rest.to_vec() };
    if let Ok(runtime) = runtime_config(&config.config, &files) {
        assert!(runtime.cwd.starts_with('/'));
        assert!(runtime.env.keys().all(|name| !name.is_empty()));
    }
}

/// Two layers, one over the other: the first byte says where the second begins.
pub fn layer(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let (lower, upper) = bytes.split_at(bytes.len() * usize::from(*cut) / 256);
    let mut merger = Merger::new(ENTRIES_MAX as u64);
    for (number, layer) in [lower, upper].into_iter().enumerate() {
        merger.begin_layer(number as u16);
        let mut archive = Reader::new(layer);
        for _ in 0..ENTRIES_MAX {
            let Ok(Some(entry)) = archive.next_entry() else { break };
            if let EntryKind::File { size } = entry.kind
                && size <= COPIED_BYTES_MAX
            {
                match archive.copy_data(&mut io::sink()) {
                    Ok(copied) => assert_eq!(copied, size, "{:?}", entry.path),
                    Err(_) => break,
                }
            }
            if merger.apply(entry, None).is_err() {
                break;
            }
        }
    }
    check_tree(&merger.finish());
}

/// A package that is taken becomes an image in which every file is found, and nothing else.
pub fn zip(data: &[u8]) {
    let limits = ZipLimits { entries_max: 200, plain_bytes_max: COPIED_BYTES_MAX, ratio_max: 100 };
    let Ok(package) = Package::read(data, data.len() as u64, &limits) else { return };
    let tree = package.tree();
    check_tree(tree);
    assert!(tree.len_max() as u64 <= limits.entries_max + 1);
    let plan = Plan::new(tree, None);
    let layout = Layout::new(tree, &plan, 1 << 30).expect("the limits of packages are far lower");
    let written = || -> Result<(Vec<u8>, u64), ZipError> {
        let mut writer = Writer::begin(tree, &plan, &layout, [7; 16], Vec::new())?;
        let mut bytes = 0;
        for &(place, id) in plan.files() {
            writer.write_file(id, |out| package.copy_file(place, out))?;
            bytes += layout.place(id).bytes;
        }
        package.check_empty_files()?;
        Ok((writer.finish()?, bytes))
    };
    let Ok((image, bytes)) = written() else { return };
    assert!(bytes <= limits.plain_bytes_max, "more came out than a package may have");
    let map = FileMap::read(&image).expect("it was just written");
    let found = map.parts(iter::once(0..u64::MAX)).bytes();
    // Profiles leave out paths that no container could open from its root.
    assert!(found == bytes || (found < bytes && data.len() > PATH_BYTES_MAX), "{found} of {bytes} bytes");
}

/// The metadata of an image, and whatever follows it.
pub fn erofs(data: &[u8]) {
    let Ok(map) = FileMap::read(data) else { return };
    let profile = map.parts(iter::once(0..u64::MAX));
    let places = map.places(&profile);
    let bytes: u64 = places.iter().map(|place| place.end - place.start).sum();
    // Not all, if an image has two files of one name.
    assert!(bytes <= profile.bytes(), "{bytes} bytes lie in the image of {}", profile.bytes());
    assert!(map.parts(places).bytes() <= bytes);
}

/// What overlayfs would obey, and names that lead elsewhere, are not in a tree; every name leads to an inode.
fn check_tree(tree: &Tree) {
    let mut names = 0_usize;
    for (id, inode) in tree.iter() {
        if let Kind::CharDevice(number) = inode.kind {
            assert_ne!(number, 0, "overlayfs takes it for a whiteout");
        }
        for name in tree.children(id).into_iter().flat_map(|children| children.keys()) {
            assert!(!name.is_empty() && **name != *b"." && **name != *b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0) && name.len() <= 255);
            assert!(tree.child(id, name).is_some_and(|child| tree.inode(child.inode).names > 0));
            names += 1;
        }
    }
    let links: usize = tree.iter().map(|(_, inode)| inode.names as usize).sum();
    assert!(links == names || links == names + 1, "{links} names are counted, {names} are there");
}

#[cfg(test)]
mod tests;
