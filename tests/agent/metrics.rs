//! The agent's own numbers: what they say, who gets them, and that they outlast the process.

use super::*;
use std::{collections::BTreeMap, net::SocketAddr, os::unix::fs::PermissionsExt};

/// A port that is free now: what the agents bind must stay the same over their replacement. On an address of this
/// process nobody else is faster.
fn free_address() -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    std::net::TcpListener::bind((std::net::Ipv4Addr::new(127, a | 64, b, c), 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn ask(address: SocketAddr, path: &str, token: Option<&str>) -> reqwest::Response {
    // The client wants to know of TLS even where it does not use it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let request = reqwest::Client::new().get(format!("http://{address}{path}"));
    let request = token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
    patiently(request.send()).await.unwrap()
}

async fn scrape(address: SocketAddr, token: &str) -> (String, BTreeMap<String, f64>) {
    let answer = ask(address, "/metrics", Some(token)).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
    let page = patiently(answer.text()).await.unwrap();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    let samples = lines.map(sample).collect();
    (page, samples)
}

const INSTANCES: &str = r#"faasnet_agent_queue_length{actor="agent",queue="instances"}"#;
const FROM_ORIGIN: &str = r#"faasnet_agent_received_bytes_total{source="origin"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_its_own_numbers_and_so_does_its_successor() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(30, 3 << 20)), SERVE);
    let address = free_address();
    let listen = address.to_string();
    let mut agent = Agent::start(&world, "vm-1", &[("FAASNET__AGENT__METRICS_LISTEN", &listen)]);
    let mut session = world.session("vm-1").await;
    let file = agent.data.join("metrics.token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let (_, before) = scrape(address, &token).await;
    assert_eq!(before[INSTANCES], 0.0);
    assert_eq!(before[FROM_ORIGIN], 0.0);

    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    let (page, after) = scrape(address, &token).await;
    super::promtool::promtool(&["check", "metrics"], &page);
    assert_eq!(after[INSTANCES], 1.0);
    assert_eq!(after[r#"faasnet_agent_queue_limit{actor="agent",queue="instances"}"#], 100.0);
    assert_eq!(after["faasnet_agent_actors_up"], 1.0);
    assert_eq!(after["faasnet_agent_trees"], 1.0);
    assert_eq!(after[r#"faasnet_agent_received_bytes_total{source="parent"}"#], 0.0);
    let disk = r#"faasnet_agent_queue_length{actor="block_store",queue="disk bytes"}"#;
    for name in [
        FROM_ORIGIN,
        disk,
        "faasnet_agent_origin_requests_total",
        "faasnet_agent_blocks_present",
        "faasnet_agent_stalls_total",
        "process_resident_memory_bytes",
    ] {
        assert!(after[name] > 0.0, "{name} in\n{page}");
    }
    // Index and blocks, of which only the blocks are counted as received.
    assert!(after["faasnet_agent_origin_bytes_total"] >= after[FROM_ORIGIN]);
    for name in ["acme", "s1", "vm-1", &image.id.to_string()] {
        assert!(!page.contains(name), "{name} is in\n{page}");
    }

    for wrong in [None, Some("fn_wrong"), Some("")] {
        let answer = ask(address, "/metrics", wrong).await;
        assert_eq!(answer.status(), 401);
        assert!(!answer.text().await.unwrap().contains("faasnet_agent"));
    }
    assert_eq!(ask(address, "/", Some(&token)).await.status(), 404);
    let post = reqwest::Client::new().post(format!("http://{address}/metrics")).bearer_auth(&token);
    assert_ne!(patiently(post.send()).await.unwrap().status(), 200);

    let mut old = agent.replaced();
    let again = world.session("vm-1").await;
    assert!(again.hello.instances[0].ready);
    assert!(old.ends().await, "{}", old.log());
    std::mem::forget(old);
    let (_, next) = scrape(address, &token).await;
    assert_eq!(next[INSTANCES], 1.0);
    assert_eq!(next["faasnet_agent_blocks_present"], after["faasnet_agent_blocks_present"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_child_receives_is_its_parents_and_a_taken_address_costs_nobody_anything() {
    let world = World::new().await;
    let image = world.image("web", &website(&noise(31, 1 << 20)), SERVE);
    let (address, taken) = (free_address(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let _parent = Agent::start(&world, "vm-1", &[]);
    let mut parent = world.session("vm-1").await;
    parent.orders.send(world.order("s1", &image, "vm-1", &parent, vec![Upstream::Origin])).unwrap();
    parent.ready("s1").await;
    let listen = address.to_string();
    let agent = Agent::start(&world, "vm-2", &[("FAASNET__AGENT__METRICS_LISTEN", &listen)]);
    let mut session = world.session("vm-2").await;
    let above = Upstream::Vm { vm: "vm-1".parse().unwrap(), address: parent.hello.address };
    session.orders.send(world.order("s2", &image, "vm-2", &session, vec![above])).unwrap();
    session.ready("s2").await;
    let token = std::fs::read_to_string(agent.data.join("metrics.token")).unwrap().trim().to_owned();
    let (_, samples) = scrape(address, &token).await;
    assert!(samples[r#"faasnet_agent_received_bytes_total{source="parent"}"#] > 0.0);
    assert_eq!(samples[FROM_ORIGIN], 0.0);

    // A successor that cannot listen leaves the agent where it was, with its numbers.
    let listen = taken.local_addr().unwrap().to_string();
    let mut next = Agent::start_replacing(&world, "vm-2", &[("FAASNET__AGENT__METRICS_LISTEN", &listen)]);
    assert!(!next.ends().await);
    assert!(next.log().contains("choose another address with agent.metrics_listen"), "{}", next.log());
    std::mem::forget(next);
    let again = world.session("vm-2").await;
    assert!(again.hello.instances[0].ready);
    let (_, samples) = scrape(address, &token).await;
    assert_eq!(samples[INSTANCES], 1.0);
}
