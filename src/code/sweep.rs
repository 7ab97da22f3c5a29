//! Removes packages that no function names, now and then.

use super::CodePackages;
use faasnet_actors::scheduler::SchedulerHandle;
use std::time::Duration;

/// How often in the time that an unused package is kept.
const LOOKS: u32 = 4;

/// Looks until it is dropped.
pub async fn sweep(packages: CodePackages, scheduler: SchedulerHandle, unused: Duration) {
    let mut looks = tokio::time::interval((unused / LOOKS).max(Duration::from_secs(1)));
    loop {
        looks.tick().await;
        // The manager may be starting or shutting down; the next look tells.
        let Ok(named) = scheduler.code_packages().await else { continue };
        let packages = packages.clone();
        let removed = tokio::task::spawn_blocking(move || packages.remove_unused(&named, unused)).await;
        match removed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "packages that no function names were not removed"),
            Err(error) => tracing::error!(%error, "looking for packages that no function names crashed"),
        }
    }
}
