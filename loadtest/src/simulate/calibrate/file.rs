//! The file of costs: what was measured, and how, and what stays as it was.

use crate::simulate::costs::Costs;
use anyhow::{Context, ensure};
use std::{fs, thread};

/// What was measured, and how; everything else of a file stays as it is, with what is said of it.
const MEASURED: [(&str, &str); 11] = [
    ("handshake_client_ms", "Full handshakes of agents over loopback, with both certificates."),
    ("handshake_server_ms", "The other end of these."),
    ("receive_block_ms", "All of a block is counted by its length."),
    ("receive_mib_ms", "Frames over TLS, and BLAKE3; for each MiB of stored bytes."),
    ("keep_block_ms", "All of a block is counted by its length."),
    ("keep_mib_ms", "`Cache::keep`: decoding and writing; for each MiB of plain bytes."),
    ("send_block_ms", "All of a block is counted by its length."),
    ("send_mib_ms", "`Cache::load`, nothing from memory, and frames over TLS; for each MiB of stored bytes."),
    ("run_ms", "CPU of `runc run` with the bundle of an instance, one container at a time."),
    ("run_wait_ms", "What passes beside that, less the time in which something waited for a core."),
    (
        "application_ms",
        "CPU from there to the first answer: an interpreter, Python, that starts a small server.",
    ),
];

/// The text of a file of costs with what was measured in place of what it had, and with its origin.
pub fn rewrite(base: &str, costs: &Costs) -> anyhow::Result<String> {
    // Numbers and lists of them are written in JSON as in TOML, which has nothing for a cost without a value.
    let values = serde_json::to_value(costs)?;
    let value = |name: &str| ["agent", "container"].iter().find_map(|part| values.get(*part)?.get(name));
    let mut lines: Vec<String> = Vec::new();
    let body = base.lines().skip_while(|line| line.starts_with('#') || line.is_empty());
    for line in body {
        let name = line.split_once('=').map_or("", |(name, _)| name.trim());
        let text = match MEASURED.iter().find(|(known, _)| *known == name) {
            Some((name, how)) => {
                // What was said of the number before does not hold any more.
                while lines.pop_if(|line| line.starts_with('#')).is_some() {}
                lines.push(format!("# Measured. {how}"));
                let value = value(name).context("a cost has no value")?;
                format!("{name} = {}", value.to_string().replace(',', ", "))
            }
            None => line.to_owned(),
        };
        lines.push(text);
    }
    let text = format!("{}\n{}\n", head()?, lines.join("\n"));
    let read: Costs = toml::from_str(&text)?;
    ensure!(read == *costs, "the base must name each cost that is measured, on one line");
    Ok(text)
}

fn head() -> anyhow::Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let processors = read("/proc/cpuinfo")?;
    let mut models = processors.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = models.next().map_or("an unknown processor", |(_, model)| model);
    let (cores, load) = (thread::available_parallelism()?, read("/proc/loadavg")?);
    let load = load.split(' ').next().unwrap_or_default();
    let system = read("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "# What one VM of two cores pays. Lists are quantiles at equal distances, from the least to the most.\n\
         # What is marked as measured comes from `faasnet-loadtest simulate calibrate`\n\
         # on {cores} cores of {model}, Linux {};\n\
         # others used them too (the load was {load}), so that the cheapest of three rounds counts.\n\
         # Everything else is an estimate, or names its source.",
        system.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::costs::Quantiles;

    #[test]
    fn a_file_keeps_its_estimates_and_loses_what_was_said_of_measured_numbers() {
        let base = "# Old head\nname = \"old\"\n[agent]\n# Estimate: small.\norder_ms = 1.0\n# Guess.\n# More.\nkeep_mib_ms = 1.0\n";
        let mut costs: Costs = toml::from_str(base).expect("TOML");
        costs.agent.keep_mib_ms = Quantiles::Many(vec![2.0, 3.5]);
        let text = rewrite(base, &costs).expect("it can be written");
        for kept in [
            "cores of",
            "name = \"old\"",
            "# Estimate: small.\norder_ms = 1.0\n# Measured.",
            "keep_mib_ms = [2.0, 3.5]",
        ] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        let again = rewrite(&text, &costs).expect("it can be written again");
        assert_eq!(again.lines().count(), text.lines().count(), "{again}");
        for gone in ["Old head", "Guess", "More"] {
            assert!(!text.contains(gone), "{text}");
        }
        costs.agent.send_mib_ms = Quantiles::One(1.0);
        assert!(rewrite(base, &costs).is_err(), "the file has no such line");
    }
}
