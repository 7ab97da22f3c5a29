//! Blocks that are damaged on a VM's disk or in the registry are never used.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, cluster::BLOCK_IMAGES};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Large enough to be a store of blocks, and no database or log.
const STORE_BYTES_MIN: u64 = 1 << 20;

/// Overwrites eight bytes of every 64 KiB of every large file below a folder; their number.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for path in files_below(folder) {
        let length = fs::metadata(&path).unwrap().len();
        if length < STORE_BYTES_MIN {
            continue;
        }
        let file = File::options().write(true).open(&path).unwrap();
        for offset in (4096..length - 8).step_by(65536) {
            file.write_all_at(b"\xde\xad\xbe\xef\xde\xad\xbe\xef", offset).unwrap();
        }
        damaged += 1;
    }
    damaged
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

fn assert_sees_the_image(cluster: &Cluster, start: &serde_json::Value) {
    let lines = invoke(cluster, "python", "/list", start);
    assert_same_tree(&reference_listing(&python()), &container_listing(&lines));
}

#[test]
fn a_child_of_a_vm_with_damaged_blocks_gets_them_elsewhere() {
    let (cluster, reference) = cluster_with_python(spec_of_single_instances(2));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let first = start_ready(&cluster, "python", 1).remove(0);
    // Everything is on the first VM's disk before it is damaged.
    invoke(&cluster, "python", "/list", &first);
    resting_vms(&cluster);
    let vm = text(&first, "vm");
    assert!(damage(&cluster.data(vm)) > 0, "the first VM has stores");

    let second = start_ready(&cluster, "python", 1).remove(0);
    assert_ne!(second["vm"], first["vm"]);
    assert_sees_the_image(&cluster, &second);
}

#[test]
fn an_agent_that_finds_its_blocks_damaged_fetches_them_again() {
    let (mut cluster, reference) = cluster_with_python(spec(1));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let first = start_ready(&cluster, "python", 1).remove(0);
    invoke(&cluster, "python", "/list", &first);
    resting_vms(&cluster);
    cluster.stop_vm("vm-1").unwrap();
    assert!(damage(&cluster.data("vm-1")) > 0, "the VM has stores");
    cluster.start_agent("vm-1").unwrap();
    let second = start_ready(&cluster, "python", 1).remove(0);
    assert_sees_the_image(&cluster, &second);
}

#[test]
fn a_blob_that_is_damaged_in_the_registry_fails_the_start_and_not_the_vm() {
    let mut spec = spec(1);
    // Until then the agent tries again: the registry may be mended.
    spec.settings.insert("SCHEDULER__READY_DEADLINE_MS".to_owned(), "10000".to_owned());
    let (cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let blobs = cluster.registry.blobs(BLOCK_IMAGES).unwrap();
    let files: Vec<PathBuf> = blobs.iter().map(|digest| cluster.registry.blob_file(digest)).collect();
    let largest = files.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let whole = fs::read(largest).unwrap();
    let mut damaged = whole.clone();
    damaged.iter_mut().step_by(65536).for_each(|byte| *byte ^= 0xff);
    fs::write(largest, damaged).unwrap();
    let id = cluster.api.start("python", 1).unwrap().remove(0);
    let seen = cluster.api.settled(&id, READY).unwrap();
    assert_eq!(seen["state"], "ended", "{seen}");
    assert_eq!(seen["reason"]["kind"], "image_unavailable", "{seen}");

    fs::write(largest, whole).unwrap();
    let start = start_ready(&cluster, "python", 1).remove(0);
    assert_sees_the_image(&cluster, &start);
}
