//! What an agent finds on disk may be of an earlier release.

use super::*;
use faasnet_actors::{agent::world::Disk, id::TreeId};
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
    fs::write(path, rmp_serde::to_vec_named(record).expect("encodes")).expect("written");
}

/// The name of the first tree's folder.
fn first_folder() -> String {
    format!("images/acme.{}", "1".repeat(64))
}

fn first_order() -> Value {
    json!({
        "start": "s1", "function": "web", "image": first_image(), "place": first_place(),
        "env": { "NAME": "value" }, "memory_bytes": 1 << 20, "probe_path": "/", "ready_deadline_ms": 1000,
    })
}

/// A record as this release writes it.
fn read_as<T: DeserializeOwned>(value: &Value) -> T {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(value).expect("encodes")).expect("is one")
}

#[test]
fn records_of_the_first_release_are_read() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 2).expect("opened");
    written(data.path(), &format!("{}/record", first_folder()), &first_tree());
    written(data.path(), "orders/s1", &json!({ "order": first_order(), "port": 8080 }));
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
    written(data.path(), &format!("{}/record", first_folder()), &first_tree());
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
        let image = json!(format!("sha256:{}", digit.repeat(64)));
        (record["place"]["tree"]["image"], record["image"]["id"]) = (image.clone(), image);
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

#[tokio::test]
async fn a_record_with_any_byte_changed_is_left_out() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 1).expect("opened");
    let record: InstanceRecord = read_as(&json!({ "order": first_order(), "port": 8080 }));
    let start: StartId = "s1".parse().expect("a name");
    cache.save_instance(&start, Some(record.clone())).await.expect("written");
    let path = data.path().join("orders/s1");
    let whole = fs::read(&path).expect("read");
    let read = || cache.records().expect("read").instances;
    let [(read_start, read_record)] = &read()[..] else { panic!("one instance") };
    assert_eq!((read_start, &read_record.order, read_record.port), (&start, &record.order, 8080));
    for place in 0..whole.len() {
        let mut changed = whole.clone();
        changed[place] ^= 1 << (place % 8);
        fs::write(&path, changed).expect("written");
        assert!(read().is_empty(), "byte {place} of {}", whole.len());
    }
}

#[tokio::test]
async fn a_record_counts_only_where_it_belongs() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 1).expect("opened");
    let tree: TreeId = read_as(&first_place()["tree"]);
    fs::create_dir_all(data.path().join(first_folder())).expect("made");
    cache.save_place(&tree, read_as(&first_tree())).await.expect("written");
    // A copy in the folder of another image, and one that names another image than its tree's.
    let other = data.path().join(format!("images/acme.{}", "2".repeat(64)));
    fs::create_dir(&other).expect("made");
    fs::copy(data.path().join(first_folder()).join("record"), other.join("record")).expect("copied");
    let mut mixed = first_tree();
    mixed["place"]["tree"]["image"] = json!(format!("sha256:{}", "3".repeat(64)));
    let third = data.path().join(format!("images/acme.{}", "3".repeat(64)));
    fs::create_dir(&third).expect("made");
    fs::write(third.join("left"), encoded(&mixed)).expect("written");
    fs::write(data.path().join("orders/s9"), encoded(&json!({ "order": first_order(), "port": 1 })))
        .expect("written");
    let Records { trees, cold, instances } = cache.records().expect("read");
    assert_eq!((trees.len(), cold.len(), instances.len()), (1, 0, 0));
    assert!(!other.exists() && !third.exists(), "nobody would count what they hold");
}

#[tokio::test]
async fn what_is_no_record_or_folder_keeps_no_agent_from_starting() {
    let data = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(data.path(), 1).expect("opened");
    let (elsewhere, images) = (data.path().join("elsewhere"), data.path().join("images"));
    fs::create_dir(&elsewhere).expect("made");
    fs::write(elsewhere.join("file"), b"precious").expect("written");
    fs::write(images.join("acme.file"), b"stray").expect("written");
    std::os::unix::fs::symlink(&elsewhere, images.join("acme.link")).expect("linked");
    fs::create_dir_all(data.path().join("orders/s1.new/deep")).expect("made");
    fs::create_dir(data.path().join("orders/s2")).expect("made");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.path().join("orders/s3"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    let Records { trees, cold, instances } = cache.records().expect("read");
    assert_eq!((trees.len(), cold.len(), instances.len()), (0, 0, 0));
    assert_eq!(fs::read_dir(&images).expect("there").count(), 0);
    assert!(!data.path().join("orders/s1.new").exists());
    assert_eq!(fs::read(elsewhere.join("file")).expect("there"), b"precious");
    // And such a record can be written.
    let record: InstanceRecord = read_as(&json!({ "order": first_order(), "port": 8080 }));
    for start in ["s1", "s2", "s3"] {
        cache.save_instance(&start.parse().expect("a name"), Some(record.clone())).await.expect("written");
    }
}
