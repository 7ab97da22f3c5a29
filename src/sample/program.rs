//! The shared libraries a program needs, and the loader that brings them together.

use anyhow::{Context, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Absolute paths of the libraries and the loader, sorted; empty for a static program.
pub fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd (package libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if [&text, &complaint]
        .iter()
        .any(|text| text.contains("statically linked") || text.contains("not a dynamic"))
    {
        return Ok(Vec::new());
    }
    ensure!(output.status.success(), "ldd {}: {}", program.display(), complaint.trim());
    paths(&text).with_context(|| format!("libraries of {}", program.display()))
}

/// Lines are `name => path (address)`, `path (address)` for the loader, or a name alone, which the kernel
/// brings itself.
fn paths(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        ensure!(!line.ends_with("not found"), "a library is missing: {line}");
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let path = place.split(" (").next().expect("a split has a first part");
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f04)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f04)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths(text).unwrap(), expected);
        assert!(paths("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn this_test_has_libraries_that_exist() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(found.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{found:?}");
        assert!(found.iter().all(|path| path.exists()), "{found:?}");
    }
}
