// SPDX-License-Identifier: GPL-2.0-only
//! How far an update has come: what an interruption has to say about the image.

use std::process;
use std::sync::{Mutex, PoisonError};

/// What the image is when copying ends too early.
pub const PARTLY: &str =
    "the image is PARTLY UPDATED: it is neither the old nor the new state. Run the same \
     command again while the snapshot is there; it starts over and is safe to repeat. Has the snapshot failed? Keep \
     the COW files: `dbdctl drop-snapshot N`, `dbdctl transition-to-snapshot <new COW file> N`, then update-img with \
     these COW files, the failed snapshot's, and the image";
/// What the image is when nothing was written.
pub const UNTOUCHED: &str = "the image is untouched";

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was written.
    #[default]
    Untouched,
    /// Something was written, not all of it, or it is not on disk yet.
    Writing,
    /// All of it is on disk.
    Updated,
    /// Nothing is going to be written: image and snapshot are compared.
    Comparing,
}

/// The [`Progress`] of one run. Whoever interrupts it holds the lock until the process is gone, so that what
/// it says stays true: no first write can come behind it.
#[derive(Debug, Default)]
pub struct Stage(Mutex<Progress>);

impl Stage {
    /// Nothing was written yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Progress::Untouched))
    }

    fn set(&self, progress: Progress) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// Before each write.
    pub fn writing(&self) {
        self.set(Progress::Writing);
    }

    /// All is written, and on disk.
    pub fn updated(&self) {
        self.set(Progress::Updated);
    }

    /// Only a comparison was asked for.
    pub fn comparing(&self) {
        self.set(Progress::Comparing);
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process: tells `say` what state the image is in, and exits with `code`.
    pub fn interrupt(&self, code: i32, say: impl FnOnce(&str)) -> ! {
        let progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        say(match *progress {
            Progress::Untouched => UNTOUCHED,
            Progress::Writing => PARTLY,
            Progress::Updated => "the image is updated and on disk; comparing it, if that was asked for, was not finished",
            Progress::Comparing => "nothing was written; comparing was not finished",
        });
        process::exit(code)
    }
}
