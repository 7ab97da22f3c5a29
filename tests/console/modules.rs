//! The console's pure modules, where they run.

use crate::{browser::with_browser, spec};
use faasnet_loadtest::rig::Cluster;
use serde_json::{Value, json};

#[test]
fn the_pure_modules_keep_their_promises() {
    let mut cluster = Cluster::up(spec(0)).unwrap();
    with_browser(&mut cluster, async |_, browser| {
        browser.driver.goto(format!("{}/console/", browser.url)).await.unwrap();
        let answer = browser.driver.execute_async(include_str!("modules.js"), vec![]).await.unwrap();
        let (passed, failed) = (&answer.json()["passed"], &answer.json()["failed"]);
        assert_eq!(failed, &json!([]), "{failed:#}");
        assert!(passed.as_array().map_or(0, Vec::len) >= 10, "{passed}");
        assert_ne!(passed, &Value::Null);
    });
}
