//! The root file system of a container: the image below, a bounded tmpfs above.
//!
//! As in Cloud Run, what a container writes is kept in memory and counts against its memory limit.

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, mkdirat, open, openat, stat, utimensat},
    io::Errno,
    mount::{MountFlags, mount as mount_type},
};
use std::{
    ffi::CString,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Component, Path, PathBuf},
};

/// Features by which extended attributes in a layer could direct overlayfs elsewhere are off; the
/// image has one layer, so none is needed.
const FEATURES: &str = "redirect_dir=nofollow,metacopy=off,index=off,nfs_export=off,xino=off";

/// Why a root file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("the writable layer cannot be made: {0}")]
    Writable(io::Error),
    #[error("the image's blocks could not be read in time")]
    Unreadable,
    #[error("overlayfs refuses the mount ({0}); is it in this kernel (`modprobe overlay`)?")]
    Overlay(Errno),
    #[error(
        "the function's code cannot be mounted at {0}: in the image, {1} is a link or file; use an image in \
         which it is a folder or missing"
    )]
    NotAFolder(PathBuf, PathBuf),
}

/// Mounts `lower` with a writable layer of at most `writable_bytes` at `folder/rootfs`; the layer is a
/// tmpfs at `folder/writable`. In a process of its own: reads the image. On an error something may be
/// mounted; [`mount_points`] says where.
pub fn mount(folder: &Path, lower: &Path, writable_bytes: u64) -> Result<(), OverlayError> {
    let [rootfs, writable] = mount_points(folder);
    let failed = OverlayError::Writable;
    for folder in [&writable, &rootfs] {
        DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
    }
    // One inode for each page: files cannot take more memory by being many and empty.
    let options = format!("mode=0700,size={writable_bytes},nr_inodes={}", writable_bytes / 4096 + 1024);
    let options = CString::new(options).expect("digits and words contain no NUL");
    mount_type("faasnet", &writable, "tmpfs", MountFlags::NODEV, options.as_c_str())
        .map_err(|error| failed(error.into()))?;
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).map_err(failed)?;
    }
    copy_attributes(lower, &upper)?;
    let layers = [("lowerdir", lower), ("upperdir", &upper), ("workdir", &work)];
    let layers = layers.map(|(option, path)| format!("{option}={},", escape(path))).concat();
    let options = CString::new(layers + FEATURES).map_err(|_| OverlayError::Overlay(Errno::INVAL))?;
    mount_type("faasnet", &rootfs, "overlay", MountFlags::NODEV, options.as_c_str()).map_err(overlay_error)
}

/// Makes the folders of `path` that the mounted root file system lacks, in its writable layer. An image in
/// which one of them is a link is refused: the mount would land where the image wants it, over `/proc` or
/// `/etc` for instance.
pub fn make_mount_point(folder: &Path, path: &Path) -> Result<(), OverlayError> {
    let [rootfs, _] = mount_points(folder);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut parent = open(&rootfs, flags, Mode::empty()).map_err(overlay_error)?;
    for name in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        match mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(OverlayError::Writable(error.into())),
        }
        parent = openat(&parent, name.as_os_str(), flags, Mode::empty()).map_err(|error| match error {
            Errno::IO => OverlayError::Unreadable,
            Errno::NOTDIR | Errno::LOOP => {
                OverlayError::NotAFolder(path.to_owned(), PathBuf::from(name.as_os_str()))
            }
            other => OverlayError::Writable(other.into()),
        })?;
    }
    Ok(())
}

/// What is mounted for an instance, in the order in which it is unmounted.
pub fn mount_points(folder: &Path) -> [PathBuf; 2] {
    [folder.join("rootfs"), folder.join("writable")]
}

fn overlay_error(error: Errno) -> OverlayError {
    match error {
        Errno::IO => OverlayError::Unreadable,
        _ => OverlayError::Overlay(error),
    }
}

/// The root folder of an overlay shows the attributes of its upper layer, so these must be the image's.
fn copy_attributes(lower: &Path, upper: &Path) -> Result<(), OverlayError> {
    let found = stat(lower).map_err(overlay_error)?;
    let time = Timespec { tv_sec: found.st_mtime as i64, tv_nsec: found.st_mtime_nsec as i64 };
    chown(upper, Some(found.st_uid), Some(found.st_gid))
        .and_then(|()| fs::set_permissions(upper, Permissions::from_mode(found.st_mode & 0o7777)))
        .and_then(|()| {
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, upper, &times, AtFlags::empty()).map_err(io::Error::from)
        })
        .map_err(OverlayError::Writable)
}

/// Overlayfs separates options by commas and layers by colons.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ',' | ':' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}
