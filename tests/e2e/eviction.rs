//! More images than the caches of all VMs have room for: what runs stays, copies go before last copies, and nothing
//! that is left is wrong.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, Image, run, wait_until};
use serde_json::Value;
use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path, process::Command};

/// The Python image with one file more, so that none of its blocks is that of another one.
fn variant(folder: &Path, name: &str) -> Image {
    let layout = folder.join(name);
    run(Command::new("cp").arg("-r").arg(python().layout).arg(&layout)).unwrap();
    let image = Image { layout, tag: python().tag };
    let marker = folder.join(format!("{name}.marker"));
    // Whole sectors: `umoci insert` does not pad the last file of its archives.
    fs::write(&marker, name.repeat(512)).unwrap();
    let reference = format!("{}:{}", image.layout.display(), image.tag);
    run(Command::new("umoci").args(["insert", "--image", &reference]).arg(&marker).arg("/srv/marker"))
        .unwrap();
    image
}

/// What the cache of a VM takes on its disk.
fn cache_bytes(cluster: &Cluster, vm: &str) -> u64 {
    let mut bytes = 0;
    let images = fs::read_dir(cluster.data(vm).join("images")).into_iter().flatten().flatten();
    // Mount points have the name of the image alone.
    for folder in images.filter(|folder| folder.file_name().to_string_lossy().contains('.')) {
        let files = fs::read_dir(folder.path()).into_iter().flatten().flatten();
        bytes += files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum::<u64>();
    }
    bytes
}

struct Small {
    cluster: Cluster,
    /// Of the cache of each VM.
    bytes_max: u64,
}

impl Small {
    fn deploy(&self, name: &str, image: &Image) {
        let reference = self.cluster.registry.push(image, &format!("library/{name}")).unwrap();
        self.cluster.cli(&["function", "deploy", name, "--image", &reference, "--mode", "whole"]).unwrap();
    }

    fn image_of(&self, function: &str) -> String {
        let shown = self.cluster.api.get(&format!("/v1/functions/{function}")).unwrap();
        text(&shown["image_state"], "id").to_owned()
    }

    /// The VMs that hold all blocks of a function's image, in the tree or out of it.
    fn holders(&self, function: &str) -> BTreeSet<String> {
        let image = self.image_of(function);
        let holds = |vm: &Value| {
            let all = ["trees", "cold"].into_iter().flat_map(|kind| vm[kind].as_array().unwrap());
            all.into_iter().any(|held| {
                text(held, "image") == image
                    && number(held, "/blocks_present") == number(held, "/blocks_total")
            })
        };
        let vms = self.cluster.vms().unwrap();
        vms.into_iter().filter(|(_, vm)| holds(vm)).map(|(name, _)| name).collect()
    }

    /// Waits until each image is held by these VMs and no others, within their bounds.
    fn comes_to(&self, when: &str, expected: &[(&str, &[&str])]) {
        let owned = |vms: &[&str]| vms.iter().map(|vm| (*vm).to_owned()).collect::<BTreeSet<_>>();
        let wanted: Vec<_> = expected.iter().map(|(function, vms)| (*function, owned(vms))).collect();
        let mut seen = Vec::new();
        let waited = wait_until("the caches to come to rest", READY, || {
            seen = expected.iter().map(|(function, _)| (*function, self.holders(function))).collect();
            Ok((seen == wanted).then_some(()))
        });
        assert!(waited.is_ok(), "{when}: {seen:?}, not {expected:?}");
        self.within_bounds(when);
    }

    fn within_bounds(&self, when: &str) {
        for vm in ["vm-1", "vm-2"] {
            let bytes = cache_bytes(&self.cluster, vm);
            // Records, marks and indexes are not counted.
            assert!(bytes <= self.bytes_max + (1 << 20), "{when}: {bytes} of {} on {vm}", self.bytes_max);
        }
    }

    /// Brings all of an image to VMs; what they got over the network since their agents began.
    fn preheat(&self, function: &str, vms: &[&str]) -> u64 {
        let arguments = [&["--json", "image", "preheat", function, "--whole", "--vm"], vms].concat();
        let held: Value = serde_json::from_str(&self.cluster.cli(&arguments).unwrap()).unwrap();
        self.within_bounds(function);
        let rows = held["vms"].as_array().unwrap().iter().filter(|row| vms.contains(&text(row, "vm")));
        let of = |row: &Value| -> u64 {
            assert_eq!(number(row, "/blocks_present"), number(row, "/blocks_total"), "{row}");
            ["parent", "ancestor", "origin"]
                .map(|source| number(row, &format!("/bytes/{source}")))
                .iter()
                .sum()
        };
        rows.map(of).sum()
    }

    fn reads_right(&self, function: &str, start: &Value, image: &Image) {
        let seen = container_listing(&invoke(&self.cluster, function, "/list", start));
        assert_same_tree(&reference_listing(image), &seen);
    }
}

#[test]
fn a_full_cluster_keeps_what_runs_and_the_last_copies_and_starts_go_on() {
    let folder = tempfile::tempdir_in(cache()).unwrap();
    let images = ["a", "b", "c", "d"].map(|name| variant(folder.path(), name));
    let [a, b, _, d] = &images;
    // An image takes its plain and its stored bytes, which are together about 1.4 of the plain ones: two fit.
    let bytes_max = python().unpacked_bytes().unwrap() * 7 / 2;
    let mut spec = spec(2);
    for (key, value) in [
        ("TRANSFER__DISK_CACHE_BYTES", bytes_max),
        ("TRANSFER__ROOM_WAIT_MS", 60_000),
        // Room for two instances.
        ("AGENT__MEMORY_BYTES", 512 << 20),
        ("PROFILE__RECORDINGS_MAX", 0),
    ] {
        spec.settings.insert(key.to_owned(), value.to_string());
    }
    let mut small = Small { cluster: Cluster::up(spec).unwrap(), bytes_max };
    for (name, image) in ["a", "b", "c", "d"].into_iter().zip(&images) {
        small.deploy(name, image);
    }

    // One image is needed on one VM all the time; on the other one the last copy is what was not used for longest.
    let kept = start_ready(&small.cluster, "a", 1).remove(0);
    let process = container_process(&small.cluster, &kept);
    let runs = text(&kept, "vm").to_owned();
    let rests = if runs == "vm-1" { "vm-2" } else { "vm-1" };
    let runs = runs.as_str();
    assert!(small.preheat("c", &[rests]) > 0);
    assert!(small.preheat("b", &[rests, runs]) > 0);
    small.comes_to("two on each", &[("a", &[runs]), ("b", &[rests, runs]), ("c", &[rests]), ("d", &[])]);
    let one = cache_bytes(&small.cluster, rests) / 2;
    assert!(3 * one > bytes_max, "three would fit: {one} bytes each of {bytes_max}");

    // Of what the VM could let go, c was not used for longer, but is the last copy; b is held by both.
    small.preheat("d", &[rests]);
    small.comes_to("a copy goes", &[("a", &[runs]), ("b", &[runs]), ("c", &[rests]), ("d", &[rests])]);
    // A last copy goes when there is nothing else: the other image there runs.
    small.preheat("c", &[runs]);
    small.comes_to("a last copy goes", &[("a", &[runs]), ("b", &[]), ("c", &[rests, runs]), ("d", &[rests])]);

    // What nobody has comes from the origin again, and whichever VM it comes to has a copy to let go.
    let again = start_ready(&small.cluster, "b", 1).remove(0);
    let came_to = text(&again, "vm");
    let other = if came_to == runs { rests } else { runs };
    let last: [(&str, &[&str]); 4] = [("a", &[runs]), ("b", &[came_to]), ("c", &[other]), ("d", &[rests])];
    small.comes_to("a start makes room", &last);
    small.reads_right("b", &again, b);
    small.reads_right("a", &kept, a);

    // A new agent finds what the one before had, and believes none of it before it was verified.
    small.cluster.kill_agent(rests).unwrap();
    small.cluster.start_agent(rests).unwrap();
    let is_back = || Ok(small.cluster.cli(&["image", "preheat", "d", "--whole", "--vm", rests]).ok());
    wait_until("the agent to join again", READY, is_back).unwrap();
    small.comes_to("the agent is killed", &last);
    assert_eq!(small.preheat("d", &[rests]), 0, "what was there is enough");
    if other == rests {
        assert_eq!(small.preheat("c", &[rests]), 0, "what was there is enough");
    }
    let start = start_ready(&small.cluster, "d", 1).remove(0);
    assert_eq!(text(&start, "vm"), rests);
    let bytes = ["parent", "ancestor", "origin"].map(|source| number(&start, &format!("/bytes/{source}")));
    assert_eq!(bytes, [0; 3], "{start}");
    small.reads_right("d", &start, d);

    // The first container has been there all the time, and so has all of its image.
    assert_eq!(container_process(&small.cluster, &kept), process);
    small.reads_right("a", &kept, a);
}
