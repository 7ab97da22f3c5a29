//! The agent process: joins the manager, makes the adapters, and runs the agent's actors.

mod disk;
mod handover;
mod holder_link;
mod life;
mod listener;
mod manager_link;
mod metrics;
mod named_index;
mod origin_reader;
mod prober;
mod renewal;
mod upstream;

use crate::{
    net::{
        identity::{Identity, Peer},
        tls::{Acceptor, Dialer},
    },
    origin::{self, OriginReader},
    settings::Settings,
    tokens::{FileToken, JoinToken, system_secrets},
};
use actix::System;
use anyhow::{Context, bail};
pub use disk::Cache;
use faasnet_actors::{block_transfer::DoneByAll, id::VmId, wire::frame::FrameLimits};
use handover::{Inherited, Lock};
use life::End;
use std::{
    fs::DirBuilder,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// What the command line says of an agent, beside the settings.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub name: VmId,
    /// `HOST:PORT` of the manager's control listener.
    pub manager: String,
    /// Needed until the VM has its certificate.
    pub join_token: Option<String>,
    /// The settings file, for the holder.
    pub config: Option<PathBuf>,
    /// Take the place of an agent that runs on the data folder.
    pub replace: bool,
}

/// Memory that the machine itself needs, when `agent.memory_bytes` is 0.
const MEMORY_RESERVED_BYTES: u64 = 512 << 20;

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Runs an agent until SIGTERM or SIGINT: then its containers and its holder end too. A killed agent
/// leaves both running, and finds them again when it is started on the same folder; so does one that is
/// replaced (`handover`).
pub fn run(settings: Settings, options: AgentOptions) -> anyhow::Result<()> {
    let threads = settings.agent.threads;
    // Also a single one is another thread than that of the actors, which never hash, encrypt or compress.
    let runtime = move || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).enable_all().build().expect("the operating system gives threads")
    };
    System::with_tokio_rt(runtime).block_on(serve(settings, options))
}

/// What is prepared before anything of an agent that runs is touched.
struct Parts {
    identity: Identity,
    origin: Arc<OriginReader>,
    /// Of all lives in this process.
    done: Arc<DoneByAll>,
    /// For whoever asks for numbers, if there is a place to ask.
    metrics: Option<FileToken>,
    memory_bytes: u64,
    cpu_millis: u32,
}

impl Parts {
    async fn prepare(settings: &Settings, options: &AgentOptions) -> anyhow::Result<Self> {
        let listen = settings.agent.listen;
        if listen.ip().is_unspecified() {
            bail!("agent.listen must name the address at which other VMs reach this one, not {listen}");
        }
        let identity = identity(&settings.agent.data, settings, options).await?;
        // They are made again by each life; here they show that the certificate is good.
        Acceptor::agent(&identity, millis(settings.agent.handshake_ms)).context("using the certificate")?;
        Dialer::new(&identity, millis(settings.agent.connect_ms)).context("using the certificate")?;
        let token = || FileToken::open(&settings.agent.data.join(metrics::TOKEN), &system_secrets());
        let metrics = settings.agent.metrics_listen.map(|_| token()).transpose();
        Ok(Self {
            identity,
            origin: origin::open(&settings.origin, rand::random())?,
            done: Arc::default(),
            metrics: metrics.context("the token for agent.metrics_listen")?,
            memory_bytes: memory_bytes(settings)?,
            cpu_millis: cpu_millis(settings)?,
        })
    }
}

async fn serve(settings: Settings, options: AgentOptions) -> anyhow::Result<()> {
    let data = &settings.agent.data;
    DirBuilder::new().recursive(true).mode(0o700).create(data).context("making the data folder")?;
    let lock = Lock::try_take(data).context("locking the data folder")?;
    if lock.is_none() && !options.replace {
        bail!(
            "another agent uses the data folder {}; to put this process in its place, add --replace",
            data.display()
        );
    }
    let parts = Parts::prepare(&settings, &options).await?;
    let (mut lock, socket, mut inherited) = match lock {
        Some(lock) => (lock, bind(settings.agent.listen)?, None),
        None => {
            let (socket, inherited) = take_over(&settings).await?;
            let Inherited { lock, before } = inherited;
            (lock, socket, Some(before))
        }
    };
    loop {
        let before = inherited.take();
        let up = async {
            if let Some(before) = before {
                before.say_taken().await;
            }
        };
        match life::live(&settings, &options, &parts, &socket, lock, up).await? {
            End::Stopped | End::Replaced => return Ok(()),
            End::LeftAlone(free) => lock = free,
        }
    }
}

fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.with_context(|| format!("listening on {listen}; choose another address with agent.listen"))
}

/// Takes the place of the agent that runs, and its socket if that is where we are to listen.
async fn take_over(settings: &Settings) -> anyhow::Result<(TcpListener, Inherited)> {
    let listen = settings.agent.listen;
    // Before the other one goes: an address that cannot be ours must not cost it its place.
    let own = match TcpListener::bind(listen) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        _ if listen.port() == 0 => None,
        _ => Some(bind(listen)?),
    };
    let begun = Instant::now();
    let (inherited, listener) =
        handover::take_over(&settings.agent.data, millis(settings.agent.replace_ms)).await?;
    let is_ours = |listener: &TcpListener| {
        listener
            .local_addr()
            .is_ok_and(|address| address == listen || (listen.port() == 0 && address.ip() == listen.ip()))
    };
    let socket = match own.or(listener.filter(is_ours)) {
        Some(socket) => socket,
        None => bind(listen)?,
    };
    tracing::info!(gap_ms = begun.elapsed().as_millis(), "the agent before has handed over");
    Ok((socket, inherited))
}

async fn identity(data: &Path, settings: &Settings, options: &AgentOptions) -> anyhow::Result<Identity> {
    let folder = data.join("identity");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    if let Some(identity) = Identity::load(&folder)? {
        let known = Peer::of(&identity.certificate)?.vm();
        if known.as_ref() != Some(&options.name) {
            let known = known.map_or_else(|| "another name".to_owned(), |vm| vm.to_string());
            bail!(
                "the data folder {} belongs to VM {known}; use --name {known}, or another --data",
                data.display()
            );
        }
        return Ok(identity);
    }
    let Some(token) = &options.join_token else {
        bail!("this VM has not joined yet: give --join-token (from `faasnet vm join-token` on the manager)");
    };
    let token: JoinToken = token.parse()?;
    let frame = FrameLimits { header_bytes_max: settings.transfer.frame_header_bytes_max, body_bytes_max: 0 };
    let deadline = millis(settings.agent.handshake_ms);
    manager_link::join(&folder, &options.name, &options.manager, &token, frame, deadline).await
}

fn memory_bytes(settings: &Settings) -> anyhow::Result<u64> {
    if settings.agent.memory_bytes > 0 {
        return Ok(settings.agent.memory_bytes);
    }
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
    Ok(total.saturating_sub(MEMORY_RESERVED_BYTES))
}

fn cpu_millis(settings: &Settings) -> anyhow::Result<u32> {
    if settings.agent.cpu_millis > 0 {
        return Ok(settings.agent.cpu_millis);
    }
    let cores = std::thread::available_parallelism().context("counting the cores; set agent.cpu_millis")?;
    Ok(u32::try_from(cores.get()).unwrap_or(u32::MAX).saturating_mul(1000))
}

fn upstream_limits(settings: &Settings) -> upstream::UpstreamLimits {
    let transfer = &settings.transfer;
    upstream::UpstreamLimits {
        frame: FrameLimits {
            header_bytes_max: transfer.frame_header_bytes_max,
            // An index is the longest body; a block is far below it.
            body_bytes_max: transfer.index_bytes_max,
        },
        handshake: millis(settings.agent.handshake_ms),
        // A block is asked for, hurried and, after a new place, asked for again.
        commands_max: 4 * transfer.in_flight_blocks_max,
        origin_requests_max: settings.origin.requests_max,
    }
}

fn listener_limits(settings: &Settings) -> listener::ListenerLimits {
    listener::ListenerLimits {
        frame: FrameLimits { header_bytes_max: settings.transfer.frame_header_bytes_max, body_bytes_max: 0 },
        handshake: millis(settings.agent.handshake_ms),
        connections_max: settings.agent.connections_max,
        queued_blocks_max: settings.transfer.queued_blocks_max,
        unsent_socket_bytes_max: settings.transfer.unsent_socket_bytes_max,
        congestion_control: settings.transfer.congestion_control.clone(),
        requests_per_instance_max: settings.agent.requests_per_instance_max,
        log_bytes_max: settings.holder.log_bytes_max,
    }
}
