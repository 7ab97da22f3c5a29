//! Functions of zips: their code is their own, and the blocks of the image that it runs in are everybody's.

use crate::support::*;
use faasnet_loadtest::{
    bed::{LinkChange, Rate},
    rig::{Api, Cluster, run, split_mix, wait_until},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};
use tempfile::TempDir;

/// Answers with its name and with what its files contain.
const PROGRAM: &str = r#"
import http.server, hashlib, json, os, urllib.parse
NAME = "@NAME@"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/read":
            with open(query["path"], "rb") as file:
                answer = hashlib.sha256(file.read()).hexdigest()
        else:
            answer = json.dumps(dict(name=NAME, file=__file__, pid=os.getpid(), port=int(os.environ["PORT"]),
                                     files=sorted(os.listdir("/var/task"))))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// A zip as Info-ZIP makes it of such a program and of more files.
fn package(folder: &Path, name: &str, more: &[(String, Vec<u8>)]) -> PathBuf {
    let source = folder.join(name);
    fs::create_dir(&source).unwrap();
    fs::write(source.join("app.py"), PROGRAM.replace("@NAME@", name)).unwrap();
    for (file, data) in more {
        fs::write(source.join(file), data).unwrap();
    }
    let zip = folder.join(format!("{name}.zip"));
    run(Command::new("zip").args(["-q", "-r"]).arg(&zip).arg(".").current_dir(&source)).unwrap();
    zip
}

/// Deploys a function of that package and gives what the API says of it.
fn deploy(cluster: &Cluster, name: &str, zip: &Path, reference: &str, more: &[&str]) -> Value {
    let zip = zip.to_str().unwrap();
    let place = ["--json", "function", "deploy", name, "--zip", zip, "--runtime", reference];
    let command = ["--command", "/usr/bin/python3.11", "/var/task/app.py"];
    let shown = cluster.cli(&[&place, more, &command[..]].concat()).unwrap();
    serde_json::from_str(&shown).unwrap()
}

/// What a VM holds of a block image, and the stored bytes that it got of it: parent, others, origin.
fn held(vm: &Value, image: &str) -> (u64, u64, [u64; 3]) {
    let trees = vm["trees"].as_array().unwrap();
    let tree = trees.iter().find(|tree| text(tree, "image") == image);
    let tree = tree.unwrap_or_else(|| panic!("no tree of {image} in {vm}"));
    let bytes = ["parent", "ancestor", "origin"].map(|source| number(tree, &format!("/bytes/{source}")));
    (number(tree, "/blocks_present"), number(tree, "/blocks_total"), bytes)
}

/// The same of every VM.
fn held_by_all(cluster: &Cluster, image: &str) -> BTreeMap<String, (u64, u64, [u64; 3])> {
    let vms = resting_vms(cluster);
    vms.iter().map(|(name, vm)| (name.clone(), held(vm, image))).collect()
}

/// The blobs of a block image, index first: their digests and lengths.
fn blobs(cluster: &Cluster, image: &str) -> Vec<(String, u64)> {
    let manifest: Value =
        serde_json::from_slice(&fs::read(cluster.registry.blob_file(image)).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| (text(layer, "digest").to_owned(), number(layer, "/size"))).collect()
}

/// Bytes of each blob of a block image that the registry gave so far.
fn given(cluster: &Cluster, image: &str) -> Vec<u64> {
    let by_blob = cluster.registry.given_by_blob().unwrap();
    let of = |digest: &String| by_blob.get(digest).copied().unwrap_or_default().bytes;
    blobs(cluster, image).iter().map(|(digest, _)| of(digest)).collect()
}

fn sizes(cluster: &Cluster, image: &str) -> Vec<u64> {
    blobs(cluster, image).into_iter().map(|(_, size)| size).collect()
}

fn vms_of(starts: &[Value]) -> BTreeSet<&str> {
    starts.iter().map(|start| text(start, "vm")).collect()
}

fn greeting(cluster: &Cluster, function: &str, start: &Value) -> Value {
    serde_json::from_str(&invoke(cluster, function, "/", start)).unwrap()
}

/// Waits for the one instance that comes in place of others.
fn replacement(cluster: &Cluster, function: &str, old: &[Value]) -> Value {
    let old: BTreeSet<&str> = old.iter().map(|start| text(start, "id")).collect();
    let path = format!("/v1/functions/{function}/starts");
    let ready = || {
        let answer = cluster.api.get(&path)?;
        let starts = answer["starts"].as_array().unwrap();
        let state = |start: &Value| text(start, "state").to_owned();
        let (before, after): (Vec<_>, Vec<_>) =
            starts.iter().partition(|start| old.contains(text(start, "id")));
        let is_over = before.iter().all(|start| state(start) == "ended");
        Ok(after.into_iter().find(|start| is_over && state(start) == "ready").cloned())
    };
    wait_until("a new instance in place of the old ones", READY, ready).unwrap()
}

#[test]
fn two_functions_have_their_own_code_and_share_the_blocks_of_their_runtime() {
    let mut spec = spec(2);
    // Room for an instance of each function, and for one that takes the place of another.
    spec.settings.insert("AGENT__MEMORY_BYTES".into(), (768_u64 << 20).to_string());
    // To tell what the first starts read, the manager reads the image's index and metadata as well.
    spec.settings.insert("PROFILE__RECORDINGS_MAX".into(), "0".into());
    let (mut cluster, reference) = cluster_with_python(spec);
    let folder = TempDir::new().unwrap();

    // Of the first function everything is brought to its VMs, so that it is known what is there.
    let first = package(folder.path(), "first", &[]);
    let one = deploy(&cluster, "one", &first, &reference, &["--mode", "whole"]);
    let runtime = text(&one["image_state"], "id").to_owned();
    let before = given(&cluster, &runtime);
    let ones = start_ready(&cluster, "one", 2);
    assert_eq!(vms_of(&ones).len(), 2, "{ones:?}");
    let runtime_held = held_by_all(&cluster, &runtime);
    let mut origin_bytes = 0;
    for (vm, (present, total, bytes)) in &runtime_held {
        eprintln!("{vm}: {present} of {total} blocks of the runtime; parent, others, origin {bytes:?}");
        assert!(present == total && *total > 50, "{vm} holds {present} of {total}");
        origin_bytes += bytes[2];
    }
    assert!(origin_bytes > 0);
    let after_ones = given(&cluster, &runtime);
    let gave: Vec<u64> = after_ones.iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(gave, sizes(&cluster, &runtime), "each byte of the runtime's blobs once");

    // The second one finds the runtime there; only its code travels, and that once from the registry.
    let second = package(folder.path(), "second", &[("notes.txt".into(), b"only here".to_vec())]);
    let two = deploy(&cluster, "two", &second, &reference, &[]);
    assert_eq!(text(&two["image_state"], "id"), runtime);
    let code = text(&two["code_state"], "id").to_owned();
    assert_ne!(code, text(&one["code_state"], "id"));
    let code_before = given(&cluster, &code);
    let twos = start_ready(&cluster, "two", 2);
    assert_eq!(vms_of(&twos), vms_of(&ones));
    assert_eq!(held_by_all(&cluster, &runtime), runtime_held, "nothing of the runtime came over the network");
    assert_eq!(given(&cluster, &runtime), after_ones, "nor from the registry");
    for start in &twos {
        let bytes: u64 = ["parent", "ancestor", "origin"]
            .map(|source| number(start, &format!("/bytes/{source}")))
            .iter()
            .sum();
        let stored = number(&two, "/code_state/stored_bytes");
        assert!((1..=stored).contains(&bytes), "{bytes} bytes came for code of {stored}");
    }
    let given_code =
        given(&cluster, &code).into_iter().zip(code_before).map(|(after, before)| after - before);
    for (bytes, size) in given_code.zip(sizes(&cluster, &code)) {
        assert!((1..=size).contains(&bytes), "{bytes} of {size} bytes of the code");
    }
    for (function, starts, name) in [("one", &ones, "first"), ("two", &twos, "second")] {
        let files = if name == "first" { json!(["app.py"]) } else { json!(["app.py", "notes.txt"]) };
        for start in starts {
            let hello = greeting(&cluster, function, start);
            assert_eq!((text(&hello, "name"), text(&hello, "file")), (name, "/var/task/app.py"), "{hello}");
            assert_eq!(hello["files"], files, "{hello}");
        }
    }

    // Two trees, each of both VMs.
    let tree = cluster.api.get("/v1/functions/two/tree").unwrap();
    for (tree, image) in [(&tree, &runtime), (&tree["code"], &code)] {
        assert_eq!((text(tree, "image"), tree["members"].as_array().unwrap().len()), (image.as_str(), 2));
    }

    // New code for the first function: its instances are replaced, the runtime's blocks stay.
    let data = (0..FILES).map(|number| (format!("data-{number}"), noise(number)));
    let third = package(folder.path(), "third", &data.collect::<Vec<_>>());
    let one = deploy(&cluster, "one", &third, &reference, &["--mode", "lazy"]);
    assert_eq!(text(&one["image_state"], "id"), runtime);
    let start = replacement(&cluster, "one", &ones);
    let hello = greeting(&cluster, "one", &start);
    assert_eq!(text(&hello, "name"), "third", "{hello}");
    assert_eq!(held_by_all(&cluster, &runtime), runtime_held);
    assert_eq!(given(&cluster, &runtime), after_ones);
    for start in &twos {
        assert_eq!(text(&greeting(&cluster, "two", start), "name"), "second");
    }

    code_is_read_while_the_agent_is_killed(&mut cluster, &start, &hello, text(&one["code_state"], "id"));
}

/// Of half a MiB each, a block that nothing compresses.
const FILES: u64 = 48;
const FILE_BYTES: usize = 512 << 10;
/// The files take some four seconds at that rate, so that there is a middle.
const LINK: u64 = 50;

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..FILE_BYTES / 8).flat_map(|_| split_mix(&mut state).to_le_bytes()).collect()
}

/// An instance reads its code over a slow line, and its agent is killed twice meanwhile.
fn code_is_read_while_the_agent_is_killed(cluster: &mut Cluster, start: &Value, hello: &Value, code: &str) {
    let vm = text(start, "vm").to_owned();
    // The container's own port: requests over the gateway would rightly fail while the agent is away.
    let port = u16::try_from(number(hello, "/port")).unwrap();
    let from = Some((cluster.bed.state().clone(), vm.clone()));
    let container = Api { address: SocketAddr::from(([127, 0, 0, 1], port)), token: String::new(), from };
    cluster.bed.set_link(&vm, LinkChange::Rate(Rate::mbit(LINK))).unwrap();
    let (present, total, _) = held(&resting_vms(cluster)[&vm], code);
    assert!(present < total / 2, "{present} of {total} blocks of the code are there already");
    let read = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for number in 0..FILES {
                let answer =
                    container.call("GET", &format!("/read?path=/var/task/data-{number}"), "").unwrap();
                let expected = faasnet::image::artifact::digest_of(&noise(number)).hex();
                assert_eq!(answer.text(), expected, "data-{number}");
                read.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..2 {
            let before = read.load(Ordering::Relaxed);
            let went_on = || Ok((read.load(Ordering::Relaxed) > before).then_some(()));
            wait_until("the reading to go on", READY, went_on).unwrap();
            assert!(!reader.is_finished(), "the agent is killed in the middle");
            cluster.kill_agent(&vm).unwrap();
            cluster.start_agent(&vm).unwrap();
        }
        reader.join().expect("no read failed");
    });
    assert_eq!(read.load(Ordering::Relaxed) as u64, FILES);
    // The same process, with the same code, reached over the gateway again.
    let again = || Ok(cluster.cli(&["invoke", "one", "/", "--on", text(start, "id")]).ok());
    let answer = wait_until("the agent to join again", READY, again).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), *hello);
}

/// What deploying a zip complained about.
fn complaint(cluster: &Cluster, zip: &Path, reference: &str) -> String {
    let zip = zip.to_str().unwrap();
    let deploy = ["function", "deploy", "broken", "--zip", zip, "--runtime", reference];
    format!("{:#}", cluster.cli(&deploy).unwrap_err())
}

#[test]
fn packages_that_only_unpacking_shows_to_be_bad_fail_their_deployment_and_no_other() {
    let mut spec = spec(1);
    for (key, value) in [("CODE__PLAIN_BYTES_MAX", 32 << 20), ("CODE__ENTRIES_MAX", 50)] {
        spec.settings.insert(key.to_owned(), value.to_string());
    }
    let (cluster, reference) = cluster_with_python(spec);
    let folder = TempDir::new().unwrap();
    let good = package(folder.path(), "good", &[]);
    deploy(&cluster, "good", &good, &reference, &[]);

    let zeros = |bytes| vec![("zeros".to_owned(), vec![0; bytes])];
    let many: Vec<_> = (0..60).map(|number| (number.to_string(), Vec::new())).collect();
    for (name, more, wanted) in [
        ("bomb", zeros(20 << 20), "code.ratio_max"),
        ("large", zeros(40 << 20), "code.plain_bytes_max"),
        ("many", many, "code.entries_max"),
    ] {
        let complaint = complaint(&cluster, &package(folder.path(), name, &more), &reference);
        assert!(complaint.contains(wanted) && complaint.contains("leave out"), "{name}: {complaint}");
    }
    // A byte of a file's data; its header and the directory are as they were.
    let zip = package(folder.path(), "damaged", &[("noise".to_owned(), noise(1))]);
    let mut bytes = fs::read(&zip).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&zip, bytes).unwrap();
    let complaint = complaint(&cluster, &zip, &reference);
    assert!(complaint.contains("noise") && complaint.contains("checksum"), "{complaint}");
    assert!(complaint.contains("make the zip again"), "{complaint}");

    let start = start_ready(&cluster, "good", 1).remove(0);
    assert_eq!(text(&greeting(&cluster, "good", &start), "name"), "good");
}
