//! Between agents and the manager.

use super::*;

impl World {
    pub(super) fn dial_manager(
        &mut self,
        host: Node,
        link: u64,
        hello: faasnet_actors::wire::control::Hello,
    ) {
        let (vm, life) = (self.hosts[host].id.clone(), self.hosts[host].life);
        // TCP and TLS take a round trip each.
        let delay = 5 * self.latency(host, self.manager_node());
        let input = Box::new(Input::Hello { vm, link, hello: Box::new(hello) });
        self.after(delay, Happening::ToManager { life: self.manager_life, from: host, input });
        let patience = nanos(self.limits.handshake);
        self.after(patience, Happening::SessionOver { host, life, link });
    }

    pub(super) fn send_to_manager(&mut self, host: Node, input: Input) {
        let delay = self.latency(host, self.manager_node());
        let life = self.manager_life;
        self.after(delay, Happening::ToManager { life, from: host, input: Box::new(input) });
    }

    pub(super) fn deliver_to_manager(&mut self, life: u32, from: Node, input: Box<Input>) {
        let node = self.manager_node();
        if let Some(until) = self.network.cut_until(from, node).filter(|until| *until > self.now) {
            return self.at(until, Happening::ToManager { life, from, input });
        }
        if life != self.manager_life || self.manager.is_none() {
            // Nobody listens there, or not to that connection.
            if let Input::Hello { link, .. } = *input
                && from < self.hosts.len()
            {
                self.send_to_host(node, from, agent::Event::ManagerClosed { link });
            }
            return;
        }
        if let Input::Heard { vm, message, .. } = &*input {
            self.hears(from, &vm.clone(), &message.clone());
        }
        self.queue_for_manager(life, input);
    }

    pub(super) fn hears(&mut self, from: Node, vm: &VmId, message: &ToManager) {
        if !matches!(message, ToManager::Heartbeat { .. }) {
            self.note(|| format!("manager   {vm} says {}", short(message)));
        }
        let life = self.hosts.get(from).map_or(0, |host| host.life);
        if let Err(text) = self.book.heard(from, life, message, self.now) {
            self.violation = Some(Violation::new(10, text));
        }
    }

    pub(super) fn tell_manager(&mut self, input: Input) {
        let now = self.instant();
        let Some(manager) = self.manager.as_mut() else { return };
        let outputs = manager.apply(input, &mut self.rows, now);
        self.has_changed |= outputs.iter().any(|output| !matches!(output, Output::Told(_)));
        for output in outputs {
            self.output(output);
        }
    }

    pub(super) fn output(&mut self, output: Output) {
        match output {
            Output::Send { vm, link, message } => {
                let Some(&host) = self.numbers.get(&vm) else { return };
                self.send_from_manager(host, agent::Event::Manager { link, message });
            }
            Output::Close { vm, link } => {
                if let Some(&host) = self.numbers.get(&vm) {
                    self.send_from_manager(host, agent::Event::ManagerClosed { link });
                }
            }
            Output::Commit => {
                let cost = self.draw(|costs| &costs.manager.commit_ms);
                self.manager_later(self.model.commit + cost, Input::Committed);
            }
            Output::Convert { source } => {
                // Functions of the model have no code.
                let Source::Image(name) = &source else { return };
                let number = name.strip_prefix("image:").and_then(|number| number.parse::<usize>().ok());
                let image: Option<BlockImage> =
                    number.and_then(|number| self.images.get(number)).map(|image| image.description.clone());
                if let Some(image) = image.map(Box::new) {
                    self.manager_later(CONVERSION, Input::Converted { source, image });
                }
            }
            Output::Survey(work) => self.survey(*work),
            Output::Answer { ticket, answer } => {
                self.note(|| format!("manager   answers {ticket:?}: {}", short(&answer)));
                if let Err(text) = self.book.answered(ticket, &answer, &self.rows, self.now) {
                    self.violation = Some(Violation::new(9, text));
                }
                self.client_hears(ticket, &answer);
            }
            Output::Told(news) => self.is_told(*news),
            Output::Left { tree, before, gone } => self.book.left(tree, before, gone),
        }
    }

    pub(super) fn manager_later(&mut self, delay: Nanos, input: Input) {
        let life = self.manager_life;
        let from = self.manager_node();
        self.after(delay, Happening::ToManager { life, from, input: Box::new(input) });
    }

    pub(super) fn start_manager(&mut self) {
        self.term += 1;
        let row = Row { table: Table::Values, key: "term".into(), value: self.term.to_be_bytes().to_vec() };
        self.rows.apply(vec![Write::Put(row)]);
        let seed = self.rng.random();
        let limits = (*self.limits).clone();
        let mut manager = Manager::new(limits, &self.rows, self.term, seed);
        manager.tells_departures = self.watch.depth == Depth::Full;
        self.manager = Some(manager);
        self.manager_life += 1;
        let life = self.manager_life;
        self.note(|| "manager   starts".into());
        self.tell_manager(Input::SchedulerTick);
        self.after(nanos(SCHEDULER_TICK), Happening::SchedulerTick { life });
        self.after(nanos(self.limits.heartbeat), Happening::ManagerTick { life });
    }
}
