//! Names of images in registries, checked when they are made: what passes contains only characters
//! that are safe in a URL, a path and a log.

use super::RegistryError;
use faasnet_actors::id::Digest;
use std::{fmt, str::FromStr};

/// Longest text accepted: a registry (253), a repository (255), a tag (128) and a digest (71).
const TEXT_BYTES_MAX: usize = 720;

/// A repository of a registry, `host[:port]/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    registry: String,
    name: String,
}

/// An image in a repository: by digest, which wins, or by tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub repository: Repository,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Repository {
    /// The registry as the user names it, `host[:port]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The name within the registry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Host and port that answer for the registry: those of Docker Hub differ from its name.
    pub(super) fn authority(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        }
    }
}

impl Reference {
    /// What a registry is asked for: the digest if there is one, the tag otherwise.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    pub(super) fn by_digest(repository: &Repository, digest: Digest) -> Self {
        Self { repository: repository.clone(), tag: None, digest: Some(digest) }
    }

    pub(super) fn by_tag(repository: &Repository, tag: String) -> Self {
        Self { repository: repository.clone(), tag: Some(tag), digest: None }
    }
}

impl FromStr for Reference {
    type Err = RegistryError;

    /// Reads `[host[:port]/]name[:tag][@sha256:...]` with Docker's defaults: docker.io, library, latest.
    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let refuse = |rule| RegistryError::Reference { text: text.chars().take(120).collect(), rule };
        // The library's pattern for tags takes letters of any script.
        if text.len() > TEXT_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("use at most 720 printable ASCII characters"));
        }
        let parsed: oci_spec::distribution::Reference = text
            .parse()
            .map_err(|_| refuse("use [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], names in lower case"))?;
        let digest = match parsed.digest() {
            Some(digest) => {
                Some(digest.parse().map_err(|_| refuse("use a digest sha256: with 64 lower-case digits"))?)
            }
            None => None,
        };
        let port = parsed.registry().split_once(':').map(|(_, port)| port.parse::<u16>());
        if matches!(port, Some(Err(_) | Ok(0))) {
            return Err(refuse("use a port from 1 to 65535"));
        }
        // The library takes a first word with capitals for a host, and then for a part of the name.
        if parsed.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(refuse("use names in lower case; a registry has a point or a port in its name"));
        }
        let repository =
            Repository { registry: parsed.registry().to_lowercase(), name: parsed.repository().to_owned() };
        Ok(Self { repository, tag: parsed.tag().map(str::to_owned), digest })
    }
}

impl FromStr for Repository {
    type Err = RegistryError;

    /// Reads `[host[:port]/]name`, without tag or digest.
    fn from_str(text: &str) -> Result<Self, RegistryError> {
        if let Some(repository) = written_in_full(text) {
            return Ok(repository);
        }
        let last = text.rsplit('/').next().unwrap_or(text);
        if last.contains([':', '@']) {
            let rule = "use HOST[:PORT]/NAME, without tag or digest";
            return Err(RegistryError::Reference { text: text.chars().take(120).collect(), rule });
        }
        text.parse().map(|reference: Reference| reference.repository)
    }
}

/// What is written as block images name it, without what Docker adds and the library knows. An agent reads no other
/// names, and none but this while a container waits: compiling the library's pattern takes 50 ms and some megabytes.
fn written_in_full(text: &str) -> Option<Repository> {
    let (registry, name) = text.split_once('/')?;
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let is_label = |label: &str| {
        let ends = label.bytes().next().zip(label.bytes().last());
        ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    // Words and single points or underlines, two underlines, or any number of hyphens between them.
    let is_part = |part: &str| {
        let between = part.split(|letter: char| u8::try_from(letter).is_ok_and(is_plain));
        let ends = part.bytes().next().zip(part.bytes().last());
        ends.is_some_and(|(first, last)| is_plain(first) && is_plain(last))
            && between
                .into_iter()
                .all(|mark| matches!(mark, "" | "." | "_" | "__") || mark.bytes().all(|byte| byte == b'-'))
    };
    let is_registry = (host == "localhost" || host.contains('.') || port.is_some())
        && !host.ends_with("docker.io")
        && registry.len() <= 253
        && port.is_none_or(is_port)
        && host.split('.').all(is_label);
    let is_name = name.len() <= 255 - registry.len().min(254) && name.split('/').all(is_part);
    (is_registry && is_name).then(|| Repository { registry: registry.to_lowercase(), name: name.to_owned() })
}

impl fmt::Display for Repository {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.digest.is_some() { '@' } else { ':' };
        write!(out, "{}{mark}{}", self.repository, self.wanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("debian".to_owned(), "docker.io/library/debian:latest".to_owned()),
            ("user/app:1".to_owned(), "docker.io/user/app:1".to_owned()),
            ("localhost:5000/a/b".to_owned(), "localhost:5000/a/b:latest".to_owned()),
            (format!("r.example/x:1@{digest}"), format!("r.example/x@{digest}")),
        ];
        for (text, canonical) in cases {
            let reference: Reference = text.parse().expect("valid");
            assert_eq!(reference.to_string(), canonical);
        }
        let hub: Reference = "debian".parse().expect("valid");
        assert_eq!(hub.repository.authority(), "registry-1.docker.io");
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = format!("localhost/{}", "a".repeat(300));
        let digest = format!("localhost/a@sha256:{}", "A".repeat(64));
        for text in [
            "",
            "/",
            "a/../b",
            "../a",
            "a//b",
            "a b",
            "a\n",
            "a?x=1",
            "a#x",
            "user@host/a",
            "a:ä",
            "localhost:99999/a",
            "localhost:0/a",
            "http://host/a",
            "[::1]:5000/a",
            "a@sha256:12",
            "a%2f..",
            "User/app",
            "a@md5:0123456789abcdef0123456789abcdef",
            &long,
            &digest,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        for text in ["localhost/a:1", "a:1", "localhost/a@sha256:0"] {
            assert!(text.parse::<Repository>().is_err(), "{text:?}");
        }
        let repository: Repository = "localhost:5000/a/b".parse().expect("valid");
        assert_eq!((repository.registry(), repository.name()), ("localhost:5000", "a/b"));
        let in_full = "Registry.Example:443/a_b/c.d--e__f".parse::<Repository>().expect("valid");
        assert_eq!(in_full, written_in_full(&in_full.to_string()).expect("what is said is read"));
    }

    proptest::proptest! {
        /// What is read without the library is what the library would read.
        #[test]
        fn the_short_way_reads_what_the_long_way_does(
            text in "(localhost|[a-zA-Z0-9.-]{1,8})(:[0-9]{1,5})?/[a-z0-9._/-]{1,10}",
        ) {
            if let Some(short) = written_in_full(&text) {
                let long = text.parse::<Reference>().map(|reference| reference.repository);
                proptest::prop_assert_eq!(long.ok(), Some(short));
            }
        }
    }
}
