//! An instance that has read its files and answers everything with what it read.

use anyhow::Context;
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

/// Read at once, as the kernel reads ahead of a program.
const READ_BYTES: usize = 128 << 10;
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// For a request to be there whole, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HasRead {
    pub files: u64,
    pub bytes: u64,
}

pub(super) fn serve(rootfs: &Path, port: u16, percent: u8) -> anyhow::Result<()> {
    let mut has_read = HasRead::default();
    read(rootfs, rootfs, percent, &mut has_read)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen")?;
    let text = format!("read {} files, {} bytes\n", has_read.files, has_read.bytes);
    print!("{text}");
    io::stdout().flush()?;
    for connection in listener.incoming() {
        // Whoever leaves early wants no answer.
        let _ = connection.and_then(|connection| answer(connection, &text));
    }
    Ok(())
}

/// Reads that part of the files below a folder: those whose names, within the image, fall into it. Links are not
/// followed, so that all stays within the image.
pub(super) fn read(top: &Path, folder: &Path, percent: u8, has_read: &mut HasRead) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            read(top, &path, percent, has_read)?;
        } else if kind.is_file() && is_read(path.strip_prefix(top)?, percent) {
            let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            let mut buffer = vec![0; READ_BYTES];
            has_read.files += 1;
            loop {
                match file.read(&mut buffer).with_context(|| format!("read {}", path.display()))? {
                    0 => break,
                    count => has_read.bytes += count as u64,
                }
            }
        }
    }
    Ok(())
}

/// The same on every VM.
fn is_read(name: &Path, percent: u8) -> bool {
    let hash = blake3::hash(name.as_os_str().as_encoded_bytes());
    u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], 0]) % 100
        < u32::from(percent)
}

fn answer(mut connection: TcpStream, text: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let (mut request, mut part) = (Vec::new(), [0; 2048]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match connection.read(&mut part)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let length = text.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_is_the_same_wherever_the_image_lies_and_links_are_not_followed() {
        let image = |folder: &Path| {
            for number in 0..200 {
                let folder = folder.join(format!("d{}", number % 7));
                fs::create_dir_all(&folder).expect("made");
                fs::write(folder.join(number.to_string()), vec![1; number]).expect("written");
            }
            std::os::unix::fs::symlink("/etc", folder.join("out")).expect("linked");
        };
        let [one, other] = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
        let of = |folder: &Path, percent: u8| {
            let mut has_read = HasRead::default();
            read(folder, folder, percent, &mut has_read).expect("read");
            has_read
        };
        image(one.path());
        image(other.path());
        assert_eq!(of(one.path(), 25), of(other.path(), 25));
        assert!((25..=75).contains(&of(one.path(), 25).files), "{:?}", of(one.path(), 25));
        assert_eq!(of(one.path(), 0), HasRead::default());
        assert_eq!(of(one.path(), 100), HasRead { files: 200, bytes: (0..200).sum() });
    }
}
