//! What the description says of one route, and how it is said in few words.

use crate::http::problem::{Code, PROBLEM_JSON};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

pub const JSON: &str = "application/json";

/// Schemas by their names.
pub type Schemas = BTreeMap<String, Value>;

/// Parts of the description that are written as they are.
fn plain(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain data")
}

/// Adds a type, and all that it names, to the schemas, and names it.
pub fn named<T: ToSchema>(schemas: &mut Schemas) -> Value {
    let mut found: Vec<(String, RefOr<Schema>)> = vec![(T::name().into(), T::schema())];
    T::schemas(&mut found);
    for (name, schema) in found {
        let schema = plain(schema);
        let known = schemas.entry(name.clone()).or_insert_with(|| schema.clone());
        assert_eq!(*known, schema, "two types are described as {name}: give one `#[schema(as = ...)]`");
    }
    json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
}

/// One route's description.
pub struct About {
    pub tag: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    pub parameters: Vec<Value>,
    pub body: Option<Value>,
    pub answers: BTreeMap<u16, Value>,
    /// Every problem that it may answer.
    pub codes: BTreeSet<Code>,
    pub schemas: Schemas,
}

impl About {
    pub fn new(tag: &'static str, summary: &'static str) -> Self {
        Self {
            tag,
            summary,
            description: "",
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            codes: BTreeSet::new(),
            schemas: Schemas::new(),
        }
    }

    pub fn more(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    pub fn fails(mut self, codes: &[Code]) -> Self {
        self.codes.extend(codes);
        self
    }

    /// A part of the address.
    pub fn path<T: ToSchema>(mut self, name: &str, description: &str) -> Self {
        let schema = plain(T::schema());
        self.parameters.push(json!({
            "name": name, "in": "path", "required": true, "description": description, "schema": schema
        }));
        self.fails(&[Code::Invalid])
    }

    pub fn query<T: IntoParams>(mut self) -> Self {
        self.parameters.extend(T::into_params(|| None).into_iter().map(plain));
        self.fails(&[Code::Invalid])
    }

    pub fn header<T: PartialSchema>(mut self, name: &str, description: &str) -> Self {
        let schema = plain(T::schema());
        self.parameters.push(json!({
            "name": name, "in": "header", "description": description, "schema": schema
        }));
        self
    }

    /// It is done for one tenant.
    pub fn of_tenant(mut self) -> Self {
        self.parameters.push(json!({"$ref": "#/components/parameters/tenant"}));
        self.fails(&[Code::Invalid, Code::Forbidden])
    }

    /// It is about what is of all tenants.
    pub fn of_all_tenants(self) -> Self {
        self.fails(&[Code::Forbidden])
    }

    /// Takes a JSON body.
    pub fn takes<T: ToSchema>(mut self, description: &str) -> Self {
        let schema = named::<T>(&mut self.schemas);
        self.body = Some(json!({
            "description": description, "required": true, "content": {JSON: {"schema": schema}}
        }));
        self.fails(&[Code::Invalid, Code::BodyTooLarge, Code::BodyTooSlow])
    }

    /// Takes a body of bytes.
    pub fn takes_bytes(mut self, media_type: &str, description: &str, is_required: bool) -> Self {
        self.body = Some(json!({
            "description": description, "required": is_required, "content": {media_type: {}}
        }));
        self
    }

    /// Answers with JSON.
    pub fn answers<T: ToSchema>(mut self, status: u16, description: &str) -> Self {
        let schema = named::<T>(&mut self.schemas);
        let answer = json!({"description": description, "content": {JSON: {"schema": schema}}});
        self.answers.insert(status, answer);
        self
    }

    /// Answers with what has no type here, or with nothing.
    pub fn says(mut self, status: u16, description: &str, media_type: Option<&str>) -> Self {
        let mut answer = json!({"description": description});
        if let Some(media_type) = media_type {
            let kind = if media_type == JSON { "object" } else { "string" };
            answer["content"] = json!({media_type: {"schema": {"type": kind}}});
        }
        self.answers.insert(status, answer);
        self
    }

    /// A header of an answer.
    pub fn with_header(mut self, status: u16, name: &str, description: &str) -> Self {
        let header = json!({"description": description, "schema": {"type": "string"}});
        self.answers.get_mut(&status).expect("the answer comes first")["headers"][name] = header;
        self
    }

    /// Also describes a type that no body of it is.
    pub fn knows<T: ToSchema>(mut self) -> Self {
        named::<T>(&mut self.schemas);
        self
    }

    /// Asks the scheduler.
    pub fn asks(self) -> Self {
        self.fails(&[Code::TooMany, Code::Overloaded, Code::Interrupted, Code::ShuttingDown])
    }

    /// Is answered when it is durable.
    pub fn durable(self) -> Self {
        self.fails(&[
            Code::MetadataFull,
            Code::MetadataBusy,
            Code::MetadataUnavailable,
            Code::Superseded,
            Code::OutcomeUnknown,
        ])
    }
}

/// A response that tells one of these problems, all of one status.
pub fn problem_response(codes: &BTreeSet<Code>) -> Value {
    let rows: Vec<_> = codes.iter().map(|code| code.row()).collect();
    let lines = rows.iter().map(|row| format!("- `{}`: {}. To do: {}.", row.name, row.when, row.remedy));
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    let status = rows[0].status.as_u16();
    let header = |text: &str, kind: &str| json!({"description": text, "schema": {"type": kind}});
    let mut headers = Map::new();
    match status {
        401 => drop(headers.insert("WWW-Authenticate".into(), header("`Bearer`", "string"))),
        405 => drop(headers.insert("Allow".into(), header("The methods that there are.", "string"))),
        429 | 503 => {
            drop(headers.insert("Retry-After".into(), header("Seconds to wait; `retry_after`.", "integer")));
        }
        _ => {}
    }
    let mut response = json!({
        "description": lines.collect::<Vec<_>>().join("\n"),
        "content": {PROBLEM_JSON: {"schema": {
            "allOf": [{"$ref": "#/components/schemas/Problem"}],
            "properties": {"status": {"const": status}, "code": {"enum": names}},
        }}},
    });
    if !headers.is_empty() {
        response["headers"] = headers.into();
    }
    response
}
