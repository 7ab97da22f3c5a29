//! Actors by their kind: what waits for them and what they hold, how often they were rebuilt.

use super::Page;
use faasnet_actors::support::ActorView;
use std::collections::BTreeMap;

#[derive(Default)]
struct Queue {
    length: u64,
    limit: u64,
    /// Of the actor of that kind whose own is the fullest.
    fullest: f64,
}

#[derive(Default)]
struct Kind {
    mailbox: u64,
    rebuilt: u64,
    queues: BTreeMap<String, Queue>,
}

#[derive(Default)]
struct Kinds {
    kinds: BTreeMap<String, Kind>,
    left_out: u64,
}

/// The actors of agents and their queues. What else a VM names is left out: nobody vouches for it, and what it says must not
/// be taken for the manager's, nor make the page longer.
const OF_AGENTS: [(&str, &[&str]); 5] = [
    ("agent", &["instances"]),
    ("agent_session", &["reports"]),
    ("block_store", &["memory bytes", "disk bytes", "cold images", "writes without room"]),
    ("block_transfer", &["blocks wanted", "blocks in flight", "blocks on their way to the disk", "children"]),
    ("instance", &[]),
];

/// Whose actors they are.
pub struct Of<'a> {
    /// What the names of the families begin with.
    pub prefix: &'static str,
    /// What bounds how many of one actor's children are seen.
    pub limit: &'static str,
    pub manager: Option<&'a ActorView>,
    pub agents: &'a [ActorView],
}

/// The sums of the manager's actors and of all agents'.
pub fn write(page: &mut Page, Of { prefix, limit, manager, agents }: Of) {
    let mut sums = Kinds::default();
    manager.iter().for_each(|root| add(&mut sums, root, false));
    agents.iter().for_each(|root| add(&mut sums, root, true));
    let Kinds { kinds, left_out } = sums;

    let mut mailboxes = page.gauges(&format!("{prefix}mailbox_length"), "Messages that wait for actors.");
    kinds.iter().for_each(|(actor, kind)| mailboxes.add(&[("actor", actor)], kind.mailbox as f64));
    drop(mailboxes);
    let help = "How often the actors that are here now were rebuilt after a crash.";
    let mut rebuilt = page.gauges(&format!("{prefix}actor_generations"), help);
    kinds.iter().for_each(|(actor, kind)| rebuilt.add(&[("actor", actor)], kind.rebuilt as f64));
    drop(rebuilt);

    let mut write = |name: &str, help: &str, value: fn(&Queue) -> f64| {
        let mut samples = page.gauges(&format!("{prefix}{name}"), help);
        for (actor, kind) in &kinds {
            for (queue, sums) in &kind.queues {
                samples.add(&[("actor", actor), ("queue", queue)], value(sums));
            }
        }
    };
    let help = "What waits in, or is held by, the bounded places of actors; all of a kind together.";
    write("queue_length", help, |queue| queue.length as f64);
    let help = "What may be there at most; all of a kind together.";
    write("queue_limit", help, |queue| queue.limit as f64);
    let help = "Length by limit of the fullest one of a kind.";
    write("queue_fullest_ratio", help, |queue| queue.fullest);
    let help = format!("Actors of which the sums know nothing, because there are more than {limit}.");
    page.gauge(&format!("{prefix}actors_left_out"), &help, left_out as f64);
}

fn add(sums: &mut Kinds, view: &ActorView, is_agents: bool) {
    let known = OF_AGENTS.iter().find(|(kind, _)| *kind == view.kind).map(|(_, queues)| *queues);
    if is_agents && known.is_none() {
        return;
    }
    let is_known = |queue: &str| !is_agents || known.is_some_and(|queues| queues.contains(&queue));
    let kind = sums.kinds.entry(view.kind.clone()).or_default();
    kind.mailbox = kind.mailbox.saturating_add(view.mailbox as u64);
    kind.rebuilt = kind.rebuilt.saturating_add(view.generation.into());
    for queue in view.queues.iter().filter(|queue| is_known(&queue.name)) {
        let sum = kind.queues.entry(queue.name.clone()).or_default();
        sum.length = sum.length.saturating_add(queue.length);
        sum.limit = sum.limit.saturating_add(queue.limit);
        if queue.limit > 0 {
            sum.fullest = sum.fullest.max(queue.length as f64 / queue.limit as f64);
        }
    }
    sums.left_out = sums.left_out.saturating_add(view.children_left_out as u64);
    view.children.iter().for_each(|child| add(sums, child, is_agents));
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::support::{QueueView, Snapshot};

    #[test]
    fn an_agent_can_neither_speak_for_the_manager_nor_make_up_names() {
        let queue = |name: &str| QueueView { name: name.into(), length: u64::MAX, limit: 1 };
        let says = |kind: &str, queues: &[&str]| ActorView {
            mailbox: usize::MAX,
            queues: queues.iter().map(|name| queue(name)).collect(),
            ..Snapshot::new("up").into_root(kind)
        };
        let agent = ActorView {
            children: vec![
                says("journal", &["commits"]),
                says("made up", &[]),
                says("block_store", &["disk bytes", "x"]),
            ],
            ..says("agent", &["commits"])
        };
        let mut page = Page::default();
        let manager = Snapshot::new("up").into_root("manager");
        let agents = &[agent.clone(), agent];
        write(&mut page, Of { prefix: "faasnet_", limit: "so many", manager: Some(&manager), agents });
        let text = page.text();
        assert!(text.contains(r#"faasnet_queue_length{actor="block_store",queue="disk bytes"}"#), "{text}");
        for made_up in ["commits", "journal", "made up", "\"x\""] {
            assert!(!text.contains(made_up), "{made_up} in {text}");
        }
    }
}
