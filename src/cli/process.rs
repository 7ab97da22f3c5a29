//! The verbs that are processes of the system themselves.

use super::doctor;
use crate::{
    agent::{self, AgentOptions},
    holder::{self, HolderOptions},
    sample::{self, ServeOptions},
    settings::Settings,
    up::{self, UpOptions},
};
use clap::{Args, Subcommand};
use faasnet_actors::id::VmId;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::{ffi::OsString, path::PathBuf, process::ExitCode};

#[derive(Debug, Subcommand)]
pub enum Process {
    /// Run the whole system on this machine: a manager, some agents and a sample function
    Up(Up),
    /// Run the control plane
    Manager(Manager),
    /// Run the agent of a VM
    Agent(Agent),
    /// Hold mounts and containers; started by the agent
    #[command(hide = true)]
    Holder(Holder),
    /// Check whether this machine can run functions, and say how to mend what is missing
    Doctor,
    /// One call of the holder that may hang on its own mounts
    #[command(hide = true, name = holder::STEP_VERB)]
    HolderStep {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Serve the sample function; the entry point of its image
    #[command(hide = true)]
    SampleServe,
}

#[derive(Debug, Args)]
pub struct Up {
    /// Agents to run
    #[arg(long, default_value_t = 3, value_name = "N")]
    vms: u32,
    /// Folder for everything this run makes
    #[arg(long, default_value = "/var/lib/faasnet/up", value_name = "DIR")]
    data: PathBuf,
    /// Deploy no sample function
    #[arg(long)]
    no_sample: bool,
}

#[derive(Debug, Args)]
pub struct Manager {
    /// Data folder [default: manager.data of the settings]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    parent: Parent,
}

#[derive(Debug, Args)]
pub struct Agent {
    /// Name of this VM, unique among those of the manager
    #[arg(long, value_name = "NAME")]
    name: VmId,
    /// The manager's control listener
    #[arg(long, value_name = "HOST:PORT")]
    manager: String,
    /// Needed the first time; `faasnet vm join-token` makes one
    #[arg(long, env = "FAASNET_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join_token: Option<String>,
    /// Data folder [default: agent.data of the settings]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Take the place of the agent that runs on the data folder; containers and requests go on
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    parent: Parent,
}

#[derive(Debug, Args)]
pub struct Holder {
    /// The VM's data folder
    #[arg(long)]
    data: PathBuf,
}

#[derive(Debug, Args)]
struct Parent {
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

impl Parent {
    fn obey(&self) -> anyhow::Result<()> {
        if self.end_with_parent {
            set_parent_process_death_signal(Some(Signal::TERM))?;
        }
        Ok(())
    }
}

impl Process {
    /// Runs the process until it ends. Makes its own runtime; must be called on the main thread.
    pub fn run(
        self,
        mut settings: Settings,
        config: Option<PathBuf>,
        is_json: bool,
    ) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up(Up { vms, data, no_sample }) => {
                let options = UpOptions { vms, data, has_sample: !no_sample, json: is_json };
                actix::System::new().block_on(up::run(settings, options))
            }
            Self::Manager(Manager { data, parent }) => {
                parent.obey()?;
                settings.manager.data = data.unwrap_or(settings.manager.data);
                crate::manager::run(settings)
            }
            Self::Agent(Agent { name, manager, join_token, data, replace, parent }) => {
                parent.obey()?;
                settings.agent.data = data.unwrap_or(settings.agent.data);
                agent::run(settings, AgentOptions { name, manager, join_token, config, replace })
            }
            Self::Holder(Holder { data }) => holder::run(HolderOptions { data, settings: settings.holder }),
            Self::Doctor => return Ok(doctor::run(&settings, is_json)?),
            Self::HolderStep { .. } => unreachable!("it runs before settings are read"),
            Self::SampleServe => sample::serve(ServeOptions::from_env()?),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
