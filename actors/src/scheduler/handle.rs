//! What others hold of the scheduler.

use super::messages::{Acquired, Ask, CallId, ControlError, Located, Reply, Request};
use crate::{
    id::{Digest, FunctionName, RequestId, StartId, TenantId, VmId},
    model::{
        Counts, FunctionSpec, FunctionView, PreheatSpec, PreheatView, ProfileView, StartView, TreeView,
        VmView,
    },
    support::{Full, SharedPermits},
};
use actix::Recipient;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// The control plane as HTTP handlers see it. Cheap to clone.
///
/// At most `mailbox_permits` messages wait for the scheduler, and one tenant's take at most as many
/// places as they leave free. Above it a call is answered at once, with `TooMany` or `Overloaded`.
#[derive(Clone)]
pub struct SchedulerHandle {
    requests: Recipient<Request>,
    permits: SharedPermits<Option<TenantId>>,
    calls: Arc<AtomicU64>,
    request: Option<RequestId>,
}

/// Pause suggested to callers when the mailbox is full: it drains within milliseconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl SchedulerHandle {
    pub fn new(requests: Recipient<Request>, mailbox_permits: usize) -> Self {
        let (permits, calls) = (SharedPermits::new(mailbox_permits), Arc::default());
        Self { requests, permits, calls, request: None }
    }

    /// Starts that are accepted because of what is asked here carry that id.
    pub fn for_request(self, request: Option<RequestId>) -> Self {
        Self { request, ..self }
    }

    /// Asks on behalf of a tenant, or of those who may ask about all.
    async fn ask<T>(
        &self,
        tenant: Option<TenantId>,
        ask: impl FnOnce(Reply<T>) -> Ask,
    ) -> Result<T, ControlError> {
        let permit = self.permits.take(tenant).map_err(|full| match full {
            Full::Owner => ControlError::TooMany { what: "calls of this tenant", retry_after: RETRY_AFTER },
            Full::All => ControlError::Overloaded { retry_after: RETRY_AFTER },
        })?;
        let (reply, answer) = oneshot::channel();
        let request = self.request.clone();
        self.requests.do_send(Request { ask: ask(reply), permit: Some(permit), request });
        answer.await.unwrap_or_else(|_| match self.requests.connected() {
            true => Err(ControlError::Interrupted { retry_after: RETRY_AFTER }),
            false => Err(ControlError::Closed),
        })
    }

    pub async fn put_function(
        &self,
        tenant: TenantId,
        name: FunctionName,
        spec: FunctionSpec,
    ) -> Result<FunctionView, ControlError> {
        spec.check().map_err(|error| ControlError::Invalid(error.to_string()))?;
        self.ask(Some(tenant.clone()), |reply| Ask::PutFunction { tenant, name, spec, reply }).await
    }

    pub async fn function(&self, tenant: TenantId, name: FunctionName) -> Result<FunctionView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::GetFunction { tenant, name, reply }).await
    }

    pub async fn functions(&self, tenant: TenantId) -> Result<Vec<FunctionView>, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::ListFunctions { tenant, reply }).await
    }

    pub async fn delete_function(&self, tenant: TenantId, name: FunctionName) -> Result<(), ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::DeleteFunction { tenant, name, reply }).await
    }

    pub async fn start(
        &self,
        tenant: TenantId,
        name: FunctionName,
        count: u32,
    ) -> Result<Vec<StartId>, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::Start { tenant, name, count, reply }).await
    }

    pub async fn start_view(&self, tenant: TenantId, start: StartId) -> Result<StartView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::GetStart { tenant, start, reply }).await
    }

    pub async fn starts(
        &self,
        tenant: TenantId,
        name: FunctionName,
        limit: usize,
    ) -> Result<Vec<StartView>, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::ListStarts { tenant, name, limit, reply }).await
    }

    pub async fn stop(&self, tenant: TenantId, start: StartId) -> Result<(), ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::Stop { tenant, start, reply }).await
    }

    pub async fn locate(&self, tenant: TenantId, start: StartId) -> Result<Located, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::Locate { tenant, start, reply }).await
    }

    /// Waits for a place at an instance until the deadline. The place is given back when the value
    /// is dropped; a caller that drops this future waits no more.
    pub async fn acquire(
        &self,
        tenant: TenantId,
        name: FunctionName,
        on: Option<StartId>,
        deadline: Instant,
    ) -> Result<Acquired, ControlError> {
        let call = CallId(self.calls.fetch_add(1, Ordering::Relaxed));
        let mut abandon = Abandon { requests: &self.requests, call, is_waiting: true };
        let waiting =
            self.ask(Some(tenant.clone()), |reply| Ask::Acquire { call, tenant, name, on, deadline, reply });
        let answer = tokio::time::timeout_at(deadline, waiting).await;
        abandon.is_waiting = answer.is_err();
        // A place that comes with the deadline comes too late: whoever has it must not use it.
        if Instant::now() >= deadline {
            return Err(ControlError::DeadlineExceeded);
        }
        answer.unwrap_or(Err(ControlError::DeadlineExceeded))
    }

    /// The packages of code that functions name, or are about to.
    pub async fn code_packages(&self) -> Result<BTreeSet<(TenantId, Digest)>, ControlError> {
        self.ask(None, |reply| Ask::ListCode { reply }).await
    }

    pub async fn vms(&self) -> Result<Vec<VmView>, ControlError> {
        self.ask(None, |reply| Ask::ListVms { reply }).await
    }

    /// How much there is of everything, of all tenants.
    pub async fn counts(&self) -> Result<Counts, ControlError> {
        self.ask(None, |reply| Ask::Count { reply }).await
    }

    pub async fn remove_vm(&self, vm: VmId) -> Result<(), ControlError> {
        self.ask(None, |reply| Ask::RemoveVm { vm, reply }).await
    }

    pub async fn drain_vm(&self, vm: VmId, force: bool) -> Result<VmView, ControlError> {
        self.ask(None, |reply| Ask::DrainVm { vm, force, reply }).await
    }

    pub async fn undrain_vm(&self, vm: VmId) -> Result<VmView, ControlError> {
        self.ask(None, |reply| Ask::UndrainVm { vm, reply }).await
    }

    /// The tree of the function's image, and in it that of its code.
    pub async fn tree(&self, tenant: TenantId, name: FunctionName) -> Result<TreeView, ControlError> {
        let ask = |of_code| {
            let (tenant, name) = (tenant.clone(), name.clone());
            self.ask(Some(tenant.clone()), move |reply| Ask::GetTree { tenant, name, of_code, reply })
        };
        let mut view = ask(false).await?;
        view.code = match ask(true).await {
            Ok(code) => Some(Box::new(code)),
            // It has none, or no VM is in its tree yet.
            Err(ControlError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(view)
    }

    /// Brings the function's image to VMs before any start.
    pub async fn preheat(
        &self,
        tenant: TenantId,
        name: FunctionName,
        spec: PreheatSpec,
    ) -> Result<PreheatView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::Preheat { tenant, name, spec, reply }).await
    }

    pub async fn preheated(&self, tenant: TenantId, name: FunctionName) -> Result<PreheatView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::GetPreheat { tenant, name, reply }).await
    }

    pub async fn profile(&self, tenant: TenantId, name: FunctionName) -> Result<ProfileView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::GetProfile { tenant, name, reply }).await
    }

    /// Packs the function's image by what its starts read.
    pub async fn optimize(&self, tenant: TenantId, name: FunctionName) -> Result<ProfileView, ControlError> {
        self.ask(Some(tenant.clone()), |reply| Ask::Optimize { tenant, name, reply }).await
    }
}

/// Takes a call back when its caller is gone, so that nothing is done for it any more.
struct Abandon<'a> {
    requests: &'a Recipient<Request>,
    call: CallId,
    is_waiting: bool,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if self.is_waiting {
            self.requests.do_send(Request {
                ask: Ask::Abandon { call: self.call },
                permit: None,
                request: None,
            });
        }
    }
}
