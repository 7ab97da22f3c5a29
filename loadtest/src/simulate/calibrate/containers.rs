//! Warm containers of a real instance, one after the other.

use super::{Rounds, millis};
use crate::{
    rig::{Cluster, ClusterSpec, Image, Variant},
    warm::{Unpacked, WarmContainer, WarmStart},
};
use anyhow::Context;
use faasnet_actors::model::StartView;
use std::{path::Path, time::Duration};

const FUNCTION: &str = "calibrated";
/// Of one round.
const STARTS: usize = 10;
const READY: Duration = Duration::from_secs(120);

/// Of a server in Python, the least of the images that loads are made with: CPU of running a container, what passed
/// meanwhile with no core used or wanted, and CPU of what runs in it until it answers, with the probes.
pub fn measure(program: &Path, cache: &Path, rounds: usize) -> anyhow::Result<[Rounds; 3]> {
    let image = Image::cached(cache, Variant::Minimal)?;
    let cluster = Cluster::up(ClusterSpec::new(program, 1))?;
    let reference = cluster.registry.push(&image, "calibrated/image")?;
    cluster.cli(&["function", "deploy", FUNCTION, "--image", &reference])?;
    let id = cluster.api.start(FUNCTION, 1)?.pop().context("no start was accepted")?;
    let start: StartView = serde_json::from_value(cluster.api.ready(&id, READY)?)?;
    let vm = start.vm.context("a ready start has no VM")?.to_string();
    let container = WarmContainer::of_instance(&cluster, &vm, start.id.as_str())?;
    cluster.drain([vm.as_str()])?;
    let unpacked = Unpacked::new(&image)?;
    let next = || -> anyhow::Result<WarmStart> {
        let (starts, _) =
            container.start(cluster.bed.state(), std::slice::from_ref(&vm), &unpacked.rootfs)?;
        starts.into_iter().next().context("a warm start is missing")
    };
    // It brings the files into the page cache.
    next()?;
    let mut measured = [Rounds::new(), Rounds::new(), Rounds::new()];
    for _ in 0..rounds {
        let starts = (0..STARTS).map(|_| next()).collect::<anyhow::Result<Vec<_>>>()?;
        let waited =
            |start: &WarmStart| start.run.saturating_sub(start.run_used.cpu + start.run_used.stalled);
        let of_all = |part: &dyn Fn(&WarmStart) -> Duration| {
            starts.iter().map(|start| millis(part(start))).collect::<Vec<f64>>()
        };
        measured[0].push(of_all(&|start| start.run_used.cpu));
        measured[1].push(of_all(&waited));
        measured[2].push(of_all(&|start| start.probe_used.cpu));
    }
    Ok(measured)
}
