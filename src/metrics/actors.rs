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

/// The sums of all that are below those.
pub fn write<'a>(page: &mut Page, roots: impl Iterator<Item = &'a ActorView>) {
    let mut sums = Kinds::default();
    roots.for_each(|root| add(&mut sums, root));
    let Kinds { kinds, left_out } = sums;

    let mut mailboxes = page.gauges("faasnet_mailbox_length", "Messages that wait for actors.");
    kinds.iter().for_each(|(actor, kind)| mailboxes.add(&[("actor", actor)], kind.mailbox as f64));
    drop(mailboxes);
    let help = "How often the actors that are here now were rebuilt after a crash.";
    let mut rebuilt = page.gauges("faasnet_actor_generations", help);
    kinds.iter().for_each(|(actor, kind)| rebuilt.add(&[("actor", actor)], kind.rebuilt as f64));
    drop(rebuilt);

    let mut write = |name: &str, help: &str, value: fn(&Queue) -> f64| {
        let mut samples = page.gauges(name, help);
        for (actor, kind) in &kinds {
            for (queue, sums) in &kind.queues {
                samples.add(&[("actor", actor), ("queue", queue)], value(sums));
            }
        }
    };
    let help = "What waits in, or is held by, the bounded places of actors; all of a kind together.";
    write("faasnet_queue_length", help, |queue| queue.length as f64);
    let help = "What may be there at most; all of a kind together.";
    write("faasnet_queue_limit", help, |queue| queue.limit as f64);
    let help = "Length by limit of the fullest one of a kind.";
    write("faasnet_queue_fullest_ratio", help, |queue| queue.fullest);
    let help =
        "Actors of which the sums know nothing, because there are more than manager.children_shown_max.";
    page.gauge("faasnet_actors_left_out", help, left_out as f64);
}

fn add(sums: &mut Kinds, view: &ActorView) {
    let kind = sums.kinds.entry(view.kind.clone()).or_default();
    kind.mailbox += view.mailbox as u64;
    kind.rebuilt += u64::from(view.generation);
    for queue in &view.queues {
        let sum = kind.queues.entry(queue.name.clone()).or_default();
        sum.length = sum.length.saturating_add(queue.length);
        sum.limit = sum.limit.saturating_add(queue.limit);
        if queue.limit > 0 {
            sum.fullest = sum.fullest.max(queue.length as f64 / queue.limit as f64);
        }
    }
    sums.left_out += view.children_left_out as u64;
    view.children.iter().for_each(|child| add(sums, child));
}
