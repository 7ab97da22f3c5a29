//! Requests that arrive whatever happens, and instances that are started for them.
//!
//! A request goes to the oldest instance with a free place, or waits. There are as many instances as the requests of the last
//! moments fill, not as those that wait would: else a slow way to start would be answered with ever more starts. One is given
//! up after it was idle for a time. A VM whose instance is gone is not used again: its
//! blocks would make the next start easy.

use super::systems::{Running, seconds};
use crate::{
    load::{Piece, Rates},
    simulate::{MILLISECOND, Nanos, SECOND},
};
use anyhow::ensure;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

/// After the last request, until all must be answered.
const PATIENCE: Nanos = 3600 * SECOND;
/// How exactly it is seen when an instance is ready.
const LOOK: Nanos = 10 * MILLISECOND;
/// The last moments. With it the synthetic test starts about as many instances as figure 13 has; the IoT test 215 and 95 in
/// its two bursts, where the curves have 102 to 126.
const DEMAND: Nanos = 2 * SECOND;

/// What is asked, and how it is served.
#[derive(Debug, Clone)]
pub struct Load {
    /// When requests arrive, from the beginning of the test, in order.
    pub arrivals: Vec<Nanos>,
    /// How long an instance works on one.
    pub service: Nanos,
    /// Requests that one instance works on at once.
    pub concurrency: u32,
    pub idle: Nanos,
    /// Instances that are there at the beginning.
    pub warm: usize,
    /// Instances that may be started in all.
    pub starts_max: usize,
}

/// What came of it, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// When each request arrived, and how long its answer took.
    pub responses: Vec<(f64, f64)>,
    pub provisioned: Vec<f64>,
}

struct Instance {
    running: u32,
    idle_since: Nanos,
    is_gone: bool,
}

/// Arrivals of a rate that is straight between its points, a second and requests in a second: evenly spaced.
pub fn arrivals(rate: &[(f64, f64)]) -> Vec<Nanos> {
    // Before its first point it is as there.
    let begin = rate.first().map(|(_, first)| (0.0, *first));
    let points: Vec<(f64, f64)> = begin.into_iter().chain(rate.iter().copied()).collect();
    let pieces = points.windows(2).map(|pair| {
        let [(at, from), (end, to)] = [pair[0], pair[1]];
        Piece { from, to, length: Duration::from_secs_f64((end - at).max(0.0)) }
    });
    let arrivals = Rates(pieces.collect()).even();
    arrivals.into_iter().map(|at| at.as_nanos() as Nanos).collect()
}

struct Service<'a> {
    load: &'a Load,
    running: Running,
    instances: Vec<Instance>,
    waiting: VecDeque<Nanos>,
    /// Requests of the last moments.
    recent: VecDeque<Nanos>,
    ends: BinaryHeap<Reverse<(Nanos, usize)>>,
    starting: usize,
    started: usize,
    /// Of the test, at the beginning of the clock on which instances start. That clock stands while none does.
    ahead: i64,
    seen: Nanos,
    served: Served,
}

/// Serves all requests.
pub fn serve(load: &Load, running: Running) -> anyhow::Result<Served> {
    // A test may be played from its middle: before its first request nothing was idle.
    let begin = load.arrivals.first().copied().unwrap_or_default();
    let warm = |_| Instance { running: 0, idle_since: begin, is_gone: false };
    let seen = running.now();
    let mut service = Service {
        load,
        running,
        instances: (0..load.warm).map(warm).collect(),
        waiting: VecDeque::new(),
        recent: VecDeque::new(),
        ends: BinaryHeap::new(),
        starting: 0,
        started: 0,
        ahead: 0,
        seen,
        served: Served::default(),
    };
    let mut arrivals = load.arrivals.iter().copied().peekable();
    let mut now = 0;
    let end = load.arrivals.last().map_or(0, |last| last + PATIENCE);
    loop {
        let looks = (service.starting > 0).then_some(now + LOOK);
        let ends = service.ends.peek().map(|Reverse((at, _))| *at);
        let next = [arrivals.peek().copied(), looks, ends].into_iter().flatten().min();
        let Some(next) = next else { return Ok(service.served) };
        now = next.max(now);
        ensure!(now < end, "{} instances were never ready", service.starting);
        service.look(now);
        while let Some(Reverse((at, instance))) = service.ends.peek().copied().filter(|end| end.0.0 <= now) {
            service.ends.pop();
            service.instances[instance].running -= 1;
            service.instances[instance].idle_since = at;
            service.serve(now);
        }
        while arrivals.next_if(|at| *at <= now).is_some() {
            service.waiting.push_back(now);
            service.recent.push_back(now);
            service.give_up_idle(now);
            service.serve(now);
            service.start_more(now)?;
        }
    }
}

impl Service<'_> {
    /// Lets starts go on, and takes in what is ready.
    fn look(&mut self, now: Nanos) {
        if self.starting == 0 {
            return;
        }
        let clock = (now as i64 - self.ahead) as Nanos;
        self.running.run_until(clock);
        let seen = std::mem::replace(&mut self.seen, clock);
        let new = self.running.ready().into_iter().filter(|(_, ready)| (seen + 1..=clock).contains(ready));
        for (asked, ready) in new {
            self.starting -= 1;
            self.served.provisioned.push(seconds(ready - asked));
            self.instances.push(Instance { running: 0, idle_since: now, is_gone: false });
        }
        self.serve(now);
    }

    fn serve(&mut self, now: Nanos) {
        while let Some(&arrived) = self.waiting.front() {
            let concurrency = self.load.concurrency;
            let has_place = |instance: &Instance| !instance.is_gone && instance.running < concurrency;
            let Some(place) = self.instances.iter().position(has_place) else { return };
            self.waiting.pop_front();
            self.instances[place].running += 1;
            let end = now + self.load.service;
            self.ends.push(Reverse((end, place)));
            self.served.responses.push((seconds(arrived), seconds(end - arrived)));
        }
    }

    fn start_more(&mut self, now: Nanos) -> anyhow::Result<()> {
        while self.recent.front().is_some_and(|at| *at + DEMAND <= now) {
            self.recent.pop_front();
        }
        let there = self.instances.iter().filter(|instance| !instance.is_gone).count() + self.starting;
        let missing = self.recent.len().div_ceil(self.load.concurrency as usize).saturating_sub(there);
        if missing == 0 {
            return Ok(());
        }
        if self.starting == 0 {
            self.seen = self.running.now();
            self.ahead = now as i64 - self.seen as i64;
        }
        self.starting += missing;
        self.started += missing;
        ensure!(
            self.started <= self.load.starts_max,
            "the VMs of this test take {} instances, but more are needed",
            self.load.starts_max
        );
        self.running.start(missing);
        Ok(())
    }

    fn give_up_idle(&mut self, now: Nanos) {
        for instance in &mut self.instances {
            let is_idle = instance.running == 0 && now.saturating_sub(instance.idle_since) > self.load.idle;
            instance.is_gone |= is_idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{costs::Costs, image::Image, systems::System};

    fn load(arrivals: Vec<Nanos>, warm: usize) -> Load {
        Load { arrivals, service: SECOND, concurrency: 2, idle: 60 * SECOND, warm, starts_max: 4 }
    }

    fn running(costs: &Costs) -> Running {
        Running::new(System::OnDemand, costs, &Image::code(0.1, 1.0), 4, 1, 1)
    }

    #[test]
    fn as_many_requests_arrive_as_the_rate_says() {
        let arrivals = arrivals(&[(0.0, 10.0), (10.0, 10.0), (20.0, 30.0)]);
        assert_eq!(arrivals.len(), 300);
        assert!(arrivals.is_sorted());
    }

    #[test]
    fn a_warm_instance_answers_at_once_and_the_third_at_a_time_waits() {
        let served = serve(&load(vec![0, 0, 60 * SECOND, 120 * SECOND], 1), running(&Costs::paper()))
            .expect("all served");
        let responses: Vec<f64> = served.responses.iter().map(|(_, response)| *response).collect();
        assert_eq!(responses[..3], [1.0, 1.0, 1.0]);
        assert!(served.provisioned.is_empty(), "it is idle for less than it may be");
        let served = serve(&load(vec![0, 0, 0], 1), running(&Costs::paper())).expect("all served");
        assert_eq!(served.provisioned.len(), 1, "one is started for the third");
        let last = served.responses.last().map(|(_, response)| *response);
        assert_eq!(last, Some(2.0), "the warm one is free before the new one is ready");
    }

    #[test]
    fn a_warm_instance_is_not_idle_before_the_first_request() {
        let served = serve(&load(vec![100 * SECOND], 1), running(&Costs::paper())).expect("all served");
        assert!(served.provisioned.is_empty(), "{served:?}");
    }

    #[test]
    fn requests_that_wait_for_long_start_no_more_than_those_of_the_last_moments_fill() {
        // A start takes more than two seconds, in which eight requests arrive, two for each instance.
        let arrivals = (0..40).map(|number| number * SECOND / 4).collect();
        let served = serve(&load(arrivals, 0), running(&Costs::paper())).expect("four instances are enough");
        assert!(served.provisioned[0] > 2.0, "{served:?}");
        assert_eq!((served.responses.len(), served.provisioned.len()), (40, 4));
    }

    #[test]
    fn more_instances_than_the_vms_take_are_said() {
        let error = serve(&load(vec![0; 10], 0), running(&Costs::paper())).expect_err("four VMs");
        assert!(error.to_string().contains("take 4 instances"), "{error}");
    }

    #[test]
    fn an_instance_that_was_idle_for_long_is_started_anew() {
        let served = serve(&load(vec![0, 100 * SECOND], 1), running(&Costs::paper())).expect("all served");
        assert_eq!(served.provisioned.len(), 1);
        assert!(served.responses[1].1 > 1.0 + served.provisioned[0] - 0.02, "{served:?}");
    }
}
