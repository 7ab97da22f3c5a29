//! The console: files of the binary that a browser runs. They are the same for everybody and hold no data; all
//! that they show they ask of the API, as whoever has logged in.

use super::problem::{Code, Problem};
use actix_web::{HttpRequest, HttpResponse, http::header, web::Path};
use rust_embed::RustEmbed;
use std::borrow::Cow;

/// In a debug build the files are read when they are asked for: a change is seen at once.
#[derive(RustEmbed)]
#[folder = "src/http/console/assets"]
struct Assets;

const START_PAGE: &str = "index.html";

/// Only what comes from here, and no text that became code by mistake. Nobody else frames the console.
macro_rules! policy {
    () => {
        "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; frame-ancestors 'none'"
    };
}
pub(super) use policy;

pub(super) const POLICY: &str = policy!();

pub(super) async fn redirect() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/console/")).finish()
}

pub(super) async fn file(request: HttpRequest, path: Path<String>) -> Result<HttpResponse, Problem> {
    let path = if path.is_empty() { START_PAGE } else { path.as_str() };
    let missing = || no_such_file("the console");
    let content_type = content_type(path).ok_or_else(missing)?;
    let file = Assets::get(path).ok_or_else(missing)?;
    let tag = format!("\"{}\"", blake3::Hash::from_bytes(file.metadata.sha256_hash()).to_hex());
    Ok(unless_known(&request, &tag, POLICY, content_type, file.data))
}

pub(super) fn no_such_file(place: &str) -> Problem {
    Problem::new(Code::NoSuchAddress, format!("{place} has no such file"))
}

/// What is the same for everybody: sent unless the caller has it.
pub(super) fn unless_known(
    request: &HttpRequest,
    tag: &str,
    policy: &'static str,
    content_type: &'static str,
    body: Cow<'static, [u8]>,
) -> HttpResponse {
    let is_known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
    let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((header::ETAG, tag))
        // Asked for again each time, and sent again only after an update of the manager.
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::X_FRAME_OPTIONS, "DENY"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"))
        .content_type(content_type);
    match (is_known, body) {
        (true, _) => response.finish(),
        (false, Cow::Borrowed(body)) => response.body(body),
        (false, Cow::Owned(body)) => response.body(body),
    }
}

pub(super) fn content_type(path: &str) -> Option<&'static str> {
    let (_, extension) = path.rsplit_once('.')?;
    Some(match extension {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        "txt" => "text/plain; charset=utf-8",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_served_and_none_has_code_within_its_markup() {
        let files: Vec<_> = Assets::iter().collect();
        assert!(files.iter().any(|path| path == START_PAGE));
        for path in files {
            assert!(content_type(&path).is_some(), "{path} has no content type");
            let file = Assets::get(&path).expect("it is listed");
            let text = std::str::from_utf8(&file.data).expect("all of them are text");
            let words: &[&str] = if path.ends_with(".js") {
                &["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            } else {
                &["onclick=", "onload=", "style=", "<script>", "javascript:", "http://", "https://"]
            };
            for word in words {
                let is_namespace = path.ends_with(".svg") && word.starts_with("http");
                assert!(is_namespace || !text.contains(word), "{path} has {word}");
            }
        }
    }
}
