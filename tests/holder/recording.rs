//! What a mounted image is read for, recorded while it is; and how far the kernel reads ahead.

use crate::support::{Agent, Holder, TestImage};
use faasnet_actors::{
    image::BLOCK_BYTES,
    wire::holder::{FromHolder, Mount, PlainRange, ToHolder},
};
use std::{fs::File, os::unix::fs::FileExt, path::Path, thread};

fn end_recording(agent: &mut Agent<'_>, image: &TestImage) -> Vec<PlainRange> {
    agent.order(&ToHolder::EndRecording { image: image.id });
    agent.until(|message| match message {
        FromHolder::Recorded { image: of, ranges } if *of == image.id => Some(ranges.clone()),
        _ => None,
    })
}

/// Where a part of `data/big` lies in the file system.
fn place_in_image(image: &TestImage, place: usize) -> u64 {
    let needle = &image.big[place..place + 64];
    image.bytes.windows(64).position(|window| window == needle).expect("is stored plain") as u64
}

fn read(path: &Path, place: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    File::open(path).expect("opens").read_exact_at(&mut bytes, place).expect("reads");
    bytes
}

fn bytes_of(ranges: &[PlainRange]) -> u64 {
    ranges.iter().map(|range| range.1).sum()
}

#[test]
fn the_parts_of_files_that_are_read_are_recorded_in_the_order_of_their_first_use() {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("recording_read_ahead_kib", "0")]);
    let mut agent = holder.agent(&image);
    agent.mount(Mount { record: true, ..image.mount_whole() }).expect("mounts");
    let path = holder.file_system(&image).join("data/big");
    let places = [2_500_000_usize, 400_000, 1_600_000, 400_100];
    for place in places {
        assert!(read(&path, place as u64) == image.big[place..place + 64]);
    }
    let ranges = end_recording(&mut agent, &image);
    let position = |place| {
        let at = place_in_image(&image, place);
        ranges.iter().position(|range| (range.0..range.0 + range.1).contains(&at)).expect("it is recorded")
    };
    assert!(position(2_500_000) < position(400_000) && position(400_000) < position(1_600_000), "{ranges:?}");
    let data = place_in_image(&image, 0)..place_in_image(&image, 2_900_000);
    let of_file: Vec<_> = ranges.iter().copied().filter(|range| data.contains(&range.0)).collect();
    assert_eq!(bytes_of(&of_file), 3 * 4096, "a page for each: {of_file:?}");
    for range in &ranges {
        assert!(range.end().is_some_and(|end| end <= image.bytes.len() as u64));
    }
}

#[test]
fn what_is_read_after_the_end_and_what_is_not_to_be_recorded_is_not() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(Mount { record: true, ..image.mount_whole() }).expect("mounts");
    assert_ne!(end_recording(&mut agent, &image), [], "mounting reads as well");
    let path = holder.file_system(&image).join("data/big");
    read(&path, 1_000_000);
    assert_eq!(end_recording(&mut agent, &image), []);
    agent.order(&ToHolder::Unmount { image: image.id });
    agent.mount(image.mount_whole()).expect("mounts");
    read(&path, 1_000_000);
    assert_eq!(end_recording(&mut agent, &image), []);
}

#[test]
fn a_recording_has_no_more_ranges_than_the_setting_says() {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("recorded_ranges_max", "3"), ("recording_read_ahead_kib", "0")]);
    let mut agent = holder.agent(&image);
    agent.mount(Mount { record: true, ..image.mount_whole() }).expect("mounts");
    let path = holder.file_system(&image).join("data/big");
    for place in 0..20 {
        read(&path, place * 100_000);
    }
    assert_eq!(end_recording(&mut agent, &image).len(), 3);
}

/// Whether a program that goes through a file up to the end of a block makes the next block be asked for.
fn touches_the_next_block(packed: bool) -> bool {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("packed_read_ahead_kib", "0"), ("file_read_ahead_kib", "128")]);
    let mut agent = holder.agent(&image);
    let next = image.block_of(1_500_000) + 1;
    agent.mount(Mount { packed, ..image.mount_without(next) }).expect("mounts");
    let end = u64::from(next) * u64::from(BLOCK_BYTES) - place_in_image(&image, 0);
    let path = holder.file_system(&image).join("data/big");
    let reading = thread::spawn(move || {
        let file = File::open(path).expect("opens");
        let mut page = [0; 4096];
        (1..=16).rev().for_each(|left| file.read_exact_at(&mut page, end - left * 4096).expect("reads"));
    });
    agent.serve_until(|| reading.is_finished().then_some(()));
    reading.join().expect("reads");
    // The answer comes behind everything that was asked before.
    end_recording(&mut agent, &image);
    agent.asked.contains(&next)
}

#[test]
fn the_kernel_reads_ahead_in_each_mount_as_far_as_is_good_for_it() {
    assert!(touches_the_next_block(false));
    assert!(!touches_the_next_block(true));
}
