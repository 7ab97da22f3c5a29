//! The one check that an index must pass, whoever gives it: an upstream, the origin, or the disk.

use faasnet_actors::image::{BlockImage, Index, IndexError};
use sha2::{Digest as _, Sha256};

#[derive(Debug, thiserror::Error)]
pub(super) enum NotTheIndex {
    #[error("its index is not the one that the manager named: the digest is another")]
    Digest,
    // From here on nobody can have a better one.
    #[error("the index that the manager named cannot be used: {0}; deploy another build of it")]
    Broken(#[from] IndexError),
    #[error(
        "the index that the manager named is of {plain} plain and {stored} stored bytes, which the image has not; \
         deploy another build of it"
    )]
    OtherLengths { plain: u64, stored: u64 },
}

/// The index, if the bytes have the digest that the manager named and describe that very image.
pub(super) fn named_index(image: &BlockImage, encoded: &[u8]) -> Result<Index, NotTheIndex> {
    if <[u8; 32]>::from(Sha256::digest(encoded)) != *image.index_digest.as_bytes() {
        return Err(NotTheIndex::Digest);
    }
    let index = Index::decode(encoded)?;
    let (plain, stored) = (index.plain_bytes(), index.blob_bytes());
    if (plain, stored) != (image.plain_bytes, image.blob_bytes) {
        return Err(NotTheIndex::OtherLengths { plain, stored });
    }
    Ok(index)
}
