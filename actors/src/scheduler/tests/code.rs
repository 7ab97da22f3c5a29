//! Functions with a package of code: two block images, two trees, one instance.

use super::{vms::tree, *};
use crate::{resources::Resources, wire::control::EndReason};

/// What of a function's row matters here.
#[derive(serde::Deserialize)]
struct Images {
    image: Digest,
    code: Digest,
}

fn package(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

/// The source of acme's package.
fn of(number: u8) -> String {
    name_of(&Source::Code(api().0, package(number)))
}

fn with_code(number: u8) -> FunctionSpec {
    FunctionSpec { code: Some(package(number)), ..spec("python:3") }
}

impl World {
    /// Functions of one tenant with packages 1, 2, ..., on VMs of 1 GiB, ready to run.
    fn with_packages(names: &[&str]) -> Self {
        let mut world = Self::new();
        (0..2).for_each(|number| world.up(number, facts(number, GIB)));
        for (number, name) in (1..).zip(names) {
            world.put(key("acme", name), with_code(number));
            world.convert(&of(number));
        }
        world.convert("python:3");
        world
    }

    fn states(&self, key: &FunctionKey) -> (ImageState, Option<ImageState>) {
        let view = self.core.function_view(key).expect("known");
        (view.image_state, view.code_state)
    }

    fn dissolved(&mut self) -> usize {
        let count = self.others.iter().filter(|other| *other == "dissolve").count();
        self.others.clear();
        count
    }
}

#[test]
fn starts_wait_for_both_images_and_join_both_trees() {
    for code_is_first in [false, true] {
        let mut world = World::new();
        world.up(0, facts(0, GIB));
        world.put(api(), with_code(1));
        let start = world.start(api(), 1).remove(0);
        assert_eq!(world.conversions, ["python:3".to_owned(), of(1)]);
        let mut sources = ["python:3".to_owned(), of(1)];
        if code_is_first {
            sources.reverse();
        }
        world.convert(&sources[0]);
        assert!(world.joins.is_empty(), "one of two is not enough");
        world.convert(&sources[1]);
        let told: Vec<(TreeId, Role)> =
            world.drafts.iter().map(|(tree, draft)| (tree.clone(), draft.role)).collect();
        assert_eq!(told, [(tree(&api(), "python:3"), Role::Runtime), (tree(&api(), &of(1)), Role::Code)]);
        assert!(world.drafts.iter().all(|(_, draft)| draft.start == start));
        world.run(&start);
        assert_eq!(world.ready(&api()), 1);
        assert!(matches!(world.states(&api()), (ImageState::Ready { .. }, Some(ImageState::Ready { .. }))));
    }
}

#[test]
fn a_later_manager_finds_both_images() {
    let world = World::with_packages(&["api"]);
    let mut images = BTreeMap::new();
    for ((table, key), value) in &world.rows {
        if *table == Table::Images {
            images.insert(key.clone(), value.clone());
        }
    }
    assert_eq!(images.len(), 2);
    let row = &world.rows[&(Table::Functions, "acme/api".to_owned())];
    let row: Images = rmp_serde::from_slice(row).expect("named fields");
    assert_eq!((row.image, row.code), (block_image("python:3").id, block_image(&of(1)).id));
    let ready = |source: &str| Some(block_image(source).into());
    let function = LoadedFunction { spec: with_code(1), image: ready("python:3"), code: ready(&of(1)) };
    let mut next = World::new();
    let functions = BTreeMap::from([(api(), function)]);
    next.apply(Event::Loaded(Box::new(Loaded { functions, vms: vec![vm(0)], ..Loaded::default() })));
    assert!(next.conversions.is_empty());
    next.up(0, facts(0, GIB));
    let start = next.start(api(), 1).remove(0);
    next.run(&start);
}

#[test]
fn functions_share_the_tree_of_their_runtime_image() {
    let mut world = World::with_packages(&["api", "web"]);
    let api_start = world.start(api(), 1).remove(0);
    let web_start = world.start(key("acme", "web"), 1).remove(0);
    let trees: BTreeSet<TreeId> = world.drafts.iter().map(|(tree, _)| tree.clone()).collect();
    assert_eq!(trees.len(), 3, "one runtime image and two packages");
    world.run(&api_start);
    world.run(&web_start);
    world.ask(|ticket| Event::Delete { ticket, key: api() });
    world.run_all();
    assert_eq!(world.dissolved(), 1, "that of its package; the other function needs the runtime image");
    world.ask(|ticket| Event::Delete { ticket, key: key("acme", "web") });
    world.run_all();
    assert_eq!(world.dissolved(), 2);
}

#[test]
fn another_package_replaces_instances_and_leaves_the_runtime_image_alone() {
    let mut world = World::with_packages(&["api"]);
    let before = world.start(api(), 1).remove(0);
    world.run(&before);
    world.joins.clear();
    world.put(api(), with_code(2));
    assert_eq!(world.conversions, [of(2)], "the runtime image is there");
    assert!(world.stops.is_empty(), "those of before serve meanwhile");
    world.convert(&of(2));
    world.run_all();
    assert_eq!(world.state(&before).0, StartState::Ended);
    assert_eq!(world.ready(&api()), 1);
    assert_eq!(world.dissolved(), 1, "the tree of the package before");
    let (again, _) = (world.put(api(), spec("python:3")), world.convert("python:3"));
    assert!(world.answers[&again].is_ok(), "code may go altogether");
    assert_eq!(world.states(&api()).1, None);
}

#[test]
fn a_package_that_cannot_be_converted_fails_its_function_alone() {
    let mut world = World::with_packages(&["api", "web"]);
    world.put(api(), with_code(3));
    let start = world.start(api(), 1).remove(0);
    world.conversions.clear();
    world.apply(Event::Converted { source: source(&of(3)), result: Err("it is encrypted".into()) });
    let ended = EndReason::ImageUnavailable("it is encrypted".into());
    assert_eq!(world.state(&start), (StartState::Ended, Some(ended)));
    assert!(matches!(world.states(&api()), (ImageState::Ready { .. }, Some(ImageState::Failed { .. }))));
    let refused = world.ask(|ticket| Event::Start { ticket, key: api(), count: 1 });
    assert_eq!(world.error(refused), ControlError::ImageFailed("it is encrypted".into()));
    world.start(key("acme", "web"), 1);
    world.put(api(), with_code(3));
    assert_eq!(world.conversions, [of(3)], "tried again by a new description");
}

#[test]
fn a_package_of_the_same_digest_is_another_one_for_another_tenant() {
    let mut world = World::with_packages(&["api"]);
    world.put(key("other", "api"), with_code(1));
    let theirs = name_of(&Source::Code(key("other", "api").0, package(1)));
    assert_eq!(world.conversions, ["python:3".to_owned(), theirs]);
}

#[test]
fn packages_are_named_from_the_moment_that_their_functions_row_may_be_durable() {
    let mut world = World::with_packages(&["api"]);
    let named = |world: &World| world.core.packages().into_iter().map(|(_, package)| package).collect();
    world.disk_is_slow = true;
    world.put(api(), with_code(2));
    assert_eq!(BTreeSet::from([package(1), package(2)]), named(&world));
    world.write_one(Ok(()));
    assert_eq!(BTreeSet::from([package(2)]), named(&world));
}

#[test]
fn instances_are_taken_over_only_with_the_present_code() {
    for (number, is_present) in [(1, true), (2, false)] {
        let mut world = World::new();
        let known: StartId = "known".parse().expect("name");
        let ready = |source: &str| Some(block_image(source).into());
        let function = LoadedFunction { spec: with_code(1), image: ready("python:3"), code: ready(&of(1)) };
        world.apply(Event::Loaded(Box::new(Loaded {
            functions: BTreeMap::from([(api(), function)]),
            vms: vec![vm(0)],
            drains: BTreeSet::new(),
            starts: vec![row(std::slice::from_ref(&known))],
        })));
        let code = Some(block_image(&of(number)).id);
        let instance = RunningInstance { code, ..instance(&known, "python:3", true) };
        world.up(0, VmFacts { instances: vec![instance], ..facts(0, GIB) });
        // One of another description serves until a newer one is there.
        (0..3).for_each(|_| world.run_all());
        assert_eq!(world.state(&known).0 == StartState::Ready, is_present);
        assert_eq!(world.ready(&api()), 1);
    }
}

#[test]
fn what_has_no_room_waits_with_both_images() {
    let mut world = World::new();
    world.up(0, facts(0, GIB));
    world.put(api(), FunctionSpec { memory_mib: 600, ..with_code(1) });
    world.convert(&of(1));
    world.convert("python:3");
    let starts = world.start(api(), 2);
    assert_eq!(world.joins.len(), 1);
    let capacity = Resources { memory_bytes: GIB, cpu_millis: 2000 };
    world.up(1, VmFacts { capacity, ..facts(1, GIB) });
    assert_eq!(world.joins.len(), 2);
    starts.iter().for_each(|start| world.run(start));
    assert_eq!(world.drafts.len(), 4);
}
