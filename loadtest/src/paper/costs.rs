//! What things cost: on the paper's VMs, and as measured on ours.

use super::image::Image;
use crate::{
    rivals,
    simulate::{
        self, AgentCosts, ContainerCosts, GIGABIT, MILLISECOND, ManagerCosts, Nanos, Quantiles, ScenarioFile,
        Spread,
    },
};
use anyhow::Context;
use serde::Serialize;

/// The costs of one kind of VMs, registry and manager. Rates are bytes a second.
#[derive(Debug, Clone, Serialize)]
pub struct Costs {
    pub name: &'static str,
    pub link: u64,
    /// One way.
    pub latency_ns: Nanos,
    pub cores: u32,
    pub registry_rate: f64,
    /// From a request to the first byte.
    pub registry_latency_ns: Nanos,
    pub registry_requests_per_second: f64,
    /// Of layers, by one VM.
    pub unpack_rate: f64,
    /// Before the container of a start that reads blocks.
    pub prepare_ns: Spread,
    /// The container itself, without its reads.
    pub run_ns: Spread,
    /// Decoding and handing over one block.
    pub read_ns: Nanos,
    /// Writing or reading one block in the cache.
    pub disk_ns: Nanos,
    /// What our cores' world takes; the fields above say the same to rivals.
    #[serde(skip)]
    pub ours: simulate::Costs,
    /// Of DADI's root, for each VM that joins.
    pub join_ns: Nanos,
}

impl Costs {
    /// VMs of 2 vCPU and 1 Gbit/s in 2021. Known are link, images and what a start reads; the others are fitted on as few
    /// points as there are constants, and the rest of the points tests them.
    pub fn paper() -> Self {
        Self {
            name: "the paper's VMs",
            // The paper counts 1 Gbit/s as 128 MB/s.
            link: 128_000_000,
            latency_ns: MILLISECOND / 4,
            // Eight containers on one VM start in 1.13 times the time of one (figure 18): starts wait, they do not compute.
            cores: 64,
            // 128 pulls of 758 MB in 83 s (figure 14), of which the last layers take 17 s to unpack.
            registry_rate: 1.5e9,
            registry_latency_ns: 10 * MILLISECOND,
            // 128 containers that read 224 blocks each in 29 s (figure 14, on-demand).
            registry_requests_per_second: 1000.0,
            // Eight pulls of 758 MB in 69 s each, at a registry that is not busy with eight (figure 14).
            unpack_rate: 11.3e6,
            // The first three stages of figure 14(b): 1.71 s.
            prepare_ns: 1610 * MILLISECOND..=1810 * MILLISECOND,
            // So that eight starts of the published system take 5.8 s (figure 14).
            run_ns: 300 * MILLISECOND..=1000 * MILLISECOND,
            read_ns: 5 * MILLISECOND / 2,
            disk_ns: MILLISECOND / 2,
            // The first stage grows from 2.35 s to 9.2 s, on average, between 8 and 128 VMs (figure 14).
            join_ns: 114 * MILLISECOND,
            ours: simulate::Costs {
                name: "the paper's VMs".into(),
                agent: AgentCosts { keep_block_ms: Quantiles::One(2.5), ..AgentCosts::default() },
                container: ContainerCosts {
                    mount_wait_ms: Quantiles::Many(vec![1610.0, 1810.0]),
                    run_wait_ms: Quantiles::Many(vec![300.0, 1000.0]),
                    ..ContainerCosts::default()
                },
                // Not known. 2,500 orders take 2.5 s of the 3.3 s between the first and the last start of figure 17.
                manager: ManagerCosts { order_ms: Quantiles::One(1.0), ..ManagerCosts::default() },
            },
        }
    }

    /// What is written next to a cost when a report is to say where it is from.
    pub fn explanation(&self) -> &'static str {
        "Known from the paper: links, images, what a start reads, the local stages. Fitted, each on the one point that it is \
         named after: the registry's rate (128 pulls), its requests a second (128 lazy starts), the unpacking (8 pulls), the \
         container's own time (8 starts of FaaSNet), the time of DADI's root for a \
         join (its first stage at 128). All other points are predictions. Taken, for lack of a point: the registry answers after 10 ms whoever asks, an order takes the manager 1 ms, VMs do not differ but in their container's time."
    }

    pub fn rival(&self, image: &Image, vms: usize, seed: u64) -> rivals::Setup {
        rivals::Setup {
            vms,
            uplink: self.link as f64,
            downlink: self.link as f64,
            cores: f64::from(self.cores),
            latency: self.latency_ns,
            registry: rivals::Registry {
                rate: self.registry_rate,
                rate_per_vm: self.link as f64,
                latency: self.registry_latency_ns,
                requests_per_second: self.registry_requests_per_second,
            },
            image: rivals::Image {
                bytes: image.pulled_bytes,
                layers: image.layers,
                read_blocks: image.read_blocks,
                block_bytes: f64::from(image.block_bytes),
            },
            local: rivals::Local {
                unpack_rate: self.unpack_rate,
                prepare: self.prepare_ns.clone(),
                run: self.run_ns.clone(),
                read: self.read_ns,
            },
            seed,
        }
    }
}

/// The burst of the goals, fixed in a file, and what was measured.
pub fn headline() -> anyhow::Result<(ScenarioFile, simulate::Costs)> {
    let scenario = toml::from_str(include_str!("../../scenarios/headline.toml"))
        .context("in scenarios/headline.toml")?;
    let costs =
        toml::from_str(include_str!("../../costs/measured.toml")).context("in costs/measured.toml")?;
    Ok((scenario, costs))
}

/// As this repository measured them: `costs/measured.toml`, with the registry of the headline scenario.
pub fn measured() -> anyhow::Result<Costs> {
    let (ScenarioFile { network, vm, .. }, ours) = headline()?;
    let simulate::Costs { agent, container, manager, .. } = &ours;
    let nanos = |ms: f64| (ms * MILLISECOND as f64) as Nanos;
    let sum = |all: &[&Quantiles]| -> Spread {
        let ends: Vec<(f64, f64)> = all.iter().map(|quantiles| ends(quantiles)).collect();
        nanos(ends.iter().map(|(least, _)| least).sum())..=nanos(ends.iter().map(|(_, most)| most).sum())
    };
    let middle = |all: &[&Quantiles]| {
        let ends = sum(all);
        (ends.start() + ends.end()) / 2
    };
    Ok(Costs {
        name: "our measured costs",
        link: GIGABIT,
        latency_ns: nanos(network.round_trip_ms) / 2,
        cores: vm.cores,
        registry_rate: network.registry_mbit as f64 * 125_000.0,
        registry_latency_ns: nanos(network.registry_latency_ms),
        registry_requests_per_second: network.registry_requests_per_s.max(1) as f64,
        // `compare`: containerd brings 299 MB of layers into place in 14.2 s.
        unpack_rate: 21e6,
        prepare_ns: sum(&[&container.mount_ms, &container.mount_wait_ms]),
        run_ns: sum(&[
            &container.run_ms,
            &container.run_wait_ms,
            &container.application_ms,
            &container.probe_ms,
        ]),
        // A block has half a MiB.
        read_ns: middle(&[&agent.receive_block_ms, &agent.keep_block_ms])
            + middle(&[&agent.receive_mib_ms, &agent.keep_mib_ms]) / 2,
        disk_ns: 0,
        join_ns: middle(&[&manager.message_ms, &manager.order_ms]),
        ours,
    })
}

/// The least and the most, in milliseconds.
fn ends(quantiles: &Quantiles) -> (f64, f64) {
    match quantiles {
        Quantiles::None => (0.0, 0.0),
        Quantiles::One(value) => (*value, *value),
        Quantiles::Many(values) => {
            (values.first().copied().unwrap_or_default(), values.last().copied().unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_the_same_for_rivals_as_for_ours() {
        let costs = measured().expect("the files of the repository are well-formed");
        let of = &costs.ours.container;
        let least =
            ends(&of.run_ms).0 + ends(&of.run_wait_ms).0 + ends(&of.application_ms).0 + ends(&of.probe_ms).0;
        assert_eq!(*costs.run_ns.start(), (least * MILLISECOND as f64) as Nanos);
        let keep = ends(&costs.ours.agent.keep_mib_ms).1;
        assert!(costs.read_ns as f64 / MILLISECOND as f64 > keep / 4.0 && costs.join_ns > 0);
    }
}
