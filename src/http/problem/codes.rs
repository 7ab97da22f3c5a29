//! The one table of the problems that the API tells: an answer has a code of this table or is no problem.

use actix_web::http::StatusCode;

/// What the table says of one code.
pub struct CodeRow {
    /// As it travels; stable.
    pub name: &'static str,
    pub status: StatusCode,
    /// When it comes.
    pub when: &'static str,
    /// What the caller, or who runs the manager, may do.
    pub remedy: &'static str,
}

macro_rules! codes {
    ($($code:ident = $name:literal, $status:ident, $when:literal, $remedy:literal;)*) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $($code,)*
        }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            pub fn row(self) -> CodeRow {
                let row = |name, status, when, remedy| CodeRow { name, status, when, remedy };
                match self {
                    $(Self::$code => row($name, StatusCode::$status, $when, $remedy),)*
                }
            }
        }
    };
}

codes! {
    Invalid = "invalid", BAD_REQUEST,
        "the address, a parameter, a header or the body is not what is wanted here",
        "mend what `detail` names; the same request fails again";
    Unauthorized = "unauthorized", UNAUTHORIZED,
        "there is no token and no session, or neither is good any more",
        "send `Authorization: Bearer fn_...`, or log in to the console again";
    Forbidden = "forbidden", FORBIDDEN,
        "the token's role is too low, or it is not good for that tenant or for what is of all tenants",
        "use another token; an administrator makes them";
    ForeignOrigin = "foreign_origin", FORBIDDEN,
        "a session was used by a page of another site, or without the header `x-faasnet-csrf`",
        "send the request from the console, or with a token";
    WrongToken = "wrong_token", FORBIDDEN,
        "the token of a login is not one of this manager's",
        "look it up again, or have another one made";
    NotFound = "not_found", NOT_FOUND,
        "there is no such function, start, instance, tree, VM or token, or it is another tenant's",
        "look at the list of them; `faasnet-tenant` chooses the tenant";
    NoSuchAddress = "no_such_address", NOT_FOUND,
        "there is nothing at this address",
        "look it up in this description";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED,
        "the address is there, but not with this method",
        "use one of those in the header `Allow`";
    BodyTooSlow = "body_too_slow", REQUEST_TIMEOUT,
        "the body did not arrive within `http.request_deadline_ms`",
        "send it again, faster";
    Conflict = "conflict", CONFLICT,
        "the present state does not allow it: `detail` says what stands against it",
        "change that first";
    ImageFailed = "image_failed", CONFLICT,
        "the function's image or code could not be converted",
        "mend it and deploy the function again; the function's view has the reason";
    TooLarge = "too_large", CONFLICT,
        "no VM could ever run an instance of that size",
        "give the function less memory or CPU, or join a larger VM";
    PackageMissing = "package_missing", CONFLICT,
        "the function names a package of code that was not uploaded, or was deleted since",
        "upload it, then try again";
    TooManyPackages = "too_many_packages", CONFLICT,
        "the tenant has as many packages of code as it may have",
        "delete functions of packages that nobody needs; theirs go after a while";
    TooManyTokens = "too_many_tokens", CONFLICT,
        "there are as many API tokens as may be",
        "delete one that nobody uses";
    TooManyJoinTokens = "too_many_join_tokens", CONFLICT,
        "as many join tokens are valid as may be",
        "use one of them, or wait until one has expired";
    LastAdmin = "last_admin", CONFLICT,
        "this is the last token of an administrator of all tenants",
        "make another one first";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE,
        "the body has more bytes than `detail` allows",
        "send less; the limits are settings of the manager";
    TooMany = "too_many", TOO_MANY_REQUESTS,
        "a limit of this function or tenant is reached",
        "come back after `retry_after` seconds";
    TooManyLogins = "too_many_logins", TOO_MANY_REQUESTS,
        "too many logins with a wrong token came from this address",
        "come back after `retry_after` seconds";
    CodeFailed = "code_failed", INTERNAL_SERVER_ERROR,
        "the manager's disk did not take or give a package of code",
        "look at the manager's log";
    UpgradeNotSupported = "upgrade_not_supported", NOT_IMPLEMENTED,
        "a request for an instance wants a websocket or a tunnel",
        "use plain HTTP";
    StartFailed = "start_failed", BAD_GATEWAY,
        "the start that the request waited for did not become ready",
        "look at the function's starts and at their output";
    VmUnreachable = "vm_unreachable", BAD_GATEWAY,
        "the agent of the instance's VM does not answer",
        "try again: the next one may be elsewhere";
    InstanceRefused = "instance_refused", BAD_GATEWAY,
        "the instance takes no connection",
        "look at its output";
    InstanceClosed = "instance_closed", BAD_GATEWAY,
        "the instance closed the connection before it answered",
        "look at its output";
    BadResponse = "bad_response", BAD_GATEWAY,
        "the instance's answer is not one that may be passed on",
        "look at its output, and at the limit on bodies of responses";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE,
        "a limit of the whole manager is reached",
        "come back after `retry_after` seconds; if it lasts, add VMs";
    ImageNotReady = "image_not_ready", SERVICE_UNAVAILABLE,
        "the function's image or code is being converted",
        "come back after `retry_after` seconds";
    InstanceBusy = "instance_busy", SERVICE_UNAVAILABLE,
        "the instance has as many connections as it may have",
        "come back after `retry_after` seconds";
    Interrupted = "interrupted", SERVICE_UNAVAILABLE,
        "the scheduler crashed while it had the question; whether it was done is not known",
        "look, then try again";
    MetadataFull = "metadata_full", SERVICE_UNAVAILABLE,
        "the metadata store has no room: nothing can be made durable",
        "give the manager's disk, or etcd, room";
    MetadataBusy = "metadata_busy", SERVICE_UNAVAILABLE,
        "the metadata store has as much to write as may wait",
        "come back after `retry_after` seconds";
    MetadataUnavailable = "metadata_unavailable", SERVICE_UNAVAILABLE,
        "the metadata store cannot be written or does not answer",
        "look at the manager's log, and at etcd if it is used";
    Superseded = "superseded", SERVICE_UNAVAILABLE,
        "another manager has taken over",
        "ask that one";
    OutcomeUnknown = "outcome_unknown", SERVICE_UNAVAILABLE,
        "the metadata store did not say whether it has written the change",
        "look, then try again";
    TokenNotMade = "token_not_made", SERVICE_UNAVAILABLE,
        "the system gave no random bytes for a secret",
        "look at the manager's log";
    TooManyUploads = "too_many_uploads", SERVICE_UNAVAILABLE,
        "as many packages of code arrive as may at once",
        "come back after `retry_after` seconds";
    TooManySubscribers = "too_many_subscribers", SERVICE_UNAVAILABLE,
        "as many subscribers of the event stream are connected as may be",
        "come back after `retry_after` seconds; `events.subscribers_max` is the limit";
    TooManyScrapes = "too_many_scrapes", SERVICE_UNAVAILABLE,
        "the metrics are being read as often at once as they may be",
        "scrape less often";
    AgentSilent = "agent_silent", SERVICE_UNAVAILABLE,
        "the agent of that VM has no session or does not answer",
        "look whether the VM is up";
    NotReady = "not_ready", SERVICE_UNAVAILABLE,
        "the manager is starting or shutting down",
        "come back after `retry_after` seconds";
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE,
        "the manager is shutting down",
        "come back after `retry_after` seconds";
    PackagesFull = "packages_full", INSUFFICIENT_STORAGE,
        "packages of code take as many bytes as they may",
        "delete functions of packages that nobody needs, or raise `code.bytes_max`";
    DeadlineExceeded = "deadline_exceeded", GATEWAY_TIMEOUT,
        "no instance had a place, or it did not begin to answer, within `http.request_deadline_ms`",
        "look at the function's starts; try again";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_code_has_a_name_of_its_own_and_the_status_of_an_error() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.row().name).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            let row = code.row();
            assert!(row.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", row.name);
            assert!(row.status.is_client_error() || row.status.is_server_error(), "{}", row.name);
        }
    }
}
