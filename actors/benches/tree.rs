//! What a join, a leave and the repair of many losses cost in trees of 1,000 to 100,000 VMs: of the bare
//! shape, and through the core that decides whom to tell.
//!
//! ```text
//! cargo bench -p faasnet-actors --bench tree
//! ```

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use faasnet_actors::{
    function_tree::{Contact, Effect, Event, Role, StartDraft, TreeCore, TreeLimits},
    id::{Digest, Epoch, VmId},
    image::{BlockImage, ImageLocation, RuntimeConfig},
    tree::{Avl, Complete, Node, Striped, Topology},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant as Clock},
};
use tokio::time::Instant;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const SHAPES: [&str; 3] = ["avl", "complete", "striped"];
/// VMs that join, or are lost, before the tree is brought back to its size.
const BATCH: u32 = 1_000;

fn shape(name: &str) -> Box<dyn Topology> {
    match name {
        "avl" => Box::new(Avl::new()),
        "complete" => Box::new(Complete::new(2)),
        _ => Box::new(Striped::new(2, 2)),
    }
}

/// The sum of what `batch` measures of itself, for at least so many operations.
fn sum(count: u64, mut batch: impl FnMut() -> Duration) -> Duration {
    let batches = count.div_ceil(u64::from(BATCH));
    let whole: Duration = (0..batches).map(|_| batch()).sum();
    whole.mul_f64(count as f64 / (batches * u64::from(BATCH)) as f64)
}

fn shapes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shape");
    group.throughput(Throughput::Elements(1));
    for name in SHAPES {
        for size in SIZES {
            let mut tree = shape(name);
            for node in (0..size).map(Node) {
                tree.join(node);
                tree.set_ready(node);
            }
            group.bench_function(BenchmarkId::new(format!("{name}/join"), size), |bencher| {
                bencher.iter_custom(|count| {
                    sum(count, || {
                        let begin = Clock::now();
                        (size..size + BATCH).for_each(|number| drop(tree.join(Node(number))));
                        let taken = begin.elapsed();
                        (size..size + BATCH).for_each(|number| drop(tree.leave(Node(number))));
                        taken
                    })
                });
            });
            let mut random = StdRng::seed_from_u64(1);
            group.bench_function(BenchmarkId::new(format!("{name}/leave"), size), |bencher| {
                bencher.iter_custom(|count| {
                    sum(count, || {
                        let lost = some(&mut random, size);
                        let begin = Clock::now();
                        lost.iter().for_each(|number| drop(tree.leave(Node(*number))));
                        let taken = begin.elapsed();
                        lost.iter().for_each(|number| drop(tree.join(Node(*number))));
                        taken
                    })
                });
            });
        }
    }
}

/// Different members, as many as a batch has.
fn some(random: &mut StdRng, size: u32) -> Vec<u32> {
    let mut all: Vec<u32> = (0..size).collect();
    (0..BATCH).map(|_| all.swap_remove(random.random_range(0..all.len()))).collect()
}

struct Tree {
    core: TreeCore,
    now: Instant,
    vms: Vec<VmId>,
    image: Arc<BlockImage>,
    effects: Vec<Effect>,
}

impl Tree {
    fn new(name: &str, size: u32) -> Self {
        let limits = TreeLimits { complaint_life: Duration::from_secs(3), ..TreeLimits::SHIPPED };
        let digest = Digest::from_bytes([1; 32]);
        let image = Arc::new(BlockImage {
            id: digest,
            source: digest,
            index_digest: digest,
            index_bytes: 80,
            blob_digest: digest,
            blob_bytes: 100,
            plain_bytes: 1000,
            location: ImageLocation::Folder { path: "/images".into() },
            runtime: RuntimeConfig::default(),
        });
        let name_of = |number| format!("vm-{number}").parse().expect("a name");
        let mut tree = Self {
            core: TreeCore::new(limits, shape(name), Epoch::default()),
            now: Instant::now(),
            vms: (0..size + BATCH).map(name_of).collect(),
            image,
            effects: Vec::new(),
        };
        let built: Vec<u32> = (0..size).collect();
        let joins = tree.joins(&built);
        tree.apply(joins);
        let ready = built.iter().map(|number| Event::Ready { vm: tree.vms[*number as usize].clone() });
        tree.apply(ready.collect());
        tree
    }

    fn joins(&self, numbers: &[u32]) -> Vec<Event> {
        let draft = StartDraft {
            request: None,
            start: "start".parse().expect("an id"),
            function: "api".parse().expect("a name"),
            image: Arc::clone(&self.image),
            role: Role::Whole,
            env: BTreeMap::new(),
            command: None,
            needs: faasnet_actors::resources::Resources { memory_bytes: 1 << 28, cpu_millis: 100 },
            probe_path: "/".into(),
            mode: faasnet_actors::wire::control::Mode::default(),
            ready_deadline_ms: 1000,
            record: false,
            hot: Arc::default(),
        };
        let contact = Contact { address: ([10, 0, 0, 1], 7000).into(), key_hash: Arc::new([0_u8; 32]) };
        let join = |number: &u32| Event::Join {
            vm: self.vms[*number as usize].clone(),
            contact: contact.clone(),
            start: Box::new(draft.clone()),
        };
        numbers.iter().map(join).collect()
    }

    fn losses(&self, numbers: &[u32]) -> Vec<Event> {
        numbers.iter().map(|number| Event::Gone { vm: self.vms[*number as usize].clone() }).collect()
    }

    fn apply(&mut self, events: Vec<Event>) -> Duration {
        let begin = Clock::now();
        for event in events {
            self.core.apply(event, self.now, &mut self.effects);
        }
        let taken = begin.elapsed();
        self.effects.clear();
        taken
    }
}

fn cores(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    for name in SHAPES {
        for size in SIZES {
            let mut tree = Tree::new(name, size);
            let added: Vec<u32> = (size..size + BATCH).collect();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(format!("{name}/join"), size), |bencher| {
                bencher.iter_custom(|count| {
                    sum(count, || {
                        let taken = tree.apply(tree.joins(&added));
                        tree.apply(tree.losses(&added));
                        taken
                    })
                });
            });
            let mut random = StdRng::seed_from_u64(1);
            group.bench_function(BenchmarkId::new(format!("{name}/loss of 1000"), size), |bencher| {
                bencher.iter_custom(|count| {
                    (0..count)
                        .map(|_| {
                            let lost = some(&mut random, size);
                            let taken = tree.apply(tree.losses(&lost));
                            tree.apply(tree.joins(&lost));
                            taken
                        })
                        .sum()
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}/tick"), size), |bencher| {
                bencher.iter(|| tree.apply(vec![Event::Tick]));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = shapes, cores
}
criterion_main!(benches);
