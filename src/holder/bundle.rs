//! The OCI runtime configuration of a container: what the image and the function say, inside the
//! usual confinement of Docker.
//!
//! One difference: containers share the VM's network, so `CAP_NET_RAW` is withheld; with it a
//! container could listen to the traffic of the agent and of its neighbours.

use super::{cgroup::Cgroups, seccomp};
use faasnet_actors::wire::holder::{CODE_PATH, Run};
use oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
        LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
        LinuxPidsBuilder, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType,
        ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder, get_default_maskedpaths,
        get_default_mounts, get_default_readonly_paths,
    },
};
use rustix::process::{Resource, getrlimit};
use std::path::Path;

/// Docker's default set (moby `oci/caps/defaults.go`) without `CAP_NET_RAW`.
const CAPABILITIES: [(&str, Capability); 13] = [
    ("CAP_CHOWN", Capability::Chown),
    ("CAP_DAC_OVERRIDE", Capability::DacOverride),
    ("CAP_FSETID", Capability::Fsetid),
    ("CAP_FOWNER", Capability::Fowner),
    ("CAP_MKNOD", Capability::Mknod),
    ("CAP_SETGID", Capability::Setgid),
    ("CAP_SETUID", Capability::Setuid),
    ("CAP_SETFCAP", Capability::Setfcap),
    ("CAP_SETPCAP", Capability::Setpcap),
    ("CAP_NET_BIND_SERVICE", Capability::NetBindService),
    ("CAP_SYS_CHROOT", Capability::SysChroot),
    ("CAP_KILL", Capability::Kill),
    ("CAP_AUDIT_WRITE", Capability::AuditWrite),
];
/// Open files of a container's process, if the holder itself may have as many; bounds what one
/// container takes of the machine's table.
const OPEN_FILES_MAX: u64 = 65_536;
/// What Docker gives to an image that names no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the image names no command to run; give it an ENTRYPOINT or CMD, or the function a command")]
    NoCommand,
    #[error("the working directory {0:?} is not an absolute path")]
    Cwd(String),
    #[error("the environment variable {0:?} has a name or value that cannot be passed on")]
    Environment(String),
    #[error("an argument of the command contains a NUL byte")]
    Argument,
    #[error("the memory limit is too large")]
    Memory,
    #[error("the runtime configuration cannot be made: {0}")]
    Spec(#[from] OciSpecError),
}

/// Describes the container of `run` with its root file system at `folder/rootfs`. `code` is the file system
/// of its code, and `rootfs` has a folder for it.
pub fn spec(run: &Run, folder: &Path, code: Option<&Path>, cgroups: &Cgroups) -> Result<Spec, BundleError> {
    let id = run.start.as_str();
    let memory_bytes = i64::try_from(run.memory_bytes).map_err(|_| BundleError::Memory)?;
    let mut memory = LinuxMemoryBuilder::default().limit(memory_bytes);
    if cgroups.limits_swap() {
        memory = memory.swap(memory_bytes);
    }
    let devices = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut resources = LinuxResourcesBuilder::default()
        .memory(memory.build()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(run.pids_max)).build()?)
        .devices(vec![devices]);
    if cgroups.has("cpu") {
        resources = resources.cpu(LinuxCpuBuilder::default().shares(cpu_shares(run.cpu_millis)).build()?);
    }
    let names: Vec<&str> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    let mut masked = get_default_maskedpaths();
    masked.extend(["/sys/devices/virtual/powercap".to_owned(), "/proc/interrupts".to_owned()]);
    let linux = LinuxBuilder::default()
        .cgroups_path(cgroups.path(id))
        .resources(resources.build()?)
        .namespaces(namespaces()?)
        .seccomp(seccomp::profile(&names)?)
        .masked_paths(masked)
        .readonly_paths(get_default_readonly_paths())
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path("rootfs").readonly(false).build()?)
        .hostname(id.chars().take(12).collect::<String>())
        .mounts(mounts(folder, code)?)
        .process(process(run)?)
        .linux(linux)
        .build()?;
    Ok(spec)
}

/// A core is 1024 shares, as everywhere; fewer than 2 the kernel does not know.
fn cpu_shares(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) * 1024 / 1000).max(2)
}

fn namespaces() -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Pid, Uts};
    [Pid, Ipc, Uts, Mount, Cgroup]
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .into_iter()
        .collect()
}

fn mounts(folder: &Path, code: Option<&Path>) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = get_default_mounts();
    for name in ["hosts", "resolv.conf"] {
        let options = ["bind", "ro", "nosuid", "nodev", "noexec"];
        mounts.push(bind(&folder.join(name), &Path::new("/etc").join(name), &options)?);
    }
    if let Some(code) = code {
        // The last, so that nothing of the system comes to lie above or below it.
        mounts.push(bind(code, Path::new(CODE_PATH), &["bind", "ro", "nosuid", "nodev"])?);
    }
    Ok(mounts)
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(destination).typ("bind").source(source).options(options).build()
}

fn process(run: &Run) -> Result<oci_spec::runtime::Process, BundleError> {
    let config = &run.runtime;
    let of_image = || config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    let args: Vec<String> = run.command.clone().unwrap_or_else(of_image);
    if args.first().is_none_or(String::is_empty) {
        return Err(BundleError::NoCommand);
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(BundleError::Argument);
    }
    // As in AWS Lambda, so that a command may name files of the package by their names there.
    let cwd = match (&run.code, config.cwd.as_str()) {
        (Some(_), _) => CODE_PATH,
        (None, "") => "/",
        (None, cwd) => cwd,
    };
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(BundleError::Cwd(cwd.to_owned()));
    }
    let set: Capabilities = CAPABILITIES.iter().map(|(_, capability)| *capability).collect();
    // Inheritable and ambient stay empty: a process that is not root gets none, as in Docker.
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    let user = UserBuilder::default()
        .uid(config.uid)
        .gid(config.gid)
        .additional_gids(config.additional_gids.clone())
        .build()?;
    // Raising it beyond our own needs a capability that root of a confined VM may lack.
    let own_max = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES_MAX);
    let open_files_max = own_max.min(OPEN_FILES_MAX);
    let open_files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .hard(open_files_max)
        .soft(open_files_max)
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(environment(run)?)
        .cwd(cwd)
        .capabilities(capabilities)
        .rlimits(vec![open_files])
        .no_new_privileges(true)
        .build()?;
    Ok(process)
}

/// The image's variables, then the function's, then what the contract with the container promises.
fn environment(run: &Run) -> Result<Vec<String>, BundleError> {
    let mut merged = run.runtime.env.clone();
    merged.extend(run.env.clone());
    merged.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    merged.insert("PORT".to_owned(), run.port.to_string());
    let is_usable =
        |name: &str, value: &str| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    if let Some((name, _)) = merged.iter().find(|(name, value)| !is_usable(name, value)) {
        return Err(BundleError::Environment(name.chars().take(80).collect()));
    }
    Ok(merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}
