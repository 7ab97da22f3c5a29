//! What this process takes of its machine, under the names that all exporters use.

use super::Page;
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use std::fs;

pub fn write(page: &mut Page) {
    // A machine that does not show them has no samples of them.
    if let Some((cpu_seconds, resident_bytes)) =
        fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(of_stat)
    {
        page.counter("process_cpu_seconds_total", "CPU time of this process, in seconds.", cpu_seconds);
        page.gauge("process_resident_memory_bytes", "Memory of this process.", resident_bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open files and sockets of this process.", open.count() as f64);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        page.gauge("process_max_fds", "Files and sockets that this process may have open.", most as f64);
    }
}

/// Seconds of CPU and resident bytes, of what `proc(5)` calls `stat`.
fn of_stat(text: &str) -> Option<(f64, f64)> {
    // The name of the program is in parentheses, and may have any.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some((ticks as f64 / clock_ticks_per_second() as f64, (field(24)? * page_size() as u64) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_takes() {
        let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
        let (cpu_seconds, resident_bytes) = of_stat(&stat).expect("its format is known");
        assert!((0.0..1e6).contains(&cpu_seconds));
        assert!((1e6..1e11).contains(&resident_bytes), "{resident_bytes}");
        let odd = "7 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1 1000 3 4";
        let (cpu_seconds, resident_bytes) = of_stat(odd).expect("it has all fields");
        assert_eq!(cpu_seconds, 200.0 / clock_ticks_per_second() as f64);
        assert_eq!(resident_bytes, 3.0 * page_size() as f64);
        assert_eq!(of_stat("7 (cut"), None);
    }
}
