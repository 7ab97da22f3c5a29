use super::*;
use std::io::Read;

fn entry(codec: Codec) -> BlockEntry {
    BlockEntry { offset: 0, stored_bytes: 0, codec, hash: [0; 32] }
}

#[test]
fn only_blocks_of_exactly_the_right_length_are_decoded() {
    let plain = vec![5; 10_000];
    let stored = zstd::bulk::compress(&plain, 3).unwrap();
    assert_eq!(decode_block(&entry(Codec::Zstd), 10_000, &stored), Ok(plain.clone()));
    let length = BlockError::Length { got: 10_000, expected: 10_001 };
    assert_eq!(decode_block(&entry(Codec::Zstd), 10_001, &stored), Err(length));
    assert_eq!(decode_block(&entry(Codec::Zstd), 9_999, &stored), Err(BlockError::Frame));
    assert_eq!(decode_block(&entry(Codec::Zstd), 10_000, &stored[..10]), Err(BlockError::Frame));
    assert_eq!(decode_block(&entry(Codec::Plain), 10_000, &plain), Ok(plain.clone()));
    assert!(decode_block(&entry(Codec::Plain), 9_999, &plain).is_err());
}

#[test]
fn a_bomb_is_stopped_at_the_length_of_a_block() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    assert_eq!(decode_block(&entry(Codec::Zstd), BLOCK_BYTES, &bomb), Err(BlockError::Frame));
}

#[test]
fn blocks_come_out_in_order_however_many_threads_pack_them() {
    let plain: Vec<u8> = (0..5_000_000_u32).map(|place| (place / 100_000) as u8).collect();
    for threads in [1, 3, 8] {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = BlockWriter::new(file.try_clone().unwrap(), threads, 1).unwrap();
        writer.write_all(&plain).unwrap();
        let blob = writer.finish().unwrap();
        let mut stored = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut stored).unwrap();
        assert_eq!(stored.len() as u64, blob.bytes);
        let decoded: Vec<u8> = blob
            .entries
            .iter()
            .zip(plain.chunks(BLOCK_BYTES as usize))
            .flat_map(|(entry, expected)| {
                let bytes = &stored[entry.offset as usize..][..entry.stored_bytes as usize];
                assert_eq!(*blake3::hash(bytes).as_bytes(), entry.hash);
                decode_block(entry, expected.len() as u32, bytes).unwrap()
            })
            .collect();
        assert!(decoded == plain);
    }
}

#[test]
fn a_disk_that_takes_nothing_is_reported_by_the_next_write() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut writer = BlockWriter::new(full, 2, 1).unwrap();
    let mut result = Ok(());
    // More than all queues hold together.
    for _ in 0..40 {
        result = result.and_then(|()| writer.write_all(&vec![7; BLOCK_BYTES as usize]));
    }
    let result = result.and_then(|()| writer.finish().map(drop));
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
}
