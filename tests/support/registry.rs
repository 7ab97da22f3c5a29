//! A real registry (Debian's docker-registry) on a port of its own, and images made by umoci and pushed
//! by skopeo.

use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// The user of registries with a password file, and the line of that file (bcrypt, cost 5).
pub const USER: &str = "tester";
pub const PASSWORD: &str = "s3cret-pass";
const HTPASSWD: &str = "tester:$2y$05$abcdefghijklmnopqrstuuV7fpPozvyqJfnY19y0802WTlXUm6Rjy\n";

/// How long the registry may take to write what is waited for, on a machine under load.
const LOG_DEADLINE: Duration = Duration::from_secs(20);

/// What differs from an open registry without TLS.
#[derive(Default)]
pub struct Options {
    pub password: bool,
    /// The `auth.token` section, for a registry that sends its users to a token server.
    pub token: Option<Value>,
    pub tls: bool,
}

/// Stops with its last use; its data goes with it.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
    log: Arc<Log>,
    options: Options,
}

/// The lines of the registry's log, in JSON.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    grown: Condvar,
}

impl Registry {
    pub fn start(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let config = folder.path().join("config.yml");
        let text = configuration(&options, folder.path());
        // JSON is YAML.
        fs::write(&config, text.to_string()).expect("configuration written");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed");
        let output = child.stderr.take().expect("piped");
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                writer.lines.lock().expect("not poisoned").push(line);
                writer.grown.notify_all();
            }
        });
        let address = log.wait_for(|lines| {
            let mut messages = lines.iter().filter_map(|line| line["msg"].as_str());
            let address = messages.find_map(|message| message.strip_prefix("listening on "))?;
            address.split(',').next()?.parse().ok()
        });
        // The port is bound when the line is written; this shows that it answers.
        std::net::TcpStream::connect_timeout(&address, LOG_DEADLINE).expect("the registry listens");
        Self { child, folder, address, log, options }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `host:port` as in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The PEM file of the authority that issued its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("tls/ca.crt")
    }

    /// Copies an image of an OCI layout into the registry and gives its reference.
    pub fn push(&self, layout: &Layout, name: &str) -> String {
        let target = format!("{}/{name}", self.host());
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet"]);
        match self.options.tls {
            true => copy.arg("--dest-cert-dir").arg(self.folder.path().join("tls")),
            false => copy.arg("--dest-tls-verify=false"),
        };
        if self.options.password || self.options.token.is_some() {
            copy.arg("--dest-creds").arg(format!("{USER}:{PASSWORD}"));
        }
        copy.arg(format!("oci:{}:latest", layout.path().display())).arg(format!("docker://{target}"));
        run(&mut copy);
        target
    }

    /// Bytes of the bodies of the answers to requests of that method whose URI contains that text, by the
    /// registry's own account. Waits until at least `answers` of them are in its log, which is written
    /// after the client has its bytes.
    pub fn response_bytes(&self, method: &str, uri_part: &str, answers: usize) -> u64 {
        self.log.wait_for(|lines| {
            let answered = lines.iter().filter(|line| {
                line["msg"] == "response completed"
                    && line["http.request.method"] == method
                    && line["http.request.uri"].as_str().is_some_and(|uri| uri.contains(uri_part))
            });
            let bytes: Vec<_> = answered.filter_map(|line| line["http.response.written"].as_u64()).collect();
            (bytes.len() >= answers).then(|| bytes.iter().sum())
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn wait_for<T>(&self, found: impl Fn(&[Value]) -> Option<T>) -> T {
        let mut result = None;
        let lines = self.lines.lock().expect("not poisoned");
        let look = |lines: &mut Vec<Value>| {
            result = found(lines);
            result.is_none()
        };
        let (lines, _) = self.grown.wait_timeout_while(lines, LOG_DEADLINE, look).expect("not poisoned");
        let log = format!("{lines:?}");
        drop(lines);
        result.unwrap_or_else(|| panic!("not in the log of the registry: {log}"))
    }
}

fn configuration(options: &Options, folder: &Path) -> Value {
    let mut config = json!({
        "version": 0.1,
        "log": { "level": "info", "formatter": "json", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": folder.join("data") }, "delete": { "enabled": true } },
        "http": { "addr": "127.0.0.1:0" },
    });
    if options.password {
        let file = folder.join("htpasswd");
        fs::write(&file, HTPASSWD).expect("password file written");
        config["auth"] = json!({ "htpasswd": { "realm": "test", "path": file } });
    }
    if let Some(token) = &options.token {
        config["auth"] = json!({ "token": token });
    }
    if options.tls {
        let (certificate, key) = issue(&folder.join("tls"));
        config["http"]["tls"] = json!({ "certificate": certificate, "key": key });
    }
    config
}

/// Makes an authority (`ca.crt`) and a certificate for 127.0.0.1 in that folder.
fn issue(folder: &Path) -> (PathBuf, PathBuf) {
    fs::create_dir(folder).expect("created");
    let ca_key = rcgen::KeyPair::generate().expect("key");
    let mut ca = rcgen::CertificateParams::new([]).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let ca_certificate = ca.self_signed(&ca_key).expect("signed");
    let key = rcgen::KeyPair::generate().expect("key");
    let leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).expect("signed");
    fs::write(folder.join("ca.crt"), ca_certificate.pem()).expect("written");
    let (certificate_file, key_file) = (folder.join("server.pem"), folder.join("server.key.pem"));
    fs::write(&certificate_file, leaf.pem()).expect("written");
    fs::write(&key_file, key.serialize_pem()).expect("written");
    (certificate_file, key_file)
}

/// An OCI layout with one image, `latest`.
pub struct Layout(tempfile::TempDir);

impl Layout {
    /// Makes an image with one layer for each of these files at the top of its tree.
    pub fn make(files: &[(&str, &[u8])]) -> Self {
        let layout = Self(tempfile::tempdir().expect("temporary folder"));
        let image = format!("{}:latest", layout.path().display());
        run(Command::new("umoci").args(["init", "--layout"]).arg(layout.path()));
        run(Command::new("umoci").args(["new", "--image", &image]));
        for (name, content) in files {
            let file = layout.0.path().join("content");
            fs::write(&file, content).expect("written");
            let target = format!("/{name}");
            run(Command::new("umoci").args(["insert", "--image", &image]).arg(file).arg(target));
        }
        layout
    }

    /// The digest of its manifest, and the manifest.
    pub fn manifest(&self) -> (String, Value) {
        let read = |path: PathBuf| -> Value {
            serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
        };
        let index = read(self.path().join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().expect("one image").to_owned();
        let manifest = read(self.blob_file(&digest));
        (digest, manifest)
    }

    /// The file of a blob of that digest (`sha256:...`).
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        self.path().join("blobs").join(digest.replace(':', "/"))
    }

    /// The folder of the layout.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("layout")
    }
}

/// Runs a command to its end; shows its output when it fails.
pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}
