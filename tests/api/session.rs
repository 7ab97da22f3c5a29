//! The console's files, its login and its sessions, and what other sites cannot do with them.

use super::{
    routes::problem,
    world::{LOGIN_TRIES_MAX, World},
};
use reqwest::{RequestBuilder, Response, header};
use serde_json::{Value, json};

impl World {
    fn open(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(method.parse().expect("a method"), format!("{}{path}", self.url))
    }

    /// As a page of the console sends it, without a session.
    fn page(&self, method: &str, path: &str) -> RequestBuilder {
        self.open(method, path).header("origin", &self.url).header("x-faasnet-csrf", "1")
    }

    async fn try_login(&self, token: &str) -> Response {
        self.page("POST", "/v1/session").json(&json!({ "token": token })).send().await.expect("answered")
    }

    /// The cookie of a session, and all its attributes.
    async fn login(&self, token: &str) -> (String, String) {
        let response = self.try_login(token).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let attributes = response.headers()["set-cookie"].to_str().expect("text").to_owned();
        let cookie = attributes.split(';').next().expect("a pair").to_owned();
        (cookie, attributes)
    }
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("answered")
}

#[actix_web::test]
async fn a_token_becomes_a_session_that_is_not_the_token() {
    let world = World::new().await;
    let (cookie, attributes) = world.login(&world.team_a).await;
    assert!(!attributes.contains(world.team_a.trim_start_matches("fn_")), "{attributes}");
    for wanted in ["HttpOnly", "SameSite=Strict", "Path=/v1", "Max-Age=43200"] {
        assert!(attributes.contains(wanted), "{wanted} is not in {attributes}");
    }
    assert!(!attributes.contains("Secure"), "{attributes}");
    let https = world.open("POST", "/v1/session").header("origin", "https://console.example");
    let https = https.header("sec-fetch-site", "same-origin").header("x-faasnet-csrf", "1");
    let https = https.json(&json!({ "token": world.admin }));
    assert!(send(https).await.headers()["set-cookie"].to_str().expect("text").contains("Secure"));

    let who = |cookie: &str| world.open("GET", "/v1/session").header(header::COOKIE, cookie);
    let seen: Value = send(who(&cookie)).await.json().await.expect("JSON");
    assert_eq!(seen, json!({ "name": "test", "role": "operator", "tenant": "team-a" }));
    problem(send(who(&format!("{cookie}A"))).await, 401, "unauthorized").await;
    problem(send(who("faasnet_session=")).await, 401, "unauthorized").await;
    let bearer = send(world.as_admin("GET", "/v1/session")).await;
    assert_eq!(bearer.json::<Value>().await.expect("JSON")["tenant"], Value::Null);

    let out = world.page("DELETE", "/v1/session").header(header::COOKIE, &cookie);
    let out = send(out).await;
    assert_eq!(out.status(), 204);
    let attributes = out.headers()["set-cookie"].to_str().expect("text");
    assert!(attributes.starts_with("faasnet_session=;") && attributes.contains("Max-Age=0"), "{attributes}");
}

#[actix_web::test]
async fn a_session_ends_with_its_token() {
    let world = World::new().await;
    let made = world.as_admin("POST", "/v1/tokens").json(&json!({ "name": "guest", "role": "viewer" }));
    let made: Value = send(made).await.json().await.expect("JSON");
    let (cookie, _) = world.login(made["token"].as_str().expect("text")).await;
    let functions = || world.open("GET", "/v1/functions").header(header::COOKIE, &cookie);
    assert_eq!(send(functions()).await.status(), 200);
    let path = format!("/v1/tokens/{}", made["id"].as_str().expect("text"));
    assert_eq!(send(world.as_admin("DELETE", &path)).await.status(), 204);
    problem(send(functions()).await, 401, "unauthorized").await;
}

#[actix_web::test]
async fn other_sites_change_nothing_with_a_session() {
    let world = World::new().await;
    let (cookie, _) = world.login(&world.admin).await;
    let own = world.url.clone();
    let put = |origin: Option<&str>, site: Option<&str>, csrf: bool| {
        let mut request = world.open("PUT", "/v1/functions/app").header(header::COOKIE, &cookie);
        for (name, value) in
            [("origin", origin), ("sec-fetch-site", site), ("x-faasnet-csrf", csrf.then_some("1"))]
        {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.json(&json!({ "image": "registry.example/app:1" }))
    };
    for (origin, site, csrf) in [
        (None, None, true),
        (Some("http://evil.example"), None, true),
        (Some("null"), None, true),
        (Some(own.as_str()), None, false),
        (Some(own.as_str()), Some("cross-site"), true),
        (Some(own.as_str()), Some("same-site"), true),
        (None, Some("same-origin"), false),
    ] {
        problem(send(put(origin, site, csrf)).await, 403, "foreign_origin").await;
    }
    assert_eq!(send(put(Some(&own), None, true)).await.status(), 200);
    assert_eq!(send(put(None, Some("same-origin"), true)).await.status(), 200);

    // A websocket of another site is refused before it is one; ours is not, so it gets as far as its address.
    let socket = |origin: &str| {
        let request = world.open("GET", "/v1/nothing").header(header::COOKIE, &cookie);
        request.header("connection", "upgrade").header("upgrade", "websocket").header("origin", origin)
    };
    problem(send(socket("http://evil.example")).await, 403, "foreign_origin").await;
    problem(send(socket(&own)).await, 404, "no_such_address").await;

    // Nor can another site log its visitors in.
    let login = world.open("POST", "/v1/session").json(&json!({ "token": world.admin }));
    problem(send(login.header("origin", "http://evil.example")).await, 403, "foreign_origin").await;
}

#[actix_web::test]
async fn a_session_opens_no_function() {
    let world = World::new().await;
    let (cookie, _) = world.login(&world.admin).await;
    for method in ["GET", "POST"] {
        let invoke = world.page(method, "/fn/app/").header(header::COOKIE, &cookie);
        problem(send(invoke).await, 401, "unauthorized").await;
    }
}

#[actix_web::test]
async fn wrong_tokens_are_tried_a_few_times_only() {
    let world = World::new().await;
    for _ in 0..LOGIN_TRIES_MAX {
        problem(world.try_login("fn_wrong").await, 403, "wrong_token").await;
    }
    let refused = problem(world.try_login(&world.admin).await, 429, "too_many_logins").await;
    assert!((1..=60).contains(&refused["retry_after"].as_u64().expect("a pause")), "{refused}");
    assert_eq!(send(world.as_admin("GET", "/v1/functions")).await.status(), 200, "programs go on");
}

#[actix_web::test]
async fn the_console_is_files_with_a_strict_policy() {
    let world = World::new().await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
    let client = client.expect("client");
    for path in ["/", "/console"] {
        let answer = send(client.get(format!("{}{path}", world.url))).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["location"]),
            (302, &header::HeaderValue::from_static("/console/"))
        );
    }
    let page = send(world.open("GET", "/console/")).await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().expect("text");
    for wanted in ["default-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(wanted) && !policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let tag = page.headers()["etag"].clone();
    let again = send(world.open("GET", "/console/index.html").header("if-none-match", &tag)).await;
    assert_eq!((again.status().as_u16(), &again.headers()["etag"]), (304, &tag));
    assert_eq!(again.bytes().await.expect("read").len(), 0);
    let script = send(world.open("GET", "/console/app.js")).await;
    assert_eq!(script.headers()["content-type"], "text/javascript; charset=utf-8");

    for path in
        ["missing.js", "pages", "pages/", "..%2fmod.rs", "..%2f..%2f..%2f..%2fCargo.toml", "%2fetc%2fpasswd"]
    {
        problem(send(world.open("GET", &format!("/console/{path}"))).await, 404, "no_such_address").await;
    }
}

#[actix_web::test]
async fn the_page_over_the_description_is_files_from_the_binary_with_a_strict_policy() {
    let world = World::new().await;
    let policy =
        |page: &Response| page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    let console = policy(&send(world.open("GET", "/console/")).await);
    for (path, content_type) in [
        ("", "text/html; charset=utf-8"),
        ("page.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("LICENSE.txt", "text/plain; charset=utf-8"),
        ("NOTICE.txt", "text/plain; charset=utf-8"),
    ] {
        let file = send(world.open("GET", &format!("/docs/{path}"))).await;
        assert_eq!(file.status(), 200, "{path}");
        assert_eq!(file.headers()["content-type"], content_type, "{path}");
        assert_eq!(file.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(policy(&file), format!("{console}; img-src 'self' data:"), "{path}");
        let tag = file.headers()["etag"].clone();
        let text = file.text().await.expect("text");
        // What is ours names no other host, and has no code within its markup.
        let is_ours = path.is_empty() || path.starts_with("page.");
        for word in ["http://", "https://", "style=", "<script>", "onclick="] {
            assert!(!is_ours || !text.contains(word), "{path} has {word}");
        }
        let again = send(world.open("GET", &format!("/docs/{path}")).header("if-none-match", tag)).await;
        assert_eq!(again.status(), 304, "{path}");
    }
    for path in ["missing.js", "dist/swagger-ui.css", "swagger-initializer.js", "..%2fmod.rs"] {
        problem(send(world.open("GET", &format!("/docs/{path}"))).await, 404, "no_such_address").await;
    }
}

#[actix_web::test]
async fn tokens_are_made_listed_and_deleted() {
    let world = World::new().await;
    let create = |token: &str, body: Value| world.request("POST", "/v1/tokens", token).json(&body);
    let team = json!({ "name": "head of a", "role": "admin", "tenant": "team-a" });
    let head: Value = send(create(&world.admin, team)).await.json().await.expect("JSON");
    let head = head["token"].as_str().expect("text");

    // An administrator of one tenant rules over that tenant's tokens only.
    for tenant in [json!(null), json!("team-b")] {
        let body = json!({ "name": "x", "role": "viewer", "tenant": tenant });
        problem(send(create(head, body)).await, 403, "forbidden").await;
    }
    let own = json!({ "name": "x", "role": "viewer", "tenant": "team-a" });
    assert_eq!(send(create(head, own)).await.status(), 201);
    let names = async |token: &str| {
        let list: Value = send(world.request("GET", "/v1/tokens", token)).await.json().await.expect("JSON");
        let tokens = list["tokens"].as_array().expect("a list").clone();
        tokens.iter().map(|token| token["name"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(head).await.len(), 3, "its own, the one it made, and the operator of the tests");
    assert_eq!(names(&world.admin).await.len(), 6);

    for body in [
        json!({ "name": "", "role": "viewer" }),
        json!({ "name": "a\nb", "role": "viewer" }),
        json!({ "name": "x", "role": "root" }),
    ] {
        problem(send(create(&world.admin, body)).await, 400, "invalid").await;
    }
    problem(send(world.as_admin("DELETE", "/v1/tokens/0000")).await, 404, "not_found").await;
    let list: Value = send(world.as_admin("GET", "/v1/tokens")).await.json().await.expect("JSON");
    let last = list["tokens"].as_array().expect("a list").iter().find(|token| token["name"] == "admin");
    let path = format!("/v1/tokens/{}", last.expect("there")["id"].as_str().expect("text"));
    problem(send(world.as_admin("DELETE", &path)).await, 409, "last_admin").await;

    let printed = world.prints(&["token", "create", "ci", "--role", "operator", "--only", "team-a"]).await;
    assert_eq!(send(world.request("GET", "/v1/functions", printed.trim())).await.status(), 200);
    let listed = world.prints(&["token", "list"]).await;
    let line = listed.lines().find(|line| line.contains("  ci  ")).expect("it is listed");
    assert!(line.contains("operator") && line.ends_with("team-a"), "{line}");
    world.prints(&["token", "delete", line.split(' ').next().expect("an id")]).await;
    problem(send(world.request("GET", "/v1/functions", printed.trim())).await, 401, "unauthorized").await;
}
