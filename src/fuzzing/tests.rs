//! Every target on its seeds, and on what was found before. With `FAASNET_FUZZ_CORPUS=DIR` the seeds are
//! written there, for the fuzzer to begin with.

use super::*;
use crate::image::{
    erofs::read::tests::image,
    zip::tests::{FILE, FOLDER, LINK, Part, zip as zip_of},
};
use faasnet_actors::{
    id::{BlockId, Digest, TreeId},
    profile::FilePath,
    wire::{
        PROTOCOL_VERSION,
        control::{Capability, EndReason, Hello, JoinRefusal, StartReport},
        holder::Exit,
        peer::{NotServed, Reach, Refusal, Urgency},
    },
};
use std::{fs, path::Path};

fn frame(speaker: u8, header: &impl Serialize, body: &[u8]) -> Vec<u8> {
    let head = encode_head(header, body.len()).expect("encodes");
    [&[speaker][..], &head, body].concat()
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let tree = TreeId { tenant: "acme".parse().expect("valid"), image: Digest::from_bytes([1; 32]) };
    let capability = Capability { claims: vec![1, 2, 3], signature: vec![4; 64] };
    let start = || "s1".parse().expect("valid");
    let want = ToParent::Want {
        request: None,
        blocks: vec![BlockId(1), BlockId(70_000)],
        urgency: Urgency::Demand,
        path: vec!["vm-1".parse().expect("valid")],
        reach: Reach::Upward { stripes: 2, depth: 3 },
    };
    let hello = Hello {
        version: PROTOCOL_VERSION,
        memory_bytes: 1 << 30,
        cpu_millis: 1000,
        address: ([127, 0, 0, 1], 1000).into(),
        held: Vec::new(),
        proofs: vec![capability.clone()],
        instances: Vec::new(),
    };
    let image = Digest::from_bytes([2; 32]);
    vec![
        frame(0, &ToParent::Open { version: 1, tree: tree.clone(), capability }, &[]),
        frame(0, &want, &[]),
        frame(0, &ToParent::Corrupt { block: BlockId(9) }, &[]),
        frame(1, &FromParent::Block { block: BlockId(1) }, &[7; 100]),
        frame(1, &FromParent::NotServed { block: BlockId(1), reason: NotServed::Loop }, &[]),
        frame(1, &FromParent::Refused { reason: Refusal::NotHeld }, &[]),
        frame(1, &FromParent::Waiting { silent_ms: 5 }, &[]),
        frame(2, &ToManager::Hello(hello), &[]),
        frame(
            2,
            &ToManager::Ended {
                start: start(),
                reason: EndReason::Exited(Exit::Code(1)),
                report: StartReport::default(),
            },
            &[],
        ),
        frame(2, &ToManager::Yield, &[]),
        frame(3, &ToAgent::Stop { start: start() }, &[]),
        frame(3, &ToAgent::Welcome { version: 1, heartbeat_ms: 1000, capability_key: vec![1; 32] }, &[]),
        frame(4, &ToHolder::Present { image, blocks: vec![BlockId(3)] }, &[]),
        frame(4, &ToHolder::Stop { start: start(), grace_ms: 1 }, &[]),
        frame(5, &FromHolder::Miss { image, blocks: vec![BlockId(3)] }, &[]),
        frame(5, &FromHolder::Exited { start: start(), exit: Exit::OutOfMemory }, &[]),
        frame(7, &JoinAnswer::Refused { reason: JoinRefusal::Token }, &[]),
        frame(8, &RequestHead::Logs { start: start(), tail_bytes: 1 }, &[]),
        frame(9, &RequestAnswer::Ready, b"HTTP/1.1 200 OK"),
        frame(10, &(ToPredecessor::HandOver { version: 1 }, FromPredecessor::Yours), &[]),
    ]
}

fn index_seeds() -> Vec<Vec<u8>> {
    let entry = |number: u64, codec| BlockEntry {
        offset: number * 100,
        stored_bytes: if codec == Codec::Plain { BLOCK_BYTES } else { 100 },
        codec,
        hash: [number as u8; 32],
    };
    let zstd = (0..3).map(|number| entry(number, Codec::Zstd)).collect();
    let three = Index::new(2 * u64::from(BLOCK_BYTES) + 4096, 1, zstd).expect("valid");
    let plain = Index::new(u64::from(BLOCK_BYTES), 1, vec![entry(0, Codec::Plain)]).expect("valid");
    vec![three.encode(), plain.encode()]
}

fn block_seeds() -> Vec<Vec<u8>> {
    let plain = vec![7; 8192];
    let packed = zstd::bulk::compress(&plain, 3).expect("compresses");
    vec![[&[0, 4][..], &plain].concat(), [&[1, 4][..], &packed].concat()]
}

fn profile_seeds() -> Vec<Vec<u8>> {
    let part = |path: &str, range| (FilePath::new(path.as_bytes()).expect("a path"), range);
    let one = Profile::recorded([part("/bin/sh", 0..4096), part("/lib/libc.so", 8192..12288)]);
    let other = Profile::recorded([part("/lib/libc.so", 8192..9000), part("/etc/passwd", 0..1)]);
    let packed = |profile| rmp_serde::to_vec_named(profile).expect("plain data");
    let (one_packed, other_packed) = (packed(&one), packed(&other));
    let cut = (one_packed.len() * 256).div_ceil(one_packed.len() + other_packed.len());
    let both = [&[cut as u8][..], &one_packed, &other_packed].concat();
    vec![both, [&[255][..], &serde_json::to_vec(&one).expect("plain data"), b" "].concat()]
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "1".repeat(64));
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":5}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{layer},"layers":[{layer}],"annotations":{{"a":"b"}}}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":5,"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"web:staff","Env":["A=b"],"Cmd":["x"],"WorkingDir":"/srv","StopSignal":"SIGTERM"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let accounts = "\0web:x:7:8::/:/bin/sh\nstaff:x:9:web\n";
    let texts = [manifest, index, config + accounts, format!("registry:5000/team/app:1@{digest}")];
    texts.map(String::into_bytes).to_vec()
}

fn layer_seeds() -> Vec<Vec<u8>> {
    let archive = |add: &dyn Fn(&mut tar::Builder<Vec<u8>>)| {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder);
        builder.into_inner().expect("written")
    };
    let header = |kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    };
    let lower = archive(&|builder| {
        builder.append_data(&mut header(tar::EntryType::Directory, 0), "etc", io::empty()).expect("added");
        builder
            .append_data(&mut header(tar::EntryType::Regular, 5), "etc/name", &b"hello"[..])
            .expect("added");
        builder.append_link(&mut header(tar::EntryType::Link, 0), "etc/same", "etc/name").expect("added");
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "link", "/etc/name").expect("added");
        let long = "x".repeat(150);
        builder.append_data(&mut header(tar::EntryType::Regular, 1), long, &b"y"[..]).expect("added");
    });
    let upper = archive(&|builder| {
        builder
            .append_data(&mut header(tar::EntryType::Regular, 0), "etc/.wh.name", io::empty())
            .expect("added");
        builder
            .append_data(&mut header(tar::EntryType::Regular, 0), ".wh..wh..opq", io::empty())
            .expect("added");
        builder.append_pax_extensions([("SCHILY.xattr.user.a", &b"b\n"[..])]).expect("added");
        builder.append_data(&mut header(tar::EntryType::Regular, 3), "etc/name", &b"new"[..]).expect("added");
        builder.append_data(&mut header(tar::EntryType::Fifo, 0), "pipe", io::empty()).expect("added");
    });
    let cut = (lower.len() * 256).div_ceil(lower.len() + upper.len());
    vec![[&[cut as u8][..], &lower, &upper].concat(), [&[255][..], &upper].concat()]
}

fn zip_seeds() -> Vec<Vec<u8>> {
    let parts = [
        Part::new("bin/run", 0o100_755, b"#!/bin/sh\n"),
        Part::new("lib/", FOLDER, b""),
        Part::deflated("lib/app.py", &[7; 5000]),
        Part::new("lib/link", LINK, b"../bin/run"),
        Part::new("empty", FILE, b""),
    ];
    vec![zip_of(&parts), zip_of(&[Part::zstd("z", &[9; 5000])]), zip_of(&[])]
}

fn erofs_seeds() -> Vec<Vec<u8>> {
    let sizes: [&[u64]; 3] = [&[], &[1, 0], &[5000, 3, 4096]];
    sizes.map(|sizes| image(sizes).0).to_vec()
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frames" => frame_seeds(),
        "index" => index_seeds(),
        "block" => block_seeds(),
        "profile" => profile_seeds(),
        "manifest" => manifest_seeds(),
        "layer" => layer_seeds(),
        "zip" => zip_seeds(),
        "erofs" => erofs_seeds(),
        other => panic!("the target {other} has no seeds"),
    }
}

#[test]
fn every_target_takes_its_seeds_and_each_of_them_cut_short_or_with_a_wrong_byte() {
    let corpus = std::env::var_os("FAASNET_FUZZ_CORPUS");
    for (name, target) in TARGETS {
        for (number, seed) in seeds(name).into_iter().enumerate() {
            if let Some(corpus) = &corpus {
                let folder = Path::new(corpus).join(name);
                fs::create_dir_all(&folder).expect("made");
                fs::write(folder.join(format!("seed-{number}")), &seed).expect("written");
            }
            target(&seed);
            let step = (seed.len() / 50).max(1);
            for place in (0..seed.len()).step_by(step) {
                target(&seed[..place]);
                let mut wrong = seed.clone();
                wrong[place] ^= 0x41;
                target(&wrong);
            }
        }
    }
}

/// `fuzz/found/TARGET/NAME`: inputs that once showed a mistake, which is mended.
#[test]
fn what_was_found_is_mended() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/found");
    for (name, target) in TARGETS {
        for input in fs::read_dir(found.join(name)).into_iter().flatten() {
            let path = input.expect("readable").path();
            eprintln!("{}", path.display());
            target(&fs::read(path).expect("readable"));
        }
    }
}
