//! What the end-to-end tests share.

use faasnet::sample::listing::{self, Entry};
use faasnet_loadtest::rig::{Cluster, ClusterSpec, Image, Variant, wait_until};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// From the call to ready; a debug build on two busy cores needs a part of it.
pub const READY: Duration = Duration::from_secs(120);

pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_faasnet")
}

/// Where images are kept from test to test.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rig")
}

pub fn python() -> Image {
    Image::cached(&cache(), Variant::Minimal).unwrap()
}

/// A cluster with the Python image in its registry; the image's reference.
pub fn cluster_with_python(spec: ClusterSpec) -> (Cluster, String) {
    let image = python();
    let cluster = Cluster::up(spec).unwrap();
    let reference = cluster.registry.push(&image, "library/python").unwrap();
    (cluster, reference)
}

pub fn spec(vms: usize) -> ClusterSpec {
    ClusterSpec::new(program(), vms)
}

/// VMs with room for one instance of 256 MiB each, so that every start goes to another VM.
pub fn spec_of_single_instances(vms: usize) -> ClusterSpec {
    let mut spec = spec(vms);
    spec.settings.insert("AGENT__MEMORY_BYTES".into(), (256_u64 << 20).to_string());
    spec
}

/// Starts that many instances and waits until each is ready; what the API says of them.
pub fn start_ready(cluster: &Cluster, function: &str, count: usize) -> Vec<Value> {
    let ids = cluster.api.start(function, count).unwrap();
    assert_eq!(ids.len(), count);
    ids.iter().map(|id| cluster.api.ready(id, READY).unwrap()).collect()
}

/// The request's answer from one instance, over the gateway.
pub fn invoke(cluster: &Cluster, function: &str, path: &str, start: &Value) -> String {
    cluster.cli(&["invoke", function, path, "--on", text(start, "id")]).unwrap()
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

pub fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {pointer} in {value}"))
}

/// Bytes that a VM's stores counted, over all its trees: from the parent, from other VMs, from the origin.
pub fn stored_bytes(vm: &Value) -> [u64; 3] {
    let trees = vm["trees"].as_array().unwrap_or_else(|| panic!("no trees in {vm}"));
    let sum = |source: &str| trees.iter().map(|tree| number(tree, &format!("/bytes/{source}"))).sum();
    ["parent", "ancestor", "origin"].map(sum)
}

/// Waits until two looks, further apart than a heartbeat, show the same: the blocks have come to rest.
pub fn resting_vms(cluster: &Cluster) -> BTreeMap<String, Value> {
    let mut last = (std::time::Instant::now(), BTreeMap::new());
    wait_until("the blocks to come to rest", READY, || {
        let now = cluster.vms()?;
        let bytes = |vms: &BTreeMap<String, Value>| vms.values().map(stored_bytes).collect::<Vec<_>>();
        if bytes(&now) != bytes(&last.1) {
            last = (std::time::Instant::now(), now);
            return Ok(None);
        }
        Ok((last.0.elapsed() > Duration::from_millis(2500)).then_some(now))
    })
    .unwrap()
}

/// What the kernel knows of the first process of a start's container.
pub fn container_process(cluster: &Cluster, start: &Value) -> String {
    let state = cluster.data(text(start, "vm")).join("runc").join(text(start, "id")).join("state.json");
    let state: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let pid = number(&state, "/init_process_pid");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    format!("{pid} since {}", number(&state, "/init_process_start"))
}

/// The image's tree as umoci unpacks it.
pub fn reference_listing(image: &Image) -> BTreeMap<String, Entry> {
    let folder = tempfile::tempdir_in(cache()).unwrap();
    let rootfs = image.unpack(folder.path()).unwrap();
    let mut entries = BTreeMap::new();
    listing::list(&rootfs, |entry| {
        entries.insert(entry.path.clone(), entry);
        Ok(())
    })
    .unwrap();
    entries
}

/// What a container printed of its own tree, one line of JSON for each name.
pub fn container_listing(lines: &str) -> BTreeMap<String, Entry> {
    let entry = |line: &str| {
        let entry: Entry = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        (entry.path.clone(), entry)
    };
    lines.lines().map(entry).collect()
}

/// Compares name by name. What the container runtime mounts hides the image's files there.
pub fn assert_same_tree(reference: &BTreeMap<String, Entry>, seen: &BTreeMap<String, Entry>) {
    let mounts: Vec<&str> =
        seen.values().filter(|entry| entry.kind == "mount").map(|entry| entry.path.as_str()).collect();
    let is_hidden = |path: &str| {
        let covers = |mount: &&str| {
            path.strip_prefix(*mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        mounts.iter().any(covers)
    };
    let paths = reference.keys().chain(seen.keys()).filter(|path| !is_hidden(path));
    let differs = |path: &&String| reference.get(*path) != seen.get(*path);
    let different: std::collections::BTreeSet<&String> = paths.filter(differs).collect();
    for path in different.iter().take(10) {
        eprintln!("{path}\n  image:     {:?}\n  container: {:?}", reference.get(*path), seen.get(*path));
    }
    assert!(different.is_empty(), "{} names differ", different.len());
    assert!(reference.len() > 1000, "the reference is complete: {}", reference.len());
}

/// A path as the value of a query.
pub fn percent_encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
