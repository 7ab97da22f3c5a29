//! Capabilities: the manager's signed word that a VM may read one tree.

use faasnet_actors::{
    id::{TreeId, VmId},
    wire::control::{Capability, CapabilityClaims},
};
use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use std::{collections::BTreeSet, time::SystemTime};

/// Why a capability does not open a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    #[error("the signature is not the manager's")]
    Signature,
    #[error("the claims are not understood")]
    Claims,
    #[error("the capability is for another tree or key")]
    Mismatch,
    #[error("the capability has expired")]
    Expired,
}

/// Signs capabilities. The key lives as long as the manager's data folder.
pub struct CapabilityKey {
    key: Ed25519KeyPair,
}

impl CapabilityKey {
    /// A new key as PKCS#8, for the metadata store.
    pub fn generate() -> Vec<u8> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system has randomness");
        document.as_ref().to_vec()
    }

    /// `None` when the bytes are not such a key.
    pub fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_pkcs8(bytes).ok().map(|key| Self { key })
    }

    pub fn public(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    /// `expires_at` is in seconds since the Unix epoch.
    pub fn issue(&self, tree: &TreeId, vm: &VmId, key_hash: &[u8], expires_at: u64) -> Capability {
        let claims =
            CapabilityClaims { tree: tree.clone(), vm: vm.clone(), key_hash: key_hash.to_vec(), expires_at };
        let claims = rmp_serde::to_vec_named(&claims).expect("claims are plain data");
        let signature = self.key.sign(&claims).as_ref().to_vec();
        Capability { claims, signature }
    }
}

/// Seconds since the Unix epoch, as in the claims of capabilities.
pub fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Checks that the capability opens the tree for the holder of a key. Returns when it expires.
pub fn check(
    capability: &Capability,
    manager_key: &[u8],
    tree: &TreeId,
    key_hash: &[u8],
    now_seconds: u64,
) -> Result<u64, CapabilityError> {
    UnparsedPublicKey::new(&ED25519, manager_key)
        .verify(&capability.claims, &capability.signature)
        .map_err(|_| CapabilityError::Signature)?;
    let claims: CapabilityClaims =
        rmp_serde::from_slice(&capability.claims).map_err(|_| CapabilityError::Claims)?;
    if claims.tree != *tree || claims.key_hash != key_hash {
        return Err(CapabilityError::Mismatch);
    }
    if claims.expires_at <= now_seconds {
        return Err(CapabilityError::Expired);
    }
    Ok(claims.expires_at)
}

/// The trees that the capabilities open for the holder of a key; others say nothing.
pub fn opened_trees(
    capabilities: &[Capability],
    manager_key: &[u8],
    key_hash: &[u8],
    now_seconds: u64,
) -> BTreeSet<TreeId> {
    let tree_of = |capability: &Capability| {
        let claims: CapabilityClaims = rmp_serde::from_slice(&capability.claims).ok()?;
        check(capability, manager_key, &claims.tree, key_hash, now_seconds).ok()?;
        Some(claims.tree)
    };
    capabilities.iter().filter_map(tree_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::id::Digest;

    #[test]
    fn a_capability_opens_one_tree_for_one_key_until_it_expires() {
        let key = CapabilityKey::from_pkcs8(&CapabilityKey::generate()).expect("a key");
        let tree =
            |byte| TreeId { tenant: "acme".parse().expect("valid"), image: Digest::from_bytes([byte; 32]) };
        let capability = key.issue(&tree(1), &"vm-1".parse().expect("valid"), &[5; 32], 1000);
        assert_eq!(check(&capability, key.public(), &tree(1), &[5; 32], 999), Ok(1000));
        assert_eq!(check(&capability, key.public(), &tree(1), &[5; 32], 1000), Err(CapabilityError::Expired));
        assert_eq!(check(&capability, key.public(), &tree(2), &[5; 32], 0), Err(CapabilityError::Mismatch));
        assert_eq!(check(&capability, key.public(), &tree(1), &[6; 32], 0), Err(CapabilityError::Mismatch));
        let other = CapabilityKey::from_pkcs8(&CapabilityKey::generate()).expect("a key");
        assert_eq!(
            check(&capability, other.public(), &tree(1), &[5; 32], 0),
            Err(CapabilityError::Signature)
        );
        let proven = opened_trees(std::slice::from_ref(&capability), key.public(), &[5; 32], 0);
        assert_eq!(proven, BTreeSet::from([tree(1)]));
        assert_eq!(
            opened_trees(std::slice::from_ref(&capability), key.public(), &[6; 32], 0),
            BTreeSet::new()
        );
        let mut forged = capability;
        forged.claims[3] ^= 1;
        assert_eq!(check(&forged, key.public(), &tree(1), &[5; 32], 0), Err(CapabilityError::Signature));
    }
}
