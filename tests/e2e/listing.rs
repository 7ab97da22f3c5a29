//! The two listings that other tests compare, one in Rust and one in Python, see the same on one tree.

use crate::support::*;
use faasnet_loadtest::rig::run;
use std::process::Command;

#[test]
fn python_inside_the_image_lists_what_is_listed_from_outside() {
    let image = python();
    let folder = tempfile::tempdir_in(cache()).unwrap();
    let rootfs = image.unpack(folder.path()).unwrap();
    let script = "mount -t proc proc proc && exec chroot . /usr/bin/python3.11 /srv/server.py --list";
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c", script]).current_dir(&rootfs);
    let seen = container_listing(&run(&mut inside).unwrap());
    let reference = reference_listing(&image);
    assert_same_tree(&reference, &seen);

    // What the image is to show is in it.
    let odd = |name: &str| &reference[&format!("/opt/odd/{name}")];
    assert!(odd("capable").xattrs.contains_key("security.capability"));
    assert!(odd("listed").xattrs.contains_key("system.posix_acl_access"));
    assert!(odd("sticky").xattrs.contains_key("system.posix_acl_default"));
    assert_eq!(odd("noted").xattrs["user.note"], "72656d656d626572");
    assert_eq!((odd("linked").links, odd("owned").uid, odd("owned").mode), (3, 1000, 0o4750));
    assert_eq!([odd("null-device"), odd("pipe")].map(|entry| entry.kind.as_str()), ["char", "pipe"]);
    assert_eq!((odd("sparse").bytes, odd("replaced-later").bytes), (3 << 20, 7));
    assert!(!reference.contains_key("/opt/odd/removed-later"));
}
