//! `faasnet actors`: the supervision tree, with what each actor says of itself.

use super::{
    Context, Failure,
    output::{branches, table},
};
use clap::Args;
use faasnet_actors::{
    id::VmId,
    support::{ActorView, QueueView},
};
use serde::Deserialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Actors {
    /// Show the agent of this VM instead of the manager
    #[arg(long, value_name = "NAME")]
    vm: Option<VmId>,
    /// Show all agents instead of the manager
    #[arg(long, conflicts_with = "vm")]
    agents: bool,
}

#[derive(Deserialize)]
struct Answer {
    actors: Vec<ActorView>,
}

impl Actors {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        let query = match &self.vm {
            Some(vm) => format!("?vm={vm}"),
            None if self.agents => "?agents=true".to_owned(),
            None => String::new(),
        };
        let body = context.client.get(&format!("/v1/actors{query}")).await?;
        context.output.answer(&body, |answer: Answer| draw(&answer.actors))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn draw(actors: &[ActorView]) -> String {
    let lines = branches(actors.iter().collect(), |actor: &ActorView| actor.children.iter().collect());
    let row = |(branch, actor): (String, &ActorView)| {
        let name = if actor.name == actor.kind { String::new() } else { format!(" {}", actor.name) };
        let more = match actor.children_left_out {
            0 => String::new(),
            count => format!(" (+{count} not shown)"),
        };
        let queue = |queue: &QueueView| format!("{} {}/{}", queue.name, queue.length, queue.limit);
        [
            format!("{branch}{}{name}{more}", actor.kind),
            actor.state.clone(),
            actor.generation.to_string(),
            actor.crashes.to_string(),
            actor.mailbox.to_string(),
            actor.queues.iter().map(queue).collect::<Vec<_>>().join(", "),
        ]
    };
    let heading = ["ACTOR", "STATE", "REBUILT", "CRASHES", "MAILBOX", "QUEUES"];
    table(heading, lines.into_iter().map(row).collect())
}
