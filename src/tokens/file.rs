//! A token that a process has for itself, in a file.

use super::{SecretSource, TokenError, api, row_key};
use std::{fs, io, path::Path};
use subtle::ConstantTimeEq;

/// What is good for one page of one process. Its text is in the file only.
#[derive(Clone)]
pub struct FileToken {
    hash: String,
}

/// Of a token's text: as long as those that are made here.
const TEXT_BYTES_MIN: usize = 46;
/// Nobody needs a longer one.
const TEXT_BYTES_MAX: usize = 1024;

impl FileToken {
    /// Reads the token, and makes it if there is none.
    pub fn open(file: &Path, secrets: &SecretSource) -> Result<Self, TokenError> {
        let failed = |error| TokenError::File { path: file.to_owned(), error };
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = api::new_text(secrets)?;
                api::write_private(file, &text).map_err(failed)?;
                text
            }
            Err(error) => return Err(failed(error)),
        };
        let text = text.trim();
        if !api::looks_like_one(text) || !(TEXT_BYTES_MIN..=TEXT_BYTES_MAX).contains(&text.len()) {
            return Err(TokenError::NotAToken(file.to_owned()));
        }
        Ok(Self { hash: row_key(text) })
    }

    /// Whether an `Authorization` header shows it. Hashes are compared, so the time says nothing of its text.
    pub fn is_shown(&self, header: &str) -> bool {
        api::bearer(header)
            .is_some_and(|text| row_key(text.trim()).as_bytes().ct_eq(self.hash.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::system_secrets;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_for_its_owner_only_and_nothing_else_is_good() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("metrics.token");
        let token = FileToken::open(&file, &system_secrets()).expect("made");
        let text = fs::read_to_string(&file).expect("there");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let again = FileToken::open(&file, &system_secrets()).expect("read");
        assert_eq!(fs::read_to_string(&file).expect("there"), text);
        for token in [token, again] {
            assert!(token.is_shown(&format!("Bearer {}", text.trim())));
            for wrong in
                ["", "Bearer", "Bearer ", "Bearer fn_wrong", text.trim(), &format!("Basic {}", text.trim())]
            {
                assert!(!token.is_shown(wrong), "{wrong}");
            }
        }
        for empty in ["", "fn_", "fn_short", &"x".repeat(50)] {
            fs::write(&file, empty).expect("written");
            assert!(matches!(FileToken::open(&file, &system_secrets()), Err(TokenError::NotAToken(_))));
        }
    }
}
