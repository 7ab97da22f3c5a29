//! What a container sees of its package of code, a second image.

use crate::support::{Holder, TestImage};
use faasnet_actors::wire::holder::{Exit, Run};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

fn code() -> TestImage {
    TestImage::with(|root| {
        fs::write(root.join("app"), "#!/bin/busybox sh\necho from the package\n").expect("written");
        fs::set_permissions(root.join("app"), fs::Permissions::from_mode(0o755)).expect("mode");
        fs::copy(root.join("bin/busybox"), root.join("setuid")).expect("copied");
        fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o4755)).expect("mode");
    })
}

/// Runs a container of `image` with code to its end, or says why it does not run.
fn with_code(
    image: &TestImage,
    change: impl FnOnce(&mut Run),
    script: &str,
) -> Result<(Exit, String), String> {
    let (holder, code) = (Holder::start(), code());
    let mut agent = holder.agent(image);
    agent.mount(image.mount_whole()).expect("mounts");
    agent.mount(code.mount_whole()).expect("mounts");
    let mut run = image.run("start-1", script);
    run.code = Some(code.id);
    change(&mut run);
    let ended = agent.run(run).map(|_| (agent.exit(), holder.log("start-1")));
    assert_eq!(holder.remains(), Vec::<String>::new());
    ended
}

#[test]
fn a_container_runs_its_code_and_cannot_write_it_or_gain_by_it() {
    let image = TestImage::with(|root| fs::write(root.join("etc/kept"), "of the image").expect("written"));
    let script = "pwd; ./app; cat /etc/kept
                  (echo x > /var/task/app) && echo written
                  grep /var/task /proc/self/mounts; ls -d /var/task/data";
    let (exit, log) = with_code(&image, |_| {}, script).expect("runs");
    assert_eq!(exit, Exit::Code(0), "{log}");
    assert!(log.starts_with("/var/task\nfrom the package\nof the image"), "{log}");
    assert!(!log.contains("\nwritten"), "{log}");
    let mount = log.lines().find(|line| line.contains(" erofs ")).expect("is mounted");
    let options: Vec<&str> = mount.split([' ', ',']).collect();
    assert!(["ro", "nosuid", "nodev"].iter().all(|option| options.contains(option)), "{mount}");
}

#[test]
fn a_command_replaces_entrypoint_and_arguments_of_the_image() {
    let command = ["/bin/sh", "-c", "echo $0 $1; exec ./app", "first", "second"];
    let change = |run: &mut Run| run.command = Some(command.map(str::to_owned).to_vec());
    let (exit, log) = with_code(&TestImage::new(), change, "echo of the image").expect("runs");
    assert_eq!((exit, log.as_str()), (Exit::Code(0), "first second\nfrom the package\n"));
}

#[test]
fn an_image_may_bring_the_folder_for_code() {
    let image = TestImage::with(|root| {
        fs::create_dir_all(root.join("var/task")).expect("folder");
        fs::write(root.join("var/task/app"), "of the image").expect("written");
        fs::write(root.join("var/beside"), "beside it\n").expect("written");
    });
    let (exit, log) = with_code(&image, |_| {}, "./app; cat /var/beside").expect("runs");
    assert_eq!((exit, log.as_str()), (Exit::Code(0), "from the package\nbeside it\n"));
}

#[test]
fn an_image_cannot_lead_the_mount_elsewhere() {
    let folder = tempfile::tempdir().expect("folder");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("folder");
    type Trap = fn(&Path, &Path);
    let traps: [(&str, Trap); 6] = [
        ("var", |root, outside| symlink(outside, root.join("var")).expect("link")),
        ("var", |root, _| symlink("/../../../../../../../..", root.join("var")).expect("link")),
        ("task", |root, _| make_task(root, "/proc")),
        ("task", |root, _| make_task(root, "/proc/self/attr")),
        ("task", |root, _| make_task(root, "../etc")),
        ("var", |root, _| fs::write(root.join("var"), "a file").expect("written")),
    ];
    for (name, trap) in traps {
        let image = TestImage::with(|root| trap(root, &outside));
        let reason = with_code(&image, |_| {}, "true").expect_err("refused");
        assert!(reason.contains(&format!("{name} is a link or file")), "{reason}");
        assert_eq!(fs::read_dir(&outside).expect("is there").count(), 0);
    }
}

fn make_task(root: &Path, target: &str) {
    fs::create_dir(root.join("var")).expect("folder");
    symlink(target, root.join("var/task")).expect("link");
}
