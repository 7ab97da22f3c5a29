use super::*;

fn files() -> AccountFiles {
    AccountFiles {
        passwd: b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\napp:x:1000:1001::/:\n1234:x:7:8::/:\n"
            .to_vec(),
        group: b"root:x:0:\nstaff:x:50:app,other\nvideo:x:44:app\nshort:x:9\n".to_vec(),
    }
}

#[test]
fn users_and_groups_are_found_by_the_rules_of_docker() {
    let cases = [
        ("", (0, 0, vec![])),
        ("app", (1000, 1001, vec![50, 44])),
        ("1000", (1000, 1001, vec![50, 44])),
        ("4000", (4000, 0, vec![])),
        ("1234", (7, 8, vec![])),
        ("app:video", (1000, 44, vec![])),
        ("app:", (1000, 1001, vec![50, 44])),
        ("4000:5000", (4000, 5000, vec![])),
        (":short", (0, 9, vec![])),
    ];
    for (stated, expected) in cases {
        assert_eq!(user(stated, &files()).unwrap(), expected, "{stated:?}");
    }
    for stated in ["nobody", "-1", "4294967295", "app:nogroup", "app:4294967295", "app:video:x"] {
        assert!(user(stated, &files()).is_err(), "{stated:?}");
    }
}

#[test]
fn signals_have_names_and_numbers() {
    let cases = [
        ("", Some(15)),
        ("SIGKILL", Some(9)),
        ("quit", Some(3)),
        ("2", Some(2)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMAX-1", Some(63)),
        ("RTMAX", Some(64)),
        ("RTMAX+1", None),
        ("0", None),
        ("32", None),
        ("SIGWHAT", None),
    ];
    for (stated, number) in cases {
        assert_eq!(stop_signal(stated).ok(), number, "{stated:?}");
    }
}
