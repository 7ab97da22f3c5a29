//! What the agent does with each message.

use super::*;

impl Handler<Order> for Agent {
    type Result = ();

    fn handle(&mut self, Order(order): Order, ctx: &mut Context<Self>) {
        match order {
            ToAgent::Start(order) => self.start(*order, ctx),
            ToAgent::Preheat(order) => self.preheat(*order, ctx),
            ToAgent::Stop { start } => {
                if !self.instances.send(&start, Stop) {
                    let report = StartReport::default();
                    self.say(ToManager::Ended { start, reason: EndReason::Stopped, report });
                }
            }
            ToAgent::Place(place) => {
                if let Some(known) = self.trees.get(&place.tree) {
                    let record = TreeRecord { image: known.record.image.clone(), place: place.clone() };
                    self.place(place.tree, record, ctx);
                }
            }
            ToAgent::Leave { tree, epoch } => {
                let is_newer = self.trees.get(&tree).is_some_and(|known| epoch >= known.record.place.epoch);
                if is_newer {
                    self.leave(&tree, ctx);
                }
            }
            ToAgent::GiveUp { trees } => {
                self.store.send(&STORE, Advised(trees));
            }
            ToAgent::Origin { tree, answer } => {
                if let Some(transfer) = self.transfers.get(&tree) {
                    transfer.do_send(OriginAnswered(answer));
                }
            }
            ToAgent::Renewed { certificate } => {
                if self.world.certificates.try_send(certificate).is_err() {
                    tracing::warn!("a new certificate was not taken; it is asked for again");
                }
            }
            ToAgent::Observe { number, children_max } => {
                let ask = Observe::new(OBSERVED_WITHIN, children_max.min(CHILDREN_SHOWN_MAX) as usize);
                let asking = self.observe(ask).into_actor(self);
                ctx.spawn(asking.map(move |snapshot, agent, _| {
                    agent.say(ToManager::Observed { number, agent: snapshot.into_root(AGENT) });
                }));
            }
            // The session has dealt with these.
            ToAgent::Welcome { .. } | ToAgent::Refused { .. } | ToAgent::Yielded => {}
        }
    }
}

impl Handler<Renew> for Agent {
    type Result = ();

    fn handle(&mut self, Renew { signing_request }: Renew, _: &mut Context<Self>) {
        self.say(ToManager::Renew { signing_request });
    }
}

impl Handler<Welcomed> for Agent {
    type Result = ();

    fn handle(&mut self, Welcomed { capability_key }: Welcomed, _: &mut Context<Self>) {
        self.world.capability_key.send_replace(capability_key);
        for message in self.told.iter() {
            self.session.send(&SESSION, Say(message.clone()));
        }
    }
}

impl Handler<HolderEvent> for Agent {
    type Result = ();

    fn handle(&mut self, event: HolderEvent, ctx: &mut Context<Self>) {
        if self.has_yielded {
            return; // the holder says it again to the next process
        }
        match event {
            HolderEvent::Says(FromHolder::State { version: _, mounts, instances }) => {
                self.holder_back(&mounts, instances, ctx);
            }
            HolderEvent::Says(FromHolder::Miss { image, blocks }) => {
                // Without a transfer it is dropped: one that starts on a mounted image is asked again.
                if let Some(tree) = self.tree_of(&image) {
                    self.transfers.send(tree, Demand(blocks));
                }
            }
            HolderEvent::Says(FromHolder::Mounted { image }) => self.mount_ended(image, Ok(())),
            HolderEvent::Says(FromHolder::MountFailed { image, reason }) => {
                self.mount_ended(image, Err(reason))
            }
            HolderEvent::Says(FromHolder::Recorded { image, ranges }) => self.recorded(image, ranges),
            HolderEvent::Says(FromHolder::Running { start, pid: _ }) => {
                self.tell_instance(&start, FromHolderAbout::Running);
            }
            HolderEvent::Says(FromHolder::RunFailed { start, reason }) => {
                self.tell_instance(&start, FromHolderAbout::RunFailed(reason));
            }
            HolderEvent::Says(FromHolder::Exited { start, exit }) => {
                self.tell_instance(&start, FromHolderAbout::Exited(exit));
            }
            HolderEvent::Says(FromHolder::Bye) => {
                if let Some(waiting) = self.shutdown.take() {
                    let _ = waiting.send(());
                }
                self.is_shut_down = true;
            }
            HolderEvent::Lost => match self.shutdown.take() {
                Some(waiting) => drop(waiting.send(())),
                None if self.is_shut_down => {}
                None => tracing::error!("the connection to the holder is lost"),
            },
        }
    }
}

impl Handler<InstanceReport> for Agent {
    type Result = ();

    fn handle(&mut self, report: InstanceReport, ctx: &mut Context<Self>) {
        self.report(report, ctx);
    }
}

impl Handler<TransferNews> for Agent {
    type Result = ();

    fn handle(&mut self, TransferNews { tree, complaint }: TransferNews, _: &mut Context<Self>) {
        let Some(known) = self.trees.get(&tree) else { return };
        let epoch = known.record.place.epoch;
        self.say(match complaint {
            Complaint::UpstreamLost(vm) => ToManager::UpstreamLost { tree, epoch, vm },
            Complaint::OriginWanted { blocks } => ToManager::OriginWanted { tree, blocks },
        });
    }
}

impl Handler<GetHello> for Agent {
    type Result = ResponseFuture<Hello>;

    fn handle(&mut self, _: GetHello, _: &mut Context<Self>) -> Self::Result {
        let instances = self.ordered.iter().map(|(start, Ordered { record, before: _ })| RunningInstance {
            start: start.clone(),
            tenant: record.order.place.tree.tenant.clone(),
            function: record.order.function.clone(),
            image: record.order.image.id,
            code: record.order.code.as_ref().map(|code| code.image.id),
            memory_bytes: record.order.memory_bytes,
            cpu_millis: record.order.cpu_millis,
            ready: record.is_ready,
        });
        let instances = instances.collect();
        let AgentWorld { memory_bytes, cpu_millis, address, .. } = self.world;
        let held = self.held();
        let proofs = self.trees.values().map(|known| known.record.place.capability.clone()).collect();
        Box::pin(async move {
            let held = held.await;
            Hello { version: PROTOCOL_VERSION, memory_bytes, cpu_millis, address, held, proofs, instances }
        })
    }
}

impl Handler<GetHeld> for Agent {
    type Result = ResponseFuture<Vec<HeldTree>>;

    fn handle(&mut self, _: GetHeld, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.held())
    }
}

impl Handler<OpenChildOf> for Agent {
    type Result = ResponseFuture<Result<Opened, Refusal>>;

    fn handle(&mut self, OpenChildOf { tree, vm, link }: OpenChildOf, _: &mut Context<Self>) -> Self::Result {
        let (known, found) = oneshot::channel();
        match self.transfers.get(&tree) {
            Some(transfer) => drop(known.send(transfer.clone())),
            None if self.has_yielded => {}
            // In a burst a child may be here before the order that makes this VM its parent.
            None => {
                self.early_children.retain(|(_, child)| !child.is_closed());
                self.early_children.push((tree, known));
            }
        }
        let patience = self.world.limits.transfer.early_child;
        Box::pin(async move {
            let Ok(Ok(transfer)) = tokio::time::timeout(patience, found).await else {
                return Err(Refusal::NotHeld);
            };
            transfer.send(OpenChild { vm, link }).await.unwrap_or(Err(Refusal::NotHeld))
        })
    }
}

impl Handler<GetPort> for Agent {
    type Result = Option<u16>;

    fn handle(&mut self, GetPort { start }: GetPort, _: &mut Context<Self>) -> Option<u16> {
        let former =
            || self.former.iter().find(|(former, _)| *former == start).map(|(_, record)| record.port);
        self.ordered.get(&start).map(|ordered| ordered.record.port).or_else(former)
    }
}

impl Handler<Yield> for Agent {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Yield, _: &mut Context<Self>) -> Self::Result {
        let (done, yielded) = oneshot::channel();
        // Without a session nobody has to be told: the sender is dropped here.
        if let Some(session) = self.session.get(&SESSION) {
            session.do_send(agent_session::Yield);
            self.yielding = Some(done);
        }
        let waiting = tokio::time::timeout(YIELD_WITHIN, yielded).into_actor(self);
        Box::pin(waiting.then(|_, agent, _| agent.come_to_rest().into_actor(agent)))
    }
}

impl Handler<Yielded> for Agent {
    type Result = ();

    fn handle(&mut self, _: Yielded, _: &mut Context<Self>) {
        if let Some(waiting) = self.yielding.take() {
            let _ = waiting.send(());
        }
    }
}

impl Handler<Shutdown> for Agent {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, _: &mut Context<Self>) -> Self::Result {
        let (done, waiting) = oneshot::channel();
        if self.world.holder.send(ToHolder::Shutdown { grace_ms: self.grace_ms() }) {
            self.shutdown = Some(done);
        }
        Box::pin(async move {
            let _ = waiting.await;
        })
    }
}

impl Handler<ChildExited<TreeId>> for Agent {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<TreeId>, ctx: &mut Context<Self>) {
        let open = |agent: &mut Self, tree: &TreeId, ctx: &mut Context<Self>| agent.open(tree.clone(), ctx);
        match supervise(self, &exit, |agent| &mut agent.transfers, open, ctx) {
            AfterExit::Ignore | AfterExit::Gone | AfterExit::Rebuild { .. } => {}
            AfterExit::Abandon { .. } => {
                let reason = "the actor that moves its blocks crashes again and again";
                self.tell_instances(&exit.child, &ImageEvent::NotKept(reason.into()));
            }
            // The process sees that its root has ended.
            AfterExit::GiveUp => ctx.stop(),
        }
    }
}

impl Handler<ChildExited<StartId>> for Agent {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<StartId>, ctx: &mut Context<Self>) {
        // Not rebuilt: its container may be anywhere on its way; a fresh one is the manager's to order.
        match supervise(self, &exit, |agent| &mut agent.instances, |_, _, _| {}, ctx) {
            AfterExit::Ignore | AfterExit::Gone => {}
            AfterExit::Rebuild { .. } | AfterExit::Abandon { .. } | AfterExit::GiveUp => {
                self.end_container(exit.child.clone());
                let reason = EndReason::RunFailed("the actor of the instance crashed".into());
                let news = InstanceNews::Ended(reason);
                self.report(InstanceReport { start: exit.child, news, steps_us: BTreeMap::new() }, ctx);
            }
        }
    }
}

impl Handler<ChildExited<&'static str>> for Agent {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<&'static str>, ctx: &mut Context<Self>) {
        let after = if exit.child == STORE {
            supervise(self, &exit, |agent| &mut agent.store, |agent, _, ctx| agent.start_store(ctx), ctx)
        } else {
            supervise(self, &exit, |agent| &mut agent.session, |agent, _, ctx| agent.start_session(ctx), ctx)
        };
        match after {
            AfterExit::Ignore | AfterExit::Gone | AfterExit::Rebuild { .. } => {}
            AfterExit::Abandon { .. } | AfterExit::GiveUp => ctx.stop(),
        }
    }
}

/// Below the manager's own deadline for a VM's answer.
const OBSERVED_WITHIN: Duration = Duration::from_millis(500);
/// Children of the agent that fit into one frame.
const CHILDREN_SHOWN_MAX: u32 = 200;

impl Agent {
    fn observe(&self, ask: Observe) -> impl Future<Output = Snapshot> + use<> {
        let snapshot = Snapshot::new(format!("VM {}, {} trees", self.world.vm, self.trees.len())).queue(
            "instances",
            self.ordered.len(),
            self.world.limits.instances_max,
        );
        let (store, session) = (self.store.observe(ask), self.session.observe(ask));
        let (transfers, instances) = (self.transfers.observe(ask), self.instances.observe(ask));
        async move {
            let (store, session, transfers, instances) = tokio::join!(store, session, transfers, instances);
            snapshot.children(store).children(session).children(transfers).children(instances)
        }
    }
}

impl Handler<Observe> for Agent {
    type Result = ResponseFuture<Snapshot>;

    fn handle(&mut self, ask: Observe, _: &mut Context<Self>) -> Self::Result {
        Box::pin(self.observe(ask))
    }
}
