// SPDX-License-Identifier: GPL-2.0-only
use super::*;
use proptest::prelude::*;

fn entry(line: &str) -> Entry {
    Entry::parse(line.as_bytes()).unwrap().unwrap()
}

#[test]
fn reads_a_line_with_everything() {
    let e = entry(
        "minor=3 device=/dev/disk/by-uuid/ab-c cow=\"/my file\\n\\x41\" next=/.datto1 cache=5000 mode=snapshot later=yes",
    );
    assert_eq!(e.minor, 3);
    assert_eq!(e.device, Path::new("/dev/disk/by-uuid/ab-c"));
    assert_eq!(e.cow, Path::new("/my file\nA"));
    assert_eq!(e.next.as_deref(), Some(Path::new("/.datto1")));
    assert_eq!(e.cache, Some(5000));
    assert_eq!(e.mode, Some(Mode::Snapshot));
    assert_eq!(e.other, [(b"later".to_vec(), b"yes".to_vec())]);
}

#[test]
fn order_and_blanks_do_not_matter() {
    let e = entry("\t cow=/c   device=/dev/x\tminor=0 ");
    assert_eq!(e, Entry::new(0, "/dev/x".into(), "/c".into()));
}

#[test]
fn comments_and_empty_lines_are_no_entries() {
    for line in ["", "   ", "# minor=0 device=/dev/x cow=/c", "  #"] {
        assert_eq!(Entry::parse(line.as_bytes()), Ok(None), "{line}");
    }
}

#[test]
fn bad_lines_are_told_and_not_guessed_at() {
    for line in [
        "garbage",
        "minor=0",
        "minor=0 device=/dev/x",
        "device=/dev/x cow=/c",
        "minor=-1 device=/dev/x cow=/c",
        "minor=+1 device=/dev/x cow=/c",
        "minor=4294967296 device=/dev/x cow=/c",
        "minor= device=/dev/x cow=/c",
        "minor=0 minor=0 device=/dev/x cow=/c",
        "minor=0 device=x cow=/c",
        "minor=0 device=/dev/x cow=c",
        "minor=0 device=/dev/x cow=\"\"",
        "minor=0 device=/dev/x cow=\"/c",
        "minor=0 device=/dev/x cow=\"/c\\",
        "minor=0 device=/dev/x cow=\"/c\\x4\"",
        "minor=0 device=/dev/x cow=\"/c\\xzz\"",
        "minor=0 device=/dev/x cow=\"/c\\q\"",
        "minor=0 device=/dev/x cow=\"/c\"mode=snapshot",
        "minor=0 device=/dev/x cow=/c\"d\"",
        "minor=0 device=/dev/x cow=/c\\ d",
        "minor=0 device=/dev/x cow=\"/c\\x00\"",
        "minor=0 device=/dev/x cow=/c cache=much",
        "minor=0 device=/dev/x cow=/c =5",
        "minor=0 device=/dev/x cow=/c\0",
        "minor=0 device=/dev/x cow=/a b",
    ] {
        assert!(Entry::parse(line.as_bytes()).is_err(), "{line:?}");
    }
}

#[test]
fn a_mode_of_a_later_version_is_kept_but_not_used() {
    let e = entry("minor=0 device=/dev/x cow=/c mode=replicating");
    assert_eq!(e.mode, None);
    assert!(e.to_line().ends_with(b"mode=replicating"));
}

#[test]
fn other_lines_survive_a_change() {
    let text = b"# mine\n\nminor=1 device=/dev/y   cow=/d # no\nminor=0 cow=/c device=/dev/x\n";
    let mut list = List::parse(text);
    assert_eq!(list.problems().map(|p| p.0).collect::<Vec<_>>(), [3]);
    list.put(Entry::new(0, "/dev/z".into(), "/e".into()));
    list.put(Entry::new(7, "/dev/w".into(), "/f".into()));
    assert_eq!(
        String::from_utf8(list.to_bytes()).unwrap(),
        "# mine\n\nminor=1 device=/dev/y   cow=/d # no\nminor=0 device=/dev/z cow=/e\nminor=7 device=/dev/w cow=/f\n"
    );
    list.remove(0);
    list.remove(7);
    assert_eq!(list.entries().count(), 0);
    assert!(list.to_bytes().starts_with(b"# mine\n\nminor=1"));
}

#[test]
fn of_two_entries_of_a_minor_the_last_counts_and_one_stays() {
    let mut list = List::parse(b"minor=0 device=/dev/a cow=/a\nminor=0 device=/dev/b cow=/b\n");
    assert_eq!(list.get(0).unwrap().cow, Path::new("/b"));
    list.put(Entry::new(0, "/dev/c".into(), "/c".into()));
    assert_eq!(list.to_bytes(), b"minor=0 device=/dev/c cow=/c\n");
}

#[test]
fn a_new_list_explains_itself() {
    let mut list = List::default();
    list.put(Entry::new(0, "/dev/c".into(), "/c".into()));
    assert!(list.to_bytes().starts_with(b"# "));
    assert_eq!(List::parse(&list.to_bytes()), list);
}

#[test]
fn a_file_is_changed_whole_and_nothing_is_left_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("datto/dla/reload_devices");
    assert_eq!(read(&path).unwrap(), List::default());
    let one = Entry::new(0, "/dev/x".into(), "/a b".into());
    update(&path, |l| l.put(one.clone())).unwrap();
    assert_eq!(read(&path).unwrap().get(0), Some(&one));
    update(&path, |l| l.remove(0)).unwrap();
    assert_eq!(read(&path).unwrap().entries().count(), 0);
    // What a crash left over is in nobody's way.
    fs::remove_file(&path).unwrap();
    fs::write(path.with_file_name("reload_devices.new"), "half").unwrap();
    update(&path, |l| l.put(one.clone())).unwrap();
    assert_eq!(read(&path).unwrap().get(0), Some(&one));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

/// A reader that does not replay the journal must find each change in the old place.
#[test]
fn changes_stay_in_the_blocks_that_the_file_has() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    let put = |minor: u32, cow: &str| {
        update(&path, |l| {
            l.put(Entry::new(minor, "/dev/x".into(), cow.into()));
        })
        .unwrap();
        let meta = fs::metadata(&path).unwrap();
        (meta.ino(), meta.len())
    };
    let first = put(0, "/.datto");
    assert_eq!(first.1, 4096);
    assert_eq!(put(1, "/a much longer name"), first);
    update(&path, |l| l.remove(0)).unwrap();
    assert_eq!(put(1, "/c"), first);
    assert_eq!(read(&path).unwrap().entries().count(), 1);
    let (_, size) = put(2, &format!("/{}", "x".repeat(5000)));
    assert_eq!(size, 8192);
    // A file that somebody wrote with an editor has no room.
    fs::write(&path, "minor=0 device=/dev/x cow=/c\n").unwrap();
    assert_eq!(put(0, "/d").1, 4096);
}

#[test]
fn a_list_that_cannot_be_read_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    fs::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
    assert!(update(&path, |l| l.put(Entry::new(0, "/x".into(), "/y".into()))).is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), MAX_BYTES + 1);
    assert!(update(&dir.path().join("list/below"), |_| ()).is_err());
    fs::create_dir(dir.path().join("folder")).unwrap();
    assert!(read(&dir.path().join("folder")).is_err());
}

#[test]
fn writers_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    std::thread::scope(|s| {
        for minor in 0..8 {
            let path = &path;
            s.spawn(move || {
                update(path, |l| {
                    l.put(Entry::new(minor, "/dev/x".into(), "/c".into()))
                })
            });
        }
    });
    assert_eq!(read(&path).unwrap().entries().count(), 8);
}

fn some_path() -> impl Strategy<Value = PathBuf> {
    prop_oneof![
        proptest::collection::vec(1u8.., 0..40),
        "[ -~\\n\\t\"\\\\äλ€]{0,20}".prop_map(String::into_bytes)
    ]
    .prop_map(|tail| {
        let mut all = b"/".to_vec();
        all.extend(tail);
        PathBuf::from(OsString::from_vec(all))
    })
}

prop_compose! {
    fn some_entry()(
        minor in any::<u32>(),
        device in some_path(),
        cow in some_path(),
        next in proptest::option::of(some_path()),
        cache in proptest::option::of(any::<u64>()),
        mode in proptest::option::of(prop_oneof![Just(Mode::Snapshot), Just(Mode::Incremental)]),
        other in proptest::collection::btree_map("x[a-z#_.]{1,8}", proptest::collection::vec(any::<u8>(), 0..20), 0..4),
    ) -> Entry {
        let other = other.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
        Entry { minor, device, cow, next, cache, mode, other }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read_again(e in some_entry()) {
        let line = e.to_line();
        prop_assert!(!line.contains(&b'\n'));
        prop_assert_eq!(Entry::parse(&line), Ok(Some(e)));
    }

    #[test]
    fn a_list_is_read_again(all in proptest::collection::vec(some_entry(), 0..8)) {
        let mut list = List::default();
        for e in &all {
            list.put(e.clone());
        }
        let again = List::parse(&list.to_bytes());
        prop_assert_eq!(&again, &list);
        for e in list.entries() {
            prop_assert_eq!(again.get(e.minor), Some(e));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_crash_and_kept(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let list = List::parse(&text);
        let mut want = text;
        while want.last() == Some(&b'\n') {
            want.pop();
        }
        if !want.is_empty() {
            want.push(b'\n');
        }
        prop_assert_eq!(list.to_bytes(), want);
    }

    #[test]
    fn near_misses_are_read_without_a_crash(text in "[a-z=\"\\\\ x0-9#/\\n]{0,80}") {
        for e in List::parse(text.as_bytes()).entries() {
            prop_assert_eq!(Entry::parse(&e.to_line()), Ok(Some(e.clone())));
        }
    }
}
