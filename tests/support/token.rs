//! A token server as the distribution specification describes it: it checks the password and signs
//! tokens that docker-registry accepts.

use super::registry::{PASSWORD, USER};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const ISSUER: &str = "test issuer";
const SERVICE: &str = "test registry";

pub struct TokenServer {
    pub address: SocketAddr,
    /// Scopes of the tokens that were given out.
    pub scopes: Arc<Mutex<Vec<String>>>,
    /// Life that the answers state, in seconds.
    pub expires_in: Arc<AtomicU64>,
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

struct Signer {
    key: EcdsaKeyPair,
    certificate: String,
}

impl TokenServer {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate =
            rcgen::CertificateParams::new([]).expect("parameters").self_signed(&key).expect("signed");
        std::fs::write(folder.path().join("bundle.pem"), certificate.pem()).expect("written");
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &random);
        let signer =
            Signer { key: key.expect("key"), certificate: BASE64_STANDARD.encode(certificate.der()) };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (scopes, expires_in) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(300)));
        let (given, life) = (Arc::clone(&scopes), Arc::clone(&expires_in));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                answer(client, &signer, &given, life.load(Ordering::Relaxed)).await;
            }
        });
        Self { address, scopes, expires_in, folder, task }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The section `auth.token` of a registry that trusts this server.
    pub fn registry_section(&self) -> Value {
        json!({
            "realm": format!("http://{}/token", self.address),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.folder.path().join("bundle.pem"),
        })
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut client: TcpStream, signer: &Signer, given: &Mutex<Vec<String>>, life: u64) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8(head).expect("ASCII");
    let target = head.split(' ').nth(1).expect("a target");
    let url = reqwest::Url::parse("http://x").expect("constant").join(target).expect("a target");
    let query =
        |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let scope = query("scope").unwrap_or_default();
    let password = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let is_known = head.lines().any(|line| line.split_once(": ").is_some_and(|(_, value)| value == password));
    let (status, body) = match is_known && query("service").as_deref() == Some(SERVICE) {
        true => (200, json!({ "token": signer.token(&scope), "expires_in": life })),
        false => (401, json!({ "details": "who are you?" })),
    };
    if status == 200 {
        given.lock().expect("not poisoned").push(scope);
    }
    let body = body.to_string();
    let text =
        format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let _ = client.write_all(text.as_bytes()).await;
    let _ = client.shutdown().await;
}

impl Signer {
    /// A token for what the scope names, in the form that docker-registry reads (JWT, ES256, x5c).
    fn token(&self, scope: &str) -> String {
        let mut parts = scope.splitn(3, ':');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        let (kind, name, actions) = (part(), part(), part());
        let now = jiff::Timestamp::now().as_second();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": "1",
            "iat": now, "nbf": now - 10, "exp": now + 300,
            "access": [{ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }],
        });
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).expect("signed");
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
