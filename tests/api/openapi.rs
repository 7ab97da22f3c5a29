//! The description of the API, and whether it is true: what a running server answers is checked against it.

use super::{control::START, events, world::World};
use faasnet::http::{self, Call, Code, PATH_METHODS};
use faasnet_actors::{
    event_log::{Audit, Happening, News},
    function_tree::{HoldingNews, SeatNews, TreeNews},
    id::{Digest, Epoch},
    scheduler::Located,
    wire::control::BytesBySource,
};
use jsonschema::{Draft, Validator};
use reqwest::{RequestBuilder, Response, header};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// `https://spec.openapis.org/oas/3.1/schema/2022-10-07` of the OpenAPI Initiative (Apache-2.0), as the Python
/// package `openapi-spec-validator` 0.9.0 has it. It does not look into schemas.
const OPENAPI_SCHEMA: &str = include_str!("openapi-3.1.json");

/// The description, as a test looks at it.
struct Described {
    document: Value,
    /// The same with objects that have no other fields than those that are described.
    strict: Value,
}

impl Described {
    fn new() -> Self {
        let document = http::document();
        let mut strict = document["components"].clone();
        let schemas = strict["schemas"].as_object_mut().expect("schemas");
        // What is a part of other objects cannot refuse what is beside it there.
        let mut parts = BTreeSet::new();
        each(&document["components"]["schemas"], &mut |key, value| {
            if key == "allOf" {
                let names = value.as_array().expect("parts").iter().filter_map(|part| part["$ref"].as_str());
                parts.extend(names.map(|name| name.rsplit('/').next().expect("a name").to_owned()));
            }
        });
        for (name, schema) in schemas {
            close(schema, parts.contains(name));
        }
        Self { document, strict }
    }

    /// What is said of one method of an address.
    fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not described");
        operation
    }

    fn response(&self, method: &str, path: &str, status: u16) -> &Value {
        let response = &self.operation(method, path)["responses"][status.to_string()];
        assert!(response.is_object(), "{method} {path} is not described to answer with {status}");
        response["$ref"].as_str().map_or(response, |name| self.find(name))
    }

    fn find(&self, reference: &str) -> &Value {
        let found = self.document.pointer(reference.trim_start_matches('#'));
        found.unwrap_or_else(|| panic!("there is no {reference}"))
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut root = schema.clone();
        root["components"] = self.strict.clone();
        jsonschema::options().with_draft(Draft::Draft202012).build(&root).expect("a schema")
    }

    fn check(&self, schema: &Value, value: &Value, what: &str) {
        let validator = self.validator(schema);
        let wrong: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{what} is not as described: {wrong:#?}\n{value:#}");
    }

    /// Checks an answer: its status, its media type, its body. Returns the body.
    async fn check_answer(&self, method: &str, path: &str, response: Response) -> Vec<u8> {
        let status = response.status().as_u16();
        let described = self.response(method, path, status);
        for name in described["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            assert!(response.headers().contains_key(name), "{method} {path}: {status} has no {name}");
        }
        let media_type = response.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.map(|text| text.to_str().expect("text").split(';').next().expect("one"));
        let media_type = media_type.map(str::to_owned);
        let body = response.bytes().await.expect("a body").to_vec();
        let Some(content) = described["content"].as_object() else {
            assert!(body.is_empty(), "{method} {path}: {status} has a body");
            return body;
        };
        let media_type = media_type.expect("a media type");
        let content = content.get(&media_type);
        let content = content.unwrap_or_else(|| panic!("{method} {path}: {status} has {media_type}"));
        if media_type.ends_with("json") {
            let value: Value = serde_json::from_slice(&body).expect("JSON");
            self.check(&content["schema"], &value, &format!("{method} {path}: {status}"));
        }
        body
    }
}

/// Refuses fields that are not described, at every depth.
fn close(schema: &mut Value, is_part: bool) {
    let Some(fields) = schema.as_object_mut() else { return };
    let has = |name: &str| fields.contains_key(name);
    let refuses = if has("allOf") { "unevaluatedProperties" } else { "additionalProperties" };
    if (has("allOf") || has("properties")) && !has(refuses) && !is_part {
        fields.insert(refuses.into(), false.into());
    }
    for (name, below) in fields {
        match (name.as_str(), below) {
            ("allOf", Value::Array(parts)) => parts.iter_mut().for_each(|part| close(part, true)),
            ("oneOf" | "anyOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(|part| close(part, is_part))
            }
            ("properties", Value::Object(fields)) => {
                fields.values_mut().for_each(|field| close(field, false));
            }
            ("items" | "additionalProperties", below) => close(below, false),
            _ => {}
        }
    }
}

/// Every value below one, with the key that it has.
fn each<'a>(value: &'a Value, visit: &mut dyn FnMut(&'a str, &'a Value)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                visit(key, value);
                each(value, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| each(item, visit)),
        _ => {}
    }
}

#[test]
fn the_description_is_openapi_3_1() {
    let described = Described::new();
    let schema: Value = serde_json::from_str(OPENAPI_SCHEMA).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> = validator
        .iter_errors(&described.document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    let mut schemas = 0;
    each(&described.document, &mut |key, value| match key {
        "$ref" => drop(described.find(value.as_str().expect("text"))),
        "schema" => {
            jsonschema::draft202012::meta::validate(value).expect("a schema");
            schemas += 1;
        }
        _ => {}
    });
    assert!(schemas > 100, "{schemas}");
    for (name, schema) in described.document["components"]["schemas"].as_object().expect("schemas") {
        let valid = jsonschema::draft202012::meta::validate(schema);
        valid.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_description_and_the_route_table_are_the_same() {
    let described = Described::new();
    let mut rows = BTreeSet::new();
    for entry in http::routes() {
        let methods = entry.method.as_ref().map_or(PATH_METHODS.to_vec(), |method| vec![method.as_str()]);
        for method in methods {
            let path = entry.path();
            let operation = described.operation(method, &path);
            assert_eq!(operation["x-faasnet-role"].as_str(), entry.role.map(|role| role.name()), "{path}");
            let ways = operation["security"].as_array().expect("ways");
            assert_eq!(ways.is_empty(), entry.role.is_none(), "{method} {path}");
            let has = |code: Code| {
                let status = code.row().status.as_u16().to_string();
                let response = &operation["responses"][status];
                let response = response["$ref"].as_str().map(|name| described.find(name));
                response.is_some_and(|response| names(response).contains(&code.row().name))
            };
            assert_eq!(has(Code::Unauthorized), entry.role.is_some(), "{method} {path}");
            let parameters: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let parts: BTreeSet<&str> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(parameters, parts, "{method} {path}");
            rows.insert((path, method.to_lowercase()));
        }
    }
    let mut ids = BTreeSet::new();
    for (path, item) in described.document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            assert!(rows.remove(&(path.clone(), method.clone())), "{method} {path} is no route");
            assert!(ids.insert(operation["operationId"].as_str().expect("text")), "{method} {path}");
            assert!(!operation["summary"].as_str().expect("text").is_empty());
        }
    }
    assert!(rows.is_empty(), "{rows:?}");
    assert_eq!(http::routes().len(), Call::ALL.len(), "each call is a route");
}

/// The codes that a described problem may have.
fn names(response: &Value) -> Vec<&str> {
    let schema = &response["content"]["application/problem+json"]["schema"];
    let codes = schema["properties"]["code"]["enum"].as_array();
    codes.into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn each_code_is_sent_somewhere_and_told_of_where_it_may_come() {
    let described = Described::new();
    let mut told = BTreeSet::new();
    each(&described.document["paths"], &mut |key, value| {
        if key == "responses" {
            for response in value.as_object().expect("responses").values() {
                let response = response["$ref"].as_str().map_or(response, |name| described.find(name));
                told.extend(names(response));
            }
        }
    });
    let mut sources = String::new();
    read_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http")), "rs", &mut |path, text| {
        if !path.contains("/openapi/") && !path.ends_with("/codes.rs") {
            sources.push_str(text);
        }
    });
    for code in Code::ALL {
        let name = code.row().name;
        // There is no operation to tell of these.
        let is_of_none = matches!(code, Code::NoSuchAddress | Code::MethodNotAllowed);
        assert!(is_of_none || told.contains(name), "no operation may answer {name}");
        assert!(sources.contains(&format!("Code::{code:?}")), "{name} is never sent");
    }
}

fn read_all(folder: &Path, extension: &str, visit: &mut dyn FnMut(&str, &str)) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_all(&path, extension, visit);
        } else if path.extension().is_some_and(|found| found == extension) {
            visit(path.to_str().expect("text"), &std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// What is asked of the server: the row of the table, the address, and the status of the answer.
struct Asked<'a> {
    described: &'a Described,
    seen: BTreeSet<(String, String, u16)>,
}

impl Asked<'_> {
    async fn ask(&mut self, method: &str, path: &str, request: RequestBuilder, status: u16) -> Value {
        let response = request.send().await.expect("answered");
        assert_eq!(response.status(), status, "{method} {path}");
        let body = self.described.check_answer(method, path, response).await;
        self.seen.insert((path.to_owned(), method.to_lowercase(), status));
        serde_json::from_slice(&body).unwrap_or_default()
    }
}

#[actix_web::test]
async fn what_the_server_answers_is_what_is_described() {
    let instance = Located {
        start: START.parse().expect("valid"),
        vm: "vm-1".parse().expect("valid"),
        address: ([127, 0, 0, 1], 1).into(),
    };
    let mut world = World::with(vec![instance], |_| {}).await;
    // Redirections are answers.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
    world.client = client.build().expect("a client");
    let described = Described::new();
    let mut asked = Asked { described: &described, seen: BTreeSet::new() };
    let admin = |method, path: &str| world.as_admin(method, path);
    let open = |path: &str| world.client.get(format!("{}{path}", world.url));

    for path in ["/healthz", "/readyz"] {
        asked.ask("GET", path, open(path), 200).await;
    }
    for path in ["/", "/console", "/docs"] {
        asked.ask("GET", path, open(path), 302).await;
    }
    asked.ask("GET", "/console/{path}", open("/console/"), 200).await;
    asked.ask("GET", "/docs/{path}", open("/docs/"), 200).await;
    let served = asked.ask("GET", "/v1/openapi.json", open("/v1/openapi.json"), 200).await;
    assert_eq!(served, described.document);
    for (path, url) in [
        ("/console/{path}", "/console/"),
        ("/docs/{path}", "/docs/"),
        ("/v1/openapi.json", "/v1/openapi.json"),
    ] {
        let first = open(url).send().await.expect("answered");
        let known = open(url).header("if-none-match", &first.headers()["etag"]);
        asked.ask("GET", path, known, 304).await;
    }

    let page = |method: &str| {
        let method = method.parse().expect("a method");
        let request = world.client.request(method, format!("{}/v1/session", world.url));
        request.header("origin", &world.url).header("x-faasnet-csrf", "1")
    };
    let login = json!({"token": world.admin});
    asked.ask("POST", "/v1/session", page("POST").json(&login), 200).await;
    asked.ask("GET", "/v1/session", admin("GET", "/v1/session"), 200).await;
    asked.ask("DELETE", "/v1/session", admin("DELETE", "/v1/session"), 204).await;
    let wanted = json!({"name": "guest", "role": "viewer", "tenant": "team-a"});
    let made = asked.ask("POST", "/v1/tokens", admin("POST", "/v1/tokens").json(&wanted), 201).await;
    asked.ask("GET", "/v1/tokens", admin("GET", "/v1/tokens"), 200).await;
    let url = format!("/v1/tokens/{}", made["id"].as_str().expect("text"));
    asked.ask("DELETE", "/v1/tokens/{id}", admin("DELETE", &url), 204).await;
    asked.ask("POST", "/v1/join-tokens", admin("POST", "/v1/join-tokens"), 201).await;

    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    asked.ask("GET", "/v1/code", admin("GET", "/v1/code"), 200).await;
    asked.ask("PUT", "/v1/code/{digest}", admin("PUT", &format!("/v1/code/{digest}")), 201).await;
    let full = json!({
        "image": "registry.example/app:1", "memory_mib": 128, "cpu_millis": 200, "concurrency": 4,
        "min_instances": 1, "max_instances": 3, "keep_alive_ms": 60_000, "probe_path": "/up",
        "mode": "lazy-then-whole", "env": {"A": "1"}, "code": digest, "command": ["python3", "-u"]
    });
    for (name, spec) in [
        ("with-code", full),
        ("app", json!({"image": "registry.example/app:1"})),
        ("broken", json!({"image": "registry.example/broken:1"})),
    ] {
        let url = format!("/v1/functions/{name}");
        let path = "/v1/functions/{name}";
        asked.ask("PUT", path, admin("PUT", &url).json(&spec), 200).await;
        asked.ask("GET", path, admin("GET", &url), 200).await;
        let of = |rest: &str| (format!("{path}{rest}"), format!("{url}{rest}"));
        for rest in ["/starts", "/tree", "/profile", "/preheat"] {
            let (path, url) = of(rest);
            asked.ask("GET", &path, admin("GET", &url), 200).await;
        }
        for (rest, body) in [
            ("/starts", json!({"count": 2})),
            ("/preheat", json!({"names": ["vm-1"], "what": "hot"})),
            ("/optimize", json!({})),
        ] {
            let (path, url) = of(rest);
            asked.ask("POST", &path, admin("POST", &url).json(&body), 202).await;
        }
    }
    let list = asked.ask("GET", "/v1/functions", admin("GET", "/v1/functions"), 200).await;
    assert_eq!(list["functions"].as_array().expect("functions").len(), 3);

    let start = format!("/v1/starts/{START}");
    for (rest, query) in [("", ""), ("/explanation", ""), ("/logs", "?tail=5")] {
        let (path, url) = (format!("/v1/starts/{{id}}{rest}"), format!("{start}{rest}{query}"));
        asked.ask("GET", &path, admin("GET", &url), 200).await;
    }
    asked.ask("DELETE", "/v1/starts/{id}", admin("DELETE", &start), 204).await;
    asked.ask("DELETE", "/v1/functions/{name}", admin("DELETE", "/v1/functions/app"), 204).await;

    asked.ask("GET", "/v1/vms", admin("GET", "/v1/vms"), 200).await;
    for (verb, query) in [("drain", "?force=true"), ("undrain", "")] {
        let (path, url) = (format!("/v1/vms/{{id}}/{verb}"), format!("/v1/vms/vm-1/{verb}{query}"));
        asked.ask("POST", &path, admin("POST", &url), 200).await;
    }
    for query in ["", "?agents=true", "?vm=vm-0"] {
        asked.ask("GET", "/v1/actors", admin("GET", &format!("/v1/actors{query}")), 200).await;
    }
    asked.ask("GET", "/metrics", admin("GET", "/metrics"), 200).await;

    // Every success that is described was seen, but for these.
    let elsewhere = [
        // Subscribing and its items are a test of their own.
        ("/v1/events", 101),
        // The only VM of these tests is up, and cannot be forgotten.
        ("/v1/vms/{id}", 204),
    ];
    for (path, item) in described.document["paths"].as_object().expect("paths") {
        // What instances answer is theirs.
        if path.starts_with("/fn/") {
            continue;
        }
        for (method, operation) in item.as_object().expect("operations") {
            for status in operation["responses"].as_object().expect("responses").keys() {
                let status: u16 = status.parse().expect("a number");
                let is_due = status < 400 && !elsewhere.contains(&(path.as_str(), status));
                let was_seen = asked.seen.contains(&(path.clone(), method.clone(), status));
                assert!(was_seen || !is_due, "{method} {path}: nothing was answered with {status}");
            }
        }
    }
}

#[actix_web::test]
async fn refusals_are_as_described() {
    let world = World::with(vec![], |settings| settings.json_bytes_max = 300).await;
    let described = Described::new();
    let admin = |method, path: &str| world.as_admin(method, path);
    let viewer = |method, path: &str| world.request(method, path, &world.viewer);
    let nobody = |path: &str| world.client.get(format!("{}{path}", world.url));
    let long = json!({"image": "a".repeat(400)});
    let function = "/v1/functions/{name}";
    let login = world.client.post(format!("{}/v1/session", world.url));
    let cases: Vec<(&str, &str, RequestBuilder, u16)> = vec![
        ("GET", "/v1/functions", nobody("/v1/functions"), 401),
        ("GET", "/metrics", nobody("/metrics"), 401),
        ("POST", "/fn/{name}/{path}", world.client.post(format!("{}/fn/app/x", world.url)), 401),
        ("PUT", function, viewer("PUT", "/v1/functions/app").json(&json!({"image": "a"})), 403),
        ("GET", "/v1/functions", viewer("GET", "/v1/functions").header("faasnet-tenant", "No"), 400),
        ("GET", "/v1/vms", world.request("GET", "/v1/vms", &world.team_a), 403),
        ("GET", function, admin("GET", "/v1/functions/UPPER"), 400),
        ("GET", function, admin("GET", "/v1/functions/nothing"), 404),
        ("PUT", function, admin("PUT", "/v1/functions/app").body("{"), 400),
        ("PUT", function, admin("PUT", "/v1/functions/app").json(&long), 413),
        ("GET", function, admin("GET", "/v1/functions/too-many"), 429),
        ("GET", function, admin("GET", "/v1/functions/overloaded"), 503),
        ("GET", function, admin("GET", "/v1/functions/closed"), 503),
        ("DELETE", "/v1/vms/{id}", admin("DELETE", "/v1/vms/vm-1"), 409),
        ("POST", "/v1/vms/{id}/drain", admin("POST", "/v1/vms/vm-9/drain"), 404),
        ("POST", "/v1/vms/{id}/drain", admin("POST", "/v1/vms/vm-1/drain"), 409),
        ("GET", "/v1/actors", admin("GET", "/v1/actors?vm=vm-9"), 503),
        ("GET", "/v1/actors", admin("GET", "/v1/actors?vm=vm-9&agents=true"), 400),
        ("GET", "/v1/events", admin("GET", "/v1/events?kind=unknown"), 400),
        ("GET", "/v1/starts/{id}/logs", admin("GET", &format!("/v1/starts/{START}/logs")), 404),
        ("DELETE", "/v1/tokens/{id}", admin("DELETE", "/v1/tokens/none"), 404),
        ("POST", "/v1/session", login.json(&json!({"token": world.admin})), 403),
        ("GET", "/console/{path}", nobody("/console/none.js"), 404),
        ("GET", "/docs/{path}", nobody("/docs/none.js"), 404),
        ("GET", "/fn/{name}", admin("GET", "/fn/app").header("faasnet-start", "No"), 400),
    ];
    for (method, path, request, status) in cases {
        let response = request.send().await.expect("answered");
        assert_eq!(response.status(), status, "{method} {path}");
        described.check_answer(method, path, response).await;
    }
    // Of no operation.
    for (method, url, name) in
        [("GET", "/v1/nothing", "NoSuchAddress"), ("POST", "/v1/vms", "MethodNotAllowed")]
    {
        let response = admin(method, url).send().await.expect("answered");
        let schema = &described.document["components"]["responses"][name];
        let schema = &schema["content"]["application/problem+json"]["schema"];
        described.check(schema, &response.json().await.expect("JSON"), name);
    }
}

#[actix_web::test]
async fn what_the_event_stream_sends_is_as_described() {
    let world = World::new().await;
    let described = Described::new();
    let (mut socket, hello) = events::subscribe(&world, "?since=0", &world.admin).await;
    let item = json!({"$ref": "#/components/schemas/StreamItem"});
    described.check(&item, &hello, "hello");
    let (image, epoch) = (Digest::from_bytes([1; 32]), Epoch::default());
    let vm = |number: u32| format!("vm-{number}").parse().expect("name");
    let seat = SeatNews {
        vm: vm(1),
        epoch,
        ready: true,
        places: vec![],
        cause: faasnet_actors::function_tree::Cause::Moved,
    };
    let bytes = BytesBySource { parent: 1, ancestor: 2, origin: 3 };
    let holding = HoldingNews { vm: vm(1), blocks_present: 1, blocks_total: 2, bytes };
    let audit = Audit {
        who: "somebody".into(),
        role: "admin",
        method: "DELETE".into(),
        path: "/v1/vms/vm-1".into(),
        status: 204,
        request: "1".into(),
    };
    let of_tree = |news| Happening::of_tree(image, news);
    let happenings = [
        of_tree(TreeNews::Seat(seat)),
        of_tree(TreeNews::Left { vm: vm(1), epoch }),
        of_tree(TreeNews::Holding(holding)),
        of_tree(TreeNews::Repair { vm: vm(1), lost: vm(2), epoch }),
        of_tree(TreeNews::Dissolved),
        Happening::VmRemoved { id: vm(1) },
        Happening::FunctionDeleted { name: "app".parse().expect("name") },
        Happening::Refused { code: "too_many".into(), count: 2 },
        Happening::Audit(audit),
    ];
    let last = happenings.len() as u64;
    for happening in happenings {
        world.log.teller.tell(News::of_all(happening));
    }
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for event in events::read_until(&mut socket, last).await {
        described.check(&item, &event, "an event");
        *kinds.entry(event["kind"].as_str().expect("text").to_owned()).or_default() += 1;
    }
    assert_eq!(kinds.len() as u64, last, "{kinds:?}");
    for wrong in [json!({"type": "event"}), json!({"type": "hello"}), json!({"type": "other"})] {
        assert!(!described.validator(&item).is_valid(&wrong), "{wrong}");
    }
    let request = events::request(&world, "?since=99", &world.admin);
    let (status, problem) = events::refused(request).await;
    let schema = described.response("GET", "/v1/events", status);
    described.check(&schema["content"]["application/problem+json"]["schema"], &problem, "a refusal");
}

/// The addresses that a source names, in quotation marks, with `{}` for what is filled in.
fn addresses(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, quote) in source.match_indices(['"', '`', '\'']) {
        let text = &source[at + 1..];
        let begins =
            ["/v1/", "/fn/", "/healthz", "/readyz", "/metrics"].iter().any(|head| text.starts_with(head));
        let Some(end) = text.find(quote).filter(|_| begins) else { continue };
        let mut address = String::new();
        let mut rest = &text[..end];
        while let Some(open) = rest.find('{') {
            address.push_str(rest[..open].trim_end_matches('$'));
            address.push_str("{}");
            rest = rest[open..].split_once('}').expect("it closes").1;
        }
        address.push_str(rest);
        let path = address.split('?').next().expect("one");
        // What is glued to a part is what may follow: a query, or the rest of a path.
        let part = |part: &str| match part.find("{}") {
            Some(0) => "{}".to_owned(),
            Some(at) => part[..at].to_owned(),
            None => part.to_owned(),
        };
        found.push(path.split('/').map(part).collect::<Vec<_>>().join("/"));
    }
    found
}

#[test]
fn the_command_line_and_the_console_use_what_is_described() {
    let described = Described::new();
    let paths = described.document["paths"].as_object().expect("paths");
    let is_described = |address: &str| {
        let mut parts = paths.keys().map(|path| path.split('/').collect::<Vec<_>>());
        let wanted: Vec<&str> = address.split('/').collect();
        let fits = |(wanted, part): (&&str, &&str)| match *wanted {
            // What follows the name of a function may be nothing.
            "" => matches!(*part, "" | "{path}"),
            "{}" => part.starts_with('{'),
            word => word == *part,
        };
        parts.any(|parts| parts.len() == wanted.len() && wanted.iter().zip(&parts).all(fits))
    };
    let (mut asked, mut senders) = (BTreeSet::new(), BTreeSet::new());
    for (folder, extension) in [
        ("src/cli", "rs"),
        ("src/up", "rs"),
        ("src/http/console/assets", "js"),
        ("src/http/docs/assets", "js"),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        read_all(&folder, extension, &mut |path, text| {
            let name = path.rsplit('/').next().expect("a name").to_owned();
            let sends = ["fetch(", "new WebSocket(", "XMLHttpRequest", "sendBeacon(", "reqwest::Client::"];
            if sends.iter().any(|word| text.contains(word)) {
                senders.insert(name.clone());
            }
            // The console names what is below a function by its rest.
            let rests = text.match_indices(".function(").filter_map(|(at, _)| {
                let (_, rest) = text[at..].split_once(')')?.0.split_once(", ")?;
                let end = rest.trim_matches(['"', '`', ' ']).split('?').next()?;
                Some(format!("/v1/functions/{{}}{end}"))
            });
            let rests: Vec<String> = if extension == "js" { rests.collect() } else { Vec::new() };
            for address in addresses(text).into_iter().chain(rests) {
                assert!(is_described(&address), "{name} asks for {address}, which is not described");
                asked.insert(address);
            }
        });
    }
    // Whoever else sends requests must be looked at here.
    assert_eq!(senders, BTreeSet::from(["api.js", "client.rs", "stream.js"].map(String::from)));
    for wanted in ["/v1/events", "/v1/functions/{}/tree", "/fn/{}/{}", "/v1/vms/{}/drain", "/v1/code/{}"] {
        assert!(asked.contains(wanted), "{wanted} was not found: {asked:#?}");
    }
    assert!(!is_described("/v1/nothing") && !is_described("/v1/functions/{}/nothing"));
}
