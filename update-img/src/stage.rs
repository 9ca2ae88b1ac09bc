// SPDX-License-Identifier: GPL-2.0-only
//! How far an update has come: what an interruption has to say about the image.

use crate::ledger::Ledger;
use anyhow::{Context, Result};
use std::process;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// What the image is when copying ends too early.
pub const PARTLY: &str =
    "the image is PARTLY UPDATED: it is neither the old nor the new state. Run the same \
     command again while the snapshot is there; it starts over and is safe to repeat. Has the snapshot failed? Keep \
     the COW files: `dbdctl drop-snapshot N`, `dbdctl transition-to-snapshot <new COW file> N`, then update-img with \
     these COW files, the failed snapshot's, and the image";
/// What the image is when nothing was written.
pub const UNTOUCHED: &str = "the image is untouched";

/// How long an interrupted update waits for a disk before the process ends.
const SETTLE: Duration = Duration::from_secs(5);

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

#[derive(Debug)]
struct State {
    progress: Progress,
    /// The image's record, and whether it says that an update has begun.
    ledger: Option<Arc<Ledger>>,
    begun: bool,
}

/// The [`Progress`] of one run. Whoever interrupts it holds the lock until the process is gone, so that what
/// it says stays true: no first write can come behind it.
#[derive(Debug)]
pub struct Stage {
    state: Mutex<State>,
    /// Held by each write while it is under way.
    writes: RwLock<()>,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// Nothing was written yet.
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                progress: Progress::Untouched,
                ledger: None,
                begun: false,
            }),
            writes: RwLock::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image has a record that is to be kept true.
    pub fn keep(&self, ledger: Arc<Ledger>) {
        self.state().ledger = Some(ledger);
    }

    /// Writes to the image. The first write comes behind the record that says so; a signal that comes between two
    /// writes is answered between them.
    ///
    /// # Errors
    ///
    /// That could not be recorded, and nothing was written.
    pub fn write<T>(&self, write: impl FnOnce() -> T) -> Result<T> {
        let _under_way = {
            let mut state = self.state();
            if !state.begun {
                if let Some(ledger) = &state.ledger {
                    ledger
                        .begin()
                        .context("recording on the image that its update begins")?;
                }
                state.begun = true;
            }
            state.progress = Progress::Writing;
            self.writes.read().unwrap_or_else(PoisonError::into_inner)
        };
        Ok(write())
    }

    /// All is written, and on disk; now the image's record is, too.
    ///
    /// # Errors
    ///
    /// The record could not be written.
    pub fn updated(&self) -> Result<()> {
        let mut state = self.state();
        if let Some(ledger) = &state.ledger {
            ledger
                .done()
                .context("recording on the image of which snapshot it is")?;
        }
        state.progress = Progress::Updated;
        Ok(())
    }

    /// Only a comparison was asked for.
    pub fn comparing(&self) {
        self.state().progress = Progress::Comparing;
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.state().progress
    }

    /// Ends the process: tells `say` what state the image is in, and exits with `code`.
    pub fn interrupt(&'static self, code: i32, say: impl FnOnce(&str)) -> ! {
        let state = self.state();
        say(match state.progress {
            Progress::Untouched => UNTOUCHED,
            Progress::Writing => PARTLY,
            Progress::Updated => "the image is updated and on disk; comparing it, if that was asked for, was not finished",
            Progress::Comparing => "nothing was written; comparing was not finished",
        });
        if let (Progress::Writing, Some(ledger)) = (state.progress, &state.ledger) {
            self.settle(ledger.clone());
        }
        process::exit(code)
    }

    /// Notes on the image when it was written to last, as soon as no write is under way. Not at any price: without that
    /// note the record counts always.
    fn settle(&'static self, ledger: Arc<Ledger>) {
        let (done, settled) = mpsc::channel();
        let noting = thread::Builder::new().spawn(move || {
            let _no_write = self.writes.write();
            let _ = ledger.unfinished();
            // Whoever waited may have given up.
            let _ = done.send(());
        });
        if noting.is_ok() {
            let _ = settled.recv_timeout(SETTLE);
        }
    }
}
