//! Swagger UI over the description of the API, from the binary: a page for people, with no other host asked for anything.

use super::{
    console::{self, content_type, no_such_file, unless_known},
    problem::Problem,
};
use actix_web::{HttpRequest, HttpResponse, http::header, web::Path};
use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, ZipArchive, ZipSliceArchive};
use std::{borrow::Cow, collections::BTreeMap, io::Read, sync::LazyLock};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

const START_PAGE: &str = "index.html";

/// Ours: the page, and how the library is set up.
const OWN: [(&str, &str); 3] = [
    (START_PAGE, include_str!("assets/index.html")),
    ("page.css", include_str!("assets/page.css")),
    ("page.js", include_str!("assets/page.js")),
];

/// What is taken of the library, by its address. Whoever passes it on passes on its licence and notice.
const OF_LIBRARY: [(&str, &str); 4] = [
    ("swagger-ui-bundle.js", "dist/swagger-ui-bundle.js"),
    ("swagger-ui.css", "dist/swagger-ui.css"),
    ("LICENSE.txt", "LICENSE"),
    ("NOTICE.txt", "NOTICE"),
];

/// The console's policy, and pictures that the library's style sheet has within: arrows and locks. They are no code.
const POLICY: &str = concat!(console::policy!(), "; img-src 'self' data:");

struct File {
    text: Cow<'static, [u8]>,
    tag: String,
}

/// Unpacked when somebody asks first: most managers are never asked.
static FILES: LazyLock<BTreeMap<&str, File>> = LazyLock::new(|| {
    let own = OWN.map(|(address, text)| (address, Cow::Borrowed(text.as_bytes())));
    let file = |text: Cow<'static, [u8]>| File { tag: format!("\"{}\"", blake3::hash(&text).to_hex()), text };
    own.into_iter().chain(library()).map(|(address, text)| (address, file(text))).collect()
});

/// Only what is in the binary is read here, so what is wrong with it is found by a test.
fn library() -> Vec<(&'static str, Cow<'static, [u8]>)> {
    let archive = ZipArchive::from_slice(SWAGGER_UI_VENDORED).expect("a zip");
    let mut found = Vec::new();
    for record in archive.entries() {
        let record = record.expect("an entry");
        let path = record.file_path();
        let path = std::str::from_utf8(path.as_ref()).expect("text");
        // Above all is a folder with the version's name.
        let (_, path) = path.split_once('/').expect("a folder");
        let wanted = OF_LIBRARY.iter().find(|(_, wanted)| *wanted == path);
        if let Some((address, _)) = wanted {
            found.push((*address, Cow::Owned(unpack(&archive, &record))));
        }
    }
    found
}

fn unpack(archive: &ZipSliceArchive<&[u8]>, record: &rawzip::ZipFileHeaderRecord<'_>) -> Vec<u8> {
    let entry = archive.get_entry(record.wayfinder()).expect("its data");
    let plain: Box<dyn Read> = match record.compression_method() {
        CompressionMethod::STORE => Box::new(entry.data()),
        _ => Box::new(DeflateDecoder::new(entry.data())),
    };
    let mut text = Vec::new();
    entry.verifying_reader(plain).read_to_end(&mut text).expect("whole");
    text
}

pub(super) async fn redirect() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/docs/")).finish()
}

pub(super) async fn file(request: HttpRequest, path: Path<String>) -> Result<HttpResponse, Problem> {
    let path = if path.is_empty() { START_PAGE } else { path.as_str() };
    let missing = || no_such_file("the page of the API");
    let file = FILES.get(path).ok_or_else(missing)?;
    let content_type = content_type(path).ok_or_else(missing)?;
    Ok(unless_known(&request, &file.tag, POLICY, content_type, Cow::Borrowed(&file.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_the_library_is_there_as_text() {
        assert_eq!(FILES.len(), OWN.len() + OF_LIBRARY.len());
        for (address, file) in FILES.iter() {
            assert!(content_type(address).is_some(), "{address} has no content type");
            let text = std::str::from_utf8(&file.text).expect("all of them are text");
            assert!(!text.is_empty(), "{address}");
        }
        let notice = String::from_utf8_lossy(&FILES["NOTICE.txt"].text);
        assert!(notice.contains("SmartBear"), "{notice}");
    }
}
