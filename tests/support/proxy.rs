//! An HTTP proxy that does harm: it stands before a real registry and, for the requests it is told,
//! answers with an error, cuts the body, hides the range, holds back, or sends elsewhere.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: it is passed on.
    None,
    /// A status and headers of our own, each ended by CRLF.
    Answer(u16, String),
    /// That many bytes of the body, then the connection is closed.
    Cut(usize),
    /// That many bytes of the body, then nothing until the client goes away.
    Hold(usize),
    /// Passed on without its Range header.
    NoRange,
    /// Passed on; that many further bytes follow the body, and no length is stated.
    Surplus(usize),
    /// Passed on with that byte of the body changed.
    Flip(usize),
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// All header lines, lower case names.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }
}

type Plan = dyn Fn(&Request, usize) -> Fault + Send + Sync;

pub struct Proxy {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts before `upstream`. The plan is asked for each request, with the number of requests of the
    /// same method and path before it.
    pub async fn start(
        upstream: SocketAddr,
        plan: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, plan): (_, Arc<Plan>) = (Arc::clone(&requests), Arc::new(plan));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (seen, plan) = (Arc::clone(&seen), Arc::clone(&plan));
                // A client that goes away is part of the game.
                tokio::spawn(async move { serve(client, upstream, &seen, &*plan).await.ok() });
            }
        });
        Self { address, requests, task }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request; the connection ends with its answer.
async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    seen: &Mutex<Vec<Request>>,
    plan: &Plan,
) -> io::Result<()> {
    let (head, rest) = read_head(&mut client).await?;
    let request = parse(&head);
    let fault = {
        let mut seen = seen.lock().expect("not poisoned");
        let same = |other: &&Request| other.method == request.method && other.path == request.path;
        let before = seen.iter().filter(same).count();
        seen.push(request.clone());
        plan(&request, before)
    };
    if let Fault::Answer(status, headers) = &fault {
        let answer =
            format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n{headers}\r\n");
        return client.write_all(answer.as_bytes()).await;
    }
    let mut server = TcpStream::connect(upstream).await?;
    let hides_range = matches!(fault, Fault::NoRange);
    let kept =
        request.headers.iter().filter(|(name, _)| name != "connection" && !(hides_range && name == "range"));
    let lines: String = kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{} {} HTTP/1.1\r\n{lines}connection: close\r\n\r\n", request.method, request.path);
    server.write_all(head.as_bytes()).await?;
    server.write_all(&rest).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answer = async {
        let (head, body) = read_head(&mut from_server).await?;
        let states_length = !matches!(fault, Fault::Surplus(_));
        let lines = head
            .split_inclusive("\r\n")
            .filter(|line| states_length || !line.to_lowercase().starts_with("content-length:"));
        to_client.write_all(lines.collect::<String>().as_bytes()).await?;
        harm(fault, body, &mut from_server, &mut to_client).await
    };
    // Whatever the client still sends is passed on until the answer is complete.
    tokio::select! {
        result = answer => result?,
        _ = async { io::copy(&mut from_client, &mut to_server).await.ok(); std::future::pending::<()>().await } => {}
    }
    client.shutdown().await
}

async fn harm(
    fault: Fault,
    mut body: Vec<u8>,
    from_server: &mut (impl AsyncReadExt + Unpin),
    to_client: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<()> {
    match fault {
        Fault::Cut(bytes) | Fault::Hold(bytes) => {
            let missing = bytes.saturating_sub(body.len()) as u64;
            from_server.take(missing).read_to_end(&mut body).await?;
            body.truncate(bytes);
            to_client.write_all(&body).await?;
            to_client.flush().await?;
            if matches!(fault, Fault::Hold(_)) {
                std::future::pending::<()>().await;
            }
        }
        Fault::Flip(place) => {
            from_server.read_to_end(&mut body).await?;
            body[place] ^= 1;
            to_client.write_all(&body).await?;
        }
        Fault::Surplus(bytes) => {
            to_client.write_all(&body).await?;
            io::copy(from_server, to_client).await?;
            to_client.write_all(&vec![b'x'; bytes]).await?;
        }
        Fault::None | Fault::NoRange | Fault::Answer(..) => {
            to_client.write_all(&body).await?;
            io::copy(from_server, to_client).await?;
        }
    }
    Ok(())
}

/// Reads to the end of the headers; gives them and what came behind.
async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse(head: &str) -> Request {
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let header =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    Request { method: method.to_owned(), path: path.to_owned(), headers: lines.filter_map(header).collect() }
}
