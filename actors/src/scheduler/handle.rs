//! What others hold of the scheduler.

use super::messages::{Acquired, Ask, ControlError, Located, Reply, Request};
use crate::{
    id::{FunctionName, StartId, TenantId, VmId},
    model::{FunctionSpec, FunctionView, StartView, TreeView, VmView},
};
use actix::Recipient;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

/// The control plane as HTTP handlers see it. Cheap to clone.
///
/// At most `mailbox_permits` messages wait for the scheduler; above it every call answers
/// `Overloaded` at once.
#[derive(Clone)]
pub struct SchedulerHandle {
    requests: Recipient<Request>,
    permits: Arc<Semaphore>,
}

/// Pause suggested to callers when the mailbox is full: it drains within milliseconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl SchedulerHandle {
    pub fn new(requests: Recipient<Request>, mailbox_permits: usize) -> Self {
        Self { requests, permits: Arc::new(Semaphore::new(mailbox_permits)) }
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, ControlError> {
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| ControlError::Overloaded { retry_after: RETRY_AFTER })?;
        let (reply, answer) = oneshot::channel();
        self.requests.do_send(Request { ask: ask(reply), permit });
        answer.await.unwrap_or(Err(ControlError::Closed))
    }

    pub async fn put_function(
        &self,
        tenant: TenantId,
        name: FunctionName,
        spec: FunctionSpec,
    ) -> Result<FunctionView, ControlError> {
        spec.check().map_err(|error| ControlError::Invalid(error.to_string()))?;
        self.ask(|reply| Ask::PutFunction { tenant, name, spec, reply }).await
    }

    pub async fn function(&self, tenant: TenantId, name: FunctionName) -> Result<FunctionView, ControlError> {
        self.ask(|reply| Ask::GetFunction { tenant, name, reply }).await
    }

    pub async fn functions(&self, tenant: TenantId) -> Result<Vec<FunctionView>, ControlError> {
        self.ask(|reply| Ask::ListFunctions { tenant, reply }).await
    }

    pub async fn delete_function(&self, tenant: TenantId, name: FunctionName) -> Result<(), ControlError> {
        self.ask(|reply| Ask::DeleteFunction { tenant, name, reply }).await
    }

    pub async fn start(
        &self,
        tenant: TenantId,
        name: FunctionName,
        count: u32,
    ) -> Result<Vec<StartId>, ControlError> {
        self.ask(|reply| Ask::Start { tenant, name, count, reply }).await
    }

    pub async fn start_view(&self, tenant: TenantId, start: StartId) -> Result<StartView, ControlError> {
        self.ask(|reply| Ask::GetStart { tenant, start, reply }).await
    }

    pub async fn starts(
        &self,
        tenant: TenantId,
        name: FunctionName,
        limit: usize,
    ) -> Result<Vec<StartView>, ControlError> {
        self.ask(|reply| Ask::ListStarts { tenant, name, limit, reply }).await
    }

    pub async fn stop(&self, tenant: TenantId, start: StartId) -> Result<(), ControlError> {
        self.ask(|reply| Ask::Stop { tenant, start, reply }).await
    }

    pub async fn locate(&self, tenant: TenantId, start: StartId) -> Result<Located, ControlError> {
        self.ask(|reply| Ask::Locate { tenant, start, reply }).await
    }

    /// Waits for a place at an instance until the deadline. The place is given back when the value
    /// is dropped.
    pub async fn acquire(
        &self,
        tenant: TenantId,
        name: FunctionName,
        on: Option<StartId>,
        deadline: Instant,
    ) -> Result<Acquired, ControlError> {
        let waiting = self.ask(|reply| Ask::Acquire { tenant, name, on, deadline, reply });
        tokio::time::timeout_at(deadline, waiting).await.unwrap_or(Err(ControlError::DeadlineExceeded))
    }

    pub async fn vms(&self) -> Result<Vec<VmView>, ControlError> {
        self.ask(|reply| Ask::ListVms { reply }).await
    }

    pub async fn remove_vm(&self, vm: VmId) -> Result<(), ControlError> {
        self.ask(|reply| Ask::RemoveVm { vm, reply }).await
    }

    pub async fn tree(&self, tenant: TenantId, name: FunctionName) -> Result<TreeView, ControlError> {
        self.ask(|reply| Ask::GetTree { tenant, name, reply }).await
    }
}
