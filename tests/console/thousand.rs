//! A thousand VMs and a thousand events a second, as the simulator's manager told them: the page stays fluid.

use crate::{
    browser::{Browser, with_browser},
    recording::Recording,
    spec,
};
use faasnet_loadtest::rig::Cluster;
use serde_json::Value;

/// Collects, for two seconds, how far apart frames are, how long scripts kept the page busy, and what was applied.
const MEASURE: &str = r"
    const done = arguments[arguments.length - 1];
    const frames = [];
    let busy = 0;
    let longest = 0;
    new PerformanceObserver((list) => {
      for (const task of list.getEntries()) {
        busy += task.duration;
        longest = Math.max(longest, task.duration);
      }
    }).observe({ type: 'longtask' });
    window.feed.play();
    const sent = window.feed.sent;
    const began = performance.now();
    let before = began;
    const frame = (now) => {
      frames.push(now - before);
      before = now;
      if (now - began < 2000) return requestAnimationFrame(frame);
      window.feed.pause();
      frames.sort((one, other) => one - other);
      const at = (share) => frames[Math.floor((frames.length - 1) * share)];
      const seconds = (now - began) / 1000;
      done({ frames_per_second: frames.length / seconds, median_ms: at(0.5), p95_ms: at(0.95), max_ms: at(1),
        long_tasks_ms_per_second: busy / seconds, longest_task_ms: longest, events_per_second: (window.feed.sent - sent) / seconds });
    };
    requestAnimationFrame(frame);";

#[test]
fn a_thousand_vms_and_a_thousand_events_a_second_stay_fluid() {
    let mut cluster = Cluster::up(spec(0)).unwrap();
    with_browser(&mut cluster, async |_, browser| {
        let recording = Recording::make();
        browser.first_run(&recording.script(1000)).await;
        browser.driver.goto(format!("{}/console/", browser.url)).await.unwrap();
        browser.see("document.body.dataset.stream === 'live'").await;
        // The burst while the first pages are looked at, and the repairs when it is the tree's turn.
        for (name, page, text) in [
            ("starts", "starts", "Longest phase"),
            ("vms", "vms", "vm-00020"),
            ("events", "events", "starting"),
            ("actors", "actors", "and 800 more"),
            ("overview", "", "From the registry"),
            ("function", "functions/web", "VMs ready"),
        ] {
            browser.go(page).await;
            browser.see(&format!("document.body.innerText.includes({text:?})")).await;
            let measured = browser.driver.execute_async(MEASURE, vec![]).await.unwrap().json().clone();
            println!("{name} with 1,000 VMs: {measured}");
            browser.picture(&format!("{name}-thousand")).await;
            let figure =
                |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("no {name}: {measured}"));
            assert!(figure("events_per_second") > 900.0, "{name}: {measured}");
            // A machine that has other things to do draws fewer; a page that cannot follow draws almost none.
            assert!(figure("frames_per_second") > 10.0, "{name}: {measured}");
        }
        unfold(browser, &recording.survivor).await;
        let complaints = browser.complaints().await;
        assert_eq!(complaints, Vec::<String>::new());
    });
}

/// All thousand at once, and the way to one of them.
async fn unfold(browser: &Browser, vm: &str) {
    browser.go("functions/web").await;
    browser.click("button", "Unfold").await;
    let measured = browser.driver.execute_async(MEASURE, vec![]).await.unwrap().json().clone();
    println!("the whole tree with 1,000 VMs: {measured}");
    assert!(measured["frames_per_second"].as_f64().unwrap() > 10.0, "{measured}");
    browser.picture("unfolded-thousand").await;
    // Or whoever is looked for may move meanwhile.
    browser.run("window.feed.play();", vec![]).await;
    browser.see("window.feed.sent === window.feed.events.length").await;
    let find = format!(
        "const field = document.querySelector('[aria-label=\"Find a VM\"]'); field.value = '{vm}'; field.dispatchEvent(new Event('input'));"
    );
    browser.run(&find, vec![]).await;
    browser.see(&format!("document.querySelector('.chosen h2')?.textContent === '{vm}'")).await;
    let found: Value = browser.see("document.querySelector('.tools-row [role=status]').textContent").await;
    assert_eq!(found, "1 found");
    browser.picture("search-thousand").await;
    // The same with keys alone: from whoever was found to its parent, and to everything.
    let key = |key: &str| {
        format!(
            "const tree = document.querySelector('canvas.tree'); tree.focus(); tree.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}));"
        )
    };
    let parent = "[...document.querySelectorAll('.chosen dt')].find((one) => one.textContent === 'Fed by')?.nextSibling.textContent";
    let above = browser.see(parent).await;
    browser.run(&key("ArrowUp"), vec![]).await;
    browser.see(&format!("document.querySelector('.chosen h2')?.textContent === {above}")).await;
    browser.run(&key("Escape"), vec![]).await;
    browser.see("document.querySelector('.chosen h2') === null").await;
}
