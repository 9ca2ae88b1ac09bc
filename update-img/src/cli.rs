// SPDX-License-Identifier: GPL-2.0-only
//! The command line.

use clap::Parser;
use std::path::PathBuf;

/// Brings an image of a block device up to date, by copying only the blocks that changed since.
///
/// The snapshot device is the one that was taken right after the one that the image holds. The COW
/// file is the one left over from between the two. With several COW files of one chain, oldest first,
/// the image may be that many snapshots old.
///
/// Everything is checked before the first write: that COW file and snapshot belong together, that the
/// COW file was handed over in good order, that the sizes agree, and that the COW files lead on from
/// what the image is. If the copying itself fails, the image is partly updated; running the same
/// command again completes it. The same when a signal ends it (Ctrl-C, a shutdown): it says what
/// state the image is in, and exits with 128 and the signal's number. If the snapshot itself fails
/// meanwhile, keep the COW files: `dbdctl drop-snapshot 0`, `dbdctl transition-to-snapshot /.datto2
/// 0`, then `update-img /dev/datto0 /.datto /.datto1 /backups/sda1-bkp`.
///
/// Of which snapshot the image is it keeps in an extended attribute of the image, user.datto.image.
/// Refused are COW files that leave a gap behind the image, and an image from another history of the
/// device, which was rolled back or cloned. There is no such record at the first update of a full
/// copy, on a block device, on a filesystem without user attributes, and on a copy that was made
/// without them (`cp -a` and `rsync -aX` take them along): then this is not checked. A new full copy
/// over an old image needs no option, unless the last update was killed, or the power failed in it:
/// then say --image-is-new, once.
///
/// Example, after `dbdctl transition-to-snapshot /.datto1 0`:
///
///     update-img /dev/datto0 /.datto /backups/sda1-bkp && rm /.datto
#[derive(Debug, Parser)]
#[command(
    name = "update-img",
    version,
    verbatim_doc_comment,
    after_help = "\
EXIT STATUS
  0        done; with --verify: image and snapshot are equal too
  1        failed, with the reason, and in what state the image is
  2        a mistake in the command line: nothing was done
  3        --verify, --verify-only: compared to the end, and the image differs
  128 + n  ended by signal n"
)]
pub struct Cli {
    /// The snapshot to copy from, such as /dev/datto0.
    #[arg(value_name = "SNAPSHOT DEVICE")]
    pub snapshot: PathBuf,

    /// The COW files, oldest first, then the image: a block device, or a file that does not lie on the device itself.
    #[arg(value_name = "COW FILE… IMAGE", required = true, num_args = 1..)]
    pub rest: Vec<PathBuf>,

    /// Compare image and snapshot afterwards, and name the blocks that differ. Without a COW file: only that.
    #[arg(long)]
    pub verify: bool,

    /// Only compare: `update-img --verify-only <snapshot device> [<cow file>…] <image>`. Nothing is written. Blocks
    /// of the running COW file are not compared, for the snapshot cannot show them. No COW file need be named; those
    /// that are named are only checked to belong to the snapshot.
    #[arg(long, conflicts_with_all = ["verify", "dry_run"])]
    pub verify_only: bool,

    /// Check everything and say what would be copied; write nothing.
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Print the summary as JSON, on standard output.
    #[arg(long)]
    pub json: bool,

    /// The image was copied anew (dd) from the snapshot that has the sequence number of the first COW file, or has
    /// become it some other way: forget what the image says of itself. Not checked; where it is not so, the image will
    /// be wrong.
    #[arg(long, conflicts_with = "verify_only")]
    pub image_is_new: bool,

    /// No progress and no summary; errors only.
    #[arg(long, short)]
    pub quiet: bool,

    /// Reads under way at once.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub queue_depth: u8,
}
