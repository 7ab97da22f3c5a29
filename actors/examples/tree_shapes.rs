//! What the shapes of function trees cost, from a fixed seed: heights, and who moves when a VM leaves.
//! The table in ARCHITECTURE.md comes from here.
//!
//! ```text
//! cargo run --release -p faasnet-actors --example tree_shapes
//! cargo run --release -p faasnet-actors --example tree_shapes -- memory SHAPE   resident memory per member
//! ```

use faasnet_actors::{
    function_tree::{Contact, Event, TreeCore, TreeLimits},
    id::{Digest, Epoch, TreeId},
    tree::{Avl, Complete, Node, Striped, Topology},
    wire::control::{BytesBySource, HeldTree},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;
use tokio::time::Instant;

const SIZES: [u32; 5] = [100, 128, 1_000, 10_000, 100_000];
const SEED: u64 = 1;

const SHAPES: [&str; 5] = ["avl", "complete-2", "complete-4", "striped-2x2", "striped-4x4"];

fn shape(name: &str) -> Option<Box<dyn Topology>> {
    Some(match name {
        "avl" => Box::new(Avl::new()),
        "complete-2" => Box::new(Complete::new(2)),
        "complete-4" => Box::new(Complete::new(4)),
        "striped-2x2" => Box::new(Striped::new(2, 2)),
        "striped-4x4" => Box::new(Striped::new(4, 4)),
        _ => return None,
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => table(),
        ["memory", name] if SHAPES.contains(name) => memory(name),
        _ => eprintln!("usage: tree_shapes [memory SHAPE], SHAPE one of {}", SHAPES.join(", ")),
    }
}

fn table() {
    println!("| N | floor(log2 N) | shape | height | moved by a leave | higher than floor(log2 n) |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for size in SIZES {
        for name in SHAPES {
            println!("{}", row(name, size));
        }
    }
}

/// Members join, then leave at random until a tenth is left.
fn row(name: &str, size: u32) -> String {
    let mut tree = shape(name).expect("one of the shapes");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut members: Vec<Node> = (0..size).map(Node).collect();
    for node in &members {
        tree.join(*node);
    }
    let height = tree.height();
    let (mut leaves, mut moved, mut most_moved, mut higher, mut most_higher) = (0_u32, 0, 0, 0_u32, 0);
    while members.len() > size as usize / 10 {
        let gone = members.swap_remove(random.random_range(0..members.len()));
        let count = tree.leave(gone).len();
        (leaves, moved, most_moved) = (leaves + 1, moved + count, most_moved.max(count));
        let excess = tree.height().saturating_sub(members.len().ilog2());
        higher += u32::from(excess > 0);
        most_higher = most_higher.max(excess);
    }
    let mean = moved as f64 / f64::from(leaves);
    let share = f64::from(higher) / f64::from(leaves) * 100.0;
    let higher = match most_higher {
        0 => "never".to_owned(),
        levels => format!("after {share:.0} % of leaves, by {levels} at most"),
    };
    let floor = size.ilog2();
    format!("| {size} | {floor} | {name} | {height} | {mean:.2}, {most_moved} at most | {higher} |")
}

/// Resident memory before and after a tree of 100,000 members was made, through the core.
fn memory(name: &str) {
    const MEMBERS: u32 = 100_000;
    let limits = TreeLimits { complaint_life: Duration::from_secs(3), ..TreeLimits::SHIPPED };
    let tree = TreeId { tenant: "acme".parse().expect("a name"), image: Digest::from_bytes([1; 32]) };
    let now = Instant::now();
    let mut effects = Vec::new();
    let before = resident_bytes();
    let mut core = TreeCore::new(limits, shape(name).expect("checked"), Epoch::default());
    for number in 0..MEMBERS {
        let vm = format!("vm-{number}").parse().expect("a name");
        let contact =
            Contact { address: ([10, 0, 0, 1], 7000).into(), key_hash: std::sync::Arc::new([0_u8; 32]) };
        let held = HeldTree {
            tree: tree.clone(),
            epoch: Epoch::default(),
            place: 0,
            blocks_present: 9,
            blocks_total: 9,
            bytes: BytesBySource::default(),
            longest_stall_us: 0,
            preheated: None,
        };
        core.apply(Event::Reported { vm, contact, held }, now, &mut effects);
        effects.clear();
    }
    let bytes = resident_bytes() - before;
    println!("{name}: {} bytes per member, {MEMBERS} members", bytes / u64::from(MEMBERS));
    assert_eq!(core.view(tree.image).members.len(), MEMBERS as usize);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
