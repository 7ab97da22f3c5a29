//! What agents hear, and what their effects make happen.

use super::{survey::range_of, *};
use crate::simulate::figure::Sources;
use faasnet_actors::wire::control::StartReport;

impl World {
    pub(super) fn deliver(&mut self, host: Node, life: u32, from: Node, event: Box<agent::Event>) {
        let target = &self.hosts[host];
        if target.life != life || target.agent.is_none() {
            return;
        }
        let held = self.network.cut_until(from, host).filter(|until| *until > self.now);
        if let Some(until) = held.max((target.paused_until > self.now).then_some(target.paused_until)) {
            return self.at(until, Happening::ToHost { host, life, from, event });
        }
        if let Some(event) = self.arrived(host, life, *event) {
            self.agent(host, event);
        }
    }

    pub(super) fn agent(&mut self, host: Node, event: agent::Event) {
        let now = self.instant();
        if !matches!(event, agent::Event::Tick) {
            self.note(|| format!("vm-{host:05}  {}", short(&event)));
        }
        self.watch_event(host, &event);
        let Some(agent) = self.hosts[host].agent.as_mut() else { return };
        let opened = match &event {
            agent::Event::CacheOpened { tree } => Some(tree.clone()),
            _ => None,
        };
        let mut effects = Vec::new();
        agent.apply(event, now, &mut effects);
        if let Some(tree) = opened.filter(|tree| agent.trees.contains_key(tree)) {
            let cached = self.hosts[host].cached.entry(tree.clone()).or_default().clone();
            let Some(agent) = self.hosts[host].agent.as_mut() else { return };
            agent.start_transfer(&tree, &cached, now, &mut effects);
        }
        self.effects(host, effects);
    }

    /// What survives the agent, and what the checks compare.
    pub(super) fn watch_event(&mut self, host: Node, event: &agent::Event) {
        match event {
            agent::Event::Kept { tree, block } => {
                if let Some(cached) = self.hosts[host].cached.get_mut(tree) {
                    cached.blocks.insert(*block);
                }
            }
            agent::Event::Upstream { tree, said: FromPeer::Index, .. } => {
                if let Some(cached) = self.hosts[host].cached.get_mut(tree) {
                    cached.has_index = true;
                }
            }
            agent::Event::Manager { message: ToAgent::Place(place), .. } => {
                let place = place.clone();
                self.placed(host, &place);
            }
            agent::Event::Manager { message: ToAgent::Start(order), .. } => {
                let place = order.place.clone();
                self.book.ordered.entry(order.start.clone()).or_insert((host, self.now));
                self.placed(host, &place);
            }
            agent::Event::Probed { start, is_ready: true } => {
                self.book.answered.entry(start.clone()).or_insert(self.now);
            }
            _ => {}
        }
    }

    /// Notes who gets another parent although the one before is there.
    pub(super) fn placed(&mut self, host: Node, place: &faasnet_actors::wire::control::Place) {
        let known = self.hosts[host].agent.as_ref().and_then(|agent| agent.trees.get(&place.tree));
        let Some(known) = known.filter(|known| known.record.place.epoch <= place.epoch) else { return };
        let parents = |stripes: &Vec<Vec<Upstream>>| {
            stripes.iter().filter_map(|stripe| stripe.first().cloned()).collect::<Vec<_>>()
        };
        let (before, after) = (parents(&known.record.place.stripes), parents(&place.stripes));
        if before == after {
            return;
        }
        let lives = |upstream: &Upstream| match upstream {
            Upstream::Origin => true,
            Upstream::Vm { vm, .. } => self.numbers.get(vm).is_some_and(|number| self.hosts[*number].is_up()),
        };
        let needless = before.iter().all(lives);
        self.book.moved(self.now, needless);
    }

    pub(in crate::simulate) fn effects(&mut self, host: Node, effects: Vec<agent::Effect>) {
        self.has_changed |= !effects.is_empty();
        for effect in effects {
            self.effect(host, effect);
        }
    }

    pub(super) fn effect(&mut self, host: Node, effect: agent::Effect) {
        let life = self.hosts[host].life;
        match effect {
            agent::Effect::DialManager { link, hello } => self.dial_manager(host, link, hello),
            agent::Effect::Say { link, message } => {
                let vm = self.hosts[host].id.clone();
                self.send_to_manager(host, Input::Heard { vm, link, message: Box::new(message) });
            }
            agent::Effect::CloseManager { link } => {
                let vm = self.hosts[host].id.clone();
                self.send_to_manager(host, Input::Closed { vm, link });
            }
            agent::Effect::Dial { conn, tree, upstream } => self.dial(host, conn, tree, upstream),
            agent::Effect::HangUp { conn } => self.hang_up(conn),
            agent::Effect::Ask { conn, message } => self.child_asks(host, conn, message),
            agent::Effect::Tell { conn, urgency, message, body } => {
                self.parent_tells(host, conn, urgency, message, body);
            }
            agent::Effect::Admit { conn } => {
                if let Some(known) = self.network.conns.get_mut(&conn) {
                    known.is_open = true;
                    self.tell_child(conn, FromPeer::Opened);
                }
            }
            agent::Effect::Refuse { conn, reason } => self.close_at_parent(conn, reason.to_string()),
            agent::Effect::DropChild { conn } => self.close_at_parent(conn, "the parent hung up".into()),
            agent::Effect::WaitForTree { conn } => {
                let patience = nanos(self.limits.transfer.early_child);
                self.locally(host, patience, agent::Event::ChildWaited { conn });
            }
            agent::Effect::OpenCache { tree } => {
                self.locally(host, OPEN_CACHE, agent::Event::CacheOpened { tree });
            }
            agent::Effect::RemoveCache { tree } => {
                self.hosts[host].cached.remove(&tree);
                self.cache_goes(host, &tree);
                self.hosts[host].places.remove(&tree);
                self.hosts[host].left.retain(|left| *left != tree);
                self.book.forget(host, &tree);
                self.locally(host, self.model.disk, agent::Event::CacheRemoved { tree });
            }
            agent::Effect::Keep { tree, block, stored } => {
                self.invariant_5(host, &tree, block, &stored);
                let cost = self.keep_work();
                let event = Box::new(agent::Event::Kept { tree, block });
                let kept = Happening::ToHost { host, life, from: host, event };
                let then = Happening::Waits { length: self.model.disk, then: Box::new(kept) };
                self.work(host, Part::Agents, cost, then);
            }
            agent::Effect::Check { tree, block } => {
                self.locally(host, self.model.disk, agent::Event::Checked { tree, block });
            }
            agent::Effect::Load { tree, child, block, urgency } => {
                let event = agent::Event::Loaded { tree, child, block, urgency };
                self.locally(host, self.model.disk, event);
            }
            agent::Effect::Mount { tree, record } => {
                if record {
                    self.hosts[host].holder.recordings.insert(tree.clone(), Vec::new());
                }
                let length = self.spread(&self.model.mount.clone())
                    + self.draw(|costs| &costs.container.mount_wait_ms);
                let cost = self.draw(|costs| &costs.container.mount_ms);
                let then = Box::new(Happening::MountEnds { host, life, tree });
                self.work(host, Part::Holders, cost, Happening::Waits { length, then });
            }
            agent::Effect::EndRecording { tree } => {
                if let Some(blocks) = self.hosts[host].holder.recordings.remove(&tree) {
                    let ranges = blocks.into_iter().map(range_of).collect();
                    self.locally(host, 0, agent::Event::Recorded { tree, ranges });
                }
            }
            agent::Effect::Unmount { tree } => {
                self.hosts[host].holder.recordings.remove(&tree);
                self.hosts[host].holder.mounts.remove(&tree);
            }
            agent::Effect::Present { tree, blocks } => self.reads_go_on(host, &tree, &blocks),
            agent::Effect::Unavailable { tree, blocks } => self.reads_fail(host, &tree, &blocks),
            agent::Effect::Run { start } => self.run_container(host, start),
            agent::Effect::Stop { start } => self.after(STOP, Happening::StopEnds { host, life, start }),
            agent::Effect::Probe { start } => {
                let container = self.hosts[host].holder.containers.get(&start);
                let is_ready = container.is_some_and(|container| container.is_ready);
                let cost = self.draw(|costs| &costs.container.probe_ms);
                let event = Box::new(agent::Event::Probed { start, is_ready });
                let probed = Happening::ToHost { host, life, from: host, event };
                let then = Happening::Waits { length: self.model.probe, then: Box::new(probed) };
                self.work(host, Part::Agents, cost, then);
            }
            agent::Effect::ProbeAgain { start } => {
                let interval = nanos(self.limits.probe_interval);
                self.locally(host, interval, agent::Event::InstanceTick { start });
            }
            agent::Effect::SavePlace { tree, record } => {
                self.hosts[host].left.retain(|left| *left != tree);
                self.hosts[host].places.insert(tree, *record);
            }
            agent::Effect::NotKept { tree, bytes } => self.book.may_read_again(&tree, host, bytes),
            agent::Effect::SaveLeft { tree } => {
                let target = &mut self.hosts[host];
                target.places.remove(&tree);
                target.left.retain(|left| *left != tree);
                target.left.push(tree.clone());
                self.book.forget(host, &tree);
            }
            agent::Effect::SaveInstance { start, record } => {
                match record {
                    Some(record) => self.hosts[host].instances.insert(start, *record),
                    None => self.hosts[host].instances.remove(&start),
                };
            }
        }
    }

    pub(super) fn invariant_5(&mut self, host: Node, tree: &TreeId, block: BlockId, stored: &Bytes) {
        let is_right = image(&self.images, tree).is_some_and(|image| image.verify(block, stored));
        if !is_right {
            self.violation = Some(Violation::new(5, format!("vm-{host:05} keeps a damaged {block:?}")));
        }
    }

    /// Nothing goes from a cache that an instance needs.
    fn cache_goes(&mut self, host: Node, tree: &TreeId) {
        self.book.evictions += 1;
        self.book.may_read_again(tree, host, u64::MAX);
        let containers = &self.hosts[host].holder.containers;
        if containers.values().any(|container| container.tree == *tree) {
            let text = format!("vm-{host:05} removes {tree}, which a container reads");
            self.violation = Some(Violation::new(12, text));
        }
    }

    /// What an agent says of a start on it.
    pub(in crate::simulate) fn report(&self, host: Node, start: &StartId) -> StartReport {
        let agent = self.hosts[host].agent.as_ref();
        agent.map(|agent| agent.report(start, self.instant())).unwrap_or_default()
    }

    /// Bytes that all VMs have got, by where from.
    pub(in crate::simulate) fn moved(&self) -> Sources {
        let mut all = Sources::default();
        let trees = self.hosts.iter().flat_map(|host| &host.agent).flat_map(|agent| agent.trees.values());
        for transfer in trees.filter_map(|known| known.transfer.as_ref()) {
            let Sources { origin, parent, ancestor } = transfer.core.bytes().into();
            all.origin += origin;
            all.parent += parent;
            all.ancestor += ancestor;
        }
        all
    }
}
