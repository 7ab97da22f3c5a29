//! What makes the Node.js and the JVM image services: programs of ours on libraries of Debian, which do
//! before they listen what such services do.

use super::{debian, run};
use anyhow::Context;
use std::{collections::BTreeSet, fs, path::Path, process::Command};

const NODE_PROGRAM: &str = include_str!("server.js");
const JVM_PROGRAM: &str = include_str!("Server.java");
const JAVA_HOME: &str = "/usr/lib/jvm/java-17-openjdk-amd64";
const JARS: &str = "/usr/share/java";

/// What the program requires, and the interpreter.
const NODE_PACKAGES: [&str; 12] = [
    "nodejs",
    "node-ajv",
    "node-axios",
    "node-express",
    "node-graphql",
    "node-js-yaml",
    "node-lodash",
    "node-moment",
    "node-pg",
    "node-react",
    "node-react-dom",
    "node-ws",
];

const JVM_PACKAGES: [&str; 7] = [
    "openjdk-17-jre-headless",
    "libguava-java",
    "libhibernate-validator-java",
    "libjackson2-databind-java",
    "liblogback-java",
    "libpostgresql-jdbc-java",
    "libspring-context-java",
];

/// The jars among them that the program uses, in the order of its class path.
const JVM_CLASS_PATH: [&str; 14] = [
    "jackson-databind",
    "jackson-core",
    "jackson-annotations",
    "guava",
    "logback-classic",
    "logback-core",
    "slf4j-api",
    "postgresql",
    "spring3-core",
    "spring3-beans",
    "spring3-context",
    "spring3-expression",
    "spring3-aop",
    "commons-logging",
];

pub fn node_packages() -> anyhow::Result<BTreeSet<String>> {
    packages(&NODE_PACKAGES)
}

pub fn jvm_packages() -> anyhow::Result<BTreeSet<String>> {
    packages(&JVM_PACKAGES)
}

/// With a shell, which the closures contain only sometimes.
fn packages(wanted: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut packages = debian::closure(wanted)?;
    packages.insert("busybox-static".to_owned());
    Ok(packages)
}

pub fn node_command() -> Vec<String> {
    ["/usr/bin/node", "/srv/server.js"].map(str::to_owned).to_vec()
}

pub fn jvm_command() -> Vec<String> {
    let jars = JVM_CLASS_PATH.iter().map(|jar| format!("{JARS}/{jar}.jar"));
    let class_path: Vec<String> = std::iter::once("/srv/server.jar".to_owned()).chain(jars).collect();
    vec![format!("{JAVA_HOME}/bin/java"), "-cp".into(), class_path.join(":"), "Server".into()]
}

pub fn write_node(rootfs: &Path) -> anyhow::Result<()> {
    fs::write(rootfs.join("srv/server.js"), NODE_PROGRAM)?;
    Ok(())
}

/// Compiles in a root folder of the JDK's own below `scratch`, so that this machine needs none.
pub fn write_jvm(rootfs: &Path, scratch: &Path, cache: &Path) -> anyhow::Result<()> {
    let root = scratch.join("jdk");
    let mut packages = jvm_packages()?;
    packages.extend(debian::closure(&["openjdk-17-jdk-headless"])?);
    debian::unpack(&packages, cache, &root)?;
    for folder in ["proc", "tmp", "srv/classes"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("srv/Server.java"), JVM_PROGRAM)?;
    let class_path = format!("{JARS}/*");
    inside(
        &root,
        "javac",
        &["--release", "17", "-cp", &class_path, "-d", "/srv/classes", "/srv/Server.java"],
    )?;
    // Of one date, so that the image is the same whenever it is built.
    let date = ["--create", "--date=2026-01-01T00:00:00Z", "--file", "/srv/server.jar"];
    inside(&root, "jar", &[&date[..], &["-C", "/srv/classes", "."]].concat())?;
    fs::copy(root.join("srv/server.jar"), rootfs.join("srv/server.jar"))?;
    fs::remove_dir_all(&root).context("remove the folder of the JDK")
}

/// A program of the JDK, which finds its libraries by /proc; the mount goes with the namespace.
fn inside(root: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let script = "mount -t proc proc \"$0/proc\"; exec chroot \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]).arg(root);
    run(command.arg(format!("{JAVA_HOME}/bin/{program}")).args(arguments))
}
