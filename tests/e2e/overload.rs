//! Ten times what a function can serve, for some seconds: `faasnet-loadtest overload` does it for a minute.

use crate::support::*;
use faasnet_loadtest::overload::{Plan, measure};
use std::time::Duration;

#[test]
fn overload_is_refused_with_when_to_come_back_and_leaves_nothing_behind() {
    let plan = Plan {
        instances: 2,
        concurrency: 2,
        service: Duration::from_millis(100),
        factor: 10.0,
        calm: Duration::from_secs(2),
        overload: Duration::from_secs(4),
        waiting_max: 40,
    };
    let report = measure(program().as_ref(), &cache(), plan).unwrap();
    eprintln!("{report}");
    report.check().unwrap();
    let [_, overload, after] = report.loaded.as_slice() else { panic!("three phases") };
    assert!(overload.with_status(429) > overload.requests / 2, "most is refused: {overload:?}");
    assert!(overload.with_status(200) > 0, "what can be served is: {overload:?}");
    // The load after it is half of what can be served: all that waited is gone, and is served again.
    assert_eq!(report.waiting_after, 0);
    assert!(after.with_status(200) > 0, "{after:?}");
}
