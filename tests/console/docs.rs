//! The page over the description of the API: it works without another host, as whoever has logged in.

use crate::{
    browser::{Browser, DESK, PHONE, with_browser},
    fleet::expect_complaints,
    spec,
};
use faasnet::http::document;
use faasnet_loadtest::rig::Cluster;
use serde_json::{Value, json};

#[test]
fn who_has_logged_in_tries_the_api_on_a_page_that_asks_no_other_host() {
    let mut cluster = Cluster::up(spec(0)).unwrap();
    with_browser(&mut cluster, async |cluster, browser| {
        browser.log_in(&cluster.api.token).await;
        browser.see("document.body.dataset.stream === 'live'").await;
        // Whether there is a session is asked before there is one.
        expect_complaints(browser, &["/v1/session"]).await;
        browser.click("#header nav a", "API").await;
        browser.see("location.pathname === '/docs/'").await;

        let described = document();
        let paths = described["paths"].as_object().unwrap().values();
        let operations: usize = paths.map(|path| path.as_object().unwrap().len()).sum();
        browser.see(&format!("document.querySelectorAll('.opblock').length === {operations}")).await;
        take_pictures(browser).await;

        let answer = try_out(browser, "operations-functions-list_functions", 200).await;
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap(), json!({"functions": []}));
        browser.picture("docs-tried").await;
        // What changes something needs what the page adds to it.
        try_out(browser, "operations-access-log_out", 204).await;

        let loaded =
            browser.run("return performance.getEntriesByType('resource').map((one) => one.name);", vec![]);
        let loaded = loaded.await;
        let loaded: Vec<&str> = loaded.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let is_elsewhere =
            |name: &&&str| !name.starts_with(&format!("{}/", browser.url)) && !name.starts_with("data:");
        assert_eq!(loaded.iter().filter(is_elsewhere).collect::<Vec<_>>(), Vec::<&&str>::new());
        for wanted in
            ["/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/v1/openapi.json", "/v1/functions"]
        {
            assert!(loaded.iter().any(|name| name.ends_with(wanted)), "{wanted} is not in {loaded:?}");
        }
        expect_complaints(browser, &[]).await;

        browser.click("#how a", "Console").await;
        browser.see("Boolean(document.querySelector('#token'))").await;
    });
}

async fn take_pictures(browser: &Browser) {
    for (window, size, is_dark) in [("phone", PHONE, false), ("dark", DESK, true), ("light", DESK, false)] {
        browser.sized(size).await;
        browser.dark(is_dark).await;
        browser.see(&format!("document.documentElement.classList.contains('dark-mode') === {is_dark}")).await;
        browser.picture(&format!("docs-{window}")).await;
    }
}

/// Opens an operation and sends it; what was answered.
async fn try_out(browser: &Browser, operation: &str, status: u16) -> String {
    browser.click(&format!("#{operation} .opblock-summary-control"), "").await;
    browser.click(&format!("#{operation} .try-out__btn"), "Try it out").await;
    browser.click(&format!("#{operation} .execute"), "Execute").await;
    let live = format!("document.querySelector('#{operation} .live-responses-table .response')");
    browser
        .see(&format!(
            "{live}?.querySelector('.response-col_status')?.textContent.trim().startsWith('{status}')"
        ))
        .await;
    let body = format!("return {live}.querySelector('.highlight-code code')?.textContent ?? '';");
    browser.run(&body, vec![]).await.as_str().unwrap().to_owned()
}
