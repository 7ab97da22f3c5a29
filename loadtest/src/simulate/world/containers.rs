//! Containers, and what they read.

use super::*;

impl World {
    pub(super) fn run_container(&mut self, host: Node, start: StartId) {
        let Some(agent) = &self.hosts[host].agent else { return };
        let Some(ordered) = agent.ordered.get(&start) else { return };
        let tree = ordered.order.place.tree.clone();
        let reads = image(&self.images, &tree).map_or(0, |image| image.reads.len());
        let application = self.draw(|costs| &costs.container.application_ms);
        let think = application / (reads as u64 + 1);
        let container = Container { tree, think, is_running: false, read: 0, waits: None, is_ready: false };
        self.hosts[host].holder.containers.insert(start.clone(), container);
        let length = self.spread(&self.model.run.clone()) + self.draw(|costs| &costs.container.run_wait_ms);
        let cost = self.draw(|costs| &costs.container.run_ms);
        let life = self.hosts[host].life;
        let then = Box::new(Happening::RunEnds { host, life, start });
        self.work(host, Part::Runc, cost, Happening::Waits { length, then });
    }

    pub(super) fn run_ends(&mut self, host: Node, life: u32, start: &StartId) {
        if self.hosts[host].life != life {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            let resumes = self.hosts[host].paused_until;
            return self.at(resumes, Happening::RunEnds { host, life, start: start.clone() });
        }
        let Some(container) = self.hosts[host].holder.containers.get_mut(start) else { return };
        container.is_running = true;
        self.locally(host, 0, agent::Event::Running { start: start.clone() });
        self.reads(host, start);
    }

    /// A container goes on to its next read.
    pub(super) fn reads(&mut self, host: Node, start: &StartId) {
        if self.hosts[host].paused_until > self.now {
            let (at, life) = (self.hosts[host].paused_until, self.hosts[host].life);
            return self.at(at, Happening::Reads { host, life, start: start.clone() });
        }
        let life = self.hosts[host].life;
        let target = &mut self.hosts[host];
        let Some(container) = target.holder.containers.get_mut(start) else { return };
        let tree = container.tree.clone();
        let Some(image) = image(&self.images, &tree) else { return };
        let Some(&block) = image.reads.get(container.read) else {
            container.is_ready = true;
            return;
        };
        if let Some(recording) = target.holder.recordings.get_mut(&tree)
            && !recording.contains(&block)
        {
            recording.push(block);
        }
        if target.has_block(&tree, block) {
            return self.read_done(host, start);
        }
        if let Some(container) = target.holder.containers.get_mut(start) {
            container.waits = Some((block, self.now));
            self.book.stalls += 1;
        }
        let readers = target.holder.reads.entry((tree.clone(), block)).or_default();
        let is_first = readers.is_empty();
        readers.insert(start.clone());
        let deadline = nanos(self.limits.transfer.read_deadline);
        self.after(deadline, Happening::ReadOver { host, life, start: start.clone(), block });
        if is_first {
            self.locally(host, 0, agent::Event::Missed { tree, blocks: vec![block] });
        }
    }

    pub(super) fn read_done(&mut self, host: Node, start: &StartId) {
        let life = self.hosts[host].life;
        if let Some(container) = self.hosts[host].holder.containers.get_mut(start) {
            container.read += 1;
            container.waits = None;
            let cost = container.think;
            let then = Box::new(Happening::Reads { host, life, start: start.clone() });
            self.work(host, Part::Containers, cost, Happening::Waits { length: self.model.think, then });
        }
    }

    pub(super) fn reads_go_on(&mut self, host: Node, tree: &TreeId, blocks: &[BlockId]) {
        for &block in blocks {
            let readers = self.hosts[host].holder.reads.remove(&(tree.clone(), block));
            for start in readers.into_iter().flatten() {
                self.read_done(host, &start);
            }
        }
    }

    pub(super) fn reads_fail(&mut self, host: Node, tree: &TreeId, blocks: &[BlockId]) {
        for &block in blocks {
            let readers = self.hosts[host].holder.reads.remove(&(tree.clone(), block));
            for start in readers.into_iter().flatten() {
                self.read_failed(host, start);
            }
        }
    }

    /// A container does not survive an I/O error.
    pub(super) fn read_failed(&mut self, host: Node, start: StartId) {
        self.book.reads_failed += 1;
        self.hosts[host].holder.remove(&start);
        self.locally(host, 0, agent::Event::Exited { start, exit: Exit::Code(1) });
    }

    pub(super) fn read_over(&mut self, host: Node, life: u32, start: &StartId, block: BlockId) {
        if self.hosts[host].life != life {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            let resumes = self.hosts[host].paused_until;
            let start = start.clone();
            return self.at(resumes, Happening::ReadOver { host, life, start, block });
        }
        let deadline = nanos(self.limits.transfer.read_deadline);
        let is_late = |container: &Container| {
            container.waits.is_some_and(|(waits, since)| waits == block && self.now >= since + deadline)
        };
        if self.hosts[host].holder.containers.get(start).is_some_and(is_late) {
            self.read_failed(host, start.clone());
        }
    }
}
