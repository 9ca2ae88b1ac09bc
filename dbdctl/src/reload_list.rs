// SPDX-License-Identifier: GPL-2.0-only
//! The reload list: which devices are announced to the driver at the next boot, before their
//! filesystems are mounted. A text file, one line a device:
//!
//! ```text
//! minor=0 device=/dev/disk/by-uuid/2f6c… cow=/.datto1 next=/.datto mode=incremental
//! ```
//!
//! A value with other than plain characters is quoted: `"a b"`, with the escapes `\"`, `\\`, `\n`,
//! `\t` and `\xHH`. A path is bytes, not UTF-8. Keys that this version does not know, comments and
//! lines that it cannot read stay as they are when the list is written again.
//!
//! An initramfs reads the list of the root filesystem without a replay of the journal. So the file has
//! room to spare (empty lines) and is overwritten in place: new text in the same blocks is seen in any
//! case. A rename would be seen half: the folder's block as it was, the inode as it is now.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the list lies, on the root filesystem: an initramfs must find it.
pub const PATH: &str = "/etc/datto/dla/reload_devices";
/// A list is not larger than this.
pub const MAX_BYTES: u64 = 1 << 20;
/// The size of a list is a multiple of this: a block.
const ROOM: u64 = 4096;
/// `_IOW('f', 43, __u32)` of include/uapi/linux/ext4.h.
const EXT4_IOC_CHECKPOINT: u64 = 0x4004_662b;
/// How long to wait for another dbdctl that writes the list.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

const INTRO: &str = "\
# Devices that dbdctl announces to dattobd at boot, before they are mounted. dbdctl keeps this file.
";

/// What a device shows: which reload it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A snapshot.
    Snapshot,
    /// Changes only.
    Incremental,
}

impl Mode {
    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"snapshot" => Some(Self::Snapshot),
            b"incremental" => Some(Self::Incremental),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Incremental => "incremental",
        })
    }
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the device.
    pub minor: u32,
    /// A name of the block device that is the same at the next boot.
    pub device: PathBuf,
    /// The COW file, from the root of the device's filesystem on.
    pub cow: PathBuf,
    /// A COW file that a transition to snapshot is just making.
    pub next: Option<PathBuf>,
    /// Limit of the index cache in bytes, when it was given.
    pub cache: Option<u64>,
    /// The mode as the last successful command left it.
    pub mode: Option<Mode>,
    /// Keys of a later version, as they were.
    pub other: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// An entry with nothing but what it must have.
    pub fn new(minor: u32, device: PathBuf, cow: PathBuf) -> Self {
        Self {
            minor,
            device,
            cow,
            next: None,
            cache: None,
            mode: None,
            other: Vec::new(),
        }
    }

    /// The entry as a line, without its end.
    pub fn to_line(&self) -> Vec<u8> {
        let mut out = format!("minor={}", self.minor).into_bytes();
        let mut word = |key: &[u8], value: &[u8]| {
            out.push(b' ');
            out.extend(key);
            out.push(b'=');
            quote(value, &mut out);
        };
        word(b"device", self.device.as_os_str().as_bytes());
        word(b"cow", self.cow.as_os_str().as_bytes());
        if let Some(next) = &self.next {
            word(b"next", next.as_os_str().as_bytes());
        }
        if let Some(cache) = self.cache {
            word(b"cache", cache.to_string().as_bytes());
        }
        if let Some(mode) = self.mode {
            word(b"mode", mode.to_string().as_bytes());
        }
        for (key, value) in &self.other {
            word(key, value);
        }
        out
    }

    /// Reads a line; `None` is a comment or an empty line.
    ///
    /// # Errors
    ///
    /// What is wrong with the line.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, String> {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(None);
        }
        let (mut minor, mut device, mut cow) = (None, None, None);
        let mut entry = Self::new(0, PathBuf::new(), PathBuf::new());
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for (key, value) in words(line)? {
            let name = String::from_utf8_lossy(&key).into_owned();
            if seen.contains(&key) {
                return Err(format!("'{name}' is there twice"));
            }
            seen.push(key.clone());
            match key.as_slice() {
                b"minor" => minor = Some(number(&value).ok_or("'minor' is not a number")?),
                b"device" => device = Some(path(value, &name)?),
                b"cow" => cow = Some(path(value, &name)?),
                b"next" => entry.next = Some(path(value, &name)?),
                b"cache" => entry.cache = Some(number(&value).ok_or("'cache' is not a number")?),
                // A mode of a later version is as good as none.
                b"mode" => match Mode::parse(&value) {
                    Some(mode) => entry.mode = Some(mode),
                    None => entry.other.push((key, value)),
                },
                _ => entry.other.push((key, value)),
            }
        }
        entry.minor = minor.ok_or("'minor' is missing")?;
        entry.device = device.ok_or("'device' is missing")?;
        entry.cow = cow.ok_or("'cow' is missing")?;
        Ok(Some(entry))
    }
}

/// Digits only, as Rust also takes a sign.
fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn path(value: Vec<u8>, name: &str) -> Result<PathBuf, String> {
    if !value.starts_with(b"/") || value.contains(&0) {
        return Err(format!("'{name}' is not an absolute path"));
    }
    Ok(PathBuf::from(OsString::from_vec(value)))
}

/// Needs no quotes.
fn plain(b: u8) -> bool {
    b.is_ascii_graphic() && b != b'"' && b != b'\\'
}

fn quote(value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() && value.iter().all(|b| plain(*b)) {
        out.extend(value);
        return;
    }
    out.push(b'"');
    // Well-formed UTF-8 stays readable.
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend([b'\\', c as u8]),
                '\n' => out.extend(b"\\n"),
                '\t' => out.extend(b"\\t"),
                c if c.is_control() => c
                    .encode_utf8(&mut [0; 4])
                    .bytes()
                    .for_each(|b| out.extend(format!("\\x{b:02x}").bytes())),
                c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        for b in chunk.invalid() {
            out.extend(format!("\\x{b:02x}").bytes());
        }
    }
    out.push(b'"');
}

type Words = Vec<(Vec<u8>, Vec<u8>)>;

/// Splits a line into its keys and values.
fn words(line: &[u8]) -> Result<Words, String> {
    let mut all = Vec::new();
    let mut rest = line.trim_ascii_start();
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|b| *b == b'=' || b.is_ascii_whitespace())
            .filter(|n| rest.get(*n) == Some(&b'='))
            .ok_or_else(|| {
                let word = rest.split(u8::is_ascii_whitespace).next();
                format!(
                    "'{}' is not key=value",
                    String::from_utf8_lossy(word.unwrap_or(rest))
                )
            })?;
        let (key, tail) = rest.split_at(end);
        if key.is_empty() || !key.iter().all(|b| plain(*b)) {
            return Err("a key has characters that are not allowed".to_owned());
        }
        let (value, tail) = value(tail.get(1..).unwrap_or_default())?;
        all.push((key.to_vec(), value));
        rest = tail.trim_ascii_start();
    }
    Ok(all)
}

/// A value, and what follows it.
fn value(text: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let end = text
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        // Bytes above 127 are taken as they are: people write such names without quotes.
        if value.iter().any(|b| b.is_ascii() && !plain(*b)) {
            return Err(
                "a value with quotes, backslashes or control characters must be quoted as a whole"
                    .to_owned(),
            );
        }
        return Ok((value.to_vec(), rest));
    };
    let mut out = Vec::new();
    loop {
        match rest {
            [b'"', tail @ ..] => {
                if tail.first().is_some_and(|b| !b.is_ascii_whitespace()) {
                    return Err("no space behind a closing quote".to_owned());
                }
                return Ok((out, tail));
            }
            [b'\\', b'x', high, low, tail @ ..] => {
                let digit = |b: &u8| (*b as char).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else {
                    return Err("\\x wants two hexadecimal digits".to_owned());
                };
                out.push((high * 16 + low) as u8);
                rest = tail;
            }
            [b'\\', c, tail @ ..] => {
                out.push(match c {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'"' | b'\\' => *c,
                    _ => return Err(format!("unknown escape \\{}", char::from(*c))),
                });
                rest = tail;
            }
            [b'\\'] | [] => return Err("a closing quote is missing".to_owned()),
            [c, tail @ ..] => {
                out.push(*c);
                rest = tail;
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    raw: Vec<u8>,
    entry: Result<Option<Entry>, String>,
}

/// All lines of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(Vec<Line>);

impl List {
    /// Never fails: see [`List::problems`].
    pub fn parse(text: &[u8]) -> Self {
        // What follows the last line is room.
        let end = text.iter().rposition(|b| *b != b'\n').map_or(0, |n| n + 1);
        let text = text.get(..end).unwrap_or_default();
        if text.is_empty() {
            return Self::default();
        }
        Self(
            text.split(|b| *b == b'\n')
                .map(|raw| Line {
                    raw: raw.to_vec(),
                    entry: Entry::parse(raw),
                })
                .collect(),
        )
    }

    /// The list as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for line in &self.0 {
            out.extend(&line.raw);
            out.push(b'\n');
        }
        out
    }

    /// All devices.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0
            .iter()
            .filter_map(|l| l.entry.as_ref().ok()?.as_ref())
    }

    /// Lines that could not be read: the number of the line, and why.
    pub fn problems(&self) -> impl Iterator<Item = (usize, &str)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(n, l)| Some((n + 1, l.entry.as_ref().err()?.as_str())))
    }

    /// The entry of a device; the last one counts.
    pub fn get(&self, minor: u32) -> Option<&Entry> {
        self.entries().filter(|e| e.minor == minor).last()
    }

    /// Replaces the entry of `entry.minor`, or adds one.
    pub fn put(&mut self, entry: Entry) {
        let line = Line {
            raw: entry.to_line(),
            entry: Ok(Some(entry.clone())),
        };
        let mut line = Some(line);
        let minor = entry.minor;
        self.0.retain_mut(|l| {
            if !matches!(&l.entry, Ok(Some(e)) if e.minor == minor) {
                return true;
            }
            // The first place is kept, a second entry of the same device goes.
            match line.take() {
                Some(new) => {
                    *l = new;
                    true
                }
                None => false,
            }
        });
        if self.0.is_empty() {
            let intro = INTRO.trim_end().as_bytes().to_vec();
            self.0.push(Line {
                raw: intro,
                entry: Ok(None),
            });
        }
        self.0.extend(line);
    }

    /// Keeps only the entries that `keep` says; other lines stay.
    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.0.retain(|l| match &l.entry {
            Ok(Some(e)) => keep(e),
            _ => true,
        });
    }

    /// Removes the entry of a device.
    pub fn remove(&mut self, minor: u32) {
        self.retain(|e| e.minor != minor);
    }
}

/// Reads a list. A file that is not there is an empty list.
///
/// # Errors
///
/// It cannot be read, or is too large to be one.
pub fn read(path: &Path) -> io::Result<List> {
    match File::open(path) {
        Ok(file) => read_from(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(List::default()),
        Err(e) => Err(e),
    }
}

/// Reads a list from an open file.
///
/// # Errors
///
/// As [`read`].
pub fn read_from(file: File) -> io::Result<List> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("larger than 1 MiB: this is no list"));
    }
    Ok(List::parse(&text))
}

/// Waits for the lock that lies on the folder; it ends with the file.
fn lock(folder: &File) -> io::Result<()> {
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        // SAFETY: flock takes no pointers.
        let r = unsafe {
            nix::libc::flock(folder.as_raw_fd(), nix::libc::LOCK_EX | nix::libc::LOCK_NB)
        };
        if r == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        if Instant::now() > until {
            return Err(io::Error::other("another process keeps it locked"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Changes a list. It is on disk when this returns.
///
/// # Errors
///
/// Nothing was changed, unless the disk failed.
pub fn update(path: &Path, change: impl FnOnce(&mut List)) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let dir = File::open(folder)?;
    lock(&dir)?;
    let before = read(path)?;
    let mut list = before.clone();
    change(&mut list);
    if list == before {
        return Ok(());
    }
    let text = list.to_bytes();
    if overwrite(path, &text)? {
        return Ok(());
    }
    replace(path, &dir, text)
}

/// Writes into the blocks that the file has. Returns whether they were enough. A list of one block, as
/// most are, is written whole or not at all.
fn overwrite(path: &Path, text: &[u8]) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len();
    if size > MAX_BYTES || size % ROOM != 0 || size < text.len() as u64 {
        return Ok(false);
    }
    let mut text = text.to_vec();
    text.resize(size as usize, b'\n');
    file.write_all_at(&text, 0)?;
    file.sync_data()?;
    Ok(true)
}

/// Writes a new file with room to spare.
fn replace(path: &Path, dir: &File, mut text: Vec<u8>) -> io::Result<()> {
    let size = (text.len() as u64 + ROOM / 2).next_multiple_of(ROOM);
    if size > MAX_BYTES {
        return Err(io::Error::other("it would become larger than 1 MiB"));
    }
    text.resize(size as usize, b'\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temp = path.with_file_name(name);
    let result = (|| {
        // One left over from a crash, or a trap.
        match fs::remove_file(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temp)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        dir.sync_all()?;
        // ext4 empties its journal. Where that is not possible, the freeze of the next snapshot does.
        let flags = 0u32;
        // SAFETY: the call reads one u32; any other filesystem refuses it.
        unsafe { nix::libc::ioctl(dir.as_raw_fd(), EXT4_IOC_CHECKPOINT as _, &flags) };
        Ok(())
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temp);
    }
    result
}

#[cfg(test)]
mod tests;
