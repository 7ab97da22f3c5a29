use super::*;
use crate::image::tree::{Attributes, Children, Inode};

const CHUNK: u64 = 16_384;

fn tree(files: &[(&str, u64, u8)]) -> (Tree, Vec<InodeId>) {
    let mut tree = Tree::new();
    let mut add = |directory, name: &str, kind| {
        tree.add(directory, name.as_bytes(), 0, Inode { attributes: Attributes::default(), kind, names: 1 })
    };
    let directory = add(ROOT, "d", Kind::Directory(Children::new()));
    let ids = (0..).zip(files).map(|(entry, (name, size, content))| {
        let data = DataPlace { layer: 0, entry };
        add(directory, name, Kind::File { size: *size, data, content: Some([*content; 16]) })
    });
    let ids = ids.collect();
    (tree, ids)
}

fn profile(parts: &[(&str, Range<u64>)]) -> Profile {
    Profile::recorded(parts.iter().map(|(path, range)| (path.parse().unwrap(), range.clone())))
}

fn plan(tree: &Tree, parts: &[(&str, Range<u64>)]) -> Plan {
    Plan::new(tree, Some(HotSet { profile: &profile(parts), chunk_bytes: CHUNK }))
}

#[test]
fn chunks_come_in_the_order_of_first_use_and_none_twice() {
    let (tree, ids) = tree(&[("a", 10 * CHUNK, 1), ("b", 3 * CHUNK - 5, 2)]);
    let plan = plan(
        &tree,
        &[("/d/a", CHUNK + 1..CHUNK + 2), ("/d/b", 0..1), ("/d/a", 0..2 * CHUNK), ("/d/b", 1..9 * CHUNK)],
    );
    let hot = |file, chunks| HotChunks { file, chunks };
    assert_eq!(plan.hot(), [hot(ids[0], 1..2), hot(ids[1], 0..1), hot(ids[0], 0..1)]);
    assert!(plan.is_split(ids[0]) && !plan.is_split(ids[1]), "b is hot as a whole");
}

#[test]
fn what_the_image_does_not_have_is_left_out_and_counted() {
    let (tree, _) = tree(&[("a", 10, 1), ("empty", 0, 2)]);
    let parts = [
        ("/d/missing", 0..1),
        ("/d", 0..1),
        ("/d/a/below", 0..1),
        ("/d/empty", 0..1),
        ("/d/a", 10..11),
        ("/missing/a", 0..1),
    ];
    let nothing = plan(&tree, &parts);
    assert_eq!((nothing.hot().len(), nothing.ignored_parts()), (0, 6));
    let beyond = plan(&tree, &[("/d/a", 9..1 << 39)]);
    assert_eq!((beyond.hot().len(), beyond.ignored_parts()), (1, 0));
}

#[test]
fn equal_files_are_stored_once_where_the_first_of_them_was() {
    let (tree, ids) = tree(&[("a", 5, 1), ("b", 5, 1), ("other-size", 6, 1), ("other", 5, 2), ("c", 5, 1)]);
    let plan = plan(&tree, &[("/d/c", 0..5)]);
    let stored: Vec<InodeId> = ids.iter().map(|id| plan.stored(*id)).collect();
    assert_eq!(stored, [ids[0], ids[0], ids[2], ids[3], ids[0]]);
    assert_eq!(plan.files().iter().map(|(_, id)| *id).collect::<Vec<_>>(), [ids[0], ids[2], ids[3]]);
    assert_eq!(plan.hot(), [HotChunks { file: ids[0], chunks: 0..1 }], "the shared bytes are hot");
}
