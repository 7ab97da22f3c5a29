//! The client verbs, as the real binary against a running API.

use super::{
    control::{OTHER_START, START},
    world::World,
};
use faasnet_actors::{profile::Profile, scheduler::Located};
use serde_json::Value;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faasnet"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["FAASNET_API", "FAASNET_TOKEN", "FAASNET_TENANT"] {
        command.env_remove(name);
    }
    command
}

async fn run(mut command: Command) -> Ran {
    let output = tokio::time::timeout(Duration::from_secs(30), command.output())
        .await
        .expect("it ends")
        .expect("it was started");
    Ran {
        code: output.status.code().expect("it was not killed"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

impl World {
    /// Runs a verb as the admin.
    pub async fn cli(&self, arguments: &[&str]) -> Ran {
        let mut command = command(arguments);
        command.env("FAASNET_API", &self.url).env("FAASNET_TOKEN", &self.admin);
        run(command).await
    }

    /// The same, for a verb that succeeds.
    pub async fn prints(&self, arguments: &[&str]) -> String {
        let ran = self.cli(arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
        ran.out
    }
}

/// An instance that answers every request with what it got, and with a status that the path names.
async fn instance() -> Located {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    actix_web::rt::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            // To its last byte: closing a connection with bytes unread cuts the answer off.
            let has = |request: &[u8], text: &[u8]| request.windows(text.len()).any(|part| part == text);
            let ended = |request: &[u8]| {
                let is_chunked = has(request, b"transfer-encoding: chunked");
                has(request, b"the end") && (!is_chunked || request.ends_with(b"0\r\n\r\n"))
            };
            while !ended(&request) && stream.read_buf(&mut request).await.expect("read") > 0 {
                if request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n") {
                    break;
                }
            }
            let status = if request.starts_with(b"GET /missing") { "404 Not Found" } else { "200 OK" };
            let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &request].concat()).await.expect("written");
        }
    });
    Located { start: START.parse().expect("valid"), vm: "vm-1".parse().expect("valid"), address }
}

#[actix_web::test]
async fn a_function_is_deployed_shown_and_deleted() {
    let world = World::new().await;
    let deploy = [
        "function",
        "deploy",
        "app",
        "--image",
        "registry.example/app:1",
        "--memory",
        "512",
        "--env",
        "SECRET=a=b",
        "--probe",
        "/ok",
        "--min",
        "1",
        "--max",
        "5",
        "--keep-alive",
        "60",
    ];
    let shown = world.prints(&deploy).await;
    for wanted in [
        "name         app\n",
        "memory       512.0 MiB\n",
        "scaling      1 to 5 instances, kept 60 s without a request\n",
        "probe        /ok\n",
        "env          SECRET\n",
    ] {
        assert!(shown.contains(wanted), "{wanted:?} is not in\n{shown}");
    }
    assert!(!shown.contains("a=b"), "values of the environment may be secrets");
    assert_eq!(world.prints(&["function", "show", "app"]).await, shown);

    let json: Value =
        serde_json::from_str(&world.prints(&["--json", "function", "show", "app"]).await).expect("JSON");
    assert_eq!(json["env"]["SECRET"], "a=b");
    assert_eq!(json["concurrency"], 80, "the manager's default");

    let list = world.prints(&["function", "list"]).await;
    assert_eq!(
        list,
        "NAME  IMAGE                   STATE  READY  STARTING\n\
         app   registry.example/app:1  ready  1      0\n"
    );
    assert_eq!(world.prints(&["function", "delete", "app"]).await, "app is deleted\n");
    let gone = world.cli(&["function", "show", "app"]).await;
    assert_eq!(gone.code, 1);
    assert_eq!(
        gone.err,
        "error: there is no function (not_found)\n\
         hint: `faasnet function list` shows what is there; --tenant chooses the tenant\n"
    );
}

#[actix_web::test]
async fn an_image_that_cannot_be_converted_fails_the_deployment() {
    let world = World::new().await;
    let deploy = ["function", "deploy", "app", "--image", "registry.example/broken:1"];
    let ran = world.cli(&deploy).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("layer 2 is truncated"), "{}", ran.err);
    let shown = world.prints(&[deploy.as_slice(), &["--no-wait"]].concat()).await;
    assert!(shown.contains("failed: layer 2 is truncated"), "{shown}");
}

#[actix_web::test]
async fn json_is_exactly_what_the_api_said() {
    let world = World::new().await;
    let verbs: [(&[&str], String); 6] = [
        (&["actors"], "/v1/actors".into()),
        (&["vm", "list"], "/v1/vms".into()),
        (&["tree", "app"], "/v1/functions/app/tree".into()),
        (&["start", "show", START], format!("/v1/starts/{START}")),
        (&["start", "list", "app"], "/v1/functions/app/starts".into()),
        (&["function", "list"], "/v1/functions".into()),
    ];
    for (verb, path) in verbs {
        let said = world.as_admin("GET", &path).send().await.expect("answered").text().await.expect("text");
        assert_eq!(world.prints(&[&["--json"], verb].concat()).await, format!("{said}\n"), "{verb:?}");
    }
}

#[actix_web::test]
async fn a_start_is_a_waterfall() {
    let world = World::new().await;
    let ids = world.prints(&["start", "app", "--count", "3"]).await;
    assert_eq!(ids.lines().count(), 3, "{ids}");
    let waited = world.prints(&["start", "app", "--count", "20", "--wait"]).await;
    assert_eq!(waited.lines().count(), 21, "{waited}");
    assert!(waited.lines().nth(1).expect("a start").contains("252.0 ms"), "{waited}");

    let shown = world.prints(&["start", "show", START]).await;
    assert!(shown.contains("2023-11-14 22:13:20"), "when it was accepted: {shown}");
    assert!(shown.contains("call-17"), "the request that it is for: {shown}");
    assert!(
        shown.contains("30.0 MiB from the parent, 0 B from other VMs, 14.0 MiB from the origin"),
        "{shown}"
    );
    assert!(shown.contains("3, 45.0 ms together"), "{shown}");
    let json = world.prints(&["start", "--json", "show", START]).await;
    assert_eq!(json, world.prints(&["start", "show", START, "--json"]).await);
    let bars: Vec<_> = shown.lines().filter(|line| line.contains('█')).collect();
    assert_eq!(bars.len(), 8, "{shown}");
    assert!(bars[7].starts_with("probe") && bars[7].ends_with("120.0 ms"), "{shown}");
    assert_eq!(world.prints(&["stop", START]).await, format!("{START} is being stopped\n"));
}

#[actix_web::test]
async fn a_tree_is_drawn_as_one() {
    let world = World::new().await;
    let drawn = world.prints(&["tree", "app"]).await;
    let lines: Vec<_> = drawn.lines().collect();
    assert!(lines[0].ends_with("epoch 1.4  height 2  VMs 4"), "{drawn}");
    let wanted = [
        "vm-0          ● ████████████████████ 100/100",
        "├── vm-1      ● ███████████████░░░░░ 75/100",
        "│   └── vm-3  ○ ░░░░░░░░░░░░░░░░░░░░ 0/100",
        "└── vm-2      ● ██████████░░░░░░░░░░ 51/100",
    ];
    assert_eq!(lines[1..], wanted, "{drawn}");
}

#[actix_web::test]
async fn each_stripe_of_a_tree_is_drawn_and_behind_it_the_tree_of_the_code() {
    let world = World::new().await;
    let drawn = world.prints(&["tree", "with-code"]).await;
    let lines: Vec<_> = drawn.lines().collect();
    assert!(lines[0].ends_with("epoch 1.4  height 2  VMs 4  stripes 2"), "{drawn}");
    let wanted = [
        "stripe 1 of 2",
        "vm-0          ● ████████████████████ 100/100",
        "├── vm-1      ● ███████████████░░░░░ 75/100",
        "│   └── vm-3  ○ ░░░░░░░░░░░░░░░░░░░░ 0/100",
        "└── vm-2      ● ██████████░░░░░░░░░░ 51/100",
        "stripe 2 of 2",
        "vm-2          ● ██████████░░░░░░░░░░ 51/100",
        "├── vm-3      ○ ░░░░░░░░░░░░░░░░░░░░ 0/100",
        "│   └── vm-0  ● ████████████████████ 100/100",
        "└── vm-1      ● ███████████████░░░░░ 75/100",
        "",
    ];
    assert_eq!(lines[1..12], wanted, "{drawn}");
    assert!(lines[12].starts_with("code  sha256:02") && lines[12].ends_with("height 0  VMs 1"), "{drawn}");
    assert_eq!(lines[13..], ["vm-0  ● ████████████████████ 100/100"], "{drawn}");

    let json: Value =
        serde_json::from_str(&world.prints(&["--json", "tree", "with-code"]).await).expect("JSON");
    assert_eq!(json["members"][0]["parent"], Value::Null);
    let place = serde_json::json!({"vm": "vm-0", "place": 3, "parent": "vm-3", "children": []});
    assert_eq!(json["further_stripes"][0][3], place);
    assert_eq!(json["code"]["members"][0]["blocks_present"], 100);
    let plain: Value = serde_json::from_str(&world.prints(&["--json", "tree", "app"]).await).expect("JSON");
    assert!(plain.get("further_stripes").is_none() && plain.get("code").is_none(), "{plain}");
}

#[actix_web::test]
async fn actors_are_drawn_as_their_supervision_tree() {
    let world = World::new().await;
    let drawn = world.prints(&["actors"]).await;
    let wanted = [
        "ACTOR                            STATE  REBUILT  CRASHES  MAILBOX  QUEUES",
        "manager                          up     0        0        0",
        "├── journal                      up     1        1        0        commits 2/9",
        "└── forest (+7 not shown)        up     0        0        0",
        "    └── function_tree acme/sha256:0  up     0        0        0",
    ];
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(drawn.lines().map(squeezed).collect::<Vec<_>>(), wanted.map(squeezed), "{drawn}");
    assert!(world.prints(&["actors", "--vm", "vm-0"]).await.contains("agent vm-0"));
    assert_eq!(world.prints(&["actors", "--agents"]).await.lines().count(), 3);
    let silent = world.cli(&["actors", "--vm", "vm-9"]).await;
    assert_eq!(silent.code, 1);
    assert!(silent.err.contains("vm-9 has no session"), "{}", silent.err);
    let team = world.request("GET", "/v1/actors", &world.team_a).send().await.expect("answered");
    assert_eq!(team.status(), 403, "actors belong to no tenant");
}

#[actix_web::test]
async fn vms_are_listed_admitted_and_removed() {
    let world = World::new().await;
    let list = world.prints(&["vm", "list"]).await;
    assert!(
        list.contains("vm-1  up     127.0.0.1:7072  default  256.0 MiB of 4.0 GiB  0.1 of 2.0  1"),
        "{list}"
    );
    assert!(world.prints(&["vm", "join-token"]).await.starts_with("fnj_"));
    let refused = world.cli(&["vm", "remove", "vm-1"]).await;
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (1, "error: the VM is up; stop its agent first (conflict)\n")
    );
}

#[actix_web::test]
async fn a_vm_is_drained_and_undrained() {
    let world = World::new().await;
    let last = world.cli(&["vm", "drain", "vm-1"]).await;
    assert_eq!((last.code, last.err.as_str()), (1, "error: it is the last; let another join (conflict)\n"));
    let drained = world.prints(&["vm", "drain", "vm-1", "--force"]).await;
    let wanted = "vm-1 is draining: 1 instance to move; `faasnet vm list` shows when it is drained\n";
    assert_eq!(drained, wanted);
    let json: Value =
        serde_json::from_str(&world.prints(&["vm", "drain", "vm-1", "--force", "--json"]).await)
            .expect("JSON");
    assert_eq!((&json["id"], &json["state"]), (&"vm-1".into(), &"draining".into()));
    assert_eq!(world.prints(&["vm", "undrain", "vm-1"]).await, "vm-1 takes starts when it is up\n");
    for verb in ["drain", "undrain"] {
        let unknown = world.cli(&["vm", verb, "vm-9"]).await;
        assert_eq!(unknown.code, 1);
        assert!(unknown.err.starts_with("error: there is no VM (not_found)\n"), "{}", unknown.err);
    }
}

#[actix_web::test]
async fn a_function_is_invoked() {
    let world = World::with(vec![instance().await], |_| {}).await;
    let got = world.cli(&["invoke", "app", "/a?b=c", "-H", "X-Own: yes", "--on", START]).await;
    assert_eq!(got.code, 0, "{}", got.err);
    assert!(got.out.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", got.out);
    assert!(got.out.contains("x-own: yes\r\n"), "{}", got.out);
    assert_eq!(got.err, format!("200 OK from {START} on vm-1\n"));

    let posted = world.prints(&["invoke", "app", "--data", "all to the end"]).await;
    assert!(
        posted.starts_with("POST / HTTP/1.1\r\n") && posted.ends_with("\r\n\r\nall to the end"),
        "{posted}"
    );
    let file = world.folder.path().join("body");
    std::fs::write(&file, "a file to the end").expect("written");
    let data = format!("@{}", file.display());
    let put = world.prints(&["invoke", "app", "x", "--method", "PUT", "--data", &data]).await;
    assert!(put.starts_with("PUT /x HTTP/1.1\r\n") && put.contains("a file to the end"), "{put}");

    let missing = world.cli(&["invoke", "app", "/missing"]).await;
    assert_eq!(missing.code, 22);
    assert!(missing.out.starts_with("GET /missing"), "the instance's own answer is printed");
    let nowhere = world.cli(&["invoke", "app", "--on", OTHER_START]).await;
    assert_eq!((nowhere.code, nowhere.out.as_str()), (22, ""));
    assert!(nowhere.err.starts_with("error: there is no instance (not_found)\n"), "{}", nowhere.err);
    for path in ["/../other", "/a/%2e%2E/../../x", "/.."] {
        let outside = world.cli(&["invoke", "app", path]).await;
        assert_eq!(outside.code, 2, "{path}: {}", outside.err);
    }
}

#[actix_web::test]
async fn logs_are_printed_as_they_are() {
    let world = World::with(vec![instance().await], |_| {}).await;
    assert_eq!(world.prints(&["logs", START]).await, "first line\nlast line\n");
    assert_eq!(world.prints(&["logs", START, "--tail", "10"]).await, "last line\n");
}

#[actix_web::test]
async fn the_token_is_found_where_it_is() {
    let world = World::new().await;
    let code = async |change: &dyn Fn(&mut Command)| {
        let mut command = command(&["function", "list"]);
        command.env("FAASNET_API", &world.url);
        change(&mut command);
        run(command).await.code
    };
    let data = world.folder.path();
    let in_data_folder = |command: &mut Command| {
        command.env("FAASNET__MANAGER__DATA", data);
    };
    assert_eq!(code(&in_data_folder).await, 0);
    let in_named_file = |command: &mut Command| {
        command.arg("--token-file").arg(data.join("admin.token"));
    };
    assert_eq!(code(&in_named_file).await, 0);
    let listen = world.address().to_string();
    let settings = |command: &mut Command| {
        command
            .env_remove("FAASNET_API")
            .env("FAASNET_TOKEN", &world.viewer)
            .env("FAASNET__HTTP__LISTEN", &listen);
    };
    assert_eq!(code(&settings).await, 0);
    let other_tenant = |command: &mut Command| {
        command.env("FAASNET_TOKEN", &world.team_a).args(["--tenant", "team-b"]);
    };
    assert_eq!(code(&other_tenant).await, 1);
}

#[actix_web::test]
async fn errors_say_what_to_do() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let nobody = format!("http://{}", unused.local_addr().expect("bound"));
    drop(unused);
    let mut command_to_nobody = command(&["--api", &nobody, "vm", "list"]);
    command_to_nobody.env("FAASNET_TOKEN", "fn_x");
    let ran = run(command_to_nobody).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.starts_with(&format!("error: the manager at {nobody} cannot be reached")), "{}", ran.err);
    assert!(ran.err.contains("`faasnet up`"), "{}", ran.err);

    let mut without_token = command(&["vm", "list"]);
    without_token.env("FAASNET__MANAGER__DATA", "/nonexistent");
    let ran = run(without_token).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("FAASNET_TOKEN") && ran.err.contains("/nonexistent/admin.token"), "{}", ran.err);

    let world = World::new().await;
    let mut wrong_token = command(&["vm", "list"]);
    wrong_token.env("FAASNET_API", &world.url).env("FAASNET_TOKEN", "fn_wrong");
    let ran = run(wrong_token).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("(unauthorized)\nhint: the token is not one of this manager's"), "{}", ran.err);

    for usage in [
        vec!["unknown"],
        vec!["start"],
        vec!["function", "show", "UPPER"],
        vec!["--config", "/nonexistent", "vm", "list"],
    ] {
        assert_eq!(run(command(&usage)).await.code, 2, "{usage:?}");
    }
}

/// As the README has them; 130 is that of the verbs in `follow`.
#[actix_web::test]
async fn exit_codes_tell_what_became_of_it() {
    let world = World::with(vec![instance().await], |_| {}).await;
    let table: [(i32, &[&str]); 10] = [
        (0, &["vm", "list"]),
        (0, &["--help"]),
        (0, &["invoke", "app", "/"]),
        (1, &["function", "show", "app"]),
        (1, &["--api", "http://127.0.0.1:1", "vm", "list"]),
        (1, &["image", "inspect", "/nonexistent"]),
        (2, &[]),
        (2, &["tree", "app", "--wach"]),
        (2, &["--config", "/nonexistent", "vm", "list"]),
        (22, &["invoke", "app", "/missing"]),
    ];
    for (code, arguments) in table {
        let ran = world.cli(arguments).await;
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.err);
        assert_eq!(ran.err.contains("error: "), matches!(code, 1 | 2), "{}", ran.err);
    }
}

#[actix_web::test]
async fn the_description_is_printed_without_a_manager_as_one_serves_it() {
    let printed = run(command(&["openapi"])).await;
    assert_eq!(printed.code, 0, "{}", printed.err);
    let world = World::new().await;
    let served = world.client.get(format!("{}/v1/openapi.json", world.url)).send().await.expect("answered");
    assert_eq!(printed.out.trim_end(), served.text().await.expect("text"));
}

#[actix_web::test]
async fn completions_need_no_manager() {
    let script = run(command(&["completions", "bash"])).await;
    assert_eq!(script.code, 0, "{}", script.err);
    assert!(script.out.contains("join-token"));
}

#[actix_web::test]
async fn what_starts_read_is_shown_kept_in_a_file_and_packed() {
    let world = World::new().await;
    for (name, image) in [("app", "app:1"), ("broken", "broken:2"), ("unread", "new:1")] {
        world.prints(&["function", "deploy", name, "--image", image, "--no-wait"]).await;
    }
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("profile.json");
    let path = file.to_str().expect("text");
    let shown = world.prints(&["image", "profile", "app", "--out", path]).await;
    for wanted in
        ["recordings   1\n", "3.0 MiB of 2 files\n", "7 blocks, 1.0 MiB as stored, 0.33 times", "packed by"]
    {
        assert!(shown.contains(wanted), "{wanted:?} is not in\n{shown}");
    }
    let kept: Profile = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("a profile");
    assert_eq!(kept.parts().len(), 2);
    let held = world.prints(&["image", "preheat", "app", "--vms", "1"]).await;
    let row = "VM    BLOCKS     OF ALL  RECEIVED  DONE\nvm-1  75 of 100  75 %    44.0 MiB  yes\n";
    assert_eq!(held, row);
    assert_eq!(world.prints(&["image", "preheat", "app", "--vm", "vm-1", "--hot"]).await, row);
    let cold = world.cli(&["image", "preheat", "broken", "--hot", "--timeout", "0"]).await;
    assert!(cold.code == 1 && cold.out.contains("no\n") && cold.err.contains("1 of 1 VMs"), "{}", cold.err);
    let json: Value =
        serde_json::from_str(&world.prints(&["--json", "image", "profile", "app"]).await).expect("JSON");
    assert_eq!(json["blocks"], 7);
    assert_eq!(world.prints(&["image", "optimize", "app", "--wait"]).await, shown);
    let failed = world.cli(&["image", "optimize", "broken", "--wait"]).await;
    assert!(failed.code == 1 && failed.err.contains("no space left"), "{}", failed.err);
    let unread = world.cli(&["image", "optimize", "unread"]).await;
    assert!(unread.code == 1 && unread.err.contains("start an instance"), "{}", unread.err);
}
