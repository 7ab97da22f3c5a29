//! The cores of a VM, shared evenly by all that runs on it.

use super::queue::Nanos;
use std::collections::BTreeMap;

/// Jobs on some cores. Each gets one core, or an equal share of all when there are more jobs than cores.
pub(super) struct Cpu<J> {
    cores: u32,
    /// What each job has got since the beginning, had it been there all the time.
    served: f64,
    since: Nanos,
    /// By what `served` will be when they are done, as bits, which order like the numbers.
    jobs: BTreeMap<(u64, u64), J>,
    added: u64,
    /// Of the last moment told to come back for.
    version: u32,
    busy: f64,
}

impl<J> Cpu<J> {
    pub fn new(cores: u32) -> Self {
        let jobs = BTreeMap::new();
        Self { cores: cores.max(1), served: 0.0, since: 0, jobs, added: 0, version: 0, busy: 0.0 }
    }

    /// Of a core, for each job.
    fn rate(&self) -> f64 {
        (f64::from(self.cores) / self.jobs.len().max(1) as f64).min(1.0)
    }

    fn advance(&mut self, now: Nanos) {
        let served = (now - self.since) as f64 * self.rate();
        self.busy += served * self.jobs.len() as f64;
        self.served += served;
        self.since = now;
    }

    pub fn add(&mut self, work: Nanos, job: J, now: Nanos) {
        self.advance(now);
        self.added += 1;
        let end = self.served + work as f64;
        self.jobs.insert((end.to_bits(), self.added), job);
    }

    /// When to come back, and with which version, if something is done then.
    pub fn next(&mut self, now: Nanos) -> Option<(Nanos, u32)> {
        self.advance(now);
        let ((end, _), _) = self.jobs.first_key_value()?;
        let left = (f64::from_bits(*end) - self.served).max(0.0);
        self.version += 1;
        Some((now + (left / self.rate()).ceil() as Nanos, self.version))
    }

    /// A job that is done, if that moment is still the right one; asked again until there is none.
    pub fn done(&mut self, version: u32, now: Nanos) -> Option<J> {
        if version != self.version {
            return None;
        }
        self.advance(now);
        // What is left of rounding counts as done.
        let is_done = |((end, _), _): (&(u64, u64), &J)| f64::from_bits(*end) <= self.served + 0.5;
        self.jobs.first_key_value().is_some_and(is_done).then(|| self.jobs.pop_first())?.map(|(_, job)| job)
    }

    /// The VM is gone, with all that ran on it.
    pub fn clear(&mut self, now: Nanos) {
        self.advance(now);
        self.jobs.clear();
        self.version += 1;
    }

    /// Time of cores that was used until now.
    pub fn busy(&mut self, now: Nanos) -> Nanos {
        self.advance(now);
        self.busy as Nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each job is done, in the order in which that happens.
    fn run(cpu: &mut Cpu<char>, mut now: Nanos) -> Vec<(char, Nanos)> {
        let mut done = Vec::new();
        while let Some((at, version)) = cpu.next(now) {
            now = at;
            while let Some(job) = cpu.done(version, now) {
                done.push((job, now));
            }
        }
        done
    }

    #[test]
    fn jobs_up_to_the_number_of_cores_do_not_disturb_each_other_and_more_share_them() {
        let mut cpu = Cpu::new(2);
        cpu.add(100, 'a', 0);
        cpu.add(200, 'b', 0);
        assert_eq!(run(&mut cpu, 0), [('a', 100), ('b', 200)]);
        let mut cpu = Cpu::new(1);
        cpu.add(100, 'a', 0);
        cpu.add(200, 'b', 0);
        assert_eq!(run(&mut cpu, 0), [('a', 200), ('b', 300)]);
        assert_eq!(cpu.busy(1000), 300);
    }

    #[test]
    fn a_job_that_comes_later_slows_down_what_runs() {
        let mut cpu = Cpu::new(1);
        cpu.add(100, 'a', 0);
        let (_, old) = cpu.next(0).unwrap();
        cpu.add(100, 'b', 50);
        assert_eq!(cpu.next(50).map(|(at, _)| at), Some(150));
        assert_eq!(cpu.done(old, 100), None, "that moment is over");
        assert_eq!(run(&mut cpu, 100), [('a', 150), ('b', 200)]);
    }
}
