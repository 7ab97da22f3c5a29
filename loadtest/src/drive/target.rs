//! The system that load is sent to, and its functions.

use super::plan::{FUNCTIONS_MAX, Plan, Tenant, tenants};
use crate::{
    bed::BedState,
    rig::{Api, cluster::api_of, wait_until},
};
use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::{
    fs,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

/// Until a function's image is converted.
const DEPLOYED: Duration = Duration::from_secs(600);
/// Descriptors beside those of requests.
const OTHER_FILES: u64 = 200;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address of the manager's API
    #[arg(long, env = "FAASNET_API", default_value = "http://127.0.0.1:7070")]
    api: String,
    /// File with the token; without it the variable FAASNET_TOKEN
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The tenant that sends
    #[arg(long, default_value = "default")]
    tenant: String,
    /// File with several tenants, one in each line, with its own token behind it unless the token is good for all
    #[arg(long, conflicts_with = "tenant")]
    tenants: Option<PathBuf>,
    /// The function
    #[arg(long, default_value = "loaded")]
    function: String,
    /// So many functions, named FUNCTION-1 and so on, the first of them the most popular
    #[arg(long)]
    functions: Option<usize>,
    /// Image that the functions are deployed with first; without it they must be there
    #[arg(long)]
    image: Option<String>,
    /// Memory of an instance, in MiB; with --image
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// Requests that one instance serves at once; with --image
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// A variable of the functions' environment, as NAME=VALUE; with --image
    #[arg(long)]
    env: Vec<String>,
}

impl Args {
    /// A client of the API, and who sends. A bed has its own API and token.
    pub fn connect(&self, bed: Option<&BedState>) -> anyhow::Result<(Api, Vec<Tenant>)> {
        let own = match bed {
            Some(bed) => api_of(bed)?,
            None => Api { address: address(&self.api)?, token: String::new(), from: None },
        };
        let token = match &self.token_file {
            Some(path) => {
                fs::read_to_string(path).with_context(|| format!("read the token in {}", path.display()))?
            }
            None if bed.is_some() => own.token.clone(),
            None => std::env::var("FAASNET_TOKEN").unwrap_or_default(),
        };
        let token = token.trim().to_owned();
        let tenants = match &self.tenants {
            Some(path) => tenants(path, &token)?,
            None => vec![Tenant { name: self.tenant.clone(), token: token.clone() }],
        };
        let token = if token.is_empty() { tenants[0].token.clone() } else { token };
        ensure!(!token.is_empty(), "there is no token: set FAASNET_TOKEN, or use --token-file or --tenants");
        Ok((Api { token, ..own }, tenants))
    }

    /// Their names, the most popular first.
    pub fn functions(&self) -> anyhow::Result<Vec<String>> {
        let Some(count) = self.functions else { return Ok(vec![self.function.clone()]) };
        ensure!((1..=FUNCTIONS_MAX).contains(&count), "use 1 to {FUNCTIONS_MAX} functions, not {count}");
        Ok((1..=count).map(|number| format!("{}-{number}", self.function)).collect())
    }

    /// Deploys the functions if there is an image, and looks whether they are ready.
    pub fn prepare(&self, api: &Api, plan: &Plan) -> anyhow::Result<()> {
        let pairs =
            || plan.tenants.iter().flat_map(|tenant| plan.functions.iter().map(move |name| (tenant, name)));
        if let Some(image) = &self.image {
            let mut env = serde_json::Map::new();
            for pair in &self.env {
                let (name, value) =
                    pair.split_once('=').with_context(|| format!("{pair:?} is no NAME=VALUE"))?;
                env.insert(name.to_owned(), value.into());
            }
            let spec = json!({
                "image": image, "memory_mib": self.memory, "concurrency": self.concurrency, "env": env,
            });
            for (tenant, name) in pairs() {
                call(api, tenant, "PUT", name, spec.to_string()).context("deploy the functions")?;
            }
        }
        for (tenant, name) in pairs() {
            wait_until(&format!("the image of {name}"), DEPLOYED, || {
                let view = call(api, tenant, "GET", name, String::new())?;
                let state = &view["image_state"];
                if let Some(reason) = state["reason"].as_str() {
                    bail!("the image of {name} cannot be used: {reason}");
                }
                Ok(state.to_string().contains("ready").then_some(()))
            })?;
        }
        Ok(())
    }
}

fn call(api: &Api, tenant: &Tenant, method: &str, function: &str, body: String) -> anyhow::Result<Value> {
    let api = Api { token: tenant.token.clone(), ..api.clone() };
    let path = format!("/v1/functions/{function}");
    let answer = api
        .call_of(&tenant.name, method, &path, body)
        .with_context(|| format!("is the manager up at {}? Say where with --api", api.address))?;
    match answer.status.as_u16() {
        200..300 => answer.json(),
        401 | 403 => {
            bail!("the token is not good for {method} {path} of tenant {}: {}", tenant.name, answer.text())
        }
        404 => bail!("tenant {} has no function {function}; deploy it, or give --image", tenant.name),
        status => bail!("{method} {path} of tenant {}: {status} {}", tenant.name, answer.text()),
    }
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url:?} must begin with http://; TLS before the API is not measured"))?;
    let host = rest.trim_end_matches('/');
    let resolved =
        host.to_socket_addrs().with_context(|| format!("{host:?} is no HOST:PORT that is known"))?;
    resolved.into_iter().next().with_context(|| format!("{host} has no address"))
}

/// Each request may have a connection of its own.
pub fn allow_connections(count: usize) -> anyhow::Result<()> {
    let wanted = count as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= wanted),
        "{count} requests under way need {wanted} open files, and this process may have {}: lower \
         --in-flight-max or raise `ulimit -n`",
        limit.maximum.unwrap_or_default()
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
        .context("raise the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_with_a_port() {
        assert_eq!(address("http://127.0.0.1:7070/").unwrap(), SocketAddr::from(([127, 0, 0, 1], 7070)));
        for (url, said) in [
            ("https://127.0.0.1:7070", "must begin with http://"),
            ("127.0.0.1:7070", "must begin with http://"),
            ("http://127.0.0.1", "no HOST:PORT"),
        ] {
            let complaint = format!("{:#}", address(url).unwrap_err());
            assert!(complaint.contains(said), "{url}: {complaint}");
        }
    }

    #[test]
    fn more_connections_than_may_be_open_are_refused_with_what_to_do() {
        allow_connections(1).unwrap();
        let said = allow_connections(1 << 40).unwrap_err().to_string();
        assert!(said.contains("--in-flight-max") && said.contains("ulimit -n"), "{said}");
    }
}
