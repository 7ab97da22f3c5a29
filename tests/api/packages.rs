//! `faasnet function deploy --zip` with zips of others' tools, good and bad: as users run it.

use super::world::{PACKAGE_BYTES_MAX, World};
use faasnet::image::{
    artifact::digest_of,
    tree::{Kind, ROOT},
    zip::{Package, ZipLimits},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A folder with code, and zips made of it.
struct Workshop {
    folder: TempDir,
}

impl Workshop {
    fn new() -> Self {
        let folder = TempDir::new().expect("folder");
        fs::create_dir(folder.path().join("code")).expect("made");
        Self { folder }
    }

    fn code(&self) -> PathBuf {
        self.folder.path().join("code")
    }

    fn zip(&self) -> PathBuf {
        self.folder.path().join("made.zip")
    }

    fn file(&self, name: &str, mode: u32, data: &[u8]) {
        let path = self.code().join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        fs::write(&path, data).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    }

    /// Runs a program in the folder of the code.
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.code()).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes the zip with Info-ZIP.
    fn info_zip(&self, options: &[&str]) -> PathBuf {
        let _not_there_yet = fs::remove_file(self.zip());
        let zip = self.zip();
        self.run("zip", &[&["-q", "-r"], options, &[zip.to_str().expect("text"), "."]].concat());
        zip
    }

    /// Makes the zip with Python's `zipfile`, as `z`.
    fn python(&self, script: &str) -> PathBuf {
        let _not_there_yet = fs::remove_file(self.zip());
        let before = "import io, sys, warnings, zipfile\nwarnings.simplefilter('ignore')\n\
                      z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n";
        let script = format!("{before}{script}\nz.close()\n");
        self.run("python3", &["-c", &script, self.zip().to_str().expect("text")]);
        self.zip()
    }
}

/// What `deploy --zip` complains about; nothing of it may reach the manager.
async fn complaint(world: &World, zip: &Path) -> String {
    let path = zip.to_str().expect("text");
    let arguments = ["function", "deploy", "app", "--zip", path, "--runtime", "registry.example/python:3"];
    let ran = world.cli(&arguments).await;
    assert_eq!(ran.code, 2, "{path}: {}{}", ran.out, ran.err);
    assert!(ran.err.starts_with(&format!("error: {path}: ")), "{}", ran.err);
    assert_eq!(world.cli(&["function", "show", "app"]).await.code, 1, "nothing was deployed");
    ran.err
}

/// Deploys it, and gives mode and data of everything in it: of links the target.
async fn contents(world: &World, zip: &Path) -> BTreeMap<String, (u16, Vec<u8>)> {
    let path = zip.to_str().expect("text");
    let shown = world
        .prints(&[
            "--json",
            "function",
            "deploy",
            "app",
            "--zip",
            path,
            "--runtime",
            "registry.example/python:3",
        ])
        .await;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let bytes = fs::read(zip).expect("there");
    assert_eq!(shown["code"], digest_of(&bytes).to_string());
    let limits = ZipLimits { entries_max: 100, plain_bytes_max: 1 << 20, ratio_max: 100 };
    let package = Package::read(bytes.as_slice(), bytes.len() as u64, &limits).expect("a package");
    let mut found = BTreeMap::new();
    let mut folders = vec![(ROOT, String::new())];
    while let Some((folder, path)) = folders.pop() {
        for (name, child) in package.tree().children(folder).expect("a folder") {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            let inode = package.tree().inode(child.inode);
            let mut data = Vec::new();
            match &inode.kind {
                Kind::Directory(_) => folders.push((child.inode, format!("{path}/"))),
                Kind::File { data: place, .. } => {
                    package.copy_file(*place, &mut data).expect("whole");
                }
                Kind::Symlink(target) => data.extend_from_slice(target),
                other => panic!("{path} is {other:?}"),
            }
            found.insert(path, (inode.attributes.mode, data));
        }
    }
    found
}

fn assert_says(complaint: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(complaint.contains(part), "{part:?} is not in {complaint}");
    }
}

#[actix_web::test]
async fn zips_of_info_zip_and_python_are_what_was_put_into_them() {
    let world = World::new().await;
    let workshop = Workshop::new();
    let long = vec![b'x'; 50_000];
    workshop.file("app.py", 0o644, b"print('hello')\n");
    workshop.file("bin/run", 0o755, b"#!/bin/sh\n");
    workshop.file("bin/mine", 0o700, b"#!/bin/sh\n");
    workshop.file("data/long \u{e4}\u{f6}", 0o600, &long);
    symlink("../app.py", workshop.code().join("bin/linked")).expect("made");
    let file = |mode, data: &[u8]| (mode, data.to_vec());
    let expected = |linked| {
        let named = |(name, entry): (&str, (u16, Vec<u8>))| (name.to_owned(), entry);
        BTreeMap::from(
            [
                ("app.py", file(0o644, b"print('hello')\n")),
                ("bin", file(0o755, b"")),
                ("bin/linked", linked),
                ("bin/mine", file(0o755, b"#!/bin/sh\n")),
                ("bin/run", file(0o755, b"#!/bin/sh\n")),
                ("data", file(0o755, b"")),
                ("data/long \u{e4}\u{f6}", file(0o644, &long)),
            ]
            .map(named),
        )
    };
    let followed = || expected(file(0o644, b"print('hello')\n"));
    let kept = || expected(file(0o777, b"../app.py"));
    // Stored, deflated, with sizes of 64 bits, without extra fields, without folders, with links as links.
    for options in [&["-0"][..], &["-9"], &["-fz"], &["-X"], &["-D"], &["-fz", "-0"]] {
        assert_eq!(contents(&world, &workshop.info_zip(options)).await, followed(), "{options:?}");
    }
    assert_eq!(contents(&world, &workshop.info_zip(&["-y"])).await, kept());
    // To a pipe: sizes stand behind the data. Info-ZIP cannot store links there.
    let zip = workshop.zip();
    let piped = format!("zip -q -r - . | cat > '{}'", zip.display());
    workshop.run("sh", &["-ec", &piped]);
    let bytes = fs::read(&zip).expect("made");
    assert!(bytes.windows(4).any(|four| four == b"PK\x07\x08"), "there are data descriptors");
    assert_eq!(contents(&world, &zip).await, followed());

    let add = "import os\n\
               for folder, _, names in os.walk('.'):\n    \
               for name in names:\n        \
               z.write(os.path.join(folder, name))";
    assert_eq!(contents(&world, &workshop.python(add)).await, followed());
    // Through a stream that cannot be sought, with sizes of 64 bits and without.
    for zip64 in ["True", "False"] {
        let streamed = format!(
            "class Pipe(io.RawIOBase):\n    \
             def __init__(self, file): self.file = file\n    \
             def writable(self): return True\n    \
             def write(self, data): return self.file.write(data)\n\
             out = open(sys.argv[1], 'wb')\n\
             z = zipfile.ZipFile(Pipe(out), 'w', zipfile.ZIP_DEFLATED)\n\
             with z.open('a/b', 'w', force_zip64={zip64}) as file: file.write(b'x' * 5000)"
        );
        let found = contents(&world, &workshop.python(&streamed)).await;
        let expected = [("a".to_owned(), (0o755, vec![])), ("a/b".to_owned(), (0o644, vec![b'x'; 5000]))];
        assert_eq!(found, BTreeMap::from(expected), "zip64 {zip64}");
    }
    assert_eq!(contents(&world, &workshop.python("")).await, BTreeMap::new(), "empty, and a zip");
}

#[actix_web::test]
async fn what_is_no_zip_or_a_part_of_one_is_refused() {
    let world = World::new().await;
    let workshop = Workshop::new();
    let again = "make it again with `zip -r";
    let path = workshop.zip();
    for bytes in [&b""[..], b"print('hello')\n", &[0; 70_000], b"\x1f\x8b\x08\0 of gzip, not of zip"] {
        fs::write(&path, bytes).expect("written");
        assert_says(&complaint(&world, &path).await, &["not a zip, or cut short", again]);
    }
    workshop.file("app.py", 0o644, &vec![b'x'; 5000]);
    workshop.file("more.py", 0o644, b"more");
    let whole = fs::read(workshop.info_zip(&["-0"])).expect("made");
    for length in [4, 100, whole.len() / 2, whole.len() - 30, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        assert_says(&complaint(&world, &path).await, &["not a zip, or cut short", again]);
    }
    // Its beginning is missing, as after a download that was resumed wrongly.
    fs::write(&path, &whole[1000..]).expect("written");
    complaint(&world, &path).await;
    fs::write(&path, [&whole, &b"\nand a line"[..]].concat()).expect("written");
    assert_says(&complaint(&world, &path).await, &["behind the end", "make"]);
}

#[actix_web::test]
async fn paths_that_lead_out_or_come_twice_are_refused_by_name() {
    let world = World::new().await;
    let workshop = Workshop::new();
    for (name, reason, advice) in [
        ("../up.py", "leads out of the package", "in the folder of the code"),
        ("lib/../../up.py", "leads out of the package", "in the folder of the code"),
        ("/etc/cron.d/job", "absolute", "in the folder of the code"),
        ("C:/app.py", "absolute", "in the folder of the code"),
        ("lib\\app.py", "backslash", "with `/` between names"),
        (&"a/".repeat(5000), "longer than", "shorten"),
    ] {
        let script = format!("z.writestr({name:?}, 'x')");
        let complaint = complaint(&world, &workshop.python(&script)).await;
        let shown = name.get(..10).unwrap_or(name).replace('\\', "\\\\");
        assert_says(&complaint, &[&shown, reason, advice]);
    }
    for (script, path) in [
        ("z.writestr('lib/app.py', 'one'); z.writestr('lib/app.py', 'other')", "lib/app.py"),
        ("z.writestr('app.py', 'one'); z.writestr('./app.py', 'other')", "./app.py"),
    ] {
        assert_says(&complaint(&world, &workshop.python(script)).await, &[path, "twice", "each path once"]);
    }
    let script = "z.writestr('lib', 'a file'); z.writestr('lib/app.py', 'x')";
    assert_says(
        &complaint(&world, &workshop.python(script)).await,
        &["lib/app.py", "not a folder", "rename"],
    );
}

#[actix_web::test]
async fn links_that_lead_out_and_what_cannot_be_read_are_refused_with_what_to_do() {
    let world = World::new().await;
    let workshop = Workshop::new();
    workshop.file("app.py", 0o644, b"x");
    for target in ["/etc/passwd", "../code/app.py"] {
        symlink(target, workshop.code().join("link")).expect("made");
        let complaint = complaint(&world, &workshop.info_zip(&["-y"])).await;
        assert_says(&complaint, &["link", target, "leads out of the package", "without `-y`"]);
        fs::remove_file(workshop.code().join("link")).expect("removed");
    }
    let complaint_of = async |options| complaint(&world, &workshop.info_zip(options)).await;
    assert_says(&complaint_of(&["-P", "secret"]).await, &["app.py", "encrypted", "without a password"]);
    workshop.file("app.py", 0o644, &[b'x'; 9000]);
    assert_says(&complaint_of(&["-Z", "bzip2"]).await, &["app.py", "make the zip with deflate"]);
    let lzma = workshop.python("z.writestr('app.py', 'x' * 9000, zipfile.ZIP_LZMA)");
    assert_says(&complaint(&world, &lzma).await, &["app.py", "make the zip with deflate"]);
    // Noise, so that nothing makes it smaller.
    let noise = format!("import random\nz.writestr('data', random.Random(1).randbytes({PACKAGE_BYTES_MAX}))");
    let large = complaint(&world, &workshop.python(&noise)).await;
    assert_says(&large, &[&PACKAGE_BYTES_MAX.to_string(), "code.package_bytes_max", "leave out"]);
}

#[actix_web::test]
async fn a_zip_that_is_not_there_or_has_no_runtime_is_said_before_anything_else() {
    let world = World::new().await;
    let workshop = Workshop::new();
    let missing = workshop.zip();
    assert_says(&complaint(&world, &missing).await, &["cannot be read", "No such file"]);
    assert_says(&complaint(&world, &workshop.code()).await, &["not a file", "make a zip of it first"]);
    let path = missing.to_str().expect("text");
    for (more, wanted) in [
        (&["--zip", path][..], "--runtime"),
        (&["--zip", path, "--image", "a/b:1"], "cannot be used with"),
        (&["--runtime", "a/b:1"], "--zip"),
        (&["--image", "a/b:1", "--runtime", "a/b:1"], "cannot be used with"),
    ] {
        let ran = world.cli(&[&["function", "deploy", "app"], more].concat()).await;
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.err);
        assert_says(&ran.err, &[wanted]);
    }
}
