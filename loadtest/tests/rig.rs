//! The parts that tests are built on, themselves tested on the real programs.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

use faasnet_loadtest::{
    bed::{self, Bed, BedSpec, HostSpec, Rate},
    rig::{Api, Image, Registry, Variant, process::Service, run, wait_until},
};
use std::{fs, path::Path, process::Command, time::Duration};

/// For what a busy machine does in a few seconds.
const DEADLINE: Duration = Duration::from_secs(60);

fn cache() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rig")
}

#[test]
fn the_registry_and_the_interface_count_the_same_bytes() {
    let rate = Some(Rate::mbit(1000));
    let hosts = vec![HostSpec::new("registry", rate), HostSpec::new("client", rate)];
    let bed = Bed::up(BedSpec { hosts }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::on_bed(bed.state(), "registry", folder.path()).unwrap();
    let image = Image::cached(&cache(), Variant::Minimal).unwrap();
    registry.push(&image, "library/python").unwrap();

    let address = registry.name().parse().unwrap();
    let from = Some((bed.state().clone(), "client".to_owned()));
    let client = Api { address, token: "unused".to_owned(), from };
    let manifest = image.manifest().unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let before = bed.counters("client").unwrap().received_bytes;
    let blob = client.call("GET", &format!("/v2/library/python/blobs/{layer}"), "").unwrap().body;
    let received = bed.counters("client").unwrap().received_bytes - before;

    assert_eq!(fs::read(registry.blob_file(layer)).unwrap(), blob);
    let given = registry.given(layer).unwrap();
    assert_eq!((given.answers, given.bytes), (1, blob.len() as u64));
    let ratio = received as f64 / blob.len() as f64;
    assert!((1.0..1.1).contains(&ratio), "{received} bytes received for {}", blob.len());
}

#[test]
fn the_image_is_an_image_to_containerd_and_its_server_answers() {
    let hosts = vec![HostSpec::new("registry", None), HostSpec::new("vm-1", None)];
    let bed = Bed::up(BedSpec { hosts }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::on_bed(bed.state(), "registry", folder.path()).unwrap();
    let image = Image::cached(&cache(), Variant::Minimal).unwrap();
    let reference = registry.push(&image, "library/python").unwrap();
    let measured =
        faasnet_loadtest::compare::pull_and_run(bed.state(), "vm-1", &reference, "IMPORTS=1").unwrap();
    eprintln!("{measured:?}");
    assert!(measured.received_bytes >= image.layer_bytes().unwrap(), "{measured:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("containerd"), "{mounts}");
}

#[test]
fn an_interrupted_verb_takes_its_bed_down() {
    let folder = tempfile::tempdir().unwrap();
    // Never becomes a manager that is ready: the verb waits for it.
    let program = folder.path().join("faasnet");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Image::cached(&cache(), Variant::Ballast).unwrap();
    let mut verb = Command::new(env!("CARGO_BIN_EXE_faasnet-loadtest"));
    verb.args(["chaos", "--case", "nothing", "--vms", "8"]).arg("--cache").arg(cache());
    verb.arg("--program").arg(&program).env("TMPDIR", folder.path());
    let mut verb = Service::start("verb", &mut verb, folder.path()).unwrap();
    let is_made_below = |id: &String| {
        let owner = bed::load(id).map(|state| state.owner_pid).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{owner}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{}", verb.pid()))
    };
    let made = || Ok(bed::list()?.into_iter().find(is_made_below));
    let id = wait_until("the verb to make its bed", DEADLINE, made).unwrap();
    let namespace = format!("fbed-{id}-manager");
    let runs = || {
        // Fails while the namespace is being made.
        let pids = run(Command::new("ip").args(["netns", "pids", &namespace]));
        Ok(pids.is_ok_and(|pids| !pids.is_empty()).then_some(()))
    };
    wait_until("the manager to run", DEADLINE, runs).unwrap();

    verb.interrupt().unwrap();
    let status = wait_until("the verb to end", DEADLINE, || verb.ended()).unwrap();
    assert_eq!(status.code(), Some(130), "{}", fs::read_to_string(&verb.log).unwrap());
    assert!(!bed::list().unwrap().contains(&id));
    assert!(!Path::new("/run/netns").join(namespace).exists());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.iter().all(|path| path.is_file()), "{left:?}");
}
