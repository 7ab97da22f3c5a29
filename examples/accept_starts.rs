//! Measures how many starts a second a manager accepts: a real manager process with its real metadata
//! store, agents that hold sessions over TLS and answer every order with ready and ended at once, and
//! clients that post starts over HTTP as fast as they are answered, or at a rate. An accepted start is durable.
//! With subscribers of the event stream it measures what they get, and what they cost the manager.
//!
//! `cargo build --release && cargo run --release --example accept_starts -- --help`

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use faasnet::{
    net::{
        framed::{self, FrameReader},
        identity::{Identity, new_request},
        tls::{Dialer, connect_to_join},
    },
    tokens::JoinToken,
    up::ManagerReady,
};
use faasnet_actors::{
    id::StartId,
    wire::{
        PROTOCOL_VERSION,
        control::{EndReason, Hello, JoinAnswer, JoinRequest, StartReport, ToAgent, ToManager},
        frame::FrameLimits,
        holder::Exit,
    },
};
use faasnet_loadtest::rig::{Image, Variant};
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

#[derive(Parser)]
struct Options {
    /// Connections that post starts, each one request after the other
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Starts in one request
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Agents
    #[arg(long, default_value_t = 100)]
    vms: usize,
    /// Seconds of the measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Client address of an etcd to use instead of the file
    #[arg(long)]
    etcd: Option<String>,
    /// Requests a second of all connections; 0 is as many as are answered
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Subscribers of the event stream, of which each gets everything
    #[arg(long, default_value_t = 0)]
    subscribers: usize,
    /// Seconds that the manager is given before it is measured, to attach a profiler
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
}

const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 0 };
const DEADLINE: Duration = Duration::from_secs(60);
/// So much that the placement never waits for room.
const MEMORY_BYTES: u64 = 1 << 50;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let target = std::env::current_exe()?.ancestors().nth(2).context("the target folder")?.to_owned();
    let folder = tempfile::tempdir_in(&target)?;
    let image = Image::cached(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rig"), Variant::Minimal)?;
    let (manager, ready) = start_manager(&target.join("faasnet"), folder.path(), &image, &options).await?;
    let token = std::fs::read_to_string(&ready.token_file)?.trim().to_owned();
    let api: SocketAddr = ready.api.trim_start_matches("http://").parse()?;
    let orders = Arc::new(AtomicU64::new(0));
    let mut client = Client::open(api, &token).await?;
    let join = client.json("POST", "/v1/join-tokens", &json!({})).await?;
    let join: JoinToken = join["token"].as_str().context("a join token")?.parse()?;
    for number in 0..options.vms {
        let home = folder.path().join(format!("vm-{number}"));
        std::fs::create_dir(&home)?;
        let identity = enter(ready.control, &join, &format!("vm-{number}"), &home).await?;
        tokio::spawn(agent(ready.control, identity, Arc::clone(&orders)));
    }
    deploy(&mut client, &image).await?;
    let pid = manager.id().context("the manager runs")?;
    println!("manager: process {pid}");
    tokio::time::sleep(Duration::from_secs(options.warm_up)).await;

    let stop = Arc::new(AtomicBool::new(false));
    let got = Arc::new(Got::default());
    let mut memory = vec![rss_mib(pid)?];
    for _ in 0..options.subscribers {
        let stream = subscribe(&ready.api, &token).await?;
        tokio::spawn(follow(stream, Arc::clone(&got)));
    }
    memory.push(rss_mib(pid)?);
    let begin = (Instant::now(), cpu_seconds(pid)?, flushes()?, orders.load(Ordering::Relaxed));
    let mut tasks = Vec::new();
    let pause =
        (options.rate > 0).then(|| Duration::from_secs_f64(options.connections as f64 / options.rate as f64));
    for _ in 0..options.connections {
        let client = Client::open(api, &token).await?;
        tasks.push(tokio::spawn(post(client, options.count, pause, Arc::clone(&stop))));
    }
    for _ in 0..options.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        memory.push(rss_mib(pid)?);
    }
    let events = (got.events.load(Ordering::Relaxed), got.lost.load(Ordering::Relaxed));
    stop.store(true, Ordering::Relaxed);
    let mut posted = Posted::default();
    for task in tasks {
        posted.add(task.await??);
    }
    let elapsed = begin.0.elapsed().as_secs_f64();
    posted.latencies.sort();
    let at = |part: f64| {
        let place = ((posted.latencies.len() as f64 - 1.0) * part) as usize;
        posted.latencies.get(place).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    println!(
        "{} connections, {} a request, {} VMs: {:.0} starts/s accepted, {} refused; p50 {:.1} ms, p99 {:.1} ms, \
         longest {:.1} ms; {:.0} orders/s placed; manager {:.2} cores; {:.0} disk flushes/s on this machine",
        options.connections,
        options.count,
        options.vms,
        posted.accepted as f64 / elapsed,
        posted.refused,
        at(0.5),
        at(0.99),
        at(1.0),
        (orders.load(Ordering::Relaxed) - begin.3) as f64 / elapsed,
        (cpu_seconds(pid)? - begin.1) / elapsed,
        (flushes()? - begin.2) as f64 / elapsed,
    );
    if options.subscribers > 0 {
        let each = |count: u64| count as f64 / options.subscribers as f64;
        println!(
            "{} subscribers: {:.0} events/s each, {:.0} of them lost to each in all, {} of them cut off; manager's memory \
             {:.0} MiB before them, {:.0} with them, at most {:.0}",
            options.subscribers,
            each(events.0) / elapsed,
            each(events.1),
            got.ended.load(Ordering::Relaxed),
            memory[0],
            memory[1],
            memory.iter().copied().fold(0.0, f64::max),
        );
    }
    drop(manager);
    Ok(())
}

/// What subscribers got, together.
#[derive(Default)]
struct Got {
    events: AtomicU64,
    lost: AtomicU64,
    ended: AtomicU64,
}

type EventStream = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn subscribe(api: &str, token: &str) -> anyhow::Result<EventStream> {
    let mut request = format!("{}/v1/events", api.replace("http:", "ws:")).into_client_request()?;
    request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse()?);
    Ok(tokio_tungstenite::connect_async(request).await?.0)
}

async fn follow(mut stream: EventStream, got: Arc<Got>) {
    const EVENT: &str = "{\"type\":\"event\"";
    const LOST: &str = "{\"type\":\"lost\"";
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        got.events.fetch_add(text.matches(EVENT).count() as u64, Ordering::Relaxed);
        if text.contains(LOST) {
            let items: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            let lost = items.iter().filter(|item| item["type"] == "lost");
            let count = |item: &Value| Some(item["to"].as_u64()? - item["from"].as_u64()? + 1);
            got.lost.fetch_add(lost.filter_map(count).sum(), Ordering::Relaxed);
        }
    }
    got.ended.fetch_add(1, Ordering::Relaxed);
}

/// Memory that a process has, in MiB.
fn rss_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

async fn start_manager(
    program: &Path,
    folder: &Path,
    image: &Image,
    options: &Options,
) -> anyhow::Result<(Child, ManagerReady)> {
    let mut command = Command::new(program);
    command.arg("manager").arg("--data").arg(folder.join("manager"));
    for (key, value) in [
        ("HTTP__LISTEN", "127.0.0.1:0"),
        ("MANAGER__LISTEN", "127.0.0.1:0"),
        ("LOG__FILTER", "warn"),
        ("IMAGE__LAYOUT_ROOTS", image.layout.to_str().context("a path of text")?),
    ] {
        command.env(format!("FAASNET__{key}"), value);
    }
    if let Some(url) = &options.etcd {
        command.env("FAASNET__METADATA__STORE", "etcd").env("FAASNET__METADATA__ETCD_ENDPOINTS", url);
        let prefix = format!("/bench-{}/", std::process::id());
        command.env("FAASNET__METADATA__ETCD_PREFIX", prefix);
    }
    let mut manager =
        command.stdout(Stdio::piped()).kill_on_drop(true).spawn().context("run cargo build first")?;
    let output = manager.stdout.take().context("piped")?;
    let line = BufReader::new(output).lines().next_line().await?.context("the manager ended")?;
    Ok((manager, serde_json::from_str(&line)?))
}

async fn deploy(client: &mut Client, image: &Image) -> anyhow::Result<()> {
    let spec = json!({ "image": format!("oci:{}:{}", image.layout.display(), image.tag), "memory_mib": 16 });
    client.json("PUT", "/v1/functions/x", &spec).await?;
    let begin = Instant::now();
    loop {
        let function = client.json("GET", "/v1/functions/x", &Value::Null).await?;
        let text = function.to_string();
        if text.contains("\"ready\"") {
            return Ok(());
        }
        ensure!(begin.elapsed() < DEADLINE && !text.contains("\"failed\""), "no image: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Joins as a VM does.
async fn enter(control: SocketAddr, token: &JoinToken, vm: &str, home: &Path) -> anyhow::Result<Identity> {
    let (mut stream, ca) = connect_to_join(control, token.ca_hash, DEADLINE).await?;
    let (key, signing_request) = new_request()?;
    let secret = token.secret.clone();
    let request = JoinRequest { version: PROTOCOL_VERSION, vm: vm.parse()?, secret, signing_request };
    framed::write(&mut stream, &request, &[]).await?;
    let answer = FrameReader::<_, JoinAnswer>::new(stream, FRAME).expect(DEADLINE).await?.header;
    let JoinAnswer::Joined { certificate } = answer else { anyhow::bail!("refused: {answer:?}") };
    let ca = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(&ca));
    Ok(Identity::store(home, &key, &certificate, &ca)?)
}

/// A session in which every instance is ready at once, and exits.
async fn agent(control: SocketAddr, identity: Identity, orders: Arc<AtomicU64>) -> anyhow::Result<()> {
    let stream = Dialer::new(&identity, DEADLINE)?.manager(control).await?;
    let (reading, mut writing) = tokio::io::split(stream);
    let hello = Hello {
        version: PROTOCOL_VERSION,
        memory_bytes: MEMORY_BYTES,
        cpu_millis: u32::MAX,
        address: ([127, 0, 0, 1], 9).into(),
        held: Vec::new(),
        proofs: Vec::new(),
        instances: Vec::new(),
    };
    framed::write(&mut writing, &ToManager::Hello(hello), &[]).await?;
    let mut frames = FrameReader::<_, ToAgent>::new(reading, FRAME);
    let mut heartbeat = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            frame = frames.next() => match frame?.context("the manager closed it")?.header {
                ToAgent::Start(order) => {
                    orders.fetch_add(1, Ordering::Relaxed);
                    for report in live(order.start) {
                        framed::write(&mut writing, &report, &[]).await?;
                    }
                }
                ToAgent::Refused { reason } => anyhow::bail!("{reason}"),
                _ => {}
            },
            _ = heartbeat.tick() => {
                framed::write(&mut writing, &ToManager::Heartbeat { held: Vec::new() }, &[]).await?;
            }
        }
    }
}

fn live(start: StartId) -> [ToManager; 2] {
    let (report, reason) = (StartReport::default(), EndReason::Exited(Exit::Code(0)));
    [
        ToManager::Ready { start: start.clone(), report: report.clone() },
        ToManager::Ended { start, reason, report },
    ]
}

#[derive(Default)]
struct Posted {
    accepted: u64,
    refused: u64,
    latencies: Vec<Duration>,
}

impl Posted {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.latencies.extend(other.latencies);
    }
}

async fn post(
    mut client: Client,
    count: usize,
    pause: Option<Duration>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Posted> {
    let body = Bytes::from(json!({ "count": count }).to_string());
    let mut posted = Posted::default();
    let mut beat = pause.map(tokio::time::interval);
    while !stop.load(Ordering::Relaxed) {
        if let Some(beat) = &mut beat {
            beat.tick().await;
        }
        let begin = Instant::now();
        let (status, answer) = client.send("POST", "/v1/functions/x/starts", body.clone()).await?;
        match status {
            StatusCode::ACCEPTED => {
                posted.accepted += count as u64;
                posted.latencies.push(begin.elapsed());
            }
            // Full, or as many live instances as a function may have.
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT => {
                posted.refused += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => anyhow::bail!("{other}: {}", String::from_utf8_lossy(&answer)),
        }
    }
    Ok(posted)
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    authorization: String,
}

impl Client {
    async fn open(address: SocketAddr, token: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string(), authorization: format!("Bearer {token}") })
    }

    async fn send(&mut self, method: &str, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        Ok((response.status(), response.into_body().collect().await?.to_bytes()))
    }

    async fn json(&mut self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, answer) = self.send(method, path, body).await?;
        ensure!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// Processor time of a process, from its `stat`.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("a name in parentheses")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // Linux gives user space 100 ticks a second everywhere.
    Ok(ticks as f64 / 100.0)
}

/// Flushes of all disks since the machine was started.
fn flushes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/diskstats")?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(18)?.parse::<u64>().ok()).sum())
}
