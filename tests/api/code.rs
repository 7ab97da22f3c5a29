//! Packages of code over the API.

use super::world::{PACKAGE_BYTES_MAX, World};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn digest_of(bytes: &[u8]) -> String {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    faasnet_actors::id::Digest::from_bytes(hash).to_string()
}

async fn put(world: &World, token: &str, digest: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let url = format!("{}/v1/code/{digest}", world.url);
    let request = world.client.put(url).bearer_auth(token).body(body);
    let answer = request.send().await.expect("answered");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn deploy(world: &World, token: &str, digest: &str) -> (u16, Value) {
    let spec = json!({"image": "registry.example/python:3", "code": digest});
    let url = format!("{}/v1/functions/with-code", world.url);
    let answer = world.client.put(url).bearer_auth(token).json(&spec).send().await.expect("answered");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

#[actix_web::test]
async fn a_function_may_name_a_package_that_its_tenant_has_uploaded() {
    let world = World::with(Vec::new(), |_| {}).await;
    let digest = digest_of(b"bytes of a zip");
    let (status, problem) = deploy(&world, &world.team_a, &digest).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("package_missing")), "{problem}");
    let chunks = ["bytes ", "of a ", "zip"].map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk)));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    assert_eq!(
        put(&world, &world.team_a, &digest, body).await,
        (201, json!({"digest": digest, "bytes": 14}))
    );
    assert_eq!(put(&world, &world.team_a, &digest, "bytes of a zip").await.0, 201, "again");
    assert_eq!(deploy(&world, &world.team_a, &digest).await.0, 200);
    // Nobody learns what other tenants have.
    assert_eq!(deploy(&world, &world.operator, &digest).await.0, 409);
}

#[actix_web::test]
async fn what_is_no_such_package_is_refused() {
    let world = World::with(Vec::new(), |_| {}).await;
    let digest = digest_of(b"bytes");
    let (status, problem) = put(&world, &world.team_a, &digest, "other bytes").await;
    assert_eq!(status, 400, "{problem}");
    assert!(problem["detail"].as_str().expect("text").contains(&digest_of(b"other bytes")));
    assert_eq!(put(&world, &world.team_a, "sha256:xyz", "bytes").await.0, 400);
    assert_eq!(put(&world, &world.viewer, &digest, "bytes").await.0, 403);
    assert_eq!(put(&world, "fn_wrong", &digest, "bytes").await.0, 401);
    let large = vec![7; PACKAGE_BYTES_MAX as usize + 1];
    let (status, problem) = put(&world, &world.team_a, &digest_of(&large), large.clone()).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("body_too_large")), "{problem}");
    let chunks = large.chunks(9999).map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk)));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks.collect::<Vec<_>>()));
    assert_eq!(put(&world, &world.team_a, &digest_of(&large), body).await.0, 413, "without a length");
    assert_eq!(deploy(&world, &world.team_a, &digest).await.0, 409, "nothing was kept");
}
