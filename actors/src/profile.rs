//! What starts read of an image, as parts of its files.
//!
//! Paths and ranges rather than places in a block image, so that a profile survives a new layout and most of
//! it a new version of the image. Metadata is no part of it: every start needs all of it, before anything else.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    str::FromStr,
    sync::Arc,
};
use utoipa::ToSchema;

/// The most parts of a profile. A start of Python with SciPy reads some thousand.
pub const PARTS_MAX: usize = 16_384;
/// The most bytes of all paths of a profile, counted for each part, so that a row of the metadata store
/// holds one.
pub const PATH_BYTES_MAX: usize = 1 << 20;
/// The largest file that a block image can hold.
const FILE_BYTES_MAX: u64 = crate::image::BLOCKS_MAX as u64 * crate::image::BLOCK_BYTES as u64;
/// `PATH_MAX` of Linux, less the final NUL.
const ONE_PATH_BYTES_MAX: usize = 4095;
/// `NAME_MAX` of Linux.
const NAME_BYTES_MAX: usize = 255;

/// The path of a file within an image, from its root: bytes, as Linux has them. As text, `%` and bytes that
/// are not UTF-8 are written as `%` and two hexadecimal digits, so that no byte is lost.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^/")]
pub struct FilePath(Arc<[u8]>);

impl FilePath {
    /// Checks a path: from the root, by names that a directory can have.
    pub fn new(bytes: &[u8]) -> Result<Self, ProfileError> {
        let is_name = |name: &[u8]| {
            !matches!(name, b"" | b"." | b"..") && name.len() <= NAME_BYTES_MAX && !name.contains(&0)
        };
        let names = bytes.strip_prefix(b"/").filter(|_| bytes.len() <= ONE_PATH_BYTES_MAX);
        let is_path = names.is_some_and(|names| names.split(|byte| *byte == b'/').all(is_name));
        if is_path { Ok(Self(bytes.into())) } else { Err(ProfileError::Path(escape(bytes))) }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names that lead from the root to the file.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0[1..].split(|byte| *byte == b'/')
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl FromStr for FilePath {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let bytes = unescape(text).ok_or_else(|| ProfileError::Path(text.chars().take(80).collect()))?;
        Self::new(&bytes)
    }
}

impl TryFrom<String> for FilePath {
    type Error = ProfileError;

    fn try_from(text: String) -> Result<Self, ProfileError> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.to_string()
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let push_byte = |text: &mut String, byte: u8| text.push_str(&format!("%{byte:02x}"));
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '%' => push_byte(&mut text, b'%'),
                control if control.is_ascii_control() => push_byte(&mut text, control as u8),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            push_byte(&mut text, *byte);
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = behind;
    }
    Some(bytes)
}

/// A range of a file that starts read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub path: FilePath,
    /// First byte within the file.
    pub start: u64,
    /// The byte behind the last one; at least `start` + 1.
    pub end: u64,
    /// In how many recordings it is.
    #[serde(default = "one")]
    pub seen: u32,
    /// In how many of the latest recordings, one after the other, it was not.
    #[serde(default)]
    pub missed: u32,
}

fn one() -> u32 {
    1
}

impl Part {
    /// A part as one recording has it.
    pub fn new(path: FilePath, range: Range<u64>) -> Self {
        Self { path, start: range.start, end: range.end, seen: 1, missed: 0 }
    }

    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `next` is the rest of the same range: then one part says the same.
    fn goes_on_in(&self, next: &Self) -> bool {
        let same = (&self.path, self.end, self.seen, self.missed);
        same == (&next.path, next.start, next.seen, next.missed)
    }
}

/// What is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error(
        "{0:?} is not the path of a file in an image: begin with /, without empty names, `.`, `..` or NUL, \
         each name of at most {NAME_BYTES_MAX} bytes; write % as %25"
    )]
    Path(String),
    #[error("{path}: {start}..{end} is not a range of a file")]
    Range { path: FilePath, start: u64, end: u64 },
    #[error("{path}: it is seen in {seen} and missed in {missed} of {recordings} recordings")]
    Counts { path: FilePath, seen: u32, missed: u32, recordings: u32 },
    #[error("the profile has more than {PARTS_MAX} parts or more than {PATH_BYTES_MAX} bytes of paths")]
    TooLarge,
}

/// What starts read of an image, in the order of first use.
///
/// No two parts overlap, no path or range is out of bounds, and the limits above hold: checked whenever one
/// is made or decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Unchecked")]
pub struct Profile {
    recordings: u32,
    parts: Vec<Part>,
}

/// A profile as it comes from disk, the network or a user.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    recordings: u32,
    parts: Vec<Part>,
}

impl TryFrom<Unchecked> for Profile {
    type Error = ProfileError;

    fn try_from(Unchecked { recordings, parts }: Unchecked) -> Result<Self, ProfileError> {
        for part in &parts {
            let Part { path, start, end, seen, missed } = part;
            if start >= end || *end > FILE_BYTES_MAX {
                return Err(ProfileError::Range { path: path.clone(), start: *start, end: *end });
            }
            let counted = seen.checked_add(*missed);
            if *seen == 0 || counted.is_none_or(|counted| counted > recordings) {
                let (path, seen, missed) = (path.clone(), *seen, *missed);
                return Err(ProfileError::Counts { path, seen, missed, recordings });
            }
        }
        if within_limits(&parts) < parts.len() {
            return Err(ProfileError::TooLarge);
        }
        let parts = first_uses(parts);
        if within_limits(&parts) < parts.len() {
            return Err(ProfileError::TooLarge);
        }
        Ok(Self { recordings, parts })
    }
}

impl Profile {
    /// What one start read, in order. What is read again, and ranges that are none, count for nothing; what
    /// comes after the limits is left out.
    pub fn recorded(parts: impl IntoIterator<Item = (FilePath, Range<u64>)>) -> Self {
        let is_range = |range: &Range<u64>| range.start < range.end && range.end <= FILE_BYTES_MAX;
        let parts = parts.into_iter().filter(|(_, range)| is_range(range));
        let mut parts = first_uses(parts.map(|(path, range)| Part::new(path, range)).collect());
        parts.truncate(within_limits(&parts));
        Self { recordings: 1, parts }
    }

    /// In how many starts it was recorded.
    pub fn recordings(&self) -> u32 {
        self.recordings
    }

    /// In the order of first use.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::len).sum()
    }

    /// BLAKE3 of paths and ranges in their order, in hexadecimal digits: two profiles with the same one make
    /// the same block image.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update(part.path.as_bytes());
            hasher.update(&[0]);
            hasher.update(&part.start.to_le_bytes());
            hasher.update(&part.end.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Takes in a later recording.
    ///
    /// What is new comes behind what the recording read before it. A part goes when `missed_max` recordings,
    /// one after the other, did not have it: a single start may find something in a cache or take another way,
    /// and one from an image that is packed already has no reason to read anything twice. What comes after the
    /// limits is left out.
    pub fn merge(&mut self, recording: &Self, missed_max: u32) {
        let cuts = Cuts::of([&self.parts[..], &recording.parts[..]]);
        let mut known: Vec<Part> = Vec::new();
        let mut places: BTreeMap<(FilePath, u64), usize> = BTreeMap::new();
        for part in self.parts.iter().flat_map(|part| cuts.pieces(part)) {
            places.insert((part.path.clone(), part.start), known.len());
            known.push(Part { missed: part.missed.saturating_add(recording.recordings), ..part });
        }
        // New parts by the known one that they follow: 0 for none, else its place and one.
        let mut added: Vec<Vec<Part>> = vec![Vec::new(); known.len() + 1];
        let mut follows = 0;
        for part in recording.parts.iter().flat_map(|part| cuts.pieces(part)) {
            match places.get(&(part.path.clone(), part.start)) {
                Some(place) => {
                    known[*place].seen = known[*place].seen.saturating_add(part.seen);
                    known[*place].missed = part.missed;
                    follows = place + 1;
                }
                None => added[follows].push(part),
            }
        }
        self.recordings = self.recordings.saturating_add(recording.recordings);
        let mut added = added.into_iter();
        let mut parts: Vec<Part> = added.next().unwrap_or_default();
        for (known, added) in known.into_iter().zip(added) {
            if known.missed < missed_max {
                parts.push(known);
            }
            parts.extend(added);
        }
        join(&mut parts);
        parts.truncate(within_limits(&parts));
        self.parts = parts;
        debug_assert!(self.parts.iter().all(|part| part.start < part.end), "no part is empty");
    }
}

/// How many of the parts, from the first, the limits allow.
fn within_limits(parts: &[Part]) -> usize {
    let mut bytes = 0;
    let fits = |part: &Part| {
        bytes += part.path.as_bytes().len();
        bytes <= PATH_BYTES_MAX
    };
    parts.iter().take(PARTS_MAX).map(fits).take_while(|fits| *fits).count()
}

/// Leaves out what an earlier part covers.
fn first_uses(parts: Vec<Part>) -> Vec<Part> {
    let mut covered: BTreeMap<FilePath, Covered> = BTreeMap::new();
    let mut first = Vec::new();
    for part in parts {
        for Range { start, end } in covered.entry(part.path.clone()).or_default().take(part.start..part.end) {
            first.push(Part { start, end, ..part.clone() });
        }
    }
    join(&mut first);
    first
}

/// Ranges that were met already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Covered {
    /// Ends by their starts; none touch.
    ranges: BTreeMap<u64, u64>,
}

impl Covered {
    /// Covers a range, and says what of it was not covered before.
    pub fn take(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let (mut known, mut whole) = (Vec::new(), range.clone());
        let touching = |(start, end): (&u64, &u64)| (*end >= range.start).then_some((*start, *end));
        while let Some((start, end)) = self.ranges.range(..=range.end).next_back().and_then(touching) {
            self.ranges.remove(&start);
            known.push((start, end));
            whole = whole.start.min(start)..whole.end.max(end);
        }
        self.ranges.insert(whole.start, whole.end);
        let (mut new, mut from) = (Vec::new(), range.start);
        for (start, end) in known.into_iter().rev() {
            if from < start {
                new.push(from..start);
            }
            from = from.max(end);
        }
        if from < range.end {
            new.push(from..range.end);
        }
        new
    }

    /// Whether everything from 0 up to `end` is covered.
    pub fn is_all_of(&self, end: u64) -> bool {
        self.ranges.get(&0).is_some_and(|covered| *covered >= end)
    }
}

/// Makes one of parts that say the same of neighbouring ranges.
fn join(parts: &mut Vec<Part>) {
    parts.dedup_by(|next, part| {
        let is_joined = part.goes_on_in(next);
        if is_joined {
            part.end = next.end;
        }
        is_joined
    });
}

/// Where parts of a file begin and end, so that pieces of two profiles are equal or apart.
struct Cuts(BTreeMap<FilePath, BTreeSet<u64>>);

impl Cuts {
    fn of(profiles: [&[Part]; 2]) -> Self {
        let mut cuts: BTreeMap<FilePath, BTreeSet<u64>> = BTreeMap::new();
        for part in profiles.into_iter().flatten() {
            cuts.entry(part.path.clone()).or_default().extend([part.start, part.end]);
        }
        Self(cuts)
    }

    fn pieces(&self, part: &Part) -> Vec<Part> {
        let cuts = self.0.get(&part.path).into_iter().flat_map(|cuts| cuts.range(part.start..=part.end));
        let cuts: Vec<u64> = cuts.copied().collect();
        cuts.windows(2).map(|pair| Part { start: pair[0], end: pair[1], ..part.clone() }).collect()
    }
}

#[cfg(test)]
mod tests;
