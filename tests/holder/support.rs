//! A holder in a process of its own, an image for it, and the agent's side of the socket.

use bytes::BytesMut;
use faasnet_actors::{
    id::{BlockId, Digest, ImageId, StartId},
    image::{BLOCK_BYTES, RuntimeConfig},
    wire::{
        PROTOCOL_VERSION,
        frame::{FrameLimits, decode, encode_head},
        holder::{FromHolder, Mount, Run, ToHolder},
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{FileExt, PermissionsExt, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_faasnet");
/// Far above what anything here takes, so that only a hang ends in it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A file system image with busybox and a file that spans several blocks.
pub struct TestImage {
    pub folder: TempDir,
    pub id: ImageId,
    pub bytes: Vec<u8>,
    pub big: Vec<u8>,
}

impl TestImage {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(more: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("root");
        for name in ["bin", "etc", "tmp", "data", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(name)).expect("folder");
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "sleep", "echo", "httpd", "id", "head", "dd", "mount", "grep", "ls", "tail"]
        {
            symlink("busybox", root.join("bin").join(name)).expect("link");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("written");
        fs::write(root.join("data/index.html"), "hello from an instance\n").expect("written");
        // Not compressible and different in each place: a block in the wrong place is noticed.
        let mut big = Vec::new();
        blake3::Hasher::new()
            .update(b"big")
            .finalize_xof()
            .take(3_000_001)
            .read_to_end(&mut big)
            .expect("reads");
        fs::write(root.join("data/big"), &big).expect("written");
        more(&root);
        let path = folder.path().join("image.erofs");
        let made =
            Command::new("mkfs.erofs").arg(&path).arg(&root).output().expect("erofs-utils is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let bytes = fs::read(&path).expect("read");
        let id = Digest::from_bytes(*blake3::hash(&bytes).as_bytes());
        Self { folder, id, bytes, big }
    }

    pub fn block_count(&self) -> u32 {
        self.bytes.len().div_ceil(BLOCK_BYTES as usize) as u32
    }

    /// The block in which the byte of `data/big` lies.
    pub fn block_of(&self, place: usize) -> u32 {
        let needle = &self.big[place..place + 64];
        let at = self.bytes.windows(64).position(|window| window == needle).expect("is stored plain");
        (at / BLOCK_BYTES as usize) as u32
    }

    /// An order to mount it with all blocks but one.
    pub fn mount_without(&self, block: u32) -> Mount {
        self.mount(&(0..self.block_count()).filter(|each| *each != block).collect::<Vec<_>>())
    }

    pub fn cache_path(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// An order to mount it with these blocks in the cache file.
    pub fn mount(&self, present: &[u32]) -> Mount {
        let cache = File::options().create(true).append(true).open(self.cache_path()).expect("cache file");
        cache.set_len(self.bytes.len() as u64).expect("sized");
        let mut bits = vec![0; self.block_count().div_ceil(8) as usize];
        for block in present {
            bits[*block as usize / 8] |= 1 << (block % 8);
            self.fill(BlockId(*block));
        }
        let plain_bytes = self.bytes.len() as u64;
        Mount {
            image: self.id,
            plain_path: self.cache_path(),
            plain_bytes,
            present: bits,
            record: false,
            packed: false,
        }
    }

    pub fn mount_whole(&self) -> Mount {
        self.mount(&(0..self.block_count()).collect::<Vec<_>>())
    }

    /// Puts a block into the cache file.
    pub fn fill(&self, block: BlockId) {
        let at = block.0 as usize * BLOCK_BYTES as usize;
        let end = self.bytes.len().min(at + BLOCK_BYTES as usize);
        let cache = File::options().write(true).open(self.cache_path()).expect("cache file");
        cache.write_all_at(&self.bytes[at..end], at as u64).expect("written");
    }

    pub fn run(&self, name: &str, script: &str) -> Run {
        let runtime = RuntimeConfig {
            entrypoint: vec!["/bin/sh".into(), "-c".into()],
            cmd: vec![script.into()],
            cwd: "/".into(),
            stop_signal: 15,
            ..RuntimeConfig::default()
        };
        Run {
            start: name.parse::<StartId>().expect("a name"),
            image: self.id,
            code: None,
            runtime,
            command: None,
            env: Default::default(),
            port: 1,
            memory_bytes: 256 << 20,
            cpu_millis: 100,
            pids_max: 100,
            writable_bytes: 16 << 20,
            log_bytes_max: 64 << 10,
        }
    }
}

/// A holder process. It is ended when this goes, however the test went.
pub struct Holder {
    pub data: TempDir,
    pub child: Child,
}

impl Holder {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().expect("folder");
        let child = Self::launch(&mut Self::command(data.path(), settings));
        Self { data, child }
    }

    pub fn command(data: &Path, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("holder").arg("--data").arg(data);
        for (key, value) in settings {
            command.env(format!("FAASNET__HOLDER__{}", key.to_uppercase()), value);
        }
        command
    }

    /// Starts it and waits until it listens.
    pub fn launch(command: &mut Command) -> Child {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
        assert_eq!(line, "ready\n");
        child
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self, start: &str) -> String {
        let tail = faasnet::holder::read_log_tail(self.data.path(), &start.parse().expect("a name"), 1 << 20);
        String::from_utf8_lossy(&tail.expect("reads")).into_owned()
    }

    /// The mounted file system, seen through the holder's mount namespace.
    pub fn file_system(&self, image: &TestImage) -> PathBuf {
        file_system(self.pid(), self.data.path(), image)
    }

    pub fn agent<'a>(&self, image: &'a TestImage) -> Agent<'a> {
        Agent::connect(self.data.path(), image)
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        assert!(ends_within(self.pid(), PATIENCE), "the holder does not end");
        self.child.wait().expect("waited")
    }

    /// Mounts in the holder's namespace below its folder.
    pub fn mounts(&self) -> usize {
        let data = self.data.path().canonicalize().expect("is there");
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap_or_default();
        mounts.lines().filter(|line| line.contains(data.to_str().expect("text"))).count()
    }

    /// What is left of containers: control groups, mounts and folders. Mounts of images are not counted.
    pub fn remains(&self) -> Vec<String> {
        let groups =
            self.cgroups().into_iter().flat_map(|group| fs::read_dir(group).into_iter().flatten().flatten());
        let groups = groups.map(|entry| entry.path()).filter(|path| path.is_dir());
        let folders = ["instances", "runc"].map(|name| self.data.path().join(name));
        let folders = folders.into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        groups.chain(folders.map(|entry| entry.path())).map(|path| path.display().to_string()).collect()
    }

    /// The parent control group of this holder's containers, in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let data = self.data.path().canonicalize().expect("is there");
        let hash = blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex();
        let name = format!("faasnet-{}", &hash[..12]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
        let folders = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let paths = folders.filter_map(|line| line.split(' ').nth(4).map(|path| Path::new(path).join(&name)));
        paths.filter(|path| path.exists()).collect()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        end(&mut self.child);
        if !self.cgroups().is_empty() {
            let mut next = Self::launch(&mut Self::command(self.data.path(), &[]));
            end(&mut next);
        }
    }
}

fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        let pid = Pid::from_child(child);
        let _ = kill_process(pid, Signal::TERM);
        if !ends_within(child.id(), PATIENCE) {
            let _ = child.kill();
        }
    }
    let _ = child.wait();
}

pub fn file_system(holder: u32, data: &Path, image: &TestImage) -> PathBuf {
    let data = data.canonicalize().expect("is there");
    let inside = data.strip_prefix("/").expect("absolute").join("images").join(image.id.hex()).join("fs");
    Path::new("/proc").join(holder.to_string()).join("root").join(inside)
}

/// Whether the process ends, or is gone already.
pub fn ends_within(pid: u32, within: Duration) -> bool {
    let Ok(process) = pidfd_open(Pid::from_raw(pid as i32).expect("a number"), PidfdFlags::empty()) else {
        return true;
    };
    let timeout = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).expect("polls") == 1
}

/// The agent's side. It serves misses unless told not to.
pub struct Agent<'a> {
    stream: UnixStream,
    messages: Receiver<FromHolder>,
    image: &'a TestImage,
    pub serves: bool,
    /// Every block asked for on this connection, in order.
    pub asked: Vec<u32>,
}

impl<'a> Agent<'a> {
    /// Connects and says hello; the state is the first message.
    pub fn connect(data: &Path, image: &'a TestImage) -> Self {
        let stream = UnixStream::connect(data.join("holder.sock")).expect("connects");
        let mut reading = stream.try_clone().expect("cloned");
        let (sender, messages) = channel();
        thread::spawn(move || {
            let limits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 0 };
            let mut buffer = BytesMut::new();
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = reading.read(&mut chunk) {
                buffer.extend_from_slice(&chunk[..len]);
                while let Ok(frame) = decode(&mut buffer, limits).expect("frames") {
                    let _ = sender.send(frame.header);
                }
            }
        });
        let mut agent = Self { stream, messages, image, serves: true, asked: Vec::new() };
        agent.order(&ToHolder::Hello { version: PROTOCOL_VERSION });
        agent
    }

    pub fn order(&mut self, order: &ToHolder) {
        self.stream.write_all(&encode_head(order, 0).expect("encodes")).expect("written");
    }

    pub fn holder_pid(&self) -> u32 {
        socket_peercred(&self.stream).expect("peer").pid.as_raw_nonzero().get() as u32
    }

    /// Gives the holder a block.
    pub fn give(&mut self, block: u32) {
        self.image.fill(BlockId(block));
        self.order(&ToHolder::Present { image: self.image.id, blocks: vec![BlockId(block)] });
    }

    /// The next message within that time; misses are noted, and served if the agent serves.
    pub fn next(&mut self, within: Duration) -> Option<FromHolder> {
        let message = match self.messages.recv_timeout(within) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => panic!("the holder hung up"),
        };
        if let FromHolder::Miss { blocks, .. } = &message {
            for BlockId(block) in blocks {
                self.asked.push(*block);
                if self.serves {
                    self.give(*block);
                }
            }
        }
        Some(message)
    }

    /// The first message that is wanted; others before it are dropped.
    pub fn until<T>(&mut self, mut wanted: impl FnMut(&FromHolder) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.next(left).expect("the message comes in time");
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    /// Serves until something outside came true.
    pub fn serve_until<T>(&mut self, mut done: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(found) = done() {
                return found;
            }
            self.next(Duration::from_millis(5));
        }
        panic!("it did not come true in time");
    }

    /// Waits until the holder asked for that block, or has already.
    pub fn until_asked(&mut self, block: u32) {
        while !self.asked.contains(&block) {
            self.until(|message| matches!(message, FromHolder::Miss { .. }).then_some(()));
        }
    }

    /// Mounts the image and waits for the answer.
    pub fn mount(&mut self, mount: Mount) -> Result<(), String> {
        self.order(&ToHolder::Mount(mount));
        self.until(|message| match message {
            FromHolder::Mounted { .. } => Some(Ok(())),
            FromHolder::MountFailed { reason, .. } => Some(Err(reason.clone())),
            _ => None,
        })
    }

    /// Starts a container and waits for its process, or the reason.
    pub fn run(&mut self, run: Run) -> Result<u32, String> {
        self.order(&ToHolder::Run(Box::new(run)));
        self.until(|message| match message {
            FromHolder::Running { pid, .. } => Some(Ok(*pid)),
            FromHolder::RunFailed { reason, .. } => Some(Err(reason.clone())),
            _ => None,
        })
    }

    /// Whether the holder ended the connection.
    pub fn hung_up(&mut self) -> bool {
        loop {
            match self.messages.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    pub fn exit(&mut self) -> faasnet_actors::wire::holder::Exit {
        self.until(|message| match message {
            FromHolder::Exited { exit, .. } => Some(*exit),
            _ => None,
        })
    }

    pub fn state(&mut self) -> (Vec<ImageId>, Vec<faasnet_actors::wire::holder::HeldInstance>) {
        self.until(|message| match message {
            FromHolder::State { mounts, instances, .. } => Some((mounts.clone(), instances.clone())),
            _ => None,
        })
    }
}
