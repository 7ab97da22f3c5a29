//! The HTTP server inside the sample image. Contract: it listens on `$PORT`, and answers once it has read
//! what it needs.

use super::{ServeOptions, ballast::read_at_start, listing};
use actix_web::{App, HttpResponse, HttpServer, error::ErrorBadRequest, web};
use anyhow::Context;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Instant,
};
use tokio::sync::mpsc;

/// Lines of a listing that wait for a slow client, in pieces of 64 KiB.
const LISTING_PIECES: usize = 16;
const PIECE_BYTES: usize = 64 * 1024;

/// What each instance says of itself.
#[derive(Clone)]
struct Identity {
    port: u16,
    start_digest: String,
    read_ms: u128,
}

/// Reads the ballast, then serves until the process is told to stop.
pub fn serve(options: ServeOptions) -> anyhow::Result<()> {
    if let Some(code) = options.exit_at_start {
        eprintln!("leaving with code {code}, as asked");
        std::process::exit(code);
    }
    let begin = Instant::now();
    let start_digest = read_at_start(&options.ballast, options.read_bytes)
        .with_context(|| format!("read the ballast in {}", options.ballast.display()))?;
    let read_ms = begin.elapsed().as_millis();
    println!("read {} bytes in {read_ms} ms: {start_digest}", options.read_bytes);
    if options.never_answer {
        return wait_for_ever();
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).context("listen on $PORT")?;
    let identity = Identity { port: options.port, start_digest: start_digest.to_hex().to_string(), read_ms };
    println!("listening on port {}", options.port);
    answer(listener, identity).context("serve")
}

fn answer(listener: TcpListener, identity: Identity) -> io::Result<()> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(identity.clone()))
            .route("/", web::get().to(index))
            .route("/healthz", web::get().to(async || HttpResponse::Ok().body("ok\n")))
            .route("/env", web::get().to(environment))
            .route("/echo", web::post().to(echo))
            .route("/read", web::get().to(read))
            .route("/list", web::get().to(list))
            .route("/eat", web::get().to(eat))
            .route("/exit", web::get().to(exit))
    });
    // One worker: an instance is small, and a VM has many.
    actix_web::rt::System::new().block_on(server.workers(1).shutdown_timeout(1).listen(listener)?.run())
}

/// A pipe that nobody writes to: reading it waits without using time.
fn wait_for_ever() -> anyhow::Result<()> {
    let (mut reader, _writer) = io::pipe()?;
    println!("never answering, as asked");
    reader.read_to_end(&mut Vec::new())?;
    Ok(())
}

async fn index(identity: web::Data<Identity>) -> HttpResponse {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    HttpResponse::Ok().json(json!({
        "hostname": hostname,
        "port": identity.port,
        "pid": std::process::id(),
        "start_digest": identity.start_digest,
        "read_ms": identity.read_ms as u64,
    }))
}

async fn environment() -> HttpResponse {
    HttpResponse::Ok().json(std::env::vars().collect::<std::collections::BTreeMap<_, _>>())
}

/// Sends the request's body back while it still arrives.
async fn echo(body: web::Payload) -> HttpResponse {
    HttpResponse::Ok().streaming(body)
}

#[derive(Deserialize)]
struct Range {
    path: PathBuf,
    #[serde(default)]
    offset: u64,
    /// Without it, up to the end.
    len: Option<u64>,
}

async fn read(range: web::Query<Range>) -> actix_web::Result<HttpResponse> {
    let range = range.into_inner();
    let answer = web::block(move || digest(&range)).await?.map_err(ErrorBadRequest)?;
    Ok(HttpResponse::Ok().json(answer))
}

fn digest(range: &Range) -> io::Result<serde_json::Value> {
    let mut file = File::open(&range.path)?;
    file.seek(SeekFrom::Start(range.offset))?;
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut file.take(range.len.unwrap_or(u64::MAX)), &mut hasher)?;
    Ok(json!({ "bytes": bytes, "blake3": hasher.finalize().to_hex().to_string() }))
}

/// Everything this container sees, as lines of JSON. A listing that fails ends with a line `{"error":...}`.
async fn list() -> HttpResponse {
    let (sender, receiver) = mpsc::channel(LISTING_PIECES);
    std::thread::spawn(move || {
        let mut out = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(sender));
        let listed = listing::list(Path::new("/"), |entry| {
            serde_json::to_writer(&mut out, &entry)?;
            out.write_all(b"\n")
        });
        if let Err(error) = listed {
            let _client_has_left = writeln!(out, "{}", json!({ "error": error.to_string() }));
        }
        let _client_has_left = out.flush();
    });
    let pieces = futures::stream::unfold(receiver, async |mut receiver| {
        let piece: Bytes = receiver.recv().await?;
        Some((Ok::<_, actix_web::Error>(piece), receiver))
    });
    HttpResponse::Ok().content_type("application/x-ndjson").streaming(Box::pin(pieces))
}

/// Hands what is written to the response; fails when the client has left, which ends the listing.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(buffer);
        self.0.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Deserialize)]
struct Amount {
    mb: usize,
}

/// Takes memory and keeps it, to run into the container's limit.
async fn eat(amount: web::Query<Amount>) -> HttpResponse {
    let eaten = vec![1_u8; amount.mb << 20];
    std::mem::forget(std::hint::black_box(eaten));
    HttpResponse::Ok().body(format!("ate {} MiB\n", amount.mb))
}

#[derive(Deserialize)]
struct ExitCode {
    code: i32,
}

async fn exit(code: web::Query<ExitCode>) -> HttpResponse {
    std::process::exit(code.code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpStream};

    /// The whole answer, with its head.
    fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_server_answers_reads_and_echoes() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity { port: address.port(), start_digest: "d1ge57".to_owned(), read_ms: 3 };
        std::thread::spawn(move || answer(listener, identity));
        let get = |path: &str| exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: sample\r\n\r\n"));

        assert!(get("/").contains("\"start_digest\":\"d1ge57\""));
        assert!(get("/healthz").starts_with("HTTP/1.0 200"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789").unwrap();
        let digest = get(&format!("/read?path={}&offset=2&len=5", file.path().display()));
        assert!(digest.contains(&blake3::hash(b"23456").to_hex().to_string()), "{digest}");
        assert!(get("/read?path=/nowhere").starts_with("HTTP/1.0 400"));
        let echoed =
            exchange(address, "POST /echo HTTP/1.0\r\nHost: sample\r\nContent-Length: 5\r\n\r\nhello");
        assert!(echoed.contains("hello"), "{echoed}");
    }
}
