//! What a verb is told wrongly is said at once, before anything is built or made.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

use std::process::Command;

/// Runs a verb that must fail, and gives what it complained about.
fn complaint(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_faasnet-loadtest")).args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} was taken");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_binary_that_is_not_there_is_named_with_what_to_do() {
    for verb in ["hotset", "distribute", "compare", "overload"] {
        let said = complaint(&[verb, "--program", "/nowhere/faasnet"]);
        assert!(said.contains("/nowhere/faasnet") && said.contains("cargo build --release"), "{said}");
    }
}

#[test]
fn numbers_outside_their_limits_are_refused_with_these() {
    for count in ["0", "21", "-1", "many"] {
        let said = complaint(&["hotset", &format!("--repeats={count}")]);
        assert!(said.contains("use 1 to 20"), "{said}");
    }
    for count in ["0", "65", "1,none"] {
        let said = complaint(&["distribute", "--vms", count]);
        assert!(said.contains("use 1 to 64"), "{said}");
    }
    let said = complaint(&["hotset", "--rate", "1"]);
    assert!(said.contains("write it like 1gbit"), "{said}");
    assert!(complaint(&["hotset", "--image", "cobol"]).contains("python, node, jvm"));
}

#[test]
fn a_load_that_cannot_be_sent_is_refused_before_anything_is_asked() {
    let token = ["--token-file", "/dev/null"];
    for (arguments, said) in [
        (&["burst", "--count", "0"][..], "a burst is 1 to 100000, not 0"),
        (&["steady", "--rate", "1e9", "--seconds", "1"], "100000"),
        (&["steady", "--rate", "-1", "--seconds", "1"], "unexpected argument"),
        (&["steady", "--rate=-1", "--seconds", "1"], "a rate is 0 or more"),
        (&["steady", "--rate", "1", "--seconds", "1e9"], "up to 86400 seconds"),
        (&["ramp", "--from", "0", "--to", "0", "--seconds", "9"], "no requests"),
        (
            &["step", "--from", "1e5", "--to", "1e5", "--before-seconds", "60", "--seconds", "60"],
            "at most 2000000",
        ),
        (&["replay", "/nowhere.csv"], "/nowhere.csv"),
        (&["replay", "iot", "--scale-rate", "0"], "--scale-rate must be above 0"),
        (&["replay", "iot", "--scale-time", "nan"], "--scale-time must be above 0"),
        (&["burst", "--count", "1", "--fail-if", "p99 > 5"], "p99_ready_ms"),
        (&["burst", "--count", "1", "--api", "https://localhost:1"], "must begin with http://"),
        (&["burst", "--count", "1"], "there is no token"),
        (&["burst", "--count", "1", "--bed", "nonesuch"], "there is no test bed nonesuch"),
    ] {
        let said_so = complaint(&[&["drive"], arguments, &token].concat());
        assert!(said_so.contains(said), "{arguments:?}: {said_so}");
    }
}

#[test]
fn a_system_that_is_not_there_is_named_with_how_to_say_where_it_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "fn_token\n").unwrap();
    let token = file.path().to_str().unwrap();
    // Nobody listens on port 1.
    let arguments = ["drive", "burst", "--count", "1", "--api", "http://127.0.0.1:1", "--token-file", token];
    let said = complaint(&arguments);
    assert!(said.contains("is the manager up at 127.0.0.1:1") && !said.contains("fn_token"), "{said}");
}
