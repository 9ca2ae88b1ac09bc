// SPDX-License-Identifier: GPL-2.0-only
//! Error numbers that the `kernel` crate names in 7.3 but not yet in 7.2. Users import them by name, which
//! goes before what the prelude brings along.

use core::mem::transmute;
use kernel::{bindings, error::code::EINVAL, error::Error, ffi::c_int};

const fn named(errno: u32) -> Error {
    assert!(errno > 0 && errno <= bindings::MAX_ERRNO);
    // SAFETY: An error holds its negative number and nothing else: same size (checked by `transmute`),
    // same meaning (checked below, when this is compiled), and within the range of error numbers.
    unsafe { transmute::<c_int, Error>(-(errno as c_int)) }
}

const _: () = {
    // SAFETY: The same the other way round; any four bytes are an integer.
    let number = unsafe { transmute::<Error, c_int>(EINVAL) };
    assert!(number == -(bindings::EINVAL as c_int));
};

pub(crate) const EMEDIUMTYPE: Error = named(bindings::EMEDIUMTYPE);
pub(crate) const ENOKEY: Error = named(bindings::ENOKEY);
pub(crate) const EOPNOTSUPP: Error = named(bindings::EOPNOTSUPP);
pub(crate) const ESTALE: Error = named(bindings::ESTALE);
pub(crate) const EUCLEAN: Error = named(bindings::EUCLEAN);
pub(crate) const ETIMEDOUT: Error = named(bindings::ETIMEDOUT);
pub(crate) const EBADMSG: Error = named(bindings::EBADMSG);
