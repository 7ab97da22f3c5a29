//! `faasnet vm list|drain|undrain|remove|join-token`.

use super::{
    Context, Failure,
    output::{size, table},
};
use clap::Subcommand;
use faasnet_actors::{
    id::VmId,
    model::{VmState, VmView},
};
use reqwest::Method;
use serde::Deserialize;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Vm {
    /// List all VMs
    List,
    /// Let nothing new start on a VM, and move away what runs there
    Drain {
        name: VmId,
        /// Also when no other VM takes starts
        #[arg(long)]
        force: bool,
    },
    /// Let a VM that is drained take starts again
    Undrain { name: VmId },
    /// Forget a VM that is lost, so that its name is free again
    Remove { name: VmId },
    /// Make a token with which further VMs join
    JoinToken,
}

#[derive(Deserialize)]
struct Vms {
    vms: Vec<VmView>,
}

#[derive(Deserialize)]
struct JoinTokenText {
    token: String,
}

impl Vm {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        match self {
            Self::List => {
                let body = context.client.get("/v1/vms").await?;
                context.output.answer(&body, |answer: Vms| list(answer.vms))?;
            }
            Self::Drain { name, force } => {
                let path = format!("/v1/vms/{name}/drain?force={force}");
                let body = context.client.send(Method::POST, &path, &()).await?;
                context.output.answer(&body, drained)?;
            }
            Self::Undrain { name } => {
                let path = format!("/v1/vms/{name}/undrain");
                let body = context.client.send(Method::POST, &path, &()).await?;
                context
                    .output
                    .answer(&body, |vm: VmView| format!("{} takes starts when it is up\n", vm.id))?;
            }
            Self::Remove { name } => {
                context.client.delete(&format!("/v1/vms/{name}")).await?;
                context.output.done(&format!("{name} is removed"))?;
            }
            Self::JoinToken => {
                let body = context.client.send(Method::POST, "/v1/join-tokens", &()).await?;
                context.output.answer(&body, |answer: JoinTokenText| format!("{}\n", answer.token))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Thousandths of a core as cores.
fn cores(millis: u32) -> String {
    format!("{}.{}", millis / 1000, millis % 1000 / 100)
}

fn state(vm: &VmView) -> &'static str {
    match vm.state {
        VmState::Up => "up",
        VmState::Lost if vm.draining => "lost, draining",
        VmState::Lost => "lost",
        VmState::Draining => "draining",
        VmState::Drained => "drained",
    }
}

/// What an operator may do now.
fn drained(vm: VmView) -> String {
    let name = &vm.id;
    match vm.state {
        VmState::Drained => format!("{name} is drained\n"),
        VmState::Lost => format!("{name} is lost; it gets no starts when it comes back\n"),
        VmState::Up | VmState::Draining => {
            let runs = match vm.instances.len() {
                1 => "1 instance".to_owned(),
                count => format!("{count} instances"),
            };
            format!("{name} is draining: {runs} to move; `faasnet vm list` shows when it is drained\n")
        }
    }
}

fn list(vms: Vec<VmView>) -> String {
    let row = |vm: VmView| {
        let blocks: u64 = vm.trees.iter().map(|held| u64::from(held.blocks_present)).sum();
        [
            vm.id.to_string(),
            state(&vm).to_owned(),
            vm.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            vm.tenant.map_or_else(|| "-".to_owned(), |tenant| tenant.to_string()),
            format!("{} of {}", size(vm.memory_used_bytes), size(vm.memory_bytes)),
            format!("{} of {}", cores(vm.cpu_used_millis), cores(vm.cpu_millis)),
            vm.instances.len().to_string(),
            vm.trees.len().to_string(),
            blocks.to_string(),
        ]
    };
    let heading = ["VM", "STATE", "ADDRESS", "TENANT", "MEMORY", "CPU", "INSTANCES", "IMAGES", "BLOCKS"];
    table(heading, vms.into_iter().map(row).collect())
}
