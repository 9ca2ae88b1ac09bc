// SPDX-License-Identifier: GPL-2.0-only
//! Signals during what must not be left half done. By handlers and for a while, never by blocking or for good:
//! what we start (modprobe) would inherit that.

use nix::libc::c_int;
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use std::sync::atomic::{AtomicI32, Ordering};

/// The last signal that came while [`Held`] was there; 0: none.
static CAME: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: c_int) {
    CAME.store(signal, Ordering::SeqCst);
}

/// Sets how `signal` is answered; what was before.
fn answer(signal: Signal, how: SigHandler) -> Option<SigAction> {
    let action = SigAction::new(how, SaFlags::empty(), SigSet::empty());
    // SAFETY: the only handler is `note`, which stores to an atomic and does nothing else.
    unsafe { sigaction(signal, &action) }.ok()
}

/// Answers of signals that are put back at the end.
#[derive(Debug, Default)]
struct Before(Vec<(Signal, SigAction)>);

impl Drop for Before {
    fn drop(&mut self) {
        for (signal, action) in &self.0 {
            // SAFETY: it was the answer before; we have put no handler of our own there for good.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}

/// While this is there, signals that end a program are only noted.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "its drop is what matters")] Before);

impl Held {
    /// From now on. What is ignored (nohup) stays so.
    pub fn new() -> Self {
        CAME.store(0, Ordering::SeqCst);
        let mut before = Before::default();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            let Some(was) = answer(signal, SigHandler::Handler(note)) else {
                continue;
            };
            if was.handler() == SigHandler::SigIgn {
                answer(signal, SigHandler::SigIgn);
            } else {
                before.0.push((signal, was));
            }
        }
        Self(before)
    }

    /// The signal that has come, if one has.
    pub fn came(&self) -> Option<Signal> {
        Signal::try_from(CAME.load(Ordering::SeqCst)).ok()
    }
}

/// Runs `what` so that a file beyond the limit of this process (`ulimit -f`) is an error like others instead of
/// our end.
pub fn with_size_limit_as_error<T>(what: impl FnOnce() -> T) -> T {
    let mut before = Before::default();
    if let Some(was) = answer(Signal::SIGXFSZ, SigHandler::SigIgn) {
        before.0.push((Signal::SIGXFSZ, was));
    }
    what()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::raise;
    use std::sync::Mutex;

    /// Signals are the whole process's.
    static ALONE: Mutex<()> = Mutex::new(());

    fn now(signal: Signal) -> SigHandler {
        let was = answer(signal, SigHandler::SigIgn).unwrap();
        answer(signal, was.handler());
        was.handler()
    }

    #[test]
    fn a_signal_is_noted_and_the_answers_come_back() {
        let _alone = ALONE.lock();
        // Whoever runs the tests may have it ignored.
        answer(Signal::SIGTERM, SigHandler::SigDfl);
        answer(Signal::SIGHUP, SigHandler::SigIgn);
        {
            let held = Held::new();
            assert_eq!(held.came(), None);
            raise(Signal::SIGHUP).unwrap();
            assert_eq!(held.came(), None);
            raise(Signal::SIGTERM).unwrap();
            assert_eq!(held.came(), Some(Signal::SIGTERM));
        }
        assert_eq!(now(Signal::SIGTERM), SigHandler::SigDfl);
        assert_eq!(now(Signal::SIGHUP), SigHandler::SigIgn);
        answer(Signal::SIGHUP, SigHandler::SigDfl);
    }

    #[test]
    fn the_limit_of_size_is_ignored_for_one_call() {
        let _alone = ALONE.lock();
        answer(Signal::SIGXFSZ, SigHandler::SigDfl);
        let inside = with_size_limit_as_error(|| {
            raise(Signal::SIGXFSZ).unwrap();
            now(Signal::SIGXFSZ)
        });
        assert_eq!(inside, SigHandler::SigIgn);
        assert_eq!(now(Signal::SIGXFSZ), SigHandler::SigDfl);
    }
}
