// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::status_json::*;
use proptest::prelude::*;
use serde_json::{json, Value};

/// COMPAT.md section 4, byte for byte.
const GOLDEN: &str = r#"{
	"version": "0.1.0",
	"devices": [
		{
			"minor": 0,
			"cow_file": "/.datto",
			"block_device": "/dev/vdb",
			"max_cache": 314572800,
			"fallocate": 106954752,
			"cow_size_current": 107374182,
			"seq_id": 1,
			"uuid": "1ec156449fba40f4833096269cfd046f",
			"version": 1,
			"nr_changed_blocks": 1,
			"auto_expand": {
				"step_size_mib": 256,
				"reserved_space_mib": 1024
			},
			"error": -27,
			"state": 3
		}
	]
}
"#;

fn device() -> DeviceStatus<'static> {
    DeviceStatus {
        minor: 0,
        cow_file: b"/.datto",
        block_device: b"/dev/vdb",
        max_cache: 314_572_800,
        details: Some(Details {
            fallocate: 106_954_752,
            cow_size_current: 107_374_182,
            seq_id: 1,
            uuid: 0x1ec1_5644_9fba_40f4_8330_9626_9cfd_046f_u128.to_be_bytes(),
            version: 1,
            nr_changed_blocks: 1,
            auto_expand: Some(AutoExpand {
                step_size_mib: 256,
                reserved_space_mib: 1024,
            }),
        }),
        error: -27,
        state: 3,
    }
}

fn render<'a>(devices: impl IntoIterator<Item = DeviceStatus<'a>>) -> String {
    let mut out = String::new();
    write_status(&mut out, "0.1.0", devices).unwrap();
    out
}

#[test]
fn the_example_of_the_contract() {
    assert_eq!(render([device()]), GOLDEN);
}

#[test]
fn optional_fields_are_left_out() {
    let mut d = device();
    d.error = 0;
    d.details.as_mut().unwrap().auto_expand = None;
    let out = render([d]);
    let golden: String = {
        let start = GOLDEN.find("\t\t\t\"auto_expand\"").unwrap();
        let end = GOLDEN.find("\t\t\t\"state\"").unwrap();
        format!("{}{}", &GOLDEN[..start], &GOLDEN[end..])
    };
    assert_eq!(out, golden);
}

#[test]
fn an_unverified_device() {
    let d = DeviceStatus {
        details: None,
        error: 0,
        state: 5,
        ..device()
    };
    let golden: String = {
        let start = GOLDEN.find("\t\t\t\"fallocate\"").unwrap();
        format!("{}\t\t\t\"state\": 5\n\t\t}}\n\t]\n}}\n", &GOLDEN[..start])
    };
    assert_eq!(render([d]), golden);
}

#[test]
fn no_device() {
    assert_eq!(
        render([]),
        "{\n\t\"version\": \"0.1.0\",\n\t\"devices\": [\n\n\t]\n}\n"
    );
    let value: Value = serde_json::from_str(&render([])).unwrap();
    assert_eq!(value, json!({"version": "0.1.0", "devices": []}));
}

#[test]
fn several_devices() {
    let out = render([
        device(),
        DeviceStatus {
            minor: 1,
            ..device()
        },
    ]);
    assert!(out.contains("\t\t\t\"state\": 3\n\t\t},\n\t\t{\n\t\t\t\"minor\": 1,\n"));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn escapes() {
    let mut out = String::new();
    write_string(&mut out, b"a\"b\\c\n\r\t\x01\x7f/\xff\xc3\xa9\xc3").unwrap();
    assert_eq!(
        out,
        "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u007f/\\u00ff\u{e9}\\u00c3\""
    );
}

/// A path as the status shows it: UTF-8 as it is, other bytes as the character of that number.
fn shown(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|b| char::from(*b)));
    }
    out
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn any_path_gives_valid_json(
        cow in prop::collection::vec(any::<u8>(), 0..40),
        bdev in ".*",
        numbers in any::<[u64; 8]>(),
        error in any::<i32>(),
        unverified in any::<bool>(),
        expand in any::<bool>(),
    ) {
        let details = Details {
            fallocate: numbers[0],
            cow_size_current: numbers[1],
            seq_id: numbers[2],
            uuid: [numbers[3] as u8; 16],
            version: numbers[4],
            nr_changed_blocks: numbers[5],
            auto_expand: expand.then_some(AutoExpand { step_size_mib: numbers[6], reserved_space_mib: numbers[7] }),
        };
        let d = DeviceStatus {
            minor: 7,
            cow_file: &cow,
            block_device: bdev.as_bytes(),
            max_cache: numbers[0],
            details: (!unverified).then_some(details),
            error,
            state: 3,
        };
        let value: Value = serde_json::from_str(&render([d, d])).unwrap();
        let v = &value["devices"][1];
        prop_assert_eq!(&v["cow_file"], &json!(shown(&cow)));
        prop_assert_eq!(&v["block_device"], &json!(bdev));
        prop_assert_eq!(v.get("error").cloned(), (error != 0).then(|| json!(error)));
        prop_assert_eq!(v.get("seq_id").is_some(), !unverified);
        prop_assert_eq!(v.get("auto_expand").is_some(), !unverified && expand);
        if !unverified {
            prop_assert_eq!(&v["nr_changed_blocks"], &json!(numbers[5]));
            prop_assert_eq!(v["uuid"].as_str().unwrap().len(), 32);
        }
    }
}
