// SPDX-License-Identifier: GPL-2.0-only
//! The command line on a machine without the driver: bad input, help, completions, man pages.

use std::process::{Command, Output};

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
