//! Who pays with CPU for what, and what waits for that.

use super::{happening::Inbox, *};
use crate::simulate::costs::{Costs, Quantiles, block_cost};
use faasnet_actors::image::BLOCK_BYTES;

type Cost = fn(&Costs) -> &Quantiles;

impl World {
    fn cpu_of(&self, host: Node) -> usize {
        match self.model.cores {
            Cores::Each(_) => host,
            Cores::Shared(_) => 0,
        }
    }

    /// Something happens when the VM has done that much work for it.
    pub(super) fn work(&mut self, host: Node, part: Part, cost: Nanos, then: Happening) {
        let cpu = self.cpu_of(host);
        if cost == 0 || host >= self.hosts.len() {
            return match then {
                Happening::Waits { length, then } => self.after(length, *then),
                then => self.at(self.now, then),
            };
        }
        self.uses(part, cost);
        self.cpus[cpu].add(cost, then, self.now);
        self.look_at(cpu);
    }

    pub(super) fn uses(&mut self, part: Part, cost: Nanos) {
        *self.used.entry(part).or_default() += cost;
    }

    /// Time of cores that each VM has used, or all together.
    pub(in crate::simulate) fn busy(&mut self) -> Vec<Nanos> {
        self.cpus.iter_mut().map(|cpu| cpu.busy(self.now)).collect()
    }

    fn look_at(&mut self, cpu: usize) {
        if let Some((at, version)) = self.cpus[cpu].next(self.now) {
            self.at(at, Happening::Worked { cpu, version });
        }
    }

    pub(super) fn worked(&mut self, cpu: usize, version: u32) {
        let mut done = Vec::new();
        while let Some(then) = self.cpus[cpu].done(version, self.now) {
            done.push(then);
        }
        if !done.is_empty() {
            self.look_at(cpu);
            done.into_iter().for_each(|then| self.happen(then));
        }
    }

    pub(super) fn draw(&mut self, cost: Cost) -> Nanos {
        let costs = Arc::clone(&self.costs);
        cost(&costs).draw_ms(&mut self.rng)
    }

    /// The work for a block: a part for each, and one for each MiB.
    fn block_work(&mut self, block: Cost, mib: Cost, bytes: u64) -> Nanos {
        let costs = Arc::clone(&self.costs);
        block_cost(block(&costs), mib(&costs), bytes, &mut self.rng)
    }

    pub(super) fn keep_work(&mut self) -> Nanos {
        let bytes = BLOCK_BYTES.into();
        self.block_work(|costs| &costs.agent.keep_block_ms, |costs| &costs.agent.keep_mib_ms, bytes)
    }

    pub(super) fn send_work(&mut self, bytes: u64) -> Nanos {
        self.block_work(|costs| &costs.agent.send_block_ms, |costs| &costs.agent.send_mib_ms, bytes)
    }

    fn arrival_work(&mut self, event: &agent::Event) -> Nanos {
        match event {
            agent::Event::Upstream {
                said: FromPeer::Block(_, stored) | FromPeer::Corrupt(_, stored),
                ..
            } => {
                let bytes = stored.len() as u64;
                let (block, mib): (Cost, Cost) =
                    (|costs| &costs.agent.receive_block_ms, |costs| &costs.agent.receive_mib_ms);
                self.block_work(block, mib, bytes)
            }
            agent::Event::Manager { message: ToAgent::Start(_), .. } => {
                self.draw(|costs| &costs.agent.order_ms)
            }
            _ => 0,
        }
    }

    /// What arrives is read in order, each when the one before was. Gives back what costs nothing.
    pub(super) fn arrived(&mut self, host: Node, life: u32, event: agent::Event) -> Option<agent::Event> {
        let inbox = match &event {
            agent::Event::Upstream { conn, .. } => (host, false, *conn),
            agent::Event::Manager { link, .. } | agent::Event::ManagerClosed { link } => (host, true, *link),
            _ => return Some(event),
        };
        if let Some(waiting) = self.inboxes.get_mut(&inbox) {
            waiting.push_back(event);
            return None;
        }
        let cost = self.arrival_work(&event);
        if cost == 0 {
            return Some(event);
        }
        self.inboxes.insert(inbox, VecDeque::from([event]));
        self.work(host, Part::Agents, cost, Happening::Read { inbox, life });
        None
    }

    pub(super) fn read_inbox(&mut self, inbox: Inbox, life: u32) {
        let (host, ..) = inbox;
        let Some(waiting) = self.inboxes.get_mut(&inbox).filter(|_| self.hosts[host].life == life) else {
            self.inboxes.remove(&inbox);
            return;
        };
        let Some(event) = waiting.pop_front() else { return };
        let next = waiting.front().cloned();
        match next {
            Some(next) => {
                let cost = self.arrival_work(&next);
                self.work(host, Part::Agents, cost, Happening::Read { inbox, life });
            }
            None => drop(self.inboxes.remove(&inbox)),
        }
        self.agent(host, event);
    }

    /// TCP and TLS take a round trip each. The parent works when it has the first message of TLS, the child when
    /// it has the answer; its last message comes with what it wants to say.
    pub(super) fn handshake(&mut self, conn: u64, step: u8) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (child, parent) = (known.child, known.parent);
        let latency = self.latency(child, parent);
        match step {
            0 => {
                let cost = self.draw(|costs| &costs.agent.handshake_server_ms);
                self.work(parent, Part::Agents, cost, Happening::Handshake { conn, step: 1 });
            }
            1 => self.after(latency, Happening::Handshake { conn, step: 2 }),
            2 => {
                let cost = self.draw(|costs| &costs.agent.handshake_client_ms);
                self.work(child, Part::Agents, cost, Happening::Handshake { conn, step: 3 });
            }
            _ if parent == self.origin() => self.tell_child_at_once(conn, FromPeer::Opened),
            _ => self.after(latency, Happening::Arrives { conn }),
        }
    }
}
