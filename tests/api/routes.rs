//! Who may do what, the form of every error, and the shape of the answers.

use super::{
    control::{START, errors},
    world::World,
};
use faasnet::{http, tokens::Role};
use faasnet_actors::scheduler::Located;
use serde_json::{Value, json};

/// Fills in what a pattern leaves open.
fn example(pattern: &str) -> String {
    let id = if pattern.contains("/vms/") { "vm-1" } else { START };
    pattern.replace("{name}", "app").replace("{id}", id).replace("{path:.*}", "a/b")
}

fn methods(entry: &http::RouteEntry) -> Vec<String> {
    match &entry.method {
        Some(method) => vec![method.to_string()],
        None => ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].map(String::from).to_vec(),
    }
}

/// Asserts that a response is a whole problem, and returns it.
pub async fn problem(response: reqwest::Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status(), status, "{code}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{code}");
    let retry_after =
        response.headers().get("retry-after").map(|value| value.to_str().expect("text").to_owned());
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["code"], code);
    assert_eq!(problem["type"], format!("urn:faasnet:problem:{code}"));
    assert!(!problem["title"].as_str().expect("title").is_empty());
    assert!(!problem["detail"].as_str().expect("detail").is_empty());
    assert_eq!(problem["retry_after"].as_u64().map(|seconds| seconds.to_string()), retry_after);
    problem
}

/// What is open to everybody, and its answer to a bare request: the console and the docs have no file a/b, a login takes a token.
const PUBLIC: [(&str, u16); 9] = [
    ("GET /healthz", 200),
    ("GET /readyz", 200),
    ("GET /", 200),
    ("GET /console", 200),
    ("GET /console/{path:.*}", 404),
    ("GET /docs", 200),
    ("GET /docs/{path:.*}", 404),
    ("GET /v1/openapi.json", 200),
    ("POST /v1/session", 400),
];

#[actix_web::test]
async fn nothing_but_health_and_the_console_is_answered_without_a_token() {
    let world = World::new().await;
    let wrong = format!("Bearer {}x", world.admin);
    for entry in http::routes() {
        for method in methods(&entry) {
            for authorization in [None, Some(wrong.as_str()), Some("Basic YTpi")] {
                let url = format!("{}{}", world.url, example(entry.pattern));
                let mut request = world.client.request(method.parse().expect("a method"), &url);
                if let Some(authorization) = authorization {
                    request = request.header("authorization", authorization);
                }
                let response = request.send().await.expect("answered");
                if entry.role.is_none() {
                    let name = format!("{method} {}", entry.pattern);
                    let row = PUBLIC.iter().find(|(row, _)| *row == name);
                    let (_, status) = row.unwrap_or_else(|| panic!("{name} is open to everybody"));
                    assert_eq!(response.status(), *status, "{name}");
                    continue;
                }
                assert!(response.headers()["www-authenticate"].to_str().expect("text").starts_with("Bearer"));
                assert!(response.headers().contains_key("x-request-id"));
                if method == "HEAD" {
                    assert_eq!(response.status(), 401);
                } else {
                    problem(response, 401, "unauthorized").await;
                }
            }
        }
    }
    let unknown = world.client.get(format!("{}/v2/unknown", world.url)).send().await.expect("answered");
    problem(unknown, 401, "unauthorized").await;
}

#[actix_web::test]
async fn a_role_that_is_too_low_is_refused_everywhere() {
    let world = World::new().await;
    for entry in http::routes() {
        let Some(role) = entry.role else { continue };
        let too_low = match role {
            Role::Viewer => continue,
            Role::Operator => vec![&world.viewer],
            Role::Admin => vec![&world.viewer, &world.operator],
        };
        for token in too_low {
            for method in methods(&entry).iter().filter(|method| *method != "HEAD") {
                let request = world.request(method, &example(entry.pattern), token);
                problem(request.send().await.expect("answered"), 403, "forbidden").await;
            }
        }
    }
}

#[actix_web::test]
async fn tenants_do_not_see_each_other() {
    let world = World::new().await;
    let spec = json!({"image": "registry.example/app:1"});
    let put = world.request("PUT", "/v1/functions/app", &world.team_a).json(&spec).send().await;
    assert_eq!(put.expect("answered").status(), 200);

    let names = async |token: &str, tenant: Option<&str>| {
        let mut request = world.request("GET", "/v1/functions", token);
        if let Some(tenant) = tenant {
            request = request.header("faasnet-tenant", tenant);
        }
        let list: Value = request.send().await.expect("answered").json().await.expect("JSON");
        list["functions"].as_array().expect("a list").len()
    };
    assert_eq!(names(&world.team_a, None).await, 1);
    assert_eq!(names(&world.team_a, Some("team-a")).await, 1);
    assert_eq!(names(&world.viewer, None).await, 0, "the default tenant has none");
    assert_eq!(names(&world.viewer, Some("team-a")).await, 1);

    let profile = async |tenant: &str| {
        let request = world.request("GET", "/v1/functions/app/profile", &world.viewer);
        request.header("faasnet-tenant", tenant).send().await.expect("answered")
    };
    assert_eq!(profile("team-a").await.status(), 200);
    problem(profile("team-b").await, 404, "not_found").await;
    let preheat = async |method: &str, token: &str, tenant: &str| {
        let request = world.request(method, "/v1/functions/app/preheat", token);
        let request = if method == "POST" { request.json(&json!({"vms": 1})) } else { request };
        request.header("faasnet-tenant", tenant).send().await.expect("answered")
    };
    assert_eq!(preheat("GET", &world.viewer, "team-a").await.status(), 200);
    assert_eq!(preheat("POST", &world.team_a, "team-a").await.status(), 202);
    problem(preheat("GET", &world.viewer, "team-b").await, 404, "not_found").await;
    problem(preheat("POST", &world.operator, "team-b").await, 404, "not_found").await;
    let optimize = world.request("POST", "/v1/functions/app/optimize", &world.operator);
    problem(optimize.send().await.expect("answered"), 404, "not_found").await;

    let other = world.request("GET", "/v1/functions", &world.team_a).header("faasnet-tenant", "team-b");
    problem(other.send().await.expect("answered"), 403, "forbidden").await;
    let vms = world.request("GET", "/v1/vms", &world.team_a).send().await.expect("answered");
    problem(vms, 403, "forbidden").await;
    let bad = world.request("GET", "/v1/functions", &world.viewer).header("faasnet-tenant", "../x");
    problem(bad.send().await.expect("answered"), 400, "invalid").await;
}

#[actix_web::test]
async fn every_mistake_is_told_as_a_problem() {
    let world = World::with(vec![], |settings| settings.json_bytes_max = 300).await;
    let send = async |request: reqwest::RequestBuilder| request.send().await.expect("answered");
    let admin = |method, path| world.as_admin(method, path);

    problem(send(admin("GET", "/v1/unknown")).await, 404, "no_such_address").await;
    let response = send(admin("POST", "/v1/functions/app")).await;
    assert_eq!(response.headers()["allow"], "GET, PUT, DELETE");
    problem(response, 405, "method_not_allowed").await;
    problem(send(admin("DELETE", "/healthz")).await, 405, "method_not_allowed").await;

    problem(send(admin("GET", "/v1/functions/UPPER")).await, 400, "invalid").await;
    problem(send(admin("GET", "/v1/functions/..%2Fx")).await, 400, "invalid").await;
    problem(send(admin("GET", "/v1/functions/app/starts?limit=many")).await, 400, "invalid").await;
    problem(send(admin("GET", "/v1/functions/app/starts?wrong=1")).await, 400, "invalid").await;

    let put = |body: &'static str| admin("PUT", "/v1/functions/app").body(body);
    problem(send(put("{")).await, 400, "invalid").await;
    problem(send(put("")).await, 400, "invalid").await;
    problem(send(put("{}")).await, 400, "invalid").await;
    let unknown = problem(send(put(r#"{"image":"a","memroy_mib":1}"#)).await, 400, "invalid").await;
    assert!(unknown["detail"].as_str().expect("text").contains("memroy_mib"), "{unknown}");
    let small = problem(send(put(r#"{"image":"a","memory_mib":1}"#)).await, 400, "invalid").await;
    assert!(small["detail"].as_str().expect("text").contains("memory_mib"), "{small}");
    let long = json!({"image": "a".repeat(400)});
    problem(send(admin("PUT", "/v1/functions/app").json(&long)).await, 413, "body_too_large").await;

    let starts = |body: Value| admin("POST", "/v1/functions/app/starts").json(&body);
    problem(send(starts(json!({"count": 0}))).await, 400, "invalid").await;
    problem(send(starts(json!({"count": -1}))).await, 400, "invalid").await;
    problem(send(starts(json!({}))).await, 400, "invalid").await;
    let preheat = |body: Value| admin("POST", "/v1/functions/app/preheat").json(&body);
    problem(send(preheat(json!({"vms": 1, "what": "warm"}))).await, 400, "invalid").await;
    problem(send(preheat(json!({"names": ["UPPER"]}))).await, 400, "invalid").await;
    problem(send(preheat(json!({"count": 1}))).await, 400, "invalid").await;
    problem(send(preheat(json!({"vms": 1}))).await, 404, "not_found").await;
    problem(send(admin("DELETE", "/v1/vms/vm-1")).await, 409, "conflict").await;
    problem(send(admin("POST", "/v1/vms/vm-1/drain")).await, 409, "conflict").await;
    problem(send(admin("POST", "/v1/vms/vm-1/drain?force=false")).await, 409, "conflict").await;
    problem(send(admin("POST", "/v1/vms/vm-1/drain?force=perhaps")).await, 400, "invalid").await;
    problem(send(admin("POST", "/v1/vms/vm-9/drain")).await, 404, "not_found").await;
    problem(send(admin("POST", "/v1/vms/vm-9/undrain")).await, 404, "not_found").await;
}

#[actix_web::test]
async fn every_refusal_of_the_control_plane_has_its_status_code_and_pause() {
    let world = World::new().await;
    for (name, _, status, code, retry_after) in errors() {
        let response =
            world.as_admin("GET", &format!("/v1/functions/{name}")).send().await.expect("answered");
        let problem = problem(response, status, code).await;
        assert_eq!(problem["retry_after"].as_u64(), retry_after, "{name}");
    }
}

#[actix_web::test]
async fn a_request_keeps_its_id_or_gets_one() {
    let world = World::new().await;
    let id_for = async |id: &str| {
        let request = world.as_admin("GET", "/v1/functions").header("x-request-id", id);
        let response = request.send().await.expect("answered");
        response.headers()["x-request-id"].to_str().expect("text").to_owned()
    };
    assert_eq!(id_for("my-request.1").await, "my-request.1");
    let long = "x".repeat(129);
    for unfit in ["", "two words", &long] {
        let given = id_for(unfit).await;
        assert_ne!(given, unfit);
        assert_eq!(given.len(), 36, "a UUID: {given}");
    }
}

#[actix_web::test]
async fn the_answers_have_their_shapes() {
    let instance = Located {
        start: START.parse().expect("valid"),
        vm: "vm-1".parse().expect("valid"),
        address: ([127, 0, 0, 1], 1).into(),
    };
    let world = World::with(vec![instance], |_| {}).await;
    let json = async |request: reqwest::RequestBuilder, status: u16| -> Value {
        let response = request.send().await.expect("answered");
        assert_eq!(response.status(), status);
        response.json().await.expect("JSON")
    };
    let put = world.as_admin("PUT", "/v1/functions/app").json(&json!({"image": "registry.example/app:1"}));
    let function = json(put, 200).await;
    assert_eq!((&function["name"], &function["memory_mib"]), (&json!("app"), &json!(256)));
    assert_eq!(json(world.as_admin("GET", "/v1/functions/app"), 200).await, function);

    let wanted = world.as_admin("POST", "/v1/functions/app/starts").json(&json!({"count": 3}));
    assert_eq!(json(wanted, 202).await["starts"].as_array().expect("ids").len(), 3);
    let start = json(world.as_admin("GET", &format!("/v1/starts/{START}")), 200).await;
    assert_eq!((&start["id"], &start["timeline_us"]["ready"]), (&json!(START), &json!(252_000)));
    let starts = json(world.as_admin("GET", "/v1/functions/app/starts?limit=1"), 200).await;
    assert_eq!(starts["starts"].as_array().expect("starts").len(), 1);
    assert_eq!(json(world.as_admin("GET", "/v1/vms"), 200).await["vms"][0]["id"], "vm-1");
    for (verb, state) in [("drain?force=true", "draining"), ("undrain", "up")] {
        let vm = json(world.as_admin("POST", &format!("/v1/vms/vm-1/{verb}")), 200).await;
        assert_eq!((&vm["id"], &vm["state"]), (&json!("vm-1"), &json!(state)));
    }
    let tree = json(world.as_admin("GET", "/v1/functions/app/tree"), 200).await;
    assert_eq!(tree["members"][0]["vm"], "vm-0");
    for (method, path, status) in [("GET", "profile", 200), ("POST", "optimize", 202)] {
        let request = world.as_admin(method, &format!("/v1/functions/app/{path}"));
        let profile = json(request, status).await;
        assert_eq!((&profile["recordings"], &profile["packing"]["state"]), (&json!(1), &json!("done")));
        assert_eq!(profile["profile"]["parts"][0]["path"], "/usr/bin/python3");
    }
    let wanted = world.as_admin("POST", "/v1/functions/app/preheat").json(&json!({"vms": 1}));
    let preheated = json(wanted, 202).await;
    assert_eq!(
        (&preheated["vms"][0]["what"], &preheated["vms"][0]["is_done"]),
        (&json!("whole"), &json!(true))
    );
    assert_eq!(json(world.as_admin("GET", "/v1/functions/app/preheat"), 200).await["vms"][0]["vm"], "vm-1");
    let new = world.as_admin("PUT", "/v1/functions/unread").json(&json!({"image": "registry.example/new:1"}));
    json(new, 200).await;
    let unread = world.as_admin("POST", "/v1/functions/unread/optimize").send().await.expect("answered");
    problem(unread, 409, "conflict").await;
    let token = json(world.as_admin("POST", "/v1/join-tokens"), 201).await;
    assert!(token["token"].as_str().expect("text").starts_with("fnj_"));

    let logs = world.as_admin("GET", &format!("/v1/starts/{START}/logs?tail=10")).send().await;
    let logs = logs.expect("answered");
    assert_eq!(logs.headers()["x-content-type-options"], "nosniff");
    assert_eq!(logs.text().await.expect("text"), "last line\n");

    for path in [format!("/v1/starts/{START}"), "/v1/functions/app".into()] {
        assert_eq!(world.as_admin("DELETE", &path).send().await.expect("answered").status(), 204);
    }
    problem(world.as_admin("GET", "/v1/functions/app").send().await.expect("answered"), 404, "not_found")
        .await;
}

#[actix_web::test]
async fn readiness_follows_the_manager() {
    let world = World::new().await;
    let ready = async || world.client.get(format!("{}/readyz", world.url)).send().await.expect("answered");
    assert_eq!(ready().await.status(), 200);
    world.ready.send(false).expect("the server listens");
    problem(ready().await, 503, "not_ready").await;
}

#[actix_web::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::with(vec![], |settings| settings.request_deadline_ms = 100).await;
    let body = reqwest::Body::wrap_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let response = world.as_admin("PUT", "/v1/functions/app").body(body).send().await.expect("answered");
    problem(response, 408, "body_too_slow").await;
}
