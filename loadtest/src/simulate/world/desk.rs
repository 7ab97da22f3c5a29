//! What the manager works on: what it hears, and what it sends.
//!
//! The real one has an actor for each VM and each tree, and its threads give each a turn: while a tree signs a thousand
//! orders, heartbeats are heard. Here its time is shared evenly by what it hears and what it sends, each in order.

use super::*;
use crate::simulate::costs::Quantiles;

#[derive(Default)]
pub(super) struct Desk {
    heard: VecDeque<(u32, Box<Input>)>,
    orders: VecDeque<Order>,
    works: bool,
    /// Time that both have had since one of them waited alone.
    spent_on_heard: Nanos,
    spent_on_orders: Nanos,
}

struct Order {
    host: Node,
    life: u32,
    event: agent::Event,
    cost: Nanos,
}

impl Desk {
    /// Whether it is the turn of what was heard; none if nothing waits.
    fn hears_next(&mut self) -> Option<bool> {
        match (self.heard.is_empty(), self.orders.is_empty()) {
            (true, true) => None,
            (false, false) => Some(self.spent_on_heard <= self.spent_on_orders),
            (alone, _) => {
                (self.spent_on_heard, self.spent_on_orders) = (0, 0);
                Some(!alone)
            }
        }
    }
}

impl World {
    fn manager_is_free_of_cost(&self) -> bool {
        let costs = &self.costs.manager;
        costs.message_ms == Quantiles::None && costs.order_ms == Quantiles::None
    }

    pub(super) fn queue_for_manager(&mut self, life: u32, input: Box<Input>) {
        if self.manager_is_free_of_cost() {
            return self.tell_manager(*input);
        }
        self.desk.heard.push_back((life, input));
        self.go_to_work();
    }

    /// To an agent, when the manager has come to it.
    pub(super) fn send_from_manager(&mut self, host: Node, event: agent::Event) {
        let costs = matches!(event, agent::Event::Manager { .. });
        let cost = if costs { self.draw(|costs| &costs.manager.order_ms) } else { 0 };
        if self.manager_is_free_of_cost() {
            return self.send_to_host(self.manager_node(), host, event);
        }
        let life = self.hosts[host].life;
        self.desk.orders.push_back(Order { host, life, event, cost });
        self.go_to_work();
    }

    fn go_to_work(&mut self) {
        if !std::mem::replace(&mut self.desk.works, true) {
            self.after(0, Happening::ManagerFree { life: self.manager_life });
        }
    }

    pub(super) fn manager_free(&mut self, life: u32) {
        if life != self.manager_life {
            return;
        }
        let cost = match self.desk.hears_next() {
            None => {
                self.desk.works = false;
                return;
            }
            Some(true) => self.hear(),
            Some(false) => self.send_order(),
        };
        self.after(cost, Happening::ManagerFree { life });
    }

    fn hear(&mut self) -> Nanos {
        let Some((life, input)) = self.desk.heard.pop_front() else { return 0 };
        let cost = match *input {
            Input::Heard { .. } | Input::Hello { .. } | Input::Client(_) => {
                self.draw(|costs| &costs.manager.message_ms)
            }
            _ => 0,
        };
        self.desk.spent_on_heard += cost;
        self.uses(Part::Manager, cost);
        if life == self.manager_life {
            self.tell_manager(*input);
        }
        cost
    }

    fn send_order(&mut self) -> Nanos {
        let Some(Order { host, life, event, cost }) = self.desk.orders.pop_front() else { return 0 };
        self.desk.spent_on_orders += cost;
        self.uses(Part::Manager, cost);
        let node = self.manager_node();
        let delay = cost + self.latency(node, host);
        self.after(delay, Happening::ToHost { host, life, from: node, event: Box::new(event) });
        cost
    }
}
