//! Extended headers: records `LENGTH KEY=VALUE\n`, where the value may be any bytes.

use super::{TarError, Time, sparse::Extent};

/// Records in the order of the archive; of equal keys the last counts, but for sparse maps.
#[derive(Debug, Clone, Default)]
pub struct Records(Vec<(Vec<u8>, Vec<u8>)>);

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    pub fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or(TarError::Pax)?;
            let length = usize::try_from(decimal(&bytes[..space]).ok_or(TarError::Pax)?);
            let (record, rest) =
                length.ok().and_then(|at| bytes.split_at_checked(at)).ok_or(TarError::Pax)?;
            let body =
                record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n")).ok_or(TarError::Pax)?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or(TarError::Pax)?;
            records.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
            bytes = rest;
        }
        Ok(Self(records))
    }

    /// These records, and those of the global header that they do not replace.
    pub fn over(mut self, global: &Self) -> Self {
        let replaced = |key: &[u8], local: &Self| local.0.iter().any(|(other, _)| other == key);
        let kept = global.0.iter().filter(|(key, _)| !replaced(key, &self)).cloned().collect::<Vec<_>>();
        self.0.splice(0..0, kept);
        self
    }

    fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().rev().find(|(other, _)| other == key.as_bytes())?;
        Some(value)
    }

    /// A value that is not empty; an empty one means that the header's field counts.
    pub fn text(&self, key: &str) -> Option<Vec<u8>> {
        self.get(key).filter(|value| !value.is_empty()).map(<[u8]>::to_vec)
    }

    pub fn number(&self, key: &'static str) -> Result<Option<u64>, TarError> {
        let Some(value) = self.get(key).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        // Half the range, so that padding never overflows.
        let number = decimal(value).filter(|number| *number <= u64::MAX / 4);
        number.map(Some).ok_or(TarError::Number(key))
    }

    pub fn time(&self, key: &'static str) -> Result<Option<Time>, TarError> {
        let Some(value) = self.get(key).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        parse_time(value).map(Some).ok_or(TarError::Number(key))
    }

    pub fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pairs = self.0.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(XATTR)?;
            Some((name.to_vec(), value.clone()))
        });
        let sorted: std::collections::BTreeMap<_, _> = pairs.collect();
        sorted.into_iter().collect()
    }

    /// Whether the map stands before the data (GNU's format 1.0).
    pub fn is_sparse_1_0(&self) -> bool {
        self.get("GNU.sparse.major") == Some(b"1") && self.get("GNU.sparse.minor") == Some(b"0")
    }

    pub fn sparse_size(&self) -> Result<u64, TarError> {
        let size = self.number("GNU.sparse.realsize")?;
        size.or(self.number("GNU.sparse.size")?).ok_or(TarError::Sparse)
    }

    /// The map of GNU's formats 0.0 (pairs of records) and 0.1 (one record), if the file has one.
    pub fn sparse_map(&self) -> Result<Option<(Vec<Extent>, u64)>, TarError> {
        let numbers = if let Some(map) = self.get("GNU.sparse.map") {
            map.split(|byte| *byte == b',').filter(|part| !part.is_empty()).map(decimal).collect()
        } else if self.get("GNU.sparse.size").is_some() {
            let is_part = |key: &[u8]| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes";
            self.0.iter().filter(|(key, _)| is_part(key)).map(|(_, value)| decimal(value)).collect()
        } else {
            return Ok(None);
        };
        let numbers: Option<Vec<u64>> = numbers;
        let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0).ok_or(TarError::Sparse)?;
        let extents =
            numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], bytes: pair[1] }).collect();
        Ok(Some((extents, self.sparse_size()?)))
    }
}

pub fn decimal(bytes: &[u8]) -> Option<u64> {
    let fold = |value: u64, byte: &u8| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    };
    if bytes.is_empty() { None } else { bytes.iter().try_fold(0, fold) }
}

/// Seconds with a sign and any number of decimals; what is finer than a nanosecond is dropped downwards.
fn parse_time(bytes: &[u8]) -> Option<Time> {
    let (negative, digits) = match bytes.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, bytes),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |place: usize| u32::from(fraction.get(place).map_or(0, |byte| byte - b'0'));
    let nanos = (0..9).fold(0, |value, place| value * 10 + digit(place));
    match (negative, nanos) {
        (false, _) => Some(Time { seconds, nanos }),
        (true, 0) => Some(Time { seconds: -seconds, nanos }),
        (true, _) => Some(Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos }),
    }
}
