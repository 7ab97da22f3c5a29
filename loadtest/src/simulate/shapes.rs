//! How long the last VM waits in trees of different shapes and fan-outs.

use super::{
    invariants::Depth,
    model::{FunctionModel, Hot, ImageModel, MILLISECOND, Model, Reads, SECOND},
    world::{Watch, World},
};
use faasnet::settings::{Settings, Topology, TreeSettings};

/// Fan-outs that are compared; `striped` has as many stripes.
const FAN_OUTS: [usize; 4] = [2, 3, 4, 8];
/// Stored bytes of a block: an eighth of what is usual, and so are the links, so that the images fit in memory.
const SCALE: u64 = 8;
const STORED_BYTES: u32 = (256 << 10) / SCALE as u32;
/// The hot set of a Python service with SciPy, packed: 23 MB.
const HOT_BLOCKS: u32 = 90;
/// The whole image: 440 MB.
const BLOCKS: u32 = 1690;
const METADATA_BLOCKS: u32 = 8;
/// When every start must be ready.
const PATIENCE: u64 = 3600 * SECOND;

/// When the last VM had what it reads, in milliseconds; and what the bytes take on one link.
pub struct Burst {
    pub last_ms: u64,
    pub link_ms: u64,
}

/// One start on each of that many VMs at the same moment. The blocks are known before, and fetched ahead in order.
pub fn burst(vms: usize, shape: &TreeSettings, blocks: u32, mbit: u64, seed: u64) -> Burst {
    let link = mbit * 1_000_000 / 8 / SCALE;
    let reads = Reads::Sequential(blocks - METADATA_BLOCKS);
    let image = ImageModel {
        blocks,
        stored_bytes: STORED_BYTES,
        metadata_blocks: METADATA_BLOCKS,
        reads,
        hot: Hot::Pushed,
        packed_blocks: blocks,
    };
    let mut model = Model {
        vms,
        images: vec![image],
        functions: vec![FunctionModel::default()],
        uplink: link,
        downlink: link,
        origin_rate: link,
        think: 0,
        ..Model::default()
    };
    model.limits.shape = shape.clone();
    model.limits.scheduler.ready_deadline = std::time::Duration::from_nanos(PATIENCE);
    model.limits.transfer.read_deadline = std::time::Duration::from_nanos(PATIENCE);
    let mut world = World::new(model, seed, Watch { depth: Depth::Light, prints: false });
    (0..vms).for_each(|vm| world.boot(vm));
    world.run_until(20 * SECOND, |world| {
        let up = world.manager.iter().flat_map(|manager| manager.nodes.values());
        up.filter(|node| node.is_up()).count() == vms
    });
    let begin = world.now;
    world.start(0, vms as u32);
    world.run_until(begin + PATIENCE, |world| world.book.ready.len() == vms);
    let last = world.book.ready.values().max().copied().filter(|_| world.book.ready.len() == vms);
    Burst {
        last_ms: last.map_or(u64::MAX, |last| (last - begin) / MILLISECOND),
        link_ms: u64::from(blocks) * u64::from(STORED_BYTES) * 1000 / link,
    }
}

/// Prints a table: a row for each shape, for hot sets and whole images on so many VMs.
pub fn print(sizes: &[usize], mbit: u64, seed: u64) {
    let usual = Settings::default().tree;
    let shape = |topology, fan_out| TreeSettings { topology, fan_out, stripes: fan_out, ..usual.clone() };
    let fan_outs = |topology| FAN_OUTS.map(|fan_out| shape(topology, fan_out));
    let shapes = [shape(Topology::Avl, 2)].into_iter();
    let shapes = shapes.chain(fan_outs(Topology::Complete)).chain(fan_outs(Topology::Striped));
    let columns: Vec<(&str, u32, usize)> = [("hot set", HOT_BLOCKS), ("whole", BLOCKS)]
        .iter()
        .flat_map(|(name, blocks)| sizes.iter().map(|vms| (*name, *blocks, *vms)))
        .collect();
    println!(
        "links of {mbit} Mbit/s; until the last VM has all, in multiples of the time of the bytes on one link"
    );
    let heads: Vec<String> = columns.iter().map(|(name, _, vms)| format!("{name}, {vms} VMs")).collect();
    println!("| shape | {} |", heads.join(" | "));
    println!("| --- |{}", " --- |".repeat(columns.len()));
    for shape in shapes {
        let cell = |(_, blocks, vms): &(&str, u32, usize)| {
            let Burst { last_ms, link_ms } = burst(*vms, &shape, *blocks, mbit, seed);
            format!("{:.2} ({:.1} s)", last_ms as f64 / link_ms as f64, last_ms as f64 / 1000.0)
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        println!("| {:?}, {} | {} |", shape.topology, shape.fan_out, cells.join(" | "));
    }
}
