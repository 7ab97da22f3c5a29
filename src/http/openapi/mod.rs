//! The description of the API as OpenAPI 3.1, made of the route table, the types of requests and answers, and the
//! table of problems.

mod about;
pub(super) mod operations;

pub(super) use about::About;

use super::{
    auth::{CSRF_HEADER, DEFAULT_TENANT, SESSION_COOKIE, TENANT_HEADER},
    console,
    problem::{Code, ProblemJson},
    routes::{RouteEntry, routes},
};
use crate::tokens::Role;
use about::{Schemas, named, problem_response};
use actix_web::{HttpRequest, HttpResponse, http::Method};
use faasnet_actors::id::TenantId;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};
use utoipa::PartialSchema;

/// The methods that a description can name: those of an address that takes all.
pub const PATH_METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// The description as it is served: the same for everybody, as long as the process lives.
static TEXT: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string_pretty(&document()).expect("plain data"));
static TAG: LazyLock<String> = LazyLock::new(|| format!("\"{}\"", blake3::hash(TEXT.as_bytes()).to_hex()));

/// It holds nothing of anybody, so it needs no token: what generates clients has none.
pub(super) async fn serve(request: HttpRequest) -> HttpResponse {
    console::unless_known(&request, &TAG, console::POLICY, "application/json", TEXT.as_bytes().into())
}

const TAGS: [(&str, &str); 8] = [
    (operations::FUNCTIONS, "What is deployed, its image, its tree"),
    (operations::STARTS, "Instances: started, explained, ended"),
    (operations::CODE, "Packages of code"),
    (operations::VMS, "The machines that run instances"),
    (operations::GATEWAY, "Requests to instances"),
    (operations::WATCHING, "Events, actors and numbers"),
    (operations::ACCESS, "Tokens and sessions"),
    (operations::PROCESS, "The manager itself, and what it shows in browsers"),
];

const INTRODUCTION: &str = "\
Everything that the command line and the console do, they do over this API.

**Who calls**: a token (`Authorization: Bearer fn_...`), or below `/v1/` a session of the console. Each operation \
names the role that it needs in `x-faasnet-role`: a `viewer` looks, an `operator` also deploys, starts, stops and \
invokes, an `admin` also admits VMs and tokens. Without a token and a session everything but what needs none is \
answered with 401, whether it exists or not.

**Tenants**: a token of one tenant acts for that; one for all tenants names it in `faasnet-tenant`.

**Errors** are problem details (RFC 9457) with a stable `code`. Each operation lists those that it may answer; the \
schema `ProblemCode` is the table of all. An address that is not here is answered with 404 (`no_such_address`), \
a method that is not with 405 (`method_not_allowed`). Only what is no HTTP at all is answered without a problem.

**Requests have ids**: that of the header `x-request-id`, or one that is made; the answer has it too, and so do \
the logs.

Fields may be added to answers; requests with unknown fields are refused.";

/// The whole description.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    named::<ProblemJson<'_>>(&mut schemas);
    let mut responses = Responses::default();
    // Of no operation: they tell that there is none.
    for code in [Code::NoSuchAddress, Code::MethodNotAllowed] {
        responses.shared(BTreeSet::from([code]));
    }
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for entry in routes() {
        let about = entry.about();
        let methods = entry.method.as_ref().map_or(PATH_METHODS.to_vec(), |method| vec![method.as_str()]);
        for method in methods {
            let operation = operation(&entry, &about, method, &mut responses);
            paths.entry(entry.path()).or_default().insert(method.to_lowercase(), operation);
        }
        for (name, schema) in about.schemas {
            let known = schemas.entry(name.clone()).or_insert_with(|| schema.clone());
            assert_eq!(*known, schema, "two types are described as {name}: give one `#[schema(as = ...)]`");
        }
    }
    merge_objects(&mut schemas);
    let item = ["Event", "Notice"].map(|name| json!({"$ref": format!("#/components/schemas/{name}")}));
    schemas.insert(
        "StreamItem".into(),
        json!({"description": "What a message of the event stream has in its array.", "oneOf": item}),
    );
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "FaaSNet",
            "version": env!("CARGO_PKG_VERSION"),
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The manager that serves this description"}],
        "tags": TAGS.map(|(name, description)| json!({"name": name, "description": description})),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses.by_name,
            "parameters": {"tenant": {
                "name": TENANT_HEADER,
                "in": "header",
                "description": format!(
                    "The tenant to act for. A token of one tenant needs none, and has no other; a token for all \
                     tenants acts for `{DEFAULT_TENANT}` when none is named."
                ),
                "schema": TenantId::schema(),
            }},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token. `faasnet token create` makes one; the first one is in the file \
                                    `admin.token` of the manager's data.",
                },
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": SESSION_COOKIE,
                    "description": "A session of the console, from `POST /v1/session`. For pages of the manager \
                                    only, and below `/v1/` only.",
                },
                "csrf": {
                    "type": "apiKey",
                    "in": "header",
                    "name": CSRF_HEADER,
                    "description": "With a session, whatever changes something has this header, with any value.",
                },
            },
        },
    })
}

/// Responses that tell problems, each once.
#[derive(Default)]
struct Responses {
    by_name: BTreeMap<String, Value>,
    names: BTreeMap<BTreeSet<Code>, String>,
}

impl Responses {
    /// Names the response for these codes, all of one status.
    fn shared(&mut self, codes: BTreeSet<Code>) -> Value {
        let words = match codes.iter().collect::<Vec<_>>()[..] {
            [code] => code.row().name,
            _ => codes.first().expect("at least one").row().status.canonical_reason().unwrap_or("Problem"),
        };
        let base: String = words.split(['_', ' ']).map(capital).collect();
        let name = self.names.entry(codes.clone()).or_insert_with(|| {
            let taken = |name: &String| self.by_name.contains_key(name);
            let numbered = (2..).map(|number| format!("{base}{number}"));
            std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).expect("endless")
        });
        self.by_name.entry(name.clone()).or_insert_with(|| problem_response(&codes));
        json!({"$ref": format!("#/components/responses/{name}")})
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn operation(entry: &RouteEntry, about: &About, method: &str, responses: &mut Responses) -> Value {
    let mut answers: BTreeMap<String, Value> =
        about.answers.iter().map(|(status, answer)| (status.to_string(), answer.clone())).collect();
    let mut by_status: BTreeMap<u16, BTreeSet<Code>> = BTreeMap::new();
    for code in entry.codes(about) {
        by_status.entry(code.row().status.as_u16()).or_default().insert(code);
    }
    for (status, codes) in by_status {
        answers.insert(status.to_string(), responses.shared(codes));
    }
    if entry.pattern.starts_with("/fn/") {
        let description = "Whatever the instance answered, of any status. A problem with `faasnet-start` beside it \
                           is the instance's own.";
        answers.insert("default".into(), json!({"description": description, "content": {"*/*": {}}}));
    }
    let needs =
        entry.role.map_or("Needs no token.".into(), |role| format!("Needs the role `{}`.", role.name()));
    let description = [about.description, &needs].into_iter().filter(|text| !text.is_empty());
    // An operation has a name of its own, also where an address takes all methods.
    let id = match &entry.method {
        Some(_) => entry.id.clone(),
        None => format!("{}_{}", entry.id, method.to_lowercase()),
    };
    let mut operation = json!({
        "operationId": id,
        "tags": [about.tag],
        "summary": about.summary,
        "description": description.collect::<Vec<_>>().join("\n\n"),
        "responses": answers,
        "security": security(entry, method),
    });
    if !about.parameters.is_empty() {
        operation["parameters"] = about.parameters.clone().into();
    }
    if let Some(body) = &about.body
        && !matches!(method, "GET" | "HEAD" | "TRACE")
    {
        operation["requestBody"] = body.clone();
    }
    if let Some(role) = entry.role {
        operation["x-faasnet-role"] = role.name().into();
    }
    operation
}

/// Each of the ways to be somebody; none where nobody is asked for.
fn security(entry: &RouteEntry, method: &str) -> Value {
    let is_safe = Method::from_bytes(method.as_bytes()).is_ok_and(|method| method.is_safe());
    match (entry.role, entry.takes_sessions(), is_safe) {
        (None, ..) => json!([]),
        (Some(_), false, _) => json!([{"token": []}]),
        (Some(_), true, true) => json!([{"token": []}, {"session": []}]),
        (Some(_), true, false) => json!([{"token": []}, {"session": [], "csrf": []}]),
    }
}

impl RouteEntry {
    /// Whether a session of the console is worth something there.
    fn takes_sessions(&self) -> bool {
        self.pattern.starts_with("/v1/")
    }

    /// Its address in the notation of OpenAPI.
    pub fn path(&self) -> String {
        self.pattern.replace("{path:.*}", "{path}")
    }

    /// Every problem that it may answer: what its handler may, and what is asked before it.
    fn codes(&self, about: &About) -> BTreeSet<Code> {
        let mut codes = about.codes.clone();
        if let Some(role) = self.role {
            codes.insert(Code::Unauthorized);
            if role > Role::Viewer {
                codes.insert(Code::Forbidden);
            }
            if self.takes_sessions() {
                codes.insert(Code::ForeignOrigin);
            }
        }
        codes
    }
}

/// Makes one object of those that a type has flattened into itself. Otherwise a part that refuses unknown fields
/// would refuse those beside it.
fn merge_objects(schemas: &mut Schemas) {
    let all = schemas.clone();
    let resolved = |part: &Value| -> Value {
        let name = part["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/"));
        name.map_or_else(|| part.clone(), |name| all[name].clone())
    };
    for schema in schemas.values_mut() {
        let Some(parts) = schema["allOf"].as_array() else { continue };
        let parts: Vec<Value> = parts.iter().map(resolved).collect();
        if !parts.iter().all(|part| part["properties"].is_object()) {
            continue;
        }
        let (mut properties, mut required) = (Map::new(), BTreeSet::new());
        for part in &parts {
            properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend(part["required"].as_array().into_iter().flatten().filter_map(Value::as_str));
        }
        let mut whole = json!({"type": "object", "properties": properties, "required": required});
        if let Some(description) = schema.get("description") {
            whole["description"] = description.clone();
        }
        *schema = whole;
    }
}
