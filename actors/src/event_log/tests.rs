use super::{
    Audit, EventLogCore, Filter, Happening, Item, Kind, News, Reader, RingLimits, StreamId, core::Record,
};
use crate::{
    function_tree::TreeNews,
    id::{Digest, Epoch, ImageId, TenantId, VmId},
};
use proptest::prelude::*;
use std::collections::BTreeSet;

const LIMITS: RingLimits = RingLimits { events_max: 10, bytes_max: 100_000 };
const COUNTED_MAX: usize = 100;
const STREAM: StreamId = StreamId { term: 7, generation: 0 };

fn vm(number: u64) -> VmId {
    format!("vm-{number}").parse().expect("name")
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("name")
}

fn left(number: u64) -> Happening {
    let news = TreeNews::Left { vm: vm(number), epoch: Epoch { term: 1, counter: number } };
    Happening::of_tree(image(), news)
}

fn image() -> ImageId {
    Digest::from_bytes([1; 32])
}

fn log_of(count: u64) -> EventLogCore {
    let mut log = EventLogCore::new(STREAM, LIMITS, COUNTED_MAX);
    (1..=count).for_each(|number| log.happened(News::of(&tenant("acme"), left(number)), number));
    log
}

fn everything() -> Filter {
    Filter { sees_audit: true, ..Filter::default() }
}

fn numbers(items: &[Item]) -> Vec<String> {
    let text = |item: &Item| match item {
        Item::Event(record) => record.number.to_string(),
        Item::Lost { from, to } => format!("lost {from}-{to}"),
        Item::Began(stream) => format!("began {stream}"),
    };
    items.iter().map(text).collect()
}

#[test]
fn the_text_of_an_event_has_all_that_it_is_filtered_by() {
    let mut log = EventLogCore::new(STREAM, LIMITS, COUNTED_MAX);
    log.happened(News::of(&tenant("acme"), left(3)), 1_700_000_000_000);
    let page = log.read(1, 10, 1000);
    let json: serde_json::Value = serde_json::from_str(&page.records[0].json).expect("JSON");
    let data = serde_json::json!({ "image": image(), "vm": "vm-3", "epoch": { "term": 1, "counter": 3 } });
    let expected = serde_json::json!({
        "type": "event", "number": 1, "at_ms": 1_700_000_000_000_u64, "kind": "member_left", "tenant": "acme",
        "functions": [], "vm": "vm-3", "data": data,
    });
    assert_eq!(json, expected);
}

#[test]
fn events_of_a_tree_name_the_functions_that_use_its_image() {
    let function = |name: &str, image: Option<ImageId>| {
        let state = match image {
            Some(id) => serde_json::json!({
                "state": "ready", "id": id, "source": id, "plain_bytes": 1, "stored_bytes": 1,
            }),
            None => serde_json::json!({ "state": "failed", "reason": "gone" }),
        };
        let view = serde_json::json!({
            "name": name, "image": "app:1", "image_state": state, "ready": 0, "starting": 0, "waiting": 0,
        });
        Happening::Function(serde_json::from_value(view).expect("a view"))
    };
    let mut log = EventLogCore::new(STREAM, LIMITS, COUNTED_MAX);
    let mut functions_of = |happening: Happening| {
        log.happened(News::of(&tenant("acme"), happening), 0);
        log.happened(News::of(&tenant("acme"), left(0)), 0);
        log.happened(News::of(&tenant("other"), left(0)), 0);
        let page = log.read(log.next() - 2, 2, 1000);
        assert!(page.records[1].functions.is_empty(), "another tenant's tree");
        page.records[0].functions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(functions_of(function("web", Some(image()))), "web");
    assert_eq!(functions_of(function("api", Some(image()))), "api web");
    assert_eq!(functions_of(function("web", None)), "api");
    assert_eq!(functions_of(Happening::FunctionDeleted { name: "api".parse().expect("name") }), "");
}

#[test]
fn the_oldest_go_when_there_are_too_many_or_too_large_ones() {
    let log = log_of(25);
    assert_eq!(log.sizes().0, 10);
    let bytes = log.read(25, 1, 1).records[0].json.len();
    let mut log =
        EventLogCore::new(STREAM, RingLimits { events_max: 1000, bytes_max: 3 * bytes }, COUNTED_MAX);
    (1..=25).for_each(|_| log.happened(News::of(&tenant("acme"), left(25)), 25));
    assert_eq!(log.sizes(), (3, 3 * bytes));
    assert_eq!(log.read(1, 10, 0).records.len(), 1, "one that is too large for a page comes alone");
}

#[test]
fn who_comes_late_is_told_what_is_gone() {
    let log = log_of(25);
    let mut reader = Reader::new(STREAM, 4, everything());
    let items = reader.take(log.read(reader.position(), 3, 100_000));
    assert_eq!(numbers(&items), ["lost 4-15", "16", "17", "18"]);
    let items = reader.take(log.read(reader.position(), 100, 100_000));
    assert_eq!(numbers(&items), ["19", "20", "21", "22", "23", "24", "25"]);
    assert_eq!(numbers(&reader.take(log.read(reader.position(), 100, 100_000))), [""; 0]);
}

#[test]
fn what_never_reached_the_log_is_told() {
    let mut log = log_of(2);
    log.skip(5);
    log.happened(News::of(&tenant("acme"), left(0)), 0);
    log.skip(2);
    let mut reader = Reader::new(STREAM, 1, everything());
    let items = reader.take(log.read(1, 100, 100_000));
    assert_eq!(numbers(&items), ["1", "2", "lost 3-7", "8", "lost 9-10"]);
}

#[test]
fn a_rebuilt_log_begins_a_new_stream_that_is_read_from_its_beginning() {
    let mut reader = Reader::new(STREAM, 400, everything());
    let stream = StreamId { generation: 1, ..STREAM };
    let mut log = EventLogCore::new(stream, LIMITS, COUNTED_MAX);
    log.happened(News::of(&tenant("acme"), left(0)), 0);
    assert_eq!(numbers(&reader.take(log.read(reader.position(), 10, 1000))), ["began 7.1"]);
    assert_eq!(numbers(&reader.take(log.read(reader.position(), 10, 1000))), ["1"]);
}

#[test]
fn a_flood_of_refusals_is_one_event() {
    let mut log = EventLogCore::new(STREAM, LIMITS, COUNTED_MAX);
    (0..1000).for_each(|_| log.refused(None, "overloaded".into()));
    (0..3).for_each(|_| log.refused(Some(tenant("acme")), "too_many".into()));
    assert_eq!(log.next(), 1);
    log.tick(5);
    log.tick(6);
    let texts: Vec<String> =
        log.read(1, 10, 10_000).records.iter().map(|record| record.json.to_string()).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains(r#""data":{"code":"overloaded","count":1000}"#), "{}", texts[0]);
    assert!(texts[1].contains(r#""tenant":"acme""#), "{}", texts[1]);
}

#[test]
fn nobody_sees_what_is_not_theirs() {
    let of = |tenant: Option<&str>, kind: Kind| Record {
        number: 1,
        kind,
        tenant: tenant.map(self::tenant),
        functions: vec!["web".parse().expect("name")],
        vm: Some(vm(1)),
        json: "{}".into(),
    };
    let own = Filter { tenant: Some(tenant("acme")), ..Filter::default() };
    assert!(own.passes(&of(Some("acme"), Kind::Start)));
    assert!(!own.passes(&of(Some("other"), Kind::Start)));
    assert!(!own.passes(&of(None, Kind::Vm)), "VMs are nobody's");
    assert!(!own.passes(&of(Some("acme"), Kind::Audit)), "only for admins");
    assert!(Filter::default().passes(&of(None, Kind::Vm)));
    let one_vm = Filter { vm: Some(vm(2)), ..Filter::default() };
    let one_function = Filter { function: Some("api".parse().expect("name")), ..Filter::default() };
    let one_kind = Filter { kinds: BTreeSet::from([Kind::Vm]), ..Filter::default() };
    for filter in [one_vm, one_function, one_kind] {
        assert!(!filter.passes(&of(Some("acme"), Kind::Start)));
    }
    let audit = Audit {
        who: "ann".into(),
        role: "admin",
        method: "PUT".into(),
        path: "/v1/functions/web".into(),
        status: 200,
        request: "r".into(),
    };
    assert_eq!(Happening::Audit(audit).kind(), Kind::Audit);
}

#[test]
fn streams_are_told_apart_by_their_names() {
    assert_eq!("7.0".parse(), Ok(STREAM));
    assert_eq!(STREAM.to_string(), "7.0");
    for bad in ["", "7", "7.", ".0", "7.0.1", "-1.0", "7.4294967296"] {
        assert!(bad.parse::<StreamId>().is_err(), "{bad}");
    }
}

proptest! {
    /// However events come and are read, each number is delivered once, or told as lost.
    #[test]
    fn each_number_is_delivered_or_told_as_lost(
        steps in prop::collection::vec((0..4_u8, 1..8_u64), 1..60),
        begins in 1..5_u64,
    ) {
        let mut log = log_of(begins);
        let mut reader = Reader::new(STREAM, 1, everything());
        let mut seen = 1;
        for (what, count) in steps {
            let bytes_max = match what {
                0 => {
                    (0..count).for_each(|number| log.happened(News::of(&tenant("acme"), left(number)), 0));
                    continue;
                }
                1 => {
                    log.skip(count);
                    continue;
                }
                2 => 400,
                _ => usize::MAX,
            };
            let page = log.read(reader.position(), count as usize, bytes_max);
            for item in reader.take(page) {
                let (from, to) = match item {
                    Item::Event(record) => (record.number, record.number),
                    Item::Lost { from, to } => (from, to),
                    Item::Began(_) => unreachable!("it is the same stream"),
                };
                prop_assert_eq!(from, seen, "in order and without a gap");
                seen = to + 1;
            }
        }
    }
}
