//! Starts that are made slow on purpose, and what they are said to have lost their time to.

use crate::support::*;
use faasnet_loadtest::{
    bed::{LinkChange, Rate},
    rig::{Cluster, pause},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A link on which one block takes a quarter of a second.
const SLOW: Rate = Rate::mbit(16);

fn explanation(cluster: &Cluster, start: &Value) -> Value {
    cluster.api.get(&format!("/v1/starts/{}/explanation", text(start, "id"))).unwrap()
}

/// What a start was slow for, with all that is known of it if that is not so.
fn assert_cause(cluster: &Cluster, start: &Value, kind: &str) -> Value {
    let explanation = explanation(cluster, start);
    assert_eq!(explanation["cause"]["kind"], kind, "{explanation}\n{start}");
    let shown = cluster.cli(&["start", "show", text(start, "id")]).unwrap();
    assert!(shown.contains(text(&explanation, "text")), "{shown}");
    explanation
}

fn deploy(cluster: &Cluster, reference: &str, command: &[&str]) {
    let spec = json!({ "image": reference, "command": command }).to_string();
    let put = cluster.api.call("PUT", "/v1/functions/python", spec).unwrap();
    assert!(put.status.is_success(), "{}", put.text());
}

/// The server of the image, begun after that many seconds.
fn sleepy(seconds: u32) -> [String; 3] {
    let run =
        "import runpy, time; time.sleep(SECONDS); runpy.run_path('/srv/server.py', run_name='__main__')";
    ["/usr/bin/python3.11".into(), "-c".into(), run.replace("SECONDS", &seconds.to_string())]
}

#[test]
fn a_slow_registry_and_a_slow_parent_are_named() {
    let (cluster, reference) = cluster_with_python(spec_of_single_instances(2));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    cluster.bed.set_link("registry", LinkChange::Rate(SLOW)).unwrap();
    let first = start_ready(&cluster, "python", 1).remove(0);
    assert_cause(&cluster, &first, "origin");
    let parent = text(&first, "vm");
    cluster.bed.set_link(parent, LinkChange::Rate(SLOW)).unwrap();
    let second = start_ready(&cluster, "python", 1).remove(0);
    let explanation = assert_cause(&cluster, &second, "parent");
    assert_eq!(explanation["cause"]["vm"], parent, "{second}");
}

#[test]
fn a_slow_application_and_a_full_vm_are_named() {
    let mut spec = spec(1);
    spec.settings.insert("MANAGER__ORDERS_IN_FLIGHT_MAX".into(), "1".into());
    let (cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    // More than those that follow, so that they are what is usual.
    start_ready(&cluster, "python", 7);
    let command = sleepy(4);
    deploy(&cluster, &reference, &command.each_ref().map(String::as_str));
    let mut starts = start_ready(&cluster, "python", 3);
    starts.sort_by_key(|start| number(start, "/timeline_us/ready"));
    assert_cause(&cluster, &starts[0], "application");
    // Each of them was in the way of the next for as long.
    assert!(number(&starts[2], "/timeline_us/placing") > 8_000_000, "{}", starts[2]);
    assert_cause(&cluster, &starts[2], "full_vm");
}

/// A disk that takes what is written to it only from time to time.
struct SlowDisk {
    folder: PathBuf,
    is_over: Arc<AtomicBool>,
    beats: Option<thread::JoinHandle<()>>,
}

const FROZEN: Duration = Duration::from_millis(250);
const THAWED: Duration = Duration::from_millis(5);

fn done(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn freeze(how: &str, folder: &Path) {
    done(Command::new("fsfreeze").arg(how).arg(folder));
}

impl SlowDisk {
    fn at(folder: PathBuf, scratch: &Path) -> Self {
        let device = scratch.join("slow-disk");
        fs::create_dir_all(&folder).unwrap();
        fs::File::create(&device).unwrap().set_len(512 << 20).unwrap();
        done(Command::new("mkfs.ext4").arg("-q").arg(&device));
        done(Command::new("mount").args(["-o", "loop,noatime"]).arg(&device).arg(&folder));
        Self { folder, is_over: Arc::default(), beats: None }
    }

    fn slow_down(&mut self) {
        let (folder, is_over) = (self.folder.clone(), Arc::clone(&self.is_over));
        self.beats = Some(thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                freeze("--freeze", &folder);
                pause(FROZEN);
                freeze("--unfreeze", &folder);
                pause(THAWED);
            }
        }));
    }

    fn speed_up(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(beats) = self.beats.take() {
            beats.join().unwrap();
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.speed_up();
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

#[test]
fn a_slow_disk_is_named() {
    let (mut cluster, reference) = cluster_with_python(spec(1));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    cluster.stop_vm("vm-1").unwrap();
    let data = cluster.data("vm-1");
    let mut disk = SlowDisk::at(data.join("images"), data.parent().unwrap());
    cluster.start_agent("vm-1").unwrap();
    cluster.wait_for_vms(1).unwrap();
    disk.slow_down();
    let start = start_ready(&cluster, "python", 1).remove(0);
    disk.speed_up();
    let explanation = assert_cause(&cluster, &start, "disk");
    assert!(number(&start, "/worst_stall/disk_us") > 100_000, "{explanation} {start}");
    drop(cluster);
}
