//! A real Prometheus beside a real cluster: it gets the numbers, every panel has something to show, and no alert fires
//! while all is well.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, api::Api, cluster::MANAGER, process::Service, wait_until};
use serde_json::Value;
use std::{fs, net::SocketAddr, path::Path, time::Duration};

const ALERTS: &str = include_str!("../../config/alerts.yaml");
const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");
const AGENT_PORT: u16 = 7081;
/// Until something is scraped and evaluated, which happens each second.
const PATIENCE: Duration = Duration::from_secs(60);
/// What there is nothing of in a cluster that has refused nobody and whose instances live.
const RIGHTLY_EMPTY: [&str; 3] = ["faasnet_refusals_total", "faasnet_starts_ended_total", "> 0.01"];

struct Prometheus {
    api: Api,
    _service: Service,
}

impl Prometheus {
    /// With the configuration of the README, but for how often it looks.
    fn beside(cluster: &Cluster) -> Self {
        let folder = cluster.logs().with_file_name("prometheus");
        fs::create_dir(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("alerts.yaml", ALERTS);
        let token = cluster.cli(&["token", "create", "prometheus", "--role", "viewer"]).unwrap();
        write("faasnet.token", token.trim());
        let mut text = configuration(&folder, &cluster.api.address.to_string());
        for vm in cluster.vms().unwrap().into_keys() {
            let address = SocketAddr::from((cluster.bed.address(&vm).unwrap(), AGENT_PORT));
            text += &job_of_agent(&vm, &cluster.data(&vm).join("metrics.token"), address);
        }
        write("prometheus.yaml", &text);
        let api = Api { address: ([127, 0, 0, 1], 9090).into(), token: String::new(), ..cluster.api.clone() };
        let mut command = cluster.bed.command(MANAGER, "prometheus").unwrap();
        command
            .arg(format!("--config.file={}", folder.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={}", api.address));
        let service = Service::start("prometheus", &mut command, &cluster.logs()).unwrap();
        Self { api, _service: service }
    }

    /// The samples that an expression has now.
    fn query(&self, expression: &str) -> anyhow::Result<Vec<f64>> {
        let answer = self.api.get(&format!("/api/v1/query?query={}", percent_encoded(expression)))?;
        let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(samples.iter().map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap()).collect())
    }

    fn wait_for(&self, expression: &str) {
        wait_until(expression, PATIENCE, || {
            // It does not answer before it has begun.
            let samples = self.query(expression).unwrap_or_default();
            Ok((!samples.is_empty()).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}", self.api.get("/api/v1/targets").unwrap()));
    }
}

fn configuration(folder: &Path, manager: &str) -> String {
    format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [alerts.yaml]\n\
         scrape_configs:\n\
         - job_name: faasnet-manager\n  \
           authorization: {{ credentials_file: {} }}\n  \
           static_configs: [{{ targets: [\"{manager}\"] }}]\n",
        folder.join("faasnet.token").display()
    )
}

fn job_of_agent(vm: &str, token: &Path, address: SocketAddr) -> String {
    format!(
        "- job_name: faasnet-agent-{vm}\n  \
           authorization: {{ credentials_file: {} }}\n  \
           static_configs: [{{ targets: [\"{address}\"] }}]\n",
        token.display()
    )
}

#[test]
fn prometheus_has_something_for_every_panel_and_no_alert_fires() {
    let mut spec = spec(3);
    spec.settings.insert("AGENT__METRICS_LISTEN".into(), format!("0.0.0.0:{AGENT_PORT}"));
    let (cluster, reference) = cluster_with_python(spec);
    let prometheus = Prometheus::beside(&cluster);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    // Rates are of what grows between two looks.
    let ready = r#"faasnet_start_phase_seconds_count{phase="ready"}"#;
    prometheus.wait_for(&format!("{ready} == 0"));
    start_ready(&cluster, "python", 3);
    prometheus.wait_for(&format!("{ready} == 3"));
    prometheus.wait_for("faasnet_agents_asked == 3");
    let instances = r#"sum(faasnet_agent_queue_length{actor="agent",queue="instances"})"#;
    prometheus.wait_for(&format!("{instances} == 3"));
    prometheus.wait_for("count(rate(faasnet_agent_stall_seconds_total[1m])) == 3");

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    for target in targets {
        let expression = text(target, "expr");
        let samples = prometheus.query(&expression.replace("$__rate_interval", "1m")).unwrap();
        let is_there = !samples.is_empty() && samples.iter().all(|sample| sample.is_finite());
        let may_be_empty = RIGHTLY_EMPTY.iter().any(|part| expression.contains(part));
        assert!(is_there || may_be_empty && samples.is_empty(), "{expression}: {samples:?}");
    }
    let slowest = r#"histogram_quantile(1, sum by (le) (faasnet_start_phase_seconds_bucket{phase="ready"}))"#;
    let slowest = prometheus.query(slowest).unwrap()[0];
    assert!(slowest > 0.01 && slowest < READY.as_secs_f64(), "{slowest}");

    let rules = prometheus.api.get("/api/v1/rules").unwrap();
    let groups = rules["data"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(rules.len(), ALERTS.matches("- alert: ").count());
    for rule in rules {
        assert_eq!(text(rule, "health"), "ok", "{rule}");
        // How long a start takes is the machine's affair.
        assert!(text(rule, "state") == "inactive" || text(rule, "name") == "FaasnetStartsSlow", "{rule}");
    }
}
