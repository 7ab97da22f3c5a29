//! Open-loop load: requests go out when the schedule says, whether or not earlier ones were answered, and
//! their latency counts from that moment. A generator that waits for answers would send less the slower the
//! system is, and hide just what is to be measured.

use anyhow::Context;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// Idle connections older than this are not used again: below the server's own limit of 5 s.
const IDLE: Duration = Duration::from_secs(2);

/// What is asked, and how.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub token: String,
    pub tenant: String,
    /// Path and query of a GET.
    pub path: String,
    /// Longest wait for an answer.
    pub deadline: Duration,
    /// Requests under way at once; above it the generator itself is the limit, and says so.
    pub in_flight_max: usize,
}

/// A time of constant load.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    /// Requests a second.
    pub rate: f64,
    pub duration: Duration,
}

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Number of its phase.
    pub phase: usize,
    /// When it was to be sent, from the beginning.
    pub intended: Duration,
    /// From then to the end of the answer.
    pub latency: Duration,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered {
        status: u16,
        has_retry_after: bool,
    },
    Failed(String),
    /// `in_flight_max` requests were under way.
    NotSent,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered { status: 200, .. })
    }
}

/// When each request is to be sent, with the number of its phase.
fn schedule(phases: &[Phase]) -> impl Iterator<Item = (usize, Duration)> {
    let mut begin = Duration::ZERO;
    phases.iter().enumerate().flat_map(move |(number, phase)| {
        let (first, phase) = (begin, *phase);
        begin += phase.duration;
        let count = (phase.rate * phase.duration.as_secs_f64()) as u32;
        (0..count)
            .map(move |request| (number, first + Duration::from_secs_f64(f64::from(request) / phase.rate)))
    })
}

/// Sends all requests of the phases, and returns when each is answered or has failed.
pub async fn run(target: &Target, phases: &[Phase]) -> Vec<Sample> {
    let client = Client { target: target.clone(), idle: Arc::default() };
    let begin = Instant::now();
    let (mut under_way, mut samples) = (JoinSet::new(), Vec::new());
    for (phase, intended) in schedule(phases) {
        tokio::time::sleep_until(begin + intended).await;
        while let Some(sample) = under_way.try_join_next() {
            samples.extend(sample);
        }
        if under_way.len() >= target.in_flight_max {
            samples.push(Sample { phase, intended, latency: Duration::ZERO, outcome: Outcome::NotSent });
            continue;
        }
        let client = client.clone();
        under_way.spawn(async move {
            let outcome = client.ask().await;
            Sample { phase, intended, latency: begin.elapsed().saturating_sub(intended), outcome }
        });
    }
    samples.extend(under_way.join_all().await);
    samples
}

type Connection = SendRequest<Empty<Bytes>>;

#[derive(Clone)]
struct Client {
    target: Target,
    idle: Arc<Mutex<Vec<(Instant, Connection)>>>,
}

impl Client {
    async fn ask(&self) -> Outcome {
        match tokio::time::timeout(self.target.deadline, self.exchange()).await {
            Ok(Ok((status, has_retry_after))) => Outcome::Answered { status, has_retry_after },
            Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
            Err(_) => Outcome::Failed("no answer in time".into()),
        }
    }

    async fn exchange(&self) -> anyhow::Result<(u16, bool)> {
        let mut connection = self.connection().await?;
        let target = &self.target;
        let request = Request::get(&target.path)
            .header(header::HOST, target.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", target.token))
            .header("faasnet-tenant", &target.tenant)
            .body(Empty::new())?;
        let response = connection.send_request(request).await.context("send the request")?;
        let status = response.status().as_u16();
        let has_retry_after = response.headers().contains_key(header::RETRY_AFTER);
        response.into_body().collect().await.context("read the answer")?;
        self.idle().push((Instant::now(), connection));
        Ok((status, has_retry_after))
    }

    /// The connection that became idle last, or a new one.
    async fn connection(&self) -> anyhow::Result<Connection> {
        while let Some((since, mut connection)) = self.take_idle() {
            if since.elapsed() < IDLE && connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = tokio::net::TcpStream::connect(self.target.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (connection, task) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests on it.
        tokio::spawn(task);
        Ok(connection)
    }

    fn take_idle(&self) -> Option<(Instant, Connection)> {
        self.idle().pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of many requests. Latencies are those of requests that were served.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub requests: usize,
    pub by_status: BTreeMap<u16, usize>,
    /// Without an answer: connections refused or cut, or no answer in time.
    pub failed: BTreeMap<String, usize>,
    pub not_sent: usize,
    /// Answers 429 and 503 without `Retry-After`.
    pub without_retry_after: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Of refusals: 99 of 100 came within.
    pub refused_p99_ms: f64,
}

impl Summary {
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let (mut summary, mut served, mut refused) = (Self::default(), Vec::new(), Vec::new());
        for sample in samples {
            summary.requests += 1;
            match &sample.outcome {
                Outcome::Answered { status, has_retry_after } => {
                    *summary.by_status.entry(*status).or_default() += 1;
                    let is_refusal = matches!(status, 429 | 503);
                    summary.without_retry_after += usize::from(is_refusal && !has_retry_after);
                    if is_refusal { &mut refused } else { &mut served }.push(sample.latency);
                }
                Outcome::Failed(reason) => *summary.failed.entry(reason.clone()).or_default() += 1,
                Outcome::NotSent => summary.not_sent += 1,
            }
        }
        served.sort();
        refused.sort();
        summary.p50_ms = percentile_ms(&served, 50);
        summary.p99_ms = percentile_ms(&served, 99);
        summary.max_ms = percentile_ms(&served, 100);
        summary.refused_p99_ms = percentile_ms(&refused, 99);
        summary
    }

    pub fn with_status(&self, status: u16) -> usize {
        self.by_status.get(&status).copied().unwrap_or_default()
    }
}

/// The value that so many of a hundred do not exceed; 0 of none.
fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sent_at_the_rate_of_their_phase() {
        let phase = |rate, seconds| Phase { rate, duration: Duration::from_secs(seconds) };
        let schedule: Vec<_> = schedule(&[phase(2.0, 1), phase(1.0, 2)]).collect();
        let millis: Vec<_> = schedule.iter().map(|(phase, at)| (*phase, at.as_millis())).collect();
        assert_eq!(millis, [(0, 0), (0, 500), (1, 1000), (1, 2000)]);
    }

    #[test]
    fn latencies_are_those_of_served_requests_and_refusals_must_say_when_to_come_back() {
        let sample = |status, has_retry_after, ms| Sample {
            phase: 0,
            intended: Duration::ZERO,
            latency: Duration::from_millis(ms),
            outcome: Outcome::Answered { status, has_retry_after },
        };
        let samples =
            [sample(200, false, 10), sample(200, false, 30), sample(429, true, 1), sample(503, false, 2)];
        let summary = Summary::of(&samples);
        assert_eq!((summary.p50_ms, summary.p99_ms, summary.refused_p99_ms), (10.0, 30.0, 2.0));
        assert_eq!((summary.without_retry_after, summary.with_status(200)), (1, 2));
        assert_eq!(Summary::of(&[]).max_ms, 0.0);
    }

    /// Answers every request at once, on connections that it keeps; gives how many there were.
    fn serve(listener: std::net::TcpListener) -> Arc<std::sync::atomic::AtomicUsize> {
        use std::io::{BufRead, Write};
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut stream = std::io::BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                        if line.trim().is_empty() {
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";
                            stream.get_mut().write_all(answer).unwrap();
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
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            token: String::new(),
            tenant: "default".into(),
            path: "/".into(),
            deadline: Duration::from_secs(10),
            in_flight_max: 100,
        };
        let connections = serve(listener);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let phase = Phase { rate: 200.0, duration: Duration::from_secs(1) };
        let samples = runtime.block_on(run(&target, &[phase]));
        assert!(samples.len() == 200 && samples.iter().all(|sample| sample.outcome.is_ok()), "{samples:?}");
        assert!(connections.load(std::sync::atomic::Ordering::Relaxed) < 20, "{connections:?}");
    }
}
