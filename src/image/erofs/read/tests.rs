use super::{super::tests::file, *};
use crate::image::{
    erofs::{Layout, Writer},
    packing::Plan,
    tree::{Attributes, Children, Inode, InodeId, Kind, ROOT, Tree},
};
use proptest::prelude::*;
use std::iter;

fn add(tree: &mut Tree, directory: InodeId, name: &[u8], kind: Kind) -> InodeId {
    let xattrs = vec![(b"user.x".to_vec(), vec![1; name.len()])];
    let inode = Inode { attributes: Attributes { xattrs, ..Attributes::default() }, kind, names: 1 };
    tree.add(directory, name, 0, inode)
}

/// An image of these files, each in a directory of its own below the one before, and where their data lies.
pub(crate) fn image(sizes: &[u64]) -> (Vec<u8>, Vec<(String, u64, u64)>) {
    let mut tree = Tree::new();
    let (mut directory, mut files, mut path) = (ROOT, Vec::new(), String::new());
    for (number, size) in sizes.iter().enumerate() {
        directory =
            add(&mut tree, directory, format!("d{number}").as_bytes(), Kind::Directory(Children::new()));
        path += &format!("/d{number}");
        let id = add(&mut tree, directory, b"file", file(number as u32, *size));
        files.push((id, format!("{path}/file")));
        // Enough names for directories of several blocks.
        for extra in 0..number * 40 {
            add(&mut tree, directory, format!("{extra}-{}", "n".repeat(40)).as_bytes(), Kind::Fifo);
        }
    }
    let ids: Vec<InodeId> = files.iter().map(|(id, _)| *id).collect();
    let plan = Plan::in_order(&ids);
    let layout = Layout::new(&tree, &plan, 1 << 40).unwrap();
    let mut writer = Writer::begin(&tree, &plan, &layout, [7; 16], Vec::new()).unwrap();
    for id in &ids {
        let size = layout.place(*id).bytes;
        writer.write_file(*id, |out| out.write_all(&vec![9; size as usize]).map(|()| size)).unwrap();
    }
    let bytes = writer.finish().unwrap();
    let place = |(id, path): (InodeId, String)| {
        let place = layout.place(id);
        (path, u64::from(place.block) * FS_BLOCK_BYTES, place.bytes)
    };
    (bytes, files.into_iter().map(place).collect())
}

#[test]
fn every_byte_of_every_file_is_found_under_its_path() {
    let sizes = [1, 4096, 4097, 0, 100_000, 5000, 12, 8192];
    let (bytes, files) = image(&sizes);
    let map = FileMap::read(&bytes).unwrap();
    for (path, start, size) in files.iter().rev() {
        let padded = start.div_ceil(4096) * 4096..start + size.next_multiple_of(4096);
        let profile = map.parts([padded]);
        let found: Vec<_> =
            profile.parts().iter().map(|part| (part.path.to_string(), part.start, part.end)).collect();
        let expected = if *size > 0 { vec![(path.clone(), 0, *size)] } else { vec![] };
        assert_eq!(found, expected);
    }
    let all = map.parts(iter::once(0..u64::MAX));
    assert_eq!(all.bytes(), sizes.iter().sum::<u64>());
    assert_eq!(map.parts(iter::once(0..files[0].1)).parts(), [], "metadata belongs to no file");
    assert_eq!(map.parts([files[4].1 + 9..files[4].1 + 3, files[0].1..files[0].1]).parts(), []);
}

#[test]
fn parts_come_in_the_order_of_the_ranges() {
    let (bytes, files) = image(&[20_000, 9000]);
    let map = FileMap::read(&bytes).unwrap();
    let (first, second) = (files[0].1, files[1].1);
    let profile = map.parts([second..second + 4096, first + 8192..first + 12_288, first..first + 8192]);
    let shown: Vec<_> =
        profile.parts().iter().map(|part| (part.path.to_string(), part.start, part.end)).collect();
    let expected = [("/d0/d1/file", 0, 4096), ("/d0/file", 8192, 12_288), ("/d0/file", 0, 8192)];
    assert_eq!(shown, expected.map(|(path, start, end)| (path.to_owned(), start, end)));
}

proptest! {
    #[test]
    fn parts_are_found_again_where_they_were_read(
        ranges in proptest::collection::vec((0_u64..60_000, 1_u64..9000), 1..20),
    ) {
        let (bytes, _) = image(&[9000, 1, 20_000, 4096, 5000]);
        let map = FileMap::read(&bytes).unwrap();
        let profile = map.parts(ranges.iter().map(|(start, length)| *start..start + length));
        let places = map.places(&profile);
        prop_assert_eq!(places.iter().map(|place| place.end - place.start).sum::<u64>(), profile.bytes());
        prop_assert_eq!(map.parts(places), profile);
    }
}

#[test]
fn what_an_image_does_not_have_lies_nowhere_in_it() {
    let (bytes, files) = image(&[20_000, 9000]);
    let map = FileMap::read(&bytes).unwrap();
    let path = |text: &str| text.parse::<FilePath>().unwrap();
    let parts = [(path("/d0/gone"), 0..10), (path("/d0"), 0..10), (path("/d0/file"), 19_990..30_000)];
    assert_eq!(
        map.places(&Profile::recorded(parts)),
        iter::once(files[0].1 + 19_990..files[0].1 + 20_000).collect::<Vec<_>>()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic(
        damage in proptest::collection::vec((0_usize..20_000, any::<u8>()), 1..20),
        cut in 0_usize..30_000,
    ) {
        let (mut bytes, _) = image(&[1, 5000, 9000, 3]);
        for (place, byte) in damage {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len().max(cut + 1) - cut);
        if let Ok(map) = FileMap::read(&bytes) {
            let ends = map.extents.iter().map(|extent| extent.end);
            let starts = map.extents.iter().skip(1).map(|extent| extent.start);
            prop_assert!(ends.zip(starts).all(|(end, start)| end <= start), "extents overlap");
            drop(map.places(&map.parts(iter::once(0..u64::MAX))));
        }
    }
}

#[test]
fn directories_that_share_their_content_are_refused() {
    let (mut bytes, _) = image(&[1, 2, 3]);
    let size_of = |bytes: &mut Vec<u8>, nid: usize, size: u64| {
        bytes[nid * 32 + 8..][..8].copy_from_slice(&size.to_le_bytes());
    };
    let root = usize::from(u16_at(&bytes, SUPERBLOCK_START + 14));
    size_of(&mut bytes, root, u64::MAX);
    assert_eq!(FileMap::read(&bytes).unwrap_err(), ReadError::Overlap);
    assert_eq!(FileMap::read(&[]).unwrap_err(), ReadError::Superblock);
    assert_eq!(FileMap::read(&[0; 9000]).unwrap_err(), ReadError::Superblock);
}
