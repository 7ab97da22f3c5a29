//! The client for code that blocks, such as the converter.
//!
//! It brings a runtime of its own, which runs on the threads that call: no thread to hand bytes over to,
//! and no dependence on the runtime that the caller's blocking thread belongs to.

use super::{RegistryClient, RegistryError};
use crate::settings::OriginSettings;
use std::{io, sync::Arc};
use tokio::runtime::{Builder, Runtime};

/// A client and the runtime that drives it. Calls must come from blocking threads. Connections make
/// progress only during calls, so what is not read is not received: the kernel's buffers bound it.
#[derive(Debug, Clone)]
pub struct BlockingClient {
    client: RegistryClient,
    runtime: Arc<BackgroundRuntime>,
}

impl BlockingClient {
    /// As [`RegistryClient::new`].
    pub fn new(settings: &OriginSettings, seed: u64) -> Result<Self, RegistryError> {
        let client = RegistryClient::new(settings, seed)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error: io::Error| RegistryError::Setup(error.to_string()))?;
        Ok(Self { client, runtime: Arc::new(BackgroundRuntime(Some(runtime))) })
    }

    /// Does something with the client and waits for it.
    pub fn wait<'a, Answer: Future>(
        &'a self,
        call: impl FnOnce(&'a RegistryClient) -> Answer,
    ) -> Answer::Output {
        let runtime = self.runtime.0.as_ref().expect("there until the last copy is dropped");
        runtime.block_on(call(&self.client))
    }
}

/// A runtime that may be dropped within another, which a bare one refuses.
#[derive(Debug)]
struct BackgroundRuntime(Option<Runtime>);

impl Drop for BackgroundRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
