//! What goes in comes out: trees packed by GNU tar against the mounted block image.

use crate::{
    mounted::{Mounted, assert_same, listing, set_mtime},
    oci::{Image, Layer},
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
};
use tempfile::TempDir;

/// Runs a program that must succeed, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    output.stdout
}

/// Everything a file system can hold that a tar archive can carry.
fn oddities(root: &Path) {
    let path = |name: &str| root.join(name);
    let text = |name: &str| path(name).display().to_string();
    fs::create_dir_all(path("usr/bin")).unwrap();
    fs::write(path("usr/bin/tool"), vec![7; 5000]).unwrap();
    fs::set_permissions(path("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    run("setcap", &["cap_net_bind_service,cap_net_admin=ep", &text("usr/bin/tool")]);
    fs::write(path("empty"), b"").unwrap();
    for (name, size) in [("block", 4096), ("more", 4097), ("large", 3 * 1024 * 1024 + 17)] {
        let bytes: Vec<u8> =
            (0..size).map(|place: u32| (place.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(path(name), bytes).unwrap();
    }
    fs::hard_link(path("more"), path("usr/more-again")).unwrap();
    symlink("/somewhere/absolute", path("absolute-link")).unwrap();
    symlink("x".repeat(4000), path("long-link")).unwrap();
    fs::hard_link(path("long-link"), path("long-link-again")).unwrap();
    let long = format!("{}/{}", "d".repeat(250), "e".repeat(255));
    fs::create_dir(path(&long[..250])).unwrap();
    fs::write(path(&long), b"long").unwrap();
    fs::write(path("\u{e4}\u{f6} \\ \"quoted\"\nlines"), b"odd").unwrap();
    fs::write(path("!before-dots"), b"sorts before the dot").unwrap();
    fs::write(path(".hidden"), b"sorts behind it").unwrap();
    run("mknod", &[&text("null"), "c", "1", "3"]);
    run("mknod", &[&text("disk"), "b", "259", "300"]);
    run("mkfifo", &[&text("pipe")]);
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(9 * 1024 * 1024).unwrap();
    for place in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", place * 200_000 + 77).unwrap();
    }
    run("setfattr", &["-n", "user.lines", "-v", "0x0a0a3d0a00ff", &text("more")]);
    run("setfattr", &["-n", "user.empty", &text("more")]);
    run("setfattr", &["-n", "trusted.secret", "-v", "yes", &text("usr")]);
    run("setfattr", &["-n", "user.big", "-v", &"v".repeat(3000), &text("empty")]);
    fs::write(path("owned"), b"owned").unwrap();
    chown(path("owned"), Some(1234), Some(4_000_000_000)).unwrap();
    fs::set_permissions(path("owned"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::create_dir(path("sticky")).unwrap();
    fs::set_permissions(path("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path("ancient"), b"1960").unwrap();
    set_mtime(&path("ancient"), -300_000_000, 250_000_000);
    fs::write(path("future"), b"2400").unwrap();
    set_mtime(&path("future"), 13_600_000_000, 999_999_999);
    set_mtime(&path("absolute-link"), 1_000_000_000, 123_456_789);
}

/// Packs a folder with GNU tar.
fn gnu_tar(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let folder = folder.display().to_string();
    let mut all = vec!["-C", &folder, "-cf", "-"];
    all.extend(arguments);
    all.push(".");
    run("tar", &all)
}

#[test]
fn all_oddities_survive_in_the_pax_format() {
    let source = TempDir::new().unwrap();
    oddities(source.path());
    let formats: [&[&str]; 4] = [
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"],
    ];
    let mut expected = listing(source.path());
    let mut ids = Vec::new();
    for format in formats {
        let tar = gnu_tar(source.path(), format);
        for layer in [Layer::plain(tar.clone()), Layer::gzip(&tar), Layer::zstd(&tar)] {
            let converted = Image::new(&[layer]).convert().unwrap();
            ids.push(converted.image.blob_digest);
            let mounted = Mounted::new(&converted);
            // Only the owner of the temporary folder can say when it was last changed.
            let got = listing(&mounted.root());
            expected.insert("".into(), got[Path::new("")].clone());
            assert_same(&got, &expected);
        }
    }
}

#[test]
fn the_gnu_format_loses_only_what_it_cannot_hold() {
    let source = TempDir::new().unwrap();
    oddities(source.path());
    let tar = gnu_tar(source.path(), &["--format=gnu", "--sparse"]);
    let reference = TempDir::new().unwrap();
    let archive = reference.path().join("layer.tar");
    fs::write(&archive, &tar).unwrap();
    let root = reference.path().join("root");
    fs::create_dir(&root).unwrap();
    run(
        "tar",
        &["--numeric-owner", "-pxf", &archive.display().to_string(), "-C", &root.display().to_string()],
    );
    let mounted = Mounted::new(&Image::new(&[Layer::plain(tar)]).convert().unwrap());
    assert_same(&listing(&mounted.root()), &listing(&root));
}
