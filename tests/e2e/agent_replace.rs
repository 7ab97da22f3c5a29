//! `faasnet agent --replace` under open load: containers read new blocks and answer requests throughout.

use crate::support::*;
use faasnet_loadtest::{
    load::{Limits, Load, Piece, Rates, Target},
    rig::{Api, wait_until},
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// Requests a second, through the gateway.
const RATE: f64 = 40.0;
/// Far longer than the three replacements take on two busy cores.
const LOAD: Duration = Duration::from_secs(30);
const REPLACES: usize = 3;

#[test]
fn no_request_and_no_read_fails_while_an_agent_is_replaced_three_times() {
    let (mut cluster, reference) = cluster_with_python(spec(1));
    let arguments = ["function", "deploy", "python", "--image", &reference, "--max", "1"];
    cluster.cli(&[&arguments[..], &["--concurrency", "64"]].concat()).unwrap();
    let start = start_ready(&cluster, "python", 1).remove(0);
    let hello: Value = serde_json::from_str(&invoke(&cluster, "python", "/", &start)).unwrap();
    let process = container_process(&cluster, &start);

    let port = u16::try_from(number(&hello, "/port")).unwrap();
    let from = Some((cluster.bed.state().clone(), "vm-1".to_owned()));
    let container = Api { address: SocketAddr::from(([127, 0, 0, 1], port)), token: String::new(), from };
    let is_of_image = |path: &str| path.starts_with("/usr/") || path.starts_with("/opt/");
    let files: Vec<_> = reference_listing(&python())
        .into_values()
        .filter(|entry| entry.bytes > 0 && is_of_image(&entry.path))
        .collect();
    let target = Target::get("/fn/python/sleep?ms=50", &cluster.api.token, "default");
    let rates = Rates(vec![Piece { from: RATE, to: RATE, length: LOAD }]);
    let limits = Limits { deadline: Duration::from_secs(60), in_flight_max: 1000 };
    let load = Load::of_one(cluster.api.address, target, &rates, limits);
    let bed = cluster.bed.state().clone();
    let read = AtomicUsize::new(0);
    let samples = std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let send = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(load.send())
            };
            bed.inside("manager", send).unwrap()
        });
        let reader = scope.spawn(|| {
            for entry in &files {
                let path = format!("/read?path={}", percent_encoded(&entry.path));
                let answer = container.call("GET", &path, "").unwrap();
                assert_eq!(answer.text(), entry.sha256, "{}", entry.path);
                read.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..REPLACES {
            let before = read.load(Ordering::Relaxed);
            let went_on =
                || Ok((read.load(Ordering::Relaxed) > before || reader.is_finished()).then_some(()));
            wait_until("the reading to go on", READY, went_on).unwrap();
            cluster.replace_agent("vm-1").unwrap();
        }
        assert!(!loading.is_finished(), "the load must last longer than the replacements");
        reader.join().expect("no read failed");
        loading.join().expect("the load was sent")
    });

    assert_eq!(read.load(Ordering::Relaxed), files.len());
    let failed: Vec<_> = samples.iter().filter(|sample| !sample.outcome.is_ok()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), samples.len(), failed.first());
    let longest = samples.iter().map(|sample| sample.latency).max().unwrap();
    eprintln!("{} requests, {REPLACES} replacements, longest answer {longest:?}", samples.len());
    // The same process, with all that it had.
    assert_eq!(container_process(&cluster, &start), process);
    assert_eq!(serde_json::from_str::<Value>(&invoke(&cluster, "python", "/", &start)).unwrap(), hello);
    assert_eq!(cluster.vms().unwrap()["vm-1"]["state"], "up");
}
