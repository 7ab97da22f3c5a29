//! The page of an agent. Its families have names of their own: the manager's page has sums of agents, and whoever adds both up
//! would count twice.

use super::{Page, actors, build, by_source, process, seconds};
use crate::origin::OriginCounts;
use faasnet_actors::{block_transfer::Done, support::ActorView, wire::control::HeldTree};

/// What an agent has counted, and what its actors say.
#[derive(Default)]
pub struct Agent {
    pub done: Done,
    pub origin: OriginCounts,
    /// From other VMs and the manager.
    pub connections: usize,
    pub connections_max: usize,
    /// None of actors that do not answer.
    pub parts: Option<AgentParts>,
}

pub struct AgentParts {
    pub actors: ActorView,
    pub held: Vec<HeldTree>,
}

pub fn page(Agent { done, origin, connections, connections_max, parts }: &Agent) -> String {
    let mut page = Page::default();
    build(&mut page);
    let help = "Whether the actors gave their numbers; without them those of them are missing here.";
    page.gauge("faasnet_agent_actors_up", help, f64::from(u8::from(parts.is_some())));
    let help = "Stored bytes of blocks that this VM received.";
    by_source(&mut page, "faasnet_agent_received_bytes_total", help, done.bytes);
    let help = "Reads that waited for a block.";
    page.counter("faasnet_agent_stalls_total", help, done.stalls as f64);
    let help = "How long those reads waited that have gone on, in seconds.";
    page.counter("faasnet_agent_stall_seconds_total", help, seconds(done.stalled_us));
    let OriginCounts { requests, retries, bytes, wasted_bytes } = *origin;
    for (name, help, count) in [
        ("requests_total", "Requests to the origin for a range, the repeated ones included.", requests),
        ("retries_total", "Requests to the origin that repeated one that had failed.", retries),
        ("bytes_total", "Bytes of index and blocks from the origin, of use or not.", bytes),
        ("wasted_bytes_total", "Those of them that belonged to an answer that was given up.", wasted_bytes),
    ] {
        page.counter(&format!("faasnet_agent_origin_{name}"), help, count as f64);
    }
    let help = "Connections from other VMs and the manager.";
    page.gauge("faasnet_agent_connections", help, *connections as f64);
    let help = "How many there may be (agent.connections_max).";
    page.gauge("faasnet_agent_connections_limit", help, *connections_max as f64);
    if let Some(AgentParts { actors, held }) = parts {
        page.gauge("faasnet_agent_trees", "Function trees of which the VM is a member.", held.len() as f64);
        let sum = |blocks: fn(&HeldTree) -> u32| held.iter().map(|held| f64::from(blocks(held))).sum();
        let help = "Blocks of the images of those trees.";
        page.gauge("faasnet_agent_blocks", help, sum(|held| held.blocks_total));
        let help = "Those of them that are here.";
        page.gauge("faasnet_agent_blocks_present", help, sum(|held| held.blocks_present));
        let (limit, agents) = ("are asked", std::slice::from_ref(actors));
        actors::write(&mut page, actors::Of { prefix: "faasnet_agent_", limit, manager: None, agents });
    }
    process::write(&mut page);
    page.text()
}
