//! What things cost: on the paper's VMs, and as measured on ours.

use super::image::Image;
use crate::{
    rivals,
    simulate::{GIGABIT, MILLISECOND, Nanos, SECOND, Spread},
};
use serde::Serialize;

/// The costs of one kind of VMs, registry and manager. Rates are bytes a second.
#[derive(Debug, Clone, Serialize)]
pub struct Costs {
    pub name: &'static str,
    pub link: u64,
    /// One way.
    pub latency_ns: Nanos,
    pub cores: f64,
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
    /// Of our manager, for each order.
    pub order_ns: Nanos,
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
            cores: 64.0,
            // 128 pulls of 758 MB in 81 s (figure 14).
            registry_rate: 1.2e9,
            registry_latency_ns: 10 * MILLISECOND,
            // 128 containers that read 224 blocks each in 29 s (figure 14, on-demand).
            registry_requests_per_second: 1000.0,
            // Eight pulls of 758 MB in 69 s each, at a registry that is not busy with eight (figure 14).
            unpack_rate: 11.3e6,
            // The first three stages of figure 14(b): 1.71 s.
            prepare_ns: 1610 * MILLISECOND..=1810 * MILLISECOND,
            // So that eight starts of the published system take 5.8 s (figure 14) and spread as in figure 15.
            run_ns: 300 * MILLISECOND..=1000 * MILLISECOND,
            read_ns: 5 * MILLISECOND / 2,
            disk_ns: MILLISECOND / 2,
            // The last of 2,500 starts on 1,000 VMs 3.3 s after the first (figure 17), of 128 after 1.8 s (figure 15).
            order_ns: MILLISECOND,
            // The first stage grows from 2.35 s to 9.2 s, on average, between 8 and 128 VMs (figure 14).
            join_ns: 114 * MILLISECOND,
        }
    }

    /// What is written next to a cost when a report is to say where it is from.
    pub fn explanation(&self) -> &'static str {
        "Known from the paper: links, images, what a start reads, the local stages. Fitted, each on the one point that it is \
         named after: the registry's rate (128 pulls), its requests a second (128 lazy starts), the unpacking (8 pulls), the \
         container's own time (8 starts of FaaSNet), the manager's time for an order (figure 17), the time of DADI's root for a \
         join (its first stage at 128). All other points are predictions."
    }

    pub fn rival(&self, image: &Image, vms: usize, seed: u64) -> rivals::Setup {
        rivals::Setup {
            vms,
            uplink: self.link as f64,
            downlink: self.link as f64,
            cores: self.cores,
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

/// As this repository measured them: README, "Measured".
pub fn measured() -> Costs {
    Costs {
        name: "our measured costs",
        link: GIGABIT,
        latency_ns: MILLISECOND / 4,
        cores: 2.0,
        registry_rate: 1.2e9,
        registry_latency_ns: 10 * MILLISECOND,
        registry_requests_per_second: 1000.0,
        // containerd brings 299 MB of layers into place in 14.2 s.
        unpack_rate: 21e6,
        prepare_ns: 9 * MILLISECOND..=12 * MILLISECOND,
        // A warm start of the Node.js service takes 0.48 s.
        run_ns: 430 * MILLISECOND..=530 * MILLISECOND,
        read_ns: 5 * MILLISECOND / 2,
        disk_ns: MILLISECOND / 2,
        order_ns: SECOND / 20_000,
        join_ns: SECOND / 20_000,
    }
}
