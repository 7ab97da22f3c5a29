//! Tar archives made byte by byte, so that they may be as wrong as a test wants.

/// An archive that grows entry by entry.
#[derive(Default, Clone)]
pub struct Archive {
    bytes: Vec<u8>,
}

/// The fields of a header, as texts that stand there.
#[derive(Clone)]
pub struct Header {
    pub kind: u8,
    pub path: Vec<u8>,
    pub target: Vec<u8>,
    pub mode: &'static str,
    pub uid: &'static str,
    pub size: String,
    pub device: (&'static str, &'static str),
}

impl Header {
    pub fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            path: path.as_ref().to_vec(),
            target: Vec::new(),
            mode: "0000755",
            uid: "0000000",
            size: "0".to_owned(),
            device: ("0000000", "0000000"),
        }
    }

    fn encode(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.path[..self.path.len().min(100)]);
        put(100, self.mode.as_bytes());
        put(108, self.uid.as_bytes());
        put(116, b"0000000");
        put(124, self.size.as_bytes());
        put(136, b"14524770400");
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.target[..self.target.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, self.device.0.as_bytes());
        put(337, self.device.1.as_bytes());
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    }
}

impl Archive {
    pub fn header(mut self, header: Header) -> Self {
        self.bytes.extend_from_slice(&header.encode());
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: impl AsRef<[u8]>, data: &[u8]) -> Self {
        let header = Header { size: format!("{:o}", data.len()), mode: "0000644", ..Header::new(b'0', path) };
        self.header(header).data(data)
    }

    pub fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.header(Header::new(b'5', path))
    }

    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref().to_vec();
        self.header(Header { target, mode: "0000777", ..Header::new(b'2', path) })
    }

    pub fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.header(Header { target: target.as_ref().to_vec(), ..Header::new(b'1', path) })
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let header = Header { size: format!("{:o}", data.len()), ..Header::new(b'x', "pax") };
        self.header(header).data(&data)
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..6).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    let mut record = format!("{} {key}=", length.unwrap()).into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// Bytes that look random and are the same on every run.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64: good enough that nothing compresses it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
