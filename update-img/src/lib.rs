// SPDX-License-Identifier: GPL-2.0-only
//! `update-img` as a library, so that all of it can be tested without a driver.
//!
//! [`check`] looks at everything before the first write, [`history`] at what the image says of itself ([`record`]);
//! [`copy`] transfers the changed blocks, [`ledger`] keeps the image's record true meanwhile, [`verify`] compares
//! afterwards; [`run`] puts them together as the command line says, and [`stage`] knows how
//! far it has come when a signal ([`signals`]) ends it.

pub mod check;
pub mod cli;
pub mod copy;
pub mod history;
pub mod ledger;
pub mod progress;
pub mod record;
pub mod run;
pub mod runs;
pub mod signals;
pub mod stage;
pub mod verify;
