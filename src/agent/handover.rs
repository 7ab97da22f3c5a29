//! How a new process takes the place of an agent that runs (`faasnet agent --replace`).
//!
//! ```text
//! new process              agent.sock            old process                        manager, holder
//!   | prepares what can fail                       |                                    |
//!   |--HandOver----------------------------------->| accepts no more  --Yield---------->| keeps orders back
//!   |                                              |                  <--Yielded--------|
//!   |                                              | its records are on disk, it leaves the holder,
//!   |                                              | gives up agent.lock                |
//!   |<--Yours, with the listening socket-----------|                                    |
//!   | takes agent.lock, reads the records          |                                    |
//!   |--Taken-------------------------------------->| lets requests under way end, ends  |
//!   |--Hello, with all that the VM is and has ----------------------------------------->|
//! ```
//!
//! The listening socket stays the same, so that whoever connects meanwhile waits in its queue. An old
//! process that does not answer is killed, which containers survive as any crash of the agent; one that
//! hears no `Taken` goes on with a fresh agent, if the lock is still free.

use crate::{
    holder::socket_path,
    net::framed::{self, FrameReader},
};
use anyhow::{Context, bail};
use bytes::BytesMut;
use faasnet_actors::wire::{
    PROTOCOL_VERSION,
    frame::{FrameLimits, decode, encode_head},
    handover::{FromPredecessor, ToPredecessor},
};
use rustix::{
    fs::{FlockOperation, flock, fstat, major, minor},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
    },
    process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal},
};
use std::{
    fs::{self, File, Permissions},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const SOCKET: &str = "agent.sock";
/// The messages are a few bytes long.
const FRAME: FrameLimits = FrameLimits { header_bytes_max: 256, body_bytes_max: 0 };
/// Time for a process that connected to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried while another process holds it.
const LOCK_AGAIN: Duration = Duration::from_millis(5);

/// One agent for a data folder: who has this lock. Given up with the process, or by `unlock`.
pub struct Lock(File);

impl Lock {
    /// `None` when another process has it.
    pub fn try_take(data: &Path) -> io::Result<Option<Self>> {
        let path = data.join("agent.lock");
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Also for children that were just started and still have the descriptor.
    pub fn unlock(self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::error!(%error, "giving up the lock of the data folder");
        }
    }

    async fn take_within(data: &Path, deadline: Duration) -> anyhow::Result<Self> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(lock) = Self::try_take(data).context("locking the data folder")? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                bail!("another process still has the data folder {}", data.display());
            }
            sleep(LOCK_AGAIN).await;
        }
    }
}

/// The other end of a handover, for the agent that is replaced.
pub struct Successor {
    pub pid: i32,
    stream: UnixStream,
}

/// Listens for processes that want this agent's place, until the receiver is dropped. The caller holds the
/// lock.
pub fn successors(data: &Path) -> io::Result<mpsc::Receiver<Successor>> {
    match fs::remove_file(data.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(data)?;
    let listener = UnixListener::bind(socket_path(&folder, SOCKET))?;
    fs::set_permissions(data.join(SOCKET), Permissions::from_mode(0o600))?;
    let (found, successors) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let asked = tokio::select! {
                () = found.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => asked(stream).await,
                    Err(error) => Err(error.into()),
                },
            };
            match asked {
                Ok(successor) => drop(found.send(successor).await),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "a process asked in vain for our place");
                    sleep(LOCK_AGAIN).await;
                }
            }
        }
    });
    Ok(successors)
}

async fn asked(mut stream: UnixStream) -> anyhow::Result<Successor> {
    let peer = socket_peercred(&stream)?;
    if peer.uid != geteuid() {
        bail!("it has another user id");
    }
    let mut frames = FrameReader::<_, ToPredecessor>::new(&mut stream, FRAME);
    match frames.expect(PATIENCE).await?.header {
        ToPredecessor::HandOver { version: PROTOCOL_VERSION } => {
            Ok(Successor { pid: peer.pid.as_raw_nonzero().get(), stream })
        }
        ToPredecessor::HandOver { version } => {
            let refusal = FromPredecessor::Refused { version: PROTOCOL_VERSION };
            timeout(PATIENCE, framed::write(&mut stream, &refusal, &[])).await??;
            bail!("it speaks version {version} of the protocol, the holder {PROTOCOL_VERSION}")
        }
        ToPredecessor::Taken => bail!("it says that it has what it was not given"),
    }
}

impl Successor {
    /// Gives away the listening socket. The lock has been given up.
    pub async fn give(&self, listener: &TcpListener) -> anyhow::Result<()> {
        let frame = encode_head(&FromPredecessor::Yours, 0)?;
        let sending = self.stream.async_io(Interest::WRITABLE, || {
            let sockets = [listener.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(&sockets));
            assert!(fits, "the room is made for one");
            Ok(sendmsg(&self.stream, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)?)
        });
        let sent = timeout(PATIENCE, sending).await??;
        if sent != frame.len() {
            bail!("the answer was cut off");
        }
        Ok(())
    }

    /// Waits until the other process says that the folder is its own.
    pub async fn taken(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let mut frames = FrameReader::<_, ToPredecessor>::new(&mut self.stream, FRAME);
        match frames.expect(deadline).await?.header {
            ToPredecessor::Taken => Ok(()),
            ToPredecessor::HandOver { .. } => bail!("it asked twice"),
        }
    }
}

/// What a new process has of the agent before it.
pub struct Inherited {
    pub lock: Lock,
    pub before: Predecessor,
}

/// The agent before, which waits to hear that its place is taken; none when it had to be killed.
pub struct Predecessor(Option<UnixStream>);

impl Predecessor {
    /// Tells it that it may end.
    pub async fn say_taken(self) {
        if let Some(mut stream) = self.0 {
            // An old process that has gone needs no word.
            let _gone = timeout(PATIENCE, framed::write(&mut stream, &ToPredecessor::Taken, &[])).await;
        }
    }
}

/// Takes the place of the agent that has the folder, in the end by killing it. With the socket on which it
/// listened, unless it was killed.
pub async fn take_over(data: &Path, deadline: Duration) -> anyhow::Result<(Inherited, Option<TcpListener>)> {
    let without_socket = |lock| (Inherited { lock, before: Predecessor(None) }, None);
    match timeout(deadline, ask(data)).await {
        Ok(Ok((stream, listener))) => {
            let lock = Lock::take_within(data, deadline).await?;
            return Ok((Inherited { lock, before: Predecessor(Some(stream)) }, Some(listener)));
        }
        Ok(Err(AskError::Refused(version))) => bail!(
            "the holder of this VM speaks version {version} of the protocol, this program {PROTOCOL_VERSION}: \
             the agent was not replaced; drain the VM, end its agent with SIGTERM, and start this one"
        ),
        Ok(Err(AskError::Io(error))) => tracing::warn!(%error, "the agent before does not hand over"),
        Err(_) => {
            tracing::warn!(waited_ms = deadline.as_millis(), "the agent before does not answer");
        }
    }
    if let Some(lock) = Lock::try_take(data)? {
        return Ok(without_socket(lock)); // it has ended by itself
    }
    let pid = kill_holder_of_lock(data).context("killing the agent that does not answer")?;
    tracing::warn!(pid, "killed the agent before: requests that it forwarded are cut, containers go on");
    Ok(without_socket(Lock::take_within(data, deadline).await?))
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the other side speaks version {0}")]
    Refused(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn ask(data: &Path) -> Result<(UnixStream, TcpListener), AskError> {
    let folder = File::open(data)?;
    let mut stream = UnixStream::connect(socket_path(&folder, SOCKET)).await?;
    framed::write(&mut stream, &ToPredecessor::HandOver { version: PROTOCOL_VERSION }, &[]).await?;
    let mut buffer = BytesMut::new();
    let mut socket = None;
    loop {
        let answer = decode::<FromPredecessor>(&mut buffer, FRAME).map_err(io::Error::other)?;
        match (answer.map(|frame| frame.header), socket.take()) {
            (Ok(FromPredecessor::Yours), Some(listener)) => return Ok((stream, listener)),
            (Ok(FromPredecessor::Yours), None) => {
                return Err(io::Error::other("it gave no listening socket").into());
            }
            (Ok(FromPredecessor::Refused { version }), _) => return Err(AskError::Refused(version)),
            (Err(_), before) => {
                let received = stream.async_io(Interest::READABLE, || receive(&stream, &mut buffer)).await?;
                socket = received.map(TcpListener::from).or(before);
            }
        }
    }
}

/// Reads what is there, and the descriptor that came with it.
fn receive(stream: &UnixStream, buffer: &mut BytesMut) -> io::Result<Option<OwnedFd>> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.extend_from_slice(&bytes[..received.bytes]);
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.flatten().next())
}

/// Ends the process that has the lock, as the kernel names it: no number that another process may have got
/// meanwhile is believed.
fn kill_holder_of_lock(data: &Path) -> anyhow::Result<i32> {
    let lock = File::open(data.join("agent.lock"))?;
    let pid = holder_of(&lock)?.context("no process has the lock any more; try again")?;
    let process =
        pidfd_open(Pid::from_raw(pid).context("it runs outside of this container")?, PidfdFlags::empty())?;
    if holder_of(&lock)? != Some(pid) {
        bail!("the lock has changed hands; try again");
    }
    pidfd_send_signal(&process, Signal::KILL)?;
    Ok(pid)
}

fn holder_of(lock: &File) -> io::Result<Option<i32>> {
    let stat = fstat(lock)?;
    let name = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
    Ok(locked_by(&fs::read_to_string("/proc/locks")?, &name))
}

/// Who has an exclusive lock of the file, by lines like `1: FLOCK  ADVISORY  WRITE 123 08:01:77 0 EOF`. Lines
/// with `->` are of those who wait.
fn locked_by(locks: &str, file: &str) -> Option<i32> {
    locks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, "WRITE", pid, name, ..] if name == file => pid.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_has_the_lock() {
        let text = "1: FLOCK  ADVISORY  WRITE 123 08:01:77 0 EOF\n\
                    1: -> FLOCK  ADVISORY  WRITE 124 08:01:77 0 EOF\n\
                    2: POSIX  ADVISORY  WRITE 125 08:01:78 0 EOF\n";
        assert_eq!(locked_by(text, "08:01:77"), Some(123));
        assert_eq!(locked_by(text, "08:01:78"), None);
        let data = tempfile::tempdir().expect("a folder");
        let lock = Lock::try_take(data.path()).expect("opened").expect("free");
        let file = File::open(data.path().join("agent.lock")).expect("there");
        assert_eq!(holder_of(&file).expect("read"), Some(std::process::id().cast_signed()));
        assert!(Lock::try_take(data.path()).expect("opened").is_none());
        lock.unlock();
        assert_eq!(holder_of(&file).expect("read"), None);
        assert!(Lock::try_take(data.path()).expect("opened").is_some());
    }

    #[tokio::test]
    async fn the_listening_socket_is_handed_on_and_connections_wait_in_it() {
        let data = tempfile::tempdir().expect("a folder");
        let lock = Lock::try_take(data.path()).expect("opened").expect("free");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("known");
        let mut successors = successors(data.path()).expect("listens");
        let old = async {
            let mut successor = successors.recv().await.expect("came");
            assert_eq!(successor.pid, std::process::id().cast_signed());
            let early = std::net::TcpStream::connect(address).expect("the socket takes it");
            lock.unlock();
            successor.give(&listener).await.expect("given");
            drop(listener);
            successor.taken(PATIENCE).await.expect("taken");
            early
        };
        let new = async {
            let (inherited, listener) = take_over(data.path(), PATIENCE).await.expect("handed over");
            inherited.before.say_taken().await;
            (inherited.lock, listener.expect("with the socket"))
        };
        let (early, (_lock, listener)) = tokio::join!(old, new);
        let (_, peer) = listener.accept().expect("it waits");
        assert_eq!(peer, early.local_addr().expect("known"));
        assert!(Lock::try_take(data.path()).expect("opened").is_none());
    }
}
