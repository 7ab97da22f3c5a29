//! The gateway's way to instances: TLS to the agent, which copies bytes to and from the container.

use crate::{
    http::{AsyncReadWrite, DialError, InstanceDialer},
    net::{
        Purpose,
        framed::{self, FrameReader},
        tls::Dialer,
    },
};
use bytes::Bytes;
use faasnet_actors::{
    scheduler::Located,
    wire::{
        frame::FrameLimits,
        request::{RequestAnswer, RequestHead},
    },
};
use futures::future::BoxFuture;
use std::{fmt, io::Cursor, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, Join, join},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::client::TlsStream;

pub struct AgentDialer {
    pub dialer: watch::Receiver<Dialer>,
    /// Time for the agent's answer.
    pub handshake: Duration,
    pub frame: FrameLimits,
}

type Stream = TlsStream<TcpStream>;

/// An answer, and the connection with what was read ahead of it.
struct Answered {
    answer: RequestAnswer,
    body: Bytes,
    ahead: Bytes,
    stream: Stream,
}

async fn ask(
    dialer: Dialer,
    located: Located,
    head: RequestHead,
    frame: FrameLimits,
    deadline: Duration,
) -> Result<Answered, DialError> {
    let mut stream = dialer
        .vm(&located.vm, located.address, Purpose::Request)
        .await
        .map_err(|error| unreachable(&error))?;
    framed::write(&mut stream, &head, &[]).await.map_err(|error| unreachable(&error))?;
    let mut frames = FrameReader::<_, RequestAnswer>::new(stream, frame);
    let answer = frames.expect(deadline).await.map_err(|error| unreachable(&error))?;
    let (stream, ahead) = frames.into_parts();
    Ok(Answered { answer: answer.header, body: answer.body, ahead, stream })
}

fn unreachable(error: &dyn fmt::Display) -> DialError {
    DialError::Unreachable(error.to_string())
}

fn not_here() -> DialError {
    DialError::Refused("its VM has no such instance, or it takes no more connections".into())
}

impl AgentDialer {
    fn ask(
        &self,
        located: &Located,
        head: RequestHead,
    ) -> impl Future<Output = Result<Answered, DialError>> + use<> {
        ask(self.dialer.borrow().clone(), located.clone(), head, self.frame, self.handshake)
    }
}

impl InstanceDialer for AgentDialer {
    fn dial(&self, located: &Located) -> BoxFuture<'static, Result<Box<dyn AsyncReadWrite>, DialError>> {
        let asking = self.ask(located, RequestHead::Forward { start: located.start.clone() });
        Box::pin(async move {
            let Answered { answer, ahead, stream, .. } = asking.await?;
            match answer {
                RequestAnswer::Ready => Ok(Box::new(with_ahead(ahead, stream)) as Box<dyn AsyncReadWrite>),
                RequestAnswer::Logs | RequestAnswer::NotHere => Err(not_here()),
            }
        })
    }

    fn logs(&self, located: &Located, tail: u64) -> BoxFuture<'static, Result<Bytes, DialError>> {
        let head = RequestHead::Logs { start: located.start.clone(), tail_bytes: tail };
        let asking = self.ask(located, head);
        Box::pin(async move {
            let Answered { answer, body, .. } = asking.await?;
            match answer {
                RequestAnswer::Logs => Ok(body),
                RequestAnswer::Ready | RequestAnswer::NotHere => Err(not_here()),
            }
        })
    }
}

/// The connection, with the bytes in front that came together with the answer.
fn with_ahead(
    ahead: Bytes,
    stream: Stream,
) -> Join<impl AsyncRead + Unpin + Send, impl tokio::io::AsyncWrite + Unpin + Send> {
    let (reading, writing) = tokio::io::split(stream);
    join(Cursor::new(ahead).chain(reading), writing)
}
