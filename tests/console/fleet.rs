//! The way of an operator: from the login over a burst to the loss of an agent and of the manager.

use crate::{
    browser::{Browser, DESK, PHONE, with_browser},
    spec,
};
use faasnet::sample::{self, SampleOptions};
use faasnet_loadtest::rig::{Cluster, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const VMS: usize = 8;
const READY: Duration = Duration::from_secs(120);
const SUMMARY: &str = "document.querySelector('#tree-summary')?.textContent";

fn shows(text: &str) -> String {
    format!("document.body.innerText.includes({})", json!(text))
}

#[test]
fn an_operator_logs_in_starts_drains_and_sees_repairs() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_faasnet").into();
    let options = SampleOptions { seed: 7, program, ballast_bytes: 64 << 20, read_bytes: 8 << 20 };
    let image = sample::build(&folder.path().join("layout"), &options).unwrap();
    let mut spec = spec(VMS);
    spec.settings.insert("IMAGE__LAYOUT_ROOTS".to_owned(), folder.path().to_str().unwrap().to_owned());
    let mut cluster = Cluster::up(spec).unwrap();
    with_browser(&mut cluster, async |cluster, browser| {
        log_in(cluster, browser).await;
        deploy(browser, &image.reference()).await;
        start_all(browser).await;
        let start = look_at_a_start(browser).await;
        take_pictures(browser, &start).await;
        expect_complaints(browser, &["/v1/session", "/v1/functions/sample/tree"]).await;
        lose_an_agent(cluster, browser).await;
        drain(cluster, browser).await;
        expect_complaints(browser, &[]).await;
        lose_the_manager(cluster, browser).await;
        log_out(browser).await;
        expect_complaints(browser, &["/v1/session"]).await;
    });
}

/// Nothing but refusals that were provoked: they are of these addresses, and the network's.
pub async fn expect_complaints(browser: &Browser, addresses: &[&str]) {
    let complaints = browser.complaints().await;
    let is_expected = |complaint: &&String| {
        complaint.starts_with("network: ") && addresses.iter().any(|address| complaint.contains(address))
    };
    let unexpected: Vec<_> = complaints.iter().filter(|complaint| !is_expected(complaint)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

async fn log_in(cluster: &Cluster, browser: &Browser) {
    browser.log_in("fn_wrong").await;
    browser.see(&shows("this manager knows no such token")).await;
    browser.fill("#token", &cluster.api.token).await;
    browser.click("button", "Log in").await;
    browser.see("document.body.dataset.stream === 'live'").await;
    browser.see(&shows("Deploy your first one")).await;
    let cookies = browser.run("return document.cookie;", vec![]).await;
    assert_eq!(cookies, json!(""), "no script can read the session");
    browser.picture("overview-empty").await;
}

async fn deploy(browser: &Browser, image: &str) {
    browser.click("button", "Deploy a function").await;
    browser.see("Boolean(document.querySelector('dialog[open] [name=name]'))").await;
    browser.fill("[name=name]", "sample").await;
    browser.fill("[name=image]", image).await;
    browser.fill("[name=probe]", "/healthz").await;
    browser.click("dialog button", "Deploy").await;
    browser.see("location.hash === '#/functions/sample'").await;
    browser.see("document.querySelector('.heading .badge')?.textContent === 'ready'").await;
    browser.see(&shows("No VM has this image")).await;
}

/// The tree grows before one's eyes, without anything being asked for again.
async fn start_all(browser: &Browser) {
    let watch = "window.seen = [];
        const summary = document.querySelector('#tree-summary');
        new MutationObserver(() => window.seen.push(summary.textContent)).observe(summary, { childList: true, characterData: true, subtree: true });";
    browser.run(watch, vec![]).await;
    browser.fill("#start-count", &VMS.to_string()).await;
    browser.click("#start-form button", "Start").await;
    browser.see(&format!("{SUMMARY}?.startsWith('{VMS} of {VMS} VMs ready')")).await;
    let seen = browser.run("return window.seen;", vec![]).await;
    let seen: Vec<&str> = seen.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let before = seen.iter().filter(|text| !text.starts_with(&format!("{VMS} of "))).count();
    assert!(before >= 1, "the tree was seen while it grew: {seen:?}");
    browser.see(&shows(&format!("{VMS} ready, 0 starting"))).await;
}

/// From the list of starts to the waterfall of one; its id.
async fn look_at_a_start(browser: &Browser) -> String {
    browser.go("starts").await;
    browser.see(&format!("document.querySelectorAll('tbody a[href^=\"#/start/\"]').length === {VMS}")).await;
    browser.click("tbody a[href^='#/start/']", "").await;
    browser.see(&shows("Why did it take that long?")).await;
    browser.see(&shows("median of 7 others")).await;
    browser.see("document.querySelector('.answer p').textContent.length > 5").await;
    let phases =
        browser.run("return document.querySelectorAll('.waterfall .phase:not(.typical)').length;", vec![]);
    assert!(phases.await.as_u64().unwrap() >= 6, "the phases of a start that is ready");
    let hash = browser.run("return location.hash;", vec![]).await;
    hash.as_str().unwrap().trim_start_matches("#/start/").to_owned()
}

/// Each page once on a desk, light and dark, and on a phone.
async fn take_pictures(browser: &Browser, start: &str) {
    let start = format!("start/{start}");
    let pages = [
        ("overview", "", "From the registry"),
        ("function", "functions/sample", "VMs of the tree"),
        ("instances", "functions/sample/instances", "Output"),
        ("profile", "functions/sample/profile", "Recorded starts"),
        ("settings", "functions/sample/settings", "Readiness probe"),
        ("vms", "vms", "vm-8"),
        ("vm", "vms/vm-1", "Trees that it is in"),
        ("starts", "starts", "Longest phase"),
        ("start", &start, "Where its time went"),
        ("actors", "actors", "scheduler"),
        ("events", "events", "transfer"),
        ("audit", "audit", "PUT /v1/functions/sample"),
    ];
    browser.run("document.querySelectorAll('#notices button').forEach((one) => one.click());", vec![]).await;
    for (window, size, is_dark) in [("light", DESK, false), ("dark", DESK, true), ("phone", PHONE, false)] {
        browser.sized(size).await;
        browser.dark(is_dark).await;
        for (name, page, text) in pages {
            browser.go(page).await;
            browser.see(&shows(text)).await;
            // Until what was asked for is drawn.
            browser.see("new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(() => seen(true))))").await;
            browser.fits(&format!("{name} {window}")).await;
            browser.picture(&format!("{name}-{window}")).await;
        }
    }
    browser.sized(DESK).await;
    browser.dark(false).await;
}

/// kill -9 of an agent in the middle of the tree: who hung on it moves, and it is said. It comes back to its container.
async fn lose_an_agent(cluster: &mut Cluster, browser: &Browser) {
    let tree = cluster.api.get("/v1/functions/sample/tree").unwrap();
    let middle = tree["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|member| !member["parent"].is_null() && !member["children"].as_array().unwrap().is_empty());
    let vm = middle.unwrap()["vm"].as_str().unwrap().to_owned();
    browser.go("functions/sample").await;
    browser.see(&format!("{SUMMARY}?.startsWith('{VMS} of {VMS} VMs ready')")).await;
    cluster.kill_agent(&vm).unwrap();
    let left = VMS - 1;
    browser.see(&format!("{SUMMARY}?.startsWith('{left} of {left} VMs ready')")).await;
    let changes = |kind: &str, text: &str| {
        format!(
            "[...document.querySelectorAll('.changes .{kind}')].some((one) => one.textContent.includes({}))",
            json!(text)
        )
    };
    browser.see(&changes("left", &format!("{vm} left"))).await;
    browser.see(&changes("moved", "moved below")).await;
    browser.picture("repair").await;
    cluster.start_agent(&vm).unwrap();
    cluster.wait_for_vms(VMS).unwrap();
}

/// Its instance, which nobody needs, ends, and it leaves the tree.
async fn drain(cluster: &Cluster, browser: &Browser) {
    let vms = cluster.vms().unwrap();
    let busy = vms.iter().find(|(_, vm)| !vm["instances"].as_array().unwrap().is_empty()).unwrap().0;
    browser.go("vms").await;
    let row = format!(
        "[...document.querySelectorAll('tbody tr')].find((row) => row.cells[0]?.textContent === {})",
        json!(busy)
    );
    browser.see(&format!("Boolean({row}?.querySelector('button'))")).await;
    browser.run(&format!("{row}.querySelector('button').click();"), vec![]).await;
    browser.click("dialog button", "Drain").await;
    browser.see(&format!("{row}.innerText.includes('drained')")).await;
    wait_until("the instance to have ended", READY, || {
        Ok((cluster.api.get("/v1/functions/sample")?["ready"] == json!(VMS - 1)).then_some(()))
    })
    .unwrap();
    browser.run(&format!("{row}.querySelector('button').click();"), vec![]).await;
    browser.see(&format!("{row}.cells[1].textContent === 'up'")).await;
}

/// The page says that the manager is away, stays as it was, and goes on by itself.
async fn lose_the_manager(cluster: &mut Cluster, browser: &Browser) {
    browser.go("functions/sample").await;
    let summary = format!("{SUMMARY}?.includes('of {} VMs ready')", VMS - 1);
    browser.see(&summary).await;
    let snapshots = browser.run("return Number(document.body.dataset.snapshots);", vec![]).await;
    cluster.kill_manager().unwrap();
    browser.see(&shows("No connection to the manager")).await;
    assert_eq!(
        browser.run(&format!("return {summary};"), vec![]).await,
        json!(true),
        "what was known is shown"
    );
    browser.picture("away").await;
    expect_complaints(browser, &["/v1/session", "/v1/events", "/healthz"]).await;

    cluster.start_manager().unwrap();
    cluster.wait_for_vms(VMS).unwrap();
    browser.see("document.body.dataset.stream === 'live'").await;
    browser.see(&format!("Number(document.body.dataset.snapshots) > {snapshots}")).await;
    browser.see("document.querySelector('#banner').textContent === ''").await;
    browser.see(&shows(&format!("{} ready, 0 starting", VMS - 1))).await;
    expect_complaints(browser, &["/v1/session", "/v1/events", "/healthz", "/v1/functions/sample/tree"]).await;
}

async fn log_out(browser: &Browser) {
    browser.click("#header button", "Log out").await;
    browser.see("Boolean(document.querySelector('#token'))").await;
    browser.driver.refresh().await.unwrap();
    browser.see("Boolean(document.querySelector('#token'))").await;
}
