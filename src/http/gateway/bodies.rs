//! Bodies of forwarded requests and responses, streamed with a limit in both directions.

use actix_web::{
    body::{BodySize, MessageBody},
    dev::Payload,
};
use bytes::Bytes;
use futures::Stream;
use hyper::body::{Body, Frame, Incoming};
use std::{
    cell::RefCell,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// The caller's body, kept across attempts as long as nothing of it was read. It stays on the
/// caller's thread.
pub(super) struct Upload {
    shared: Rc<RefCell<Source>>,
    has_body: bool,
}

struct Source {
    payload: Payload,
    bytes: u64,
    bytes_max: u64,
    is_touched: bool,
}

impl Upload {
    pub fn new(payload: Payload, has_body: bool, bytes_max: u64) -> Self {
        let source = Source { payload, bytes: 0, bytes_max, is_touched: false };
        Self { shared: Rc::new(RefCell::new(source)), has_body }
    }

    /// The body for one attempt.
    pub fn body(&self) -> RequestBody {
        RequestBody { shared: self.has_body.then(|| Rc::clone(&self.shared)) }
    }

    /// Whether nothing of the body has been taken from the caller.
    pub fn is_untouched(&self) -> bool {
        !self.shared.borrow().is_touched
    }

    pub fn is_too_large(&self) -> bool {
        let source = self.shared.borrow();
        source.bytes > source.bytes_max
    }
}

/// The body of one attempt; `None` when the request has no body.
pub(super) struct RequestBody {
    shared: Option<Rc<RefCell<Source>>>,
}

/// Why a body was cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutBody {
    #[error("the body has more than {0} bytes")]
    TooLarge(u64),
    #[error("nothing came for {0:?}")]
    Idle(Duration),
    #[error("the body is cut off: {0}")]
    Incomplete(Box<dyn Error + Send + Sync>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = CutBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutBody>>> {
        let Some(shared) = &self.shared else { return Poll::Ready(None) };
        let mut source = shared.borrow_mut();
        let Some(chunk) = ready!(Pin::new(&mut source.payload).poll_next(context)) else {
            return Poll::Ready(None);
        };
        source.is_touched = true;
        let chunk = chunk.map_err(|error| CutBody::Incomplete(error.to_string().into()))?;
        source.bytes += chunk.len() as u64;
        if source.bytes > source.bytes_max {
            return Poll::Ready(Some(Err(CutBody::TooLarge(source.bytes_max))));
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.shared.is_none()
    }
}

/// The instance's body on its way to the caller. Holds all that the request occupies.
pub(super) struct ResponseBody<T> {
    incoming: Incoming,
    size: BodySize,
    bytes_left: u64,
    bytes_max: u64,
    idle: Duration,
    idle_end: Pin<Box<Sleep>>,
    _occupied: T,
}

impl<T> ResponseBody<T> {
    /// Cuts the body behind `bytes_max`, and when nothing comes for `idle`.
    pub fn new(incoming: Incoming, size: BodySize, bytes_max: u64, idle: Duration, occupied: T) -> Self {
        let idle_end = Box::pin(tokio::time::sleep(idle));
        Self { incoming, size, bytes_left: bytes_max, bytes_max, idle, idle_end, _occupied: occupied }
    }
}

impl<T: Unpin> MessageBody for ResponseBody<T> {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Box<dyn Error>>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(frame)) => frame.map_err(|error| CutBody::Incomplete(error.into()))?,
                Poll::Pending => {
                    ready!(self.idle_end.as_mut().poll(context));
                    return Poll::Ready(Some(Err(CutBody::Idle(self.idle).into())));
                }
            };
            // Trailers are not passed on.
            let Ok(chunk) = frame.into_data() else { continue };
            let Some(bytes_left) = self.bytes_left.checked_sub(chunk.len() as u64) else {
                return Poll::Ready(Some(Err(CutBody::TooLarge(self.bytes_max).into())));
            };
            self.bytes_left = bytes_left;
            let idle_end = Instant::now() + self.idle;
            self.idle_end.as_mut().reset(idle_end);
            return Poll::Ready(Some(Ok(chunk)));
        }
    }
}
