//! VMs that come and go, and all that goes wrong.

use super::*;

impl World {
    /// The VM is registered, and its agent starts with what its disk holds.
    pub(in crate::simulate) fn boot(&mut self, host: Node) {
        if self.hosts[host].is_up() {
            return;
        }
        self.end_conns(host, "the other machine was started again");
        let now = self.instant();
        let target = &mut self.hosts[host];
        target.is_silent = false;
        target.paused_until = 0;
        target.life += 1;
        let life = target.life;
        let row = Row { table: Table::Vms, key: target.id.as_str().to_owned(), value: Vec::new() };
        self.rows.apply(vec![Write::Put(row)]);
        let address = ([10, (host >> 16) as u8, (host >> 8) as u8, host as u8], 7000).into();
        let conns = ((host as u64) << 40) + (u64::from(life) << 24);
        let mut agent = Agent::new(
            target.id.clone(),
            address,
            self.model.memory_bytes,
            Arc::clone(&self.limits),
            Arc::clone(&self.images),
            conns,
            now,
        );
        let mut effects = Vec::new();
        let cold = |tree: &TreeId| Some((tree.clone(), target.cached.get(tree)?.clone()));
        let cold: Vec<_> = target.left.iter().filter_map(cold).collect();
        agent.restore(&target.places, &cold, &target.instances, now, &mut effects);
        target.agent = Some(agent);
        self.network.freeze(host, false, self.now);
        self.note(|| format!("vm-{host:05}  boots"));
        self.effects(host, effects);
        // Agents do not tick in step.
        let offset = self.rng.random_range(0..AGENT_TICK);
        self.after(offset, Happening::AgentTick { host, life });
    }

    /// The VM is gone, with its containers; what is on its disk stays. Silently: nobody is told.
    pub(in crate::simulate) fn crash(&mut self, host: Node, is_silent: bool) {
        if !self.hosts[host].is_up() {
            return;
        }
        self.note(|| format!("vm-{host:05}  {}", if is_silent { "vanishes" } else { "crashes" }));
        let target = &mut self.hosts[host];
        let link = target.agent.take().map(|agent| agent.link());
        target.life += 1;
        target.is_silent = is_silent;
        target.holder = Holder::default();
        self.inboxes.retain(|(of, ..), _| *of != host);
        if matches!(self.model.cores, Cores::Each(_)) {
            self.cpus[host].clear(self.now);
        }
        let target = &mut self.hosts[host];
        let (life, vm) = (target.life, target.id.clone());
        self.book.host_ended(host);
        self.network.freeze(host, true, self.now);
        if is_silent {
            return self.after(nanos(self.limits.vanished), Happening::VmVanished { host, life });
        }
        self.end_conns(host, "the other agent has ended");
        if let Some(link) = link {
            self.send_to_manager(host, Input::Closed { vm, link });
        }
    }

    /// Ends what connections a VM has that is not there any more.
    pub(super) fn end_conns(&mut self, host: Node, reason: &str) {
        for id in self.network.conns_of(host) {
            self.break_conn(id, reason);
        }
    }

    /// Both ends of a connection learn that it is gone.
    pub(in crate::simulate) fn break_conn(&mut self, id: u64, reason: &str) {
        let Some(conn) = self.network.close(id, self.now) else { return };
        let Conn { tree, child, parent, upstream, .. } = conn;
        let said = FromPeer::Closed(reason.into());
        self.send_to_host(
            parent,
            child,
            agent::Event::Upstream { tree: tree.clone(), upstream, conn: id, said },
        );
        if parent < self.hosts.len() {
            self.send_to_host(child, parent, agent::Event::ChildGone { conn: id, tree });
        }
    }

    pub(in crate::simulate) fn pause(&mut self, host: Node, length: Nanos) {
        self.note(|| format!("vm-{host:05}  pauses for {} ms", length / MILLISECOND));
        let until = self.now + length;
        self.hosts[host].paused_until = self.hosts[host].paused_until.max(until);
        self.network.freeze(host, true, self.now);
        self.at(until, Happening::Resumes { host });
    }

    pub(in crate::simulate) fn cut(&mut self, a: Node, b: Node, length: Nanos) {
        self.note(|| format!("network   node {a} and node {b} are cut off for {} ms", length / MILLISECOND));
        self.network.cut(a, b, self.now + length, self.now);
        self.after(length, Happening::Heals { a, b });
        self.after(nanos(self.limits.vanished), Happening::Vanished { a, b });
    }

    pub(super) fn end_silent(&mut self, a: Node, b: Node) {
        if self.network.cut_until(a, b).is_none_or(|until| until <= self.now) {
            return;
        }
        let between = |conn: &Conn| (conn.child.min(conn.parent), conn.child.max(conn.parent));
        for id in self.network.conns_of(a) {
            if self.network.conns.get(&id).map(between) == Some((a.min(b), a.max(b))) {
                self.break_conn(id, "the other machine is silent");
            }
        }
        let (host, node) = (a.min(b), a.max(b));
        if node == self.manager_node()
            && let Some(link) = self.hosts.get(host).and_then(|host| host.agent.as_ref()).map(Agent::link)
        {
            let vm = self.hosts[host].id.clone();
            self.locally(host, 0, agent::Event::ManagerClosed { link });
            self.tell_manager(Input::Closed { vm, link });
        }
    }

    pub(in crate::simulate) fn registry_away(&mut self, length: Nanos) {
        self.note(|| format!("registry  away for {} ms", length / MILLISECOND));
        self.origin_is_up = false;
        self.origin_away_until = self.origin_away_until.max(self.now + length);
        self.at(self.origin_away_until, Happening::OriginBack);
    }

    /// The manager dies with all but its rows, and is there again after a time.
    pub(in crate::simulate) fn restart_manager(&mut self, length: Nanos) {
        let Some(manager) = self.manager.take() else { return };
        self.note(|| format!("manager   dies for {} ms", length / MILLISECOND));
        manager.crash(self.rng.random(), &mut self.rows);
        self.manager_life += 1;
        self.desk = Desk::default();
        self.clients_hang_up();
        self.book.manager_died();
        let node = self.manager_node();
        for host in 0..self.hosts.len() {
            if let Some(link) = self.hosts[host].agent.as_ref().map(Agent::link) {
                self.send_to_host(node, host, agent::Event::ManagerClosed { link });
            }
        }
        self.after(length, Happening::ManagerStarts);
    }
}
