// SPDX-License-Identifier: GPL-2.0-only
//! What a check has found, told apart from a check that did not work.

use anyhow::Error;

/// The thing under test did what it must not do.
#[derive(Debug)]
pub struct Finding(pub String);

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FOUND: {}", self.0)
    }
}

impl std::error::Error for Finding {}

/// A finding as an error.
pub fn finding(text: impl Into<String>) -> Error {
    Finding(text.into()).into()
}
