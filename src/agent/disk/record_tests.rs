//! What an agent finds on disk may be of an earlier release.

use super::*;
use serde_json::{Value, json};

/// A tree's record as the first release wrote it.
fn first_tree() -> Value {
    json!({ "image": first_image(), "place": first_place() })
}

fn first_image() -> Value {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    json!({
        "id": digest("1"), "source": digest("2"),
        "index_digest": digest("3"), "index_bytes": 200,
        "blob_digest": digest("4"), "blob_bytes": 1000, "plain_bytes": 4096,
        "location": { "registry": { "repository": "registry:5000/block-images" } },
        "runtime": {
            "entrypoint": [], "cmd": ["/bin/server"], "env": { "PATH": "/bin" }, "cwd": "/",
            "uid": 0, "gid": 0, "additional_gids": [], "stop_signal": 15,
        },
    })
}

fn first_place() -> Value {
    json!({
        "tree": { "tenant": "acme", "image": format!("sha256:{}", "1".repeat(64)) },
        "epoch": { "term": 1, "counter": 7 },
        "stripes": [[{ "vm": { "vm": "vm-1", "address": { "V4": [[10, 0, 0, 1], 7000] } } }, "origin"]],
        "capability": { "claims": [1, 2, 3], "signature": [4, 5, 6] },
    })
}

fn written(data: &Path, name: &str, record: &Value) {
    let path = data.join(name);
    fs::create_dir_all(path.parent().expect("it has a folder")).expect("made");
    fs::write(path, encoded(record)).expect("written");
}

#[test]
fn records_of_the_first_release_are_read() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 2).expect("opened");
    written(data.path(), "images/acme.1111/record", &first_tree());
    let order = json!({
        "start": "s1", "function": "web", "image": first_image(), "place": first_place(),
        "env": { "NAME": "value" }, "memory_bytes": 1 << 20, "probe_path": "/", "ready_deadline_ms": 1000,
    });
    written(data.path(), "orders/s1", &json!({ "order": order, "port": 8080 }));
    let Records { trees, instances, .. } = cache.records().expect("read");
    let [(tree, record)] = &trees[..] else { panic!("one tree: {trees:?}") };
    assert_eq!((tree.tenant.as_str(), record.place.epoch.counter), ("acme", 7));
    assert_eq!(record.place.stripes[0].len(), 2);
    let [(start, record)] = &instances[..] else { panic!("one instance: {instances:?}") };
    assert_eq!((start.as_str(), record.port), ("s1", 8080));
}

#[test]
fn damaged_records_are_left_out_and_disturb_no_others() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 2).expect("opened");
    written(data.path(), "images/acme.1111/record", &first_tree());
    let whole = encoded(&first_tree());
    for length in (0..whole.len()).step_by(7) {
        let folder = data.path().join(format!("images/acme.cut{length}"));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("record"), &whole[..length]).expect("written");
    }
    written(data.path(), "orders/s1", &json!("nonsense"));
    fs::write(data.path().join("orders/s2.new"), b"half").expect("written");
    let Records { trees, instances, .. } = cache.records().expect("read");
    assert_eq!((trees.len(), instances.len()), (1, 0));
    assert!(!data.path().join("orders/s2.new").exists());
}

#[test]
fn images_of_trees_that_were_left_are_cold_again_in_the_order_of_leaving_and_what_has_no_record_is_removed() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 1).expect("opened");
    let minutes = |count: u64| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60 * count);
    for (digit, left_at) in [("1", 30), ("2", 10), ("3", 20)] {
        let mut record = first_tree();
        record["place"]["tree"]["image"] = json!(format!("sha256:{}", digit.repeat(64)));
        let name = format!("images/acme.{}/left", digit.repeat(64));
        written(data.path(), &name, &record);
        let file = File::options().write(true).open(data.path().join(name)).expect("it is there");
        file.set_modified(minutes(left_at)).expect("set");
    }
    // One that is a member again, whatever was written before.
    written(data.path(), &format!("images/acme.{}/record", "1".repeat(64)), &first_tree());
    fs::create_dir_all(data.path().join("images/acme.4444")).expect("made");
    let mount_point = data.path().join("images").join("5".repeat(64));
    fs::create_dir_all(&mount_point).expect("made");
    let records = cache.records().expect("read");
    assert!(mount_point.exists(), "the holder's");
    let digits: Vec<String> = records.cold.iter().map(|(tree, _)| tree.image.hex()[..1].to_owned()).collect();
    assert_eq!((records.trees.len(), digits), (1, vec!["2".to_owned(), "3".to_owned()]));
    assert!(!data.path().join("images/acme.4444").exists());
}
