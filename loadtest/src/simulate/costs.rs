//! What things cost: CPU and waiting, as measured, read from a file.

use super::{model::MILLISECOND, queue::Nanos};
use anyhow::{Context, ensure};
use rand::{RngExt, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A distribution by its quantiles at equal distances, from the least to the most; a single number is always that.
/// In the unit that the name of the field ends with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantiles {
    #[default]
    None,
    One(f64),
    Many(Vec<f64>),
}

impl Quantiles {
    /// One value, drawn linearly between the quantiles.
    pub fn draw(&self, rng: &mut StdRng) -> f64 {
        match self {
            Self::None => 0.0,
            Self::One(value) => *value,
            Self::Many(values) => {
                let place = rng.random::<f64>() * (values.len() - 1) as f64;
                let low = values[place as usize];
                let high = values.get(place as usize + 1).copied().unwrap_or(low);
                low + (high - low) * place.fract()
            }
        }
    }

    /// One value of a field in milliseconds.
    pub(super) fn draw_ms(&self, rng: &mut StdRng) -> Nanos {
        (self.draw(rng) * MILLISECOND as f64) as Nanos
    }

    fn check(&self, name: &str) -> anyhow::Result<()> {
        let values = match self {
            Self::None => &[][..],
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => {
                ensure!(!values.is_empty(), "{name} has no values; write a number or a list of quantiles");
                values
            }
        };
        let is_sound = values.iter().all(|value| (0.0..=3_600_000.0).contains(value));
        ensure!(is_sound && values.is_sorted(), "{name}: quantiles must be rising numbers from 0 to 3600000");
        Ok(())
    }
}

/// What VMs and the manager pay. Everything is 0 unless a file says more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// Where they come from, for reports.
    pub name: String,
    pub agent: AgentCosts,
    pub container: ContainerCosts,
    pub manager: ManagerCosts,
}

/// CPU of an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentCosts {
    /// Of whoever opens a connection, for its part of a TLS handshake in which both show certificates.
    pub handshake_client_ms: Quantiles,
    pub handshake_server_ms: Quantiles,
    /// Taking an order to start: places, records, checks.
    pub order_ms: Quantiles,
    /// A block that comes in, until it may be passed on: decryption, reading and hash.
    pub receive_block_ms: Quantiles,
    pub receive_mib_ms: Quantiles,
    /// From there until containers read it: decoding and writing. The second for each MiB of plain bytes.
    pub keep_block_ms: Quantiles,
    pub keep_mib_ms: Quantiles,
    /// A block that goes out to a child: reading, encryption, writing to the socket.
    pub send_block_ms: Quantiles,
    pub send_mib_ms: Quantiles,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerCosts {
    /// CPU of mounting an image, and time that passes beside it.
    pub mount_ms: Quantiles,
    pub mount_wait_ms: Quantiles,
    /// From the order to run a container to its first instruction: CPU, and time beside it.
    pub run_ms: Quantiles,
    pub run_wait_ms: Quantiles,
    /// CPU of what runs in it until it answers, evenly between the blocks that it reads.
    pub application_ms: Quantiles,
    /// One probe.
    pub probe_ms: Quantiles,
}

/// Work of the manager, one thing after the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManagerCosts {
    /// A message of an agent that it takes.
    pub message_ms: Quantiles,
    /// An order that it sends.
    pub order_ms: Quantiles,
    /// A group commit of the metadata store.
    pub commit_ms: Quantiles,
}

impl Costs {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the costs {}", path.display()))?;
        let costs: Self =
            toml::from_str(&text).with_context(|| format!("in the costs {}", path.display()))?;
        costs.check().with_context(|| format!("in the costs {}", path.display()))?;
        Ok(costs)
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Self { name: _, agent, container, manager } = self;
        let all = [
            ("agent.handshake_client_ms", &agent.handshake_client_ms),
            ("agent.handshake_server_ms", &agent.handshake_server_ms),
            ("agent.order_ms", &agent.order_ms),
            ("agent.receive_block_ms", &agent.receive_block_ms),
            ("agent.receive_mib_ms", &agent.receive_mib_ms),
            ("agent.keep_block_ms", &agent.keep_block_ms),
            ("agent.keep_mib_ms", &agent.keep_mib_ms),
            ("agent.send_block_ms", &agent.send_block_ms),
            ("agent.send_mib_ms", &agent.send_mib_ms),
            ("container.mount_ms", &container.mount_ms),
            ("container.mount_wait_ms", &container.mount_wait_ms),
            ("container.run_ms", &container.run_ms),
            ("container.run_wait_ms", &container.run_wait_ms),
            ("container.application_ms", &container.application_ms),
            ("container.probe_ms", &container.probe_ms),
            ("manager.message_ms", &manager.message_ms),
            ("manager.order_ms", &manager.order_ms),
            ("manager.commit_ms", &manager.commit_ms),
        ];
        all.into_iter().try_for_each(|(name, quantiles)| quantiles.check(name))
    }
}

/// What a block of so many bytes costs, with a part for each block and one for each MiB.
pub(super) fn block_cost(block: &Quantiles, mib: &Quantiles, bytes: u64, rng: &mut StdRng) -> Nanos {
    let length = mib.draw(rng) * bytes as f64 / f64::from(1 << 20);
    ((block.draw(rng) + length) * MILLISECOND as f64) as Nanos
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn values_lie_between_their_quantiles_and_half_of_them_below_the_middle_one() {
        let quantiles = Quantiles::Many(vec![1.0, 2.0, 10.0]);
        let mut rng = StdRng::seed_from_u64(1);
        let drawn: Vec<f64> = (0..1000).map(|_| quantiles.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|value| (1.0..=10.0).contains(value)));
        let low = drawn.iter().filter(|value| **value < 2.0).count();
        assert!((450..550).contains(&low), "{low}");
    }

    #[test]
    fn costs_that_make_no_sense_are_refused_with_their_name() {
        let read = |text: &str| {
            let costs: Costs = toml::from_str(text).expect("TOML");
            costs.check().map_err(|error| error.to_string())
        };
        assert!(read("[agent]\norder_ms = 1\nkeep_mib_ms = [1, 2.5]").is_ok());
        for wrong in ["[]", "[2, 1]", "-1", "[nan]"] {
            let error = read(&format!("[container]\nrun_ms = {wrong}")).unwrap_err();
            assert!(error.contains("container.run_ms"), "{error}");
        }
    }
}
