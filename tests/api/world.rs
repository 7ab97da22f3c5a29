//! A running HTTP server with its tokens, in front of the control plane of the tests.

use super::{control::Control, log::Log};
use actix::Actor;
use actix_web::dev::ServerHandle;
use bytes::Bytes;
use faasnet::{
    code::CodePackages,
    http::{AsyncReadWrite, DialError, HttpState, InstanceDialer, Observer, Scrapes, serve},
    metadata::RedbMetadata,
    settings::{EventSettings, HttpSettings, Settings},
    tokens::{ApiTokens, JoinTokens, Principal, Role, Sessions, TenantScope, system_secrets},
};
use faasnet_actors::{
    id::VmId,
    scheduler::{Located, SchedulerHandle},
    support::{ActorView, QueueView},
};
use futures::future::BoxFuture;
use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};

/// Longest package of code that the server takes.
pub const PACKAGE_BYTES_MAX: u64 = 100_000;

/// Logins with a wrong token that the server takes.
pub const LOGIN_TRIES_MAX: u32 = 3;

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub url: String,
    pub client: reqwest::Client,
    pub admin: String,
    pub operator: String,
    pub viewer: String,
    /// An operator of the tenant `team-a` only.
    pub team_a: String,
    pub ready: watch::Sender<bool>,
    /// Places at instances that are taken.
    pub places: watch::Receiver<usize>,
    /// Callers that wait for an instance.
    pub callers: watch::Receiver<usize>,
    pub folder: TempDir,
    pub log: Log,
    server: ServerHandle,
}

impl World {
    pub async fn new() -> Self {
        Self::with(vec![], |_| {}).await
    }

    /// With these instances, `vm-0` the first, and with changed settings.
    pub async fn with(instances: Vec<Located>, change: impl FnOnce(&mut HttpSettings)) -> Self {
        Self::with_events(instances, change, |_| {}).await
    }

    /// Also with changed settings of events.
    pub async fn with_events(
        instances: Vec<Located>,
        change: impl FnOnce(&mut HttpSettings),
        change_events: impl FnOnce(&mut EventSettings),
    ) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        let metadata = Arc::new(RedbMetadata::open(&path).expect("opened"));
        let admin_file = folder.path().join("admin.token");
        let tokens =
            ApiTokens::open(metadata.clone(), system_secrets(), 100, &admin_file).await.expect("tokens");
        let admin = std::fs::read_to_string(&admin_file).expect("written").trim().to_owned();
        let operator = create(&tokens, Role::Operator, TenantScope::All).await;
        let viewer = create(&tokens, Role::Viewer, TenantScope::All).await;
        let team_a = TenantScope::One("team-a".parse().expect("valid"));
        let team_a = create(&tokens, Role::Operator, team_a).await;

        let (places_changed, places) = watch::channel(0);
        let (callers_changed, callers) = watch::channel(0);
        let control = Control {
            functions: BTreeMap::new(),
            instances,
            acquired: 0,
            places: places_changed,
            waiting: BTreeMap::new(),
            callers: callers_changed,
        };
        let scheduler = SchedulerHandle::new(control.start().recipient(), 1024);
        let mut settings = Settings::load(None).expect("defaults").http;
        settings.workers = 1;
        change(&mut settings);
        let mut limits = Settings::load(None).expect("defaults").tokens.session_limits();
        limits.tries_max = LOGIN_TRIES_MAX;
        let sessions = Sessions::open(&*metadata, system_secrets(), limits).await.expect("sessions");
        let join = JoinTokens::new(metadata, system_secrets(), [7; 32], Duration::from_secs(60), 10);
        let (ready, is_ready) = watch::channel(true);
        let mut all = Settings::load(None).expect("defaults");
        all.code.folder = folder.path().join("code");
        all.code.package_bytes_max = PACKAGE_BYTES_MAX;
        let mut events = all.events.clone();
        change_events(&mut events);
        let log = Log::start(&events);
        let packages = CodePackages::open(&all).expect("opens");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = HttpState {
            scheduler,
            tokens: Arc::new(tokens),
            sessions: Arc::new(sessions),
            join: Arc::new(join),
            packages,
            dial: Arc::new(Loopback),
            actors: Arc::new(Views),
            settings,
            events: log.events(events),
            ready: is_ready,
            scrapes: Scrapes::default(),
        };
        let (serving, server) = serve(state, listener).expect("serves");
        actix_web::rt::spawn(serving);
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("client");
        Self { url, client, admin, operator, viewer, team_a, ready, places, callers, folder, log, server }
    }

    pub fn request(&self, method: &str, path: &str, token: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(token)
    }

    pub fn as_admin(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.request(method, path, &self.admin)
    }

    /// The address of the server.
    pub fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").parse().expect("an address")
    }

    /// Waits until that many places are taken.
    pub async fn wait_for_places(&self, wanted: usize) {
        wait_for(&self.places, wanted).await;
    }

    /// Waits until that many callers wait for an instance.
    pub async fn wait_for_callers(&self, wanted: usize) {
        wait_for(&self.callers, wanted).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

async fn wait_for(seen: &watch::Receiver<usize>, wanted: usize) {
    let mut watched = seen.clone();
    tokio::time::timeout(PATIENCE, watched.wait_for(|number| *number == wanted))
        .await
        .unwrap_or_else(|_| panic!("{} instead of {wanted}", *seen.borrow()))
        .expect("the control plane lives");
}

async fn create(tokens: &ApiTokens, role: Role, tenant: TenantScope) -> String {
    tokens.create(Principal { name: "test".into(), role, tenant }).await.expect("made").0
}

/// Actors as they might be.
struct Views;

fn actor(kind: &str, name: &str, children: Vec<ActorView>) -> ActorView {
    ActorView {
        kind: kind.into(),
        name: name.into(),
        generation: 0,
        crashes: 0,
        mailbox: 0,
        state: "up".into(),
        thread: String::new(),
        queues: vec![],
        children,
        children_left_out: 0,
    }
}

impl Observer for Views {
    fn manager(&self) -> BoxFuture<'static, Option<ActorView>> {
        let queues = vec![QueueView { name: "commits".into(), length: 2, limit: 9 }];
        let journal = ActorView { queues, generation: 1, crashes: 1, ..actor("journal", "journal", vec![]) };
        let forest = actor("forest", "forest", vec![actor("function_tree", "acme/sha256:0", vec![])]);
        let manager =
            actor("manager", "manager", vec![journal, ActorView { children_left_out: 7, ..forest }]);
        Box::pin(async { Some(manager) })
    }

    fn agent(&self, vm: VmId) -> BoxFuture<'static, Option<ActorView>> {
        Box::pin(async move { (vm.as_str() == "vm-0").then(|| actor("agent", "vm-0", vec![])) })
    }

    fn agents(&self) -> BoxFuture<'static, Vec<ActorView>> {
        Box::pin(async { vec![actor("agent", "vm-0", vec![]), actor("agent", "vm-1", vec![])] })
    }
}

/// Reaches instances where they say they are, without an agent between.
struct Loopback;

impl InstanceDialer for Loopback {
    fn dial(&self, located: &Located) -> BoxFuture<'static, Result<Box<dyn AsyncReadWrite>, DialError>> {
        let address = located.address;
        Box::pin(async move {
            match TcpStream::connect(address).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn AsyncReadWrite>),
                Err(error) => Err(DialError::Refused(error.to_string())),
            }
        })
    }

    fn logs(&self, _: &Located, tail: u64) -> BoxFuture<'static, Result<Bytes, DialError>> {
        let output = Bytes::from_static(b"first line\nlast line\n");
        let from = output.len().saturating_sub(tail as usize);
        Box::pin(async move { Ok(output.slice(from..)) })
    }
}
