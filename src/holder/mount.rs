//! Mounting a block image: FUSE over a file, EROFS over that file.
//!
//! ```text
//! <data>/images/<digest>/file   FUSE, the root is a regular file
//! <data>/images/<digest>/fs     EROFS on that file, without a loop device, ro,nodev
//! ```
//!
//! mount(2) is called directly: util-linux would make a loop device, and libfuse is not needed. What
//! may read from the image is a process of its own (`step`).
//!
//! `directio` is the default by measurement (`cargo run --example holder_reads 256`, Linux 6.18, two
//! shared cores, debug build; a wholly present file of 256 MiB, ranges of three rounds):
//!
//! | | sequential MB/s | random 4 KiB/s cold, 1 and 4 threads | in the page cache |
//! | --- | --- | --- | --- |
//! | directio | 784-1056 | 29,900-31,900, 34,500-48,700 | 512 MiB: EROFS and cache file |
//! | buffered, `FOPEN_KEEP_CACHE` | 559-762 | 9,700-28,200, 22,900-51,200 | 768 MiB: the FUSE file too |
//!
//! Both read each byte once from the cache file, and read again at the speed of the page cache.
//! Dropping the cache file's pages after a read (`POSIX_FADV_DONTNEED`) does not pay: the kernel keeps
//! large folios that a read covers in part (247 of 256 MiB stayed), and where it does drop them the
//! next reader waits for the disk (304 MB/s). With `directio`, data is read ahead by EROFS itself (the
//! kernel's 128 KiB); `read_ahead_kib` is for what goes through the FUSE file's cache.

use super::{file::ImageFile, step};
use fuser::{Config, Session, SessionACL};
use rustix::{
    io::Errno,
    ioctl,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("/dev/fuse cannot be opened ({0}); load the kernel module with `modprobe fuse`")]
    Device(io::Error),
    #[error("the FUSE file cannot be mounted: {0}")]
    Fuse(io::Error),
    #[error("this kernel has no EROFS; load it with `modprobe erofs`")]
    NoErofs,
    #[error(
        "this kernel cannot mount EROFS from a file; Linux 6.12 or later with EROFS_FS_BACKED_BY_FILE can"
    )]
    NoFileBacked,
    #[error("the image is not a valid EROFS file system")]
    Invalid,
    #[error("the blocks needed to mount the image could not be read in time")]
    Unreadable,
    #[error("the file system cannot be mounted: {0}")]
    Erofs(Errno),
    #[error("the folder for mounts cannot be used: {0}")]
    Folder(#[from] io::Error),
    /// What the process that mounted EROFS said.
    #[error("{0}")]
    Step(String),
}

/// How an image is mounted.
pub struct MountOptions {
    pub threads: usize,
    pub direct_io: bool,
    /// How far the kernel reads a file ahead, in KiB.
    pub read_ahead_kib: u32,
    pub deadline: Duration,
}

/// A mounted image. Dropping it does not unmount it.
pub struct MountedImage {
    folder: PathBuf,
    deadline: Duration,
}

impl MountedImage {
    /// Where the file system is.
    pub fn file_system(folder: &Path) -> PathBuf {
        folder.join("fs")
    }

    /// Mounts; may wait for blocks.
    pub fn mount(folder: PathBuf, file: ImageFile, options: &MountOptions) -> Result<Self, MountError> {
        let (file_path, fs_path) = (folder.join("file"), Self::file_system(&folder));
        fs::create_dir_all(&fs_path)?;
        File::create(&file_path)?;
        let mounted = Self { folder, deadline: options.deadline };
        let done = mount_fuse(&file_path, file, options.threads)
            .and_then(|()| step::mount_erofs(&file_path, &fs_path, options).map_err(MountError::Step));
        if let Err(error) = done {
            mounted.unmount();
            return Err(error);
        }
        Ok(mounted)
    }

    /// Unmounts what is mounted. The FUSE session ends by itself with its last user.
    pub fn unmount(self) {
        let (path, file) = (Self::file_system(&self.folder), self.folder.join("file"));
        step::unmount(&[&path, &file], self.deadline);
        let gone = fs::remove_dir(&path)
            .and_then(|()| fs::remove_file(&file))
            .and_then(|()| fs::remove_dir(&self.folder));
        if let Err(error) = gone {
            tracing::warn!(folder = %self.folder.display(), %error, "removing the folder of a mount");
        }
    }
}

/// Unmounts; what is still in use is detached and vanishes with its last user.
pub fn unmount_now(path: &Path) {
    let unmounted = unmount(path, UnmountFlags::NOFOLLOW)
        .or_else(|_| unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH));
    match unmounted {
        // Nothing was mounted there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "unmounting"),
    }
}

fn mount_fuse(path: &Path, file: ImageFile, threads: usize) -> Result<(), MountError> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
    let device = OwnedFd::from(device);
    // The root of this mount is a regular file (S_IFREG), readable by its owner.
    let options = format!("fd={},rootmode=100400,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let options = CString::new(options).expect("digits and words contain no NUL");
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("faasnet", path, "fuse", flags, options.as_c_str()).map_err(|error| match error {
        Errno::NODEV => MountError::Device(error.into()),
        _ => MountError::Fuse(error.into()),
    })?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = true;
    let session = Session::from_fd(file, device, SessionACL::All, config).and_then(Session::spawn);
    session.map(drop).map_err(MountError::Fuse)
}

/// How far the kernel reads files of a mounted EROFS ahead, which is a property of each mount. In a process of
/// its own: opens the mount.
pub fn set_read_ahead(target: &Path, kib: u32) -> io::Result<()> {
    // "erofs/NAME"; the file system's cache goes by that name, too.
    let name = file_system_name(&File::open(target)?)?;
    let (_, name) = name.rsplit_once('/').ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new("/sys/class/bdi").join(name).join("read_ahead_kb"), kib.to_string())
}

/// `struct fs_sysfs_path` of linux/fs.h.
#[repr(C)]
struct SysfsPath {
    length: u8,
    name: [u8; 128],
}

/// FS_IOC_GETFSSYSFSPATH: there since Linux 6.9, before EROFS could be mounted from files.
#[allow(unsafe_code)]
fn file_system_name(mounted: &File) -> io::Result<String> {
    const OPCODE: ioctl::Opcode = ioctl::opcode::read::<SysfsPath>(0x15, 1);
    // SAFETY: this call writes a `struct fs_sysfs_path` and nothing else.
    let path = unsafe { ioctl::ioctl(mounted, ioctl::Getter::<OPCODE, SysfsPath>::new()) }?;
    let name = path.name.get(..usize::from(path.length)).ok_or(io::ErrorKind::InvalidData)?;
    String::from_utf8(name.to_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// In a process of its own: reads the file.
pub fn mount_erofs(file: &Path, target: &Path, direct_io: bool) -> Result<(), MountError> {
    let options = direct_io.then_some(c"directio");
    mount(file, target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, options).map_err(|error| match error
    {
        Errno::NODEV => MountError::NoErofs,
        Errno::NOTBLK => MountError::NoFileBacked,
        Errno::INVAL | Errno::UCLEAN | Errno::BADMSG => MountError::Invalid,
        Errno::IO => MountError::Unreadable,
        _ => MountError::Erofs(error),
    })
}
