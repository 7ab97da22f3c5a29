//! What tests of actors share.

mod cluster;
mod crashes;
mod flows;
mod levels;
mod sequence;

use actix::System;

/// Runs actors on one thread under a paused clock; the result is the same on every run.
pub fn simulate<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("runtime")
    };
    System::with_tokio_rt(runtime).block_on(scenario)
}
