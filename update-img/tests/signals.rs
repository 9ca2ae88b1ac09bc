// SPDX-License-Identifier: GPL-2.0-only
//! Signals and limits. Each test starts this very program once more, with the name of its part as an argument,
//! as a process that can be ended.

use nix::libc;
use nix::sys::signal::{kill, signal, SigHandler, Signal};
use nix::unistd::Pid;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;
use update_img::stage::Stage;
use update_img::{copy, signals};

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
    println!("signals: 3 tests passed");
}

/// A child comes to a stage, says so, and stays there.
fn play(part: &str) {
    signals::watch(&STAGE).unwrap();
    match part {
        "untouched" => {}
        "writing" => STAGE.writing(),
        "updated" => STAGE.updated(),
        "comparing" => STAGE.comparing(),
        path => return limited(path),
    }
    eprintln!("ready");
    loop {
        thread::sleep(Duration::from_secs(60));
    }
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
