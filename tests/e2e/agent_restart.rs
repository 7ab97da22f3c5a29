//! kill -9 of the agent while its container reads files and answers requests.

use crate::support::*;
use faasnet_loadtest::rig::Api;
use serde_json::json;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

#[test]
fn a_container_reads_and_answers_while_its_agent_is_killed_and_replaced() {
    let (mut cluster, reference) = cluster_with_python(spec(1));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let start = start_ready(&cluster, "python", 1).remove(0);
    let hello: serde_json::Value = serde_json::from_str(&invoke(&cluster, "python", "/", &start)).unwrap();

    // The container's own port: requests over the gateway would rightly fail while the agent is away.
    let port = u16::try_from(number(&hello, "/port")).unwrap();
    let from = Some((cluster.bed.state().clone(), "vm-1".to_owned()));
    let container = Api { address: SocketAddr::from(([127, 0, 0, 1], port)), token: String::new(), from };
    // What the container runtime mounts below /etc is not the image's.
    let is_of_image = |path: &str| path.starts_with("/usr/") || path.starts_with("/opt/");
    let files: Vec<_> = reference_listing(&python())
        .into_values()
        .filter(|entry| entry.bytes > 0 && is_of_image(&entry.path))
        .collect();
    let read = AtomicUsize::new(0);

    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for entry in &files {
                let path = format!("/read?path={}", percent_encoded(&entry.path));
                let answer = container.call("GET", &path, "").unwrap();
                assert_eq!(answer.text(), entry.sha256, "{}", entry.path);
                read.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Three times in the middle of the reading; each time it must go on further than before.
        for _ in 0..3 {
            cluster.kill_agent("vm-1").unwrap();
            cluster.start_agent("vm-1").unwrap();
            let before = read.load(Ordering::Relaxed);
            let went_on =
                || Ok((read.load(Ordering::Relaxed) > before || reader.is_finished()).then_some(()));
            faasnet_loadtest::rig::wait_until("the reading to go on", READY, went_on).unwrap();
        }
        reader.join().expect("no read failed");
    });
    assert_eq!(read.load(Ordering::Relaxed), files.len());

    // The manager has the same instance again, and requests reach the same process.
    let ready = cluster.api.ready(text(&start, "id"), READY).unwrap();
    assert_eq!(ready["vm"], json!("vm-1"));
    let again = || {
        let answer = cluster.cli(&["invoke", "python", "/", "--on", text(&start, "id")]).ok();
        Ok(answer)
    };
    let answer = faasnet_loadtest::rig::wait_until("the agent to join again", READY, again).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&answer).unwrap(), hello);
}
