//! The shell around [`HolderCore`]: one thread that takes what happens, asks the core, and does as it
//! says. It never touches a mount and never waits for anything but the next input; whatever may take
//! time has a thread of its own that reports back here.

use super::{
    agent::Agent,
    core::{Effect, Event, HolderCore, Limits},
    file::{Backing, CacheFile, ImageFile, PendingRead, ReadNumbers, Recorder, answer_reads},
    instance::{self, Files, Host},
    mount::{MountOptions, MountedImage},
    reads::ReadId,
    recording::Recording,
};
use crate::settings::HolderSettings;
use faasnet_actors::{
    id::{ImageId, StartId},
    wire::holder::{FromHolder, Mount, Run, ToHolder},
};
use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Inputs that may wait for the desk; above it threads that report wait, which never are the desk's.
pub const INPUTS_MAX: usize = 4096;
/// How often the desk looks after its own log when nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// What reaches the desk.
pub enum Input {
    Connected(Agent),
    Order { connection: u64, order: ToHolder },
    Disconnected { connection: u64 },
    Read(PendingRead),
    Mounted { image: ImageId, result: Result<MountedImage, String> },
    Event(Event),
}

struct HeldImage {
    backing: Arc<Backing>,
    recorder: Arc<Recorder>,
    /// To the thread that answers reads whose blocks arrived.
    answers: Sender<PendingRead>,
    mounted: Option<MountedImage>,
}

pub struct Desk {
    core: HolderCore,
    settings: HolderSettings,
    host: Arc<Host>,
    inputs: SyncSender<Input>,
    agent: Option<Agent>,
    images: BTreeMap<ImageId, HeldImage>,
    reads: BTreeMap<ReadId, PendingRead>,
    numbers: ReadNumbers,
    instances: BTreeMap<StartId, UnixDatagram>,
}

impl Desk {
    pub fn new(settings: HolderSettings, host: Host, inputs: SyncSender<Input>) -> Self {
        let core = HolderCore::new(Limits {
            read_deadline: Duration::from_millis(settings.read_deadline_ms),
            call_deadline: Duration::from_millis(settings.call_deadline_ms),
            reads_waiting_max: settings.reads_waiting_max,
        });
        Self {
            core,
            settings,
            host: Arc::new(host),
            inputs,
            agent: None,
            images: BTreeMap::new(),
            reads: BTreeMap::new(),
            numbers: ReadNumbers::default(),
            instances: BTreeMap::new(),
        }
    }

    /// Serves until everything is stopped after a `Shutdown`.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        let mut effects = Vec::new();
        loop {
            let next = self.core.next_deadline();
            let wait = next.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()).min(IDLE));
            let event = match inputs.recv_timeout(wait) {
                Ok(input) => self.event(input),
                Err(RecvTimeoutError::Timeout) => Some(Event::Tick),
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(event) = event {
                self.core.apply(event, Instant::now(), &mut effects);
            }
            for effect in effects.drain(..) {
                if effect == Effect::Exit {
                    return self.say_goodbye();
                }
                self.perform(effect);
            }
            super::spawn::bound_own_log();
        }
    }

    fn event(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Connected(agent) => {
                self.agent = Some(agent);
                Some(Event::Joined)
            }
            Input::Order { connection, order } => {
                let current = self.agent.as_ref().is_some_and(|agent| agent.connection == connection);
                current.then(|| self.order(order)).flatten()
            }
            Input::Disconnected { connection } => {
                self.agent.take_if(|agent| agent.connection == connection).map(|_| Event::Left)
            }
            Input::Read(read) => {
                let (image, blocks, id) = (read.image, read.blocks.clone(), self.numbers.next());
                self.reads.insert(id, read);
                Some(Event::ReadWaits { image, read: id, blocks })
            }
            Input::Mounted { image, result } => {
                let result = result.map(|mounted| {
                    if let Some(held) = self.images.get_mut(&image) {
                        held.mounted = Some(mounted);
                    }
                });
                if result.is_err() {
                    self.images.remove(&image);
                }
                Some(Event::MountEnded { image, result })
            }
            Input::Event(event) => {
                if let Event::Ended { start, .. } | Event::StartFailed { start, .. } = &event {
                    self.instances.remove(start);
                }
                Some(event)
            }
        }
    }

    /// Lets FUSE threads see what is present before the core answers the reads that wait for it.
    fn order(&mut self, order: ToHolder) -> Option<Event> {
        match order {
            ToHolder::Mount(mount) => return self.mount_again(mount),
            ToHolder::Present { image, ref blocks } => {
                if let Some(held) = self.images.get(&image) {
                    held.backing.get().set(blocks);
                }
            }
            _ => {}
        }
        Some(Event::Order(order))
    }

    /// What the agent writes counts for the file that it writes to: if that is not the one that is read from, it is
    /// read from now on, and nothing of the other one counts.
    fn mount_again(&mut self, mount: Mount) -> Option<Event> {
        let Some(held) = self.images.get(&mount.image) else {
            return Some(Event::Order(ToHolder::Mount(mount)));
        };
        match CacheFile::open(&mount) {
            Ok(cache) if held.backing.get().merge(&cache) => Some(Event::Order(ToHolder::Mount(mount))),
            Ok(cache) => {
                tracing::warn!(image = %mount.image, "the cache file is another one than before");
                held.backing.replace(cache);
                Some(Event::OtherFile(mount))
            }
            // Nothing that this agent says of the image could be believed. It comes back.
            Err(error) => {
                tracing::error!(image = %mount.image, %error, "hanging up on the agent");
                self.agent.take().iter().for_each(Agent::hang_up);
                Some(Event::Left)
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell(message) => self.tell(message),
            Effect::Answer(image, read) => {
                let Some(read) = self.reads.remove(&read) else { return };
                match self.images.get(&image) {
                    Some(held) => {
                        if let Err(unsent) = held.answers.send(read) {
                            unsent.0.fail();
                        }
                    }
                    None => read.fail(),
                }
            }
            Effect::Fail(image, read) => {
                if let Some(pending) = self.reads.remove(&read) {
                    tracing::warn!(%image, blocks = ?pending.blocks, "a read fails: its blocks did not come");
                    pending.fail();
                }
            }
            Effect::Mount(mount) => self.mount(mount),
            Effect::Unmount(image) => self.unmount(image),
            Effect::EndRecording(image) => self.end_recording(image),
            Effect::Start(run) => self.start(run),
            Effect::Stop { start, grace_ms } => {
                if let Some(control) = self.instances.get(&start)
                    && let Err(error) = control.send(&grace_ms.to_le_bytes())
                {
                    tracing::warn!(%start, %error, "passing on a stop order");
                }
            }
            Effect::Exit => {}
        }
    }

    /// An agent that does not read is hung up on; it comes back and learns the state.
    fn tell(&mut self, message: FromHolder) {
        if let Some(agent) = &self.agent
            && !agent.tell(message)
        {
            tracing::warn!(connection = agent.connection, "the agent does not take its messages; hanging up");
            agent.hang_up();
        }
    }

    fn mount(&mut self, mount: Mount) {
        let image = mount.image;
        let (answers, arrived) = channel();
        let backing = match CacheFile::open(&mount) {
            Ok(cache) => Arc::new(Backing::new(cache)),
            Err(error) => return self.report(Input::Mounted { image, result: Err(error) }),
        };
        let recorder = Arc::new(Recorder::new(mount.record, self.settings.recorded_ranges_max));
        let held = HeldImage {
            backing: Arc::clone(&backing),
            recorder: Arc::clone(&recorder),
            answers,
            mounted: None,
        };
        self.images.insert(image, held);
        let (desk, settings) = (self.inputs.clone(), self.settings.clone());
        let folder = self.host.data.join("images").join(image.hex());
        let work = move || {
            let result = mount_image(mount, folder, (backing, recorder), arrived, &desk, &settings);
            let _ = desk.send(Input::Mounted { image, result });
        };
        self.spawn("mount", work, |error| Input::Mounted { image, result: Err(error.to_string()) });
    }

    fn unmount(&mut self, image: ImageId) {
        let mounted = self.images.remove(&image).and_then(|held| held.mounted);
        let desk = self.inputs.clone();
        let work = move || {
            if let Some(mounted) = mounted {
                mounted.unmount();
            }
            let _ = desk.send(Input::Event(Event::UnmountEnded { image }));
        };
        self.spawn("unmount", work, |_| Input::Event(Event::UnmountEnded { image }));
    }

    fn end_recording(&mut self, image: ImageId) {
        let recording = self.images.get(&image).map(|held| held.recorder.finish());
        if recording.as_ref().is_some_and(Recording::is_cut) {
            tracing::warn!(%image, "more was read than is recorded; holder.recorded_ranges_max is the limit");
        }
        let ranges = recording.map(|recording| recording.ranges()).unwrap_or_default();
        self.tell(FromHolder::Recorded { image, ranges });
    }

    fn start(&mut self, run: Box<Run>) {
        let start = run.start.clone();
        let failed = |error: io::Error| {
            let reason = format!("no thread or socket for the instance: {error}");
            Input::Event(Event::StartFailed { start: start.clone(), reason })
        };
        let pair = UnixDatagram::pair().and_then(|pair| pair.0.set_nonblocking(true).map(|()| pair));
        let (orders, control) = match pair {
            Ok(pair) => pair,
            Err(error) => return self.report(failed(error)),
        };
        self.instances.insert(start.clone(), orders);
        let (desk, host) = (self.inputs.clone(), Arc::clone(&self.host));
        let file_system =
            |image: ImageId| MountedImage::file_system(&host.data.join("images").join(image.hex()));
        let (root, code) = (file_system(run.image), run.code.map(file_system));
        let work = move || {
            let files = Files { root: &root, code: code.as_deref() };
            instance::run(&host, &run, files, control, &desk);
        };
        self.spawn("instance", work, failed);
    }

    fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
        failed: impl FnOnce(io::Error) -> Input,
    ) {
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
            self.report(failed(error));
        }
    }

    /// Reports to ourselves without waiting for ourselves.
    fn report(&self, input: Input) {
        let desk = self.inputs.clone();
        if let Err(std::sync::mpsc::TrySendError::Full(input)) = desk.try_send(input) {
            thread::spawn(move || desk.send(input));
        }
    }

    fn say_goodbye(self) {
        for (_, read) in self.reads {
            read.fail();
        }
        if let Some(agent) = self.agent {
            agent.finish();
        }
    }
}

fn mount_image(
    mount: Mount,
    folder: PathBuf,
    (backing, recorder): (Arc<Backing>, Arc<Recorder>),
    arrived: Receiver<PendingRead>,
    desk: &SyncSender<Input>,
    settings: &HolderSettings,
) -> Result<MountedImage, String> {
    let file = ImageFile {
        image: mount.image,
        backing: Arc::clone(&backing),
        plain_bytes: mount.plain_bytes,
        recorder,
        desk: desk.clone(),
        read_ahead_bytes: settings.read_ahead_kib.saturating_mul(1024).max(4096),
        background_max: settings.reads_waiting_max.clamp(12, usize::from(u16::MAX)) as u16,
    };
    let waiting = desk.clone();
    thread::Builder::new()
        .name("answers".to_owned())
        .spawn(move || answer_reads(&backing, &arrived, &waiting))
        .map_err(|error| error.to_string())?;
    let options = MountOptions {
        threads: settings.fuse_threads,
        direct_io: settings.erofs_direct_io,
        read_ahead_kib: match (mount.record, mount.packed) {
            (true, _) => settings.recording_read_ahead_kib,
            (false, true) => settings.packed_read_ahead_kib,
            (false, false) => settings.file_read_ahead_kib,
        },
        // At the deadline the core fails the reads that the mount waits for; this is for other hangs.
        deadline: 2 * Duration::from_millis(settings.call_deadline_ms),
    };
    let started = Instant::now();
    let mounted = MountedImage::mount(folder, file, &options).map_err(|error| error.to_string())?;
    let elapsed_ms = started.elapsed().as_millis() as u64;
    tracing::info!(image = %mount.image, elapsed_ms, "mounted");
    Ok(mounted)
}
