//! Unpacked Debian packages: real programs for real images, from the machine's own package source.

use super::run;
use anyhow::{Context, ensure};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// These packages and all they depend on, as names.
pub fn closure(packages: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let text =
        with_lists(|| run(apt_get().args(["--no-install-recommends", "-s", "install"]).args(packages)))?;
    let name = |line: &str| line.strip_prefix("Inst ")?.split(' ').next().map(str::to_owned);
    let names: BTreeSet<String> = text.lines().filter_map(name).collect();
    ensure!(!names.is_empty(), "apt-get named no package for {packages:?}");
    Ok(names)
}

/// Downloads what is not in `cache` yet and unpacks all into `rootfs`.
pub fn unpack(packages: &BTreeSet<String>, cache: &Path, rootfs: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(cache)?;
    let have = archives(cache)?;
    let is_there = |package: &&String| have.keys().any(|name| name == *package);
    let missing: Vec<&String> = packages.iter().filter(|package| !is_there(package)).collect();
    if !missing.is_empty() {
        download(&missing, cache)?;
    }
    let have = archives(cache)?;
    for package in packages {
        let archive = have.get(package).with_context(|| format!("apt-get brought no {package}"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(rootfs))?;
    }
    Ok(())
}

fn download(packages: &[&String], cache: &Path) -> anyhow::Result<()> {
    with_lists(|| {
        let mut apt = apt_get();
        run(apt.args(["-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(cache))
    })
    .context("download Debian packages (is there a network?)")?;
    Ok(())
}

/// With an empty status file: apt thinks that nothing is installed, names everything, and prefers no
/// package from elsewhere because this machine has it.
fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1"]);
    apt
}

/// A machine whose package lists are old or missing is brought up to date once.
fn with_lists<T>(attempt: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    attempt().or_else(|_| {
        run(Command::new("apt-get").arg("update"))?;
        attempt()
    })
}

/// Package name to archive: archives are named NAME_VERSION_ARCHITECTURE.deb.
fn archives(cache: &Path) -> anyhow::Result<std::collections::BTreeMap<String, PathBuf>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let (Some((package, _)), true) = (name.split_once('_'), name.ends_with(".deb")) {
            found.insert(package.to_owned(), path.clone());
        }
    }
    Ok(found)
}
