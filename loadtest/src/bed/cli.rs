//! `faasnet-loadtest bed ...`: a bed by hand.

use super::{Bed, BedSpec, BedState, HostSpec, Rate, list, load, remove};
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum BedVerb {
    /// Make a bed that stands until `bed down`
    Up {
        /// Hosts; they are named vm-1, vm-2, ...
        #[arg(long, default_value_t = 8)]
        hosts: usize,
        /// Rate of each link and direction, for example 1gbit; without it links are not shaped
        #[arg(long)]
        rate: Option<Rate>,
    },
    /// Take a bed down, with every process in it; without a name all whose maker is gone or was `bed up`
    Down { id: Option<String> },
    /// Show the beds of this machine and the bytes their links carried
    Status,
    /// Run a command in the network of one host
    Exec {
        id: String,
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

impl BedVerb {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up { hosts, rate } => up(hosts, rate)?,
            Self::Down { id: Some(id) } => remove(&id)?,
            Self::Down { id: None } => down_unowned()?,
            Self::Status => list()?.iter().try_for_each(|id| status(id))?,
            Self::Exec { id, host, command } => return exec(&load(&id)?, &host, &command),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn up(hosts: usize, rate: Option<Rate>) -> anyhow::Result<()> {
    let hosts = (1..=hosts).map(|number| HostSpec::new(format!("vm-{number}"), rate)).collect();
    let state = Bed::up(BedSpec { hosts })?.keep();
    println!("{}", state.id());
    Ok(())
}

fn down_unowned() -> anyhow::Result<()> {
    for id in list()? {
        let owner_lives = load(&id).is_ok_and(|state| is_running(state.owner_pid));
        if !owner_lives {
            remove(&id)?;
            println!("{id} is down");
        }
    }
    Ok(())
}

fn is_running(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

fn status(id: &str) -> anyhow::Result<()> {
    let Ok(state) = load(id) else {
        println!("{id}: no state file; `bed down {id}` removes what is left");
        return Ok(());
    };
    println!("{id}: {} hosts, made by process {}", state.spec.hosts.len(), state.owner_pid);
    for host in &state.spec.hosts {
        let (address, counters) = (state.address(&host.name)?, state.counters(&host.name)?);
        let rate = host.rate.map_or("not shaped".to_owned(), |rate| format!("{} bit/s", rate.bits_per_s()));
        let (sent, received) = (counters.sent_bytes, counters.received_bytes);
        println!("  {:<12} {address:<14} {rate:<18} sent {sent} B, received {received} B", host.name);
    }
    Ok(())
}

fn exec(state: &BedState, host: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().expect("clap demands a command");
    let status = state.command(host, program)?.args(arguments).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
