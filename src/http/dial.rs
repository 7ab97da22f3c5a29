//! The way from the gateway to an instance, as a trait: the process brings TLS to the agent, tests
//! bring plain sockets.

use super::problem::{Code, Problem};
use bytes::Bytes;
use faasnet_actors::scheduler::Located;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes in both directions.
pub trait AsyncReadWrite: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> AsyncReadWrite for T {}

/// Reaches instances through the agents of their VMs.
pub trait InstanceDialer: Send + Sync {
    /// Opens a connection to the instance's HTTP port. Dropping it ends the request that it carries.
    fn dial(&self, located: &Located) -> BoxFuture<'static, Result<Box<dyn AsyncReadWrite>, DialError>>;

    /// The last `tail` bytes of the instance's output.
    fn logs(&self, located: &Located, tail: u64) -> BoxFuture<'static, Result<Bytes, DialError>>;
}

/// Why an instance was not reached. No byte of the request has been sent then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("the instance's VM cannot be reached: {0}")]
    Unreachable(String),
    /// The agent has no such instance, or its port takes no connection.
    #[error("the instance does not take connections: {0}")]
    Refused(String),
    /// `requests_per_instance_max` connections are open.
    #[error("the instance has as many connections as it may have")]
    Busy,
}

impl From<DialError> for Problem {
    fn from(error: DialError) -> Self {
        let detail = error.to_string();
        match error {
            DialError::Unreachable(_) => Self::new(Code::VmUnreachable, detail),
            DialError::Refused(_) => Self::new(Code::InstanceRefused, detail),
            DialError::Busy => Self::new(Code::InstanceBusy, detail),
        }
    }
}
