//! The event stream, as verbs read it.

use super::{
    Failure,
    client::{Client, chain, is_problem, problem},
};
use futures::StreamExt;
use reqwest::{Method, StatusCode, Upgraded, Version, header};
use serde::Deserialize;
use serde_json::Value;
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

pub struct EventStream(WebSocketStream<Upgraded>);

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
    pub async fn open(client: &Client, query: &[(&str, String)]) -> Result<Self, Failure> {
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
    pub async fn next(&mut self) -> Option<String> {
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
