//! A VM of another tenant, with a good certificate and a will to harm, against an agent that serves others.

use super::*;
use bytes::BytesMut;
use faasnet::net::{identity::Peer, tls::Dialer};
use faasnet_actors::{
    id::TreeId,
    wire::{
        control::Capability,
        frame::encode_head,
        request::{RequestAnswer, RequestHead},
    },
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

type Reading = FrameReader<ReadHalf<TlsStream<TcpStream>>, FromParent>;
type Writing = WriteHalf<TlsStream<TcpStream>>;

async fn connect(dialer: &Dialer, session: &Session, purpose: Purpose) -> TlsStream<TcpStream> {
    dialer.vm(&"vm-1".parse().unwrap(), session.hello.address, purpose).await.unwrap()
}

/// A connection on which a tree was asked for.
async fn open(
    dialer: &Dialer,
    session: &Session,
    tree: &TreeId,
    capability: &Capability,
) -> (Reading, Writing) {
    let (reading, mut writing) = tokio::io::split(connect(dialer, session, Purpose::Blocks).await);
    let (tree, capability) = (tree.clone(), capability.clone());
    let opening = ToParent::Open { version: PROTOCOL_VERSION, tree, capability };
    framed::write(&mut writing, &opening, &[]).await.unwrap();
    (FrameReader::new(reading, FRAME), writing)
}

/// All that the agent says until it closes the connection.
async fn all_said(dialer: &Dialer, session: &Session, tree: &TreeId, capability: &Capability) -> BytesMut {
    let (reading, _writing) = open(dialer, session, tree, capability).await;
    let (mut stream, ahead) = reading.into_parts();
    let mut said = BytesMut::from(&ahead[..]);
    patiently(async { while stream.read_buf(&mut said).await.is_ok_and(|length| length > 0) {} }).await;
    said
}

fn want(blocks: Vec<BlockId>) -> ToParent {
    ToParent::Want {
        request: None,
        blocks,
        urgency: Urgency::Demand,
        path: vec!["vm-9".parse().unwrap()],
        reach: Reach::Held,
    }
}

/// An agent that holds an image of the tenant `acme`, and its session.
async fn serving(
    world: &World,
    variables: &[(&str, &str)],
) -> (Agent, Session, faasnet_actors::image::BlockImage) {
    let image = world.image("web", &website(&noise(40, 4 << 20)), SERVE);
    let agent = Agent::start(world, "vm-1", variables);
    let mut session = world.session("vm-1").await;
    session.orders.send(world.order("s1", &image, "vm-1", &session, vec![Upstream::Origin])).unwrap();
    session.ready("s1").await;
    (agent, session, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_a_tree_cannot_tell_whether_it_is_there() {
    let world = World::new().await;
    let (_agent, session, image) = serving(&world, &[]).await;
    let (dialer, identity) = world.stranger("vm-9");
    let (_, neighbour) = world.stranger("vm-8");
    let key = Peer::of(&identity.certificate).unwrap().key_hash;
    let vm = "vm-9".parse().unwrap();
    let own = TreeId { tenant: "evil".parse().unwrap(), image: image.id };
    let held = tree_of(&image);
    let absent = TreeId { image: image.source, ..held.clone() };
    let other_manager = {
        let bytes = faasnet::net::capability::CapabilityKey::generate();
        faasnet::net::capability::CapabilityKey::from_pkcs8(&bytes).unwrap()
    };
    let mut answers = Vec::new();
    for tree in [&held, &absent] {
        let good = world.capabilities.issue(tree, &vm, &key, in_an_hour());
        let neighbours = Peer::of(&neighbour.certificate).unwrap().key_hash;
        let altered = |place: usize| {
            let mut capability = good.clone();
            let whole = capability.claims.len();
            capability.claims[place % whole] ^= 1;
            capability
        };
        let cases = [
            // For a tree of its own, of the very same image.
            world.capabilities.issue(&own, &vm, &key, in_an_hour()),
            // Expired a second ago, and long ago.
            world.capabilities.issue(tree, &vm, &key, in_an_hour() - 3601),
            world.capabilities.issue(tree, &vm, &key, 0),
            // Another VM's, as it was seen on a connection of that VM.
            world.capabilities.issue(tree, &"vm-8".parse().unwrap(), &neighbours, in_an_hour()),
            world.capabilities.issue(tree, &"vm-8".parse().unwrap(), &[], in_an_hour()),
            // Forged.
            other_manager.issue(tree, &vm, &key, in_an_hour()),
            Capability { signature: vec![0; 64], ..good.clone() },
            Capability { signature: Vec::new(), ..good.clone() },
            altered(0),
            altered(20),
            altered(60),
            Capability { claims: Vec::new(), signature: Vec::new() },
            Capability { claims: noise(1, 5000), signature: noise(2, 64) },
        ];
        let mut said = Vec::new();
        for capability in cases {
            said.push(all_said(&dialer, &session, tree, &capability).await);
        }
        answers.push(said);
    }
    let refusal = encode_head(&FromParent::Refused { reason: Refusal::Capability }, 0).unwrap();
    for (number, (held, absent)) in answers[0].iter().zip(&answers[1]).enumerate() {
        assert_eq!(held, absent, "case {number}");
        assert_eq!(held[..], refusal[..], "case {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_ends_with_its_hour_also_on_an_open_connection() {
    let world = World::new().await;
    let (_agent, session, image) = serving(&world, &[]).await;
    let (dialer, identity) = world.stranger("vm-9");
    let key = Peer::of(&identity.certificate).unwrap().key_hash;
    let tree = tree_of(&image);
    let soon = in_an_hour() - 3600 + 2;
    let capability = world.capabilities.issue(&tree, &"vm-9".parse().unwrap(), &key, soon);
    let (mut frames, _writing) = open(&dialer, &session, &tree, &capability).await;
    assert_eq!(frames.expect(PATIENCE).await.unwrap().header, FromParent::Opened);
    let end = frames.expect(PATIENCE).await.unwrap().header;
    assert_eq!(end, FromParent::Refused { reason: Refusal::Capability });
    // The same opening again, as it was seen on the wire.
    let again = all_said(&dialer, &session, &tree, &capability).await;
    assert_eq!(again[..], encode_head(&FromParent::Refused { reason: Refusal::Capability }, 0).unwrap()[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_gets_nothing_that_is_the_managers() {
    let world = World::new().await;
    let (_agent, session, _image) = serving(&world, &[]).await;
    let (dialer, _) = world.stranger("vm-9");
    let mut stream = connect(&dialer, &session, Purpose::Request).await;
    let head = RequestHead::Forward { start: "s1".parse().unwrap() };
    framed::write(&mut stream, &head, &[]).await.unwrap();
    let mut frames = FrameReader::<_, RequestAnswer>::new(stream, FRAME);
    assert!(frames.expect(PATIENCE).await.is_err(), "a request of another VM was answered");
    // An agent is no manager: it takes no sessions and no joins.
    for purpose in [Purpose::Control, Purpose::Join] {
        let refused = dialer.vm(&"vm-1".parse().unwrap(), session.hello.address, purpose).await;
        if let Ok(mut stream) = refused {
            let mut said = Vec::new();
            let _broken = patiently(stream.read_to_end(&mut said)).await;
            assert!(said.is_empty(), "{purpose:?}: {said:?}");
        }
    }
}

/// What a child may say that has a capability and wants to harm.
#[derive(Debug, Clone, Copy)]
enum Attack {
    UnknownMessage,
    OversizedFrame,
    HalfAFrame,
    OpensTwice,
    BlocksThatAreNone,
    EndlessPath,
    /// More questions than anybody may have, none of whose answers is read.
    NeverReads,
    Chatter,
}

const ATTACKS: [Attack; 8] = [
    Attack::UnknownMessage,
    Attack::OversizedFrame,
    Attack::HalfAFrame,
    Attack::OpensTwice,
    Attack::BlocksThatAreNone,
    Attack::EndlessPath,
    Attack::NeverReads,
    Attack::Chatter,
];

/// Attacks until the agent hangs up or all is said.
async fn attack(writing: &mut Writing, attack: Attack, blocks: u32) -> std::io::Result<()> {
    match attack {
        Attack::UnknownMessage => {
            let head = encode_head(&std::collections::BTreeMap::from([("format_disk", 1)]), 0).unwrap();
            writing.write_all(&head).await?;
        }
        Attack::OversizedFrame => {
            writing.write_all(&u32::MAX.to_le_bytes()).await?;
            writing.write_all(&0_u32.to_le_bytes()).await?;
            writing.write_all(&noise(3, 1 << 20)).await?;
        }
        Attack::HalfAFrame => writing.write_all(&[200, 0, 0, 0, 0, 0]).await?,
        Attack::OpensTwice => {
            let capability = Capability { claims: Vec::new(), signature: Vec::new() };
            let tree = TreeId {
                tenant: "acme".parse().unwrap(),
                image: faasnet_actors::id::Digest::from_bytes([0; 32]),
            };
            framed::write(writing, &ToParent::Open { version: PROTOCOL_VERSION, tree, capability }, &[])
                .await?;
        }
        Attack::BlocksThatAreNone => {
            for number in 0..200 {
                let beyond = (0..1000).map(|block| BlockId(u32::MAX - number * 1000 - block)).collect();
                framed::write(writing, &want(beyond), &[]).await?;
            }
        }
        Attack::EndlessPath => {
            let path = (0..10_000).map(|vm| format!("vm-{vm}").parse().unwrap()).collect();
            let reach = Reach::Upward { stripes: u32::MAX, depth: u32::MAX };
            let want = ToParent::Want {
                request: None,
                blocks: vec![BlockId(0)],
                urgency: Urgency::Demand,
                path,
                reach,
            };
            for _ in 0..50 {
                framed::write(writing, &want, &[]).await?;
            }
        }
        Attack::NeverReads => {
            for _ in 0..2000 {
                framed::write(writing, &want((0..blocks).map(BlockId).collect()), &[]).await?;
            }
        }
        Attack::Chatter => {
            for number in 0..5000 {
                framed::write(writing, &ToParent::Corrupt { block: BlockId(number % (blocks + 1)) }, &[])
                    .await?;
                framed::write(writing, &ToParent::WantIndex { reach: Reach::Held }, &[]).await?;
            }
        }
    }
    writing.flush().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_attacks_is_bounded_and_everybody_else_is_served_meanwhile() {
    let world = World::new().await;
    let (agent, session, image) = serving(&world, &[("FAASNET__AGENT__HANDSHAKE_MS", "1000")]).await;
    let (dialer, identity) = world.stranger("vm-9");
    let key = Peer::of(&identity.certificate).unwrap().key_hash;
    let tree = tree_of(&image);
    let capability = world.capabilities.issue(&tree, &"vm-9".parse().unwrap(), &key, in_an_hour());
    let blocks = u32::try_from(image.plain_bytes.div_ceil(512 << 10)).unwrap();
    // Once around, so that what an agent needs anyway is not counted as the attackers'.
    assert!(world.get(&session, "vm-1", "s1", "/big").await.is_ok());
    let before = agent.resident_bytes().0;
    let mut kept = Vec::new();
    for kind in ATTACKS {
        for _ in 0..4 {
            let (mut reading, mut writing) = open(&dialer, &session, &tree, &capability).await;
            // Too many children is an answer too.
            let answer = patiently(reading.next()).await.unwrap().map(|frame| frame.header);
            if answer == Some(FromParent::Opened) {
                let attacking = async { drop(attack(&mut writing, kind, blocks).await) };
                // It may be held up for good by an agent that takes no more.
                let _held_up = tokio::time::timeout(Duration::from_secs(1), attacking).await;
                kept.push((reading, writing));
            }
        }
        assert_eq!(
            world.get(&session, "vm-1", "s1", "/").await,
            Ok(Bytes::from_static(b"hello")),
            "{kind:?}"
        );
        kept.truncate(8); // some stay while others go
    }
    // Connections that never say what they want.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(session.hello.address).await.unwrap());
        silent.last_mut().unwrap().write_all(b"\x16\x03\x01").await.unwrap();
    }
    kept.clear();
    // A VM with the same right is served as if nothing were.
    let (honest, identity) = world.stranger("vm-7");
    let key = Peer::of(&identity.certificate).unwrap().key_hash;
    let capability = world.capabilities.issue(&tree, &"vm-7".parse().unwrap(), &key, in_an_hour());
    let (mut frames, mut writing) = open(&honest, &session, &tree, &capability).await;
    assert_eq!(frames.expect(PATIENCE).await.unwrap().header, FromParent::Opened);
    framed::write(&mut writing, &want(vec![BlockId(0)]), &[]).await.unwrap();
    assert_eq!(frames.expect(PATIENCE).await.unwrap().header, FromParent::Block { block: BlockId(0) });
    let grown = agent.resident_bytes().0.saturating_sub(before);
    eprintln!("the agent's resident memory grew by {} KiB", grown >> 10);
    assert!(grown < 128 << 20, "{grown} bytes");
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}
