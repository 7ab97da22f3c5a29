//! Rules of the code base that no lint knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn files_below(folder: &str, found: &mut Vec<(PathBuf, String)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
}

fn sources(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in folders {
        files_below(folder, &mut found);
    }
    assert!(found.len() > 10, "the sources are elsewhere");
    found
}

/// Lines that hold one of the words, as `file:line`.
fn lines_with(files: &[(PathBuf, String)], words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                hits.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    hits
}

#[test]
fn cores_know_nothing_of_actix_and_the_world() {
    let cores: Vec<_> = sources(&["actors/src"])
        .into_iter()
        .filter(|(path, _)| {
            path.file_name().is_some_and(|name| name == "core.rs")
                || path.components().any(|part| part.as_os_str() == "core")
        })
        .collect();
    assert!(cores.len() >= 6, "cores are in files named core.rs");
    let words =
        ["actix", "tokio::spawn", "Instant::now()", "SystemTime", "std::fs", "std::net::Tcp", "rand::random"];
    let in_tests =
        |hit: &String| hit.contains("let now = Instant::now()") || hit.contains("let start = Instant::now()");
    let hits: Vec<_> = lines_with(&cores, &words).into_iter().filter(|hit| !in_tests(hit)).collect();
    assert_eq!(hits, Vec::<String>::new());
}

#[test]
fn actors_iterate_in_an_order_that_repeats() {
    let hits = lines_with(&sources(&["actors/src"]), &["HashMap", "HashSet"]);
    assert_eq!(hits, Vec::<String>::new());
}

#[test]
fn no_test_is_switched_off() {
    let word = ["#[", "ignore"].concat();
    let hits = lines_with(&sources(&["actors", "src", "loadtest", "tests"]), &[&word]);
    assert_eq!(hits, Vec::<String>::new());
}
