//! The faults: who is hit, what is done to it, and what may become of it.

use super::burst::{Burst, Member};
use crate::rig::{split_mix, wait_until};
use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long the root is stopped: longer than `manager.lease_ms`.
const PAUSE: Duration = Duration::from_secs(5);
/// Until the manager gives up a silent VM, and until one that spoke again is up.
const NOTICED: Duration = Duration::from_secs(60);
/// Starts that are acknowledged while the manager is about to be killed; more are not asked for.
const ACKNOWLEDGED_MIN: usize = 2;
const ACKNOWLEDGED_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// No fault: what the burst alone does to reads
    Nothing,
    /// kill -9 of the agent of a VM that has a parent and a running child; it stays away
    KillInner,
    /// kill -9 of the agent of the root; it stays away
    KillRoot,
    /// kill -9 of the agent of the root, which is started again at once
    RestartRoot,
    /// kill -9 of half of the agents, wherever they are; they stay away
    KillHalf,
    /// kill -9 of the manager while it acknowledges starts; it is started again at once
    KillManager,
    /// The same, and once more as soon as the new manager is ready
    KillManagerTwice,
    /// kill -9 of the registry, which is started again at once
    KillRegistry,
    /// Every process of a VM with a parent and a running child ends, and its link is dead
    PowerCut,
    /// SIGSTOP of the root's agent for 5 s
    PauseRoot,
    /// A parent and its running child do not reach each other; both reach everybody else
    Partition,
    /// SIGSTOP of the agent of a VM with a running child until the manager gives it up, then SIGCONT
    Return,
}

/// Whom a fault has hit.
#[derive(Debug, Clone, Default)]
pub(super) struct Harm {
    /// VMs whose agent is gone. Their starts may end.
    pub lost: BTreeSet<String>,
    /// VMs of `lost` whose containers are gone too.
    pub dark: BTreeSet<String>,
    /// VMs whose agent was away for a while. Their starts may end, and their reads wait meanwhile.
    pub absent: BTreeSet<String>,
    /// All that was hit, for people.
    pub victims: Vec<String>,
    /// What is to be healed in the end.
    pub partition: Option<(String, String)>,
}

impl Case {
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// As the command line writes it.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no case is hidden").get_name().to_owned()
    }

    pub(super) fn hits_manager(self) -> bool {
        matches!(self, Self::KillManager | Self::KillManagerTwice)
    }

    /// Does it; what goes away only for a while is back when this returns.
    pub(super) fn strike(self, burst: &mut Burst, seed: u64) -> anyhow::Result<Harm> {
        let mut choice = Choice(seed);
        match self {
            Self::Nothing => Ok(Harm::default()),
            Self::KillInner => kill(burst, [choice.inner(burst)?.vm].into()),
            Self::KillRoot => kill(burst, [root(burst)?.vm].into()),
            Self::KillHalf => {
                let vms = burst.vms();
                kill(burst, choice.some(&vms, vms.len() / 2))
            }
            Self::RestartRoot => {
                let vm = root(burst)?.vm;
                burst.cluster.kill_agent(&vm)?;
                burst.cluster.start_agent(&vm)?;
                Ok(Harm::absence(vm))
            }
            Self::KillManager => kill_manager(burst, 1),
            Self::KillManagerTwice => kill_manager(burst, 2),
            Self::KillRegistry => {
                burst.cluster.registry.kill()?;
                burst.cluster.registry.start_again()?;
                Ok(Harm { victims: vec!["registry".to_owned()], ..Harm::default() })
            }
            Self::PowerCut => {
                let vm = choice.inner(burst)?.vm;
                burst.cluster.cut_power(&vm)?;
                let (lost, dark) = ([vm.clone()].into(), [vm.clone()].into());
                Ok(Harm { lost, dark, victims: vec![vm], ..Harm::default() })
            }
            Self::PauseRoot => {
                let vm = root(burst)?.vm;
                pause(burst, &vm, |_| {
                    let begin = Instant::now();
                    wait_until("the pause", 2 * PAUSE, || Ok((begin.elapsed() >= PAUSE).then_some(())))
                })?;
                Ok(Harm::absence(vm))
            }
            Self::Return => {
                let vm = choice.inner(burst)?.vm;
                pause(burst, &vm, |burst| burst.wait_for_vm(&vm, "lost", NOTICED))?;
                burst.wait_for_vm(&vm, "up", NOTICED)?;
                Ok(Harm::absence(vm))
            }
            Self::Partition => {
                let child = choice.running_child(burst)?;
                let parent = child.parent.context("a child has a parent")?;
                burst.cluster.bed.partition(&parent, &child.vm)?;
                let victims = vec![format!("{parent} | {}", child.vm)];
                Ok(Harm { victims, partition: Some((parent, child.vm)), ..Harm::default() })
            }
        }
    }
}

impl Harm {
    fn absence(vm: String) -> Self {
        Self { absent: [vm.clone()].into(), victims: vec![vm], ..Self::default() }
    }
}

fn kill(burst: &mut Burst, vms: BTreeSet<String>) -> anyhow::Result<Harm> {
    for vm in &vms {
        burst.cluster.kill_agent(vm)?;
    }
    Ok(Harm { victims: vms.iter().cloned().collect(), lost: vms, ..Harm::default() })
}

fn pause(
    burst: &Burst,
    vm: &str,
    meanwhile: impl FnOnce(&Burst) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    burst.cluster.pause_agent(vm)?;
    let waited = meanwhile(burst);
    burst.cluster.resume_agent(vm)?;
    waited
}

/// Kills the manager while somebody asks it for starts: the last one is answered or not, and what is
/// answered must stay true.
fn kill_manager(burst: &mut Burst, times: usize) -> anyhow::Result<Harm> {
    let acknowledged = Mutex::new(BTreeSet::new());
    let known = || acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
    let api = burst.cluster.api.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while known().len() < ACKNOWLEDGED_MAX {
                let Ok(starts) = Burst::acknowledge(&api) else { return };
                known().extend(starts);
            }
        });
        wait_until("starts to be acknowledged", NOTICED, || {
            Ok((known().len() >= ACKNOWLEDGED_MIN).then_some(()))
        })?;
        burst.cluster.kill_manager()
    })?;
    for _ in 1..times {
        burst.cluster.start_manager()?;
        burst.cluster.kill_manager()?;
    }
    burst.cluster.start_manager()?;
    burst.acknowledged.extend(acknowledged.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(Harm { victims: vec![format!("manager, {times} x")], ..Harm::default() })
}

fn root(burst: &Burst) -> anyhow::Result<Member> {
    let members = burst.members()?;
    members.into_iter().find(|member| member.parent.is_none()).context("the tree has no root")
}

/// Victims from a seed.
struct Choice(u64);

impl Choice {
    fn one<T>(&mut self, mut from: Vec<T>) -> Option<T> {
        let place = split_mix(&mut self.0) as usize;
        (!from.is_empty()).then(|| from.swap_remove(place % from.len()))
    }

    fn some(&mut self, from: &[String], count: usize) -> BTreeSet<String> {
        let mut left = from.to_vec();
        let taken = (0..count).map_while(|_| {
            let place = split_mix(&mut self.0) as usize;
            (!left.is_empty()).then(|| left.swap_remove(place % left.len()))
        });
        taken.collect()
    }

    /// A VM with a parent and a child whose container runs: a reader feels it.
    fn inner(&mut self, burst: &Burst) -> anyhow::Result<Member> {
        let running = burst.vms_with("ready")?;
        let is_inner = |member: &Member| {
            member.parent.is_some() && member.children.iter().any(|child| running.contains(child))
        };
        let inner = burst.members()?.into_iter().filter(is_inner).collect();
        self.one(inner).context("no inner VM has a running child; a tree of 8 VMs has")
    }

    fn running_child(&mut self, burst: &Burst) -> anyhow::Result<Member> {
        let running = burst.vms_with("ready")?;
        let is_child = |member: &Member| member.parent.is_some() && running.contains(&member.vm);
        let children = burst.members()?.into_iter().filter(is_child).collect();
        self.one(children).context("no VM with a parent has a running container")
    }
}
