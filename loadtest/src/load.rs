//! Open-loop load: requests go out when the schedule says, whether or not earlier ones were answered, and
//! their latency counts from that moment. A generator that waits for answers would send less the slower the
//! system is, and hide just what is to be measured.

mod arrivals;
mod client;
mod summary;

pub use arrivals::{LENGTH_MAX, Piece, RATE_MAX, REQUESTS_MAX, Rates, Spacing, Zipf};
pub use client::Target;
pub use summary::{Latencies, Outcome, Sample, Summary};

use client::Client;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// A request that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// From the beginning.
    pub at: Duration,
    /// Its place among the targets.
    pub target: usize,
}

/// What bounds the generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest wait for an answer, from when the request was to be sent.
    pub deadline: Duration,
    /// Requests under way at once; above it the generator itself is the limit: the request is not sent, and
    /// counted as such. None is ever sent late for it.
    pub in_flight_max: usize,
}

/// How far the load is, for whoever looks from outside.
#[derive(Debug, Default)]
pub struct Progress {
    pub sent: AtomicU64,
    pub ok: AtomicU64,
    /// Answered otherwise, or not at all.
    pub other: AtomicU64,
    pub not_sent: AtomicU64,
    /// How late the generator itself was at most.
    pub late_max_us: AtomicU64,
}

impl Progress {
    fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::NotSent => &self.not_sent,
            outcome if outcome.is_ok() => &self.ok,
            _ => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is sent, where to, and how.
#[derive(Debug, Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub targets: Arc<[Target]>,
    /// In the order of time.
    pub arrivals: Vec<Arrival>,
    pub limits: Limits,
}

impl Load {
    /// Evenly spaced requests, all of them alike.
    pub fn of_one(address: SocketAddr, target: Target, rates: &Rates, limits: Limits) -> Self {
        let arrivals = rates.even().into_iter().map(|at| Arrival { at, target: 0 }).collect();
        Self { address, targets: Arc::new([target]), arrivals, limits }
    }

    /// Sends all requests, and returns when each is answered or has failed.
    pub async fn send(&self) -> Vec<Sample> {
        let (_never, stop) = watch::channel(false);
        self.run(&Arc::default(), stop).await
    }

    /// As [`Load::send`]. When `stop` becomes true nothing more is sent, and what is under way is given up.
    pub async fn run(&self, progress: &Arc<Progress>, mut stop: watch::Receiver<bool>) -> Vec<Sample> {
        let client = Client::new(self.address, Arc::clone(&self.targets));
        let begin = Instant::now();
        let (mut under_way, mut samples) = (JoinSet::new(), Vec::new());
        for &Arrival { at: intended, target } in &self.arrivals {
            tokio::select! {
                biased;
                _ = stopped(&mut stop) => break,
                () = tokio::time::sleep_until(begin + intended) => {}
            }
            let late_us = begin.elapsed().saturating_sub(intended).as_micros() as u64;
            progress.late_max_us.fetch_max(late_us, Ordering::Relaxed);
            while let Some(sample) = under_way.try_join_next() {
                samples.extend(sample);
            }
            if under_way.len() >= self.limits.in_flight_max {
                progress.count(&Outcome::NotSent);
                samples.push(Sample { target, intended, latency: Duration::ZERO, outcome: Outcome::NotSent });
                continue;
            }
            progress.sent.fetch_add(1, Ordering::Relaxed);
            let (client, progress, mut stop) = (client.clone(), Arc::clone(progress), stop.clone());
            let deadline = begin + intended + self.limits.deadline;
            under_way.spawn(async move {
                let outcome = tokio::select! {
                    outcome = client.ask(target, deadline) => outcome,
                    _ = stopped(&mut stop) => Outcome::CutOff,
                };
                progress.count(&outcome);
                Sample { target, intended, latency: begin.elapsed().saturating_sub(intended), outcome }
            });
        }
        samples.extend(under_way.join_all().await);
        samples
    }
}

/// Ends when `stop` is true; without anybody who could say so, never.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, Write},
        net::TcpListener,
        sync::atomic::AtomicUsize,
    };

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";

    fn load(listener: &TcpListener, arrivals: Vec<Arrival>, limits: Limits) -> Load {
        let targets = Arc::new([Target::get("/", "token", "default")]);
        Load { address: listener.local_addr().unwrap(), targets, arrivals, limits }
    }

    fn every(millis: u64, count: u64) -> Vec<Arrival> {
        (0..count).map(|number| Arrival { at: Duration::from_millis(number * millis), target: 0 }).collect()
    }

    fn limits(in_flight_max: usize) -> Limits {
        Limits { deadline: Duration::from_secs(10), in_flight_max }
    }

    fn run(load: &Load, stop: watch::Receiver<bool>) -> Vec<Sample> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(load.run(&Arc::default(), stop))
    }

    fn send(load: &Load) -> Vec<Sample> {
        let (_never, stop) = watch::channel(false);
        run(load, stop)
    }

    /// Answers every request at once, on connections that it keeps; gives how many there were.
    fn serve(listener: TcpListener) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut stream = std::io::BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                        if line.trim().is_empty() {
                            stream.get_mut().write_all(ANSWER).unwrap();
                        }
                        line.clear();
                    }
                });
            }
        });
        count
    }

    #[test]
    fn requests_one_after_the_other_share_a_connection() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let load = load(&listener, every(5, 200), limits(100));
        let connections = serve(listener);
        let samples = send(&load);
        assert!(samples.len() == 200 && samples.iter().all(|sample| sample.outcome.is_ok()), "{samples:?}");
        assert!(connections.load(Ordering::Relaxed) < 20, "{connections:?}");
    }

    /// A server that begins to answer late: whoever was to be sent earlier has waited longer, though all of
    /// them are answered in the same moment.
    #[test]
    fn a_stall_counts_from_when_each_request_was_to_be_sent() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let load = load(&listener, every(100, 4), limits(100));
        let server = std::thread::spawn(move || {
            let streams: Vec<_> = listener.incoming().take(4).map(Result::unwrap).collect();
            for stream in streams {
                let mut stream = std::io::BufReader::new(stream);
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).unwrap();
                }
                stream.get_mut().write_all(ANSWER).unwrap();
            }
        });
        let mut samples = send(&load);
        server.join().unwrap();
        samples.sort_by_key(|sample| sample.intended);
        assert!(samples.iter().all(|sample| sample.outcome.is_ok()), "{samples:?}");
        assert!(samples[0].latency >= Duration::from_millis(300), "{samples:?}");
    }

    #[test]
    fn above_its_bound_the_generator_says_what_it_did_not_send() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let short = Limits { deadline: Duration::from_millis(300), in_flight_max: 2 };
        let load = load(&listener, every(1, 5), short);
        // Nobody accepts: the two that are sent get no answer.
        let samples = send(&load);
        let of = |outcome| samples.iter().filter(|sample| sample.outcome == outcome).count();
        assert_eq!((of(Outcome::NotSent), of(Outcome::TimedOut)), (3, 2), "{samples:?}");
    }

    #[test]
    fn a_stop_keeps_what_was_measured_and_says_what_it_cut_off() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let load = load(&listener, every(3_600_000, 3), limits(10));
        let (stopper, stop) = watch::channel(false);
        let waiter = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stopper.send(true).unwrap();
            // Open until the end: a connection that ends is another outcome.
            (stopper, stream)
        });
        let samples = run(&load, stop);
        drop(waiter.join().unwrap());
        let outcomes: Vec<_> = samples.iter().map(|sample| sample.outcome.clone()).collect();
        assert_eq!(outcomes, [Outcome::CutOff]);
    }
}
