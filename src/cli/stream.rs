//! The event stream, as verbs read it.

use super::{
    Failure,
    client::{Client, chain, is_problem, problem},
    failure::EXIT_INTERRUPTED,
    output::parse,
};
use futures::StreamExt;
use reqwest::{Method, StatusCode, Upgraded, Version, header};
use serde::Deserialize;
use serde_json::Value;
use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

/// Longest message taken: some thousand events, or the view of one large VM.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Pauses between attempts to come back to a manager that is away.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

struct EventStream(WebSocketStream<Upgraded>);

/// One item of the stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    Hello { stream: String, next: u64 },
    Event(Event),
    Lost { from: u64, to: u64 },
    Began { stream: String },
}

#[derive(Debug, Deserialize)]
pub struct Event {
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub kind: String,
    #[serde(default)]
    pub functions: Vec<String>,
    pub vm: Option<String>,
    pub data: Value,
}

impl EventStream {
    /// Subscribes; `query` is that of the address, in pairs.
    async fn open(client: &Client, query: &[(&str, String)]) -> Result<Self, Failure> {
        let key = generate_key();
        let request = client
            .request(Method::GET, "/v1/events")
            .query(query)
            .version(Version::HTTP_11)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = client.exchange(request).await?;
        if is_problem(&response) {
            return Err(Failure::Refused(problem(response).await?));
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let is_ours = accept.is_some_and(|accept| accept == derive_accept_key(key.as_bytes()).as_str());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_ours {
            return Err(Failure::Answer(format!("status {} in place of a websocket", response.status())));
        }
        let socket = response.upgrade().await.map_err(|error| Failure::Answer(chain(&error)))?;
        let limits = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
        Ok(Self(WebSocketStream::from_raw_socket(socket, Role::Client, Some(limits)).await))
    }

    /// The next message, as it came: a JSON array of items. None when the stream has ended.
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.0.next().await? {
                Ok(Message::Text(text)) => return Some(text.as_str().to_owned()),
                Ok(Message::Close(_)) | Err(_) => return None,
                // Pings are answered by the library while it is read.
                Ok(_) => {}
            }
        }
    }
}

/// The part of the events that one verb follows, and how far it has read them.
pub struct Followed {
    client: Client,
    filter: Vec<(&'static str, String)>,
    /// The stream that `since` is a number of.
    of: Option<String>,
    since: Option<u64>,
    stream: EventStream,
}

impl Followed {
    /// Subscribes behind the number `since`, or to what happens from now on.
    pub async fn open(
        client: &Client,
        filter: impl IntoIterator<Item = (&'static str, Option<String>)>,
        since: Option<u64>,
    ) -> Result<Self, Failure> {
        let tenant = ("tenant", client.tenant().map(ToString::to_string));
        let pairs = filter.into_iter().chain([tenant]);
        let filter: Vec<_> = pairs.filter_map(|(name, value)| Some((name, value?))).collect();
        let stream = EventStream::open(client, &query(&filter, since, None)).await?;
        Ok(Self { client: client.clone(), filter, of: None, since, stream })
    }

    /// The next items, each beside its JSON as it came. None when the stream has ended. Nothing is lost when
    /// it is dropped while it waits.
    pub async fn next(&mut self) -> Result<Option<Vec<(Value, Item)>>, Failure> {
        let Some(text) = self.stream.next().await else { return Ok(None) };
        let mut items = Vec::new();
        for json in parse::<Vec<Value>>(text.as_bytes())? {
            let item = Item::deserialize(&json).map_err(|error| Failure::Answer(error.to_string()))?;
            self.note(&item);
            items.push((json, item));
        }
        Ok(Some(items))
    }

    fn note(&mut self, item: &Item) {
        match item {
            Item::Hello { stream, next } => {
                // One that was asked for is still to be told that it has ended.
                self.of.get_or_insert_with(|| stream.clone());
                self.since.get_or_insert(next.saturating_sub(1));
            }
            Item::Event(event) => self.since = Some(event.number),
            Item::Lost { to, .. } => self.since = Some(*to),
            Item::Began { stream } => (self.since, self.of) = (Some(0), Some(stream.clone())),
        }
    }

    /// Tries until the manager is there. What it refuses it would refuse again.
    pub async fn come_back(&mut self) -> Result<(), Failure> {
        eprintln!("the stream has ended; waiting for the manager");
        let mut pauses = Pauses::new();
        loop {
            let query = query(&self.filter, self.since, self.of.as_deref());
            match EventStream::open(&self.client, &query).await {
                Ok(stream) => {
                    self.stream = stream;
                    return Ok(());
                }
                Err(failure) if failure.may_pass() => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }
}

fn query(
    filter: &[(&'static str, String)],
    since: Option<u64>,
    of: Option<&str>,
) -> Vec<(&'static str, String)> {
    let place = [("since", since.map(|since| since.to_string())), ("stream", of.map(str::to_owned))];
    let place = place.into_iter().filter_map(|(name, value)| Some((name, value?)));
    filter.iter().cloned().chain(place).collect()
}

/// Pauses between attempts, each twice the one before up to a limit.
pub struct Pauses(Duration);

impl Pauses {
    pub fn new() -> Self {
        Self(RETRY_MIN)
    }

    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(RETRY_MAX);
        pause
    }
}

/// Runs what has no end of its own until Ctrl-C, which is the usual way to end it and leaves nothing half
/// written. The exit code is the one of a program that Ctrl-C has ended, so that scripts can tell it from a
/// success. The signal is handled, as the kernel would keep it from the first process of a container otherwise.
pub async fn until_interrupted(
    following: impl Future<Output = Result<Infallible, Failure>>,
) -> Result<ExitCode, Failure> {
    tokio::select! {
        // First, so that the signal is handled before anything is printed.
        biased;
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            // The terminal has written `^C` where the prompt will be.
            if io::stderr().is_terminal() {
                eprintln!();
            }
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
        failure = following => match failure? {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit() {
        let mut pauses = Pauses::new();
        let taken: Vec<_> = (0..7).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(taken, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    }
}
