//! A browser beside the manager of a cluster.

use faasnet_loadtest::{
    bed::BedState,
    rig::{Cluster, cluster::MANAGER, process::Service, wait_until},
};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use thirtyfour::{ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver};

/// Longest wait for something that must be seen; a debug build on two busy cores needs a part of it.
const PATIENCE: Duration = Duration::from_secs(120);
const DRIVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9515);
/// Between two looks at the page.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
pub const DESK: (u32, u32) = (1280, 800);
pub const PHONE: (u32, u32) = (375, 740);

pub struct Browser {
    pub driver: WebDriver,
    pub url: String,
    _service: Service,
}

/// Runs a test in the network of the cluster's manager, with a browser that has no page yet.
pub fn with_browser<F>(cluster: &mut Cluster, test: F)
where
    F: AsyncFnOnce(&mut Cluster, &Browser) + Send,
{
    let bed = cluster.bed.state().clone();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let browser = Browser::open(cluster, &bed).await;
            test(cluster, &browser).await;
            browser.driver.clone().quit().await.unwrap();
        });
    };
    bed.inside(MANAGER, run).unwrap();
}

impl Browser {
    async fn open(cluster: &Cluster, bed: &BedState) -> Self {
        let mut command = bed.command(MANAGER, "chromedriver").unwrap();
        let port = format!("--port={}", DRIVER.port());
        let service = Service::start("chromedriver", command.arg(port), &cluster.logs()).unwrap();
        wait_until("the driver of the browser", PATIENCE, || Ok(TcpStream::connect(DRIVER).ok())).unwrap();
        // The driver is spoken to without TLS, but its client wants to know of one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut wanted = DesiredCapabilities::chrome();
        // Root has no sandbox; the rest keeps it from what a test does not need.
        for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"]
        {
            wanted.add_arg(argument).unwrap();
        }
        wanted.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let driver = WebDriver::new(format!("http://{DRIVER}"), wanted).await.unwrap();
        // Dropped by a test that fails it would look for the driver in another network, for two minutes; the bed
        // ends the browser.
        std::mem::forget(driver.clone());
        let browser = Self { driver, url: format!("http://{}", cluster.api.address), _service: service };
        browser.sized(DESK).await;
        browser
    }

    async fn tool(&self, command: &str, parameters: Value) {
        self.driver.cdp().send_raw(command, parameters).await.unwrap();
    }

    pub async fn sized(&self, (width, height): (u32, u32)) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tool("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    pub async fn dark(&self, is_dark: bool) {
        let value = if is_dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.tool("Emulation.setEmulatedMedia", media).await;
    }

    /// Runs before the scripts of every page from now on.
    pub async fn first_run(&self, script: &str) {
        self.tool("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
    }

    /// What a script returns.
    pub async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        let answer = self.driver.execute(script, arguments).await;
        answer.unwrap_or_else(|error| panic!("{error}: {script}")).json().clone()
    }

    /// Waits until the expression is true or something; fails with what the page shows.
    pub async fn see(&self, expression: &str) -> Value {
        let began = Instant::now();
        loop {
            let seen = self.run(&format!("return {expression};"), vec![]).await;
            if !matches!(seen, Value::Null | Value::Bool(false)) {
                return seen;
            }
            if began.elapsed() > PATIENCE {
                self.picture("failed").await;
                let page = self.run("return document.body.innerText;", vec![]).await;
                panic!("not seen: {expression}\n{}", page.as_str().unwrap_or_default());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until an element that the selector names has this text within, and gives it a click.
    pub async fn click(&self, selector: &str, text: &str) {
        let found = format!(
            "[...document.querySelectorAll({})].find((one) => !one.disabled && one.textContent.includes({}))",
            json!(selector),
            json!(text)
        );
        self.see(&format!("Boolean({found})")).await;
        self.run(&format!("{found}.click();"), vec![]).await;
    }

    /// Types into a field, in place of what it has.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.driver.find(thirtyfour::By::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub async fn go(&self, page: &str) {
        self.run("location.hash = arguments[0];", vec![json!(format!("#/{page}"))]).await;
    }

    pub async fn log_in(&self, token: &str) {
        self.driver.goto(&self.url).await.unwrap();
        self.see("Boolean(document.querySelector('#token'))").await;
        self.fill("#token", token).await;
        self.click("button", "Log in").await;
    }

    /// What the browser complains about since the last call.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.driver.browser_log().await.unwrap();
        let complaints = entries.into_iter().filter(|entry| matches!(&*entry.level, "SEVERE" | "WARNING"));
        complaints.map(|entry| format!("{}: {}", entry.source.unwrap_or_default(), entry.message)).collect()
    }

    /// Keeps what is seen.
    pub async fn picture(&self, name: &str) {
        let folder = folder();
        std::fs::create_dir_all(&folder).unwrap();
        self.driver.screenshot(&folder.join(format!("{name}.png"))).await.unwrap();
    }

    /// Asserts that the page is as narrow as the window: nobody reads a page sideways.
    pub async fn fits(&self, what: &str) {
        let widths = "[document.documentElement.scrollWidth, innerWidth]";
        let widths = self.run(&format!("return {widths};"), vec![]).await;
        assert!(widths[0].as_u64() <= widths[1].as_u64(), "{what} is wider than its window: {widths}");
    }
}

/// Where pictures of the last run are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/console")
}
