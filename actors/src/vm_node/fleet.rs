//! The parent of all VM nodes: who is registered, which node is whose, and how nodes are rebuilt.

use super::{
    Asked, NodeLimits, SessionId, ToFleet, ToVm, VmCore, VmEvent, VmMessage, VmNews, VmNode,
    messages::{Forgotten, Opened, Opening, Rejoin, Report, ToNode},
    undeliverable, welcome,
};
use crate::{
    function_tree::{Gathering, ToForest, ToTree},
    id::VmId,
    journal::JournalHandle,
    support::{AfterExit, ChildExited, Children, Life, Link, Observe, Snapshot, Stop, Threads, supervise},
    wire::control::{JoinRefusal, ToAgent},
    world::{Batch, Condition, KeyHash, Metadata, MetadataError, Row, Table, Write},
};
use actix::prelude::*;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// What all VM nodes have in common.
#[derive(Clone)]
pub struct FleetSettings {
    /// Of each node.
    pub limits: NodeLimits,
    pub heartbeat: Duration,
    /// Ed25519, as agents check capabilities with it.
    pub capability_key: Vec<u8>,
    /// How often nodes look at their leases.
    pub tick: Duration,
    /// Where nodes run.
    pub threads: Threads,
    pub metadata: Arc<dyn Metadata>,
    pub journal: JournalHandle,
    pub news: Link<VmNews>,
    pub trees: Link<ToTree>,
    pub forest: Link<ToForest>,
}

/// A row of `Table::Vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    #[serde(with = "serde_bytes")]
    pub key_hash: Vec<u8>,
}

impl VmRecord {
    fn row(vm: &VmId, key_hash: &KeyHash) -> Row {
        let record = Self { key_hash: key_hash.to_vec() };
        let value = rmp_serde::to_vec_named(&record).expect("a record of bytes is encodable");
        Row { table: Table::Vms, key: vm.as_str().to_owned(), value }
    }

    /// All registered VMs with their keys.
    pub async fn load(metadata: &dyn Metadata) -> Result<BTreeMap<VmId, KeyHash>, MetadataError> {
        let rows = metadata.scan(Table::Vms).await?;
        let damaged = |row: &Row| MetadataError::Damaged(format!("the record of VM {:?}", row.key));
        rows.iter()
            .map(|row| {
                let vm = row.key.parse().map_err(|_| damaged(row))?;
                let record: Self = rmp_serde::from_slice(&row.value).map_err(|_| damaged(row))?;
                Ok((vm, record.key_hash.into()))
            })
            .collect()
    }
}

pub struct Fleet {
    settings: FleetSettings,
    registered: BTreeMap<VmId, KeyHash>,
    /// VMs whose trees may not be placed before they have reported, or their time is over.
    awaited: BTreeMap<VmId, Arc<Gathering>>,
    /// Registrations that are on their way to the disk.
    registering: BTreeMap<VmId, KeyHash>,
    nodes: Children<VmId, VmNode>,
    sessions: u64,
    welcome: ToAgent,
    life: Life<&'static str>,
}

impl Fleet {
    pub fn new(settings: FleetSettings, life: Life<&'static str>) -> Self {
        let welcome = welcome(settings.heartbeat, &settings.capability_key);
        Self {
            settings,
            registered: BTreeMap::new(),
            awaited: BTreeMap::new(),
            registering: BTreeMap::new(),
            nodes: Children::many("fleet", "vm_node"),
            sessions: 0,
            welcome,
            life,
        }
    }

    fn start_node(&mut self, vm: &VmId, ctx: &mut Context<Self>) {
        let (name, settings, welcome) = (vm.clone(), self.settings.clone(), self.welcome.clone());
        self.nodes.start(vm, ctx.address().downgrade().recipient(), |life| {
            settings.threads.clone().start(vm.as_str(), move || VmNode {
                core: VmCore::new(name.clone(), settings.limits, Instant::now()),
                vm: name,
                orders: None,
                asked: Asked::default(),
                news: settings.news,
                trees: settings.trees,
                welcome,
                tick: settings.tick,
                life,
            })
        });
    }

    fn register(
        &mut self,
        vm: VmId,
        key_hash: KeyHash,
        reply: oneshot::Sender<Result<(), JoinRefusal>>,
        ctx: &mut Context<Self>,
    ) {
        let other_key = |known: &BTreeMap<VmId, KeyHash>| known.get(&vm).is_some_and(|key| *key != key_hash);
        if other_key(&self.registered) || other_key(&self.registering) {
            let _gone = reply.send(Err(JoinRefusal::NameTaken));
            return;
        }
        self.registering.insert(vm.clone(), key_hash.clone());
        let written = write(self.settings.journal.clone(), VmRecord::row(&vm, &key_hash));
        ctx.spawn(written.into_actor(self).map(move |written, fleet, _ctx| {
            fleet.registering.remove(&vm);
            let answer = match written {
                Ok(()) => {
                    fleet.registered.insert(vm, key_hash);
                    Ok(())
                }
                // Another manager on the same store was faster.
                Err(MetadataError::Conflict { .. }) => Err(JoinRefusal::NameTaken),
                Err(error) => {
                    tracing::error!(%vm, %error, "register VM");
                    Err(JoinRefusal::Request)
                }
            };
            // The agent may be gone; it asks again.
            let _gone = reply.send(answer);
        }));
    }

    fn open(&mut self, opening: Opening, ctx: &mut Context<Self>) {
        let vm = opening.vm.clone();
        let refusal = match self.registered.get(&vm) {
            // Removed: the name must be registered again, which needs a join token.
            None => Some(JoinRefusal::Token),
            Some(key) if *key != opening.key_hash => Some(JoinRefusal::NameTaken),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            let _gone = opening.reply.send(Err(refusal));
            return;
        }
        if !self.nodes.knows(&vm) {
            self.start_node(&vm, ctx);
        }
        self.sessions += 1;
        // While the node is being rebuilt the reply is dropped: the agent tries again.
        if self.nodes.get(&vm).is_some() {
            let gathering = self.awaited.remove(&vm);
            self.nodes.send(&vm, Opened { session: SessionId(self.sessions), opening, gathering });
        }
    }
}

impl Fleet {
    /// A node is gone and with it the VM's session; nobody else can say so.
    fn node_is_down(&self, vm: VmId) {
        self.settings.news.send(VmNews { vm: vm.clone(), event: VmEvent::Down, slot: None });
        self.settings.forest.send(ToForest::VmGone { vm });
    }
}

/// Writes a registration, unless the name is another key's.
async fn write(journal: JournalHandle, row: Row) -> Result<(), MetadataError> {
    let only_if = |value| Condition { table: row.table, key: row.key.clone(), value };
    let register = |value| Batch { conditions: vec![only_if(value)], writes: vec![Write::Put(row.clone())] };
    match journal.commit(register(None)).await {
        // The VM's own, perhaps from a join whose answer was lost?
        Err(MetadataError::Conflict { .. }) => journal.commit(register(Some(row.value.clone()))).await,
        result => result,
    }
}

impl Actor for Fleet {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let metadata = Arc::clone(&self.settings.metadata);
        let load = async move { VmRecord::load(metadata.as_ref()).await };
        ctx.wait(load.into_actor(self).map(|loaded, fleet, ctx| match loaded {
            Ok(registered) => {
                fleet.registered = registered;
                let gathering = Arc::new(Gathering::new(fleet.settings.forest.clone(), None));
                let known = fleet.registered.keys().cloned();
                fleet.awaited = known.map(|vm| (vm, Arc::clone(&gathering))).collect();
                let rebuilt = fleet.life.is_rebuilt();
                // Nodes of the fleet before this one are gone with their sessions.
                for vm in fleet.registered.keys().filter(|_| rebuilt).cloned().collect::<Vec<_>>() {
                    fleet.node_is_down(vm.clone());
                    fleet.start_node(&vm, ctx);
                }
            }
            Err(error) => {
                tracing::error!(%error, "load registered VMs");
                fleet.life.give_up(ctx);
            }
        }));
    }
}

impl Handler<ToVm> for Fleet {
    type Result = ();

    fn handle(&mut self, ToVm { vm, message }: ToVm, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        if self.nodes.get(&vm).is_some() {
            self.nodes.send(&vm, ToNode(message));
        } else if let VmMessage::Order(order) = message
            && let Some(start) = order.start()
        {
            self.settings.news.send(undeliverable(vm, start.clone()));
        }
    }
}

impl Handler<ToFleet> for Fleet {
    type Result = ();

    fn handle(&mut self, message: ToFleet, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        match message {
            ToFleet::Register { vm, key_hash, reply } => self.register(vm, key_hash, reply, ctx),
            ToFleet::Open(opening) => self.open(opening, ctx),
            ToFleet::Forget { vm } => {
                self.registered.remove(&vm);
                self.awaited.remove(&vm);
                if let Some(node) = self.nodes.remove(&vm) {
                    node.do_send(Forgotten);
                }
            }
            ToFleet::Rejoin { tree } => {
                let forest = self.settings.forest.clone();
                let gathering = Arc::new(Gathering::new(forest, tree.clone()));
                for (_, node) in self.nodes.iter() {
                    node.do_send(Rejoin { tree: tree.clone(), _gathering: Arc::clone(&gathering) });
                }
            }
            ToFleet::ReportAll => self.nodes.iter().for_each(|(_, node)| node.do_send(Report)),
        }
    }
}

impl Handler<ChildExited<VmId>> for Fleet {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<VmId>, ctx: &mut Context<Self>) {
        match supervise(self, &exit, |fleet| &mut fleet.nodes, Self::start_node, ctx) {
            AfterExit::Ignore | AfterExit::Gone => {}
            AfterExit::Rebuild { .. } | AfterExit::Abandon { .. } => self.node_is_down(exit.child),
            AfterExit::GiveUp => self.life.give_up(ctx),
        }
    }
}

impl Handler<Observe> for Fleet {
    type Result = ResponseFuture<Snapshot>;

    fn handle(&mut self, ask: Observe, _: &mut Context<Self>) -> Self::Result {
        let (registered, coming) = (self.registered.len(), self.registering.len());
        let snapshot =
            Snapshot::new(format!("{registered} VMs registered, {coming} on their way to the disk"));
        let nodes = self.nodes.observe(ask);
        Box::pin(async move { snapshot.children(nodes.await) })
    }
}

impl Handler<Stop> for Fleet {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.nodes.iter().for_each(|(_, node)| node.do_send(Stop));
        ctx.stop();
    }
}
