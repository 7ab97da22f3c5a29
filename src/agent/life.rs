//! One life of an agent in this process: its adapters and actors, until it is told to end or another
//! process takes its place. A handover that fails is followed by another life.

use super::{
    AgentOptions, Parts, disk::Cache, handover, handover::Lock, handover::Successor, holder_link, listener,
    listener_limits, manager_link, metrics, prober, renewal, upstream, upstream_limits,
};
use crate::{
    holder,
    net::tls::{Acceptor, Dialer},
    settings::Settings,
};
use actix::{Actor, Addr};
use anyhow::{Context, bail};
use faasnet_actors::{
    agent::{Agent, AgentWorld, Shutdown, Yield},
    wire::frame::FrameLimits,
};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// How a life ended.
pub enum End {
    /// On a signal: containers and holder ended too.
    Stopped,
    /// Another process has the folder.
    Replaced,
    /// Another process asked for the folder and did not take it.
    LeftAlone(Lock),
}

/// Files that others may still write when this process has begun to hand over take no longer.
const AT_REST_WITHIN: Duration = Duration::from_secs(2);

struct Life {
    agent: Addr<Agent>,
    cache: Cache,
    keeping: AbortOnDropHandle<()>,
    listening: AbortOnDropHandle<()>,
    _renewing: AbortOnDropHandle<()>,
    connections: TaskTracker,
    metrics: Option<metrics::Serving>,
    /// The holder that ends is not to be started again.
    leave: watch::Sender<bool>,
    /// Children are to turn to others.
    leaving: watch::Sender<bool>,
}

impl Life {
    fn begin(
        settings: &Settings,
        options: &AgentOptions,
        parts: &Parts,
        socket: &TcpListener,
    ) -> anyhow::Result<Self> {
        let data = &settings.agent.data;
        let listener = tokio::net::TcpListener::from_std(socket.try_clone()?)?;
        let address = listener.local_addr()?;
        let handshake = Duration::from_millis(settings.agent.handshake_ms);
        let connect = Duration::from_millis(settings.agent.connect_ms);
        let (acceptors, acceptor) = watch::channel(Acceptor::agent(&parts.identity, handshake)?);
        let (dialers, dialer) = watch::channel(Dialer::new(&parts.identity, connect)?);
        let (certificates, renewed) = mpsc::channel(1);
        let (holder, holder_queue) = holder_link::HolderLink::new();
        let capability_key = watch::Sender::new(Vec::new());
        let cache = Cache::open(data, settings.agent.threads).context("opening the cache")?;
        let records = cache.records().context("reading what a former agent left")?;
        let world = AgentWorld {
            vm: options.name.clone(),
            address,
            memory_bytes: parts.memory_bytes,
            cpu_millis: parts.cpu_millis,
            limits: settings.agent_limits(),
            upstreams: Arc::new(upstream::Dialling {
                dialer: dialer.clone(),
                origin: parts.origin.clone(),
                limits: upstream_limits(settings),
            }),
            done: Arc::clone(&parts.done),
            disk: Arc::new(cache.clone()),
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
        let agent = Agent::new(world, records).start();
        let (leave, ends) = watch::channel(false);
        let config = options.config.clone();
        let keeping = holder_link::keep(data.clone(), config, holder_queue, agent.clone().recipient(), ends);
        let (leaving, leaves) = watch::channel(false);
        let connections = TaskTracker::new();
        let doors = Arc::new(listener::Doors {
            agent: agent.clone(),
            acceptor,
            capability_key: capability_key.subscribe(),
            data: data.clone(),
            limits: listener_limits(settings),
            tasks: connections.clone(),
            leaving: leaves,
            requests: Mutex::new(BTreeMap::new()),
        });
        let metrics = match (settings.agent.metrics_listen, &parts.metrics) {
            (Some(listen), Some(token)) => Some(metrics::serve(
                listen,
                metrics::Sources {
                    token: token.clone(),
                    agent: agent.clone(),
                    done: Arc::clone(&parts.done),
                    origin: parts.origin.counters(),
                    connections: connections.clone(),
                    connections_max: settings.agent.connections_max,
                },
            )?),
            _ => None,
        };
        let users = renewal::Users { acceptors, dialers, handshake, connect };
        let folder = data.join("identity");
        let renewing = renewal::keep_fresh(folder, parts.identity.clone(), agent.clone(), renewed, users);
        tracing::info!(vm = %options.name, %address, manager = %options.manager, "the agent is up");
        Ok(Self {
            agent,
            cache,
            keeping: AbortOnDropHandle::new(tokio::spawn(keeping)),
            listening: AbortOnDropHandle::new(tokio::spawn(listener::listen(listener, doors))),
            _renewing: AbortOnDropHandle::new(tokio::spawn(renewing)),
            connections,
            metrics,
            leave,
            leaving,
        })
    }

    /// Ends the containers and the holder.
    async fn stop(mut self, settings: &Settings) {
        tracing::info!("the agent shuts down");
        drop(self.listening);
        self.leave.send_replace(true);
        let deadline = Duration::from_millis(settings.agent.stop_grace_ms + settings.holder.call_deadline_ms);
        let ending = async {
            let _ = self.agent.send(Shutdown).await;
            let _ = (&mut self.keeping).await;
            let folder = settings.agent.data.clone();
            let _ = tokio::task::spawn_blocking(move || holder::wait_ended(&folder)).await;
        };
        if timeout(deadline, ending).await.is_err() {
            tracing::error!("the holder did not end in time");
        }
    }

    /// Lets go of all that the next process needs. What is under way on connections goes on.
    async fn yield_all(&mut self) {
        self.listening.abort();
        if let Some(metrics) = self.metrics.take() {
            metrics.stop().await;
        }
        let resting = async {
            let _ = self.agent.send(Yield).await;
            self.keeping.abort();
            let _ = (&mut self.keeping).await;
            self.cache.at_rest().await;
        };
        if timeout(AT_REST_WITHIN, resting).await.is_err() {
            tracing::warn!("the cache is still being written while the folder changes hands");
        }
        self.leaving.send_replace(true);
        self.connections.close();
    }

    /// Gives the folder to another process, and lets requests under way end.
    async fn hand_over(
        mut self,
        mut successor: Successor,
        socket: &TcpListener,
        lock: Lock,
        settings: &Settings,
    ) -> anyhow::Result<End> {
        let (pid, begun) = (successor.pid, Instant::now());
        tracing::info!(successor = pid, "another process takes our place");
        self.yield_all().await;
        lock.unlock();
        let patience = Duration::from_millis(settings.agent.replace_ms);
        let given = async {
            successor.give(socket).await?;
            successor.taken(patience).await
        };
        if let Err(error) = given.await {
            let Some(lock) = Lock::try_take(&settings.agent.data)? else {
                bail!("process {pid} has the folder and did not say that it goes on: {error:#}");
            };
            tracing::error!(
                successor = pid,
                error = format!("{error:#}"),
                "the other process gave up: we go on"
            );
            return Ok(End::LeftAlone(lock));
        }
        let gap_ms = begun.elapsed().as_millis();
        tracing::info!(successor = pid, gap_ms, "another process has our place; requests under way end");
        let draining = self.connections.wait();
        let cut = match timeout(Duration::from_millis(settings.agent.drain_ms), draining).await {
            Ok(()) => 0,
            Err(_) => self.connections.len(),
        };
        tracing::info!(successor = pid, cut, "the agent ends, as it was replaced");
        Ok(End::Replaced)
    }
}

/// Lives until it is told to end or replaced. `up` is called when the folder is in use.
pub async fn live(
    settings: &Settings,
    options: &AgentOptions,
    parts: &Parts,
    socket: &TcpListener,
    lock: Lock,
    up: impl Future<Output = ()>,
) -> anyhow::Result<End> {
    let life = Life::begin(settings, options, parts, socket)?;
    let mut successors = successors(&settings.agent.data)?;
    up.await;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let successor = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            Some(successor) = successors.recv() => break Some(successor),
            _ = look.tick() => if !life.agent.connected() {
                bail!("the agent's actors crashed too often; containers go on, start the agent again");
            },
        }
    };
    drop(successors);
    match successor {
        None => {
            life.stop(settings).await;
            Ok(End::Stopped)
        }
        Some(successor) => life.hand_over(successor, socket, lock, settings).await,
    }
}

fn successors(data: &Path) -> anyhow::Result<mpsc::Receiver<Successor>> {
    handover::successors(data).context("listening on agent.sock")
}
