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
