//! Extended attributes: which may be in an image, and how EROFS writes their names.

/// Why an extended attribute is refused.
#[derive(Debug, thiserror::Error)]
pub enum XattrError {
    #[error("the extended attribute {0} would be obeyed by overlayfs")]
    Overlay(String),
    #[error("the extended attribute {0} is of a kind that images cannot carry")]
    Unknown(String),
    #[error("the extended attribute {0} has a name or value that is too long or malformed")]
    Malformed(String),
}

/// EROFS's numbers for beginnings of names (`EROFS_XATTR_INDEX_*` in the kernel's `erofs_fs.h`). The ACL
/// names stand for themselves.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// `XATTR_NAME_MAX` of Linux.
const NAME_BYTES_MAX: usize = 255;
/// What the kernel's 16 bits for a value can say; Linux allows 64 KiB.
const VALUE_BYTES_MAX: usize = 65_535;
/// All attributes of an inode in EROFS: 16 bits count units of 4 bytes.
const ALL_BYTES_MAX: usize = 4 * 65_535;

/// An inode's attributes begin with a header of 12 bytes.
const HEADER_BYTES: usize = 12;

/// Splits a name into EROFS's number and the rest.
fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    let (index, start) = PREFIXES.iter().find(|(_, start)| name.starts_with(start))?;
    let rest = &name[start.len()..];
    let stands_alone = matches!(index, 2 | 3);
    (stands_alone == rest.is_empty()).then_some((*index, rest))
}

/// Refuses what the file system cannot carry, and what overlayfs would take for its own marks.
pub fn check(xattrs: &[(Vec<u8>, Vec<u8>)], is_directory: bool) -> Result<(), XattrError> {
    for (name, value) in xattrs {
        let text = || String::from_utf8_lossy(name).into_owned();
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err(XattrError::Overlay(text()));
        }
        let (index, _) = prefix(name).ok_or_else(|| XattrError::Unknown(text()))?;
        let fits = name.len() <= NAME_BYTES_MAX && value.len() <= VALUE_BYTES_MAX && !name.contains(&0);
        let is_good = match index {
            2 => is_acl(value),
            3 => is_acl(value) && is_directory,
            _ => true,
        };
        if !fits || !is_good {
            return Err(XattrError::Malformed(text()));
        }
    }
    if encoded_len(xattrs) > ALL_BYTES_MAX {
        return Err(XattrError::Malformed("list".to_owned()));
    }
    Ok(())
}

/// An ACL as `getxattr` gives it: version 2, then entries of 8 bytes.
fn is_acl(value: &[u8]) -> bool {
    value.starts_with(&2_u32.to_le_bytes()) && value.len() % 8 == 4
}

/// Bytes that the attributes take behind their inode.
pub fn encoded_len(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entry_len = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let (_, rest) = prefix(name).expect("checked when the entry was read");
        (4 + rest.len() + value.len()).next_multiple_of(4)
    };
    HEADER_BYTES + xattrs.iter().map(entry_len).sum::<usize>()
}

/// The attributes as they stand behind their inode; none are shared between inodes.
pub fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; HEADER_BYTES];
    for (name, value) in xattrs {
        let (index, rest) = prefix(name).expect("checked when the entry was read");
        out.extend_from_slice(&[rest.len() as u8, index]);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The inode's count of attributes: units of 4 bytes behind the header, and one.
pub fn count(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u16 {
    match encoded_len(xattrs) {
        0 => 0,
        bytes => ((bytes - HEADER_BYTES) / 4 + 1) as u16,
    }
}
