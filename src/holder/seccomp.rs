//! Which system calls a container may make: the default profile of Docker.
//!
//! `seccomp.json` is `profiles/seccomp/default.json` of github.com/moby/moby, version 20.10.24
//! (Apache-2.0), unchanged. Its rules are conditional on architecture, capabilities and kernel; what
//! remains for this machine and our capabilities goes to the runtime.

use oci_spec::{
    OciSpecError,
    runtime::{
        Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSyscallBuilder,
    },
};
use serde::Deserialize;

const PROFILE: &str = include_str!("seccomp.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    arch_map: Vec<ArchMap>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Vec<Arch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Condition,
    excludes: Condition,
}

/// `minKernel` is not looked at: the highest asked for is 4.8, and EROFS from a file needs 6.12.
#[derive(Deserialize)]
struct Condition {
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    caps: Vec<String>,
}

/// The profile for this machine's architecture and a container with these capabilities (`CAP_...`).
pub fn profile(capabilities: &[&str]) -> Result<LinuxSeccomp, OciSpecError> {
    let profile: Profile = serde_json::from_str(PROFILE)?;
    let (name, arch) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", Arch::ScmpArchX86_64),
        "aarch64" => ("arm64", Arch::ScmpArchAarch64),
        other => return Err(OciSpecError::Other(format!("no seccomp profile for {other}"))),
    };
    let mut architectures = vec![arch];
    for map in profile.arch_map.into_iter().filter(|map| map.architecture == arch) {
        architectures.extend(map.sub_architectures);
    }
    let has = |wanted: &String| capabilities.contains(&wanted.as_str());
    let applies = |rule: &Rule| {
        let arch_included = rule.includes.arches.is_empty() || rule.includes.arches.iter().any(|a| a == name);
        let arch_excluded = rule.excludes.arches.iter().any(|a| a == name);
        arch_included
            && !arch_excluded
            && rule.includes.caps.iter().all(has)
            && !rule.excludes.caps.iter().any(has)
    };
    let mut syscalls = Vec::new();
    for rule in profile.syscalls.into_iter().filter(applies) {
        let mut syscall = LinuxSyscallBuilder::default().names(rule.names).action(rule.action);
        if let Some(errno) = rule.errno_ret {
            syscall = syscall.errno_ret(errno);
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            syscall = syscall.args(args);
        }
        syscalls.push(syscall.build()?);
    }
    LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .architectures(architectures)
        .syscalls(syscalls)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[&str]) -> Vec<String> {
        let profile = profile(capabilities).expect("profile");
        let rules = profile.syscalls().as_ref().expect("rules").iter();
        let allow = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow);
        allow.flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn rules_depend_on_capabilities() {
        let has = |list: &[String], name: &str| list.iter().any(|each| each == name);
        let few = allowed(&["CAP_CHOWN"]);
        assert!(has(&few, "read") && !has(&few, "mount") && !has(&few, "chroot") && !has(&few, "bpf"));
        assert!(has(&allowed(&["CAP_SYS_CHROOT"]), "chroot"));
    }
}
