//! The calls that there are, by name: each is a row of the route table, and the name is its own in the description.

/// One method of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its name, in capitals.
    pub name: &'static str,
    /// `*` stands for all methods.
    pub method: &'static str,
    /// In actix's notation.
    pub pattern: &'static str,
}

macro_rules! calls {
    ($($name:ident = $method:literal $pattern:expr;)*) => {
        $(pub const $name: Call = Call { name: stringify!($name), method: $method, pattern: $pattern };)*

        impl Call {
            /// All of them; those of one address stand together.
            pub const ALL: &'static [Self] = &[$($name,)*];
        }
    };
}

calls! {
    HEALTH = "GET" "/healthz";
    READINESS = "GET" "/readyz";
    ROOT = "GET" "/";
    CONSOLE = "GET" "/console";
    CONSOLE_FILE = "GET" "/console/{path:.*}";
    DOCS = "GET" "/docs";
    DOCS_FILE = "GET" "/docs/{path:.*}";
    DESCRIPTION = "GET" "/v1/openapi.json";
    LOG_IN = "POST" "/v1/session";
    WHO = "GET" "/v1/session";
    LOG_OUT = "DELETE" "/v1/session";
    LIST_TOKENS = "GET" "/v1/tokens";
    CREATE_TOKEN = "POST" "/v1/tokens";
    DELETE_TOKEN = "DELETE" "/v1/tokens/{id}";
    LIST_FUNCTIONS = "GET" "/v1/functions";
    GET_FUNCTION = "GET" "/v1/functions/{name}";
    PUT_FUNCTION = "PUT" "/v1/functions/{name}";
    DELETE_FUNCTION = "DELETE" "/v1/functions/{name}";
    GET_CODE_LIMITS = "GET" "/v1/code";
    PUT_CODE = "PUT" "/v1/code/{digest}";
    LIST_STARTS = "GET" "/v1/functions/{name}/starts";
    START = "POST" "/v1/functions/{name}/starts";
    GET_TREE = "GET" "/v1/functions/{name}/tree";
    GET_PROFILE = "GET" "/v1/functions/{name}/profile";
    OPTIMIZE = "POST" "/v1/functions/{name}/optimize";
    GET_PREHEAT = "GET" "/v1/functions/{name}/preheat";
    PREHEAT = "POST" "/v1/functions/{name}/preheat";
    GET_START = "GET" "/v1/starts/{id}";
    STOP = "DELETE" "/v1/starts/{id}";
    EXPLAIN_START = "GET" "/v1/starts/{id}/explanation";
    GET_LOGS = "GET" "/v1/starts/{id}/logs";
    LIST_VMS = "GET" "/v1/vms";
    REMOVE_VM = "DELETE" "/v1/vms/{id}";
    DRAIN_VM = "POST" "/v1/vms/{id}/drain";
    UNDRAIN_VM = "POST" "/v1/vms/{id}/undrain";
    SUBSCRIBE = "GET" "/v1/events";
    SCRAPE = "GET" "/metrics";
    LIST_ACTORS = "GET" "/v1/actors";
    CREATE_JOIN_TOKEN = "POST" "/v1/join-tokens";
    INVOKE = "*" "/fn/{name}";
    INVOKE_PATH = "*" "/fn/{name}/{path:.*}";
}
