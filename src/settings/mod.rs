//! Settings: `config/default.toml`, then the user's file, then `FAASNET__SECTION__KEY` variables;
//! later ones win. Every key is listed in the default file with its unit and reason. The rest of the
//! program gets only the section it needs, by value.

mod address_or_none;
mod limits;

use faasnet_actors::tree;
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The text of `config/default.toml`, compiled in so that the binary needs no file beside it.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub log: LogSettings,
    pub http: HttpSettings,
    pub events: EventSettings,
    pub tokens: TokenSettings,
    pub manager: ManagerSettings,
    pub metadata: MetadataSettings,
    pub scheduler: SchedulerSettings,
    pub tree: TreeSettings,
    pub agent: AgentSettings,
    pub transfer: TransferSettings,
    pub holder: HolderSettings,
    pub profile: ProfileSettings,
    pub image: ImageSettings,
    pub code: CodeSettings,
    pub origin: OriginSettings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub workers: usize,
    pub connections_max: usize,
    pub json_bytes_max: usize,
    pub request_body_bytes_max: u64,
    pub response_body_bytes_max: u64,
    pub request_deadline_ms: u64,
    pub body_idle_ms: u64,
    pub log_tail_bytes_max: u64,
    pub starts_listed_max: usize,
    pub metrics_ms: u64,
    pub shutdown_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSettings {
    pub kept_events_max: usize,
    pub kept_bytes_max: usize,
    pub waiting_max: usize,
    pub counted_max: usize,
    pub coalesce_ms: u64,
    pub subscribers_max: usize,
    pub batch_events_max: usize,
    pub batch_bytes_max: usize,
    pub interval_ms: u64,
    pub ping_ms: u64,
    pub idle_ms: u64,
    pub send_ms: u64,
    pub frame_bytes_max: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSettings {
    pub join_ttl_ms: u64,
    pub join_tokens_max: usize,
    pub api_tokens_max: usize,
    pub session_ttl_ms: u64,
    pub login_tries_max: u32,
    pub login_window_ms: u64,
    pub login_addresses_max: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerSettings {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub connections_max: usize,
    pub heartbeat_ms: u64,
    pub lease_ms: u64,
    pub handshake_ms: u64,
    pub orders_in_flight_max: usize,
    pub orders_queued_max: usize,
    pub tree_threads: usize,
    pub observe_ms: u64,
    pub children_shown_max: usize,
    pub capability_ttl_ms: u64,
    pub certificate_ttl_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataSettings {
    pub store: MetadataStore,
    pub journal_bytes_max: usize,
    pub etcd_endpoints: Vec<String>,
    pub etcd_prefix: String,
    pub etcd_ca_file: PathBuf,
    pub etcd_certificate_file: PathBuf,
    pub etcd_key_file: PathBuf,
    pub etcd_user: String,
    pub etcd_password_file: PathBuf,
    pub etcd_connect_ms: u64,
    pub etcd_request_ms: u64,
    pub etcd_commit_ms: u64,
    pub etcd_operations_max: usize,
    pub etcd_bytes_max: usize,
    pub etcd_history_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataStore {
    Redb,
    Etcd,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSettings {
    pub mailbox_permits: usize,
    pub functions_max: usize,
    pub functions_per_vm_max: usize,
    pub starts_per_request_max: u32,
    pub preheat_vms_max: usize,
    pub starts_per_row_max: usize,
    pub starts_waiting_max: usize,
    pub starts_at_once_per_vm: u32,
    pub vm_idle_ms: u64,
    pub drain_deadline_ms: u64,
    pub starts_kept: usize,
    pub instances_per_function_max: u32,
    pub keep_alive_ms: u64,
    pub keep_alive_max_ms: u64,
    pub restart_min_ms: u64,
    pub restart_max_ms: u64,
    pub requests_waiting_per_function_max: usize,
    pub requests_waiting_max: usize,
    pub placement_deadline_ms: u64,
    pub ready_deadline_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeSettings {
    pub topology: Topology,
    pub fan_out: usize,
    pub stripes: usize,
    pub ancestors_max: usize,
    pub complaint_life_ms: u64,
    pub rejoin_grace_ms: u64,
    pub origin_budget_percent: u32,
    pub origin_budget_window_ms: u64,
    pub origin_grant_blocks: u32,
    pub origin_grant_ttl_ms: u64,
}

impl TreeSettings {
    /// An empty tree of the shape that is set.
    pub fn shape(&self) -> Box<dyn tree::Topology> {
        match self.topology {
            Topology::Avl => Box::new(tree::Avl::new()),
            Topology::Complete => Box::new(tree::Complete::new(self.fan_out)),
            Topology::Striped => Box::new(tree::Striped::new(self.fan_out, self.stripes)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    Avl,
    Complete,
    Striped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// `""` is none.
    #[serde(with = "address_or_none")]
    pub metrics_listen: Option<SocketAddr>,
    pub memory_bytes: u64,
    pub cpu_millis: u32,
    pub threads: usize,
    pub connections_max: usize,
    pub handshake_ms: u64,
    pub connect_ms: u64,
    pub reconnect_min_ms: u64,
    pub reconnect_max_ms: u64,
    pub instances_max: usize,
    pub probe_interval_ms: u64,
    pub probe_timeout_ms: u64,
    pub stop_grace_ms: u64,
    pub requests_per_instance_max: usize,
    pub replace_ms: u64,
    pub drain_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferSettings {
    pub children_max: usize,
    pub in_flight_blocks_min: usize,
    pub in_flight_blocks_max: usize,
    pub queued_blocks_max: usize,
    pub unsent_blocks_max: usize,
    pub unsent_socket_bytes_max: u32,
    pub congestion_control: String,
    pub read_ahead_blocks_max: u32,
    pub hops_max: usize,
    pub stall_ms: u64,
    pub early_child_ms: u64,
    pub origin_share_blocks: u32,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    pub memory_cache_bytes: u64,
    pub disk_cache_bytes: u64,
    pub room_wait_ms: u64,
    pub frame_header_bytes_max: u32,
    pub index_bytes_max: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HolderSettings {
    pub read_deadline_ms: u64,
    pub call_deadline_ms: u64,
    pub fuse_threads: usize,
    pub reads_waiting_max: usize,
    pub read_ahead_kib: u32,
    pub file_read_ahead_kib: u32,
    pub recording_read_ahead_kib: u32,
    pub packed_read_ahead_kib: u32,
    pub recorded_ranges_max: usize,
    pub erofs_direct_io: bool,
    pub pids_max: u32,
    pub writable_bytes: u64,
    pub log_bytes_max: u64,
    pub runtime: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileSettings {
    pub recordings_max: u32,
    pub recordings_at_once_max: usize,
    pub missed_max: u32,
    pub optimize_after: u32,
    pub profiles_max: usize,
    pub ranges_max: usize,
    pub recordings_waiting_max: usize,
    pub hot_blocks_max: usize,
    pub metadata_bytes_max: u64,
    pub packings_max: usize,
    pub attempts_max: u32,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    pub destination: String,
    pub layout_roots: Vec<PathBuf>,
    pub spool: PathBuf,
    pub spool_bytes_max: u64,
    pub conversions_max: usize,
    pub plain_bytes_max: u64,
    pub entries_max: u64,
    pub layers_max: usize,
    pub manifest_bytes_max: u64,
    pub zstd_level: i32,
    pub threads: usize,
    pub hot_chunk_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeSettings {
    pub folder: PathBuf,
    pub package_bytes_max: u64,
    pub packages_per_tenant_max: usize,
    pub bytes_max: u64,
    pub uploads_max: usize,
    pub unused_ttl_ms: u64,
    pub plain_bytes_max: u64,
    pub entries_max: u64,
    pub ratio_max: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginSettings {
    pub connect_ms: u64,
    pub read_ms: u64,
    pub requests_max: usize,
    pub attempts_max: u32,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    pub redirects_max: usize,
    pub plain_http_registries: Vec<String>,
    pub ca_files: Vec<PathBuf>,
    pub docker_config: PathBuf,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("settings are not understood: {0}")]
    Parse(#[from] config::ConfigError),
    #[error("setting {key} is not usable: {rule}")]
    Value { key: &'static str, rule: &'static str },
}

impl Default for Settings {
    /// Those of `config/default.toml`, whatever the environment says.
    fn default() -> Self {
        toml::from_str(DEFAULT).expect("the default file names every key")
    }
}

impl Settings {
    /// Reads the defaults, then `file` if one is given, then the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULT, config::FileFormat::Toml));
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix("FAASNET")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("metadata.etcd_endpoints")
            .with_list_parse_key("image.layout_roots")
            .with_list_parse_key("origin.plain_http_registries")
            .with_list_parse_key("origin.ca_files");
        let settings: Self = builder.add_source(environment).build()?.try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    /// The text of a settings file that says the same.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are tables of plain values")
    }

    /// Checks what types cannot say.
    /// How many things of so many bytes the header of a frame has room for, beside what else is in it.
    fn frame_holds(&self, bytes_each: usize) -> usize {
        // A function's environment takes up to 64 KiB.
        self.transfer.frame_header_bytes_max.saturating_sub(80 << 10) as usize / bytes_each
    }

    fn check(&self) -> Result<(), SettingsError> {
        let starts_per_row = self.scheduler.starts_per_row_max;
        let starts_per_request = self.scheduler.starts_per_request_max as usize;
        let rules = [
            ("http.workers", self.http.workers >= 1, "use at least 1"),
            (
                "http.connections_max",
                self.http.connections_max >= self.http.workers,
                "use at least one for each of http.workers",
            ),
            (
                "http.connections_max",
                self.http.connections_max > self.scheduler.requests_waiting_max,
                "use more than scheduler.requests_waiting_max, or those who wait leave no connection to others",
            ),
            (
                "scheduler.keep_alive_ms",
                (1000..=self.scheduler.keep_alive_max_ms).contains(&self.scheduler.keep_alive_ms),
                "use 1000 to scheduler.keep_alive_max_ms",
            ),
            (
                "scheduler.instances_per_function_max",
                self.scheduler.instances_per_function_max >= 1,
                "use at least 1",
            ),
            (
                "scheduler.restart_min_ms",
                (1..=self.scheduler.restart_max_ms).contains(&self.scheduler.restart_min_ms),
                "use 1 to scheduler.restart_max_ms",
            ),
            (
                "tokens.session_ttl_ms",
                (1000..=31_536_000_000).contains(&self.tokens.session_ttl_ms),
                "use 1000 to 31536000000, a year",
            ),
            ("tokens.api_tokens_max", self.tokens.api_tokens_max >= 1, "use at least 1: the administrator's"),
            ("tokens.login_tries_max", self.tokens.login_tries_max >= 1, "use at least 1"),
            ("tokens.login_addresses_max", self.tokens.login_addresses_max >= 1, "use at least 1"),
            ("tree.fan_out", (1..=64).contains(&self.tree.fan_out), "use 1 to 64"),
            (
                "tree.fan_out",
                self.tree.topology != Topology::Avl || self.tree.fan_out == 2,
                "use 2, because an avl tree is binary",
            ),
            (
                "tree.stripes",
                self.tree.topology != Topology::Striped
                    || (1..=self.tree.fan_out).contains(&self.tree.stripes),
                "use 1 to tree.fan_out, or there is no room in each stripe's tree for all VMs",
            ),
            (
                "holder.recorded_ranges_max",
                self.holder.recorded_ranges_max <= self.frame_holds(20),
                "use less: a recording travels in one frame, with 20 bytes for each range",
            ),
            (
                "profile.hot_blocks_max",
                self.profile.hot_blocks_max <= self.frame_holds(5),
                "use less: a start's order travels in one frame, with 5 bytes for each block",
            ),
            ("profile.packings_max", self.profile.packings_max >= 1, "use at least 1"),
            ("profile.missed_max", self.profile.missed_max >= 1, "use at least 1"),
            (
                "profile.retry_min_ms",
                (1..=self.profile.retry_max_ms).contains(&self.profile.retry_min_ms),
                "use 1 to profile.retry_max_ms",
            ),
            ("tree.ancestors_max", (1..=8).contains(&self.tree.ancestors_max), "use 1 to 8"),
            (
                "manager.orders_in_flight_max",
                self.manager.orders_in_flight_max >= 1,
                "use at least 1, or nothing is ever started",
            ),
            (
                "manager.lease_ms",
                self.manager.lease_ms >= 2 * self.manager.heartbeat_ms,
                "use at least two heartbeats",
            ),
            (
                "tree.rejoin_grace_ms",
                self.tree.rejoin_grace_ms < self.manager.lease_ms,
                "use less than manager.lease_ms, after which starts that wait for it are placed anew",
            ),
            (
                "agent.reconnect_max_ms",
                self.agent.reconnect_max_ms <= self.tree.rejoin_grace_ms,
                "use at most tree.rejoin_grace_ms, or agents come too late to keep their places",
            ),
            (
                "manager.capability_ttl_ms",
                self.manager.capability_ttl_ms >= 10 * self.manager.lease_ms,
                "use at least ten leases, so that a manager may be away without stopping transfers",
            ),
            (
                "metadata.etcd_prefix",
                self.metadata.etcd_prefix.ends_with('/'),
                "end it with a slash, so that no other prefix begins with it",
            ),
            (
                "metadata.etcd_key_file",
                self.metadata.etcd_key_file.as_os_str().is_empty()
                    == self.metadata.etcd_certificate_file.as_os_str().is_empty(),
                "name it and metadata.etcd_certificate_file, or neither",
            ),
            (
                "metadata.etcd_commit_ms",
                self.metadata.etcd_commit_ms >= self.metadata.etcd_request_ms,
                "use at least metadata.etcd_request_ms, or no second endpoint is asked",
            ),
            ("metadata.etcd_operations_max", self.metadata.etcd_operations_max >= 16, "use at least 16"),
            ("metadata.etcd_bytes_max", self.metadata.etcd_bytes_max >= 65536, "use at least 65536"),
            ("scheduler.starts_per_row_max", (1..=1000).contains(&starts_per_row), "use 1 to 1000"),
            (
                "scheduler.starts_per_request_max",
                // One operation is the store's own, and one the term's. An id takes less than 45 bytes.
                starts_per_request <= starts_per_row * self.metadata.etcd_operations_max.saturating_sub(2)
                    && starts_per_request * 45 <= self.metadata.etcd_bytes_max,
                "use fewer, or one request is more than metadata.etcd_operations_max or etcd_bytes_max",
            ),
            ("manager.tree_threads", self.manager.tree_threads <= 64, "use at most 64"),
            ("scheduler.starts_at_once_per_vm", self.scheduler.starts_at_once_per_vm >= 1, "use at least 1"),
            ("agent.threads", self.agent.threads >= 1, "use at least 1"),
            ("transfer.in_flight_blocks_min", self.transfer.in_flight_blocks_min >= 1, "use at least 1"),
            (
                "transfer.in_flight_blocks_max",
                self.transfer.in_flight_blocks_max > self.transfer.in_flight_blocks_min,
                "use more than transfer.in_flight_blocks_min, or nothing is fetched ahead",
            ),
            ("transfer.unsent_blocks_max", self.transfer.unsent_blocks_max >= 1, "use at least 1"),
            (
                "transfer.unsent_socket_bytes_max",
                self.transfer.unsent_socket_bytes_max >= 16384,
                "use at least 16384, one record of TLS",
            ),
            (
                "transfer.congestion_control",
                self.transfer.congestion_control.len() < 16
                    && self.transfer.congestion_control.bytes().all(|byte| byte.is_ascii_graphic()),
                "use a name of net.ipv4.tcp_available_congestion_control, or \"\"",
            ),
            (
                "transfer.queued_blocks_max",
                self.transfer.queued_blocks_max >= self.transfer.in_flight_blocks_max,
                "use at least transfer.in_flight_blocks_max, or children are refused what they may ask",
            ),
            (
                "transfer.stall_ms",
                self.transfer.stall_ms >= 150,
                "use at least 150: an upstream that waits says so in a third of it, and looks every 50",
            ),
            (
                "holder.read_deadline_ms",
                self.holder.read_deadline_ms > self.transfer.stall_ms,
                "use more than transfer.stall_ms",
            ),
            ("holder.fuse_threads", (1..=64).contains(&self.holder.fuse_threads), "use 1 to 64"),
            (
                "image.hot_chunk_bytes",
                self.image.hot_chunk_bytes.is_power_of_two()
                    && (4096..=1 << 20).contains(&self.image.hot_chunk_bytes),
                "use a power of two from 4096 to 1048576",
            ),
            ("image.zstd_level", (1..=19).contains(&self.image.zstd_level), "use 1 to 19"),
            ("origin.requests_max", (1..=64).contains(&self.origin.requests_max), "use 1 to 64"),
            ("origin.attempts_max", self.origin.attempts_max >= 1, "use at least 1"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, rule)) => Err(SettingsError::Value { key, rule }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load_text(text: &str) -> Result<Settings, SettingsError> {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(text.as_bytes()).expect("written");
        Settings::load(Some(file.path()))
    }

    #[test]
    fn the_defaults_are_valid_and_name_every_key() {
        let settings = Settings::load(None).expect("defaults are valid");
        let everything = serde_json::to_value(&settings).expect("serializes");
        for (section, keys) in everything.as_object().expect("sections") {
            assert!(DEFAULT.contains(&format!("\n[{section}]\n")), "{section}");
            for key in keys.as_object().expect("keys").keys() {
                let line = DEFAULT.lines().position(|line| line.starts_with(&format!("{key} = ")));
                let line = line.unwrap_or_else(|| panic!("{section}.{key} is not in the default file"));
                let reason = DEFAULT.lines().nth(line - 1).expect("a line before it");
                assert!(reason.starts_with("# "), "{section}.{key} has no reason");
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        let error = load_text("[tree]\nfanout = 3\n").expect_err("unknown key").to_string();
        assert!(error.contains("fanout"), "{error}");
    }

    #[test]
    fn a_value_that_breaks_a_relation_is_named() {
        let error = load_text("[manager]\nlease_ms = 1\n").expect_err("too short").to_string();
        assert!(error.contains("manager.lease_ms"), "{error}");
    }
}
