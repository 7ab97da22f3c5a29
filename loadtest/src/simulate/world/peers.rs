//! Connections between VMs, and to the origin.

use super::*;
use crate::simulate::{costs::Quantiles, model::SECOND};

impl World {
    pub(super) fn dial(&mut self, child: Node, conn: u64, tree: TreeId, upstream: Upstream) {
        let parent = match &upstream {
            Upstream::Origin => self.origin(),
            Upstream::Vm { vm, .. } => match self.numbers.get(vm) {
                Some(&number) => number,
                None => return,
            },
        };
        let mut opened = Conn::new(tree, child, parent, upstream);
        if parent == self.origin() {
            opened.is_open = true;
            self.network.open(conn, opened);
            if self.costs.agent.handshake_client_ms == Quantiles::None {
                return self.tell_child_at_once(conn, FromPeer::Opened);
            }
            return self.after(4 * self.latency(child, parent), Happening::Handshake { conn, step: 2 });
        }
        self.network.open(conn, opened);
        self.after(3 * self.latency(child, parent), Happening::Handshake { conn, step: 0 });
        self.after(nanos(self.limits.connect), Happening::DialOver { conn });
    }

    pub(super) fn arrives(&mut self, conn: u64) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (child, parent, tree) = (known.child, known.parent, known.tree.clone());
        let target = &self.hosts[parent];
        if !target.is_up() {
            if !target.is_silent {
                self.close_at_parent(conn, "nobody listens there".into());
            }
            return; // nobody answers; the child gives up by itself
        }
        let held = self.network.cut_until(child, parent).filter(|until| *until > self.now);
        if let Some(until) = held.max((target.paused_until > self.now).then_some(target.paused_until)) {
            return self.at(until, Happening::Arrives { conn });
        }
        let vm = self.hosts[child].id.clone();
        if let Some(known) = self.network.conns.get_mut(&conn) {
            known.has_arrived = true;
        }
        self.agent(parent, agent::Event::ChildCame { conn, tree, vm });
    }

    pub(super) fn dial_over(&mut self, conn: u64) {
        let Some(known) = self.network.conns.get(&conn).filter(|known| !known.is_open) else { return };
        if known.has_arrived && !known.is_late {
            if let Some(known) = self.network.conns.get_mut(&conn) {
                known.is_late = true;
            }
            return self.after(nanos(self.limits.handshake), Happening::DialOver { conn });
        }
        self.tell_child_at_once(conn, FromPeer::Closed("it does not answer in time".into()));
        self.hang_up(conn);
    }

    /// The child ends the connection.
    pub(super) fn hang_up(&mut self, conn: u64) {
        let Some(Conn { tree, child, parent, has_arrived, .. }) = self.network.close(conn, self.now) else {
            return;
        };
        if has_arrived {
            self.send_to_host(child, parent, agent::Event::ChildGone { conn, tree });
        }
    }

    /// The parent ends the connection.
    pub(super) fn close_at_parent(&mut self, conn: u64, reason: String) {
        self.tell_child(conn, FromPeer::Closed(reason));
        self.network.close(conn, self.now);
    }

    pub(super) fn tell_child(&mut self, conn: u64, said: FromPeer) {
        if let Some(known) = self.network.conns.get(&conn) {
            let (tree, upstream, child, parent) =
                (known.tree.clone(), known.upstream.clone(), known.child, known.parent);
            self.send_to_host(parent, child, agent::Event::Upstream { tree, upstream, conn, said });
        }
    }

    pub(super) fn tell_child_at_once(&mut self, conn: u64, said: FromPeer) {
        if let Some(known) = self.network.conns.get(&conn) {
            let (tree, upstream, child) = (known.tree.clone(), known.upstream.clone(), known.child);
            self.locally(child, 0, agent::Event::Upstream { tree, upstream, conn, said });
        }
    }

    pub(super) fn child_asks(&mut self, child: Node, conn: u64, message: ToParent) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (parent, tree) = (known.parent, known.tree.clone());
        if let ToParent::Want { path, .. } = &message {
            let target = self.hosts.get(parent).map(|host| &host.id);
            let distinct = path.iter().chain(target).collect::<BTreeSet<_>>().len();
            if distinct != path.len() + usize::from(target.is_some()) {
                let text = format!("a demand of vm-{child:05} is to visit a VM twice: {path:?}");
                self.violation = Some(Violation::new(11, text));
            }
        }
        if parent < self.hosts.len() {
            return self.send_to_host(child, parent, agent::Event::Child { conn, tree, said: message });
        }
        let is_up = self.origin_is_up;
        if is_up {
            let stored = |image: &Image, blocks: &[BlockId]| {
                blocks.iter().map(|block| image.stored(*block).len() as u64).sum()
            };
            let bytes = match (&message, image(&self.images, &tree)) {
                (ToParent::Want { blocks, .. }, Some(image)) => stored(image, blocks),
                _ => 0,
            };
            self.book.read_origin(&tree, child, bytes);
        }
        let mut delay = if is_up { self.model.origin_latency } else { ORIGIN_GIVES_UP };
        if let Some(each) = SECOND.checked_div(self.model.origin_requests) {
            self.origin_free = self.origin_free.max(self.now) + each;
            delay += self.origin_free - self.now - each;
        }
        self.after(delay, Happening::OriginAnswers { conn, message, is_up });
    }

    pub(super) fn origin_answers(&mut self, conn: u64, message: ToParent, is_up: bool) {
        let Some(tree) = self.network.conns.get(&conn).map(|known| known.tree.clone()) else { return };
        let images = Arc::clone(&self.images);
        let Some(image) = image(&images, &tree) else { return };
        match message {
            ToParent::WantIndex { .. } if is_up => {
                let frame = Frame::new(Urgency::Demand, FromParent::Index, Bytes::new(), image.index_bytes);
                self.network.send(conn, frame, self.now);
            }
            ToParent::WantIndex { .. } => self.close_at_parent(conn, "the origin cannot be used".into()),
            ToParent::Want { blocks, urgency, .. } => {
                for block in blocks {
                    if is_up {
                        let body = image.stored(block);
                        let bytes = body.len() as u64;
                        let frame = Frame::new(urgency, FromParent::Block { block }, body, bytes);
                        self.network.send(conn, frame, self.now);
                    } else {
                        self.tell_child_at_once(conn, FromPeer::NotServed(block, NotServed::NoSource));
                    }
                }
            }
            ToParent::Hurry { .. } | ToParent::Corrupt { .. } | ToParent::Open { .. } => {}
        }
    }

    pub(super) fn parent_tells(
        &mut self,
        parent: Node,
        conn: u64,
        urgency: Urgency,
        message: FromParent,
        mut body: Bytes,
    ) {
        let Some(tree) = self.network.conns.get(&conn).map(|known| known.tree.clone()) else { return };
        if self.network.queued(conn) >= 3 * self.limits.transfer.queued_blocks_max {
            self.close_at_parent(conn, "the child does not read".into());
            return self.locally(parent, 0, agent::Event::ChildGone { conn, tree });
        }
        let bytes = match &message {
            FromParent::Index => image(&self.images, &tree).map_or(0, |image| image.index_bytes),
            _ => body.len() as u64,
        };
        if let FromParent::Block { block } = &message {
            self.invariant_5(parent, &tree, *block, &body);
            if self.hosts[parent].is_faulty && !block.0.is_multiple_of(3) {
                let mut damaged = body.to_vec();
                damaged[0] ^= 1;
                body = damaged.into();
            }
        }
        let cost = if body.is_empty() { 0 } else { self.send_work(bytes) };
        let frame = Frame::new(urgency, message, body, bytes);
        if cost == 0 {
            return self.network.send(conn, frame, self.now);
        }
        self.work(parent, Part::Agents, cost, Happening::Send { conn, frame: Box::new(frame) });
    }

    /// A frame was sent completely; it is there after the latency, and is checked.
    pub(super) fn frame_left(&mut self, conn: u64, Frame { message, body, urgency, bytes }: Frame) {
        let Some(known) = self.network.conns.get(&conn) else { return };
        let (tree, parent) = (known.tree.clone(), known.parent);
        self.book.went(parent, known.child, bytes, self.now);
        if matches!(message, FromParent::Block { .. }) && parent < self.hosts.len() {
            self.locally(parent, 0, agent::Event::ChildSent { conn, tree: tree.clone(), urgency });
        }
        let tree = &tree;
        let said = match message {
            FromParent::Index => FromPeer::Index,
            FromParent::Block { block } => match image(&self.images, tree) {
                Some(image) if image.verify(block, &body) => FromPeer::Block(block, body),
                _ => FromPeer::Corrupt(block, body),
            },
            FromParent::NotServed { block, reason } => FromPeer::NotServed(block, reason),
            FromParent::Waiting { .. } => FromPeer::Waits,
            FromParent::Opened => FromPeer::Opened,
            FromParent::Refused { reason } => FromPeer::Closed(reason.to_string()),
        };
        if let FromPeer::Block(_, stored) = &said {
            self.book.moved_bytes += stored.len() as u64;
        }
        self.tell_child(conn, said);
    }
}
