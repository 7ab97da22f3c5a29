//! The agent process: joins the manager, makes the adapters, and runs the agent's actors.

mod disk;
mod holder_link;
mod listener;
mod manager_link;
mod prober;
mod renewal;
mod upstream;

use crate::{
    holder,
    net::{
        identity::{Identity, Peer},
        tls::{Acceptor, Dialer},
    },
    origin,
    settings::Settings,
    tokens::JoinToken,
};
use actix::{Actor, System};
use anyhow::{Context, bail};
use disk::{Cache, Records};
use faasnet_actors::{
    agent::{Agent, AgentWorld, Shutdown},
    id::VmId,
    wire::frame::FrameLimits,
};
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
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
}

/// Memory that the machine itself needs, when `agent.memory_bytes` is 0.
const MEMORY_RESERVED_BYTES: u64 = 512 << 20;

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Runs an agent until SIGTERM or SIGINT: then its containers and its holder end too. A killed agent
/// leaves both running, and finds them again when it is started on the same folder.
pub fn run(settings: Settings, options: AgentOptions) -> anyhow::Result<()> {
    let threads = settings.agent.threads;
    let runtime = move || {
        let mut builder = match threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        if threads > 1 {
            builder.worker_threads(threads);
        }
        builder.enable_all().build().expect("the operating system gives threads")
    };
    System::with_tokio_rt(runtime).block_on(serve(settings, options))
}

async fn serve(settings: Settings, options: AgentOptions) -> anyhow::Result<()> {
    let data = &settings.agent.data;
    DirBuilder::new().recursive(true).mode(0o700).create(data).context("making the data folder")?;
    let _lock = lock(data)?;
    let identity = identity(data, &settings, &options).await?;
    if settings.agent.listen.ip().is_unspecified() {
        bail!(
            "agent.listen must name the address at which other VMs reach this one, not {}",
            settings.agent.listen
        );
    }
    let listener = TcpListener::bind(settings.agent.listen).await.with_context(|| {
        format!("listening on {}; choose another address with agent.listen", settings.agent.listen)
    })?;
    let address = listener.local_addr()?;
    let handshake = millis(settings.agent.handshake_ms);
    let connect = millis(settings.agent.connect_ms);
    let (acceptors, acceptor) = watch::channel(Acceptor::agent(&identity, handshake)?);
    let (dialers, dialer) = watch::channel(Dialer::new(&identity, connect)?);
    let (certificates, renewed) = mpsc::channel(1);
    let (holder, holder_queue) = holder_link::HolderLink::new();
    let capability_key = watch::Sender::new(Vec::new());
    let cache = Cache::open(data).context("opening the cache")?;
    let Records { trees, instances } = cache.records().context("reading what a former agent left")?;
    let world = AgentWorld {
        vm: options.name.clone(),
        address,
        memory_bytes: memory_bytes(&settings)?,
        cpu_millis: cpu_millis(&settings)?,
        limits: settings.agent_limits(),
        upstreams: Arc::new(upstream::Dialling {
            dialer: dialer.clone(),
            origin: origin::open(&settings.origin, rand::random())?,
            limits: upstream_limits(&settings),
        }),
        disk: Arc::new(cache),
        holder: Arc::new(holder),
        prober: Arc::new(prober::HttpProber),
        manager: Arc::new(manager_link::ManagerLink {
            manager: options.manager.clone(),
            dialer,
            frame: FrameLimits {
                header_bytes_max: settings.transfer.frame_header_bytes_max,
                body_bytes_max: 0,
            },
            handshake,
            reports_max: 16 * settings.agent.instances_max,
        }),
        capability_key: capability_key.clone(),
        certificates,
    };
    let agent = Agent::new(world, trees, instances).start();
    let (leave, leaving) = watch::channel(false);
    let config = options.config.clone();
    let keeping = holder_link::keep(data.clone(), config, holder_queue, agent.clone().recipient(), leaving);
    let mut keeping = tokio::spawn(keeping);
    let doors = Arc::new(listener::Doors {
        agent: agent.clone(),
        acceptor,
        capability_key: capability_key.subscribe(),
        data: data.clone(),
        limits: listener_limits(&settings),
        requests: Mutex::new(BTreeMap::new()),
    });
    let listening = tokio::spawn(listener::listen(listener, doors));
    let users = renewal::Users { acceptors, dialers, handshake, connect };
    tokio::spawn(renewal::keep_fresh(data.join("identity"), identity, agent.clone(), renewed, users));
    tracing::info!(vm = %options.name, %address, manager = %options.manager, "the agent is up");

    stop_signal(&agent).await?;
    tracing::info!("the agent shuts down");
    listening.abort();
    leave.send_replace(true);
    let deadline = millis(settings.agent.stop_grace_ms + settings.holder.call_deadline_ms);
    let ending = async {
        let _ = agent.send(Shutdown).await;
        let _ = (&mut keeping).await;
        let folder = data.clone();
        let _ = tokio::task::spawn_blocking(move || holder::wait_ended(&folder)).await;
    };
    if tokio::time::timeout(deadline, ending).await.is_err() {
        tracing::error!("the holder did not end in time");
    }
    keeping.abort();
    Ok(())
}

/// Waits for a signal to end, or for the agent's actor to give up.
async fn stop_signal(agent: &actix::Addr<Agent>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = look.tick() => if !agent.connected() {
                bail!("the agent's actors crashed too often; containers go on, start the agent again");
            },
        }
    }
}

/// One agent for a data folder.
fn lock(data: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(data.join("agent.lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another agent uses the data folder {}", data.display()))?;
    Ok(file)
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
    }
}

fn listener_limits(settings: &Settings) -> listener::ListenerLimits {
    listener::ListenerLimits {
        frame: FrameLimits { header_bytes_max: settings.transfer.frame_header_bytes_max, body_bytes_max: 0 },
        handshake: millis(settings.agent.handshake_ms),
        connections_max: settings.agent.connections_max,
        queued_blocks_max: settings.transfer.queued_blocks_max,
        unsent_socket_bytes_max: settings.transfer.unsent_socket_bytes_max,
        requests_per_instance_max: settings.agent.requests_per_instance_max,
        log_bytes_max: settings.holder.log_bytes_max,
    }
}
