// SPDX-License-Identifier: GPL-2.0-only
//! Says of a COW file's roots on a device what a test wants them to say: the state in which a crash at some
//! moment would have left them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use cow_logic::private_format::{check, seal, Block, Kind, Root, RootState};
use ioctl_abi::cow::Geometry;
use nix::libc;

use crate::sys;

/// The states of `docs/formats.md`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum State {
    /// LIVE
    Live,
    /// SEALED
    Sealed,
    /// PREPARED
    Prepared,
    /// CLOSED
    Closed,
    /// POISONED
    Poisoned,
}

impl From<State> for RootState {
    fn from(state: State) -> Self {
        match state {
            State::Live => RootState::Live,
            State::Sealed => RootState::Sealed,
            State::Prepared => RootState::Prepared,
            State::Closed => RootState::Closed,
            State::Poisoned => RootState::Poisoned,
        }
    }
}

/// What to write.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Device or image
    pub device: PathBuf,
    /// A copy of the COW file's first block
    pub header: PathBuf,
    /// What both roots are to say; without it they are only shown
    pub state: Option<State>,
}

/// Changes the roots, and prints where they lie and what they said.
pub fn run(o: &Options) -> Result<()> {
    let header = std::fs::read(&o.header)?;
    ensure!(header.len() >= 112, "{}: no header", o.header.display());
    // docs/formats.md, private extension.
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let (nonce, bytes, roots) = (field(80), field(88), [field(96), field(104)]);
    let layout = Geometry {
        origin_bytes: bytes,
    }
    .private();
    let file = match o.state {
        Some(_) => sys::open_write(&o.device, 0)?,
        // A device in use: the driver writes past the page cache, and a look must not count as a writer.
        None => sys::open_read(&o.device, libc::O_DIRECT)?,
    };
    let mut buffer = sys::AlignedBuf::new(4096);
    for (number, block) in (layout.roots..).zip(roots) {
        let mut raw: Block = [0; 4096];
        file.read_exact_at(&mut buffer, block * 4096)?;
        raw.copy_from_slice(&buffer);
        let generation = check(&raw, Kind::Root, nonce, number)
            .with_context(|| format!("block {block} holds no good root of that file"))?;
        let mut root = Root::decode(&raw).context("a state that is not known")?;
        println!(
            "block {block} generation {generation} state {:?} successor {:#x}",
            root.state, root.successor.nonce
        );
        if let Some(state) = o.state {
            root.state = state.into();
            root.encode(&mut raw);
            seal(&mut raw, Kind::Root, nonce, number, generation);
            file.write_all_at(&raw, block * 4096)?;
        }
    }
    if o.state.is_some() {
        file.sync_all()?;
    }
    Ok(())
}
