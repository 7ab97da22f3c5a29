//! Heads of forwarded requests and responses: what is passed on, what is added, what ends here.
//!
//! actix and hyper use different releases of the `http` crate, so names and values cross as bytes.

use super::{Chosen, bodies::RequestBody};
use crate::http::{
    auth::TENANT_HEADER,
    problem::{Code, Problem},
};
use actix_web::{
    HttpRequest, HttpResponseBuilder,
    body::BodySize,
    http::{
        Method,
        header::{self, HeaderMap},
    },
};
use faasnet_actors::scheduler::Located;
use hyper::{Request, Response, body::Incoming, http};

/// In a request: the one instance that is to answer. In a response: the one that did.
pub const START_HEADER: &str = "faasnet-start";
/// In a response: the VM of the instance.
pub const VM_HEADER: &str = "faasnet-vm";

/// Headers about one connection (RFC 9110, section 7.6.1), never passed on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers of a request that are meant for the gateway. The expectation was met when the body was
/// asked for; the token is none of the instance's business.
const FOR_THE_GATEWAY: [&str; 4] = ["authorization", "expect", START_HEADER, TENANT_HEADER];

/// Upgraded connections are not forwarded. `h2c` is an offer that may be left alone (RFC 9110,
/// section 7.8), and what curl sends by itself.
pub(super) fn refuse_upgrade(request: &HttpRequest) -> Result<(), Problem> {
    let wanted = request.headers().get(header::UPGRADE);
    let is_offer = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"h2c");
    let must_upgrade = wanted.is_some_and(|value| !is_offer(value)) || request.method() == Method::CONNECT;
    if !must_upgrade {
        return Ok(());
    }
    let detail = "connections to instances cannot be upgraded: websockets and CONNECT are not forwarded";
    Err(Problem::new(Code::UpgradeNotSupported, detail))
}

pub(super) fn chosen_start(request: &HttpRequest) -> Result<Chosen, Problem> {
    let Some(value) = request.headers().get(START_HEADER) else { return Ok(None) };
    value.to_str().unwrap_or_default().parse().map(Some).map_err(Problem::invalid)
}

pub(super) fn content_length(request: &HttpRequest) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn has_body(request: &HttpRequest) -> bool {
    content_length(request).is_some_and(|length| length > 0)
        || request.headers().contains_key(header::TRANSFER_ENCODING)
}

/// The request as the instance gets it.
pub(super) fn outgoing(
    request: &HttpRequest,
    body: RequestBody,
) -> Result<Request<RequestBody>, http::Error> {
    let path = instance_path(request.uri().path());
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    // Not parsed as a whole: a path that begins with // is no authority.
    let uri = http::Uri::builder().path_and_query(path_and_query).build()?;
    let mut outgoing = Request::builder().method(request.method().as_str()).uri(uri);

    let received = request.headers();
    let listed = listed_in_connection(received);
    // A chunked body is chunked anew; a length beside it would contradict it.
    let is_chunked = received.contains_key(header::TRANSFER_ENCODING);
    for (name, value) in received {
        let name = name.as_str();
        let ends_here = is_hop_by_hop(name, &listed)
            || FOR_THE_GATEWAY.contains(&name)
            || name.starts_with("x-forwarded-")
            || (is_chunked && name == "content-length");
        if !ends_here {
            outgoing = outgoing.header(name, value.as_bytes());
        }
    }
    let connection = request.connection_info();
    if !received.contains_key(header::HOST) {
        outgoing = outgoing.header("host", connection.host());
    }
    let text = |name: &str| received.get(name).and_then(|value| value.to_str().ok());
    let peer = request.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
    let forwarded_for = match text("x-forwarded-for") {
        Some(before) => format!("{before}, {peer}"),
        None => peer,
    };
    outgoing
        .header("x-forwarded-for", forwarded_for)
        .header("x-forwarded-proto", text("x-forwarded-proto").unwrap_or("http"))
        .header("x-forwarded-host", text("x-forwarded-host").unwrap_or(connection.host()))
        // The connection is this request's own.
        .header("connection", "close")
        .body(body)
}

/// What follows `/fn/NAME`, as the client wrote it: decoding and encoding would change it.
fn instance_path(path: &str) -> &str {
    let after_name = path.strip_prefix("/fn/").unwrap_or(path);
    after_name.find('/').map_or("/", |slash| &after_name[slash..])
}

/// How long the response says that its body is.
pub(super) fn response_size(response: &Response<Incoming>) -> BodySize {
    match response.status().as_u16() {
        204 | 304 => return BodySize::None,
        _ => {}
    }
    let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(BodySize::Stream, BodySize::Sized)
}

/// Copies the head of the response but for what is about one connection. The length is set with the
/// body.
pub(super) fn copy_response(
    response: &Response<Incoming>,
    from: &Located,
    builder: &mut HttpResponseBuilder,
) {
    let connection = response.headers().get_all("connection");
    let listed =
        connection.iter().filter_map(|value| value.to_str().ok()).flat_map(names).collect::<Vec<_>>();
    for (name, value) in response.headers() {
        let name = name.as_str();
        if is_hop_by_hop(name, &listed) || name == "content-length" {
            continue;
        }
        builder.append_header((name, value.as_bytes()));
    }
    builder.insert_header((START_HEADER, from.start.as_str()));
    builder.insert_header((VM_HEADER, from.vm.as_str()));
}

fn listed_in_connection(headers: &HeaderMap) -> Vec<String> {
    headers.get_all(header::CONNECTION).filter_map(|value| value.to_str().ok()).flat_map(names).collect()
}

fn names(list: &str) -> impl Iterator<Item = String> {
    list.split(',').map(|name| name.trim().to_ascii_lowercase())
}

fn is_hop_by_hop(name: &str, listed: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || listed.iter().any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_behind_the_name_is_passed_on_as_it_was_written() {
        let cases = [
            ("/fn/app", "/"),
            ("/fn/app/", "/"),
            ("/fn/app/a/b", "/a/b"),
            ("/fn/app//a%2Fb", "//a%2Fb"),
            ("/fn/%61pp/fn/app", "/fn/app"),
        ];
        for (path, wanted) in cases {
            assert_eq!(instance_path(path), wanted, "{path}");
        }
    }
}
