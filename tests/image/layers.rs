//! Several layers over each other, against what umoci unpacks from the same image.

use crate::{
    archive::{Archive, Header},
    mounted::{Facts, Mounted, assert_same, listing},
    oci::{Image, Layer},
    roundtrip::run,
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

fn unpacked_by_umoci(image: &Image) -> BTreeMap<PathBuf, Facts> {
    let folder = TempDir::new().unwrap();
    let bundle = folder.path().join("bundle");
    let name = format!("{}:test", image.folder.path().display());
    run("umoci", &["unpack", "--image", &name, &bundle.display().to_string()]);
    listing(&bundle.join("rootfs"))
}

fn mounted(image: &Image) -> BTreeMap<PathBuf, Facts> {
    listing(&Mounted::new(&image.convert().unwrap()).root())
}

#[test]
fn layers_cover_each_other_as_when_they_are_unpacked() {
    let lower = Archive::default()
        .directory("./")
        .directory("etc/")
        .file("etc/kept", b"kept")
        .file("etc/deleted", b"deleted")
        .file("etc/changed", b"old")
        .directory("opaque/")
        .directory("opaque/below/")
        .file("opaque/below/old", b"old")
        .file("opaque/old", b"old")
        .directory("gone/")
        .directory("gone/deep/")
        .file("gone/deep/file", b"file")
        .directory("becomes-file/")
        .file("becomes-file/child", b"child")
        .file("becomes-directory", b"file")
        .symlink("becomes-real", "etc")
        .file("target", b"linked from above")
        .file("doomed-target", b"survives under its other name")
        .hard_link("twin", "target")
        .finish();
    let middle = Archive::default()
        .directory("./")
        .directory("etc/")
        .file("etc/.wh.deleted", b"")
        .file("etc/changed", b"new and longer")
        .directory("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file(".wh.gone", b"")
        .file("becomes-file", b"file")
        .directory("becomes-directory/")
        .file("becomes-directory/child", b"child")
        .directory("becomes-real/")
        .file("becomes-real/child", b"child")
        .hard_link("linked-across", "target")
        .hard_link("last-name", "doomed-target")
        .file(".wh.doomed-target", b"")
        .finish();
    let upper = Archive::default()
        .directory("./")
        .directory("gone/")
        .file("gone/again", b"again")
        .file("etc/deleted", b"back")
        .file("twin", b"no longer linked")
        .file("duplicate", b"first")
        .file("duplicate", b"second")
        .finish();
    let layers = [Layer::plain(lower), Layer::gzip(&middle), Layer::gzip(&upper)];
    let image = Image::new(&layers);
    let got = mounted(&image);
    assert_eq!(got[Path::new("target")].links, 2);
    assert_eq!(got[Path::new("linked-across")].same_as, Path::new("linked-across"));
    assert!(!got.contains_key(Path::new("opaque/old")));
    assert_same(&got, &unpacked_by_umoci(&image));
}

#[test]
fn a_whiteout_spares_what_its_own_layer_brings_in_whatever_order() {
    let lower = Archive::default().directory("d").file("d/old", b"old").file("f", b"old").finish();
    let upper = Archive::default()
        .file("d/new", b"new")
        .file("f", b"new")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.f", b"")
        .file(".wh.d", b"")
        .finish();
    let got = mounted(&Image::new(&[Layer::plain(lower), Layer::plain(upper)]));
    let names: Vec<_> = got.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["", "d", "d/new", "f"]);
    assert_eq!(got[Path::new("f")].size, 3);
}

#[test]
fn names_may_be_what_the_formats_allow() {
    let long = ["directory".repeat(25), "name".repeat(60)].join("/");
    let tar = Archive::default().file("implied/by/file", b"x").symlink("/", "implied").finish();
    assert!(Image::new(&[Layer::plain(tar)]).convert().is_err(), "the root cannot be a file");
    let tar = Archive::default()
        .directory("/")
        .file("./implied/./by//file", b"x")
        .pax(&[("path", long.as_bytes()), ("mtime", b"-1.25"), ("uid", b"4294967294")])
        .file("short", b"long")
        .header(Header { path: b"old-directory/".to_vec(), ..Header::new(0, "") })
        .finish();
    let got = mounted(&Image::new(&[Layer::plain(tar)]));
    assert_eq!(got[Path::new("implied/by")].mode, 0o755);
    let facts = &got[Path::new(&long)];
    assert_eq!((facts.mtime, facts.uid), ((-2, 750_000_000), u32::MAX - 1));
    assert_eq!(got[Path::new("old-directory")].kind, "directory");
}

#[test]
fn access_lists_arrive_as_the_kernel_wrote_them() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().display().to_string();
    run("setfacl", &["-m", "u:1234:rwx,g:99:r,d:u:77:rx", &root]);
    let value = |name: &str| {
        let mut value = vec![0; 1000];
        let length = rustix::fs::lgetxattr(folder.path(), name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    let (access, default) = (value("system.posix_acl_access"), value("system.posix_acl_default"));
    let tar = Archive::default()
        .pax(&[
            ("SCHILY.xattr.system.posix_acl_access", &access),
            ("SCHILY.xattr.system.posix_acl_default", &default),
        ])
        .directory("dir")
        .finish();
    let mounted = Mounted::new(&Image::new(&[Layer::plain(tar)]).convert().unwrap());
    let reading = |path: &Path| run("getfacl", &["-pcn", &path.display().to_string()]);
    let got = String::from_utf8(reading(&mounted.root().join("dir"))).unwrap();
    assert!(got.contains("user:1234:rwx") && got.contains("default:user:77:r-x"), "{got}");
    let xattrs = &listing(&mounted.root())[Path::new("dir")].xattrs;
    assert_eq!(xattrs, &listing(folder.path())[Path::new("")].xattrs);
}

#[test]
fn an_image_without_layers_or_files_is_an_empty_file_system() {
    for layers in [vec![], vec![Layer::plain(Vec::new())], vec![Layer::gzip(&Archive::default().finish())]] {
        assert_eq!(mounted(&Image::new(&layers)).len(), 1);
    }
}

#[test]
fn archives_may_end_without_padding_and_without_a_mark() {
    let mut tar = Archive::default().file("first", b"1").file("last", &[7; 700]).finish();
    tar.truncate(512 * 3 + 700);
    let got = mounted(&Image::new(&[Layer::gzip(&tar)]));
    assert_eq!(got[Path::new("last")].size, 700);
    tar.pop();
    assert!(Image::new(&[Layer::gzip(&tar)]).convert().is_err());
}

#[test]
fn a_directory_of_a_hundred_thousand_names_is_found_name_by_name() {
    let mut archive = Archive::default();
    for number in 0..100_000 {
        archive = archive.file(format!("many/{number}"), if number % 1000 == 0 { b"data" } else { b"" });
    }
    let mounted = Mounted::new(&Image::new(&[Layer::plain(archive.finish())]).convert().unwrap());
    let many = mounted.root().join("many");
    assert_eq!(fs::read_dir(&many).unwrap().count(), 100_000);
    for number in (0..100_000).step_by(777) {
        assert!(many.join(number.to_string()).exists());
    }
    assert_eq!(fs::read(many.join("99000")).unwrap(), b"data");
    assert!(!many.join("100000").exists());
}
