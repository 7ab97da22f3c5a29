//! The socket on which the agent talks to the holder: one agent at a time, a new one replaces the old.

use super::desk::Input;
use bytes::BytesMut;
use faasnet_actors::wire::{
    PROTOCOL_VERSION,
    frame::{FrameLimits, decode, encode_head},
    holder::{FromHolder, ToHolder},
};
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

/// The largest header is a `Mount` with one bit for each of 2^20 blocks; lists of blocks stay below.
const LIMITS: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 0 };
/// Messages that may wait for the agent; one that falls so far behind is hung up on.
const MESSAGES_MAX: usize = 4096;
/// Time for the first message, and for the agent to take one.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connected agent that said hello.
pub struct Agent {
    pub connection: u64,
    messages: Option<SyncSender<FromHolder>>,
    writer: Option<JoinHandle<()>>,
    stream: UnixStream,
}

impl Agent {
    /// Queues a message; `false` when the agent has too many or is gone.
    pub fn tell(&self, message: FromHolder) -> bool {
        self.messages.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }

    /// Ends the connection; its reader reports that.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sends what is queued, then hangs up. The writer ends with its queue, or when one write takes
    /// longer than our patience.
    pub fn finish(mut self) {
        self.messages = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// The holder's socket in the VM's data folder.
pub const SOCKET: &str = "holder.sock";

/// A socket's path, by way of the open folder: it may have only 108 bytes.
pub fn socket_path(folder: &File, name: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

/// Listens below `data`. A socket that a dead holder left is replaced; the caller holds the lock.
pub fn listen(data: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(data.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(data)?;
    let listener = UnixListener::bind(socket_path(&folder, SOCKET))?;
    fs::set_permissions(data.join(SOCKET), Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts agents until the process ends.
pub fn accept(listener: &UnixListener, desk: &SyncSender<Input>) {
    for (connection, stream) in (0..).zip(listener.incoming()) {
        let desk = desk.clone();
        let serve = move |stream| {
            if let Err(error) = serve(stream, connection, &desk) {
                tracing::warn!(connection, %error, "the agent's connection ended");
            }
            let _ = desk.send(Input::Disconnected { connection });
        };
        let served = stream.and_then(|stream| {
            thread::Builder::new().name("agent".to_owned()).spawn(move || serve(stream)).map(drop)
        });
        if let Err(error) = served {
            tracing::warn!(%error, "accepting the agent");
        }
    }
}

fn serve(stream: UnixStream, connection: u64, desk: &SyncSender<Input>) -> io::Result<()> {
    let peer = socket_peercred(&stream)?;
    if peer.uid != geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the peer has another user id"));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut orders = Orders { stream: stream.try_clone()?, buffer: BytesMut::new() };
    match orders.next()? {
        Some(ToHolder::Hello { version: PROTOCOL_VERSION }) => {}
        Some(ToHolder::Hello { version }) => {
            let state =
                FromHolder::State { version: PROTOCOL_VERSION, mounts: Vec::new(), instances: Vec::new() };
            send(&stream, &state)?;
            return Err(invalid(format!("the agent speaks version {version}, not {PROTOCOL_VERSION}")));
        }
        _ => return Err(invalid("the agent did not say hello first".to_owned())),
    }
    stream.set_read_timeout(None)?;
    let (messages, queue) = sync_channel(MESSAGES_MAX);
    let writing = stream.try_clone()?;
    let writer = thread::Builder::new().name("to-agent".to_owned()).spawn(move || write(&writing, &queue))?;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let agent = Agent { connection, messages: Some(messages), writer: Some(writer), stream };
    desk.send(Input::Connected(agent)).map_err(gone)?;
    while let Some(order) = orders.next()? {
        desk.send(Input::Order { connection, order }).map_err(gone)?;
    }
    Ok(())
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn write(stream: &UnixStream, queue: &Receiver<FromHolder>) {
    while let Ok(message) = queue.recv() {
        if let Err(error) = send(stream, &message) {
            tracing::warn!(%error, "writing to the agent");
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn send(mut stream: &UnixStream, message: &FromHolder) -> io::Result<()> {
    let frame = encode_head(message, 0).map_err(|error| invalid(error.to_string()))?;
    stream.write_all(&frame)
}

struct Orders {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Orders {
    /// The next order; `None` when the agent hung up between two.
    fn next(&mut self) -> io::Result<Option<ToHolder>> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match decode(&mut self.buffer, LIMITS).map_err(|error| invalid(error.to_string()))? {
                Ok(frame) => return Ok(Some(frame.header)),
                Err(_bytes_needed) => {}
            }
            match self.stream.read(&mut chunk)? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => self.buffer.extend_from_slice(&chunk[..len]),
            }
        }
    }
}
