//! Names and identifiers. Every one is checked when it is made, so that code behind this module
//! may put them into paths, certificates and logs without a second look.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};
use utoipa::ToSchema;

/// Why a text is not a valid name or identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {rule}")]
pub struct IdError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

fn invalid(what: &'static str, text: &str, rule: &'static str) -> IdError {
    IdError { what, text: text.chars().take(80).collect(), rule }
}

/// The rule of a DNS label (RFC 1123), because names become parts of certificate names.
const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit";

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What texts that were checked when they were read share.
macro_rules! checked_text {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{}", self.0)
            }
        }
    };
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
        pub struct $name(Arc<str>);

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_label(text) { Ok(Self(text.into())) } else { Err(invalid($what, text, LABEL_RULE)) }
            }
        }

        checked_text!($name);
    };
}

label!(
    /// A host with an agent on it.
    VmId,
    "VM name"
);
label!(
    /// The owner of functions; a VM serves one tenant at a time.
    TenantId,
    "tenant name"
);
label!(
    /// A function, unique within its tenant.
    FunctionName,
    "function name"
);
label!(
    /// One start, and the instance it makes: a UUID in lower-case text.
    StartId,
    "start id"
);

/// Longest id of a request that is taken over from a caller: it goes into lines of logs, records and orders.
const REQUEST_ID_BYTES_MAX: usize = 128;

const REQUEST_RULE: &str = "use 1 to 128 visible ASCII characters";

/// What a caller, or the manager for it, calls one request, to find what was done for it in all logs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[!-~]{1,128}$")]
pub struct RequestId(Arc<str>);

checked_text!(RequestId);

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let is_fit = (1..=REQUEST_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_fit { Ok(Self(text.into())) } else { Err(invalid("request id", text, REQUEST_RULE)) }
    }
}

/// A SHA-256 digest in the notation of OCI, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^sha256:[0-9a-f]{64}$")]
pub struct Digest([u8; 32]);

const DIGEST_RULE: &str = "use sha256: followed by 64 lower-case hexadecimal digits";

impl Digest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm, as used in file names.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || invalid("digest", text, DIGEST_RULE);
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(is_hex) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * place..2 * place + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", &self.hex()[..12])
    }
}

/// A block image: the digest of its OCI manifest.
pub type ImageId = Digest;

/// A function tree: the VMs that hold one block image of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeId {
    pub tenant: TenantId,
    pub image: ImageId,
}

impl fmt::Display for TreeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.tenant, self.image)
    }
}

/// The version of a tree: the manager's term, then a counter within it. A member refuses what is
/// older than the last it accepted (invariant 4).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    pub term: u64,
    pub counter: u64,
}

/// The number of a block within its block image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct BlockId(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_a_path_or_a_certificate_are_refused() {
        for text in ["", "-a", "a-", "A", "a.b", "../x", "a/b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<VmId>().is_err(), "{text:?}");
        }
        assert!("vm-1".parse::<VmId>().is_ok());
    }

    #[test]
    fn request_ids_that_would_break_a_line_or_fill_a_log_are_refused() {
        for text in ["", "a b", "a\nb", "ä", "\u{1b}[2J", &"a".repeat(129)] {
            assert!(text.parse::<RequestId>().is_err(), "{text:?}");
        }
        assert!("a".repeat(128).parse::<RequestId>().is_ok());
    }

    #[test]
    fn a_digest_survives_its_text_form() {
        let digest = Digest::from_bytes(std::array::from_fn(|place| place as u8));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("sha256:zz".parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
    }
}
