//! `faasnet image preheat`: a function's image on VMs before any start.

use super::{
    Context, Failure,
    output::{parse, progress, size, table},
};
use clap::Args;
use faasnet_actors::{
    id::{FunctionName, VmId},
    model::{PreheatSpec, PreheatView, PreheatedVm},
    wire::control::Warmth,
};
use reqwest::Method;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Args)]
pub struct Preheat {
    /// The function
    name: FunctionName,
    /// To how many VMs, which the manager chooses: those that hold most of it first [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "vm")]
    vms: Option<u32>,
    /// To this VM; may be given several times
    #[arg(long, value_name = "NAME", num_args = 1..)]
    vm: Vec<VmId>,
    /// Only what starts read, as far as that is known
    #[arg(long, conflicts_with = "whole")]
    hot: bool,
    /// The whole image; the default
    #[arg(long)]
    whole: bool,
    /// How long to wait until the VMs hold it, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// Pause between two looks; VMs tell what they hold with each heartbeat.
const POLL: Duration = Duration::from_millis(200);

impl Preheat {
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<(), Failure> {
        let (began, timeout) = (Instant::now(), Duration::from_secs(self.timeout));
        let path = format!("/v1/functions/{}/preheat", self.name);
        let what = if self.hot { Warmth::Hot } else { Warmth::Whole };
        let vms = self.vms.or(self.vm.is_empty().then_some(1));
        let spec = PreheatSpec { vms, names: self.vm, what };
        let spec = serde_json::to_value(spec).expect("plain data");
        let mut view: PreheatView = parse(&context.client.send(Method::POST, &path, &spec).await?)?;
        let chosen: BTreeSet<VmId> = view.vms.iter().map(|row| row.vm.clone()).collect();
        let progress = progress(0, "{msg} {bar:30} {pos}/{len} blocks {elapsed}");
        let missing = loop {
            let done = view.vms.iter().filter(|row| row.is_done).count();
            progress.set_message(format!("{done} of {} VMs", chosen.len()));
            progress.set_length(view.vms.iter().map(|row| u64::from(row.blocks_total)).sum());
            progress.set_position(view.vms.iter().map(|row| u64::from(row.blocks_present)).sum());
            if done == chosen.len() || began.elapsed() >= timeout {
                break chosen.len() - done;
            }
            tokio::time::sleep(POLL).await;
            view = parse(&context.client.get(&path).await?)?;
            // Others may hold it too, and one that was lost is not there any more.
            view.vms.retain(|row| chosen.contains(&row.vm));
        };
        progress.finish_and_clear();
        let body = serde_json::to_vec(&view).expect("it came as JSON");
        context.output.answer(&body, show)?;
        if missing > 0 {
            return Err(Failure::Preheat { missing, count: chosen.len(), timeout });
        }
        Ok(())
    }
}

fn show(view: PreheatView) -> String {
    let row = |vm: PreheatedVm| {
        let percent = (u64::from(vm.blocks_present) * 100).checked_div(vm.blocks_total.into()).unwrap_or(0);
        [
            vm.vm.to_string(),
            format!("{} of {}", vm.blocks_present, vm.blocks_total),
            format!("{percent} %"),
            size(vm.bytes.total()),
            if vm.is_done { "yes" } else { "no" }.into(),
        ]
    };
    table(["VM", "BLOCKS", "OF ALL", "RECEIVED", "DONE"], view.vms.into_iter().map(row).collect())
}
