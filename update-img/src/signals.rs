// SPDX-License-Identifier: GPL-2.0-only
//! Signals that end the program. They only end it when it has said what state the image is in.

use crate::stage::Stage;
use dattobd_client::tell;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{signal, SigHandler, SigSet, Signal};
use std::io::{self, IsTerminal};
use std::{mem, ptr, thread};

/// What a terminal, a service manager or a shutdown ends programs with.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Whether whoever started us wants `signal` ignored, as nohup does.
fn ignored(signal: Signal) -> bool {
    // SAFETY: all bytes zero are a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is changed without a new action, and `now` is there to be written to.
    let r = unsafe { libc::sigaction(signal as i32, ptr::null(), &mut now) };
    r == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// From now on a signal that ends the program tells the state of `stage` first, and writing beyond the limit
/// of this process (`ulimit -f`) is an error like others. Before any other thread is started: they all are
/// to leave the signals to the one that waits for them.
///
/// # Errors
///
/// The system does not allow it.
pub fn watch(stage: &'static Stage) -> Result<(), Errno> {
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    let mut set = SigSet::empty();
    ENDING
        .into_iter()
        .filter(|s| !ignored(*s))
        .for_each(|s| set.add(s));
    set.thread_block()?;
    thread::spawn(move || loop {
        // EINTR and the like: nothing has come.
        let Ok(signal) = set.wait() else { continue };
        stage.interrupt(128 + signal as i32, |state| {
            // Behind the progress line.
            let line = if io::stderr().is_terminal() { "\n" } else { "" };
            tell!("{line}update-img: ended by {signal}; {state}");
        });
    });
    Ok(())
}
