// SPDX-License-Identifier: GPL-2.0-only
//! The command line on a machine without the driver: bad input, help, completions, man pages.

use ioctl_abi::cow::{
    Extension, Header, EXT_BYTES, EXT_OFFSET, EXT_STATE_VOLATILE, FLAG_CLEAN, FLAG_INDEX_ONLY,
};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

fn dbdctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dbdctl"))
        .args(args)
        .output()
        .unwrap()
}

fn stderr(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

#[test]
fn help_and_version_succeed() {
    for args in [
        &["help"][..],
        &["--help"],
        &["--version"],
        &["help", "setup-snapshot"],
        &["info", "--help"],
    ] {
        let o = dbdctl(args);
        assert!(o.status.success(), "{args:?}");
        assert!(!o.stdout.is_empty());
    }
}

/// Not with that of a panic.
#[test]
fn with_a_stderr_that_takes_nothing_the_exit_code_is_the_same() {
    for (args, code) in [(&["changed", "/nonexistent"][..], 255), (&["destroy"], 2)] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_dbdctl"))
            .args(args)
            .stderr(full)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn each_page_says_what_to_type_and_names_pages_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let o = dbdctl(&["man", dir.path().to_str().unwrap()]);
    assert!(o.status.success(), "{}", stderr(&o));
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let sub = page("dbdctl-setup-snapshot.8");
    assert!(sub.contains("dbdctl setup\\-snapshot"), "{sub}");
    assert!(sub.contains("no\\-boot\\-list"), "{sub}");
    let all = page("dbdctl.8");
    for line in all
        .lines()
        .filter(|l| l.starts_with("dbdctl") && l.ends_with("(8)"))
    {
        let name = line.replace('\\', "").replace("(8)", ".8");
        assert!(dir.path().join(&name).exists(), "{name}");
    }
    assert!(all.contains("dbdctl\\-setup\\-snapshot(8)"), "{all}");
}

#[test]
fn usage_mistakes_fail_and_say_why() {
    for args in [
        &[][..],
        &["no-such-command"],
        &["destroy"],
        &["destroy", "x"],
        &["destroy", "-1"],
        &["destroy", "99999999999"],
        &["setup-snapshot", "/dev/x", "/.datto"],
        &["setup-snapshot", "-f", "10Q", "/dev/x", "/.datto", "0"],
        &[
            "setup-snapshot",
            "-f",
            "1.0000001M",
            "/dev/x",
            "/.datto",
            "0",
        ],
        &["expand-cow-file", "", "0"],
        &["info", "0", "1"],
    ] {
        let o = dbdctl(args);
        assert!(!o.status.success(), "{args:?}");
        assert!(!stderr(&o).is_empty(), "{args:?}");
        assert!(o.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn without_the_module_it_says_what_to_do() {
    if std::path::Path::new("/dev/datto-ctl").exists() {
        return;
    }
    for args in [
        &["destroy", "0"][..],
        &["info"],
        &["free-minor"],
        &["hand-over"],
        &["changed", "0"],
        &["setup-snapshot", "/dev/sda1", "/.datto", "0"],
    ] {
        let o = dbdctl(args);
        assert_eq!(o.status.code(), Some(255), "{args:?}");
        assert!(
            stderr(&o).contains("modprobe dattobd"),
            "{args:?}: {}",
            stderr(&o)
        );
    }
}

#[test]
fn changed_refuses_what_is_no_sealed_cow_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, vec![0u8; 8192]).unwrap();
    let o = dbdctl(&["changed", path.to_str().unwrap()]);
    assert_eq!(o.status.code(), Some(255));
    assert!(stderr(&o).contains("wrong magic"), "{}", stderr(&o));
    assert!(o.stdout.is_empty());
}

#[test]
fn completions_and_man_pages_come_out() {
    for shell in ["bash", "zsh", "fish"] {
        let o = dbdctl(&["completions", shell]);
        assert!(o.status.success());
        assert!(String::from_utf8_lossy(&o.stdout).contains("transition-to-snapshot"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(dbdctl(&["man", dir.path().to_str().unwrap()])
        .status
        .success());
    for page in ["dbdctl.8", "dbdctl-setup-snapshot.8", "update-img.8"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
}

/// A sealed COW file of 10 blocks with something behind its index that is none of a reader's business.
fn cow_file(path: &std::path::Path, ours: bool) {
    let mut bytes = vec![0u8; 4096 + 32768];
    let header = Header {
        flags: FLAG_CLEAN | FLAG_INDEX_ONLY,
        seqid: 1,
        version: 1,
        ..Header::default()
    };
    bytes[..64].copy_from_slice(&header.encode());
    for (block, entry) in [(1, 1u64), (2, 77), (9, 1)] {
        bytes[4096 + block * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    if ours {
        let extension = Extension {
            state: EXT_STATE_VOLATILE,
            nonce: 1,
            origin_bytes: 10 * 4096,
            roots: [0, 0],
        };
        bytes[EXT_OFFSET..][..EXT_BYTES].copy_from_slice(&extension.encode());
        bytes.extend([0xff; 8192]);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn changed_lists_a_handed_over_file_up_to_the_end_of_its_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cow");
    for ours in [true, false] {
        cow_file(&path, ours);
        let o = dbdctl(&["changed", path.to_str().unwrap()]);
        assert!(o.status.success(), "{}", stderr(&o));
        assert_eq!(String::from_utf8_lossy(&o.stdout), "1 2\n9 1\n");
        let o = dbdctl(&["changed", "--json", path.to_str().unwrap()]);
        let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
        assert_eq!(v["blocks"], 3);
        assert_eq!(v["extents"][0]["len"], 2);
    }
    // The index of ours must be whole.
    cow_file(&path, true);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096 + 9 * 8).unwrap();
    let o = dbdctl(&["changed", path.to_str().unwrap()]);
    assert_eq!(o.status.code(), Some(255));
    assert!(
        stderr(&o).contains("ends after 9 of 10 blocks"),
        "{}",
        stderr(&o)
    );
    assert!(o.stdout.is_empty());
    // And a size that cannot be is no reason to run for ever.
    cow_file(&path, true);
    file.write_all_at(&u64::MAX.to_le_bytes(), EXT_OFFSET as u64 + 24)
        .unwrap();
    let o = dbdctl(&["changed", path.to_str().unwrap()]);
    assert_eq!(o.status.code(), Some(255));
}

#[test]
fn changed_does_not_wait_for_a_pipe_and_does_not_panic_at_a_closed_one() {
    let dir = tempfile::tempdir().unwrap();
    let o = dbdctl(&["changed", dir.path().to_str().unwrap()]);
    assert_eq!(o.status.code(), Some(255));
    assert!(stderr(&o).contains("no regular file"), "{}", stderr(&o));
    let path = dir.path().join("cow");
    cow_file(&path, true);
    let mut child = Command::new(env!("CARGO_BIN_EXE_dbdctl"))
        .arg("changed")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let o = child.wait_with_output().unwrap();
    assert!(!stderr(&o).contains("panicked"), "{}", stderr(&o));
}

/// Whatever the list says, a boot goes on.
#[test]
fn boot_complains_and_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    for (text, want) in [
        ("", ""),
        ("# nothing\n", ""),
        ("garbage\n", "line 1"),
        (
            "minor=0 device=/dev/does-not-exist cow=/c\n",
            "is not there",
        ),
    ] {
        std::fs::write(&list, text).unwrap();
        let path = list.to_str().unwrap();
        let o = dbdctl(&["boot", "--dry-run", "--wait", "0", "--list", path]);
        assert!(o.status.success(), "{text}");
        assert!(o.stdout.is_empty(), "{text}");
        assert!(stderr(&o).contains(want), "{text}: {}", stderr(&o));
        assert_eq!(stderr(&o).is_empty(), want.is_empty());
    }
    let o = dbdctl(&["boot", "--dry-run", "--list", dir.path().to_str().unwrap()]);
    assert!(o.status.success() && stderr(&o).contains("cannot be read"));
    let o = dbdctl(&["boot", "--dry-run", "--root", "/dev/null"]);
    assert!(o.status.success() && stderr(&o).contains("no block device"));
    for args in [&["boot", "--wait", "x"][..], &["boot", "--nonsense"]] {
        assert_eq!(dbdctl(args).status.code(), Some(2));
    }
}
