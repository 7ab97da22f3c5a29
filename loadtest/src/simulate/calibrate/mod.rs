//! What costs are on this machine: measured on the real parts, and written as a file that scenarios name.
//!
//! CPU is what the kernel counts, user and system, so that what else runs here changes it little. All is measured
//! several times over, and the cheapest round counts: others can only make things dearer. Blocks are made of this
//! machine's libraries, as images are; connections are those of agents, over loopback; containers have the bundle of an instance that
//! a real agent has started.

mod agent;
mod containers;
mod file;

use super::costs::{Costs, Quantiles};
use crate::guard::guard;
use agent::Blocks;
use anyhow::Context;
use clap::Args;
use faasnet_actors::image::BLOCK_BYTES;
use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

const ROUNDS: usize = 3;
const MIB: f64 = (1 << 20) as f64;
const MEASURED: &str = "loadtest/costs/measured.toml";

#[derive(Debug, Args)]
pub struct Calibrate {
    /// The binary to measure; build it with --release
    #[arg(long, default_value = "target/release/faasnet")]
    program: PathBuf,
    /// Folder where the images are kept from run to run
    #[arg(long, default_value = "target/rig")]
    cache: PathBuf,
    /// Costs whose other numbers are kept, with what is said of them
    #[arg(long, default_value = MEASURED)]
    base: PathBuf,
    #[arg(long, default_value = MEASURED)]
    out: PathBuf,
    /// Not in a process of its own, which takes the test bed down whatever ends this one
    #[arg(long, hide = true)]
    unguarded: bool,
}

impl Calibrate {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let program = self.program.canonicalize().with_context(|| {
            format!("there is no {}; run cargo build --release first", self.program.display())
        })?;
        let base = fs::read_to_string(&self.base);
        let base = base.with_context(|| format!("cannot read the costs {}", self.base.display()))?;
        let mut costs = Costs::read(&self.base)?;
        if !self.unguarded {
            return guard(std::env::args_os().skip(1).chain(["--unguarded".into()]));
        }
        agents(&mut costs)?;
        let [runs, waits, applications] = containers::measure(&program, &self.cache, ROUNDS)?;
        let container = &mut costs.container;
        container.run_ms = quantiles(&runs, 1.0);
        container.run_wait_ms = quantiles(&waits, 1.0);
        container.application_ms = quantiles(&applications, 1.0);
        let text = file::rewrite(&base, &costs)?;
        fs::write(&self.out, &text).with_context(|| format!("cannot write {}", self.out.display()))?;
        print!("{text}");
        Ok(ExitCode::SUCCESS)
    }
}

fn agents(costs: &mut Costs) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let blocks = Blocks::new(folder.path())?;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    let (mut sends, mut receives, mut keeps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let folder = folder.path().join(round.to_string());
        fs::create_dir(&folder)?;
        let (client, server) = agent::handshakes(&folder)?;
        clients.push(client);
        servers.push(server);
        let (sent, received) = blocks.links(&folder)?;
        receives.push(blocks.hash()?.iter().map(|hash| hash + received).collect());
        let (keep, load) = blocks.cache(&folder.join("cache"))?;
        keeps.push(keep);
        sends.push(load.iter().map(|load| load + sent).collect());
        fs::remove_dir_all(folder)?;
    }
    let stored = MIB / blocks.mean_bytes();
    let agent = &mut costs.agent;
    agent.handshake_client_ms = quantiles(&clients, 1.0);
    agent.handshake_server_ms = quantiles(&servers, 1.0);
    // All of a block is counted by its length.
    let none = || Quantiles::One(0.0);
    (agent.receive_block_ms, agent.keep_block_ms, agent.send_block_ms) = (none(), none(), none());
    agent.receive_mib_ms = quantiles(&receives, stored);
    agent.keep_mib_ms = quantiles(&keeps, MIB / f64::from(BLOCK_BYTES));
    agent.send_mib_ms = quantiles(&sends, stored);
    Ok(())
}

/// Values of each round, in milliseconds.
type Rounds = Vec<Vec<f64>>;

/// Five quantiles at equal distances of the cheapest round, times a factor.
fn quantiles(rounds: &Rounds, factor: f64) -> Quantiles {
    let sum = |values: &Vec<f64>| values.iter().sum::<f64>();
    let mut values = rounds.iter().min_by(|a, b| sum(a).total_cmp(&sum(b))).cloned().unwrap_or_default();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((values.len().saturating_sub(1) as f64 * share).round() as usize);
    let rounded = |value: &f64| (value * factor * 1e4).round() / 1e4;
    Quantiles::Many([0.0, 0.25, 0.5, 0.75, 1.0].iter().filter_map(|share| at(*share).map(rounded)).collect())
}

fn millis(length: Duration) -> f64 {
    length.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_go_from_the_least_to_the_most_of_the_cheapest_round() {
        let round = |from: u32| (from..=from + 100).rev().map(f64::from).collect();
        assert_eq!(
            quantiles(&vec![round(7), round(0)], 2.0),
            Quantiles::Many(vec![0.0, 50.0, 100.0, 150.0, 200.0])
        );
    }

    #[test]
    fn handshakes_take_cpu_of_both_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let (clients, servers) = agent::handshakes(folder.path()).expect("loopback works");
        assert!(clients.len() == servers.len() && !clients.is_empty());
        assert!(clients.iter().chain(&servers).all(|ms| *ms > 0.0), "{clients:?} {servers:?}");
    }
}
