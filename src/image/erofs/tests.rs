use super::{
    layout::{Form, Place, Run},
    *,
};
use crate::image::packing::{HotSet, Plan};
use crate::image::tree::{Attributes, Children, DataPlace, Inode, InodeId, Kind, ROOT, Tree};
use faasnet_actors::profile::Profile;
use proptest::prelude::*;

fn inode(kind: Kind, xattr_bytes: usize) -> Inode {
    let xattrs = (xattr_bytes > 0).then(|| (b"user.x".to_vec(), vec![1; xattr_bytes]));
    let attributes = Attributes { xattrs: xattrs.into_iter().collect(), ..Attributes::default() };
    Inode { attributes, kind, names: 1 }
}

pub fn file(entry: u32, size: u64) -> Kind {
    Kind::File { size, data: DataPlace { layer: 0, entry }, content: None }
}

/// Bytes that an inode takes in the metadata, with what stands inline.
fn inline_range(tree: &Tree, id: InodeId, place: Place) -> (u64, u64, u64) {
    let head = 64 + crate::image::xattr::encoded_len(&tree.inode(id).attributes.xattrs) as u64;
    let tail = if place.form == Form::InlineTail { place.bytes % FS_BLOCK_BYTES } else { 0 };
    (place.inode, place.inode + head, place.inode + head + tail)
}

proptest! {
    #[test]
    fn no_two_things_share_a_byte_and_no_tail_crosses_a_block(
        nodes in proptest::collection::vec((0_u8..3, 1_usize..256, 0_u64..9000, 0_usize..3000), 0..200),
    ) {
        let (mut tree, mut directory) = (Tree::new(), ROOT);
        for (number, (kind, name, size, xattr)) in nodes.into_iter().enumerate() {
            let kind = match kind {
                0 => Kind::Directory(Children::new()),
                1 => file(number as u32, size),
                _ => Kind::Symlink(vec![b't'; size.clamp(1, 4095) as usize].into()),
            };
            let is_directory = matches!(kind, Kind::Directory(_));
            let name = format!("{number}{}", "n".repeat(name.min(250)));
            let id = tree.add(directory, name.as_bytes(), 0, inode(kind, xattr));
            if is_directory && number % 3 == 0 {
                directory = id;
            }
        }
        let is_file = |inode: &Inode| matches!(inode.kind, Kind::File { .. });
        let mut files: Vec<InodeId> =
            tree.iter().filter(|(_, inode)| is_file(inode)).map(|(id, _)| id).collect();
        files.reverse();
        let layout = Layout::new(&tree, &Plan::in_order(&files), 1 << 40).unwrap();
        let mut taken = vec![(0, 1152)];
        for (id, inode) in tree.iter() {
            let place = layout.place(id);
            let (start, tail, end) = inline_range(&tree, id, place);
            prop_assert!(start % 32 == 0 && start % 4096 <= 4096 - 64);
            prop_assert!(tail == end || tail / 4096 == (end - 1) / 4096, "the tail crosses a block");
            taken.push((start, end));
            let first = u64::from(place.block) * 4096;
            taken.push((first, first + place.blocks() * 4096));
            prop_assert_eq!(is_file(inode) && place.bytes > 0, first >= layout.metadata_bytes());
        }
        taken.retain(|(start, end)| start < end);
        taken.sort_unstable();
        prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        prop_assert_eq!(taken.last().unwrap().1.next_multiple_of(4096), layout.plain_bytes());
        let blocks: Vec<u32> = files.iter().map(|id| layout.place(*id).block).filter(|block| *block > 0).collect();
        prop_assert!(blocks.is_sorted(), "files lie in the order asked for");
    }
}

#[test]
fn hostile_sizes_are_refused_without_overflow() {
    for sizes in [vec![u64::MAX / 4], vec![u64::MAX], vec![1 << 39, 1 << 39, 1 << 39], vec![4097; 300]] {
        let mut tree = Tree::new();
        for (number, size) in (0..).zip(&sizes) {
            tree.add(ROOT, format!("{number}").as_bytes(), 0, inode(file(number, *size), 0));
        }
        let files: Vec<InodeId> = tree.iter().map(|(id, _)| id).skip(1).collect();
        assert!(Layout::new(&tree, &Plan::in_order(&files), 1 << 21).is_err(), "{sizes:?}");
    }
}

#[test]
fn a_writer_takes_files_only_as_long_as_they_were_announced() {
    let mut tree = Tree::new();
    let id = tree.add(ROOT, b"file", 0, inode(file(0, 10), 0));
    let plan = Plan::in_order(&[id]);
    let layout = Layout::new(&tree, &plan, 1 << 20).unwrap();
    for wrong in [9, 11] {
        let mut writer = Writer::begin(&tree, &plan, &layout, [0; 16], Vec::new()).unwrap();
        let copied = writer.write_file(id, |out| out.write_all(&vec![0; wrong]).map(|()| 10));
        assert!(copied.is_err(), "{wrong} bytes");
    }
    let writer = Writer::begin(&tree, &plan, &layout, [0; 16], Vec::new()).unwrap();
    assert!(writer.finish().is_err(), "a file is missing");
}

#[test]
fn a_file_whose_last_hot_chunk_is_followed_by_its_first_cold_one_is_written_in_two_runs() {
    let mut tree = Tree::new();
    let id = tree.add(ROOT, b"file", 0, inode(file(0, 9000), 0));
    let profile = Profile::recorded([("/file".parse().unwrap(), 0..4096)]);
    let plan = Plan::new(&tree, Some(HotSet { profile: &profile, chunk_bytes: FS_BLOCK_BYTES }));
    let layout = Layout::new(&tree, &plan, 1 << 20).unwrap();
    let start = layout.metadata_bytes();
    assert_eq!(layout.hot_end(), start + FS_BLOCK_BYTES);
    let run = |file, place| Run { file, place };
    assert_eq!(layout.runs(id), [run(0..4096, start), run(4096..9000, start + FS_BLOCK_BYTES)]);
}
