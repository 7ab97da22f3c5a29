//! What is said of each route. Codes are those that the handler itself may answer; what every route of its kind may
//! answer is added where the description is made.

use super::about::About;
use crate::http::{
    api, auth, code, events,
    gateway::{START_HEADER, VM_HEADER},
    problem::Code,
    session, tokens,
};
use faasnet_actors::{
    event_log::EventJson,
    explain::Explanation,
    id::{Digest, FunctionName, StartId, VmId},
    model::{FunctionSpec, FunctionView, PreheatSpec, PreheatView, ProfileView, StartView, TreeView, VmView},
};

pub const FUNCTIONS: &str = "functions";
pub const STARTS: &str = "starts";
pub const CODE: &str = "code";
pub const VMS: &str = "VMs";
pub const GATEWAY: &str = "gateway";
pub const WATCHING: &str = "watching";
pub const ACCESS: &str = "access";
pub const PROCESS: &str = "process";

const NO_STORE: &str = "`no-store`";

/// What may be wrong with the agent that an instance is reached over.
const DIAL: [Code; 3] = [Code::VmUnreachable, Code::InstanceRefused, Code::InstanceBusy];

pub fn health() -> About {
    About::new(PROCESS, "Whether the process lives").answers::<api::Health>(200, "It does")
}

pub fn readiness() -> About {
    About::new(PROCESS, "Whether the manager takes requests")
        .more("It has read its metadata, and does not shut down.")
        .answers::<api::Health>(200, "It does")
        .fails(&[Code::NotReady])
}

pub fn root() -> About {
    About::new(PROCESS, "The way to the console").says(302, "To `/console/`", None).with_header(
        302,
        "Location",
        "`/console/`",
    )
}

pub fn console() -> About {
    root()
}

pub fn console_file() -> About {
    file("A file of the console")
}

pub fn docs() -> About {
    About::new(PROCESS, "The way to this description as a page")
        .says(302, "To `/docs/`", None)
        .with_header(302, "Location", "`/docs/`")
}

pub fn docs_file() -> About {
    file("A file of the page over this description")
}

fn file(summary: &'static str) -> About {
    let html = Some("text/html");
    About::new(PROCESS, summary)
        .more("The path may have slashes; the empty one is the page itself.")
        .path::<String>("path", "The file")
        .header::<String>("if-none-match", "The tag of what the caller has")
        .says(200, "The file, in its own media type", html)
        .with_header(200, "ETag", "Of the file; a new one after an update of the manager")
        .says(304, "The caller has it", None)
        .fails(&[Code::NoSuchAddress])
}

pub fn description() -> About {
    About::new(PROCESS, "This description")
        .header::<String>("if-none-match", "The tag of what the caller has")
        .says(200, "OpenAPI 3.1", Some("application/json"))
        .with_header(200, "ETag", "Of the description; a new one after an update of the manager")
        .says(304, "The caller has it", None)
}

pub fn log_in() -> About {
    About::new(ACCESS, "Log in to the console")
        .more("A token becomes a session, in a cookie that no script reads. For pages of the manager only.")
        .header::<String>(auth::CSRF_HEADER, "Any value; no page of another site can send it")
        .takes::<session::Login>("The token")
        .answers::<session::SessionView>(200, "Who it is")
        .with_header(200, "Set-Cookie", "The session, for `/v1`")
        .with_header(200, "Cache-Control", NO_STORE)
        .fails(&[Code::ForeignOrigin, Code::WrongToken, Code::TooManyLogins])
}

pub fn who() -> About {
    About::new(ACCESS, "Who the caller is")
        .of_tenant()
        .answers::<session::SessionView>(200, "The token's name, role and tenant")
}

pub fn log_out() -> About {
    About::new(ACCESS, "Log out of the console").says(204, "The cookie is deleted", None).with_header(
        204,
        "Set-Cookie",
        "None any more",
    )
}

pub fn list_tokens() -> About {
    About::new(ACCESS, "List API tokens")
        .more("Those that the caller may decide on: all, or its tenant's.")
        .of_tenant()
        .answers::<tokens::ListedTokens>(200, "Without their texts, which are kept nowhere")
}

pub fn create_token() -> About {
    About::new(ACCESS, "Make an API token")
        .of_tenant()
        .takes::<tokens::TokenWanted>("Whom it is for")
        .answers::<tokens::TokenMade>(201, "The token; its text is shown this once")
        .durable()
        .fails(&[Code::TooManyTokens, Code::TokenNotMade])
}

pub fn delete_token() -> About {
    About::new(ACCESS, "Delete an API token")
        .more("It is good for nothing from then on; its sessions and subscriptions end.")
        .of_tenant()
        .path::<String>("id", "As it is listed")
        .says(204, "It is deleted", None)
        .durable()
        .fails(&[Code::NotFound, Code::LastAdmin])
}

fn of_function(summary: &'static str) -> About {
    About::new(FUNCTIONS, summary).of_tenant().path::<FunctionName>("name", "The function").asks()
}

pub fn list_functions() -> About {
    About::new(FUNCTIONS, "List the functions of a tenant")
        .of_tenant()
        .asks()
        .answers::<api::Functions>(200, "All of them")
}

pub fn get_function() -> About {
    of_function("Show a function").answers::<FunctionView>(200, "As it is").fails(&[Code::NotFound])
}

pub fn put_function() -> About {
    of_function("Deploy a function, or change one")
        .more(
            "Answered when it is durable. Its image is converted behind that: `image_state` tells how far that is. \
             What is not given has its default, also when the function was there.",
        )
        .takes::<FunctionSpec>("What it is to be")
        .answers::<FunctionView>(200, "As it is now")
        .durable()
        .fails(&[Code::PackageMissing, Code::CodeFailed])
}

pub fn delete_function() -> About {
    of_function("Delete a function")
        .more("Its instances are stopped.")
        .says(204, "It is deleted", None)
        .durable()
        .fails(&[Code::NotFound])
}

pub fn get_code_limits() -> About {
    About::new(CODE, "What a package of code may be").of_tenant().answers::<code::Limits>(200, "Its limits")
}

pub fn put_code() -> About {
    About::new(CODE, "Upload a package of code")
        .more("A zip, under the SHA-256 of its bytes; again for one that is there already.")
        .of_tenant()
        .path::<Digest>("digest", "Of the bytes that follow")
        .takes_bytes("application/zip", "The package; its media type is not looked at", true)
        .answers::<code::Kept>(201, "It would survive a crash")
        .fails(&[
            Code::BodyTooLarge,
            Code::BodyTooSlow,
            Code::TooManyPackages,
            Code::PackagesFull,
            Code::TooManyUploads,
            Code::CodeFailed,
        ])
}

pub fn list_starts() -> About {
    let about = of_function("List the starts of a function").query::<api::Limit>();
    About { tag: STARTS, ..about }.answers::<api::Starts>(200, "The newest first").fails(&[Code::NotFound])
}

pub fn start() -> About {
    About { tag: STARTS, ..of_function("Start instances of a function") }
        .more("Answered when the starts are durable; how far they are tells each of them.")
        .takes::<api::StartsWanted>("How many")
        .answers::<api::Accepted>(202, "Their ids")
        .durable()
        .fails(&[Code::NotFound, Code::Conflict, Code::ImageFailed, Code::TooLarge])
}

pub fn get_tree() -> About {
    of_function("Show the tree along which the blocks of a function's image travel")
        .answers::<TreeView>(200, "Its members in the order of their places, and the tree of its code")
        .fails(&[Code::NotFound])
}

fn of_profile(summary: &'static str) -> About {
    of_function(summary).fails(&[Code::NotFound, Code::Conflict, Code::ImageNotReady, Code::ImageFailed])
}

pub fn get_profile() -> About {
    of_profile("Show what starts of a function read of its image").answers::<ProfileView>(
        200,
        "Paths and ranges in the order of first use, and whether they lie together",
    )
}

pub fn optimize() -> About {
    of_profile("Pack a function's image by what its starts read")
        .answers::<ProfileView>(202, "It is durable that it will be packed; `packing` tells how far that is")
        .durable()
}

pub fn get_preheat() -> About {
    of_function("Show what VMs hold of a function's image")
        .answers::<PreheatView>(200, "Each VM that holds some of it")
        .fails(&[Code::NotFound, Code::ImageNotReady, Code::ImageFailed])
}

pub fn preheat() -> About {
    of_function("Bring a function's image to VMs before any start")
        .takes::<PreheatSpec>("To how many VMs, or to which, and how much of it")
        .answers::<PreheatView>(202, "The VMs are chosen; how far they are tells the same address")
        .durable()
        .fails(&[Code::NotFound, Code::Conflict, Code::ImageNotReady, Code::ImageFailed])
}

fn of_start(summary: &'static str) -> About {
    About::new(STARTS, summary).of_tenant().path::<StartId>("id", "The start").asks().fails(&[Code::NotFound])
}

pub fn get_start() -> About {
    of_start("Show a start").answers::<StartView>(200, "How far it is, and how long each phase took")
}

pub fn stop() -> About {
    of_start("End an instance").says(204, "It is being stopped, or has ended", None).durable()
}

pub fn explain_start() -> About {
    of_start("Why a start took as long as it did")
        .answers::<Explanation>(200, "Where it lost time against others of its function, and to whom")
}

pub fn get_logs() -> About {
    of_start("Read the output of an instance")
        .query::<api::Tail>()
        .says(200, "The end of it, as the instance wrote it", Some("text/plain"))
        .fails(&DIAL)
}

pub fn list_vms() -> About {
    About::new(VMS, "List the VMs")
        .of_all_tenants()
        .asks()
        .answers::<api::Vms>(200, "Those of all tenants, and free ones")
}

fn of_vm(summary: &'static str) -> About {
    About::new(VMS, summary)
        .of_all_tenants()
        .path::<VmId>("id", "The VM")
        .asks()
        .durable()
        .fails(&[Code::NotFound])
}

pub fn remove_vm() -> About {
    of_vm("Forget a VM").says(204, "It is forgotten", None).fails(&[Code::Conflict])
}

pub fn drain_vm() -> About {
    of_vm("Drain a VM")
        .more("It gets no starts, what it runs is started elsewhere, and it leaves its trees.")
        .query::<api::Force>()
        .answers::<VmView>(200, "As it is now")
        .fails(&[Code::Conflict])
}

pub fn undrain_vm() -> About {
    of_vm("Take back the drain of a VM").answers::<VmView>(200, "As it is now")
}

pub fn subscribe() -> About {
    About::new(WATCHING, "Subscribe to what happens")
        .more(
            "A websocket. Each message is an array of items: `Event` or `Notice` (`StreamItem` is either). The first \
             item is the notice `hello`: what is read of the API after it shows all events before its `next`, so \
             that views and events fit together without a gap. With `since` and `stream` the events after that \
             number come first; those that are not kept any more are told as `lost`. A subscriber that sends \
             anything but pings and pongs, or reads too slowly, is closed. A page of a browser must be the \
             manager's own.",
        )
        .query::<events::Wanted>()
        .says(101, "The websocket", None)
        .knows::<EventJson<'_>>()
        .knows::<events::Notice>()
        .fails(&[Code::Forbidden, Code::TooManySubscribers])
}

pub fn scrape() -> About {
    About::new(WATCHING, "Numbers for Prometheus")
        .of_all_tenants()
        .says(200, "In Prometheus's text format", Some("text/plain"))
        .fails(&[Code::TooManyScrapes])
}

pub fn list_actors() -> About {
    About::new(WATCHING, "How the actors are")
        .more("The manager's, those of one VM's agent, or those of all agents.")
        .of_all_tenants()
        .query::<api::WhichActors>()
        .answers::<api::Actors>(200, "Each with those that it supervises")
        .fails(&[Code::AgentSilent, Code::ShuttingDown])
}

pub fn create_join_token() -> About {
    About::new(VMS, "Make a token with which a VM may join")
        .of_all_tenants()
        .answers::<api::JoinTokenText>(201, "Shown this once")
        .durable()
        .fails(&[Code::TooManyJoinTokens, Code::TokenNotMade])
}

pub fn invoke() -> About {
    About::new(GATEWAY, "Send a request to an instance of a function")
        .more(
            "The method, the path behind the name, the query, headers and the body go on to the instance, without the \
             token. Without a free instance the request waits for one, and one is started.",
        )
        .of_tenant()
        .path::<FunctionName>("name", "The function")
        .header::<StartId>(START_HEADER, "The one instance that is to answer")
        .takes_bytes("*/*", "What the instance takes; at most `http.request_body_bytes_max`", false)
        .says(200, "Whatever the instance answered", Some("*/*"))
        .with_header(200, START_HEADER, "The instance that answered")
        .with_header(200, VM_HEADER, "Its VM")
        .asks()
        .fails(&DIAL)
        .fails(&[
            Code::NotFound,
            Code::BodyTooLarge,
            Code::ImageFailed,
            Code::ImageNotReady,
            Code::TooLarge,
            Code::UpgradeNotSupported,
            Code::StartFailed,
            Code::InstanceClosed,
            Code::BadResponse,
            Code::DeadlineExceeded,
        ])
}

pub fn invoke_path() -> About {
    invoke().path::<String>("path", "What the instance is asked for; it may have slashes")
}
