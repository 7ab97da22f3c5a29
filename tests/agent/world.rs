//! A manager of the test's own making for real agents: joins, sessions, orders, reports, requests.

use bytes::Bytes;
use faasnet::{
    image::{
        artifact::digest_of,
        convert::{ConvertOptions, convert},
        progress::Progress,
        publish::folder::FolderDestination,
        resolve::Platform,
        source::layout::LayoutSource,
    },
    net::{
        Purpose,
        capability::CapabilityKey,
        framed::{self, FrameReader},
        identity::{Authority, Identity, Peer, new_request},
        tls::{Accepted, Acceptor, Dialer},
    },
    settings::Settings,
    tokens::{JoinToken, JoinTokens, system_secrets},
};
use faasnet_actors::{
    id::{Epoch, StartId, TreeId, VmId},
    image::BlockImage,
    wire::{
        PROTOCOL_VERSION,
        control::{
            Capability, EndReason, Hello, JoinAnswer, JoinRefusal, JoinRequest, Place, Seat, StartOrder,
            StartReport, ToAgent, ToManager, Upstream,
        },
        frame::FrameLimits,
        request::{RequestAnswer, RequestHead},
    },
    world::Metadata,
};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
};

/// For everything that a test waits for: generous, because machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 64 << 20 };
const HOUR: Duration = Duration::from_secs(3600);

/// A session as the manager has it.
pub struct Session {
    pub vm: VmId,
    pub hello: Hello,
    pub key_hash: [u8; 32],
    pub orders: mpsc::UnboundedSender<ToAgent>,
    pub reports: mpsc::UnboundedReceiver<ToManager>,
}

pub struct World {
    pub folder: TempDir,
    pub authority: Arc<Authority>,
    pub capabilities: Arc<CapabilityKey>,
    pub control: SocketAddr,
    pub token: String,
    identity: Identity,
    sessions: Mutex<mpsc::UnboundedReceiver<(VmId, Session)>>,
    early: Mutex<BTreeMap<VmId, Session>>,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(folder.path(), SystemTime::now()).unwrap());
        let identity = authority.issue_manager(SystemTime::now(), HOUR).unwrap();
        let capabilities = Arc::new(CapabilityKey::from_pkcs8(&CapabilityKey::generate()).unwrap());
        let metadata = faasnet::metadata::RedbMetadata::open(&folder.path().join("metadata")).unwrap();
        let metadata: Arc<dyn Metadata> = Arc::new(metadata);
        let tokens = JoinTokens::new(metadata, system_secrets(), authority.hash(), HOUR, 10);
        let token = tokens.create(SystemTime::now()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = listener.local_addr().unwrap();
        let (opened, sessions) = mpsc::unbounded_channel();
        let acceptor = Acceptor::manager(&identity, PATIENCE).unwrap();
        let door = Arc::new(Door {
            authority: Arc::clone(&authority),
            capabilities: Arc::clone(&capabilities),
            tokens,
            opened,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, door) = (acceptor.clone(), Arc::clone(&door));
                tokio::spawn(async move {
                    if let Ok(accepted) = acceptor.accept(stream).await {
                        door.admit(accepted).await;
                    }
                });
            }
        });
        let sessions = Mutex::new(sessions);
        let early = Mutex::default();
        Self { folder, authority, capabilities, control, token, identity, sessions, early }
    }

    /// Waits until the VM has a session.
    pub async fn session(&self, vm: &str) -> Session {
        let vm: VmId = vm.parse().unwrap();
        let mut early = self.early.lock().await;
        if let Some(session) = early.remove(&vm) {
            return session;
        }
        let mut sessions = self.sessions.lock().await;
        loop {
            let (name, session) = patiently(sessions.recv()).await.unwrap();
            if name == vm {
                return session;
            }
            early.insert(name, session);
        }
    }

    /// A block image in a folder, made from a layer with these files (path, mode, content) and links.
    pub fn image(&self, name: &str, files: &[(&str, u32, Vec<u8>)], command: &str) -> BlockImage {
        let mut tar = tar::Builder::new(Vec::new());
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        let mut add = |path: &str, mode: u32, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content).unwrap();
        };
        add("bin/busybox", 0o755, &busybox);
        for (path, mode, content) in files {
            add(path, *mode, content);
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "bin/sh", "busybox").unwrap();
        let layer = tar.into_inner().unwrap();
        let layout = self.folder.path().join(name);
        write_layout(&layout, &layer, &json!({ "Cmd": ["/bin/sh", "-c", command], "Env": ["PATH=/bin"] }));
        let source = LayoutSource::new(layout.to_str().unwrap(), 1 << 20).unwrap();
        let destination = FolderDestination::new(self.folder.path().join("origin"));
        let options = ConvertOptions {
            platform: Platform::of_this_machine(),
            settings: Settings::load(None).unwrap().image,
            spool: self.folder.path().join("spool"),
        };
        convert(&source, &destination, &options, &Progress::default()).unwrap()
    }

    pub fn capability(&self, tree: &TreeId, session: &Session, vm: &str) -> Capability {
        self.capabilities.issue(tree, &vm.parse().unwrap(), &session.key_hash, in_an_hour())
    }

    pub fn order(
        &self,
        start: &str,
        image: &BlockImage,
        vm: &str,
        session: &Session,
        upstreams: Vec<Upstream>,
    ) -> ToAgent {
        let tree = tree_of(image);
        let capability = self.capability(&tree, session, vm);
        let above = upstreams.iter().filter(|upstream| **upstream != Upstream::Origin);
        let seat = Seat { depths: vec![above.count() as u32], ..Seat::default() };
        let epoch = Epoch { term: 1, counter: 1 };
        let place = Place { tree, epoch, stripes: vec![upstreams], seat, capability };
        ToAgent::Start(Box::new(StartOrder {
            request: None,
            start: start.parse().unwrap(),
            function: "web".parse().unwrap(),
            image: image.clone(),
            place,
            code: None,
            env: BTreeMap::new(),
            command: None,
            memory_bytes: 64 << 20,
            cpu_millis: 100,
            probe_path: "/".into(),
            mode: faasnet_actors::wire::control::Mode::default(),
            ready_deadline_ms: 30_000,
            record: false,
            hot: Vec::new(),
        }))
    }

    /// The body of the instance's answer to a GET, over the agent.
    pub async fn get(&self, session: &Session, vm: &str, start: &str, path: &str) -> Result<Bytes, String> {
        let dialer = Dialer::new(&self.identity, PATIENCE).unwrap();
        let vm = vm.parse().unwrap();
        let mut stream = dialer
            .vm(&vm, session.hello.address, Purpose::Request)
            .await
            .map_err(|error| error.to_string())?;
        let head = RequestHead::Forward { start: start.parse().unwrap() };
        framed::write(&mut stream, &head, &[]).await.map_err(|error| error.to_string())?;
        let mut frames = FrameReader::<_, RequestAnswer>::new(stream, FRAME);
        let answer = frames.expect(PATIENCE).await.map_err(|error| error.to_string())?;
        if answer.header != RequestAnswer::Ready {
            return Err(format!("{:?}", answer.header));
        }
        let (stream, _) = frames.into_parts();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "test").body(Empty::<Bytes>::new()).unwrap();
        let response = patiently(sender.send_request(request)).await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(response.status().to_string());
        }
        let body = patiently(response.into_body().collect()).await.map_err(|error| error.to_string())?;
        Ok(body.to_bytes())
    }

    /// A dialer with the certificate of a VM that no agent has.
    pub fn stranger(&self, vm: &str) -> (Dialer, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let (key, request) = new_request().unwrap();
        let (certificate, _) =
            self.authority.issue_vm(&vm.parse().unwrap(), &request, SystemTime::now(), HOUR).unwrap();
        let identity =
            Identity::store(folder.path(), &key, &certificate, self.authority.certificate_pem()).unwrap();
        (Dialer::new(&identity, PATIENCE).unwrap(), identity)
    }
}

pub fn tree_of(image: &BlockImage) -> TreeId {
    TreeId { tenant: "acme".parse().unwrap(), image: image.id }
}

pub fn in_an_hour() -> u64 {
    (SystemTime::now() + HOUR).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

pub async fn patiently<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, waiting).await.expect("it takes too long")
}

fn write_layout(layout: &Path, layer: &[u8], process: &serde_json::Value) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = digest_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let config = json!({
        "architecture": Platform::of_this_machine().architecture, "os": "linux", "config": process,
        "rootfs": { "type": "layers", "diff_ids": [digest_of(layer).to_string()] },
    });
    let layer = put("application/vnd.oci.image.layer.v1.tar", layer);
    let config = put("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config).unwrap());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
    let entry = put(media_type, &serde_json::to_vec(&manifest).unwrap());
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

/// What the accepting tasks of the manager share.
struct Door {
    authority: Arc<Authority>,
    capabilities: Arc<CapabilityKey>,
    tokens: JoinTokens,
    opened: mpsc::UnboundedSender<(VmId, Session)>,
}

impl Door {
    async fn admit(&self, accepted: Accepted) {
        match (accepted.purpose, accepted.peer) {
            (Purpose::Join, _) => self.join(accepted.stream).await,
            (Purpose::Control, Some(peer)) => self.control(accepted.stream, peer).await,
            _ => {}
        }
    }

    async fn join(&self, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
        let mut frames = FrameReader::<_, JoinRequest>::new(stream, FRAME);
        let request = frames.expect(PATIENCE).await.unwrap().header;
        let answer = if self.tokens.check(&request.secret, SystemTime::now()).await.unwrap() {
            let issued = self
                .authority
                .issue_vm(&request.vm, &request.signing_request, SystemTime::now(), HOUR)
                .unwrap();
            JoinAnswer::Joined { certificate: issued.0 }
        } else {
            JoinAnswer::Refused { reason: JoinRefusal::Token }
        };
        let (mut stream, _) = frames.into_parts();
        framed::write(&mut stream, &answer, &[]).await.unwrap();
        let _ = stream.shutdown().await;
    }

    async fn control(&self, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, peer: Peer) {
        let (reading, mut writing) = tokio::io::split(stream);
        let mut frames = FrameReader::<_, ToManager>::new(reading, FRAME);
        let ToManager::Hello(hello) = frames.expect(PATIENCE).await.unwrap().header else {
            panic!("an agent begins with hello");
        };
        let capability_key = self.capabilities.public().to_vec();
        let welcome = ToAgent::Welcome { version: PROTOCOL_VERSION, heartbeat_ms: 200, capability_key };
        framed::write(&mut writing, &welcome, &[]).await.unwrap();
        let (orders, mut to_send) = mpsc::unbounded_channel();
        let (received, reports) = mpsc::unbounded_channel();
        let vm = peer.vm().unwrap();
        self.opened
            .send((vm.clone(), Session { vm, hello, key_hash: peer.key_hash, orders, reports }))
            .unwrap();
        loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Ok(Some(frame)) if frame.header == ToManager::Yield => {
                        framed::write(&mut writing, &ToAgent::Yielded, &[]).await.unwrap();
                    }
                    Ok(Some(frame)) => { let _ = received.send(frame.header); }
                    _ => return,
                },
                order = to_send.recv() => match order {
                    Some(order) => if framed::write(&mut writing, &order, &[]).await.is_err() { return },
                    None => return,
                },
            }
        }
    }
}

impl Session {
    pub async fn report(&mut self, wanted: impl Fn(&ToManager) -> bool) -> ToManager {
        loop {
            let report = patiently(self.reports.recv()).await.expect("the session is open");
            if wanted(&report) {
                return report;
            }
        }
    }

    /// Waits until the start is ready.
    pub async fn ready(&mut self, start: &str) -> StartReport {
        let id: StartId = start.parse().unwrap();
        let about = |report: &ToManager| match report {
            ToManager::Ready { start, .. } | ToManager::Ended { start, .. } => *start == id,
            _ => false,
        };
        match self.report(about).await {
            ToManager::Ready { report, .. } => report,
            other => panic!("start {start}: {other:?}"),
        }
    }

    /// Waits until the start has ended.
    pub async fn ended(&mut self, start: &str) -> EndReason {
        let id: StartId = start.parse().unwrap();
        match self.report(|report| matches!(report, ToManager::Ended { start, .. } if *start == id)).await {
            ToManager::Ended { reason, .. } => reason,
            _ => unreachable!("just matched"),
        }
    }

    pub fn upstream(&self, vm: &str) -> Upstream {
        Upstream::Vm { vm: vm.parse().unwrap(), address: self.hello.address }
    }
}

/// A small file system that is unmounted in the end.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn at(folder: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let mut mounting = Command::new("mount");
        mounting.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&folder);
        assert!(mounting.status().unwrap().success());
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A file system that can be made to find a fault in itself, which makes it read-only for all who have it open.
pub struct FaultyDisk {
    device: PathBuf,
    folder: PathBuf,
}

impl FaultyDisk {
    pub fn at(scratch: &Path, folder: PathBuf) -> Self {
        let device = scratch.join("disk");
        fs::create_dir_all(&folder).unwrap();
        fs::File::create(&device).unwrap().set_len(256 << 20).unwrap();
        done(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&device));
        let disk = Self { device, folder };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let options = ["-o", "loop,errors=remount-ro"];
        done(Command::new("mount").args(options).arg(&self.device).arg(&self.folder));
    }

    pub fn fail(&self) {
        let source = Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.folder).output().unwrap();
        let device = String::from_utf8(source.stdout).unwrap();
        let device = Path::new(device.trim()).file_name().unwrap();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(trigger, "1").unwrap();
        assert!(fs::write(self.folder.join("written"), "").is_err(), "the disk is writable still");
    }

    /// Checks it and mounts it writable. Nobody may use it meanwhile.
    pub fn repair(&mut self) {
        done(Command::new("umount").arg(&self.folder));
        // Another name space may have it mounted still, read-only as it is: that one does not see this copy.
        let copy = self.device.with_extension("repaired");
        done(Command::new("cp").arg("--sparse=always").arg(&self.device).arg(&copy));
        self.device = copy;
        // 1: it has repaired something, the note of the fault at least.
        let checked = Command::new("e2fsck").args(["-fy"]).arg(&self.device).output().unwrap();
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        self.mount();
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A real agent, with its real holder. Dropping it ends both.
pub struct Agent {
    pub name: String,
    pub data: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    child: Child,
}

impl Agent {
    pub fn start(world: &World, name: &str, variables: &[(&str, &str)]) -> Self {
        let data = world.folder.path().join(name);
        Self::start_with(world, name, data, &world.token, variables)
    }

    pub fn start_with(
        world: &World,
        name: &str,
        data: PathBuf,
        token: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let (arguments, mut variables) = (arguments(world, name, &data), owned(variables));
        variables.push(("FAASNET_JOIN_TOKEN".into(), token.to_owned()));
        variables.push(("FAASNET__AGENT__STOP_GRACE_MS".into(), "500".into()));
        fs::create_dir_all(&data).unwrap();
        let child = spawn(&data, &arguments, &variables);
        Self { name: name.to_owned(), data, arguments, variables, child }
    }

    /// The very end: no clean-up, as when the machine's OOM killer strikes.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same folder.
    pub fn again(&mut self) {
        self.child = spawn(&self.data, &self.arguments, &self.variables);
    }

    /// A process of its own that is to take the place of the VM's agent.
    pub fn start_replacing(world: &World, name: &str, variables: &[(&str, &str)]) -> Self {
        let (data, variables) = (world.folder.path().join(name), owned(variables));
        let mut arguments = arguments(world, name, &data);
        arguments.push("--replace".to_owned());
        let child = spawn(&data, &arguments, &variables);
        Self { name: name.to_owned(), data, arguments, variables, child }
    }

    /// Starts another process with `--replace` and makes it this one; the one before.
    pub fn replaced(&mut self) -> Self {
        let arguments: Vec<String> = self.arguments.iter().cloned().chain(["--replace".to_owned()]).collect();
        let child = spawn(&self.data, &arguments, &self.variables);
        let child = std::mem::replace(&mut self.child, child);
        Self {
            name: self.name.clone(),
            data: self.data.clone(),
            arguments: self.arguments.clone(),
            variables: self.variables.clone(),
            child,
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.data.join("agent.log")).unwrap_or_default()
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    /// Its resident bytes: all, and without what are pages of files.
    pub fn resident_bytes(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        (bytes("VmRSS:"), bytes("RssAnon:"))
    }

    /// Waits until the process has ended, and says whether it did so well.
    pub async fn ends(&mut self) -> bool {
        let (done, mut waiting) = watch::channel(None);
        let id = self.child.id();
        tokio::task::spawn_blocking(move || {
            let pid = rustix::process::Pid::from_raw(id.cast_signed());
            let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            let _ = rustix::process::waitid(rustix::process::WaitId::Pid(pid.unwrap()), options);
            let _ = done.send(Some(()));
        });
        let _ = patiently(waiting.wait_for(Option::is_some)).await.unwrap();
        self.child.wait().unwrap().success()
    }

    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::kill_process(self.pid(), signal);
    }
}

fn arguments(world: &World, name: &str, data: &Path) -> Vec<String> {
    let (control, data) = (world.control.to_string(), data.to_str().unwrap());
    ["agent", "--name", name, "--manager", &control, "--data", data].map(str::to_owned).to_vec()
}

fn owned(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn spawn(data: &Path, arguments: &[String], variables: &[(String, String)]) -> Child {
    let log = fs::File::options().create(true).append(true).open(data.join("agent.log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_faasnet"))
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
            eprintln!(
                "--- its holder\n{}",
                fs::read_to_string(self.data.join("holder.log")).unwrap_or_default()
            );
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            self.again(); // it alone can end its holder
        }
        self.terminate();
        let _ = self.child.wait();
    }
}

/// The token with another secret or another CA.
pub fn bad_token(world: &World) -> String {
    let good: JoinToken = world.token.parse().unwrap();
    assert_eq!(good.ca_hash, world.authority.hash());
    let mut text = world.token.clone();
    let last = text.pop().unwrap();
    let before = text.pop().unwrap();
    text.push(if before == 'A' { 'B' } else { 'A' });
    text.push(last);
    text
}
