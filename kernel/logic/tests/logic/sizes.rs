// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::errno::*;
use cow_logic::sizes::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// The numbers of COMPAT.md section 4.
#[test]
fn the_default_of_a_gibibyte() {
    let sizes = new_file(GIB, 0, 10).unwrap();
    assert_eq!(sizes.reported_bytes, 106_954_752);
    assert_eq!(sizes.file_bytes, 107_374_182);
    // Header, 64 sections of 8 blocks of index; the partial last block of the file holds nothing.
    assert_eq!(data_blocks(GIB, sizes.file_bytes), 26_214 - 1 - 64 * 8);
}

#[test]
fn given_sizes_are_exact() {
    let sizes = new_file(GIB, 200, 10).unwrap();
    assert_eq!(
        (sizes.reported_bytes, sizes.file_bytes),
        (200 * MIB, 200 * MIB)
    );
}

#[test]
fn too_small_and_too_big() {
    // 1 GiB wants 4096 + 64 * 32768 + 4096 bytes: just above 2 MiB.
    assert_eq!(new_file(GIB, 2, 10), Err(EINVAL));
    assert!(new_file(GIB, 3, 10).is_ok());
    assert_eq!(new_file(GIB, 0, 0), Err(EINVAL));
    assert_eq!(
        new_file(4096, 0, 10),
        Err(EINVAL),
        "a tiny device needs a size"
    );
    assert!(new_file(4096, 1, 10).is_ok());
    assert_eq!(new_file(GIB, u64::MAX, 10), Err(EFBIG));
    assert_eq!(new_file(GIB, 1 << 43, 10), Err(EFBIG));
    assert_eq!(mib_to_bytes((1 << 43) - 1), Ok(((1 << 43) - 1) * MIB));
    assert_eq!(expanded(MAX_FILE_BYTES, 1), Err(EFBIG));
    assert_eq!(expanded(GIB, u64::MAX), Err(EFBIG));
    assert_eq!(expanded(GIB, 5), Ok(GIB + 5 * MIB));
    assert_eq!(data_blocks(GIB, 0), 0);
}

proptest! {
    #![proptest_config(config(7))]

    #[test]
    fn share_is_exact(bytes in any::<u64>(), percent in 0..=100u32) {
        let exact = u128::from(bytes) * u128::from(percent) / 100;
        prop_assert_eq!(u128::from(share(bytes, percent)), exact);
    }

    #[test]
    fn a_file_that_is_allowed_holds_a_copy(sectors in 1..1u64 << 40, mib in 0..1u64 << 45, percent in any::<u32>()) {
        let origin = sectors * 512;
        match new_file(origin, mib, percent) {
            Ok(sizes) => {
                prop_assert!(data_blocks(origin, sizes.file_bytes) >= 1);
                prop_assert!(sizes.reported_bytes <= sizes.file_bytes);
                prop_assert!(sizes.file_bytes - sizes.reported_bytes < MIB);
                prop_assert_eq!(sizes.reported_bytes % MIB, 0);
            }
            Err(e) => prop_assert!(e == EINVAL || e == EFBIG),
        }
    }
}
