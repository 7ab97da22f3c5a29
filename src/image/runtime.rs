//! How an image is run: its configuration, with users and groups looked up in the image's own files, so
//! that a start needs to read none of them.

use crate::image::manifest::ProcessConfig;
use faasnet_actors::image::RuntimeConfig;
use std::collections::BTreeMap;

/// What Docker gives to images that set no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// SIGTERM.
const DEFAULT_STOP_SIGNAL: i32 = 15;

/// Why the configuration of an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    #[error("the image runs as user {0:?}, who is not in its /etc/passwd")]
    UnknownUser(String),
    #[error("the image runs in group {0:?}, which is not in its /etc/group")]
    UnknownGroup(String),
    #[error("the image's variable {0:?} is not of the form NAME=VALUE")]
    Variable(String),
    #[error("the image's working directory {0:?} is not absolute")]
    WorkingDirectory(String),
    #[error("the image's stop signal {0:?} is not known")]
    StopSignal(String),
}

/// The files of the image that name users and groups; empty where it has none.
#[derive(Debug, Clone, Default)]
pub struct AccountFiles {
    pub passwd: Vec<u8>,
    pub group: Vec<u8>,
}

/// Takes the configuration over.
pub fn runtime_config(config: &ProcessConfig, files: &AccountFiles) -> Result<RuntimeConfig, RuntimeError> {
    let (uid, gid, additional_gids) = user(&config.user, files)?;
    Ok(RuntimeConfig {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: environment(&config.env)?,
        cwd: working_directory(&config.working_dir)?,
        uid,
        gid,
        additional_gids,
        stop_signal: stop_signal(&config.stop_signal)?,
    })
}

fn environment(variables: &[String]) -> Result<BTreeMap<String, String>, RuntimeError> {
    let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    for variable in variables {
        let pair = variable.split_once('=').filter(|(name, _)| !name.is_empty());
        let pair = pair.filter(|_| !variable.contains('\0'));
        let (name, value) = pair.ok_or_else(|| RuntimeError::Variable(variable.clone()))?;
        env.insert(name.to_owned(), value.to_owned());
    }
    Ok(env)
}

fn working_directory(stated: &str) -> Result<String, RuntimeError> {
    match stated {
        "" => Ok("/".to_owned()),
        _ if stated.starts_with('/') && !stated.contains('\0') => Ok(stated.to_owned()),
        _ => Err(RuntimeError::WorkingDirectory(stated.to_owned())),
    }
}

/// A line of `/etc/passwd`: name, user, group.
struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
}

/// A line of `/etc/group`: name, group, names of members.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// User, group and further groups of `USER[:GROUP]`, by the rules of Docker: a number needs no line in
/// the files, and who names a group gets no further ones.
fn user(stated: &str, files: &AccountFiles) -> Result<(u32, u32, Vec<u32>), RuntimeError> {
    let (user, group) = match stated.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (stated, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok().filter(|number| *number < u32::MAX);
    let is_user = |account: &Account<'_>| account.name == user.as_bytes() || Some(account.uid) == number;
    let account = accounts(&files.passwd).find(is_user);
    let uid = account.as_ref().map(|account| account.uid).or(number);
    let uid = uid.ok_or_else(|| RuntimeError::UnknownUser(user.to_owned()))?;
    if let Some(stated) = group {
        return group_number(stated, files).map(|gid| (uid, gid, Vec::new()));
    }
    let Some(account) = account else {
        return Ok((uid, 0, Vec::new()));
    };
    let is_member =
        |group: &Group<'_>| group.members.split(|byte| *byte == b',').any(|name| name == account.name);
    let gids = groups(&files.group).filter(is_member).map(|group| group.gid);
    Ok((uid, account.gid, gids.collect()))
}

fn group_number(stated: &str, files: &AccountFiles) -> Result<u32, RuntimeError> {
    let number = stated.parse::<u32>().ok().filter(|number| *number < u32::MAX);
    let found = groups(&files.group).find(|group| group.name == stated.as_bytes()).map(|group| group.gid);
    found.or(number).ok_or_else(|| RuntimeError::UnknownGroup(stated.to_owned()))
}

/// Lines that make no sense are skipped, as the C library does.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|fields| match fields[..] {
        [name, _, uid, gid, ..] => Some(Account { name, uid: decimal(uid)?, gid: decimal(gid)? }),
        _ => None,
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|fields| match fields[..] {
        [name, _, gid] => Some(Group { name, gid: decimal(gid)?, members: b"" }),
        [name, _, gid, members, ..] => Some(Group { name, gid: decimal(gid)?, members }),
        _ => None,
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

fn decimal(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Numbers of Linux, alike on all machines but MIPS and Alpha.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// First and last real-time signal of the C library.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

fn stop_signal(stated: &str) -> Result<i32, RuntimeError> {
    if stated.is_empty() {
        return Ok(DEFAULT_STOP_SIGNAL);
    }
    let upper = stated.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Ok(number) = name.parse() {
        Some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest).and_then(|offset| REAL_TIME.start().checked_add(offset))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest).and_then(|offset| REAL_TIME.end().checked_add(offset))
    } else {
        SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    let number = number.filter(|number| (1..=31).contains(number) || REAL_TIME.contains(number));
    number.ok_or_else(|| RuntimeError::StopSignal(stated.to_owned()))
}
