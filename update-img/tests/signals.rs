// SPDX-License-Identifier: GPL-2.0-only
//! Signals and limits. Each test starts this very program once more, with the name of its part as an argument,
//! as a process that can be ended.

use clap::Parser;
use ioctl_abi::cow::{Header, FLAG_CLEAN, FLAG_INDEX_ONLY, HEADER_V1_BYTES};
use nix::libc;
use nix::sys::signal::{kill, signal, SigHandler, Signal};
use nix::unistd::Pid;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;
use update_img::check::{self, Driver, Running};
use update_img::cli::Cli;
use update_img::record::{self, Found, Record, Stamp, State};
use update_img::stage::Stage;
use update_img::{copy, ledger, run, signals};

/// Which part a child plays.
const PART: &str = "UPDATE_IMG_TEST_PART";

static STAGE: Stage = Stage::new();

fn main() {
    if let Ok(part) = env::var(PART) {
        return play(&part);
    }
    // Whoever runs the tests may have some of them ignored, and children inherit that.
    for s in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGXFSZ,
    ] {
        // SAFETY: no handler is installed.
        unsafe { signal(s, SigHandler::SigDfl) }.unwrap();
    }
    a_signal_ends_it_and_it_says_what_state_the_image_is_in();
    a_signal_that_was_ignored_stays_ignored();
    a_limit_of_file_size_is_an_error_not_a_death();
    a_half_update_notes_when_it_wrote_last();
    with_nobody_to_be_told_a_signal_ends_it_too();
    println!("signals: 5 tests passed");
}

/// A child comes to a stage, says so, and stays there.
fn play(part: &str) {
    signals::watch(&STAGE).unwrap();
    match part {
        "untouched" => {}
        "writing" => STAGE.write(|| ()).unwrap(),
        "updated" => STAGE.updated().unwrap(),
        "comparing" => STAGE.comparing(),
        part => match part.split_once(':') {
            Some(("recorded", dir)) => recorded(Path::new(dir)),
            Some(("refused", dir)) => return half(Path::new(dir)),
            _ => return limited(part),
        },
    }
    eprintln!("ready");
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

/// Snapshot 2 of a device, whose image is of snapshot 1.
struct Device;

impl Driver for Device {
    fn running(&self, _: &Path) -> anyhow::Result<Running> {
        Ok(Running {
            uuid: [9; 16],
            seqid: 2,
            nonce: 5,
            own: Vec::new(),
            origin: None,
        })
    }
}

/// Snapshot, COW file and image in `dir`: two blocks, both of them changed.
fn furnish(dir: &Path) {
    fs::write(dir.join("snapshot"), [2; 8192]).unwrap();
    fs::write(dir.join("image"), [1; 8192]).unwrap();
    let header = Header {
        flags: FLAG_CLEAN | FLAG_INDEX_ONLY,
        seqid: 1,
        uuid: [9; 16],
        version: 1,
        ..Header::default()
    };
    let mut cow = vec![0; 4096 + 32768];
    cow[..HEADER_V1_BYTES].copy_from_slice(&header.encode());
    for block in 0..2 {
        cow[4096 + block * 8] = 1;
    }
    fs::write(dir.join("cow"), cow).unwrap();
}

/// In the midst of an update of a recorded image: one write was done, another one takes its time.
fn recorded(dir: &Path) {
    let pair = check::open(&Device, &dir.join("snapshot"), &dir.join("image"), true).unwrap();
    let files = check::chain(&[dir.join("cow")], &pair).unwrap();
    STAGE.keep(Arc::new(ledger::open(&pair, &files, false, true).unwrap()));
    let image = pair.image;
    STAGE
        .write(|| image.write_all_at(b"x", 0))
        .unwrap()
        .unwrap();
    let (begun, begins) = mpsc::channel();
    thread::spawn(move || {
        let late = || {
            begun.send(()).unwrap();
            thread::sleep(Duration::from_millis(700));
            image.write_all_at(b"y", 1)
        };
        STAGE.write(late).unwrap().unwrap();
    });
    begins.recv().unwrap();
}

/// An update that fails half way, by a limit of file size.
fn half(dir: &Path) {
    let paths = ["snapshot", "cow", "image"].map(|name| dir.join(name));
    let words = ["update-img", "--queue-depth=1"].map(PathBuf::from);
    let cli = Cli::try_parse_from(words.iter().chain(&paths)).unwrap();
    let error = run::run(&cli, &Device, &STAGE, &mut std::io::sink()).unwrap_err();
    eprintln!("{error:#}");
}

/// Copies two blocks to an image that may not be written to behind the first.
fn limited(path: &str) {
    let runs = [Ok::<_, std::io::Error>(ioctl_abi::ioctl::Extent {
        start: 0,
        len: 2,
    })];
    let from = fs::File::open("/dev/zero").unwrap();
    let to = fs::OpenOptions::new().write(true).open(path).unwrap();
    let bar = indicatif::ProgressBar::hidden();
    let error = copy::copy(&from, &to, 8192, runs.into_iter(), 1, &bar, &STAGE).unwrap_err();
    eprintln!("{error:#}");
}

/// Starts a part by a shell that prepares it; what it says once it is ready, and how it ends.
fn child(part: &str, prepare: &str, signal: Option<Signal>) -> (String, ExitStatus) {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("{prepare} exec \"$0\""))
        .arg(env::current_exe().unwrap())
        .env(PART, part)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    if let Some(signal) = signal {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        if signal_is_ignored(prepare) {
            thread::sleep(Duration::from_millis(300));
            assert_eq!(
                child.try_wait().unwrap(),
                None,
                "ended by what is to be ignored"
            );
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        }
    }
    said.read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap())
}

fn signal_is_ignored(prepare: &str) -> bool {
    prepare.starts_with("trap ''")
}

fn a_signal_ends_it_and_it_says_what_state_the_image_is_in() {
    for (part, signal, code, word) in [
        ("untouched", Signal::SIGINT, 130, "the image is untouched"),
        ("writing", Signal::SIGINT, 130, "PARTLY UPDATED"),
        (
            "writing",
            Signal::SIGTERM,
            143,
            "Run the same command again",
        ),
        ("writing", Signal::SIGHUP, 129, "PARTLY UPDATED"),
        (
            "updated",
            Signal::SIGTERM,
            143,
            "the image is updated and on disk",
        ),
        ("comparing", Signal::SIGINT, 130, "nothing was written"),
    ] {
        let (said, status) = child(part, "", Some(signal));
        assert_eq!(status.code(), Some(code), "{part}, {signal}: {status}");
        assert!(said.contains(word), "{part}, {signal}: {said}");
        assert!(said.contains(signal.as_str()), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// A terminal that has hung up, a pipe whose reader has gone.
fn with_nobody_to_be_told_a_signal_ends_it_too() {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(PART, "writing")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        drop(said);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        for _ in 0..100 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        // So that it is not left behind if it does not end by itself.
        let _ = child.kill();
        let status = child.wait().unwrap();
        assert_eq!(
            status.code(),
            Some(128 + signal as i32),
            "{signal}: {status}"
        );
    }
}

/// As nohup does it, and a shell for what it starts in the background.
fn a_signal_that_was_ignored_stays_ignored() {
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        let prepare = format!("trap '' {};", &signal.as_str()[3..]);
        let (said, status) = child("writing", &prepare, Some(signal));
        assert_eq!(status.code(), Some(143), "{said}");
        assert!(said.contains("SIGTERM"), "{said}");
    }
}

fn a_limit_of_file_size_is_an_error_not_a_death() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, [1; 8192]).unwrap();
    // POSIX shells count in 512 bytes.
    let (said, status) = child(image.to_str().unwrap(), "ulimit -f 8;", None);
    assert_ne!(status.signal(), Some(libc::SIGXFSZ));
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("ulimit -f"), "{said}");
    let bytes = fs::read(&image).unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == 0) && bytes[4096..].iter().all(|b| *b == 1));
}

/// Then a full copy over the image is known for what it is.
fn a_half_update_notes_when_it_wrote_last() {
    for (part, signal, code, prepare) in [
        ("recorded", Some(Signal::SIGTERM), 143, ""),
        ("refused", None, 0, "ulimit -f 8;"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        furnish(dir.path());
        let image = dir.path().join("image");
        let part = format!("{part}:{}", dir.path().display());
        let (said, status) = child(&part, prepare, signal);
        assert_eq!(status.code(), Some(code), "{part}: {said}");
        assert!(said.contains("PARTLY UPDATED"), "{said}");
        let bytes = fs::read(&image).unwrap();
        if signal.is_some() {
            // What was under way when the signal came was waited for.
            assert_eq!(&bytes[..3], b"xy\x01", "{part}");
        } else {
            assert!(bytes[..4096].iter().all(|b| *b == 2) && bytes[4096..].iter().all(|b| *b == 1));
        }
        let image = fs::File::open(&image).unwrap();
        let now = Stamp::of(&image.metadata().unwrap());
        match record::read(&image).unwrap() {
            Found::Record(Record {
                state: State::Updating(from, to),
                stamp,
            }) => {
                assert_eq!((from.seqid, to.seqid, to.nonce), (1, 2, 5));
                assert_eq!(stamp, Some(now), "{part}");
            }
            other => panic!("{part}: {other:?}"),
        }
    }
}
