//! The manager process: its data folder, its identity, the actors, the control listener and HTTP.

mod convert;
mod dial;
mod keys;
mod observe;
mod sessions;
mod survey;

use crate::{
    code::{self, CodePackages},
    http::{self, Events, HttpState, Scrapes},
    metadata::{self, Term},
    net::{
        identity::Authority,
        tls::{Acceptor, Dialer},
    },
    origin,
    settings::Settings,
    tokens::{ApiTokens, JoinTokens, Sessions, system_secrets},
    up::ManagerReady,
};
use actix::System;
use anyhow::{Context, bail};
use convert::ImageConverter;
use dial::AgentDialer;
use faasnet_actors::{
    manager::{Manager, ManagerHandle, ManagerWorld},
    wire::frame::FrameLimits,
    world::Metadata,
};
use observe::ActorObserver;
use rustix::fs::{FlockOperation, flock};
use sessions::{Doors, SessionLimits};
use std::{
    fs::{DirBuilder, File},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use survey::ImageSurveyor;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::task::TaskTracker;

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// Time that sessions get to end after the actors have; they only flush what is in their queues.
const SESSIONS_END: Duration = Duration::from_secs(3);

/// Time that the metadata store gets for the commits it has; all that was acknowledged is there already.
const STORE_CLOSES: Duration = Duration::from_secs(10);

/// Runs a manager until SIGTERM or SIGINT. Prints one line of JSON, a [`ManagerReady`], when it serves.
/// Agents and instances go on without it, and come back to the next manager on the same data folder.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().build().expect("the operating system gives threads")
    };
    System::with_tokio_rt(runtime).block_on(serve(settings, |ready| {
        let line = serde_json::to_string(&ready).expect("plain data");
        let mut output = std::io::stdout();
        writeln!(output, "{line}").and_then(|()| output.flush()).context("saying that the manager is ready")
    }))
}

/// Runs a manager within an actix system; `ready` is called when it serves.
pub async fn serve(
    settings: Settings,
    ready: impl FnOnce(ManagerReady) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = settings.manager.data.clone();
    DirBuilder::new().recursive(true).mode(0o700).create(&data).context("making the data folder")?;
    let _lock = lock(&data)?;
    let authority = Authority::open(&data, SystemTime::now()).context("opening the CA")?;
    let identity = authority.issue_manager(SystemTime::now(), millis(settings.manager.certificate_ttl_ms))?;
    let handshake = millis(settings.manager.handshake_ms);
    let (acceptors, acceptor) = watch::channel(Acceptor::manager(&identity, handshake)?);
    let (dialers, dialer) = watch::channel(Dialer::new(&identity, millis(settings.agent.connect_ms))?);

    let listener = bind(&settings).await?;
    let control = listener.local_addr()?;
    let api_listener = std::net::TcpListener::bind(settings.http.listen).with_context(|| {
        format!("listening on {}; choose another address with http.listen", settings.http.listen)
    })?;
    let api = format!("http://{}", api_listener.local_addr()?);

    // What may fail for reasons of this machine is done: a manager before this one ends here.
    let term = Term::begin(metadata::open(&settings.metadata, &data).await?).await;
    let term = term.context("beginning a new term")?;
    tracing::info!(term = term.number(), "a new term begins");
    let capabilities = keys::open(&term, millis(settings.manager.capability_ttl_ms)).await?;
    let capability_key = capabilities.public().to_vec();
    let metadata: Arc<dyn Metadata> = Arc::new(term.clone());
    let token_file = data.join("admin.token");
    let tokens_max = settings.tokens.api_tokens_max;
    let tokens = ApiTokens::open(Arc::clone(&metadata), system_secrets(), tokens_max, &token_file).await?;
    let sessions_of_browsers =
        Sessions::open(&*metadata, system_secrets(), settings.tokens.session_limits()).await?;
    let join = Arc::new(JoinTokens::new(
        Arc::clone(&metadata),
        system_secrets(),
        authority.hash(),
        millis(settings.tokens.join_ttl_ms),
        settings.tokens.join_tokens_max,
    ));
    let packages = CodePackages::open(&settings).context("opening the folder of packages (code.folder)")?;
    let manager = Manager::start(world(&settings, &term, capabilities, packages.clone())?);
    let sessions = TaskTracker::new();
    let authority = Arc::new(authority);
    let doors = Arc::new(Doors {
        fleet: manager.fleet.clone(),
        vms: manager.vms.clone(),
        acceptor,
        authority: Arc::clone(&authority),
        join: Arc::clone(&join),
        capability_key,
        limits: session_limits(&settings),
        tasks: sessions.clone(),
    });
    let listening = tokio::spawn(sessions::listen(listener, doors));
    let unused = millis(settings.code.unused_ttl_ms);
    let sweeping = tokio::spawn(code::sweep(packages.clone(), manager.scheduler.clone(), unused));
    let renewing = tokio::spawn(keys::renew(authority, settings.clone(), acceptors, dialers));

    let (serving, is_serving) = watch::channel(true);
    let state = HttpState {
        scheduler: manager.scheduler.clone(),
        tokens: Arc::new(tokens),
        sessions: Arc::new(sessions_of_browsers),
        join,
        packages,
        actors: Arc::new(ActorObserver {
            manager: manager.clone(),
            within: millis(settings.manager.observe_ms),
            children_max: settings.manager.children_shown_max,
        }),
        dial: Arc::new(AgentDialer { dialer, handshake, frame: log_frame(&settings) }),
        settings: settings.http.clone(),
        events: Events::new(manager.events.clone(), manager.teller.clone(), settings.events.clone()),
        ready: is_serving,
        scrapes: Scrapes::default(),
    };
    let (server, http) = http::serve(state, api_listener).context("starting HTTP")?;
    let mut server = actix::spawn(server);
    ready(ManagerReady { api: api.clone(), control, token_file })?;
    tracing::info!(%api, %control, "the manager is up");

    let lease = millis(settings.manager.lease_ms);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = term.superseded(lease) => {
            Err(anyhow::anyhow!("another manager has taken over this one's metadata store with a higher term"))
        }
        () = actors_end(&manager) => Err(anyhow::anyhow!("the manager's actors crashed too often; start it again")),
        ended = &mut server => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("HTTP ended by itself")),
            Ok(Err(error)) => Err(error).context("serving HTTP"),
            Err(error) => Err(error).context("serving HTTP"),
        },
    };
    tracing::info!("the manager shuts down");
    serving.send_replace(false);
    http.stop(true).await;
    renewing.abort();
    sweeping.abort();
    listening.abort();
    manager.shut_down().await;
    sessions.close();
    if tokio::time::timeout(SESSIONS_END, sessions.wait()).await.is_err() {
        tracing::warn!(sessions = sessions.len(), "sessions did not end in time");
    }
    if tokio::time::timeout(STORE_CLOSES, term.close()).await.is_err() {
        tracing::warn!("the metadata store was not closed in time");
    }
    result
}

/// Returns when the actors have given up.
async fn actors_end(manager: &ManagerHandle) {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    while manager.is_up() {
        look.tick().await;
    }
}

/// One manager for a data folder.
fn lock(data: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(data.join("manager.lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another manager uses the data folder {}", data.display()))?;
    Ok(file)
}

async fn bind(settings: &Settings) -> anyhow::Result<TcpListener> {
    let listen = settings.manager.listen;
    if settings.manager.connections_max == 0 {
        bail!("manager.connections_max must be at least 1");
    }
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}; choose another address with manager.listen"))
}

fn world(
    settings: &Settings,
    term: &Term,
    capabilities: keys::Issuer,
    packages: CodePackages,
) -> anyhow::Result<ManagerWorld> {
    let tree = settings.tree.clone();
    let origin = origin::open(&settings.origin, rand::random()).context("preparing to read the origin")?;
    Ok(ManagerWorld {
        metadata: Arc::new(term.clone()),
        converter: Arc::new(ImageConverter::new(settings.clone(), packages)),
        surveyor: Arc::new(ImageSurveyor::new(origin, &settings.profile)),
        capability_key: capabilities.public().to_vec(),
        capabilities: Arc::new(capabilities),
        topology: Arc::new(move || tree.shape()),
        term: term.number(),
        seed: rand::random(),
        wall_clock: Arc::new(now_ms),
        limits: settings.manager_limits(term.limits()),
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn session_limits(settings: &Settings) -> SessionLimits {
    SessionLimits {
        frame: FrameLimits { header_bytes_max: settings.transfer.frame_header_bytes_max, body_bytes_max: 0 },
        handshake: millis(settings.manager.handshake_ms),
        lease: millis(settings.manager.lease_ms),
        connections_max: settings.manager.connections_max,
        orders_queued_max: settings.manager.orders_queued_max,
        certificate_ttl: millis(settings.manager.certificate_ttl_ms),
    }
}

/// What an agent may answer to a question for an instance's output.
fn log_frame(settings: &Settings) -> FrameLimits {
    let bytes = settings.http.log_tail_bytes_max.max(settings.holder.log_bytes_max);
    FrameLimits {
        header_bytes_max: settings.transfer.frame_header_bytes_max,
        body_bytes_max: u32::try_from(bytes).unwrap_or(u32::MAX),
    }
}
