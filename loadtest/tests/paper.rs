//! The paper's experiments, small, through the command line.

use serde_json::Value;
use std::{fs, path::Path, process::Command};

fn paper(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faasnet-loadtest"));
    command.arg("paper").args(arguments).output().expect("the binary runs")
}

fn quick(out: &Path) -> Value {
    let out = out.to_str().expect("a path of letters");
    let output = paper(&["--quick", "--out", out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(Path::new(out).join("paper.json")).expect("the JSON is written");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn every_figure_is_drawn_beside_the_papers_points_and_under_measured_costs() {
    let folder = tempfile::tempdir().expect("a folder");
    let values = quick(folder.path());
    let page = fs::read_to_string(folder.path().join("paper.html")).expect("the page is written");
    for number in 11..=20 {
        let name = format!("figure-{number}-paper");
        assert!(page.contains(&format!("Figure {number}")), "figure {number} is on the page");
        let figure = &values["figures"][&name];
        assert!(figure["title"].is_string(), "{name} is in the JSON");
        let plot = folder.path().join(format!("plots/{name}-1.svg"));
        let drawing = fs::read_to_string(plot).expect("a plot of each figure");
        assert!(drawing.starts_with("<svg"), "{name} is a drawing");
        if number < 20 {
            let measured = format!("figure-{number}-measured");
            assert!(values["figures"][&measured]["title"].is_string(), "{measured} is in the JSON");
        }
        // Start times and traffic are compared at the paper's 128 VMs only.
        if number != 15 {
            let compared = figure["compared"].as_array().map_or(0, Vec::len);
            assert!(compared > 0, "{name} is compared with the paper's points");
        }
    }
    // A pull moves and unpacks all of 758 MB, whatever the seed.
    let means = &values["figures"]["figure-14-paper"]["values"]["mean_s"];
    let mean = |system: &str| means[system].as_f64().expect("a mean of each system");
    assert!(mean("ours, 8") < mean("whole-image pull, 8"));
    assert!(mean("whole-image pull, 8") > 758.0 / 128.0, "no link is faster than it is");
    let headline = &values["figures"]["headline"]["values"]["median_s_last_s_goal_s"];
    assert!(headline["one function, packed"][1].is_f64() && headline["10,000 starts, packed"][1].is_f64());
    assert_eq!(headline["10,000 starts, packed"][3], "a smaller case", "it says nothing of the goal");
}

#[test]
fn an_out_folder_that_cannot_be_made_is_said_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "in the way").expect("a file");
    let output = paper(&["--quick", "--out", file.to_str().expect("a path of letters")]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("create the folder") && said.contains("file"), "{said}");
    assert!(!said.contains("starts on"), "nothing was run: {said}");
}
