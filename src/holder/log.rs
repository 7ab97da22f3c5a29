//! Bounded output of a container: two halves, the newer one growing, the older one dropped whole.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Keeps between `bytes_max / 2` and `bytes_max` of the newest output in `<start>.log` and
/// `<start>.log.old`.
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    written: u64,
    half_bytes: u64,
}

impl BoundedLog {
    pub fn create(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let file = File::create(&path)?;
        Ok(Self { path, file, written: 0, half_bytes: (bytes_max / 2).max(1) })
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.written >= self.half_bytes {
                fs::rename(&self.path, old_half(&self.path))?;
                self.file = File::create(&self.path)?;
                self.written = 0;
            }
            let room = usize::try_from(self.half_bytes - self.written).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

fn old_half(path: &Path) -> PathBuf {
    path.with_extension("log.old")
}

/// The newest output, at most `bytes_max`. Empty if nothing was ever written.
pub fn read_tail(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut newer = tail_of(path, bytes_max)?;
    let mut tail = tail_of(&old_half(path), bytes_max - newer.len() as u64)?;
    tail.append(&mut newer);
    Ok(tail)
}

fn tail_of(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(bytes_max)))?;
    let mut tail = Vec::new();
    file.take(bytes_max).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_is_kept_and_the_files_stay_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.log");
        assert_eq!(read_tail(&path, 100).expect("reads"), b"");
        let mut log = BoundedLog::create(path.clone(), 10).expect("created");
        for number in 0..10 {
            log.write(format!("{number}{number}{number}").as_bytes()).expect("written");
        }
        assert_eq!(read_tail(&path, 100).expect("reads"), b"6777888999");
        assert_eq!(read_tail(&path, 4).expect("reads"), b"8999");
        let kept: u64 = fs::read_dir(folder.path())
            .expect("lists")
            .flatten()
            .map(|e| e.metadata().expect("is there").len())
            .sum();
        assert!(kept <= 10, "{kept}");
    }
}
